//! The `bench` command: its flags and their conversion to options.
//!
//! It must not check combinations of flags; `bench::plan` does, with the properties of the machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser as _};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::options::{Arrivals, Close, Expect, Job, Pattern, Sources, Word};
use super::size::Sizes;
use super::{Options, compare};
use uppercased_ctl::proxy_header::Version;
use uppercased_ctl::target::with_defaults;

/// Name of the command.
pub(super) const BENCH: &str = "bench";

const WORDS: &str = "words";
const CONNECTIONS: &str = "connections";
const SIZE: &str = "size";
const PIPELINE: &str = "pipeline";
const RATE: &str = "rate";
const ARRIVALS: &str = "arrivals";
const EVERY: &str = "every";
const MESSAGES_EACH: &str = "messages-each";
const CLOSE: &str = "close";
const DURATION: &str = "duration";
const COUNT: &str = "count";
const WARMUP: &str = "warmup";
const THREADS: &str = "threads";
const PROCESSES: &str = "processes";
const SOURCES: &str = "sources";
const EXPECT: &str = "expect";
const TIMEOUT: &str = "timeout";
const CONNECT_TIMEOUT: &str = "connect-timeout";
const PID: &str = "pid";
const JSON: &str = "json";
const REPORT: &str = "report";
const DURING: &str = "during";
const RELOAD_EVERY: &str = "reload-every";
const UPGRADE_EVERY: &str = "upgrade-every";
const WORKERS: &str = "workers";
const RECEIVE_BUFFER: &str = "receive-buffer";
const PROXY_PROTOCOL: &str = "proxy-protocol";
const NO_PROGRESS: &str = "no-progress";
const SERVER_ARGS: &str = "server-args";

const LONG_HELP: &str = "\
Patterns:
  ping    closed loop: send the next message after the reply (default)
  rate    open loop: send at --rate regardless of replies; latencies count
          from the planned time, so that stalls are not hidden
  stream  full duplex, as fast as possible
  churn   repeat: connect, exchange, close
  hold    long-lived connections with occasional messages
  idle    open, silent connections
  stall   send without reading; at the end, read and check every reply

Without an address, bench starts a built-in server, measures it and stops it.

Examples:
  uppercased bench
  uppercased bench rate 10.0.0.7:9999 --rate 20000 --arrivals poisson
  uppercased bench churn --close half --reload-every 2s --report churn.html
  uppercased bench hold :9999 --during 'every 5s: systemctl reload uppercased'

Exit codes: 0 every byte correct, nothing failed, plan completed; 1 a failure,
an incomplete plan, or output that cannot be written; 2 bad usage.";

/// Returns the definition of the command.
#[must_use]
pub fn command() -> Command {
    Command::new(BENCH)
        .about("Measure a server and check every byte")
        .after_help(LONG_HELP)
        .override_usage("uppercased bench [PATTERN] [HOST:PORT] [OPTIONS] [-- SERVER ARGUMENTS]")
        .subcommand(compare::command())
        .arg(
            Arg::new(WORDS)
                .value_name("PATTERN] [HOST:PORT")
                // Flags may be placed between them.
                .action(ArgAction::Append)
                .num_args(1..=2)
                .help("Load pattern and server address"),
        )
        .args(load())
        .args(truth())
        .args(output())
        .args(own_server())
}

fn load() -> Vec<Arg> {
    vec![
        number::<u32>(
            CONNECTIONS,
            "N",
            "Concurrent connections [50; stream 4; hold, idle 1000]",
        )
        .short('c'),
        typed::<Sizes>(
            SIZE,
            "BYTES",
            "Message size: 64, 16k, 64..1k, chat or mixed [64; stream, stall 64k]",
        )
        .short('s'),
        number::<u32>(
            PIPELINE,
            "N",
            "Messages in flight per connection [1; stream 16]",
        ),
        number::<f64>(RATE, "N", "Total messages per second (rate) [1000]").short('r'),
        word::<Arrivals>(ARRIVALS, "Spacing of messages (rate, hold)"),
        time(EVERY, "Interval per connection (hold) [5s]"),
        number::<u32>(MESSAGES_EACH, "N", "Messages per connection (churn) [1]"),
        word::<Close>(CLOSE, "Close method (churn)"),
        time(DURATION, "Measured time [10s]").short('d'),
        number::<u64>(COUNT, "N", "Stop after this many messages instead").short('n'),
        time(WARMUP, "Warm-up, not measured [1s; hold, idle, stall 0s]"),
        number::<u16>(THREADS, "N", "Threads per process [half of the CPUs]").short('t'),
        number::<u16>(PROCESSES, "N", "Processes [auto]"),
        flag(SOURCES, "N|ADDR,...", "Source addresses [auto]")
            .value_parser(|text: &str| with_zone_numbers(text).parse::<Sources>()),
        number::<u32>(
            RECEIVE_BUFFER,
            "BYTES",
            "Receive buffer per connection (SO_RCVBUF) [kernel default]",
        ),
        word::<Version>(PROXY_PROTOCOL, "Send a PROXY header first").value_name("VERSION"),
    ]
}

fn truth() -> Vec<Arg> {
    vec![
        word::<Expect>(EXPECT, "Expected reply"),
        time(TIMEOUT, "Reply timeout [5s]"),
        time(CONNECT_TIMEOUT, "Connect timeout [5s]"),
    ]
}

fn output() -> Vec<Arg> {
    vec![
        number::<u32>(
            PID,
            "PID",
            "Server process whose CPU and memory to measure; may be repeated",
        )
        .action(ArgAction::Append),
        path(JSON, "Write all results as JSON"),
        path(REPORT, "Write an HTML report with charts"),
        typed::<Job>(
            DURING,
            "WHEN: COMMAND",
            "Run a command during the load: 'every 2s: ...', 'at 3s: ...'",
        )
        .action(ArgAction::Append),
        Arg::new(NO_PROGRESS)
            .long(NO_PROGRESS)
            .action(ArgAction::SetTrue)
            .help("Hide the progress bar"),
    ]
}

fn own_server() -> Vec<Arg> {
    let args = vec![
        number::<u16>(WORKERS, "N", "Worker count [server default]"),
        time(RELOAD_EVERY, "Reload interval"),
        time(UPGRADE_EVERY, "Upgrade interval"),
        Arg::new(SERVER_ARGS)
            .last(true)
            .num_args(0..)
            .value_name("ARGUMENT")
            .help("Arguments for the server"),
    ];
    let heading = "Built-in server";
    args.into_iter()
        .map(|arg| arg.help_heading(heading))
        .collect()
}

/// Converts the parsed flags to options. `command` is the full command line.
pub(super) fn options(typed: &ArgMatches, command: String) -> Result<Options, String> {
    let (pattern, target) = words(typed.get_many::<String>(WORDS).into_iter().flatten())?;
    Ok(Options {
        pattern,
        target,
        connections: one(typed, CONNECTIONS),
        size: one(typed, SIZE),
        pipeline: one(typed, PIPELINE),
        rate: one(typed, RATE),
        arrivals: one(typed, ARRIVALS),
        every: one(typed, EVERY),
        messages_each: one(typed, MESSAGES_EACH),
        close: one(typed, CLOSE),
        duration: one(typed, DURATION),
        count: one(typed, COUNT),
        warmup: one(typed, WARMUP),
        threads: one(typed, THREADS),
        processes: one(typed, PROCESSES),
        sources: one(typed, SOURCES),
        receive_buffer: one(typed, RECEIVE_BUFFER),
        proxy_protocol: one(typed, PROXY_PROTOCOL),
        expect: one(typed, EXPECT),
        timeout: one(typed, TIMEOUT),
        connect_timeout: one(typed, CONNECT_TIMEOUT),
        pids: many(typed, PID),
        json: one(typed, JSON),
        report: one(typed, REPORT),
        during: many(typed, DURING),
        reload_every: one(typed, RELOAD_EVERY),
        upgrade_every: one(typed, UPGRADE_EVERY),
        workers: one(typed, WORKERS),
        server_args: many(typed, SERVER_ARGS),
        no_progress: typed.get_flag(NO_PROGRESS),
        command,
    })
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

/// Returns the comma-separated addresses with interface names in zones (`fe80::1%eth0`) replaced by
/// numbers. Malformed addresses are unchanged; the parser rejects them.
fn with_zone_numbers(addresses: &str) -> String {
    let numbered = |address: &str| {
        let (ip, zone) = address.split_once('%')?;
        let number = nix::net::if_::if_nametoindex(zone).ok()?;
        Some(format!("{ip}%{number}"))
    };
    let parts = addresses.split(',');
    let parts: Vec<String> = parts
        .map(|part| numbered(part).unwrap_or_else(|| part.to_owned()))
        .collect();
    parts.join(",")
}

/// Splits the pattern, a word, from the address, which contains a port; either may be omitted.
fn words<'a>(
    words: impl Iterator<Item = &'a String>,
) -> Result<(Option<Pattern>, Option<String>), String> {
    let (mut pattern, mut target) = (None, None);
    for word in words {
        let address = with_defaults(word);
        if address.contains(':') && target.is_none() {
            target = Some(address);
        } else if let Some(found) = Pattern::ALL.iter().find(|known| known.word() == word)
            && pattern.is_none()
            && target.is_none()
        {
            pattern = Some(*found);
        } else {
            let patterns: Vec<&str> = Pattern::ALL.iter().map(|known| known.word()).collect();
            return Err(format!(
                "`{word}` is neither a pattern ({}) nor HOST:PORT",
                patterns.join(", ")
            ));
        }
    }
    Ok((pattern, target))
}

fn one<T: Clone + Send + Sync + 'static>(typed: &ArgMatches, name: &str) -> Option<T> {
    typed.get_one(name).cloned()
}

fn many<T: Clone + Send + Sync + 'static>(typed: &ArgMatches, name: &str) -> Vec<T> {
    typed
        .get_many(name)
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

fn flag(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help)
        .allow_hyphen_values(false)
}

fn number<T: FromStr<Err: std::fmt::Display> + Clone + Send + Sync + 'static>(
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Arg {
    // `-1` is an invalid number, not an unknown flag.
    let parse = |text: &str| text.parse::<T>().map_err(|error| error.to_string());
    flag(name, value, help)
        .allow_negative_numbers(true)
        .value_parser(parse)
}

fn typed<T: FromStr<Err = String> + Clone + Send + Sync + 'static>(
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Arg {
    flag(name, value, help).value_parser(T::from_str)
}

fn time(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| {
        humantime::parse_duration(text)
            .map_err(|_| "a duration needs a unit; use for example 30s".to_owned())
    };
    flag(name, "TIME", help)
        .value_parser(move |text: &str| -> Result<Duration, String> { parse(text) })
}

fn path(name: &'static str, help: &'static str) -> Arg {
    flag(name, "FILE", help).value_parser(PathBufValueParser::new().map(PathBuf::from))
}

fn word<T: Word + Send + Sync>(name: &'static str, help: &'static str) -> Arg {
    let words = T::ALL.iter().map(|word| word.word());
    let parser = PossibleValuesParser::new(words).try_map(|typed| {
        let found = T::ALL.iter().find(|word| word.word() == typed);
        found.copied().ok_or("not a valid choice")
    });
    flag(name, "WORD", help).value_parser(parser)
}

#[cfg(test)]
mod tests;
