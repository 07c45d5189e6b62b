//! Limits that nobody sets: their name, unit and value in one place.
//!
//! What can be set has its default in `settings` and its range in `bounds`. Must not: hold anything
//! that depends on a configuration.

use std::time::Duration;

use super::bounds::WORKERS;

/// The scratch buffer of a worker in bytes: the most that one read takes.
pub const SCRATCH_BYTES: usize = 65_536;

/// Descriptors of a process that are not connections and whose number does not grow: standard
/// streams, log, epoll, waker, shared memory, control sockets, the pair of a handover.
pub const FD_RESERVE: u32 = 64;

/// Connections a worker takes at most where the configuration names no number: container runtimes
/// set descriptor limits in the thousands of millions, and a worker's memory is laid out for its
/// limit (64 GiB of addresses, not of memory, for this many).
pub const AUTO_CONNECTIONS_MAX: u32 = 1_000_000;

/// Sources that a worker remembers at once, for the limits on one source: those with connections,
/// and those whose rate is not used up again. About 100 bytes each, and only where there are such
/// limits. Beyond it those without connections are forgotten; when all have some, new sources are
/// admitted unlimited, which is counted (`untracked`).
pub const ADMISSION_SOURCES_MAX: usize = 65_536;

/// Descriptors kept for each slot besides its listeners: channel, pidfd, memory, and one spare.
pub const FDS_PER_SLOT: u32 = 4;

/// Connections that travel in one message of a handover: what the kernel passes at once
/// (`SCM_MAX_FD`, 253), less a margin.
pub const HANDOVER_BATCH_CONNECTIONS: usize = 200;

/// Bytes of one message of a handover, descriptors apart: room for one connection with a full
/// buffer of unsent output and its record; below what a socket pair takes at once (about 208 KiB).
pub const HANDOVER_MESSAGE_BYTES: usize = 96 * 1024;

/// Messages of a handover on their way, sent and not acknowledged: enough that neither side waits
/// for the other's turn, few enough that a connection is frozen for milliseconds.
pub const HANDOVER_WINDOW: usize = 2;

/// The most workers there can be.
pub const WORKERS_MAX: u16 = WORKERS.most;

/// After this long a message of a handover that the kernel did not take is offered again, if the
/// kernel does not say before that it has room.
pub const HANDOVER_RETRY: Duration = Duration::from_millis(10);

/// Looks at a worker's pulse within `hang_timeout`; a worker is hung when all of them in a row find
/// that its loop has made no turn.
pub const HANG_CHECKS: u32 = 4;

/// How often the workers' loads are compared (`rebalance`).
pub const REBALANCE_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks in a row that must find the same worker too busy before connections move.
pub const REBALANCE_LOOKS: u32 = 3;

/// Calls a second of the busiest worker below which nothing moves: it has time enough.
pub const REBALANCE_LEAST_CALLS: u64 = 500;

/// Bytes, in or out, that count as much as one call.
pub const REBALANCE_BYTES_PER_CALL: u64 = 16 * 1024;

/// What moved within this time makes a connection an active one.
pub const REBALANCE_ACTIVE_WITHIN: Duration = Duration::from_secs(2);

/// Connections that move at once, at most. With the rest below, 2,400 a minute.
pub const REBALANCE_CONNECTIONS: u32 = 200;

/// From one move to the next, at least.
pub const REBALANCE_REST: Duration = Duration::from_secs(5);

/// The longest that this rest becomes; it doubles with each move that has not helped.
pub const REBALANCE_REST_MAX: Duration = Duration::from_secs(600);

/// Clients of the control socket at once; one more is told to come back.
pub const CONTROL_CLIENTS_MAX: usize = 16;

/// Bytes of a request on the control socket.
pub const CONTROL_REQUEST_MAX_BYTES: usize = 4096;

/// Bytes of one reply on the control socket, and of all that wait for one client: the status of
/// 1024 slots needs a quarter of it. A client that leaves more unread is cut.
pub const CONTROL_REPLY_MAX_BYTES: usize = 4 << 20;

/// Bytes of a text (progress, a cause) in a reply on the control socket; longer ones are cut.
pub const CONTROL_TEXT_MAX_BYTES: usize = 2048;

/// How long a client of the control socket may take to send its request, and to read the last
/// reply.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that the admin process works on at once, each with a thread of its own.
pub const ADMIN_REQUESTS_MAX: usize = 4;

/// Bytes of the head of a request to the admin endpoint.
pub const ADMIN_HEAD_MAX_BYTES: usize = 8192;

/// How long a client of the admin endpoint may take to send its request, and to read the answer.
pub const ADMIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the admin process waits for the supervisor; one that takes longer is not healthy.
pub const ADMIN_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest configuration file that is read, in bytes; `--config /dev/zero` must end.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1 << 20;
