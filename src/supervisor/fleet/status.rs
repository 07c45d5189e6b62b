//! The status of a slot, from the kernel and from the counters of its workers, at no cost to them.

use std::os::fd::AsFd as _;

use nix::sys::stat::fstat;

use crate::sys::accept_queue::accept_queue;
use crate::sys::cpus;
use uppercased_ctl::clock::{Tick, millis};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::status::{AcceptQueueStatus, SlotStatus, Traffic};

use super::Fleet;
use super::totals::Totals;

impl Fleet {
    /// Returns the status of a slot whose active worker, if it exists, is `worker`.
    pub(crate) fn status_of(&self, worker: WorkerId, now: Tick) -> SlotStatus {
        let slot = worker.slot;
        let resources = self.slots.get(slot.index());
        let child = self.child(worker);
        let pid = self.pid_of(worker);
        SlotStatus {
            slot,
            pid,
            keeper_pid: self.keeper_of(worker),
            cpu: pid.and_then(cpus::only_cpu_of),
            sandbox: child.and_then(|child| child.sandbox.clone()),
            lost_listener_ms: self.lost_since(slot).map(|at| millis(now.since(at))),
            accept_queues: self.accept_queues(slot),
            // A slot that is added again has no resources before its worker is started.
            traffic: resources
                .map(|it| traffic(&it.totals()))
                .or_else(|| self.former.of(slot).map(traffic))
                .unwrap_or_default(),
            ..SlotStatus::default()
        }
    }

    /// Returns the status of slots that have left, from number `first` on.
    pub(crate) fn former_from(&self, first: usize) -> impl Iterator<Item = SlotStatus> + '_ {
        let former = self
            .former
            .slots()
            .filter(move |slot| slot.index() >= first);
        former.map(|slot| SlotStatus {
            slot,
            state: "gone".to_owned(),
            queue: "closed".to_owned(),
            traffic: self.former.of(slot).map(traffic).unwrap_or_default(),
            ..SlotStatus::default()
        })
    }

    /// Returns the process number of a worker.
    pub(crate) fn pid_of(&self, worker: WorkerId) -> Option<u32> {
        self.child(worker).map(|child| child.pid().unsigned_abs())
    }

    /// Reads the accept queues from the supervisor's duplicates, even if the slot's worker has
    /// stalled.
    fn accept_queues(&self, slot: SlotId) -> Vec<AcceptQueueStatus> {
        let listeners = self.slots.get(slot.index()).map(|it| it.listeners());
        let listeners = self.addresses.iter().zip(listeners.unwrap_or_default());
        let queue = listeners.filter_map(|(address, listener)| {
            let queue = accept_queue(listener.as_fd()).ok()?;
            Some(AcceptQueueStatus {
                address: address.to_string(),
                length: queue.length.into(),
                limit: queue.limit.into(),
                inode: fstat(listener).map_or(0, |about| about.st_ino),
            })
        });
        queue.collect()
    }
}

fn traffic(totals: &Totals) -> Traffic {
    Traffic::read(totals.open(), |counter: Counter| totals.count(counter))
}
