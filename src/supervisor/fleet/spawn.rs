//! Starts workers.

use std::io;

use mio::Registry;

use crate::fault;
use crate::supervisor::machine::{self, ListenerSource};
use crate::sys::limits::explain;
use uppercased_ctl::identity::WorkerId;

use super::children::{Child, Life, NewWorker, Quota, Spawn};
use super::placement::cpu_of;
use super::resources::SlotResources;
use super::{Event, Fleet};

impl Fleet {
    /// Starts a worker, and creates its slot if necessary.
    pub(crate) fn spawn(&mut self, spawn: Spawn, registry: &Registry) {
        if let Err(cause) = self.try_spawn(spawn, registry) {
            let worker = spawn.worker;
            let cause = format!("cannot start a worker process: {cause}");
            self.machine(machine::Event::SpawnFailed { worker, cause });
        }
    }

    fn try_spawn(&mut self, spawn: Spawn, registry: &Registry) -> Result<(), String> {
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
        let new = NewWorker {
            worker,
            image: &run.image,
            start,
            memory: &memory,
            listeners: slot.listeners(),
        };
        let process = match new.start() {
            Ok(process) => process,
            Err(error) => {
                slot.leave_behind(memory);
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

    /// Removes a worker that cannot be watched; returns the error message.
    fn discard(&mut self, worker: WorkerId, error: &io::Error) -> String {
        let process = self.slots[worker.slot.index()].discard(worker);
        self.events.extend(process.map(Event::Ended));
        format!("cannot watch it: {error}")
    }
}
