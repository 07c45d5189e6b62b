//! The resources of a slot: its listeners, its processes, and their counters.
//!
//! Invariants: the listeners are kept here from the slot's first Ready until the machine drops
//! them, so no accept queue is lost with a worker; a crashed worker's memory is kept for the next
//! one, which continues its counters; every other memory is added to the slot's totals before it is
//! dropped.
//!
//! It must not decide how many processes there are, or which.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::config::Config;
use crate::fault;
use crate::listener;
use crate::log::event;
use crate::memory;
use crate::memory::layout::Layout;
use crate::supervisor::rendezvous::RendezvousFile;
use crate::supervisor::subprocess::Ended;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::sys::shared::SharedMemory;
use crate::wire::Listen;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{SlotId, WorkerId};

use super::children::{self, Child};
use super::totals::Totals;

#[derive(Debug, Default)]
pub(crate) struct SlotResources {
    /// Duplicates of the slot's listeners, from its first Ready on.
    listeners: Vec<OwnedFd>,
    /// Few: the main worker, perhaps a successor, perhaps draining predecessors.
    children: Vec<Child>,
    /// Memory of the worker that exited last, while the slot has no other worker.
    left_behind: Option<SharedMemory>,
    /// Counters of dropped memories.
    carried: Totals,
    /// The worker that exited last, and the connections that were lost with it.
    last_loss: Option<(WorkerId, u64)>,
    /// Whether an accept queue of the slot has filled and has not been found empty since.
    pub(crate) queue_filled: bool,
}

/// A slot in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    listeners: Vec<Descriptor>,
    children: Vec<children::Saved>,
    left_behind: Option<Descriptor>,
    carried: Totals,
}

/// A worker that has lost a listener of `slot` and waits for a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rebind {
    pub(crate) worker: WorkerId,
    pub(crate) slot: SlotId,
    /// Time at which it reported the loss.
    pub(crate) since: Tick,
}

impl SlotResources {
    /// Returns the resources of a new slot, which continues the counters of an earlier one of its
    /// number.
    pub(crate) fn counting_on(carried: Totals) -> Self {
        Self {
            carried,
            ..Self::default()
        }
    }

    /// Returns the resources of a slot whose listeners this process has inherited.
    pub(crate) fn with_listeners(listeners: Vec<OwnedFd>) -> Self {
        Self {
            listeners,
            ..Self::default()
        }
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        let children = self.children.iter();
        Saved {
            listeners: self.listeners.iter().map(|it| kept.keep(it)).collect(),
            children: children.map(|child| child.save(kept)).collect(),
            left_behind: self.left_behind.as_ref().map(|it| kept.keep(it)),
            carried: self.carried.clone(),
        }
    }

    /// Restores the state saved by the earlier binary of this process. `next_serial` is that of
    /// the first child.
    ///
    /// # Errors
    /// A descriptor is missing, or a memory cannot be mapped.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        next_serial: &mut u64,
    ) -> io::Result<Self> {
        let mut restored = Self::counting_on(saved.carried);
        for listener in saved.listeners {
            restored.listeners.push(inherited.take(listener)?);
        }
        fault::fail("resume.map_memory")?;
        for child in saved.children {
            let child = Child::restore(child, inherited, *next_serial)?;
            restored.children.push(child);
            *next_serial += 1;
        }
        if let Some(memory) = saved.left_behind {
            restored.left_behind = Some(SharedMemory::map(inherited.take(memory)?)?);
        }
        Ok(restored)
    }

    /// Returns the memory of a new worker: that of an exited predecessor if it has the right
    /// layout, to continue its counters; else a new one.
    pub(crate) fn memory_for(&mut self, standby: bool, layout: Layout) -> io::Result<SharedMemory> {
        if !standby && let Some(left) = self.left_behind.take() {
            if left.len() == layout.total_bytes() {
                return Ok(left);
            }
            self.carried.close(&left);
        }
        SharedMemory::map(memory::create(layout)?)
    }

    pub(crate) fn insert(&mut self, child: Child) {
        self.children.push(child);
    }

    /// Removes a worker that has exited, and keeps its memory for the next one.
    pub(crate) fn remove(&mut self, worker: WorkerId) {
        let Some(child) = self.take(worker) else {
            return;
        };
        child.process.channel.purge();
        if self.note_loss(worker, &child.memory) {
            // If it fails the next worker repeats it.
            let _ = memory::release(&child.memory);
            self.leave_behind(child.memory);
        }
    }

    /// Removes a worker that was killed and has not exited. Its counters are kept; no other worker
    /// ever writes to its memory.
    pub(crate) fn abandon(&mut self, worker: WorkerId) -> Option<Ended> {
        let child = self.take(worker)?;
        if self.note_loss(worker, &child.memory) {
            self.carried.close(&child.memory);
        }
        Some(child.process.into_ended())
    }

    fn take(&mut self, worker: WorkerId) -> Option<Child> {
        let mut children = self.children.iter();
        let index = children.position(|child| child.worker == worker)?;
        let child = self.children.swap_remove(index);
        child.rendezvous.iter().for_each(RendezvousFile::remove);
        Some(child)
    }

    /// Records the connections lost with a worker; returns whether its counters are plausible.
    fn note_loss(&mut self, worker: WorkerId, memory: &SharedMemory) -> bool {
        let believable = memory::is_believable(memory);
        if !believable {
            event!(worker_counters_invalid; worker);
        }
        self.last_loss = believable.then(|| (worker, memory::open_connections(memory)));
        believable
    }

    /// Keeps the memory of a process that could not be started or watched.
    pub(crate) fn leave_behind(&mut self, memory: SharedMemory) {
        if self.children.is_empty() {
            if let Some(older) = self.left_behind.replace(memory) {
                self.carried.close(&older);
            }
        } else {
            // Each other worker of the slot has its own memory.
            self.carried.close(&memory);
        }
    }

    /// Removes a running worker that cannot be watched.
    pub(crate) fn discard(&mut self, worker: WorkerId) -> Option<Ended> {
        let child = self.take(worker)?;
        self.leave_behind(child.memory);
        Some(child.process.into_ended())
    }

    /// Keeps the listeners that a slot's first worker bound.
    pub(crate) fn keep(
        &mut self,
        deposited: Vec<OwnedFd>,
        listen: &[Listen],
    ) -> Result<(), String> {
        match (self.listeners.is_empty(), deposited.len()) {
            (true, count) if count == listen.len() && count > 0 => self.listeners = deposited,
            (false, 0) => {}
            (true, count) => {
                return Err(format!(
                    "it sent {count} listeners for {} addresses",
                    listen.len()
                ));
            }
            (false, _) => return Err("it sent listeners instead of adopting them".into()),
        }
        Ok(())
    }

    /// Sets the options of `config` on the listeners, one for each of `addresses`.
    ///
    /// # Errors
    /// The first error; the other listeners have been set.
    pub(crate) fn set_options(&self, addresses: &[Listen], config: &Config) -> Result<(), String> {
        let mut result = Ok(());
        for (socket, listen) in self.listeners.iter().zip(addresses) {
            let set = listener::set_options(socket, listen, config);
            let set = set.map_err(|error| error.to_string());
            result = result.and(set);
        }
        result
    }

    /// Replaces every listener that no longer listens at its address with the one that `bind`
    /// returns for the index of that address.
    ///
    /// # Errors
    /// The first error of `bind`; the listeners before it are replaced.
    pub(crate) fn replace_lost<E>(
        &mut self,
        addresses: &[Listen],
        bind: impl Fn(usize) -> Result<OwnedFd, E>,
    ) -> Result<(), E> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let socket = SockRef::from(&*listener);
            // A socket that was shut down can be made to listen again, at any port.
            let port = |at: socket2::SockAddr| at.as_socket().map(|it| it.port());
            let moved =
                socket.local_addr().ok().and_then(port) != Some(addresses[index].addr.port());
            if moved || socket.is_listener().is_ok_and(|listens| !listens) {
                *listener = bind(index)?;
            }
        }
        Ok(())
    }

    /// Closes the listeners: new clients are refused, or reach other slots.
    pub(crate) fn release_listeners(&mut self) {
        self.listeners.clear();
    }

    /// Returns the slot's listeners, one for each address.
    pub(crate) fn listeners(&self) -> &[OwnedFd] {
        &self.listeners
    }

    /// Returns the listeners as they are sent with a message.
    pub(crate) fn borrowed_listeners(&self) -> Vec<BorrowedFd<'_>> {
        self.listeners.iter().map(AsFd::as_fd).collect()
    }

    pub(crate) fn child(&self, worker: WorkerId) -> Option<&Child> {
        self.children.iter().find(|child| child.worker == worker)
    }

    /// Returns the process of `worker`, to send to it.
    pub(crate) fn child_mut(&mut self, worker: WorkerId) -> Option<&mut Child> {
        self.children
            .iter_mut()
            .find(|child| child.worker == worker)
    }

    pub(crate) fn children(&self) -> &[Child] {
        &self.children
    }

    /// Returns the counters of the slot, over all its workers.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = self.carried.clone();
        for child in &self.children {
            totals.add(&child.memory);
        }
        if let Some(left) = &self.left_behind {
            totals.close(left);
        }
        totals
    }

    /// Returns the number of connections lost with `worker`, if it is the last one that exited.
    pub(crate) fn lost_with(&self, worker: WorkerId) -> u64 {
        self.last_loss
            .filter(|(who, _)| *who == worker)
            .map_or(0, |(_, lost)| lost)
    }
}
