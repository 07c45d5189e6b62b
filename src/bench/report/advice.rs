//! What a reader of the figures should know before believing them, and the flag to try next.
//!
//! Invariants: each piece of advice follows from the outcome alone and names what was seen, what
//! that means and what to do; the most important comes first.
//! Must not: repeat what the verdict says (failures are not advice).

use std::fmt;

use super::figures::{self, Work};
use super::units;
use crate::bench::outcome::{Latency, Outcome, Server};

/// Something to know about an [`Outcome`], with a way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Advice {
    /// The client was at its limit, so the figures are its own.
    ClientIsBottleneck {
        /// How that was seen.
        why: String,
        /// Threads that it had.
        threads: u16,
        /// CPUs of the machine.
        cpus: u16,
    },
    /// An open loop past saturation: latencies grow with the duration.
    RateMissed {
        /// Messages a second that were to be sent.
        planned: f64,
        /// Messages a second that were answered.
        answered: f64,
    },
    /// A stall that a closed loop all but hides: while it lasted, nothing was sent.
    StallHidden {
        /// The longest stall, in milliseconds.
        stall_ms: f64,
        /// The 99th percentile, in nanoseconds.
        p99_ns: u64,
        /// Messages a second that were answered.
        answered: f64,
    },
    /// The highest percentiles rest on hardly any sample.
    FewSamples {
        /// The lowest quantile of those.
        quantile: f64,
        /// Answers measured.
        samples: u64,
        /// Answers that it takes.
        needed: u64,
        /// Milliseconds that it takes at this pace.
        needed_ms: f64,
    },
    /// One worker had far more connections than the others.
    Unbalanced {
        /// Connections of the busiest worker in multiples of the mean.
        skew: f64,
        /// Connections at once.
        connections: u32,
    },
    /// Answers were not compared with anything.
    Unchecked,
    /// What the program that measured had to say.
    Recorded(String),
}

/// Fewer answers than this beyond a quantile do not say where it lies.
const SAMPLES_BEYOND_MIN: f64 = 10.0;

/// An open loop that answers less than this share of its rate is past saturation.
const RATE_REACHED_MIN: f64 = 0.98;

/// What to go back to from there, as a share of what was answered.
const RATE_COMFORTABLE: f64 = 0.8;

/// A stall of a closed loop counts as hidden from this length on, in milliseconds, ...
const STALL_MIN_MS: f64 = 20.0;

/// ... if it is so many times the 99th percentile.
const STALL_TO_P99_MIN: f64 = 10.0;

/// The busiest worker may have this many times the mean.
const SKEW_MAX: f64 = 1.5;

/// Fewer connections than this for each worker are never spread evenly, and need not be.
const CONNECTIONS_PER_WORKER_MIN: u32 = 8;

impl Advice {
    /// All that is to be said about an outcome.
    #[must_use]
    pub fn on(outcome: &Outcome) -> Vec<Self> {
        let mut advice = Vec::new();
        advice.extend(bottleneck(outcome));
        advice.extend(rate_missed(outcome));
        advice.extend(outcome.latency.as_ref().and_then(|latency| {
            stall_hidden(outcome, latency).or_else(|| few_samples(outcome, latency))
        }));
        advice.extend(outcome.server.as_ref().and_then(|s| unbalanced(outcome, s)));
        let answered = outcome.totals.bytes_received > 0;
        advice.extend((outcome.plan.expect == "none" && answered).then_some(Self::Unchecked));
        let recorded = outcome.warnings.iter();
        // The program that measured may have put its finding into words already.
        let recorded = recorded.filter(|text| **text != outcome.client.why);
        advice.extend(recorded.cloned().map(Self::Recorded));
        advice
    }
}

fn bottleneck(outcome: &Outcome) -> Option<Advice> {
    outcome
        .client
        .is_bottleneck
        .then(|| Advice::ClientIsBottleneck {
            why: outcome.client.why.clone(),
            threads: outcome.plan.threads,
            cpus: outcome.machine.cpus,
        })
}

fn rate_missed(outcome: &Outcome) -> Option<Advice> {
    let planned = outcome.plan.rate_per_s?;
    let answered = figures::per_second(outcome.totals.messages, outcome.measured_ms)?;
    (answered < planned * RATE_REACHED_MIN).then_some(Advice::RateMissed { planned, answered })
}

fn stall_hidden(outcome: &Outcome, latency: &Latency) -> Option<Advice> {
    let stall_ms = outcome.longest_stall_ms;
    let p99_ns = figures::percentile(latency, 0.99)?;
    let answered = figures::per_second(outcome.totals.messages, outcome.measured_ms)?;
    let stands_out = stall_ms >= STALL_MIN_MS && stall_ms * 1e6 > p99_ns as f64 * STALL_TO_P99_MIN;
    let hidden = outcome.latency_from == "sent" && Work::of(outcome) == Work::Messages;
    (stands_out && hidden).then_some(Advice::StallHidden {
        stall_ms,
        p99_ns,
        answered,
    })
}

fn few_samples(outcome: &Outcome, latency: &Latency) -> Option<Advice> {
    let needed = |quantile: f64| (SAMPLES_BEYOND_MIN / (1.0 - quantile)).round();
    let samples = latency.count as f64;
    let short = |quantile: &&f64| {
        let measured = figures::percentile(latency, **quantile).is_some();
        measured && samples < needed(**quantile)
    };
    let quantile = *figures::QUANTILES.iter().find(short)?;
    let needed = needed(quantile);
    Some(Advice::FewSamples {
        quantile,
        samples: latency.count,
        needed: needed as u64,
        needed_ms: outcome.measured_ms as f64 * needed / samples.max(1.0),
    })
}

fn unbalanced(outcome: &Outcome, server: &Server) -> Option<Advice> {
    let workers = u32::try_from(server.connections_by_worker.len()).ok()?;
    let skew = figures::skew(&server.connections_by_worker)?;
    let connections = outcome.plan.connections;
    let enough = connections >= workers.saturating_mul(CONNECTIONS_PER_WORKER_MIN);
    (skew > SKEW_MAX && enough).then_some(Advice::Unbalanced { skew, connections })
}

impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIsBottleneck { why, threads, cpus } => {
                write!(out, "the client, not the server, is the limit")?;
                if !why.is_empty() {
                    write!(out, ": {why}")?;
                }
                if threads < cpus {
                    write!(out, "; try --threads {}", threads.saturating_add(1))
                } else {
                    write!(
                        out,
                        "; it has a thread for every CPU already: try a larger --pipeline, or \
                         measure from another machine"
                    )
                }
            }
            Self::RateMissed { planned, answered } => write!(
                out,
                "{} messages a second were planned and {} answered: past saturation, latencies \
                 only tell how long the run was; try --rate {:.0}",
                units::number(*planned),
                units::number(*answered),
                answered * RATE_COMFORTABLE
            ),
            Self::StallHidden {
                stall_ms,
                p99_ns,
                answered,
            } => write!(
                out,
                "this pattern waits for answers, so a stall of {} is one sample among many and \
                 p99 ({}) does not show it; try the pattern `rate` with --rate {:.0}, which \
                 measures from the planned time",
                units::time_ms(*stall_ms),
                units::time_ns(*p99_ns),
                (answered / 2.0).max(1.0)
            ),
            Self::FewSamples {
                quantile,
                samples,
                needed,
                needed_ms,
            } => write!(
                out,
                "{} and above rest on {} where it takes {}; try --duration {:.0}s",
                units::quantile(*quantile),
                units::counted(*samples, "answer"),
                units::count(*needed),
                (needed_ms / 1000.0).ceil()
            ),
            Self::Unbalanced { skew, connections } => write!(
                out,
                "the busiest worker has {} times the mean of the connections; try --connections \
                 {}, where the kernel's hash spreads more evenly",
                units::ratio(*skew),
                connections.saturating_mul(4)
            ),
            Self::Unchecked => write!(
                out,
                "answers were not compared with anything; try --expect upper (or echo)"
            ),
            Self::Recorded(text) => out.write_str(text),
        }
    }
}
