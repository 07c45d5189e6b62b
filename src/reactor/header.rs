//! Reads the PROXY header of a connection that awaits one, and admits or refuses the client that it
//! names.
//!
//! The header is peeked at until all of it has arrived; then exactly its bytes are received. So it
//! stays in the kernel until then, and a connection in that state migrates like any other.
//!
//! Invariants: a connection that awaits its header is not counted for any source; it leaves that
//! state once, to be served, to linger or to be closed; each report causes one peek, since the next
//! bytes raise another report.
//!
//! It must not parse headers (`proxy_header` does) nor decide which clients are admitted
//! (`admission` does).

use std::io;
use std::net::SocketAddr;

use super::Reactor;
use super::lines::PeerLine;
use crate::admission::Decision;
use crate::connection::{self, reason_of};
use crate::log::event;
use crate::memory::layout::Flags;
use crate::sys::socket::Socket;
use uppercased_ctl::limits::PROXY_HEADER_MAX_BYTES;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};
use uppercased_ctl::proxy_header::{self, Error, Header};

impl Reactor {
    /// Peeks at the header of `fd` and acts on it.
    pub(super) fn read_header(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        let flags = record.flags();
        let into = &mut record.scratch()[..PROXY_HEADER_MAX_BYTES];
        let seen = match Socket::numbered(fd).peek(into) {
            // A port check sends nothing; it is not an error.
            Ok(0) => return self.close(fd, CloseReason::PeerClosed),
            Ok(count) => proxy_header::decode(&into[..count]),
            // The bytes are still there.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.enqueue(fd),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => return self.close(fd, reason_of(&error)),
        };
        match seen {
            Ok(Some(header)) => self.accept_header(fd, header),
            Ok(None) => self.await_header(fd, flags),
            Err(error) => self.refuse_header(fd, cause_of(error), Some(error)),
        }
    }

    /// Waits for the rest of the header, unless no more can arrive.
    fn await_header(&mut self, fd: u32, flags: Flags) {
        // A stopping worker peeks without a report.
        if flags.has(Flags::READ_DRY) && !flags.has(Flags::FINISH) {
            // An end or an error was reported, so no more arrives; or urgent data, which no header
            // has.
            return self.refuse_header(fd, RefusalCause::ProxyMissing, None);
        }
        self.memory
            .record_mut(fd)
            .set_flags(flags.without(Flags::READABLE));
        if connection::is_due(&self.memory.record(fd), &self.rules, self.now) {
            return self.expire_one(fd);
        }
        self.arm(fd);
    }

    /// Receives a complete header and admits or refuses its client.
    fn accept_header(&mut self, fd: u32, header: Header) {
        let via = self.memory.record(fd).peer();
        if let Some(client) = header.source {
            // A header without a client is the proxy's own connection, which `proxy_trust` admits.
            if let Some(admission) = &mut self.admission
                && let Decision::Refuse(cause) = admission.decide(client.ip(), self.now)
            {
                return self.refuse_client(fd, client, cause);
            }
            self.memory.record_mut(fd).set_client(client);
        }
        let mut record = self.memory.record_mut(fd);
        let into = &mut record.scratch()[..header.length];
        match Socket::numbered(fd).recv(into) {
            // Its length is bounded by `PROXY_HEADER_MAX_BYTES`.
            Ok(count) if count == header.length => record.end_header(count as u16, self.now),
            // It was there at the peek, and only this process receives from the socket.
            Ok(_) => return self.close(fd, CloseReason::SystemError),
            // The bytes are still there.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.enqueue(fd),
            Err(error) => return self.close(fd, reason_of(&error)),
        }
        self.count_source(fd);
        let peer = self.memory.record(fd).peer();
        let connection = Socket::numbered(fd);
        event!(proxy_header_accepted, connection = connection.cookie(), %peer, %via, fd);
        // The client's first bytes may have arrived with the header, without a report of their own.
        self.drive(fd);
    }

    /// Refuses a connection for its header, or for the lack of one.
    pub(super) fn refuse_header(&mut self, fd: u32, cause: RefusalCause, why: Option<Error>) {
        let peer = self.memory.record(fd).peer();
        self.memory.count(Counter::Refused(cause), 1);
        if let Some(refused) = self.lines.note(PeerLine::Refused(cause), self.now) {
            let why = why.map(tracing::field::display);
            event!(connection_refused, %peer, reason = cause.name(), error = why, refused);
        }
        self.close(fd, CloseReason::Refused);
    }

    /// Refuses the client that a header names.
    fn refuse_client(&mut self, fd: u32, client: SocketAddr, cause: RefusalCause) {
        let via = self.memory.record(fd).peer();
        self.memory.count(Counter::Refused(cause), 1);
        if let Some(refused) = self.lines.note(PeerLine::Refused(cause), self.now) {
            event!(connection_refused, peer = %client, %via, reason = cause.name(), refused);
        }
        self.close(fd, CloseReason::Refused);
    }

    /// Returns the proxy of connection `fd`, for a log line that is about to be written; `None`
    /// without a proxy. The record has the client's address only; the kernel has the proxy's.
    pub(super) fn proxy_of(&self, fd: u32) -> Option<SocketAddr> {
        if self.proxies.is_none() || !tracing::enabled!(tracing::Level::DEBUG) {
            return None;
        }
        let mut via = Socket::numbered(fd).peer()?;
        via.set_ip(via.ip().to_canonical());
        let peer = self.memory.record(fd).peer();
        Some(via).filter(|via| (via.ip(), via.port()) != (peer.ip(), peer.port()))
    }
}

/// Returns the refusal cause of a header that is not valid.
const fn cause_of(error: Error) -> RefusalCause {
    match error {
        Error::Missing => RefusalCause::ProxyMissing,
        Error::Malformed(_) => RefusalCause::ProxyMalformed,
        Error::TooLong { .. } => RefusalCause::ProxyTooLong,
    }
}
