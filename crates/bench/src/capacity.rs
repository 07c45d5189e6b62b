//! `bench capacity`: finds the highest rate that holds a latency target, by probes of an open loop.
//!
//! Invariants: a probe holds only if nothing failed, the planned messages were answered, and the
//! upper bound of each target's percentile is within its limit; the outcome is that of the
//! confirmation, with every probe. `search` decides what to probe.

mod search;

use std::time::Duration;

use super::interrupt::{Haste, Interrupt};
use super::options::{Options, Pattern};
use super::outcome::{Capacity, Outcome, Probe, Target};
use super::plan::RATE_MAX;
use super::report::figures;
use super::run::{Error, Stand};
use search::{End, Kind, Next, Search, Verdict};
use uppercased_ctl::clock;
use uppercased_ctl::units;

/// Default length of a probe that decides whether a rate holds.
pub(super) const PROBE: Duration = Duration::from_secs(3);
/// Default time limit of a search.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Length of a confirmation in probes, which also limits a probe that needs more samples.
const LONG: u32 = 4;
/// Divisor of the length for a probe that finds the order of magnitude.
const SHORT: u32 = 3;
/// Divisor of the length for the warm-up of a probe.
const WARMUP: u32 = 10;
/// Replies beyond a percentile that a probe should have.
const SAMPLES_BEYOND: f64 = 10.0;
/// Share of the planned messages that a server which keeps up answers in time.
const ANSWERED_MIN: f64 = 0.98;

/// A capacity to find.
#[derive(Clone, Debug)]
pub(super) struct Quest {
    /// The load, without a rate and a duration.
    pub options: Options,
    /// The limits; not empty.
    pub targets: Vec<Target>,
    /// Length of a probe.
    pub probe: Duration,
    /// Time limit of the search.
    pub time_limit: Duration,
}

/// Finds the capacity.
///
/// # Errors
/// The options are invalid, or there is no server.
pub(super) fn measure(quest: &Quest, interrupt: &Interrupt) -> Result<Outcome, Error> {
    let mut options = quest.options.clone();
    options.pattern = Some(Pattern::Rate);
    let stand = Stand::prepare(&options, interrupt)?;
    let mut search = Search::new(RATE_MAX, quest.time_limit);
    let mut capacity = Capacity {
        targets: quest.targets.clone(),
        ..Capacity::default()
    };
    let mut last = Outcome::default();
    let mut confirmed = None;
    let end = loop {
        let (rate, kind) = match search.next() {
            Next::Probe(rate, kind) => (rate, kind),
            Next::Done(end) => break end,
        };
        let length = length(quest, rate, kind);
        options.rate = Some(rate);
        options.duration = Some(length);
        options.warmup = Some(length / WARMUP);
        let began = clock::now();
        let outcome = stand.measure(&options, interrupt)?;
        let probe = judged(&outcome, &quest.targets, rate, kind);
        if interrupt.haste() > Haste::None {
            last = outcome;
            break End::Exhausted { held: None };
        }
        let verdict = match (probe.holds, probe.client_is_late) {
            (true, _) => Verdict::Holds,
            (false, true) => Verdict::Disturbed,
            (false, false) => Verdict::Misses,
        };
        search.record(verdict, clock::now().since(began));
        if probe.confirms && probe.holds {
            confirmed = Some(outcome);
        } else {
            last = outcome;
        }
        capacity.probes.push(probe);
    };
    let is_found = matches!(end, End::Found { .. });
    let mut shown = confirmed.filter(|_| is_found).unwrap_or(last);
    conclude(&mut shown, capacity, end);
    Ok(shown)
}

/// Returns the length of a probe: enough for the percentiles, within bounds.
fn length(quest: &Quest, rate: f64, kind: Kind) -> Duration {
    let most = quest.probe * LONG;
    let base = match kind {
        Kind::Climb => quest.probe / SHORT,
        Kind::Decide => quest.probe,
        Kind::Confirm => return most,
    };
    let quantile = quest.targets.iter().map(|target| target.quantile);
    let quantile = quantile.fold(0.0, f64::max);
    let enough = SAMPLES_BEYOND / (1.0 - quantile) / rate;
    base.max(
        Duration::try_from_secs_f64(enough)
            .unwrap_or(most)
            .min(most),
    )
}

/// Returns a probe with its result.
fn judged(outcome: &Outcome, targets: &[Target], rate: f64, kind: Kind) -> Probe {
    let failures = figures::failures(outcome);
    let planned = outcome.schedule.as_ref().map_or(0, |one| one.planned);
    let answered = outcome.totals.messages;
    let percentiles = figures::seen_by_clients(outcome).map_or(&[][..], |(all, _)| all);
    let missed = targets.iter().find_map(|target| {
        match figures::percentile_of(percentiles, target.quantile) {
            Some(one) if one.high_ns <= target.limit_ns => None,
            Some(_) => Some(format!("{} over target", units::quantile(target.quantile))),
            None => Some("no replies".to_owned()),
        }
    });
    let why = if failures > 0 {
        Some(units::counted(failures, "failure"))
    } else if (answered as f64) < planned as f64 * ANSWERED_MIN {
        let share = answered as f64 / planned as f64;
        Some(format!("{} answered", units::share(share)))
    } else {
        missed
    };
    Probe {
        rate_per_s: rate,
        answered_per_s: figures::per_second(answered, outcome.measured_ms).unwrap_or(0.0),
        measured_ms: outcome.measured_ms,
        failures,
        percentiles: percentiles.to_vec(),
        client_is_bottleneck: outcome.client.is_bottleneck,
        client_is_late: outcome.client.is_late,
        confirms: kind == Kind::Confirm,
        holds: why.is_none(),
        why: why.unwrap_or_default(),
    }
}

/// Adds the result of the search to the measurement that it shows.
fn conclude(shown: &mut Outcome, mut capacity: Capacity, end: End) {
    let targets = capacity.target();
    let rate = |rate: f64| format!("{} messages/s", units::per_second(rate));
    if !matches!(end, End::Found { .. }) {
        // Those of a probe that missed are what it was for.
        shown.problems.clear();
    }
    match end {
        End::Found { rate, missed } => {
            capacity.rate_per_s = Some(rate);
            capacity.missed_per_s = missed;
        }
        End::None { lowest } => {
            shown.problems.push(format!(
                "No rate holds {targets}: {} missed it.",
                rate(lowest)
            ));
        }
        End::Exhausted { held } => shown.problems.push(match held {
            Some(held) => format!(
                "The search for {targets} ended early: {} held it, unconfirmed.",
                rate(held)
            ),
            None => format!("The search for {targets} ended early, without a result."),
        }),
    }
    let missed = capacity.probes.iter().filter(|one| !one.holds);
    let late = missed.clone().filter(|one| one.client_is_late).count();
    if late > 0 {
        shown.warnings.push(format!(
            "In {late} of {} probes that missed, the client did not get a CPU in time: on a quiet \
             machine, the capacity may be higher.",
            missed.count()
        ));
    }
    let limited = capacity.missed_per_s.is_some_and(|missed| {
        let mut probes = capacity.probes.iter();
        probes.any(|one| one.rate_per_s == missed && one.client_is_bottleneck)
    });
    if limited {
        shown.warnings.push(
            "The client was the bottleneck above this rate: the server may hold more. Use more \
             --threads, or another machine."
                .to_owned(),
        );
    }
    shown.capacity = Some(capacity);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Latency, Percentile, Schedule};

    fn quest(quantile: f64) -> Quest {
        Quest {
            options: Options::default(),
            targets: vec![Target {
                quantile,
                limit_ns: 5_000_000,
            }],
            probe: PROBE,
            time_limit: TIME_LIMIT,
        }
    }

    #[test]
    fn probe_is_long_enough_for_its_percentile() {
        let seconds = |quantile, rate, kind| length(&quest(quantile), rate, kind).as_secs_f64();
        assert_eq!(seconds(0.99, 50_000.0, Kind::Climb), 1.0);
        assert_eq!(seconds(0.99, 50_000.0, Kind::Decide), 3.0);
        assert_eq!(seconds(0.99, 50_000.0, Kind::Confirm), 12.0);
        assert!((seconds(0.999, 2000.0, Kind::Climb) - 5.0).abs() < 1e-6);
        assert_eq!(seconds(0.99, 1.0, Kind::Climb), 12.0);
    }

    #[test]
    fn probe_holds_only_if_all_is_well() {
        let targets = quest(0.99).targets;
        let outcome = |high_ns, answered, failures: u64| {
            let mut outcome = Outcome {
                measured_ms: 1000,
                latency: Some(Latency {
                    percentiles: vec![Percentile {
                        quantile: 0.99,
                        value_ns: 4_000_000,
                        low_ns: 3_900_000,
                        high_ns,
                    }],
                    ..Latency::default()
                }),
                schedule: Some(Schedule {
                    planned: 1000,
                    ..Schedule::default()
                }),
                ..Outcome::default()
            };
            outcome.totals.messages = answered;
            if failures > 0 {
                outcome.failures.insert("reset".to_owned(), failures);
            }
            outcome
        };
        for (high_ns, answered, failures, why) in [
            (5_000_000, 1000, 0, ""),
            (5_000_001, 1000, 0, "p99 over target"),
            (4_000_000, 970, 0, "97 % answered"),
            (4_000_000, 1000, 2, "2 failures"),
        ] {
            let outcome = outcome(high_ns, answered, failures);
            let probe = judged(&outcome, &targets, 1000.0, Kind::Decide);
            assert_eq!((probe.why.as_str(), probe.holds), (why, why.is_empty()));
        }
        let silent = judged(&Outcome::default(), &targets, 1000.0, Kind::Decide);
        assert!(!silent.holds);
    }

    #[test]
    fn search_without_result_is_a_problem() {
        for (end, is_clean) in [
            (
                End::Found {
                    rate: 5.0,
                    missed: None,
                },
                true,
            ),
            (End::None { lowest: 1.0 }, false),
            (End::Exhausted { held: Some(1.0) }, false),
        ] {
            let mut outcome = Outcome::default();
            let capacity = Capacity {
                targets: quest(0.99).targets,
                ..Capacity::default()
            };
            conclude(&mut outcome, capacity, end);
            assert_eq!(outcome.is_clean(), is_clean, "{end:?}");
            assert_eq!(outcome.capacity.unwrap().rate_per_s.is_some(), is_clean);
        }
    }
}
