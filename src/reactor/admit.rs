//! Taking a connection in, or refusing it: carries out what `admission` decides, and tells it of
//! every connection that comes and goes.
//!
//! Invariants: whatever is counted as open has been told to `admission`, which is told again when
//! it is so no more, whether it was admitted here or has come from another worker, and whether it
//! was closed or went to one; what is refused is counted by its cause and closed by a reset, so
//! that it leaves nothing in the kernel either.
//!
//! It must not decide who is admitted.

use std::net::SocketAddr;

use super::lines::PeerLine;
use super::{Reactor, pack_token};
use crate::admission::Verdict;
use crate::memory::layout::State;
use crate::sys::socket::Socket;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};

impl Reactor {
    /// Gives a connection that was taken from an accept queue its place in the loop, or refuses it.
    pub(super) fn admit(&mut self, socket: Socket, peer: SocketAddr) {
        let fd = socket.number();
        if fd >= self.memory.layout().descriptors {
            // The limit was raised behind the worker's back; there is no record for this number.
            return self.refuse_socket(socket, peer, RefusalCause::SystemError);
        }
        if let Some(admission) = &mut self.admission
            && let Verdict::Refuse(cause) = admission.decide(peer.ip(), self.now)
        {
            return self.refuse_socket(socket, peer, cause);
        }
        self.open_connection(socket, peer, State::Open);
    }

    /// The same for one that is to begin with a PROXY header: who may send one gets a place, and is
    /// admitted or refused as the client that the header names.
    pub(super) fn admit_proxy(&mut self, socket: Socket, peer: SocketAddr) {
        if socket.number() >= self.memory.layout().descriptors {
            return self.refuse_socket(socket, peer, RefusalCause::SystemError);
        }
        let address = peer.ip().to_canonical();
        let trusted = self.proxies.as_ref();
        if !trusted.is_some_and(|trusted| trusted.contain(address)) {
            return self.refuse_socket(socket, peer, RefusalCause::ProxyUntrusted);
        }
        self.open_connection(socket, peer, State::AwaitingHeader);
    }

    /// Gives a connection its record, in `state`, and its place in the loop.
    fn open_connection(&mut self, socket: Socket, peer: SocketAddr, state: State) {
        let fd = socket.number();
        let generation = self.next_generation();
        self.memory.count(Counter::Accepted, 1);
        self.memory.open(fd, generation, peer, self.now, state);
        self.open += 1;
        self.count_source(fd);
        if let Err(error) = socket.watch(self.poll.registry(), pack_token(fd, generation)) {
            let cause = RefusalCause::SystemError;
            self.memory.count(Counter::Refused(cause), 1);
            if let Some(refused) = self.lines.note(PeerLine::Refused(cause), self.now) {
                let cause = cause.name();
                tracing::warn!(%peer, %error, cause, refused, "connection refused");
            }
            return self.close(fd, CloseReason::SystemError);
        }
        tracing::debug!(%peer, fd, "open");
        self.pause_at_limit();
        self.arm(fd);
    }

    fn refuse_socket(&mut self, socket: Socket, peer: SocketAddr, cause: RefusalCause) {
        self.memory.count(Counter::Refused(cause), 1);
        if let Some(refused) = self.lines.note(PeerLine::Refused(cause), self.now) {
            tracing::warn!(%peer, cause = cause.name(), refused, "connection refused");
        }
        // Without it the end would be remembered here for a minute, and the peer's next words
        // answered.
        socket.reset();
    }

    /// Counts an open connection for its source, once that is known.
    pub(super) fn count_source(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        if let Some(admission) = &mut self.admission
            && record.state() != State::AwaitingHeader
            && !admission.opened(fd, record.peer().ip())
        {
            self.memory.count(Counter::Untracked, 1);
        }
    }

    /// The opposite; while its record still says whose it was.
    pub(super) fn uncount_source(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        if let Some(admission) = &mut self.admission
            && record.state() != State::AwaitingHeader
        {
            admission.closed(fd, record.peer().ip(), self.now);
        }
    }
}
