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
    /// The reply to [`FromAdmin::Ask`]. Descriptor: a file with the status as JSON, to be read from
    /// its beginning; a frame is too small for it.
    Status {
        /// The number of the request.
        number: u64,
    },
}

/// A message from the admin process to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAdmin {
    /// The process serves.
    Ready {
        /// The sandbox of the process.
        sandbox: Sandboxed,
    },
    /// The process cannot serve, and exits.
    Failed {
        /// One line: what failed, why, what to do.
        cause: String,
    },
    /// Requests the server's status.
    Ask {
        /// Repeated in the reply.
        number: u64,
        /// The replies to load balancers so far.
        agent: AgentAnswers,
    },
}

impl Message for ToAdmin {
    const DIRECTION: Direction = Direction::ToAdmin;
}

impl Message for FromAdmin {
    const DIRECTION: Direction = Direction::FromAdmin;
}

/// The parameters of a new admin process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartAdmin {
    /// The validated configuration, for the log and the sandbox.
    pub config: Config,
    /// Whether there is a listener for HTTP.
    pub http: bool,
    /// Whether there is one for load balancers, after that.
    pub agent: bool,
}
