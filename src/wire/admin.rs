//! The conversation between the supervisor and its admin process. Both run the same program, so
//! these messages never pass between versions.

use serde::{Deserialize, Serialize};

use super::direction::{Direction, Message};
use crate::config::Config;
use uppercased_ctl::status::{AgentAnswers, Sandboxed};

/// A message from the supervisor to the admin process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAdmin {
    /// Starts the process; always the first message. Descriptors: its listeners.
    Start(Box<StartAdmin>),
    /// The answer to [`FromAdmin::Ask`]. Descriptor: a file with the status as JSON, to be read
    /// from its beginning; a frame is too small for it.
    Status {
        /// The number of the question.
        number: u64,
    },
}

/// A message from the admin process to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAdmin {
    /// The process serves.
    Ready {
        /// How it has sandboxed itself.
        sandbox: Sandboxed,
    },
    /// The process cannot serve, and exits.
    Failed {
        /// One line: what failed, why, what to do.
        cause: String,
    },
    /// Requests the server's status.
    Ask {
        /// Comes back with the answer.
        number: u64,
        /// The answers to load balancers so far.
        agent: AgentAnswers,
    },
}

impl Message for ToAdmin {
    const DIRECTION: Direction = Direction::ToAdmin;
}

impl Message for FromAdmin {
    const DIRECTION: Direction = Direction::FromAdmin;
}

/// Everything that a new admin process needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartAdmin {
    /// The validated configuration, for the log and the sandbox.
    pub config: Config,
    /// There is a listener for HTTP.
    pub http: bool,
    /// There is one for load balancers, after that.
    pub agent: bool,
}
