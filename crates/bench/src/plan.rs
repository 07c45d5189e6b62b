//! Turns options into a plan with every parameter set.
//!
//! Invariants: a [`Plan`] returned by [`settle`] can be carried out as is; an invalid combination
//! is one error with the cause and a hint; every limit and default of the load generator is named
//! here. Pure: the machine's properties are passed in as [`Facts`].

use std::net::SocketAddr;
use std::time::Duration;

use humantime::format_duration;
use serde::{Deserialize, Serialize};

use super::criterion::Has;
use super::options::{Arrivals, Close, Expect, Format, Options, Pattern, Sources, Word as _};
use super::outcome::PlanSummary;
use super::size::Sizes;
use uppercased_ctl::limits::WORKERS_MAX;
use uppercased_ctl::proxy_header::Version;

/// Default number of connections of `ping`, `rate` and `churn`.
pub const CONNECTIONS: u32 = 50;
/// Default number of connections of `stream`.
pub const STREAM_CONNECTIONS: u32 = 4;
/// Default number of connections of `hold` and `idle`.
pub const HELD_CONNECTIONS: u32 = 1000;
/// Maximum number of connections of all processes together.
pub const CONNECTIONS_MAX: u32 = 2_000_000;
/// Default size of a message.
pub const SIZE: Sizes = Sizes::Fixed(64);
/// Default size of a message of `stream` and `stall`.
pub const STREAM_SIZE: Sizes = Sizes::Fixed(64 * 1024);
/// Default number of messages in flight per connection of `stream`: with its message size, a window
/// of 1 MiB.
pub const STREAM_PIPELINE: u32 = 16;
/// Maximum number of messages in flight per connection.
pub const PIPELINE_MAX: u32 = 65_536;
/// Default messages per second of `rate`.
pub const RATE: f64 = 1000.0;
/// Maximum messages per second.
pub const RATE_MAX: f64 = 1e8;
/// Default interval per connection of `hold`.
pub const EVERY: Duration = Duration::from_secs(5);
/// Default duration of the measurement.
pub const DURATION: Duration = Duration::from_secs(10);
/// Maximum duration of the measurement.
pub const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Default warm-up.
pub const WARMUP: Duration = Duration::from_secs(1);
/// Default reply timeout.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Default connect timeout.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum default number of threads per process. The default is half of the CPUs, so that the
/// server has the others.
pub const THREADS_AUTO_MAX: u16 = 8;
/// Maximum threads per process.
pub const THREADS_MAX: u16 = 256;
/// Maximum number of processes.
pub const PROCESSES_MAX: u16 = 64;
/// Descriptors per process that are not connections.
pub const DESCRIPTOR_RESERVE: u64 = 64;
/// Default limit of connections per source address: below the kernel's ephemeral ports (28,232),
/// since some are in TIME_WAIT or used by other processes.
pub const CONNECTIONS_PER_SOURCE: u32 = 20_000;
/// Maximum number of source addresses.
pub const SOURCES_MAX: u32 = 250;
/// Minimum interval of the series.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Maximum number of intervals of the series.
pub const INTERVALS_MAX: u32 = 1200;
/// Maximum number of commands given with `--during`.
pub const JOBS_MAX: usize = 16;
/// Maximum receive buffer per connection.
pub const RECEIVE_BUFFER_MAX: u32 = 1 << 30;
/// Maximum gap between two planned messages of a connection, in nanoseconds: finite, but longer
/// than any measurement.
pub const GAP_MAX_NS: f64 = 1e18;

/// Properties of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CPUs that this program may use.
    pub cpus: u16,
    /// Maximum number of descriptors per process.
    pub descriptors: u64,
    /// Whether the server is reached over the loopback network.
    pub loopback: bool,
}

/// The trigger of a connection's messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// The previous answer (closed loop).
    Answers,
    /// A schedule (open loop).
    Schedule {
        /// Mean gap between two messages of one connection, in nanoseconds.
        gap_ns: f64,
        /// The spacing of messages.
        arrivals: Arrivals,
    },
    /// None: nothing is sent.
    Silence,
}

/// All parameters of a measurement. Sent to other processes as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The load pattern.
    pub pattern: Pattern,
    /// The trigger of messages.
    pub pace: Pace,
    /// Simultaneous connections, all processes together.
    pub connections: u32,
    /// Bytes of messages.
    pub sizes: Sizes,
    /// Messages in flight per connection.
    pub pipeline: u32,
    /// Messages after which a connection ends; `None`: it stays open as long as the load.
    pub messages_each: Option<u32>,
    /// How it is closed then.
    pub close: Close,
    /// The expected answer.
    pub expect: Expect,
    /// Time before the measurement begins.
    pub warmup: Duration,
    /// Maximum duration of the measurement.
    pub duration: Duration,
    /// Messages after which the measurement ends, all connections together.
    pub count: Option<u64>,
    /// Threads per process.
    pub threads: u16,
    /// Number of processes.
    pub processes: u16,
    /// Source addresses, used in turn; empty: the kernel chooses.
    pub sources: Vec<SocketAddr>,
    /// Receive buffer per connection in bytes; `None`: the kernel's default.
    pub receive_buffer: Option<u32>,
    /// The PROXY header that begins each connection, if any.
    pub proxy_protocol: Option<Version>,
    /// Reply timeout.
    pub timeout: Duration,
    /// Connect timeout.
    pub connect_timeout: Duration,
    /// Interval of the series.
    pub interval: Duration,
}

/// The reason why there is no plan.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A flag of another pattern.
    #[error("cannot use --{flag} with the pattern `{pattern}`: it does not apply; remove it")]
    WrongPattern {
        /// The flag.
        flag: &'static str,
        /// The chosen pattern.
        pattern: &'static str,
    },
    /// Two flags that exclude each other.
    #[error("cannot use {0} with {1}: they exclude each other; remove one")]
    Conflict(&'static str, &'static str),
    /// A flag for the built-in server only.
    #[error(
        "cannot use {0} with an address: it is for the built-in server; remove it, or use --during"
    )]
    OwnServerOnly(&'static str),
    /// A criterion without its metric.
    #[error("cannot check `{criterion}`: {why}; remove it")]
    Criterion {
        /// The criterion.
        criterion: String,
        /// The cause.
        why: &'static str,
    },
    /// A number out of range.
    #[error("cannot use this value of {flag}: it must be {bounds}")]
    OutOfBounds {
        /// The flag.
        flag: &'static str,
        /// The accepted values.
        bounds: String,
    },
    /// A command that would never run.
    #[error(
        "cannot run the command of {flag}: it is due after {}, and {} are measured; choose an \
         earlier time, or a longer --duration", format_duration(*first), format_duration(*duration)
    )]
    NeverRuns {
        /// The flag.
        flag: &'static str,
        /// Time of its first run.
        first: Duration,
        /// Duration of the measurement.
        duration: Duration,
    },
    /// Not enough descriptors.
    #[error(
        "cannot open {connections} connections: each of {processes} processes needs {needed} \
         descriptors and may have {limit}; use `ulimit -n {needed}`, or --processes {enough}"
    )]
    Descriptors {
        /// Number of connections.
        connections: u32,
        /// Descriptors needed per process.
        needed: u64,
        /// Processes requested.
        processes: u16,
        /// Descriptors allowed per process.
        limit: u64,
        /// Processes needed.
        enough: u64,
    },
    /// Loopback source addresses for a remote server.
    #[error(
        "cannot use a number of --sources: the server is remote; list addresses of this machine: \
         --sources 192.0.2.1,192.0.2.2"
    )]
    NotLoopback,
}

/// Returns the default number of connections.
#[must_use]
pub const fn connections(pattern: Pattern) -> u32 {
    match pattern {
        Pattern::Stream => STREAM_CONNECTIONS,
        Pattern::Hold | Pattern::Idle => HELD_CONNECTIONS,
        Pattern::Ping | Pattern::Rate | Pattern::Churn | Pattern::Stall => CONNECTIONS,
    }
}

/// Returns the default number of messages in flight per connection.
#[must_use]
pub const fn pipeline(pattern: Pattern) -> u32 {
    match pattern {
        Pattern::Stream => STREAM_PIPELINE,
        // Only the buffers limit it.
        Pattern::Stall => PIPELINE_MAX,
        _ => 1,
    }
}

/// Returns the default warm-up.
#[must_use]
pub const fn warmup(pattern: Pattern) -> Duration {
    match pattern {
        Pattern::Hold | Pattern::Idle | Pattern::Stall => Duration::ZERO,
        _ => WARMUP,
    }
}

/// Sets every open parameter.
///
/// # Errors
/// The first inconsistency found.
pub fn settle(options: &Options, facts: &Facts) -> Result<Plan, Error> {
    let pattern = options.pattern.unwrap_or(Pattern::Ping);
    check_bounds(options)?;
    check_flags(options, pattern)?;
    let streams = matches!(pattern, Pattern::Stream | Pattern::Stall);
    let connections = options.connections.unwrap_or_else(|| connections(pattern));
    let duration = match (options.duration, options.count) {
        (Some(_), Some(_)) => return Err(Error::Conflict("--duration", "--count")),
        (Some(duration), None) => duration,
        (None, None) => DURATION,
        (None, Some(_)) => DURATION_MAX,
    };
    check_times(options, duration)?;
    // A message count includes the first message, so there is no warm-up.
    let warmup = match options.count {
        Some(_) => Duration::ZERO,
        None => warmup(pattern).min(duration),
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
        pipeline: options.pipeline.unwrap_or_else(|| pipeline(pattern)),
        messages_each: (pattern == Pattern::Churn).then(|| options.messages_each.unwrap_or(1)),
        close: options.close.unwrap_or(Close::Fin),
        expect: options.expect.unwrap_or(Expect::Upper),
        warmup: options.warmup.unwrap_or(warmup),
        duration,
        count: options.count,
        threads,
        processes,
        sources: sources(options.sources.as_ref(), connections, facts)?,
        receive_buffer: options.receive_buffer,
        proxy_protocol: options.proxy_protocol,
        timeout: options.timeout.unwrap_or(TIMEOUT),
        connect_timeout: options.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        interval: interval(options.duration.unwrap_or(DURATION)),
    })
}

/// Checks every number against its bounds.
fn check_bounds(options: &Options) -> Result<(), Error> {
    let o = options;
    let long = |number: Option<u32>| number.map(u64::from);
    let short = |number: Option<u16>| number.map(u64::from);
    let sources = match o.sources {
        Some(Sources::Count(count)) => Some(count),
        Some(Sources::Addresses(_)) | None => None,
    };
    #[rustfmt::skip]
    let numbers: [(_, Option<u64>, u64, u64); 9] = [
        ("--connections", long(o.connections), 1, CONNECTIONS_MAX.into()),
        ("--pipeline", long(o.pipeline), 1, PIPELINE_MAX.into()),
        ("--messages-each", long(o.messages_each), 1, u32::MAX.into()),
        ("--count", o.count, 1, u64::MAX),
        ("--threads", short(o.threads), 1, THREADS_MAX.into()),
        ("--processes", short(o.processes), 1, PROCESSES_MAX.into()),
        ("--receive-buffer", long(o.receive_buffer), 1, RECEIVE_BUFFER_MAX.into()),
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
        let bounds = format!("more than 0, at most {RATE_MAX} messages per second");
        return Err(out_of_bounds("--rate", &bounds));
    }
    Ok(())
}

/// Checks that every command will run.
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

/// Checks for flags that exclude each other, or do not apply to the pattern.
fn check_flags(options: &Options, pattern: Pattern) -> Result<(), Error> {
    let o = options;
    let given = [
        (o.rate.is_some(), "rate"),
        (o.arrivals.is_some(), "arrivals"),
        (o.every.is_some(), "every"),
        (o.close.is_some(), "close"),
        (o.messages_each.is_some(), "messages-each"),
        (o.pipeline.is_some(), "pipeline"),
        (o.size.is_some(), "size"),
        (o.count.is_some(), "count"),
        (
            o.files.iter().any(|(format, _)| *format == Format::Hgrm),
            "hgrm",
        ),
    ];
    if let Some((_, flag)) = given
        .into_iter()
        .find(|(is_given, flag)| *is_given && !pattern.takes(flag))
    {
        let pattern = pattern.word();
        return Err(Error::WrongPattern { flag, pattern });
    }
    let jobs = options.during.len();
    if jobs > JOBS_MAX {
        let bounds = format!("at most {JOBS_MAX} commands");
        return Err(out_of_bounds("--during", &bounds));
    }
    check_criteria(options)?;
    check_ownership(options)
}

/// Returns what a measurement with these options will have.
pub(super) fn has(options: &Options) -> Has {
    let pattern = options.pattern.unwrap_or(Pattern::Ping);
    Has {
        replies: !matches!(pattern, Pattern::Idle | Pattern::Stall),
        plan: matches!(pattern, Pattern::Rate | Pattern::Hold),
        connections: pattern == Pattern::Churn,
        server: options.target.is_none() || !options.pids.is_empty(),
    }
}

/// Checks that every criterion has its metric.
fn check_criteria(options: &Options) -> Result<(), Error> {
    let has = has(options);
    for criterion in &options.fail_if {
        if let Some(why) = criterion.obstacle(has) {
            let criterion = criterion.to_string();
            return Err(Error::Criterion { criterion, why });
        }
    }
    Ok(())
}

/// Checks for flags that apply only to the built-in server, or only to another server.
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
        Pattern::Ping | Pattern::Stream | Pattern::Churn | Pattern::Stall => return Pace::Answers,
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
    // All of 127.0.0.0/8 is this machine; 127.0.1.x is rarely in use.
    let address = |last| {
        let ip = [127, 0, 1, u8::try_from(last).unwrap_or(u8::MAX)];
        SocketAddr::from((ip, 0))
    };
    Ok((1..=count).map(address).collect())
}

/// Returns the shortest multiple of the minimum interval with which `duration` has at most the
/// maximum number of intervals.
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
    /// Returns a summary of the plan for the outcome.
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

    /// Returns the start of a latency: `planned` or `sent`.
    #[must_use]
    pub const fn latency_from(&self) -> &'static str {
        match self.pace {
            Pace::Schedule { .. } => "planned",
            Pace::Answers | Pace::Silence => "sent",
        }
    }
}

/// Returns `span` in whole milliseconds.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
