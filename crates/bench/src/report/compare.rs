//! Compares measurements: medians with their spread, and the ratio B/A.
//!
//! Invariants: if both sides have the same number of runs, they are paired in the order given,
//! because on a shared machine only runs close in time are comparable; otherwise the ratio is that
//! of the medians, with the widest possible spread. A figure absent from any run is omitted, with a
//! note. Everything that makes the comparison unfair is reported. It must not call a difference
//! better or worse if the spread includes no difference.

mod export;
mod fairness;
mod result;
mod run;
mod table;

use std::fmt;

use serde::Serialize;

use super::figures::{self, Work};
use crate::outcome::{Checked, Outcome};
use uppercased_ctl::units;

pub use fairness::Warning;
pub(crate) use result::Conclusion;
pub use run::Run;

/// The comparison of two sides.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Facts about each side.
    pub(super) sides: [Side; 2],
    /// Every figure present in all runs.
    pub(super) rows: Vec<Row>,
    /// Names of figures present in only some runs.
    missing: Vec<&'static str>,
    /// Whether the ratios are those of pairs.
    paired: bool,
    /// Reasons against comparing them.
    warnings: Vec<Warning>,
    /// The conditions of `--fail-if`, if any, with their results.
    pub criteria: Vec<Checked>,
}

/// Facts about a side as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Side {
    pub(super) runs: usize,
    /// The version of the program that measured.
    program: String,
    target: String,
    /// The name of the server for people: its label, or its address.
    pub(super) name: String,
    pub(super) plan: Vec<String>,
    /// Whether the rate was planned.
    is_planned: bool,
}

/// A figure on both sides.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) figure: Figure,
    /// The value of each run.
    pub(super) values: [Vec<f64>; 2],
    pub(super) sides: [Spread; 2],
    pub(super) ratio: Spread,
}

/// A median with its range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// A figure that can be compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    better: Better,
    pub(super) show: fn(f64) -> String,
    of: fn(&Outcome) -> Option<f64>,
}

/// The better direction of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Higher,
    Lower,
}

/// The result of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Better,
    Worse,
    /// Every ratio is 1.
    Same,
    /// The spread of the ratio includes 1.
    Unclear,
    /// A single run on a side has no spread.
    Unknown,
}

const FIGURES: [Figure; 12] = [
    Figure {
        name: "capacity/s",
        better: Better::Higher,
        show: units::per_second,
        of: |outcome| outcome.capacity.as_ref()?.rate_per_s,
    },
    Figure {
        name: "messages/s",
        better: Better::Higher,
        show: units::per_second,
        of: |outcome| {
            let rate = figures::per_second(outcome.totals.messages, outcome.measured_ms);
            rate.filter(|rate| *rate > 0.0 && Work::of(outcome) != Work::Bytes)
        },
    },
    Figure {
        name: "connections/s",
        better: Better::Higher,
        show: units::per_second,
        of: |outcome| {
            let rate = figures::per_second(figures::opened(outcome), outcome.measured_ms);
            rate.filter(|_| outcome.plan.pattern == "churn")
        },
    },
    Figure {
        name: "bytes received",
        better: Better::Higher,
        show: units::byte_rate,
        of: |outcome| {
            let rate = figures::per_second(outcome.totals.bytes_received, outcome.measured_ms);
            rate.filter(|rate| *rate > 0.0 && Work::of(outcome) == Work::Bytes)
        },
    },
    Figure {
        name: "p50",
        better: Better::Lower,
        show: units::time,
        of: |outcome| percentile(outcome, 0.5),
    },
    Figure {
        name: "p99",
        better: Better::Lower,
        show: units::time,
        of: |outcome| percentile(outcome, 0.99),
    },
    Figure {
        name: "p99.9",
        better: Better::Lower,
        show: units::time,
        of: |outcome| percentile(outcome, 0.999),
    },
    Figure {
        name: "max",
        better: Better::Lower,
        show: units::time,
        of: |outcome| Some(figures::seen_by_clients(outcome)?.1 as f64),
    },
    Figure {
        name: "CPU per message",
        better: Better::Lower,
        show: units::time,
        of: |outcome| {
            let cost = outcome.server.as_ref()?.cpu_per_message_ns;
            (cost > 0.0 && Work::of(outcome) != Work::Bytes).then_some(cost)
        },
    },
    Figure {
        name: "CPU per byte",
        better: Better::Lower,
        show: units::time,
        of: |outcome| {
            let server = outcome.server.as_ref()?;
            let cost = figures::cpu_per_byte_ns(outcome, server);
            cost.filter(|_| Work::of(outcome) == Work::Bytes)
        },
    },
    Figure {
        name: "memory",
        better: Better::Lower,
        show: units::memory,
        of: |outcome| Some(outcome.server.as_ref()?.memory_bytes as f64),
    },
    Figure {
        name: "  a connection",
        better: Better::Lower,
        show: units::memory,
        of: |outcome| Some(outcome.server.as_ref()?.memory_per_connection_bytes),
    },
];

/// Compares runs of A with runs of B; a side may have no runs.
#[must_use]
pub fn compare(a: &[Run], b: &[Run]) -> Comparison {
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    for figure in FIGURES {
        let all = |runs: &[Run]| -> Vec<Option<f64>> {
            runs.iter().map(|run| (figure.of)(&run.outcome)).collect()
        };
        let (of_a, of_b) = (all(a), all(b));
        let complete = |side: &[Option<f64>]| side.iter().copied().collect::<Option<Vec<f64>>>();
        match (complete(&of_a), complete(&of_b)) {
            (Some(of_a), Some(of_b)) => rows.extend(row(figure, &of_a, &of_b)),
            _ if of_a.iter().chain(&of_b).all(Option::is_none) => {}
            _ => missing.push(figure.name.trim_start()),
        }
    }
    Comparison {
        sides: [side(a), side(b)],
        rows,
        missing,
        paired: a.len() == b.len(),
        warnings: fairness::warnings(a, b),
        criteria: Vec::new(),
    }
}

/// Returns the ratio B/A of a value; `None` if a run does not have it.
pub(crate) fn ratio(a: &[Run], b: &[Run], of: fn(&Outcome) -> Option<f64>) -> Option<Spread> {
    let values = |runs: &[Run]| runs.iter().map(|run| of(&run.outcome)).collect();
    let (a, b): (Option<Vec<f64>>, Option<Vec<f64>>) = (values(a), values(b));
    let (a, b) = (a?, b?);
    Spread::of_ratios(&a, &b, [Spread::of(&a)?, Spread::of(&b)?])
}

fn percentile(outcome: &Outcome, quantile: f64) -> Option<f64> {
    let (percentiles, _) = figures::seen_by_clients(outcome)?;
    Some(figures::value_at(percentiles, quantile)? as f64)
}

fn side(runs: &[Run]) -> Side {
    let first = runs.first().map(|run| &run.outcome);
    Side {
        runs: runs.len(),
        program: first.map_or_else(String::new, |one| one.program.clone()),
        target: first.map_or_else(String::new, |one| one.target.clone()),
        name: first.map_or_else(String::new, |one| {
            super::summary::server_name(one).to_owned()
        }),
        is_planned: first.is_some_and(|one| one.plan.rate_per_s.is_some()),
        plan: first.map_or_else(Vec::new, |one| {
            let mut plan = super::summary::plan(&one.plan);
            plan.insert(0, units::cut(&one.plan.pattern, super::COLUMNS));
            plan
        }),
    }
}

fn row(figure: Figure, a: &[f64], b: &[f64]) -> Option<Row> {
    let sides = [Spread::of(a)?, Spread::of(b)?];
    Some(Row {
        figure,
        values: [a.to_vec(), b.to_vec()],
        sides,
        ratio: Spread::of_ratios(a, b, sides)?,
    })
}

/// Returns B/A; 1 if both are 0.
fn quotient(b: f64, a: f64) -> f64 {
    if a == b { 1.0 } else { b / a }
}

impl Spread {
    /// Returns the median of `values`; `None` if empty.
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// Returns the spread of B/A: of the pairs, or else of the medians.
    fn of_ratios(a: &[f64], b: &[f64], [of_a, of_b]: [Self; 2]) -> Option<Self> {
        if a.len() == b.len() {
            let pairs: Vec<f64> = a.iter().zip(b).map(|(a, b)| quotient(*b, *a)).collect();
            return Self::of(&pairs);
        }
        Some(Self {
            median: quotient(of_b.median, of_a.median),
            least: quotient(of_b.least, of_a.most),
            most: quotient(of_b.most, of_a.least),
        })
    }
}

/// Writes a ratio.
impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, least, most] = [self.median, self.least, self.most].map(close_ratio);
        match least == most {
            true => out.write_str(&median),
            false => write!(out, "{median}, {least} to {most}"),
        }
    }
}

/// Formats a ratio with the digits that tell two close ones apart.
fn close_ratio(value: f64) -> String {
    if value.is_finite() && value < 100.0 {
        format!("{value:.3}")
    } else {
        units::ratio(value)
    }
}

impl Comparison {
    /// Returns the result of a row, given the number of runs.
    pub(super) fn difference(&self, row: &Row) -> Difference {
        if self.sides.iter().any(|side| side.runs < 2) {
            return Difference::Unknown;
        }
        let higher = match row.ratio {
            ratio if ratio.least == 1.0 && ratio.most == 1.0 => return Difference::Same,
            ratio if ratio.least > 1.0 => true,
            ratio if ratio.most < 1.0 => false,
            _ => return Difference::Unclear,
        };
        if higher == (row.figure.better == Better::Higher) {
            Difference::Better
        } else {
            Difference::Worse
        }
    }

    /// Returns the reasons against comparing these runs.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns the number of failed criteria.
    #[must_use]
    pub fn failed_criteria(&self) -> usize {
        self.criteria.iter().filter(|one| one.is_failed).count()
    }
}
