//! The succession of workers in a slot: promotion, handover, rollback, exit.
//!
//! Invariants:
//! - a worker that hands over has a receiver; when the receiver is lost before the handover ends,
//!   the sender is the active worker again, whatever else happens in that call;
//! - a worker that leaves is awaited under a deadline, and no new one is relied on before it has
//!   released the queue;
//! - a handover has no deadline while it makes progress; when it makes none, the side that owes the
//!   next step is killed, and never the other one;
//! - connections that cannot migrate are drained only if that was requested. Otherwise the migrated
//!   ones are handed back.

use std::time::Duration;

use super::pulse::SAMPLE_FLOOR;
use super::slot::Slot;
use super::worker::{ExitReport, Watch, Worker, WorkerState};
use super::{
    Action, Effect, ExitStatus, HandoverEnd, KILL_GRACE, KillReason, Machine, Notice, Phase,
    Progress, Queue, ReloadConnections, SlotId, SlotState, WorkerId,
};
use crate::config::HANDOVER_CHECKS;
use uppercased_ctl::clock::Tick;

impl Machine {
    /// Makes the slot's successor, which is Ready, the active worker.
    pub(super) fn promote(&mut self, index: usize, to: WorkerId, took: Duration, now: Tick) {
        let slot = &self.slots[index];
        let from = slot.id_of(slot.generation());
        let Some(release) = slot.worker(to.generation).map(|it| it.release) else {
            return self.repair("a successor that is ready does not exist");
        };
        self.notice(Notice::WorkerStandingBy { worker: to, took });
        self.recall_all_from(from);
        self.slots[index].next_release = release;
        self.serve(index, to, false, now);
        match self.policy_of(release).reload_connections {
            ReloadConnections::Handover => self.hand_over(from, to, false, false, now),
            ReloadConnections::Drain => {
                self.actions.push_back(Action::Serve { worker: to });
                self.leave(from, self.policy.drain_timeout, now);
            }
        }
    }

    /// Makes `from` send its connections to `to`, or return them if not all could be handed over.
    /// After the `last` handover no worker accepts from the listeners of `from`.
    pub(super) fn hand_over(
        &mut self,
        from: WorkerId,
        to: WorkerId,
        back: bool,
        last: bool,
        now: Tick,
    ) {
        let state = WorkerState::HandingOver {
            to,
            deadline: Some(now + self.progress_every(to)),
            watch: Watch::default(),
            back,
        };
        self.enter(from, state, now);
        self.notice(Notice::HandoverStarted { from, to });
        self.actions.push_back(Action::HandOver { from, to, last });
    }

    /// Makes a worker stop accepting, serve its connections, and exit after `within` at the latest.
    /// The limits in force apply: they are those that it was sent, and those that it started with.
    fn leave(&mut self, worker: WorkerId, within: Duration, now: Tick) {
        let leaving = self.leaving(within, now);
        self.enter(worker, leaving, now);
        self.actions.push_back(Action::Leave { worker, within });
    }

    /// Adds a worker that leaves already, on the request of an earlier supervisor.
    pub(super) fn adopt_leaving(&mut self, worker: WorkerId, within: Duration, now: Tick) {
        for slot in (0..=worker.slot.0).skip(self.slots.len()) {
            let mut left = Slot::new(SlotId(slot), self.born_before, self.release);
            left.state = SlotState::Retired;
            left.queue = Queue::Closed;
            self.slots.push(left);
        }
        let leaving = self.leaving(within, now);
        self.slots[worker.slot.index()].add(worker.generation, leaving, now);
    }

    fn leaving(&self, within: Duration, now: Tick) -> WorkerState {
        let deadline = now + within + self.policy.linger_timeout + KILL_GRACE;
        let done = false;
        WorkerState::Leaving { deadline, done }
    }

    /// Returns the pause between two samples of the progress of a handover to `to`.
    fn progress_every(&self, to: WorkerId) -> Duration {
        let release = self.find(to).map_or(self.release, |(_, it)| it.release);
        let limit = self.policy_of(release).handover_timeout;
        (limit / HANDOVER_CHECKS).max(SAMPLE_FLOOR)
    }

    /// Requests a sample; the next one is timed from this one, as with pulses.
    pub(super) fn sample_progress(&mut self, from: WorkerId, to: WorkerId, now: Tick) {
        let next = now + self.progress_every(to);
        if let Some((_, it)) = self.find_mut(from)
            && let WorkerState::HandingOver { deadline, .. } = &mut it.state
        {
            *deadline = Some(next);
        }
        self.actions.push_back(Action::TakeProgress { from, to });
    }

    /// Handles the progress of a handover. A side that has stalled the other for too long is
    /// killed.
    pub(super) fn progress(
        &mut self,
        from: WorkerId,
        to: WorkerId,
        found: Progress,
        now: Tick,
    ) -> Effect {
        let Some((_, it)) = self.find_mut(from) else {
            return Effect::Stale;
        };
        let after = now.since(it.since);
        let WorkerState::HandingOver {
            deadline: Some(_),
            to: receiver,
            watch,
            ..
        } = &mut it.state
        else {
            return Effect::Stale;
        };
        if *receiver != to {
            return Effect::Stale;
        }
        if watch.progress != found {
            *watch = Watch {
                progress: found,
                ..Watch::default()
            };
            return Effect::Applied;
        }
        watch.misses = watch.misses.saturating_add(1);
        if watch.misses < HANDOVER_CHECKS {
            return Effect::Applied;
        }
        // The receiver must answer what was sent and not answered; everything else is up to the
        // sender.
        let receiver_stalls = found.sent > found.answered;
        let stalled = if receiver_stalls { to } else { from };
        let was_continued = watch.is_continued;
        watch.misses = 0;
        if !was_continued && self.is_kept(stalled) {
            self.notice(Notice::HandoverTimedOut {
                from,
                to,
                stalled,
                after,
            });
            self.end_hang(stalled, now);
            return Effect::Applied;
        }
        if receiver_stalls {
            self.abandon_receiver(from);
            if !self.serves(to) {
                // It is being killed already; its exit returns all connections.
                return Effect::Applied;
            }
        }
        self.notice(Notice::HandoverTimedOut {
            from,
            to,
            stalled,
            after,
        });
        if !receiver_stalls {
            self.damage(format!("the handover of {from} stalled, and it was killed"));
        }
        self.kill(stalled, KillReason::HandoverTimedOut, now);
        Effect::Applied
    }

    /// Gives the handovers of a worker, whose keeper is about to continue it, their whole time again,
    /// once.
    pub(super) fn restart_watches(&mut self, worker: WorkerId) {
        for slot in &mut self.slots {
            let id = slot.id;
            for it in &mut slot.workers {
                let from = WorkerId {
                    slot: id,
                    generation: it.generation,
                };
                if let WorkerState::HandingOver { to, watch, .. } = &mut it.state
                    && (from == worker || *to == worker)
                {
                    watch.misses = 0;
                    watch.is_continued = true;
                }
            }
        }
    }

    /// Stops sampling a handover whose receiver is killed.
    fn abandon_receiver(&mut self, from: WorkerId) {
        if let Some((_, it)) = self.find_mut(from)
            && let WorkerState::HandingOver { deadline, .. } = &mut it.state
        {
            *deadline = None;
        }
    }

    pub(super) fn handover_ended(
        &mut self,
        index: usize,
        worker: WorkerId,
        (moved, left): (u32, u32),
        end: &HandoverEnd,
        back: bool,
        now: Tick,
    ) {
        match end {
            // The receiver's process died before it knew of the handover, and its keeper continues it
            // with the connections that it has.
            HandoverEnd::PeerGone if back && self.slots[index].serving().is_some() => {
                let cause = "the process of the receiver died";
                self.handover_incomplete(index, worker, left, cause, back, now);
            }
            // The migrated connections are with a worker that has exited or is being killed.
            HandoverEnd::PeerGone => self.restore_sender(index, worker, now),
            HandoverEnd::Done => {
                self.count_connections(moved, left);
                let deadline = now + KILL_GRACE;
                let done = true;
                self.enter(worker, WorkerState::Leaving { deadline, done }, now);
                self.close_if_retired(index);
            }
            HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => {
                self.count_connections(moved, 0);
                self.handover_incomplete(index, worker, left, cause, back, now);
            }
        }
    }

    /// Handles an incomplete handover: `left` connections are still with the worker.
    fn handover_incomplete(
        &mut self,
        index: usize,
        worker: WorkerId,
        left: u32,
        cause: &str,
        back: bool,
        now: Tick,
    ) {
        let within = if back {
            // They cannot migrate in either direction, and are not closed for that.
            self.damage(format!("{left} connections stay with {worker}: {cause}"));
            Some(Duration::MAX)
        } else if self.may_drain() {
            self.count_connections(0, left);
            Some(self.policy.drain_timeout)
        } else {
            None
        };
        if let Some(within) = within {
            self.leave(worker, within, now);
            return self.close_if_retired(index);
        }
        let cause = format!("cannot migrate {left} connections of {worker}: {cause}");
        let slot = &self.slots[index];
        if slot.state == SlotState::Retired {
            return self.try_next_receiver(index, worker, &cause, now);
        }
        if let Some(receiver) = slot.serving() {
            self.return_connections(index, receiver, worker, now);
        } else {
            // The receiver is being killed: its exit would reinstate this one as well.
            self.actions.push_back(Action::Serve { worker });
            self.restore_sender(index, worker, now);
        }
        self.fail_roll(worker.slot, cause, now);
    }

    /// Makes the active worker hand its connections back to its predecessor.
    fn return_connections(&mut self, index: usize, from: WorkerId, to: WorkerId, now: Tick) {
        self.recall_all_from(from);
        self.activate_again(index, to, false, now);
        // It accepts at once, even if no connections can be returned to it.
        self.actions.push_back(Action::Serve { worker: to });
        self.hand_over(from, to, true, false, now);
    }

    /// Closes a slot whose last worker has released its queue, or is about to.
    fn close_if_retired(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.state == SlotState::Retired {
            slot.queue = Queue::Closed;
            let slot = slot.id;
            self.actions.push_back(Action::CloseListeners { slot });
        }
    }

    fn count_connections(&mut self, migrated: u32, draining: u32) {
        if let Some(operation) = &mut self.operation {
            operation.migrated = operation.migrated.saturating_add(migrated.into());
            operation.draining = operation.draining.saturating_add(draining.into());
        }
    }

    /// Handles the report of a worker that is active again after its handover.
    pub(super) fn late_report(&mut self, worker: WorkerId, end: &HandoverEnd, now: Tick) {
        if let Some((_, it)) = self.find_mut(worker)
            && let WorkerState::Serving { owes_report } = &mut it.state
        {
            *owes_report = false;
        }
        match end {
            // It accepts again, as assumed.
            HandoverEnd::PeerGone => {}
            // It had finished, and exits. The migrated connections are lost with the receiver.
            HandoverEnd::Done => self.kill(worker, KillReason::Superseded, now),
            // It waits for a request: the remaining connections stay with it.
            HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {
                self.actions.push_back(Action::Serve { worker });
            }
        }
    }

    /// Makes the worker that hands over the active one again, because the present one failed.
    fn restore_sender(&mut self, index: usize, worker: WorkerId, now: Tick) {
        if let Some(receiver) = self.slots[index].serving() {
            self.kill(receiver, KillReason::PeerGone, now);
        }
        self.reactivate(index, worker, false, now);
    }

    /// As [`Self::restore_sender`], but the receiver's process has exited, or belongs to another
    /// slot.
    pub(super) fn reactivate(
        &mut self,
        index: usize,
        worker: WorkerId,
        owes_report: bool,
        now: Tick,
    ) {
        self.activate_again(index, worker, owes_report, now);
        self.notice(Notice::Restored { worker });
        self.note_reactivated(worker.slot, self.slots[index].release());
    }

    fn activate_again(&mut self, index: usize, worker: WorkerId, owes_report: bool, now: Tick) {
        // The failed worker did not run the release in force, or is not restarted at once.
        self.slots[index].next_release = self.release;
        self.serve(index, worker, owes_report, now);
    }

    /// Ends the loans of a worker that is about to stop accepting but keeps running.
    pub(super) fn recall_all_from(&mut self, from: WorkerId) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if matches!(slot.queue, Queue::Lent { to, .. } if to == from) {
                slot.end_loan();
                let slot = slot.id;
                let last = false;
                self.actions.push_back(Action::Recall { slot, from, last });
            }
        }
    }
}

/// The exit of workers that are not active.
impl Machine {
    pub(super) fn successor_ended(
        &mut self,
        worker: WorkerId,
        it: &Worker,
        report: ExitReport,
        now: Tick,
    ) {
        let unwanted = it.was_killed_for(&KillReason::OperationFailed);
        if unwanted || self.phase != Phase::Serving {
            return self.report_exit(worker, report);
        }
        let why = report.to_string();
        self.record_failure(worker, report);
        self.roll_lost_worker(worker.slot, it.release, &why, now);
    }

    pub(super) fn predecessor_ended(
        &mut self,
        worker: WorkerId,
        it: &Worker,
        report: ExitReport,
        now: Tick,
    ) {
        let (as_requested, held_queue) = match &it.state {
            WorkerState::Leaving { .. } => (report.exit == Some(ExitStatus::Exited(0)), false),
            WorkerState::Killed { why, .. } => (*why == KillReason::Superseded, true),
            WorkerState::HandingOver { .. } => (false, true),
            WorkerState::Starting { .. } | WorkerState::Serving { .. } | WorkerState::Stopping => {
                (true, false)
            }
        };
        if as_requested || self.phase != Phase::Serving {
            return self.report_exit(worker, report);
        }
        let served_for = report.served_for.unwrap_or_default();
        if it.is_handing_over() {
            self.damage(format!("{worker} exited before the end of its handover"));
        }
        self.record_failure(worker, report);
        // It was the last active worker of its slot, and has not released the queue. (The loss of
        // an earlier one, which only drained, does not affect the one that hands over now.)
        let index = worker.slot.index();
        let slot = &self.slots[index];
        if slot.state == SlotState::Retired
            && slot.queue != Queue::Closed
            && held_queue
            && slot.handing_over().is_none()
        {
            self.restart(index, served_for, now);
        }
    }
}
