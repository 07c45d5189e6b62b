//! Lends the queue of a slot without a worker to a sibling.
//!
//! A queue without an acceptor traps one in N new clients: they complete the handshake and get no
//! answer. So after `lend_after` a serving sibling accepts on it too.
//!
//! Invariants: a loan ends when the borrower stops serving or the slot's own worker is Ready,
//! whichever comes first; while any sibling serves, no queue waits longer than `lend_after`.

use std::time::Duration;

use super::slot::Slot;
use super::{Action, Machine, Notice, Queue, WorkerId};
use uppercased_ctl::clock::Tick;

impl Machine {
    /// Ends the loans of workers that no longer serve. Their queues are due at once, because the
    /// time counts from when their own worker stopped.
    pub(super) fn end_broken_loans(&mut self) {
        for index in 0..self.slots.len() {
            if let Queue::Lent { to, .. } = self.slots[index].queue
                && !self.serves(to)
            {
                self.slots[index].end_loan();
            }
        }
    }

    /// Lends every queue that has been unserved for `lend_after`.
    pub(super) fn lend_due(&mut self, now: Tick) {
        self.lend_unserved_for(self.policy.lend_after, now);
    }

    /// Lends every queue that has been unserved for `span` or longer.
    pub(super) fn lend_unserved_for(&mut self, span: Duration, now: Tick) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let Queue::Unserved { since } = slot.queue else {
                continue;
            };
            if now < since + span {
                continue;
            }
            if !self.lend(index, now) {
                return;
            }
        }
    }

    /// Lends an unserved queue; returns whether a sibling can borrow it.
    pub(super) fn lend(&mut self, index: usize, now: Tick) -> bool {
        // Each loan changes which worker has the fewest, so the choice is made again each time.
        let (Queue::Unserved { since }, Some(to)) = (self.slots[index].queue, self.borrower())
        else {
            return false;
        };
        let slot = &mut self.slots[index];
        slot.queue = Queue::Lent { since, to };
        let (slot, after) = (slot.id, now.since(since));
        self.actions.push_back(Action::Lend { slot, to });
        self.notice(Notice::Lent { slot, to, after });
        true
    }

    pub(super) fn serves(&self, worker: WorkerId) -> bool {
        let slot = self.slots.get(worker.slot.index());
        slot.is_some_and(|slot| slot.serving() == Some(worker))
    }

    /// Returns the next borrower: of the workers that serve, the one with fewest loans, then the
    /// lowest slot.
    pub(super) fn borrower(&self) -> Option<WorkerId> {
        let mut loans = vec![0_u32; self.slots.len()];
        for slot in &self.slots {
            if let Queue::Lent { to, .. } = slot.queue {
                loans[to.slot.index()] += 1;
            }
        }
        let serving = self.slots.iter().filter_map(Slot::serving);
        serving.min_by_key(|it| (loans[it.slot.index()], it.slot))
    }

    /// Returns the time at which the slot's queue is to be lent. Without a sibling there is none:
    /// the sibling's Ready then triggers the loan.
    pub(super) fn loan_due(&self, slot: &Slot, lendable: bool) -> Option<Tick> {
        let Queue::Unserved { since } = slot.queue else {
            return None;
        };
        lendable.then(|| since + self.policy.lend_after)
    }
}
