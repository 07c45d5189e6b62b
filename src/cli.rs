//! The command line: arguments are parsed into a [`Command`], whose run gives an exit code.
//!
//! Invariants: each error in the input gives one line on standard error (what, why, what to do) and exit
//! code [`BAD_INPUT`]; a closed standard output is not an error; `check` binds nothing. Must not:
//! know a setting by name. Flags, variables and file keys come from [`config::SETTINGS`], their
//! values are checked by [`config::resolve`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ArgMatches;
use signal_hook::consts::SIGXFSZ;

use crate::client;
use crate::config::{self, Config, ERRORS_SHOWN_MAX};
use crate::log::wants_colour;
use crate::sys::signals;
#[cfg(feature = "top")]
use crate::top;
use crate::{admin, fault, preflight, supervisor, worker};
use uppercased_ctl::control::{Options, Request};
use uppercased_ctl::output::{self, print};
use uppercased_ctl::stderr::write_error;
use uppercased_ctl::target::with_defaults;

pub use crate::config::Launch;
pub use clap_complete::Shell;
pub use error::Error;
pub use manual::Manual;
pub use names::BAD_INPUT;
pub use remote::RemoteCommand;
pub use reply::Shown;

mod completions;
mod definition;
mod effective;
mod error;
mod exit;
mod gather;
mod leftovers;
mod manual;

mod names;
mod remote;
mod reply;
mod usage_error;
mod watch;

/// The client's default address: the server's default port on this machine.
const DEFAULT_TARGET: &str = "127.0.0.1:9999";

/// A command with everything that it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run a server.
    Serve(Box<Launch>),
    /// Print the result of `check`, which is ready.
    Check(String),
    /// Run a line client.
    Client(client::Options),
    /// Measure a server or compare measurements.
    #[cfg(feature = "bench")]
    Bench(ArgMatches),
    /// Run one process of a benchmark; started by the benchmark itself.
    #[cfg(feature = "bench")]
    BenchPart,
    /// Send a command to a running server.
    Remote(RemoteCommand),
    /// Print a completion script.
    Completions(Shell),
    /// Print or write manual pages.
    Manual(Manual),
    /// Watch a running server on a terminal.
    #[cfg(feature = "top")]
    Top(top::Options),
    /// Run a worker; started by the supervisor.
    Worker,
    /// Run the admin endpoint; started by the supervisor.
    Admin(admin::Options),
    /// Stop the workers of a dead supervisor, that of the server with this control socket.
    DrainLeftovers(Option<PathBuf>),
    /// Check that this program can replace the running supervisor, which started it.
    Preflight(Vec<OsString>),
}

/// Runs the program with these arguments (the first is its own name).
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    fault::point("main.starting");
    // Exceeding the file size limit, for instance with a long log, then fails with EFBIG instead of
    // killing the process. Registering fails only for signals that cannot be caught.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    // Fails only for an invalid signal number.
    let _ = signals::keep_exit_statuses();
    let args: Vec<OsString> = args.into_iter().collect();
    if supervisor::is_resuming() {
        // The supervisor that started this program checks the arguments with the same rules.
        return supervisor::resume(args);
    }
    // The supervisor starts its processes with signals blocked, and they keep that mask. Every
    // other command unblocks signals before it reads the configuration, whatever its parent had
    // blocked.
    let roles = [names::WORKER, names::ADMIN, names::PREFLIGHT];
    let role = args.get(1).and_then(|role| role.to_str());
    if !role.is_some_and(|role| roles.contains(&role)) {
        // The mask is always valid.
        let _ = signals::unblock_all();
        supervisor::stop_while_starting();
    }
    let command = parse(args.iter().cloned(), std::env::vars_os());
    let command = command.or_else(|error| continued(args, error));
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
        Ok(Command::BenchPart) => uppercased_bench::run_part(),
        Ok(Command::Remote(command)) => remote::run(&command),
        Ok(Command::Completions(shell)) => completions::run(shell, definition::public_command()),
        Ok(Command::Manual(asked)) => manual::run(&asked, definition::public_command()),
        #[cfg(feature = "top")]
        Ok(Command::Top(options)) => remote::watch(&options),
        Ok(Command::DrainLeftovers(control)) => leftovers::run(control),
        Ok(Command::Worker) => worker::run(),
        Ok(Command::Admin(options)) => admin::run(options),
        Ok(Command::Preflight(server)) => preflight::run(|| resolve_launch(&server)),
        Err(Error::Usage { report, .. }) if !report.use_stderr() => {
            // Help and version.
            let text = report.render();
            if wants_colour(output::stdout()) {
                output::print_raw(text.ansi().to_string().as_bytes())
            } else {
                print(&text.to_string())
            }
        }
        Err(error) => report_error(&error),
    }
}

/// Parses the arguments and the environment, and the configuration file that they name.
///
/// # Errors
///
/// The first error in the usage, or every error in the sources of the configuration.
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
        .map_err(definition::escaped_usage_error)?;
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
        && let Some(request) = request_of(name, typed)
    {
        return Ok(Command::Remote(RemoteCommand {
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
            let warnings = config::warnings(&found.config, &found.origins, &gather::machine());
            if typed.get_flag(names::STRICT) && !warnings.is_empty() {
                return Err(Error::of_all(
                    warnings.into_iter().map(Error::Unwise).collect(),
                ));
            }
            let mut remarks: Vec<String> = Vec::new();
            remarks.extend(found.ignored.iter().map(|what| format!("ignored {what}")));
            remarks.extend(warnings.iter().map(|what| format!("warning: {what}")));
            Ok(Command::Check(if typed.get_flag(names::PRINT) {
                effective::show(&found.config, &found.origins, &remarks)
            } else {
                effective::check_result(found.file.as_deref(), &remarks)
            }))
        }
        Some((names::DRAIN_LEFTOVERS, typed)) => {
            Ok(Command::DrainLeftovers(control(typed, environment)?))
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
                refused: None,
            };
            Ok(Command::Serve(Box::new(launch)))
        }
    }
}

/// Returns the command that continues the workers of a dead supervisor with the configuration that
/// they run, because `error` is in the one that these arguments name.
fn continued(args: Vec<OsString>, error: Error) -> Result<Command, Error> {
    let control = match definition::for_arguments(&args).try_get_matches_from(&args) {
        Ok(matches) if !error.is_usage() => control_of_server(&matches),
        _ => None,
    };
    let Some(control) = control else {
        return Err(error);
    };
    match supervisor::continue_stored(&control, args, error.to_string()) {
        Ok(Some(launch)) => Ok(Command::Serve(Box::new(launch))),
        Ok(None) => Err(error),
        Err(why) => Err(Error::of_all(vec![error, Error::NotContinued(why)])),
    }
}

/// Returns the control socket of the server that these arguments start; `None` if they start none.
fn control_of_server(matches: &ArgMatches) -> Option<config::Control> {
    let mut typed = vec![matches];
    match matches.subcommand() {
        Some((names::SERVE, serve)) => typed.push(serve),
        Some(_) => return None,
        None => {}
    }
    Some(gather::control(&typed, std::env::vars_os()))
}

fn line_client(typed: &ArgMatches) -> client::Options {
    let target = typed.get_one::<String>(names::TARGET);
    client::Options {
        target: target.map_or_else(|| DEFAULT_TARGET.to_owned(), |target| with_defaults(target)),
        proxy_header: typed.get_one(names::PROXY_PROTOCOL).copied(),
    }
}

/// Returns the server's command line, which `preflight` received as arguments.
fn servers(preflight: &ArgMatches, args: &[OsString]) -> Vec<OsString> {
    let servers = preflight.get_many::<OsString>(names::SERVER_ARGS);
    let program = args.first().cloned().unwrap_or_default();
    let servers = servers.into_iter().flatten().cloned();
    [program].into_iter().chain(servers).collect()
}

/// Returns a command's request to a running server, if it has one.
fn request_of(name: &str, typed: &ArgMatches) -> Option<Request> {
    match name {
        names::RELOAD => Some(Request::Reload(options_of(typed))),
        names::UPGRADE => Some(Request::Upgrade(options_of(typed))),
        names::SCALE => Some(Request::Scale {
            workers: *typed.get_one(names::WORKERS)?,
            options: options_of(typed),
        }),
        names::CANCEL => Some(Request::Cancel),
        names::ROTATION => Some(Request::Rotation {
            to: *typed.get_one(names::TO)?,
        }),
        names::STATUS => Some(Request::Status),
        names::STOP => Some(Request::Stop),
        _ => None,
    }
}

/// Returns the options of an operation.
fn options_of(typed: &ArgMatches) -> Options {
    Options {
        wait: typed.get_flag(names::WAIT),
        drain: typed.get_flag(names::DRAIN),
    }
}

/// Returns the named control socket, if any.
fn control(
    typed: &ArgMatches,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Option<PathBuf>, config::Errors> {
    match typed.get_one::<PathBuf>(names::CONTROL) {
        Some(path) => Ok(Some(path.clone())),
        None => remote::socket_in(environment),
    }
}

/// Returns how to show a status.
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

/// Reads the current configuration from a server's arguments.
fn resolve_launch(args: &[OsString]) -> Result<Config, String> {
    match parse(args.iter().cloned(), std::env::vars_os()) {
        Ok(Command::Serve(launch)) => Ok(launch.config),
        Ok(_) => Err("these arguments do not start a server".to_owned()),
        // The text passes through a log or a reply, which escapes it.
        Err(error) => Err(error.to_string()),
    }
}

/// Reports bad input, one line for each error.
fn report_error(error: &Error) -> ExitCode {
    let errors = match error {
        Error::Several(errors) => errors,
        one => std::slice::from_ref(one),
    };
    for error in errors.iter().take(ERRORS_SHOWN_MAX) {
        write_error(&error.to_string());
    }
    if let Some(more @ 1..) = errors.len().checked_sub(ERRORS_SHOWN_MAX) {
        write_error(&format!("{more} more errors"));
    }
    ExitCode::from(BAD_INPUT)
}

#[cfg(test)]
mod tests;
