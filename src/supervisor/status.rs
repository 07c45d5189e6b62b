//! The status of the whole server, from the machine, from each part and from the kernel, at no cost
//! to workers.

use crate::config::SLOT_HISTORIES_LEN;
use crate::fault;
use crate::log::event;
use uppercased_ctl::clock::{self, Tick, millis};
use uppercased_ctl::identity::{RequestId, WorkerId};
use uppercased_ctl::status::{Neighbour, SlotStatus, Status};

use super::Supervisor;
use super::machine::{Life, OperationKind, Queue, SlotView, WorkerView};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let now = clock::now();
        Status {
            processes: self.processes(now),
            ..self.status_without_processes(now)
        }
    }

    fn status_without_processes(&self, now: Tick) -> Status {
        let mut status = Status {
            version: fault::program_version().to_owned(),
            pid: std::process::id(),
            phase: self.machine.phase_name().to_owned(),
            rotation: self.admin.rotation().name().to_owned(),
            capacity: self.fleet.capacity(),
            operation_steps: match self.machine.operation_kind() {
                Some(_) => self.telemetry.steps(),
                None => Vec::new(),
            },
            operation: self.machine.operation(),
            pending: self.machine.pending().into_iter().map(described).collect(),
            release: self.fleet.in_force_id(),
            addresses: self
                .fleet
                .addresses()
                .iter()
                .map(ToString::to_string)
                .collect(),
            control: self.control.status(),
            admin: self.admin.status(),
            service_manager: self.systemd.status(),
            slots: self
                .machine
                .slots()
                .map(|slot| self.slot_status(&slot, now))
                .collect(),
            ..self.telemetry.status(now)
        };
        let former = self.fleet.former_from(status.slots.len());
        status.former = former.map(|slot| self.former_slot(slot)).collect();
        status.sum_up();
        status
    }

    /// Logs the status, line by line.
    pub(super) fn log_status(&self) {
        for line in self.status().lines() {
            event!(status_reported, line);
        }
    }

    /// Returns the status in one line, with the failure of the last request.
    pub(super) fn status_line(&self, failure: Option<&str>) -> String {
        let open = self.fleet.all_connections();
        let workers = self.machine.policy().workers;
        let mut line = format!("{workers} workers, {open} connections");
        if self.machine.life() == Life::Serving {
            let status = self.status_without_processes(clock::now());
            let unready = status.unready().map(|why| format!("not ready: {why}"));
            let degraded = || status.degraded().map(|what| format!("degraded: {what}"));
            let told = unready.or_else(degraded);
            line.extend(told.map(|told| format!("; {told}")));
        } else {
            line = format!("{line}; {}", self.machine.phase_name());
        }
        if let Some(doing) = self.machine.operation() {
            line = format!("{line}; {doing}");
        }
        if let Some(failure) = failure {
            line = format!("{line}; {failure}");
        }
        line
    }

    fn former_slot(&self, slot: SlotStatus) -> SlotStatus {
        let times = self.telemetry.times_of(slot.slot);
        SlotStatus {
            worker_starts: times.workers.total(),
            crashes: self.machine.crashes_before(slot.slot).into(),
            starts: times.starts,
            handovers: times.handovers,
            rescues: times.rescues,
            ..slot
        }
    }

    fn slot_status(&self, slot: &SlotView, now: Tick) -> SlotStatus {
        let worker = WorkerId {
            slot: slot.id,
            generation: slot.generation,
        };
        let (queue, lent_to) = match slot.queue {
            Queue::Unbound => ("unbound", None),
            Queue::Served => ("served", None),
            Queue::Unserved { .. } => ("unserved", None),
            Queue::Lent { to, .. } => ("lent", Some(to.slot)),
            Queue::Closed => ("closed", None),
        };
        let times = self.telemetry.times_of(slot.id);
        let history_len = SLOT_HISTORIES_LEN / self.fleet.slots().len().max(1);
        SlotStatus {
            generation: slot.generation,
            release: slot.release,
            state: match slot.stalled_since {
                _ if self.fleet.is_rescuing(worker) => "rescuing".to_owned(),
                None => slot.state.to_owned(),
                Some(_) => "stalled".to_owned(),
            },
            turn_age_ms: slot.turned_at.map(|at| millis(now.since(at))),
            stalled_ms: slot.stalled_since.map(|since| millis(now.since(since))),
            age_ms: millis(now.since(slot.since)),
            queue: queue.to_owned(),
            unserved_ms: match slot.queue {
                Queue::Unserved { since } => millis(now.since(since)),
                Queue::Unbound | Queue::Served | Queue::Lent { .. } | Queue::Closed => 0,
            },
            lent_to,
            last_crashes: times.last_crashes(now),
            history: times.history.latest(history_len),
            worker_starts: times.workers.total(),
            worker_restarts_10m: times.workers.restarts(now),
            keeper_restarts_10m: times.keepers.restarts(now),
            crashes: slot.crashes.into(),
            starts: times.starts,
            handovers: times.handovers,
            rescues: times.rescues,
            successor: slot.successor.as_ref().map(|it| self.neighbour(it)),
            predecessor: slot.predecessors.last().map(|it| self.neighbour(it)),
            ..self.fleet.status_of(worker, now)
        }
    }

    fn neighbour(&self, worker: &WorkerView) -> Neighbour {
        Neighbour {
            generation: worker.worker.generation,
            release: worker.release,
            pid: self.fleet.pid_of(worker.worker),
            state: worker.state.to_owned(),
            open: self.fleet.open_connections(worker.worker).into(),
        }
    }
}

/// Returns a queued request as shown in the status.
fn described((operation, request): (OperationKind, RequestId)) -> String {
    let source = match request {
        RequestId::NOBODY => "signal",
        _ => "command",
    };
    format!("{operation} ({source})")
}
