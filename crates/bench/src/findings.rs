//! Merges the records of all threads and processes: totals, series, percentiles, and clients'
//! observations around a point in time.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::histogram::{self, QUANTILES};
use super::outcome::{Failure, Interval, Latency, Percentile, Schedule, Seen, Totals};
use super::plan::millis;
use super::record::{FIRST_FAILURES_MAX, Noted, Record};
use uppercased_ctl::clock::Tick;

/// The merged records.
#[derive(Debug)]
pub struct Findings {
    pieces: Vec<Merged>,
    interval: Duration,
    answers: Histogram<u64>,
    waits: Histogram<u64>,
    sums: Record,
}

/// One interval of the series, all threads merged.
#[derive(Debug)]
struct Merged {
    messages: u64,
    bytes: u64,
    opened: u64,
    failures: u64,
    stall_ns: u64,
    answers: Histogram<u64>,
}

impl Findings {
    /// Merges `records` with intervals of length `interval`; the last one may be shorter.
    #[must_use]
    pub fn of(records: &[Record], interval: Duration) -> Self {
        let length = records.iter().map(|record| record.pieces.len()).max();
        let pieces = (0..length.unwrap_or(0)).map(|at| {
            let mut merged = Merged {
                messages: 0,
                bytes: 0,
                opened: 0,
                failures: 0,
                stall_ns: 0,
                answers: histogram::empty(),
            };
            for piece in records.iter().filter_map(|record| record.pieces.get(at)) {
                merged.messages += piece.messages;
                merged.bytes += piece.bytes;
                merged.opened += piece.opened;
                merged.failures += piece.failures;
                merged.stall_ns = merged.stall_ns.max(piece.stall_ns);
                if let Some(answers) = histogram::unpack(&piece.answers) {
                    histogram::join(&mut merged.answers, &answers);
                }
            }
            // Release unused memory: there may be a thousand of these.
            merged.answers = shrunk(&merged.answers);
            merged
        });
        let mut answers = histogram::empty();
        let mut waits = histogram::empty();
        let mut sums = Record::default();
        for record in records {
            for (sum, more) in [(&mut answers, &record.answers), (&mut waits, &record.waits)] {
                if let Some(more) = histogram::unpack(more) {
                    histogram::join(sum, &more);
                }
            }
            sums.connections += record.connections;
            sums.bytes_sent += record.bytes_sent;
            sums.longest_stall_ns = sums.longest_stall_ns.max(record.longest_stall_ns);
            sums.planned += record.planned;
            sums.late += record.late;
            sums.unsent += record.unsent;
            sums.cpu_ns += record.cpu_ns;
            sums.counted_ns = sums.counted_ns.max(record.counted_ns);
            for (kind, count) in &record.failures {
                *sums.failures.entry(*kind).or_default() += count;
            }
            sums.first.extend(record.first.iter().cloned());
        }
        sums.first.sort_by_key(|noted| noted.at);
        sums.first.truncate(FIRST_FAILURES_MAX);
        Self {
            pieces: pieces.collect(),
            interval,
            answers,
            waits,
            sums,
        }
    }

    /// Sums over all threads, without series and histogram.
    #[must_use]
    pub const fn sums(&self) -> &Record {
        &self.sums
    }

    /// Returns the time measured.
    #[must_use]
    pub const fn measured(&self) -> Duration {
        Duration::from_nanos(self.sums.counted_ns)
    }

    /// Returns the totals.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            connections: self.sums.connections,
            messages: self.pieces.iter().map(|piece| piece.messages).sum(),
            bytes_sent: self.sums.bytes_sent,
            bytes_received: self.pieces.iter().map(|piece| piece.bytes).sum(),
        }
    }

    /// Returns the number of failures by the word for their kind.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, u64> {
        let counts = self.sums.failures.iter();
        counts
            .map(|(kind, count)| (kind.name().to_owned(), *count))
            .collect()
    }

    /// Returns the first failures, with their time from `origin`.
    #[must_use]
    pub fn first_failures(&self, origin: Tick) -> Vec<Failure> {
        let failure = |noted: &Noted| Failure {
            kind: noted.kind.name().to_owned(),
            at_ms: millis(noted.at.since(origin)),
            connection: noted.connection,
            position: noted.position,
            detail: noted.detail.clone(),
        };
        self.sums.first.iter().map(failure).collect()
    }

    /// Returns a quantile of the latencies in nanoseconds; `None` without answers.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        (!self.answers.is_empty()).then(|| self.answers.value_at_quantile(quantile))
    }

    /// Returns the latency; `None` without answers.
    #[must_use]
    pub fn latency(&self) -> Option<Latency> {
        if self.answers.is_empty() {
            return None;
        }
        Some(Latency {
            count: self.answers.len(),
            min_ns: self.answers.min(),
            mean_ns: self.answers.mean() as u64,
            max_ns: self.answers.max(),
            percentiles: percentiles(&self.answers),
            histogram: histogram::pack(&self.answers),
        })
    }

    /// Returns the counts of planned messages.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        let (mut percentiles, mut max_ns, mut packed) = (Vec::new(), 0, String::new());
        if !self.waits.is_empty() {
            let mut all = self.answers.clone();
            histogram::join(&mut all, &self.waits);
            percentiles = self::percentiles(&all);
            max_ns = all.max();
            packed = histogram::pack(&all);
        }
        Schedule {
            planned: self.sums.planned,
            not_sent: self.sums.unsent,
            percentiles,
            max_ns,
            histogram: packed,
        }
    }

    /// Returns the series.
    #[must_use]
    pub fn series(&self) -> Vec<Interval> {
        let intervals = self.pieces.iter().zip(0u32..).map(|(piece, at)| {
            let begins = self.interval * at;
            let length = self.interval.min(self.measured().saturating_sub(begins));
            let quantile = |quantile| piece.answers.value_at_quantile(quantile);
            Interval {
                at_ms: millis(begins),
                length_ms: millis(length),
                messages: piece.messages,
                bytes_received: piece.bytes,
                connections_opened: piece.opened,
                failures: piece.failures,
                p50_ns: quantile(0.5),
                p99_ns: quantile(0.99),
                max_ns: piece.answers.max(),
            }
        });
        intervals.collect()
    }

    /// Returns clients' observations from `from` to `to`, both relative to the beginning, in whole
    /// intervals.
    #[must_use]
    pub fn seen(&self, from: Duration, to: Duration) -> Seen {
        let length = self.interval.as_nanos().max(1);
        let first = usize::try_from(from.as_nanos() / length).unwrap_or(usize::MAX);
        let end = usize::try_from(to.as_nanos().div_ceil(length)).unwrap_or(usize::MAX);
        let pieces = self.pieces.get(first..end.min(self.pieces.len()));
        let pieces = pieces.unwrap_or_default();
        let mut answers = histogram::empty();
        let (mut failures, mut stall_ns) = (0, 0);
        for piece in pieces {
            failures += piece.failures;
            stall_ns = stall_ns.max(piece.stall_ns);
            histogram::join(&mut answers, &piece.answers);
        }
        let window = self.interval * u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        Seen {
            failures,
            longest_stall_ms: stall_ns as f64 / 1e6,
            p99_ns: answers.value_at_quantile(0.99),
            window_ms: millis(window),
        }
    }
}

fn percentiles(times: &Histogram<u64>) -> Vec<Percentile> {
    let percentile = |quantile| {
        let (low_ns, high_ns) = histogram::interval(times, quantile);
        Percentile {
            quantile,
            value_ns: times.value_at_quantile(quantile),
            low_ns,
            high_ns,
        }
    };
    QUANTILES.map(percentile).to_vec()
}

/// Returns the same distribution in only as much memory as its longest time needs.
fn shrunk(histogram: &Histogram<u64>) -> Histogram<u64> {
    let high = histogram.max().max(2);
    let Ok(mut small) = Histogram::new_with_bounds(1, high, histogram::DIGITS) else {
        return histogram.clone();
    };
    match small.add(histogram) {
        Ok(()) => small,
        Err(_) => histogram.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Fault;
    use super::super::record::Recorder;
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    fn record(answers: &[(u64, u64)], failed_at: Option<u64>) -> Record {
        let mut recorder = Recorder::new();
        recorder.open(at(1000), at(1300), STEP);
        for &(from, now) in answers {
            recorder.received(7, at(now));
            recorder.answer(at(from), at(now));
            recorder.waited(at(from), at(now));
        }
        if let Some(ms) = failed_at {
            recorder.failed(1, &Fault::Unconnected, at(ms));
        }
        recorder.finish(STEP)
    }

    #[test]
    fn threads_add_up() {
        let records = [
            record(&[(1000, 1010), (1090, 1110)], Some(1120)),
            record(&[(1000, 1050), (1290, 1299)], Some(1115)),
        ];
        let findings = Findings::of(&records, STEP);
        let totals = findings.totals();
        assert_eq!((totals.messages, totals.bytes_received), (4, 28));
        let messages: Vec<u64> = findings
            .series()
            .iter()
            .map(|piece| piece.messages)
            .collect();
        assert_eq!(messages, [2, 1, 1]);
        assert_eq!(findings.failures()["connect_timeout"], 2);
        let first = findings.first_failures(at(1000));
        assert_eq!((first[0].at_ms, first[1].at_ms), (115, 120));
        let latency = findings.latency().unwrap();
        assert_eq!((latency.count, latency.max_ns / 1_000_000), (4, 50));
        assert_eq!(histogram::unpack(&latency.histogram).unwrap().len(), 4);
    }

    #[test]
    fn window_covers_only_its_pieces() {
        let records = [record(
            &[(1000, 1050), (1100, 1110), (1280, 1290)],
            Some(1295),
        )];
        let findings = Findings::of(&records, STEP);
        let seen = findings.seen(STEP * 2, STEP * 3);
        assert_eq!((seen.failures, seen.window_ms), (1, 100));
        assert_eq!(seen.p99_ns / 1_000_000, 10);
        let past = findings.seen(STEP * 9, STEP * 10);
        assert_eq!(past, Seen::default());
    }

    /// A server that stalls permanently after 61,700 of 2,061,700 messages.
    #[test]
    fn unsent_messages_do_not_become_answers() {
        let mut recorder = Recorder::new();
        recorder.open(at(1000), at(11_000), STEP);
        for _ in 0..61_700 {
            recorder.planned(at(1000), true, at(1000));
            recorder.answer(at(1000), at(1001));
        }
        recorder.unsent(at(1000), Duration::from_nanos(5000), u64::MAX);
        let findings = Findings::of(&[recorder.finish(STEP)], STEP);
        let latency = findings.latency().unwrap();
        assert_eq!(
            (latency.count, findings.totals().messages),
            (61_700, 61_700)
        );
        assert_eq!(latency.min_ns / 100_000, 9, "three digits of 1 ms");
        let schedule = findings.schedule();
        assert_eq!(
            (schedule.planned, schedule.not_sent),
            (2_061_700, 2_000_000)
        );
        let median = schedule.percentiles[0];
        assert!(
            median.quantile == 0.5 && median.value_ns > 4_000_000_000,
            "{median:?}"
        );
    }

    #[test]
    fn empty_window_has_no_latency() {
        let findings = Findings::of(&[], STEP);
        assert_eq!(findings.latency(), None);
        assert!(findings.series().is_empty());
    }
}
