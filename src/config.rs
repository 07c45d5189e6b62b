//! The configuration as everything else sees it: validated, complete, plain data.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenAddr {
    /// Address and port; port 0 asks the kernel for one, which all slots then share.
    pub addr: SocketAddr,
    /// For an IPv6 address: whether IPv4 clients are served by the same socket.
    pub dual_stack: bool,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, with colour on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// The least severe level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the usual five")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Everything that can be set, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dual_stack && self.addr.ip().is_unspecified() {
            write!(out, "*:{}", self.addr.port())
        } else {
            write!(out, "{}", self.addr)
        }
    }
}
