//! The reaction to each event: one function per event, one `match` over the state of the worker
//! concerned.
//!
//! Invariant: an event that fits neither the phase nor that state is reported as stale and changes
//! nothing. Loans, the next step of an operation and the exit are left to [`Machine::settle`],
//! which runs after every reaction.

use std::time::Duration;

use super::worker::{ExitReport, WorkerState};
use super::{
    Action, ExitStatus, HandoverEnd, KILL_GRACE, KillReason, Machine, Notice, Phase, Queue,
    Reception, SlotId, SlotState, WorkerId,
};
use uppercased_ctl::clock::Tick;

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
        let Some((index, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        match it.state {
            WorkerState::Starting {
                error: None,
                standby,
                ..
            } => {
                let took = now.since(it.since);
                if self.slots[index].is_active(worker.generation) {
                    self.active_ready(index, worker, took, standby, now);
                } else {
                    self.promote(index, worker, took, now);
                }
                Reception::Taken
            }
            WorkerState::Starting { error: Some(_), .. }
            | WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => Reception::Stale,
        }
    }

    fn active_ready(
        &mut self,
        index: usize,
        worker: WorkerId,
        took: Duration,
        standby: bool,
        now: Tick,
    ) {
        self.notice(Notice::WorkerReady { worker, took });
        if standby {
            self.actions.push_back(Action::Serve { worker });
        }
        let is_new = self.slots[index].queue == Queue::Unbound;
        self.serve(index, worker, false, now);
        self.note_mended(worker.slot);
        let slot = worker.slot;
        if self.is_boot_slot(slot) {
            self.boot_slot(SlotId(slot.0 + 1), now);
        } else if is_new && slot.0 < self.policy.workers {
            self.late_slot_is_there();
        }
    }

    pub(super) fn start_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((_, it)) = self.find_mut(worker) else {
            return Reception::Stale;
        };
        match &mut it.state {
            WorkerState::Starting { error, .. } if error.is_none() => {
                *error = Some(cause.to_owned());
            }
            WorkerState::Starting { .. }
            | WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => return Reception::Stale,
        }
        // Otherwise its exit, which follows, counts as the one failure.
        if self.is_boot_slot(worker.slot) && !self.may_degrade() {
            let cause = format!("the worker of slot {} cannot start: {cause}", worker.slot);
            self.fail_boot(cause, now);
        }
        Reception::Taken
    }

    pub(super) fn spawn_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((_, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        match it.state {
            // Killed: its spawn was still in progress when the worker was given up.
            WorkerState::Starting { .. }
            | WorkerState::Killed {
                served_for: None, ..
            } => {
                let report = ExitReport {
                    exit: None,
                    served_for: None,
                    cause: Some(cause.to_owned()),
                };
                self.gone(worker, report, now);
                Reception::Taken
            }
            WorkerState::Killed {
                served_for: Some(_),
                ..
            }
            | WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => Reception::Stale,
        }
    }

    /// Handles an exit. `sign` is the cause derived from the exit status, used if the worker has
    /// not reported an error.
    pub(super) fn exited(
        &mut self,
        worker: WorkerId,
        exit: ExitStatus,
        sign: Option<&str>,
        now: Tick,
    ) -> Reception {
        let Some((_, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        let (served_for, cause) = match &it.state {
            WorkerState::Starting { error, .. } => (None, error.clone()),
            WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => (it.served_for(now), None),
            WorkerState::Killed {
                why,
                served_for,
                error,
                ..
            } => {
                // A worker that closed its channel has in most cases exited before it could be
                // killed for that.
                let killed = *why != KillReason::ChannelClosed;
                let why = || killed.then(|| why.to_string());
                (*served_for, error.clone().or_else(why))
            }
        };
        let report = ExitReport {
            exit: Some(exit),
            served_for,
            cause: cause.or_else(|| sign.map(str::to_owned)),
        };
        self.gone(worker, report, now);
        Reception::Taken
    }

    /// Kills a worker with a broken channel: it cannot be stopped, lent a queue, or trusted.
    pub(super) fn channel_broken(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Reception {
        let Some((_, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        match it.state {
            WorkerState::Starting { .. }
            | WorkerState::Serving { .. }
            // The result of the handover cannot be received.
            | WorkerState::HandingOver { .. } => {
                let cause = cause.to_owned();
                self.notice(Notice::ChannelBroken {
                    worker,
                    cause: cause.clone(),
                });
                self.kill(worker, KillReason::ChannelBroken { cause }, now);
            }
            // It is leaving, and finishes by itself.
            WorkerState::Leaving { .. } | WorkerState::Stopping | WorkerState::Killed { .. } => {}
        }
        Reception::Taken
    }

    /// Ends the service of a worker that closed its channel, whether it is reaped soon or never:
    /// its queue is due to be lent from now on.
    pub(super) fn channel_closed(&mut self, worker: WorkerId, now: Tick) -> Reception {
        let Some((_, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        match it.state {
            WorkerState::Serving { .. } => self.kill(worker, KillReason::ChannelClosed, now),
            // Its exit or its deadline follows.
            WorkerState::Starting { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => {}
        }
        Reception::Taken
    }

    pub(super) fn handed_over(
        &mut self,
        worker: WorkerId,
        (moved, left): (u32, u32),
        end: &HandoverEnd,
        now: Tick,
    ) -> Reception {
        let Some((index, it)) = self.find(worker) else {
            return Reception::Stale;
        };
        match it.state {
            WorkerState::HandingOver { back, .. } => {
                let took = now.since(it.since);
                self.notice(Notice::HandoverEnded {
                    from: worker,
                    moved,
                    left,
                    end: end.clone(),
                    took,
                });
                self.handover_ended(index, worker, (moved, left), end, back, now);
                Reception::Taken
            }
            WorkerState::Serving { owes_report: true } => {
                self.late_report(worker, end, now);
                Reception::Taken
            }
            // Its report may have crossed the stop request or the kill.
            WorkerState::Stopping | WorkerState::Killed { leaving: true, .. }
                if !self.slots[index].is_active(worker.generation) =>
            {
                Reception::Taken
            }
            WorkerState::Starting { .. }
            | WorkerState::Serving { owes_report: false }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => Reception::Stale,
        }
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
                self.forget_pending("the server is stopping");
                // A sibling serves clients in the queue of a slot without a worker: it empties its
                // queues before it drains.
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
            // Every process has been killed already.
            Phase::BootFailed { .. } | Phase::Forced | Phase::Ended => {}
        }
        Reception::Taken
    }

    /// Acts on the deadlines of a slot and of its workers.
    pub(super) fn slot_timeout(&mut self, index: usize, now: Tick) {
        self.pulse_timeout(index, now);
        for worker in self.workers_of(index) {
            self.worker_timeout(worker, now);
        }
        if let SlotState::BackingOff { until } = self.slots[index].state
            && until <= now
        {
            self.spawn(index, now);
        }
    }

    fn worker_timeout(&mut self, worker: WorkerId, now: Tick) {
        let Some((_, it)) = self.find(worker) else {
            return;
        };
        if it.state.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match it.state {
            WorkerState::Starting { .. } => {
                let after = self.policy_of(it.release).start_timeout;
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
            WorkerState::HandingOver { to, .. } => self.sample_progress(worker, to, now),
            WorkerState::Leaving { .. } => {
                let after = now.since(it.since);
                self.notice(Notice::StillDraining { worker, after });
                self.kill(worker, KillReason::Overstayed, now);
            }
            // They have no deadline of this kind.
            WorkerState::Serving { .. } | WorkerState::Stopping | WorkerState::Killed { .. } => {}
        }
    }
}
