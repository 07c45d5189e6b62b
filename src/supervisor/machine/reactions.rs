//! One function an event: what each means in each state.
//!
//! Invariant: a reaction looks at the phase and at the one seat that the event names, exhaustively;
//! an event that fits neither is reported as stale and changes nothing. Loans, the next step of an
//! operation and the end are left to [`Machine::settle`], which runs after every reaction.

use std::time::Duration;

use super::lifecycle::Obituary;
use super::slot::{PredecessorStage, Seat, SuccessorState};
use super::{
    Action, Death, KILL_GRACE, KillReason, Machine, Notice, Phase, Queue, SlotId, SlotState,
    WorkerId,
};
use uppercased_ctl::clock::Tick;

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
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let slot = &self.slots[index];
        match seat {
            Seat::Main => {}
            Seat::Successor => {
                return match slot.successor.as_ref().map(|it| &it.state) {
                    Some(SuccessorState::Starting { words: None, .. }) => {
                        self.promote(index, now);
                        Reception::Taken
                    }
                    Some(SuccessorState::Starting { .. } | SuccessorState::Killing { .. })
                    | None => Reception::Stale,
                };
            }
            Seat::Predecessor(_) => return Reception::Stale,
        }
        let standby = match &slot.state {
            SlotState::Starting {
                words: None,
                standby,
                ..
            } => *standby,
            // Said to be failing, or doomed, or told already.
            SlotState::Starting { words: Some(_), .. }
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Stopping
            | SlotState::Waiting
            | SlotState::BackingOff { .. }
            | SlotState::Retired
            | SlotState::Stopped => return Reception::Stale,
        };
        let took = now.since(slot.since);
        self.notice(Notice::WorkerReady { worker, took });
        if standby {
            self.actions.push_back(Action::Serve { worker });
        }
        let is_new = self.slots[index].queue == Queue::Unbound;
        self.serve(index, now);
        self.note_mended(worker.slot);
        let slot = worker.slot;
        if self.phase == (Phase::Booting { slot }) {
            self.boot_slot(SlotId(slot.0 + 1), now);
        } else if is_new && slot.0 < self.policy.workers {
            self.late_slot_is_there();
        }
        Reception::Taken
    }

    pub(super) fn start_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let slot = &mut self.slots[index];
        let unsaid = match seat {
            Seat::Main => match &mut slot.state {
                SlotState::Starting { words, .. } => Some(words),
                SlotState::Serving
                | SlotState::Killing { .. }
                | SlotState::Stopping
                | SlotState::Waiting
                | SlotState::BackingOff { .. }
                | SlotState::Retired
                | SlotState::Stopped => None,
            },
            Seat::Successor => match slot.successor.as_mut().map(|it| &mut it.state) {
                Some(SuccessorState::Starting { words, .. }) => Some(words),
                Some(SuccessorState::Killing { .. }) | None => None,
            },
            Seat::Predecessor(_) => None,
        };
        match unsaid {
            Some(words) if words.is_none() => *words = Some(cause.to_owned()),
            Some(_) | None => return Reception::Stale,
        }
        // Otherwise its exit, which follows, counts as the one failure.
        if self.is_boot_slot(worker.slot) && !self.may_degrade() {
            let cause = format!("the worker of slot {} cannot start: {cause}", worker.slot);
            self.fail_boot(cause, now);
        }
        Reception::Taken
    }

    pub(super) fn spawn_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let obituary = Obituary {
            how: None,
            served_for: None,
            cause: Some(cause.to_owned()),
        };
        let slot = &self.slots[index];
        // Killing: the answer to Spawn was on its way when the worker was given up.
        match seat {
            Seat::Main => match &slot.state {
                SlotState::Starting { .. }
                | SlotState::Killing {
                    served_for: None, ..
                } => self.gone(worker, obituary, now),
                SlotState::Killing {
                    served_for: Some(_),
                    ..
                }
                | SlotState::Serving
                | SlotState::Stopping
                | SlotState::Waiting
                | SlotState::BackingOff { .. }
                | SlotState::Retired
                | SlotState::Stopped => return Reception::Stale,
            },
            Seat::Successor => match slot.successor.as_ref().map(|it| &it.state) {
                Some(
                    SuccessorState::Starting { .. }
                    | SuccessorState::Killing {
                        served_for: None, ..
                    },
                ) => self.successor_gone(index, obituary, now),
                Some(SuccessorState::Killing {
                    served_for: Some(_),
                    ..
                })
                | None => return Reception::Stale,
            },
            Seat::Predecessor(_) => return Reception::Stale,
        }
        Reception::Taken
    }

    pub(super) fn exited(
        &mut self,
        worker: WorkerId,
        how: Death,
        sign: Option<&str>,
        now: Tick,
    ) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let slot = &self.slots[index];
        let how = Some(how);
        let explained = |words: &Option<String>, why: &KillReason| {
            // One that closed its channel has mostly died before it could be killed for that.
            let killed = *why != KillReason::ChannelClosed;
            words.clone().or_else(|| killed.then(|| why.to_string()))
        };
        let (served_for, cause) = match seat {
            Seat::Main => match &slot.state {
                SlotState::Starting { words, .. } => (None, words.clone()),
                SlotState::Serving | SlotState::Stopping => (Some(now.since(slot.since)), None),
                SlotState::Killing {
                    why,
                    served_for,
                    words,
                    ..
                } => (*served_for, explained(words, why)),
                SlotState::Waiting
                | SlotState::BackingOff { .. }
                | SlotState::Retired
                | SlotState::Stopped => return Reception::Stale,
            },
            Seat::Successor => match slot.successor.as_ref().map(|it| &it.state) {
                Some(SuccessorState::Starting { words, .. }) => (None, words.clone()),
                Some(SuccessorState::Killing {
                    why,
                    served_for,
                    words,
                    ..
                }) => (*served_for, explained(words, why)),
                None => return Reception::Stale,
            },
            Seat::Predecessor(at) => {
                let predecessor = &slot.predecessors[at];
                match &predecessor.stage {
                    PredecessorStage::Killing {
                        why, served_for, ..
                    } => (Some(*served_for), explained(&None, why)),
                    PredecessorStage::HandingOver { .. }
                    | PredecessorStage::Leaving { .. }
                    | PredecessorStage::Stopping => {
                        (Some(now.since(predecessor.served_since)), None)
                    }
                }
            }
        };
        let obituary = Obituary {
            how,
            served_for,
            cause: cause.or_else(|| sign.map(str::to_owned)),
        };
        match seat {
            Seat::Main => self.gone(worker, obituary, now),
            Seat::Successor => self.successor_gone(index, obituary, now),
            Seat::Predecessor(at) => self.predecessor_gone(index, at, obituary, now),
        }
        Reception::Taken
    }

    /// A worker that cannot be talked to cannot be stopped, told of loans, or believed: it goes.
    pub(super) fn channel_broken(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let slot = &self.slots[index];
        let needed = match seat {
            Seat::Main => match &slot.state {
                SlotState::Starting { .. } | SlotState::Serving => true,
                // On its way out with nothing more to hear; a draining worker finishes alone.
                SlotState::Killing { .. } | SlotState::Stopping => false,
                SlotState::Waiting
                | SlotState::BackingOff { .. }
                | SlotState::Retired
                | SlotState::Stopped => return Reception::Stale,
            },
            Seat::Successor => match slot.successor.as_ref().map(|it| &it.state) {
                Some(SuccessorState::Starting { .. }) => true,
                Some(SuccessorState::Killing { .. }) | None => false,
            },
            Seat::Predecessor(at) => match &slot.predecessors[at].stage {
                // How it ends could not be heard.
                PredecessorStage::HandingOver { .. } => true,
                PredecessorStage::Leaving { .. }
                | PredecessorStage::Stopping
                | PredecessorStage::Killing { .. } => false,
            },
        };
        if needed {
            let cause = cause.to_owned();
            self.notice(Notice::ChannelBroken {
                worker,
                cause: cause.clone(),
            });
            let why = KillReason::ChannelBroken { cause };
            match seat {
                Seat::Main => self.kill(worker, why, now),
                Seat::Successor => self.kill_successor(index, why, now),
                Seat::Predecessor(at) => self.kill_predecessor(index, at, why, now),
            }
        }
        Reception::Taken
    }

    /// A worker that serves does so no more, whether it is reaped soon or never: its queue is due to
    /// be lent from now on.
    pub(super) fn channel_closed(&mut self, worker: WorkerId, now: Tick) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        let serves = self.slots[index].state == SlotState::Serving;
        if seat == Seat::Main && serves {
            self.kill(worker, KillReason::ChannelClosed, now);
        }
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
                self.abandon_operation();
                self.forget_pending("the server stops");
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
        self.company_timeout(index, now);
        self.pulse_timeout(index, now);
        let slot = &self.slots[index];
        let worker = slot.worker();
        match &slot.state {
            SlotState::Starting { deadline, .. } if *deadline <= now => {
                let after = self.policy_of(slot.release).start_timeout;
                self.notice(Notice::StartTimedOut { worker, after });
                if self.is_boot_slot(worker.slot) && !self.may_degrade() {
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
            | SlotState::Retired
            | SlotState::Stopping
            | SlotState::Stopped => {}
        }
    }
}
