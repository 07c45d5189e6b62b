//! All decisions of the supervisor, as a state machine without side effects.
//!
//! The shell reports events through [`Machine::handle`] and [`Machine::handle_timeout`], and after
//! each call executes [`Machine::poll_action`] until it is empty; it waits no longer than
//! [`Machine::poll_timeout`]. An early or late call of `handle_timeout` is legal.
//!
//! This module must not read a clock, touch a process or a descriptor, log, or use randomness other
//! than its seed. The same seed and the same calls give the same actions.
//!
//! Invariants, checked after each call in debug builds:
//! - a slot has at most one active worker; while the machine runs, the slot has one, or a time at
//!   which the next is spawned, or waits for an earlier slot, or is leaving;
//! - a slot's first worker binds unless the slot was given listeners, every later one adopts; one
//!   slot binds at a time, by ascending number, so the slots that have a socket are the first ones
//!   and the sockets in their group are sorted by slot;
//! - a queue is lent only while its slot does not serve it, to one sibling, which serves;
//! - one operation is in progress at a time, each request is answered once, and no planned
//!   operation removes a worker before another is Ready to replace it;
//! - once a stop or a failed boot has begun nothing is spawned; once custody has ended nothing is
//!   lent; `Exit` is returned once, last, when no process is left.
//!
//! Data, without decisions: `worker`, `slot`, `plan` (an operation), `policy` (the limits),
//! `exchange` (events, actions, notices), `snapshot` (the saved state). Decisions: `reactions`
//! handles each event, `lifecycle` starts and ends workers, `succession` replaces one by another;
//! `operation` runs planned operations by `roll`, `upgrade` and `scale`; `pending` queues requests
//! until then, `cancel` ends an operation early; `lending`, `pulse` and `balance` watch queues,
//! event loops and loads. `invariants` and `liveness` check all of them.

#![warn(clippy::wildcard_enum_match_arm)]

mod balance;
mod cancel;
mod exchange;
mod invariants;
mod lending;
mod lifecycle;
mod liveness;
mod operation;
mod pending;
mod phase;
mod plan;
mod policy;
mod pulse;
mod queue;
mod reactions;
mod rescue;
mod roll;
mod scale;
mod slot;
mod snapshot;
mod succession;
mod trials;
mod upgrade;
mod worker;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::handover::HandoverEnd;
pub use exchange::{
    Action, Adopted, Answer, Canceller, Done, Event, ListenerSource, Load, Notice, Outcome, Rescue,
    ScaleTo, Wanted,
};
pub(super) use phase::Phase;
use plan::Operation;
pub use policy::{Boot, KILL_GRACE, Policy, ReloadConnections};
use queue::Pending;
pub use slot::{Queue, SlotView, WorkerView};
use slot::{Slot, SlotState};
pub use snapshot::{SNAPSHOT_VERSION, SnapshotError};
use trials::Balance;
use uppercased_ctl::clock::Tick;
pub use uppercased_ctl::identity::{Generation, SlotId, WorkerId};
pub use uppercased_ctl::identity::{ReleaseId, RequestId};
pub use uppercased_ctl::operation::OperationKind;
pub use worker::{ExitStatus, KillReason, Progress};
use worker::{Worker, WorkerState};

/// The phase of a server, as reported to the process that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Some slot has never been Ready. A boot that failed exits in this phase.
    Starting,
    /// Every slot has been Ready.
    Serving,
    /// The workers are stopping.
    Stopping {
        /// Time at which the remaining processes are killed; `None`: they have been.
        until: Option<Tick>,
    },
}

/// The effect of an event on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Applied,
    /// It names a worker that has exited or never existed, or repeats a known state.
    Stale,
}

/// The state machine of the supervisor; the module's text explains how to drive it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    policy: Policy,
    #[serde(with = "snapshot::seed")]
    rng: fastrand::Rng,
    phase: Phase,
    /// Slot `i` is at index `i`.
    slots: Vec<Slot>,
    /// The release of new workers and of the supervisor itself, while no other is being rolled out.
    release: ReleaseId,
    operation: Option<Operation>,
    pending: Pending,
    balance: Balance,
    /// A worker of a slot that is yet to be added must have a later generation than this.
    born_before: Generation,
    /// Total failures of slots that have left, by number. Entries of existing slots are ignored.
    former_crashes: Vec<u32>,
    /// Actions not fetched yet.
    actions: VecDeque<Action>,
    stale_events: u64,
    /// Invariants found violated so far.
    repairs: u64,
}

impl Machine {
    /// Returns a machine that waits for [`Event::Boot`]. `seed` feeds the jitter of the backoff.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        let release = ReleaseId::FIRST;
        let born_before = Generation(0);
        let slots =
            (0..policy.workers.max(1)).map(|index| Slot::new(SlotId(index), born_before, release));
        Self {
            slots: slots.collect(),
            release,
            operation: None,
            pending: Pending::default(),
            balance: Balance::default(),
            born_before,
            former_crashes: Vec::new(),
            policy,
            rng: fastrand::Rng::with_seed(seed),
            phase: Phase::Idle,
            actions: VecDeque::new(),
            stale_events: 0,
            repairs: 0,
        }
    }

    /// Returns the same machine, but with listeners for the first `slots` slots: their workers
    /// adopt them, and clients in their queues have waited since `now`.
    #[must_use]
    pub fn with_listeners(mut self, slots: u16, now: Tick) -> Self {
        for slot in self.slots.iter_mut().take(slots.into()) {
            slot.queue = Queue::Unserved { since: now };
        }
        self
    }

    /// Begins with workers that serve already, of the first release, instead of a boot: in some slots,
    /// which have listeners, one and perhaps another, which hands its connections over to it. Those in
    /// `leaving` leave within the time beside them, also from slots that have left.
    pub fn adopt(&mut self, workers: &[Adopted], leaving: &[(WorkerId, Duration)], now: Tick) {
        self.phase = Phase::Serving;
        for Adopted { worker, other } in workers {
            let Some(slot) = self.slots.get_mut(worker.slot.index()) else {
                continue;
            };
            slot.adopt(worker.generation, *other, now);
            if let Some(other) = other {
                let from = slot.id_of(*other);
                // What cannot migrate stays there until its clients leave.
                self.hand_over(from, *worker, true, false, now);
            }
        }
        for (worker, within) in leaving {
            self.adopt_leaving(*worker, *within, now);
        }
        self.start_waiting(now);
        self.spread();
        self.actions.push_back(Action::Announce);
        self.reconcile(now);
    }

    /// Returns the machine saved in `snapshot`.
    ///
    /// # Errors
    /// [`SnapshotError::Version`] if another version wrote it, [`SnapshotError::Contradiction`] if
    /// no machine can have been in that state.
    pub fn restore(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        let Snapshot { version, machine } = snapshot;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        match machine.contradiction() {
            None => Ok(machine),
            Some(what) => Err(SnapshotError::Contradiction { what }),
        }
    }

    /// Handles an event. After [`Action::Exit`] events have no effect.
    pub fn handle(&mut self, event: Event, now: Tick) {
        if self.phase == Phase::Ended {
            return;
        }
        let reception = match &event {
            Event::Boot => self.boot(now),
            Event::Ready { worker } => self.ready(*worker, now),
            Event::StartFailed { worker, cause } => self.start_failed(*worker, cause, now),
            Event::SpawnFailed { worker, cause } => self.spawn_failed(*worker, cause, now),
            Event::Exited {
                worker,
                exit,
                cause,
            } => self.exited(*worker, *exit, cause.as_deref(), now),
            Event::Kept { worker, kept } => self.kept(*worker, *kept),
            Event::Rescued { worker, rescue } => self.rescued(*worker, rescue, now),
            Event::ChannelBroken { worker, cause } => self.channel_broken(*worker, cause, now),
            Event::ChannelClosed { worker } => self.channel_closed(*worker, now),
            Event::Stop { by } => self.stop(by, now),
            Event::Reload {
                request,
                release,
                policy,
                drain,
            } => self.reload(*request, *release, policy, *drain, now),
            Event::Upgrade { request, drain } => self.upgrade(*request, *drain, now),
            Event::PreflightPassed => self.preflight_passed(),
            Event::PreflightFailed { cause } => self.preflight_failed(cause),
            Event::ExecFailed { cause } => self.exec_failed(cause),
            Event::Resumed { release, policy } => self.resumed(*release, policy),
            Event::Scale { request, to, drain } => self.scale(*request, *to, *drain, now),
            Event::Requested {
                request,
                wanted,
                wait,
                drain,
            } => self.requested(*request, *wanted, (*wait, *drain), now),
            Event::Withdrawn { request } => self.withdraw(*request),
            Event::Cancel { request, by } => self.cancel(*request, *by, now),
            Event::NotBegun {
                request,
                wanted,
                cause,
            } => self.not_begun(*request, *wanted, cause),
            Event::HandedOver {
                worker,
                moved,
                left,
                end,
            } => self.handed_over(*worker, (*moved, *left), end, now),
            Event::Rebalanced { worker, moved, end } => self.rebalanced(*worker, *moved, end, now),
            Event::Loads { loads } => self.loads(loads, now),
            Event::Progress { from, to, progress } => self.progress(*from, *to, *progress, now),
            Event::Pulse { worker, turns } => self.pulse(*worker, *turns, now),
        };
        match reception {
            Effect::Applied => {}
            Effect::Stale => {
                self.stale_events += 1;
                let total = self.stale_events;
                self.notice(Notice::StaleEvent { event, total });
            }
        }
        self.reconcile(now);
    }

    /// Acts on every deadline that is not later than `now`; there may be none.
    pub fn handle_timeout(&mut self, now: Tick) {
        self.abandon_killed(now);
        match &self.phase {
            Phase::Idle | Phase::BootFailed { .. } | Phase::Forced | Phase::Ended => {}
            Phase::Booting { .. } | Phase::Serving => {
                self.begin_timeout(now);
                self.preflight_timeout(now);
                self.balance_timeout(now);
                for index in 0..self.slots.len() {
                    self.slot_timeout(index, now);
                }
            }
            Phase::Draining { since, deadline } => {
                if *deadline <= now {
                    let after = now.since(*since);
                    self.kill_stopping(|worker| Some(Notice::StillDraining { worker, after }), now);
                }
            }
        }
        self.reconcile(now);
    }

    /// Returns the next action, if any. Call this until `None` after each `handle` and
    /// `handle_timeout`, and execute the actions in that sequence.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the latest time at which to call [`Self::handle_timeout`]; `None`: only an event can
    /// change anything. Right after a `handle_timeout(now)` it is later than `now`, so a waiting
    /// loop never spins.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Tick> {
        let phase = match &self.phase {
            Phase::Idle | Phase::BootFailed { .. } | Phase::Forced | Phase::Ended => None,
            Phase::Draining { deadline, .. } => Some(*deadline),
            Phase::Booting { .. } | Phase::Serving => {
                let lendable = self.borrower().is_some();
                let due = |(index, slot): (usize, &Slot)| {
                    let loan = self.loan_due(slot, lendable);
                    [slot.deadline(), loan, self.sample_due(index)]
                };
                let slots = self.slots.iter().enumerate().flat_map(due).flatten();
                slots
                    .chain(self.operation_deadline())
                    .chain(self.begin_deadline())
                    .chain(self.balance_deadline())
                    .min()
            }
        };
        phase.into_iter().chain(self.killed_deadline()).min()
    }

    /// Returns the whole state of the machine, including actions not yet fetched.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: SNAPSHOT_VERSION,
            machine: self.clone(),
        }
    }

    /// Returns every slot, in order.
    pub fn slots(&self) -> impl Iterator<Item = SlotView> {
        self.slots.iter().map(Slot::view)
    }

    /// Returns the total failures of a slot that has left; 0 if it never existed.
    #[must_use]
    pub fn crashes_before(&self, slot: SlotId) -> u32 {
        self.former_crashes.get(slot.index()).copied().unwrap_or(0)
    }

    /// Returns the release in force: that of a new worker while no other is being rolled out.
    #[must_use]
    pub const fn release(&self) -> ReleaseId {
        self.release
    }

    /// Returns the limits in force, the number of workers included.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the phase in one or two words: "booting", "serving", "draining" and so on.
    #[must_use]
    pub const fn phase_name(&self) -> &'static str {
        match &self.phase {
            Phase::Idle => "idle",
            Phase::Booting { .. } => "booting",
            Phase::Serving => "serving",
            Phase::BootFailed { .. } => "boot failed",
            Phase::Draining { .. } => "draining",
            Phase::Forced => "killing",
            Phase::Ended => "ended",
        }
    }

    /// Returns the phase, reduced to three.
    #[must_use]
    pub const fn life(&self) -> Life {
        match &self.phase {
            Phase::Idle | Phase::Booting { .. } | Phase::BootFailed { .. } => Life::Starting,
            Phase::Serving => Life::Serving,
            Phase::Draining { deadline, .. } => Life::Stopping {
                until: Some(*deadline),
            },
            Phase::Forced | Phase::Ended => Life::Stopping { until: None },
        }
    }

    /// Returns the number of events dropped because they were late, repeated, or about an unknown
    /// worker.
    #[must_use]
    pub const fn stale_events(&self) -> u64 {
        self.stale_events
    }
}

/// The whole state of a machine. Created by `Machine::snapshot`, consumed by `Machine::restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    pub version: u32,
    machine: Machine,
}

impl Snapshot {
    /// Encodes the snapshot for [`Snapshot::from_json`] of this or a later program.
    ///
    /// # Errors
    /// [`SnapshotError::Format`], which no state of the machine is known to cause.
    pub fn to_json(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Decodes the output of [`Snapshot::to_json`].
    ///
    /// # Errors
    /// [`SnapshotError::Version`] before anything else is read, so that another program's format is
    /// reported as such and not as a missing field; [`SnapshotError::Format`] otherwise.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let Header { version } = serde_json::from_slice(bytes)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Helpers shared by the submodules.
impl Machine {
    /// Makes operation, pulses, loans and the exit consistent with the changes of the call. This is
    /// the only place that does, so that no reaction has to track loans or waiting requests.
    fn reconcile(&mut self, now: Tick) {
        self.end_broken_loans();
        self.advance(now);
        self.begin_pending(now);
        self.end_broken_loans();
        self.update_pulses(now);
        self.update_balance(now);
        match &self.phase {
            Phase::Booting { .. } | Phase::Serving => self.lend_due(now),
            Phase::BootFailed { cause } => {
                let cause = cause.clone();
                self.end_if_empty(Outcome::Failed { cause });
            }
            Phase::Draining { .. } | Phase::Forced => self.end_if_empty(Outcome::Clean),
            Phase::Idle | Phase::Ended => {}
        }
        self.request_exec();
        self.check_invariants();
    }

    fn end_if_empty(&mut self, outcome: Outcome) {
        if self.slots.iter().all(|slot| slot.workers.is_empty()) {
            self.refuse_beginning("the server is stopping");
            self.phase = Phase::Ended;
            self.actions.push_back(Action::Exit(outcome));
        }
    }

    fn notice(&mut self, notice: Notice) {
        self.actions.push_back(Action::Notice(notice));
    }

    /// Reports a violated invariant. The call continues without the value concerned.
    fn repair(&mut self, what: &'static str) {
        debug_assert!(false, "invariant of the supervisor broken: {what}");
        self.repairs += 1;
        let (what, total) = (what.to_owned(), self.repairs);
        self.notice(Notice::InvariantBroken { what, total });
    }

    /// Returns the index of the worker's slot, and the worker.
    fn find(&self, worker: WorkerId) -> Option<(usize, &Worker)> {
        let index = worker.slot.index();
        Some((index, self.slots.get(index)?.worker(worker.generation)?))
    }

    fn find_mut(&mut self, worker: WorkerId) -> Option<(usize, &mut Worker)> {
        let index = worker.slot.index();
        let slot = self.slots.get_mut(index)?;
        Some((index, slot.worker_mut(worker.generation)?))
    }

    fn workers_of(&self, index: usize) -> Vec<WorkerId> {
        let slot = &self.slots[index];
        let workers = slot.workers.iter();
        workers.map(|it| slot.id_of(it.generation)).collect()
    }

    fn enter(&mut self, worker: WorkerId, state: WorkerState, now: Tick) {
        let slot = &mut self.slots[worker.slot.index()];
        if !slot.enter(worker.generation, state, now) {
            self.repair("a worker that changes its state does not exist");
        }
    }

    fn is_boot_slot(&self, slot: SlotId) -> bool {
        self.phase == (Phase::Booting { slot })
    }
}

#[cfg(test)]
mod tests;
