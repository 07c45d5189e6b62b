//! Log lines that peers can cause: at most one of each kind per second.
//!
//! Every such line at a level that is on by default has a kind here; lines about single connections
//! (opened, closed, their bytes) are at lower levels.
//!
//! It must not decide when a line is written: `log::Tally` does.

use crate::log::Tally;
use crate::log::event;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{PauseCause, RefusalCause};

const CAUSES: usize = RefusalCause::ALL.len();
const KINDS: usize = CAUSES + 3;

/// The kind of a line.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerLine {
    /// A connection was refused.
    Refused(RefusalCause),
    /// The connection limit is reached.
    AtLimit,
    /// The number of connections is below the limit again.
    BelowLimit,
    /// A listener cannot be watched.
    Unwatched,
}

impl PeerLine {
    const fn kind(self) -> usize {
        match self {
            Self::Refused(cause) => cause as usize,
            Self::AtLimit => CAUSES,
            Self::BelowLimit => CAUSES + 1,
            Self::Unwatched => CAUSES + 2,
        }
    }
}

/// Counts since the last line of each kind.
#[derive(Debug, Default)]
pub(super) struct PeerLines(Tally<KINDS>);

impl PeerLines {
    /// Counts an occurrence. Returns the count for a line that is to be written now.
    pub(super) fn note(&mut self, line: PeerLine, now: Tick) -> Option<u64> {
        self.0.note(line.kind(), now)
    }

    /// Returns when the next overdue count must be written.
    pub(super) const fn due(&self) -> Option<Tick> {
        self.0.due()
    }

    /// Writes the lines whose counts are overdue; `open` is the number of open connections.
    pub(super) fn write_overdue(&mut self, open: u32, now: Tick) {
        while let Some((kind, times)) = self.0.overdue(now) {
            match RefusalCause::ALL.get(kind) {
                Some(cause) => {
                    event!(connection_refused, reason = cause.name(), refused = times);
                }
                None if kind == PeerLine::AtLimit.kind() => {
                    let cause = PauseCause::ConnectionLimit.name();
                    event!(accept_paused, reason = cause, connections = open, times);
                }
                None if kind == PeerLine::BelowLimit.kind() => {
                    event!(accept_resumed, connections = open, times);
                }
                None => event!(listener_watch_failed, times),
            }
        }
    }
}
