//! Formats a measurement for other programs: JSON, CSV, Markdown, and the percentile distribution of
//! HdrHistogram.
//!
//! Invariants: numbers are exact, in the units that their names say; a text cannot end its cell. It
//! must not round, except in Markdown, which is for people.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::{capacity, figures, summary};
use crate::histogram::QUANTILES;
use crate::outcome::Outcome;
use uppercased_ctl::units;

/// Lines of the distribution until the remaining share has halved.
const TICKS_PER_HALF: u32 = 5;

/// Nanoseconds per unit of the distribution, a millisecond.
const NS_PER_MS: f64 = 1e6;

/// Returns all results as JSON.
///
/// # Errors
/// A number is not finite.
pub fn json(outcome: &Outcome) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(outcome)? + "\n")
}

/// Returns a row for each interval, or for each probe of a capacity.
#[must_use]
pub fn csv(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    if let Some(found) = &outcome.capacity {
        let names = QUANTILES.map(|quantile| format!("{}_ns", units::quantile(quantile)));
        let _ = writeln!(
            text,
            "rate_per_s,answered_per_s,measured_ms,failures,{},confirms,holds,why",
            names.join(",")
        );
        for one in &found.probes {
            let value = |quantile| figures::value_at(&one.percentiles, quantile);
            let values = QUANTILES.map(|q| value(q).map_or_else(String::new, |ns| ns.to_string()));
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{}",
                one.rate_per_s,
                one.answered_per_s,
                one.measured_ms,
                one.failures,
                values.join(","),
                one.confirms,
                one.holds,
                quoted(&one.why)
            );
        }
        return text;
    }
    text.push_str(
        "at_ms,length_ms,messages,bytes_received,connections_opened,failures,p50_ns,p99_ns,max_ns\n",
    );
    for one in &outcome.series {
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{}",
            one.at_ms,
            one.length_ms,
            one.messages,
            one.bytes_received,
            one.connections_opened,
            one.failures,
            one.p50_ns,
            one.p99_ns,
            one.max_ns
        );
    }
    text
}

/// Returns a cell of CSV.
fn quoted(text: &str) -> String {
    format!("\"{}\"", units::plain(text).replace('"', "\"\""))
}

/// Returns a table with the most important figures, and one with the probes of a capacity.
#[must_use]
pub fn markdown(outcome: &Outcome) -> String {
    let rate = figures::per_second(outcome.totals.messages, outcome.measured_ms);
    let (percentiles, max) = figures::seen_by_clients(outcome).unwrap_or((&[], 0));
    let mut head = vec!["measurement".to_owned(), "messages/s".to_owned()];
    let mut row = vec![
        cell(&summary::subject(outcome)),
        units::per_second(rate.unwrap_or(0.0)),
    ];
    for (name, value) in summary::shown(percentiles, max) {
        head.push(name);
        row.push(value);
    }
    head.push("failures".to_owned());
    row.push(units::short(figures::failures(outcome)));
    let mut text = table(&head, &[row]);
    if let Some(found) = &outcome.capacity {
        let mut head = capacity::HEAD.map(str::to_owned);
        head[3] = units::quantile(capacity::quantile(found));
        let rows: Vec<Vec<String>> = capacity::rows(found)
            .iter()
            .map(|row| row.iter().map(|text| cell(text)).collect())
            .collect();
        let result = cell(&capacity::result(found));
        let _ = write!(text, "\n{result}\n\n{}", table(&head, &rows));
    }
    text
}

/// Returns a text for a cell of a Markdown table.
pub(super) fn cell(text: &str) -> String {
    units::plain(text).replace('\\', "\\\\").replace('|', "\\|")
}

/// Returns a Markdown table, whose columns after the first are aligned to the right.
pub(super) fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|---|{}\n", "---:|".repeat(head.len().saturating_sub(1)));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(head) + &rule + &rows
}

/// Returns the distribution of the latencies in milliseconds, as HdrHistogram and wrk2 print it;
/// unsent messages are included.
#[must_use]
pub fn hgrm(outcome: &Outcome) -> String {
    let unsent = figures::unsent(outcome).map(|schedule| &schedule.histogram);
    let unsent = unsent.and_then(|text| figures::histogram(text));
    let histogram = unsent.or_else(|| figures::histogram(&outcome.latency.as_ref()?.histogram));
    let mut text = "       Value     Percentile TotalCount 1/(1-Percentile)\n\n".to_owned();
    let Some(histogram) = histogram else {
        return text;
    };
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_MS;
        let share = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {share:2.12} {total:10}");
        let _ = if share < 1.0 {
            writeln!(text, " {:14.2}", 1.0 / (1.0 - share))
        } else {
            writeln!(text)
        };
    }
    let shown = |ns: f64| ns / NS_PER_MS;
    let _ = write!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n\
         #[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        shown(histogram.mean()),
        shown(histogram.stdev()),
        shown(histogram.max() as f64),
        histogram.len(),
        histogram.buckets(),
        sub_buckets(&histogram)
    );
    text
}

/// Returns the number of steps of equal width in a bucket: the next power of two of twice the
/// precision.
fn sub_buckets(histogram: &Histogram<u64>) -> u64 {
    (2 * 10u64.pow(histogram.sigfig().into())).next_power_of_two()
}
