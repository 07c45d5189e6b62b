//! What is to be measured: from what was typed to a plan with every number decided.
//!
//! Invariants: a [`Plan`] that [`settle`] returned can be carried out as it stands; a combination
//! that makes no sense is one error that says what, why and what to do; every limit and default of
//! the load generator has its name here.
//! Pure: what the machine is like comes in as [`Facts`].

use std::net::SocketAddr;
use std::time::Duration;

use humantime::format_duration;
use serde::{Deserialize, Serialize};

use super::options::{Arrivals, Close, Expect, Options, Pattern, Sources, Word as _};
use super::outcome::PlanSummary;
use super::size::Sizes;
use uppercased_ctl::limits::WORKERS_MAX;
use uppercased_ctl::proxy_header::Version;

/// Connections of `ping`, `rate` and `churn` at once.
pub const CONNECTIONS: u32 = 50;
/// Connections of `stream`.
pub const STREAM_CONNECTIONS: u32 = 4;
/// Connections of `hold` and `idle`.
pub const HELD_CONNECTIONS: u32 = 1000;
/// Connections there may be, all processes together.
pub const CONNECTIONS_MAX: u32 = 2_000_000;
/// Bytes of a message.
pub const SIZE: Sizes = Sizes::Fixed(64);
/// Bytes of a message of `stream`.
pub const STREAM_SIZE: Sizes = Sizes::Fixed(64 * 1024);
/// Messages on their way at once on one connection of `stream`: with its messages, a window of
/// 1 MiB.
pub const STREAM_PIPELINE: u32 = 16;
/// Messages on their way at once on one connection, at most.
pub const PIPELINE_MAX: u32 = 65_536;
/// Messages a second of `rate`.
pub const RATE: f64 = 1000.0;
/// Messages a second, at most.
pub const RATE_MAX: f64 = 1e8;
/// How often `hold` exercises each connection.
pub const EVERY: Duration = Duration::from_secs(5);
/// How long is measured.
pub const DURATION: Duration = Duration::from_secs(10);
/// How long may be measured.
pub const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the load runs before it counts.
pub const WARMUP: Duration = Duration::from_secs(1);
/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads of one process, if nobody says: half of the CPUs, so that the server has the others,
/// and never more than this.
pub const THREADS_AUTO_MAX: u16 = 8;
/// Threads of one process.
pub const THREADS_MAX: u16 = 256;
/// Processes.
pub const PROCESSES_MAX: u16 = 64;
/// Descriptors of a process that are not its connections.
pub const DESCRIPTOR_RESERVE: u64 = 64;
/// Connections from one address, if nobody says: below the ports that the kernel gives out by
/// itself (28,232), since some are in TIME_WAIT or somebody else's.
pub const CONNECTIONS_PER_SOURCE: u32 = 20_000;
/// Addresses to connect from.
pub const SOURCES_MAX: u32 = 250;
/// The shortest piece of the series.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Pieces of the series, at most.
pub const INTERVALS_MAX: u32 = 1200;
/// Commands given with `--during`.
pub const JOBS_MAX: usize = 16;
/// The longest time from one planned message of a connection to its next, in nanoseconds: longer than
/// any measurement, and finite.
pub const GAP_MAX_NS: f64 = 1e18;

/// What the machine is like.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CPUs that this program may use.
    pub cpus: u16,
    /// Descriptors that a process may have.
    pub descriptors: u64,
    /// Whether the server is reached over the loopback network.
    pub loopback: bool,
}

/// What makes a connection send.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// The answer before.
    Answers,
    /// A schedule: this long between two messages of one connection, in nanoseconds.
    Schedule {
        /// On average.
        gap_ns: f64,
        /// How they follow each other.
        arrivals: Arrivals,
    },
    /// Nothing.
    Silence,
}

/// Everything that measuring needs to know. It travels to other processes as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What connections do.
    pub pattern: Pattern,
    /// What makes them send.
    pub pace: Pace,
    /// Connections at once, all processes together.
    pub connections: u32,
    /// Bytes of messages.
    pub sizes: Sizes,
    /// Messages on their way at once on one connection.
    pub pipeline: u32,
    /// Messages after which a connection ends; `None`: it lives as long as the load.
    pub messages_each: Option<u32>,
    /// How it ends then.
    pub close: Close,
    /// What comes back.
    pub expect: Expect,
    /// Before it counts.
    pub warmup: Duration,
    /// How long it counts, at most.
    pub duration: Duration,
    /// Messages after which it ends, all connections together.
    pub count: Option<u64>,
    /// Of each process.
    pub threads: u16,
    /// Of this program.
    pub processes: u16,
    /// Where connections come from, in turn; empty: the kernel decides.
    pub sources: Vec<SocketAddr>,
    /// The PROXY header with which each of them begins, if it does.
    pub proxy_protocol: Option<Version>,
    /// For an answer.
    pub timeout: Duration,
    /// For a connection.
    pub connect_timeout: Duration,
    /// Length of a piece of the series.
    pub interval: Duration,
}

/// Why there is no plan.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A flag of another pattern.
    #[error("{flag} does not apply to the pattern `{pattern}`; it applies to {owners}")]
    WrongPattern {
        /// The flag.
        flag: &'static str,
        /// The pattern that was chosen.
        pattern: &'static str,
        /// The patterns that it is for.
        owners: &'static str,
    },
    /// Two flags that exclude each other.
    #[error("{0} and {1} exclude each other; remove one")]
    Conflict(&'static str, &'static str),
    /// For the server of its own only.
    #[error("{0} is for the built-in server; remove the address, or use --during")]
    OwnServerOnly(&'static str),
    /// A number out of its bounds.
    #[error("{flag} takes {bounds}")]
    OutOfBounds {
        /// The flag.
        flag: &'static str,
        /// What it takes.
        bounds: String,
    },
    /// A command whose time never comes.
    #[error(
        "{flag} has a command for {} and {} are measured, so it would never run; choose an earlier \
         time, or a longer --duration", format_duration(*first), format_duration(*duration)
    )]
    NeverRuns {
        /// The flag.
        flag: &'static str,
        /// When it would run first.
        first: Duration,
        /// How long is measured.
        duration: Duration,
    },
    /// Not enough descriptors.
    #[error(
        "{connections} connections need {needed} descriptors in each of {processes} processes, \
         and the limit is {limit}; raise it with `ulimit -n {needed}`, or use --processes {enough}"
    )]
    Descriptors {
        /// How many connections.
        connections: u32,
        /// Descriptors that a process would need.
        needed: u64,
        /// Processes that were asked for.
        processes: u16,
        /// Descriptors that it may have.
        limit: u64,
        /// Processes that would be enough.
        enough: u64,
    },
    /// Loopback addresses for a server elsewhere.
    #[error(
        "loopback addresses cannot reach a remote server; list addresses of this machine: \
         --sources 192.0.2.1,192.0.2.2"
    )]
    NotLoopback,
}

/// Decides everything that was left open.
///
/// # Errors
/// The first thing that makes no sense.
pub fn settle(options: &Options, facts: &Facts) -> Result<Plan, Error> {
    let pattern = options.pattern.unwrap_or(Pattern::Ping);
    check_bounds(options)?;
    check_flags(options, pattern)?;
    let held = matches!(pattern, Pattern::Hold | Pattern::Idle);
    let streams = pattern == Pattern::Stream;
    let connections = options.connections.unwrap_or(match pattern {
        Pattern::Stream => STREAM_CONNECTIONS,
        Pattern::Hold | Pattern::Idle => HELD_CONNECTIONS,
        Pattern::Ping | Pattern::Rate | Pattern::Churn => CONNECTIONS,
    });
    let pipeline = options
        .pipeline
        .unwrap_or(if streams { STREAM_PIPELINE } else { 1 });
    let duration = match (options.duration, options.count) {
        (Some(_), Some(_)) => return Err(Error::Conflict("--duration", "--count")),
        (Some(duration), None) => duration,
        (None, None) => DURATION,
        (None, Some(_)) => DURATION_MAX,
    };
    check_times(options, duration)?;
    // A count of messages counts all of them.
    let warmup = match options.count {
        Some(_) => Duration::ZERO,
        None => WARMUP.min(duration),
    };
    let threads = options.threads.unwrap_or_else(|| {
        let spare = (facts.cpus / 2).clamp(1, THREADS_AUTO_MAX);
        spare.min(u16::try_from(connections).unwrap_or(u16::MAX))
    });
    let processes = processes(options.processes, connections, facts)?;
    Ok(Plan {
        pattern,
        pace: pace(options, pattern, connections),
        connections,
        sizes: options
            .size
            .unwrap_or(if streams { STREAM_SIZE } else { SIZE }),
        pipeline,
        messages_each: (pattern == Pattern::Churn).then(|| options.messages_each.unwrap_or(1)),
        close: options.close.unwrap_or(Close::Fin),
        expect: options.expect.unwrap_or(Expect::Upper),
        warmup: options
            .warmup
            .unwrap_or(if held { Duration::ZERO } else { warmup }),
        duration,
        count: options.count,
        threads,
        processes,
        sources: sources(options.sources.as_ref(), connections, facts)?,
        proxy_protocol: options.proxy_protocol,
        timeout: options.timeout.unwrap_or(TIMEOUT),
        connect_timeout: options.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        interval: interval(options.duration.unwrap_or(DURATION)),
    })
}

/// Every number that may be typed, with its bounds.
fn check_bounds(options: &Options) -> Result<(), Error> {
    let o = options;
    let long = |number: Option<u32>| number.map(u64::from);
    let short = |number: Option<u16>| number.map(u64::from);
    let sources = match o.sources {
        Some(Sources::Count(count)) => Some(count),
        Some(Sources::Addresses(_)) | None => None,
    };
    #[rustfmt::skip]
    let numbers: [(_, Option<u64>, u64, u64); 8] = [
        ("--connections", long(o.connections), 1, CONNECTIONS_MAX.into()),
        ("--pipeline", long(o.pipeline), 1, PIPELINE_MAX.into()),
        ("--messages-each", long(o.messages_each), 1, u32::MAX.into()),
        ("--count", o.count, 1, u64::MAX),
        ("--threads", short(o.threads), 1, THREADS_MAX.into()),
        ("--processes", short(o.processes), 1, PROCESSES_MAX.into()),
        ("--sources", long(sources), 1, SOURCES_MAX.into()),
        ("--workers", short(o.workers), 1, WORKERS_MAX.into()),
    ];
    for (flag, typed, least, most) in numbers {
        if typed.is_some_and(|number| !(least..=most).contains(&number)) {
            return Err(out_of_bounds(flag, &format!("{least} to {most}")));
        }
    }
    #[rustfmt::skip]
    let times: [(_, Option<Duration>, bool, Duration); 7] = [
        ("--duration", o.duration, false, DURATION_MAX),
        ("--warmup", o.warmup, true, DURATION_MAX),
        ("--every", o.every, false, Duration::MAX),
        ("--timeout", o.timeout, false, Duration::MAX),
        ("--connect-timeout", o.connect_timeout, false, Duration::MAX),
        ("--reload-every", o.reload_every, false, Duration::MAX),
        ("--upgrade-every", o.upgrade_every, false, Duration::MAX),
    ];
    for (flag, typed, may_be_zero, most) in times {
        let Some(typed) = typed else { continue };
        if typed > most || (typed.is_zero() && !may_be_zero) {
            let least = if may_be_zero { "" } else { "more than 0s" };
            let most = match most {
                Duration::MAX => String::new(),
                most => format!("at most {}", format_duration(most)),
            };
            let bounds = [least, &most].into_iter().filter(|bound| !bound.is_empty());
            return Err(out_of_bounds(flag, &bounds.collect::<Vec<_>>().join(", ")));
        }
    }
    if o.rate.is_some_and(|rate| !(rate > 0.0 && rate <= RATE_MAX)) {
        let bounds = format!("messages a second, above 0, at most {RATE_MAX}");
        return Err(out_of_bounds("--rate", &bounds));
    }
    Ok(())
}

/// Whether every command that is to be run meanwhile gets its turn.
fn check_times(options: &Options, duration: Duration) -> Result<(), Error> {
    let during = options.during.iter().map(|job| ("--during", job.first));
    let own = [
        ("--reload-every", options.reload_every),
        ("--upgrade-every", options.upgrade_every),
    ];
    let own = own
        .into_iter()
        .filter_map(|(flag, every)| Some((flag, every?)));
    match during.chain(own).find(|(_, first)| *first >= duration) {
        None => Ok(()),
        Some((flag, first)) => Err(Error::NeverRuns {
            flag,
            first,
            duration,
        }),
    }
}

/// Flags that do not go together, or not with the pattern.
fn check_flags(options: &Options, pattern: Pattern) -> Result<(), Error> {
    let is = |one| pattern == one;
    let (rate, hold, churn) = (is(Pattern::Rate), is(Pattern::Hold), is(Pattern::Churn));
    let talks = !is(Pattern::Idle);
    let talkers = "all but `idle`";
    let o = options;
    #[rustfmt::skip]
    let rows = [
        (o.rate.is_some(), rate, "--rate", "`rate`"),
        (o.arrivals.is_some(), rate || hold, "--arrivals", "`rate` and `hold`"),
        (o.every.is_some(), hold, "--every", "`hold`"),
        (o.close.is_some(), churn, "--close", "`churn`"),
        (o.messages_each.is_some(), churn, "--messages-each", "`churn`"),
        (o.pipeline.is_some(), talks, "--pipeline", talkers),
        (o.size.is_some(), talks, "--size", talkers),
        (o.count.is_some(), talks, "--count", talkers),
    ];
    for (typed, allowed, flag, owners) in rows {
        if typed && !allowed {
            let pattern = pattern.word();
            return Err(Error::WrongPattern {
                flag,
                pattern,
                owners,
            });
        }
    }
    let jobs = options.during.len();
    if jobs > JOBS_MAX {
        let bounds = format!("at most {JOBS_MAX} commands");
        return Err(out_of_bounds("--during", &bounds));
    }
    check_ownership(options)
}

/// Flags for a server of its own, where there is one, and for another's, where there is that.
fn check_ownership(options: &Options) -> Result<(), Error> {
    if options.target.is_some() {
        for (typed, flag) in [
            (options.workers.is_some(), "--workers"),
            (options.reload_every.is_some(), "--reload-every"),
            (options.upgrade_every.is_some(), "--upgrade-every"),
            (!options.server_args.is_empty(), "an argument after `--`"),
        ] {
            if typed {
                return Err(Error::OwnServerOnly(flag));
            }
        }
    } else if !options.pids.is_empty() {
        return Err(Error::Conflict("--pid", "a built-in server"));
    }
    Ok(())
}

fn pace(options: &Options, pattern: Pattern, connections: u32) -> Pace {
    let gap_ns = match pattern {
        Pattern::Ping | Pattern::Stream | Pattern::Churn => return Pace::Answers,
        Pattern::Idle => return Pace::Silence,
        Pattern::Rate => 1e9 * f64::from(connections) / options.rate.unwrap_or(RATE),
        Pattern::Hold => options.every.unwrap_or(EVERY).as_secs_f64() * 1e9,
    };
    Pace::Schedule {
        gap_ns: gap_ns.min(GAP_MAX_NS),
        arrivals: options.arrivals.unwrap_or(Arrivals::Constant),
    }
}

fn processes(asked: Option<u16>, connections: u32, facts: &Facts) -> Result<u16, Error> {
    let usable = facts.descriptors.saturating_sub(DESCRIPTOR_RESERVE).max(1);
    let enough = u64::from(connections).div_ceil(usable);
    let processes = match asked {
        Some(asked) => asked,
        None => u16::try_from(enough.min(PROCESSES_MAX.into())).unwrap_or(PROCESSES_MAX),
    };
    if enough > processes.into() {
        return Err(Error::Descriptors {
            connections,
            needed: u64::from(connections.div_ceil(processes.into())) + DESCRIPTOR_RESERVE,
            processes,
            limit: facts.descriptors,
            enough,
        });
    }
    Ok(processes)
}

fn sources(
    asked: Option<&Sources>,
    connections: u32,
    facts: &Facts,
) -> Result<Vec<SocketAddr>, Error> {
    let count = match asked {
        Some(Sources::Addresses(addresses)) => return Ok(addresses.clone()),
        Some(&Sources::Count(count)) if !facts.loopback && count > 0 => {
            return Err(Error::NotLoopback);
        }
        Some(&Sources::Count(count)) => count,
        None if facts.loopback && connections > CONNECTIONS_PER_SOURCE => {
            connections.div_ceil(CONNECTIONS_PER_SOURCE)
        }
        None => 0,
    };
    // All of 127.0.0.0/8 is this machine; 127.0.1.x is rarely anybody's.
    let address = |last| {
        let ip = [127, 0, 1, u8::try_from(last).unwrap_or(u8::MAX)];
        SocketAddr::from((ip, 0))
    };
    Ok((1..=count).map(address).collect())
}

/// A length of the pieces that gives few enough of them, in whole steps of the shortest.
fn interval(duration: Duration) -> Duration {
    let steps = duration
        .as_nanos()
        .div_ceil(INTERVAL_MIN.as_nanos() * u128::from(INTERVALS_MAX));
    INTERVAL_MIN * u32::try_from(steps.max(1)).unwrap_or(u32::MAX)
}

fn out_of_bounds(flag: &'static str, bounds: &str) -> Error {
    let bounds = bounds.to_owned();
    Error::OutOfBounds { flag, bounds }
}

impl Plan {
    /// As it is told.
    #[must_use]
    pub fn summary(&self) -> PlanSummary {
        let (rate_per_s, arrivals) = match self.pace {
            Pace::Schedule { gap_ns, arrivals } => (
                Some(1e9 * f64::from(self.connections) / gap_ns),
                Some(arrivals.word().to_owned()),
            ),
            Pace::Answers | Pace::Silence => (None, None),
        };
        PlanSummary {
            pattern: self.pattern.word().to_owned(),
            connections: self.connections,
            size: self.sizes.to_string(),
            pipeline: self.pipeline,
            rate_per_s,
            arrivals,
            threads: self.threads,
            processes: self.processes,
            warmup_ms: millis(self.warmup),
            duration_ms: self.count.map_or_else(|| millis(self.duration), |_| 0),
            expect: self.expect.word().to_owned(),
            proxy_protocol: self.proxy_protocol.map(|version| version.word().to_owned()),
        }
    }

    /// From when the time of an answer counts.
    #[must_use]
    pub const fn latency_from(&self) -> &'static str {
        match self.pace {
            Pace::Schedule { .. } => "planned",
            Pace::Answers | Pace::Silence => "sent",
        }
    }
}

/// `span` in whole milliseconds.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
