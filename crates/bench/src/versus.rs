//! `bench versus`: measures two servers in alternating runs, to be compared pair by pair.
//!
//! Invariants: the runs of a pair follow each other, and which server is first alternates, so that a
//! drift of the machine affects both alike; only complete pairs are returned.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::compare::Results;
use super::interrupt::{Haste, Interrupt};
use super::options::Options;
use super::outcome::Outcome;
use super::report::{Run, figures};
use super::run::{Error, Stand};
use uppercased_ctl::stderr::write_line;
use uppercased_ctl::units;

/// Default number of runs of each server.
pub(super) const RUNS: u16 = 8;
/// Default measured time of a run.
pub(super) const DURATION: Duration = Duration::from_secs(5);

/// Two servers to measure.
#[derive(Clone, Debug)]
pub(super) struct Duel {
    /// The load for each server.
    pub sides: [Options; 2],
    /// Runs of each server.
    pub runs: u16,
    /// What to make of the comparison.
    pub results: Results,
}

/// Measures both servers; returns fewer runs if it is interrupted.
///
/// # Errors
/// The options are invalid, or a server is missing.
pub(super) fn measure(duel: &Duel, interrupt: &Interrupt) -> Result<[Vec<Run>; 2], Error> {
    let [a, b] = &duel.sides;
    let stands = [Stand::prepare(a, interrupt)?, Stand::prepare(b, interrupt)?];
    let is_shown = !a.no_progress && io::stderr().is_terminal();
    alternate(duel.runs, |side, run| {
        let outcome = stands[side].measure(&duel.sides[side], interrupt)?;
        if interrupt.haste() > Haste::None {
            return Ok(None);
        }
        if is_shown {
            write_line(&format!("run {run} of {}: {}", duel.runs, note(&outcome)));
        }
        Ok(Some(outcome))
    })
}

/// Calls `measure` with each side, 0 or 1, and the number of the run, from 1 on, until it returns
/// `None`.
fn alternate<E>(
    runs: u16,
    mut measure: impl FnMut(usize, u16) -> Result<Option<Outcome>, E>,
) -> Result<[Vec<Run>; 2], E> {
    let mut all = [Vec::new(), Vec::new()];
    for run in 1..=runs {
        // A B B A: each is first as often as the other.
        let order = if run % 2 == 1 { [0, 1] } else { [1, 0] };
        let mut pair = [None, None];
        for side in order {
            let Some(outcome) = measure(side, run)? else {
                return Ok(all);
            };
            pair[side] = Some(outcome);
        }
        for (side, outcome) in pair.into_iter().enumerate() {
            let name = format!("run {run} of {}", ["A", "B"][side]);
            all[side].extend(outcome.map(|outcome| Run { name, outcome }));
        }
    }
    Ok(all)
}

/// Describes a run in a few words.
fn note(outcome: &Outcome) -> String {
    let name = match outcome.label.as_str() {
        "" => &outcome.target,
        label => label,
    };
    let rate = figures::per_second(outcome.totals.messages, outcome.measured_ms);
    let p99 = figures::seen_by_clients(outcome).and_then(|(all, _)| figures::value_at(all, 0.99));
    format!(
        "{name}: {} messages/s, p99 {}, {}",
        units::per_second(rate.unwrap_or(0.0)),
        p99.map_or_else(|| units::NONE.to_owned(), units::time_ns),
        units::counted(figures::failures(outcome), "failure")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_alternate_and_pairs_are_complete() {
        let mut order = Vec::new();
        let all = alternate::<()>(4, |side, _| {
            order.push(side);
            Ok(Some(Outcome::default()))
        });
        assert_eq!(order, [0, 1, 1, 0, 0, 1, 1, 0]);
        let [a, b] = all.unwrap();
        assert_eq!((a.len(), b.len()), (4, 4));
        assert_eq!(
            (a[0].name.as_str(), b[3].name.as_str()),
            ("run 1 of A", "run 4 of B")
        );
        // Interrupted in the second pair.
        let mut left = 3;
        let [a, b] = alternate::<()>(4, |_, _| {
            left -= 1;
            Ok((left >= 0).then(Outcome::default))
        })
        .unwrap();
        assert_eq!((a.len(), b.len()), (1, 1));
    }

    #[test]
    fn note_names_label_before_address() {
        let mut outcome = Outcome {
            target: "a:1".to_owned(),
            ..Outcome::default()
        };
        assert!(note(&outcome).starts_with("a:1: 0 messages/s"));
        outcome.label = "nginx".to_owned();
        assert!(note(&outcome).starts_with("nginx: "));
    }
}
