//! The status of a server as plain data.
//!
//! Invariants: every field has a default, so that a reader skips what it does not know and fills in
//! what is missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::identity::{Generation, ReleaseId, SlotId};
use crate::limits::UNSERVED_GRACE;
use crate::metrics::{CloseReason, Counter, RefusalCause};

use super::durations::Durations;
use super::figures;
use super::rotation::{AgentAnswers, Rotation};
use super::sandboxed::Sandboxed;

/// A whole server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the supervisor's program.
    pub version: String,
    /// The supervisor's process number.
    pub pid: u32,
    /// Since it was started; an upgrade does not begin it anew.
    pub uptime_ms: u64,
    /// "serving", or what else it is doing: "booting", "draining".
    pub phase: String,
    /// Whether load balancers are told to send new clients: "in", "drain", "maint".
    pub rotation: String,
    /// The planned operation that is under way, and how far it is.
    pub operation: Option<String>,
    /// Requests that wait for their turn, the next one first: "reload (signal)".
    pub pending: Vec<String>,
    /// What all workers run, or will when the operation is done.
    pub release: ReleaseId,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// How long planned operations took, by kind and by how they ended.
    pub operations: Vec<OperationTimes>,
    /// The one that ended last.
    pub last_operation: Option<LastOperation>,
    /// Path of the control socket, if there is one.
    pub control: Option<String>,
    /// The admin endpoint, if there is one.
    pub admin: Option<AdminStatus>,
    /// The service manager that it tells how it is, if there is one.
    pub service_manager: Option<ServiceManagerStatus>,
    /// Connections that all slots together may hold; 0 if it is not known.
    pub capacity: u64,
    /// All slots together.
    pub totals: Totals,
    /// In order of their numbers.
    pub slots: Vec<SlotStatus>,
    /// Slots that are no more, with what they have counted; one that comes back goes on from there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<SlotStatus>,
}

/// The process that answers over HTTP, and load balancers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminStatus {
    /// Where it answers over HTTP: an address, or the path of a socket; empty if it does not.
    pub address: String,
    /// Its process number; `None` while there is no process.
    pub pid: Option<u32>,
    /// Where it answers load balancers, if it does.
    pub agent: Option<String>,
    /// What this process has told them, as of its last question; `None` if it does not.
    pub agent_answers: Option<AgentAnswers>,
    /// How often it ended and should not have.
    pub deaths: u64,
    /// How it has locked itself in; `None` until it has.
    pub sandbox: Option<Sandboxed>,
}

/// How a service manager takes what it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceManagerStatus {
    /// Messages that it has taken.
    pub taken: u64,
    /// Times that it did not take one, which is offered again.
    pub refused: u64,
    /// Messages that wait to be taken.
    pub waiting: u64,
    /// It has been told to let go of listeners of slots that are no more, and may not have yet.
    pub lets_go: bool,
    /// Why its watchdog is not fed, if so.
    pub unfed: Option<String>,
}

/// How long planned operations of one kind took that ended in one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationTimes {
    /// "restart", "upgrade" or "scale".
    pub what: String,
    /// "done" or "failed".
    pub outcome: String,
    /// From the request to the verdict.
    #[serde(flatten)]
    pub times: Durations,
}

impl OperationTimes {
    const KINDS: [&str; 3] = ["reload", "upgrade", "scale"];
    const OUTCOMES: [&str; 2] = ["done", "failed"];

    /// What and outcome of each that there can be.
    pub fn all_kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
        let outcomes = |what| Self::OUTCOMES.map(|outcome| (what, outcome));
        Self::KINDS.into_iter().flat_map(outcomes)
    }
}

/// The planned operation that ended last; one that was refused never began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastOperation {
    /// "reload", "upgrade", "scale to 6".
    pub what: String,
    /// "done" or "failed".
    pub outcome: String,
    /// Why it failed.
    pub cause: Option<String>,
    /// From the request to the verdict.
    pub took_ms: u64,
    /// How long ago it ended.
    pub age_ms: u64,
}

/// All slots together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// What they serve and have served.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Workers that ended and should not have.
    pub deaths: u64,
}

/// What one slot's workers serve and have served, all generations together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Connections now.
    pub open: u64,
    /// Connections taken from an accept queue.
    pub accepted: u64,
    /// Connections that came from another worker, live.
    pub moved_in: u64,
    /// Connections that another worker took over, live.
    pub moved_out: u64,
    /// Connections ended, by reason; reasons that never happened are left out.
    pub closed: BTreeMap<String, u64>,
    /// Connections taken and refused at once, by cause; causes that never happened are left out.
    pub refused: BTreeMap<String, u64>,
    /// Connections of sources that could not be remembered, so that no limit on them held.
    pub untracked: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Bytes sent to clients.
    pub bytes_out: u64,
    /// Every counter there is, by [`Counter::key`]; those at zero are left out.
    pub counters: BTreeMap<String, u64>,
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotStatus {
    /// Which.
    pub slot: SlotId,
    /// The worker's process number; `None` if there is no process.
    pub pid: Option<u32>,
    /// The present worker, or the latest one.
    pub generation: Generation,
    /// What it runs.
    pub release: ReleaseId,
    /// The CPU that the worker is pinned to; `None` if it may run on several.
    pub cpu: Option<u16>,
    /// How the worker has locked itself in; `None` if it has not said so.
    pub sandbox: Option<Sandboxed>,
    /// What it is doing.
    pub state: String,
    /// For how long.
    pub age_ms: u64,
    /// "unbound", "served", "unserved" or "lent".
    pub queue: String,
    /// For how long nobody has served the queue; 0 if somebody does.
    #[serde(skip_serializing_if = "is_zero")]
    pub unserved_ms: u64,
    /// For how long the worker has not run its loop, if it should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled_ms: Option<u64>,
    /// For how long one of its listeners has listened no more and could not be bound again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_listener_ms: Option<u64>,
    /// The sibling that serves the queue, if it is lent.
    pub lent_to: Option<SlotId>,
    /// Who waits, for each address that the slot listens on.
    pub accept_queues: Vec<AcceptQueueStatus>,
    /// What it serves and has served.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Its share of the connections that these slots have taken from their accept queues, in
    /// percent, rounded; 0 before the first one.
    pub accepted_percent: u8,
    /// Its share of the connections that are open now, likewise.
    pub open_percent: u8,
    /// Workers of this slot that ended and should not have.
    pub deaths: u64,
    /// The latest of them.
    pub last_death: Option<LastDeath>,
    /// How long its workers took from the fork to Ready.
    #[serde(skip_serializing_if = "Durations::is_empty")]
    pub starts: Durations,
    /// How long its workers took to hand over to their successors, however that ended.
    #[serde(skip_serializing_if = "Durations::is_empty")]
    pub handovers: Durations,
    /// The worker that is to take over.
    pub successor: Option<Neighbour>,
    /// The worker that has been relieved and still finishes.
    pub predecessor: Option<Neighbour>,
}

/// The accept queue of one listener, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcceptQueueStatus {
    /// The listener's address.
    pub address: String,
    /// Connections that wait to be accepted.
    pub length: u64,
    /// How many may wait.
    pub limit: u64,
    /// The inode of the listener's socket, by which it is found in the kernel's list; 0: unknown.
    pub inode: u64,
}

/// Another worker of a slot, beside its main one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Neighbour {
    /// Which of the slot's workers it is.
    pub generation: Generation,
    /// What it runs.
    pub release: ReleaseId,
    /// Its process number, if it has a process.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: String,
    /// Connections it has.
    pub open: u64,
}

/// How a slot's worker ended last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastDeath {
    /// Which of the slot's workers it was.
    pub generation: Generation,
    /// "signal 9 (SIGKILL)"; `None` if the process could not even be made.
    pub how: Option<String>,
    /// Why, if anybody said so.
    pub cause: Option<String>,
    /// How long ago.
    pub age_ms: u64,
}

impl Status {
    /// Sets the totals to the sums over all slots, former ones too, and the present ones' shares of
    /// what they have.
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

    /// In which way it was taken out of rotation, if it was.
    #[must_use]
    pub fn out_of_rotation(&self) -> Option<&str> {
        let words = [Rotation::Drain, Rotation::Maint].map(Rotation::name);
        words.into_iter().find(|word| self.rotation == *word)
    }

    /// Why new clients should go elsewhere; `None` if the server is ready. The one definition of
    /// readiness: `/readyz`, `status --ready`, the agent, the metric and the service manager's
    /// status line use it.
    ///
    /// A server is ready if it serves, is in rotation, listens on every listener, and somebody
    /// accepts from every queue: the slot's own worker or a sibling. A queue without anybody is tolerated for
    /// [`UNSERVED_GRACE`], within which a successor or a sibling takes over. A slot that has never
    /// had a worker, or has left, has no queue that anybody could wait in.
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
                let age = figures::age(lost);
                return Some(format!("slot {id} lost a listener {age} ago"));
            }
            let known = matches!(&**queue, "served" | "lent" | "unbound" | "closed");
            let grace = u64::try_from(UNSERVED_GRACE.as_millis()).unwrap_or(u64::MAX);
            let waits = !known && slot.unserved_ms >= grace;
            waits.then(|| format!("slot {id} is {}, its queue {queue}", slot.state))
        })
    }

    /// What a server that is ready is told to be: "ready", with what is missing.
    #[must_use]
    pub fn ready_words(&self) -> String {
        let degraded = self.degraded();
        degraded.map_or_else(
            || "ready".to_owned(),
            |what| format!("ready, degraded: {what}"),
        )
    }

    /// What is missing although every queue is served; `None` if nothing is.
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
    /// What its worker is doing, in a few letters: the state, or for how long it has stalled.
    #[must_use]
    pub fn condition(&self) -> String {
        match self.stalled_ms {
            None => self.state.clone(),
            Some(stalled) => format!("{} {}", self.state, figures::age(stalled)),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Totals {
    fn of(slots: &[SlotStatus]) -> Self {
        let mut totals = Self::default();
        for slot in slots {
            totals.traffic.add(&slot.traffic);
            totals.deaths = totals.deaths.saturating_add(slot.deaths);
        }
        totals
    }

    fn add(&mut self, other: &Self) {
        self.traffic.add(&other.traffic);
        self.deaths = self.deaths.saturating_add(other.deaths);
    }
}

impl SlotStatus {
    /// Connections that wait to be accepted, in all of its queues.
    pub fn waiting(&self) -> u64 {
        let queues = self.accept_queues.iter();
        queues.fold(0, |sum, queue| sum.saturating_add(queue.length))
    }
}

impl Traffic {
    /// From a slot's counters and its number of open connections.
    #[must_use]
    pub fn read(open: u64, counter: impl Fn(Counter) -> u64) -> Self {
        let closed = CloseReason::ALL
            .map(|reason| (reason.name().to_owned(), counter(Counter::Closed(reason))));
        let refused = RefusalCause::ALL
            .map(|cause| (cause.name().to_owned(), counter(Counter::Refused(cause))));
        Self {
            open,
            accepted: counter(Counter::Accepted),
            moved_in: counter(Counter::MovedIn),
            moved_out: counter(Counter::MovedOut),
            closed: closed.into_iter().filter(|(_, times)| *times > 0).collect(),
            refused: refused
                .into_iter()
                .filter(|(_, times)| *times > 0)
                .collect(),
            untracked: counter(Counter::Untracked),
            bytes_in: counter(Counter::BytesIn),
            bytes_out: counter(Counter::BytesOut),
            counters: Counter::all()
                .map(|one| (one.key(), counter(one)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// Adds another one's; saturates.
    pub fn add(&mut self, other: &Self) {
        let Self {
            open,
            accepted,
            moved_in,
            moved_out,
            closed,
            refused,
            untracked,
            bytes_in,
            bytes_out,
            counters,
        } = self;
        for (sum, more) in [
            (open, other.open),
            (accepted, other.accepted),
            (moved_in, other.moved_in),
            (moved_out, other.moved_out),
            (untracked, other.untracked),
            (bytes_in, other.bytes_in),
            (bytes_out, other.bytes_out),
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

/// `part` of `whole` in percent, to the nearest; 0 of nothing.
fn percent(part: u64, whole: u64) -> u8 {
    let (part, whole) = (u128::from(part.min(whole)), u128::from(whole));
    let percent = (part * 200 + whole).checked_div(whole * 2);
    percent.map_or(0, |percent| percent.min(100) as u8)
}
