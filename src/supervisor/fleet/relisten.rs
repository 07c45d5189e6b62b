//! Binds sockets again in place of lost listeners, as after `ss -K`.
//!
//! A worker reports a loss; the supervisor checks its own duplicates, so a false report changes
//! nothing. The new socket joins the group as its last one: the accept queue of the old one is
//! lost, established connections are not affected.
//!
//! Invariants: a worker is sent only the listeners of its own slot, or of one that it was lent; a
//! failed bind is retried until it succeeds or the worker has exited.

use crate::config::REBIND_RETRY;
use crate::fault;
use crate::listener;
use crate::log::event;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{SlotId, WorkerId};

use super::resources::Rebind;
use super::{Event, Fleet};

impl Fleet {
    /// Rebinds a listener of `slot` that a worker has reported as lost. `is_lent` returns whether a
    /// slot's queue is lent to a worker.
    pub(crate) fn listener_lost(
        &mut self,
        worker: WorkerId,
        slot: SlotId,
        now: Tick,
        is_lent: impl Fn(SlotId, WorkerId) -> bool,
    ) {
        self.rebinds.push(Rebind {
            worker,
            slot,
            since: now,
        });
        self.rebind_at = Some(now);
        self.rebind_due(now, is_lent);
    }

    /// Rebinds lost listeners, if due, and sends them to the waiting workers.
    pub(super) fn rebind_due(&mut self, now: Tick, is_lent: impl Fn(SlotId, WorkerId) -> bool) {
        if self.rebind_at.is_none_or(|at| now < at) {
            return;
        }
        self.rebind_at = None;
        for rebind in std::mem::take(&mut self.rebinds) {
            let Rebind { worker, slot, .. } = rebind;
            let may_have = slot == worker.slot || is_lent(slot, worker);
            if !may_have || self.child(worker).is_none() || slot.index() >= self.slots.len() {
                continue;
            }
            let (addresses, config) = (&self.addresses, &self.releases.in_force().config);
            let bind = |index: usize| {
                fault::fail("relisten.bind").map_err(|error| error.to_string())?;
                let bound = listener::bind(&addresses[index], config);
                bound
                    .map_err(|error| error.to_string())
                    .map(|(socket, _)| socket)
            };
            let replaced = self.slots[slot.index()].replace_lost(addresses, bind);
            let sent = replaced.and_then(|()| {
                event!(
                    listener_rebound,
                    worker_slot = worker.slot.0,
                    worker_generation = worker.generation.0,
                    slot = slot.0
                );
                let receivers = self.receivers(rebind);
                let sent = self.send_listeners(slot, &receivers);
                sent.map_err(|error| error.to_string())
            });
            match sent {
                Ok(()) => self.events.push_back(Event::ListenersChanged(slot)),
                Err(error) => {
                    event!(
                        listener_rebind_failed,
                        worker_slot = worker.slot.0,
                        worker_generation = worker.generation.0,
                        slot = slot.0,
                        error
                    );
                    self.rebinds.push(rebind);
                    self.rebind_at = Some(now + REBIND_RETRY);
                }
            }
        }
    }

    /// Returns the time since which a listener of `slot` has been lost, if one has.
    pub(super) fn lost_since(&self, slot: SlotId) -> Option<Tick> {
        let lost = self.rebinds.iter().filter(|rebind| rebind.slot == slot);
        lost.map(|rebind| rebind.since).min()
    }

    /// Returns the worker that waits for new listeners, and its successors, which adopted the old
    /// ones.
    fn receivers(&self, rebind: Rebind) -> Vec<WorkerId> {
        let Rebind { worker, slot, .. } = rebind;
        let children = self.slots[slot.index()].children().iter();
        let follows = |it: &WorkerId| slot == worker.slot && it.generation > worker.generation;
        let followers = children.map(|child| child.worker).filter(follows);
        std::iter::once(worker).chain(followers).collect()
    }
}
