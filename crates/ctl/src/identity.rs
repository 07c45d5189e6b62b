//! Identifiers of slots, generations and workers.
//!
//! Invariant: data that crosses a process boundary or outlives a call carries a [`WorkerId`], never
//! a bare slot or PID. Every successor reuses the slot's number, and any process may reuse a PID; a
//! pair of slot and generation is never reused within an instance, so stale messages are recognised
//! and dropped.

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
    /// A place for a worker, which owns its listening sockets permanently. Counted from 0.
    SlotId(u16);
    /// Number of a worker within its slot. The first is 1; 0 means no worker yet.
    Generation(u32);
    /// A program (an open file) with a configuration, as run by workers. Counted from 1, the
    /// release that an instance starts with; every reload and upgrade creates another.
    ReleaseId(u32);
    /// The requester of a planned operation, which receives its result; 0: none (a signal), so the
    /// result is only logged.
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
    /// Wraps: a message stale by four billion generations does not justify a panic.
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
