//! The load patterns, each with a short name.

use std::time::Duration;

use uppercased_bench::options::{Close, Options, Pattern as Kind, Sources};
use uppercased_bench::plan::{Facts, Plan, settle};
use uppercased_bench::size::Sizes;

/// Messages in flight per bulk stream: more than the buffers hold, so that only the buffers limit
/// it.
const BULK_PIPELINE: u32 = 1024;
/// Size of a bulk stream's messages.
const BULK_BYTES: u32 = 64 << 10;
/// Source addresses of short connections, used in turn: one address would run out of ports in a
/// second, since a closed connection keeps its port for a minute.
const SOURCES: u32 = 64;
/// Messages per second of all clients alongside bulk streams: so few that the streams determine
/// their latency.
pub(crate) const NEIGHBOURS_PER_S: f64 = 1000.0;
/// Time over which the messages of idle connections are spread.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(1);

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
    pub(crate) kind: Kind,
    pub(crate) connections: u32,
    /// Bytes in a message.
    pub(crate) size: u32,
    /// Messages in flight per connection.
    pub(crate) outstanding: u32,
    pub(crate) close: Close,
    /// Messages per second of an open loop; 0: half of the reference's rate in [`HALF_OF`].
    pub(crate) per_second: f64,
    /// Additional connections, whose latency is not reported.
    pub(crate) beside: Option<(Kind, u32)>,
    /// Whether server and load share one CPU.
    pub(crate) together: bool,
    /// Factor of the measuring time: with many connections, one exchange on each takes a fraction
    /// of a second, and a run must cover many exchanges.
    pub(crate) spans: u32,
    /// Whether it is measured only if named.
    pub(crate) extra: bool,
}

/// Name of the pattern of which half the reference's rate is the open loop's rate.
pub(crate) const HALF_OF: &str = "64x50";

const BASE: Pattern = Pattern {
    name: "",
    title: "",
    kind: Kind::Ping,
    connections: 50,
    size: 64,
    outstanding: 1,
    close: Close::Fin,
    per_second: 0.0,
    beside: None,
    together: false,
    spans: 1,
    extra: false,
};

const fn beside(name: &'static str, title: &'static str, kind: Kind, connections: u32) -> Pattern {
    Pattern {
        name,
        title,
        kind: Kind::Rate,
        per_second: NEIGHBOURS_PER_S,
        beside: Some((kind, connections)),
        extra: true,
        ..BASE
    }
}

/// All patterns, in the order of the report.
pub(crate) const ALL: [Pattern; 17] = [
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
        extra: true,
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
        spans: 3,
        ..BASE
    },
    Pattern {
        name: "outstanding",
        title: "64 B × 50, 16 outstanding",
        outstanding: 16,
        ..BASE
    },
    Pattern {
        name: "16k",
        title: "16 KiB × 50",
        size: 16 << 10,
        ..BASE
    },
    Pattern {
        name: "churn",
        title: "connect, 64 B, close × 50",
        kind: Kind::Churn,
        ..BASE
    },
    Pattern {
        name: "half-close",
        title: "connect, 64 B, half-close × 50",
        kind: Kind::Churn,
        close: Close::Half,
        ..BASE
    },
    Pattern {
        name: "stream",
        title: "bulk × 4",
        kind: Kind::Stream,
        connections: 4,
        size: BULK_BYTES,
        outstanding: BULK_PIPELINE,
        ..BASE
    },
    Pattern {
        name: "idle",
        title: "10,000 idle connections",
        kind: Kind::Hold,
        connections: 10_000,
        ..BASE
    },
    Pattern {
        name: "rate",
        title: "64 B × 50, open loop",
        kind: Kind::Rate,
        extra: true,
        ..BASE
    },
    beside("beside-1", "64 B × 50 beside bulk × 1", Kind::Stream, 1),
    beside("beside-4", "64 B × 50 beside bulk × 4", Kind::Stream, 4),
    beside("beside-8", "64 B × 50 beside bulk × 8", Kind::Stream, 8),
    beside("beside-32", "64 B × 50 beside bulk × 32", Kind::Stream, 32),
    beside(
        "beside-stalled",
        "64 B × 50 beside 20 that never read",
        Kind::Stall,
        20,
    ),
];

impl Pattern {
    pub(crate) const fn unit(&self) -> Unit {
        match (self.kind, self.beside) {
            (Kind::Stream, _) | (_, Some((Kind::Stream, _))) => Unit::Byte,
            (Kind::Churn, _) => Unit::Connection,
            _ => Unit::Message,
        }
    }

    /// Returns whether it measures memory instead of time.
    pub(crate) fn is_idle(&self) -> bool {
        self.kind == Kind::Hold
    }

    /// Returns whether its messages are timed.
    pub(crate) fn has_latency(&self) -> bool {
        !self.is_idle() && self.kind != Kind::Stream
    }

    /// Returns the number of all connections.
    pub(crate) fn all_connections(&self) -> u32 {
        self.connections + self.beside.map_or(0, |(_, connections)| connections)
    }

    /// Returns the connections to open in addition to those of the pattern itself.
    pub(crate) fn others(&self) -> Option<Self> {
        let (kind, connections) = self.beside?;
        Some(Self {
            kind,
            connections,
            size: BULK_BYTES,
            outstanding: BULK_PIPELINE,
            beside: None,
            ..*self
        })
    }

    /// Returns the plan of `threads` threads that measure for `duration` after `warmup`.
    ///
    /// # Errors
    /// This process may not open enough descriptors.
    pub(crate) fn plan(
        &self,
        threads: usize,
        warmup: Duration,
        duration: Duration,
    ) -> Result<Plan, String> {
        let kind = self.kind;
        let threads = threads.min(self.connections as usize);
        let descriptors = uppercased_ctl::process::raise_descriptor_limit();
        let options = Options {
            pattern: Some(kind),
            connections: Some(self.connections),
            size: Some(Sizes::Fixed(self.size)),
            pipeline: matches!(kind, Kind::Ping | Kind::Stream).then_some(self.outstanding),
            rate: (kind == Kind::Rate).then_some(self.per_second),
            every: self.is_idle().then_some(EXCHANGE),
            close: (kind == Kind::Churn).then_some(self.close),
            sources: (kind == Kind::Churn).then_some(Sources::Count(SOURCES)),
            threads: u16::try_from(threads).ok(),
            warmup: Some(warmup),
            duration: Some(duration),
            ..Options::default()
        };
        let facts = Facts {
            cpus: 1,
            descriptors: descriptors.map_err(|error| error.to_string())?,
            loopback: true,
        };
        settle(&options, &facts).map_err(|error| error.to_string())
    }
}
