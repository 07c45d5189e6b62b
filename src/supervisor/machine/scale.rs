//! Adds and removes slots.
//!
//! More slots: one after the other, each binding a socket of its own; the sockets in their group
//! stay sorted by slot. A slot that has started stays, even if the next one fails.
//!
//! Fewer slots: closing a socket resets the clients in its queue and handshakes in progress. So new
//! connections are steered away from the leaving sockets first; handshakes already begun get time
//! to complete; then each leaving worker empties its queue and hands all its connections to a
//! sibling that stays, and only then are its listeners closed.
//!
//! Invariants: the leaving slots are the highest, and leave highest first; until its worker has
//! released it, a leaving slot's queue is served, lent, or about to be lent, like any other.

use std::time::Duration;

use super::plan::Stage;
use super::slot::Slot;
use super::{Action, Machine, Notice, Queue, SlotId, SlotState, WorkerId};
use uppercased_ctl::clock::Tick;

impl Machine {
    /// Makes the operation continue by scaling to this number of workers.
    pub(super) fn begin_scale(&mut self, to: u16, now: Tick) {
        let here = self.policy.workers.max(1);
        let stage = if to > here {
            Stage::Grow { to, former: here }
        } else if to < here {
            self.actions.push_back(Action::Steer { slots: to });
            Stage::Shrink {
                to,
                settling: Some(now + self.policy.handshake_timeout),
                turn: 0,
                patience: None,
                tried: 0,
            }
        } else {
            Stage::Ending { failure: None }
        };
        self.enter_stage(stage);
    }

    /// Advances by one step towards more slots; returns whether there may be another.
    pub(super) fn grow(&mut self, to: u16, now: Tick) -> bool {
        let here = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let missing = self.bound_slots();
        if let Some(slot) = self.slots.get(missing) {
            // A slot that is backing off retries now; the operation needs the result.
            if matches!(slot.state, SlotState::BackingOff { .. }) {
                self.spawn(missing, now);
            }
            return false;
        }
        if self.policy.workers != here {
            self.policy.workers = here;
            self.spread();
        }
        if here >= to {
            self.enter_stage(Stage::Ending { failure: None });
            return true;
        }
        let mut slot = Slot::new(SlotId(here), self.born_before, self.release);
        slot.history.crashes = self.crashes_before(slot.id);
        self.slots.push(slot);
        self.spawn(usize::from(here), now);
        false
    }

    /// Handles a failed first start of a slot while slots are being added. A slot that was being
    /// added is dropped; one that has been missing since the boot is retried.
    pub(super) fn abandon_growth(&mut self, index: usize, why: &str, now: Tick) {
        let id = self.slots[index].id;
        if id.0 < self.policy.workers {
            self.restart(index, Duration::ZERO, now);
        } else {
            self.drop_last_slot();
        }
        if self.is_cancelled() {
            return self.shrink_back(now);
        }
        let workers = self.bound_slots();
        let cause = format!("the new worker of slot {id} {why}; {workers} workers serve");
        self.fail_operation(cause);
    }

    /// Spreads connections after the first worker of a slot that could not start at boot has
    /// started.
    pub(super) fn late_slot_ready(&mut self) {
        // Otherwise the end of the steering does this.
        if !matches!(self.stage(), Some(Stage::Shrink { .. })) {
            self.spread();
        }
    }

    /// Advances by one step towards fewer slots; returns whether there may be another.
    pub(super) fn shrink(
        &mut self,
        to: u16,
        settling: Option<Tick>,
        turn: u16,
        patience: Option<Tick>,
        now: Tick,
    ) -> bool {
        let tried = match self.stage() {
            Some(Stage::Shrink { tried, .. }) => *tried,
            Some(_) | None => 0,
        };
        let step = |turn, patience, tried| Stage::Shrink {
            to,
            settling: None,
            turn,
            patience,
            tried,
        };
        let shrink = |turn, patience| step(turn, patience, tried);
        if let Some(until) = settling {
            if now < until {
                return false;
            }
            self.enter_stage(shrink(turn, None));
            return true;
        }
        let leaving = self
            .slots
            .iter()
            .rposition(|slot| slot.id.0 >= to && slot.queue != Queue::Closed);
        let Some(index) = leaving else {
            self.actions.push_back(Action::Unsteer);
            self.policy.workers = to;
            self.enter_stage(Stage::Ending { failure: None });
            return true;
        };
        if self.slots[index].state == SlotState::Retired {
            // It hands over, or is being killed; both have a deadline.
            self.enter_stage(shrink(turn, None));
            return false;
        }
        let slot = &self.slots[index];
        let left = match slot.state {
            // Otherwise its own restart continues and is awaited.
            SlotState::Active(_) => match (slot.serving(), self.next_receiver(to, turn)) {
                (Some(from), Some(heir)) => {
                    self.retire(index, from, heir, now);
                    true
                }
                (Some(_) | None, _) => false,
            },
            // No client has ever waited there.
            SlotState::Vacant | SlotState::BackingOff { .. }
                if self.slots[index].queue == Queue::Unbound =>
            {
                self.drop_last_slot();
                true
            }
            // The time of its next worker is unknown. A sibling has its queue, or can borrow it.
            SlotState::Vacant | SlotState::BackingOff { .. } => {
                self.retire_without_worker(index, now)
            }
            SlotState::Retired | SlotState::Stopped => false,
        };
        if left {
            self.enter_stage(step(turn.wrapping_add(1), None, 0));
            return true;
        }
        let until = patience.unwrap_or_else(|| now + self.leave_timeout());
        if until <= now {
            self.abandon_shrinking(index);
            return true;
        }
        self.enter_stage(shrink(turn, Some(until)));
        false
    }

    /// Returns the time for which the next slot to leave may lack a worker that could hand over, or
    /// a sibling that could receive: two worker starts, the first of which fails.
    fn leave_timeout(&self) -> Duration {
        self.policy.start_timeout.saturating_mul(2)
    }

    /// Fails the scaling down: no worker could receive the connections of the next slot.
    fn abandon_shrinking(&mut self, index: usize) {
        let slot = &self.slots[index];
        let (id, state) = (slot.id, slot.name());
        let workers = self.open_slots();
        self.policy.workers = workers;
        self.actions.push_back(Action::Unsteer);
        self.note_incomplete();
        self.fail_operation(format!(
            "cannot remove slot {id}: it is {state}, or no sibling is ready; {workers} workers serve"
        ));
    }

    /// Makes a sibling empty the queue of a slot without a worker, and closes it. Returns whether
    /// there is a sibling.
    fn retire_without_worker(&mut self, index: usize, now: Tick) -> bool {
        if let Queue::Unserved { .. } = self.slots[index].queue {
            self.lend(index, now);
        }
        let slot = &mut self.slots[index];
        let (id, Queue::Lent { to: from, .. }) = (slot.id, slot.queue) else {
            return false;
        };
        slot.set_state(SlotState::Retired, now);
        slot.queue = Queue::Closed;
        let recall = Action::Recall {
            slot: id,
            from,
            last: true,
        };
        let close = Action::CloseListeners { slot: id };
        self.actions.extend([recall, close]);
        self.notice(Notice::LeftWithoutWorker { slot: id, from });
        self.drop_empty_slots();
        true
    }

    /// Requests that new connections be spread over all slots that listen.
    pub(super) fn spread(&mut self) {
        let listens = |slot: &&Slot| !matches!(slot.queue, Queue::Unbound | Queue::Closed);
        let slots = self.slots.iter().filter(listens).count();
        let slots = u16::try_from(slots).unwrap_or(u16::MAX);
        self.actions.push_back(Action::Spread { slots });
    }

    /// Returns the next receiver among the workers of the first `stay` slots: all of them in turn,
    /// so that the load is spread, and a failed handover is retried with another.
    fn next_receiver(&self, stay: u16, turn: u16) -> Option<WorkerId> {
        let heirs: Vec<WorkerId> = self.receivers(stay).collect();
        let at = usize::from(turn).checked_rem(heirs.len())?;
        heirs.get(at).copied()
    }

    fn receivers(&self, stay: u16) -> impl Iterator<Item = WorkerId> {
        let staying = self.slots.iter().take(stay.into());
        staying.filter_map(Slot::serving)
    }

    fn retire(&mut self, index: usize, from: WorkerId, to: WorkerId, now: Tick) {
        self.recall_all_from(from);
        self.slots[index].set_state(SlotState::Retired, now);
        self.hand_over(from, to, false, true, now);
    }

    /// Handles connections of a leaving worker that the sibling cannot adopt: another sibling is
    /// tried, and if none is left, the slot stays.
    pub(super) fn try_next_receiver(
        &mut self,
        index: usize,
        from: WorkerId,
        cause: &str,
        now: Tick,
    ) {
        if let Some(&Stage::Shrink {
            to, turn, tried, ..
        }) = self.stage()
            && usize::from(tried) + 1 < self.receivers(to).count()
            && let Some(heir) = self.next_receiver(to, turn)
        {
            self.enter_stage(Stage::Shrink {
                to,
                settling: None,
                turn: turn.wrapping_add(1),
                patience: None,
                tried: tried + 1,
            });
            return self.hand_over(from, heir, false, true, now);
        }
        self.reactivate(index, from, false, now);
        self.actions.push_back(Action::Serve { worker: from });
        if matches!(self.stage(), Some(Stage::Shrink { .. })) {
            self.actions.push_back(Action::Unsteer);
            self.policy.workers = self.open_slots();
            let workers = self.policy.workers;
            self.fail_operation(format!("{cause}; {workers} workers serve"));
        }
    }

    /// Drops the slots that have left, from the highest down, while they have no process.
    pub(super) fn drop_empty_slots(&mut self) {
        let left = |slot: &Slot| slot.queue == Queue::Closed && slot.workers.is_empty();
        while self.slots.last().is_some_and(left) {
            self.drop_last_slot();
        }
    }

    fn drop_last_slot(&mut self) {
        if let Some(slot) = self.slots.pop() {
            // A later slot of this number must not reuse the generations of its workers.
            self.born_before = self.born_before.max(slot.history.born);
            self.keep_crashes(&slot);
            let slot = slot.id;
            self.actions.push_back(Action::DropSlot { slot });
        }
    }

    /// Keeps the slot's failure total, so that it continues if the slot is added again.
    fn keep_crashes(&mut self, slot: &Slot) {
        let index = slot.id.index();
        if slot.history.crashes > 0 && self.former_crashes.len() <= index {
            self.former_crashes.resize(index + 1, 0);
        }
        if let Some(crashes) = self.former_crashes.get_mut(index) {
            *crashes = slot.history.crashes;
        }
    }
}
