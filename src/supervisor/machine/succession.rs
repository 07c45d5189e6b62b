//! How one worker follows another in a slot: promotion, handover, the way back, the end.
//!
//! Invariants:
//! - a predecessor that hands over has somebody to hand over to; when that one is lost before the
//!   end, the predecessor is the main worker again, whatever else happens in that call;
//! - a worker that was relieved is awaited under a deadline, and no new one is counted on before
//!   it has let go;
//! - a handover has no deadline while it makes progress; when it makes none, the side that owes the
//!   next step is given up, and never the other one;
//! - connections that cannot go are drained only if that was asked for. Otherwise what has gone
//!   comes back.

use std::time::Duration;

use super::lifecycle::Obituary;
use super::pulse::LOOK_FLOOR;
use super::reactions::Reception;
use super::slot::{
    Death, Predecessor, PredecessorStage, Seat, SlotState, Successor, SuccessorState, Watch,
};
use super::{
    Action, HandoverEnd, KILL_GRACE, KillReason, Machine, Notice, Phase, Progress, Queue,
    RestartConnections, WorkerId,
};
use crate::config::HANDOVER_CHECKS;
use uppercased_ctl::clock::Tick;

impl Machine {
    /// The slot's successor is Ready: it is the main worker from here on.
    pub(super) fn promote(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        let from = slot.worker();
        let Some(Successor {
            generation,
            release,
            since,
            ..
        }) = &slot.successor
        else {
            return;
        };
        let to = slot.named(*generation);
        let took = now.since(*since);
        let mode = self.policy_of(*release).restart_connections;
        self.notice(Notice::WorkerStandingBy { worker: to, took });
        self.recall_all_from(from);
        let stage = match mode {
            RestartConnections::Handover => self.handing_over_to(to, false, now),
            RestartConnections::Drain => PredecessorStage::Leaving {
                since: now,
                deadline: self.drained_by(now),
                finished: false,
            },
        };
        self.slots[index].promote(stage, now);
        match mode {
            RestartConnections::Handover => {
                self.notice(Notice::HandoverStarted { from, to });
                let last = false;
                self.actions.push_back(Action::HandOver { from, to, last });
            }
            RestartConnections::Drain => {
                self.actions.push_back(Action::Serve { worker: to });
                self.order_to_leave(from, self.policy.drain_timeout);
            }
        }
    }

    fn order_to_leave(&mut self, worker: WorkerId, within: Duration) {
        self.actions.push_back(Action::Leave { worker, within });
    }

    /// The stage of a worker that begins to hand over; or to give back, if not all could come.
    pub(super) fn handing_over_to(&self, to: WorkerId, back: bool, now: Tick) -> PredecessorStage {
        PredecessorStage::HandingOver {
            since: now,
            deadline: Some(now + self.progress_every(to)),
            to,
            watch: Watch::default(),
            back,
        }
    }

    /// The pause between two looks at the progress of a handover to `to`.
    fn progress_every(&self, to: WorkerId) -> Duration {
        let release = match self.slots.get(to.slot.index()) {
            Some(slot) if slot.worker() == to => slot.release,
            Some(_) | None => self.release,
        };
        let limit = self.policy_of(release).handover_timeout;
        (limit / HANDOVER_CHECKS).max(LOOK_FLOOR)
    }

    /// How far a handover is. A side that has kept the other waiting for too long is given up.
    pub(super) fn progress(
        &mut self,
        from: WorkerId,
        to: WorkerId,
        found: Progress,
        now: Tick,
    ) -> Reception {
        let Some((index, Seat::Predecessor(at))) = self.seat(from) else {
            return Reception::Stale;
        };
        let PredecessorStage::HandingOver {
            since,
            deadline,
            to: receiver,
            watch,
            ..
        } = &mut self.slots[index].predecessors[at].stage
        else {
            return Reception::Stale;
        };
        if *receiver != to || deadline.is_none() {
            return Reception::Stale;
        }
        if watch.progress != found {
            *watch = Watch {
                progress: found,
                misses: 0,
            };
            return Reception::Taken;
        }
        watch.misses = watch.misses.saturating_add(1);
        if watch.misses < HANDOVER_CHECKS {
            return Reception::Taken;
        }
        let after = now.since(*since);
        // What was sent and not answered is the receiver's to answer; all else is the sender's.
        let stalled = if found.sent > found.answered {
            to
        } else {
            from
        };
        if stalled == from {
            self.notice(Notice::HandoverTimedOut {
                from,
                to,
                stalled,
                after,
            });
            self.damage(format!(
                "{from} made no progress with its handover and was killed"
            ));
            self.kill_predecessor(index, at, KillReason::HandoverTimedOut, now);
            return Reception::Taken;
        }
        *deadline = None;
        // Otherwise it is being killed already; its exit brings everything back.
        if self.serves(to) {
            self.notice(Notice::HandoverTimedOut {
                from,
                to,
                stalled,
                after,
            });
            self.kill(to, KillReason::HandoverTimedOut, now);
        }
        Reception::Taken
    }

    /// When a worker that serves on without accepting must be gone. By the limits in force: they
    /// are what it was told, and what it began its life with.
    fn drained_by(&self, now: Tick) -> Tick {
        now + self.policy.drain_timeout + self.policy.linger_timeout + KILL_GRACE
    }

    pub(super) fn handed_over(
        &mut self,
        worker: WorkerId,
        (moved, left): (u32, u32),
        end: &HandoverEnd,
        now: Tick,
    ) -> Reception {
        let Some((index, seat)) = self.seat(worker) else {
            return Reception::Stale;
        };
        match seat {
            Seat::Main => self.late_word(index, end, now),
            Seat::Successor => Reception::Stale,
            Seat::Predecessor(at) => match &self.slots[index].predecessors[at].stage {
                PredecessorStage::HandingOver { since, .. } => {
                    let took = now.since(*since);
                    self.notice(Notice::HandoverEnded {
                        from: worker,
                        moved,
                        left,
                        end: end.clone(),
                        took,
                    });
                    self.handover_ended(index, at, (moved, left), end, now);
                    Reception::Taken
                }
                // It may have said so just before it heard, or was killed.
                PredecessorStage::Stopping | PredecessorStage::Killing { .. } => Reception::Taken,
                PredecessorStage::Leaving { .. } => Reception::Stale,
            },
        }
    }

    fn handover_ended(
        &mut self,
        index: usize,
        at: usize,
        (moved, left): (u32, u32),
        end: &HandoverEnd,
        now: Tick,
    ) {
        let (deadline, finished) = match end {
            // What had moved is with a worker that is gone, or as good as.
            HandoverEnd::PeerGone => return self.restore_predecessor(index, at, now),
            HandoverEnd::Done => (now + KILL_GRACE, true),
            HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => {
                self.count_connections(moved, 0);
                return self.connections_stay(index, at, left, cause, now);
            }
        };
        self.count_connections(moved, left);
        let slot = &mut self.slots[index];
        slot.predecessors[at].pulse = None;
        slot.predecessors[at].stage = PredecessorStage::Leaving {
            since: now,
            deadline,
            finished,
        };
        self.close_if_retired(index);
    }

    /// A predecessor could not hand everything over: `left` connections are still with it.
    fn connections_stay(&mut self, index: usize, at: usize, left: u32, cause: &str, now: Tick) {
        let PredecessorStage::HandingOver { back, .. } = self.slots[index].predecessors[at].stage
        else {
            return;
        };
        let worker = self.slots[index].named(self.slots[index].predecessors[at].generation);
        if back {
            // They could not come, and cannot go back. Nobody cuts them for it.
            self.damage(format!("{left} connections stay with {worker}: {cause}"));
            return self.drain_predecessor(index, at, Duration::MAX, now);
        }
        if self.may_drain() {
            self.count_connections(0, left);
            return self.drain_predecessor(index, at, self.policy.drain_timeout, now);
        }
        let cause = format!("{left} connections of {worker} cannot move: {cause}");
        if self.slots[index].state == SlotState::Retired {
            return self.stay_after_all(index, at, &cause, now);
        }
        if self.slots[index].state == SlotState::Serving {
            self.give_back(index, at, now);
        } else {
            // Whom it handed over to is being killed: that one's exit would bring it back as well.
            self.actions.push_back(Action::Serve { worker });
            self.restore_predecessor(index, at, now);
        }
        self.roll_fails(worker.slot, cause, now);
    }

    /// The main worker hands what it has back to the predecessor that it was to follow.
    fn give_back(&mut self, index: usize, at: usize, now: Tick) {
        let from = self.slots[index].worker();
        let old = self.slots[index].predecessors.remove(at);
        let to = self.slots[index].named(old.generation);
        self.recall_all_from(from);
        let slot = &mut self.slots[index];
        slot.relieve(PredecessorStage::Stopping);
        let last = slot.predecessors.len() - 1;
        self.return_to_main(index, old, now);
        let stage = self.handing_over_to(to, true, now);
        self.slots[index].predecessors[last].stage = stage;
        self.notice(Notice::HandoverStarted { from, to });
        // It accepts at once, also if nothing can come back to it.
        self.actions.push_back(Action::Serve { worker: to });
        let last = false;
        self.actions.push_back(Action::HandOver { from, to, last });
    }

    /// A predecessor serves what it has, without accepting, and ends after `within` at the latest.
    fn drain_predecessor(&mut self, index: usize, at: usize, within: Duration, now: Tick) {
        let deadline = now + within + self.policy.linger_timeout + KILL_GRACE;
        let slot = &mut self.slots[index];
        let worker = slot.named(slot.predecessors[at].generation);
        slot.predecessors[at].pulse = None;
        slot.predecessors[at].stage = PredecessorStage::Leaving {
            since: now,
            deadline,
            finished: false,
        };
        self.order_to_leave(worker, within);
        self.close_if_retired(index);
    }

    /// A slot whose last worker has let go of its queue, or is told to, is closed.
    fn close_if_retired(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.state == SlotState::Retired {
            slot.queue = Queue::Closed;
            let slot = slot.id;
            self.actions.push_back(Action::CloseListeners { slot });
        }
    }

    fn count_connections(&mut self, moved: u32, drained: u32) {
        if let Some(operation) = &mut self.operation {
            operation.moved = operation.moved.saturating_add(moved.into());
            operation.drained = operation.drained.saturating_add(drained.into());
        }
    }

    /// A worker that was put back in the main seat says how its handover ended.
    fn late_word(&mut self, index: usize, end: &HandoverEnd, now: Tick) -> Reception {
        let slot = &mut self.slots[index];
        if !slot.owes_word {
            return Reception::Stale;
        }
        slot.owes_word = false;
        let worker = slot.worker();
        match end {
            // It accepts again, as was assumed.
            HandoverEnd::PeerGone => {}
            // It had finished, and exits. What it moved is lost with whom it moved it to.
            HandoverEnd::Done => self.kill(worker, KillReason::Superseded, now),
            // It waits to be told what becomes of the rest: that is its own again.
            HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {
                self.actions.push_back(Action::Serve { worker });
            }
        }
        Reception::Taken
    }

    /// Puts the predecessor that hands over back in the main seat. Who sits there has failed it.
    pub(super) fn restore_predecessor(&mut self, index: usize, at: usize, now: Tick) {
        let slot = &self.slots[index];
        if slot.state == SlotState::Serving {
            self.kill(slot.worker(), KillReason::PeerGone, now);
        }
        let slot = &mut self.slots[index];
        if let SlotState::Killing {
            until,
            why,
            served_for,
            words,
        } = slot.state.clone()
        {
            slot.successor = Some(Successor {
                generation: slot.generation,
                release: slot.release,
                since: slot.since,
                state: SuccessorState::Killing {
                    until,
                    why,
                    served_for,
                    words,
                },
            });
        }
        self.reinstate(index, at, now);
    }

    /// As [`Self::restore_predecessor`], where the main seat's process is gone or was none.
    pub(super) fn reinstate(&mut self, index: usize, at: usize, now: Tick) {
        let returning = self.slots[index].predecessors.remove(at);
        self.return_to_main(index, returning, now);
        let worker = self.slots[index].worker();
        self.notice(Notice::Restored { worker });
        self.note_return(worker.slot, self.slots[index].release);
    }

    /// Gives the main seat, which is free, to a worker that had it before.
    fn return_to_main(&mut self, index: usize, returning: Predecessor, now: Tick) {
        let slot = &mut self.slots[index];
        let Predecessor {
            generation,
            release,
            served_since,
            pulse,
            ..
        } = returning;
        slot.generation = generation;
        slot.release = release;
        // What failed it was not of the release in force, or is not tried again at once.
        slot.next_release = self.release;
        self.serve(index, now);
        let slot = &mut self.slots[index];
        slot.since = served_since;
        slot.pulse = pulse;
    }

    /// Ends the loans of a worker that is about to stop accepting and lives on.
    pub(super) fn recall_all_from(&mut self, from: WorkerId) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            match slot.queue {
                Queue::Lent { to, .. } if to == from => {
                    slot.end_loan();
                    let slot = slot.id;
                    let last = false;
                    self.actions.push_back(Action::Recall { slot, from, last });
                }
                Queue::Lent { .. }
                | Queue::Unbound
                | Queue::Served
                | Queue::Unserved { .. }
                | Queue::Closed => {}
            }
        }
    }

    pub(super) fn kill_successor(&mut self, index: usize, why: KillReason, now: Tick) {
        let slot = &mut self.slots[index];
        let id = slot.id;
        let Some(successor) = &mut slot.successor else {
            return;
        };
        let words = match &mut successor.state {
            SuccessorState::Starting { words, .. } => words.take(),
            SuccessorState::Killing { .. } => return,
        };
        successor.since = now;
        successor.state = SuccessorState::Killing {
            until: now + KILL_GRACE,
            why,
            served_for: None,
            words,
        };
        let worker = WorkerId {
            slot: id,
            generation: successor.generation,
        };
        self.actions.push_back(Action::Kill { worker });
    }

    pub(super) fn kill_predecessor(&mut self, index: usize, at: usize, why: KillReason, now: Tick) {
        let slot = &mut self.slots[index];
        let predecessor = &mut slot.predecessors[at];
        predecessor.pulse = None;
        predecessor.stage = PredecessorStage::Killing {
            until: now + KILL_GRACE,
            why,
            served_for: now.since(predecessor.served_since),
        };
        let worker = WorkerId {
            slot: slot.id,
            generation: predecessor.generation,
        };
        if slot.state == SlotState::Retired && slot.handing_over().is_none() {
            slot.unserve(now);
        }
        self.actions.push_back(Action::Kill { worker });
    }
}

/// The end of those who do not sit in the main seat.
impl Machine {
    pub(super) fn successor_gone(&mut self, index: usize, obituary: Obituary, now: Tick) {
        let slot = &mut self.slots[index];
        let Some(successor) = slot.successor.take() else {
            return;
        };
        let worker = slot.named(successor.generation);
        let unwanted = match successor.state {
            SuccessorState::Killing { why, .. } => why == KillReason::OperationFailed,
            SuccessorState::Starting { .. } => false,
        };
        if unwanted || self.phase != Phase::Serving {
            return self.stopped(worker, obituary);
        }
        let why = obituary.to_string();
        self.record(worker, obituary, now);
        self.roll_suffers(worker.slot, successor.release, &why, now);
    }

    pub(super) fn predecessor_gone(
        &mut self,
        index: usize,
        at: usize,
        obituary: Obituary,
        now: Tick,
    ) {
        let slot = &mut self.slots[index];
        let predecessor = slot.predecessors.remove(at);
        let worker = slot.named(predecessor.generation);
        let held_queue = matches!(
            predecessor.stage,
            PredecessorStage::HandingOver { .. } | PredecessorStage::Killing { .. }
        );
        let handed_over = matches!(predecessor.stage, PredecessorStage::HandingOver { .. });
        let as_told = match predecessor.stage {
            PredecessorStage::Leaving { .. } => obituary.how == Some(Death::Exited(0)),
            PredecessorStage::Killing { why, .. } => why == KillReason::Superseded,
            PredecessorStage::HandingOver { .. } => false,
            PredecessorStage::Stopping => true,
        };
        if as_told || self.phase != Phase::Serving {
            return self.stopped(worker, obituary);
        }
        let served_for = obituary.served_for.unwrap_or_default();
        if handed_over {
            self.damage(format!(
                "{worker} ended before it had handed everything over"
            ));
        }
        self.record(worker, obituary, now);
        // It was the last main worker of its slot, and has not let go of the queue. (One of before,
        // which only drained, is no loss to the one that hands over now.)
        let slot = &mut self.slots[index];
        if slot.state == SlotState::Retired
            && slot.queue != Queue::Closed
            && held_queue
            && slot.handing_over().is_none()
        {
            slot.unserve(now);
            self.renew(index, served_for, now);
        }
    }

    /// What the deadlines of those who do not sit in the main seat bring.
    pub(super) fn company_timeout(&mut self, index: usize, now: Tick) {
        let slot = &self.slots[index];
        if let Some(Successor {
            generation,
            release,
            state: SuccessorState::Starting { deadline, .. },
            ..
        }) = &slot.successor
            && *deadline <= now
        {
            let worker = slot.named(*generation);
            let after = self.policy_of(*release).start_timeout;
            self.notice(Notice::StartTimedOut { worker, after });
            self.kill_successor(index, KillReason::StartTimedOut, now);
        }
        for at in 0..self.slots[index].predecessors.len() {
            let slot = &mut self.slots[index];
            let predecessor = &mut slot.predecessors[at];
            let worker = WorkerId {
                slot: slot.id,
                generation: predecessor.generation,
            };
            match &mut predecessor.stage {
                PredecessorStage::HandingOver { deadline, to, .. }
                    if deadline.is_some_and(|at| at <= now) =>
                {
                    let (from, to) = (worker, *to);
                    // Counted from this look, as with pulses.
                    let next = now + self.progress_every(to);
                    if let PredecessorStage::HandingOver { deadline, .. } =
                        &mut self.slots[index].predecessors[at].stage
                    {
                        *deadline = Some(next);
                    }
                    self.actions.push_back(Action::TakeProgress { from, to });
                }
                PredecessorStage::Leaving {
                    since, deadline, ..
                } if *deadline <= now => {
                    let after = now.since(*since);
                    self.notice(Notice::StillDraining { worker, after });
                    self.kill_predecessor(index, at, KillReason::Overstayed, now);
                }
                PredecessorStage::HandingOver { .. }
                | PredecessorStage::Leaving { .. }
                | PredecessorStage::Stopping
                | PredecessorStage::Killing { .. } => {}
            }
        }
    }

    /// Lets no successor and no predecessor go on as it was. Predecessors are asked to finish: they
    /// know best what they have and have not handed over.
    pub(super) fn halt_company(&mut self, index: usize, now: Tick) {
        self.dismiss_successor(index, now);
        let slot = &mut self.slots[index];
        let id = slot.id;
        for predecessor in &mut slot.predecessors {
            predecessor.pulse = None;
            match predecessor.stage {
                PredecessorStage::HandingOver { .. } | PredecessorStage::Leaving { .. } => {
                    predecessor.stage = PredecessorStage::Stopping;
                    let worker = WorkerId {
                        slot: id,
                        generation: predecessor.generation,
                    };
                    self.actions.push_back(Action::StopWorker { worker });
                }
                PredecessorStage::Stopping | PredecessorStage::Killing { .. } => {}
            }
        }
    }
}
