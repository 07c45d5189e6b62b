//! Limits that nobody sets: their name, unit and value in one place.
//!
//! What can be set has its default in `settings` and its range in `bounds`. Must not: hold anything
//! that depends on a configuration.

use std::time::Duration;

/// The scratch buffer of a worker in bytes: the most that one read takes.
pub const SCRATCH_BYTES: usize = 65_536;

/// Descriptors of a process that are not connections and whose number does not grow: standard
/// streams, log, epoll, waker, shared memory, control sockets, the pair of a handover.
pub const FD_RESERVE: u32 = 64;

/// Connections a worker takes at most where the configuration names no number: container runtimes
/// set descriptor limits in the thousands of millions, and a worker's memory is laid out for its
/// limit (64 GiB of addresses, not of memory, for this many).
pub const AUTO_CONNECTIONS_MAX: u32 = 1_000_000;

/// How often the server looks whether the file of its control socket is still there.
pub const CONTROL_FILE_CHECK: Duration = Duration::from_secs(10);

/// Sources that a worker remembers at once, for the limits on one source: those with connections,
/// and those whose rate is not unused again. About 130 bytes each, and only where there are such
/// limits. Beyond it those without connections are forgotten; when all have some, new sources are
/// admitted unlimited, which is counted (`untracked`).
pub const ADMISSION_SOURCES_MAX: usize = 65_536;

/// A worker that has reached `max_connections` accepts again when a tenth of its places is free, or
/// this long after the first one is: so a new client does not wait while there is room.
pub const LIMIT_PAUSE: Duration = Duration::from_millis(100);

/// What the kernel has for a client that takes none of it is thrown away after
/// `write_stall_timeout`, or this if that is shorter: the network may need so long.
pub const KERNEL_STALL_MIN: Duration = Duration::from_secs(1);

/// The longest such time that the kernel can be told (a positive number of milliseconds).
pub const KERNEL_STALL_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// From one attempt to bind a socket in place of a lost listener to the next.
pub const REBIND_RETRY: Duration = Duration::from_secs(1);

/// Descriptors kept for each slot besides its listeners: channel, pidfd, memory, and one spare.
pub const FDS_PER_SLOT: u32 = 4;

/// Connections that travel in one message of a handover: what the kernel passes at once
/// (`SCM_MAX_FD`, 253), less a margin.
pub const HANDOVER_BATCH_CONNECTIONS: usize = 200;

/// Bytes of one message of a handover, descriptors apart: room for one connection with a full
/// buffer of unsent output and its record; below what a socket pair takes at once (about 208 KiB).
pub const HANDOVER_MESSAGE_BYTES: usize = 96 * 1024;

/// Messages of a handover on their way, sent and not acknowledged: as many as the socket takes
/// where each is full of unsent output, few enough that a connection is frozen for milliseconds.
pub const HANDOVER_WINDOW: usize = 6;

/// Bytes that the socket pair of a handover is asked to hold; the kernel grants what
/// `net.core.wmem_max` allows.
pub const HANDOVER_SOCKET_BYTES: usize = HANDOVER_WINDOW * HANDOVER_MESSAGE_BYTES;

/// How long a turn of a worker's loop may spend on the batches of a handover, either side. At least
/// one batch goes in each turn, and everybody else is served between two turns.
pub const HANDOVER_TURN: Duration = Duration::from_millis(2);

/// How long a worker that takes over waits to be told how many connections come, before it accepts
/// new ones. The sender says so in its next turn; one that is stalled must not hold up new clients.
pub const HANDOVER_COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks at a handover's progress within `handover_timeout`; a side is stalled when all of them in
/// a row find that it owes the next step.
pub const HANDOVER_CHECKS: u32 = 4;

/// Characters of what a worker says in its own words, such as why it cannot start: a long sentence.
pub const WORKER_WORDS_MAX_CHARS: usize = 1024;

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

/// Time, from its accept, that a connection has to send a first byte although the worker stops. A
/// client that was admitted and has sent its request at once is answered.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Clients of the control socket at once. One more replaces a slow one, and is told
/// to come back if all of them wait for an answer.
pub const CONTROL_CLIENTS_MAX: usize = 32;

/// Commands that wait for their turn (`--wait`) at once; one more is refused. Fewer than clients, so
/// that a status can be had meanwhile.
pub const CONTROL_WAITERS_MAX: usize = 8;

/// Bytes of a request on the control socket.
pub const CONTROL_REQUEST_MAX_BYTES: usize = 4096;

/// How long a client of the control socket may take to send its request, and to read the last
/// reply.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client of the control socket that says nothing, or does not read its answer, keeps its
/// place while others wait for one. Whoever connects with a request in hand sends it at once.
pub const CONTROL_PATIENCE: Duration = Duration::from_millis(50);

/// Clients of the control socket accepted in one turn of the supervisor's loop.
pub const CONTROL_ACCEPTS_PER_TURN: usize = 64;

/// Processes accepted and dismissed in one turn that ask who has the lock of an address.
pub const LOCK_ASKERS_PER_TURN: usize = 64;

/// How long the locks rest after a turn in which there were more: a flood of them costs no more.
pub const LOCK_ASKERS_REST: Duration = Duration::from_millis(100);

/// Requests that the admin process works on at once, each with a thread of its own.
pub const ADMIN_REQUESTS_MAX: usize = 4;

/// Bytes of the head of a request to the admin endpoint.
pub const ADMIN_HEAD_MAX_BYTES: usize = 8192;

/// How long a client of the admin endpoint may take to send its request, and to read the answer.
pub const ADMIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client of the admin endpoint may take to send its request, and to read the answer, while
/// others wait. A client on this machine that has a request sends it at once, and the answer fits
/// into the socket. So a hundred slow clients delay the next one by little more than half a second.
pub const ADMIN_PATIENCE: Duration = Duration::from_millis(25);

/// How long the admin process waits for the supervisor; one that takes longer is not healthy.
pub const ADMIN_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Load balancers that the admin process answers at once; others wait.
pub const AGENT_CLIENTS_MAX: usize = 4;

/// How long a load balancer may take to read its answer, and then to close, while none waits.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Within this time a load balancer is told what was said last: however often strangers ask, the
/// supervisor is asked five times a second.
pub const AGENT_FRESH: Duration = Duration::from_millis(200);

/// A load that stays is in the weight by two thirds after this time, and wholly after five times it.
pub const AGENT_SMOOTHING: Duration = Duration::from_secs(10);

/// How often the supervisor checks that each worker's loop runs, at least. Busy workers do nothing
/// for it; an idle one is woken up every other time.
pub const STALL_CHECK_EVERY: Duration = Duration::from_secs(1);

/// A worker that has made no turn in so many checks in a row, of which it was asked to make one, has
/// stalled.
pub const STALL_CHECKS: u32 = 2;

/// How often the lengths of the accept queues are looked at for the log.
pub const QUEUE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// The shortest interval of `status --watch`: the supervisor is there for its workers.
pub const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How long `status` looks to know how fast everything goes.
pub const STATUS_RATES_SPAN: Duration = Duration::from_millis(250);

/// How long `status` and `top` wait for one answer; a supervisor that lives has one at once.
pub const STATUS_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// From one look of `top` to the next where nobody names a time.
pub const TOP_INTERVAL: Duration = Duration::from_secs(1);

/// Columns of a terminal that `top` draws; a wider one stays empty on the right.
pub const TOP_COLUMNS_MAX: u16 = 512;

/// Rows of a terminal that `top` draws; a higher one stays empty below.
pub const TOP_ROWS_MAX: u16 = 256;

/// How long `top` waits for room in the queue of a control socket; its keys wait with it.
pub const TOP_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Sockets that `status --sockets` lists where nobody names a number.
pub const STATUS_SOCKETS_LISTED: usize = 1000;

/// The largest configuration file that is read, in bytes; `--config /dev/zero` must end.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1 << 20;

/// How much likelier than the supervisor a child of it is to be killed for want of memory, in
/// thousandths of the memory there is. They are often of one size, and only a worker can be replaced.
pub const OOM_SCORE_STEP: i16 = 100;

/// How often the service manager's status line is made anew; it is sent if it has changed.
pub const NOTIFY_STATUS_IDLE: Duration = Duration::from_secs(5);

/// The same while something planned is under way.
pub const NOTIFY_STATUS_BUSY: Duration = Duration::from_secs(1);

/// After this long a message that the service manager did not take is offered again.
pub const NOTIFY_RETRY: Duration = Duration::from_secs(1);

/// The longest status line that the service manager is told, in characters: systemd drops a message of
/// more than 4096 bytes whole.
pub const NOTIFY_STATUS_MAX_CHARS: usize = 1000;

/// How long the service manager is asked to go on waiting for the end of a start or a reload, again and
/// again while that is under way. So its own timeout is for a supervisor that hangs.
pub const NOTIFY_EXTENSION: Duration = Duration::from_secs(15);

/// How much longer than it should take at most the service manager is asked to let a stop take.
pub const NOTIFY_STOP_MARGIN: Duration = Duration::from_secs(5);
