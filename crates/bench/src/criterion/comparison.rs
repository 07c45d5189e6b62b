//! Conditions under which a comparison fails, as in `--fail-if slower` or `--fail-if 'p99 > 1.05'`.
//!
//! Invariants: a limit is a ratio B/A, as the comparison shows it, and applies to the median of the
//! ratios; a condition that cannot be decided fails the comparison. Pure.

use std::fmt;
use std::str::FromStr;

use super::{Has, Kind, Metric, Relation, parts};
use crate::outcome::Checked;
use crate::report::{Comparison, Conclusion, Run, ratio};

/// A condition under which a comparison fails.
#[derive(Clone, Debug)]
pub struct ComparisonCriterion {
    text: String,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum Condition {
    Result(Conclusion),
    Ratio {
        metric: &'static Metric,
        relation: Relation,
        limit: f64,
    },
}

impl FromStr for ComparisonCriterion {
    type Err = String;

    /// Parses a result, or `METRIC RELATION RATIO`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let result = Conclusion::ALL.iter().find(|one| one.word() == text);
        let condition = match (result, parts(text)) {
            (Some(result), _) => Condition::Result(*result),
            (None, Some((name, relation, limit))) => {
                let metric = Metric::named(name)?;
                let limit = Kind::Ratio.parse(limit).ok_or_else(|| {
                    let example = Kind::Ratio.example();
                    format!("`{limit}` is not a ratio B/A; write for example `{name} > {example}`")
                })?;
                Condition::Ratio {
                    metric,
                    relation,
                    limit,
                }
            }
            (None, None) => {
                let results = Conclusion::ALL.map(Conclusion::word).join(", ");
                return Err(format!(
                    "write METRIC > RATIO, as in 'p99 > 1.05', or a result: {results}"
                ));
            }
        };
        Ok(Self {
            text: text.to_owned(),
            condition,
        })
    }
}

impl fmt::Display for ComparisonCriterion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl ComparisonCriterion {
    /// Returns the reason why measurements that have this will not have the metric, if any.
    #[must_use]
    pub const fn obstacle(&self, has: Has) -> Option<&'static str> {
        match &self.condition {
            Condition::Result(_) => None,
            Condition::Ratio { metric, .. } => metric.needs.obstacle(has),
        }
    }

    /// Checks the comparison of these runs.
    #[must_use]
    pub fn check(&self, comparison: &Comparison, a: &[Run], b: &[Run]) -> Checked {
        let condition = self.text.clone();
        match &self.condition {
            Condition::Result(result) => {
                let found = comparison.conclusion();
                Checked {
                    condition,
                    value: None,
                    measured: found.word().to_owned(),
                    is_failed: found == *result || found == Conclusion::Unknown,
                }
            }
            Condition::Ratio {
                metric,
                relation,
                limit,
            } => {
                let ratio = ratio(a, b, metric.of);
                let value = ratio.map(|ratio| ratio.median);
                Checked {
                    condition,
                    value,
                    measured: ratio
                        .map_or_else(|| "not measured".to_owned(), |ratio| format!("B/A {ratio}")),
                    is_failed: value.is_none_or(|value| relation.holds(value, *limit)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::report::compare;

    fn criterion(text: &str) -> ComparisonCriterion {
        text.parse().unwrap()
    }

    /// Returns eight runs at about this rate.
    fn runs(rate: u64) -> Vec<Run> {
        let run = |at: u64| Run {
            name: at.to_string(),
            outcome: {
                let mut outcome = Outcome {
                    measured_ms: 1000,
                    ..Outcome::default()
                };
                outcome.totals.messages = rate + at;
                outcome
            },
        };
        (0..8).map(run).collect()
    }

    #[test]
    fn criteria_apply_to_result_and_ratios() {
        let (a, b) = (runs(1000), runs(900));
        for (text, is_failed, measured) in [
            ("slower", true, "slower"),
            (" faster ", false, "slower"),
            ("not distinguishable", false, "slower"),
            ("rate < 0.95", true, "B/A 0.900, 0.900 to 0.901"),
            ("rate < 90%", false, "B/A 0.900, 0.900 to 0.901"),
            ("rate<91 %", true, "B/A 0.900, 0.900 to 0.901"),
            ("p99 > 1.05", true, "not measured"),
        ] {
            let checked = criterion(text).check(&compare(&a, &b), &a, &b);
            assert_eq!(
                (checked.is_failed, checked.measured.as_str()),
                (is_failed, measured),
                "{text}"
            );
            assert_eq!(checked.condition, text.trim());
        }
        // Both sides are equal.
        let is_failed = |text, a: &[Run], b: &[Run]| {
            let checked = criterion(text).check(&compare(a, b), a, b);
            checked.is_failed
        };
        assert!(!is_failed("slower", &a, &a) && is_failed("not distinguishable", &a, &a));
        assert!(!is_failed("rate < 1", &a, &a) && is_failed("rate <= 100%", &a, &a));
        // Too few runs to decide.
        assert!(is_failed("slower", &a[..1], &b[..1]) && is_failed("faster", &a[..5], &b[..5]));
        assert!(is_failed("rate < 0.1", &[], &[]));
    }

    #[test]
    fn invalid_criteria_are_refused_with_hint() {
        for (text, why) in [
            ("slow", "a result: faster, slower, not distinguishable"),
            ("p99", "METRIC > RATIO"),
            ("p98 > 1.05", "use one of p50"),
            ("p99 > 5ms", "write for example `p99 > 1.05`"),
            ("p99 > -1", "not a ratio B/A"),
        ] {
            let error = text.parse::<ComparisonCriterion>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn ratio_requires_its_metric() {
        let has = Has {
            replies: false,
            plan: false,
            connections: false,
            server: true,
        };
        assert!(criterion("p99 > 1.05").obstacle(has).is_some());
        assert!(criterion("memory > 1.05").obstacle(has).is_none());
        assert!(criterion("slower").obstacle(has).is_none());
    }
}
