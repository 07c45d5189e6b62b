//! Live handover: established connections migrate from one worker to another.
//!
//! A socket pair (`SOCK_SEQPACKET`, carries descriptors) connects the two workers. The sender sends
//! its connections in batches between the turns of its loop, the receiver adopts each batch between
//! its own turns and acknowledges it; both continue to serve.
//!
//! ```text
//!   sender                                          receiver
//!   freeze a batch: unwatch, mark as moving
//!   batch 1 (records + descriptors)  ------------>  record all or none, watch
//!                                    <------------  acknowledged 1; now it serves them
//!   close its descriptors, forget them
//!   ...
//!   end                              ------------>
//! ```
//!
//! The state outside the kernel travels in a record; the state inside (unread input, undelivered
//! output, an end of stream) travels with the descriptor. The sender keeps its own descriptor,
//! untouched, until the acknowledgement, so a batch that is refused, or whose receiver dies, is
//! back at once: a failure never closes a connection.
//!
//! A worker may also hand over a [`Part`] of its connections and continue. It continues to accept,
//! and connections that are not adopted stay with it; everything else is the same.
//!
//! [`record`] is the format, [`machine`] the rules of both sides; `reactor::migration` executes
//! them. This module is pure.

pub mod machine;
pub mod record;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The result of a handover, as the sender reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Connections that the receiver has acknowledged.
    pub moved: u32,
    /// Connections that the sender still has.
    pub left: u32,
    /// The result for the sender.
    pub end: HandoverEnd,
    /// Whether only a part was to move: the sender then continues to serve, whatever the result.
    pub part: bool,
}

/// The result of a handover for the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverEnd {
    /// Everything has moved, and the sender exits.
    Done,
    /// The receiver adopted every connection that it could. The sender serves the rest, without
    /// accepting, until the supervisor sends it a request to leave, to serve, to take over or to
    /// hand over again.
    Incomplete {
        /// The reason for the first connection that stays.
        cause: String,
    },
    /// The receiver adopts no (more) connections. Otherwise as [`HandoverEnd::Incomplete`].
    Refused {
        /// The receiver's reason.
        cause: String,
    },
    /// The receiver is gone. The sender serves what was not acknowledged, and accepts again.
    PeerGone,
}

impl HandoverEnd {
    /// Returns a number for it, which is not 0.
    #[must_use]
    pub const fn number(&self) -> u8 {
        match self {
            Self::Done => 1,
            Self::Incomplete { .. } => 2,
            Self::Refused { .. } => 3,
            Self::PeerGone => 4,
        }
    }

    /// Returns the result with this number, as another process reports it; `None` if there is none.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        let cause = || "the process that had the cause died".to_owned();
        Some(match number {
            1 => Self::Done,
            2 => Self::Incomplete { cause: cause() },
            3 => Self::Refused { cause: cause() },
            4 => Self::PeerGone,
            _ => return None,
        })
    }

    /// Returns the name used in log lines.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Incomplete { .. } => "incomplete",
            Self::Refused { .. } => "refused",
            Self::PeerGone => "peer_gone",
        }
    }
}

/// The part of its load that a continuing worker hands over: recently active connections without
/// pending output when they migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Share of the active connections, in thousandths, rounded down.
    pub permille: u16,
    /// Maximum number.
    pub at_most: u32,
    /// A connection is active if a byte moved within this time.
    pub active_within: Duration,
}

impl Part {
    /// Returns the number of connections out of `active`.
    #[must_use]
    pub fn of(&self, active: u32) -> u32 {
        let share = u64::from(active) * u64::from(self.permille.min(1000)) / 1000;
        // A share is not more than the whole.
        self.at_most.min(share as u32)
    }
}
