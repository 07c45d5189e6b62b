//! Fixed limits that a server shares with its clients: their name, unit and value in one place.
//!
//! Limits of the server alone are in its `config`.

use std::time::Duration;

/// The fewest worker processes.
pub const WORKERS_MIN: u16 = 1;

/// The most worker processes.
pub const WORKERS_MAX: u16 = 1024;

/// Bytes of the longest path that a Unix socket can have (`sun_path`, less its final zero).
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Bytes of one reply on the control socket, and of all that wait for one client: the status of
/// 1024 slots needs a quarter of it. A client that leaves more unread is cut.
pub const CONTROL_REPLY_MAX_BYTES: usize = 4 << 20;

/// Bytes of a text (progress, a cause) in a reply on the control socket; longer ones are cut.
pub const CONTROL_TEXT_MAX_BYTES: usize = 2048;

/// A queue that nobody serves for so long makes the server unready. A worker's death is over sooner,
/// by its successor or by a sibling that serves its queue.
pub const UNSERVED_GRACE: Duration = Duration::from_secs(2);

/// Bytes of a PROXY header of version 1, its end included: what its specification allows.
pub const PROXY_LINE_MAX_BYTES: usize = 107;

/// Bytes of a PROXY header that are waited for; a longer one is refused. Addresses need 52 bytes;
/// the rest is for additional fields, certificates' names above all.
pub const PROXY_HEADER_MAX_BYTES: usize = 4096;
