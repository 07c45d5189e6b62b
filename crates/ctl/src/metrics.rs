//! The counters: one enum of counters and one of reasons, used for every label there is.
//!
//! Invariants: a cell has one writer (the slot's worker) and any number of readers; it only grows.
//! The cells are in the slot's working memory, so they survive their writer, and a successor in the
//! slot continues from there. It must not render or aggregate on the serving path.

/// Why a connection ended. Counter label, log field and report text are the same word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer ended its stream and received every byte; the connection was closed gracefully.
    PeerClosed,
    /// The peer reset the connection; it lost unsent output.
    PeerReset,
    /// The peer's machine or network stopped answering (keepalive or retransmission gave up).
    PeerVanished,
    /// No byte moved for `idle_timeout`.
    IdleTimeout,
    /// The kernel accepted none of its pending output for `write_stall_timeout`.
    WriteStall,
    /// The worker was stopping: everything owed was sent, then the stream was ended.
    Drained,
    /// The worker was stopping and `drain_timeout` passed with output still pending.
    DrainTimeout,
    /// The system refused an operation on the connection.
    SystemError,
    /// Its worker died.
    WorkerDied,
    /// It was refused after it was accepted: for its PROXY header, or the client named there.
    Refused,
}

impl CloseReason {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::PeerClosed,
        Self::PeerReset,
        Self::PeerVanished,
        Self::IdleTimeout,
        Self::WriteStall,
        Self::Drained,
        Self::DrainTimeout,
        Self::SystemError,
        Self::WorkerDied,
        Self::Refused,
    ];

    /// Returns the word for it in logs and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::PeerReset => "peer_reset",
            Self::PeerVanished => "peer_vanished",
            Self::IdleTimeout => "idle_timeout",
            Self::WriteStall => "write_stall",
            Self::Drained => "drained",
            Self::DrainTimeout => "drain_timeout",
            Self::SystemError => "system_error",
            Self::WorkerDied => "worker_died",
            Self::Refused => "refused",
        }
    }
}

/// Why a worker stopped accepting for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseCause {
    /// `max_connections` are open.
    ConnectionLimit,
    /// The process ran out of descriptors (`EMFILE`).
    ProcessDescriptors,
    /// The system ran out of open files (`ENFILE`).
    SystemDescriptors,
    /// The system ran out of memory for sockets (`ENOBUFS`, `ENOMEM`).
    Memory,
    /// Accepting failed for a cause that is not known to pass with one connection.
    AcceptError,
}

impl PauseCause {
    /// Every cause, in the order of their counters.
    pub const ALL: [Self; 5] = [
        Self::ConnectionLimit,
        Self::ProcessDescriptors,
        Self::SystemDescriptors,
        Self::Memory,
        Self::AcceptError,
    ];

    /// Returns the word for it in logs and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectionLimit => "connection_limit",
            Self::ProcessDescriptors => "process_descriptors",
            Self::SystemDescriptors => "system_descriptors",
            Self::Memory => "memory",
            Self::AcceptError => "accept_error",
        }
    }
}

/// Why a connection was accepted and then refused: at once, or because of its PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RefusalCause {
    /// A system failure: the event loop could not watch it, or its descriptor number is beyond the
    /// table.
    SystemError,
    /// Its peer is in a network of `deny`.
    Denied,
    /// Its peer is in no network of `allow`.
    NotAllowed,
    /// Its source has `max_connections_per_source` at this worker.
    PerSourceLimit,
    /// Its source connects more often than `accept_rate_per_source`.
    PerSourceRate,
    /// Its listener requires a PROXY header, and its peer is in no network of `proxy_trust`.
    ProxyUntrusted,
    /// It began without a required PROXY header, or ended within it.
    ProxyMissing,
    /// Its PROXY header is malformed.
    ProxyMalformed,
    /// Its PROXY header exceeds the limit.
    ProxyTooLong,
    /// Its PROXY header did not arrive within `proxy_header_timeout`.
    ProxyTimeout,
}

impl RefusalCause {
    /// Every cause, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::SystemError,
        Self::Denied,
        Self::NotAllowed,
        Self::PerSourceLimit,
        Self::PerSourceRate,
        Self::ProxyUntrusted,
        Self::ProxyMissing,
        Self::ProxyMalformed,
        Self::ProxyTooLong,
        Self::ProxyTimeout,
    ];

    /// Returns the word for it in logs and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemError => "system_error",
            Self::Denied => "denied",
            Self::NotAllowed => "not_allowed",
            Self::PerSourceLimit => "per_source_limit",
            Self::PerSourceRate => "per_source_rate",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyMalformed => "proxy_malformed",
            Self::ProxyTooLong => "proxy_too_long",
            Self::ProxyTimeout => "proxy_timeout",
        }
    }
}

/// A class of durations of one turn of the loop, bounded above by a power of two of microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnClass(u8);

impl TurnClass {
    /// Number of classes: up to about a second, and one for everything longer.
    pub const COUNT: usize = 22;
    /// Their names, by the bound in microseconds.
    const NAMES: [&str; Self::COUNT] = [
        "1", "2", "4", "8", "16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "8192",
        "16384", "32768", "65536", "131072", "262144", "524288", "1048576", "more",
    ];

    /// Returns the class of a turn that took `ns` nanoseconds.
    #[inline]
    #[must_use]
    pub const fn of(ns: u64) -> Self {
        let bits = u64::BITS - (ns / 1000).leading_zeros();
        let last = Self::COUNT as u32 - 1;
        Self(if bits < last { bits } else { last } as u8)
    }

    /// Returns every class, the shortest turns first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// Returns the upper bound of this class in seconds; `None`: there is no bound.
    #[must_use]
    pub fn bound_seconds(self) -> Option<f64> {
        let bounded = usize::from(self.0) + 1 < Self::COUNT;
        bounded.then(|| f64::from(1_u32 << self.0) / 1e6)
    }
}

/// A cell of the metrics block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections accepted.
    Accepted,
    /// Live connections that migrated from another worker.
    MovedIn,
    /// Live connections that migrated to another worker.
    MovedOut,
    /// Connections ended, by reason.
    Closed(CloseReason),
    /// Times accepting was paused, by cause.
    Paused(PauseCause),
    /// Connections accepted and refused, by cause. Those refused at once are not among the
    /// accepted, except those that the event loop could not watch; those refused for their PROXY
    /// header are, and end as [`CloseReason::Refused`].
    Refused(RefusalCause),
    /// Connections of sources that could not be tracked, so that no limit applied to them.
    Untracked,
    /// Connections that failed before they were accepted (reset in the queue and the like).
    AcceptFailed,
    /// Bytes received from clients; each is to be echoed.
    BytesIn,
    /// Bytes that the kernel accepted for sending.
    BytesOut,
    /// Bytes received and discarded after this side ended the stream.
    BytesDiscarded,
    /// Bytes of pending output abandoned when their connection ended.
    BytesAbandoned,
    /// Successful reads.
    Reads,
    /// Sends that moved at least one byte.
    Writes,
    /// Times output had to be buffered because the kernel did not accept all of it.
    Backpressure,
    /// Turns of the loop.
    Turns,
    /// Readiness reports for connections that had ended.
    StaleEvents,
    /// Nanoseconds spent in turns, waiting not counted.
    BusyNs,
    /// Turns, by duration class.
    Took(TurnClass),
}

impl Counter {
    /// Number of cells.
    pub const COUNT: usize = Self::FIRST_TOOK + TurnClass::COUNT;
    const FIRST_REFUSED: usize = 15;
    const FIRST_CLOSED: usize = Self::FIRST_REFUSED + RefusalCause::ALL.len();
    const FIRST_PAUSED: usize = Self::FIRST_CLOSED + CloseReason::ALL.len();
    const FIRST_TOOK: usize = Self::FIRST_PAUSED + PauseCause::ALL.len();

    /// Returns the index of this counter's cell in the block. The first cache line counts
    /// connections, the second one what each turn of the loop counts.
    #[must_use]
    pub const fn cell(self) -> usize {
        match self {
            Self::Accepted => 0,
            Self::AcceptFailed => 1,
            Self::Untracked => 2,
            Self::MovedIn => 3,
            Self::MovedOut => 4,
            Self::BytesDiscarded => 5,
            Self::BytesAbandoned => 6,
            Self::Backpressure => 7,
            Self::BytesIn => 8,
            Self::BytesOut => 9,
            Self::Reads => 10,
            Self::Writes => 11,
            Self::Turns => 12,
            Self::BusyNs => 13,
            Self::StaleEvents => 14,
            Self::Refused(cause) => Self::FIRST_REFUSED + cause as usize,
            Self::Closed(reason) => Self::FIRST_CLOSED + reason as usize,
            Self::Paused(cause) => Self::FIRST_PAUSED + cause as usize,
            Self::Took(class) => Self::FIRST_TOOK + class.0 as usize,
        }
    }

    /// Returns every counter, in the order of their cells.
    pub fn all() -> impl Iterator<Item = Self> {
        [
            Self::Accepted,
            Self::AcceptFailed,
            Self::Untracked,
            Self::MovedIn,
            Self::MovedOut,
            Self::BytesDiscarded,
            Self::BytesAbandoned,
            Self::Backpressure,
            Self::BytesIn,
            Self::BytesOut,
            Self::Reads,
            Self::Writes,
            Self::Turns,
            Self::BusyNs,
            Self::StaleEvents,
        ]
        .into_iter()
        .chain(RefusalCause::ALL.map(Self::Refused))
        .chain(CloseReason::ALL.map(Self::Closed))
        .chain(PauseCause::ALL.map(Self::Paused))
        .chain(TurnClass::all().map(Self::Took))
    }

    /// Returns name and label in one word, as used in the status: `bytes_in`,
    /// `closed.idle_timeout`.
    #[must_use]
    pub fn key(self) -> String {
        match self.name() {
            (name, None) => name.to_owned(),
            (name, Some(label)) => format!("{name}.{label}"),
        }
    }

    /// Returns a one-line description; the same for all counters of one name.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::BytesIn => "Bytes received from clients.",
            Self::BytesOut => "Bytes sent to clients.",
            Self::Reads => "Successful receive calls.",
            Self::Writes => "Send calls that sent at least one byte.",
            Self::Turns => "Event loop iterations.",
            Self::Accepted => "Accepted connections.",
            Self::Backpressure => "Times output was buffered because a client did not read.",
            Self::StaleEvents => "Readiness events for closed connections.",
            Self::BytesDiscarded => "Bytes received after the end of the stream, discarded.",
            Self::BytesAbandoned => "Unsent bytes of closed connections.",
            Self::Refused(_) => "Refused connections, by reason.",
            Self::Untracked => "Connections without a per-source limit, for lack of room.",
            Self::AcceptFailed => "Connections that failed before they were accepted.",
            Self::MovedIn => "Connections received from another worker.",
            Self::MovedOut => "Connections handed over to another worker.",
            Self::Closed(_) => "Closed connections, by reason.",
            Self::Paused(_) => "Accept pauses, by reason.",
            Self::BusyNs => "Nanoseconds spent in turns, waiting not counted.",
            Self::Took(_) => "Turns, by how many microseconds their work took less than.",
        }
    }

    /// Returns the counter's name and, if it has one, its label.
    #[must_use]
    pub const fn name(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::BytesIn => ("bytes_in", None),
            Self::BytesOut => ("bytes_out", None),
            Self::Reads => ("reads", None),
            Self::Writes => ("writes", None),
            Self::Turns => ("turns", None),
            Self::Accepted => ("accepted", None),
            Self::Backpressure => ("backpressure", None),
            Self::StaleEvents => ("stale_events", None),
            Self::BytesDiscarded => ("bytes_discarded", None),
            Self::BytesAbandoned => ("bytes_abandoned", None),
            Self::Refused(cause) => ("refused", Some(cause.name())),
            Self::Untracked => ("untracked", None),
            Self::AcceptFailed => ("accept_failed", None),
            Self::MovedIn => ("moved_in", None),
            Self::MovedOut => ("moved_out", None),
            Self::Closed(reason) => ("closed", Some(reason.name())),
            Self::Paused(cause) => ("paused", Some(cause.name())),
            Self::BusyNs => ("busy_ns", None),
            Self::Took(class) => ("turn_took_us", Some(TurnClass::NAMES[class.0 as usize])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_consecutive_cells() {
        let cells: Vec<usize> = Counter::all().map(Counter::cell).collect();
        assert_eq!(cells, (0..Counter::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn turn_class_bounds_its_duration() {
        for (ns, name) in [
            (0, "1"),
            (999, "1"),
            (1_000, "2"),
            (1_999, "2"),
            (2_000, "4"),
            (1_048_575_999, "1048576"),
            (1_048_576_000, "more"),
            (u64::MAX, "more"),
        ] {
            let counter = Counter::Took(TurnClass::of(ns));
            assert_eq!(counter.name(), ("turn_took_us", Some(name)), "{ns}");
        }
        for (class, name) in TurnClass::all().zip(TurnClass::NAMES) {
            let bound = class.bound_seconds().map(|bound| (bound * 1e6).round());
            assert_eq!(bound, name.parse().ok());
        }
    }

    #[test]
    fn no_two_counters_share_a_name() {
        let mut names: Vec<_> = Counter::all().map(Counter::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::COUNT);
    }
}
