//! The `bench` command: a subcommand for each pattern, `capacity`, `versus` and `compare`.
//!
//! Invariants: each pattern has only its own flags; `bench` without a pattern has those of `ping`,
//! which may also precede a pattern. It must not check combinations of flags; `bench::plan` does,
//! with the properties of the machine.

mod flags;
mod foreign;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};

use super::capacity::Quest;
use super::compare::{self, COMPARE, Compare};
use super::options::{Options, Pattern, Word as _};
use super::versus::Duel;
use flags::Typed;
pub use foreign::hint;
use uppercased_ctl::target::with_defaults;

/// Name of the command.
pub(super) const BENCH: &str = "bench";
/// Name of the search for a capacity, below it.
const CAPACITY: &str = "capacity";
/// Name of the comparison of two servers, below it.
pub(super) const VERSUS: &str = "versus";

const HELP: &str = "\
Without a command, bench runs `ping` with the options below. Without an
address, it starts a built-in server, measures it and stops it.

Examples:
  uppercased bench
  uppercased bench rate 10.0.0.7:9999 --rate 20000 --arrivals poisson
  uppercased bench churn --close half --reload-every 2s --report churn.html
  uppercased bench hold :9999 --during 'every 5s: systemctl reload uppercased'

Exit codes: 0 every byte correct, nothing failed, plan completed; 1 a failure,
an incomplete plan, or output that cannot be written; 2 bad usage; 3 only a
condition of --fail-if.";

/// A command line, understood.
#[derive(Debug)]
pub(super) enum Task {
    /// Measure a server.
    Measure(Box<Options>),
    /// Find the highest rate that holds a target.
    Capacity(Box<Quest>),
    /// Measure two servers in turn, and compare them.
    Versus(Box<Duel>),
    /// Compare earlier measurements.
    Compare(Compare),
}

/// The reason why a command line is invalid.
#[derive(Debug)]
pub(super) struct Misuse {
    pub why: String,
    /// The command whose help explains it.
    pub command: String,
}

/// Returns the definition of the command.
#[must_use]
pub fn command() -> Command {
    Command::new(BENCH)
        .about("Measure a server and check every byte")
        .after_help(HELP)
        .override_usage("uppercased bench [COMMAND] [HOST:PORT] [OPTIONS] [-- SERVER ARGUMENTS]")
        .args(flags::of(Pattern::Ping))
        .subcommands(Pattern::ALL.iter().map(|pattern| of_pattern(*pattern)))
        .subcommand(of_capacity())
        .subcommand(of_versus())
        .subcommand(compare::command())
}

fn of_pattern(pattern: Pattern) -> Command {
    let (about, help) = match pattern {
        Pattern::Ping => (
            "Send the next message after each reply (closed loop)",
            "The rate is the highest that these connections reach. Latencies count from the send, so \
             a stall of the server is one slow reply of many; `rate` shows \
             it.\n\nExamples:\n  uppercased bench ping localhost\n  uppercased bench ping :9999 -c 200 \
             --pipeline 16 --duration 30s",
        ),
        Pattern::Rate => (
            "Send at a fixed rate, regardless of replies (open loop)",
            "Latencies count from the planned time, so a stall of the server is not \
             hidden.\n\nExamples:\n  uppercased bench rate localhost --rate 20000\n  uppercased bench \
             rate :9999 -r 5000 --arrivals poisson --report rate.html",
        ),
        Pattern::Stream => (
            "Send as fast as possible, in both directions at once",
            "Each connection has a window of --pipeline messages in flight.\n\nExample:\n  \
             uppercased bench stream localhost --size 256k",
        ),
        Pattern::Churn => (
            "Open connections, exchange messages, close, repeat",
            "The latency of the first message includes the connect. With `--close half` the client \
             ends its stream before the reply arrives.\n\nExample:\n  uppercased bench churn localhost \
             --close half --reload-every 2s",
        ),
        Pattern::Hold => (
            "Hold long-lived connections, each used at an interval",
            "Latencies count from the planned time.\n\nExample:\n  uppercased bench hold :9999 -c 10000 \
             --every 10s",
        ),
        Pattern::Idle => (
            "Hold open, silent connections",
            "Shows the server's memory per connection.\n\nExample:\n  uppercased bench idle :9999 -c \
             10000 --pid 4711",
        ),
        Pattern::Stall => (
            "Send without reading, then check every reply",
            "Each connection sends until the buffers are full. A small --receive-buffer leaves the \
             replies with the server.\n\nExample:\n  uppercased bench stall localhost \
             --receive-buffer 4096",
        ),
    };
    Command::new(pattern.word())
        .about(about)
        .after_help(help)
        .args(flags::of(pattern))
}

fn of_capacity() -> Command {
    Command::new(CAPACITY)
        .about("Find the highest rate that holds a latency target")
        .after_help(
            "Probes at fixed rates double the rate, then halve the interval to 3 %. A rate holds if \
             nothing failed, 98 % of the messages were answered in time, and the upper bound of each \
             percentile is within its target. The winner is confirmed by a longer \
             probe.\n\nExamples:\n  uppercased bench capacity --p99 5ms localhost\n  uppercased bench \
             capacity --p50 1ms --p99.9 20ms :9999 -c 200\n  uppercased bench capacity --p99 5ms \
             --fail-if 'rate < 20k'",
        )
        .args(flags::of_capacity())
}

fn of_versus() -> Command {
    Command::new(VERSUS)
        .about("Measure two servers in alternating runs and compare them")
        .after_help(
            "The ratio of each pair of runs is that of B to A. B is faster or slower if every pair \
             says so; otherwise the two are not distinguishable.\n\nExamples:\n  uppercased bench \
             versus :9001 :9002 --label nginx --label ours\n  uppercased bench versus a:9999 b:9999 \
             --runs 16 --pattern rate --rate 20000\n  uppercased bench versus :9001 :9002 \
             --fail-if slower --fail-if 'memory > 1.1'",
        )
        .args(flags::of_versus())
}

/// Converts parsed arguments. `line` is the full command line, for the record.
///
/// # Errors
/// The address is ambiguous, or a flag before the pattern does not apply to it.
pub(super) fn task(typed: &ArgMatches, line: String) -> Result<Task, Misuse> {
    let (name, own) = match typed.subcommand() {
        Some((name, own)) => (Some(name), own),
        None => (None, typed),
    };
    let command = match name {
        Some(name) => format!("{BENCH} {name}"),
        None => BENCH.to_owned(),
    };
    let before = name.is_some().then_some(typed);
    let typed = Typed { own, before };
    let task = match name {
        Some(COMPARE) if before.is_some_and(ArgMatches::args_present) => {
            Err("`compare` takes no options of a measurement; remove them".to_owned())
        }
        Some(COMPARE) => compare::typed(own).map(Task::Compare),
        Some(CAPACITY) => measurement(CAPACITY, Pattern::Rate, &flags::of_capacity(), &typed, line)
            .and_then(|options| typed.quest(options))
            .map(|quest| Task::Capacity(Box::new(quest))),
        Some(VERSUS) if !typed.targets().is_empty() => {
            Err("cannot tell A from B: write both addresses after `versus`".to_owned())
        }
        Some(VERSUS) => {
            let pattern = typed.pattern().unwrap_or(Pattern::Ping);
            measurement(VERSUS, pattern, &flags::of_versus(), &typed, line)
                .and_then(|options| typed.duel(options))
                .map(|duel| Task::Versus(Box::new(duel)))
        }
        name => {
            let pattern = Pattern::ALL.iter().find(|one| Some(one.word()) == name);
            let pattern = pattern.copied().unwrap_or(Pattern::Ping);
            measurement(
                name.unwrap_or(BENCH),
                pattern,
                &flags::of(pattern),
                &typed,
                line,
            )
            .map(|options| Task::Measure(Box::new(options)))
        }
    };
    task.map_err(|why| Misuse { why, command })
}

/// Returns the options of a command that has these flags.
fn measurement(
    command: &str,
    pattern: Pattern,
    flags: &[Arg],
    typed: &Typed<'_>,
    line: String,
) -> Result<Options, String> {
    if let Some(flag) = typed.foreign_flag_before(flags) {
        return Err(foreign::misplaced(flag, command));
    }
    let mut options = typed.options(pattern);
    options.target = match typed.targets().as_slice() {
        [] => None,
        [one] if command == BENCH && !is_address(one) => return Err(neither(one)),
        [one] => Some(with_defaults(one)),
        [one, other, ..] => {
            return Err(format!(
                "cannot measure {one} and {other} at once; use one address"
            ));
        }
    };
    options.command = line;
    Ok(options)
}

/// Returns whether a word cannot be a mistyped pattern.
fn is_address(word: &str) -> bool {
    word == "localhost" || word.contains(['.', ':', '/']) || word.parse::<u16>().is_ok()
}

fn neither(word: &str) -> String {
    let patterns: Vec<&str> = Pattern::ALL.iter().map(|known| known.word()).collect();
    format!(
        "`{word}` is neither a pattern ({}) nor HOST:PORT",
        patterns.join(", ")
    )
}

/// Returns the full command line, quoted for a shell.
pub(super) fn line(mut args: impl Iterator<Item = OsString>) -> String {
    let program = args.next().map(PathBuf::from);
    let program = program.as_deref().and_then(Path::file_name);
    let args = program.map(OsString::from).into_iter().chain(args);
    let quoted = args.map(|arg| {
        let arg = arg.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/@+[]".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg.into_owned()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
