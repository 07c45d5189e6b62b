//! The machine's answer to a request.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The result of a planned operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It succeeded.
    Done(Done),
    /// It did not begin: another operation is in progress, or its preconditions are not met.
    Refused {
        /// The cause, in one line, and when to try again.
        cause: String,
    },
    /// It began and failed; its changes were rolled back as far as the cause states.
    Failed {
        /// The cause, in one line, and what runs now.
        cause: String,
    },
}

/// The changes that a planned operation made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Slots that have a new worker.
    pub renewed: u16,
    /// Slots that exist now.
    pub workers: u16,
    /// Established connections that migrated to another worker.
    pub moved: u64,
    /// Connections left draining with their worker until they end or `drain_timeout` passes.
    pub drained: u64,
    /// From the request to now.
    pub took: Duration,
}
