//! The proof that limits cost no established connection.
//!
//! A server is reloaded repeatedly with limits, buffers, queues and worker counts that go up and
//! down at random, and is scaled in between. Most of the time it has more clients than the limits
//! allow, most of them slow readers with pending output, and new ones keep connecting. Limits apply
//! to new connections, which wait for room and are finally served. So the rules are those of
//! `tests/e2e/planned.rs`: every client receives every byte, and the kernel's loss counters do not
//! change, except for a few late acknowledgements; in addition, the server's own counts of how
//! connections ended are checked.
//!
//! An operation that cannot keep all connections may be refused, before it begins and with the
//! numbers; then nothing has changed. Refusals are counted separately.
//!
//! `E2E_PROOF=long` runs the long version: 200 reloads with 2,000 slow readers. `E2E_SEED=42`
//! repeats the reloads of a run that printed this seed.
//!
//! Other tests show that the proof can fail.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fastrand::Rng;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use uppercased_ctl::sampler::{Answer, request_status};
use uppercased_ctl::status::Status;

use crate::support::baseline::Baseline;
use crate::support::load::{Load, LoadSize, Origin, Report};
use crate::support::netns::{KernelCounters, isolated, isolated_within};
use crate::support::observe::until;
use crate::support::planned::Planned;
use crate::support::{CommandOutput, DEADLINE, Server};

/// The number of operations and of clients.
#[derive(Clone, Debug)]
struct Effort {
    reloads: u32,
    /// Clients connected from the start to the end.
    residents: LoadSize,
    /// Clients that continuously connect, exchange and close, within the limits.
    knocking: usize,
    handshake_timeout: &'static str,
}

/// Time limit of one proof.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Slow readers must not be disconnected because a busy machine makes them slower.
const NO_STALL: &str = "--write-stall-timeout=10m";

impl Effort {
    fn short() -> Self {
        Self {
            reloads: 16,
            residents: LoadSize {
                streams: 3,
                pings: 2,
                slow: 300,
                idle: 20,
                mid_message: 5,
                ..residents()
            },
            knocking: 12,
            handshake_timeout: "--handshake-timeout=300ms",
        }
    }

    fn long() -> Self {
        Self {
            reloads: 200,
            residents: LoadSize {
                streams: 12,
                pings: 4,
                slow: 2000,
                idle: 100,
                mid_message: 20,
                ..residents()
            },
            knocking: 60,
            handshake_timeout: "--handshake-timeout=1s",
        }
    }

    /// Returns the number of lasting connections.
    fn established(&self) -> u64 {
        let size = &self.residents;
        (size.streams + size.pings + size.slow + size.idle + size.mid_message) as u64
    }
}

/// Returns a load without clients, with the settings of each kind: the window of a slow client
/// fills the buffers of [`Settings::generous`], so that the server has output pending.
fn residents() -> LoadSize {
    LoadSize {
        slow_pause: Duration::from_secs(2),
        slow_step_bytes: 16 * 1024,
        slow_window_bytes: 192 * 1024,
        slow_receive_buffer_bytes: 32 * 1024,
        stream_pause: Duration::from_millis(5),
        ping_pause: Duration::from_millis(5),
        ..LoadSize::none()
    }
}

/// Returns the churning clients: a client beyond the limit waits until a later reload admits it.
fn knocking(count: usize) -> LoadSize {
    LoadSize {
        churn: count,
        // The kernel keeps a limited number of sockets in TIME_WAIT.
        churn_pause: Duration::from_millis(60),
        ..LoadSize::none()
    }
}

/// The settings changed by a reload.
#[derive(Clone, Debug)]
struct Settings {
    workers: u16,
    max_connections: u64,
    max_connections_per_source: Option<usize>,
    pending_output_kib: u32,
    recv_buffer_kib: u32,
    send_buffer_kib: u32,
    backlog: u32,
}

impl Settings {
    /// Returns settings that admit all clients.
    fn generous() -> Self {
        Self {
            workers: 3,
            max_connections: 4000,
            max_connections_per_source: None,
            pending_output_kib: 64,
            recv_buffer_kib: 16,
            send_buffer_kib: 16,
            backlog: 4096,
        }
    }

    /// Returns random settings for a server with `workers` workers and the clients of `effort`.
    fn another(random: &mut Rng, workers: u16, effort: &Effort) -> Self {
        // No queue is too short for all churning clients: a client whose handshake is dropped
        // retries, which the kernel counts as a loss.
        const BACKLOGS: [u32; 3] = [128, 1024, 4096];
        const KIBS: [u32; 5] = [4, 8, 16, 32, 64];
        let share = effort.established() / u64::from(workers);
        let limits = [1, share / 2, share - share / 4, share + 3, 2 * share, 4000];
        // Lasting clients have one source, far beyond the limit. Churning clients have other
        // sources and never exceed it: a refused one is reset, which would hide a loss.
        let per_source = [None, Some(2 * effort.knocking + 8), Some(4000)];
        let mut one_of = |of: &[u32]| of[random.usize(..of.len())];
        Self {
            workers,
            pending_output_kib: one_of(&KIBS),
            recv_buffer_kib: one_of(&KIBS),
            send_buffer_kib: one_of(&KIBS),
            backlog: one_of(&BACKLOGS),
            max_connections: limits[random.usize(..limits.len())],
            max_connections_per_source: per_source[random.usize(..per_source.len())],
        }
    }

    /// Returns settings that exceed every limit on descriptors.
    fn impossible(self) -> Self {
        Self {
            max_connections: 10_000_000,
            ..self
        }
    }

    /// Returns the text of the configuration file.
    fn text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "workers = {}", self.workers)?;
        writeln!(out, "max_connections = {}", self.max_connections)?;
        let per_source = self.max_connections_per_source;
        let per_source = per_source.map_or_else(|| "\"off\"".to_owned(), |it| it.to_string());
        writeln!(out, "max_connections_per_source = {per_source}")?;
        writeln!(out, "pending_output = \"{}KiB\"", self.pending_output_kib)?;
        writeln!(out, "recv_buffer = \"{}KiB\"", self.recv_buffer_kib)?;
        writeln!(out, "send_buffer = \"{}KiB\"", self.send_buffer_kib)?;
        writeln!(out, "backlog = {}", self.backlog)
    }
}

/// The results of the operations.
#[derive(Debug, Default)]
struct Done {
    reloads: u32,
    scales: u32,
    refused: u32,
    /// Reloads after which the server had more connections than its limit.
    beyond: u32,
}

impl Done {
    /// Runs one operation; returns true if it was done, false if it was refused.
    #[track_caller]
    fn operate(&mut self, server: &Server, what: &[&str], settings: &Settings) -> bool {
        let before = workers(server);
        let answered = server.command(what);
        let after = workers(server);
        let idle = after.iter().find(|(_, state)| state != "serving");
        assert_eq!(idle, None, "{what:?} {answered:?}\n{settings}");
        if answered.code == 0 {
            return true;
        }
        assert!(is_refusal(&answered), "{what:?} {answered:?}\n{settings}");
        assert_eq!(before, after, "{what:?} {answered:?}\n{settings}");
        self.refused += 1;
        false
    }
}

/// Returns the server's status without running `uppercased status`, which also reads the kernel's
/// list of sockets: churn leaves hundreds of thousands there.
#[track_caller]
fn status(server: &Server) -> Status {
    match request_status(&server.control(), Some(DEADLINE)) {
        Ok(Answer::Status(status, _)) => *status,
        other => panic!("no status: {other:?}"),
    }
}

/// Returns one counter, summed over all workers.
#[track_caller]
fn count(server: &Server, counter: &str) -> u64 {
    let counters = status(server).totals.traffic.counters;
    counters.get(counter).copied().unwrap_or(0)
}

/// Returns the process and the state of each worker.
#[track_caller]
fn workers(server: &Server) -> Vec<(Option<u32>, String)> {
    let slots = status(server).slots.into_iter();
    slots.map(|slot| (slot.pid, slot.state)).collect()
}

/// Returns whether an operation was refused before it began, with the numbers.
fn is_refusal(answered: &CommandOutput) -> bool {
    let refusal = answered.stdout.lines().last();
    refusal
        .and_then(|line| line.strip_prefix("refused: "))
        .is_some_and(|cause| cause.contains(|digit: char| digit.is_ascii_digit()))
}

/// Returns a number of workers. A single worker keeps all connections, so it is chosen late.
fn some_workers(random: &mut Rng, effort: &Effort, done: &Done) -> u16 {
    let is_late = done.reloads > effort.reloads / 4 * 3;
    random.u16(if is_late { 1..=4 } else { 2..=4 })
}

/// Returns the seed of this run.
fn seed() -> u64 {
    let given = std::env::var("E2E_SEED").ok();
    let given = given.map(|text| text.parse().expect("E2E_SEED is a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("E2E_SEED={seed}");
    seed
}

fn start(effort: &Effort, faults: &str) -> Planned {
    let args = [
        "--listen=127.0.0.1:0",
        "--bake-time=0s",
        NO_STALL,
        effort.handshake_timeout,
    ];
    let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", faults));
    planned.configure(&Settings::generous().text());
    planned.server.reload().expect_success();
    planned
}

/// Runs all operations under load; returns the reports of the lasting and of the churning clients.
fn operate(planned: &Planned, effort: &Effort, done: &mut Done) -> [Report; 2] {
    let mut random = Rng::with_seed(seed());
    let server = &planned.server;
    let (addr, size) = (server.addr(), effort.residents.clone());
    let residents = Load::start_from(Origin::default(), addr, size);
    let knocking = Load::start(addr, knocking(effort.knocking));
    let mut tried = 0;
    while done.reloads < effort.reloads {
        tried += 1;
        assert!(tried <= 2 * effort.reloads, "most are refused: {done:?}");
        let workers = some_workers(&mut random, effort, done);
        let mut settings = Settings::another(&mut random, workers, effort);
        if tried % 8 == 5 {
            settings = settings.impossible();
        }
        planned.configure(&settings.text());
        if done.operate(server, &["reload"], &settings) {
            done.reloads += 1;
            let may = settings.max_connections * u64::from(settings.workers);
            done.beyond += u32::from(status(server).totals.traffic.open > may);
        }
        if random.u8(..4) == 0 {
            let workers = some_workers(&mut random, effort, done).to_string();
            let scaled = done.operate(server, &["scale", &workers], &settings);
            done.scales += u32::from(scaled);
        }
        residents.go_on_for(10);
        knocking.assert_unharmed();
    }
    let settings = Settings::generous();
    planned.configure(&settings.text());
    server.reload().expect_success();
    // A number set by `scale` stays if the last file has the same number as this one.
    let workers = settings.workers.to_string();
    server.command(&["scale", &workers]).expect_success();
    [residents.finish(), knocking.finish()]
}

/// Asserts that the server has closed only connections that clients had closed, and refused none. A
/// worker that crashes with connections affects their clients; one that is killed late on a busy
/// machine, without connections, affects none.
#[track_caller]
fn assert_kept(server: &Server) {
    let totals = status(server).totals;
    let closed: Vec<_> = totals.traffic.closed.keys().collect();
    assert_eq!(closed, ["peer_closed"], "{totals:?}");
    assert!(totals.traffic.refused.is_empty(), "{totals:?}");
}

#[track_caller]
fn assert_clean(reports: &[Report]) {
    for report in reports {
        println!("{report}");
    }
    for report in reports {
        report.assert_clean();
    }
}

fn prove(effort: &Effort) {
    let planned = start(effort, "");
    let server = &planned.server;
    let baseline = Baseline::of(server);
    let counters = KernelCounters::read();
    let mut done = Done::default();
    let reports = operate(&planned, effort, &mut done);
    println!("{done:?}");
    assert_clean(&reports);
    let connections = reports.iter().map(|report| report.connections).sum();
    KernelCounters::read().assert_no_loss_in(connections, &counters);
    assert_kept(server);
    // Both cases occurred.
    assert!(done.beyond > 0 && done.refused > 0, "{done:?}");
    assert!(
        count(server, "accept_pauses.connection_limit") > 0,
        "never full"
    );
    assert!(count(server, "backpressure") >= effort.residents.slow as u64);
    // The last workers have had more clients than the first ones, so compare new workers.
    server.reload().expect_success();
    baseline.assert_back(server);
    assert_eq!(server.stop().code(), Some(0));
    KernelCounters::read().assert_no_loss_in(connections, &counters);
}

#[test]
fn changing_limits_closes_no_connection() {
    isolated_within(PATIENCE, || {
        if std::env::var("E2E_PROOF").is_ok_and(|what| what == "long") {
            raise_descriptor_limit();
            prove(&Effort::long());
        } else {
            prove(&Effort::short());
        }
    });
}

#[test]
fn reload_keeps_non_reading_clients() {
    // With defaults: each client has a buffer of unsent output and full kernel queues.
    isolated(|| {
        raise_descriptor_limit();
        let size = LoadSize {
            slow: 1500,
            slow_pause: PATIENCE,
            slow_window_bytes: 512 * 1024,
            streams: 400,
            stream_pause: Duration::from_millis(100),
            ..LoadSize::none()
        };
        let (blocked, established) = (size.slow as u64, size.slow + size.streams);
        let server = Server::start(&["--listen=127.0.0.1:0", "--workers=1", NO_STALL]);
        let counters = KernelCounters::read();
        let load = Load::start(server.addr(), size);
        until("a client that does not read has output pending", || {
            count(&server, "backpressure") >= blocked
        });
        let answered = server.reload().expect_success();
        let moved = format!("{established} connections migrated");
        assert!(answered.stdout.contains(&moved), "{answered:?}");
        assert_clean(&[load.finish()]);
        KernelCounters::read().assert_no_loss_in(established as u64, &counters);
        assert_kept(&server);
    });
}

/// Raises the descriptor limit as far as possible, for this process and its servers.
fn raise_descriptor_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("read an own limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise an own limit");
}

/// Runs the short proof against an intentionally broken server; returns whether the proof detected
/// it.
fn is_noticed(faults: &str) -> bool {
    let mut effort = Effort::short();
    // Some losses show only as an absent reply.
    effort.residents.deadline = Duration::from_secs(5);
    let planned = start(&effort, faults);
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        assert_clean(&operate(&planned, &effort, &mut Done::default()));
        assert_kept(&planned.server);
    }));
    attempt.is_err()
}

#[test]
fn proof_detects_refused_connections() {
    isolated(|| {
        assert!(is_noticed("receiver.watch=fail_alternately"));
    });
}

#[test]
fn proof_detects_closed_connections() {
    isolated(|| {
        assert!(is_noticed("sender.requested=violate:end_clients"));
    });
}
