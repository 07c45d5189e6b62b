//! The one table of settings: the source of [`Config`], flags, environment variables, file keys,
//! defaults, bounds, help and the reference in `docs/configuration.md`.
//!
//! Invariants: every default and every example is accepted by its own row; bounds are defined here
//! only, and the texts quote them. Must not: decide between sources or check one setting against
//! another (`resolve` does).

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use uppercased_ctl::limits::{WORKERS_MAX, WORKERS_MIN};

use super::admin::{Admin, AdminAddr, Agent};
use super::limits::{DRAIN_TIMEOUT_MAX, SCRATCH_BYTES};
use super::listen::Listen;
use super::networks::Networks;
use super::proxy::{HeaderListeners, ProxyListeners};
use super::sandbox::{ACCOUNT, Account, Sandbox};
use super::types::{Boot, Control, ListenAddr, LogFormat, LogLevel, ReloadConnections, Steer};
use super::value::{Choice, ControlSocket, Count, Grammar, OrWord, PerCpu, Size, Span, Switch};

#[macro_use]
mod setting;

/// One setting: a row of the table.
pub type Setting = setting::Row<Config>;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

#[expect(clippy::cast_possible_truncation, reason = "64 KiB")]
const SCRATCH: u32 = SCRATCH_BYTES as u32;

/// Worker processes.
pub const WORKERS: Count<u16> = Count::new(WORKERS_MIN, WORKERS_MAX);

// A row: field, type and grammar; placeholder of the value in help (`TIME`, `SIZE`, `N`), default
// and a useful other value; why it cannot change while the server runs, if so; a line of help
// without a full stop; purpose, and what to consider when changing it.
settings! {
    "Listening" {
        /// Addresses to listen on; at least one.
        listen: Vec<ListenAddr> = Listen;
            "ADDR", default "0.0.0.0:9999", example "127.0.0.1:8080",
            fixed because "each worker's sockets are bound once, so that no client in an accept queue is lost";
            "Address to listen on; may be repeated"
            "A host name stands for all its addresses. It is resolved at the start, and again at \
             each reload and upgrade by a child of the server, within start_timeout. If the name \
             has IPv4 addresses, IPv6 addresses that this machine lacks are ignored. [::]:PORT \
             is IPv6 only; *:PORT serves IPv6 and IPv4 on one socket (IPv4 alone where IPv6 is \
             unavailable); PORT alone means every IPv4 address. Port 0 asks the kernel for a \
             free port, which all workers share. Overlapping addresses are refused, because the \
             more specific one would receive every connection of the other."
        /// Number of slots, each with one worker process.
        workers: u16 = PerCpu(WORKERS);
            "N", default "auto", example "4";
            "Number of worker processes"
            "Each worker is one process with one thread and its own listening socket; the kernel \
             distributes new connections among them. auto: one per available CPU (affinity and \
             cgroup quota count); if that number changes while the server runs, it adds or removes \
             workers within seconds, without losing a connection. A number set by uppercased \
             scale stays."
        /// Requested length of each accept queue; `None`: the system's `net.core.somaxconn`.
        backlog: Option<u32> = OrWord("auto", Count::new(1, 65_535));
            "N", default "auto", example "1024";
            "Maximum length of each accept queue"
            "Each worker has one accept queue per address. The kernel caps the length at \
             net.core.somaxconn; auto asks for exactly that."
        /// Whether to join other servers on the same address instead of refusing to start.
        share_port: bool = Switch;
            "BOOL", default "false", example "true",
            fixed because "it is decided when the port is bound";
            "Share the address with another server"
            "A second server on an address would silently receive half of its connections, so \
             starting one is an error unless this is set."
    }
    "Connections" {
        /// Connections per worker; `None`: `RLIMIT_NOFILE` less the reserve.
        max_connections: Option<u32> = OrWord("auto", Count::new(1, 10_000_000));
            "N", default "auto", example "50000";
            "Maximum connections per worker"
            "At the limit a worker stops accepting until a tenth of its connections have closed, \
             or until 100 ms after the first of them closed; clients wait in the accept queue. \
             auto: what the descriptor limit (ulimit -n) leaves after a reserve, at most \
             1000000."
        /// Idle timeout of a connection; `None`: none.
        // Below 10 ms it would disconnect clients on intercontinental paths.
        idle_timeout: Option<Duration> = OrWord("off", Span::new(10 * MS, 30 * 24 * HOUR));
            "TIME", default "off", example "30s";
            "Close connections idle for this long"
            "Bytes in either direction count as activity. A long timeout may fire up to 3 % \
             late, so that idle workers wake rarely. off: a silent client may stay; it costs one \
             descriptor and no buffer."
        /// Age at which a connection is closed, give or take a tenth; `None`: none.
        max_connection_age: Option<Duration> = OrWord("off", Span::new(SECOND, 30 * 24 * HOUR));
            "TIME", default "off", example "1h";
            "Close connections gracefully at this age"
            "Makes long-lived clients reconnect, so that they spread over the machines behind a \
             load balancer. The age counts from the accept, also across migrations. Up to 10 % \
             are added or subtracted, different for each connection, so that those opened \
             together do not end together. Received input is answered first; then the server \
             ends its stream, and waits for the client as linger_timeout allows. A client that \
             does not pause sending is served for another second; what it sends after that is \
             not answered, so it finds the end of the stream before its last replies. off: no \
             limit."
        /// Timeout of a peer that reads none of its pending output; `None`: none.
        write_stall_timeout: Option<Duration> = OrWord("off", Span::new(10 * MS, 30 * 24 * HOUR));
            "TIME", default "1m", example "20s";
            "Drop a client that has read nothing for this long"
            "Applies only while output is pending; reading from the connection is paused \
             meanwhile. Output that the kernel still holds is discarded as well, also after the \
             close, but not before 1 s. off: a stalled client keeps its buffer indefinitely."
        /// Time that a half-closed connection waits for its peer to close.
        linger_timeout: Duration = Span::new(Duration::ZERO, 10 * MINUTE);
            "TIME", default "5s", example "2s";
            "Time to wait for the client to close"
            "Closing with unread input resets the connection and can destroy a reply that is \
             still in flight, so the server closes its sending side first and waits. 0s: close \
             at once."
        /// Maximum unsent bytes of a connection; also the maximum of one read.
        pending_output: u32 = Size::new(4 * KIB, SCRATCH);
            "SIZE", default "64KiB", example "16KiB";
            "Maximum unsent bytes per connection"
            "Also the maximum size of one read. A connection with unsent bytes is not read from, \
             so a client that does not read cannot make the server grow. The memory is allocated \
             only while there are unsent bytes."
        /// `SO_RCVBUF` of each connection in bytes; `None`: the kernel's autotuning.
        recv_buffer: Option<u32> = OrWord("auto", Size::new(4 * KIB, 16 * MIB));
            "SIZE", default "192KiB", example "auto",
            fixed because "the kernel does not tune a socket again whose buffer size was fixed";
            "Kernel receive buffer per connection (SO_RCVBUF)"
            "A fixed size bounds what a fast sender can queue in the kernel, which counts twice \
             as much; with both buffers at their default, a client that never reads holds less \
             than 1MiB. It also bounds throughput to about this much per round trip (192KiB at \
             100ms: 20 Mbit/s). auto: the kernel tunes it within net.ipv4.tcp_rmem. The kernel \
             caps a fixed size at net.core.rmem_max."
        /// `SO_SNDBUF` of each connection in bytes; `None`: the kernel's autotuning.
        send_buffer: Option<u32> = OrWord("auto", Size::new(4 * KIB, 16 * MIB));
            "SIZE", default "192KiB", example "auto",
            fixed because "the kernel does not tune a socket again whose buffer size was fixed";
            "Kernel send buffer per connection (SO_SNDBUF)"
            "A fixed size bounds what a slow reader can make the kernel hold. As for the receive \
             buffer, the kernel counts twice as much, and throughput per round trip is bounded \
             with it. auto: the kernel tunes it within net.ipv4.tcp_wmem. The kernel caps a \
             fixed size at net.core.wmem_max."
        /// Idle time before TCP keepalive probes a silent peer; `None`: no probes.
        // The kernel accepts whole seconds up to 32767.
        keepalive: Option<Duration> = OrWord("off", Span::new(SECOND, 9 * HOUR));
            "TIME", default "10m", example "2m";
            "TCP keepalive idle time"
            "Finds clients that have vanished without closing. Counted in whole seconds. off: no \
             probes."
    }
    "Access and source limits" {
        /// Networks whose peers are served; empty: all.
        allow: Vec<IpNet> = Networks;
            "CIDR", default "none", example "10.0.0.0/8";
            "Serve only these networks; may be repeated"
            "A connection is served if its peer is in one of these networks and in none of deny. \
             Others are reset as soon as they are accepted, and counted. none: every peer that \
             is not denied is served."
        /// Networks whose peers are refused, overriding `allow`.
        deny: Vec<IpNet> = Networks;
            "CIDR", default "none", example "192.0.2.0/24";
            "Refuse these networks; may be repeated"
            "Takes precedence over allow. Connections from these networks are reset as soon as \
             they are accepted, and counted. A packet filter does the same before a connection \
             costs anything; this setting needs no privileges."
        /// Connections per source and worker; `None`: unlimited.
        max_connections_per_source: Option<u32> = OrWord("off", Count::new(1, 10_000_000));
            "N", default "off", example "100";
            "Maximum connections per source and worker"
            "Further connections are reset, and counted. Each worker counts only its own, so the \
             whole server holds up to this many times the number of workers; the kernel \
             distributes a source's connections among the workers. Migrated connections count, \
             and are never refused. source_prefix_v4 and source_prefix_v6 define what a source \
             is."
        /// Connections per second and worker accepted from one source, and the burst; `None`:
        /// unlimited.
        accept_rate_per_source: Option<u32> = OrWord("off", Count::new(1, 1_000_000));
            "N", default "off", example "50";
            "Connections per second accepted from one source"
            "A source that has been quiet for a second may open this many at once; further ones \
             are reset, and counted. Each worker counts separately, so the whole server accepts \
             up to this many times the number of workers."
        /// Prefix length of an IPv4 source.
        source_prefix_v4: u8 = Count::new(1, 32);
            "BITS", default "32", example "24";
            "Prefix length that identifies an IPv4 source"
            "32: every address is a source of its own. 24: all of 192.0.2.0/24 share the limits \
             of one source."
        /// Prefix length of an IPv6 source.
        source_prefix_v6: u8 = Count::new(1, 128);
            "BITS", default "64", example "56";
            "Prefix length that identifies an IPv6 source"
            "A host usually has a whole /64 to choose from, so limits on single IPv6 addresses \
             would limit nothing."
    }
    "Load balancers" {
        /// The listeners on which a PROXY header must precede a client's bytes.
        proxy_protocol: ProxyListeners = HeaderListeners;
            "WHERE", default "none", example "all";
            "Listeners that require a PROXY header"
            "May be repeated. Behind a load balancer the header (PROXY protocol, version 1 or 2) \
             names the client: allow, deny and the limits per source then apply to the client, \
             and log lines name it. On these listeners every connection must begin with a \
             header; others are reset, and counted. On other listeners a header is ordinary \
             client data."
        /// Networks of the proxies that may send the header.
        proxy_trust: Vec<IpNet> = Networks;
            "CIDR", default "127.0.0.0/8,::1/128", example "10.0.0.0/28";
            "Networks that may send a PROXY header"
            "May be repeated. A peer in these networks can claim any client address, so list the \
             load balancers and nothing else. On a listener that requires a header, connections \
             from other networks are reset as soon as they are accepted, and counted."
        /// Timeout of the header, from the accept on.
        // A proxy sends it with its first packet; a lost one is retransmitted after a second.
        proxy_header_timeout: Duration = Span::new(10 * MS, 10 * MINUTE);
            "TIME", default "5s", example "2s";
            "Timeout for the PROXY header"
            "Counts from the accept, even if a part of the header has arrived. A connection that \
             exceeds it is reset, and counted."
        /// Address of the agent-check for load balancers; `None`: none.
        agent: Option<SocketAddr> = OrWord("off", Agent);
            "ADDR", default "off", example "10.0.0.1:9101",
            fixed because "it is bound once, so that no load balancer finds it gone";
            "Address of the HAProxy agent-check"
            "Each connection receives one line: `ready up 75%` with a weight by load, `drain` \
             while the server stops, `drain` or `maint` if an operator has set it (uppercased \
             rotation), `down` while the server should receive no clients. The agent reports \
             nothing else and accepts no commands; still, allow only the load balancers to reach \
             it. PORT alone means every IPv4 address. Changing it requires a stop."
    }
    "Event loop" {
        /// Connections accepted from one queue per event loop iteration.
        accepts_per_turn: u32 = Count::new(1, 4096);
            "N", default "64", example "16";
            "Connections accepted per event loop turn"
            "Bounds how long a flood of new clients can delay the connected ones. The rest are \
             accepted in the next turn."
        /// Bytes read from one connection per event loop iteration.
        bytes_per_turn: u32 = Size::new(4 * KIB, 64 * MIB);
            "SIZE", default "256KiB", example "1MiB";
            "Bytes read per connection and event loop turn"
            "Bounds how long one fast client can delay the others. Further input is read in the \
             next turn."
        /// Pause before accepting again after the system ran out of descriptors or memory.
        accept_retry: Duration = Span::new(MS, MINUTE);
            "TIME", default "100ms", example "500ms";
            "Pause before accepting again when out of resources"
            "After EMFILE, ENFILE, ENOBUFS or ENOMEM an immediate retry would fail again and \
             waste CPU time. The pause ends early when a connection closes."
        /// How long a worker busy-polls before it sleeps; `None`: not at all.
        // Below 10 us it would end before a local peer can answer; beyond a second it permanently
        // occupies a CPU.
        busy_poll: Option<Duration> = OrWord("off", Span::new(MS / 100, SECOND));
            "TIME", default "off", example "50us";
            "Busy-poll for this long before sleeping"
            "After work the event loop keeps polling until nothing has arrived for this long: \
             lower latency, because no wake-up is needed, at the cost of a busy CPU. Worthwhile \
             with fewer workers than CPUs; workers and clients that share a CPU only slow each \
             other down."
    }
    "Placement of connections and workers" {
        /// How new connections are distributed over the workers.
        steer: Steer = Choice::new();
            "HOW", default "hash", example "cpu";
            "Distribution of new connections among workers"
            "hash: by the kernel's hash of both addresses. cpu: to the worker of the CPU that \
             received the connection's first packet (worker i belongs to the i-th available CPU, \
             where pin places it). random: evenly, whatever the addresses are. cpu and random \
             attach a small program to the port, which must then not be shared."
        /// Whether each worker is pinned to one CPU.
        pin: bool = Switch;
            "BOOL", default "false", example "true";
            "Pin each worker to one CPU"
            "Worker i runs only on the i-th available CPU; with more workers than CPUs the \
             numbering wraps around. status shows the CPU. Worthwhile on a dedicated machine: \
             the scheduler cannot move a pinned worker."
        /// Whether connections migrate from an overloaded worker to the least loaded worker.
        rebalance: bool = Switch;
            "BOOL", default "false", example "true";
            "Migrate connections away from an overloaded worker"
            "Distributing connections evenly does not distribute work evenly: one worker may \
             have all the busy ones for as long as they live. When a worker has been busier than \
             the least busy one by rebalance_threshold for some seconds, some of its active \
             connections migrate there, a bounded number at a time, with pauses in between. \
             Never while a reload, an upgrade or a change of the number of workers is in \
             progress."
        /// Minimum load difference for a migration, in percent.
        // Below 10 it would react to noise.
        rebalance_threshold: u16 = Count::new(10, 1000);
            "PERCENT", default "50", example "25";
            "Load difference that triggers rebalancing, in percent"
            "Compares the reads and writes per second of the busiest and the least busy worker \
             (each 16 KiB count as one more). Applies only to rebalance."
    }
    "Starting and stopping" {
        /// Grace period for pending replies of a stopping worker.
        drain_timeout: Duration = Span::new(Duration::ZERO, DRAIN_TIMEOUT_MAX);
            "TIME", default "30s", example "2m";
            "Grace period for pending replies"
            "Connections that remain after it are cut. Give the service manager's stop timeout a \
             little more than lame_duck and drain_timeout together."
        /// Time for which a stopping worker continues to accept.
        lame_duck: Duration = Span::new(Duration::ZERO, HOUR);
            "TIME", default "0s", example "5s";
            "Keep accepting this long after a stop begins"
            "Gives load balancers time to notice that the server is no longer ready before it \
             refuses connections."
        /// Timeout for a new worker to report Ready.
        start_timeout: Duration = Span::new(10 * MS, 10 * MINUTE);
            "TIME", default "10s", example "30s";
            "Time for a new worker to become ready"
            "A worker that exceeds it is killed and counted as failed. A reload or an upgrade \
             has the same time to read the configuration."
        /// First pause before a failing slot is tried again.
        backoff_initial: Duration = Span::new(MS, HOUR);
            "TIME", default "100ms", example "200ms";
            "First delay before a failing slot is retried"
            "A worker that exits unexpectedly after a healthy time is replaced at once; only \
             repeated failures are delayed, each twice as long as the one before."
        /// Maximum of this pause.
        backoff_max: Duration = Span::new(MS, HOUR);
            "TIME", default "10s", example "1m";
            "Maximum delay before a failing slot is retried"
            "Must not be shorter than backoff_initial."
        /// Healthy time after which a slot's failure count resets.
        backoff_reset: Duration = Span::new(MS, 24 * HOUR);
            "TIME", default "1m", example "5m";
            "Healthy time after which the failure count resets"
            "If a worker that has served this long exits unexpectedly, the count starts at one \
             again."
        /// Time without a worker before a sibling serves a slot's queue.
        lend_after: Duration = Span::new(Duration::ZERO, MINUTE);
            "TIME", default "100ms", example "50ms";
            "Delay before a sibling serves an orphaned queue"
            "Bounds how long clients wait in the accept queue of a slot without a worker."
    }
    "Operating a running server" {
        /// The control socket.
        control: Control = ControlSocket;
            "PATH", default "auto", example "/run/uppercased.sock",
            fixed because "clients would not find the socket at its new path";
            "Control socket for commands such as reload and status"
            "Created with mode 0600; only the same user and root may send commands. auto: a \
             socket named after the process ID, in RUNTIME_DIRECTORY if set, else in \
             /run/uppercased for root, else in uppercased below XDG_RUNTIME_DIR; a server that \
             cannot create it there runs without one. off: signals only. Changing it requires a \
             stop."
        /// Address of health and metrics over HTTP; `None`: none.
        admin: Option<AdminAddr> = OrWord("off", Admin);
            "ADDR", default "off", example "127.0.0.1:9900",
            fixed because "it is bound once, so that no health check finds it gone";
            "Address for health checks and metrics over HTTP"
            "Serves /metrics (OpenMetrics), /healthz, /readyz and /status from a separate \
             process, which is sandboxed like a worker. PORT alone means 127.0.0.1; a path is \
             that of a Unix socket, which is created with mode 0600. An address that other \
             machines reach requires admin_allow. Changing it requires a stop."
        /// Networks beside this machine that may read the admin endpoint.
        admin_allow: Vec<IpNet> = Networks;
            "CIDR", default "none", example "10.0.0.0/8";
            "Networks that may read the admin endpoint"
            "May be repeated. Clients on this machine (loopback) may always read; others get 403, \
             and are counted. The pages are read-only, and not encrypted: list the networks of \
             Prometheus and of the health checks. Applies to admin with an address, not to agent."
        /// How many workers must start for the server to serve.
        boot: Boot = Choice::new();
            "WHICH", default "any", example "all";
            "Workers that must start before the server serves"
            "any: the server serves as soon as the first worker does. Workers start one by one; \
             one that cannot start is retried with delays, and the later ones wait. The server \
             reports that it is degraded meanwhile. all: one worker that cannot start fails the \
             whole start."
        /// Treatment of established connections by a rolling restart.
        reload_connections: ReloadConnections = Choice::new();
            "HOW", default "handover", example "drain";
            "Treatment of connections at reload and upgrade"
            "handover: established connections migrate live to the new worker, and clients \
             notice nothing. drain: they stay with the old worker until they end or \
             drain_timeout passes, and are then closed gracefully."
        /// How long the first replaced worker must serve before the others are replaced.
        bake_time: Duration = Span::new(Duration::ZERO, HOUR);
            "TIME", default "1s", example "30s";
            "Watch the first replaced worker this long (canary)"
            "A reload or an upgrade replaces one worker, watches it for this time, and continues \
             only if it stays healthy; otherwise it rolls back to the old binary and \
             configuration."
        /// Timeout for handing over a worker's connections.
        handover_timeout: Duration = Span::new(10 * MS, 10 * MINUTE);
            "TIME", default "10s", example "30s";
            "Maximum time without progress in a handover"
            "Counts from the last step of either side; there is no limit while both make \
             progress. The worker that owes the next step is then killed. If it is the new one, \
             everything rolls back to the old one; if it is the old one, migrated connections \
             stay with the new one. Either way the operation fails."
        /// Time for handshakes already begun before a listener is closed.
        // A lost reply is retransmitted after 1, 3 and 7 seconds; more than a minute has no
        // benefit.
        handshake_timeout: Duration = Span::new(Duration::ZERO, MINUTE);
            "TIME", default "3s", example "8s";
            "Time for handshakes before a listener is closed"
            "When the number of workers shrinks, new connections are steered away from the \
             sockets that will close; handshakes in progress on them have this long to finish. A \
             lost reply is retransmitted after 1s and again after 3s."
        /// A worker whose loop made no iteration for this long is replaced; `None`: never.
        // Below 200 ms it would end workers that merely wait on a busy machine.
        hang_timeout: Option<Duration> = OrWord("off", Span::new(200 * MS, HOUR));
            "TIME", default "2s", example "10s";
            "Replace the process of a worker stuck for this long"
            "The supervisor watches a counter that every turn of a worker's event loop advances; \
             it costs the worker nothing. The worker's keeper continues its connections, so that \
             a worker that merely waited for a CPU loses none. With crash_rescue=false it loses \
             all of them: raise this on a busy machine. off: a stalled worker stays."
        /// Whether each worker has a keeper, which continues its connections if it dies.
        crash_rescue: bool = Switch;
            "BOOL", default "true", example "false";
            "Continue a dead worker's connections"
            "Each worker has a second process, its keeper, which shares its descriptors and \
             sleeps. If the worker's process dies, the keeper becomes the worker and continues \
             every connection where it was. false: a dead worker's connections are lost; saves \
             a process per worker, and 1 to 3 % of the CPU time of a busy one."
        /// Time for which workers serve after the supervisor has exited.
        orphan_timeout: Duration = Span::new(Duration::ZERO, HOUR);
            "TIME", default "30s", example "5m";
            "Serve this long after the supervisor has died"
            "Workers whose supervisor was killed go on serving, and accepting, for this long; \
             then, or at SIGTERM, they stop within drain_timeout. A server that starts on the same \
             addresses meanwhile adopts them. Under systemd they stop as soon as it will not start \
             the service again. 0s: they stop at once."
        /// Whether to adopt the workers of a supervisor that has died.
        adopt: bool = Switch;
            "BOOL", default "true", example "false";
            "Adopt workers whose supervisor has died"
            "A start finds the workers that a killed supervisor has left on the same addresses, \
             goes on with them, and then replaces them like a reload: no connection is lost. It \
             finds them in a directory beside the control socket, so control must be the same, \
             and not off. false: it stops them first."
        /// Whether workers are sandboxed before they serve.
        sandbox: Sandbox = Choice::new();
            "HOW", default "auto", example "required";
            "Sandbox workers"
            "No new privileges, no capabilities, no core dumps, no files, no new sockets, and \
             only the system calls that serving needs; the same for the admin process. auto: as \
             much as the kernel supports; status shows the layers in force. required: a worker \
             that lacks a layer does not start."
        /// The user that workers run as; `None`: that of the supervisor.
        user: Option<Account> = ACCOUNT;
            "NAME", default "unchanged", example "nobody";
            "User to run workers as"
            "Requires root. The supervisor stays root: it binds, forks and signals. Workers also \
             drop all supplementary groups. The admin process does the same."
        /// The group that workers run as; `None`: the user's primary group.
        group: Option<Account> = ACCOUNT;
            "NAME", default "unchanged", example "nogroup";
            "Group to run workers as"
            "unchanged: the primary group of user, if that is set."
    }
    "Logging" {
        /// Minimum level of log lines.
        log_level: LogLevel = Choice::new();
            "LEVEL", default "info", example "debug";
            "Minimum log level"
            "info: events of the server, none of single connections. debug: connections as well. \
             trace: bytes as well, escaped and truncated; not for production."
        /// Format of log lines.
        log_format: LogFormat = Choice::new();
            "FORMAT", default "human", example "json";
            "Log format"
            "human: time, level, message and key=value pairs, in colour on a terminal unless \
             NO_COLOR is set. json: one object per line. otel: the same with the members of an \
             OpenTelemetry log record. Log lines go to standard error; they \
             never wait for a slow reader, and lost lines are counted."
    }
}

impl Setting {
    /// Returns the setting whose key is `key`.
    #[must_use]
    pub fn find(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}

impl Config {
    /// Returns whether the listener at `index` of [`Config::listen`] requires a PROXY header.
    #[must_use]
    pub fn requires_header(&self, index: usize) -> bool {
        match &self.proxy_protocol {
            ProxyListeners::None => false,
            ProxyListeners::All => true,
            ProxyListeners::These(asking) => {
                let listener = self.listen.get(index);
                listener.is_some_and(|listener| asking.contains(listener))
            }
        }
    }
}

#[cfg(test)]
mod tests;
