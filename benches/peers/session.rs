//! The order of the runs: each server runs between two runs of the reference, round after round.
//!
//! Machines drift by more than servers differ, so a run is compared only with its neighbours in
//! time. A disturbed run is discarded and counted; rounds repeat until every server has enough
//! pairs, up to a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::measure::{Bench, Sample};
use super::options::Options;
use super::pattern::{self, Pattern};
use super::server::Server;
use super::stats;
use uppercased_bench::options::Pattern as Kind;

/// Maximum number of rounds, as a multiple of the pairs requested.
const ROUNDS_PER_PAIR: u32 = 3;
/// Rounds for memory, which is counted and not timed, so other load does not affect it.
const MEMORY_PAIRS: u32 = 2;
/// Runs of the reference that determine its rate, half of which is used.
const RATE_RUNS: usize = 3;

/// One run of a server between two of the reference.
#[derive(Clone, Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) server: &'a Server,
    pub(crate) round: u32,
    pub(crate) sample: Sample,
    pub(crate) before: Sample,
    pub(crate) after: Sample,
    /// Whether disturbed runs count.
    pub(crate) keep_disturbed: bool,
}

impl Pair<'_> {
    fn counts(&self, sample: &Sample) -> bool {
        self.keep_disturbed || sample.disturbance.is_none()
    }

    /// Returns whether the pair is valid.
    pub(crate) fn is_usable(&self) -> bool {
        let reference = self.counts(&self.before) || self.counts(&self.after);
        self.counts(&self.sample) && reference
    }

    /// Returns `figure` of the server as a multiple of the reference's.
    pub(crate) fn ratio(&self, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        let beside = |sample| self.counts(sample).then(|| figure(sample));
        let reference = stats::reference(beside(&self.before), beside(&self.after))?;
        self.counts(&self.sample)
            .then(|| figure(&self.sample) / reference)
    }
}

/// Results of a pattern.
#[derive(Clone, Debug)]
pub(crate) struct Measured<'a> {
    pub(crate) pattern: Pattern,
    pub(crate) reference: &'a Server,
    /// Valid runs of the reference.
    pub(crate) reference_runs: Vec<Sample>,
    pub(crate) pairs: Vec<Pair<'a>>,
    /// Servers that could not be measured, with the reason.
    pub(crate) failed: BTreeMap<&'a Server, String>,
    pub(crate) rounds: u32,
}

/// Measures one pattern.
///
/// # Errors
/// The reference could not be measured, so no comparison is possible.
pub(crate) fn measure<'a>(
    bench: &Bench,
    options: &Options,
    servers: &'a [Server],
    pattern: &Pattern,
) -> io::Result<Measured<'a>> {
    let Some((reference, others)) = servers.split_first() else {
        return Err(io::Error::other("no server to measure"));
    };
    let pattern = with_rate(bench, reference, *pattern)?;
    let wanted = if pattern.is_idle() {
        options.pairs.min(MEMORY_PAIRS)
    } else {
        options.pairs
    };
    let mut measured = Measured {
        pattern,
        reference,
        reference_runs: Vec::new(),
        pairs: Vec::new(),
        failed: BTreeMap::new(),
        rounds: 0,
    };
    let mut short: BTreeSet<&Server> = others.iter().collect();
    let enough = |measured: &Measured<'_>| measured.reference_runs.len() >= wanted as usize;
    while measured.rounds < wanted * ROUNDS_PER_PAIR && (!short.is_empty() || !enough(&measured)) {
        let round = measured.rounds;
        measured.rounds += 1;
        let mut before = bench.run(reference, &pattern)?;
        measured.keep_reference(options, &before);
        // Each round begins with a different server, so that neighbours vary.
        for step in 0..others.len() {
            let server = &others[(step + round as usize) % others.len()];
            if measured.failed.contains_key(server) {
                continue;
            }
            let sample = match bench.run(server, &pattern) {
                Ok(sample) => sample,
                Err(error) => {
                    measured.failed.insert(server, error.to_string());
                    short.remove(server);
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
                short.remove(server);
            }
        }
        eprint!(".");
    }
    eprintln!();
    Ok(measured)
}

/// Sets the rate of an open loop.
fn with_rate(bench: &Bench, reference: &Server, pattern: Pattern) -> io::Result<Pattern> {
    if pattern.kind != Kind::Rate || pattern.per_second > 0.0 {
        return Ok(pattern);
    }
    let whole = pattern::ALL.iter().find(|one| one.name == pattern::HALF_OF);
    let whole = whole.ok_or_else(|| io::Error::other(pattern::HALF_OF))?;
    let mut rates = Vec::new();
    for _ in 0..RATE_RUNS {
        rates.push(bench.run(reference, whole)?.units_per_s());
    }
    let rate = stats::spread(rates).map_or(1.0, |rates| rates.median);
    let per_second = (rate / 2.0).max(1.0);
    Ok(Pattern {
        per_second,
        ..pattern
    })
}

impl<'a> Measured<'a> {
    fn keep_reference(&mut self, options: &Options, sample: &Sample) {
        if options.keep_disturbed || sample.disturbance.is_none() {
            self.reference_runs.push(sample.clone());
        }
    }

    /// Returns the valid pairs of `server`.
    pub(crate) fn usable(&self, server: &Server) -> impl Iterator<Item = &Pair<'a>> {
        self.pairs_of(server).filter(|pair| pair.is_usable())
    }

    /// Returns all pairs of `server`.
    pub(crate) fn pairs_of(&self, server: &Server) -> impl Iterator<Item = &Pair<'a>> {
        self.pairs.iter().filter(move |pair| pair.server == server)
    }

    /// Returns the figures of `one` as multiples of those of `other` in the same round, each
    /// relative to its own references.
    pub(crate) fn ratios(
        &self,
        one: &Server,
        other: &Server,
        figure: impl Fn(&Sample) -> f64 + Copy,
    ) -> Vec<f64> {
        let in_round = |server: &Server, round: u32| {
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
