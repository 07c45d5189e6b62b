//! What one thread saw, written down while it happens.
//!
//! One histogram takes the answers of the present piece of the series; when the piece is over, it
//! is added to that of the whole, packed (a few hundred bytes) and emptied. So an answer costs one
//! entry, and a measurement of a week as little memory as one of a minute.
//!
//! Invariants: what came before the beginning is not counted, failures excepted; what came after
//! the end counts for the times of answers only; the pieces leave no gap.
//! Pure: the time is handed in.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::failure::{Fault, Kind};
use super::histogram;
use crate::clock::Tick;

/// Failures whose particulars are kept.
pub const FIRST_FAILURES_MAX: usize = 20;

/// A message that was sent this long after it was planned, though its connection was free, was
/// late by the client's own doing.
pub const LATE: Duration = Duration::from_millis(1);

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
    #[inline]
    pub fn planned(&mut self, due: Tick, free: bool, now: Tick) {
        if self.counts(now) {
            self.record.planned += 1;
            if free && now.since(due) > LATE {
                self.record.late += 1;
            }
        }
    }

    /// A message that was planned for `due` was never sent: it would have been answered after the
    /// end at the earliest. Leaving it out would hide the very stall that kept it back.
    pub fn unsent(&mut self, due: Tick) {
        if due >= self.from && due < self.until {
            self.record.planned += 1;
            self.record.unsent += 1;
            histogram::note(&mut self.answers, self.until.since(due));
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

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    /// Counts from 1000 to 1250 ms.
    fn opened() -> Recorder {
        let mut recorder = Recorder::new();
        recorder.open(at(1000), at(1250), STEP);
        recorder
    }

    fn answer(recorder: &mut Recorder, from: u64, now: u64) {
        recorder.received(10, at(now));
        recorder.answer(at(from), at(now));
    }

    #[test]
    fn only_what_is_within_counts_and_nothing_of_it_is_lost() {
        let mut recorder = opened();
        recorder.opened(at(500));
        for (from, now) in [
            (990, 999),
            (995, 1000),
            (1001, 1099),
            (1100, 1249),
            (1240, 1260),
        ] {
            answer(&mut recorder, from, now);
        }
        let record = recorder.finish(STEP);
        let messages: Vec<u64> = record.pieces.iter().map(|piece| piece.messages).collect();
        assert_eq!(messages, [2, 0, 1]);
        let bytes: u64 = record.pieces.iter().map(|piece| piece.bytes).sum();
        assert_eq!(bytes, 30);
        // The late one is an answer all the same, and no slower for being left out.
        assert_eq!(histogram::unpack(&record.answers).unwrap().len(), 4);
        assert_eq!(record.connections, 0, "opened during the warm-up");
    }

    #[test]
    fn connections_of_the_beginning_count() {
        let mut recorder = Recorder::new();
        recorder.opened(at(5));
        assert_eq!(recorder.finish(STEP).connections, 1);
    }

    #[test]
    fn a_stall_shows_in_every_piece_it_reaches_into() {
        let mut recorder = opened();
        recorder.roll(at(1245));
        recorder.waited(at(1110), at(1245));
        let record = recorder.finish(STEP);
        let stalls: Vec<u64> = record
            .pieces
            .iter()
            .map(|p| p.stall_ns / 1_000_000)
            .collect();
        assert_eq!(stalls, [0, 135, 135]);
        assert_eq!(record.longest_stall_ns, 135_000_000);
    }

    #[test]
    fn what_was_planned_and_not_sent_counts_with_the_time_it_waited() {
        let mut recorder = opened();
        for due in [900, 1050, 1249, 1250] {
            recorder.unsent(at(due));
        }
        let record = recorder.finish(STEP);
        let answers = histogram::unpack(&record.answers).unwrap();
        assert_eq!((record.unsent, answers.len()), (2, 2));
        assert_eq!(answers.max() / 1_000_000, 200);
    }

    #[test]
    fn lateness_is_told_from_a_busy_connection() {
        let mut recorder = opened();
        recorder.planned(at(1000), true, at(1010));
        recorder.planned(at(1000), false, at(1010));
        recorder.planned(at(1010), true, at(1010));
        let record = recorder.finish(STEP);
        assert_eq!((record.planned, record.late), (3, 1));
    }

    #[test]
    fn an_early_end_closes_the_last_piece_short() {
        let mut recorder = opened();
        answer(&mut recorder, 1000, 1120);
        recorder.cut(at(1130));
        recorder.roll(at(2000));
        let record = recorder.finish(STEP);
        assert_eq!(record.pieces.len(), 2);
        assert_eq!(record.pieces[1].messages, 1);
    }

    #[test]
    fn failures_count_at_any_time() {
        let mut recorder = Recorder::new();
        let fault = Fault::Ended {
            position: 7,
            owed: 1,
        };
        for _ in 0..30 {
            recorder.failed(4, &fault, at(3));
        }
        let record = recorder.finish(STEP);
        assert_eq!(
            (record.failed(), record.first.len()),
            (30, FIRST_FAILURES_MAX)
        );
        assert_eq!(record.first[0].position, Some(7));
    }
}
