//! Types of settings that are neither numbers nor text.
//!
//! Must not: know a setting's key, default or grammar (its row in `settings` does).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_bytes;
use uppercased_ctl::words;

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenAddr {
    /// Address and port; port 0: chosen by the kernel, then shared by all slots.
    pub addr: SocketAddr,
    /// For an IPv6 address: whether the same socket also serves IPv4 clients.
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
    /// No socket: signals only.
    #[default]
    Off,
    /// A socket at this path.
    Path(#[serde(with = "path_bytes")] PathBuf),
}

words! {
    /// How many workers must start before the server serves.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Boot {
        /// One; failed workers are retried.
        #[default]
        Any = "any",
        /// All; a failure aborts the start.
        All = "all",
    }
}

words! {
    /// Treatment of established connections by a rolling restart.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum ReloadConnections {
        /// They migrate to the new worker.
        #[default]
        Handover = "handover",
        /// They stay with the old worker until they end or `drain_timeout` expires.
        Drain = "drain",
    }
}

words! {
    /// How new connections are distributed over the workers.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Steer {
        /// By the kernel's hash of addresses and ports.
        #[default]
        Hash = "hash",
        /// By the CPU that receives the first packet.
        Cpu = "cpu",
        /// Evenly, at random.
        Random = "random",
    }
}

words! {
    /// The format of log lines.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum LogFormat {
        /// For people, coloured on a terminal.
        #[default]
        Human = "human",
        /// One JSON object per line.
        Json = "json",
        /// The same in the layout of OpenTelemetry's log records.
        #[serde(rename = "otel")]
        OpenTelemetry = "otel",
    }
}

words! {
    /// The minimum level of log lines.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    #[expect(missing_docs, reason = "the usual five")]
    pub enum LogLevel {
        Error = "error",
        Warn = "warn",
        #[default]
        Info = "info",
        Debug = "debug",
        Trace = "trace",
    }
}
