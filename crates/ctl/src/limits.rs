//! Fixed limits that a server shares with its clients: name, unit and value in one place.
//!
//! Limits of the server alone are in its `config`.

use std::time::Duration;

/// Minimum number of worker processes.
pub const WORKERS_MIN: u16 = 1;

/// Maximum number of worker processes.
pub const WORKERS_MAX: u16 = 1024;

/// Longest path of a Unix socket in bytes (`sun_path`, less its final zero).
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// Longest reply on the control socket in bytes, and maximum unsent replies per client: the status
/// of 1024 slots needs a quarter of it. A client that leaves more unread is disconnected.
pub const CONTROL_REPLY_MAX_BYTES: usize = 4 << 20;

/// Longest text (progress, a cause) in a reply on the control socket in bytes; longer ones are cut.
pub const CONTROL_TEXT_MAX_BYTES: usize = 2048;

/// Time after which an unserved queue makes the server unready. After a crash, a successor or a
/// sibling serves the queue sooner.
pub const UNSERVED_GRACE: Duration = Duration::from_secs(2);

/// Longest PROXY header of version 1 in bytes, including its end, as its specification allows.
pub const PROXY_LINE_MAX_BYTES: usize = 107;

/// Longest PROXY header in bytes; a longer one is refused. Addresses need 52 bytes; the rest is for
/// additional fields, mostly certificate names.
pub const PROXY_HEADER_MAX_BYTES: usize = 4096;
