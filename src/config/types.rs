//! Types of settings that are neither numbers nor text.
//!
//! Must not: know a setting's key, default or grammar (its row in `settings` does).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_bytes;

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenAddr {
    /// Address and port; port 0: chosen by the kernel, and then shared by all slots.
    pub addr: SocketAddr,
    /// For an IPv6 address: whether IPv4 clients are served by the same socket.
    pub dual_stack: bool,
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

/// The control socket of a running server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// A socket named after the supervisor's process ID, in the runtime directory.
    Auto,
    /// None: signals only.
    #[default]
    Off,
    /// A socket at this path.
    Path(#[serde(with = "path_bytes")] PathBuf),
}

/// How many workers must start for a server to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// The first one; those that fail after it are tried again.
    #[default]
    Any,
    /// All of them; a failure ends the start.
    All,
}

/// Treatment of established connections by a rolling restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadConnections {
    /// They migrate to the new worker.
    #[default]
    Handover,
    /// They stay with the old one until they end or `drain_timeout` expires.
    Drain,
}

/// How new connections are distributed over the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steer {
    /// By the kernel's hash of addresses and ports.
    #[default]
    Hash,
    /// By the CPU that receives the first packet.
    Cpu,
    /// Evenly, at random.
    Random,
}

impl Steer {
    /// Returns its word in the setting.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Cpu => "cpu",
            Self::Random => "random",
        }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, with colour on a terminal.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// The minimum level of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the usual five")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}
