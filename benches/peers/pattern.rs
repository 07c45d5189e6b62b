//! The load patterns, each with a short name.

use serde::{Deserialize, Serialize};

/// The way a client generates load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Closed loop: each connection keeps this many messages outstanding.
    Closed { outstanding: u32 },
    /// Open loop: messages are due at even intervals, whether or not earlier ones were answered;
    /// latency counts from the due time.
    Open { per_second: f64 },
    /// Full duplex, as fast as possible.
    Stream,
    /// One message per connection: connect, exchange, close.
    Churn,
    /// Idle connections, then one message on each.
    Silent,
}

/// The unit of work by which the server's CPU time is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Message,
    Byte,
    Connection,
}

/// A pattern.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// Name for `--only`.
    pub(crate) name: &'static str,
    /// Title in the tables.
    pub(crate) title: &'static str,
    pub(crate) connections: u32,
    /// Bytes in a message.
    pub(crate) size: u32,
    pub(crate) load: Load,
    /// Client processes; more than one if one would run out of descriptors.
    pub(crate) clients: u32,
    /// Whether server and client share a CPU.
    pub(crate) together: bool,
    /// Factor of the measuring time: with many connections one exchange on each takes a fraction of
    /// a second, and a run must cover many.
    pub(crate) spans: u32,
}

/// Name of the pattern whose rate with the reference, halved, sets the open loop's rate.
pub(crate) const HALF_OF: &str = "64x50";

const BASE: Pattern = Pattern {
    name: "",
    title: "",
    connections: 50,
    size: 64,
    load: Load::Closed { outstanding: 1 },
    clients: 1,
    together: false,
    spans: 1,
};

/// All patterns, in the order of the report.
pub(crate) const ALL: [Pattern; 11] = [
    Pattern {
        name: "64x1-together",
        title: "64 B × 1, one CPU for both",
        connections: 1,
        together: true,
        ..BASE
    },
    Pattern {
        name: "64x1",
        title: "64 B × 1",
        connections: 1,
        ..BASE
    },
    Pattern {
        name: "64x50",
        title: "64 B × 50",
        ..BASE
    },
    Pattern {
        name: "64x1000",
        title: "64 B × 1,000",
        connections: 1_000,
        ..BASE
    },
    Pattern {
        name: "64x10000",
        title: "64 B × 10,000",
        connections: 10_000,
        clients: 2,
        spans: 3,
        ..BASE
    },
    Pattern {
        name: "16k",
        title: "16 KiB × 50",
        size: 16 << 10,
        ..BASE
    },
    Pattern {
        name: "outstanding",
        title: "64 B × 50, 16 outstanding",
        load: Load::Closed { outstanding: 16 },
        ..BASE
    },
    Pattern {
        name: "stream",
        title: "bulk × 4",
        connections: 4,
        load: Load::Stream,
        ..BASE
    },
    Pattern {
        name: "churn",
        title: "connect, 64 B, close × 50",
        load: Load::Churn,
        ..BASE
    },
    Pattern {
        name: "half-rate",
        title: "64 B × 50, open loop at half the floor's rate",
        load: Load::Open { per_second: 0.0 },
        ..BASE
    },
    Pattern {
        name: "idle",
        title: "10,000 silent connections",
        connections: 10_000,
        load: Load::Silent,
        clients: 2,
        ..BASE
    },
];

impl Pattern {
    pub(crate) const fn unit(&self) -> Unit {
        match self.load {
            Load::Stream => Unit::Byte,
            Load::Churn => Unit::Connection,
            Load::Closed { .. } | Load::Open { .. } | Load::Silent => Unit::Message,
        }
    }
}
