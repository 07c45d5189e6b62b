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

/// What the client is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `HOST:PORT`: a name, an IPv4 address or an IPv6 address in brackets, and a port.
    pub target: String,
    /// The version of the PROXY header to begin with, as a load balancer would; it names this
    /// client's own address. `None`: none.
    pub proxy_header: Option<proxy_header::Version>,
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
