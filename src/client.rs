//! `uppercased client`: talks to a server by hand or as a filter, and checks every answer.
//!
//! On a terminal it prompts for lines and prints each reply; as a pipe it streams both ways,
//! half-closes at the end of its input, and succeeds only if every byte came back as the
//! upper-case of what was sent. Memory is bounded whatever the length: input waits while
//! 4 MiB are unanswered.
//!
//! Files: `connect` finds the server, `exchange` keeps the account (pure), `session` moves the
//! bytes.
//!
//! What it must not do: share code with the server's transformation, which it is a check on.

mod connect;
mod exchange;
mod session;

use std::io::{self, Write as _};
use std::process::ExitCode;

use thiserror::Error as ThisError;

use uppercased_ctl::proxy_header;
use uppercased_ctl::stderr;
use uppercased_ctl::target::{Malformed, Target};

use self::connect::{Unreachable, connect, describe_io};
use self::exchange::{Fault, progress};
use self::session::Session;

/// The exit code for a conversation that failed, or did not come about.
const EXIT_FAILURE: u8 = 1;
/// The exit code for an address that cannot be read.
const EXIT_USAGE: u8 = 2;

/// What the client is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT`: a name, an IPv4 address or an IPv6 address in brackets, and a port.
    pub target: String,
    /// The version of the PROXY header to begin with, as a load balancer would; it names this
    /// client's own address. `None`: none.
    pub proxy_header: Option<proxy_header::Version>,
}

/// Why the client did not succeed.
#[derive(Debug, ThisError)]
enum Error {
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
    /// The reader of our output left, as `head -1` does; it needs no telling.
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
    fn exit_code(&self) -> u8 {
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

    fn is_quiet(&self) -> bool {
        matches!(self, Self::OutputClosed)
    }
}

/// Runs the client on this process's standard input and output.
///
/// What goes wrong is printed to standard error, as one line. The code is 0 if every byte came
/// back and was the upper-case of what was sent, 2 if the address cannot be read, and 1
/// otherwise.
pub fn run(options: Options) -> ExitCode {
    match converse(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_quiet() {
                stderr::complain(&error.to_string());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn converse(options: &Options) -> Result<(), Error> {
    let text = &options.target;
    let target: Target = text.parse().map_err(|why| Error::Address {
        text: text.to_owned(),
        why,
    })?;
    let mut stream = connect(&target)?;
    if let Some(version) = options.proxy_header {
        let local = stream.local_addr().map_err(Error::Socket)?;
        let peer = stream.peer_addr().map_err(Error::Socket)?;
        let header = proxy_header::encode(version, local, peer);
        // It fits any socket buffer, so nobody waits here.
        stream.write_all(&header).map_err(|source| Error::Broken {
            source,
            answered: 0,
            missing: 0,
        })?;
    }
    let session = Session::new(&stream)?;
    if session.is_interactive() {
        let peer = stream.peer_addr().map_err(Error::Socket)?;
        let local = stream.local_addr().map_err(Error::Socket)?;
        stderr::say(&format!(
            "connected to {peer} from {local} (end with Ctrl-D)"
        ));
    }
    session.run()
}

/// What became of a connection that did not end in order.
fn describe_break(error: &io::Error) -> String {
    match error.kind() {
        // Our own half-close comes after the last send, so a broken pipe is the server's doing.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the server reset the connection".to_owned()
        }
        _ => format!("the connection failed: {}", describe_io(error)),
    }
}
