//! One run: a new server and new connections, bound to their CPUs, measured for a while.

#![expect(
    clippy::disallowed_methods,
    reason = "the time that passes is what is measured over; it is not waited for anything"
)]

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uppercased_bench::findings::Findings;
use uppercased_bench::team::{Progress, Team};
use uppercased_ctl::clock::{self, Tick};

use super::pattern::{EXCHANGE, Pattern, Unit};
use super::proc;
use super::role;
use super::server::{Running, Server};
use super::stats::Environment;
use uppercased_bench::options::Pattern as Kind;

/// Warm-up as a share of the measured time, and its minimum.
const WARM_UP_SHARE: f64 = 0.2;
const WARM_UP_MIN: Duration = Duration::from_millis(150);
/// Delay from the start command to the load: enough for the command to reach every thread.
const LEAD: Duration = Duration::from_millis(20);
/// Time limit for connections, their acceptance and last replies; interval of the checks.
const PATIENCE: Duration = Duration::from_secs(30);
const CHECK_EVERY: Duration = Duration::from_millis(2);
/// Upper bound of a load that is stopped earlier.
const LOAD_MAX: Duration = Duration::from_secs(3600);
/// Approximate overhead of start, connect and exit; for the estimate of a run's length.
const AROUND: Duration = Duration::from_millis(250);

/// Assignment of CPUs and programs.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    pub(crate) server_cpus: Vec<usize>,
    pub(crate) load_cpus: Vec<usize>,
    pub(crate) span: Duration,
    /// Folder of the compiled peers.
    pub(crate) folder: PathBuf,
}

/// Result of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    /// Messages, or the pattern's other unit.
    pub(crate) units: f64,
    pub(crate) wall_ns: u64,
    /// CPU time that the server used in `wall_ns`.
    pub(crate) server_cpu_ns: u64,
    /// The sampled part of it, and the user-mode part of that.
    pub(crate) sampled_ns: u64,
    pub(crate) sampled_user_ns: u64,
    pub(crate) client_cpu_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    /// User-space memory of a connection without any message so far, and of one after a
    /// message.
    pub(crate) silent_bytes: Option<f64>,
    pub(crate) used_bytes: Option<f64>,
    pub(crate) surroundings: Environment,
    /// The reason why the run is invalid.
    pub(crate) disturbance: Option<String>,
}

impl Sample {
    pub(crate) fn cpu_per_unit_ns(&self) -> f64 {
        self.server_cpu_ns as f64 / self.units
    }

    pub(crate) fn units_per_s(&self) -> f64 {
        self.units / Duration::from_nanos(self.wall_ns).as_secs_f64()
    }
}

impl Bench {
    fn warm_up(&self) -> Duration {
        self.span.mul_f64(WARM_UP_SHARE).max(WARM_UP_MIN)
    }

    /// Returns the approximate duration of one run.
    pub(crate) fn run_time(&self, pattern: &Pattern) -> Duration {
        self.span * pattern.spans + self.warm_up() + AROUND
    }

    /// Measures `server` under `pattern`.
    pub(crate) fn run(&self, server: &Server, pattern: &Pattern) -> io::Result<Sample> {
        let (server_cpus, load_cpus) = if pattern.together {
            (&self.server_cpus[..1], &self.server_cpus[..1])
        } else {
            (&self.server_cpus[..], &self.load_cpus[..])
        };
        let mut running = Running::start(server, server_cpus, &self.folder)?;
        let alone = server.is_single_threaded() && server_cpus != load_cpus;
        if pattern.is_idle() {
            return self.memory(&mut running, pattern, load_cpus);
        }
        let (warm_up, span) = (self.warm_up(), self.span * pattern.spans);
        let open = |pattern: &Pattern| self.connect(&running, pattern, load_cpus, warm_up, span);
        let mut main = open(pattern)?;
        let mut others = pattern.others().map(|others| open(&others)).transpose()?;
        if pattern.kind != Kind::Churn {
            await_connections(&mut running, pattern.all_connections())?;
        }
        let start = clock::now() + LEAD;
        let from = start + warm_up;
        if let Some(others) = &mut others {
            others.start(start);
        }
        main.start(start);
        sleep_until(from);
        let before = Reading::take(&running)?;
        sleep_until(from + span);
        let after = Reading::take(&running)?;
        let found = findings(main, span)?;
        let others = others.map(|others| findings(others, span)).transpose()?;
        Ok(sample(
            pattern.unit(),
            &found,
            others.as_ref(),
            &before,
            &after,
            alone,
        ))
    }

    /// Opens the connections of `pattern` in threads on `cpus`.
    fn connect(
        &self,
        running: &Running,
        pattern: &Pattern,
        cpus: &[usize],
        warm_up: Duration,
        span: Duration,
    ) -> io::Result<Team> {
        let plan = pattern.plan(cpus.len(), warm_up, span);
        role::bind(cpus)?;
        let team = Team::launch(&plan.map_err(io::Error::other)?, running.address());
        role::bind(&self.load_cpus)?;
        let mut team = team?;
        reach(&mut team, Progress::Ready)?;
        match team.counts().failed {
            0 => Ok(team),
            failed => Err(io::Error::other(format!("{failed} connections failed"))),
        }
    }

    /// Measures the memory of connections, beyond that of a server that has already served one.
    fn memory(
        &self,
        running: &mut Running,
        pattern: &Pattern,
        cpus: &[usize],
    ) -> io::Result<Sample> {
        let open = |running: &mut Running, pattern: &Pattern| {
            let team = self.connect(running, pattern, cpus, Duration::ZERO, LOAD_MAX)?;
            await_connections(running, pattern.connections)?;
            Ok::<_, io::Error>(team)
        };
        let one = Pattern {
            connections: 1,
            ..*pattern
        };
        exchange(&mut open(running, &one)?, &one)?;
        await_connections(running, 0)?;
        let base = proc::memory_bytes(&running.pids)? as f64;
        let each = |bytes: u64| (bytes as f64 - base) / f64::from(pattern.connections);
        let mut team = open(running, pattern)?;
        let silent = each(proc::memory_bytes(&running.pids)?);
        exchange(&mut team, pattern)?;
        let used = each(proc::memory_bytes(&running.pids)?);
        team.stop();
        findings(team, LOAD_MAX)?;
        Ok(Sample {
            silent_bytes: Some(silent),
            used_bytes: Some(used),
            ..Sample::default()
        })
    }
}

/// Waits until each idle connection has exchanged a message; the load continues.
fn exchange(team: &mut Team, pattern: &Pattern) -> io::Result<()> {
    let start = clock::now();
    team.start(start);
    sleep_until(start + EXCHANGE);
    while team.counts().answered < u64::from(pattern.connections) {
        if clock::now().since(start) > PATIENCE {
            return Err(io::Error::other("it does not reply to all connections"));
        }
        thread::sleep(CHECK_EVERY);
    }
    Ok(())
}

fn reach(team: &mut Team, phase: Progress) -> io::Result<()> {
    team.reach(phase, PATIENCE).map_err(io::Error::other)
}

/// Waits for the last replies; fails if a connection has failed or a byte was wrong.
fn findings(mut team: Team, interval: Duration) -> io::Result<Findings> {
    reach(&mut team, Progress::Done)?;
    let findings = Findings::of(&team.into_records(), interval);
    match findings.sums().first.first() {
        None => Ok(findings),
        Some(first) => Err(io::Error::other(format!(
            "{}: {}",
            first.kind.name(),
            first.detail
        ))),
    }
}

/// Waits until the server has exactly `connections`, counted by its descriptors.
fn await_connections(running: &mut Running, connections: u32) -> io::Result<()> {
    let until = clock::now() + PATIENCE;
    loop {
        let open = proc::descriptors(&running.pids)?.saturating_sub(running.own_descriptors);
        if open == connections as usize {
            return Ok(());
        }
        if !running.runs()? {
            return Err(io::Error::other("it exited"));
        }
        if clock::now() > until {
            let what = format!("it has {open} connections instead of {connections}");
            return Err(io::Error::other(what));
        }
        thread::sleep(CHECK_EVERY);
    }
}

fn sleep_until(at: Tick) {
    thread::sleep(at.since(clock::now()));
}

/// The figures sampled at one instant.
struct Reading {
    at: Tick,
    server: proc::Usage,
    machine: proc::Machine,
}

impl Reading {
    fn take(running: &Running) -> io::Result<Self> {
        Ok(Self {
            at: clock::now(),
            server: proc::usage(&running.pids)?,
            machine: proc::machine()?,
        })
    }
}

/// Returns the figures of a run. The clients count in a planned interval, and the server's CPU time
/// is read at about its bounds, so the counts are scaled to the interval between the readings.
fn sample(
    unit: Unit,
    found: &Findings,
    others: Option<&Findings>,
    before: &Reading,
    after: &Reading,
    alone: bool,
) -> Sample {
    let all = || [Some(found), others].into_iter().flatten();
    let counted = match unit {
        Unit::Byte => all().map(|one| one.totals().bytes_received).sum(),
        Unit::Message | Unit::Connection => found.totals().messages,
    };
    let wall_ns = after.at.as_nanos() - before.at.as_nanos();
    let units = counted as f64 * wall_ns as f64 / found.measured().as_nanos() as f64;
    let client_cpu_ns = all().map(|one| one.sums().cpu_ns).sum();
    let server_cpu_ns = after.server.cpu_ns - before.server.cpu_ns;
    // With thousands of busy connections the kernel moves part of the packet work to its own
    // threads: that work, and waiting for it, is caused by the load alone.
    let deferred_ns = after.machine.deferred_ns - before.machine.deferred_ns;
    let surroundings = Environment {
        wall_ns,
        cpus: after.machine.cpus,
        busy_ns: after.machine.busy_ns - before.machine.busy_ns,
        own_ns: client_cpu_ns + server_cpu_ns + deferred_ns,
        stolen_ns: after.machine.stolen_ns - before.machine.stolen_ns,
        kept_waiting_ns: if alone {
            (after.server.waited_ns - before.server.waited_ns).saturating_sub(deferred_ns)
        } else {
            0
        },
    };
    Sample {
        units,
        wall_ns,
        server_cpu_ns,
        sampled_ns: after.server.sampled_ns - before.server.sampled_ns,
        sampled_user_ns: after.server.sampled_user_ns - before.server.sampled_user_ns,
        client_cpu_ns,
        p50_ns: found.quantile(0.5).unwrap_or(0),
        p99_ns: found.quantile(0.99).unwrap_or(0),
        silent_bytes: None,
        used_bytes: None,
        disturbance: surroundings.disturbance(),
        surroundings,
    }
}
