//! The command line: arguments as typed become a [`Command`], and a command becomes an exit code.
//!
//! Invariants: whatever is wrong with the input is one line on standard error that says what, why
//! and what to do, and exit code [`BAD_INPUT`]; a reader of our output that goes away early is no
//! error; `check` binds nothing.
//! Must not: know a setting by name. Flags, variables and file keys come from
//! [`config::SETTINGS`], their values are judged by
//! [`config::resolve`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ArgMatches;
use signal_hook::consts::SIGXFSZ;

use crate::client;
use crate::config::{self, Config};
use crate::log::wants_colour;
use crate::sys::signals;
#[cfg(feature = "top")]
use crate::top;
use crate::{admin, fault, preflight, supervisor, worker};
use uppercased_ctl::control::{Options, Request};
use uppercased_ctl::output::{self, print};
use uppercased_ctl::status::Rotation;
use uppercased_ctl::stderr::complain;
use uppercased_ctl::target::with_host;

pub use crate::config::Launch;
pub use ask::Shown;
pub use completions::Shell;
pub use error::Error;
pub use manual::Manual;
pub use names::BAD_INPUT;
pub use orders::Order;

mod ask;
mod completions;
mod definition;
mod effective;
mod error;
mod exit;
mod gather;
mod manual;
mod mistake;
mod names;
mod orders;
mod watch;

/// Where the client connects when it is not told: the server's default port on this machine.
const DEFAULT_TARGET: &str = "127.0.0.1:9999";

/// What the program was asked to do, with everything it needs for that.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Be a server.
    Serve(Box<Launch>),
    /// Say whether the configuration is valid; the text to print is ready.
    Check(String),
    /// Be a line client.
    Client(client::Options),
    /// Measure a server, or compare measurements.
    #[cfg(feature = "bench")]
    Bench(ArgMatches),
    /// Be a part of the measurement that started this process.
    #[cfg(feature = "bench")]
    BenchPart,
    /// Give a running server an order.
    Order(Order),
    /// Show what a shell needs to complete a command line.
    Completions(Shell),
    /// Show or write manual pages.
    Manual(Manual),
    /// Watch a running server on a terminal.
    #[cfg(feature = "top")]
    Top(top::Options),
    /// Be a worker of the supervisor that started this process.
    Worker,
    /// Be the admin endpoint of the supervisor that started this process.
    Admin(admin::Options),
    /// Show the supervisor that started this process that this program could take its place.
    Preflight(Vec<OsString>),
}

/// Runs the program with these arguments (the first is its own name).
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    fault::point("main.starting");
    // A limit on the size of files becomes an error that can be told; it would end the process, for
    // instance when its log has become that long. Fails for no signal that can be caught.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    // Fails for a signal number that does not exist, and no other.
    let _ = signals::keep_exit_statuses();
    let args: Vec<OsString> = args.into_iter().collect();
    if supervisor::is_resuming() {
        // What is wrong with the arguments is a matter between this program and the one before it.
        return supervisor::resume(args);
    }
    // The supervisor's processes live with signals blocked, as it started them; every other
    // command takes them, whatever its parent had blocked, also while the configuration is read.
    let roles = [names::WORKER, names::ADMIN, names::PREFLIGHT];
    let role = args.get(1).and_then(|role| role.to_str());
    if !role.is_some_and(|role| roles.contains(&role)) {
        // The mask is always a valid one.
        let _ = signals::unblock_all();
        supervisor::stop_while_starting();
    }
    let command = parse(args, std::env::vars_os());
    if !matches!(command, Ok(Command::Serve(_))) {
        supervisor::handle_stops();
    }
    match command {
        Ok(Command::Serve(launch)) => supervisor::run(*launch),
        Ok(Command::Check(text)) => print(&text),
        Ok(Command::Client(options)) => client::run(options),
        #[cfg(feature = "bench")]
        Ok(Command::Bench(typed)) => uppercased_bench::run(&typed),
        #[cfg(feature = "bench")]
        Ok(Command::BenchPart) => uppercased_bench::be_part(),
        Ok(Command::Order(order)) => orders::run(&order),
        Ok(Command::Completions(shell)) => completions::run(shell, definition::for_people()),
        Ok(Command::Manual(asked)) => manual::run(&asked, definition::for_people()),
        #[cfg(feature = "top")]
        Ok(Command::Top(options)) => orders::watch(&options),
        Ok(Command::Worker) => worker::run(),
        Ok(Command::Admin(options)) => admin::run(options),
        Ok(Command::Preflight(server)) => preflight::run(|| settle(&server)),
        Err(Error::Usage { report, .. }) if !report.use_stderr() => {
            // Help and version.
            let text = report.render();
            if wants_colour(output::stdout()) {
                output::print_raw(text.ansi().to_string().as_bytes())
            } else {
                print(&text.to_string())
            }
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
    let args: Vec<OsString> = args.into_iter().collect();
    understand(&args, environment).map_err(|error| match error {
        Error::Usage { report, .. } => Error::Usage {
            report,
            command: definition::command_of(&args),
        },
        other => other,
    })
}

fn understand(
    args: &[OsString],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, Error> {
    let matches = definition::for_arguments(args)
        .try_get_matches_from(args)
        .map_err(definition::mistyped)?;
    if let Some((role, _)) = matches.subcommand()
        && !names::CONFIGURED.contains(&role)
        && matches.args_present()
    {
        return Err(definition::conflict(format!(
            "`uppercased {role}` takes no settings; remove the flags before it, or put its own \
             flags after it"
        )));
    }
    if let Some((name, typed)) = matches.subcommand()
        && let Some(request) = order(name, typed)
    {
        return Ok(Command::Order(Order {
            request,
            control: control(typed, environment)?,
            timeout: typed.get_one(names::TIMEOUT).copied(),
            shown: shown(name, typed),
        }));
    }
    match matches.subcommand() {
        Some((names::WORKER, _)) => Ok(Command::Worker),
        Some((names::ADMIN, typed)) => Ok(Command::Admin(admin::Options {
            supervisor: typed.get_one(names::SUPERVISOR).copied().unwrap_or(0),
        })),
        Some((names::CLIENT, typed)) => Ok(Command::Client(line_client(typed))),
        #[cfg(feature = "bench")]
        Some((names::BENCH, typed)) => Ok(Command::Bench(typed.clone())),
        #[cfg(feature = "bench")]
        Some((names::BENCH_PART, _)) => Ok(Command::BenchPart),
        Some((names::COMPLETIONS, asked)) => Ok(Command::Completions(completions::typed(asked))),
        Some((names::MAN, asked)) => Ok(Command::Manual(manual::typed(asked))),
        Some((names::CHECK, typed)) => {
            let found = gather::gather(&[&matches, typed], environment)?;
            Ok(Command::Check(if typed.get_flag(names::PRINT) {
                effective::show(&found.config, &found.origins, &found.ignored)
            } else {
                effective::verdict(found.file.as_deref(), &found.ignored)
            }))
        }
        Some((names::PREFLIGHT, typed)) => Ok(Command::Preflight(servers(typed, args))),
        #[cfg(feature = "top")]
        Some((names::TOP, typed)) => Ok(Command::Top(top::Options {
            control: control(typed, environment)?,
            every: typed
                .get_one(names::EVERY)
                .copied()
                .unwrap_or(config::TOP_INTERVAL),
        })),
        serve => {
            let mut typed = vec![&matches];
            typed.extend(serve.map(|(_, typed)| typed));
            let found = gather::gather(&typed, environment)?;
            let launch = Launch {
                config: found.config,
                ignored: found.ignored,
                args: args.to_vec(),
            };
            Ok(Command::Serve(Box::new(launch)))
        }
    }
}

fn line_client(typed: &ArgMatches) -> client::Options {
    let target = typed.get_one::<String>(names::TARGET);
    client::Options {
        target: target.map_or_else(|| DEFAULT_TARGET.to_owned(), |target| with_host(target)),
        proxy_header: typed.get_one(names::PROXY_PROTOCOL).copied().flatten(),
    }
}

/// The command line of the server that may become this program.
fn servers(preflight: &ArgMatches, args: &[OsString]) -> Vec<OsString> {
    let servers = preflight.get_many::<OsString>(names::SERVER_ARGS);
    let program = args.first().cloned().unwrap_or_default();
    let servers = servers.into_iter().flatten().cloned();
    [program].into_iter().chain(servers).collect()
}

/// What a command asks a running server for, if it is such a command.
fn order(name: &str, typed: &ArgMatches) -> Option<Request> {
    match name {
        names::RELOAD => Some(Request::Reload(how(typed))),
        names::UPGRADE => Some(Request::Upgrade(how(typed))),
        names::SCALE => Some(Request::Scale {
            workers: *typed.get_one(names::WORKERS)?,
            options: how(typed),
        }),
        names::CANCEL => Some(Request::Cancel),
        names::ROTATION => {
            let word = typed.get_one::<String>(names::TO)?;
            let to = Rotation::ALL.into_iter().find(|to| to.name() == word)?;
            Some(Request::Rotation { to })
        }
        names::STATUS => Some(Request::Status),
        names::STOP => Some(Request::Stop),
        _ => None,
    }
}

/// How an operation is to be carried out.
fn how(typed: &ArgMatches) -> Options {
    Options {
        wait: typed.get_flag(names::WAIT),
        drain: typed.get_flag(names::DRAIN),
    }
}

/// The control socket that is named, if one is.
fn control(
    typed: &ArgMatches,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Option<PathBuf>, config::Error> {
    match typed.get_one::<PathBuf>(names::CONTROL) {
        Some(path) => Ok(Some(path.clone())),
        None => orders::named_in(environment),
    }
}

/// How a status is to be shown.
fn shown(name: &str, typed: &ArgMatches) -> Shown {
    if name != names::STATUS {
        return Shown::default();
    }
    let limit = typed.get_one::<u32>(names::LIMIT);
    let limit = limit.and_then(|&limit| usize::try_from(limit).ok());
    Shown {
        json: typed.get_flag(names::JSON),
        ready: typed.get_flag(names::READY),
        watch: typed.get_one(names::WATCH).copied(),
        sockets: typed
            .get_flag(names::SOCKETS)
            .then(|| limit.unwrap_or(config::STATUS_SOCKETS_LISTED)),
    }
}

/// The configuration that a server's arguments give now.
fn settle(args: &[OsString]) -> Result<Config, String> {
    match parse(args.iter().cloned(), std::env::vars_os()) {
        Ok(Command::Serve(launch)) => Ok(launch.config),
        Ok(_) => Err("these arguments do not start a server".to_owned()),
        // The text is escaped where it is shown: it passes through a log or a reply first.
        Err(error) => Err(error.to_string()),
    }
}

/// Reports bad input.
fn fail(error: &Error) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(BAD_INPUT)
}

#[cfg(test)]
mod tests;
