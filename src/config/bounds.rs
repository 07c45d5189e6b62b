//! The bounds of each setting, with the unit in the type.
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
/// Idle timeout. Below 10 ms it would cut clients on intercontinental paths.
pub const IDLE_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: MONTH,
};
/// Timeout of a peer that reads none of its output.
pub const WRITE_STALL_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: MONTH,
};
/// Timeout of a half-closed connection.
pub const LINGER_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: Duration::from_secs(10 * 60),
};
/// Unsent bytes of one connection; the maximum is the size of the scratch buffer.
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
/// Connections per second accepted by one worker from one source.
pub const ACCEPT_RATE_PER_SOURCE: Count<u32> = Count {
    least: 1,
    most: 1_000_000,
};
/// Prefix length of an IPv4 source.
pub const SOURCE_PREFIX_V4: Count<u8> = Count { least: 1, most: 32 };
/// Prefix length of an IPv6 source.
pub const SOURCE_PREFIX_V6: Count<u8> = Count {
    least: 1,
    most: 128,
};
/// Timeout of a PROXY header. A proxy sends it with its first packet; a lost one is retransmitted
/// after a second.
pub const PROXY_HEADER_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Connections accepted per event loop iteration.
pub const ACCEPTS_PER_TURN: Count<u32> = Count {
    least: 1,
    most: 4096,
};
/// Bytes read from one connection per event loop iteration.
pub const BYTES_PER_TURN: Size = Size {
    least: 4 * KIB,
    most: 64 * MIB,
};
/// A kernel buffer of a connection.
pub const SOCKET_BUFFER: Size = Size {
    least: 4 * KIB,
    most: 16 * MIB,
};
/// Idle time before keepalive probes; the kernel accepts whole seconds up to 32767.
pub const KEEPALIVE: Span = Span {
    least: SECOND,
    most: Duration::from_secs(9 * 60 * 60),
};
/// Busy-polling before sleep. Below 10 us it would end before a peer on the same machine can
/// answer; beyond a second it permanently occupies a CPU.
pub const BUSY_POLL: Span = Span {
    least: Duration::from_micros(10),
    most: SECOND,
};
/// Percent by which the busiest worker must exceed the idlest. Below 10 it would react to noise.
pub const REBALANCE_THRESHOLD: Count<u16> = Count {
    least: 10,
    most: 1000,
};
/// Pause after the system ran out of descriptors or memory.
pub const ACCEPT_RETRY: Span = Span {
    least: MS,
    most: MINUTE,
};
/// Grace period for pending replies.
pub const DRAIN_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: DAY,
};
/// Accepting after a stop begins.
pub const LAME_DUCK: Span = Span {
    least: Duration::ZERO,
    most: HOUR,
};
/// Time until a worker is ready.
pub const START_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Both ends of the pause between two attempts to start a failing slot.
pub const BACKOFF: Span = Span {
    least: MS,
    most: HOUR,
};
/// Healthy time that resets a slot's failure count.
pub const BACKOFF_RESET: Span = Span {
    least: MS,
    most: DAY,
};
/// Time without a worker before a sibling serves a slot's queue.
pub const LEND_AFTER: Span = Span {
    least: Duration::ZERO,
    most: MINUTE,
};
/// Healthy time of the first replaced worker before the others follow.
pub const BAKE_TIME: Span = Span {
    least: Duration::ZERO,
    most: HOUR,
};
/// Handover of connections.
pub const HANDOVER_TIMEOUT: Span = Span {
    least: Duration::from_millis(10),
    most: Duration::from_secs(10 * 60),
};
/// Time for handshakes begun before a listener is closed. A lost reply is retransmitted after 1, 3
/// and 7 seconds; more than a minute has no benefit.
pub const HANDSHAKE_TIMEOUT: Span = Span {
    least: Duration::ZERO,
    most: MINUTE,
};
/// A stalled loop. Below 200 ms it would end workers that merely wait on a busy machine.
pub const HANG_TIMEOUT: Span = Span {
    least: Duration::from_millis(200),
    most: HOUR,
};
