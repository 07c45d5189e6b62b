//! The errors of the client, with their exit codes.

use std::io;

use thiserror::Error as ThisError;

use uppercased_ctl::target::Malformed;

use super::connect::{Unreachable, describe_io};
use super::exchange::{Fault, progress};

/// Exit code after a failed or refused connection.
const EXIT_FAILURE: u8 = 1;
/// Exit code for an invalid address.
const EXIT_USAGE: u8 = 2;

/// The error that ends the client.
#[derive(Debug, ThisError)]
pub(super) enum Error {
    #[error(
        "cannot read the address {text:?}: {why}; write HOST:PORT, as in localhost:9999 or [::1]:9999"
    )]
    Address { text: String, why: Malformed },
    #[error(transparent)]
    Connect(#[from] Unreachable),
    #[error("cannot prepare the socket: {}", describe_io(.0))]
    Socket(#[source] io::Error),
    #[error("cannot poll input and connection: {}", describe_io(.0))]
    Wait(#[source] io::Error),
    #[error("cannot read standard input: {}", describe_io(.0))]
    Input(#[source] io::Error),
    #[error("cannot write standard output: {}", describe_io(.0))]
    Output(#[source] io::Error),
    /// The reader of the output closed it, as `head -1` does; not printed.
    #[error("cannot write standard output: it was closed")]
    OutputClosed,
    #[error("{}; {}", describe_break(source), progress(*answered, *missing))]
    Broken {
        source: io::Error,
        answered: u64,
        missing: u64,
    },
    #[error(transparent)]
    Answers(#[from] Fault),
}

impl Error {
    /// Returns the exit code of the client.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Address { .. } => EXIT_USAGE,
            Self::Connect(_)
            | Self::Socket(_)
            | Self::Wait(_)
            | Self::Input(_)
            | Self::Output(_)
            | Self::OutputClosed
            | Self::Broken { .. }
            | Self::Answers(_) => EXIT_FAILURE,
        }
    }

    /// Returns whether the error is not printed.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self, Self::OutputClosed)
    }
}

/// Describes the error that ended a connection.
fn describe_break(error: &io::Error) -> String {
    match error.kind() {
        // The client half-closes after its last send, so a broken pipe is caused by the server.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the server reset the connection".to_owned()
        }
        _ => format!("the connection failed: {}", describe_io(error)),
    }
}
