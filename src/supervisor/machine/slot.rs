//! One slot: its workers, which of them is active, and who serves its accept queue.
//!
//! The *active* worker serves the queue, or is about to. During a restart a *successor* starts
//! beside it; once that one is active, the other is a *predecessor* until it has handed over, or
//! drained, what it has. Promotion and rollback change which worker is active, and nothing else.
//!
//! Pure: no descriptor, no clock, no decision. [`super::Machine`] decides; a slot only knows which
//! changes are possible at all.
//!
//! Invariants:
//! - every change goes through the methods of [`Slot`], which keep the queue in line with the
//!   workers: a queue that has been bound is served by the slot's own worker, lent to a sibling, or
//!   known to be unserved since a given time. It is never forgotten;
//! - no generation is used twice;
//! - at most one worker hands over at a time, to the active one, or to a sibling if the slot is
//!   retired.

mod invariants;

use serde::{Deserialize, Serialize};

use super::worker::{Death, KillReason, Worker, WorkerState};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{Generation, ReleaseId, SlotId, WorkerId};

/// The latest failure of a slot, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDeath {
    /// The worker that failed.
    pub worker: WorkerId,
    /// How it ended; `None` if the process could not be made.
    pub how: Option<Death>,
    /// The worker's own error message, or the supervisor's reason to kill it.
    pub cause: Option<String>,
    /// When the supervisor learned of it.
    pub at: Tick,
}

/// The accept queue of the slot's listeners, and who accepts from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Queue {
    /// No worker of the slot has ever been Ready: the supervisor holds no listener.
    Unbound,
    /// The slot's own worker.
    Served,
    /// Nobody. New clients wait in it.
    Unserved {
        /// When its own worker stopped serving.
        since: Tick,
    },
    /// A sibling, until the slot's own worker is back.
    Lent {
        /// When its own worker stopped serving; kept, so that a second loan needs no second wait.
        since: Tick,
        /// The borrower; it serves, or the loan has ended.
        to: WorkerId,
    },
    /// Nobody, for good: its listeners are closed, and no client can come.
    Closed,
}

/// One slot as status and logs see it.
#[derive(Clone, Debug)]
pub struct SlotView<'a> {
    /// Its number.
    pub id: SlotId,
    /// The generation of the active worker, or of the latest one; 0 before the first.
    pub generation: Generation,
    /// What that one runs, or ran.
    pub release: ReleaseId,
    /// What its active worker is doing, or why it has none, in a word or two.
    pub state: &'static str,
    /// It waits for its next try, or its worker had to be killed because it did not answer.
    pub is_ailing: bool,
    /// When that began.
    pub since: Tick,
    /// Since when its worker has made no turn of its loop although it was asked to.
    pub stalled_since: Option<Tick>,
    /// Who accepts from its queue.
    pub queue: Queue,
    /// Failures of all time: unexpected exits, starts and spawns that failed; also those from
    /// before the slot left and came back.
    pub deaths: u32,
    /// The latest of them.
    pub last_death: Option<&'a LastDeath>,
    /// The worker that starts beside the active one, or failed to and is being killed.
    pub successor: Option<WorkerView>,
    /// The workers that were active and leave, the oldest first; rarely more than one.
    pub predecessors: Vec<WorkerView>,
}

/// A worker beside the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its name.
    pub worker: WorkerId,
    /// What it runs.
    pub release: ReleaseId,
    /// What it is doing, in a word or two.
    pub state: &'static str,
}

/// The active worker, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SlotState {
    /// Its first worker has not been spawned: its turn has not come.
    Vacant,
    /// The worker of this generation is active.
    Active(Generation),
    /// A worker is spawned at `until`.
    BackingOff { until: Tick },
    /// The slot leaves: its last worker hands over, or has, and no worker follows.
    Retired,
    /// No worker will be spawned.
    Stopped,
}

/// What a slot remembers of workers that have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// The latest generation of all workers, living ones included.
    pub(super) born: Generation,
    /// The latest worker that is not active any more; 0 before the first.
    pub(super) generation: Generation,
    /// What that worker ran.
    pub(super) release: ReleaseId,
    /// Failures in a row, without a full `backoff_reset` of service between them. Reset when such
    /// a worker ends, not while it lives: it is not read before.
    pub(super) failures: u32,
    /// Failures of all time.
    pub(super) deaths: u32,
    pub(super) last_death: Option<LastDeath>,
}

/// A slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    pub(super) state: SlotState,
    /// When `state` was entered.
    pub(super) since: Tick,
    /// Oldest first.
    pub(super) workers: Vec<Worker>,
    pub(super) queue: Queue,
    /// What the next worker runs, if that is to become active at once.
    pub(super) next_release: ReleaseId,
    pub(super) history: History,
}

impl Slot {
    /// Creates a slot without a worker. `born` is the latest generation of an earlier slot of the
    /// same number, `release` what its workers will run.
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
                deaths: 0,
                last_death: None,
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
        match self.state {
            SlotState::Active(generation) => self.worker(generation),
            SlotState::Vacant
            | SlotState::BackingOff { .. }
            | SlotState::Retired
            | SlotState::Stopped => None,
        }
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

    /// Returns what the active worker runs, or the latest one ran.
    pub(super) fn release(&self) -> ReleaseId {
        self.active().map_or(self.history.release, |it| it.release)
    }

    /// Returns the workers that are not active.
    pub(super) fn others(&self) -> impl Iterator<Item = &Worker> {
        let others = self.workers.iter();
        others.filter(|it| !self.is_active(it.generation))
    }

    /// Returns the worker that is to become active, or failed to and is being killed.
    pub(super) fn successor(&self) -> Option<&Worker> {
        self.others().find(|it| !it.is_leaving())
    }

    /// Returns the workers that were active and leave, oldest first.
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

    /// Whether it serves with `release` and no connection is on its way to it.
    pub(super) fn is_renewed(&self, release: ReleaseId) -> bool {
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

    /// Returns the workers that were killed and are awaited, each with when it is given up.
    pub(super) fn killed(&self) -> impl Iterator<Item = (WorkerId, Tick)> {
        let workers = self.workers.iter();
        workers.filter_map(|it| Some((self.id_of(it.generation), it.killed_until()?)))
    }

    /// Returns the earliest deadline, pulses and killed workers apart.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let backoff = match self.state {
            SlotState::BackingOff { until } => Some(until),
            SlotState::Vacant | SlotState::Active(_) | SlotState::Retired | SlotState::Stopped => {
                None
            }
        };
        let workers = self.workers.iter().filter_map(|it| it.state.deadline());
        backoff
            .into_iter()
            .chain(workers)
            // A worker that leaves with connections that cannot move ends with them.
            .filter(|at| *at < Tick::MAX)
            .min()
    }

    /// Whether one of its own workers accepts from its queue.
    fn is_served(&self) -> bool {
        match self.state {
            // A stopping worker goes on accepting for the lame-duck time.
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

/// How status and logs see it.
impl Slot {
    pub(super) fn view(&self) -> SlotView<'_> {
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
            is_ailing: self.is_ailing(),
            since: active.map_or(self.since, |it| it.since),
            stalled_since: active.and_then(|it| it.pulse.as_ref()?.stalled_since()),
            queue: self.queue,
            deaths: self.history.deaths,
            last_death: self.history.last_death.as_ref(),
            successor: self.successor().map(shown),
            predecessors: self.predecessors().map(shown).collect(),
        }
    }

    /// Whether it waits for its next try, or its worker had to be killed because it did not answer.
    fn is_ailing(&self) -> bool {
        match (self.state, self.active().map(|it| &it.state)) {
            (SlotState::BackingOff { .. }, _) => true,
            (_, Some(WorkerState::Killed { why, .. })) => matches!(
                why,
                KillReason::Hung
                    | KillReason::StartTimedOut
                    | KillReason::ChannelBroken { .. }
                    | KillReason::Overstayed
            ),
            (_, Some(_) | None) => false,
        }
    }
}

/// The changes that are possible; each keeps the queue in line with the workers.
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
        });
        if !standby {
            self.activate(generation, now);
        }
        self.id_of(generation)
    }

    /// Changes what a worker is doing. Returns whether that worker is here.
    pub(super) fn enter(&mut self, generation: Generation, next: WorkerState, now: Tick) -> bool {
        let worker = self.worker_mut(generation);
        let found = worker.map(|it| it.enter(next, now)).is_some();
        self.update_queue(now);
        found
    }

    /// Makes a worker the active one.
    pub(super) fn activate(&mut self, generation: Generation, now: Tick) {
        if !self.is_active(generation) {
            self.rest(SlotState::Active(generation), now);
        }
    }

    /// Changes the slot's own state.
    pub(super) fn rest(&mut self, next: SlotState, now: Tick) {
        debug_assert!(
            self.state != SlotState::Stopped,
            "slot {} cannot go from Stopped to {next:?}",
            self.id
        );
        self.remember_active();
        self.state = next;
        self.since = now;
        self.update_queue(now);
    }

    /// Makes the worker that is still starting the active one, if there is one, because the active
    /// one is lost; what is left of that one leaves. Returns whether there is one.
    pub(super) fn follow(&mut self, now: Tick) -> bool {
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
            self.rest(SlotState::Vacant, now);
        }
        let worker = self.workers.remove(at);
        self.update_queue(now);
        Some(worker)
    }

    /// Ends a loan whose borrower no longer serves.
    pub(super) const fn end_loan(&mut self) {
        match self.queue {
            Queue::Lent { since, .. } => self.queue = Queue::Unserved { since },
            Queue::Unbound | Queue::Served | Queue::Unserved { .. } | Queue::Closed => {}
        }
    }

    fn remember_active(&mut self) {
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
        slot.rest(SlotState::Stopped, Tick::ZERO);
        start(&mut slot, 0, 0);
    }
}
