//! Records the events of one thread as they happen.
//!
//! One histogram holds the latencies of the current interval of the series. At its end the
//! histogram is added to the total, packed (a few hundred bytes) and cleared. So an answer costs
//! one entry, and a measurement of a week needs as little memory as one of a minute.
//!
//! Invariants: events before the beginning are not counted, except failures; events after the end
//! count only for latencies; the intervals leave no gap. A planned message that was never sent is
//! not an answer: it has its own count and histogram. Pure: the time is passed in.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::failure::{Fault, Kind};
use super::histogram;
use uppercased_ctl::clock::Tick;

/// Number of failures recorded with details.
pub const FIRST_FAILURES_MAX: usize = 20;

/// Delay above which a planned message on a free connection counts as sent late by the client.
pub const LATE: Duration = Duration::from_millis(1);

/// Maximum histogram entries for a connection's unsent messages; a larger number of messages shares
/// these entries.
const UNSENT_ENTRIES_MAX: u64 = 4096;

/// Records events.
#[derive(Debug)]
pub struct Recorder {
    /// Start of the measurement; [`Tick::MAX`] until known.
    from: Tick,
    until: Tick,
    interval: Duration,
    /// End of the current interval; [`Tick::MAX`] if none is open.
    piece_until: Tick,
    present: Piece,
    answers: Histogram<u64>,
    all: Histogram<u64>,
    waits: Histogram<u64>,
    /// Messages planned before this are late because of others, not because of the client.
    caught_up: Tick,
    record: Record,
}

/// The record of one thread, process or measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The series.
    pub pieces: Vec<Piece>,
    /// All latencies: an HDR histogram, packed.
    pub answers: String,
    /// Connections established, including those open at the beginning.
    pub connections: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Failures by kind.
    pub failures: BTreeMap<Kind, u64>,
    /// The first failures.
    pub first: Vec<Noted>,
    /// Longest time for which a connection received nothing while waiting, in nanoseconds.
    pub longest_stall_ns: u64,
    /// Planned messages that were due.
    pub planned: u64,
    /// Messages among them sent late by the client.
    pub late: u64,
    /// Messages among them never sent, because earlier ones were not answered.
    pub unsent: u64,
    /// How long each of these had waited at the end: an HDR histogram, packed.
    pub waits: String,
    /// Time measured, in nanoseconds.
    pub counted_ns: u64,
    /// CPU time during that time, in nanoseconds.
    pub cpu_ns: u64,
}

/// An interval of the series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Messages answered.
    pub messages: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Connections established.
    pub opened: u64,
    /// Failures.
    pub failures: u64,
    /// Longest stall that extends into it, in nanoseconds.
    pub stall_ns: u64,
    /// Latencies: an HDR histogram, packed; empty if there was no answer.
    pub answers: String,
}

/// The details of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The absolute time, to order failures of several processes.
    pub at: Tick,
    /// The kind of failure.
    pub kind: Kind,
    /// The connection's number.
    pub connection: u64,
    /// Number of correct bytes before it.
    pub position: Option<u64>,
    /// A description.
    pub detail: String,
}

const NEVER: Tick = Tick::from_nanos(u64::MAX);

impl Recorder {
    /// Creates a recorder that counts only failures and connections until [`Self::open`] is called.
    #[must_use]
    pub fn new() -> Self {
        Self {
            from: NEVER,
            until: NEVER,
            interval: Duration::ZERO,
            piece_until: NEVER,
            present: Piece::default(),
            answers: histogram::empty(),
            all: histogram::empty(),
            waits: histogram::empty(),
            caught_up: Tick::ZERO,
            record: Record::default(),
        }
    }

    /// Counts from `from` until `until`, in intervals of `interval`.
    pub fn open(&mut self, from: Tick, until: Tick, interval: Duration) {
        self.from = from;
        self.until = until;
        self.interval = interval;
        self.piece_until = from + interval;
    }

    /// Ends the measurement at `now`, before its planned end.
    pub fn cut(&mut self, now: Tick) {
        self.roll(now);
        if now < self.until {
            self.until = now.max(self.from);
            self.close_piece();
            self.piece_until = NEVER;
        }
    }

    /// Closes the intervals that have ended. Call it once per turn, even without events.
    #[inline]
    pub fn roll(&mut self, now: Tick) {
        while now >= self.piece_until {
            self.close_piece();
            self.piece_until = if self.piece_until >= self.until {
                NEVER
            } else {
                (self.piece_until + self.interval).min(self.until)
            };
        }
    }

    /// Counts received bytes.
    #[inline]
    pub fn received(&mut self, bytes: usize, now: Tick) {
        self.roll(now);
        if self.counts(now) {
            self.present.bytes += bytes as u64;
        }
    }

    /// Counts sent bytes.
    #[inline]
    pub const fn sent(&mut self, bytes: u64, now: Tick) {
        if self.counts(now) {
            self.record.bytes_sent += bytes;
        }
    }

    /// Counts an answer whose latency counts from `from`.
    #[inline]
    pub fn answer(&mut self, from: Tick, now: Tick) {
        if now < self.from {
            return;
        }
        if now < self.until {
            self.present.messages += 1;
        }
        histogram::note(&mut self.answers, now.since(from));
    }

    /// Records a wait since `since` that ended with a receive or a failure.
    #[inline]
    pub fn waited(&mut self, since: Tick, now: Tick) {
        let stall = nanos(now.since(since));
        if now < self.from {
            return;
        }
        self.record.longest_stall_ns = self.record.longest_stall_ns.max(stall);
        self.present.stall_ns = self.present.stall_ns.max(stall);
        if now.since(since) > self.interval {
            // The wait extends into closed intervals.
            let length = self.interval.as_nanos().max(1);
            let first = since.since(self.from).as_nanos() / length;
            let first = usize::try_from(first).unwrap_or(usize::MAX);
            for piece in self.record.pieces.iter_mut().skip(first) {
                piece.stall_ns = piece.stall_ns.max(stall);
            }
        }
    }

    /// Counts an established connection.
    pub const fn opened(&mut self, now: Tick) {
        if self.counts(now) {
            self.present.opened += 1;
            self.record.connections += 1;
        } else if self.from.as_nanos() == NEVER.as_nanos() {
            self.record.connections += 1;
        }
    }

    /// Counts a failure.
    pub fn failed(&mut self, connection: u64, fault: &Fault, now: Tick) {
        self.roll(now);
        let kind = fault.kind();
        *self.record.failures.entry(kind).or_default() += 1;
        self.present.failures += 1;
        if self.record.first.len() < FIRST_FAILURES_MAX {
            self.record.first.push(Noted {
                at: now,
                kind,
                connection,
                position: fault.position(),
                detail: fault.detail(),
            });
        }
    }

    /// Counts a message planned for `due` and sent now; `free` if its connection could have sent it
    /// in time.
    ///
    /// While connections catch up after a stall of the server, all of them have much to send at
    /// once; a free one that waits for the others is not late because of the client.
    #[inline]
    pub fn planned(&mut self, due: Tick, free: bool, now: Tick) {
        let is_late = now.since(due) > LATE;
        if is_late && !free {
            self.caught_up = now;
        }
        if self.counts(now) {
            self.record.planned += 1;
            if is_late && free && due > self.caught_up {
                self.record.late += 1;
            }
        }
    }

    /// Counts `count` messages that were never sent and would not have been answered before the
    /// end: the first planned for `due`, each of the others `gap` after its predecessor. Only
    /// messages planned for the time measured count, with their waits.
    pub fn unsent(&mut self, due: Tick, gap: Duration, count: u64) {
        let gap = nanos(gap).max(1);
        let before = |end: Tick| nanos(end.since(due)).div_ceil(gap);
        let (first, end) = (before(self.from), before(self.until).min(count));
        let Some(number) = end.checked_sub(first).filter(|number| *number > 0) else {
            return;
        };
        self.record.planned += number;
        self.record.unsent += number;
        let entries = number.min(UNSENT_ENTRIES_MAX);
        for entry in 0..entries {
            // All messages of an entry count with the wait of the middle one.
            let from = share(number, entry, entries);
            let until = share(number, entry + 1, entries);
            let middle = first + u64::midpoint(from, until);
            let planned =
                Tick::from_nanos(due.as_nanos().saturating_add(gap.saturating_mul(middle)));
            let wait = nanos(self.until.since(planned));
            self.waits.saturating_record_n(wait.max(1), until - from);
        }
    }

    /// Returns the record; `cpu` is the CPU time used in the time measured.
    #[must_use]
    pub fn finish(mut self, cpu: Duration) -> Record {
        // Close the intervals left open because the load ended early.
        let end = if self.from == NEVER {
            NEVER
        } else {
            self.until
        };
        if self.piece_until != NEVER {
            self.roll(end);
        }
        // Answers after the end are collected separately, outside the series.
        histogram::join(&mut self.all, &self.answers);
        self.record.answers = histogram::pack(&self.all);
        self.record.waits = histogram::pack(&self.waits);
        self.record.counted_ns = nanos(self.until.since(self.from));
        self.record.cpu_ns = nanos(cpu);
        self.record
    }

    #[inline]
    const fn counts(&self, now: Tick) -> bool {
        now.as_nanos() >= self.from.as_nanos() && now.as_nanos() < self.until.as_nanos()
    }

    fn close_piece(&mut self) {
        let mut piece = std::mem::take(&mut self.present);
        piece.answers = histogram::pack(&self.answers);
        histogram::join(&mut self.all, &self.answers);
        self.answers.reset();
        self.record.pieces.push(piece);
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Record {
    /// Returns the number of failures of all kinds.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Returns the first `part` of `parts` of `whole`, in integers.
fn share(whole: u64, part: u64, parts: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(parts);
    u64::try_from(share).unwrap_or(whole)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
