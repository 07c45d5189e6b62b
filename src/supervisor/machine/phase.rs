//! The phases of the supervisor.

use serde::{Deserialize, Serialize};

use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;

/// The phase of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Phase {
    /// Before [`super::Event::Boot`].
    Idle,
    /// Slots start one after the other: the order of the `listen` calls is the order of the sockets
    /// in their group, and with port 0 the first one's port is what the others must bind.
    Booting {
        /// The slot whose first Ready is awaited; those before it have been Ready, those after it
        /// wait.
        slot: SlotId,
    },
    /// Every slot has been Ready once, or its start has failed and is being retried.
    Serving,
    /// A required worker could not start; the remaining processes are killed and awaited.
    BootFailed { cause: String },
    /// Workers finish their connections.
    Draining { since: Tick, deadline: Tick },
    /// The remaining processes have been killed and are awaited.
    Forced,
    /// `Exit` was returned.
    Ended,
}
