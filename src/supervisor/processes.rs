//! What every process of the server uses, read from the kernel when a status is requested.
//!
//! A few system calls per process, none of which waits for it. Workers do nothing for it.

use crate::sys::usage::private_bytes;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::status::{ProcessStatus, Usage};

use super::Supervisor;
use super::machine::SlotView;

impl Supervisor {
    /// Returns every process, the supervisor first; of a slot the active worker and its keeper come
    /// first, and the latest predecessor before earlier ones.
    pub(super) fn processes(&self, now: Tick) -> Vec<ProcessStatus> {
        let telemetry = &self.telemetry;
        let supervisor = self.process(
            ProcessStatus::SUPERVISOR,
            std::process::id(),
            telemetry.programs().restarts(now),
        );
        let admin = self.admin.pid().map(|pid| {
            let restarts = telemetry.admin().restarts(now);
            self.process(ProcessStatus::ADMIN, pid.unsigned_abs(), restarts)
        });
        let mut processes: Vec<ProcessStatus> =
            [Some(supervisor), admin].into_iter().flatten().collect();
        for slot in self.machine.slots() {
            processes.extend(self.processes_of(&slot, now));
        }
        processes
    }

    fn processes_of(&self, slot: &SlotView, now: Tick) -> Vec<ProcessStatus> {
        let times = self.telemetry.times_of(slot.id);
        let restarts = times.workers.restarts(now);
        let keeper_restarts = times.keepers.restarts(now);
        let active = WorkerId {
            slot: slot.id,
            generation: slot.generation,
        };
        let successor = slot.successor.iter();
        let successor = successor.map(|it| (ProcessStatus::SUCCESSOR, it.worker));
        let predecessors = slot.predecessors.iter().rev();
        let predecessors = predecessors.map(|it| (ProcessStatus::PREDECESSOR, it.worker));
        let workers = [(ProcessStatus::WORKER, active)].into_iter();
        let workers = workers.chain(successor).chain(predecessors);
        let mut processes = Vec::new();
        for (name, worker) in workers {
            let pid = self.fleet.pid_of(worker);
            processes.extend(pid.map(|pid| self.of_slot(slot.id, name, pid, restarts)));
            let keeper = self.fleet.keeper_of(worker);
            let named = ProcessStatus::KEEPER;
            processes.extend(keeper.map(|pid| self.of_slot(slot.id, named, pid, keeper_restarts)));
        }
        processes
    }

    fn of_slot(&self, slot: SlotId, name: &str, pid: u32, restarts: u32) -> ProcessStatus {
        ProcessStatus {
            slot: Some(slot),
            ..self.process(name, pid, restarts)
        }
    }

    fn process(&self, name: &str, pid: u32, restarts_10m: u32) -> ProcessStatus {
        let usage = self.telemetry.usage_of(pid);
        ProcessStatus {
            process: name.to_owned(),
            slot: None,
            pid,
            restarts_10m,
            usage: usage.map(|usage| match name {
                // Its other pages are its worker's.
                ProcessStatus::KEEPER => Usage {
                    resident_bytes: private_bytes(pid),
                    ..usage
                },
                _ => usage,
            }),
        }
    }
}
