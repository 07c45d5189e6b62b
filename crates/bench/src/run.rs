//! Runs one measurement, from its plan to its outcome.
//!
//! Invariants: however it ends (an error, Ctrl-C), the team and the built-in server are stopped;
//! the server's figures are differences over exactly the time measured, within the latency of this
//! thread's wake-up.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use super::during::Jobs;
use super::failure::Kind;
use super::find::{self, find};
use super::findings::Findings;
use super::interrupt::{Haste, Interrupt, STEP};
use super::judge::{self, Judgement, Ran, ratio};
use super::observe::{self, Spent};
use super::options::{Action, Job, Options, Pattern};
use super::outcome::{FORMAT, Machine, Mark, Outcome, Server};
use super::own_server::{self, OwnServer};
use super::plan::{self, Facts, Pace, Plan, millis, settle};
use super::progress::Progress;
use super::team::{Progress as Reached, Team};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::control::place::{Environment, socket_of};
use uppercased_ctl::process::raise_descriptor_limit;

/// Delay from the start command to the load: enough for the command to reach every process.
const LEAD: Duration = Duration::from_millis(20);
/// Time limit for the last answers if the measurement was interrupted.
const INTERRUPTED_DRAIN: Duration = Duration::from_secs(1);
/// Time before and after a command for which clients' observations are reported.
const WINDOW: Duration = Duration::from_secs(1);
/// Time limit for a server to accept all connections before it is sampled.
const SETTLE: Duration = Duration::from_secs(2);
/// Interval of samples in that time.
const SETTLE_STEP: Duration = Duration::from_millis(20);
/// Number of consecutive samples with unchanged memory after which the server has settled.
const SETTLED_SAMPLES: u32 = 5;

/// The flag that makes the built-in server require PROXY headers.
const ASK_FOR_HEADERS: &str = "--proxy-protocol";

/// The reason why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The plan is invalid.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The built-in server did not start.
    #[error(transparent)]
    Server(#[from] own_server::Error),
    /// The server was not found.
    #[error(transparent)]
    Find(#[from] find::Error),
    /// An invalid source address.
    #[error("cannot connect from {address}: {why}; see --sources")]
    Source {
        /// The address.
        address: IpAddr,
        /// The cause.
        why: &'static str,
    },
    /// A process to observe does not exist.
    #[error("cannot observe process {0}: it does not exist; pass the PID of the server with --pid")]
    NoProcess(u32),
    /// A part of the load failed.
    #[error("cannot continue the load: {0}")]
    Load(String),
    /// The system refuses a required operation.
    #[error("cannot measure: {0}")]
    System(#[from] io::Error),
}

impl Error {
    /// Returns whether the error is in the options rather than in the system.
    #[must_use]
    pub(super) const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Plan(_) | Self::Find(find::Error::Address { .. })
        )
    }
}

/// The server to measure.
struct Subject {
    name: String,
    address: SocketAddr,
    /// Its initial processes, if known and on this machine.
    roots: Vec<u32>,
    /// The path of its control socket.
    control: Option<PathBuf>,
    /// The built-in server; dropped last.
    own: Option<OwnServer>,
}

/// Observations of the server itself.
#[derive(Debug, Default)]
struct Watched {
    memory_before: Option<u64>,
    memory: Option<u64>,
    by_worker: Vec<u64>,
    /// Its version; empty if it does not report one.
    version: String,
    /// Load average before the measurement.
    load_average: Option<f64>,
    before: Spent,
    after: Spent,
}

/// A server, found or started, and the machine that measures it.
pub(super) struct Stand {
    facts: Facts,
    subject: Subject,
}

impl Stand {
    /// Finds or starts the server for measurements with these options.
    ///
    /// # Errors
    /// The options are invalid, or there is no server.
    pub(super) fn prepare(options: &Options, interrupt: &Interrupt) -> Result<Self, Error> {
        let descriptors = raise_descriptor_limit()?;
        let cpus = std::thread::available_parallelism()?;
        let mut facts = Facts {
            cpus: u16::try_from(cpus.get()).unwrap_or(u16::MAX),
            descriptors,
            loopback: true,
        };
        let found = match &options.target {
            Some(target) => Some(find(target, options.sources.is_some(), interrupt)?),
            None => None,
        };
        if let Some(address) = found {
            // IPv6 has one loopback address only.
            facts.loopback = address.is_ipv4() && address.ip().is_loopback();
        }
        let plan = settle(options, &facts)?;
        let own = IpAddr::from([127, 0, 0, 1]);
        check_sources(&plan, found.map_or(own, |address| address.ip()))?;
        let subject = subject(options, found, interrupt)?;
        Ok(Self { facts, subject })
    }

    /// Measures as `options` specify.
    ///
    /// # Errors
    /// There is no measurement. Failures of connections are not errors; they are in the outcome.
    pub(super) fn measure(
        &self,
        options: &Options,
        interrupt: &Interrupt,
    ) -> Result<Outcome, Error> {
        let plan = settle(options, &self.facts)?;
        let jobs = jobs(options, &self.subject);
        let load = load(&plan, &self.subject, &jobs, options, interrupt)?;
        let mut outcome = outcome(&plan, &self.subject, load, self.facts.cpus);
        outcome.command.clone_from(&options.command);
        outcome.label = options.label.clone().unwrap_or_default();
        let criteria = options.fail_if.iter();
        outcome.criteria = criteria.map(|one| one.check(&outcome)).collect();
        if interrupt.haste() > Haste::None {
            let text = "Interrupted: results until then.";
            outcome.warnings.insert(0, text.to_owned());
        }
        Ok(outcome)
    }
}

/// The results of the load.
struct Load {
    findings: Findings,
    watched: Watched,
    ran: Vec<Ran>,
    origin: Tick,
    started_unix_ms: u64,
}

fn load(
    plan: &Plan,
    subject: &Subject,
    jobs: &[Job],
    options: &Options,
    interrupt: &Interrupt,
) -> Result<Load, Error> {
    let roots = &subject.roots;
    let status = subject.control.as_deref().and_then(own_server::status);
    let mut watched = Watched {
        memory_before: observe::memory(roots),
        load_average: load_average(),
        version: status.map_or_else(String::new, |status| status.version),
        ..Watched::default()
    };
    let mut progress = Progress::new(!options.no_progress);
    let mut team = Team::launch(plan, subject.address)?;
    let (mut stopped_at, mut is_hurried) = (None, false);
    let mut wait = |team: &mut Team, until: Option<Tick>| {
        let now = clock::now();
        let haste = interrupt.haste();
        if haste > Haste::None && stopped_at.is_none() {
            stopped_at = Some(now);
            team.stop();
        }
        let is_late = stopped_at.is_some_and(|at: Tick| now.since(at) >= INTERRUPTED_DRAIN);
        if (haste == Haste::Now || is_late) && !is_hurried {
            is_hurried = true;
            team.hurry();
        }
        let step = until.map_or(STEP, |until| until.since(now).min(STEP));
        team.wait(step).map_err(Error::Load)
    };

    let mut reached = Reached::Waiting;
    while !matches!(reached, Reached::Ready | Reached::Done) {
        reached = wait(&mut team, None)?;
        progress.connecting(team.counts(), plan);
    }
    if plan.messages_each.is_none() && !roots.is_empty() {
        let mut samples = Samples::default();
        let until = clock::now() + SETTLE;
        while interrupt.haste() == Haste::None
            && !samples.are_settled(subject, team.counts().open)
            && clock::now() < until
        {
            wait(&mut team, Some(clock::now() + SETTLE_STEP))?;
        }
        watched.memory = samples.memory;
        watched.by_worker = samples.by_worker;
    }

    let started_unix_ms = unix_ms();
    let start = clock::now() + LEAD;
    let origin = start + plan.warmup;
    team.start(start);
    while reached != Reached::Done && clock::now() < origin {
        reached = wait(&mut team, Some(origin))?;
        let now = clock::now();
        progress.loading(team.counts(), plan, now.since(start), now);
    }
    watched.before = observe::spent(roots);
    let jobs = Jobs::start(jobs, origin, origin + plan.duration, interrupt);
    while !matches!(reached, Reached::Over | Reached::Done) {
        reached = wait(&mut team, None)?;
        let now = clock::now();
        progress.loading(team.counts(), plan, now.since(start), now);
    }
    watched.after = observe::spent(roots);
    if plan.messages_each.is_some() {
        watched.memory = observe::memory(roots);
    }
    while reached != Reached::Done {
        reached = wait(&mut team, None)?;
    }
    progress.finish();
    let ran = jobs.finish();
    Ok(Load {
        findings: Findings::of(&team.into_records(), plan.interval),
        watched,
        ran,
        origin,
        started_unix_ms,
    })
}

/// Samples of the server with all connections open. A connection established at the client may not
/// have been accepted by the server yet.
#[derive(Debug, Default)]
struct Samples {
    memory: Option<u64>,
    by_worker: Vec<u64>,
    /// Consecutive samples with unchanged memory.
    unchanged: u32,
}

impl Samples {
    /// Samples the server and returns whether it has accepted all `open` connections, by its status
    /// or, without one, because its memory has stopped growing.
    fn are_settled(&mut self, subject: &Subject, open: u64) -> bool {
        let memory = observe::memory(&subject.roots);
        self.unchanged = if memory == self.memory {
            self.unchanged + 1
        } else {
            0
        };
        self.memory = memory;
        let status = subject.control.as_deref().and_then(own_server::status);
        let Some(status) = status else {
            return self.unchanged >= SETTLED_SAMPLES;
        };
        self.by_worker = status.slots.iter().map(|slot| slot.traffic.open).collect();
        self.by_worker.iter().sum::<u64>() >= open
    }
}

/// Returns the commands to run: those given, and those for the built-in server.
fn jobs(options: &Options, subject: &Subject) -> Vec<Job> {
    let mut jobs = options.during.clone();
    if let Some(own) = &subject.own {
        for (every, command) in [
            (options.reload_every, "reload"),
            (options.upgrade_every, "upgrade"),
        ] {
            if let Some(every) = every {
                let program = own.program.clone().into_os_string();
                let control = own.control().into_os_string();
                let words = vec![program, command.into(), "--control".into(), control];
                jobs.push(Job {
                    first: every,
                    every: Some(every),
                    action: Action::Program(words),
                });
            }
        }
    }
    jobs
}

/// Checks that the server can be reached from every source address.
fn check_sources(plan: &Plan, target: IpAddr) -> Result<(), Error> {
    for &source in &plan.sources {
        let why = if source.is_ipv4() != target.is_ipv4() {
            "its address family is not the server's"
        } else if UdpSocket::bind(source).is_err() {
            "it is not an address of this machine"
        } else {
            continue;
        };
        return Err(Error::Source {
            address: source.ip(),
            why,
        });
    }
    Ok(())
}

/// Finds or starts the server to measure.
fn subject(
    options: &Options,
    found: Option<SocketAddr>,
    interrupt: &Interrupt,
) -> Result<Subject, Error> {
    if let (Some(target), Some(address)) = (&options.target, found) {
        for &pid in &options.pids {
            if observe::spent(&[pid]).pids.is_empty() {
                return Err(Error::NoProcess(pid));
            }
        }
        // An **uppercased** server reports how its connections are spread.
        let control = options.pids.first().and_then(|&pid| {
            let directory = Environment::of_this_process().directory()?;
            Some(socket_of(&directory, pid)).filter(|path| path.exists())
        });
        return Ok(Subject {
            name: target.clone(),
            address,
            roots: options.pids.clone(),
            control,
            own: None,
        });
    }
    let mut arguments = options.server_args.clone();
    let says_it = |argument: &String| argument.starts_with(ASK_FOR_HEADERS);
    if options.proxy_protocol.is_some() && !arguments.iter().any(says_it) {
        arguments.push(format!("{ASK_FOR_HEADERS}=all"));
    }
    let own = OwnServer::start(options.workers, &arguments, interrupt)?;
    Ok(Subject {
        name: own.address.to_string(),
        address: own.address,
        roots: vec![own.pid()],
        control: Some(own.control()),
        own: Some(own),
    })
}

fn outcome(plan: &Plan, subject: &Subject, load: Load, cpus: u16) -> Outcome {
    let findings = &load.findings;
    let totals = findings.totals();
    let sums = findings.sums();
    let load_average = load.watched.load_average;
    let server = server(plan, subject, load.watched, totals.messages);
    let Judgement {
        client,
        problems,
        mut warnings,
    } = judge::judge(&judge::Facts {
        sums,
        messages: totals.messages,
        measured: findings.measured(),
        threads: u32::from(plan.threads) * u32::from(plan.processes),
        cpus,
        server_cpu: server
            .as_ref()
            .map(|server| Duration::from_millis(server.user_ms + server.system_ms)),
        closed_loop: plan.pace == Pace::Answers,
        ran: &load.ran,
    });
    warnings.extend(hindrances(findings, server.as_ref()));
    let seen = |mut mark: Mark| {
        let at = Duration::from_millis(mark.at_ms);
        let took = Duration::from_millis(mark.took_ms);
        mark.seen = findings.seen(at.saturating_sub(WINDOW), at + took + WINDOW);
        mark
    };
    let marks = load.ran.into_iter().flat_map(|ran| ran.marks);
    let mut marks: Vec<Mark> = marks.map(seen).collect();
    marks.sort_by_key(|mark| mark.at_ms);
    Outcome {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_ms: load.started_unix_ms,
        command: String::new(),
        machine: machine(cpus, load_average),
        target: subject.name.clone(),
        label: String::new(),
        plan: plan.summary(),
        measured_ms: millis_up(findings.measured()),
        totals,
        failures: findings.failures(),
        first_failures: findings.first_failures(load.origin),
        // A reply that was not read in time is no evidence about the server.
        latency: findings
            .latency()
            .filter(|_| plan.pattern != Pattern::Stall),
        schedule: matches!(plan.pace, Pace::Schedule { .. }).then(|| findings.schedule()),
        latency_from: plan.latency_from().to_owned(),
        longest_stall_ms: sums.longest_stall_ns as f64 / 1e6,
        series: findings.series(),
        marks,
        client,
        server,
        capacity: None,
        criteria: Vec::new(),
        problems,
        warnings,
    }
}

/// Returns the disturbances of the measurement by this machine.
fn hindrances(findings: &Findings, server: Option<&Server>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (kind, text) in [
        (
            Kind::NoSourcePort,
            "Some connections found no free source port; use --sources, or fewer connections.",
        ),
        (
            Kind::System,
            "The system refused some operations; see the first failures.",
        ),
    ] {
        if findings.sums().failures.contains_key(&kind) {
            warnings.push(text.to_owned());
        }
    }
    if server.is_some_and(|server| server.memory_bytes == 0) {
        let text = "cannot read the server's memory: it runs as another user; run bench as that user, or as root";
        warnings.push(text.to_owned());
    }
    warnings
}

fn server(plan: &Plan, subject: &Subject, watched: Watched, messages: u64) -> Option<Server> {
    if subject.roots.is_empty() {
        return None;
    }
    let Watched { before, after, .. } = watched;
    let user = after.user.saturating_sub(before.user);
    let system = after.system.saturating_sub(before.system);
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let more = watched
        .memory
        .zip(watched.memory_before)
        .map_or(0, |(with, without)| with.saturating_sub(without));
    Some(Server {
        version: watched.version,
        pids: after.pids,
        user_ms: millis(user),
        system_ms: millis(system),
        user_per_message_ns: ratio(nanos(user), messages),
        cpu_per_message_ns: ratio(nanos(user + system), messages),
        memory_bytes: watched.memory.unwrap_or(0),
        memory_per_connection_bytes: if plan.messages_each.is_none() {
            ratio(more, plan.connections.into())
        } else {
            0.0
        },
        connections_by_worker: watched.by_worker,
    })
}

fn machine(cpus: u16, load_average: Option<f64>) -> Machine {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Machine {
        cpus,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu_model: model.map_or_else(String::new, |(_, model)| model.trim().to_owned()),
        load_average,
    }
}

/// Returns the load average of the last minute.
fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a date for people; every time that is measured is on the monotonic clock"
)]
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, millis)
}

/// Returns whole milliseconds, rounded up: a measurement shorter than one is not zero, and no rate
/// is overstated.
fn millis_up(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortest_measurement_takes_a_millisecond() {
        assert_eq!(millis_up(Duration::ZERO), 0);
        assert_eq!(millis_up(Duration::from_nanos(1)), 1);
        assert_eq!(millis_up(Duration::from_millis(7)), 7);
    }
}
