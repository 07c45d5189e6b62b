//! The search for a capacity: the highest rate that holds the target.
//!
//! The rate doubles until a probe misses the target, then the interval is halved (in its logarithm)
//! until its ends are within [`PRECISION`]. The winner is confirmed by a longer probe, and the rate
//! above it is probed once more: noise makes a probe miss far more often than hold, so a miss needs
//! two probes, and one that was wrong is noticed.
//!
//! Invariants: the number of probes and their total time are bounded; a rate is found only if its
//! confirmation held. Pure: the caller probes.

use std::time::Duration;

/// Ratio of the rate that misses to the rate that holds, at the end.
const PRECISION: f64 = 1.03;
/// Maximum number of probes.
const PROBES_MAX: usize = 60;
/// Rate of the first probe.
const START: f64 = 1000.0;
/// Lowest rate probed.
const RATE_MIN: f64 = 1.0;
/// Misses after which a rate misses. A probe that the machine disturbed counts once, another twice.
const MISSES: usize = 4;
/// Disturbed confirmations after which the rate misses.
const DISTURBED_CONFIRMATIONS: usize = 3;
/// Growth of the rate while no rate misses.
const DOUBLE: f64 = 2.0;
/// Growth of the rate after a miss turned out to be noise.
const STEP: f64 = 1.06;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Next {
    /// Probe this rate, in messages per second.
    Probe(f64, Kind),
    /// The search is over.
    Done(End),
}

/// The purpose of a probe, which determines its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Finds the order of magnitude: short.
    Climb,
    /// Decides whether a rate holds.
    Decide,
    /// Confirms the winner: long.
    Confirm,
}

/// The result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    Misses,
    /// Misses, but the client did not get a CPU in time, so the server may not be the cause.
    Disturbed,
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    /// This rate held, also when confirmed; `missed` did not. If the search ran out of time or
    /// probes, a higher rate may hold.
    Found {
        /// The highest rate that holds.
        rate: f64,
        /// The lowest rate that misses; `None` if the highest rate that may be probed holds.
        missed: Option<f64>,
    },
    /// No rate holds the target.
    None {
        /// The lowest rate probed.
        lowest: f64,
    },
    /// The time or the probes ran out first.
    Exhausted {
        /// The highest rate that held in a probe, unconfirmed.
        held: Option<f64>,
    },
}

/// The state of a search.
#[derive(Clone, Debug)]
pub(super) struct Search {
    /// Highest rate to probe.
    rate_max: f64,
    /// Time limit for all probes.
    time_max: Duration,
    /// Time of all probes so far.
    spent: Duration,
    probes: usize,
    /// Rates that held, the highest last.
    held: Vec<f64>,
    /// The lowest rate that missed.
    missed: Option<f64>,
    /// Whether `missed` missed again after the confirmation.
    is_missed_again: bool,
    /// The rate whose confirmation held last.
    confirmed: Option<f64>,
    /// The rate that is being probed again, with its misses so far.
    current: Option<(f64, usize)>,
    /// Disturbed confirmations of the winner.
    disturbed: usize,
    growth: f64,
}

impl Search {
    /// Creates a search for rates up to `rate_max` in at most `time_max`.
    #[must_use]
    pub(super) fn new(rate_max: f64, time_max: Duration) -> Self {
        Self {
            rate_max,
            time_max,
            spent: Duration::ZERO,
            probes: 0,
            held: Vec::new(),
            missed: None,
            is_missed_again: false,
            confirmed: None,
            current: None,
            disturbed: 0,
            growth: DOUBLE,
        }
    }

    /// Returns the next step.
    #[must_use]
    pub(super) fn next(&self) -> Next {
        let held = self.held.last().copied();
        let is_over = self.spent >= self.time_max || self.probes >= PROBES_MAX;
        // The last quarter is for a confirmation, also of a rate that is not the highest.
        let is_late = self.spent >= self.time_max * 3 / 4 || self.probes >= PROBES_MAX * 3 / 4;
        let next = match (self.current, held, self.missed) {
            (_, Some(held), _) if is_late && self.confirmed.is_none() => {
                Next::Probe(held, Kind::Confirm)
            }
            (Some((rate, _)), ..) => Next::Probe(rate, Kind::Decide),
            (None, None, None) => Next::Probe(START.min(self.rate_max), Kind::Climb),
            (None, None, Some(missed)) if missed <= RATE_MIN => {
                return Next::Done(End::None { lowest: missed });
            }
            (None, None, Some(missed)) => Next::Probe((missed / DOUBLE).max(RATE_MIN), Kind::Climb),
            (None, Some(held), None) if held < self.rate_max => {
                Next::Probe((held * self.growth).min(self.rate_max), Kind::Climb)
            }
            (None, Some(held), Some(missed)) if missed / held > PRECISION => {
                Next::Probe((held * missed).sqrt(), Kind::Decide)
            }
            (None, Some(held), _) if self.confirmed != Some(held) => {
                Next::Probe(held, Kind::Confirm)
            }
            (None, Some(_), Some(missed)) if !self.is_missed_again => {
                Next::Probe(missed, Kind::Decide)
            }
            (None, Some(rate), missed) => return Next::Done(End::Found { rate, missed }),
        };
        match self.confirmed {
            _ if !is_over => next,
            // A higher rate may hold, too; this one does.
            Some(rate) => Next::Done(End::Found {
                rate,
                missed: self.missed,
            }),
            None => Next::Done(End::Exhausted { held }),
        }
    }

    /// Records the result of the step that [`Self::next`] returned, which took `took`.
    pub(super) fn record(&mut self, verdict: Verdict, took: Duration) {
        let Next::Probe(rate, kind) = self.next() else {
            return;
        };
        self.spent += took;
        self.probes += 1;
        match (verdict, kind) {
            (Verdict::Holds, Kind::Confirm) => self.confirmed = Some(rate),
            (Verdict::Holds, _) => self.holds(rate),
            (Verdict::Disturbed, Kind::Confirm) if self.disturbed < DISTURBED_CONFIRMATIONS => {
                self.disturbed += 1;
            }
            // A long probe needs no second one.
            (_, Kind::Confirm) => {
                self.held.retain(|held| *held < rate);
                self.confirmed = self.confirmed.filter(|confirmed| *confirmed < rate);
                self.misses(rate);
                self.is_missed_again = true;
            }
            (verdict, _) => {
                let weight = if verdict == Verdict::Misses { 2 } else { 1 };
                let misses = self.current.map_or(0, |(_, misses)| misses) + weight;
                // A rate that missed before needs half as many.
                let again = self.missed == Some(rate);
                let enough = if again { MISSES / 2 } else { MISSES };
                if misses >= enough {
                    self.misses(rate);
                } else {
                    self.current = Some((rate, misses));
                }
            }
        }
    }

    fn holds(&mut self, rate: f64) {
        self.current = None;
        self.disturbed = 0;
        if self.missed.is_some_and(|missed| rate >= missed) {
            // The earlier misses were noise: the search goes up again, in small steps first.
            self.missed = None;
            self.growth = STEP;
        } else if self.missed.is_none() {
            self.growth = (self.growth * self.growth).min(DOUBLE);
        }
        self.held.push(rate);
        self.is_missed_again = false;
    }

    fn misses(&mut self, rate: f64) {
        self.current = None;
        self.is_missed_again = self.missed == Some(rate);
        self.missed = Some(rate);
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1500);
    const PROBE: Duration = Duration::from_millis(3500);
    const CONFIRMATION: Duration = Duration::from_secs(10);
    const TIME: Duration = Duration::from_secs(120);

    const fn verdict(holds: bool) -> Verdict {
        if holds {
            Verdict::Holds
        } else {
            Verdict::Misses
        }
    }

    /// Searches the capacity of a server that holds a rate if `holds` returns true.
    fn search(rate_max: f64, mut holds: impl FnMut(f64) -> bool) -> (End, usize, Duration) {
        let mut search = Search::new(rate_max, TIME);
        loop {
            match search.next() {
                Next::Done(end) => return (end, search.probes, search.spent),
                Next::Probe(rate, kind) => {
                    assert!(rate <= rate_max && rate >= RATE_MIN, "{rate}");
                    let took = match kind {
                        Kind::Climb => SHORT,
                        Kind::Decide => PROBE,
                        Kind::Confirm => CONFIRMATION,
                    };
                    search.record(verdict(holds(rate)), took);
                }
            }
        }
    }

    #[track_caller]
    fn found(end: End) -> f64 {
        match end {
            End::Found { rate, .. } => rate,
            other => panic!("{other:?}"),
        }
    }

    /// A latency in milliseconds that grows with the rate, and its 5 ms target.
    fn linear(rate: f64, capacity: f64) -> bool {
        5.0 * rate / capacity <= 5.0
    }

    #[test]
    fn search_finds_capacity_of_linear_server() {
        for capacity in [1.5, 12.0, 999.0, 1000.0, 1001.0, 83_210.0, 1e6, 99e6] {
            let (end, probes, spent) = search(1e8, |rate| linear(rate, capacity));
            let rate = found(end);
            assert!(
                rate <= capacity && rate * PRECISION >= capacity,
                "{rate} of {capacity}"
            );
            assert!(probes <= 40 && spent <= TIME, "{probes} {spent:?}");
        }
    }

    /// The 99th percentile of a queue with exponential service times, which stays flat for long and
    /// then has no bound.
    #[test]
    fn search_finds_edge_of_cliff() {
        let holds = |rate: f64| {
            let free = 1.0 - rate / 50_000.0;
            free > 0.0 && 4.6 / (50_000.0 * free) <= 0.005
        };
        let rate = found(search(1e8, holds).0);
        let capacity = 50_000.0 * (1.0 - 4.6 / (50_000.0 * 0.005));
        assert!((rate / capacity - 1.0).abs() < 0.03, "{rate} of {capacity}");
    }

    /// Latencies vary by a fifth, and every tenth probe meets a stall that has nothing to do with
    /// its rate.
    #[test]
    fn search_survives_noise() {
        let capacity = 42_000.0;
        let mut off = Vec::new();
        for seed in 0..300 {
            let mut rng = Rng::with_seed(seed);
            let (end, probes, spent) = search(1e8, |rate| {
                // Steep, as a server's latency is near its capacity.
                let latency = (rate / capacity).powi(20) * (1.0 + 0.4 * (rng.f64() - 0.5));
                latency <= 1.0 && rng.f64() > 0.1
            });
            assert!(probes <= PROBES_MAX && spent <= TIME + CONFIRMATION);
            match end {
                End::Found { rate, .. } => off.push((rate / capacity - 1.0).abs()),
                other => assert!(matches!(other, End::Exhausted { .. }), "{other:?}"),
            }
        }
        assert_eq!(off.len(), 300);
        off.sort_by(f64::total_cmp);
        assert!(off[off.len() * 9 / 10] < 0.03, "{off:?}");
    }

    #[test]
    fn hopeless_and_boundless_servers_end_search() {
        let (end, ..) = search(1e8, |_| false);
        assert_eq!(end, End::None { lowest: RATE_MIN });
        let (end, ..) = search(1e6, |_| true);
        let all = End::Found {
            rate: 1e6,
            missed: None,
        };
        assert_eq!(end, all);
    }

    #[test]
    fn unconfirmed_rate_is_not_found() {
        let mut search = Search::new(1e8, TIME);
        let mut ends = None;
        while ends.is_none() {
            match search.next() {
                Next::Done(end) => ends = Some(end),
                // Holds in short probes only.
                Next::Probe(rate, kind) => {
                    let holds = rate <= 4000.0 && kind != Kind::Confirm;
                    search.record(verdict(holds), CONFIRMATION);
                }
            }
        }
        assert!(matches!(ends, Some(End::Exhausted { .. })), "{ends:?}");
    }

    #[test]
    fn disturbed_probes_are_repeated() {
        let mut rng = Rng::with_seed(7);
        let mut search = Search::new(1e8, Duration::from_secs(1000));
        let end = loop {
            match search.next() {
                Next::Done(end) => break end,
                // A third of the probes is disturbed.
                Next::Probe(rate, _) if rng.u8(0..3) == 0 && linear(rate, 50_000.0) => {
                    search.record(Verdict::Disturbed, PROBE);
                }
                Next::Probe(rate, _) => search.record(verdict(linear(rate, 50_000.0)), PROBE),
            }
        };
        let rate = found(end);
        assert!((rate / 50_000.0 - 1.0).abs() < 0.03, "{rate}");
    }

    #[test]
    fn confirmed_rate_survives_end_of_time() {
        // After its first confirmation, the server becomes faster and faster.
        let mut search = Search::new(1e8, TIME);
        let mut capacity = 5000.0;
        let end = loop {
            match search.next() {
                Next::Done(end) => break end,
                Next::Probe(rate, kind) => {
                    search.record(verdict(rate <= capacity), PROBE);
                    capacity *= if kind == Kind::Confirm { 2.0 } else { 1.0 };
                }
            }
        };
        assert!(found(end) >= 4800.0, "{end:?}");
    }

    #[test]
    fn wrong_misses_are_noticed() {
        // The first two probes of 16,000 meet a stall.
        let mut stalls = 2;
        let (end, ..) = search(1e8, |rate| {
            if rate == 16_000.0 && stalls > 0 {
                stalls -= 1;
                return false;
            }
            linear(rate, 60_000.0)
        });
        let rate = found(end);
        assert!((rate / 60_000.0 - 1.0).abs() < 0.03, "{rate}");
    }
}
