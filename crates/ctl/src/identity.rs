//! Identifiers: slots, generations and the workers they name.
//!
//! Invariant: everything that crosses a process boundary or outlives a call carries a [`WorkerId`],
//! never a bare slot or a pid. A slot's number is reused by every successor, and a pid by any
//! process; the pair of slot and generation is never reused in the life of an instance, so a stale
//! message can be recognised and dropped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares numbers that identify something.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($number:ty);)+) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    )+};
}

numbers! {
    /// A place for a worker; it owns its listening sockets permanently. Counted from 0.
    SlotId(u16);
    /// Counts the workers of one slot. The first is 1; 0 means there has been none yet.
    Generation(u32);
    /// A program (an open file) with a configuration, as workers run it. Counted from 1, the one that
    /// an instance starts with; every reload and upgrade creates another.
    ReleaseId(u32);
    /// The requester of a planned operation, to which its result is sent; 0: none (a signal), the
    /// result is logged only.
    RequestId(u64);
}

/// Identifies one worker process among all past and present ones.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct WorkerId {
    /// The worker's slot.
    pub slot: SlotId,
    /// The worker's generation in the slot.
    pub generation: Generation,
}

impl SlotId {
    /// Returns the slot's index in a list of all slots.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl ReleaseId {
    /// The release that an instance starts with.
    pub const FIRST: Self = Self(1);

    /// Returns the next release. Wraps, as generations do.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl RequestId {
    /// The requester of an operation whose result is only logged.
    pub const NOBODY: Self = Self(0);
}

impl Generation {
    /// Returns the successor's generation.
    ///
    /// Wraps: a message that is stale by four billion generations does not justify a panic.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "slot {} generation {}", self.slot, self.generation)
    }
}
