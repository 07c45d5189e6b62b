//! The steps of the reactions: start a worker, kill it, replace it, stop all workers.
//!
//! Invariant: a slot that loses its active worker gets a time for the next one, or the machine is
//! stopping ([`Machine::worker_ended`] is the only place where a process ends).

use std::time::Duration;

use super::super::backoff::{Retry, retry};
use super::plan::Stage;
use super::slot::Slot;
use super::worker::{ExitReport, Worker, WorkerState};
use super::{
    Action, Boot, ExitStatus, KILL_GRACE, KillReason, ListenerSource, Machine, Notice, Phase,
    Policy, Queue, ReleaseId, SlotId, SlotState, WorkerId,
};
use uppercased_ctl::clock::Tick;

impl Machine {
    /// Starts the first worker of `slot`; past the last slot, the boot is complete.
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

    /// Returns whether another worker serves if one cannot start at boot.
    pub(super) fn may_degrade(&self) -> bool {
        let served = self.slots.iter().any(|slot| slot.serving().is_some());
        served && self.policy.boot == Boot::Any
    }

    /// Serves with the slots that have started; the others are retried.
    fn begin_degraded(&mut self, slot: SlotId, cause: String) {
        self.notice(Notice::Degraded { slot, cause });
        self.phase = Phase::Serving;
        self.spread();
        self.actions.push_back(Action::Announce);
    }

    /// Starts the first workers that are next: those of slots that have listeners, and of the first
    /// slot that has none.
    pub(super) fn start_waiting(&mut self, now: Tick) {
        let mut staying = self.slots.len();
        if let Some(Stage::Shrink { to, .. }) = self.stage() {
            staying = usize::from(*to);
        }
        let bound = self.bound_slots();
        for index in 0..self.slots.len().min(staying) {
            if self.slots[index].state == SlotState::Vacant && index <= bound {
                self.spawn(index, now);
            }
        }
    }

    /// Returns the number of slots that have listeners; they are the first ones.
    pub(super) fn bound_slots(&self) -> usize {
        let unbound = |slot: &Slot| slot.queue == Queue::Unbound;
        self.slots
            .iter()
            .position(unbound)
            .unwrap_or(self.slots.len())
    }

    /// Begins the slot's next generation, which is active at once.
    pub(super) fn spawn(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        let listener = if slot.queue == Queue::Unbound {
            ListenerSource::Bind
        } else {
            ListenerSource::Adopt
        };
        let release = slot.next_release;
        self.start(index, release, listener, false, now);
    }

    /// Begins the slot's next generation beside the active worker.
    pub(super) fn spawn_successor(&mut self, index: usize, release: ReleaseId, now: Tick) {
        self.start(index, release, ListenerSource::Adopt, true, now);
    }

    fn start(
        &mut self,
        index: usize,
        release: ReleaseId,
        listener: ListenerSource,
        standby: bool,
        now: Tick,
    ) {
        let deadline = now + self.policy_of(release).start_timeout;
        let worker = self.slots[index].start(release, standby, deadline, now);
        self.notice(Notice::WorkerStarting { worker, listener });
        self.actions.push_back(Action::Spawn {
            worker,
            listener,
            release,
            standby,
        });
    }

    /// Makes `worker`, new or formerly active, the active one that serves.
    pub(super) fn serve(&mut self, index: usize, worker: WorkerId, owes_report: bool, now: Tick) {
        let slot = &mut self.slots[index];
        let before = slot.queue;
        slot.activate(worker.generation, now);
        self.enter(worker, WorkerState::Serving { owes_report }, now);
        let slot = worker.slot;
        if let Queue::Lent { to: from, .. } = before {
            let last = false;
            self.actions.push_back(Action::Recall { slot, from, last });
            self.notice(Notice::Recalled { slot, from });
        }
    }

    /// Kills a worker. If it is active and a successor is starting, the successor takes its place.
    pub(super) fn kill(&mut self, worker: WorkerId, why: KillReason, now: Tick) {
        let Some((index, it)) = self.find(worker) else {
            return self.repair("a worker to kill does not exist");
        };
        let error = match &it.state {
            WorkerState::Starting { error, .. } => error.clone(),
            WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => None,
            WorkerState::Killed { .. } => return self.repair("a worker is killed twice"),
        };
        let killed = WorkerState::Killed {
            until: now + KILL_GRACE,
            why,
            served_for: it.served_for(now),
            error,
            leaving: it.is_leaving(),
        };
        self.enter(worker, killed, now);
        let slot = &mut self.slots[index];
        if slot.is_active(worker.generation) {
            slot.promote_standby(now);
        }
        self.actions.push_back(Action::Kill { worker });
    }

    /// Stops waiting for killed workers that have not exited: the machine continues as if they had.
    /// The shell reaps them if they exit later.
    pub(super) fn abandon_killed(&mut self, now: Tick) {
        let killed = self.slots.iter().flat_map(Slot::killed);
        let due: Vec<WorkerId> = killed
            .filter(|(_, until)| *until <= now)
            .map(|(worker, _)| worker)
            .collect();
        for worker in due {
            // The loss of one may have ended another.
            if self.find(worker).is_none() {
                continue;
            }
            let after = KILL_GRACE;
            self.notice(Notice::NotEnded { worker, after });
            self.actions.push_back(Action::Abandon { worker });
            self.exited(worker, ExitStatus::Lost, None, now);
        }
    }

    /// Returns when the first killed worker is abandoned.
    pub(super) fn killed_deadline(&self) -> Option<Tick> {
        let killed = self.slots.iter().flat_map(Slot::killed);
        killed.map(|(_, until)| until).min()
    }

    /// Handles the exit of a process, or the failure to create it. The consequences depend on the
    /// phase, on the worker's role, and on the other workers of the slot.
    pub(super) fn worker_ended(&mut self, worker: WorkerId, report: ExitReport, now: Tick) {
        let index = worker.slot.index();
        let slot = &mut self.slots[index];
        let was_active = slot.is_active(worker.generation);
        let Some(it) = slot.remove(worker.generation, now) else {
            return self.repair("a worker that ended does not exist");
        };
        if was_active {
            self.active_ended(worker, &it, report, now);
        } else if it.is_leaving() {
            self.predecessor_ended(worker, &it, report, now);
        } else {
            self.successor_ended(worker, &it, report, now);
        }
    }

    fn active_ended(&mut self, worker: WorkerId, it: &Worker, report: ExitReport, now: Tick) {
        let index = worker.slot.index();
        match &self.phase {
            Phase::Booting { slot } if *slot == worker.slot => {
                let cause = format!("the worker of slot {} {report}", worker.slot);
                if self.may_degrade() {
                    self.begin_degraded(worker.slot, cause);
                    return self.active_lost(worker, it, report, now);
                }
                self.record_failure(worker, report);
                self.slots[index].set_state(SlotState::Stopped, now);
                self.fail_boot(cause, now);
            }
            Phase::Booting { .. } | Phase::Serving => self.active_lost(worker, it, report, now),
            // In Idle and Ended there are no workers.
            Phase::Idle
            | Phase::BootFailed { .. }
            | Phase::Draining { .. }
            | Phase::Forced
            | Phase::Ended => {
                self.slots[index].set_state(SlotState::Stopped, now);
                self.report_exit(worker, report);
            }
        }
    }

    /// Handles the exit of the active worker of a slot that is to continue.
    fn active_lost(&mut self, worker: WorkerId, it: &Worker, report: ExitReport, now: Tick) {
        let index = worker.slot.index();
        if it.was_killed_for(&KillReason::Superseded) {
            self.report_exit(worker, report);
            return self.spawn(index, now);
        }
        let served_for = report.served_for.unwrap_or_default();
        let why = report.to_string();
        let unbound = self.slots[index].queue == Queue::Unbound;
        let growing = unbound && matches!(self.stage(), Some(Stage::Grow { .. }));
        if growing && self.is_cancelled() {
            self.report_exit(worker, report);
            return self.abandon_growth(index, &why, now);
        }
        self.record_failure(worker, report);
        if growing {
            return self.abandon_growth(index, &why, now);
        }
        let slot = &self.slots[index];
        if let Some(sender) = slot.handing_over() {
            let sender = slot.id_of(sender.generation);
            self.reactivate(index, sender, true, now);
            return self.roll_lost_worker(worker.slot, it.release, &why, now);
        }
        self.roll_lost_worker(worker.slot, it.release, &why, now);
        if self.slots[index].promote_standby(now) {
            self.count_failure(index, served_for);
        } else {
            self.restart(index, served_for, now);
        }
    }

    /// Reports a requested exit.
    pub(super) fn report_exit(&mut self, worker: WorkerId, report: ExitReport) {
        self.notice(match (report.exit, report.cause) {
            (Some(exit), _) => Notice::WorkerStopped { worker, exit },
            (None, cause) => Notice::SpawnFailed {
                worker,
                cause: cause.unwrap_or_default(),
            },
        });
    }

    /// Counts and reports a failure.
    pub(super) fn record_failure(&mut self, worker: WorkerId, report: ExitReport) {
        let ExitReport {
            exit,
            served_for,
            cause,
        } = report;
        let history = &mut self.slots[worker.slot.index()].history;
        history.crashes = history.crashes.saturating_add(1);
        self.notice(match exit {
            Some(exit) => Notice::WorkerDied {
                worker,
                exit,
                served_for,
                cause,
            },
            None => Notice::SpawnFailed {
                worker,
                cause: cause.unwrap_or_default(),
            },
        });
    }

    /// Counts a failure of the active worker; returns the number of earlier failures in a row.
    fn count_failure(&mut self, index: usize, served_for: Duration) -> u32 {
        let history = &mut self.slots[index].history;
        // A worker that never was Ready was not healthy, even where the reset time is zero.
        if served_for > Duration::ZERO && served_for >= self.policy.backoff_reset {
            history.failures = 0;
        }
        let earlier = history.failures;
        history.failures = earlier.saturating_add(1);
        earlier
    }

    /// Starts the next worker of a failed slot, now or later.
    pub(super) fn restart(&mut self, index: usize, served_for: Duration, now: Tick) {
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
                let (slot_id, failures) = (slot.id, slot.history.failures);
                let until = now + delay;
                slot.set_state(SlotState::BackingOff { until }, now);
                self.notice(Notice::BackingOff {
                    slot: slot_id,
                    delay,
                    failures,
                });
            }
        }
    }

    /// Fails the boot. The server was never announced, so no graceful stop is needed.
    pub(super) fn fail_boot(&mut self, cause: String, now: Tick) {
        self.notice(Notice::BootFailed {
            cause: cause.clone(),
        });
        self.refuse_pending("the server could not start");
        self.phase = Phase::BootFailed { cause };
        self.stop_all(KillReason::BootFailed, now);
    }

    /// Stops every slot. Workers that serve or leave are sent a request to finish if the phase
    /// leaves them time; all others are killed.
    pub(super) fn stop_all(&mut self, why: KillReason, now: Tick) {
        let graceful = matches!(self.phase, Phase::Draining { .. });
        for index in 0..self.slots.len() {
            self.kill_successor(index, now);
            for worker in self.workers_of(index) {
                match self.find(worker).map(|(_, it)| &it.state) {
                    Some(
                        WorkerState::Serving { .. }
                        | WorkerState::HandingOver { .. }
                        | WorkerState::Leaving { .. },
                    ) if graceful => {
                        self.enter(worker, WorkerState::Stopping, now);
                        self.actions.push_back(Action::StopWorker { worker });
                    }
                    Some(
                        WorkerState::Starting { .. }
                        | WorkerState::Serving { .. }
                        | WorkerState::HandingOver { .. }
                        | WorkerState::Leaving { .. },
                    ) => self.kill(worker, why.clone(), now),
                    Some(WorkerState::Stopping | WorkerState::Killed { .. }) | None => {}
                }
            }
            let slot = &mut self.slots[index];
            match slot.state {
                SlotState::Active(_) | SlotState::Stopped => {}
                SlotState::Vacant | SlotState::BackingOff { .. } | SlotState::Retired => {
                    slot.set_state(SlotState::Stopped, now);
                }
            }
        }
    }

    /// Ends a drain: kills the workers that still drain.
    pub(super) fn kill_stopping(&mut self, notice: impl Fn(WorkerId) -> Option<Notice>, now: Tick) {
        self.phase = Phase::Forced;
        let workers: Vec<WorkerId> = (0..self.slots.len())
            .flat_map(|index| self.workers_of(index))
            .collect();
        for worker in workers {
            let state = self.find(worker).map(|(_, it)| &it.state);
            if state == Some(&WorkerState::Stopping) {
                self.actions.extend(notice(worker).map(Action::Notice));
                self.kill(worker, KillReason::Stop, now);
            }
        }
    }
}
