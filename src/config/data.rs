//! The complete configuration as plain data.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::admin::AdminAddr;
use super::proxy::ProxyListeners;
use super::sandbox::{Account, Sandbox};
use super::types::{Boot, Control, ListenAddr, LogFormat, LogLevel, RestartConnections, Steer};

/// Everything that can be set, validated.
///
/// It travels to the workers as JSON. Both ends may be of different versions for the time of an
/// upgrade, so a field that is unknown is skipped and one that is missing has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Addresses to listen on; at least one.
    pub listen: Vec<ListenAddr>,
    /// Number of slots, each with one worker process.
    pub workers: u16,
    /// Length asked for each accept queue; `None`: the system's `net.core.somaxconn`.
    pub backlog: Option<u32>,
    /// Join other servers on the same address instead of refusing to start beside them.
    pub share_port: bool,
    /// Connections a worker; `None`: what `RLIMIT_NOFILE` leaves after the reserve.
    pub max_connections: Option<u32>,
    /// Close a connection on which nothing moved for this long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Cut a peer that took none of its pending output for this long; `None`: never.
    pub write_stall_timeout: Option<Duration>,
    /// How long a half-closed connection waits for its peer to close.
    pub linger_timeout: Duration,
    /// Bytes of unsent output a connection may hold; also the most that one read takes.
    pub pending_output: u32,
    /// Networks whose peers are served; empty: all.
    pub allow: Vec<IpNet>,
    /// Networks whose peers are refused, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// Connections of one source that a worker holds; `None`: as many as of all.
    pub max_connections_per_source: Option<u32>,
    /// Connections a second that a worker takes from one source, and the most at once; `None`: all.
    pub accept_rate_per_source: Option<u32>,
    /// Leading bits of an IPv4 address that make a source.
    pub source_prefix_v4: u8,
    /// Leading bits of an IPv6 address that make a source.
    pub source_prefix_v6: u8,
    /// The listeners on which a PROXY header must precede a client's bytes.
    pub proxy_protocol: ProxyListeners,
    /// Networks of the proxies that may send it.
    pub proxy_trust: Vec<IpNet>,
    /// How long it may take to come, from the accept on.
    pub proxy_header_timeout: Duration,
    /// Where load balancers may ask how the server is; `None`: nowhere.
    pub agent: Option<SocketAddr>,
    /// Connections taken from one accept queue in one turn of the loop.
    pub accepts_per_turn: u32,
    /// Bytes read from one connection in one turn of the loop.
    pub bytes_per_turn: u32,
    /// `SO_RCVBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub recv_buffer: Option<u32>,
    /// `SO_SNDBUF` of each connection in bytes; `None`: the kernel's autotuning.
    pub send_buffer: Option<u32>,
    /// Idle time before TCP keepalive probes a silent peer; `None`: no probes.
    pub keepalive: Option<Duration>,
    /// How long accepting rests after the system ran out of descriptors or memory.
    pub accept_retry: Duration,
    /// How long a worker polls for more work before it sleeps; `None`: it sleeps at once.
    pub busy_poll: Option<Duration>,
    /// How new connections are spread over the workers.
    pub steer: Steer,
    /// Whether each worker stays on one CPU.
    pub pin: bool,
    /// Whether connections move from a worker that is too busy to the one that is least so.
    pub rebalance: bool,
    /// Percent by which the one must be busier than the other.
    pub rebalance_threshold: u16,
    /// How long a stopping worker may finish what it owes.
    pub drain_timeout: Duration,
    /// How long a stopping worker goes on accepting first.
    pub lame_duck: Duration,
    /// How long a new worker may take to report Ready.
    pub start_timeout: Duration,
    /// First pause before a slot that keeps failing is tried again.
    pub backoff_initial: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// A worker that served this long wipes its slot's record of failures.
    pub backoff_reset: Duration,
    /// How long a slot may be without a worker before a sibling serves its queue.
    pub lend_after: Duration,
    /// Where the running server takes orders.
    pub control: Control,
    /// Where health and metrics are shown over HTTP; `None`: nowhere.
    pub admin: Option<AdminAddr>,
    /// What a rolling restart does with established connections.
    pub restart_connections: RestartConnections,
    /// How many workers must start for the server to serve.
    pub boot: Boot,
    /// How long the first renewed worker must serve before the others are renewed.
    pub bake_time: Duration,
    /// How long a worker may take to hand its connections over.
    pub handover_timeout: Duration,
    /// How long handshakes already begun have before a listener is closed.
    pub handshake_timeout: Duration,
    /// A worker whose loop made no turn for this long is replaced; `None`: never.
    pub hang_timeout: Option<Duration>,
    /// Whether workers lock themselves in before they serve.
    pub sandbox: Sandbox,
    /// The user that workers become; `None`: they stay who started the server.
    pub user: Option<Account>,
    /// The group that workers become; `None`: the user's primary group.
    pub group: Option<Account>,
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// Whether the listener at place `index` of [`Config::listen`] asks for a PROXY header.
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

/// The start value of `resolve`, which then sets every field.
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
    restart_connections: RestartConnections::Handover,
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
