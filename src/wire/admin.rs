//! The conversation between the supervisor and its admin process. Both run the same program, so
//! these messages never pass between versions.

use serde::{Deserialize, Serialize};

use super::{Direction, Message, Sandboxed};
use crate::config::Config;

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

/// Answers to load balancers, counted by the first word of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is the word of its name")]
pub struct AgentAnswers {
    pub ready: u64,
    pub drain: u64,
    pub maint: u64,
    pub down: u64,
}

impl AgentAnswers {
    /// Returns every word with the number of answers that began with it.
    #[must_use]
    pub const fn by_word(&self) -> [(&'static str, u64); 4] {
        [
            ("ready", self.ready),
            ("drain", self.drain),
            ("maint", self.maint),
            ("down", self.down),
        ]
    }
}
