//! The limits that the machine works with.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::config::{Boot, RestartConnections};

/// How much longer than `lame_duck` + `drain_timeout` a stopping worker may take to exit before it
/// is killed, and how long a killed one may take to end before it is given up. A worker cuts its
/// last connections itself when `drain_timeout` is over; this is the time it then has for that on a
/// busy machine.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// The limits that the machine applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How many slots; 0 is read as 1.
    pub workers: u16,
    /// From a worker's spawn to its Ready.
    pub start_timeout: Duration,
    /// How long a stopping worker may finish what it owes.
    pub drain_timeout: Duration,
    /// How long a stopping worker goes on accepting first.
    pub lame_duck: Duration,
    /// The pause after a slot's second failure in a row; it doubles with each further one.
    pub backoff_initial: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// A worker that served this long wipes its slot's record of failures.
    pub backoff_reset: Duration,
    /// How long a queue may be unserved before a sibling serves it.
    pub lend_after: Duration,
    /// What a restart does with established connections.
    pub restart_connections: RestartConnections,
    /// How many workers must start for the server to serve.
    pub boot: Boot,
    /// How long a worker waits for its peers to close once it has ended their streams; part of the
    /// time that a leaving worker has.
    pub linger_timeout: Duration,
    /// How long the first replaced worker must serve before the others are replaced.
    pub bake_time: Duration,
    /// How long either side of a handover may keep the other waiting.
    pub handover_timeout: Duration,
    /// How long handshakes already begun have before a listener is closed.
    pub handshake_timeout: Duration,
    /// A worker whose loop made no turn for this long is killed; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// The pause between two checks of whether a worker's loop runs, if it is to be known before
    /// `hang_timeout`; `None`: it is not.
    pub stall_check: Option<Duration>,
    /// Percent by which the busiest worker must exceed the idlest for connections to move; `None`:
    /// none do.
    pub rebalance: Option<u16>,
}
