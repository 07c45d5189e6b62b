//! The order of the runs: each server between two runs of the reference, round after round.
//!
//! Machines drift by more than servers differ, so a run is only ever compared with its neighbours
//! in time. A run that was disturbed is discarded, and counted; rounds go on until every server
//! has its pairs, but not for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::measure::{Bench, Sample};
use super::options::Options;
use super::pattern::{self, Load, Pattern};
use super::server::Server;
use super::stats;

/// Rounds are at most this many times the pairs asked for, however much is discarded.
const ROUNDS_PER_PAIR: u32 = 3;
/// Memory is counted, not timed: it does not depend on what others do.
const MEMORY_PAIRS: u32 = 2;
/// Runs of the reference that say what half of its rate is.
const RATE_RUNS: usize = 3;

/// One run of a server between two of the reference.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) server: Server,
    pub(crate) round: u32,
    pub(crate) sample: Sample,
    pub(crate) before: Sample,
    pub(crate) after: Sample,
    /// Whether disturbed runs count.
    pub(crate) keep_disturbed: bool,
}

impl Pair {
    fn counts(&self, sample: &Sample) -> bool {
        self.keep_disturbed || sample.disturbance.is_none()
    }

    /// Whether the pair says anything.
    pub(crate) fn is_usable(&self) -> bool {
        let reference = self.counts(&self.before) || self.counts(&self.after);
        self.counts(&self.sample) && reference
    }

    /// What `figure` is for the server, as a multiple of what it is for the reference.
    pub(crate) fn ratio(&self, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        let beside = |sample| self.counts(sample).then(|| figure(sample));
        let reference = stats::reference(beside(&self.before), beside(&self.after))?;
        self.counts(&self.sample)
            .then(|| figure(&self.sample) / reference)
    }
}

/// A pattern, measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) pattern: Pattern,
    pub(crate) reference: Server,
    /// Every run of the reference that counts.
    pub(crate) reference_runs: Vec<Sample>,
    pub(crate) pairs: Vec<Pair>,
    /// Servers that could not be measured, and why.
    pub(crate) failed: BTreeMap<Server, String>,
    pub(crate) rounds: u32,
}

/// Measures one pattern.
///
/// # Errors
/// The reference could not be measured, so that nothing can.
pub(crate) fn measure(
    bench: &Bench,
    options: &Options,
    servers: &[Server],
    pattern: &Pattern,
) -> io::Result<Measured> {
    let Some((&reference, others)) = servers.split_first() else {
        return Err(io::Error::other("no server to measure"));
    };
    let pattern = with_rate(bench, reference, *pattern)?;
    let wanted = match pattern.load {
        Load::Silent => options.pairs.min(MEMORY_PAIRS),
        _ => options.pairs,
    };
    let mut measured = Measured {
        pattern,
        reference,
        reference_runs: Vec::new(),
        pairs: Vec::new(),
        failed: BTreeMap::new(),
        rounds: 0,
    };
    let mut short: BTreeSet<Server> = others.iter().copied().collect();
    let enough = |measured: &Measured| measured.reference_runs.len() >= wanted as usize;
    while measured.rounds < wanted * ROUNDS_PER_PAIR && (!short.is_empty() || !enough(&measured)) {
        let round = measured.rounds;
        measured.rounds += 1;
        let mut before = bench.run(reference, &pattern)?;
        measured.keep_reference(options, &before);
        // Each round begins with another one, so that nobody always has the same neighbours.
        for step in 0..others.len() {
            let server = others[(step + round as usize) % others.len()];
            if measured.failed.contains_key(&server) {
                continue;
            }
            let sample = match bench.run(server, &pattern) {
                Ok(sample) => sample,
                Err(error) => {
                    measured.failed.insert(server, error.to_string());
                    short.remove(&server);
                    continue;
                }
            };
            let after = bench.run(reference, &pattern)?;
            measured.keep_reference(options, &after);
            measured.pairs.push(Pair {
                server,
                round,
                sample,
                before: std::mem::replace(&mut before, after.clone()),
                after,
                keep_disturbed: options.keep_disturbed,
            });
            if measured.usable(server).count() >= wanted as usize {
                short.remove(&server);
            }
        }
        eprint!(".");
    }
    eprintln!();
    Ok(measured)
}

/// Fills in the rate of an open loop.
fn with_rate(bench: &Bench, reference: Server, pattern: Pattern) -> io::Result<Pattern> {
    if !matches!(pattern.load, Load::Open { .. }) {
        return Ok(pattern);
    }
    let whole = pattern::ALL.iter().find(|one| one.name == pattern::HALF_OF);
    let whole = whole.ok_or_else(|| io::Error::other(pattern::HALF_OF))?;
    let mut rates = Vec::new();
    for _ in 0..RATE_RUNS {
        rates.push(bench.run(reference, whole)?.units_per_s());
    }
    let rate = stats::spread(rates).map_or(1.0, |rates| rates.median);
    let load = Load::Open {
        per_second: (rate / 2.0).max(1.0),
    };
    Ok(Pattern { load, ..pattern })
}

impl Measured {
    fn keep_reference(&mut self, options: &Options, sample: &Sample) {
        if options.keep_disturbed || sample.disturbance.is_none() {
            self.reference_runs.push(sample.clone());
        }
    }

    /// The pairs of `server` that count.
    pub(crate) fn usable(&self, server: Server) -> impl Iterator<Item = &Pair> {
        self.pairs_of(server).filter(|pair| pair.is_usable())
    }

    /// All pairs of `server`.
    pub(crate) fn pairs_of(&self, server: Server) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(move |pair| pair.server == server)
    }

    /// Figures of `one` as multiples of those of `other` in the same round, each taken beside its
    /// own references.
    pub(crate) fn ratios(
        &self,
        one: Server,
        other: Server,
        figure: impl Fn(&Sample) -> f64 + Copy,
    ) -> Vec<f64> {
        let in_round = |server: Server, round: u32| {
            if server == self.reference {
                return Some(1.0);
            }
            let mut pairs = self.usable(server).filter(|pair| pair.round == round);
            pairs.next()?.ratio(figure)
        };
        let rounds = 0..self.rounds;
        let both = rounds.filter_map(|round| in_round(one, round).zip(in_round(other, round)));
        both.map(|(one, other)| one / other).collect()
    }
}
