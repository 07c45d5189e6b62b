//! Proves that nothing waits forever, by naming the end of each state.
//!
//! Every state, stage and phase is listed here without a wildcard, so a new one does not compile
//! without an answer. After each call in debug builds the answers are checked against the machine:
//! it wakes up by each deadline, and everything awaited is in progress.

use super::plan::{Course, Stage};
use super::slot::Slot;
use super::worker::{Worker, WorkerState};
use super::{Machine, Phase, Queue, SlotState};
use uppercased_ctl::clock::Tick;

/// The end of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing waits for its end.
    Stable,
    /// At a deadline.
    At(Tick),
    /// After something else that has an end of its own; whether that is in progress.
    After(bool),
    /// By an outside event that is certain: an exec that returns, or the end of a socket pair.
    Outside,
}

impl Machine {
    /// Returns a state that would never end, if any.
    pub(super) fn endless(&self) -> Option<String> {
        let wakes = self.poll_timeout();
        let ends = |end: End| match end {
            End::Stable | End::Outside => true,
            // `Tick::MAX` means a worker without a time limit.
            End::At(at) => at == Tick::MAX || wakes.is_some_and(|wakes| wakes <= at),
            End::After(is_there) => is_there,
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

    fn phase_ends(&self) -> End {
        match &self.phase {
            Phase::Idle | Phase::Serving | Phase::Ended => End::Stable,
            Phase::Booting { slot } => {
                End::After(self.slots.get(slot.index()).is_some_and(is_busy))
            }
            Phase::Draining { deadline, .. } => End::At(*deadline),
            Phase::BootFailed { .. } | Phase::Forced => End::After(self.is_busy()),
        }
    }

    fn stage_ends(&self, stage: &Stage) -> End {
        match stage {
            Stage::Preflight { deadline } => End::At(*deadline),
            // Ends within the call that enters it.
            Stage::Passed => End::After(false),
            Stage::Exec => End::Outside,
            Stage::Roll(roll) => match &roll.course {
                Course::Forward { bake: Some(at), .. } => End::At(*at),
                Course::Forward { bake: None, .. } | Course::Back { .. } => {
                    End::After(self.is_busy())
                }
            },
            Stage::Shrink {
                settling: Some(at), ..
            }
            | Stage::Shrink {
                patience: Some(at), ..
            } => End::At(*at),
            Stage::Shrink { .. } | Stage::Grow { .. } | Stage::Ending { .. } => {
                End::After(self.is_busy())
            }
        }
    }

    fn slot_ends(&self, slot: &Slot) -> End {
        match slot.state {
            SlotState::Active(_) | SlotState::Stopped => End::Stable,
            // Ends with the start of a slot below, or with an operation that removes it.
            SlotState::Vacant => {
                End::After(self.phase == Phase::Idle || self.is_busy() || self.operation.is_some())
            }
            SlotState::BackingOff { until } => End::At(until),
            // Ends with its predecessors, or with the slots above, which are dropped first.
            SlotState::Retired => End::After(
                !slot.workers.is_empty() || (slot.queue == Queue::Closed && self.is_busy()),
            ),
        }
    }

    const fn worker_ends(&self, state: &WorkerState) -> End {
        match state {
            WorkerState::Serving { .. } => End::Stable,
            WorkerState::Starting { deadline: at, .. }
            | WorkerState::HandingOver {
                deadline: Some(at), ..
            }
            | WorkerState::Leaving { deadline: at, .. }
            | WorkerState::Killed { until: at, .. } => End::At(*at),
            // The receiver was killed, and its exit ends their socket pair.
            WorkerState::HandingOver { deadline: None, .. } => End::Outside,
            WorkerState::Stopping => self.drain_ends(),
        }
    }

    /// Returns the end of a stop: remaining workers are killed when the drain is over.
    const fn drain_ends(&self) -> End {
        match &self.phase {
            Phase::Draining { deadline, .. } => End::At(*deadline),
            Phase::Idle
            | Phase::Booting { .. }
            | Phase::Serving
            | Phase::BootFailed { .. }
            | Phase::Forced
            | Phase::Ended => End::After(false),
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
