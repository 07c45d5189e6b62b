//! The workers: their processes, channels, memories and listeners, and the releases that they run.
//!
//! Invariants: a duplicate of every slot's listeners is kept here from the slot's first Ready until
//! the machine drops it, so that no accept queue is lost with a worker; a failure becomes an event.
//!
//! It must not decide how many workers there are, nor the role of each (the machine does).

mod capacity;
pub(crate) mod children;
mod directory;
mod handover;
mod keepers;
mod placement;
mod queues;
pub(crate) mod releases;
mod relisten;
pub(crate) mod resources;
mod spawn;
mod status;
pub(crate) mod totals;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use mio::Registry;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::fault;
use crate::log::event;
use crate::memory;
use crate::sys::fd::{Inherited, Kept};
use crate::wire::{FromWorker, Listen, Rescued, ToWorker};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{ReleaseId, SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::status::Sandboxed;

#[cfg(test)]
use crate::sys::shared::SharedMemory;

use super::machine;
use super::machine::ExitStatus;
use super::rendezvous::Directory;
use super::subprocess;
use children::{Child, Keeper, SavedKeeper, Unusable};
use releases::{Release, Releases};
use resources::{Rebind, SlotResources};
use totals::{Former, Totals};

pub(crate) use children::Spawn;

#[derive(Debug)]
pub(crate) struct Fleet {
    releases: Releases,
    /// The addresses of every slot; ports are known as soon as the first slot is Ready.
    addresses: Vec<Listen>,
    /// The limit on descriptors, of this process and of each worker.
    nofile: u64,
    /// The number of slots that have a socket of a socket unit; these must be served while the
    /// socket exists.
    activated: u16,
    /// Slot `i` is at index `i`.
    slots: Vec<SlotResources>,
    /// The processes that wait for the end of a worker's.
    keepers: Vec<Keeper>,
    /// The processes of the other parts, which no worker may claim as its keeper.
    others: Vec<i32>,
    /// Where a later supervisor finds the workers.
    directory: Option<Directory>,
    /// The counters of slots that have left.
    former: Former,
    next_serial: u64,
    /// Workers that wait for replacements of lost listeners.
    rebinds: Vec<Rebind>,
    /// Time of the next attempt to bind those.
    rebind_at: Option<Tick>,
    /// Time of the next check of the accept queues.
    queues_due: Tick,
    events: VecDeque<Event>,
}

/// The workers in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    releases: releases::Saved,
    addresses: Vec<Listen>,
    activated: u16,
    slots: Vec<resources::Saved>,
    keepers: Vec<SavedKeeper>,
    directory: Option<Directory>,
    former: Former,
    rebinds: Vec<Rebind>,
}

impl Saved {
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the configuration in force; `None` if it is missing.
    pub(crate) fn config(&self) -> Option<&Config> {
        self.releases.config()
    }

    pub(crate) fn addresses(&self) -> &[Listen] {
        &self.addresses
    }
}

/// An event of the workers.
#[derive(Debug)]
pub(crate) enum Event {
    /// An event for the machine.
    Machine(machine::Event),
    Exited {
        worker: WorkerId,
        exit: ExitStatus,
    },
    /// A keeper has become a worker, whose process ended so.
    Rescued {
        worker: WorkerId,
        exit: ExitStatus,
        /// Whether the process was killed because it hung.
        is_hang: bool,
        rescued: Rescued,
    },
    /// A keeper of a running worker of this slot has ended.
    KeeperLost(SlotId),
    /// A worker of this slot has another keeper in place of a lost one.
    KeeperReplaced(SlotId),
    /// A worker has begun to stop with these connections open.
    Draining {
        worker: WorkerId,
        connections: u32,
    },
    /// The slot's listeners have been replaced.
    ListenersChanged(SlotId),
    /// The kernel has chosen the ports.
    AddressesKnown,
    /// A worker reports that a listener of `slot` no longer listens.
    ListenerLost {
        worker: WorkerId,
        slot: SlotId,
    },
    /// The options of a listener could not be set.
    OptionsNotSet(String),
    /// A process that is to be killed and reaped.
    Ended(subprocess::Ended),
}

impl Fleet {
    /// Returns the fleet of a server that starts, with the inherited listeners, by slot.
    pub(crate) fn new(
        first: Release,
        addresses: Vec<Listen>,
        listeners: Vec<Vec<OwnedFd>>,
        directory: Option<Directory>,
        (activated, nofile): (u16, u64),
    ) -> Self {
        let slots = listeners.into_iter().map(SlotResources::with_listeners);
        Self {
            releases: Releases::new(first),
            addresses,
            nofile,
            activated,
            slots: slots.collect(),
            keepers: Vec::new(),
            others: Vec::new(),
            directory,
            former: Former::default(),
            next_serial: 0,
            rebinds: Vec::new(),
            rebind_at: None,
            queues_due: Tick::ZERO,
            events: VecDeque::new(),
        }
    }

    /// Returns the next event.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Sets the processes of the other parts. Needed before each report of a child is handled.
    pub(crate) fn set_others(&mut self, others: Vec<i32>) {
        self.others = others;
    }

    /// Handles readiness of the channel of the child with this serial number.
    pub(crate) fn on_channel(&mut self, serial: u64, registry: &Registry) {
        if let Some(worker) = self.worker_with(serial) {
            self.receive(worker, registry);
        }
    }

    /// Handles the exit of the child with this serial number.
    pub(crate) fn on_exit(&mut self, serial: u64, registry: &Registry) {
        let Some(worker) = self.worker_with(serial) else {
            return;
        };
        // Receive its last messages first, even if its exit was reported before them.
        self.receive(worker, registry);
        let Some(child) = self.child(worker) else {
            return;
        };
        if !child.process.has_ended() {
            return;
        }
        if self.succeed(worker, registry) {
            return self.handle_early_report(worker, registry);
        }
        let Some(child) = self.child(worker) else {
            return;
        };
        let Some(exit) = child.process.reap() else {
            return;
        };
        child.process.unwatch(registry);
        let exit = child.exit_status(child.life.exit_of_last(exit));
        self.kill_keepers(serial);
        self.slots[worker.slot.index()].remove(worker);
        self.events.push_back(Event::Exited { worker, exit });
    }

    pub(crate) fn deadline(&self) -> Option<Tick> {
        let own = [
            self.rebind_at,
            Some(self.queues_due),
            self.keepers_deadline(),
        ];
        own.into_iter().flatten().min()
    }

    /// Acts on due deadlines. `is_lent` returns whether a slot's queue is lent to a worker.
    pub(crate) fn handle_timeout(&mut self, now: Tick, is_lent: impl Fn(SlotId, WorkerId) -> bool) {
        self.rebind_due(now, is_lent);
        self.keepers_timeout(now);
        self.check_queues(now);
    }

    /// Sends a message to a worker, if it still exists.
    pub(crate) fn send(
        &mut self,
        worker: WorkerId,
        message: ToWorker,
        descriptors: &[BorrowedFd<'_>],
    ) {
        let sent = self.child_mut(worker);
        if let Some(Err(cause)) = sent.map(|child| child.send(message, descriptors)) {
            self.machine(machine::Event::ChannelBroken { worker, cause });
        }
    }

    /// Kills a worker, if it still exists, and its keeper. Its pidfd reports the exit.
    pub(crate) fn kill(&mut self, worker: WorkerId) {
        self.doom(worker);
        if let Some(child) = self.child(worker) {
            child.kill();
        }
    }

    /// Removes a worker that was killed and has not exited from its slot.
    pub(crate) fn abandon(&mut self, worker: WorkerId) {
        self.doom(worker);
        let slot = self.slots.get_mut(worker.slot.index());
        if let Some(process) = slot.and_then(|slot| slot.abandon(worker)) {
            self.events.push_back(Event::Ended(process));
        }
    }

    /// Closes the kept duplicates of all listeners.
    pub(crate) fn release_all_listeners(&mut self) {
        for slot in &mut self.slots {
            slot.release_listeners();
        }
    }

    /// Closes the kept duplicates of a slot's listeners.
    pub(crate) fn release_listeners(&mut self, slot: SlotId) {
        if let Some(slot) = self.slots.get_mut(slot.index()) {
            slot.release_listeners();
        }
    }

    /// Removes the last slot, which has no process left.
    pub(crate) fn drop_slot(&mut self, slot: SlotId) {
        if slot.index() + 1 != self.slots.len() {
            event!(slot_not_dropped, slot = slot.0);
            return;
        }
        if let Some(had) = self.slots.pop() {
            self.former.leave(slot, &had.totals());
        }
    }

    /// Returns the release whose configuration is in force.
    pub(crate) fn in_force(&self) -> &Release {
        self.releases.in_force()
    }

    pub(crate) const fn in_force_id(&self) -> ReleaseId {
        self.releases.in_force_id()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.in_force().config
    }

    pub(crate) fn add_release(&mut self, release: Release) -> ReleaseId {
        self.releases.add(release)
    }

    /// Puts a release in force, also for the listeners that its slots have.
    pub(crate) fn commit(&mut self, release: ReleaseId) {
        self.releases.commit(release);
        for slot in 0..self.slot_count() {
            self.set_options(SlotId(slot));
        }
    }

    /// Drops every release but those in use and the one in force.
    pub(crate) fn keep_releases(&mut self, in_use: &[ReleaseId]) {
        self.releases.keep_only(in_use);
    }

    pub(crate) fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    pub(crate) fn slots(&self) -> &[SlotResources] {
        &self.slots
    }

    pub(crate) fn slot_count(&self) -> u16 {
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// Returns the slots that have listeners.
    pub(crate) fn listening(&self) -> impl Iterator<Item = SlotId> + '_ {
        let slots = (0..).map(SlotId).zip(&self.slots);
        let listening = slots.filter(|(_, slot)| !slot.listeners().is_empty());
        listening.map(|(id, _)| id)
    }

    /// Returns the listeners of a slot, to be sent with a message.
    pub(crate) fn borrowed_listeners(&self, slot: SlotId) -> Vec<BorrowedFd<'_>> {
        let slot = self.slots.get(slot.index());
        slot.map_or_else(Vec::new, SlotResources::borrowed_listeners)
    }

    /// Returns the connections that a worker has open.
    pub(crate) fn open_connections(&self, worker: WorkerId) -> u32 {
        let child = self.child(worker);
        let open = child.map_or(0, |child| memory::open_connections(&child.memory));
        u32::try_from(open).unwrap_or(u32::MAX)
    }

    /// Returns the connections that all workers have open.
    pub(crate) fn all_connections(&self) -> u64 {
        let open = self
            .children()
            .map(|it| memory::open_connections(&it.memory));
        open.fold(0, u64::saturating_add)
    }

    /// Returns the counters of all slots, those that have left included.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = self.former.sum();
        for slot in &self.slots {
            totals.merge(&slot.totals());
        }
        totals
    }

    /// Returns the number of messages of all slots, and of each present one.
    pub(crate) fn messages(&self) -> (u64, Vec<u64>) {
        let of_slots = self.slots.iter().map(|slot| slot.totals());
        let of_slots: Vec<u64> = of_slots.map(|it| it.count(Counter::Reads)).collect();
        let former = self.former.sum().count(Counter::Reads);
        let all = of_slots.iter().copied().fold(former, u64::saturating_add);
        (all, of_slots)
    }

    /// Returns a worker that has not read all its messages.
    pub(crate) fn first_behind(&self) -> Option<WorkerId> {
        let mut children = self.children();
        let behind = children.find(|child| !child.process.channel.is_flushed());
        behind.map(|child| child.worker)
    }

    /// Returns the process numbers of the workers.
    pub(crate) fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        let keepers = self.keepers.iter().map(Keeper::pid);
        self.children().map(Child::pid).chain(keepers)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            releases: self.releases.save(kept),
            addresses: self.addresses.clone(),
            activated: self.activated,
            slots: self.slots.iter().map(|slot| slot.save(kept)).collect(),
            keepers: self.keepers.iter().map(|it| it.save(kept)).collect(),
            directory: self.directory.clone(),
            former: self.former.clone(),
            rebinds: self.rebinds.clone(),
        }
    }

    /// Restores the workers saved by the earlier binary of this process.
    ///
    /// # Errors
    /// A descriptor is missing or of the wrong kind, or cannot be watched.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        registry: &Registry,
        (nofile, now): (u64, Tick),
    ) -> io::Result<Self> {
        let mut restored = Self {
            releases: Releases::restore(saved.releases, inherited)?,
            addresses: saved.addresses,
            nofile,
            activated: saved.activated,
            slots: Vec::new(),
            keepers: Vec::new(),
            others: Vec::new(),
            directory: saved.directory,
            former: saved.former,
            next_serial: 0,
            rebind_at: saved.rebinds.first().map(|_| now),
            rebinds: saved.rebinds,
            queues_due: Tick::ZERO,
            events: VecDeque::new(),
        };
        for slot in saved.slots {
            let slot = SlotResources::restore(slot, inherited, &mut restored.next_serial)?;
            restored.slots.push(slot);
        }
        for child in restored.children() {
            fault::fail("resume.watch_child")?;
            child.watch(registry)?;
        }
        restored.restore_keepers(saved.keepers, inherited, registry)?;
        Ok(restored)
    }

    fn receive(&mut self, worker: WorkerId, registry: &Registry) {
        while let Some(received) = self.child_mut(worker).and_then(Child::receive) {
            let (message, descriptors) = match received {
                Ok(received) => received,
                Err(Unusable::Closed) => {
                    // Its pidfd reports the exit status next. The kill changes nothing for a worker
                    // that is exiting (it never closes its end, so its exit status is settled by
                    // now); a running one could not receive any more messages.
                    if let Some(child) = self.child(worker) {
                        child.process.unwatch_channel(registry);
                        self.kill(worker);
                    }
                    return self.machine(machine::Event::ChannelClosed { worker });
                }
                Err(Unusable::Broken(cause)) => return self.channel_broke(worker, cause, registry),
            };
            let event = match message {
                FromWorker::Ready(ready) => {
                    let deposits = !descriptors.is_empty();
                    let kept = self.slots[worker.slot.index()].keep(descriptors, &ready.listen);
                    if let Err(cause) = kept {
                        return self.channel_broke(worker, cause, registry);
                    }
                    self.learn_addresses(&ready.listen);
                    if deposits {
                        self.events.push_back(Event::ListenersChanged(worker.slot));
                        // Its release may not be in force, or may never be.
                        self.set_options(worker.slot);
                    }
                    self.note_sandbox(worker, ready.sandbox);
                    self.find_keeper(worker, registry);
                    Event::Machine(machine::Event::Ready { worker })
                }
                FromWorker::Failed { cause } => {
                    Event::Machine(machine::Event::StartFailed { worker, cause })
                }
                FromWorker::Draining { connections } => Event::Draining {
                    worker,
                    connections,
                },
                FromWorker::HandedOver(ended) if ended.part => {
                    Event::Machine(machine::Event::Rebalanced {
                        worker,
                        moved: ended.moved,
                        end: ended.end,
                    })
                }
                FromWorker::HandedOver(ended) => Event::Machine(machine::Event::HandedOver {
                    worker,
                    moved: ended.moved,
                    left: ended.left,
                    end: ended.end,
                }),
                FromWorker::ListenerLost { slot } => Event::ListenerLost { worker, slot },
                FromWorker::Kept => {
                    self.keeper_replaced(worker, registry);
                    continue;
                }
                FromWorker::Adoptable(_) | FromWorker::NotAdoptable { .. } => continue,
                FromWorker::Rescued(rescued) => match self.rescued(worker, rescued, registry) {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(cause) => return self.channel_broke(worker, cause, registry),
                },
            };
            self.events.push_back(event);
        }
    }

    fn channel_broke(&mut self, worker: WorkerId, cause: String, registry: &Registry) {
        if let Some(child) = self.child(worker) {
            child.process.unwatch_channel(registry);
        }
        self.machine(machine::Event::ChannelBroken { worker, cause });
    }

    /// Sets the addresses from the first slot's real ones: with port 0 the kernel chose them at its
    /// bind.
    fn learn_addresses(&mut self, listen: &[Listen]) {
        if self.addresses.iter().any(|one| one.addr.port() == 0) {
            self.addresses = listen.to_vec();
            self.events.push_back(Event::AddressesKnown);
        }
    }

    /// Records a worker's sandbox. A missing part is logged once, and not again for every worker
    /// that lacks it.
    fn note_sandbox(&mut self, worker: WorkerId, sandbox: Sandboxed) {
        if !sandbox.missing.is_empty()
            && !self
                .children()
                .any(|it| it.sandbox.as_ref() == Some(&sandbox))
        {
            let missing = sandbox.missing.join("; ");
            event!(worker_sandbox_incomplete, missing);
        }
        if let Some(child) = self.child_mut(worker) {
            child.sandbox = Some(sandbox);
        }
    }

    /// Sets the options that connections inherit from a slot's listeners to those of the release in
    /// force, whichever release its worker runs.
    fn set_options(&mut self, slot: SlotId) {
        let config = &self.releases.in_force().config;
        let resources = self.slots.get(slot.index());
        let set = resources.map(|it| it.set_options(&self.addresses, config));
        if let Some(Err(error)) = set {
            event!(listener_options_not_set, slot = slot.0, error);
            self.events.push_back(Event::OptionsNotSet(error));
        }
    }

    fn machine(&mut self, event: machine::Event) {
        self.events.push_back(Event::Machine(event));
    }

    fn children(&self) -> impl Iterator<Item = &Child> {
        self.slots.iter().flat_map(SlotResources::children)
    }

    fn child(&self, worker: WorkerId) -> Option<&Child> {
        self.slots.get(worker.slot.index())?.child(worker)
    }

    fn child_mut(&mut self, worker: WorkerId) -> Option<&mut Child> {
        self.slots.get_mut(worker.slot.index())?.child_mut(worker)
    }

    fn worker_with(&self, serial: u64) -> Option<WorkerId> {
        let child = self.children().find(|child| child.serial == serial)?;
        Some(child.worker)
    }
}

#[cfg(test)]
impl Fleet {
    /// Inserts a worker that was not started here, and the memory of an exited one.
    pub(crate) fn insert(&mut self, child: Child, left_behind: Option<SharedMemory>) {
        let slot = &mut self.slots[child.worker.slot.index()];
        if let Some(memory) = left_behind {
            slot.leave_behind(memory);
        }
        slot.insert(child);
    }
}
