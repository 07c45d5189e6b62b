//! Connections that migrate to another worker or from it: executes the decisions of `handover`.
//!
//! Invariants: a migrating connection is marked as moving in its record, is neither watched nor
//! queued, and has no deadline, so nothing here touches it; the time that a turn spends on batches
//! is bounded (`HANDOVER_TURN`), so that serving continues between them.
//!
//! It must not know workers and messages: the worker decides which connections migrate to which
//! worker, and what follows.

mod incoming;
mod outgoing;
mod part;
mod resumed;
pub(super) mod state;

use mio::Token;

use super::Reactor;
use crate::handover::HandedOver;
use crate::memory::layout::Flags;
use crate::sys::socket::Socket;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{CloseReason, Counter};

impl Reactor {
    /// Returns whether connections may still migrate: the process must not exit yet.
    #[must_use]
    pub const fn is_moving(&self) -> bool {
        self.outgoing.is_some() || self.incoming.is_some()
    }

    /// Returns whether connections may still migrate from here.
    #[must_use]
    pub const fn is_handing_over(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Returns whether connections may still migrate to here.
    #[must_use]
    pub const fn is_taking_over(&self) -> bool {
        self.incoming.is_some()
    }

    /// Returns the result of [`Reactor::hand_over`] or [`Reactor::hand_over_part`] once, when it is
    /// over; `None` if a stop ended it.
    pub const fn handed_over(&mut self) -> Option<HandedOver> {
        self.handed_over.take()
    }

    /// Notes that the link watched as `token` may have packets.
    pub(super) fn note_link_ready(&mut self, token: Token) {
        let outgoing = self.outgoing.as_mut().and_then(|one| one.link.as_mut());
        let incoming = self.incoming.as_mut().map(|one| &mut one.link);
        let mut links = outgoing.into_iter().chain(incoming);
        if let Some(link) = links.find(|link| link.token == token) {
            link.ready = true;
        }
    }

    /// Returns when migration continues without a report, if it does.
    pub(super) fn migration_due(&self) -> Option<Tick> {
        [self.counts_until, self.batches_due()]
            .into_iter()
            .flatten()
            .min()
    }

    fn batches_due(&self) -> Option<Tick> {
        let incoming = self.incoming.as_ref().is_some_and(|one| one.link.ready);
        let Some(outgoing) = &self.outgoing else {
            return incoming.then_some(self.now);
        };
        let waiting = self.may_send(outgoing);
        let ready = outgoing.link.as_ref().is_some_and(|link| link.ready);
        if incoming || ready || (waiting && outgoing.machine.has_room()) {
            return Some(self.now);
        }
        outgoing.retry
    }

    /// Closes migrating connections at the end of a stop's time, without a reset: the other worker
    /// may have them.
    pub(super) fn abandon_migration(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            self.close_incoming(incoming);
        }
        self.counts_until = None;
        self.expected = 0;
        let Some(mut outgoing) = self.outgoing.take() else {
            return;
        };
        for batch in std::mem::take(&mut outgoing.batches) {
            for (_, fd) in batch.connections {
                self.memory
                    .count(Counter::Closed(CloseReason::DrainTimeout), 1);
                self.close_migrated(fd);
            }
        }
        self.close_outgoing(&mut outgoing);
    }

    /// Closes a descriptor whose connection may belong to another worker.
    fn close_migrated(&mut self, fd: u32) {
        self.uncount_source(fd);
        let mut record = self.memory.record_mut(fd);
        record.end_handover();
        Socket::numbered(fd).close();
        record.end_close();
        self.open -= 1;
    }

    /// Resumes a connection that was migrating.
    pub(super) fn resume_connection(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        if self.finishing {
            record.finish();
        }
        if record.flags().has(Flags::READABLE) {
            self.enqueue(fd);
        }
        self.arm(fd);
    }
}
