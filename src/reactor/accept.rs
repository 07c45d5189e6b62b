//! Accepting: the listeners a worker serves, and when it may take connections from them.
//!
//! [`Gate`] is the pure policy (limit with hysteresis, a rest after the system ran out of
//! something); [`Acceptor`] is one listening socket in the event loop.
//!
//! Invariants: a listener is never shut down and never closed while it is the last reference
//! (the supervisor holds another), so no accept queue is dropped here; while the gate is shut no
//! listener is watched, so a queue that fills up wakes nobody, and watching it again reports what
//! is in it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use crate::clock::Tick;
use crate::identity::SlotId;
use crate::metrics::PauseCause;
use crate::sys::socket::{AcceptFailure, Socket};

/// Whether connections may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// `max_connections` are open; taking goes on when a tenth of them has ended.
    AtLimit,
    /// The system ran out of something; taking goes on when a connection ends, or then.
    Resting(Tick),
    /// The worker takes no more connections, for good.
    Ended,
}

impl Gate {
    /// The number of open connections at which taking goes on after the limit `max`: a tenth less,
    /// so that a server at its limit does not start and stop with every single connection.
    #[must_use]
    pub const fn resume_at(max: u32) -> u32 {
        max - max.div_ceil(10)
    }

    /// The gate once `open` connections are open, one having just ended.
    #[must_use]
    pub const fn after_close(self, open: u32, max: u32) -> Self {
        match self {
            Self::AtLimit if open > Self::resume_at(max) => Self::AtLimit,
            Self::AtLimit | Self::Resting(_) | Self::Open => Self::Open,
            Self::Ended => Self::Ended,
        }
    }

    /// The gate at `now`.
    #[must_use]
    pub fn at(self, now: Tick) -> Self {
        match self {
            Self::Resting(until) if until <= now => Self::Open,
            other => other,
        }
    }
}

/// The cause to count for a failure that shuts the gate; `None` for one that does not.
#[must_use]
pub const fn pause_cause(failure: AcceptFailure) -> Option<PauseCause> {
    match failure {
        AcceptFailure::Empty | AcceptFailure::ThisOne => None,
        AcceptFailure::ProcessDescriptors => Some(PauseCause::ProcessDescriptors),
        AcceptFailure::SystemDescriptors => Some(PauseCause::SystemDescriptors),
        AcceptFailure::Memory => Some(PauseCause::Memory),
    }
}

/// One listening socket.
#[derive(Debug)]
pub struct Acceptor {
    /// The slot it belongs to: this worker's own, or a sibling's that lent it.
    pub owner: SlotId,
    /// Whether its queue may hold connections.
    pub ready: bool,
    /// Whether its connections begin with a PROXY header.
    pub proxied: bool,
    token: Token,
    listener: TcpListener,
    watched: bool,
}

impl Acceptor {
    /// Takes a bound, listening, non-blocking socket of slot `owner` in charge; `proxied` says
    /// whether its connections begin with a PROXY header.
    #[must_use]
    pub fn new(owner: SlotId, listener: OwnedFd, token: Token, proxied: bool) -> Self {
        let listener = TcpListener::from_std(std::net::TcpListener::from(listener));
        Self {
            owner,
            ready: false,
            proxied,
            token,
            listener,
            watched: false,
        }
    }

    /// Whether readiness reported for `token` is this listener's.
    #[must_use]
    pub fn has(&self, token: Token) -> bool {
        self.token == token
    }

    /// Watches the queue, or stops watching it. What is in it when watching begins is reported.
    ///
    /// # Errors
    /// What `epoll_ctl` returned.
    pub fn watch(&mut self, registry: &Registry, on: bool) -> io::Result<()> {
        if on == self.watched {
            return Ok(());
        }
        if on {
            registry.register(&mut self.listener, self.token, Interest::READABLE)?;
        } else {
            registry.deregister(&mut self.listener)?;
            self.ready = false;
        }
        self.watched = on;
        Ok(())
    }

    /// Takes one connection from the queue: non-blocking and close-on-exec from birth.
    ///
    /// # Errors
    /// Why there is none, sorted.
    pub fn accept(&mut self) -> Result<(Socket, SocketAddr), AcceptFailure> {
        match self.listener.accept() {
            Ok((stream, peer)) => Ok((Socket::adopt(stream.into()), peer)),
            Err(error) => Err(AcceptFailure::from_error(&error)),
        }
    }

    /// The descriptor's number, for logs.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.listener.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_has_hysteresis() {
        let max = 100;
        let mut gate = Gate::AtLimit;
        for open in (91..100).rev() {
            gate = gate.after_close(open, max);
            assert_eq!(gate, Gate::AtLimit, "at {open}");
        }
        assert_eq!(gate.after_close(90, max), Gate::Open);
        assert_eq!(
            Gate::resume_at(1),
            0,
            "a limit of one resumes when that one ends"
        );
    }

    #[test]
    fn a_rest_ends_by_time_or_by_a_close_but_an_end_is_final() {
        let rest = Gate::Resting(Tick::from_millis(50));
        assert_eq!(rest.at(Tick::from_millis(49)), rest);
        assert_eq!(rest.at(Tick::from_millis(50)), Gate::Open);
        assert_eq!(rest.after_close(10, 10), Gate::Open);
        assert_eq!(Gate::Ended.after_close(0, 10), Gate::Ended);
        assert_eq!(Gate::Ended.at(Tick::from_millis(99)), Gate::Ended);
    }
}
