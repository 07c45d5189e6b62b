//! Reasons against comparing two sides: different plans, different machines, failed runs.
//!
//! Invariant: every warning names the first run to which it applies. It must not refuse: the
//! figures are shown anyway, and the reader decides.

use std::fmt;

use super::super::figures;
use super::run::Run;
use crate::outcome::Outcome;
use uppercased_ctl::units;

/// A reason against a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A part of the plan, or of the environment, differs.
    Differs {
        /// The part.
        what: &'static str,
        /// Its value in the first run of A.
        first: String,
        /// The run in which it differs.
        name: String,
        /// Its value there.
        other: String,
    },
    /// A run counted failures.
    Failed {
        /// The run.
        name: String,
        /// Number of failures.
        failures: u64,
    },
    /// A run did not complete its plan.
    NotDone {
        /// The run.
        name: String,
        /// The first problem.
        problem: String,
    },
    /// A run in which the client was the bottleneck.
    ClientBound {
        /// The run.
        name: String,
    },
    /// The same file is on both sides.
    Twice {
        /// The file.
        name: String,
    },
}

/// Maximum length of a quoted problem, in characters.
const PROBLEM_MAX: usize = 240;

/// A property that must be equal in all runs, with its accessor.
type Sameness = (&'static str, fn(&Outcome) -> String);

const SAME: [Sameness; 15] = [
    ("pattern", |o| o.plan.pattern.clone()),
    ("number of connections", |o| o.plan.connections.to_string()),
    ("message size", |o| o.plan.size.clone()),
    ("pipeline", |o| o.plan.pipeline.to_string()),
    ("rate", |o| match o.plan.rate_per_s {
        Some(_) if o.capacity.is_some() => "searched".to_owned(),
        Some(rate) => format!("{}/s", units::per_second(rate)),
        None => "not limited".to_owned(),
    }),
    ("arrivals", |o| {
        o.plan
            .arrivals
            .clone()
            .unwrap_or_else(|| "not planned".to_owned())
    }),
    ("latency origin", |o| o.latency_from.clone()),
    ("number of threads", |o| o.plan.threads.to_string()),
    ("number of processes", |o| o.plan.processes.to_string()),
    ("warm-up", |o| units::time_ms(o.plan.warmup_ms as f64)),
    ("duration", |o| units::time_ms(o.plan.duration_ms as f64)),
    ("expected reply", |o| o.plan.expect.clone()),
    ("PROXY header", |o| {
        let header = o.plan.proxy_protocol.clone();
        header.unwrap_or_else(|| "none".to_owned())
    }),
    ("machine", |o| {
        format!("{} × {}", o.machine.cpus, o.machine.cpu_model)
    }),
    ("kernel", |o| o.machine.kernel.clone()),
];

/// Returns every reason against comparing these runs.
pub(super) fn warnings(a: &[Run], b: &[Run]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let runs = || a.iter().chain(b);
    if let Some(first) = runs().next() {
        for (what, of) in SAME {
            let expected = of(&first.outcome);
            let other = runs().find(|run| of(&run.outcome) != expected);
            warnings.extend(other.map(|run| Warning::Differs {
                what,
                first: expected,
                name: run.name.clone(),
                other: of(&run.outcome),
            }));
        }
    }
    for run in runs() {
        let name = || run.name.clone();
        let failures = figures::failures(&run.outcome);
        warnings.extend((failures > 0).then(|| Warning::Failed {
            name: name(),
            failures,
        }));
        let problem = run.outcome.problems.first();
        warnings.extend(problem.map(|problem| Warning::NotDone {
            name: name(),
            problem: units::cut(problem, PROBLEM_MAX),
        }));
        let bound = run.outcome.client.is_bottleneck;
        warnings.extend(bound.then(|| Warning::ClientBound { name: name() }));
    }
    let twice = a
        .iter()
        .find(|one| b.iter().any(|other| other.name == one.name));
    warnings.extend(twice.map(|run| Warning::Twice {
        name: run.name.clone(),
    }));
    warnings
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs {
                what,
                first,
                name,
                other,
            } => write!(out, "different {what}: {first}, but {other} in {name}"),
            Self::Failed { name, failures } => {
                write!(
                    out,
                    "{name} counted {}",
                    units::counted(*failures, "failure")
                )
            }
            Self::NotDone { name, problem } => write!(out, "{name}: {problem}"),
            Self::ClientBound { name } => {
                write!(
                    out,
                    "the client was the bottleneck in {name}; try --threads"
                )
            }
            Self::Twice { name } => write!(out, "{name} is on both sides"),
        }
    }
}
