//! One function an event: what each means in each state.
//!
//! Invariant: a reaction looks at the phase and at the one slot that the event names, exhaustively;
//! an event that fits neither is reported as stale and changes nothing. Loans and the end are left
//! to [`Machine::settle`], which runs after every reaction.

use std::time::Duration;

use super::lifecycle::Obituary;
use super::{
    Action, Death, KILL_GRACE, KillReason, Machine, Notice, Phase, Queue, SlotId, SlotState,
    WorkerId,
};
use crate::clock::Tick;

/// What a machine made of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reception {
    Taken,
    /// About somebody who is no more, nobody, or already told.
    Stale,
}

impl Machine {
    pub(super) fn boot(&mut self, now: Tick) -> Reception {
        match &self.phase {
            Phase::Idle => {
                self.boot_slot(SlotId(0), now);
                Reception::Taken
            }
            Phase::Booting { .. }
            | Phase::Serving
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => Reception::Stale,
        }
    }

    pub(super) fn ready(&mut self, worker: WorkerId, now: Tick) -> Reception {
        let Some(slot) = self.present(worker) else {
            return Reception::Stale;
        };
        match &slot.state {
            SlotState::Starting { words: None, .. } => {}
            // Said to be failing, or doomed, or told already.
            SlotState::Starting { words: Some(_), .. }
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Stopping
            | SlotState::Waiting
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => return Reception::Stale,
        }
        let took = now.since(slot.since);
        let before = slot.queue;
        slot.enter(SlotState::Serving, now);
        self.notice(Notice::WorkerReady { worker, took });
        let slot = worker.slot;
        match before {
            Queue::Lent { to: from, .. } => {
                self.actions.push_back(Action::Recall { slot, from });
                self.notice(Notice::Recalled { slot, from });
            }
            Queue::Unbound | Queue::Served | Queue::Unserved { .. } => {}
        }
        if self.phase == (Phase::Booting { slot }) {
            self.boot_slot(SlotId(slot.0 + 1), now);
        }
        Reception::Taken
    }

    pub(super) fn start_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some(slot) = self.present(worker) else {
            return Reception::Stale;
        };
        match &mut slot.state {
            SlotState::Starting { words, .. } if words.is_none() => {
                *words = Some(cause.to_owned());
            }
            SlotState::Starting { .. }
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Stopping
            | SlotState::Waiting
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => return Reception::Stale,
        }
        // Otherwise its exit, which follows, counts as the one failure.
        if self.is_boot_slot(worker.slot) {
            let cause = format!("the worker of slot {} cannot start: {cause}", worker.slot);
            self.fail_boot(cause, now);
        }
        Reception::Taken
    }

    pub(super) fn spawn_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some(slot) = self.present(worker) else {
            return Reception::Stale;
        };
        match &slot.state {
            // Killing: the answer to Spawn was on its way when the worker was given up.
            SlotState::Starting { .. }
            | SlotState::Killing {
                served_for: None, ..
            } => {}
            SlotState::Killing {
                served_for: Some(_),
                ..
            }
            | SlotState::Serving
            | SlotState::Stopping
            | SlotState::Waiting
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => return Reception::Stale,
        }
        let obituary = Obituary {
            how: None,
            served_for: None,
            cause: Some(cause.to_owned()),
        };
        self.gone(worker, obituary, now);
        Reception::Taken
    }

    pub(super) fn exited(&mut self, worker: WorkerId, how: Death, now: Tick) -> Reception {
        let Some(slot) = self.present(worker) else {
            return Reception::Stale;
        };
        let (served_for, cause) = match &slot.state {
            SlotState::Starting { words, .. } => (None, words.clone()),
            SlotState::Serving | SlotState::Stopping => (Some(now.since(slot.since)), None),
            SlotState::Killing {
                why,
                served_for,
                words,
            } => (*served_for, words.clone().or_else(|| Some(why.to_string()))),
            SlotState::Waiting | SlotState::BackingOff { .. } | SlotState::Stopped => {
                return Reception::Stale;
            }
        };
        let obituary = Obituary {
            how: Some(how),
            served_for,
            cause,
        };
        self.gone(worker, obituary, now);
        Reception::Taken
    }

    /// A worker that cannot be talked to cannot be stopped, told of loans, or believed: it goes.
    pub(super) fn channel_broken(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some(slot) = self.present(worker) else {
            return Reception::Stale;
        };
        match &slot.state {
            SlotState::Starting { .. } | SlotState::Serving => {}
            // On its way out with nothing more to hear; a draining worker finishes alone.
            SlotState::Killing { .. } | SlotState::Stopping => return Reception::Taken,
            SlotState::Waiting | SlotState::BackingOff { .. } | SlotState::Stopped => {
                return Reception::Stale;
            }
        }
        let cause = cause.to_owned();
        self.notice(Notice::ChannelBroken {
            worker,
            cause: cause.clone(),
        });
        self.kill(worker, KillReason::ChannelBroken { cause }, now);
        Reception::Taken
    }

    pub(super) fn stop(&mut self, by: &str, now: Tick) -> Reception {
        let by = by.to_owned();
        match &self.phase {
            Phase::Idle | Phase::Booting { .. } | Phase::Serving => {
                let limits = [self.policy.lame_duck, self.policy.drain_timeout, KILL_GRACE];
                // Added one by one: a tick saturates where a sum of durations would panic.
                let deadline = limits.into_iter().fold(now, |at, limit| at + limit);
                let at_most = deadline.since(now);
                self.notice(Notice::Stopping { by, at_most });
                // Who waits in the queue of a slot without a worker is served by a sibling: its
                // last act before it drains is to empty the queues that it has.
                self.lend_unserved_for(Duration::ZERO, now);
                self.actions.push_back(Action::EndCustody);
                self.phase = Phase::Draining {
                    since: now,
                    deadline,
                };
                self.halt(KillReason::Stop, now);
            }
            Phase::Draining { .. } => {
                self.notice(Notice::StopForced { by });
                self.force(|_| None, now);
            }
            // Everything has been killed already; it ends as fast as the kernel can.
            Phase::BootFailed { .. } | Phase::Forced | Phase::Ended => {}
        }
        Reception::Taken
    }

    pub(super) fn slot_timeout(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        let worker = slot.worker();
        match &slot.state {
            SlotState::Starting { deadline, .. } if *deadline <= now => {
                let after = self.policy.start_timeout;
                self.notice(Notice::StartTimedOut { worker, after });
                if self.is_boot_slot(worker.slot) {
                    let slot = worker.slot;
                    let cause = format!(
                        "the worker of slot {slot} was not ready within {after:?}; see its log, or raise start_timeout"
                    );
                    self.fail_boot(cause, now);
                } else {
                    self.kill(worker, KillReason::StartTimedOut, now);
                }
            }
            SlotState::BackingOff { until } if *until <= now => self.spawn(index, now),
            SlotState::Starting { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Waiting
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Stopping
            | SlotState::Stopped => {}
        }
    }
}
