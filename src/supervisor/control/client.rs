//! One client of the control socket: its request, and the output that it has not read.
//!
//! Invariants: at most one request is read, and nothing after it; input, output, and the times to
//! send the request and to read the answer are bounded. It must not block, nor access other
//! clients.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;

use mio::net::UnixStream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::config::{CONTROL_REQUEST_MAX_BYTES, CONTROL_REQUEST_TIMEOUT};
use crate::log::event;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::Request;
use uppercased_ctl::control::protocol::Incoming;
use uppercased_ctl::identity::RequestId;
use uppercased_ctl::limits::CONTROL_REPLY_MAX_BYTES;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) peer: Peer,
    pub(crate) state: State,
    /// Output that the kernel has not accepted yet.
    pub(crate) output: Vec<u8>,
}

/// A client in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    stream: Descriptor,
    peer: Peer,
    state: State,
    output: Vec<u8>,
}

/// The process and the user of a client, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// The request is not complete.
    Asking { incoming: Incoming, until: Tick },
    /// The request is being carried out.
    Waiting { request: RequestId },
    /// The final answer is sent; the client must read the rest by `until`.
    Leaving { until: Tick },
}

/// The result of reading from a client.
pub(crate) enum Input {
    Nothing,
    Request(Request),
    /// The request is invalid.
    Invalid(String),
    /// The connection has ended.
    Closed,
}

impl Client {
    /// Creates a client that was just accepted.
    pub(crate) fn new(stream: UnixStream, peer: Peer, now: Tick) -> Self {
        let state = State::Asking {
            incoming: Incoming::new(CONTROL_REQUEST_MAX_BYTES),
            until: now + CONTROL_REQUEST_TIMEOUT,
        };
        Self {
            stream,
            peer,
            state,
            output: Vec::new(),
        }
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            stream: kept.keep(&self.stream),
            peer: self.peer,
            state: self.state.clone(),
            output: self.output.clone(),
        }
    }

    /// # Errors
    /// The connection is missing.
    pub(crate) fn restore(saved: Saved, inherited: &mut Inherited) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::from_std(inherited.take(saved.stream)?.into()),
            peer: saved.peer,
            state: saved.state,
            output: saved.output,
        })
    }

    /// Marks the final answer as sent.
    pub(crate) fn leave(&mut self, now: Tick) {
        self.state = State::Leaving {
            until: now + CONTROL_REQUEST_TIMEOUT,
        };
    }

    /// Writes and reads as far as possible.
    pub(crate) fn on_ready(&mut self) -> Input {
        if self.flush() == Flushed::Closed {
            return Input::Closed;
        }
        match &self.state {
            State::Asking { .. } => self.read_request(),
            // The client may have closed one direction: the answer still arrives.
            State::Waiting { .. } if self.has_left() => Input::Closed,
            State::Waiting { .. } | State::Leaving { .. } => Input::Nothing,
        }
    }

    /// Reads until the request is complete, and nothing after it.
    fn read_request(&mut self) -> Input {
        let State::Asking { incoming, .. } = &mut self.state else {
            return Input::Nothing;
        };
        let mut bytes = [0; CONTROL_REQUEST_MAX_BYTES];
        let line = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => match incoming.rest() {
                    Some(line) => break line,
                    // The client only checked that a server listens.
                    None => return Input::Closed,
                },
                Ok(count) => {
                    if let Err(error) = incoming.take(&bytes[..count]) {
                        return Input::Invalid(error.to_string());
                    }
                    if let Some(line) = incoming.line() {
                        break line;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Input::Closed,
            }
        };
        match Request::decode(&line) {
            Ok(request) => Input::Request(request),
            Err(error) => Input::Invalid(error.to_string()),
        }
    }

    /// Queues a line; returns whether it fits.
    pub(crate) fn queue(&mut self, line: &[u8]) -> bool {
        if self.output.len() + line.len() > CONTROL_REPLY_MAX_BYTES {
            let (pid, uid) = (self.peer.pid, self.peer.uid);
            event!(
                control_client_not_reading,
                client_pid = pid,
                client_uid = uid
            );
            return false;
        }
        self.output.extend_from_slice(line);
        true
    }

    pub(crate) fn flush(&mut self) -> Flushed {
        let mut written = 0;
        let end = loop {
            if written == self.output.len() {
                break match self.state {
                    State::Leaving { .. } => Flushed::Closed,
                    State::Asking { .. } | State::Waiting { .. } => Flushed::Open,
                };
            }
            match self.stream.write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Flushed::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break Flushed::Closed,
            }
        };
        self.output.drain(..written);
        end
    }

    /// Returns whether the peer has closed both directions.
    fn has_left(&self) -> bool {
        let mut ask = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let asked = poll(&mut ask, PollTimeout::ZERO);
        let over = PollFlags::POLLHUP | PollFlags::POLLERR;
        asked.is_ok() && ask[0].revents().is_some_and(|seen| seen.intersects(over))
    }
}

/// The result of writing to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    Open,
    /// Everything is sent, or the client does not read the output.
    Closed,
}

impl State {
    pub(crate) const fn due(&self) -> Option<Tick> {
        match self {
            Self::Asking { until, .. } | Self::Leaving { until } => Some(*until),
            Self::Waiting { .. } => None,
        }
    }
}
