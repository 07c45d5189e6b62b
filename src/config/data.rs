//! The complete configuration as plain data.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::admin::AdminAddr;
use super::proxy::ProxyListeners;
use super::sandbox::{Account, Sandbox};
use super::types::{Boot, Control, ListenAddr, LogFormat, LogLevel, ReloadConnections, Steer};

/// All settings, validated.
///
/// Sent to the workers as JSON. During an upgrade both ends may be of different versions, so an
/// unknown field is skipped and a missing one has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Addresses to listen on; at least one.
    pub listen: Vec<ListenAddr>,
    /// Number of slots, each with one worker process.
    pub workers: u16,
    /// Requested length of each accept queue; `None`: the system's `net.core.somaxconn`.
    pub backlog: Option<u32>,
    /// Join other servers on the same address instead of refusing to start beside them.
    pub share_port: bool,
    /// Connections per worker; `None`: what `RLIMIT_NOFILE` leaves after the reserve.
    pub max_connections: Option<u32>,
    /// Idle timeout of a connection; `None`: none.
    pub idle_timeout: Option<Duration>,
    /// Timeout of a peer that reads none of its pending output; `None`: none.
    pub write_stall_timeout: Option<Duration>,
    /// Time that a half-closed connection waits for its peer to close.
    pub linger_timeout: Duration,
    /// Maximum unsent bytes of a connection; also the maximum of one read.
    pub pending_output: u32,
    /// Networks whose peers are served; empty: all.
    pub allow: Vec<IpNet>,
    /// Networks whose peers are refused, overriding `allow`.
    pub deny: Vec<IpNet>,
    /// Connections per source and worker; `None`: unlimited.
    pub max_connections_per_source: Option<u32>,
    /// Connections per second and worker accepted from one source, and the burst; `None`:
    /// unlimited.
    pub accept_rate_per_source: Option<u32>,
    /// Prefix length of an IPv4 source.
    pub source_prefix_v4: u8,
    /// Prefix length of an IPv6 source.
    pub source_prefix_v6: u8,
    /// The listeners on which a PROXY header must precede a client's bytes.
    pub proxy_protocol: ProxyListeners,
    /// Networks of the proxies that may send the header.
    pub proxy_trust: Vec<IpNet>,
    /// Timeout of the header, from the accept on.
    pub proxy_header_timeout: Duration,
    /// Address of the agent-check for load balancers; `None`: none.
    pub agent: Option<SocketAddr>,
    /// Connections accepted from one queue per event loop iteration.
    pub accepts_per_turn: u32,
    /// Bytes read from one connection per event loop iteration.
    pub bytes_per_turn: u32,
    /// `SO_RCVBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub recv_buffer: Option<u32>,
    /// `SO_SNDBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub send_buffer: Option<u32>,
    /// Idle time before TCP keepalive probes a silent peer; `None`: no probes.
    pub keepalive: Option<Duration>,
    /// Pause before accepting again after the system ran out of descriptors or memory.
    pub accept_retry: Duration,
    /// How long a worker busy-polls before it sleeps; `None`: it sleeps at once.
    pub busy_poll: Option<Duration>,
    /// How new connections are distributed over the workers.
    pub steer: Steer,
    /// Whether each worker is pinned to one CPU.
    pub pin: bool,
    /// Whether connections migrate from an overloaded worker to the least loaded one.
    pub rebalance: bool,
    /// Minimum load difference for that, in percent.
    pub rebalance_threshold: u16,
    /// Grace period for pending replies of a stopping worker.
    pub drain_timeout: Duration,
    /// Time for which a stopping worker goes on accepting first.
    pub lame_duck: Duration,
    /// Timeout for a new worker to report Ready.
    pub start_timeout: Duration,
    /// First pause before a failing slot is tried again.
    pub backoff_initial: Duration,
    /// Maximum of this pause.
    pub backoff_max: Duration,
    /// Healthy time after which a slot's failure count resets.
    pub backoff_reset: Duration,
    /// Time without a worker before a sibling serves a slot's queue.
    pub lend_after: Duration,
    /// The control socket.
    pub control: Control,
    /// Address of health and metrics over HTTP; `None`: none.
    pub admin: Option<AdminAddr>,
    /// Treatment of established connections by a rolling restart.
    pub reload_connections: ReloadConnections,
    /// How many workers must start for the server to serve.
    pub boot: Boot,
    /// How long the first replaced worker must serve before the others are replaced.
    pub bake_time: Duration,
    /// Timeout for handing over a worker's connections.
    pub handover_timeout: Duration,
    /// Time for handshakes already begun before a listener is closed.
    pub handshake_timeout: Duration,
    /// A worker whose loop made no iteration for this long is replaced; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// Whether workers are sandboxed before they serve.
    pub sandbox: Sandbox,
    /// The user that workers run as; `None`: that of the supervisor.
    pub user: Option<Account>,
    /// The group that workers run as; `None`: the user's primary group.
    pub group: Option<Account>,
    /// Minimum level of log lines.
    pub log_level: LogLevel,
    /// Format of log lines.
    pub log_format: LogFormat,
}

impl Config {
    /// Returns whether the listener at `index` of [`Config::listen`] requires a PROXY header.
    #[must_use]
    pub fn asks_for_header(&self, index: usize) -> bool {
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

/// The initial value in `resolve`, which then sets every field.
pub(super) const BLANK: Config = Config {
    listen: Vec::new(),
    workers: 0,
    backlog: None,
    share_port: false,
    max_connections: None,
    idle_timeout: None,
    write_stall_timeout: None,
    linger_timeout: Duration::ZERO,
    pending_output: 0,
    allow: Vec::new(),
    deny: Vec::new(),
    max_connections_per_source: None,
    accept_rate_per_source: None,
    source_prefix_v4: 0,
    source_prefix_v6: 0,
    proxy_protocol: ProxyListeners::None,
    proxy_trust: Vec::new(),
    proxy_header_timeout: Duration::ZERO,
    agent: None,
    accepts_per_turn: 0,
    bytes_per_turn: 0,
    recv_buffer: None,
    send_buffer: None,
    keepalive: None,
    accept_retry: Duration::ZERO,
    busy_poll: None,
    steer: Steer::Hash,
    pin: false,
    rebalance: false,
    rebalance_threshold: 0,
    drain_timeout: Duration::ZERO,
    lame_duck: Duration::ZERO,
    start_timeout: Duration::ZERO,
    backoff_initial: Duration::ZERO,
    backoff_max: Duration::ZERO,
    backoff_reset: Duration::ZERO,
    lend_after: Duration::ZERO,
    control: Control::Off,
    admin: None,
    reload_connections: ReloadConnections::Handover,
    boot: Boot::Any,
    bake_time: Duration::ZERO,
    handover_timeout: Duration::ZERO,
    handshake_timeout: Duration::ZERO,
    hang_timeout: None,
    sandbox: Sandbox::Off,
    user: None,
    group: None,
    log_level: LogLevel::Info,
    log_format: LogFormat::Human,
};
