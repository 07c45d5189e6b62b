//! The directions of the conversations, and the requirements on messages.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// One direction of one conversation, as the frame header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "each is the type of its name")]
pub enum Direction {
    ToWorker = 1,
    FromWorker = 2,
    ToAdmin = 3,
    FromAdmin = 4,
    ToPreflight = 5,
    FromPreflight = 6,
}

/// The messages of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Identifies the type in the frame header.
    const DIRECTION: Direction;
}
