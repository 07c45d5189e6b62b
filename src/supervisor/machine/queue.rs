//! The state of queued requests.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::exchange::Wanted;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::RequestId;

/// The queued requests, and the one that is about to begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Pending {
    /// The next one first.
    pub(super) waiting: VecDeque<Waiting>,
    /// Handed to the shell, and neither begun nor abandoned.
    pub(super) beginning: Option<Waiting>,
    /// Time by which the shell must return a reload, whose configuration a child reads.
    pub(super) deadline: Option<Tick>,
}

/// A queued request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// [`RequestId::NOBODY`]: a signal.
    pub(super) request: RequestId,
    pub(super) wanted: Wanted,
    /// Whether connections that cannot migrate may be drained.
    pub(super) drain: bool,
}
