//! Connects workers, and reads their memories.
//!
//! Invariant: both ends of a handover's socket pair leave this process with the messages that carry
//! them, so that each worker detects when the other closes its end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use socket2::SockRef;

use crate::channel::packets::Packets;
use crate::config::{HANDOVER_SOCKET_BYTES, REBALANCE_BYTES_PER_CALL};
use crate::fault;
use crate::handover::{HandoverEnd, Part};
use crate::log::event;
use crate::memory::{self, Moves};
use crate::supervisor::machine::{Event, Load, Progress};
use crate::wire::{self, ToWorker};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;

use super::Fleet;
use super::children::Child;

impl Fleet {
    /// Gives a worker duplicates of the listeners of another slot.
    pub(crate) fn lend(&mut self, slot: SlotId, to: WorkerId) {
        if let Err(error) = self.send_listeners(slot, &[to]) {
            event!(listener_not_lent, to_slot = to.slot.0, to_generation = to.generation.0, %error);
        }
    }

    /// Starts the migration of all connections of `from` to `to`.
    pub(crate) fn hand_over(&mut self, from: WorkerId, to: WorkerId, last: bool) {
        let left = self.open_connections(from);
        let part = None;
        if let Err(cause) = self.connect(from, wire::HandOver { to, last, part }, left) {
            self.send(to, ToWorker::Serve, &[]);
            self.machine(Event::HandedOver {
                worker: from,
                moved: 0,
                left,
                end: HandoverEnd::Refused { cause },
            });
        }
    }

    /// Starts the migration of a part of the connections of `from` to `to`; both continue to serve.
    pub(crate) fn rebalance(&mut self, from: WorkerId, to: WorkerId, part: Part) {
        let expected = part.of(self.open_connections(from));
        let (last, part) = (false, Some(part));
        if let Err(cause) = self.connect(from, wire::HandOver { to, last, part }, expected) {
            self.machine(Event::Rebalanced {
                worker: from,
                moved: 0,
                end: HandoverEnd::Refused { cause },
            });
        }
    }

    /// Connects two workers. The receiver is sent its message first, so that it is ready when the
    /// first connection arrives.
    ///
    /// # Errors
    /// There is no socket pair: nothing moves, and no connection is closed.
    fn connect(
        &mut self,
        from: WorkerId,
        hand_over: wire::HandOver,
        expected: u32,
    ) -> Result<(), String> {
        let pair = Packets::pair();
        let (near, far) = pair.map_err(|error| format!("cannot create a socket pair: {error}"))?;
        // Fails only for a descriptor that is not a socket.
        let _ = SockRef::from(&near).set_send_buffer_size(HANDOVER_SOCKET_BYTES);
        let take_over = ToWorker::TakeOver(wire::TakeOver { from, expected });
        self.send(hand_over.to, take_over, &[far.as_fd()]);
        fault::point("supervisor.handover_half_ordered");
        self.send(from, ToWorker::HandOver(hand_over), &[near.as_fd()]);
        fault::point("supervisor.handover_ordered");
        Ok(())
    }

    /// Sends workers duplicates of the listeners of a slot.
    ///
    /// # Errors
    /// A listener cannot be duplicated.
    pub(super) fn send_listeners(&mut self, slot: SlotId, to: &[WorkerId]) -> io::Result<()> {
        let listeners = self.slots[slot.index()].listeners().iter();
        let duplicates = listeners.map(OwnedFd::try_clone);
        let duplicates = duplicates.collect::<io::Result<Vec<_>>>()?;
        let borrowed: Vec<_> = duplicates.iter().map(OwnedFd::as_fd).collect();
        for worker in to {
            self.send(*worker, ToWorker::Lend { slot }, &borrowed);
        }
        Ok(())
    }

    /// Returns each worker's load.
    ///
    /// Calls instead of CPU time: nearly all of a worker's cost is system calls on its connections,
    /// and a worker that busy-polls would always appear busy.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let load = |child: &Child| {
            let count = |counter| memory::counter(&child.memory, counter);
            let bytes = count(Counter::BytesIn).saturating_add(count(Counter::BytesOut));
            let calls = [
                count(Counter::Reads),
                count(Counter::Writes),
                bytes / REBALANCE_BYTES_PER_CALL,
            ];
            Load {
                worker: child.worker,
                calls: calls.into_iter().fold(0, u64::saturating_add),
                turns: count(Counter::Turns),
            }
        };
        self.children().map(load).collect()
    }

    /// Returns the number of turns of a worker's loop; `None` during a rescue, which has a deadline
    /// of its own.
    pub(crate) fn turns(&self, worker: WorkerId) -> Option<u64> {
        let child = self.child(worker)?;
        if child.life.pending.is_some() {
            return None;
        }
        Some(memory::counter(&child.memory, Counter::Turns))
    }

    /// Returns the progress of a handover, as its two sides count it.
    pub(crate) fn progress(&self, from: WorkerId, to: WorkerId) -> Progress {
        let of = |worker| {
            let child = self.child(worker);
            child.map_or_else(Moves::default, |child| memory::moves(&child.memory))
        };
        let Moves { sent, settled, .. } = of(from);
        Progress {
            sent,
            settled,
            answered: of(to).answered,
        }
    }
}
