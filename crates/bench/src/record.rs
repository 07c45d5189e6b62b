//! What one thread saw, written down while it happens.
//!
//! One histogram takes the answers of the present piece of the series; when the piece is over, it
//! is added to that of the whole, packed (a few hundred bytes) and emptied. So an answer costs one
//! entry, and a measurement of a week as little memory as one of a minute.
//!
//! Invariants: what came before the beginning is not counted, failures excepted; what came after
//! the end counts for the times of answers only; the pieces leave no gap. A message that was planned
//! and never sent is no answer: it has its own count and its own histogram.
//! Pure: the time is handed in.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::failure::{Fault, Kind};
use super::histogram;
use uppercased_ctl::clock::Tick;

/// Failures whose particulars are kept.
pub const FIRST_FAILURES_MAX: usize = 20;

/// A message that was sent this long after it was planned, though its connection was free, was
/// late by the client's own doing.
pub const LATE: Duration = Duration::from_millis(1);

/// Waits of unsent messages that are recorded one by one for each connection; more of them share
/// that many entries.
const UNSENT_ENTRIES_MAX: u64 = 4096;

/// Takes note.
#[derive(Debug)]
pub struct Recorder {
    /// Nothing counts before; the end of time until it is known.
    from: Tick,
    until: Tick,
    interval: Duration,
    /// When the present piece is over; the end of time when none is open.
    piece_until: Tick,
    present: Piece,
    answers: Histogram<u64>,
    all: Histogram<u64>,
    waits: Histogram<u64>,
    /// Messages planned before this are late because others were, not because of the client.
    caught_up: Tick,
    record: Record,
}

/// What one thread, process or measurement saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The series.
    pub pieces: Vec<Piece>,
    /// Every answer: an HDR histogram, packed.
    pub answers: String,
    /// Connections that came about, those of the beginning included.
    pub connections: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Failures by kind.
    pub failures: BTreeMap<Kind, u64>,
    /// The first of them.
    pub first: Vec<Noted>,
    /// Longest time without an answer to a connection that waited for one.
    pub longest_stall_ns: u64,
    /// Messages that were planned and whose time came.
    pub planned: u64,
    /// Of them, sent late by the client's own doing.
    pub late: u64,
    /// Of them, never sent, because earlier ones were not answered.
    pub unsent: u64,
    /// How long each of those had waited at the end: an HDR histogram, packed.
    pub waits: String,
    /// How long it counted.
    pub counted_ns: u64,
    /// CPU time in that time.
    pub cpu_ns: u64,
}

/// A piece of the series.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Messages answered.
    pub messages: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Connections that came about.
    pub opened: u64,
    /// Failures.
    pub failures: u64,
    /// Longest time without an answer that reached into it.
    pub stall_ns: u64,
    /// Answers: an HDR histogram, packed; empty if there was none.
    pub answers: String,
}

/// A failure's particulars.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// When; not counted from the beginning, so that those of several processes can be ordered.
    pub at: Tick,
    /// What.
    pub kind: Kind,
    /// Whose.
    pub connection: u64,
    /// After so many right bytes.
    pub position: Option<u64>,
    /// What was seen.
    pub detail: String,
}

const NEVER: Tick = Tick::from_nanos(u64::MAX);

impl Recorder {
    /// Counts nothing until [`Self::open`] is called, failures and connections excepted.
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

    /// Counts from `from` until `until`, in pieces of `interval`.
    pub fn open(&mut self, from: Tick, until: Tick, interval: Duration) {
        self.from = from;
        self.until = until;
        self.interval = interval;
        self.piece_until = from + interval;
    }

    /// It is over by `now`, earlier than planned.
    pub fn cut(&mut self, now: Tick) {
        self.roll(now);
        if now < self.until {
            self.until = now.max(self.from);
            self.close_piece();
            self.piece_until = NEVER;
        }
    }

    /// Closes the pieces that are over. To be called once a turn, also when nothing happens.
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

    /// `bytes` came.
    #[inline]
    pub fn received(&mut self, bytes: usize, now: Tick) {
        self.roll(now);
        if self.counts(now) {
            self.present.bytes += bytes as u64;
        }
    }

    /// `bytes` went.
    #[inline]
    pub const fn sent(&mut self, bytes: u64, now: Tick) {
        if self.counts(now) {
            self.record.bytes_sent += bytes;
        }
    }

    /// A message, whose time counts from `from`, was answered.
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

    /// A connection that had waited since `since` got something, or gave up.
    #[inline]
    pub fn waited(&mut self, since: Tick, now: Tick) {
        let stall = nanos(now.since(since));
        if now < self.from {
            return;
        }
        self.record.longest_stall_ns = self.record.longest_stall_ns.max(stall);
        self.present.stall_ns = self.present.stall_ns.max(stall);
        if now.since(since) > self.interval {
            // It reached into pieces that are closed.
            let length = self.interval.as_nanos().max(1);
            let first = since.since(self.from).as_nanos() / length;
            let first = usize::try_from(first).unwrap_or(usize::MAX);
            for piece in self.record.pieces.iter_mut().skip(first) {
                piece.stall_ns = piece.stall_ns.max(stall);
            }
        }
    }

    /// A connection came about.
    pub const fn opened(&mut self, now: Tick) {
        if self.counts(now) {
            self.present.opened += 1;
            self.record.connections += 1;
        } else if self.from.as_nanos() == NEVER.as_nanos() {
            self.record.connections += 1;
        }
    }

    /// Something went wrong.
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

    /// A message that was planned for `due` is sent now; `free` if nothing kept its connection
    /// from sending it in time.
    ///
    /// While connections catch up after a stall of the server, all of them have much to send at
    /// once; a free one that has to wait for the others is not late by the client's doing.
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

    /// `count` messages, the first planned for `due`, the others each `gap` after the one before,
    /// were never sent: none would have been answered before the end. Those that were planned for
    /// the time that counts are counted, with how long they had waited.
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
            // The messages of an entry wait as long as its middle one.
            let from = share(number, entry, entries);
            let until = share(number, entry + 1, entries);
            let middle = first + u64::midpoint(from, until);
            let planned =
                Tick::from_nanos(due.as_nanos().saturating_add(gap.saturating_mul(middle)));
            let wait = nanos(self.until.since(planned));
            self.waits.saturating_record_n(wait.max(1), until - from);
        }
    }

    /// What was seen. Spent `cpu` while it counted.
    #[must_use]
    pub fn finish(mut self, cpu: Duration) -> Record {
        // Pieces that nobody closed, because the end came first.
        let end = if self.from == NEVER {
            NEVER
        } else {
            self.until
        };
        if self.piece_until != NEVER {
            self.roll(end);
        }
        // What came after the end has a piece to itself, which is not part of the series.
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
    /// Failures of all kinds.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// The first `part` of `parts` of `whole`, in whole numbers.
fn share(whole: u64, part: u64, parts: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(parts);
    u64::try_from(share).unwrap_or(whole)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
