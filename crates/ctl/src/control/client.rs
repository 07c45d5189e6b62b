//! The client side: finds a server, sends one request, reads replies line by line.
//!
//! It blocks, since it serves a person or a script; a deadline, if given, bounds each wait.
//! Invariants: a reply is no longer than the protocol allows; an error states whether the server
//! was reached.
//!
//! It must not print. A server must not wait in it, except before it serves, to check whether
//! another server answers at a socket.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::place::{self, Candidate};
use super::protocol::{self, Incoming, Reply, Request};
use crate::clock::{self, Tick};
use crate::limits::CONTROL_REPLY_MAX_BYTES;

/// A connection to a running server.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    incoming: Incoming,
    deadline: Option<Tick>,
}

/// The replies that one read returned.
#[derive(Debug, Default)]
pub struct Received {
    /// Complete replies.
    pub replies: Vec<Reply>,
    /// Whether the connection has ended.
    pub ended: bool,
}

/// The reason why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server accepts connections at the path.
    #[error(
        "no server is listening on control socket {}: {source}; check that it is running and that \
         you may use it", path.display()
    )]
    Unreachable {
        /// The path of the socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("cannot get an answer: the server closed the connection; see its log")]
    Lost,
    /// The deadline has passed.
    #[error(
        "cannot wait any longer: no answer in time; the operation may continue, see `uppercased \
         status`"
    )]
    TimedOut,
    /// The reply does not come from an **uppercased** server.
    #[error("cannot read the server's answer: {0}; check the server's version")]
    Nonsense(#[from] protocol::Error),
    /// The system refused an operation on the connection.
    #[error("cannot exchange messages with the server: {0}")]
    System(#[source] io::Error),
}

/// The servers found, and the sockets that could not be queried.
#[derive(Debug, Default)]
pub struct Found {
    /// Servers that accept connections.
    pub running: Vec<Candidate>,
    /// Sockets of other users, or unreadable directories.
    pub unsearched: Vec<(PathBuf, io::Error)>,
}

/// Bytes per read.
const CHUNK_BYTES: usize = 64 * 1024;
/// Timeout for a server to accept a connection that only tests whether it runs.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

impl Conversation {
    /// Connects to the server at `path`; every wait ends at the deadline, `within` from now.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TimedOut`], [`Error::System`].
    pub fn open(path: &Path, within: Option<Duration>) -> Result<Self, Error> {
        let deadline = within.map(|within| clock::now() + within);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::System)?;
        // `connect` waits for room in the accept queue up to the socket's write timeout.
        let limit = left(deadline)?;
        socket.set_write_timeout(limit).map_err(Error::System)?;
        Self::over(socket, path, deadline)
    }

    /// Connects to the server at `path` without waiting, to find out whether there is one.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::TimedOut`] if there is a server whose accept queue is full;
    /// [`Error::System`].
    pub fn open_at_once(path: &Path) -> Result<Self, Error> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(Error::System)?;
        socket.set_nonblocking(true).map_err(Error::System)?;
        Self::over(socket, path, None)
    }

    fn over(socket: Socket, path: &Path, deadline: Option<Tick>) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable {
            path: PathBuf::from(path),
            source,
        };
        let address = SockAddr::unix(path).map_err(unreachable)?;
        match socket.connect(&address) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::TimedOut),
            Err(error) => return Err(unreachable(error)),
        }
        Ok(Self {
            stream: UnixStream::from(OwnedFd::from(socket)),
            incoming: Incoming::new(CONTROL_REPLY_MAX_BYTES),
            deadline,
        })
    }

    /// Returns the server's process ID; `None` if it runs in another namespace.
    #[must_use]
    pub fn server(&self) -> Option<i32> {
        let peer = getsockopt(&self.stream, sockopt::PeerCredentials).ok()?;
        Some(peer.pid()).filter(|&pid| pid > 0)
    }

    /// Sends the request; call it once.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::System`].
    pub fn ask(&mut self, request: &Request) -> Result<(), Error> {
        let line = request.encode()?;
        self.stream
            .set_write_timeout(left(self.deadline)?)
            .map_err(Error::System)?;
        match self.stream.write_all(&line) {
            Ok(()) => Ok(()),
            // The server may have refused before reading; its refusal can then be read.
            Err(error) if is_end(&error) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Reads once and returns the replies received, for callers that `poll`. The connection must be
    /// readable.
    ///
    /// # Errors
    /// [`Error::Nonsense`], [`Error::System`].
    pub fn read_ready(&mut self) -> Result<Received, Error> {
        let mut received = Received {
            ended: self.read_once()?,
            ..Received::default()
        };
        while let Some(line) = self.incoming.line() {
            received.replies.push(Reply::decode(&line)?);
        }
        Ok(received)
    }

    /// Reads once and returns whether the connection has ended.
    fn read_once(&mut self) -> Result<bool, Error> {
        let mut chunk = vec![0; CHUNK_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(count) => self.incoming.take(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_end(&error) => return Ok(true),
            Err(error) => return Err(failed(error)),
        }
        Ok(false)
    }

    /// Returns the next reply; `None` at the end of the connection.
    ///
    /// # Errors
    /// Any but [`Error::Unreachable`].
    pub fn next_reply(&mut self) -> Result<Option<Reply>, Error> {
        loop {
            if let Some(line) = self.incoming.line() {
                return Ok(Some(Reply::decode(&line)?));
            }
            let limit = left(self.deadline)?;
            self.stream.set_read_timeout(limit).map_err(Error::System)?;
            if self.read_once()? {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Sends a request and waits for the final reply; passes every earlier one to `progress`.
///
/// # Errors
/// No final reply was received.
pub fn ask(
    path: &Path,
    request: &Request,
    within: Option<Duration>,
    mut progress: impl FnMut(&str),
) -> Result<Reply, Error> {
    let mut conversation = Conversation::open(path, within)?;
    conversation.ask(request)?;
    while let Some(reply) = conversation.next_reply()? {
        match reply {
            Reply::Progress(text) => progress(&text),
            Reply::Done(_) | Reply::Failed(_) | Reply::Refused(_) | Reply::Status(_) => {
                return Ok(reply);
            }
        }
    }
    Err(Error::Lost)
}

/// Searches `directories` for servers that accept connections.
#[must_use]
pub fn find(directories: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for directory in directories {
        match place::candidates(directory) {
            Err(error) => found.unsearched.push((directory.clone(), error)),
            Ok(candidates) => {
                for candidate in candidates {
                    match Conversation::open(&candidate.path, Some(PROBE_TIMEOUT)) {
                        // A server that does not accept in time is running nevertheless.
                        Ok(_) | Err(Error::TimedOut) => found.running.push(candidate),
                        Err(Error::Unreachable { path, source })
                            if source.kind() == io::ErrorKind::PermissionDenied =>
                        {
                            found.unsearched.push((path, source));
                        }
                        // Stale: its server was killed.
                        Err(_) => {}
                    }
                }
            }
        }
    }
    found
}

/// Returns the time until the deadline; the kernel rejects a timeout of zero.
fn left(deadline: Option<Tick>) -> Result<Option<Duration>, Error> {
    match deadline.map(|deadline| deadline.since(clock::now())) {
        Some(left) if left.is_zero() => Err(Error::TimedOut),
        left => Ok(left.map(|left| left.max(Duration::from_millis(1)))),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut,
        _ => Error::System(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::control::Options;

    fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.sock");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, path, listener)
    }

    #[test]
    fn refusal_is_read_even_without_request_read() {
        let (_directory, path, listener) = listener();
        let mut conversation = Conversation::open(&path, None).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"{\"refused\":\"full\"}\n").unwrap();
        drop(server);
        conversation
            .ask(&Request::Reload(Options::default()))
            .unwrap();
        let reply = conversation.next_reply().unwrap().unwrap();
        assert_eq!(reply, Reply::Refused("full".to_owned()));
    }

    #[test]
    fn timeout_bounds_wait_for_silent_server() {
        let (_directory, path, listener) = listener();
        let within = Some(Duration::from_millis(20));
        let silent = ask(&path, &Request::Status, within, |_| {});
        assert!(matches!(silent, Err(Error::TimedOut)), "{silent:?}");

        let mut conversation = Conversation::open(&path, None).unwrap();
        drop(listener);
        assert_eq!(conversation.next_reply().unwrap(), None);
    }

    #[test]
    fn dead_servers_are_not_found() {
        let (directory, path, listener) = listener();
        let places = [
            PathBuf::from(directory.path()),
            directory.path().join("nowhere"),
        ];
        let found = find(&places);
        assert_eq!((found.running.len(), found.unsearched.len()), (1, 0));
        assert_eq!(found.running[0], Candidate { pid: 1, path });
        drop(listener);
        assert!(find(&places).running.is_empty());
    }
}
