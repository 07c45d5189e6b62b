//! What the supervisor can say of itself: the status, in one piece, from the machine's view, the
//! processes and the shared counters. Looking asks no worker anything.

use std::os::fd::AsFd as _;

use nix::sys::stat::fstat;

use crate::fault;
use crate::memory;
use crate::sys::accept_queue::accept_queue;
use crate::sys::cpus;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::{SlotId, WorkerId};
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::status::Sandboxed;
use uppercased_ctl::status::{
    AcceptQueueStatus, LastDeath, Neighbour, SlotStatus, Status, Traffic,
};

use super::admin::AdminEndpoint;
use super::fleet::resources::SlotResources;
use super::fleet::totals::Totals;
use super::machine::{Queue, SeatView, SlotView};
use super::{Supervisor, report};

impl Supervisor {
    /// How everything is, now.
    pub(super) fn status(&self) -> Status {
        let now = clock::now();
        let mut status = Status {
            version: fault::program_version().to_owned(),
            pid: std::process::id(),
            uptime_ms: millis_since(self.started, now),
            phase: self.machine.phase_name().to_owned(),
            rotation: self.rotation.name().to_owned(),
            capacity: self.capacity(),
            operation: self.machine.operation(),
            pending: self.machine.pending(),
            release: self.releases.in_force_id(),
            addresses: self.addresses.iter().map(report::shown).collect(),
            control: self
                .control
                .as_ref()
                .map(|it| it.path().display().to_string()),
            admin: self.admin.as_ref().map(AdminEndpoint::status),
            service_manager: self.service_manager_status(),
            operations: self.times.operations(),
            last_operation: self.times.last_operation(now),
            slots: self
                .machine
                .slots()
                .map(|slot| self.slot_status(&slot, now))
                .collect(),
            ..Status::default()
        };
        let here = status.slots.len();
        let former = self.former.slots().filter(|slot| slot.index() >= here);
        status.former = former.map(|slot| self.former_slot(slot)).collect();
        status.sum_up();
        status
    }

    /// Connections that all slots together may hold.
    fn capacity(&self) -> u64 {
        let each = self.release_in_force().limits.max_connections;
        u64::from(each).saturating_mul(self.slots.len() as u64)
    }

    /// Remembers how a worker has locked itself in. What is missing is logged once, and not again
    /// for every worker that lacks the same.
    pub(super) fn note_sandbox(&mut self, worker: WorkerId, sandbox: Sandboxed) {
        if !sandbox.missing.is_empty()
            && !self
                .slots
                .iter()
                .flat_map(SlotResources::children)
                .any(|child| child.sandbox.as_ref() == Some(&sandbox))
        {
            tracing::warn!(
                missing = sandbox.missing.join("; "),
                "the sandbox is incomplete"
            );
        }
        if let Some(child) = self.child_mut(worker) {
            child.sandbox = Some(sandbox);
        }
    }

    /// Logs the status, a line for each of its own.
    pub(super) fn log_status(&self) {
        for line in self.status().lines() {
            tracing::info!("{line}");
        }
    }

    /// What all slots have counted, those that are no more included.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.former.sum();
        for slot in &self.slots {
            totals.merge(&slot.totals());
        }
        totals
    }

    /// What there is to say of a slot that has left.
    fn former_slot(&self, slot: SlotId) -> SlotStatus {
        let times = self.times.of(slot);
        SlotStatus {
            slot,
            state: "gone".to_owned(),
            queue: "closed".to_owned(),
            traffic: self.former.of(slot).map(traffic).unwrap_or_default(),
            deaths: self.machine.deaths_before(slot).into(),
            starts: times.starts,
            handovers: times.handovers,
            ..SlotStatus::default()
        }
    }

    fn slot_status(&self, slot: &SlotView<'_>, now: Tick) -> SlotStatus {
        let worker = WorkerId {
            slot: slot.id,
            generation: slot.generation,
        };
        let resources = self.slots.get(slot.id.index());
        let (queue, lent_to) = match slot.queue {
            Queue::Unbound => ("unbound", None),
            Queue::Served => ("served", None),
            Queue::Unserved { .. } => ("unserved", None),
            Queue::Lent { to, .. } => ("lent", Some(to.slot)),
            Queue::Closed => ("closed", None),
        };
        let pid = self.pid_of(worker);
        let times = self.times.of(slot.id);
        SlotStatus {
            slot: slot.id,
            pid,
            cpu: pid.and_then(cpus::only_cpu_of),
            sandbox: self.child(worker).and_then(|child| child.sandbox.clone()),
            generation: slot.generation,
            release: slot.release,
            state: match slot.stalled_since {
                None => slot.state.name().to_owned(),
                Some(_) => "stalled".to_owned(),
            },
            lost_listener_ms: self.lost_since(slot.id).map(|at| millis_since(at, now)),
            stalled_ms: slot.stalled_since.map(|since| millis_since(since, now)),
            age_ms: millis_since(slot.since, now),
            queue: queue.to_owned(),
            unserved_ms: match slot.queue {
                Queue::Unserved { since } => millis_since(since, now),
                Queue::Unbound | Queue::Served | Queue::Lent { .. } | Queue::Closed => 0,
            },
            lent_to,
            accept_queues: resources
                .map(|it| self.accept_queues(it))
                .unwrap_or_default(),
            // One that comes back has nothing before its worker is started.
            traffic: resources
                .map(|it| traffic(&it.totals()))
                .or_else(|| self.former.of(slot.id).map(traffic))
                .unwrap_or_default(),
            // Settled with the totals.
            accepted_percent: 0,
            open_percent: 0,
            deaths: slot.deaths.into(),
            starts: times.starts,
            handovers: times.handovers,
            last_death: slot.last_death.map(|death| LastDeath {
                generation: death.worker.generation,
                how: death.how.map(|how| how.to_string()),
                cause: death.cause.clone(),
                age_ms: millis_since(death.at, now),
            }),
            successor: slot.successor.as_ref().map(|seat| self.neighbour(seat)),
            predecessor: slot.predecessors.last().map(|seat| self.neighbour(seat)),
        }
    }

    /// Read off the duplicates that are kept here, whatever the slot's worker is doing.
    fn accept_queues(&self, resources: &SlotResources) -> Vec<AcceptQueueStatus> {
        let listeners = self.addresses.iter().zip(resources.listeners());
        listeners
            .filter_map(|(address, listener)| {
                let queue = accept_queue(listener.as_fd()).ok()?;
                Some(AcceptQueueStatus {
                    address: report::shown(address),
                    length: queue.length.into(),
                    limit: queue.limit.into(),
                    inode: fstat(listener).map_or(0, |about| about.st_ino),
                })
            })
            .collect()
    }

    fn neighbour(&self, seat: &SeatView) -> Neighbour {
        let child = self.child(seat.worker);
        Neighbour {
            generation: seat.worker.generation,
            release: seat.release,
            pid: self.pid_of(seat.worker),
            state: seat.state.to_owned(),
            open: child.map_or(0, |child| memory::open_connections(&child.memory)),
        }
    }

    fn pid_of(&self, worker: WorkerId) -> Option<u32> {
        self.child(worker).map(|child| child.pid().unsigned_abs())
    }
}

fn traffic(totals: &Totals) -> Traffic {
    Traffic::read(totals.open(), |counter: Counter| totals.count(counter))
}

fn millis_since(at: Tick, now: Tick) -> u64 {
    super::actions::millis(now.since(at))
}
