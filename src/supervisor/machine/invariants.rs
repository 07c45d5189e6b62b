//! What must hold of a machine between two calls.
//!
//! One text, used twice: after every call in debug builds, where a breach is a bug and panics; and
//! on restored state, where it is bad input and an error. So nothing here may panic by itself,
//! whatever it is shown.

use super::super::slot::Slot;
use super::{Machine, Phase, Queue, SlotState};

impl Machine {
    /// Proves in debug builds, after each call, that the machine is in a state it may be in.
    pub(super) fn check_invariants(&self) {
        if cfg!(debug_assertions)
            && let Some(what) = self.contradiction()
        {
            panic!("invariant of the supervisor broken: {what}: {self:?}");
        }
    }

    /// What in the machine contradicts itself, if anything. Also the gate for restored state, so it
    /// must not panic whatever it is shown.
    pub(super) fn contradiction(&self) -> Option<String> {
        if self.slots.len() != usize::from(self.policy.workers.max(1)) {
            return Some(format!("{} slots, not as configured", self.slots.len()));
        }
        if let Phase::Booting { slot } = &self.phase
            && slot.index() >= self.slots.len()
        {
            return Some(format!("it boots slot {slot}, which does not exist"));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let what = if slot.id.index() != index {
                Some("it is not in its place")
            } else if let Queue::Lent { to, .. } = slot.queue
                && !self.serves(to)
            {
                Some("its queue is lent to a worker that does not serve")
            } else if !self.phase_allows(slot) {
                Some("its state does not belong in this phase")
            } else {
                slot.contradiction()
            };
            if let Some(what) = what {
                return Some(format!("slot {index}: {what}"));
            }
        }
        let waits_for_process = match &self.phase {
            Phase::BootFailed { .. } | Phase::Draining { .. } | Phase::Forced => true,
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Ended => false,
        };
        if waits_for_process && !self.slots.iter().any(|slot| slot.state.is_live()) {
            return Some("it waits for processes and none is left".to_owned());
        }
        None
    }

    /// Whether a slot may be in its state in this phase; above all that, while the machine runs, it
    /// has a process or a time for the next one.
    fn phase_allows(&self, slot: &Slot) -> bool {
        let bound = slot.queue != Queue::Unbound;
        let state = &slot.state;
        match &self.phase {
            Phase::Idle => matches!(state, SlotState::Waiting),
            Phase::Booting { slot: next } => match state {
                SlotState::Waiting => slot.id > *next,
                SlotState::Starting { .. } | SlotState::Killing { .. } => {
                    slot.id <= *next && bound == (slot.id < *next)
                }
                SlotState::Serving | SlotState::BackingOff { .. } => bound && slot.id < *next,
                SlotState::Stopping | SlotState::Stopped => false,
            },
            Phase::Serving => match state {
                SlotState::Starting { .. }
                | SlotState::Serving
                | SlotState::Killing { .. }
                | SlotState::BackingOff { .. } => bound,
                SlotState::Waiting | SlotState::Stopping | SlotState::Stopped => false,
            },
            Phase::Draining { .. } => matches!(
                state,
                SlotState::Stopping | SlotState::Killing { .. } | SlotState::Stopped
            ),
            Phase::BootFailed { .. } | Phase::Forced => {
                matches!(state, SlotState::Killing { .. } | SlotState::Stopped)
            }
            Phase::Ended => matches!(state, SlotState::Stopped),
        }
    }
}
