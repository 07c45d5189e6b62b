//! Defines commands, flags and help; the flags of settings come from their table.
//!
//! Invariant: the short help (`-h`) is at most 79 columns wide, and every command has an example.
//! Must not: check a value (the settings' own grammars do, for all sources alike).

use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{
    NonEmptyStringValueParser, OsStringValueParser, PathBufValueParser, PossibleValuesParser,
    TypedValueParser,
};
use clap::error::{ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::error::Error;
use super::names::*;
use super::{completions, exit, manual};
use crate::config::{
    self, CONFIG_VARIABLE, SETTINGS, STATUS_ANSWER_TIMEOUT, Setting, WATCH_INTERVAL_MIN,
};
use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::escape::visible;
use uppercased_ctl::proxy_header::Version;
use uppercased_ctl::status::Rotation;
use uppercased_ctl::words::Word;

/// Narrower than most terminals, so that help quoted in a mail does not wrap.
const HELP_COLUMNS: usize = 79;

const EXAMPLES: &str = "\
Examples:
  uppercased                                   serve on 0.0.0.0:9999
  uppercased --listen '*:8080' --workers 4     IPv6 and IPv4, four workers
  uppercased check --config uppercased.toml    validate a configuration file
  uppercased client localhost:9999             send lines, print the replies
  uppercased reload                            apply the configuration
  uppercased status                            show workers and connections";
#[cfg(feature = "bench")]
const BENCH_EXAMPLE: &str = "\n  uppercased bench                             measure this machine";
#[cfg(not(feature = "bench"))]
const BENCH_EXAMPLE: &str = "";

const SOURCES: &str = "\
Every setting has one name in three forms: --idle-timeout 30s, in the
environment UPPERCASED_IDLE_TIMEOUT=30s, in the file idle_timeout = \"30s\".
Flags override the environment, and the environment overrides the file.";

/// Returns the definition to parse these arguments with. It includes a role only if they name it,
/// so that no error report suggests one.
pub(super) fn for_arguments(args: &[OsString]) -> Command {
    let role = args.get(1).and_then(|word| word.to_str());
    if role.is_some_and(|word| ROLES.contains(&word)) {
        command()
    } else {
        public_command()
    }
}

/// Returns the command named by these arguments, if any.
pub(super) fn command_of(args: &[OsString]) -> String {
    let root = public_command();
    let (mut at, mut typed) = (&root, vec![PROGRAM]);
    for word in args.iter().skip(1).take_while(|word| *word != "--") {
        if let Some(below) = at.find_subcommand(word) {
            typed.push(below.get_name());
            at = below;
        }
    }
    typed.join(" ")
}

/// Returns the whole command line: the public commands, and the roles, which are hidden.
pub(super) fn command() -> Command {
    let root = root().subcommands([
        serve(),
        check(),
        client(),
        #[cfg(feature = "bench")]
        uppercased_bench::command(),
        reload(),
        upgrade(),
        scale(),
        cancel(),
        rotation(),
        status(),
        #[cfg(feature = "top")]
        top(),
        stop(),
        drain_leftovers(),
        completions::command(),
        role(WORKER, "Run as a worker (started by the supervisor)"),
        role(
            ADMIN,
            "Serve health checks and metrics (started by the supervisor)",
        )
        .arg(
            Arg::new(SUPERVISOR)
                .long(SUPERVISOR)
                .required(true)
                .value_parser(clap::value_parser!(i32).range(1..)),
        ),
        role(
            PREFLIGHT,
            "Check that this binary can take over (started by the supervisor)",
        )
        .arg(
            Arg::new(SERVER_ARGS)
                .last(true)
                .num_args(0..)
                .value_parser(OsStringValueParser::new()),
        ),
        #[cfg(feature = "bench")]
        role(
            BENCH_PART,
            "Run a part of a measurement (started by `bench`)",
        ),
    ]);
    let manual = manual::command(&root);
    with_settings(root.subcommand(manual)).term_width(HELP_COLUMNS)
}

/// Returns the command line without the roles, for completion and manual pages.
pub(super) fn public_command() -> Command {
    let whole = command();
    let shown = whole.get_subcommands().filter(|one| !one.is_hide_set());
    with_settings(root().subcommands(shown)).term_width(HELP_COLUMNS)
}

fn root() -> Command {
    Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("An ASCII-uppercasing TCP echo server for Linux")
        .after_help(format!("{EXAMPLES}{BENCH_EXAMPLE}"))
        .after_long_help(format!(
            "{EXAMPLES}{BENCH_EXAMPLE}\n\n{}\n{SOURCES}\n\n{}",
            signals(),
            exit::in_short()
        ))
        .subcommand_help_heading("Commands")
}

/// Returns a conflict error in clap's form.
pub(super) fn conflict(message: String) -> Error {
    refused(ErrorKind::ArgumentConflict, message)
}

/// Returns an error of this kind in clap's form.
pub(super) fn refused(kind: ErrorKind, message: String) -> Error {
    escaped_usage_error(command().error(kind, message))
}

/// Turns a clap report into an error. User input is escaped, so that none of it looks like a line
/// of the report. The caller has the arguments, and so the command.
pub(super) fn escaped_usage_error(mut report: clap::Error) -> Error {
    let words: Vec<_> = report
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(word) => Some((kind, ContextValue::String(visible(word)))),
            ContextValue::Strings(words) => {
                let words = words.iter().map(|word| visible(word)).collect();
                Some((kind, ContextValue::Strings(words)))
            }
            _ => None,
        })
        .collect();
    for (kind, word) in words {
        report.insert(kind, word);
    }
    Error::Usage {
        report: Box::new(report),
        command: PROGRAM.to_owned(),
    }
}

fn serve() -> Command {
    let serve = Command::new(SERVE)
        .about("Start the server (the default command)")
        .after_help(
            "Example:\n  uppercased serve --listen 9999 --idle-timeout 5m --log-format json",
        );
    with_settings(serve)
}

fn check() -> Command {
    let check = Command::new(CHECK)
        .about("Validate the configuration without starting the server")
        .after_help(
            "Examples:\n  uppercased check --config uppercased.toml\n  \
             uppercased check --print > uppercased.toml",
        )
        .arg(
            switch(
                PRINT,
                "Print the effective configuration with the origin of each value",
            )
            .long_help(
                "Print the effective configuration with the origin of each value. The output \
                     is a valid configuration file.",
            ),
        )
        .arg(switch(STRICT, "Treat warnings as errors").long_help(
            "Treat warnings as errors: values that are valid but probably not intended, such as \
                 more workers than CPUs.",
        ));
    with_settings(check)
}

fn client() -> Command {
    Command::new(CLIENT)
        .about("Send lines to a server and print its replies")
        .after_help("Example:\n  uppercased client '[::1]:9999'")
        .arg(
            Arg::new(TARGET)
                .value_name("HOST:PORT")
                .value_parser(NonEmptyStringValueParser::new())
                .help("Server address [default: 127.0.0.1:9999]"),
        )
        .arg(
            value(PROXY_PROTOCOL, "VERSION")
                .value_parser(one_of::<Version>())
                .help("Send a PROXY header first, as a load balancer does"),
        )
}

fn reload() -> Command {
    operation(RELOAD, "Reload the configuration and replace every worker").after_help(
        "No connection is closed: connections migrate to the new workers, one slot at a time. An \
         invalid configuration changes nothing.\n\nExample:\n  uppercased reload --timeout 1m",
    )
}

fn upgrade() -> Command {
    operation(UPGRADE, "Replace the running binary with the one on disk").after_help(
        "The process ID stays the same, and no connection is closed. The new binary must pass a \
         pre-flight check first; if it fails, the old one continues to serve.\n\nExample:\n  \
         uppercased upgrade --control /run/uppercased.sock",
    )
}

fn scale() -> Command {
    operation(SCALE, "Change the number of workers")
        .after_help(
            "No connection is closed: those of removed workers migrate to the others. A reload \
             keeps the number unless the configuration has changed it.\n\nExamples:\n  uppercased \
             scale 8\n  uppercased scale +1",
        )
        .arg(
            Arg::new(WORKERS)
                .value_name("N")
                .required(true)
                .allow_negative_numbers(true)
                .value_parser(number_of_workers)
                .help(format!(
                    "Number of workers ({}), or a change such as +1 or -2",
                    config::WORKERS
                )),
        )
}

fn cancel() -> Command {
    remote_command(CANCEL, "Cancel the operation in progress and roll it back").after_help(
        "A reload or an upgrade rolls back to the old release, added workers are removed again, \
         and workers about to be removed stay. No connection is closed. The command that started \
         the operation fails.\n\nExample:\n  uppercased cancel",
    )
}

fn rotation() -> Command {
    remote_command(
        ROTATION,
        "Take this server out of, or back into, load-balancer rotation",
    )
    .after_help(
        "New connections are still served; only /readyz and the agent check change. The state \
         remains until it is changed again or the server stops.\n\nExample:\n  uppercased rotation \
         drain",
    )
    .arg(
        Arg::new(TO)
            .value_name("TO")
            .required(true)
            .value_parser(one_of::<Rotation>())
            .help("State: drain (no new clients), maint (maintenance) or in (rejoin)"),
    )
}

fn status() -> Command {
    remote_command(
        STATUS,
        "Show workers, connections and operations in progress",
    )
    .mut_arg(TIMEOUT, |timeout| {
        let within = STATUS_ANSWER_TIMEOUT.as_secs();
        timeout.help(format!(
            "Give up waiting for an answer after this long [default: {within}s]"
        ))
    })
    .after_help(
        "Examples:\n  uppercased status --watch 2s\n  uppercased status --json | jq .totals\n  \
         uppercased status --sockets | grep TIME_WAIT\n  uppercased status --ready --timeout 1s",
    )
    .arg(switch(JSON, "Print all values, exact, as one line of JSON"))
    .arg(
        value(WATCH, "INTERVAL")
            .num_args(0..=1)
            .default_missing_value("1s")
            .value_parser(interval)
            .help("Repeat with rates until Ctrl-C [default interval: 1s]"),
    )
    .arg(
        switch(
            SOCKETS,
            "List each TCP socket on the server's ports, one per line",
        )
        .conflicts_with(WATCH),
    )
    .arg(
        value(LIMIT, "N")
            .requires(SOCKETS)
            .value_parser(|text: &str| whole(text, 1, u32::MAX))
            .help("Maximum number of sockets, listeners first [default: 1000]"),
    )
    .arg(
        switch(
            READY,
            "Report readiness only: exit code 0 if every queue is served, else 1",
        )
        .conflicts_with_all([JSON, WATCH, SOCKETS]),
    )
}

#[cfg(feature = "top")]
fn top() -> Command {
    Command::new(TOP)
        .about("Show a live dashboard with keys for reload, upgrade and scale")
        .after_help(
            "Reload, upgrade and scale ask for confirmation. NO_COLOR disables \
             colours.\n\nExample:\n  uppercased top --every 500ms",
        )
        .arg(control())
        .arg(
            value(EVERY, "INTERVAL")
                .value_parser(interval)
                .help(format!(
                    "Refresh interval [default: {}s]",
                    config::TOP_INTERVAL.as_secs()
                )),
        )
}

fn stop() -> Command {
    remote_command(STOP, "Stop gracefully and wait").after_help(
        "A second `stop` closes everything immediately.\n\nExample:\n  uppercased stop --timeout 1m",
    )
}

fn drain_leftovers() -> Command {
    Command::new(DRAIN_LEFTOVERS)
        .about("Stop the workers that a dead supervisor has left behind")
        .after_help(
            "Waits until they have sent pending replies, for at most drain_timeout. Workers whose \
             supervisor runs are not touched. As ExecStopPost= of a systemd unit it does nothing \
             if the service starts again.\n\nExample:\n  uppercased drain-leftovers",
        )
        .arg(control())
}

/// Defines a command to a running server.
fn remote_command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).arg(control()).arg(
        value(TIMEOUT, "TIME")
            .value_parser(time)
            .help("Give up waiting for the result after this long [default: never]"),
    )
}

/// Defines a command to a running server that starts an operation.
fn operation(name: &'static str, about: &'static str) -> Command {
    remote_command(name, about)
        .arg(
            switch(WAIT, "Wait while another operation is in progress").long_help(
                "Wait while another operation is in progress, or workers of an earlier one still \
                 drain, instead of being refused. If the command is interrupted, or its --timeout \
                 passes, before its turn, the request is withdrawn.",
            ),
        )
        .arg(
            switch(
                DRAIN,
                "Close connections that cannot migrate after drain_timeout",
            )
            .long_help(
                "Leave connections that cannot migrate with their old worker, which serves them \
                 until they end and closes the remaining ones after drain_timeout. Without this \
                 flag the operation is refused, or fails and is rolled back.",
            ),
        )
}

/// Defines the flag that names a server.
fn control() -> Arg {
    value(CONTROL, "PATH")
        .value_parser(PathBufValueParser::new())
        .help("Control socket [default: found automatically if one server runs]")
        .long_help(
            "Control socket of the server, also set by UPPERCASED_CONTROL. Without either, the \
             socket of the only running server is found in the runtime directory.",
        )
}

/// Returns a hidden command for a role in which the program starts itself.
fn role(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).hide(true)
}

/// Returns a flag without a value.
fn switch(name: &'static str, help: &'static str) -> Arg {
    let flag = Arg::new(name).long(name);
    flag.action(ArgAction::SetTrue).help(help)
}

/// Returns a flag with a value.
fn value(name: &'static str, value_name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name)
}

/// Returns a parser for the keywords of `T`.
fn one_of<T: Word>() -> impl TypedValueParser<Value = T> {
    let words = T::VARIANTS.iter().map(|one| one.word());
    PossibleValuesParser::new(words)
        .map(|word| T::find(&word).expect("invariant: clap accepts these words only"))
}

/// Parses a whole number within bounds.
fn whole<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    match text.parse() {
        Ok(number) if (&least..=&most).contains(&&number) => Ok(number),
        _ => Err(format!("use a number from {least} to {most}")),
    }
}

/// Parses a number of workers, absolute or relative.
fn number_of_workers(text: &str) -> Result<ScaleTo, String> {
    if text.starts_with(['+', '-']) {
        return text.parse().map_err(|_| {
            let most = config::WORKERS.most - config::WORKERS.least;
            format!("use a change from 1 to {most}, for example +1 or -1")
        });
    }
    whole(text, config::WORKERS.least, config::WORKERS.most).map(ScaleTo::Exactly)
}

/// Parses a duration greater than zero.
fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(span) if !span.is_zero() => Ok(span),
        Ok(_) => Err("the duration must be greater than zero; use for example 30s".to_owned()),
        Err(_) => Err("a duration needs a unit; use for example 30s".to_owned()),
    }
}

/// Parses a refresh interval, which has a minimum to spare the server.
fn interval(text: &str) -> Result<Duration, String> {
    time(text).and_then(|interval| {
        if interval < WATCH_INTERVAL_MIN {
            let least = WATCH_INTERVAL_MIN.as_millis();
            return Err(format!("the interval must be at least {least}ms"));
        }
        Ok(interval)
    })
}

/// Returns the list of signals, one per line.
fn signals() -> String {
    let lines = SIGNALS.map(|(signal, effect)| format!("  {signal:<5} {effect}\n"));
    format!("Signals to the supervisor:\n{}", lines.concat())
}

fn with_settings(command: Command) -> Command {
    let config = Arg::new(CONFIG)
        .short('c')
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(PathBufValueParser::new())
        .help("Configuration file (TOML)")
        .long_help(format!(
            "Configuration file (TOML), also set by {CONFIG_VARIABLE}. None by default."
        ));
    command.arg(config).args(SETTINGS.iter().map(flag))
}

fn flag(setting: &'static Setting) -> Arg {
    let flag = Arg::new(setting.key())
        .long(setting.flag())
        .next_line_help(true)
        .value_name(setting.value_name)
        .help_heading(setting.heading)
        .help(format!("{} [default: {}]", setting.help, setting.default))
        .long_help(format!(
            "{}. {}\n\nAccepts {}.\n[env: {}] [default: {}]",
            setting.help,
            setting.long_help,
            setting.accepts(),
            setting.variable(),
            setting.default
        ));
    if setting.is_switch() {
        // The value needs an equals sign, or `--share-port serve` would be ambiguous.
        flag.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else if setting.is_list() {
        flag.action(ArgAction::Append)
    } else {
        // `--workers -1` is an invalid number, not an unknown flag -1.
        flag.allow_negative_numbers(true)
    }
}

#[cfg(test)]
mod tests;
