//! One run: a new server and a new load client, bound to their CPUs, measured for a while.

#![expect(
    clippy::disallowed_methods,
    reason = "the time that passes is what is measured over; it is not waited for anything"
)]

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uppercased_ctl::clock::{self, Tick};

use super::child::Child;
use super::load::{Order, Seen};
use super::pattern::{Load, Pattern, Unit};
use super::proc;
use super::role;
use super::server::{Running, Server};
use super::stats::{Histogram, Surroundings};

/// Warm-up as a share of the measured time, and its minimum.
const WARM_UP_SHARE: f64 = 0.2;
const WARM_UP_MIN: Duration = Duration::from_millis(150);
/// Time that a server has to accept its connections, and the poll interval.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(2);
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
    /// Path of our own server.
    pub(crate) program: PathBuf,
}

/// Result of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    /// Messages, or the pattern's other unit.
    pub(crate) units: f64,
    pub(crate) wall_ns: u64,
    pub(crate) server_cpu_ns: u64,
    /// The part of it that was sampled, and the part of that found outside the kernel.
    pub(crate) sampled_ns: u64,
    pub(crate) sampled_user_ns: u64,
    pub(crate) client_cpu_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    /// User-space memory of a connection without any message so far, and of one after a message.
    pub(crate) silent_bytes: Option<f64>,
    pub(crate) used_bytes: Option<f64>,
    pub(crate) surroundings: Surroundings,
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
    pub(crate) fn run(&self, server: Server, pattern: &Pattern) -> io::Result<Sample> {
        let (server_cpus, load_cpus) = if pattern.together {
            (&self.server_cpus[..1], &self.server_cpus[..1])
        } else {
            (&self.server_cpus[..], &self.load_cpus[..])
        };
        let mut running = Running::start(server, server_cpus, &self.folder, &self.program)?;
        if pattern.load == Load::Silent {
            return memory(&mut running, pattern, load_cpus);
        }
        let mut clients = connect(&mut running, pattern, load_cpus)?;
        order(&mut clients, "go")?;
        thread::sleep(self.warm_up());
        order(&mut clients, "begin")?;
        let before = Reading::take(&running, &clients)?;
        thread::sleep(self.span * pattern.spans);
        let after = Reading::take(&running, &clients)?;
        tell(&mut clients, "end")?;
        let seen: Vec<Seen> = clients
            .iter_mut()
            .map(|client| Ok(serde_json::from_str(&client.line()?)?))
            .collect::<io::Result<_>>()?;
        let alone = server.is_single_threaded() && !pattern.together;
        Ok(sample(pattern.unit(), &seen, &before, &after, alone))
    }
}

fn connect(running: &mut Running, pattern: &Pattern, cpus: &[usize]) -> io::Result<Vec<Child>> {
    let mut clients = Vec::new();
    for seed in 0..pattern.clients {
        let order = Order {
            port: running.port,
            load: pattern.load,
            connections: pattern.connections / pattern.clients,
            size: pattern.size,
            seed,
            server_pids: running.pids.clone(),
        };
        let mut command = role::command(cpus, role::LOAD)?;
        command.arg(serde_json::to_string(&order)?);
        clients.push(Child::start(&mut command)?);
    }
    for client in &mut clients {
        client.line()?;
    }
    if pattern.load != Load::Churn {
        await_connections(running, pattern.connections as usize)?;
    }
    Ok(clients)
}

/// Waits until the server has exactly `connections`, counted by its descriptors.
fn await_connections(running: &mut Running, connections: usize) -> io::Result<()> {
    let until = clock::now() + ACCEPT_PATIENCE;
    loop {
        let open = proc::descriptors(&running.pids)? - running.own_descriptors;
        if open == connections {
            return Ok(());
        }
        if !running.runs()? {
            return Err(io::Error::other("it ended"));
        }
        if clock::now() > until {
            let what = format!("it has {open} connections instead of {connections}");
            return Err(io::Error::other(what));
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn tell(clients: &mut [Child], order: &str) -> io::Result<()> {
    clients.iter_mut().try_for_each(|client| client.tell(order))
}

/// Sends a command to all clients and waits until all have carried it out.
fn order(clients: &mut [Child], order: &str) -> io::Result<()> {
    tell(clients, order)?;
    clients
        .iter_mut()
        .try_for_each(|client| client.line().map(drop))
}

/// Measures the memory of connections, beyond that of a server that has already served one.
fn memory(running: &mut Running, pattern: &Pattern, cpus: &[usize]) -> io::Result<Sample> {
    let one = Pattern {
        connections: 1,
        clients: 1,
        ..*pattern
    };
    // Silent clients acknowledge `go` once each connection has exchanged one message.
    order(&mut connect(running, &one, cpus)?, "go")?;
    await_connections(running, 0)?;
    let base = proc::memory_bytes(&running.pids)? as f64;
    let each = |bytes: u64| (bytes as f64 - base) / f64::from(pattern.connections);
    let mut clients = connect(running, pattern, cpus)?;
    let silent = each(proc::memory_bytes(&running.pids)?);
    order(&mut clients, "go")?;
    let used = each(proc::memory_bytes(&running.pids)?);
    Ok(Sample {
        silent_bytes: Some(silent),
        used_bytes: Some(used),
        ..Sample::default()
    })
}

/// The figures sampled at one instant.
struct Reading {
    at: Tick,
    server: proc::Usage,
    clients: proc::Usage,
    machine: proc::Machine,
}

impl Reading {
    fn take(running: &Running, clients: &[Child]) -> io::Result<Self> {
        let clients: Vec<u32> = clients.iter().map(Child::pid).collect();
        Ok(Self {
            at: clock::now(),
            server: proc::usage(&running.pids)?,
            clients: proc::usage(&clients)?,
            machine: proc::machine()?,
        })
    }
}

fn sample(unit: Unit, seen: &[Seen], before: &Reading, after: &Reading, alone: bool) -> Sample {
    let mut latencies = Histogram::new();
    let mut units = 0.0;
    // The server's CPU time was measured over the first client's interval; the other clients'
    // counts are scaled to that interval.
    let (wall_ns, server_cpu_ns) = seen
        .first()
        .map_or((1, 0), |first| (first.wall_ns, first.server_cpu_ns));
    for one in seen {
        latencies.merge(&one.latencies);
        let counted = match unit {
            Unit::Byte => one.bytes,
            Unit::Message | Unit::Connection => one.messages,
        };
        units += counted as f64 * wall_ns as f64 / one.wall_ns as f64;
    }
    let client_cpu_ns = after.clients.cpu_ns - before.clients.cpu_ns;
    // With thousands of busy connections the kernel moves part of the packet work into its own
    // threads: that work, and waiting for it, is due to the load alone.
    let deferred_ns = after.machine.deferred_ns - before.machine.deferred_ns;
    let own_ns = client_cpu_ns + after.server.cpu_ns - before.server.cpu_ns + deferred_ns;
    let surroundings = Surroundings {
        wall_ns: after.at.as_nanos() - before.at.as_nanos(),
        cpus: after.machine.cpus,
        busy_ns: after.machine.busy_ns - before.machine.busy_ns,
        own_ns,
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
        p50_ns: latencies.quantile(0.5).unwrap_or(0),
        p99_ns: latencies.quantile(0.99).unwrap_or(0),
        silent_bytes: None,
        used_bytes: None,
        disturbance: surroundings.disturbance(),
        surroundings,
    }
}
