//! Fixed limits: name, unit and value in one place.
//!
//! Settings have their default in `settings` and their range in `bounds`. Must not: hold anything
//! that depends on a configuration.

use std::time::Duration;

/// Size of a worker's scratch buffer in bytes: the maximum of one read.
pub const SCRATCH_BYTES: usize = 65_536;

/// Number of connections whose input is held at once: that many are received from before the first
/// is answered. With 1, each is answered before the next is received from.
pub const HANDS: usize = 16;

/// Number of rescues in a row that the supervisor does not confirm, after which a worker's keeper
/// exits instead of continuing it.
pub const RESCUES_UNCONFIRMED_MAX: u64 = 5;

/// Connections of a dead process that are watched again in one iteration of the event loop; between
/// two batches all are served.
pub const REARM_BATCH: usize = 250;

/// Interval at which a worker whose supervisor has exited looks for signals, and at its lease.
pub const ORPHAN_CHECK_EVERY: Duration = Duration::from_millis(100);

/// Connections to a worker's rendezvous accepted per iteration of its event loop.
pub const ADOPTION_VISITS_PER_TURN: usize = 4;

/// Time for the workers of an earlier instance to introduce themselves to a starting one: each does
/// so in its next iteration.
pub const ADOPTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the workers that a starting instance ends to close their listeners.
pub const ADOPTION_RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval at which that is checked.
pub const ADOPTION_RELEASE_CHECK_MS: u16 = 5;

/// Maximum number of listeners that a worker accepts from, its own and those lent by siblings.
pub const LISTENERS_MAX: usize = 1024;

/// Minimum room of a receive in the scratch buffer beside input already held: half the buffer, so
/// that a receive seldom fills its room and needs a second call.
pub const RECEIVE_ROOM_MIN: u32 = SCRATCH_BYTES as u32 / 2;

/// Short event loop iterations that only serve connections are sampled: one in this many is
/// measured.
pub const TURNS_PER_SAMPLE: u64 = 64;

/// Maximum time between two measured iterations, if there are any: where iterations are rare, each is
/// measured, so that one long iteration does not count for many.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// Maximum duration of a short iteration; reading the clock costs less than a thousandth of it.
pub const SHORT_TURN: Duration = Duration::from_micros(50);

/// Descriptors of a process that are not connections and whose number does not grow: standard
/// streams, log, epoll, waker, shared memory, control sockets, the pair of a handover.
pub const FD_RESERVE: u32 = 64;

/// Maximum connections per worker if not configured: container runtimes set descriptor limits in
/// the billions, and a worker's memory layout depends on its limit (64 GiB of address space, not of
/// memory, for this value).
pub const AUTO_CONNECTIONS_MAX: u32 = 1_000_000;

/// Interval between checks that the file of the control socket still exists.
pub const CONTROL_FILE_CHECK: Duration = Duration::from_secs(10);

/// Maximum sources tracked per worker for the limits per source: sources with connections, and
/// sources whose rate has not fully recovered. Each takes about 130 bytes, and only if such limits
/// are configured. At the maximum, sources without connections are forgotten; if all have
/// connections, new sources are admitted without limits and counted (`untracked`).
pub const ADMISSION_SOURCES_MAX: usize = 65_536;

/// A worker at `max_connections` accepts again once a tenth of its places is free, or this long
/// after the first is free, so that new clients do not wait while there is room.
pub const LIMIT_PAUSE: Duration = Duration::from_millis(100);

/// Minimum timeout for output in the kernel that the client does not read; the timeout is
/// `write_stall_timeout` if that is longer. Delivery may take this long.
pub const KERNEL_STALL_MIN: Duration = Duration::from_secs(1);

/// Maximum of that timeout in the kernel (a positive number of milliseconds).
pub const KERNEL_STALL_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// Interval between attempts to bind a socket in place of a lost listener.
pub const REBIND_RETRY: Duration = Duration::from_secs(1);

/// Descriptors per slot besides its listeners: channel, pidfd, memory, and one spare.
pub const FDS_PER_SLOT: u32 = 4;

/// Maximum connections in one handover message: the kernel's descriptor limit per message
/// (`SCM_MAX_FD`, 253), less a margin.
pub const HANDOVER_BATCH_CONNECTIONS: usize = 200;

/// Maximum bytes of one handover message without descriptors: room for one connection's record and
/// a full buffer of unsent output; below the capacity of a socket pair (about 208 KiB).
pub const HANDOVER_MESSAGE_BYTES: usize = 96 * 1024;

/// Maximum unacknowledged handover messages: as many as fit the socket when all carry full buffers
/// of unsent output, but few enough to freeze a connection for milliseconds only.
pub const HANDOVER_WINDOW: usize = 6;

/// Requested buffer size of a handover's socket pair in bytes; the kernel grants up to
/// `net.core.wmem_max`.
pub const HANDOVER_SOCKET_BYTES: usize = HANDOVER_WINDOW * HANDOVER_MESSAGE_BYTES;

/// Time per event loop iteration for handover batches, on either side. Each iteration processes at
/// least one batch; all other clients are served between iterations.
pub const HANDOVER_TURN: Duration = Duration::from_millis(2);

/// How long a new worker waits for the number of migrating connections before it accepts new ones.
/// The sender reports it in its next iteration; a stalled sender must not delay new clients.
pub const HANDOVER_COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// Samples of a handover's progress within `handover_timeout`; a side is stalled if all of them
/// show it owing the next step.
pub const HANDOVER_CHECKS: u32 = 4;

/// Maximum characters of text from a worker, such as the reason why it cannot start.
pub const WORKER_WORDS_MAX_CHARS: usize = 1024;

/// Delay before a rejected handover message is sent again, unless the kernel reports room earlier.
pub const HANDOVER_RETRY: Duration = Duration::from_millis(10);

/// Samples of a worker's pulse within `hang_timeout`; a worker is stalled if none of them shows a
/// new iteration.
pub const HANG_CHECKS: u32 = 4;

/// Crashes of one worker within [`CRASH_WINDOW`] that are rescued; the next one ends the worker, and
/// the slot is restarted with a delay. Hangs and kills from outside do not count.
pub const CRASHES_RESCUED_MAX: usize = 5;

/// Time in which crashes of a worker are counted.
pub const CRASH_WINDOW: Duration = Duration::from_secs(10);

/// Time for a keeper to report that it has become the worker; it is killed afterwards. It takes
/// milliseconds, but a starved machine may not run it for seconds, and a second one that is late
/// ends the worker with its connections.
pub const RESCUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum `drain_timeout`.
pub const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Time for workers that were left behind to exit, beyond their `drain_timeout`.
pub const LEFTOVERS_MARGIN: Duration = Duration::from_secs(5);

/// Time for the service manager to say whether it stops or restarts the service; a stop follows.
pub const INQUIRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after the kill of a hung process before its worker is sampled again: that process may wait
/// for a CPU before it ends, and two keepers in a row may exceed [`RESCUE_TIMEOUT`].
pub const HANG_RESCUE_TIMEOUT: Duration = Duration::from_secs(3);

/// Minimum time between two requests for a keeper of the same worker.
pub const KEEPER_RETRY: Duration = Duration::from_secs(1);

/// Interval at which the CPUs are counted (`workers = "auto"`).
pub const RESIZE_SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Consecutive counts that must agree before the number of workers changes.
pub const RESIZE_SAMPLES: u32 = 3;

/// Minimum time between two such changes; it doubles with each that fails.
pub const RESIZE_REST: Duration = Duration::from_secs(10);

/// Maximum of this time.
pub const RESIZE_REST_MAX: Duration = Duration::from_secs(600);

/// Interval between comparisons of the workers' loads (`rebalance`).
pub const REBALANCE_SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Consecutive samples that must show the same worker overloaded before connections migrate.
pub const REBALANCE_SAMPLES: u32 = 3;

/// Calls per second of the busiest worker below which no connection migrates: it is not overloaded.
pub const REBALANCE_LEAST_CALLS: u64 = 500;

/// Bytes, in or out, that count as much as one call.
pub const REBALANCE_BYTES_PER_CALL: u64 = 16 * 1024;

/// A connection with traffic within this time is active.
pub const REBALANCE_ACTIVE_WITHIN: Duration = Duration::from_secs(2);

/// Maximum connections that migrate at once: with the interval below, 2,400 per minute.
pub const REBALANCE_CONNECTIONS: u32 = 200;

/// Minimum interval between two migrations.
pub const REBALANCE_REST: Duration = Duration::from_secs(5);

/// Maximum of this interval, which doubles with each migration that has not helped.
pub const REBALANCE_REST_MAX: Duration = Duration::from_secs(600);

/// Time after its accept in which a connection's first byte is awaited even by a stopping worker,
/// so that a client that sends its request at once is answered.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection that has reached `max_connection_age` is still received from, if its client
/// never pauses.
pub const AGE_GRACE: Duration = Duration::from_secs(1);

/// Maximum clients of the control socket. One more replaces a slow client; if all clients wait for
/// a reply, it is refused with a retry hint.
pub const CONTROL_CLIENTS_MAX: usize = 32;

/// Maximum commands queued by `--wait`; one more is refused. Below the maximum of clients, so that
/// a status can still be requested.
pub const CONTROL_WAITERS_MAX: usize = 8;

/// Maximum bytes of a request on the control socket.
pub const CONTROL_REQUEST_MAX_BYTES: usize = 4096;

/// Timeout for a client of the control socket to send its request, and to read the last reply.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client of the control socket that sends nothing or does not read its reply keeps its
/// place while others wait for one. A client sends its request at once.
pub const CONTROL_PATIENCE: Duration = Duration::from_millis(50);

/// Clients of the control socket accepted per iteration of the supervisor's loop.
pub const CONTROL_ACCEPTS_PER_TURN: usize = 64;

/// Connections to an address lock accepted and closed per iteration of the supervisor's loop.
pub const LOCK_CHECKS_PER_TURN: usize = 64;

/// Pause of the locks after an iteration that did not handle all connections: bounds the cost of a
/// flood.
pub const LOCK_CHECKS_PAUSE: Duration = Duration::from_millis(100);

/// Maximum concurrent requests to the admin process, each with a thread of its own.
pub const ADMIN_REQUESTS_MAX: usize = 4;

/// Maximum bytes of the head of a request to the admin endpoint.
pub const ADMIN_HEAD_MAX_BYTES: usize = 8192;

/// Timeout for a client of the admin endpoint to send its request, and to read the response.
pub const ADMIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The same while other clients wait. A local client sends its request at once, and the response
/// fits the socket buffer. A hundred slow clients so delay the next one by little more than half a
/// second.
pub const ADMIN_EXCLUSIVE_TIME: Duration = Duration::from_millis(25);

/// How long the admin process waits for the supervisor; if it takes longer, it is unhealthy.
pub const ADMIN_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum load balancers that the admin process serves at once; others wait.
pub const AGENT_CLIENTS_MAX: usize = 4;

/// Timeout for a load balancer to read its line and close, while no other waits.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a load balancer's line is reused: limits queries to the supervisor to five per second.
pub const AGENT_FRESH: Duration = Duration::from_millis(200);

/// Smoothing time of the weight: a constant load is reflected to two thirds after this time, and
/// fully after five times this.
pub const AGENT_SMOOTHING: Duration = Duration::from_secs(10);

/// Messages per second are kept for this many intervals, for a dashboard that starts.
pub const HISTORY_LEN: usize = 240;
/// Numbers in the histories of all slots together that a status has: with more than 64 slots each
/// history is shorter than [`HISTORY_LEN`].
pub const SLOT_HISTORIES_LEN: usize = 64 * HISTORY_LEN;
/// See [`HISTORY_LEN`].
pub const HISTORY_EVERY: Duration = Duration::from_secs(1);

/// Crashes of a slot that a status has, the latest ones.
pub const CRASHES_LISTED_MAX: usize = 5;

/// Steps of the operation in progress that a status has.
pub const STEPS_MAX: usize = 16;

/// Maximum interval of the check that each worker's loop runs. Busy workers do nothing for it; an
/// idle one is woken at every other check.
pub const STALL_CHECK_EVERY: Duration = Duration::from_secs(1);

/// A worker without an iteration in this many consecutive checks, one of them with a wake-up, has
/// stalled.
pub const STALL_CHECKS: u32 = 2;

/// Sampling interval of the accept queue lengths, for the log.
pub const QUEUE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Minimum interval of `status --watch`, to limit the supervisor's load.
pub const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Sampling time of `status` for rates.
pub const STATUS_RATES_SPAN: Duration = Duration::from_millis(250);

/// Timeout of `status` and `top` for one reply; a live supervisor replies at once.
pub const STATUS_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Default refresh interval of `top`.
pub const TOP_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum columns that `top` draws; a wider terminal stays empty on the right.
pub const TOP_COLUMNS_MAX: u16 = 512;

/// Maximum rows that `top` draws; a higher terminal stays empty below.
pub const TOP_ROWS_MAX: u16 = 256;

/// How long `top` waits to connect to a full control socket; keys are not handled meanwhile.
pub const TOP_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Default number of sockets in `status --sockets`.
pub const STATUS_SOCKETS_LISTED: usize = 1000;

/// Maximum number of errors of one configuration that are shown: a file of another kind has
/// thousands.
pub const ERRORS_SHOWN_MAX: usize = 20;

/// Maximum size of a configuration file in bytes, so that reading `/dev/zero` ends.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1 << 20;

/// Added to the OOM score of the supervisor's children, in thousandths of the memory. They are
/// often as large as the supervisor, and only workers are replaceable.
pub const OOM_SCORE_STEP: i16 = 100;

/// Interval at which the service manager's status line is rendered; it is sent if changed.
pub const NOTIFY_STATUS_IDLE: Duration = Duration::from_secs(5);

/// The same while an operation is in progress.
pub const NOTIFY_STATUS_BUSY: Duration = Duration::from_secs(1);

/// Delay before a message rejected by the service manager is sent again.
pub const NOTIFY_RETRY: Duration = Duration::from_secs(1);

/// Maximum characters of the status line for the service manager: systemd drops a message of more
/// than 4096 bytes.
pub const NOTIFY_STATUS_MAX_CHARS: usize = 1000;

/// How far the service manager's timeout for a start or a reload is extended, repeatedly while that
/// is in progress, so that it expires only if the supervisor hangs.
pub const NOTIFY_EXTENSION: Duration = Duration::from_secs(15);

/// Time added to the maximum duration of a stop in the timeout requested of the service manager.
pub const NOTIFY_STOP_MARGIN: Duration = Duration::from_secs(5);
