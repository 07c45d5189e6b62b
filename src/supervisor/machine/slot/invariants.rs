//! What must hold of one slot between two calls of the machine.
//!
//! As with the machine's own invariants, nothing here may panic whatever it is shown: it judges
//! restored state too.

use super::{Predecessor, PredecessorStage, Queue, Slot, SlotState, SuccessorState};
use uppercased_ctl::identity::Generation;

impl Slot {
    /// What in this slot contradicts itself, if anything.
    pub(in super::super) fn contradiction(&self) -> Option<&'static str> {
        let handing_over = self.handing_over();
        let served = match &self.state {
            SlotState::Serving | SlotState::Stopping => true,
            SlotState::Retired => handing_over.is_some(),
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => false,
        };
        if served != (self.queue == Queue::Served) {
            return Some("its queue and its worker disagree on who serves");
        }
        let may_be_closed = matches!(self.state, SlotState::Retired | SlotState::Stopped);
        if self.queue == Queue::Closed && !may_be_closed {
            return Some("its listeners are closed and it has not left");
        }
        if self.state == SlotState::Waiting && self.generation != Generation(0) {
            return Some("it waits for its first worker and has had one");
        }
        if self.state.is_live() && self.generation == Generation(0) {
            return Some("it has a worker without a generation");
        }
        if self.pulse.is_some() && self.state != SlotState::Serving {
            return Some("it feels the pulse of a worker that does not serve");
        }
        self.company_contradiction(handing_over)
    }

    /// What contradicts itself in who lives beside the main worker.
    fn company_contradiction(&self, handing_over: Option<usize>) -> Option<&'static str> {
        if let Some(index) = handing_over
            && let PredecessorStage::HandingOver { to, .. } = self.predecessors[index].stage
        {
            let takes = match &self.state {
                SlotState::Serving | SlotState::Killing { .. } => to == self.worker(),
                SlotState::Retired => to.slot != self.id,
                SlotState::Waiting
                | SlotState::Starting { .. }
                | SlotState::BackingOff { .. }
                | SlotState::Stopping
                | SlotState::Stopped => false,
            };
            if !takes {
                return Some("its predecessor hands over to nobody");
            }
            let hands = |it: &Predecessor| matches!(it.stage, PredecessorStage::HandingOver { .. });
            if self.predecessors.iter().filter(|it| hands(it)).count() > 1 {
                return Some("two predecessors hand over");
            }
        }
        if let Some(successor) = &self.successor
            && matches!(successor.state, SuccessorState::Starting { .. })
            && (self.state != SlotState::Serving || handing_over.is_some())
        {
            return Some("its successor has nobody to succeed");
        }
        if self.state == SlotState::Retired
            && self.queue != Queue::Closed
            && self.predecessors.is_empty()
        {
            return Some("it has left and its queue is open");
        }
        let main = self.state.is_live().then_some(self.generation);
        let successor = self.successor.as_ref().map(|it| it.generation);
        let predecessors = self.predecessors.iter().map(|it| it.generation);
        let mut named: Vec<Generation> = predecessors.chain(main).chain(successor).collect();
        let seats = named.len();
        named.sort_unstable();
        named.dedup();
        if named.len() != seats {
            return Some("two of its workers have one name");
        }
        None
    }
}
