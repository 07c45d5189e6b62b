//! The steps that the reactions are made of: start a worker, kill it, bury it, renew it, halt all.
//!
//! Invariant: whoever leaves a slot without a process gives it a time for the next one, or the
//! machine is on its way out ([`Machine::gone`] is the only place where a process ends).

use std::time::Duration;

use super::super::backoff::{Retry, retry};
use super::{
    Action, Death, KillReason, LastDeath, ListenerSource, Machine, Notice, Phase, Policy, Queue,
    SlotId, SlotState, WorkerId,
};
use crate::clock::Tick;

/// What is known of a process that is no more.
pub(super) struct Obituary {
    /// `None`: it never came to be.
    pub(super) how: Option<Death>,
    /// `None`: it never was Ready.
    pub(super) served_for: Option<Duration>,
    pub(super) cause: Option<String>,
}

impl Machine {
    /// Starts the first worker of `slot`; past the last slot, the boot is done.
    pub(super) fn boot_slot(&mut self, slot: SlotId, now: Tick) {
        if slot.index() < self.slots.len() {
            self.phase = Phase::Booting { slot };
            self.spawn(slot.index(), now);
        } else {
            self.phase = Phase::Serving;
            self.actions.push_back(Action::Announce);
        }
    }

    /// Begins the slot's next generation.
    pub(super) fn spawn(&mut self, index: usize, now: Tick) {
        let slot = &mut self.slots[index];
        let listener = match slot.queue {
            Queue::Unbound => ListenerSource::Bind,
            Queue::Served | Queue::Unserved { .. } | Queue::Lent { .. } => ListenerSource::Adopt,
        };
        let worker = slot.start(now + self.policy.start_timeout, now);
        self.notice(Notice::WorkerStarting { worker, listener });
        self.actions.push_back(Action::Spawn {
            worker,
            listener,
            release: crate::identity::ReleaseId::FIRST,
            standby: false,
        });
    }

    pub(super) fn kill(&mut self, worker: WorkerId, why: KillReason, now: Tick) {
        self.slots[worker.slot.index()].kill(why, now);
        self.actions.push_back(Action::Kill { worker });
    }

    /// A process is no more. What follows depends on the phase alone.
    pub(super) fn gone(&mut self, worker: WorkerId, obituary: Obituary, now: Tick) {
        match &self.phase {
            Phase::Booting { slot } if *slot == worker.slot => {
                let cause = boot_failure(worker.slot, &obituary);
                self.record(worker, obituary, now);
                self.slots[worker.slot.index()].enter(SlotState::Stopped, now);
                self.fail_boot(cause, now);
            }
            Phase::Booting { .. } | Phase::Serving => {
                let served_for = obituary.served_for.unwrap_or(Duration::ZERO);
                self.record(worker, obituary, now);
                self.renew(worker.slot.index(), served_for, now);
            }
            // Without a worker there is nothing to be gone in Idle and Ended.
            Phase::Idle
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => {
                self.slots[worker.slot.index()].enter(SlotState::Stopped, now);
                self.notice(match (obituary.how, obituary.cause) {
                    (Some(how), _) => Notice::WorkerStopped { worker, how },
                    (None, cause) => Notice::SpawnFailed {
                        worker,
                        cause: cause.unwrap_or_default(),
                    },
                });
            }
        }
    }

    /// Counts and reports a failure.
    fn record(&mut self, worker: WorkerId, obituary: Obituary, now: Tick) {
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

    /// Gives a failed slot its next worker, now or later.
    fn renew(&mut self, index: usize, served_for: Duration, now: Tick) {
        let Policy {
            backoff_initial,
            backoff_max,
            backoff_reset,
            ..
        } = self.policy;
        let slot = &mut self.slots[index];
        // A worker that never was Ready proves nothing, even where the reset time is zero.
        if served_for > Duration::ZERO && served_for >= backoff_reset {
            slot.failures = 0;
        }
        let earlier = slot.failures;
        slot.failures = earlier.saturating_add(1);
        match retry(earlier, backoff_initial, backoff_max, &mut self.rng) {
            Retry::AtOnce => self.spawn(index, now),
            Retry::After(delay) => {
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
        self.phase = Phase::BootFailed { cause };
        self.halt(KillReason::BootFailed, now);
    }

    /// Lets no slot go on as it was. Serving workers are asked to finish if the phase says that
    /// there is time for it; all others are killed, and what has no process is done.
    pub(super) fn halt(&mut self, why: KillReason, now: Tick) {
        let graceful = matches!(self.phase, Phase::Draining { .. });
        for index in 0..self.slots.len() {
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
                SlotState::Waiting | SlotState::BackingOff { .. } => {
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
                | SlotState::Stopped => {}
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
