//! Proves that nothing waits for ever, by naming what ends each state.
//!
//! Every state, stage and phase is listed here without a wildcard, so a new one does not compile
//! without an answer. After each call in debug builds the answers are checked against the machine:
//! it wakes up by each deadline, and what is awaited is in progress.

use super::plan::{Course, Stage};
use super::slot::Slot;
use super::worker::{Worker, WorkerState};
use super::{Machine, Phase, Queue, SlotState};
use uppercased_ctl::clock::Tick;

/// The way in which a state ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing waits for its end.
    Rests,
    /// At a deadline.
    By(Tick),
    /// When something else ends, which has an end of its own; whether that is in progress.
    With(bool),
    /// By an outside event that is certain: an exec that returns, or the end of a socket pair.
    Outside,
}

impl Machine {
    /// Returns what would wait for ever, if anything.
    pub(super) fn endless(&self) -> Option<String> {
        let wakes = self.poll_timeout();
        let ends = |way: Way| match way {
            Way::Rests | Way::Outside => true,
            // `Tick::MAX` means a worker without a time limit.
            Way::By(at) => at == Tick::MAX || wakes.is_some_and(|wakes| wakes <= at),
            Way::With(is_there) => is_there,
        };
        if !ends(self.phase_ends()) {
            return Some("its phase may last for ever".to_owned());
        }
        if !self
            .stage()
            .is_none_or(|stage| ends(self.stage_ends(stage)))
        {
            return Some("its operation may last for ever".to_owned());
        }
        self.slots.iter().find_map(|slot| {
            let endless = |it: &&Worker| !ends(self.worker_ends(&it.state));
            let what = if ends(self.slot_ends(slot)) {
                slot.workers.iter().find(endless)?.state.name()
            } else {
                slot.name()
            };
            Some(format!("slot {} may be {what} for ever", slot.id))
        })
    }

    fn phase_ends(&self) -> Way {
        match &self.phase {
            Phase::Idle | Phase::Serving | Phase::Ended => Way::Rests,
            Phase::Booting { slot } => Way::With(self.slots.get(slot.index()).is_some_and(is_busy)),
            Phase::Draining { deadline, .. } => Way::By(*deadline),
            Phase::BootFailed { .. } | Phase::Forced => Way::With(self.is_busy()),
        }
    }

    fn stage_ends(&self, stage: &Stage) -> Way {
        match stage {
            Stage::Preflight { deadline } => Way::By(*deadline),
            // Ends within the call that enters it.
            Stage::Passed => Way::With(false),
            Stage::Exec => Way::Outside,
            Stage::Roll(roll) => match &roll.course {
                Course::Forward { bake: Some(at), .. } => Way::By(*at),
                Course::Forward { bake: None, .. } | Course::Back { .. } => {
                    Way::With(self.is_busy())
                }
            },
            Stage::Shrink {
                settling: Some(at), ..
            }
            | Stage::Shrink {
                patience: Some(at), ..
            } => Way::By(*at),
            Stage::Shrink { .. } | Stage::Grow { .. } | Stage::Ending { .. } => {
                Way::With(self.is_busy())
            }
        }
    }

    fn slot_ends(&self, slot: &Slot) -> Way {
        match slot.state {
            SlotState::Active(_) | SlotState::Stopped => Way::Rests,
            // Ends with the start of a slot below, or with an operation that removes it.
            SlotState::Vacant => {
                Way::With(self.phase == Phase::Idle || self.is_busy() || self.operation.is_some())
            }
            SlotState::BackingOff { until } => Way::By(until),
            // Ends with its predecessors, or with the slots above, which are dropped first.
            SlotState::Retired => Way::With(
                !slot.workers.is_empty() || (slot.queue == Queue::Closed && self.is_busy()),
            ),
        }
    }

    const fn worker_ends(&self, state: &WorkerState) -> Way {
        match state {
            WorkerState::Serving { .. } => Way::Rests,
            WorkerState::Starting { deadline: at, .. }
            | WorkerState::HandingOver {
                deadline: Some(at), ..
            }
            | WorkerState::Leaving { deadline: at, .. }
            | WorkerState::Killed { until: at, .. } => Way::By(*at),
            // The receiver was killed, and its exit ends their socket pair.
            WorkerState::HandingOver { deadline: None, .. } => Way::Outside,
            WorkerState::Stopping => self.drain_ends(),
        }
    }

    /// Returns the end of a stop: remaining workers are killed when the drain is over.
    const fn drain_ends(&self) -> Way {
        match &self.phase {
            Phase::Draining { deadline, .. } => Way::By(*deadline),
            Phase::Idle
            | Phase::Booting { .. }
            | Phase::Serving
            | Phase::BootFailed { .. }
            | Phase::Forced
            | Phase::Ended => Way::With(false),
        }
    }

    fn is_busy(&self) -> bool {
        self.slots.iter().any(is_busy)
    }
}

/// Returns whether anything of the slot is in progress that ends by itself.
fn is_busy(slot: &Slot) -> bool {
    matches!(slot.state, SlotState::BackingOff { .. })
        || slot.workers.iter().any(|it| !it.is_serving())
}
