//! What a planned operation is: its kind, its stage, and how it is to end.
//!
//! Plain values without behaviour; `operation`, `roll`, `scale`, `upgrade` and `cancel` say what
//! becomes of them.

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{ReleaseId, RequestId, SlotId};

/// The operation in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Operation {
    pub(super) request: RequestId,
    pub(super) kind: OperationKind,
    pub(super) since: Tick,
    pub(super) stage: Stage,
    /// Slots that have a new worker for good.
    pub(super) renewed: u16,
    pub(super) moved: u64,
    pub(super) drained: u64,
    /// It was cancelled.
    pub(super) cancel: Option<Cancel>,
    /// Connections that cannot move may be closed after `drain_timeout`.
    pub(super) drain: bool,
    /// What it has cost, if anything: the operation fails with that in the end.
    pub(super) damage: Option<String>,
}

/// What a planned operation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// The same number of workers, new ones.
    Renewal,
    /// Another number.
    Scaling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OperationKind {
    Restart,
    Upgrade,
    Scale { to: u16 },
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The new program is being tried.
    Preflight { deadline: Tick },
    /// It passed; the exec is ordered when all else of this call is.
    Passed,
    /// The exec is ordered. No deadline: either it returns, or the next program speaks first.
    Exec,
    /// Workers are replaced, or rolled back.
    Roll(Box<Roll>),
    /// Slots are added up to this number.
    Grow {
        to: u16,
        /// How many there were before.
        former: u16,
    },
    /// Slots from this number on leave.
    Shrink {
        to: u16,
        /// When the handshakes begun before the steering have had their time; `None` after that.
        settling: Option<Tick>,
        /// Counts handovers, so that the siblings take turns in receiving.
        turn: u16,
        /// When the operation gives up, unless the next slot has begun to leave; `None` while one
        /// leaves.
        patience: Option<Tick>,
        /// Siblings that could not take all connections of the slot that leaves.
        tried: u16,
    },
    /// All is decided. Workers that have handed everything over, or were killed, are about to exit;
    /// the answer waits for that, so that the client can send its next request at once.
    Ending { failure: Option<String> },
}

impl OperationKind {
    pub(super) fn what(self) -> String {
        match self {
            Self::Restart => "reload".to_owned(),
            Self::Upgrade => "upgrade".to_owned(),
            Self::Scale { to } => format!("scale to {to}"),
        }
    }
}

/// The replacement of all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Roll {
    /// The new release. The old one is the machine's.
    pub(super) target: ReleaseId,
    /// The new release's limits, in force once all slots run it.
    pub(super) policy: Policy,
    pub(super) course: Course,
    /// The first worker of the new release that serves is being watched, or has stood the test.
    pub(super) watched: bool,
    /// Slots that did not serve when the roll began and have not since. The new release is tried
    /// there once, and that it does not start either is no failure of the roll.
    pub(super) broken: Vec<Broken>,
}

/// A slot that had no worker that serves before the roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Broken {
    pub(super) slot: SlotId,
    /// A worker of the new release has failed there, or none can be started yet.
    pub(super) tried: bool,
}

/// Which way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Course {
    Forward {
        /// The slot whose turn it is; past the last one, all have had theirs.
        slot: SlotId,
        /// The first worker of the new release serves, and is watched until then.
        bake: Option<Tick>,
    },
    Back {
        cause: String,
        /// Slots that are still to be rolled back, the next one first.
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
    pub(super) by: String,
    pub(super) since: Tick,
    /// Something could not be taken back.
    pub(super) incomplete: bool,
}
