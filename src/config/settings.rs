//! The one table of settings, the source of flags, environment variables, file keys, defaults,
//! bounds, help and the reference in `docs/configuration.md`.
//!
//! Invariants: one row for each field of [`Config`](super::Config); every default and every example
//! is accepted by its own row; the texts quote the bounds, which are defined in `bounds.rs` only.
//! Must not: decide between sources or check one setting against another (`resolve` does).

mod category;
#[macro_use]
mod setting;
mod endpoints;
mod logging;
mod proxy;
mod sandbox;
mod sources;

pub use self::category::Category;
use self::setting::Binding;
pub use self::setting::Setting;
use super::bounds::*;
use super::listen::Listen;
use super::types::{Boot, ReloadConnections, Steer};
use super::value::{Choice, ControlSocket, Grammar as _, OrWord, PerCpu, Switch};

const BOOT: Choice<Boot> = Choice(&[("any", Boot::Any), ("all", Boot::All)]);
const RELOAD_CONNECTIONS: Choice<ReloadConnections> = Choice(&[
    ("handover", ReloadConnections::Handover),
    ("drain", ReloadConnections::Drain),
]);
const STEER: Choice<Steer> = Choice(&[
    ("hash", Steer::Hash),
    ("cpu", Steer::Cpu),
    ("random", Steer::Random),
]);

impl Setting {
    /// Returns the setting whose key is `key`.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key() == key)
    }
}

/// Every setting, in the order of help, documentation and `check --print`.
pub static SETTINGS: &[Setting] = &[
    Setting {
        binding: bind!(listen, Listen),
        category: Category::Listening,
        value_name: "ADDR",
        default: "0.0.0.0:9999",
        example: "127.0.0.1:8080",
        help: "Address to listen on; may be repeated",
        long_help: "A host name stands for all its addresses. It is resolved at the start, and \
                    again at each reload and upgrade by a child of the server, within \
                    start_timeout. If the name has IPv4 addresses, IPv6 addresses that this \
                    machine lacks are ignored. [::]:PORT is IPv6 only; *:PORT serves IPv6 and IPv4 \
                    on one socket (IPv4 alone where IPv6 is unavailable); PORT alone means every \
                    IPv4 address. Port 0 asks the kernel for a free port, which all workers share. \
                    Overlapping addresses are refused, because the more specific one would receive \
                    every connection of the other.",
    },
    Setting {
        binding: bind!(workers, PerCpu(WORKERS)),
        category: Category::Listening,
        value_name: "N",
        default: "auto",
        example: "4",
        help: "Number of worker processes",
        long_help: "Each worker is one process with one thread and its own listening socket; the \
                    kernel distributes new connections among them. auto: one per available CPU \
                    (affinity and cgroup quota count).",
    },
    Setting {
        binding: bind!(backlog, OrWord("auto", BACKLOG)),
        category: Category::Listening,
        value_name: "N",
        default: "auto",
        example: "1024",
        help: "Maximum length of each accept queue",
        long_help: "Each worker has one accept queue per address. The kernel caps the length at \
                    net.core.somaxconn; auto asks for exactly that.",
    },
    Setting {
        binding: bind!(share_port, Switch),
        category: Category::Listening,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Share the address with another server",
        long_help: "A second server on an address would silently receive half of its connections, \
                    so starting one is an error unless this is set.",
    },
    Setting {
        binding: bind!(max_connections, OrWord("auto", MAX_CONNECTIONS)),
        category: Category::Connections,
        value_name: "N",
        default: "auto",
        example: "50000",
        help: "Maximum connections per worker",
        long_help: "At the limit a worker stops accepting until a tenth of its connections have \
                    closed, or until 100 ms after the first of them closed; clients wait in the \
                    accept queue. auto: what the descriptor limit (ulimit -n) leaves after a \
                    reserve, at most 1000000.",
    },
    Setting {
        binding: bind!(idle_timeout, OrWord("off", IDLE_TIMEOUT)),
        category: Category::Connections,
        value_name: "TIME",
        default: "off",
        example: "30s",
        help: "Close connections idle for this long",
        long_help: "Bytes in either direction count as activity. A long timeout may fire up to 3 % \
                    late, so that idle workers wake rarely. off: a silent client may stay; it \
                    costs one descriptor and no buffer.",
    },
    Setting {
        binding: bind!(write_stall_timeout, OrWord("off", WRITE_STALL_TIMEOUT)),
        category: Category::Connections,
        value_name: "TIME",
        default: "1m",
        example: "20s",
        help: "Drop a client that has read nothing for this long",
        long_help: "Applies only while output is pending; reading from the connection is paused \
                    meanwhile. Output that the kernel still holds is discarded as well, also after \
                    the close, but not before 1 s. off: a stalled client keeps its buffer \
                    indefinitely.",
    },
    Setting {
        binding: bind!(linger_timeout, LINGER_TIMEOUT),
        category: Category::Connections,
        value_name: "TIME",
        default: "5s",
        example: "2s",
        help: "Time to wait for the client to close",
        long_help: "Closing with unread input resets the connection and can destroy a reply that \
                    is still in flight, so the server closes its sending side first and waits. 0s: \
                    close at once.",
    },
    Setting {
        binding: bind!(pending_output, PENDING_OUTPUT),
        category: Category::Connections,
        value_name: "SIZE",
        default: "64KiB",
        example: "16KiB",
        help: "Maximum unsent bytes per connection",
        long_help: "Also the maximum size of one read. A connection with unsent bytes is not read \
                    from, so a client that does not read cannot make the server grow. The memory \
                    is allocated only while there are unsent bytes.",
    },
    Setting {
        binding: bind!(recv_buffer, OrWord("auto", SOCKET_BUFFER)),
        category: Category::Connections,
        value_name: "SIZE",
        default: "192KiB",
        example: "auto",
        help: "Kernel receive buffer per connection (SO_RCVBUF)",
        long_help: "A fixed size bounds what a fast sender can queue in the kernel, which counts \
                    twice as much; with both buffers at their default, a client that never reads \
                    holds less than 1MiB. It also bounds throughput to about this much per round \
                    trip (192KiB at 100ms: 20 Mbit/s). auto: the kernel tunes it within \
                    net.ipv4.tcp_rmem. The kernel caps a fixed size at net.core.rmem_max.",
    },
    Setting {
        binding: bind!(send_buffer, OrWord("auto", SOCKET_BUFFER)),
        category: Category::Connections,
        value_name: "SIZE",
        default: "192KiB",
        example: "auto",
        help: "Kernel send buffer per connection (SO_SNDBUF)",
        long_help: "A fixed size bounds what a slow reader can make the kernel hold. As for the \
                    receive buffer, the kernel counts twice as much, and throughput per round trip \
                    is bounded with it. auto: the kernel tunes it within net.ipv4.tcp_wmem. The \
                    kernel caps a fixed size at net.core.wmem_max.",
    },
    Setting {
        binding: bind!(keepalive, OrWord("off", KEEPALIVE)),
        category: Category::Connections,
        value_name: "TIME",
        default: "10m",
        example: "2m",
        help: "TCP keepalive idle time",
        long_help: "Finds clients that have vanished without closing. Counted in whole seconds. \
                    off: no probes.",
    },
    sources::ALLOW,
    sources::DENY,
    sources::MAX_CONNECTIONS_PER_SOURCE,
    sources::ACCEPT_RATE_PER_SOURCE,
    sources::SOURCE_PREFIX_V4,
    sources::SOURCE_PREFIX_V6,
    proxy::PROXY_PROTOCOL,
    proxy::PROXY_TRUST,
    proxy::PROXY_HEADER_TIMEOUT,
    endpoints::AGENT,
    Setting {
        binding: bind!(accepts_per_turn, ACCEPTS_PER_TURN),
        category: Category::Turn,
        value_name: "N",
        default: "64",
        example: "16",
        help: "Connections accepted per event loop turn",
        long_help: "Bounds how long a flood of new clients can delay the connected ones. The rest \
                    are accepted in the next turn.",
    },
    Setting {
        binding: bind!(bytes_per_turn, BYTES_PER_TURN),
        category: Category::Turn,
        value_name: "SIZE",
        default: "256KiB",
        example: "1MiB",
        help: "Bytes read per connection and event loop turn",
        long_help: "Bounds how long one fast client can delay the others. Further input is read in \
                    the next turn.",
    },
    Setting {
        binding: bind!(accept_retry, ACCEPT_RETRY),
        category: Category::Turn,
        value_name: "TIME",
        default: "100ms",
        example: "500ms",
        help: "Pause before accepting again when out of resources",
        long_help: "After EMFILE, ENFILE, ENOBUFS or ENOMEM an immediate retry would fail again \
                    and waste CPU time. The pause ends early when a connection closes.",
    },
    Setting {
        binding: bind!(busy_poll, OrWord("off", BUSY_POLL)),
        category: Category::Turn,
        value_name: "TIME",
        default: "off",
        example: "50us",
        help: "Busy-poll for this long before sleeping",
        long_help: "After work the event loop keeps polling until nothing has arrived for this \
                    long: lower latency, because no wake-up is needed, at the cost of a busy CPU. \
                    Worthwhile with fewer workers than CPUs; workers and clients that share a CPU \
                    only slow each other down.",
    },
    Setting {
        binding: bind!(steer, STEER),
        category: Category::Placement,
        value_name: "HOW",
        default: "hash",
        example: "cpu",
        help: "Distribution of new connections among workers",
        long_help: "hash: by the kernel's hash of both addresses. cpu: to the worker of the CPU \
                    that received the connection's first packet (worker i belongs to the i-th \
                    available CPU, where pin places it). random: evenly, whatever the addresses \
                    are. cpu and random attach a small program to the port, which must then not be \
                    shared.",
    },
    Setting {
        binding: bind!(pin, Switch),
        category: Category::Placement,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Pin each worker to one CPU",
        long_help: "Worker i runs only on the i-th available CPU; with more workers than CPUs the \
                    numbering wraps around. status shows the CPU. Worthwhile on a dedicated \
                    machine: the scheduler cannot move a pinned worker.",
    },
    Setting {
        binding: bind!(rebalance, Switch),
        category: Category::Placement,
        value_name: "BOOL",
        default: "false",
        example: "true",
        help: "Migrate connections away from an overloaded worker",
        long_help: "Distributing connections evenly does not distribute work evenly: one worker \
                    may have all the busy ones for as long as they live. When a worker has been \
                    busier than the least busy one by rebalance_threshold for some seconds, some \
                    of its active connections migrate there, a bounded number at a time, with \
                    pauses in between. Never while a reload, an upgrade or a change of the number \
                    of workers is in progress.",
    },
    Setting {
        binding: bind!(rebalance_threshold, REBALANCE_THRESHOLD),
        category: Category::Placement,
        value_name: "PERCENT",
        default: "50",
        example: "25",
        help: "Load difference that triggers rebalancing, in percent",
        long_help: "Compares the reads and writes per second of the busiest and the least busy \
                    worker (each 16 KiB count as one more). Applies only to rebalance.",
    },
    Setting {
        binding: bind!(drain_timeout, DRAIN_TIMEOUT),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "30s",
        example: "2m",
        help: "Grace period for pending replies",
        long_help: "Connections that remain after it are cut. Give the service manager's stop \
                    timeout a little more than lame_duck and drain_timeout together.",
    },
    Setting {
        binding: bind!(lame_duck, LAME_DUCK),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "0s",
        example: "5s",
        help: "Keep accepting this long after a stop begins",
        long_help: "Gives load balancers time to notice that the server is no longer ready before \
                    it refuses connections.",
    },
    Setting {
        binding: bind!(start_timeout, START_TIMEOUT),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "10s",
        example: "30s",
        help: "Time for a new worker to become ready",
        long_help: "A worker that exceeds it is killed and counted as failed. A reload or an \
                    upgrade has the same time to read the configuration.",
    },
    Setting {
        binding: bind!(backoff_initial, BACKOFF),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "100ms",
        example: "200ms",
        help: "First delay before a failing slot is retried",
        long_help: "A worker that exits unexpectedly after a healthy time is replaced at once; \
                    only repeated failures are delayed, each twice as long as the one before.",
    },
    Setting {
        binding: bind!(backoff_max, BACKOFF),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "10s",
        example: "1m",
        help: "Maximum delay before a failing slot is retried",
        long_help: "Must not be shorter than backoff_initial.",
    },
    Setting {
        binding: bind!(backoff_reset, BACKOFF_RESET),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "1m",
        example: "5m",
        help: "Healthy time after which the failure count resets",
        long_help: "If a worker that has served this long exits unexpectedly, the count starts at \
                    one again.",
    },
    Setting {
        binding: bind!(lend_after, LEND_AFTER),
        category: Category::Lifecycle,
        value_name: "TIME",
        default: "100ms",
        example: "50ms",
        help: "Delay before a sibling serves an orphaned queue",
        long_help: "Bounds how long clients wait in the accept queue of a slot without a worker.",
    },
    Setting {
        binding: bind!(control, ControlSocket),
        category: Category::Operation,
        value_name: "PATH",
        default: "auto",
        example: "/run/uppercased.sock",
        help: "Control socket for commands such as reload and status",
        long_help: "Created with mode 0600; only the same user and root may send commands. auto: a \
                    socket named after the process ID, in RUNTIME_DIRECTORY if set, else in \
                    /run/uppercased for root, else in uppercased below XDG_RUNTIME_DIR; a server \
                    that cannot create it there runs without one. off: signals only. Changing it \
                    requires a stop.",
    },
    endpoints::ADMIN,
    Setting {
        binding: bind!(boot, BOOT),
        category: Category::Operation,
        value_name: "WHICH",
        default: "any",
        example: "all",
        help: "Workers that must start before the server serves",
        long_help: "any: the server serves as soon as the first worker does. Workers start one by \
                    one; one that cannot start is retried with delays, and the later ones wait. \
                    The server reports that it is degraded meanwhile. all: one worker that cannot \
                    start fails the whole start.",
    },
    Setting {
        binding: bind!(reload_connections, RELOAD_CONNECTIONS),
        category: Category::Operation,
        value_name: "HOW",
        default: "handover",
        example: "drain",
        help: "Treatment of connections at reload and upgrade",
        long_help: "handover: established connections migrate live to the new worker, and clients \
                    notice nothing. drain: they stay with the old worker until they end or \
                    drain_timeout passes, and are then closed gracefully.",
    },
    Setting {
        binding: bind!(bake_time, BAKE_TIME),
        category: Category::Operation,
        value_name: "TIME",
        default: "1s",
        example: "30s",
        help: "Watch the first replaced worker this long (canary)",
        long_help: "A reload or an upgrade replaces one worker, watches it for this time, and \
                    continues only if it stays healthy; otherwise it rolls back to the old binary \
                    and configuration.",
    },
    Setting {
        binding: bind!(handover_timeout, HANDOVER_TIMEOUT),
        category: Category::Operation,
        value_name: "TIME",
        default: "10s",
        example: "30s",
        help: "Maximum time without progress in a handover",
        long_help: "Counts from the last step of either side; there is no limit while both make \
                    progress. The worker that owes the next step is then killed. If it is the new \
                    one, everything rolls back to the old one; if it is the old one, migrated \
                    connections stay with the new one. Either way the operation fails.",
    },
    Setting {
        binding: bind!(handshake_timeout, HANDSHAKE_TIMEOUT),
        category: Category::Operation,
        value_name: "TIME",
        default: "3s",
        example: "8s",
        help: "Time for handshakes before a listener is closed",
        long_help: "When the number of workers shrinks, new connections are steered away from the \
                    sockets that will close; handshakes in progress on them have this long to \
                    finish. A lost reply is retransmitted after 1s and again after 3s.",
    },
    Setting {
        binding: bind!(hang_timeout, OrWord("off", HANG_TIMEOUT)),
        category: Category::Operation,
        value_name: "TIME",
        default: "10s",
        example: "2s",
        help: "Replace a worker stuck for this long",
        long_help: "The supervisor watches a counter that every turn of a worker's event loop \
                    advances; it costs the worker nothing. off: a stalled worker stays.",
    },
    sandbox::SANDBOX,
    sandbox::USER,
    sandbox::GROUP,
    logging::LOG_LEVEL,
    logging::LOG_FORMAT,
];

#[cfg(test)]
mod tests;
