//! The counters, and the reasons that label them: one enum each.
//!
//! Invariants: a cell has one writer (the slot's worker) and any number of readers; it only grows.
//! The cells are in the slot's working memory, so they survive their writer, and the slot's next
//! worker continues them. It must not render or aggregate on the serving path.

use crate::words;

words! {
    /// The reason why a connection ended. Counter label, log field and report text are the same
    /// word.
    #[derive(PartialOrd, Ord, Hash)]
    #[repr(u8)]
    pub enum CloseReason {
        /// The peer ended its stream and received every byte; the connection was closed gracefully.
        PeerClosed = "peer_closed",
        /// The peer reset the connection; it lost unsent output.
        PeerReset = "peer_reset",
        /// The peer's machine or network stopped answering (keepalive or retransmission gave up).
        PeerVanished = "peer_vanished",
        /// No byte moved for `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// The kernel accepted none of its pending output for `write_stall_timeout`.
        WriteStall = "write_stall",
        /// The worker was stopping: all pending output was sent, then the stream was ended.
        Drained = "drained",
        /// The worker was stopping and `drain_timeout` passed with output still pending.
        DrainTimeout = "drain_timeout",
        /// The system refused an operation on the connection.
        SystemError = "system_error",
        /// Its worker crashed.
        WorkerDied = "worker_died",
        /// It was refused after the accept, because of its PROXY header or the client named in it.
        Refused = "refused",
        /// Its worker's process died, and its record contradicted itself or the kernel.
        Corrupt = "corrupt",
        /// Two processes of its worker in a row died serving it.
        Poisoned = "poisoned",
        /// It reached `max_connection_age`; every reply was sent, then the stream was ended.
        MaxAge = "max_age",
    }
}

words! {
    /// The reason why a worker paused accepting.
    pub enum PauseCause {
        /// `max_connections` are open.
        ConnectionLimit = "connection_limit",
        /// The process ran out of descriptors (`EMFILE`).
        ProcessDescriptors = "process_descriptors",
        /// The system ran out of open files (`ENFILE`).
        SystemDescriptors = "system_descriptors",
        /// The system ran out of memory for sockets (`ENOBUFS`, `ENOMEM`).
        Memory = "memory",
        /// Accepting failed for a cause that is not known to concern only one connection.
        AcceptError = "accept_error",
    }
}

words! {
    /// The reason why a connection was accepted and then refused, at once or because of its PROXY
    /// header.
    #[derive(PartialOrd, Ord, Hash)]
    #[repr(u8)]
    pub enum RefusalCause {
        /// A system failure: the event loop could not watch it, or its descriptor number is beyond
        /// the table.
        SystemError = "system_error",
        /// Its peer is in a network of `deny`.
        Denied = "denied",
        /// Its peer is in no network of `allow`.
        NotAllowed = "not_allowed",
        /// Its source has reached `max_connections_per_source` at this worker.
        PerSourceLimit = "per_source_limit",
        /// Its source connects more often than `accept_rate_per_source`.
        PerSourceRate = "per_source_rate",
        /// Its listener requires a PROXY header, and its peer is in no network of `proxy_trust`.
        ProxyUntrusted = "proxy_untrusted",
        /// It began without a required PROXY header, or ended within it.
        ProxyMissing = "proxy_missing",
        /// Its PROXY header is malformed.
        ProxyMalformed = "proxy_malformed",
        /// Its PROXY header exceeds the limit.
        ProxyTooLong = "proxy_too_long",
        /// Its PROXY header did not arrive within `proxy_header_timeout`.
        ProxyTimeout = "proxy_timeout",
    }
}

/// A class of durations of one event loop turn, with a power of two of microseconds as upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnClass(u8);

impl TurnClass {
    /// Number of classes: bounds up to about a second, and one class for longer turns.
    pub const COUNT: usize = 22;
    /// Their names: the bounds in microseconds.
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

    const fn index(self) -> usize {
        self.0 as usize
    }

    const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Returns every class, the shortest turns first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// Returns the upper bound of this class in seconds; `None` for the unbounded class.
    #[must_use]
    pub fn bound_seconds(self) -> Option<f64> {
        let bounded = usize::from(self.0) + 1 < Self::COUNT;
        bounded.then(|| f64::from(1_u32 << self.0) / 1e6)
    }
}

/// Declares the counters, each with its cell, its name in the status and in `/metrics`, and a
/// one-line description.
macro_rules! counters {
    ({ $(
        $(#[$doc:meta])*
        $counter:ident = $cell:literal, $name:literal, $meaning:literal;
    )+ }
    by label { $(
        $(#[$labelled_doc:meta])*
        $labelled:ident($label:ident) = $first:ident,
            $labelled_name:literal, $labelled_meaning:literal;
    )+ }) => {
        /// A cell of the metrics block.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* #[doc = $meaning] $counter,)+
            $($(#[$labelled_doc])* #[doc = $labelled_meaning] $labelled($label),)+
        }

        impl Counter {
            /// Returns the index of this counter's cell in the block. The first cache line counts
            /// connections; the second has the counters of every loop turn.
            #[must_use]
            pub const fn cell(self) -> usize {
                match self {
                    $(Self::$counter => $cell,)+
                    $(Self::$labelled(label) => Self::$first + label.index(),)+
                }
            }

            /// Returns every counter, in the order of their cells.
            pub fn all() -> impl Iterator<Item = Self> {
                let counters = [$(Self::$counter),+].into_iter();
                counters$(.chain($label::all().map(Self::$labelled)))+
            }

            /// Returns the counter's name, and its label if it has one.
            #[must_use]
            pub const fn name(self) -> (&'static str, Option<&'static str>) {
                match self {
                    $(Self::$counter => ($name, None),)+
                    $(Self::$labelled(label) => ($labelled_name, Some(label.name())),)+
                }
            }

            /// Returns a one-line description; the same for all counters of one name.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$counter => $meaning,)+
                    $(Self::$labelled(_) => $labelled_meaning,)+
                }
            }
        }
    };
}

counters! {
    {
        Accepted = 0, "connections_accepted", "Accepted connections.";
        AcceptFailed = 1, "accept_failures",
            "Connections that failed before they were accepted.";
        Untracked = 2, "connections_untracked",
            "Connections without a per-source limit, for lack of room.";
        MigratedIn = 3, "connections_migrated_in",
            "Connections received from another worker.";
        MigratedOut = 4, "connections_migrated_out",
            "Connections handed over to another worker.";
        BytesDiscarded = 5, "discarded_bytes",
            "Bytes received after the end of the stream, discarded.";
        BytesAbandoned = 6, "abandoned_bytes",
            "Unsent bytes of closed connections.";
        Backpressure = 7, "backpressure",
            "Times output was buffered because a client did not read.";
        BytesIn = 8, "received_bytes", "Bytes received from clients.";
        BytesOut = 9, "sent_bytes", "Bytes sent to clients.";
        Reads = 10, "reads", "Successful receive calls.";
        Writes = 11, "writes", "Send calls that sent at least one byte.";
        Turns = 12, "turns", "Event loop iterations.";
        BusyNs = 13, "busy_ns",
            "Nanoseconds spent in turns, waiting not counted; short turns are sampled.";
        StaleEvents = 14, "stale_events",
            "Readiness events for closed connections.";
    }
    by label {
        /// Connections refused at once are not counted as accepted, except those that the event
        /// loop could not watch. Those refused for their PROXY header are, and end as
        /// [`CloseReason::Refused`].
        Refused(RefusalCause) = FIRST_REFUSED,
            "connections_refused", "Refused connections, by reason.";
        Closed(CloseReason) = FIRST_CLOSED,
            "connections_closed", "Closed connections, by reason.";
        Paused(PauseCause) = FIRST_PAUSED, "accept_pauses", "Accept pauses, by reason.";
        Took(TurnClass) = FIRST_TOOK, "turn_took_us",
            "Turns, by how many microseconds they took less than; short ones are sampled.";
    }
}

impl Counter {
    /// Number of cells.
    pub const COUNT: usize = Self::FIRST_TOOK + TurnClass::COUNT;
    const FIRST_REFUSED: usize = 15;
    const FIRST_CLOSED: usize = Self::FIRST_REFUSED + RefusalCause::ALL.len();
    const FIRST_PAUSED: usize = Self::FIRST_CLOSED + CloseReason::ALL.len();
    const FIRST_TOOK: usize = Self::FIRST_PAUSED + PauseCause::ALL.len();

    /// Returns name and label as one word for the status: `received_bytes`,
    /// `connections_closed.idle_timeout`.
    #[must_use]
    pub fn key(self) -> String {
        match self.name() {
            (name, None) => name.to_owned(),
            (name, Some(label)) => format!("{name}.{label}"),
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
