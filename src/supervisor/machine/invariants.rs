//! The invariants of the machine between two calls.
//!
//! They are checked after every call in debug builds, where a violation is a bug and panics, and on
//! restored state, where it is bad input and an error. So nothing here may panic by itself on any
//! input.

use super::plan::{Course, Operation, Stage};
use super::slot::Slot;
use super::worker::{Worker, WorkerState};
use super::{Machine, Phase, Queue, SlotId, SlotState};

impl Machine {
    /// Panics in debug builds if the machine violates an invariant; called after each call.
    pub(super) fn check_invariants(&self) {
        if cfg!(debug_assertions)
            && let Some(what) = self.contradiction()
        {
            panic!("invariant of the supervisor broken: {what}: {self:?}");
        }
    }

    /// Returns a contradiction in the machine, if any. Also validates restored state, so it must
    /// not panic on any input.
    pub(super) fn contradiction(&self) -> Option<String> {
        if let Some(what) = self.count_contradiction() {
            return Some(what);
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
            } else if self.operation.is_none()
                && slot.handing_over().is_some_and(|it| !it.is_returning())
            {
                Some("its worker hands over without an operation")
            } else {
                slot.contradiction()
            };
            if let Some(what) = what {
                return Some(format!("slot {index}: {what}"));
            }
        }
        if let Some(what) = self.pending_contradiction() {
            return Some(what.to_owned());
        }
        if let Some(what) = self.balance_contradiction() {
            return Some(what.to_owned());
        }
        let waits_for_process = match &self.phase {
            Phase::BootFailed { .. } | Phase::Draining { .. } | Phase::Forced => true,
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Ended => false,
        };
        if waits_for_process && self.slots.iter().all(|slot| slot.workers.is_empty()) {
            return Some("it waits for processes and none is left".to_owned());
        }
        // Last: it assumes that the slots are consistent.
        self.endless()
    }

    /// Returns a contradiction in the number of slots, or in the operation that changes it, if any.
    fn count_contradiction(&self) -> Option<String> {
        if self.slots.is_empty() {
            return Some("no slots".to_owned());
        }
        let bound = self.bound_slots();
        let has_queue = |slot: &Slot| !matches!(slot.queue, Queue::Unbound | Queue::Closed);
        if let Some(late) = self.slots.iter().skip(bound).find(|slot| has_queue(slot)) {
            return Some(format!(
                "slot {} has a listener and slot {bound} has none",
                late.id
            ));
        }
        if self.operation.is_some() && self.phase != Phase::Serving {
            return Some("an operation is in progress in a phase without any".to_owned());
        }
        if let Some(what) = self.roll_contradiction() {
            return Some(what);
        }
        let here = usize::from(self.open_slots());
        let workers = usize::from(self.policy.workers.max(1));
        let (least, most) = match self.stage() {
            // One more may be starting.
            Some(Stage::Grow { .. }) => (workers, workers + 1),
            Some(Stage::Shrink { to: 0, .. }) => return Some("no slot would stay".to_owned()),
            Some(Stage::Shrink { to, .. }) => (usize::from(*to), workers),
            Some(
                Stage::Preflight { .. }
                | Stage::Passed
                | Stage::Exec
                | Stage::Roll(_)
                | Stage::Ending { .. },
            ) => (workers, workers),
            None => match &self.phase {
                Phase::Idle | Phase::Booting { .. } | Phase::Serving => (workers, workers),
                // Interrupted at any point.
                Phase::BootFailed { .. }
                | Phase::Draining { .. }
                | Phase::Forced
                | Phase::Ended => return None,
            },
        };
        if here < least || here > most {
            return Some(format!("{here} slots, not as configured"));
        }
        None
    }

    fn roll_contradiction(&self) -> Option<String> {
        let unknown = |slot: &SlotId| slot.index() >= self.slots.len();
        match &self.roll()?.course {
            Course::Forward { slot, .. } => (slot.index() > self.slots.len())
                .then(|| format!("it replaces slot {slot}, which does not exist")),
            Course::Back { todo, .. } => todo
                .iter()
                .find(|slot| unknown(slot))
                .map(|slot| format!("it rolls back slot {slot}, which does not exist")),
        }
    }

    const fn shrinks(&self) -> bool {
        matches!(
            self.operation,
            Some(Operation {
                stage: Stage::Shrink { .. },
                ..
            })
        )
    }

    /// Returns whether the phase allows the slot's state; above all, while the machine runs, a slot
    /// has a process or a time for the next one.
    fn phase_allows(&self, slot: &Slot) -> bool {
        self.phase_allows_active(slot) && self.phase_allows_others(slot)
    }

    fn phase_allows_active(&self, slot: &Slot) -> bool {
        let bound = slot.queue != Queue::Unbound;
        let active = slot.active().map(|it| &it.state);
        let serves = matches!(active, Some(WorkerState::Serving { .. }));
        let stops = matches!(active, Some(WorkerState::Stopping));
        let killed = matches!(active, Some(WorkerState::Killed { .. }));
        match (&self.phase, slot.state) {
            (Phase::Idle, state) => state == SlotState::Vacant,
            (Phase::Booting { slot: next }, SlotState::Vacant) => slot.id > *next,
            (Phase::Booting { slot: next }, SlotState::BackingOff { .. }) => {
                bound && slot.id < *next
            }
            (Phase::Booting { slot: next }, SlotState::Active(_)) if serves => {
                bound && slot.id < *next
            }
            // A slot that is given listeners is bound before it has its first worker.
            (Phase::Booting { slot: next }, SlotState::Active(_)) => {
                !stops && slot.id <= *next && (bound || slot.id == *next)
            }
            (Phase::Booting { .. }, SlotState::Retired | SlotState::Stopped) => false,
            // Otherwise it is next.
            (Phase::Serving, SlotState::Vacant) => {
                slot.id.index() > self.bound_slots() || self.shrinks()
            }
            (Phase::Serving, SlotState::Active(_)) if serves => bound,
            // Of the slots that never had a worker, the first is the one being started.
            (Phase::Serving, SlotState::Active(_) | SlotState::BackingOff { .. }) => {
                !stops && (bound || slot.id.index() == self.bound_slots())
            }
            // Without a process it would have been dropped, or it waits for a slot below it.
            (Phase::Serving, SlotState::Retired) => self.shrinks() || slot.queue == Queue::Closed,
            (Phase::Serving, SlotState::Stopped) => false,
            (Phase::Draining { .. }, SlotState::Active(_)) => stops || killed,
            (Phase::BootFailed { .. } | Phase::Forced, SlotState::Active(_)) => killed,
            (
                Phase::BootFailed { .. } | Phase::Draining { .. } | Phase::Forced | Phase::Ended,
                state,
            ) => state == SlotState::Stopped,
        }
    }

    /// Returns whether the phase allows the slot's inactive workers.
    fn phase_allows_others(&self, slot: &Slot) -> bool {
        let allowed = |it: &Worker| match it.state {
            WorkerState::Starting { .. } => self.roll().is_some(),
            WorkerState::Serving { .. }
            | WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. } => self.phase == Phase::Serving,
            WorkerState::Stopping => matches!(self.phase, Phase::Draining { .. }),
            WorkerState::Killed { .. } => true,
        };
        slot.others().all(allowed)
    }
}
