//! One slot: its workers, which of them is active, and which worker serves its accept queue.
//!
//! The *active* worker serves the queue, or is about to. During a reload a *successor* starts
//! beside it; once the successor is active, the other is a *predecessor* until it has handed over
//! or drained its connections. Promotion and rollback change which worker is active, and nothing
//! else.
//!
//! Pure: no descriptor, no clock, no decision. [`super::Machine`] decides; a slot only determines
//! which changes are possible.
//!
//! Invariants:
//! - every change goes through the methods of [`Slot`], which keep the queue consistent with the
//!   workers: a bound queue is served by the slot's own worker, lent to a sibling, or recorded as
//!   unserved since a given time;
//! - no generation is used twice;
//! - at most one worker hands over at a time: to the active one, or to a sibling if the slot is
//!   retired.

mod invariants;

use serde::{Deserialize, Serialize};

use super::worker::{KillReason, Worker, WorkerState};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{Generation, ReleaseId, SlotId, WorkerId};

/// The accept queue of the slot's listeners, and the worker that accepts from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Queue {
    /// No worker of the slot has ever been Ready: the supervisor holds no listener.
    Unbound,
    /// Served by the slot's own worker.
    Served,
    /// Served by no worker. New clients wait in it.
    Unserved {
        /// Time at which its own worker stopped serving.
        since: Tick,
    },
    /// Served by a sibling, until the slot's own worker is Ready.
    Lent {
        /// Time at which its own worker stopped serving; kept, so that a second loan needs no
        /// second delay.
        since: Tick,
        /// The borrower; when it stops serving, the loan ends.
        to: WorkerId,
    },
    /// Its listeners are closed for good: no client can arrive.
    Closed,
}

/// A slot, as shown in status and logs.
#[derive(Clone, Debug)]
pub struct SlotView {
    /// Its number.
    pub id: SlotId,
    /// The generation of the active worker, or of the latest one; 0 before the first.
    pub generation: Generation,
    /// The release of that worker.
    pub release: ReleaseId,
    /// The state of its active worker, or the reason why it has none, in one or two words.
    pub state: &'static str,
    /// Whether it is backing off, or its worker was killed because it was unresponsive.
    pub is_failing: bool,
    /// Time at which that state began.
    pub since: Tick,
    /// Time since which its worker has stalled, if it has.
    pub stalled_since: Option<Tick>,
    /// Time at which its worker was last seen to make a turn, if that is checked.
    pub turned_at: Option<Tick>,
    /// The worker that accepts from its queue.
    pub queue: Queue,
    /// Total failures: unexpected exits, failed starts and failed spawns, including those before
    /// the slot left and came back.
    pub crashes: u32,
    /// The worker that starts beside the active one, or that failed to and is being killed.
    pub successor: Option<WorkerView>,
    /// The former active workers that are leaving, oldest first; rarely more than one.
    pub predecessors: Vec<WorkerView>,
}

/// A worker beside the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its identity.
    pub worker: WorkerId,
    /// Its release.
    pub release: ReleaseId,
    /// Its state, in one or two words.
    pub state: &'static str,
}

/// The active worker, or the reason why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SlotState {
    /// Its first worker has not been spawned: an earlier slot comes first.
    Vacant,
    /// The worker of this generation is active.
    Active(Generation),
    /// A worker will be spawned at `until`.
    BackingOff { until: Tick },
    /// The slot leaves: its last worker hands over, or has, and none follows.
    Retired,
    /// No worker will be spawned.
    Stopped,
}

/// The history of workers that have exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// The latest generation of all workers, including running ones.
    pub(super) born: Generation,
    /// The latest formerly active worker; 0 before the first.
    pub(super) generation: Generation,
    /// The release of that worker.
    pub(super) release: ReleaseId,
    /// Failures in a row, without a full `backoff_reset` of service between them. Reset when such a
    /// worker exits: it is not read before.
    pub(super) failures: u32,
    /// Total failures.
    pub(super) crashes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    pub(super) state: SlotState,
    /// Time at which `state` was entered.
    pub(super) since: Tick,
    /// All workers, oldest first.
    pub(super) workers: Vec<Worker>,
    pub(super) queue: Queue,
    /// The release of the next worker, if that becomes active at once.
    pub(super) next_release: ReleaseId,
    pub(super) history: History,
}

impl Slot {
    /// Creates a slot without a worker. `born` is the latest generation of an earlier slot of the
    /// same number, `release` the release of its future workers.
    pub(super) const fn new(id: SlotId, born: Generation, release: ReleaseId) -> Self {
        Self {
            id,
            state: SlotState::Vacant,
            since: Tick::ZERO,
            workers: Vec::new(),
            queue: Queue::Unbound,
            next_release: release,
            history: History {
                born,
                generation: Generation(0),
                release,
                failures: 0,
                crashes: 0,
            },
        }
    }
}

/// The workers of the slot, and their roles.
impl Slot {
    pub(super) const fn id_of(&self, generation: Generation) -> WorkerId {
        WorkerId {
            slot: self.id,
            generation,
        }
    }

    pub(super) fn worker(&self, generation: Generation) -> Option<&Worker> {
        self.workers.iter().find(|it| it.generation == generation)
    }

    pub(super) fn worker_mut(&mut self, generation: Generation) -> Option<&mut Worker> {
        let mut workers = self.workers.iter_mut();
        workers.find(|it| it.generation == generation)
    }

    pub(super) fn is_active(&self, generation: Generation) -> bool {
        self.state == SlotState::Active(generation)
    }

    pub(super) fn active(&self) -> Option<&Worker> {
        let SlotState::Active(generation) = self.state else {
            return None;
        };
        self.worker(generation)
    }

    /// Returns the active worker, if it serves.
    pub(super) fn serving(&self) -> Option<WorkerId> {
        let active = self.active().filter(|it| it.is_serving())?;
        Some(self.id_of(active.generation))
    }

    /// Returns the generation of the active worker, or of the latest one.
    pub(super) fn generation(&self) -> Generation {
        let active = self.active();
        active.map_or(self.history.generation, |it| it.generation)
    }

    /// Returns the release of the active worker, or of the latest one.
    pub(super) fn release(&self) -> ReleaseId {
        self.active().map_or(self.history.release, |it| it.release)
    }

    /// Returns the workers that are not active.
    pub(super) fn others(&self) -> impl Iterator<Item = &Worker> {
        let others = self.workers.iter();
        others.filter(|it| !self.is_active(it.generation))
    }

    /// Returns the worker that is to become active, or that failed to and is being killed.
    pub(super) fn successor(&self) -> Option<&Worker> {
        self.others().find(|it| !it.is_leaving())
    }

    /// Returns the former active workers that are leaving, oldest first.
    pub(super) fn predecessors(&self) -> impl Iterator<Item = &Worker> {
        self.others().filter(|it| it.is_leaving())
    }

    /// Returns the successor, if it is still starting.
    pub(super) fn standby(&self) -> Option<&Worker> {
        self.others().find(|it| it.is_starting())
    }

    pub(super) fn handing_over(&self) -> Option<&Worker> {
        self.workers.iter().find(|it| it.is_handing_over())
    }

    /// Returns whether it serves with `release` and no connections are being handed over to it.
    pub(super) fn serves_release(&self, release: ReleaseId) -> bool {
        self.serving().is_some() && self.release() == release && self.handing_over().is_none()
    }

    /// Returns one or two words for status and logs.
    pub(super) fn name(&self) -> &'static str {
        match self.state {
            SlotState::Active(_) => self.active().map_or("lost", |it| it.state.name()),
            SlotState::Vacant => "waiting",
            SlotState::BackingOff { .. } => "backing off",
            SlotState::Retired => "retired",
            SlotState::Stopped => "stopped",
        }
    }

    /// Returns the killed workers that are awaited, each with the time when it is abandoned.
    pub(super) fn killed(&self) -> impl Iterator<Item = (WorkerId, Tick)> {
        let workers = self.workers.iter();
        workers.filter_map(|it| Some((self.id_of(it.generation), it.killed_until()?)))
    }

    /// Returns the earliest deadline, except those of pulses and killed workers.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let mut backoff = None;
        if let SlotState::BackingOff { until } = self.state {
            backoff = Some(until);
        }
        let workers = self.workers.iter().map(|it| it.state.deadline());
        let all = workers.chain([backoff]).flatten();
        // A worker that leaves with connections that cannot migrate exits when they end.
        all.filter(|at| *at < Tick::MAX).min()
    }

    /// Returns whether one of its own workers accepts from its queue.
    fn is_served(&self) -> bool {
        match self.state {
            // A stopping worker continues to accept for the lame-duck time.
            SlotState::Active(_) => self.active().is_some_and(|it| {
                matches!(
                    it.state,
                    WorkerState::Serving { .. } | WorkerState::Stopping
                )
            }),
            // Until it has handed over.
            SlotState::Retired => self.handing_over().is_some(),
            SlotState::Vacant | SlotState::BackingOff { .. } | SlotState::Stopped => false,
        }
    }
}

/// The slot, as shown in status and logs.
impl Slot {
    pub(super) fn view(&self) -> SlotView {
        let active = self.active();
        let shown = |it: &Worker| WorkerView {
            worker: self.id_of(it.generation),
            release: it.release,
            state: it.state.name(),
        };
        SlotView {
            id: self.id,
            generation: self.generation(),
            release: self.release(),
            state: self.name(),
            is_failing: self.is_failing(),
            since: active.map_or(self.since, |it| it.since),
            stalled_since: active.and_then(|it| it.pulse.as_ref()?.stalled_since()),
            turned_at: active.and_then(|it| Some(it.pulse.as_ref()?.moved)),
            queue: self.queue,
            crashes: self.history.crashes,
            successor: self.successor().map(shown),
            predecessors: self.predecessors().map(shown).collect(),
        }
    }

    /// Returns whether it is backing off, or its worker was killed because it was unresponsive.
    fn is_failing(&self) -> bool {
        match (self.state, self.active().map(|it| &it.state)) {
            (SlotState::BackingOff { .. }, _) => true,
            (_, Some(WorkerState::Killed { why, .. })) => matches!(
                why,
                KillReason::Hung
                    | KillReason::StartTimedOut
                    | KillReason::ChannelBroken { .. }
                    | KillReason::LeaveTimedOut
            ),
            (_, Some(_) | None) => false,
        }
    }
}

/// The possible changes; each keeps the queue consistent with the workers.
impl Slot {
    /// Adds a worker of the next generation, to be Ready by `deadline`: beside the active one, or
    /// as the active one.
    pub(super) fn start(
        &mut self,
        release: ReleaseId,
        standby: bool,
        deadline: Tick,
        now: Tick,
    ) -> WorkerId {
        let generation = self.history.born.next();
        self.history.born = generation;
        self.workers.push(Worker {
            generation,
            release,
            state: WorkerState::Starting {
                deadline,
                standby,
                error: None,
            },
            since: now,
            served_since: None,
            pulse: None,
            kept: false,
            crashed: Vec::new(),
        });
        if !standby {
            self.activate(generation, now);
        }
        self.id_of(generation)
    }

    /// Adds a worker that serves already, as the active one, and perhaps another, which is to leave.
    pub(super) fn adopt(&mut self, generation: Generation, other: Option<Generation>, now: Tick) {
        for generation in [Some(generation), other].into_iter().flatten() {
            self.add(generation, WorkerState::Serving { owes_report: false }, now);
        }
        self.activate(generation, now);
    }

    /// Adds a worker that runs already.
    pub(super) fn add(&mut self, generation: Generation, state: WorkerState, now: Tick) {
        self.history.born = self.history.born.max(generation);
        self.workers.push(Worker {
            generation,
            release: self.next_release,
            state,
            since: now,
            served_since: Some(now),
            pulse: None,
            kept: false,
            crashed: Vec::new(),
        });
        self.workers.sort_by_key(|worker| worker.generation);
    }

    /// Changes the state of a worker. Returns whether the slot has that worker.
    pub(super) fn enter(&mut self, generation: Generation, next: WorkerState, now: Tick) -> bool {
        let worker = self.worker_mut(generation);
        let found = worker.map(|it| it.enter(next, now)).is_some();
        self.update_queue(now);
        found
    }

    /// Makes a worker the active one.
    pub(super) fn activate(&mut self, generation: Generation, now: Tick) {
        if !self.is_active(generation) {
            self.set_state(SlotState::Active(generation), now);
        }
    }

    /// Changes the slot's own state.
    pub(super) fn set_state(&mut self, next: SlotState, now: Tick) {
        debug_assert!(
            self.state != SlotState::Stopped,
            "slot {} cannot go from Stopped to {next:?}",
            self.id
        );
        self.record_active();
        self.state = next;
        self.since = now;
        self.update_queue(now);
    }

    /// Makes the starting worker, if there is one, the active one, because the active one is lost;
    /// the latter leaves if it still runs. Returns whether there is one.
    pub(super) fn promote_standby(&mut self, now: Tick) -> bool {
        let Some(&Worker {
            generation,
            release,
            ..
        }) = self.standby()
        else {
            return false;
        };
        if let SlotState::Active(lost) = self.state
            && let Some(it) = self.worker_mut(lost)
            && let WorkerState::Killed { leaving, .. } = &mut it.state
        {
            *leaving = true;
        }
        self.next_release = release;
        self.activate(generation, now);
        true
    }

    /// Removes a worker whose process has ended.
    pub(super) fn remove(&mut self, generation: Generation, now: Tick) -> Option<Worker> {
        let mut workers = self.workers.iter();
        let at = workers.position(|it| it.generation == generation)?;
        if self.is_active(generation) {
            self.set_state(SlotState::Vacant, now);
        }
        let worker = self.workers.remove(at);
        self.update_queue(now);
        Some(worker)
    }

    /// Ends a loan whose borrower no longer serves.
    pub(super) const fn end_loan(&mut self) {
        if let Queue::Lent { since, .. } = self.queue {
            self.queue = Queue::Unserved { since };
        }
    }

    fn record_active(&mut self) {
        if let Some((generation, release)) = self.active().map(|it| (it.generation, it.release)) {
            self.history.generation = generation;
            self.history.release = release;
        }
    }

    fn update_queue(&mut self, now: Tick) {
        if self.is_served() {
            self.queue = Queue::Served;
        } else if self.queue == Queue::Served {
            self.queue = Queue::Unserved { since: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot::new(SlotId(0), Generation(0), ReleaseId::FIRST)
    }

    fn start(slot: &mut Slot, deadline: u64, now: u64) -> Generation {
        let (deadline, now) = (Tick::from_millis(deadline), Tick::from_millis(now));
        let worker = slot.start(ReleaseId::FIRST, false, deadline, now);
        worker.generation
    }

    #[test]
    fn queue_is_unserved_once_worker_stops_serving() {
        let mut slot = slot();
        let first = start(&mut slot, 50, 0);
        assert_eq!(slot.queue, Queue::Unbound);
        let serving = WorkerState::Serving { owes_report: false };
        assert!(slot.enter(first, serving, Tick::from_millis(10)));
        assert_eq!(slot.queue, Queue::Served);
        let since = Tick::from_millis(30);
        slot.remove(first, since).unwrap();
        assert_eq!(slot.queue, Queue::Unserved { since });
        // The next worker's start does not restart that clock.
        start(&mut slot, 90, 40);
        assert_eq!(slot.queue, Queue::Unserved { since });
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "cannot go from Stopped")]
    fn stopped_slot_stays_stopped() {
        let mut slot = slot();
        slot.set_state(SlotState::Stopped, Tick::ZERO);
        start(&mut slot, 0, 0);
    }
}
