//! Admits or refuses accepted connections as `admission` decides, and reports every connection that
//! begins or ends to `admission`.
//!
//! Invariants: `admission` counts exactly the open connections, however each began (accepted or
//! migrated here) and ended (closed or migrated away); a refused connection is counted by cause and
//! reset, so that it leaves nothing in the kernel.
//!
//! It must not decide which clients are admitted.

use std::net::SocketAddr;

use super::lines::PeerLine;
use super::{Reactor, pack_token};
use crate::admission::Decision;
use crate::log::event;
use crate::memory::layout::State;
use crate::sys::socket::Socket;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};

impl Reactor {
    /// Admits or refuses an accepted connection.
    pub(super) fn admit(&mut self, socket: Socket, peer: SocketAddr) {
        let fd = socket.number();
        if fd >= self.memory.layout().descriptors {
            // The descriptor limit was raised since the start: no record exists for this number.
            return self.refuse_socket(socket, peer, RefusalCause::SystemError);
        }
        if let Some(admission) = &mut self.admission
            && let Decision::Refuse(cause) = admission.decide(peer.ip(), self.now)
        {
            return self.refuse_socket(socket, peer, cause);
        }
        self.open_connection(socket, peer, State::Open);
    }

    /// Admits or refuses an accepted connection that is to begin with a PROXY header: a trusted
    /// proxy gets a place, and the client that its header names is admitted or refused later.
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

    /// Records a connection in `state` and watches it.
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
                let connection = socket.cookie();
                event!(connection_refused, connection, %peer, %error, reason = cause, refused);
            }
            return self.close(fd, CloseReason::SystemError);
        }
        event!(connection_opened, connection = socket.cookie(), %peer, fd);
        self.pause_at_limit();
        self.arm(fd);
    }

    fn refuse_socket(&mut self, socket: Socket, peer: SocketAddr, cause: RefusalCause) {
        self.memory.count(Counter::Refused(cause), 1);
        if let Some(refused) = self.lines.note(PeerLine::Refused(cause), self.now) {
            event!(connection_refused, %peer, reason = cause.name(), refused);
        }
        // A plain close would keep TIME_WAIT here for a minute, and answer the peer's next bytes.
        socket.reset();
    }

    /// Counts an open connection for its source, once the source is known.
    pub(super) fn count_source(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        if let Some(admission) = &mut self.admission
            && record.state() != State::AwaitingHeader
            && !admission.opened(fd, record.peer().ip())
        {
            self.memory.count(Counter::Untracked, 1);
        }
    }

    /// Ends the counting, while the record still has the source.
    pub(super) fn uncount_source(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        if let Some(admission) = &mut self.admission
            && record.state() != State::AwaitingHeader
        {
            admission.closed(fd, record.peer().ip(), self.now);
        }
    }
}
