//! Figures derived from an outcome: rates, totals and the histogram.
//!
//! Invariants: a figure that was not measured is `None`, never zero; no division by zero. It must
//! not format anything.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use crate::outcome::{Latency, Mark, Outcome, Percentile, Schedule, Server};

/// The quantiles that a report shows.
pub(super) const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Tolerance for equal quantiles, which were converted to decimal text and back.
const SAME_QUANTILE: f64 = 1e-9;

/// Magic number and header length of a histogram's serialization.
const HISTOGRAM_V2: u32 = 0x1c84_9313;
const HISTOGRAM_HEADER_BYTES: usize = 40;

/// The unit of work of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Messages answered.
    Messages,
    /// Bytes received.
    Bytes,
    /// Connections established.
    Connections,
}

impl Work {
    /// Returns the unit of work of this outcome's pattern.
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome.plan.pattern.as_str() {
            "stream" => Self::Bytes,
            "churn" | "idle" | "stall" => Self::Connections,
            _ => Self::Messages,
        }
    }
}

/// Returns the rate per second of items counted in the time measured.
pub(crate) fn per_second(things: u64, measured_ms: u64) -> Option<f64> {
    (measured_ms > 0).then(|| things as f64 * 1000.0 / measured_ms as f64)
}

/// Returns the connections established during the measurement; earlier ones are excluded if the
/// series separates them.
pub(crate) fn opened(outcome: &Outcome) -> u64 {
    if outcome.series.is_empty() {
        return outcome.totals.connections;
    }
    let opened = outcome.series.iter().map(|one| one.connections_opened);
    opened.fold(0, u64::saturating_add)
}

/// Returns the number of failures of all kinds.
pub(crate) fn failures(outcome: &Outcome) -> u64 {
    outcome
        .failures
        .values()
        .fold(0, |sum, times| sum.saturating_add(*times))
}

/// Returns the server's CPU time per received byte, in nanoseconds.
pub(super) fn cpu_per_byte_ns(outcome: &Outcome, server: &Server) -> Option<f64> {
    let bytes = outcome.totals.bytes_received;
    let ms = server.user_ms as f64 + server.system_ms as f64;
    (bytes > 0).then(|| ms * 1e6 / bytes as f64)
}

/// Returns a percentile of the latencies, if measured.
pub(super) fn percentile(latency: &Latency, quantile: f64) -> Option<u64> {
    value_at(&latency.percentiles, quantile)
}

/// Returns the counts of planned messages, if some were unsent.
pub(super) fn unsent(outcome: &Outcome) -> Option<&Schedule> {
    let schedule = outcome.schedule.as_ref();
    schedule.filter(|schedule| schedule.not_sent > 0 && !schedule.percentiles.is_empty())
}

/// Returns the percentiles and the maximum observed by clients: unsent messages are included, so
/// that a server does not benefit from delaying them.
pub(crate) fn seen_by_clients(outcome: &Outcome) -> Option<(&[Percentile], u64)> {
    if let Some(schedule) = unsent(outcome) {
        return Some((&schedule.percentiles, schedule.max_ns));
    }
    let latency = outcome.latency.as_ref()?;
    Some((&latency.percentiles, latency.max_ns))
}

/// Returns the value at a quantile, if it is among them.
pub(crate) fn value_at(percentiles: &[Percentile], quantile: f64) -> Option<u64> {
    percentile_of(percentiles, quantile).map(|at| at.value_ns)
}

/// Returns the percentile of a quantile, if it is among them.
pub(crate) fn percentile_of(percentiles: &[Percentile], quantile: f64) -> Option<&Percentile> {
    let mut all = percentiles.iter();
    all.find(|at| (at.quantile - quantile).abs() < SAME_QUANTILE)
}

/// Returns the imbalance of connections between workers: the busiest worker's number as a multiple
/// of the mean. `None` with fewer than two workers or no connections.
pub(super) fn skew(by_worker: &[u64]) -> Option<f64> {
    let all: f64 = by_worker.iter().map(|open| *open as f64).sum();
    let most = by_worker.iter().max().copied().unwrap_or(0);
    (by_worker.len() > 1 && all > 0.0).then(|| most as f64 * by_worker.len() as f64 / all)
}

/// Returns the command of all marks, if it is the same.
pub(super) fn only_command(marks: &[Mark]) -> Option<&str> {
    let first = marks.first()?.command.as_str();
    marks
        .iter()
        .all(|mark| mark.command == first)
        .then_some(first)
}

/// Returns the histogram of latencies in this text; `None` if it is absent or unreadable, which omits only
/// the finest curve of a report.
pub(super) fn histogram(packed: &str) -> Option<Histogram<u64>> {
    let bytes = STANDARD.decode(packed).ok()?;
    if !announces_itself(&bytes) {
        return None;
    }
    let histogram = Deserializer::new()
        .deserialize::<u64, _>(&mut bytes.as_slice())
        .ok()?;
    (!histogram.is_empty()).then_some(histogram)
}

/// Returns whether the serialized histogram has the length in its header. The decoder allocates
/// that length, and a file may contain any.
fn announces_itself(bytes: &[u8]) -> bool {
    let number = |at: usize| {
        let four = bytes.get(at..at + 4)?;
        four.try_into().ok().map(u32::from_be_bytes)
    };
    let counts = bytes.len().checked_sub(HISTOGRAM_HEADER_BYTES);
    number(0) == Some(HISTOGRAM_V2)
        && counts.is_some_and(|counts| number(4).is_some_and(|count| count as usize == counts))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::{Serializer as _, V2Serializer};
    use proptest::prelude::*;

    use super::*;

    fn serialized() -> Vec<u8> {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for value in [1, 1000, 1001, 5_000_000, 5_000_000] {
            histogram.record(value).unwrap();
        }
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(&histogram, &mut bytes)
            .unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Histogram<u64>> {
        histogram(&STANDARD.encode(bytes))
    }

    #[test]
    fn histogram_is_read_and_inconsistent_one_refused() {
        assert_eq!(read(&serialized()).unwrap().len(), 5);
        let mut greedy = serialized();
        greedy[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read(&greedy).is_none());
        assert!(read(&serialized()[..39]).is_none());
        assert!(read(&[]).is_none());
        let mut other = serialized();
        other[3] ^= 1;
        assert!(read(&other).is_none());
    }

    #[test]
    fn skew_needs_workers_and_connections() {
        assert_eq!(skew(&[30, 10]), Some(1.5));
        assert_eq!((skew(&[7]), skew(&[0, 0]), skew(&[])), (None, None, None));
        assert_eq!(skew(&[u64::MAX, u64::MAX]), Some(1.0));
    }

    proptest! {
        #[test]
        fn figures_handle_any_counts(
            at in 40usize..60, noise in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let mut bytes = serialized();
            bytes.truncate(at);
            bytes.extend(noise);
            let counts = u32::try_from(bytes.len() - HISTOGRAM_HEADER_BYTES).unwrap();
            bytes[4..8].copy_from_slice(&counts.to_be_bytes());
            if let Some(histogram) = read(&bytes) {
                let _ = histogram.value_at_quantile(0.999);
            }
        }
    }
}
