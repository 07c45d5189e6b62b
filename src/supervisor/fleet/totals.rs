//! The counters of a slot, over all its workers.
//!
//! A worker counts in its own working memory. When that memory is dropped, its counters are added
//! up here, so that a replacement resets nothing. Invariant: connections that a worker still had when
//! its memory is added are counted as lost with it, once; so "accepted and migrated in, less closed
//! and migrated out" remains the number of open ones. A worker may write any values: no sum of them
//! may crash the supervisor, and implausible ones are not added to the totals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::memory;
use crate::sys::shared::SharedMemory;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::metrics::{CloseReason, Counter};

/// A sum of counters, in the order of [`Counter::all`]. One written by a program with fewer
/// counters has zeroes for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Totals(Vec<u64>);

impl Totals {
    /// Adds the counters of a running worker, or of a memory that the next worker continues.
    pub(crate) fn add(&mut self, memory: &SharedMemory) {
        self.0.resize(Counter::COUNT.max(self.0.len()), 0);
        for counter in Counter::all() {
            add(
                &mut self.0[counter.cell()],
                memory::counter(memory, counter),
            );
        }
    }

    /// Adds the counters of a worker whose memory is dropped, and returns the connections that were
    /// lost with it. Adds nothing if they are implausible.
    pub(crate) fn close(&mut self, memory: &SharedMemory) -> u64 {
        if !memory::is_believable(memory) {
            return 0;
        }
        self.add(memory);
        let lost = memory::open_connections(memory);
        add(
            &mut self.0[Counter::Closed(CloseReason::WorkerDied).cell()],
            lost,
        );
        lost
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.resize(other.0.len().max(self.0.len()), 0);
        for (sum, more) in self.0.iter_mut().zip(&other.0) {
            add(sum, *more);
        }
    }

    /// Returns one counter.
    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.0.get(counter.cell()).copied().unwrap_or(0)
    }

    /// Returns the number of connections that were opened and not closed.
    pub(crate) fn open(&self) -> u64 {
        memory::open_by(|counter| self.count(counter))
    }
}

/// The counters of slots that have left, by number: a slot that is added again continues them. So a
/// slot's counters never decrease, and nothing is counted twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Former(BTreeMap<SlotId, Totals>);

impl Former {
    /// Stores the counters of a leaving slot.
    pub(crate) fn leave(&mut self, slot: SlotId, counted: &Totals) {
        self.0.entry(slot).or_default().merge(counted);
    }

    /// Returns the counters that a new slot continues.
    pub(crate) fn come_back(&mut self, slot: SlotId) -> Totals {
        self.0.remove(&slot).unwrap_or_default()
    }

    /// Returns one slot's counters.
    pub(crate) fn of(&self, slot: SlotId) -> Option<&Totals> {
        self.0.get(&slot)
    }

    /// Returns every slot that has left, in ascending order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.0.keys().copied()
    }

    /// Returns the sum of all.
    pub(crate) fn sum(&self) -> Totals {
        let mut sum = Totals::default();
        self.0.values().for_each(|counted| sum.merge(counted));
        sum
    }
}

const fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::memory::layout::{Layout, State};
    use uppercased_ctl::clock::Tick;

    #[test]
    fn connections_of_dead_worker_count_lost_once() {
        let layout = Layout {
            descriptors: 8,
            buffers: 1,
            buffer_bytes: 4096,
        };
        let mut worker = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
        worker.count(Counter::Accepted, 3);
        worker.count(Counter::MigratedIn, 1);
        worker.count(Counter::Closed(CloseReason::PeerClosed), 2);
        let peer = ([127, 0, 0, 1], 80).into();
        worker.open(5, 1, peer, Tick::ZERO, State::Open);
        let mut living = Totals::default();
        living.add(worker.shared());
        assert_eq!(living.open(), 2);

        let mut totals = Totals::default();
        assert_eq!(totals.close(worker.shared()), 2);
        assert_eq!(totals.open(), 0);
        assert_eq!(totals.count(Counter::Closed(CloseReason::WorkerDied)), 2);
        totals.merge(&living);
        assert_eq!(totals.count(Counter::Accepted), 6);
        assert_eq!(totals.open(), 2);

        // Implausible counters are harmless, and are added to no total.
        worker.count(Counter::Accepted, u64::MAX / 2);
        worker.count(Counter::BytesIn, u64::MAX);
        let mut liar = Totals::default();
        liar.add(worker.shared());
        liar.add(worker.shared());
        liar.merge(&liar.clone());
        assert_eq!((totals.close(worker.shared()), totals.open()), (0, 2));
        worker.count(Counter::Closed(CloseReason::PeerClosed), u64::MAX - 7);
        worker.count(Counter::Accepted, 1 << 40);
        assert_eq!((totals.close(worker.shared()), totals.open()), (0, 2));
        let older: Totals = serde_json::from_str("[1,2]").unwrap();
        assert_eq!((older.count(Counter::AcceptFailed), older.open()), (2, 1));
    }

    #[test]
    fn returned_slot_continues_its_totals() {
        let (one, two) = (SlotId(1), SlotId(2));
        let counted: Totals = serde_json::from_str("[3,4]").unwrap();
        let mut former = Former::default();
        former.leave(two, &counted);
        former.leave(one, &counted);
        assert_eq!(former.sum().count(Counter::Accepted), 6);
        let json = serde_json::to_string(&former).unwrap();
        assert_eq!(serde_json::from_str::<Former>(&json).unwrap(), former);
        assert_eq!(former.come_back(one), counted);
        assert_eq!(former.come_back(one), Totals::default());
        assert_eq!(former.slots().collect::<Vec<_>>(), [two]);
        assert_eq!(former.of(two), Some(&counted));
    }
}
