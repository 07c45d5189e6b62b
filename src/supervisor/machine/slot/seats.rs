//! Who may live in a slot beside its main worker, and how its workers' pulses are kept.
//!
//! Plain values without behaviour; [`super::Slot`] says which of them may be there at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::KillReason;
use crate::config::STALL_CHECKS;
use crate::supervisor::machine::exchange::Progress;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{Generation, ReleaseId, WorkerId};

/// The looks at one worker's counter of turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Pulse {
    /// When the next look is to be taken.
    pub(in super::super) due: Tick,
    /// Its answer has not come.
    pub(in super::super) awaited: bool,
    /// What the latest answer was.
    pub(in super::super) turns: Option<u64>,
    /// When an answer last differed from the one before.
    pub(in super::super) moved: Tick,
    /// Looks in a row that found no new turn.
    pub(in super::super) misses: u32,
}

impl Pulse {
    /// Since when the worker has stalled, if it has.
    pub(in super::super) fn stalled_since(&self) -> Option<Tick> {
        (self.misses >= STALL_CHECKS).then_some(self.moved)
    }
}

/// A worker that is to take the main seat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Successor {
    pub(in super::super) generation: Generation,
    pub(in super::super) release: ReleaseId,
    /// When `state` was entered.
    pub(in super::super) since: Tick,
    pub(in super::super) state: SuccessorState,
}

/// What a successor is doing. Once it is Ready it is one no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum SuccessorState {
    /// As [`super::SlotState::Starting`].
    Starting {
        deadline: Tick,
        words: Option<String>,
    },
    /// As [`super::SlotState::Killing`]. It may have been in the main seat before.
    Killing {
        until: Tick,
        why: KillReason,
        served_for: Option<Duration>,
        words: Option<String>,
    },
}

/// A worker that was in the main seat and is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Predecessor {
    pub(in super::super) generation: Generation,
    pub(in super::super) release: ReleaseId,
    /// When it began to serve.
    pub(in super::super) served_since: Tick,
    pub(in super::super) pulse: Option<Pulse>,
    pub(in super::super) stage: PredecessorStage,
}

/// The looks at the progress of one handover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Watch {
    /// What the latest look found.
    pub(in super::super) progress: Progress,
    /// Looks in a row that found the same.
    pub(in super::super) misses: u32,
}

impl Watch {
    fn is_new(&self) -> bool {
        *self == Self::default()
    }
}

/// What a predecessor is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum PredecessorStage {
    /// It moves its connections.
    HandingOver {
        since: Tick,
        /// When its progress is looked at next; `None`: whom it hands over to has been given up.
        deadline: Option<Tick>,
        to: WorkerId,
        #[serde(default, skip_serializing_if = "Watch::is_new")]
        watch: Watch,
        /// It gives connections back: not all of them could come to it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        back: bool,
    },
    /// It does not accept any more, and ends when nothing is left.
    Leaving {
        since: Tick,
        deadline: Tick,
        /// Nothing is left: it is about to exit.
        finished: bool,
    },
    /// The supervisor stops, and it has been told so.
    Stopping,
    /// As [`super::SlotState::Killing`].
    Killing {
        until: Tick,
        why: KillReason,
        served_for: Duration,
    },
}

/// Where in its slot a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Seat {
    Main,
    Successor,
    /// The index in [`super::Slot::predecessors`].
    Predecessor(usize),
}
