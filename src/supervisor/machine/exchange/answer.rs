//! The machine's answer to a request.

use serde::{Deserialize, Serialize};

use uppercased_ctl::control::Done;

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
