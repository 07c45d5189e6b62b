//! The steps that the reactions are made of: start a worker, kill it, bury it, renew it, halt all.
//!
//! Invariant: whoever leaves a slot without a process gives it a time for the next one, or the
//! machine is on its way out ([`Machine::gone`] is the only place where a process ends).

use std::fmt;
use std::time::Duration;

use super::super::backoff::{Retry, retry};
use super::operation::Stage;
use super::slot::{PredecessorStage, Slot};
use super::{
    Action, Boot, Death, KILL_GRACE, KillReason, LastDeath, ListenerSource, Machine, Notice, Phase,
    Policy, Queue, SlotId, SlotState, WorkerId,
};
use uppercased_ctl::clock::Tick;

/// What is known of a process that is no more.
pub(super) struct Obituary {
    /// `None`: it never came to be.
    pub(super) how: Option<Death>,
    /// `None`: it never was Ready.
    pub(super) served_for: Option<Duration>,
    pub(super) cause: Option<String>,
}

impl fmt::Display for Obituary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.cause.as_deref();
        match (self.how, cause, self.served_for) {
            (None, cause, _) => {
                write!(
                    out,
                    "it cannot be spawned: {}",
                    cause.unwrap_or("no cause given")
                )
            }
            (Some(how), None, None) => write!(out, "it ended before it was ready: {how}"),
            (Some(how), Some(cause), None) => {
                write!(out, "it ended before it was ready: {how} ({cause})")
            }
            (Some(how), None, Some(served)) => {
                write!(out, "it died after {served:?} of service: {how}")
            }
            (Some(how), Some(cause), Some(served)) => {
                write!(out, "it died after {served:?} of service: {how} ({cause})")
            }
        }
    }
}

impl Machine {
    /// Starts the first worker of `slot`; past the last slot, the boot is done.
    pub(super) fn boot_slot(&mut self, slot: SlotId, now: Tick) {
        if slot.index() < self.slots.len() {
            self.phase = Phase::Booting { slot };
            self.spawn(slot.index(), now);
        } else {
            self.phase = Phase::Serving;
            self.spread();
            self.actions.push_back(Action::Announce);
        }
    }

    /// Whether a worker that cannot start at boot leaves somebody who serves.
    pub(super) fn may_degrade(&self) -> bool {
        let served = self
            .slots
            .iter()
            .any(|slot| slot.state == SlotState::Serving);
        served && self.policy.boot == Boot::Any
    }

    /// Serves with the slots that have started; the others are tried again and again.
    fn begin_degraded(&mut self, slot: SlotId, cause: String) {
        self.notice(Notice::Degraded { slot, cause });
        self.phase = Phase::Serving;
        self.spread();
        self.actions.push_back(Action::Announce);
    }

    /// Gives those slots their first worker whose turn has come: slots that have listeners, and the
    /// first of those that have none.
    pub(super) fn start_waiting(&mut self, now: Tick) {
        let mut staying = self.slots.len();
        if let Some(Stage::Shrink { to, .. }) = self.stage() {
            staying = usize::from(*to);
        }
        let bound = self.bound_slots();
        for index in 0..self.slots.len().min(staying) {
            if self.slots[index].state == SlotState::Waiting && index <= bound {
                self.spawn(index, now);
            }
        }
    }

    /// How many slots have listeners; they are the first ones.
    pub(super) fn bound_slots(&self) -> usize {
        let unbound = |slot: &Slot| slot.queue == Queue::Unbound;
        self.slots
            .iter()
            .position(unbound)
            .unwrap_or(self.slots.len())
    }

    /// Begins the slot's next generation.
    pub(super) fn spawn(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        let listener = match slot.queue {
            Queue::Unbound => ListenerSource::Bind,
            Queue::Served | Queue::Unserved { .. } | Queue::Lent { .. } | Queue::Closed => {
                ListenerSource::Adopt
            }
        };
        let release = slot.next_release;
        let deadline = now + self.policy_of(release).start_timeout;
        let worker = self.slots[index].start(deadline, now);
        self.notice(Notice::WorkerStarting { worker, listener });
        self.actions.push_back(Action::Spawn {
            worker,
            listener,
            release,
            standby: false,
        });
    }

    /// The main worker of its slot serves from now on, by whatever way it came to it.
    pub(super) fn serve(&mut self, index: usize, now: Tick) {
        let slot = &mut self.slots[index];
        let before = slot.queue;
        slot.enter(SlotState::Serving, now);
        let slot = slot.id;
        match before {
            Queue::Lent { to: from, .. } => {
                let last = false;
                self.actions.push_back(Action::Recall { slot, from, last });
                self.notice(Notice::Recalled { slot, from });
            }
            Queue::Unbound | Queue::Served | Queue::Unserved { .. } | Queue::Closed => {}
        }
    }

    /// Kills a main worker. If a successor is on its way, it is waited for instead of a new one.
    pub(super) fn kill(&mut self, worker: WorkerId, why: KillReason, now: Tick) {
        let slot = &mut self.slots[worker.slot.index()];
        slot.kill(why, now + KILL_GRACE, now);
        slot.yield_to_successor(now);
        self.actions.push_back(Action::Kill { worker });
    }

    /// Waits no longer for killed workers that have not ended: whatever waits for them goes on as if
    /// they had. The shell reaps them when they end after all.
    pub(super) fn give_up_killed(&mut self, now: Tick) {
        let killed = self.slots.iter().flat_map(Slot::killed);
        let due: Vec<WorkerId> = killed
            .filter(|(_, until)| *until <= now)
            .map(|(worker, _)| worker)
            .collect();
        for worker in due {
            // What follows from the end of one may have been the end of another.
            if !self.is_being_killed(worker) {
                continue;
            }
            let after = KILL_GRACE;
            self.notice(Notice::NotEnded { worker, after });
            self.actions.push_back(Action::Abandon { worker });
            self.exited(worker, Death::Lost, None, now);
        }
    }

    fn is_being_killed(&self, worker: WorkerId) -> bool {
        let slot = self.slots.get(worker.slot.index());
        slot.is_some_and(|slot| slot.killed().any(|(killed, _)| killed == worker))
    }

    /// When the first of them is given up.
    pub(super) fn killed_deadline(&self) -> Option<Tick> {
        let killed = self.slots.iter().flat_map(Slot::killed);
        killed.map(|(_, until)| until).min()
    }

    /// A process in a main seat is no more. What follows depends on the phase, and on who else is
    /// in the slot.
    pub(super) fn gone(&mut self, worker: WorkerId, obituary: Obituary, now: Tick) {
        match &self.phase {
            Phase::Booting { slot } if *slot == worker.slot => {
                let cause = boot_failure(worker.slot, &obituary);
                if self.may_degrade() {
                    self.begin_degraded(worker.slot, cause);
                    return self.lost(worker, obituary, now);
                }
                self.record(worker, obituary, now);
                self.slots[worker.slot.index()].enter(SlotState::Stopped, now);
                self.fail_boot(cause, now);
            }
            Phase::Booting { .. } | Phase::Serving => self.lost(worker, obituary, now),
            // Without a worker there is nothing to be gone in Idle and Ended.
            Phase::Idle
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => {
                self.slots[worker.slot.index()].enter(SlotState::Stopped, now);
                self.stopped(worker, obituary);
            }
        }
    }

    /// The main worker of a slot that is to go on is no more.
    fn lost(&mut self, worker: WorkerId, obituary: Obituary, now: Tick) {
        let index = worker.slot.index();
        let slot = &self.slots[index];
        let release = slot.release;
        if matches!(&slot.state, SlotState::Killing { why, .. } if *why == KillReason::Superseded) {
            self.stopped(worker, obituary);
            return self.spawn(index, now);
        }
        let served_for = obituary.served_for.unwrap_or_default();
        let why = obituary.to_string();
        let unbound = slot.queue == Queue::Unbound;
        let growing = unbound && matches!(self.stage(), Some(Stage::Grow { .. }));
        if growing && self.is_cancelled() {
            self.stopped(worker, obituary);
            return self.give_up_growth(index, &why, now);
        }
        self.record(worker, obituary, now);
        if growing {
            return self.give_up_growth(index, &why, now);
        }
        let slot = &mut self.slots[index];
        if let Some(at) = slot.handing_over() {
            self.reinstate(index, at, now);
            self.slots[index].owes_word = true;
            return self.roll_suffers(worker.slot, release, &why, now);
        }
        self.roll_suffers(worker.slot, release, &why, now);
        let slot = &mut self.slots[index];
        if slot.yield_to_successor(now) {
            self.count_failure(index, served_for);
        } else {
            self.renew(index, served_for, now);
        }
    }

    /// Reports an end that was wanted.
    pub(super) fn stopped(&mut self, worker: WorkerId, obituary: Obituary) {
        self.notice(match (obituary.how, obituary.cause) {
            (Some(how), _) => Notice::WorkerStopped { worker, how },
            (None, cause) => Notice::SpawnFailed {
                worker,
                cause: cause.unwrap_or_default(),
            },
        });
    }

    /// Counts and reports a failure.
    pub(super) fn record(&mut self, worker: WorkerId, obituary: Obituary, now: Tick) {
        let Obituary {
            how,
            served_for,
            cause,
        } = obituary;
        let slot = &mut self.slots[worker.slot.index()];
        slot.deaths = slot.deaths.saturating_add(1);
        slot.last_death = Some(LastDeath {
            worker,
            how,
            cause: cause.clone(),
            at: now,
        });
        self.notice(match how {
            Some(how) => Notice::WorkerDied {
                worker,
                how,
                served_for,
                cause,
            },
            None => Notice::SpawnFailed {
                worker,
                cause: cause.unwrap_or_default(),
            },
        });
    }

    /// Counts a failure of the main worker; says how many there had been in a row before.
    fn count_failure(&mut self, index: usize, served_for: Duration) -> u32 {
        let slot = &mut self.slots[index];
        // A worker that never was Ready proves nothing, even where the reset time is zero.
        if served_for > Duration::ZERO && served_for >= self.policy.backoff_reset {
            slot.failures = 0;
        }
        let earlier = slot.failures;
        slot.failures = earlier.saturating_add(1);
        earlier
    }

    /// Gives a failed slot its next worker, now or later.
    pub(super) fn renew(&mut self, index: usize, served_for: Duration, now: Tick) {
        let earlier = self.count_failure(index, served_for);
        let Policy {
            backoff_initial,
            backoff_max,
            ..
        } = self.policy;
        match retry(earlier, backoff_initial, backoff_max, &mut self.rng) {
            Retry::AtOnce => self.spawn(index, now),
            Retry::After(delay) => {
                let slot = &mut self.slots[index];
                let (slot_id, failures) = (slot.id, slot.failures);
                let until = now + delay;
                slot.enter(SlotState::BackingOff { until }, now);
                self.notice(Notice::BackingOff {
                    slot: slot_id,
                    delay,
                    failures,
                });
            }
        }
    }

    /// Nobody has been told that we serve, so nobody is owed a graceful end.
    pub(super) fn fail_boot(&mut self, cause: String, now: Tick) {
        self.notice(Notice::BootFailed {
            cause: cause.clone(),
        });
        self.forget_pending("the server could not start");
        self.phase = Phase::BootFailed { cause };
        self.halt(KillReason::BootFailed, now);
    }

    /// Lets no slot go on as it was. Serving workers are asked to finish if the phase says that
    /// there is time for it; all others are killed, and what has no process is done.
    pub(super) fn halt(&mut self, why: KillReason, now: Tick) {
        let graceful = matches!(self.phase, Phase::Draining { .. });
        for index in 0..self.slots.len() {
            self.halt_company(index, now);
            let slot = &mut self.slots[index];
            let worker = slot.worker();
            match &slot.state {
                SlotState::Serving if graceful => {
                    slot.enter(SlotState::Stopping, now);
                    self.actions.push_back(Action::StopWorker { worker });
                }
                SlotState::Serving | SlotState::Starting { .. } => {
                    self.kill(worker, why.clone(), now);
                }
                SlotState::Waiting | SlotState::BackingOff { .. } | SlotState::Retired => {
                    slot.enter(SlotState::Stopped, now);
                }
                SlotState::Killing { .. } | SlotState::Stopping | SlotState::Stopped => {}
            }
        }
    }

    /// Ends a drain: kills what still drains.
    pub(super) fn force(&mut self, notice: impl Fn(WorkerId) -> Option<Notice>, now: Tick) {
        self.phase = Phase::Forced;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let worker = slot.worker();
            match &slot.state {
                SlotState::Stopping => {
                    self.actions.extend(notice(worker).map(Action::Notice));
                    self.kill(worker, KillReason::Stop, now);
                }
                SlotState::Waiting
                | SlotState::Starting { .. }
                | SlotState::Serving
                | SlotState::Killing { .. }
                | SlotState::BackingOff { .. }
                | SlotState::Retired
                | SlotState::Stopped => {}
            }
            for at in 0..self.slots[index].predecessors.len() {
                let slot = &self.slots[index];
                let predecessor = &slot.predecessors[at];
                if predecessor.stage == PredecessorStage::Stopping {
                    let notice = notice(slot.named(predecessor.generation));
                    self.actions.extend(notice.map(Action::Notice));
                    self.kill_predecessor(index, at, KillReason::Stop, now);
                }
            }
        }
    }
}

/// Why the boot failed, in one line for the operator.
fn boot_failure(slot: SlotId, obituary: &Obituary) -> String {
    match (obituary.how, &obituary.cause) {
        (None, cause) => {
            let cause = cause.as_deref().unwrap_or("no cause given");
            format!("the worker of slot {slot} cannot be spawned: {cause}")
        }
        (Some(how), None) => {
            format!("the worker of slot {slot} ended before it was ready: {how}")
        }
        (Some(how), Some(cause)) => {
            format!("the worker of slot {slot} ended before it was ready: {how} ({cause})")
        }
    }
}
