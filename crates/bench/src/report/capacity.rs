//! Formats the search of a capacity: its result, and the curve of latency by rate.
//!
//! Invariants: the number of rows is bounded. It must not decide whether a probe holds.

use super::COLUMNS;
use super::figures;
use super::layout::{LABEL_COLUMNS, sentence};
use crate::outcome::{Capacity, Probe};
use uppercased_ctl::units;

/// Maximum number of probes shown; only an edited file can have more.
const PROBES_MAX: usize = 60;

/// Column width of a figure.
const FIGURE: usize = units::WIDTH;

/// The head of each column of the curve, after the rate.
pub(super) const HEAD: [&str; 6] = ["rate", "answered", "p50", "p99", "up to", ""];

/// Returns the result and the curve.
pub(super) fn lines(capacity: &Capacity) -> Vec<String> {
    let mut lines = sentence("CAPACITY", &result(capacity));
    let [rate, answered, p50, _, up_to, _] = HEAD;
    let quantile = units::quantile(quantile(capacity));
    lines.push(format!(
        "{:<LABEL_COLUMNS$}{rate:>7}{answered:>10}{p50:>FIGURE$}{quantile:>FIGURE$}{up_to:>FIGURE$}",
        "curve"
    ));
    let rows = rows(capacity);
    for [rate, answered, p50, value, up_to, note] in rows.iter().take(PROBES_MAX) {
        let line = format!(
            "{:LABEL_COLUMNS$}{rate:>7}{answered:>10}{p50:>FIGURE$}{value:>FIGURE$}{up_to:>FIGURE$}  {note}",
            ""
        );
        lines.push(units::cut(&line, COLUMNS).trim_end().to_owned());
    }
    let hidden = rows.len().saturating_sub(PROBES_MAX);
    if hidden > 0 {
        lines.extend(sentence("", &format!("… {hidden} more probes")));
    }
    lines.extend(sentence(
        "",
        "up to: upper bound of the 95 % confidence interval, which must hold",
    ));
    lines.push(String::new());
    lines
}

/// Describes the result in a sentence.
pub(super) fn result(capacity: &Capacity) -> String {
    let target = capacity.target();
    let show = units::per_second;
    match (capacity.rate_per_s, capacity.missed_per_s) {
        (Some(rate), Some(missed)) => format!(
            "{} messages/s hold {target}, {} do not",
            show(rate),
            show(missed)
        ),
        (Some(rate), None) => format!("{} messages/s hold {target}", show(rate)),
        (None, _) => format!("no confirmed rate holds {target}"),
    }
}

/// Returns the quantile shown: that of the first target.
pub(super) fn quantile(capacity: &Capacity) -> f64 {
    let first = capacity.targets.first();
    first.map_or(0.99, |target| target.quantile)
}

/// Returns the probes in order of their rate, with the cells of [`HEAD`].
pub(super) fn rows(capacity: &Capacity) -> Vec<[String; 6]> {
    let quantile = quantile(capacity);
    let mut probes: Vec<&Probe> = capacity.probes.iter().collect();
    probes.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    let row = |probe: &Probe| {
        let of = |quantile| figures::percentile_of(&probe.percentiles, quantile);
        let show = |ns: Option<u64>| ns.map_or_else(|| units::NONE.to_owned(), units::time_ns);
        let note = match (probe.holds, probe.confirms) {
            (true, true) => "confirmed".to_owned(),
            (true, false) => "holds".to_owned(),
            (false, _) => units::cut(&probe.why, COLUMNS),
        };
        [
            units::per_second(probe.rate_per_s),
            units::per_second(probe.answered_per_s),
            show(of(0.5).map(|one| one.value_ns)),
            show(of(quantile).map(|one| one.value_ns)),
            show(of(quantile).map(|one| one.high_ns)),
            note,
        ]
    };
    probes.into_iter().map(row).collect()
}
