//! The data of a planned operation: its kind, its stage, and its rollback.
//!
//! Plain values without behaviour; `operation`, `roll`, `scale`, `upgrade` and `cancel` act on
//! them.

use serde::{Deserialize, Serialize};

use super::exchange::Canceller;
use super::policy::Policy;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{ReleaseId, RequestId, SlotId};
use uppercased_ctl::operation::OperationKind;

/// The operation in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Operation {
    pub(super) request: RequestId,
    pub(super) kind: OperationKind,
    pub(super) since: Tick,
    pub(super) stage: Stage,
    /// Slots whose worker was replaced for good.
    pub(super) replaced: u16,
    pub(super) migrated: u64,
    pub(super) draining: u64,
    /// The cancellation, if any.
    pub(super) cancel: Option<Cancel>,
    /// Whether connections that cannot migrate may be closed after `drain_timeout`.
    pub(super) drain: bool,
    /// An unintended cost, if any: the operation fails with it in the end.
    pub(super) damage: Option<String>,
}

/// The stage of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The preflight of the new binary runs.
    Preflight { deadline: Tick },
    /// It passed; the exec is requested after the other actions of this call.
    Passed,
    /// The exec is requested. No deadline: either it fails, or the new binary sends the next
    /// event.
    Exec,
    /// Workers are replaced, or rolled back.
    Roll(Box<Roll>),
    /// Slots are added until there are this many.
    Grow {
        to: u16,
        /// The number of slots before.
        former: u16,
    },
    /// Slots from this number on leave.
    Shrink {
        to: u16,
        /// End of the time for handshakes begun before the steering; `None` after that.
        settling: Option<Tick>,
        /// Number of handovers; determines the next sibling to receive.
        turn: u16,
        /// Time at which the operation fails unless the next slot has begun to leave; `None` while
        /// one leaves.
        patience: Option<Tick>,
        /// Siblings that could not adopt all connections of the leaving slot.
        tried: u16,
    },
    /// The result is known. Workers that have handed over all connections, or were killed, are
    /// about to exit; the answer waits for that, so that the client can send its next request at
    /// once.
    Ending { failure: Option<String> },
}

/// The replacement of all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roll {
    /// The new release. The old one is the machine's.
    pub(super) target: ReleaseId,
    /// The new release's limits, in force once all slots run it.
    pub(super) policy: Policy,
    pub(super) course: Course,
    /// Whether the canary, the first worker of the new release that serves, is being watched or has
    /// passed.
    pub(super) watched: bool,
    /// Slots that have not served since the roll began. The new release is started there once; a
    /// failed start does not fail the roll.
    pub(super) broken: Vec<Broken>,
}

/// A slot without a serving worker before the roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Broken {
    pub(super) slot: SlotId,
    /// Whether a worker of the new release has failed there, or none can be started yet.
    pub(super) tried: bool,
}

/// The direction of the roll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Course {
    Forward {
        /// The slot being replaced; past the last one, all have been.
        slot: SlotId,
        /// End of the time for which the serving canary is watched.
        bake: Option<Tick>,
    },
    Back {
        cause: String,
        /// Slots still to be rolled back, the next one first.
        todo: Vec<SlotId>,
    },
}

impl Roll {
    pub(super) const fn new(target: ReleaseId, policy: Policy, broken: Vec<Broken>) -> Self {
        Self {
            broken,
            watched: false,
            target,
            policy,
            course: Course::Forward {
                slot: SlotId(0),
                bake: None,
            },
        }
    }
}

/// The request that ended an operation early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cancel {
    pub(super) request: RequestId,
    pub(super) by: Canceller,
    pub(super) since: Tick,
    /// Whether a change could not be reversed.
    pub(super) incomplete: bool,
}
