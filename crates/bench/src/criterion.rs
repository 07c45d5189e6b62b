//! Conditions under which a measurement fails, as in `--fail-if 'p99 > 5ms'`.
//!
//! Invariants: an unknown metric, a missing unit or a metric that the pattern does not measure is
//! an error before the measurement; a metric that was not measured fails it. Pure.

mod comparison;

use std::fmt;
use std::str::FromStr;

use super::outcome::{Checked, Outcome};
use super::report::figures;
pub use comparison::ComparisonCriterion;
use uppercased_ctl::units;

/// A condition under which a measurement fails.
#[derive(Clone, Debug)]
pub struct Criterion {
    text: String,
    metric: &'static Metric,
    relation: Relation,
    /// In the unit of the metric; a share if [`Self::of_plan`].
    limit: f64,
    /// Whether the limit is a share of the planned rate.
    of_plan: bool,
}

/// A comparison with the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// The kind of a number, which determines its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nanoseconds.
    Time,
    /// Items per second.
    Rate,
    /// Bytes per second.
    ByteRate,
    /// Bytes.
    Memory,
    /// A share of a whole; 1 is all of it.
    Share,
    /// A value of B, relative to that of A.
    Ratio,
}

/// What a measurement needs to have a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Replies,
    Plan,
    Connections,
    Server,
    Nothing,
}

/// What a planned measurement will have.
#[derive(Clone, Copy, Debug)]
pub struct Has {
    /// Replies that are read in time.
    pub replies: bool,
    /// Planned messages.
    pub plan: bool,
    /// Connections that are established all the time.
    pub connections: bool,
    /// The server's processes.
    pub server: bool,
}

/// A number that a measurement has.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    kind: Kind,
    needs: Needs,
    of: fn(&Outcome) -> Option<f64>,
}

macro_rules! percentile {
    ($name:literal, $quantile:literal) => {
        Metric {
            name: $name,
            kind: Kind::Time,
            needs: Needs::Replies,
            of: |outcome| {
                let (percentiles, _) = figures::seen_by_clients(outcome)?;
                Some(figures::value_at(percentiles, $quantile)? as f64)
            },
        }
    };
}

const METRICS: [Metric; 18] = [
    percentile!("p50", 0.5),
    percentile!("p75", 0.75),
    percentile!("p90", 0.9),
    percentile!("p95", 0.95),
    percentile!("p99", 0.99),
    percentile!("p99.9", 0.999),
    percentile!("p99.99", 0.9999),
    Metric {
        name: "min",
        kind: Kind::Time,
        needs: Needs::Replies,
        of: |outcome| Some(outcome.latency.as_ref()?.min_ns as f64),
    },
    Metric {
        name: "mean",
        kind: Kind::Time,
        needs: Needs::Replies,
        of: |outcome| Some(outcome.latency.as_ref()?.mean_ns as f64),
    },
    Metric {
        name: "max",
        kind: Kind::Time,
        needs: Needs::Replies,
        of: |outcome| Some(figures::seen_by_clients(outcome)?.1 as f64),
    },
    Metric {
        name: "stall",
        kind: Kind::Time,
        needs: Needs::Replies,
        of: |outcome| Some(outcome.longest_stall_ms * 1e6),
    },
    Metric {
        name: "rate",
        kind: Kind::Rate,
        needs: Needs::Replies,
        of: |outcome| figures::per_second(outcome.totals.messages, outcome.measured_ms),
    },
    Metric {
        name: "connections",
        kind: Kind::Rate,
        needs: Needs::Connections,
        of: |outcome| figures::per_second(figures::opened(outcome), outcome.measured_ms),
    },
    Metric {
        name: "throughput",
        kind: Kind::ByteRate,
        needs: Needs::Replies,
        of: |outcome| figures::per_second(outcome.totals.bytes_received, outcome.measured_ms),
    },
    Metric {
        name: "unsent",
        kind: Kind::Share,
        needs: Needs::Plan,
        of: |outcome| {
            let schedule = outcome.schedule.as_ref()?;
            let planned = schedule.planned;
            (planned > 0).then(|| schedule.not_sent as f64 / planned as f64)
        },
    },
    Metric {
        name: "cpu",
        kind: Kind::Time,
        needs: Needs::Server,
        of: |outcome| {
            let cost = outcome.server.as_ref()?.cpu_per_message_ns;
            (outcome.totals.messages > 0).then_some(cost)
        },
    },
    Metric {
        name: "memory",
        kind: Kind::Memory,
        needs: Needs::Server,
        of: |outcome| {
            let bytes = outcome.server.as_ref()?.memory_bytes;
            (bytes > 0).then_some(bytes as f64)
        },
    },
    Metric {
        name: "client",
        kind: Kind::Share,
        needs: Needs::Nothing,
        of: |outcome| Some(outcome.client.share_of_cpus),
    },
];

impl Kind {
    /// Returns the units with their factors, except that of `%`.
    const fn units(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Time => &[
                ("ns", 1.0),
                ("us", 1e3),
                ("µs", 1e3),
                ("ms", 1e6),
                ("s", 1e9),
            ],
            Self::Rate => &[("", 1.0), ("/s", 1.0), ("k", 1e3), ("k/s", 1e3)],
            Self::ByteRate => &[("B/s", 1.0), ("kB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9)],
            Self::Memory => &[
                ("B", 1.0),
                ("KiB", 1024.0),
                ("MiB", 1_048_576.0),
                ("GiB", 1_073_741_824.0),
            ],
            Self::Share => &[("%", 1.0)],
            Self::Ratio => &[("", 1.0), ("%", 1.0)],
        }
    }

    /// Returns a limit as an example.
    const fn example(self) -> &'static str {
        match self {
            Self::Time => "5ms",
            Self::Rate => "20000",
            Self::ByteRate => "100MB/s",
            Self::Memory => "64MiB",
            Self::Share => "1%",
            Self::Ratio => "1.05",
        }
    }

    /// Parses a number that is not negative, with one of the units.
    fn parse(self, text: &str) -> Option<f64> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
        let mut units = self.units().iter();
        let (unit, factor) = units.find(|(known, _)| *known == unit.trim())?;
        let number = digits.parse::<f64>().ok()? * factor;
        // Divided: 95 * 0.01 is more than 0.95.
        Some(if *unit == "%" { number / 100.0 } else { number })
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Time => units::time(value),
            Self::Rate => format!("{}/s", units::per_second(value)),
            Self::ByteRate => units::byte_rate(value),
            Self::Memory => units::memory(value),
            Self::Share => share(value),
            Self::Ratio => units::ratio(value),
        }
    }
}

/// Formats a share with a digit after the point: a criterion may be close.
fn share(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

impl Relation {
    const ALL: [(&'static str, Self); 4] = [
        (">=", Self::AtLeast),
        ("<=", Self::AtMost),
        (">", Self::Above),
        ("<", Self::Below),
    ];

    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Above => value > limit,
            Self::AtLeast => value >= limit,
            Self::Below => value < limit,
            Self::AtMost => value <= limit,
        }
    }
}

impl Needs {
    /// Returns the reason why a measurement that `has` this lacks what is needed, if any.
    const fn obstacle(self, has: Has) -> Option<&'static str> {
        match self {
            Self::Replies if !has.replies => Some("this pattern measures no replies"),
            Self::Plan if !has.plan => Some("this pattern plans no messages"),
            Self::Connections if !has.connections => Some("only `churn` has a connection rate"),
            Self::Server if !has.server => Some("the server is not measured without --pid"),
            _ => None,
        }
    }
}

impl Metric {
    fn named(name: &str) -> Result<&'static Self, String> {
        let found = METRICS.iter().find(|metric| metric.name == name);
        found.ok_or_else(|| {
            let names = METRICS.each_ref().map(|metric| metric.name).join(", ");
            format!("unknown metric `{name}`; use one of {names}")
        })
    }
}

/// Splits a condition at its relation.
fn parts(text: &str) -> Option<(&str, Relation, &str)> {
    Relation::ALL.iter().find_map(|(sign, relation)| {
        let (name, limit) = text.split_once(sign)?;
        Some((name.trim(), *relation, limit.trim()))
    })
}

impl FromStr for Criterion {
    type Err = String;

    /// Parses `METRIC RELATION LIMIT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, relation, limit)) = parts(text) else {
            return Err("write METRIC > LIMIT or METRIC < LIMIT, as in 'p99 > 5ms'".to_owned());
        };
        let metric = Metric::named(name)?;
        let of_plan = metric.name == "rate" && limit.ends_with('%');
        let kind = if of_plan { Kind::Share } else { metric.kind };
        let Some(limit) = kind.parse(limit) else {
            let example = metric.kind.example();
            let or = if metric.name == "rate" {
                ", or `rate < 95%` of the planned rate"
            } else {
                ""
            };
            return Err(format!(
                "`{limit}` is not a limit of {name}; write for example `{name} > {example}`{or}"
            ));
        };
        Ok(Self {
            text: text.trim().to_owned(),
            metric,
            relation,
            limit,
            of_plan,
        })
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl PartialEq for Criterion {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Criterion {
    /// Returns the reason why a measurement that `has` this will not have the metric, if any.
    #[must_use]
    pub const fn obstacle(&self, has: Has) -> Option<&'static str> {
        if self.of_plan && !has.plan {
            return Some("this pattern has no planned rate");
        }
        self.metric.needs.obstacle(has)
    }

    /// Checks a measurement.
    #[must_use]
    pub fn check(&self, outcome: &Outcome) -> Checked {
        let mut value = (self.metric.of)(outcome);
        if self.of_plan {
            let planned = outcome.plan.rate_per_s.filter(|rate| *rate > 0.0);
            value = value.zip(planned).map(|(value, planned)| value / planned);
        }
        let show = |value| match self.of_plan {
            true => share(value),
            false => self.metric.kind.show(value),
        };
        Checked {
            condition: self.text.clone(),
            value,
            measured: value.map_or_else(|| "not measured".to_owned(), show),
            is_failed: value.is_none_or(|value| self.relation.holds(value, self.limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Latency, Percentile, Schedule, Server};

    fn criterion(text: &str) -> Criterion {
        text.parse().unwrap()
    }

    fn outcome() -> Outcome {
        let mut outcome = Outcome {
            measured_ms: 10_000,
            latency: Some(Latency {
                percentiles: vec![Percentile {
                    quantile: 0.99,
                    value_ns: 5_000_000,
                    ..Percentile::default()
                }],
                ..Latency::default()
            }),
            schedule: Some(Schedule {
                planned: 10_000,
                not_sent: 100,
                ..Schedule::default()
            }),
            server: Some(Server {
                memory_bytes: 1 << 20,
                ..Server::default()
            }),
            ..Outcome::default()
        };
        outcome.plan.rate_per_s = Some(1000.0);
        outcome.totals.messages = 9500;
        outcome.totals.bytes_received = 20_000_000;
        outcome
    }

    #[test]
    fn criteria_compare_in_their_units() {
        for (text, is_failed, measured) in [
            ("p99 > 5ms", false, "5.00 ms"),
            ("p99 >= 5ms", true, "5.00 ms"),
            ("p99>4999us", true, "5.00 ms"),
            ("p99 < 0.005 s", false, "5.00 ms"),
            ("rate < 95%", false, "95.0 %"),
            ("rate <= 95 %", true, "95.0 %"),
            ("rate < 951/s", true, "950/s"),
            ("rate < 1k", true, "950/s"),
            ("throughput < 2MB/s", false, "2.00 MB/s"),
            ("unsent > 0.5%", true, "1.0 %"),
            ("memory > 1MiB", false, "1.00 MiB"),
            ("p99.9 > 1s", true, "not measured"),
        ] {
            let checked = criterion(text).check(&outcome());
            assert_eq!(
                (checked.is_failed, checked.measured.as_str()),
                (is_failed, measured),
                "{text}"
            );
            assert_eq!(checked.condition, text);
        }
    }

    #[test]
    fn invalid_criteria_are_refused_with_hint() {
        for (text, why) in [
            ("p99", "METRIC > LIMIT"),
            ("p99 = 5ms", "METRIC > LIMIT"),
            ("p98 > 5ms", "use one of p50, p75, p90, p95, p99"),
            ("p99 > 5", "write for example `p99 > 5ms`"),
            ("p99 > -5ms", "write for example `p99 > 5ms`"),
            ("p99 > 5%", "write for example `p99 > 5ms`"),
            ("rate < 5ms", "`rate < 95%` of the planned rate"),
            ("memory > 5", "write for example `memory > 64MiB`"),
        ] {
            let error = text.parse::<Criterion>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for metric in &METRICS {
            let text = format!("{} > {}", metric.name, metric.kind.example());
            assert!(text.parse::<Criterion>().is_ok(), "{text}");
        }
    }

    #[test]
    fn criteria_require_their_metric() {
        let none = Has {
            replies: false,
            plan: false,
            connections: false,
            server: false,
        };
        let ping = Has {
            replies: true,
            ..none
        };
        let rate = Has { plan: true, ..ping };
        let is_refused = |text, has| criterion(text).obstacle(has).is_some();
        assert!(is_refused("p99 > 1s", none) && !is_refused("p99 > 1s", ping));
        assert!(is_refused("rate < 95%", ping) && !is_refused("rate < 95%", rate));
        assert!(is_refused("unsent > 1%", ping) && !is_refused("unsent > 1%", rate));
        assert!(!is_refused("rate < 95", ping) && !is_refused("client > 80%", none));
        assert!(is_refused("connections < 1k", rate) && is_refused("cpu > 1us", rate));
    }
}
