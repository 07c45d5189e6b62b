//! The phases in the life of the whole supervisor.

use serde::{Deserialize, Serialize};

use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;

/// The phase of the whole supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Phase {
    /// `Boot` has not come.
    Idle,
    /// Slots start one after the other: the order of the `listen` calls is the order of the sockets
    /// in their group, and with port 0 the first one's port is what the others must bind.
    Booting {
        /// The slot whose first Ready is awaited; those before it have been Ready, those after it
        /// wait.
        slot: SlotId,
    },
    /// Every slot has been Ready once, or has been tried and is tried again and again.
    Serving,
    /// A worker that is needed could not start; what runs is killed and awaited.
    BootFailed { cause: String },
    /// Workers finish what they owe.
    Draining { since: Tick, deadline: Tick },
    /// What is left has been killed and is awaited.
    Forced,
    /// `Exit` has been given out.
    Ended,
}
