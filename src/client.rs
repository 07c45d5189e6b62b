//! `uppercased client`: an interactive client and filter for the server that checks every reply.
//!
//! On a terminal it prompts for lines and prints each reply. As a pipe it streams both ways,
//! half-closes at the end of its input, and succeeds only if every byte came back in upper case.
//! Memory is bounded for any length: input waits while 4 MiB are unanswered.
//!
//! Files: `connect` connects to the server, `exchange` tracks the bytes (pure), `session` moves
//! them.
//!
//! It must not share code with the transformation that it checks.

mod connect;
mod error;
mod exchange;
mod session;

use std::io::Write as _;
use std::process::ExitCode;

use uppercased_ctl::proxy_header;
use uppercased_ctl::stderr;
use uppercased_ctl::target::Target;

use self::connect::connect;
use self::error::Error;
use self::session::Session;

/// The client's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT`, where HOST is a name, an IPv4 address or an IPv6 address in brackets.
    pub target: String,
    /// The version of the PROXY header to send first, as a load balancer does, with the client's
    /// own address; `None`: no header.
    pub proxy_header: Option<proxy_header::Version>,
}

/// Runs the client on this process's standard input and output.
///
/// Prints an error as one line on standard error. The exit code is 0 if every byte came back in
/// upper case, 2 if the address is invalid, and 1 otherwise.
pub fn run(options: Options) -> ExitCode {
    match converse(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_quiet() {
                stderr::write_error(&error.to_string());
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
        // The header fits any socket buffer, so the write cannot block.
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
        stderr::write_line(&format!(
            "connected to {peer} from {local} (end with Ctrl-D)"
        ));
    }
    session.run()
}
