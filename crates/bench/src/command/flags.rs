//! The flags of each pattern, and their conversion to options.
//!
//! Invariant: a default in a help text is the one that `plan` uses.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser as _};
use clap::{Arg, ArgAction, ArgMatches};
use humantime::format_duration;

use crate::capacity::{self, Quest};
use crate::compare::Results;
use crate::criterion::{ComparisonCriterion, Criterion};
use crate::options::{Arrivals, Close, Expect, Format, Job, Options, Pattern, Sources, Word};
use crate::outcome::Target;
use crate::plan;
use crate::size::Sizes;
use crate::versus::{self, Duel};
use uppercased_ctl::proxy_header::Version;
use uppercased_ctl::target::with_defaults;

const TARGET: &str = "target";
const CONNECTIONS: &str = "connections";
const SIZE: &str = "size";
const PIPELINE: &str = "pipeline";
const RATE: &str = "rate";
const ARRIVALS: &str = "arrivals";
const EVERY: &str = "every";
const MESSAGES_EACH: &str = "messages-each";
const CLOSE: &str = "close";
const DURATION: &str = "duration";
const COUNT: &str = "count";
const WARMUP: &str = "warmup";
const THREADS: &str = "threads";
const PROCESSES: &str = "processes";
const SOURCES: &str = "sources";
const EXPECT: &str = "expect";
const TIMEOUT: &str = "timeout";
const CONNECT_TIMEOUT: &str = "connect-timeout";
const PID: &str = "pid";
const LABEL: &str = "label";
/// The flags that name a file of results.
const FILES: [(Format, &str, &str); 5] = [
    (Format::Json, "json", "Write all results as JSON"),
    (Format::Report, "report", "Write an HTML report with charts"),
    (Format::Csv, "csv", "Write a row for each interval as CSV"),
    (
        Format::Markdown,
        "markdown",
        "Write the main figures as a Markdown table",
    ),
    (
        Format::Hgrm,
        "hgrm",
        "Write the latencies as HdrHistogram text",
    ),
];
const DURING: &str = "during";
const FAIL_IF: &str = "fail-if";
const RELOAD_EVERY: &str = "reload-every";
const UPGRADE_EVERY: &str = "upgrade-every";
const WORKERS: &str = "workers";
const RECEIVE_BUFFER: &str = "receive-buffer";
const PROXY_PROTOCOL: &str = "proxy-protocol";
const A: &str = "a";
const B: &str = "b";
const RUNS: &str = "runs";
const PATTERN: &str = "pattern";
const PROBE: &str = "probe";
const TIME_LIMIT: &str = "time-limit";
/// The percentiles that may be a target.
const QUANTILES: [(&str, f64); 6] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];
const NO_PROGRESS: &str = "no-progress";
const SERVER_ARGS: &str = "server-args";

/// Returns the arguments of a pattern.
pub(super) fn of(pattern: Pattern) -> Vec<Arg> {
    let flags = [load(pattern), truth(), output(), own_server()].concat();
    let applies = |arg: &Arg| arg.get_long().is_none_or(|flag| pattern.takes(flag));
    flags.into_iter().filter(applies).collect()
}

/// Returns the arguments of `capacity`: those of `rate` without what the search chooses.
pub(super) fn of_capacity() -> Vec<Arg> {
    let chosen = [
        RATE,
        DURATION,
        COUNT,
        WARMUP,
        DURING,
        RELOAD_EVERY,
        UPGRADE_EVERY,
    ];
    let targets = QUANTILES.map(|(flag, _)| {
        // A placeholder would be longer than its meaning.
        time(flag, "Limit of this percentile, which a rate must hold").help_heading("Targets")
    });
    let load = of(Pattern::Rate).into_iter();
    let load = load.filter(|arg| !chosen.contains(&arg.get_id().as_str()));
    let lengths = [
        time(PROBE, "Length of a probe").by_default(format_duration(capacity::PROBE)),
        time(TIME_LIMIT, "Time limit of the search")
            .by_default(format_duration(capacity::TIME_LIMIT)),
    ];
    load.chain(targets).chain(lengths).collect()
}

/// Returns the arguments of `versus`: the load of any pattern, and what each server has.
pub(super) fn of_versus() -> Vec<Arg> {
    let own = [
        Arg::new(A)
            .value_name("A")
            .required(true)
            .help("Address of the first server"),
        Arg::new(B)
            .value_name("B")
            .required(true)
            .help("Address of the second server"),
        number::<u16>(RUNS, "N", "Runs of each server, which alternate").by_default(versus::RUNS),
        flag(
            LABEL,
            "NAME",
            "Name of a server; first that of A, then that of B",
        )
        .action(ArgAction::Append),
        word::<Pattern>(PATTERN, "Load pattern").by_default(Pattern::Ping.word()),
        time(DURATION, "Measured time of a run")
            .short('d')
            .short_alias('z')
            .by_default(format_duration(versus::DURATION)),
        number::<u32>(
            PID,
            "PID",
            "Process of a server; first that of A, then that of B",
        )
        .action(ArgAction::Append),
        word::<Expect>(EXPECT, "Expected reply, also first of A, then of B")
            .action(ArgAction::Append)
            .by_default(Expect::Upper.word()),
    ];
    let mut all: Vec<Arg> = own.into_iter().chain(Results::flags()).collect();
    let not_here = [
        TARGET,
        DURING,
        WORKERS,
        RELOAD_EVERY,
        UPGRADE_EVERY,
        SERVER_ARGS,
    ];
    for arg in Pattern::ALL.iter().flat_map(|pattern| of(*pattern)) {
        let id = arg.get_id().clone();
        let is_file = FILES.iter().any(|(_, name, _)| id == *name);
        let is_known = all.iter().any(|one| *one.get_id() == id);
        if !is_known && !is_file && !not_here.iter().any(|name| id == *name) {
            all.push(arg);
        }
    }
    let varies = [CONNECTIONS, SIZE, PIPELINE, WARMUP];
    let general = |arg: Arg| match varies.iter().any(|name| arg.get_id() == name) {
        true => arg.of_pattern(),
        false => arg,
    };
    all.into_iter().map(general).collect()
}

fn load(pattern: Pattern) -> Vec<Arg> {
    let is_stream = matches!(pattern, Pattern::Stream | Pattern::Stall);
    let time_of = |time| format_duration(time).to_string();
    vec![
        Arg::new(TARGET)
            .value_name("HOST:PORT")
            .help("Server address; the port is 9999 unless given [default: built-in]"),
        number::<u32>(CONNECTIONS, "N", "Concurrent connections")
            .short('c')
            .by_default(plan::connections(pattern)),
        typed::<Sizes>(
            SIZE,
            "BYTES",
            "Message size: 64, 16k, 64..1k, chat or mixed",
        )
        .short('s')
        .by_default(if is_stream { "64k" } else { "64" }),
        number::<u32>(PIPELINE, "N", "Messages in flight per connection")
            .by_default(plan::pipeline(pattern)),
        number::<f64>(RATE, "N", "Messages per second of all connections together")
            .short('r')
            .short_aliases(['R', 'q'])
            .alias("qps")
            .by_default(plan::RATE),
        word::<Arrivals>(ARRIVALS, "Spacing of messages").by_default(Arrivals::Constant.word()),
        time(EVERY, "Interval between messages of a connection").by_default(time_of(plan::EVERY)),
        number::<u32>(MESSAGES_EACH, "N", "Messages per connection").by_default(1),
        word::<Close>(CLOSE, "Close method").by_default(Close::Fin.word()),
        time(DURATION, "Measured time")
            .short('d')
            .short_alias('z')
            .by_default(time_of(plan::DURATION)),
        number::<u64>(
            COUNT,
            "N",
            "Stop after this many messages instead of a time",
        )
        .short('n'),
        time(WARMUP, "Warm-up, not measured").by_default(time_of(plan::warmup(pattern))),
        number::<u16>(THREADS, "N", "Threads per process")
            .short('t')
            .by_default("half of the CPUs"),
        number::<u16>(PROCESSES, "N", "Processes").by_default("as many as descriptors require"),
        flag(SOURCES, "N|ADDR,...", "Source addresses")
            .value_parser(|text: &str| with_zone_numbers(text).parse::<Sources>())
            .by_default("as many as ports require"),
        number::<u32>(RECEIVE_BUFFER, "BYTES", "Receive buffer per connection")
            .by_default("chosen by the kernel"),
        word::<Version>(PROXY_PROTOCOL, "Send a PROXY header first").value_name("VERSION"),
    ]
}

fn truth() -> Vec<Arg> {
    let time_of = |time| format_duration(time).to_string();
    vec![
        word::<Expect>(EXPECT, "Expected reply").by_default(Expect::Upper.word()),
        time(TIMEOUT, "Reply timeout").by_default(time_of(plan::TIMEOUT)),
        time(CONNECT_TIMEOUT, "Connect timeout").by_default(time_of(plan::CONNECT_TIMEOUT)),
    ]
}

fn output() -> Vec<Arg> {
    let files = FILES.map(|(_, name, help)| path(name, help).alias(format!("export-{name}")));
    let rest = [
        number::<u32>(
            PID,
            "PID",
            "Server process whose CPU and memory to measure; may be repeated",
        )
        .action(ArgAction::Append),
        typed::<Criterion>(
            FAIL_IF,
            "CONDITION",
            "Fail if this holds: 'p99 > 5ms', 'rate < 95%'; may be repeated",
        )
        .action(ArgAction::Append),
        typed::<Job>(
            DURING,
            "WHEN: COMMAND",
            "Run a command during the load: 'every 2s: ...', 'at 3s: ...'",
        )
        .action(ArgAction::Append),
        Arg::new(NO_PROGRESS)
            .long(NO_PROGRESS)
            .alias("no-tui")
            .action(ArgAction::SetTrue)
            .help("Hide the progress bar"),
        flag(LABEL, "NAME", "Name of the server for reports"),
    ];
    files.into_iter().chain(rest).collect()
}

fn own_server() -> Vec<Arg> {
    let args = vec![
        number::<u16>(WORKERS, "N", "Number of workers").by_default("one per CPU"),
        time(RELOAD_EVERY, "Reload it at this interval"),
        time(UPGRADE_EVERY, "Upgrade it at this interval"),
        Arg::new(SERVER_ARGS)
            .last(true)
            .num_args(0..)
            .value_name("ARGUMENT")
            .help("Arguments for the server"),
    ];
    let heading = "Built-in server";
    args.into_iter()
        .map(|arg| arg.help_heading(heading))
        .collect()
}

/// The values given: those of the pattern, and those before it.
pub(super) struct Typed<'a> {
    /// The arguments after the pattern, or all of them if there is none.
    pub own: &'a ArgMatches,
    /// The arguments before the pattern, if there is one.
    pub before: Option<&'a ArgMatches>,
}

impl Typed<'_> {
    /// Returns a flag before the command that is not among those of the command.
    pub(super) fn foreign_flag_before(&self, own: &[Arg]) -> Option<&str> {
        let has = |name: &str| own.iter().any(|arg| arg.get_id() == name);
        let mut given = self.before?.ids().map(clap::Id::as_str);
        given.find(|name| !has(name) && self.is_given(name))
    }

    fn is_given(&self, name: &str) -> bool {
        let source = self.before.and_then(|typed| typed.value_source(name));
        source == Some(clap::parser::ValueSource::CommandLine)
    }

    /// Returns the addresses given.
    pub(super) fn targets(&self) -> Vec<String> {
        self.many(TARGET)
    }

    /// Returns the search for a capacity with this load.
    ///
    /// # Errors
    /// There is no target, or a time is zero.
    pub(super) fn quest(&self, options: Options) -> Result<Quest, String> {
        let target = |(flag, quantile)| {
            let limit = self.one::<Duration>(flag)?;
            let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            Some(Target { quantile, limit_ns })
        };
        let targets: Vec<Target> = QUANTILES.into_iter().filter_map(target).collect();
        let probe = self.one(PROBE).unwrap_or(capacity::PROBE);
        if targets.is_empty() {
            return Err("cannot search without a target: use for example --p99 5ms".to_owned());
        }
        if probe.is_zero() || targets.iter().any(|target| target.limit_ns == 0) {
            return Err("cannot search: the time must be greater than zero".to_owned());
        }
        Ok(Quest {
            options,
            targets,
            probe,
            time_limit: self.one(TIME_LIMIT).unwrap_or(capacity::TIME_LIMIT),
        })
    }

    /// Returns the options, without the address and the command line.
    pub(super) fn options(&self, pattern: Pattern) -> Options {
        Options {
            pattern: Some(pattern),
            target: None,
            connections: self.one(CONNECTIONS),
            size: self.one(SIZE),
            pipeline: self.one(PIPELINE),
            rate: self.one(RATE),
            arrivals: self.one(ARRIVALS),
            every: self.one(EVERY),
            messages_each: self.one(MESSAGES_EACH),
            close: self.one(CLOSE),
            duration: self.one(DURATION),
            count: self.one(COUNT),
            warmup: self.one(WARMUP),
            threads: self.one(THREADS),
            processes: self.one(PROCESSES),
            sources: self.one(SOURCES),
            receive_buffer: self.one(RECEIVE_BUFFER),
            proxy_protocol: self.one(PROXY_PROTOCOL),
            expect: self.one(EXPECT),
            timeout: self.one(TIMEOUT),
            connect_timeout: self.one(CONNECT_TIMEOUT),
            pids: self.many(PID),
            label: self.one(LABEL),
            files: self.files(),
            during: self.many(DURING),
            fail_if: self.many(FAIL_IF),
            reload_every: self.one(RELOAD_EVERY),
            upgrade_every: self.one(UPGRADE_EVERY),
            workers: self.one(WORKERS),
            server_args: self.many(SERVER_ARGS),
            no_progress: self.all().any(|typed| typed.get_flag(NO_PROGRESS)),
            command: String::new(),
        }
    }

    /// Returns two servers to measure with this load, which is that of A.
    ///
    /// # Errors
    /// A flag that each server has was given too often, or for one of them only; a criterion applies
    /// to a single measurement, or lacks its metric.
    pub(super) fn duel(&self, mut a: Options) -> Result<Duel, String> {
        let side = |name: &str| {
            self.one(name)
                .map(|address: String| with_defaults(&address))
        };
        let (labels, pids): (Vec<String>, Vec<u32>) = (self.many(LABEL), self.many(PID));
        let expected: Vec<Expect> = self.many(EXPECT);
        let runs = self.one(RUNS).unwrap_or(versus::RUNS);
        if labels.len() > 2 || expected.len() > 2 {
            return Err("cannot use a flag more than twice: first for A, then for B".to_owned());
        }
        if !matches!(pids.len(), 0 | 2) {
            return Err(
                "cannot measure one of two servers: use --pid for A, then for B".to_owned(),
            );
        }
        if runs == 0 {
            return Err("cannot compare without runs: use --runs 8 or more".to_owned());
        }
        if let Some(criterion) = a.fail_if.first() {
            return Err(format!(
                "cannot check `{criterion}` in a comparison; write --fail-if after `versus`"
            ));
        }
        a.duration = a
            .duration
            .or_else(|| a.count.is_none().then_some(versus::DURATION));
        let mut b = a.clone();
        (a.target, b.target) = (side(A), side(B));
        (a.pids, b.pids) = match pids.as_slice() {
            [of_a, of_b] => (vec![*of_a], vec![*of_b]),
            _ => Default::default(),
        };
        a.label = labels.first().cloned();
        b.label = labels.get(1).cloned();
        b.expect = expected.last().copied();
        b.files.clear();
        let results = Results {
            files: std::mem::take(&mut a.files),
            ..Results::typed(self.own)
        };
        let has = plan::has(&a);
        let obstacle = |one: &ComparisonCriterion| Some((one.to_string(), one.obstacle(has)?));
        if let Some((criterion, why)) = results.criteria.iter().find_map(obstacle) {
            return Err(plan::Error::Criterion { criterion, why }.to_string());
        }
        Ok(Duel {
            sides: [a, b],
            runs,
            results,
        })
    }

    /// Returns the pattern that was given by a flag.
    pub(super) fn pattern(&self) -> Option<Pattern> {
        self.one(PATTERN)
    }

    fn files(&self) -> Vec<(Format, PathBuf)> {
        let file = |(format, name, _)| Some((format, self.one(name)?));
        FILES.into_iter().filter_map(file).collect()
    }

    /// Returns the arguments of the pattern, then those before it.
    fn all(&self) -> impl Iterator<Item = &ArgMatches> {
        [self.own].into_iter().chain(self.before)
    }

    fn one<T: Clone + Send + Sync + 'static>(&self, name: &str) -> Option<T> {
        self.many(name).into_iter().next()
    }

    /// Returns every value; none if the pattern does not have the flag.
    fn many<T: Clone + Send + Sync + 'static>(&self, name: &str) -> Vec<T> {
        let given = self.all().map(|typed| typed.try_get_many::<T>(name));
        let values = given.filter_map(|values| values.ok().flatten());
        values.flatten().cloned().collect()
    }
}

/// Returns the comma-separated addresses with interface names in zones (`fe80::1%eth0`) replaced by
/// numbers. Malformed addresses are unchanged; the parser rejects them.
pub(super) fn with_zone_numbers(addresses: &str) -> String {
    let numbered = |address: &str| {
        let (ip, zone) = address.split_once('%')?;
        let number = nix::net::if_::if_nametoindex(zone).ok()?;
        Some(format!("{ip}%{number}"))
    };
    let parts = addresses.split(',');
    let parts: Vec<String> = parts
        .map(|part| numbered(part).unwrap_or_else(|| part.to_owned()))
        .collect();
    parts.join(",")
}

/// Adds a default to a help text. The value itself is chosen by `plan`.
trait ByDefault {
    fn by_default(self, default: impl std::fmt::Display) -> Self;

    /// Replaces the default of one pattern.
    fn of_pattern(self) -> Self;
}

impl ByDefault for Arg {
    fn by_default(self, default: impl std::fmt::Display) -> Self {
        let help = self.get_help().map(ToString::to_string).unwrap_or_default();
        self.help(format!("{help} [default: {default}]"))
    }

    fn of_pattern(self) -> Self {
        let help = self.get_help().map(ToString::to_string).unwrap_or_default();
        let general = help
            .split(" [default")
            .next()
            .unwrap_or_default()
            .to_owned();
        self.help(general).by_default("by pattern")
    }
}

fn flag(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help)
        .allow_hyphen_values(false)
}

fn number<T: FromStr<Err: std::fmt::Display> + Clone + Send + Sync + 'static>(
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Arg {
    // `-1` is an invalid number, not an unknown flag.
    let parse = |text: &str| text.parse::<T>().map_err(|error| error.to_string());
    flag(name, value, help)
        .allow_negative_numbers(true)
        .value_parser(parse)
}

fn typed<T: FromStr<Err = String> + Clone + Send + Sync + 'static>(
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Arg {
    flag(name, value, help).value_parser(T::from_str)
}

fn time(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| {
        humantime::parse_duration(text)
            .map_err(|_| "a duration needs a unit; use for example 30s".to_owned())
    };
    flag(name, "TIME", help)
        .value_parser(move |text: &str| -> Result<Duration, String> { parse(text) })
}

fn path(name: &'static str, help: &'static str) -> Arg {
    flag(name, "FILE", help).value_parser(PathBufValueParser::new().map(PathBuf::from))
}

fn word<T: Word + Send + Sync>(name: &'static str, help: &'static str) -> Arg {
    let words = T::ALL.iter().map(|word| word.word());
    let parser = PossibleValuesParser::new(words).try_map(|typed| {
        let found = T::ALL.iter().find(|word| word.word() == typed);
        found.copied().ok_or("not a valid choice")
    });
    flag(name, "WORD", help).value_parser(parser)
}
