//! The limits of the limits: between what each setting may lie, with its unit in its type.
//!
//! Invariant: these are the only bounds; grammars, error texts, help and documentation quote them.
//! Must not: hold a default (the table of settings does).

use std::time::Duration;

use uppercased_ctl::limits::{WORKERS_MAX, WORKERS_MIN};

use super::limits::SCRATCH_BYTES;
use super::value::{Count, Size, Span};

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Worker processes.
pub const WORKERS: Count<u16> = Count {
    least: WORKERS_MIN,
    most: WORKERS_MAX,
};
/// Connections waiting in one accept queue; the kernel clamps to `net.core.somaxconn`.
pub const BACKLOG: Count<u32> = Count {
    least: 1,
    most: 65_535,
};
/// Connections of one worker.
pub const MAX_CONNECTIONS: Count<u32> = Count {
    least: 1,
    most: 10_000_000,
};
/// Silence on a connection. Shorter than 10 ms would cut clients that merely crossed a continent.
pub const IDLE_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: MONTH,
};
/// A peer that takes nothing of what it is owed.
pub const WRITE_STALL_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: MONTH,
};
/// A half-closed connection.
pub const LINGER_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: Duration::from_secs(10 * 60),
};
/// Unsent bytes of one connection; the most is the scratch buffer that one read fills.
#[expect(clippy::cast_possible_truncation, reason = "64 KiB")]
pub const PENDING_OUTPUT: Size = Size {
    least: 4 * KIB,
    most: SCRATCH_BYTES as u32,
};
/// Connections of one source at one worker.
pub const MAX_CONNECTIONS_PER_SOURCE: Count<u32> = Count {
    least: 1,
    most: 10_000_000,
};
/// Connections a second that one worker takes from one source.
pub const ACCEPT_RATE_PER_SOURCE: Count<u32> = Count {
    least: 1,
    most: 1_000_000,
};
/// Leading bits of an IPv4 address that make a source.
pub const SOURCE_PREFIX_V4: Count<u8> = Count { least: 1, most: 32 };
/// Leading bits of an IPv6 address that make a source.
pub const SOURCE_PREFIX_V6: Count<u8> = Count {
    least: 1,
    most: 128,
};
/// A PROXY header on its way. A proxy sends it with its first packet; a lost one is sent again
/// after a second.
pub const PROXY_HEADER_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Connections accepted in one turn.
pub const ACCEPTS_PER_TURN: Count<u32> = Count {
    least: 1,
    most: 4096,
};
/// Bytes read from one connection in one turn.
pub const BYTES_PER_TURN: Size = Size {
    least: 4 * KIB,
    most: 64 * MIB,
};
/// A kernel buffer of a connection.
pub const SOCKET_BUFFER: Size = Size {
    least: 4 * KIB,
    most: 16 * MIB,
};
/// Idle time before keepalive probes; the kernel takes whole seconds up to 32767.
pub const KEEPALIVE: Span = Span {
    least: SECOND,
    most: Duration::from_secs(9 * 60 * 60),
};
/// Polling for more work before sleeping. Below 10 us it would end before a peer on the same
/// machine can answer; beyond a second it is no wait any more but a CPU given away.
pub const BUSY_POLL: Span = Span {
    least: Duration::from_micros(10),
    most: SECOND,
};
/// Percent by which the busiest worker must exceed the idlest. Below 10 it would chase noise.
pub const REBALANCE_THRESHOLD: Count<u16> = Count {
    least: 10,
    most: 1000,
};
/// The rest after the system ran out of descriptors or memory.
pub const ACCEPT_RETRY: Span = Span {
    least: MS,
    most: MINUTE,
};
/// Finishing what is owed when stopping.
pub const DRAIN_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: DAY,
};
/// Accepting on while stopping.
pub const LAME_DUCK: Span = Span {
    least: Duration::ZERO,
    most: HOUR,
};
/// A worker's way to Ready.
pub const START_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Both ends of the pause between two tries of a slot that fails.
pub const BACKOFF: Span = Span {
    least: MS,
    most: HOUR,
};
/// The good service that wipes a slot's failures.
pub const BACKOFF_RESET: Span = Span {
    least: MS,
    most: DAY,
};
/// A slot without worker, until a sibling serves its queue.
pub const LEND_AFTER: Span = Span {
    least: Duration::ZERO,
    most: MINUTE,
};
/// Good service of the first renewed worker before the others follow.
pub const BAKE_TIME: Span = Span {
    least: Duration::ZERO,
    most: HOUR,
};
/// Handing connections over.
pub const HANDOVER_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Handshakes begun before a listener is closed. A lost answer is sent again after 1, 3 and 7
/// seconds; more than a minute helps nobody.
pub const HANDSHAKE_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: MINUTE,
};
/// A loop without a turn. Shorter than 200 ms would end workers that a busy machine kept waiting.
pub const HANG_TIMEOUT: Span = Span {
    least: Duration::from_millis(200),
    most: HOUR,
};
