//! One request to a running server: errors with their exit codes, and the display of a status.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::names::BAD_INPUT;
use uppercased_ctl::control::Reply;
use uppercased_ctl::control::client::{Conversation, Error as AskError};
use uppercased_ctl::sampler::{self, Answer};
use uppercased_ctl::status::Status;

/// How a status is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// As JSON.
    pub json: bool,
    /// Repeatedly, at this interval.
    pub watch: Option<Duration>,
    /// Each socket on the ports, up to this maximum.
    pub sockets: Option<usize>,
    /// Whether to report readiness by exit code only.
    pub ready: bool,
}

/// The error of a request without a positive result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot find a running server: no control socket in {}; name one with --control", joined(.0))]
    NoneFound(Vec<PathBuf>),
    #[error(
        "cannot use any control socket as this user{0}; run the command as root or as the server's \
         user, or name another socket with --control"
    )]
    NonePermitted(Unsearched),
    #[error("cannot choose a server: {} are running: {}; name one with --control", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Reported for a status only: a live supervisor replies at once.
    #[error(
        "cannot get the status within {within:?}: {}; the workers may still be serving",
        missing_reply_cause(*.server)
    )]
    Silent {
        within: Duration,
        server: Option<i32>,
    },
    #[error(
        "cannot use the server's answer: it does not match the request; check the server's version"
    )]
    UnexpectedReply,
    /// The server's result, which goes to standard output.
    #[error("{0}: {1}")]
    Negative(&'static str, String),
}

impl Error {
    /// Returns the exit code of the command.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::NoneFound(_)
            | Self::NonePermitted(_)
            | Self::Several(_)
            | Self::Ask(AskError::Unreachable { .. }) => BAD_INPUT,
            Self::Ask(_) | Self::Silent { .. } | Self::UnexpectedReply | Self::Negative(..) => 1,
        }
    }
}

/// Directories that could not be searched.
#[derive(Debug)]
pub(super) struct Unsearched(pub(super) Vec<(PathBuf, io::Error)>);

impl fmt::Display for Unsearched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, error) in &self.0 {
            write!(out, ", {}: {error}", path.display())?;
        }
        Ok(())
    }
}

/// Returns the error for a reply that is not the requested result.
pub(super) fn negative(reply: Reply) -> Error {
    match reply {
        Reply::Failed(cause) => Error::Negative("failed", cause),
        Reply::Refused(cause) => Error::Negative("refused", cause),
        Reply::Done(_) | Reply::Status(_) | Reply::Progress(_) => Error::UnexpectedReply,
    }
}

/// Requests one status from a server.
pub(super) fn request_status(
    path: &std::path::Path,
    within: Duration,
) -> Result<(Box<Status>, Option<i32>), Error> {
    match sampler::request_status(path, Some(within)) {
        Err(AskError::TimedOut) => {
            let asked = Conversation::open(path, Some(within)).ok();
            let server = asked.and_then(|asked| asked.server());
            Err(Error::Silent { within, server })
        }
        Err(error) => Err(error.into()),
        Ok(Answer::Status(status, server)) => Ok((status, server)),
        Ok(Answer::Other(reply)) => Err(negative(reply)),
    }
}

/// Describes why a supervisor does not reply.
fn missing_reply_cause(server: Option<i32>) -> String {
    match server {
        Some(pid) if is_stopped(pid) => {
            format!("process {pid} is stopped, and `kill -CONT {pid}` resumes it")
        }
        Some(pid) => format!("process {pid} is stalled or gets no CPU time"),
        None => "the supervisor is stalled or gets no CPU time".to_owned(),
    }
}

/// Returns whether a signal or a debugger has stopped a process.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may contain any byte.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.starts_with(['T', 't'])
}

fn joined(places: &[PathBuf]) -> String {
    let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
    places.join(" or ")
}
