//! The invariants of one slot between two calls of the machine.
//!
//! Like the machine's own invariants, nothing here may panic on any input: restored state is
//! validated too.

use super::{Queue, Slot, SlotState};
use crate::supervisor::machine::worker::{Worker, WorkerState};
use uppercased_ctl::identity::Generation;

impl Slot {
    /// Returns a contradiction in this slot, if any.
    pub(in super::super) fn contradiction(&self) -> Option<&'static str> {
        if self.is_served() != (self.queue == Queue::Served) {
            return Some("its queue and its worker disagree on who serves");
        }
        let may_be_closed = matches!(self.state, SlotState::Retired | SlotState::Stopped);
        if self.queue == Queue::Closed && !may_be_closed {
            return Some("its listeners are closed and it has not left");
        }
        if self.state == SlotState::Vacant && self.history.generation != Generation(0) {
            return Some("it waits for its first worker and has had one");
        }
        if matches!(self.state, SlotState::Active(_)) && self.active().is_none() {
            return Some("its active worker does not exist");
        }
        if self.state == SlotState::Retired
            && self.queue != Queue::Closed
            && self.workers.is_empty()
        {
            return Some("it has left and its queue is open");
        }
        let mut before = Generation(0);
        for worker in &self.workers {
            if worker.generation <= before || worker.generation > self.history.born {
                return Some("the generations of its workers are not in order");
            }
            before = worker.generation;
        }
        self.worker_contradiction()
    }

    /// Returns a contradiction in the set of workers of the slot, if any.
    fn worker_contradiction(&self) -> Option<&'static str> {
        for worker in &self.workers {
            let is_active = self.is_active(worker.generation);
            if worker.pulse.is_some() && !worker.state.has_pulse() {
                return Some("it samples a worker that does not serve");
            }
            match worker.state {
                WorkerState::Serving { .. } if !is_active => {
                    return Some("a worker serves that is not active");
                }
                WorkerState::HandingOver { .. } | WorkerState::Leaving { .. } if is_active => {
                    return Some("its active worker leaves");
                }
                WorkerState::HandingOver { to, .. } if !self.may_receive(to) => {
                    return Some("its predecessor hands over to nobody");
                }
                WorkerState::Starting { .. }
                    if !is_active
                        && (self.serving().is_none() || self.handing_over().is_some()) =>
                {
                    return Some("its successor has nobody to succeed");
                }
                WorkerState::Starting { .. }
                | WorkerState::Serving { .. }
                | WorkerState::HandingOver { .. }
                | WorkerState::Leaving { .. }
                | WorkerState::Stopping
                | WorkerState::Killed { .. } => {}
            }
        }
        let handing_over = self.workers.iter().filter(|it| it.is_handing_over());
        if handing_over.count() > 1 {
            return Some("two predecessors hand over");
        }
        let successors = self.others().filter(|it| !it.is_leaving());
        (successors.count() > 1).then_some("it has two successors")
    }

    /// Returns whether one of its workers may hand over to `to`: the active one, or a sibling's if
    /// the slot is retired.
    fn may_receive(&self, to: uppercased_ctl::identity::WorkerId) -> bool {
        let receives = |it: &Worker| {
            matches!(
                it.state,
                WorkerState::Serving { .. } | WorkerState::Killed { .. }
            )
        };
        match self.state {
            SlotState::Active(generation) => {
                to == self.id_of(generation) && self.active().is_some_and(receives)
            }
            SlotState::Retired => to.slot != self.id,
            SlotState::Vacant | SlotState::BackingOff { .. } | SlotState::Stopped => false,
        }
    }
}
