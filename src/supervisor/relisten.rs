//! Sockets in place of listeners that listen no more, as after `ss -K`.
//!
//! A worker reports one; what is really lost is found out here, on the supervisor's duplicates, so
//! a false report changes nothing. The new socket joins the group as its last one: the accept queue
//! of the old one is gone, established connections are not touched.
//!
//! Invariants: a worker is sent the listeners of its own slot, or of one that it was lent, only;
//! what fails is tried again until it succeeds or the worker is gone.

use super::Supervisor;
use super::machine::Queue;
use crate::clock::{self, Tick};
use crate::config::REBIND_RETRY;
use crate::identity::{SlotId, WorkerId};
use crate::listener;
use crate::wire::{Lend, Message};

impl Supervisor {
    /// A worker has found that a listener of `slot` listens no more.
    pub(super) fn listener_lost(&mut self, worker: WorkerId, slot: SlotId) {
        self.rebinds.push((worker, slot));
        let now = clock::now();
        self.rebind_at = Some(now);
        self.rebind_due(now);
    }

    /// Binds what is lost, if it is time, and tells the workers that wait for it.
    pub(super) fn rebind_due(&mut self, now: Tick) {
        if self.rebind_at.is_none_or(|at| now < at) {
            return;
        }
        self.rebind_at = None;
        for (worker, slot) in std::mem::take(&mut self.rebinds) {
            if !self.accepts_from(worker, slot) {
                continue;
            }
            let (addresses, config) = (&self.addresses, &self.releases.in_force().config);
            let bind = |index: usize| {
                let bound = listener::bind(&addresses[index], config);
                bound.map(|(socket, _)| socket)
            };
            match self.slots[slot.index()].replace_lost(bind) {
                Ok(()) => {
                    tracing::warn!(%worker, slot = slot.0, "listeners bound again");
                    self.send_listeners(worker, slot);
                }
                Err(error) => {
                    tracing::error!(%worker, slot = slot.0, %error, "listener not bound again");
                    self.rebinds.push((worker, slot));
                    self.rebind_at = Some(now + REBIND_RETRY);
                }
            }
        }
    }

    fn send_listeners(&mut self, worker: WorkerId, slot: SlotId) {
        let listeners = self.slots[slot.index()].listeners().iter();
        let copies: Result<Vec<_>, _> = listeners.map(|it| it.try_clone()).collect();
        match copies {
            Ok(copies) => {
                let borrowed: Vec<_> = copies.iter().map(std::os::fd::AsFd::as_fd).collect();
                self.say(worker, Message::Lend(Lend { slot }), &borrowed);
                self.store_listeners(slot);
            }
            Err(error) => {
                tracing::error!(%worker, slot = slot.0, %error, "listener not bound again");
                self.rebinds.push((worker, slot));
                self.rebind_at = Some(clock::now() + REBIND_RETRY);
            }
        }
    }

    /// Whether `worker` is there, and may have the listeners of `slot`.
    fn accepts_from(&self, worker: WorkerId, slot: SlotId) -> bool {
        let lent = |queue| matches!(queue, Queue::Lent { to, .. } if to == worker);
        self.child(worker).is_some()
            && (slot == worker.slot
                || self
                    .machine
                    .slots()
                    .any(|view| view.id == slot && lent(view.queue)))
            && slot.index() < self.slots.len()
    }
}
