//! What the machine answers to a request.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a planned operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// As it should.
    Done(Done),
    /// It did not begin: another operation is in progress, or there is nothing to do it with.
    Refused {
        /// The cause, in one line, and when to try again.
        cause: String,
    },
    /// It began, and what it had changed has been taken back as far as the cause says.
    Failed {
        /// The cause, in one line, and what runs now.
        cause: String,
    },
}

/// What a planned operation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Slots that have a new worker.
    pub renewed: u16,
    /// Slots there are now.
    pub workers: u16,
    /// Connections that moved to another worker, live.
    pub moved: u64,
    /// Connections that were left with their worker until they end or `drain_timeout` passes.
    pub drained: u64,
    /// From the request to now.
    pub took: Duration,
}
