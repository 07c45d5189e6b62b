//! The reaction to each event: one function per event, one `match` over the state of the worker
//! concerned.
//!
//! Invariant: an event that fits neither the phase nor that state is reported as stale and changes
//! nothing. Loans, the next step of an operation and the exit are left to [`Machine::reconcile`],
//! which runs after every reaction.

use std::time::Duration;

use super::worker::{ExitReport, WorkerState};
use super::{
    Action, Effect, ExitStatus, HandoverEnd, KILL_GRACE, KillReason, Machine, Notice, Phase, Queue,
    SlotId, SlotState, WorkerId,
};
use uppercased_ctl::clock::Tick;

impl Machine {
    pub(super) fn boot(&mut self, now: Tick) -> Effect {
        if self.phase != Phase::Idle {
            return Effect::Stale;
        }
        self.boot_slot(SlotId(0), now);
        Effect::Applied
    }

    pub(super) fn ready(&mut self, worker: WorkerId, now: Tick) -> Effect {
        let Some((index, it)) = self.find(worker) else {
            return Effect::Stale;
        };
        let WorkerState::Starting {
            error: None,
            standby,
            ..
        } = it.state
        else {
            return Effect::Stale;
        };
        let took = now.since(it.since);
        if self.slots[index].is_active(worker.generation) {
            self.active_ready(index, worker, took, standby, now);
        } else {
            self.promote(index, worker, took, now);
        }
        Effect::Applied
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
        self.note_serving(worker.slot);
        let slot = worker.slot;
        if self.is_boot_slot(slot) {
            self.boot_slot(SlotId(slot.0 + 1), now);
        } else if is_new && slot.0 < self.policy.workers {
            self.late_slot_ready();
        }
    }

    pub(super) fn start_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Effect {
        let Some((_, it)) = self.find_mut(worker) else {
            return Effect::Stale;
        };
        let WorkerState::Starting {
            error: error @ None,
            ..
        } = &mut it.state
        else {
            return Effect::Stale;
        };
        *error = Some(cause.to_owned());
        // Otherwise its exit, which follows, counts as the one failure.
        if self.is_boot_slot(worker.slot) && !self.may_degrade() {
            let cause = format!("the worker of slot {} cannot start: {cause}", worker.slot);
            self.fail_boot(cause, now);
        }
        Effect::Applied
    }

    pub(super) fn spawn_failed(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Effect {
        let Some((_, it)) = self.find(worker) else {
            return Effect::Stale;
        };
        match it.state {
            // Killed: its spawn was still in progress when the worker was abandoned.
            WorkerState::Starting { .. }
            | WorkerState::Killed {
                served_for: None, ..
            } => {
                let report = ExitReport {
                    exit: None,
                    served_for: None,
                    cause: Some(cause.to_owned()),
                };
                self.worker_ended(worker, report, now);
                Effect::Applied
            }
            WorkerState::Killed {
                served_for: Some(_),
                ..
            }
            | WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => Effect::Stale,
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
    ) -> Effect {
        let Some((_, it)) = self.find(worker) else {
            return Effect::Stale;
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
        self.worker_ended(worker, report, now);
        Effect::Applied
    }

    /// Kills a worker with a broken channel: it cannot be stopped, lent a queue, or trusted.
    pub(super) fn channel_broken(&mut self, worker: WorkerId, cause: &str, now: Tick) -> Effect {
        let Some((_, it)) = self.find(worker) else {
            return Effect::Stale;
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
        Effect::Applied
    }

    /// Ends the service of a worker that closed its channel, whether it is reaped soon or never:
    /// its queue is due to be lent from now on.
    pub(super) fn channel_closed(&mut self, worker: WorkerId, now: Tick) -> Effect {
        let Some((_, it)) = self.find(worker) else {
            return Effect::Stale;
        };
        // In all other states its exit or its deadline follows.
        if it.is_serving() {
            self.kill(worker, KillReason::ChannelClosed, now);
        }
        Effect::Applied
    }

    pub(super) fn handed_over(
        &mut self,
        worker: WorkerId,
        (moved, left): (u32, u32),
        end: &HandoverEnd,
        now: Tick,
    ) -> Effect {
        let Some((index, it)) = self.find(worker) else {
            return Effect::Stale;
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
                Effect::Applied
            }
            WorkerState::Serving { owes_report: true } => {
                self.late_report(worker, end, now);
                Effect::Applied
            }
            // Its report may have crossed the stop request or the kill.
            WorkerState::Stopping | WorkerState::Killed { leaving: true, .. }
                if !self.slots[index].is_active(worker.generation) =>
            {
                Effect::Applied
            }
            WorkerState::Starting { .. }
            | WorkerState::Serving { owes_report: false }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping
            | WorkerState::Killed { .. } => Effect::Stale,
        }
    }

    pub(super) fn stop(&mut self, by: &str, now: Tick) -> Effect {
        let by = by.to_owned();
        match &self.phase {
            Phase::Idle | Phase::Booting { .. } | Phase::Serving => {
                let limits = [self.policy.lame_duck, self.policy.drain_timeout, KILL_GRACE];
                // Added one by one: a tick saturates where a sum of durations would panic.
                let deadline = limits.into_iter().fold(now, |at, limit| at + limit);
                let at_most = deadline.since(now);
                self.notice(Notice::Stopping { by, at_most });
                self.abandon_operation();
                self.refuse_pending("the server is stopping");
                // A sibling serves clients in the queue of a slot without a worker: it empties its
                // queues before it drains.
                self.lend_unserved_for(Duration::ZERO, now);
                self.actions.push_back(Action::EndCustody);
                self.phase = Phase::Draining {
                    since: now,
                    deadline,
                };
                self.stop_all(KillReason::Stop, now);
            }
            Phase::Draining { .. } => {
                self.notice(Notice::StopForced { by });
                self.kill_stopping(|_| None, now);
            }
            // Every process has been killed already.
            Phase::BootFailed { .. } | Phase::Forced | Phase::Ended => {}
        }
        Effect::Applied
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
                self.kill(worker, KillReason::LeaveTimedOut, now);
            }
            // They have no deadline of this kind.
            WorkerState::Serving { .. } | WorkerState::Stopping | WorkerState::Killed { .. } => {}
        }
    }
}
