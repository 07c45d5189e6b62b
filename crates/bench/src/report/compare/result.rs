//! The result of a comparison in one sentence: faster, slower, or not distinguishable.
//!
//! Invariant: the sentence is that of the row that the pattern measures: a rate, or the latency at a
//! planned rate. It must not compute a figure.

use super::{Comparison, Difference, Row, close_ratio};
use uppercased_ctl::units;

/// The figure of a planned rate.
const LATENCY: &str = "p99";

/// Probability that runs of equal servers agree by chance, above which they prove nothing.
const CHANCE_MAX: f64 = 0.05;

/// The conclusion about B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conclusion {
    /// B is better.
    Faster,
    /// B is worse.
    Slower,
    NotDistinguishable,
    /// Too few runs, or nothing to compare.
    Unknown,
}

impl Conclusion {
    pub(crate) const ALL: [Self; 4] = [
        Self::Faster,
        Self::Slower,
        Self::NotDistinguishable,
        Self::Unknown,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NotDistinguishable => "not distinguishable",
            Self::Unknown => "unknown",
        }
    }
}

impl Comparison {
    /// Returns the row that decides.
    pub(in super::super) fn deciding_row(&self) -> Option<&Row> {
        let is_planned = self.sides.iter().all(|side| side.is_planned);
        let has_capacity = self
            .rows
            .first()
            .is_some_and(|row| row.figure.name == "capacity/s");
        let latency = || self.rows.iter().find(|row| row.figure.name == LATENCY);
        let latency = if is_planned && !has_capacity {
            latency()
        } else {
            None
        };
        latency.or_else(|| self.rows.first())
    }

    pub(crate) fn conclusion(&self) -> Conclusion {
        let may_be_chance = self.chance() > CHANCE_MAX;
        match self.deciding_row().map(|row| self.difference(row)) {
            Some(Difference::Better | Difference::Worse) if may_be_chance => Conclusion::Unknown,
            Some(Difference::Better) => Conclusion::Faster,
            Some(Difference::Worse) => Conclusion::Slower,
            Some(Difference::Same | Difference::Unclear) => Conclusion::NotDistinguishable,
            Some(Difference::Unknown) | None => Conclusion::Unknown,
        }
    }

    /// Returns the probability that all runs of equal servers agree which is better: in pairs, each
    /// of which is like a coin, or if the sides are separate, in one of all their orders.
    fn chance(&self) -> f64 {
        let [a, b] = self.sides.each_ref().map(|side| side.runs as f64);
        if self.paired {
            return 2f64.powf(1.0 - a);
        }
        let (fewer, all) = (a.min(b) as u32, a + b);
        let orders = (0..fewer).map(f64::from);
        2.0 / orders.map(|at| (all - at) / (at + 1.0)).product::<f64>()
    }

    /// Returns the conclusion as a sentence.
    pub(in super::super) fn result(&self) -> String {
        let Some(row) = self.deciding_row() else {
            return "unknown: there is nothing to compare".to_owned();
        };
        let [a, b] = self.sides.each_ref();
        let pairs = if self.paired {
            units::counted(a.runs as u64, "pair")
        } else {
            units::counted((a.runs + b.runs) as u64, "run")
        };
        let name = row.figure.name.trim_start();
        let ratio = format!("{name} B/A {} in {pairs}", row.ratio);
        let (faster, slower) = match name {
            "memory" => ("smaller", "larger"),
            _ => ("faster", "slower"),
        };
        let [a, b] = [&a.name, &b.name];
        match self.conclusion() {
            Conclusion::Faster => {
                format!("B ({b}) is {faster} than A ({a}): {ratio}")
            }
            Conclusion::Slower => {
                format!("B ({b}) is {slower} than A ({a}): {ratio}")
            }
            Conclusion::NotDistinguishable => {
                format!("A ({a}) and B ({b}) are not distinguishable: {ratio}")
            }
            Conclusion::Unknown if self.sides.iter().any(|side| side.runs < 2) => {
                let median = close_ratio(row.ratio.median);
                format!("unknown: {name} B/A {median}, and a single run has no spread")
            }
            Conclusion::Unknown => format!(
                "unknown: {ratio}, but so few runs of equal servers agree by \
                 chance in {} of all cases; use 8 of each",
                units::share(self.chance())
            ),
        }
    }
}
