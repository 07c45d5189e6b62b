//! A worker whose process died, and whose keeper continues it.
//!
//! The worker keeps its identity, so the operation in progress and the other workers do not notice.
//! A message that the dead process had received may be lost with it: what the worker is to do is
//! sent again.
//!
//! Invariant: a rescue counts as a crash of the slot, and as a failure of a release that is being
//! rolled out; a worker that crashes more than [`CRASHES_RESCUED_MAX`] times in [`CRASH_WINDOW`]
//! is not continued; hangs and kills from outside are no crashes.

use super::plan::Course;
use super::worker::{Pulse, WorkerState};
use super::{
    Action, Effect, ExitStatus, KillReason, Machine, Notice, Queue, Rescue, SlotState, WorkerId,
};
use crate::config::{CRASH_WINDOW, CRASHES_RESCUED_MAX, HANG_RESCUE_TIMEOUT};
use uppercased_ctl::clock::Tick;

impl Machine {
    pub(super) fn kept(&mut self, worker: WorkerId, kept: bool) -> Effect {
        let Some((_, it)) = self.find_mut(worker) else {
            return Effect::Stale;
        };
        it.kept = kept;
        Effect::Applied
    }

    /// Returns whether a keeper continues the worker if its process dies.
    pub(super) fn is_kept(&self, worker: WorkerId) -> bool {
        self.find(worker)
            .is_some_and(|(_, it)| it.kept && it.state.has_pulse())
    }

    /// Ends a worker that makes no progress: only its process, if its keeper can continue it.
    pub(super) fn end_hang(&mut self, worker: WorkerId, now: Tick) {
        match self.find_mut(worker) {
            Some((_, it)) if it.kept && it.state.has_pulse() => {
                it.kept = false;
                // Its rescue has a deadline of its own, and needs a CPU, too. Later the worker is
                // sampled again, so that a process that the kernel holds is noticed.
                it.pulse = Some(Pulse::due_at(now + HANG_RESCUE_TIMEOUT, now));
                self.restart_watches(worker);
                self.actions.push_back(Action::KillProcess { worker });
            }
            _ => self.kill(worker, KillReason::Hung, now),
        }
    }

    pub(super) fn rescued(&mut self, worker: WorkerId, rescue: &Rescue, now: Tick) -> Effect {
        let Some((index, it)) = self.find_mut(worker) else {
            return Effect::Stale;
        };
        match it.state {
            WorkerState::Starting { .. } | WorkerState::Killed { .. } => return Effect::Stale,
            WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => {}
        }
        it.pulse = None;
        // Hangs are as far apart as `hang_timeout`, and most of those on a busy machine are none.
        if !rescue.is_hang && rescue.exit != ExitStatus::KILLED {
            it.crashed.retain(|&at| now.since(at) < CRASH_WINDOW);
            it.crashed.push(now);
        }
        let is_loop = it.crashed.len() > CRASHES_RESCUED_MAX;
        let release = it.release;
        let hung = || rescue.is_hang.then(|| KillReason::Hung.to_string());
        let cause = rescue.cause.clone().or_else(hung);
        let history = &mut self.slots[index].history;
        history.crashes = history.crashes.saturating_add(1);
        self.notice(Notice::WorkerRescued {
            worker,
            exit: rescue.exit,
            cause,
            connections: rescue.connections,
            owed_bytes: rescue.owed_bytes,
            reset: rescue.reset,
            took: rescue.took,
        });
        if is_loop {
            let found = self.find(worker);
            if found.is_some_and(|(_, it)| it.is_handing_over()) {
                self.damage(format!("{worker} crashed too often during its handover"));
            }
            self.kill(worker, KillReason::CrashLoop, now);
            return Effect::Applied;
        }
        self.actions.push_back(Action::Confirm { worker });
        self.send_again(worker, rescue.is_handing_over, now);
        let is_failure = self.roll().is_some_and(|roll| {
            matches!(roll.course, Course::Forward { .. })
                && roll.target == release
                && !roll.broken.iter().any(|it| it.slot == worker.slot)
        });
        if is_failure {
            let (slot, exit) = (worker.slot, rescue.exit);
            let cause = format!("the new worker of slot {slot} died and was rescued: {exit}");
            self.roll_back(cause, now);
        }
        Effect::Applied
    }

    /// Sends a rescued worker again what it is to do, unless it is known to do it.
    fn send_again(&mut self, worker: WorkerId, is_handing_over: bool, now: Tick) {
        let Some((index, it)) = self.find(worker) else {
            return;
        };
        match it.state {
            WorkerState::Serving { .. } => {
                self.actions.push_back(Action::Serve { worker });
                let is_lent =
                    |queue: &Queue| matches!(queue, Queue::Lent { to, .. } if *to == worker);
                let lent = self.slots.iter().filter(|slot| is_lent(&slot.queue));
                let again = lent.map(|slot| Action::Lend {
                    slot: slot.id,
                    to: worker,
                });
                self.actions.extend(again);
            }
            WorkerState::Leaving { deadline, .. } => self.actions.push_back(Action::Leave {
                worker,
                within: deadline.since(now),
            }),
            WorkerState::Stopping => self.actions.push_back(Action::StopWorker { worker }),
            // The request was lost, and with it the socket: the receiver gets one again, too.
            WorkerState::HandingOver {
                to,
                deadline: Some(_),
                ..
            } if !is_handing_over && self.serves(to) => {
                let last = self.slots[index].state == SlotState::Retired;
                self.actions.push_back(Action::HandOver {
                    from: worker,
                    to,
                    last,
                });
            }
            WorkerState::Starting { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Killed { .. } => {}
        }
    }
}
