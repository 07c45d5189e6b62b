//! The status of a server as plain data.
//!
//! Invariant: every field has a default, so that a reader skips unknown fields and fills in absent
//! ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::millis;
use crate::identity::{Generation, ReleaseId, SlotId};
use crate::limits::UNSERVED_GRACE;
use crate::metrics::{CloseReason, Counter, RefusalCause};
use crate::operation::OperationKind;
use crate::units;

use super::durations::Durations;
use super::processes::ProcessStatus;
use super::rescues::Rescues;
use super::rotation::{AgentAnswers, Rotation};
use super::sandboxed::Sandboxed;

/// The status of a whole server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the supervisor's program.
    pub version: String,
    /// The supervisor's process ID.
    pub pid: u32,
    /// Time since the start; an upgrade does not reset it.
    pub uptime_ms: u64,
    /// "serving", "booting", "draining" and so on.
    pub phase: String,
    /// The state reported to load balancers: "in", "drain", "maint".
    pub rotation: String,
    /// The planned operation in progress, and its progress.
    pub operation: Option<String>,
    /// The latest steps of that operation, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operation_steps: Vec<String>,
    /// Pending requests, the next one first: "reload (signal)".
    pub pending: Vec<String>,
    /// The release that all workers run, or will run after the operation.
    pub release: ReleaseId,
    /// The addresses on which it listens.
    pub addresses: Vec<String>,
    /// Durations of planned operations, by kind and result.
    pub operations: Vec<OperationTimes>,
    /// The operation that ended last.
    pub last_operation: Option<LastOperation>,
    /// The configuration in force, and the last attempt to reload it.
    pub config: ConfigReload,
    /// Every process, the supervisor first.
    pub processes: Vec<ProcessStatus>,
    /// Path of the control socket, if there is one.
    pub control: Option<String>,
    /// The admin endpoint, if there is one.
    pub admin: Option<AdminStatus>,
    /// The service manager that it notifies, if there is one.
    pub service_manager: Option<ServiceManagerStatus>,
    /// Maximum number of connections of all slots together; 0 if unknown.
    pub capacity: u64,
    /// Messages of all slots in each of the last seconds, oldest first.
    pub history: Vec<u32>,
    /// Sums over all slots.
    pub totals: Totals,
    /// The slots, in order of their numbers.
    pub slots: Vec<SlotStatus>,
    /// Removed slots, with their counters; a slot that is added again continues from them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<SlotStatus>,
}

/// The age of the configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigReload {
    /// Whether the last reload, if there was one, succeeded.
    pub last_reload_successful: bool,
    /// The start or the last successful reload, in milliseconds of Unix time.
    pub last_reload_success_at_ms: u64,
    /// Why the configuration of the last start or reload was refused, if so: an earlier one is in
    /// force.
    pub error: Option<String>,
}

/// The process that serves HTTP and load balancers' agent checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminStatus {
    /// The HTTP address, or the path of a socket; empty if there is none.
    pub address: String,
    /// Its process ID; `None` without a process.
    pub pid: Option<u32>,
    /// The address of the agent check, if there is one.
    pub agent: Option<String>,
    /// The replies to load balancers as of the process's last query; `None` without an agent check.
    pub agent_answers: Option<AgentAnswers>,
    /// Unexpected exits.
    pub crashes: u64,
    /// How it is sandboxed; `None` until it is.
    pub sandbox: Option<Sandboxed>,
}

/// The state of the notifications to the service manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceManagerStatus {
    /// Messages sent.
    pub sent: u64,
    /// Failed attempts to send; each message is retried.
    pub refused: u64,
    /// Messages waiting to be sent.
    pub pending: u64,
    /// Whether it may still hold listeners of removed slots that it was asked to release.
    pub releasing: bool,
    /// The reason why its watchdog is not fed, if so.
    pub watchdog_paused: Option<String>,
}

/// Durations of planned operations of one kind and result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationTimes {
    /// "reload", "upgrade" or "scale".
    pub operation: String,
    /// "done" or "failed".
    pub result: String,
    /// From the request to the result.
    #[serde(flatten)]
    pub times: Durations,
}

impl OperationTimes {
    /// The result of a successful operation.
    pub const DONE: &str = "done";
    /// The result of a failed operation.
    pub const FAILED: &str = "failed";

    /// Returns every possible pair of operation and result.
    pub fn all_kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
        let results = |operation| [Self::DONE, Self::FAILED].map(|result| (operation, result));
        OperationKind::NAMES.into_iter().flat_map(results)
    }
}

/// The last planned operation that ended; a refused one never began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastOperation {
    /// "reload", "upgrade", "scale to 6".
    pub operation: String,
    /// "done" or "failed".
    pub result: String,
    /// The cause of its failure.
    pub error: Option<String>,
    /// From the request to the result.
    pub duration_ms: u64,
    /// Time since it ended.
    pub age_ms: u64,
}

/// Sums over all slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Traffic.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Unexpected exits of workers.
    pub crashes: u64,
}

/// Traffic of one slot's workers, all generations together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Open connections.
    pub open: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Live connections that migrated from another worker.
    pub migrated_in: u64,
    /// Live connections that migrated to another worker.
    pub migrated_out: u64,
    /// Connections ended, by reason; zeros are omitted.
    pub closed: BTreeMap<String, u64>,
    /// Connections accepted and refused at once, by cause; zeros are omitted.
    pub refused: BTreeMap<String, u64>,
    /// Connections of sources that were not tracked, to which no limit applied.
    pub untracked: u64,
    /// Bytes received from clients.
    pub received_bytes: u64,
    /// Bytes sent to clients.
    pub sent_bytes: u64,
    /// Every counter, by [`Counter::key`]; zeros are omitted.
    pub counters: BTreeMap<String, u64>,
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotStatus {
    /// The slot's number.
    pub slot: SlotId,
    /// The worker's process ID; `None` without a process.
    pub pid: Option<u32>,
    /// The process ID of its keeper, which continues it if its process dies; `None` without one.
    pub keeper_pid: Option<u32>,
    /// The generation of the current worker, or of the latest one.
    pub generation: Generation,
    /// The worker's release.
    pub release: ReleaseId,
    /// The CPU to which the worker is pinned; `None` if it may run on several.
    pub cpu: Option<u16>,
    /// How the worker is sandboxed; `None` if not reported.
    pub sandbox: Option<Sandboxed>,
    /// The worker's state.
    pub state: String,
    /// Time in that state.
    pub age_ms: u64,
    /// "unbound", "served", "unserved" or "lent".
    pub queue: String,
    /// How long the queue has been unserved; 0 if it is served.
    #[serde(skip_serializing_if = "is_zero")]
    pub unserved_ms: u64,
    /// Time since the supervisor last saw a new event loop turn of the worker, which it checks
    /// every few hundred milliseconds; `None` if it does not check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_age_ms: Option<u64>,
    /// How long the worker has been stalled, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled_ms: Option<u64>,
    /// How long a closed listener of the slot could not be bound again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_listener_ms: Option<u64>,
    /// The sibling that serves the queue, if it is lent.
    pub lent_to: Option<SlotId>,
    /// The accept queue of each address on which the slot listens.
    pub accept_queues: Vec<AcceptQueueStatus>,
    /// Traffic.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Messages in each of the last seconds, oldest first; shorter with more than 64 slots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<u32>,
    /// Its share of the connections that these slots have accepted, in percent, rounded; 0 before
    /// the first one.
    pub accepted_percent: u8,
    /// Its share of the open connections, in percent, rounded; 0 if there are none.
    pub open_percent: u8,
    /// Workers started in this slot, including before it left and came back.
    pub worker_starts: u64,
    /// How often its worker was replaced, planned or not, within the last ten minutes.
    pub worker_restarts_10m: u32,
    /// How often its worker's keeper was replaced within the last ten minutes.
    pub keeper_restarts_10m: u32,
    /// Unexpected exits of this slot's workers.
    pub crashes: u64,
    /// The latest of these exits, and failed starts; the last one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last_crashes: Vec<Crash>,
    /// Times from fork to Ready of its workers.
    #[serde(skip_serializing_if = "Durations::is_empty")]
    pub starts: Durations,
    /// Durations of its workers' handovers to their successors, with any outcome.
    #[serde(skip_serializing_if = "Durations::is_empty")]
    pub handovers: Durations,
    /// Rescues of its workers.
    #[serde(skip_serializing_if = "Rescues::is_empty")]
    pub rescues: Rescues,
    /// The worker that is to take over.
    pub successor: Option<Neighbour>,
    /// The worker that was replaced and is draining.
    pub predecessor: Option<Neighbour>,
}

/// The accept queue of one listener, as reported by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcceptQueueStatus {
    /// The listener's address.
    pub address: String,
    /// Connections waiting to be accepted.
    pub length: u64,
    /// The backlog.
    pub limit: u64,
    /// The inode of the listener's socket, which identifies it in the kernel's list; 0: unknown.
    pub inode: u64,
}

/// Another worker of a slot, besides its main one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Neighbour {
    /// The worker's generation in the slot.
    pub generation: Generation,
    /// The worker's release.
    pub release: ReleaseId,
    /// Its process ID, if it has a process.
    pub pid: Option<u32>,
    /// The worker's state.
    pub state: String,
    /// Open connections.
    pub open: u64,
}

/// An unexpected exit of a slot's worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Crash {
    /// The worker's generation in the slot.
    pub generation: Generation,
    /// "signal 9 (SIGKILL)"; `None` if the process could not be created.
    pub exit: Option<String>,
    /// The cause, if known.
    pub error: Option<String>,
    /// Time since the exit.
    pub age_ms: u64,
}

impl Status {
    /// Sets the totals to the sums over all slots, including removed ones, and sets the shares of
    /// the present slots.
    pub fn sum_up(&mut self) {
        let mut totals = Totals::of(&self.slots);
        let (accepted, open) = (totals.traffic.accepted, totals.traffic.open);
        for slot in &mut self.slots {
            slot.accepted_percent = percent(slot.traffic.accepted, accepted);
            slot.open_percent = percent(slot.traffic.open, open);
        }
        totals.add(&Totals::of(&self.former));
        self.totals = totals;
    }

    /// Returns the entry of the process with this ID.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<&ProcessStatus> {
        self.processes.iter().find(|process| process.pid == pid)
    }

    /// Returns the state reported to load balancers if the server is out of rotation.
    #[must_use]
    pub fn out_of_rotation(&self) -> Option<&str> {
        let words = [Rotation::Drain, Rotation::Maint].map(Rotation::name);
        words.into_iter().find(|word| self.rotation == *word)
    }

    /// Returns the reason why the server is not ready; `None` if it is ready. This is the one
    /// definition of readiness for `/readyz`, `status --ready`, the agent, the metric and the
    /// service manager's status line.
    ///
    /// A server is ready if it serves, is in rotation, listens on every listener, and every queue
    /// is served, by the slot's own worker or a sibling. An unserved queue is tolerated for
    /// [`UNSERVED_GRACE`], within which a successor or a sibling takes over. A slot that has never
    /// had a worker, or was removed, has no queue in which a client could wait.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.phase != "serving" {
            return Some(format!("the server is {}", self.phase));
        }
        if let Some(word) = self.out_of_rotation() {
            return Some(format!("the server is out of rotation ({word})"));
        }
        self.slots.iter().find_map(|slot| {
            let SlotStatus {
                slot: id, queue, ..
            } = slot;
            if slot.stalled_ms.is_some() {
                return Some(format!("slot {id} is {}", slot.condition()));
            }
            if let Some(lost) = slot.lost_listener_ms {
                let age = units::age(lost);
                return Some(format!("slot {id} lost a listener {age} ago"));
            }
            let known = matches!(&**queue, "served" | "lent" | "unbound" | "closed");
            let grace = millis(UNSERVED_GRACE);
            let waits = !known && slot.unserved_ms >= grace;
            waits.then(|| format!("slot {id} is {}, its queue {queue}", slot.state))
        })
    }

    /// Returns the text for a ready server: "ready", with any degradation.
    #[must_use]
    pub fn ready_words(&self) -> String {
        let degraded = self.degraded();
        degraded.map_or_else(
            || "ready".to_owned(),
            |what| format!("ready, degraded: {what}"),
        )
    }

    /// Returns the degradation of a server that serves every queue; `None` if there is none.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        if self.phase != "serving" {
            return None;
        }
        let missing: Vec<&SlotStatus> = self
            .slots
            .iter()
            .filter(|slot| {
                slot.queue == "lent" || matches!(&*slot.state, "backing off" | "waiting")
            })
            .collect();
        let first = missing.first()?;
        Some(format!(
            "{} of {} workers missing; slot {} is {}, its queue {}",
            missing.len(),
            self.slots.len(),
            first.slot,
            first.state,
            first.queue
        ))
    }
}

impl SlotStatus {
    /// Returns the worker's state in a few letters, or how long it has stalled.
    #[must_use]
    pub fn condition(&self) -> String {
        match self.stalled_ms {
            None => self.state.clone(),
            Some(stalled) => format!("{} {}", self.state, units::age(stalled)),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde requires a reference"
)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Totals {
    fn of(slots: &[SlotStatus]) -> Self {
        let mut totals = Self::default();
        for slot in slots {
            totals.traffic.add(&slot.traffic);
            totals.crashes = totals.crashes.saturating_add(slot.crashes);
        }
        totals
    }

    fn add(&mut self, other: &Self) {
        self.traffic.add(&other.traffic);
        self.crashes = self.crashes.saturating_add(other.crashes);
    }
}

impl SlotStatus {
    /// Returns the number of connections waiting in all of its accept queues.
    pub fn waiting(&self) -> u64 {
        let queues = self.accept_queues.iter();
        queues.fold(0, |sum, queue| sum.saturating_add(queue.length))
    }
}

impl Traffic {
    /// Returns the traffic of a slot from its counters and its number of open connections.
    #[must_use]
    pub fn read(open: u64, counter: impl Fn(Counter) -> u64) -> Self {
        let closed = CloseReason::ALL
            .map(|reason| (reason.name().to_owned(), counter(Counter::Closed(reason))));
        let refused = RefusalCause::ALL
            .map(|cause| (cause.name().to_owned(), counter(Counter::Refused(cause))));
        Self {
            open,
            accepted: counter(Counter::Accepted),
            migrated_in: counter(Counter::MigratedIn),
            migrated_out: counter(Counter::MigratedOut),
            closed: closed.into_iter().filter(|(_, times)| *times > 0).collect(),
            refused: refused
                .into_iter()
                .filter(|(_, times)| *times > 0)
                .collect(),
            untracked: counter(Counter::Untracked),
            received_bytes: counter(Counter::BytesIn),
            sent_bytes: counter(Counter::BytesOut),
            counters: Counter::all()
                .map(|one| (one.key(), counter(one)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// Adds the traffic of `other`; saturates.
    pub fn add(&mut self, other: &Self) {
        let Self {
            open,
            accepted,
            migrated_in,
            migrated_out,
            closed,
            refused,
            untracked,
            received_bytes,
            sent_bytes,
            counters,
        } = self;
        for (sum, more) in [
            (open, other.open),
            (accepted, other.accepted),
            (migrated_in, other.migrated_in),
            (migrated_out, other.migrated_out),
            (untracked, other.untracked),
            (received_bytes, other.received_bytes),
            (sent_bytes, other.sent_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
        for (sums, others) in [
            (closed, &other.closed),
            (refused, &other.refused),
            (counters, &other.counters),
        ] {
            for (name, more) in others {
                let sum = sums.entry(name.clone()).or_default();
                *sum = sum.saturating_add(*more);
            }
        }
    }
}

/// Returns `part` of `whole` in percent, rounded; 0 if `whole` is 0.
fn percent(part: u64, whole: u64) -> u8 {
    let (part, whole) = (u128::from(part.min(whole)), u128::from(whole));
    let percent = (part * 200 + whole).checked_div(whole * 2);
    percent.map_or(0, |percent| percent.min(100) as u8)
}
