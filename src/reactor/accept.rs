//! Listeners, and the conditions under which a worker may accept from them.
//!
//! [`Gate`] is the pure policy (a limit with hysteresis, a pause after the system ran out of a
//! resource); [`Acceptor`] is one listening socket in the event loop.
//!
//! Invariants: a listener is never shut down and never closed while it is the last reference (the
//! supervisor holds another), so no accept queue is dropped here; while the gate is shut no
//! listener is watched, so a full queue wakes no worker; watching it again reports connections in
//! it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::config::LIMIT_PAUSE;
use crate::sys::socket::{AcceptFailure, Socket};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::PauseCause;

/// Whether connections may be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They are accepted.
    Open,
    /// `max_connections` are open.
    AtLimit,
    /// `max_connections` were open and some have ended; accepting resumes when a tenth of them has
    /// ended, or then.
    Freed(Tick),
    /// The system ran out of a resource; accepting resumes when a connection ends, or then.
    Resting(Tick),
    /// The worker has stopped accepting for good.
    Ended,
}

impl Gate {
    /// Returns the number of open connections at which accepting resumes after the limit `max`: a
    /// tenth less, so that a server at its limit does not pause and resume with every connection.
    #[must_use]
    pub const fn resume_at(max: u32) -> u32 {
        max - max.div_ceil(10)
    }

    /// Returns the gate after a connection ended at `now` and `open` are left.
    #[must_use]
    pub fn after_close(self, open: u32, max: u32, now: Tick) -> Self {
        match self {
            Self::AtLimit if open >= max => Self::AtLimit,
            Self::AtLimit if open > Self::resume_at(max) => Self::Freed(now + LIMIT_PAUSE),
            Self::Freed(until) if open > Self::resume_at(max) => Self::Freed(until),
            Self::AtLimit | Self::Freed(_) | Self::Resting(_) | Self::Open => Self::Open,
            Self::Ended => Self::Ended,
        }
    }

    /// Returns the gate at `now`, with `open` connections open.
    #[must_use]
    pub fn at(self, open: u32, max: u32, now: Tick) -> Self {
        match self {
            Self::Freed(until) if until <= now && open >= max => Self::AtLimit,
            Self::Freed(until) | Self::Resting(until) if until <= now => Self::Open,
            other => other,
        }
    }

    /// Returns when the gate opens without a close.
    #[must_use]
    pub const fn opens_at(self) -> Option<Tick> {
        match self {
            Self::Freed(until) | Self::Resting(until) => Some(until),
            Self::Open | Self::AtLimit | Self::Ended => None,
        }
    }
}

/// Returns the pause cause of a failure that shuts the gate; `None` for other failures.
#[must_use]
pub const fn pause_cause(failure: AcceptFailure) -> Option<PauseCause> {
    match failure {
        AcceptFailure::Empty | AcceptFailure::ThisOne | AcceptFailure::Listener(_) => None,
        AcceptFailure::ProcessDescriptors => Some(PauseCause::ProcessDescriptors),
        AcceptFailure::SystemDescriptors => Some(PauseCause::SystemDescriptors),
        AcceptFailure::Memory => Some(PauseCause::Memory),
        AcceptFailure::Other(_) => Some(PauseCause::AcceptError),
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
    /// It no longer listens, and is never watched again.
    lost: bool,
}

impl Acceptor {
    /// Wraps a bound, listening, non-blocking socket of slot `owner`; `proxied`: whether its
    /// connections begin with a PROXY header.
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
            lost: false,
        }
    }

    /// Returns whether readiness reported for `token` is this listener's.
    #[must_use]
    pub fn has(&self, token: Token) -> bool {
        self.token == token
    }

    /// Watches the queue, or stops watching it. Connections in it when watching begins are
    /// reported.
    ///
    /// # Errors
    /// What `epoll_ctl` returned.
    pub fn watch(&mut self, registry: &Registry, on: bool) -> io::Result<()> {
        if on == self.watched || (on && self.lost) {
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

    /// Marks the queue as ready, whatever was reported.
    pub fn mark_ready(&mut self) {
        self.ready = !self.lost;
    }

    /// Stops watching the queue for good: the socket no longer listens.
    ///
    /// # Errors
    /// What `epoll_ctl` returned.
    pub fn retire(&mut self, registry: &Registry) -> io::Result<()> {
        self.lost = true;
        self.ready = false;
        self.watch(registry, false)
    }

    /// Accepts one connection, non-blocking and close-on-exec from birth.
    ///
    /// # Errors
    /// The failure, classified.
    pub fn accept(&mut self) -> Result<(Socket, SocketAddr), AcceptFailure> {
        match self.listener.accept() {
            Ok((stream, peer)) => Ok((Socket::adopt(stream.into()), canonical(peer))),
            Err(error) => Err(AcceptFailure::from_error(&error)),
        }
    }

    /// Ends a watch that a dead process may have begun.
    pub fn forget_watch(&self, registry: &Registry) {
        let number = self.number();
        // Fails if there is none.
        let _ = registry.deregister(&mut SourceFd(&number));
    }

    /// Returns the address that it is bound to.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Returns the descriptor, to be sent.
    #[must_use]
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Returns the descriptor's number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.listener.as_raw_fd()
    }
}

/// Maps an IPv4 client of a dual-stack listener to its IPv4 address.
pub(super) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => (v4, v6.port()).into(),
            None => peer,
        },
        SocketAddr::V4(_) => peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_client_has_one_address_form() {
        let named = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(named("[::ffff:192.0.2.1]:7"), "192.0.2.1:7");
        assert_eq!(named("192.0.2.1:7"), "192.0.2.1:7");
        assert_eq!(named("[fe80::1%3]:7"), "[fe80::1%3]:7");
    }

    #[test]
    fn limit_has_hysteresis_and_a_timeout() {
        let (max, at) = (100, Tick::from_millis);
        let mut gate = Gate::AtLimit;
        assert_eq!(gate.after_close(100, max, at(7)), Gate::AtLimit);
        for open in (91..100).rev() {
            gate = gate.after_close(open, max, at(1000 - u64::from(open)));
            assert_eq!(gate, Gate::Freed(at(901) + LIMIT_PAUSE), "at {open}");
        }
        assert_eq!(gate.after_close(90, max, at(950)), Gate::Open);
        let until = gate.opens_at().unwrap();
        assert_eq!(gate.at(91, max, at(950)), gate);
        assert_eq!(gate.at(91, max, until), Gate::Open);
        assert_eq!(gate.at(100, max, until), Gate::AtLimit, "taken since");
        assert_eq!(
            Gate::resume_at(1),
            0,
            "a limit of one resumes when that one ends"
        );
    }

    #[test]
    fn pause_ends_by_time_or_close() {
        let at = Tick::from_millis;
        let rest = Gate::Resting(at(50));
        assert_eq!(rest.at(0, 10, at(49)), rest);
        assert_eq!(rest.at(0, 10, at(50)), Gate::Open);
        assert_eq!(rest.after_close(10, 10, at(1)), Gate::Open);
        assert_eq!(Gate::Ended.after_close(0, 10, at(1)), Gate::Ended);
        assert_eq!(Gate::Ended.at(0, 10, at(99)), Gate::Ended);
    }
}
