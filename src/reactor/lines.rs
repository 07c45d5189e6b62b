//! The log lines of a worker that a peer can cause: one of each kind a second.
//!
//! Whatever a peer does that is worth a line at a level that is on by default has its kind here;
//! the lines of single connections (opened, closed, their bytes) are for the levels below, which
//! are asked for.
//!
//! It must not decide when a line is written: `log::Tally` does.

use crate::log::Tally;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{PauseCause, RefusalCause};

const CAUSES: usize = RefusalCause::ALL.len();
const KINDS: usize = CAUSES + 3;

/// What a line is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerLine {
    /// A connection was refused.
    Refused(RefusalCause),
    /// Every place is taken.
    AtLimit,
    /// There is room again.
    BelowLimit,
    /// A listener cannot be watched, which is tried whenever there is room again.
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

/// What has happened since the last line of each kind.
#[derive(Debug, Default)]
pub(super) struct PeerLines(Tally<KINDS>);

impl PeerLines {
    /// Counts one. Returns how many a line stands for, if it is to be written now.
    pub(super) fn note(&mut self, line: PeerLine, now: Tick) -> Option<u64> {
        self.0.note(line.kind(), now)
    }

    /// When a count has to be written, whatever happens.
    pub(super) const fn due(&self) -> Option<Tick> {
        self.0.due()
    }

    /// Writes the lines whose counts are overdue; `open` is the number of open connections.
    pub(super) fn write_overdue(&mut self, open: u32, now: Tick) {
        while let Some((kind, times)) = self.0.overdue(now) {
            match RefusalCause::ALL.get(kind) {
                Some(cause) => {
                    tracing::warn!(cause = cause.name(), refused = times, "connection refused");
                }
                None if kind == PeerLine::AtLimit.kind() => {
                    let cause = PauseCause::ConnectionLimit.name();
                    tracing::warn!(cause, open, times, "accepting paused");
                }
                None if kind == PeerLine::BelowLimit.kind() => {
                    tracing::info!(open, times, "accepting resumed");
                }
                None => tracing::error!(times, "cannot watch a listener"),
            }
        }
    }
}
