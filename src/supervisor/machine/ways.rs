//! What ends each state: nothing waits for ever.
//!
//! Every state, stage and phase is listed here, without a wildcard, so one that is added needs an
//! answer before it compiles; and after each call in debug builds the answers are held against the
//! machine as it is: it wakes up by each deadline, and what is awaited is in progress.

use super::plan::{Course, Stage};
use super::slot::Slot;
use super::worker::{Worker, WorkerState};
use super::{Machine, Phase, Queue, SlotState};
use uppercased_ctl::clock::Tick;

/// How a state ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It need not: nothing waits for its end.
    Rests,
    /// By this time at the latest.
    By(Tick),
    /// With something else, which has a way of its own; whether that is there.
    With(bool),
    /// With what surely comes from outside: an exec that returns, or the end of a socket pair.
    Outside,
}

impl Machine {
    /// What would wait for ever, if anything.
    pub(super) fn endless(&self) -> Option<String> {
        let wakes = self.poll_timeout();
        let ends = |way: Way| match way {
            Way::Rests | Way::Outside => true,
            // The end of time: a worker without a time limit.
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
            // The call that brings it ends it.
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
            // With the start of a slot below, or with an operation that takes it away.
            SlotState::Vacant => {
                Way::With(self.phase == Phase::Idle || self.is_busy() || self.operation.is_some())
            }
            SlotState::BackingOff { until } => Way::By(until),
            // With its predecessors, or with the slots above, which are dropped first.
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
            // The receiver was killed, and its end is that of their socket pair.
            WorkerState::HandingOver { deadline: None, .. } => Way::Outside,
            WorkerState::Stopping => self.drain_ends(),
        }
    }

    /// A worker that was asked to stop is killed when the drain is over.
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

/// Whether something of the slot is in progress that ends by itself.
fn is_busy(slot: &Slot) -> bool {
    matches!(slot.state, SlotState::BackingOff { .. })
        || slot.workers.iter().any(|it| !it.is_serving())
}
