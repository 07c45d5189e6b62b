//! Commands to a running server: find the server, print its replies, return the exit code.
//!
//! Invariants: the exit code is 0 only if the server completed the request, 2 if no server could be
//! reached (nothing happened then), and 1 otherwise. Progress goes to standard error, the result to
//! standard output, one line each, whatever text a server sends. Must not: know how a server
//! carries out a command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[cfg(feature = "top")]
use super::names::BAD_INPUT;
use super::reply::{Error, Shown, Unsearched, negative, request_status};
use super::watch;
use crate::config::{self, Control, Draft, STATUS_ANSWER_TIMEOUT, Setting};
#[cfg(feature = "top")]
use crate::top;
use uppercased_ctl::control::client::{self, Conversation, Error as AskError, Found};
use uppercased_ctl::control::place::{Candidate, Environment};
use uppercased_ctl::control::{Reply, Request};
use uppercased_ctl::escape::visible;
use uppercased_ctl::output::print;
use uppercased_ctl::stderr::{self, write_error};

/// A request to a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCommand {
    /// The request.
    pub request: Request,
    /// The control socket of the server; `None`: that of the only running server.
    pub control: Option<PathBuf>,
    /// Timeout for the result; `None`: unlimited.
    pub timeout: Option<Duration>,
    /// How a status is shown.
    pub shown: Shown,
}

/// Timeout for each of several servers to report its address.
const ADDRESSES_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the command and waits for the result.
pub(super) fn run(command: &RemoteCommand) -> ExitCode {
    match execute(command) {
        Ok(code) => code,
        Err(error) => {
            let text = error.to_string();
            if matches!(error, Error::Negative(..)) {
                // The cause is one line, even if it names a file with line breaks in its name.
                let _ = print(&format!("{}\n", visible(&text)));
            } else {
                write_error(&text);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs `top` for a server on this terminal.
#[cfg(feature = "top")]
pub(super) fn watch(options: &top::Options) -> ExitCode {
    let find = || only_running_server().map_err(|error| error.to_string());
    match top::run(options, &find) {
        Ok(code) => code,
        Err(error) => {
            write_error(&error.to_string());
            match error {
                top::Error::NoTerminal | top::Error::Dumb | top::Error::NoServer(_) => {
                    ExitCode::from(BAD_INPUT)
                }
                top::Error::System(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Returns the socket named by the environment. The variable is the server's setting, with the same
/// valid values.
pub(super) fn socket_in(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Option<PathBuf>, config::Errors> {
    let variable = Setting::find("control").map(Setting::variable);
    let named = environment
        .into_iter()
        .filter(|(name, _)| variable.as_deref().is_some_and(|variable| name == variable));
    let mut errors = Vec::new();
    let assignments = config::from_environment(named, &mut errors);
    let (config, _) = Draft::new(&assignments, &config::Facts::NONE, errors).finish()?;
    Ok(match config.control {
        Control::Path(path) => Some(path),
        Control::Auto | Control::Off => None,
    })
}

fn execute(command: &RemoteCommand) -> Result<ExitCode, Error> {
    let path = match &command.control {
        Some(path) => path.clone(),
        None => only_running_server()?,
    };
    match command.request {
        Request::Stop => return stop(&path, command.timeout),
        Request::Status => {
            let within = command.timeout.unwrap_or(STATUS_ANSWER_TIMEOUT);
            return if command.shown.ready {
                readiness(&path, within)
            } else {
                watch::status(&path, command.shown, within)
            };
        }
        Request::Reload(_)
        | Request::Upgrade(_)
        | Request::Cancel
        | Request::Scale { .. }
        | Request::Rotation { .. } => {}
    }
    let reply = client::ask(&path, &command.request, command.timeout, write_progress)?;
    let Reply::Done(done) = reply else {
        return Err(negative(reply));
    };
    let line = done.describe(&command.request);
    let line = line.ok_or(Error::UnexpectedReply)?;
    Ok(print(&format!("{line}\n")))
}

/// Stops the server. The end of the connection means the end of the server only after the server
/// has reported that it is stopping.
fn stop(path: &std::path::Path, timeout: Option<Duration>) -> Result<ExitCode, Error> {
    let mut server = Conversation::open(path, timeout)?;
    server.ask(&Request::Stop)?;
    let mut begun = false;
    while let Some(reply) = server.next_reply()? {
        match reply {
            Reply::Progress(text) => {
                begun = true;
                write_progress(&text);
            }
            Reply::Done(_) => begun = true,
            Reply::Failed(_) | Reply::Refused(_) | Reply::Status(_) => return Err(negative(reply)),
        }
    }
    if begun {
        Ok(print("stopped\n"))
    } else {
        Err(AskError::Lost.into())
    }
}

fn write_progress(progress: &str) {
    // Best effort: only the result matters.
    stderr::write_line(progress);
}

/// Returns, as an exit code, whether load balancers should send clients; as the admin endpoint's
/// `/readyz`.
fn readiness(path: &std::path::Path, within: Duration) -> Result<ExitCode, Error> {
    let (status, _) = request_status(path, within)?;
    match status.unready() {
        None => Ok(print(&format!("{}\n", status.ready_words()))),
        Some(why) => Err(Error::Negative("not ready", why)),
    }
}

/// Returns the socket of the only running server.
fn only_running_server() -> Result<PathBuf, Error> {
    let places = Environment::of_this_process().searched_directories();
    let Found {
        running,
        unsearched,
    } = client::find(&places);
    match <[Candidate; 1]>::try_from(running) {
        Ok([only]) => Ok(only.path),
        Err(running) if running.is_empty() && unsearched.is_empty() => {
            Err(Error::NoneFound(places))
        }
        Err(running) if running.is_empty() => Err(Error::NonePermitted(Unsearched(unsearched))),
        Err(running) => Err(Error::Several(
            running.iter().map(describe_candidate).collect(),
        )),
    }
}

/// Describes one of several servers, so that a user can distinguish them.
fn describe_candidate(server: &Candidate) -> String {
    let Candidate { pid, path } = server;
    let asked = client::ask(path, &Request::Status, Some(ADDRESSES_TIMEOUT), |_| {});
    let addresses = match asked {
        Ok(Reply::Status(status)) if !status.addresses.is_empty() => status.addresses.join(" "),
        _ => "an unknown address".to_owned(),
    };
    format!("pid {pid} on {addresses} ({})", path.display())
}
