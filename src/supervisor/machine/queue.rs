//! The state of the requests that wait for their turn.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::exchange::Wanted;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::RequestId;

/// The requests that wait, and the one that is about to begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Pending {
    /// The next one first.
    pub(super) waiting: VecDeque<Waiting>,
    /// Handed to the shell, and neither begun nor given up.
    pub(super) beginning: Option<Waiting>,
    /// When the shell must be back with a reload: a child reads its configuration meanwhile.
    pub(super) deadline: Option<Tick>,
}

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// [`RequestId::NOBODY`]: a signal.
    pub(super) request: RequestId,
    pub(super) wanted: Wanted,
    /// Connections that cannot move may be drained.
    pub(super) drain: bool,
}
