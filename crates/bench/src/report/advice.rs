//! Caveats about the figures, each with a flag to try next.
//!
//! Invariants: each piece of advice depends only on the outcome and gives the observation, its
//! meaning and a remedy; the most important comes first. An advised flag accepts the advised value,
//! with the pattern measured. It must not repeat the summary's result (failures are not advice).

use std::fmt;

use super::figures::{self, Work};
use crate::outcome::{Latency, Outcome, Server};
use crate::plan::{CONNECTIONS_MAX, DURATION_MAX, PIPELINE_MAX, THREADS_MAX};
use uppercased_ctl::units;

/// A caveat about an [`Outcome`], with a remedy.
#[derive(Clone, Debug, PartialEq)]
pub enum Advice {
    /// The client was the bottleneck, so the figures are its own.
    ClientIsBottleneck {
        /// The evidence.
        why: String,
        /// Threads of the client.
        threads: u16,
        /// CPUs of the machine.
        cpus: u16,
        /// Whether its connections can have more outstanding messages.
        may_pipeline: bool,
    },
    /// An open loop past saturation: latencies grow with the duration.
    RateMissed {
        /// Planned messages per second.
        planned: f64,
        /// Answered messages per second.
        answered: f64,
        /// Whether the plan is a rate, not an interval per connection.
        is_rate: bool,
    },
    /// An open loop that missed its rate because no answer arrived during a large part of the time.
    ServerStalled {
        /// Planned messages per second.
        planned: f64,
        /// Answered messages per second.
        answered: f64,
        /// The longest stall, in milliseconds.
        stall_ms: f64,
    },
    /// A stall that a closed loop nearly hides, because nothing was sent during it.
    StallHidden {
        /// The longest stall, in milliseconds.
        stall_ms: f64,
        /// The 99th percentile, in nanoseconds.
        p99_ns: u64,
        /// Answered messages per second.
        answered: f64,
    },
    /// Too few samples for the highest percentiles.
    FewSamples {
        /// The lowest of these quantiles.
        quantile: f64,
        /// Answers measured.
        samples: u64,
        /// Answers needed.
        needed: u64,
        /// Milliseconds needed at this rate.
        needed_ms: f64,
        /// Whether the plan is a number of messages, not a duration.
        is_count: bool,
    },
    /// One worker had far more connections than the others.
    Unbalanced {
        /// Connections of the busiest worker as a multiple of the mean.
        skew: f64,
        /// Simultaneous connections.
        connections: u32,
    },
    /// Answers were not checked.
    Unchecked,
    /// A warning of the program that measured.
    Recorded(String),
}

/// Minimum number of answers beyond a quantile for it to be meaningful.
const SAMPLES_BEYOND_MIN: f64 = 10.0;

/// Share of its rate below which an open loop is past saturation.
const RATE_REACHED_MIN: f64 = 0.98;

/// Share of the time measured above which a stall explains a missed rate.
const STALL_SHARE_MIN: f64 = 0.2;

/// The advised rate, as a share of the answered rate.
const RATE_COMFORTABLE: f64 = 0.8;

/// Minimum length of a hidden stall of a closed loop, in milliseconds.
const STALL_MIN_MS: f64 = 20.0;

/// Minimum length of a hidden stall, as a multiple of the 99th percentile.
const STALL_TO_P99_MIN: f64 = 10.0;

/// Maximum connections of the busiest worker without advice, as a multiple of the mean.
const SKEW_MAX: f64 = 1.5;

/// Connections per worker below which an even spread is neither expected nor needed.
const CONNECTIONS_PER_WORKER_MIN: u32 = 8;

impl Advice {
    /// Returns all advice about an outcome.
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
        // The measuring program may already have reported this as a warning.
        let recorded = recorded.filter(|text| **text != outcome.client.why);
        advice.extend(recorded.cloned().map(Self::Recorded));
        advice
    }
}

fn bottleneck(outcome: &Outcome) -> Option<Advice> {
    let plan = &outcome.plan;
    outcome
        .client
        .is_bottleneck
        .then(|| Advice::ClientIsBottleneck {
            why: outcome.client.why.clone(),
            threads: plan.threads,
            cpus: outcome.machine.cpus.min(THREADS_MAX),
            may_pipeline: !matches!(plan.pattern.as_str(), "idle" | "stall")
                && plan.pipeline < PIPELINE_MAX,
        })
}

fn rate_missed(outcome: &Outcome) -> Option<Advice> {
    let planned = outcome.plan.rate_per_s?;
    let answered = figures::per_second(outcome.totals.messages, outcome.measured_ms)?;
    let stall_ms = outcome.longest_stall_ms;
    if answered >= planned * RATE_REACHED_MIN || expects_none(outcome) {
        return None;
    }
    let is_stalled = stall_ms > outcome.measured_ms as f64 * STALL_SHARE_MIN;
    Some(if is_stalled && stall_ms.is_finite() {
        Advice::ServerStalled {
            planned,
            answered,
            stall_ms,
        }
    } else {
        Advice::RateMissed {
            planned,
            answered,
            is_rate: outcome.plan.pattern != "hold",
        }
    })
}

/// Returns whether the time measured was too short for a planned message.
fn expects_none(outcome: &Outcome) -> bool {
    let schedule = outcome.schedule.as_ref();
    schedule.is_some_and(|schedule| schedule.planned == 0)
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
        is_count: outcome.plan.duration_ms == 0,
    })
}

fn unbalanced(outcome: &Outcome, server: &Server) -> Option<Advice> {
    let workers = u32::try_from(server.connections_by_worker.len()).ok()?;
    let skew = figures::skew(&server.connections_by_worker)?;
    let connections = outcome.plan.connections;
    let enough = connections >= workers.saturating_mul(CONNECTIONS_PER_WORKER_MIN);
    let may_be_more = connections <= CONNECTIONS_MAX / 4;
    (skew > SKEW_MAX && enough && may_be_more).then_some(Advice::Unbalanced { skew, connections })
}

impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIsBottleneck {
                why,
                threads,
                cpus,
                may_pipeline,
            } => {
                write!(out, "the client is the bottleneck, not the server")?;
                if !why.is_empty() {
                    write!(out, ": {why}")?;
                }
                if threads < cpus {
                    write!(out, "; try --threads {}", threads.saturating_add(1))
                } else {
                    out.write_str("; it already has a thread per CPU: ")?;
                    if *may_pipeline {
                        out.write_str("try a larger --pipeline, or ")?;
                    }
                    out.write_str("measure from another machine")
                }
            }
            Self::RateMissed {
                planned,
                answered,
                is_rate,
            } => {
                write!(
                    out,
                    "{} messages/s were planned and {} answered: past saturation, latencies only \
                     show how long the run was; ",
                    units::per_second(*planned),
                    units::per_second(*answered),
                )?;
                let comfortable = answered * RATE_COMFORTABLE;
                if !is_rate {
                    out.write_str("try a longer --every, or fewer --connections")
                } else if comfortable >= 1.0 {
                    write!(out, "try --rate {comfortable:.0}")
                } else {
                    out.write_str("try a lower --rate")
                }
            }
            Self::ServerStalled {
                planned,
                answered,
                stall_ms,
            } => write!(
                out,
                "{} messages/s were planned and {} answered: the server stalled, and a connection \
                 waited {} for an answer; find the cause before you measure latencies",
                units::per_second(*planned),
                units::per_second(*answered),
                units::time_ms(*stall_ms)
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
                is_count,
            } => {
                write!(
                    out,
                    "too few samples for {} and above ({}; {} needed); ",
                    units::quantile(*quantile),
                    units::short(*samples),
                    units::short(*needed)
                )?;
                let seconds = (needed_ms / 1000.0).ceil().max(1.0);
                if *is_count {
                    write!(out, "try --count {needed}")
                } else if seconds <= DURATION_MAX.as_secs_f64() {
                    write!(out, "try --duration {seconds:.0}s")
                } else {
                    out.write_str("no duration is long enough at this rate")
                }
            }
            Self::Unbalanced { skew, connections } => write!(
                out,
                "the busiest worker has {} times the mean of the connections; try --connections \
                 {}, where the kernel's hash spreads more evenly",
                units::ratio(*skew),
                connections.saturating_mul(4)
            ),
            Self::Unchecked => write!(
                out,
                "answers were not checked; try --expect upper (or echo)"
            ),
            Self::Recorded(text) => out.write_str(text),
        }
    }
}
