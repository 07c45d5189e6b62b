//! Who is meant: slots, generations and the workers they name.
//!
//! Invariant: whatever crosses a process boundary or outlives a call carries a [`WorkerId`], never
//! a bare slot or a pid. A slot's number is used again by every successor and a pid by anybody;
//! the pair of slot and generation is never used twice in the life of an instance, so a late
//! message can be told from a current one and be dropped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place for a worker; it owns its listening sockets for life. Counted from 0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SlotId(pub u16);

/// Counts the workers that have lived in one slot. The first is 1; 0: none has lived yet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

/// What workers run: one program (an open file) with one configuration. Counted from 1, the one
/// that an instance starts with; every restart and upgrade makes another.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ReleaseId(pub u32);

/// Who asked for a planned operation, so that the verdict finds its way back; 0: nobody waits for
/// it (a signal), it is logged only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// One worker process among all that ever were.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct WorkerId {
    /// Where it lives.
    pub slot: SlotId,
    /// Which of the slot's workers it is.
    pub generation: Generation,
}

impl SlotId {
    /// Where the slot is found in a list of all slots.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl ReleaseId {
    /// The release that an instance starts with.
    pub const FIRST: Self = Self(1);

    /// The release after this one. Wraps, as generations do.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl RequestId {
    /// Of a request whose verdict nobody waits for.
    pub const NOBODY: Self = Self(0);
}

impl Generation {
    /// The generation of the successor.
    ///
    /// Wraps: a message that outlived four billion workers of its slot is not worth a panic.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "slot {} generation {}", self.slot, self.generation)
    }
}
