//! The event loop of a worker's next life: rebuilt from the working memory, over the epoll instance
//! of the dead process.
//!
//! That instance has kept every registration, and has reported everything but what the dead process
//! had received and not served. Watching a descriptor again reports its readiness again.
//!
//! Invariants: nothing of the dead process's event loop is used but its epoll instance, its memory
//! and its limits, because it is a copy of some earlier time; nothing of it is dropped, because it
//! owned descriptors whose numbers may be others' by now; every connection is counted for its source
//! and has its deadline before the first turn.
//!
//! It must not decide what is owed: `memory::rescue` has.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use mio::Interest;

use super::accept::{Acceptor, Gate, canonical};
use super::{CONTROL, Reactor, pack_token};
use crate::config::{Config, FD_RESERVE, LISTENERS_MAX};
use crate::log::event;
use crate::memory::Memory;
use crate::memory::layout::{Flags, State};
use crate::memory::life::Listener;
use crate::memory::rescue::{Counters, Kernel};
use crate::sys::fd;
use crate::sys::socket::{self, Socket};
use crate::sys::tcp;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::CloseReason;

/// The descriptors of this process, as a repair uses them.
#[derive(Debug)]
pub struct Descriptors;

impl Kernel for Descriptors {
    fn counters(&mut self, fd: u32) -> Result<Counters, &'static str> {
        socket::lend(&[fd], |fds| tcp::counters(fds[0]))
    }

    fn close(&mut self, fd: u32, reset: bool) {
        let socket = Socket::numbered(fd);
        if reset {
            socket.reset();
        } else {
            socket.close();
        }
    }
}

impl Reactor {
    /// Returns the working memory, to be repaired.
    pub const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Returns the event loop for the repaired memory, whose next connection has a generation above
    /// `last_generation`. It accepts, but has no listeners yet.
    #[must_use]
    pub fn continued(self, config: &Config, last_generation: u32) -> Self {
        let Self {
            poll,
            memory,
            max_connections,
            acceptors,
            outgoing,
            incoming,
            ..
        } = self;
        mem::forget((acceptors, outgoing, incoming));
        let mut reactor = Self::over(poll, memory, config, max_connections);
        reactor.last_generation = last_generation;
        let departing: Vec<u32> = reactor.memory.departing().collect();
        for fd in departing {
            reactor.open += 1;
            reactor.count_source(fd);
        }
        for fd in reactor.local_connections() {
            reactor.open += 1;
            let state = reactor.memory.record(fd).state();
            if matches!(state, State::LingeringIdle | State::LingeringStop) {
                // The dead process may not have come to it; it may be done twice.
                let _ = Socket::numbered(fd).end_output();
            }
            reactor.count_source(fd);
            reactor.resume_connection(fd);
        }
        reactor.resume_handovers();
        reactor
    }

    /// Accepts from the listeners of slot `own` in the memory, and closes the others, which
    /// siblings had lent.
    pub fn adopt_listeners(&mut self, own: SlotId) {
        let listeners: Vec<Listener> = self.memory.listeners().collect();
        for Listener { fd, owner, proxied } in listeners {
            if self
                .acceptors
                .iter()
                .any(|it| it.number().cast_unsigned() == fd)
            {
                continue; // Listed twice.
            }
            let Some(listener) = fd::inherited_listener(fd) else {
                // The entry is wrong, or the listener was about to be closed.
                self.memory.clear_listener(fd);
                continue;
            };
            let token = self.next_token();
            let acceptor = Acceptor::new(owner, listener, token, proxied);
            // The dead process may have watched it or not.
            acceptor.forget_watch(self.poll.registry());
            self.acceptors.push(acceptor);
        }
        if self.gate == Gate::Ended {
            return self.drop_listeners();
        }
        self.release_lent(own);
        let is_accepting = self.is_accepting();
        self.update_watches(!is_accepting);
        self.pause_at_limit();
    }

    /// Admits or refuses the connection that the dead process had accepted and not recorded, if
    /// there is one: it was about to record it, so there is at most one, under the lowest number
    /// that was free.
    pub fn admit_unlisted(&mut self) {
        let numbers = self.memory.occupied().last().map_or(0, |last| last + 1);
        let private = FD_RESERVE + LISTENERS_MAX as u32;
        let numbers = numbers.saturating_add(private);
        for fd in 0..numbers.min(self.memory.layout().descriptors) {
            if self.memory.record(fd).state() == State::Free
                && socket::lend(&[fd], |fds| tcp::is_connection(fds[0]))
            {
                self.admit_found(fd);
            }
        }
        self.memory.end_accept();
    }

    fn admit_found(&mut self, fd: u32) {
        let socket = Socket::numbered(fd);
        let Some(peer) = socket.peer() else {
            // It has ended, so nobody waits for an answer.
            return socket.close();
        };
        if self.is_proxied(socket) {
            self.admit_proxy(socket, canonical(peer));
        } else {
            self.admit(socket, canonical(peer));
        }
    }

    /// Returns whether the listener that `socket` was accepted from requires a PROXY header.
    fn is_proxied(&self, socket: Socket) -> bool {
        let Some(local) = socket.local() else {
            return false;
        };
        let accepts = |acceptor: &&Acceptor| {
            let address = acceptor.address();
            address.is_some_and(|bound| bound.port() == local.port() && covers(bound, local))
        };
        let matching = self.acceptors.iter().filter(accepts);
        // The most specific address accepts.
        let exact = |acceptor: &&Acceptor| {
            acceptor
                .address()
                .is_some_and(|it| !it.ip().is_unspecified())
        };
        matching
            .max_by_key(exact)
            .is_some_and(|acceptor| acceptor.proxied)
    }

    /// Watches the worker's channel again.
    ///
    /// # Errors
    /// What `epoll_ctl` returned.
    pub fn watch_control_again(&self, channel: &impl AsFd) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let number = channel.as_fd().as_raw_fd();
        socket::watch_again(number, self.poll.registry(), CONTROL, interest)
    }

    /// Returns the connections to be watched again.
    #[must_use]
    pub fn connections_to_rearm(&self) -> Vec<u32> {
        self.local_connections()
    }

    /// Watches those of `batch` again that are still open.
    pub fn rearm(&mut self, batch: &[u32]) {
        for &fd in batch {
            let record = self.memory.record(fd);
            let gone = matches!(record.state(), State::Free | State::Closing | State::Handed);
            if gone || record.flags().has(Flags::MOVING) {
                continue;
            }
            let token = pack_token(fd, record.generation());
            if let Err(error) = Socket::numbered(fd).watch_again(self.poll.registry(), token) {
                event!(connection_watch_failed, %error, fd);
                self.close(fd, CloseReason::SystemError);
            }
        }
    }
}

/// Returns whether a socket bound to `bound` accepts connections to `local`.
fn covers(bound: SocketAddr, local: SocketAddr) -> bool {
    bound.ip().is_unspecified() || bound.ip().to_canonical() == local.ip().to_canonical()
}
