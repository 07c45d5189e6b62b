//! The limits that the machine works with.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::config::{Boot, ReloadConnections};

/// Time beyond `lame_duck` + `drain_timeout` for a stopping worker to exit before it is killed, and
/// time for a killed worker to exit before it is abandoned. A worker closes its last connections
/// itself when `drain_timeout` is over; this is the time that it then has for that on a busy
/// machine.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// The limits that the machine applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The number of slots; 0 is read as 1.
    pub workers: u16,
    /// Maximum time from a worker's spawn to its Ready.
    pub start_timeout: Duration,
    /// Time for a stopping worker to serve its remaining connections.
    pub drain_timeout: Duration,
    /// Time for which a stopping worker continues to accept first.
    pub lame_duck: Duration,
    /// The restart delay after a slot's second failure in a row; it doubles with each further one.
    pub backoff_initial: Duration,
    /// The maximum restart delay.
    pub backoff_max: Duration,
    /// Healthy time after which a slot's failure count is reset.
    pub backoff_reset: Duration,
    /// Time for which a queue may be unserved before a sibling serves it.
    pub lend_after: Duration,
    /// The effect of a reload on established connections.
    pub reload_connections: ReloadConnections,
    /// The number of workers that must start for the server to serve.
    pub boot: Boot,
    /// Time for which a worker waits for its peers to close once it has ended their streams; part
    /// of the time that a leaving worker has.
    pub linger_timeout: Duration,
    /// Time for which the canary must serve before the other workers are replaced.
    pub bake_time: Duration,
    /// Maximum time for which either side may stall a handover.
    pub handover_timeout: Duration,
    /// Time for handshakes in progress before a listener is closed.
    pub handshake_timeout: Duration,
    /// A worker whose loop made no turn for this long is killed; `None`: it never is.
    pub hang_timeout: Option<Duration>,
    /// Interval at which a worker's loop is checked for a stall shorter than `hang_timeout`;
    /// `None`: it is not checked.
    pub stall_check: Option<Duration>,
    /// Percentage by which the busiest worker must exceed the idlest for connections to move;
    /// `None`: never.
    pub rebalance: Option<u16>,
}
