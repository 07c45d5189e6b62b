//! What may be typed: commands, flags and help, the flags from the table of settings.
//!
//! Invariant: the short help (`-h`) is at most 79 columns wide, and every command has an example.
//! Must not: judge a value (the settings' own grammars do, for all sources alike).

use clap::builder::{NonEmptyStringValueParser, PathBufValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};

use super::Error;
use crate::config::{CONFIG_VARIABLE, SETTINGS, Setting};

/// Start the server; also what happens without a command.
pub(super) const SERVE: &str = "serve";
/// Validate, bind nothing.
pub(super) const CHECK: &str = "check";
/// Talk to a server.
pub(super) const CLIENT: &str = "client";
/// The role in which the supervisor starts its workers.
pub(super) const WORKER: &str = "worker";

/// The flag that names the configuration file.
pub(super) const CONFIG: &str = "config";
/// `check`: show the effective configuration.
pub(super) const PRINT: &str = "print";
/// `client`: where to connect.
pub(super) const TARGET: &str = "target";

/// Narrower than a terminal usually is, so that help quoted in a mail does not wrap.
const HELP_COLUMNS: usize = 79;

const EXAMPLES: &str = "\
Examples:
  uppercased                                   serve on 0.0.0.0:9999
  uppercased --listen '*:8080' --workers 4     IPv6 and IPv4, four workers
  uppercased check --config uppercased.toml    is this file valid?
  uppercased client localhost:9999             type a line, see it answered";

const SOURCES: &str = "\
Every setting has one name in three spellings: --idle-timeout 30s, in the
environment UPPERCASED_IDLE_TIMEOUT=30s, in the file idle_timeout = \"30s\".
Flags win over the environment, the environment wins over the file.

Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration.";

/// The whole command line.
pub(super) fn command() -> Command {
    let root = Command::new("uppercased")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A TCP server that answers every byte with its ASCII upper-case")
        .after_help(EXAMPLES)
        .after_long_help(format!("{EXAMPLES}\n\n{SOURCES}"))
        .subcommand_help_heading("Commands")
        .subcommand(serve())
        .subcommand(check())
        .subcommand(client())
        .subcommand(
            Command::new(WORKER)
                .about("Serve as a worker; started by the supervisor only")
                .hide(true),
        );
    with_settings(root).term_width(HELP_COLUMNS)
}

/// What clap would report, had it noticed by itself.
pub(super) fn conflict(message: String) -> Error {
    Error::Usage(Box::new(
        command().error(ErrorKind::ArgumentConflict, message),
    ))
}

fn serve() -> Command {
    let serve = Command::new(SERVE)
        .about("Start the server (the default)")
        .after_help(
            "Example:\n  uppercased serve --listen 9999 --idle-timeout 5m --log-format json",
        );
    with_settings(serve)
}

fn check() -> Command {
    let check = Command::new(CHECK)
        .about("Validate flags, environment and file; bind nothing")
        .after_help(
            "Examples:\n  uppercased check --config uppercased.toml\n  \
             uppercased check --print > uppercased.toml",
        )
        .arg(
            Arg::new(PRINT)
                .long(PRINT)
                .action(ArgAction::SetTrue)
                .help("Show the effective configuration and where each value is from")
                .long_help(
                    "Show the effective configuration and where each value is from. It is \
                     written as a configuration file and can be used as one.",
                ),
        );
    with_settings(check)
}

fn client() -> Command {
    Command::new(CLIENT)
        .about("Send lines to a server and show its answers")
        .after_help("Example:\n  uppercased client '[::1]:9999'")
        .arg(
            Arg::new(TARGET)
                .value_name("HOST:PORT")
                .value_parser(NonEmptyStringValueParser::new())
                .help("Where to connect [default: 127.0.0.1:9999]"),
        )
}

fn with_settings(command: Command) -> Command {
    let config = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(PathBufValueParser::new())
        .help("Configuration file (TOML)")
        .long_help(format!(
            "Configuration file (TOML), named by {CONFIG_VARIABLE} otherwise. \
             There is none by default."
        ));
    command.arg(config).args(SETTINGS.iter().map(flag))
}

fn flag(setting: &'static Setting) -> Arg {
    let flag = Arg::new(setting.key())
        .long(setting.flag())
        .next_line_help(true)
        .value_name(setting.value_name)
        .help_heading(setting.category.heading())
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
        // The value takes an equals sign, else `--share-port serve` would be ambiguous.
        flag.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else if setting.is_list() {
        flag.action(ArgAction::Append)
    } else {
        // `--workers -1` is a bad number, not an unknown flag -1.
        flag.allow_negative_numbers(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn help_fits_a_narrow_terminal_and_names_every_setting() {
        let mut whole = command();
        whole.build();
        let mut texts = vec![whole.render_help().to_string()];
        for name in [SERVE, CHECK, CLIENT] {
            let sub = whole.find_subcommand_mut(name).unwrap();
            let text = sub.render_help().to_string();
            assert!(text.contains("Example"), "{name}");
            texts.push(text);
        }
        for text in &texts {
            let widest = text
                .lines()
                .max_by_key(|line| line.chars().count())
                .unwrap();
            assert!(widest.chars().count() <= HELP_COLUMNS, "{widest}");
        }
        for setting in SETTINGS {
            assert!(texts[0].contains(&format!("--{}", setting.flag())));
            let line = format!("{} [default: {}]\n", setting.help, setting.default);
            assert!(texts[0].contains(&line), "wrapped: {line}");
        }
        assert!(!texts[0].contains("worker  "), "the role is not for people");
    }
}
