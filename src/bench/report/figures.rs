//! What follows from the numbers of an outcome: rates, totals, a histogram.
//!
//! Invariants: what was not measured is `None`, never zero; no division by zero.
//! Must not: format anything.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use crate::bench::outcome::{Latency, Mark, Outcome};

/// The quantiles that a report shows.
pub(super) const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Two quantiles closer than this are the same: they went through decimal text.
const SAME_QUANTILE: f64 = 1e-9;

/// What a pattern is there to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Messages answered.
    Messages,
    /// Bytes received.
    Bytes,
    /// Connections that came about.
    Connections,
}

impl Work {
    /// What the pattern of this outcome is there to count.
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome.plan.pattern.as_str() {
            "stream" => Self::Bytes,
            "churn" | "idle" => Self::Connections,
            _ => Self::Messages,
        }
    }
}

/// So many a second, of things counted in the time measured.
pub(super) fn per_second(things: u64, measured_ms: u64) -> Option<f64> {
    (measured_ms > 0).then(|| things as f64 * 1000.0 / measured_ms as f64)
}

/// Failures of all kinds.
pub(super) fn failures(outcome: &Outcome) -> u64 {
    outcome
        .failures
        .values()
        .fold(0, |sum, times| sum.saturating_add(*times))
}

/// A percentile, if it was measured.
pub(super) fn percentile(latency: &Latency, quantile: f64) -> Option<u64> {
    let found = latency
        .percentiles
        .iter()
        .find(|at| (at.quantile - quantile).abs() < SAME_QUANTILE);
    found.map(|at| at.value_ns)
}

/// How unevenly the workers share the connections: the busiest one's part in multiples of the
/// mean. `None` with fewer than two workers or without a connection.
pub(super) fn skew(by_worker: &[u64]) -> Option<f64> {
    let all: f64 = by_worker.iter().map(|open| *open as f64).sum();
    let most = by_worker.iter().max().copied().unwrap_or(0);
    (by_worker.len() > 1 && all > 0.0).then(|| most as f64 * by_worker.len() as f64 / all)
}

/// The command of all marks, if it is always the same.
pub(super) fn only_command(marks: &[Mark]) -> Option<&str> {
    let first = marks.first()?.command.as_str();
    marks
        .iter()
        .all(|mark| mark.command == first)
        .then_some(first)
}

/// Every latency measured; `None` if the outcome carries none that can be read, which costs a
/// report its finest curve and nothing else.
pub(super) fn histogram(latency: &Latency) -> Option<Histogram<u64>> {
    let bytes = STANDARD.decode(&latency.histogram).ok()?;
    let histogram = Deserializer::new()
        .deserialize::<u64, _>(&mut bytes.as_slice())
        .ok()?;
    (!histogram.is_empty()).then_some(histogram)
}
