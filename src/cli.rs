//! The command line: arguments as typed become a [`Command`], and a command becomes an exit code.
//!
//! Invariants: whatever is wrong with the input is one line on standard error that says what, why
//! and what to do, and exit code [`BAD_INPUT`]; a reader of our output that goes away early is no
//! error; `check` binds nothing.
//! Must not: know a setting by name. Flags, variables and file keys come from
//! [`config::SETTINGS`], their values are judged by
//! [`config::resolve`].

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::client;
use crate::config::{self, Config};

mod definition;
mod effective;
mod gather;

/// Exit code for bad usage and bad configuration.
pub const BAD_INPUT: u8 = 2;

/// Where the client connects when it is not told: the server's default port on this machine.
const DEFAULT_TARGET: &str = "127.0.0.1:9999";

/// What the program was asked to do, with everything it needs for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Be a server.
    Serve(Box<Config>),
    /// Say whether the configuration is valid; the text to print is ready.
    Check(String),
    /// Be a line client.
    Client(client::Options),
    /// Be a worker of the supervisor that started this process.
    Worker,
}

/// Why the arguments are no command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not what the command line accepts; also how help and version are asked for.
    #[error("{}", one_line(.0))]
    Usage(#[from] Box<clap::Error>),

    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),

    /// The configuration file cannot be read.
    #[error(
        "cannot read the configuration file {}: {why}; check the path and its permissions, or \
         leave out --config and {variable}", path.display(), variable = config::CONFIG_VARIABLE
    )]
    ReadFile {
        /// The file, as it was named.
        path: PathBuf,
        /// What the system says.
        #[source]
        why: io::Error,
    },

    /// The configuration file is absurdly large.
    #[error(
        "the configuration file {} is larger than {} bytes; is it the right file?",
        path.display(), config::CONFIG_FILE_MAX_BYTES
    )]
    FileTooLarge {
        /// The file, as it was named.
        path: PathBuf,
    },

    /// The machine does not say what it allows.
    #[error("cannot read the descriptor limit (RLIMIT_NOFILE): {0}")]
    DescriptorLimit(#[source] nix::Error),
}

/// Runs the program with these arguments (the first is its own name).
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(args, std::env::vars_os()) {
        Ok(Command::Serve(config)) => serve(*config),
        Ok(Command::Check(text)) => print(&text),
        Ok(Command::Client(options)) => client::run(options),
        Ok(Command::Worker) => worker(),
        Err(Error::Usage(asked)) if !asked.use_stderr() => {
            // Help and version; clap knows whether standard output takes colour.
            printed(asked.print())
        }
        Err(error) => fail(&error),
    }
}

/// Reads arguments and environment, and the configuration file that they name.
///
/// # Errors
///
/// The first thing that is wrong with any of them.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, Error> {
    let matches = definition::command()
        .try_get_matches_from(args)
        .map_err(Box::new)?;
    if let Some((role @ (definition::WORKER | definition::CLIENT), _)) = matches.subcommand()
        && matches.args_present()
    {
        return Err(definition::conflict(format!(
            "`uppercased {role}` has no configuration; leave out the flags before it"
        )));
    }
    match matches.subcommand() {
        Some((definition::WORKER, _)) => Ok(Command::Worker),
        Some((definition::CLIENT, typed)) => Ok(Command::Client(client::Options {
            target: typed
                .get_one::<String>(definition::TARGET)
                .map_or(DEFAULT_TARGET, String::as_str)
                .to_owned(),
        })),
        Some((definition::CHECK, typed)) => {
            let found = gather::gather(&[&matches, typed], environment)?;
            Ok(Command::Check(if typed.get_flag(definition::PRINT) {
                effective::show(&found.config, &found.origins)
            } else {
                effective::verdict(found.file.as_deref())
            }))
        }
        serve => {
            let mut typed = vec![&matches];
            typed.extend(serve.map(|(_, typed)| typed));
            let found = gather::gather(&typed, environment)?;
            Ok(Command::Serve(Box::new(found.config)))
        }
    }
}

/// The role of the supervisor.
fn serve(config: Config) -> ExitCode {
    crate::supervisor::run(config)
}

/// The role of a worker.
fn worker() -> ExitCode {
    crate::worker::run()
}

/// Reports bad input.
fn fail(error: &Error) -> ExitCode {
    // A file name may contain anything; the report is one line all the same.
    let line: String = error
        .to_string()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // If standard error takes nothing, the exit code has to say it.
    let _ = writeln!(io::stderr(), "uppercased: {line}");
    ExitCode::from(BAD_INPUT)
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The exit code for output that went as `result` says. `uppercased --help | head -1` is fine.
fn printed(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(
                io::stderr(),
                "uppercased: cannot write to standard output: {error}; is its disk full?"
            );
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Clap's report without its decoration: message and tips, and where to look.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .map(|line| line.strip_prefix("tip: ").unwrap_or(line))
        .collect();
    parts.push("see `uppercased --help`");
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        let args = ["uppercased"].iter().chain(args).map(OsString::from);
        parse(args, []).map_err(|error| error.to_string())
    }

    #[test]
    fn each_role_has_its_command() {
        assert!(matches!(parsed(&[]), Ok(Command::Serve(_))));
        assert_eq!(parsed(&["serve"]), parsed(&[]));
        assert_eq!(parsed(&["worker"]), Ok(Command::Worker));
        assert_eq!(
            parsed(&["client"]),
            Ok(Command::Client(client::Options {
                target: DEFAULT_TARGET.to_owned()
            }))
        );
        assert_eq!(
            parsed(&["client", "[::1]:80"]),
            Ok(Command::Client(client::Options {
                target: "[::1]:80".to_owned()
            }))
        );
        assert!(matches!(parsed(&["check"]), Ok(Command::Check(text)) if text.contains("valid")));
    }

    #[test]
    fn flags_may_stand_before_or_after_the_command() {
        let Ok(Command::Serve(config)) = parsed(&["--workers", "3", "serve", "--backlog=7"]) else {
            panic!("flags on both sides of `serve`");
        };
        assert_eq!((config.workers, config.backlog), (3, Some(7)));
        let twice = parsed(&["--workers", "3", "serve", "--workers", "4"]).unwrap_err();
        assert!(twice.contains("--workers"), "{twice}");
        // What has no configuration takes no setting.
        for role in ["client", "worker"] {
            assert!(parsed(&["--workers", "3", role]).is_err(), "{role}");
        }
    }

    #[test]
    fn a_switch_needs_no_value() {
        for (args, on) in [
            (["--share-port"].as_slice(), true),
            (&["--share-port=true"], true),
            (&["--share-port=false"], false),
            (&[], false),
        ] {
            let Ok(Command::Serve(config)) = parsed(args) else {
                panic!("{args:?}");
            };
            assert_eq!(config.share_port, on, "{args:?}");
        }
    }
}
