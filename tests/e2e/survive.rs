//! The proof that no client notices the death of a worker, of a keeper or of the supervisor.
//!
//! Under connection churn, byte-verified streams, slow readers, half-closed and silent clients, and
//! the same behind PROXY headers, processes die of every cause, in a network namespace of their own:
//! at random instants, between two instructions, after any store to the working memory, and during
//! the rescue from another death; in between the server is reloaded, upgraded and scaled. Every
//! client checks every byte, and the kernel's counters of resets, aborted connections and dropped
//! handshakes must not change. Afterwards the server is back at its baseline.
//!
//! In one test the supervisor dies, again and again, and the next one adopts the workers, some of
//! which die before, during or after that.
//!
//! In other tests the supervisor is stopped meanwhile: no step of a rescue needs it. Without its
//! confirmation a chain of rescues ends, so a worker has few deaths there.
//!
//! `E2E_PROOF=long` runs the long version: each test has hundreds of servers, one after the other,
//! and the first two cause 10,000 deaths by SIGKILL, 1,000 of keepers, and 200 of each other cause,
//! the one with supervisors 1,000 of these.
//! `E2E_SERVERS=20` sets the number of servers; `E2E_SEED=42` repeats the deaths of a server that
//! printed this seed.
//!
//! Another test shows that the proof can fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::adversity::skipped;
use crate::support::baseline::Baseline;
use crate::support::cgroup::MemoryGroup;
use crate::support::deaths::{Death, Deaths, can_trace};
use crate::support::image::Image;
use crate::support::load::{Load, LoadSize, Report};
use crate::support::netns::{KernelCounters, isolated, isolated_within};
use crate::support::observe::{freeze, until};
use crate::support::planned::Planned;
use crate::support::process::zombies;
use crate::support::{Server, Watched};

const WORKERS: u16 = 2;

/// The second address requires PROXY headers. A hang must outlast the time for which a worker may
/// wait for the CPU on a busy machine, and a slow reader must not be disconnected because of that.
const ARGS: [&str; 8] = [
    "--listen=127.0.0.1:0",
    "--listen=127.0.0.2:0",
    "--proxy-protocol=127.0.0.2:0",
    "--workers=2",
    "--bake-time=0s",
    "--hang-timeout=1s",
    "--write-stall-timeout=10m",
    "--log-level=debug",
];

const RESCUE: &str = "--crash-rescue=true";

/// The deaths of one server. More crashes of one worker in a short time would be a crash loop.
const DEATHS: [(Death, u32); 9] = [
    (Death::Kill, 50),
    (Death::Twice, 3),
    (Death::Step, 10),
    (Death::Keeper, 5),
    (Death::OutOfMemory, 1),
    (Death::Fault, 1),
    (Death::Abort, 1),
    (Death::Stall, 1),
    (Death::Hang, 1),
];

/// The deaths of one server whose supervisor is stopped. Without confirmation each worker survives
/// five.
const DEATHS_ALONE: [(Death, u32); 5] = [
    (Death::Kill, 3),
    (Death::Twice, 1),
    (Death::Step, 1),
    (Death::OutOfMemory, 1),
    (Death::Stall, 1),
];

/// The deaths of supervisors of one server, each followed by another supervisor.
const SUPERVISOR_DEATHS: usize = 10;

/// The deaths of workers while one supervisor lives.
const DEATHS_BETWEEN: u32 = 2;

/// The deaths of one server that is operated meanwhile.
const DEATHS_DURING_OPERATIONS: u32 = 60;

/// The number of stores after which a worker dies is below this.
const STORES_MAX: u32 = 1000;

/// The number of stores after which a rescuer dies: by then it has a keeper.
const RESCUE_STORES: Range<u32> = 20..400;

fn is_long() -> bool {
    std::env::var("E2E_PROOF").is_ok_and(|what| what == "long")
}

/// Returns the time limit of one proof.
fn patience() -> Duration {
    Duration::from_secs(if is_long() { 4 * 60 * 60 } else { 600 })
}

/// Returns the seeds of `short` or `long` servers; only one if a seed is given.
fn seeds(short: u64, long: u64) -> impl Iterator<Item = u64> {
    let given = |name| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    let seed = given("E2E_SEED");
    let count = given("E2E_SERVERS").unwrap_or_else(|| match seed {
        Some(_) => 1,
        None if is_long() => long,
        None => short,
    });
    let first = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    (first..first + count).inspect(|seed| println!("E2E_SEED={seed}"))
}

/// What the servers and clients of a proof did.
#[derive(Debug, Default)]
struct Totals {
    deaths: BTreeMap<Death, u32>,
    supervisors: usize,
    connections: u64,
    bytes: u64,
}

impl Totals {
    fn add(&mut self, deaths: &BTreeMap<Death, u32>, reports: &[Report]) {
        for (death, count) in deaths {
            *self.deaths.entry(*death).or_default() += count;
        }
        for report in reports {
            self.connections += report.connections;
            self.bytes += report.bytes;
        }
        println!("so far: {self:?}");
    }
}

/// The clients of both addresses.
struct Clients([Load; 2]);

impl Clients {
    fn of(server: &Server, size: &LoadSize) -> Self {
        let proxied = LoadSize {
            is_proxied: true,
            ..size.clone()
        };
        let [plain, behind_proxy] = server.addrs() else {
            panic!("two addresses: {:?}", server.addrs());
        };
        Self([
            Load::start(*plain, size.clone()),
            Load::start(*behind_proxy, proxied),
        ])
    }

    #[track_caller]
    fn go_on(&self) {
        for load in &self.0 {
            load.go_on_for(2);
        }
    }

    /// Ends every client; asserts that none has noticed anything, nor the kernel since `before`.
    #[track_caller]
    fn finish_clean(self, before: &KernelCounters) -> [Report; 2] {
        let reports = self.finish();
        for report in &reports {
            report.assert_clean();
        }
        let connections = reports.iter().map(|report| report.connections).sum();
        KernelCounters::read().assert_no_loss_in(connections, before);
        reports
    }

    /// Ends every client.
    fn finish(self) -> [Report; 2] {
        let reports = self.0.map(Load::finish);
        for report in &reports {
            println!("{report}");
        }
        reports
    }
}

#[track_caller]
fn start(args: &[&str], faults: &str) -> Planned {
    let args = [&ARGS, args].concat();
    Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", faults))
}

/// Runs `harm` under load, and asserts that no client has noticed anything.
#[track_caller]
fn prove(server: &Server, harm: impl FnOnce(&Clients)) -> [Report; 2] {
    let counters = KernelCounters::read();
    let clients = Clients::of(server, &LoadSize::small());
    harm(&clients);
    clients.finish_clean(&counters)
}

fn freeze_supervisor(server: &Server) {
    freeze(&Watched::open(server.pid()).expect("the supervisor runs"));
}

/// Performs one of the planned operations, to the end of its handovers.
#[track_caller]
fn operate(planned: &Planned, round: usize) {
    let server = &planned.server;
    match round % 3 {
        0 => drop(server.reload().expect_success()),
        1 => {
            let version = format!("version=1.{round}.0");
            planned.install(Image::copy(planned.folder()).with_faults(&version));
            server.upgrade().expect_success();
        }
        _ => {
            server.scale(WORKERS + 1).expect_success();
            server.scale(WORKERS).expect_success();
        }
    }
    until("every handover has ended", || {
        let log = server.log();
        let count = |event| log.iter().filter(|line| line.contains(event)).count();
        count("event=takeover_started") == count("event=takeover_finished")
    });
}

/// Returns the deaths of `plan` that this machine permits.
fn permitted(plan: &[(Death, u32)], group: Option<&MemoryGroup>) -> Vec<(Death, u32)> {
    let mut plan = plan.to_vec();
    plan.retain(|(death, _)| group.is_some() || *death != Death::OutOfMemory);
    plan
}

/// Lets processes of servers with `args` die of every cause, and operates the servers in between.
#[track_caller]
fn die_under_load(args: &[&str]) {
    // It must outlive the servers.
    let group = MemoryGroup::new().map_err(|why| skipped(&why)).ok();
    let plan = permitted(&DEATHS, group.as_ref());
    let mut totals = Totals::default();
    for seed in seeds(1, 200) {
        let planned = start(&[args, &[RESCUE]].concat(), "");
        let server = &planned.server;
        if !can_trace(server) {
            return skipped("workers cannot be traced");
        }
        // After every later reload the server must return to the resources that it has after the
        // first.
        server.reload().expect_success();
        let mut deaths = Deaths::of(server, WORKERS, group.as_ref(), seed);
        deaths.wait_whole();
        let baseline = Baseline::of(server);
        let reports = prove(server, |clients| {
            let all = deaths.shuffle(&plan);
            for (round, some) in all.chunks(all.len().div_ceil(4)).enumerate() {
                if round > 0 {
                    operate(&planned, round);
                    deaths.wait_whole();
                }
                for death in some {
                    deaths.cause(*death);
                    clients.go_on();
                }
            }
        });
        baseline.assert_back(server);
        until("every dead process is reaped", || {
            zombies(server.pid()).is_empty()
        });
        assert!(server.stop().success());
        totals.add(deaths.done(), &reports);
    }
}

#[test]
fn clients_notice_no_death() {
    isolated_within(patience(), || die_under_load(&[]));
}

#[test]
fn clients_notice_no_death_as_other_user() {
    isolated_within(patience(), || {
        if !nix::unistd::geteuid().is_root() {
            return skipped("only root can run workers as another user");
        }
        die_under_load(&["--user=nobody"]);
    });
}

/// Workers die while they hand over and take over. An operation fails if a worker of the release
/// that it brings dies.
#[test]
fn clients_notice_no_death_during_operations() {
    isolated_within(patience(), || {
        let mut totals = Totals::default();
        for seed in seeds(1, 100) {
            let planned = start(&[RESCUE], "");
            let server = &planned.server;
            server.reload().expect_success();
            let mut deaths = Deaths::of(server, WORKERS, None, seed);
            deaths.wait_whole();
            let baseline = Baseline::of(server);
            let reports = prove(server, |clients| {
                std::thread::scope(|scope| {
                    let killing = scope.spawn(|| {
                        for _ in 0..DEATHS_DURING_OPERATIONS {
                            deaths.kill_any();
                            clients.go_on();
                        }
                    });
                    while !killing.is_finished() {
                        server.reload();
                        server.scale(WORKERS + 1);
                        server.upgrade();
                        server.scale(WORKERS);
                    }
                    killing.join().unwrap_or_else(|panic| resume_unwind(panic));
                });
                until("it is scaled back", || server.scale(WORKERS).code == 0);
                server.reload().expect_success();
                clients.go_on();
            });
            baseline.assert_back(server);
            assert!(server.stop().success());
            totals.add(deaths.done(), &reports);
        }
    });
}

#[test]
fn clients_notice_no_death_without_supervisor() {
    isolated_within(patience(), || {
        let group = MemoryGroup::new().map_err(|why| skipped(&why)).ok();
        let plan = permitted(&DEATHS_ALONE, group.as_ref());
        let mut totals = Totals::default();
        for seed in seeds(1, 100) {
            let planned = start(&[RESCUE, "--sandbox=off"], "");
            let server = &planned.server;
            if !can_trace(server) {
                return skipped("workers cannot be traced");
            }
            let mut deaths = Deaths::of(server, WORKERS, group.as_ref(), seed);
            deaths.wait_whole();
            freeze_supervisor(server);
            let reports = prove(server, |clients| {
                for death in deaths.shuffle(&plan) {
                    deaths.cause(death);
                    clients.go_on();
                }
            });
            totals.add(deaths.done(), &reports);
        }
    });
}

/// Starts a server with a short way from its death to the next.
#[track_caller]
fn start_next(last: Option<&Server>) -> Server {
    let listen: Vec<String> = match last {
        Some(last) => last.addrs().iter().map(ToString::to_string).collect(),
        None => ["127.0.0.1:0", "127.0.0.2:0"].map(str::to_owned).into(),
    };
    let named = listen.iter().map(|one| format!("--listen={one}"));
    let builder = Server::builder()
        .args(named)
        .args([format!("--proxy-protocol={}", listen[1])])
        .args(ARGS.iter().filter(|arg| !arg.contains("127.0.0")))
        .args([RESCUE, "--orphan-timeout=1h"]);
    match last {
        Some(last) => builder.control_of(last).start(),
        None => builder.start(),
    }
}

/// What happens to an orphan.
#[derive(Clone, Copy, Debug)]
enum OrphanDeath {
    None,
    Worker,
    Keeper,
    /// While the next supervisor starts and adopts.
    DuringAdoption,
}

/// Kills a random one of the processes; returns how many died.
fn kill_one(mut processes: Vec<u32>, random: &mut fastrand::Rng) -> u32 {
    random.shuffle(&mut processes);
    let killed = processes.into_iter().find_map(Watched::open);
    killed.map_or(0, |process| {
        process.signal(Signal::SIGKILL);
        1
    })
}

/// Kills the supervisor at a random instant, and starts the next one; between them a process of an
/// orphan may die. Returns the next one and the number of workers that died.
#[track_caller]
fn replace_supervisor(
    last: &Server,
    clients: &Clients,
    random: &mut fastrand::Rng,
) -> (Server, u32) {
    let death = random.choice([
        OrphanDeath::None,
        OrphanDeath::Worker,
        OrphanDeath::Keeper,
        OrphanDeath::DuringAdoption,
    ]);
    // A worker that dies without a keeper costs its connections.
    if !matches!(death, Some(OrphanDeath::None | OrphanDeath::Keeper)) {
        until("each worker has a keeper", || {
            let (workers, keepers) = (last.orphan_pids(), last.orphan_keeper_pids());
            workers.len() == usize::from(WORKERS) && keepers.len() == workers.len()
        });
    }
    last.kill();
    let mut killed = 0;
    match death {
        Some(OrphanDeath::Worker) => killed += kill_one(last.orphan_pids(), random),
        Some(OrphanDeath::Keeper) => drop(kill_one(last.orphan_keeper_pids(), random)),
        _ => {}
    }
    clients.go_on();
    let next = std::thread::scope(|scope| {
        let starting = scope.spawn(|| start_next(Some(last)));
        if matches!(death, Some(OrphanDeath::DuringAdoption)) {
            let pause = Duration::from_millis(200).mul_f64(random.f64());
            std::thread::park_timeout(pause);
            killed += kill_one(last.orphan_pids(), random);
        }
        starting.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    (next, killed)
}

#[test]
fn clients_notice_no_death_of_supervisor() {
    isolated_within(patience(), || {
        let mut totals = Totals::default();
        for seed in seeds(1, 100) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut servers = vec![start_next(None)];
            servers[0].reload().expect_success();
            Deaths::of(&servers[0], WORKERS, None, seed).wait_whole();
            let baseline = Baseline::of(&servers[0]);
            let counters = KernelCounters::read();
            let clients = Clients::of(&servers[0], &LoadSize::small());
            let mut done = BTreeMap::new();
            for _ in 0..SUPERVISOR_DEATHS {
                let last = servers.last().expect("there is one");
                let (next, killed) = replace_supervisor(last, &clients, &mut random);
                *done.entry(Death::Kill).or_default() += killed;
                next.wait_log(|line| line.contains(" operation done operation=reload "));
                let mut deaths = Deaths::of(&next, WORKERS, None, random.u64(..));
                deaths.wait_whole();
                for _ in 0..DEATHS_BETWEEN {
                    deaths.cause(Death::Kill);
                    clients.go_on();
                }
                // The exit status of an adopted process is unknown, so its death counts as a crash:
                // no connection may have been in hand at the death before.
                for _ in 0..WORKERS {
                    deaths.cause(Death::Idle);
                }
                for (death, count) in deaths.done() {
                    *done.entry(*death).or_default() += count;
                }
                servers.push(next);
                totals.supervisors += 1;
            }
            let reports = clients.finish_clean(&counters);
            let last = servers.last().expect("there is one");
            baseline.assert_back(last);
            assert!(last.stop().success());
            totals.add(&done, &reports);
        }
    });
}

/// Each worker dies after a number of stores to its working memory; then its rescuer, during the
/// rescue or after it.
#[test]
fn clients_notice_no_death_after_store() {
    isolated_within(patience(), || {
        let mut totals = Totals::default();
        for seed in seeds(4, 1000) {
            let mut random = fastrand::Rng::with_seed(seed);
            let stores = random.u32(1..STORES_MAX);
            let rescue = random.u32(RESCUE_STORES);
            let faults = format!("store={stores};rescue.store={rescue}");
            let planned = start(&[RESCUE], &faults);
            let server = &planned.server;
            // A keeper has its name a moment after its clone.
            until("each worker has a keeper", || {
                server.keeper_pids().len() == usize::from(WORKERS)
            });
            let dead = [server.worker_pids(), server.keeper_pids()].concat();
            let reports = prove(server, |clients| {
                until("each worker has died twice", || {
                    clients.go_on();
                    let now = server.worker_pids();
                    now.len() == usize::from(WORKERS) && !now.iter().any(|pid| dead.contains(pid))
                });
                clients.go_on();
            });
            totals.add(&[(Death::Kill, 2 * u32::from(WORKERS))].into(), &reports);
        }
    });
}

/// Shows that the proof can fail: without keepers the clients and the kernel notice a death.
#[test]
fn proof_detects_death_without_rescue() {
    isolated(|| {
        let planned = start(&["--crash-rescue=false"], "");
        let server = &planned.server;
        let counters = KernelCounters::read();
        let clients = Clients::of(
            server,
            &LoadSize {
                deadline: Duration::from_secs(5),
                ..LoadSize::small()
            },
        );
        for pid in server.worker_pids() {
            let worker = Watched::open(pid).expect("it runs");
            worker.signal(Signal::SIGKILL);
        }
        assert!(!clients.finish().iter().any(Report::is_clean));
        let losses = KernelCounters::read().delta(&counters);
        assert!(losses.values().any(|count| *count > 0), "{losses:?}");
    });
}
