//! The conversation between the supervisor and a pre-flight child, which runs the current program
//! or the new one.

use serde::{Deserialize, Serialize};

use super::direction::{Direction, Message};

/// A task for a pre-flight child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToPreflight {
    /// Read the configuration.
    Resolve,
    /// Read the configuration, and show that this program can take over. Descriptor: the state to
    /// take over.
    TakeOver,
    /// Ask the service manager for its job.
    Ask,
}

/// The result of a pre-flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPreflight {
    /// The task succeeded.
    Resolved {
        /// The [`Config`](crate::config::Config) that the child read from the arguments, the
        /// environment and the file. The child may be of another version than the supervisor, which
        /// passes this on unchanged.
        config: serde_json::Value,
    },
    /// The service manager has answered.
    Answered {
        /// Its job.
        job: Job,
    },
    /// The task failed.
    Failed {
        /// One line: what failed, why, what to do.
        cause: String,
    },
}

/// What the service manager wants of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// The service is to run: it is started, or restarted.
    Start,
    /// The service is to stop.
    Stop,
    /// There is no job: another process sent the signal.
    Nothing,
}

impl Message for ToPreflight {
    const DIRECTION: Direction = Direction::ToPreflight;
}

impl Message for FromPreflight {
    const DIRECTION: Direction = Direction::FromPreflight;
}
