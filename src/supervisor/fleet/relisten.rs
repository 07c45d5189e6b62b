//! Sockets in place of listeners that listen no more, as after `ss -K`.
//!
//! A worker reports one; what is really lost is found out here, on the supervisor's duplicates, so
//! a false report changes nothing. The new socket joins the group as its last one: the accept queue
//! of the old one is gone, established connections are not touched.
//!
//! Invariants: a worker is sent the listeners of its own slot, or of one that it was lent, only;
//! what fails is tried again until it succeeds or the worker is gone.

use serde::{Deserialize, Serialize};

use crate::config::REBIND_RETRY;
use crate::fault;
use crate::listener;
use crate::supervisor::Supervisor;
use crate::supervisor::machine::Queue;
use crate::wire::ToWorker;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::{SlotId, WorkerId};

/// A slot whose listeners are to be bound again, and who waits for them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Rebind {
    worker: WorkerId,
    slot: SlotId,
    /// When that was reported.
    since: Tick,
}

impl Supervisor {
    /// A worker has found that a listener of `slot` listens no more.
    pub(crate) fn listener_lost(&mut self, worker: WorkerId, slot: SlotId) {
        let now = clock::now();
        self.rebinds.push(Rebind {
            worker,
            slot,
            since: now,
        });
        self.rebind_at = Some(now);
        self.rebind_due(now);
    }

    /// Binds what is lost, if it is time, and tells the workers that wait for it.
    pub(crate) fn rebind_due(&mut self, now: Tick) {
        if self.rebind_at.is_none_or(|at| now < at) {
            return;
        }
        self.rebind_at = None;
        for rebind in std::mem::take(&mut self.rebinds) {
            let Rebind { worker, slot, .. } = rebind;
            if !self.accepts_from(worker, slot) {
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
            match self.slots[slot.index()].replace_lost(addresses, bind) {
                Ok(()) => {
                    tracing::warn!(%worker, slot = slot.0, "listeners bound again");
                    self.send_listeners(rebind);
                }
                Err(error) => {
                    tracing::error!(%worker, slot = slot.0, %error, "listener not bound again");
                    self.rebinds.push(rebind);
                    self.rebind_at = Some(now + REBIND_RETRY);
                }
            }
        }
    }

    /// Since when a listener of `slot` is lost, if one is.
    pub(crate) fn lost_since(&self, slot: SlotId) -> Option<Tick> {
        let lost = self.rebinds.iter().filter(|rebind| rebind.slot == slot);
        lost.map(|rebind| rebind.since).min()
    }

    /// Sends them to the worker that waits, and to those that are to follow it and adopted the old
    /// ones.
    fn send_listeners(&mut self, rebind: Rebind) {
        let Rebind { worker, slot, .. } = rebind;
        let resources = &self.slots[slot.index()];
        let listeners = resources.listeners().iter();
        let copies: Result<Vec<_>, _> = listeners.map(|it| it.try_clone()).collect();
        let children = resources.children().iter().map(|child| child.worker);
        let follows = |it: &WorkerId| slot == worker.slot && it.generation > worker.generation;
        let followers: Vec<_> = children.filter(follows).collect();
        match copies {
            Ok(copies) => {
                let borrowed: Vec<_> = copies.iter().map(std::os::fd::AsFd::as_fd).collect();
                for receiver in std::iter::once(worker).chain(followers) {
                    self.say(receiver, ToWorker::Lend { slot }, &borrowed);
                }
                self.store_listeners(slot);
            }
            Err(error) => {
                tracing::error!(%worker, slot = slot.0, %error, "listener not bound again");
                self.rebinds.push(rebind);
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
