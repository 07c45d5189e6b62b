//! Starts workers.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use mio::Registry;

use crate::fault;
use crate::log::event;
use crate::memory;
use crate::supervisor::adoption::Orphan;
use crate::supervisor::machine::{self, ListenerSource};
use crate::supervisor::rendezvous::RendezvousFile;
use crate::supervisor::subprocess::Subprocess;
use crate::sys::keeper::own_pidfd;
use crate::sys::limits::explain;
use crate::wire::ToWorker;
use uppercased_ctl::identity::{ReleaseId, WorkerId};

use super::children::{Child, Life, NewWorker, Quota, Spawn};
use super::placement::cpu_of;
use super::resources::SlotResources;
use super::{Event, Fleet};

impl Fleet {
    /// Starts a worker, and creates its slot if necessary.
    pub(crate) fn spawn(&mut self, spawn: Spawn, lease: BorrowedFd<'_>, registry: &Registry) {
        if let Err(cause) = self.try_spawn(spawn, lease, registry) {
            let worker = spawn.worker;
            let cause = format!("cannot start a worker process: {cause}");
            self.machine(machine::Event::SpawnFailed { worker, cause });
        }
    }

    fn try_spawn(
        &mut self,
        spawn: Spawn,
        lease: BorrowedFd<'_>,
        registry: &Registry,
    ) -> Result<(), String> {
        let Spawn {
            worker,
            listener,
            release,
            standby,
        } = spawn;
        let index = worker.slot.index();
        if index == self.slots.len() {
            let counted = self.former.come_back(worker.slot);
            self.slots.push(SlotResources::counting_on(counted));
        }
        let adopt = listener == ListenerSource::Adopt;
        if adopt {
            // Another server that shares them, or a service manager, may have set other options.
            self.set_options(worker.slot);
        }
        let run = self.releases.get(release);
        let run = run.ok_or_else(|| format!("unknown release {release}"))?;
        let room = self.room_for(&run.config, run.limits);
        let slot = self.slots.get_mut(index).ok_or("unknown slot")?;
        let memory = slot
            .memory_for(standby, run.layout(room))
            .map_err(|error| format!("cannot create its memory: {}", explain(&error)))?;
        let mut start = run.start(&self.addresses, adopt, standby);
        start.room = room;
        start.descriptors = run.layout(room).descriptors;
        start.cpu = cpu_of(worker.slot, run.config.pin);
        let rendezvous = self.directory.as_ref().map(|it| it.bind(worker));
        let (rendezvous, file) = match rendezvous.transpose() {
            Ok(bound) => bound.unzip(),
            Err(error) => {
                event!(rendezvous_not_bound; worker, %error);
                (None, None)
            }
        };
        let new = NewWorker {
            worker,
            image: &run.image,
            start,
            memory: &memory,
            lease,
            rendezvous: rendezvous.as_ref(),
            listeners: slot.listeners(),
        };
        let process = match new.start() {
            Ok(process) => process,
            Err(error) => {
                slot.leave_behind(memory);
                file.iter().for_each(RendezvousFile::remove);
                return Err(error.to_string());
            }
        };
        let child = Child {
            worker,
            release,
            serial: self.next_serial,
            process,
            memory,
            sandbox: None,
            quota: Quota::NEW,
            life: Life::default(),
            rendezvous: file,
            group: None,
        };
        self.next_serial += 1;
        let watched = child.watch(registry);
        slot.insert(child);
        watched.map_err(|error| self.discard(worker, &error))?;
        if standby {
            fault::point("supervisor.successor_spawned");
        }
        Ok(())
    }

    /// Takes over an orphan, as a worker of `release`.
    pub(crate) fn adopt(
        &mut self,
        orphan: Orphan,
        release: ReleaseId,
        lease: BorrowedFd<'_>,
        registry: &Registry,
    ) {
        let Orphan {
            worker,
            process,
            channel,
            memory,
            introduction,
            file,
            ..
        } = orphan;
        fault::point("supervisor.adopts");
        let connections = memory::open_connections(&memory);
        let worker_pid = process.pid();
        let child = Child {
            worker,
            release,
            serial: self.next_serial,
            group: process.group(),
            process: Subprocess::new(process, channel),
            memory,
            sandbox: None,
            quota: Quota::resumed(true),
            // Which life introduced itself is not known: its keeper may have followed it since, and
            // reports that next.
            life: Life::default(),
            rendezvous: Some(file),
        };
        self.next_serial += 1;
        let watched = child.watch(registry);
        let index = worker.slot.index();
        if self.slots.len() <= index {
            // It leaves, as its slot did.
            self.slots.resize_with(index + 1, SlotResources::default);
        }
        self.slots[index].insert(child);
        let adopted = watched.and_then(|()| own_pidfd());
        let supervisor = match adopted {
            Ok(supervisor) => supervisor,
            Err(error) => {
                let cause = self.discard(worker, &error);
                return self.machine(machine::Event::ChannelBroken { worker, cause });
            }
        };
        self.send(worker, ToWorker::Adopt, &[supervisor.as_fd(), lease]);
        event!(orphan_adopted; worker, worker_pid, connections);
        self.note_sandbox(worker, introduction.sandbox);
        self.find_keeper(worker, registry);
        for slot in introduction.passed {
            self.send(worker, ToWorker::Recall { slot, last: false }, &[]);
        }
        for slot in introduction.lent {
            // Its listeners are this worker's only.
            self.send(worker, ToWorker::Recall { slot, last: true }, &[]);
        }
    }

    /// Removes a worker that cannot be watched; returns the error message.
    fn discard(&mut self, worker: WorkerId, error: &io::Error) -> String {
        let process = self.slots[worker.slot.index()].discard(worker);
        self.events.extend(process.map(Event::Ended));
        format!("cannot watch it: {error}")
    }
}
