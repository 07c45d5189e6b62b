//! More slots, or fewer.
//!
//! More: one slot after the other, each binding a socket of its own; the order of the sockets in
//! their group stays that of the slots. What comes up stays, even if the next one does not.
//!
//! Fewer: a closed socket resets whoever waits in its queue or has not finished its handshake. So
//! new connections are steered away from the leaving sockets first; handshakes begun before that
//! get their time; then each leaving worker empties its queue, hands all it has to a sibling that
//! stays, and only then are its listeners closed.
//!
//! Invariants: the leaving slots are the highest, and leave highest first; until its worker has let
//! go of it, a leaving slot's queue is served, lent, or about to be, as any other's.

use super::super::slot::{PredecessorStage, Slot};
use super::operation::Stage;
use super::{Action, Machine, Notice, Queue, SlotId, SlotState, WorkerId};
use crate::clock::Tick;

impl Machine {
    /// Makes the operation go on to this number of workers.
    pub(super) fn begin_scale(&mut self, to: u16, now: Tick) {
        let here = self.policy.workers.max(1);
        let stage = if to > here {
            Stage::Grow { to }
        } else if to < here {
            self.actions.push_back(Action::Steer { slots: to });
            Stage::Shrink {
                to,
                settling: Some(now + self.policy.handshake_timeout),
                turn: 0,
            }
        } else {
            Stage::Ending { failure: None }
        };
        self.enter_stage(stage);
    }

    /// One step towards more slots; says whether there may be another.
    pub(super) fn grow(&mut self, to: u16, now: Tick) -> bool {
        let here = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let starting = |slot: &Slot| slot.queue == Queue::Unbound;
        if self.slots.last().is_some_and(starting) {
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
        slot.deaths = self.deaths_before(slot.id);
        self.slots.push(slot);
        self.spawn(usize::from(here), now);
        false
    }

    /// The slot that was being added has no worker, and never had one.
    pub(super) fn give_up_growth(&mut self, why: &str) {
        let Some(slot) = self.slots.last() else {
            return;
        };
        let id = slot.id;
        self.drop_last_slot();
        let workers = self.open_slots();
        let cause = format!("the new worker of slot {id} failed: {why}; {workers} workers serve");
        self.fail_operation(cause);
    }

    /// One step towards fewer slots; says whether there may be another.
    pub(super) fn shrink(&mut self, to: u16, settling: Option<Tick>, turn: u16, now: Tick) -> bool {
        if let Some(until) = settling {
            if now < until {
                return false;
            }
            let settling = None;
            self.enter_stage(Stage::Shrink { to, settling, turn });
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
        // Its own renewal, or that of its siblings, goes on as ever and is waited for.
        if self.slots[index].state != SlotState::Serving {
            return false;
        }
        let Some(heir) = self.heir(to, turn) else {
            return false;
        };
        let turn = turn.wrapping_add(1);
        self.enter_stage(Stage::Shrink {
            to,
            settling: None,
            turn,
        });
        self.retire(index, heir, now);
        true
    }

    /// Has new connections spread over all slots there are.
    pub(super) fn spread(&mut self) {
        let slots = self.open_slots();
        self.actions.push_back(Action::Spread { slots });
    }

    /// Who of the first `stay` slots takes the next connections: all of them in turn, so that no
    /// one gets everything, and a handover that failed is tried with another.
    fn heir(&self, stay: u16, turn: u16) -> Option<WorkerId> {
        let serving = |slot: &&Slot| slot.id.0 < stay && slot.state == SlotState::Serving;
        let heirs: Vec<&Slot> = self.slots.iter().filter(serving).collect();
        let at = usize::from(turn).checked_rem(heirs.len())?;
        heirs.get(at).map(|slot| slot.worker())
    }

    fn retire(&mut self, index: usize, to: WorkerId, now: Tick) {
        let from = self.slots[index].worker();
        self.recall_all_from(from);
        let slot = &mut self.slots[index];
        slot.relieve(PredecessorStage::HandingOver {
            since: now,
            deadline: None,
            to,
        });
        slot.enter(SlotState::Retired, now);
        self.notice(Notice::HandoverStarted { from, to });
        let last = true;
        self.actions.push_back(Action::HandOver { from, to, last });
    }

    /// Drops the slots that have left, from the highest down as long as no process is in them.
    pub(super) fn drop_empty_slots(&mut self) {
        let left = |slot: &Slot| slot.queue == Queue::Closed && slot.is_empty();
        while self.slots.last().is_some_and(left) {
            self.drop_last_slot();
        }
    }

    fn drop_last_slot(&mut self) {
        if let Some(slot) = self.slots.pop() {
            // A later slot of this number must not use the names of this one's workers again.
            self.born_before = self.born_before.max(slot.born);
            self.remember_deaths(&slot);
            let slot = slot.id;
            self.actions.push_back(Action::DropSlot { slot });
        }
    }

    /// So that what is counted "of all time" goes on if the slot comes back.
    fn remember_deaths(&mut self, slot: &Slot) {
        let index = slot.id.index();
        if slot.deaths > 0 && self.former_deaths.len() <= index {
            self.former_deaths.resize(index + 1, 0);
        }
        if let Some(deaths) = self.former_deaths.get_mut(index) {
            *deaths = slot.deaths;
        }
    }
}
