//! The death of a worker's process, by any cause, in every state of its connections: its keeper
//! continues all of them, and no client notices.
//!
//! In the first tests the supervisor is stopped meanwhile: no step of a rescue needs it. In the others
//! it follows.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use uppercased_ctl::clock;
use uppercased_ctl::metrics::{CloseReason, Counter};
use uppercased_ctl::proxy_header::{Version, encode};

use crate::support::adversity::skipped;
use crate::support::deaths::{Death, Deaths, can_trace};
use crate::support::load::{Load, LoadSize};
use crate::support::observe::{
    OWED_BYTES, become_owed, descriptors, freeze, system_call, until, until_some, waits_for_events,
    worker_of, workers_of,
};
use crate::support::planned::Planned;
use crate::support::process::zombies;
use crate::support::tracer::Traced;
use crate::support::usage::Counters;
use crate::support::{Client, DEADLINE, Server, Watched, pattern, wait_gone};

/// Starts one worker with a keeper.
#[track_caller]
fn server(args: &[&str], faults: &str) -> Server {
    let given = ["--listen=127.0.0.1:0", "--workers=1", "--crash-rescue=true"];
    Server::builder()
        .args(given)
        .args(args)
        .env("FAULT_POINTS", faults)
        .start()
}

/// Returns the number of descriptors that are no sockets: connections come and go.
fn private_descriptors(pid: u32) -> usize {
    let held = descriptors(pid).into_values();
    held.filter(|target| !target.starts_with("socket:")).count()
}

/// Stops the supervisor, which is to take no part.
#[track_caller]
fn freeze_supervisor(server: &Server) {
    freeze(&Watched::open(server.pid()).expect("the supervisor runs"));
}

/// Kills the worker's process; returns the process that has taken its place.
#[track_caller]
fn kill_worker(server: &Server) -> u32 {
    let worker = worker_of(server, 0);
    // It has its name a moment after its worker is ready.
    let keepers = until_some("the worker has a keeper", || {
        Some(server.keeper_pids()).filter(|keepers| !keepers.is_empty())
    });
    worker.signal(Signal::SIGKILL);
    until_some("the keeper is the worker", || {
        let workers = workers_of(server, 0);
        workers.into_iter().find(|pid| keepers.contains(pid))
    })
}

/// One client in each state.
struct Clients {
    idle: Client,
    halfway: Client,
    owed: Client,
    half_closed: Client,
}

impl Clients {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let connect = || Client::connect(server.addr());
        let (mut idle, mut halfway) = (connect(), connect());
        idle.roundtrip(b"before");
        halfway.roundtrip(b"half of a ");
        let (mut owed, mut half_closed) = (connect(), connect());
        become_owed(server, &mut owed);
        become_owed(server, &mut half_closed);
        half_closed.half_close();
        Self {
            idle,
            halfway,
            owed,
            half_closed,
        }
    }

    /// Asserts that each gets exactly what it is owed.
    #[track_caller]
    fn expect_served(mut self, server: &Server) {
        self.idle.roundtrip(b"and after");
        self.halfway.roundtrip(b"message");
        let answer = pattern(0, OWED_BYTES).to_ascii_uppercase();
        self.owed.expect(&answer);
        self.owed.roundtrip(b"and more");
        assert_eq!(self.half_closed.read_to_end(), answer);
        Client::connect(server.addr()).roundtrip(b"a new client");
    }
}

/// In the middle of a turn, after a store that some client has caused.
#[test]
fn clients_survive_any_death_of_worker() {
    for death in ["kill", "panic", "abort", "violate"] {
        let server = server(&[], &format!("store=100;store.death={death}"));
        let first = worker_of(&server, 0);
        freeze_supervisor(&server);
        let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.addr())).collect();
        for round in 0..10 {
            for client in &mut clients {
                client.roundtrip(format!("{death} {round}").as_bytes());
            }
        }
        assert_ne!(worker_of(&server, 0).pid(), first.pid(), "{death}");
    }
}

#[test]
fn clients_survive_kill_in_any_state() {
    let server = server(&[], "");
    let clients = Clients::of(&server);
    freeze_supervisor(&server);
    kill_worker(&server);
    clients.expect_served(&server);
}

#[test]
fn clients_survive_death_of_each_process() {
    let server = server(&[], "");
    let clients = Clients::of(&server);
    let counters = Counters::of(&server);
    let before = private_descriptors(worker_of(&server, 0).pid());
    freeze_supervisor(&server);
    for _ in 0..4 {
        let pid = kill_worker(&server);
        until("its own keeper waits", || server.keeper_pids().len() == 1);
        until("it has the descriptors of the first", || {
            private_descriptors(pid) == before
        });
        Client::connect(server.addr()).roundtrip(b"served by each");
    }
    clients.expect_served(&server);
    counters.wait_open(0);
}

#[test]
fn clients_survive_stop_before_kill() {
    let server = server(&[], "");
    let mut clients = Clients::of(&server);
    freeze_supervisor(&server);
    freeze(&worker_of(&server, 0));
    clients.idle.send_all(b"sent to a stopped worker");
    let mut queued = Client::connect(server.addr());
    queued.send_all(b"queued");
    kill_worker(&server);
    clients.idle.expect(b"SENT TO A STOPPED WORKER");
    queued.expect(b"QUEUED");
    clients.expect_served(&server);
}

/// A message without descriptors is lost with the process that received it; the supervisor sends
/// what it asked for again.
#[test]
fn clients_survive_kill_amid_message() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let fifo = folder.path().join("hold");
    let hold = format!("worker.received=hold:{}", fifo.display());
    // A sandboxed worker could not open it.
    let server = server(&["--sandbox=off"], &hold);
    let clients = Clients::of(&server);
    mkfifo(&fifo, Mode::S_IRWXU).expect("make the FIFO");
    // The supervisor confirms the rescue.
    let rescuer = kill_worker(&server);
    until("it has received a message", || {
        system_call(rescuer) == Some(libc::SYS_openat)
    });
    std::fs::remove_file(&fifo).expect("remove the FIFO");
    kill_worker(&server);
    clients.expect_served(&server);
}

/// The death of the rescuer at each of its steps: the next keeper begins again.
#[test]
fn clients_survive_death_during_rescue() {
    for point in ["rescue.keeper_cloned", "rescue.repaired", "rescue.rearmed"] {
        let server = server(&[], &format!("{point}=kill"));
        let clients = Clients::of(&server);
        freeze_supervisor(&server);
        worker_of(&server, 0).signal(Signal::SIGKILL);
        // Each life dies there, until the keeper gives up: nothing hangs.
        until("no process continues the worker", || {
            server.worker_pids().is_empty() && server.keeper_pids().is_empty()
        });
        drop(clients);
    }
}

/// Asserts that a client is reset at once; that may happen before it knows of the connection.
#[track_caller]
fn refused(server: &Server) {
    match Client::try_connect(server.addr()) {
        Ok(mut client) => client.expect_reset(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}

#[test]
fn rescue_keeps_limits_per_source() {
    let server = server(&["--max-connections-per-source=2"], "");
    let mut held = [
        Client::connect(server.addr()),
        Client::connect(server.addr()),
    ];
    for client in &mut held {
        client.roundtrip(b"held");
    }
    refused(&server);
    freeze_supervisor(&server);
    kill_worker(&server);
    held[0].roundtrip(b"still held");
    refused(&server);
    let [first, _second] = held;
    drop(first);
    until("its place is available", || {
        Client::try_connect(server.addr()).is_ok_and(|mut client| client.is_served(b"free?"))
    });
}

#[test]
fn rescue_keeps_deadlines() {
    let server = server(&["--idle-timeout=2s", "--linger-timeout=1m"], "");
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"then silence");
    freeze_supervisor(&server);
    kill_worker(&server);
    // The stream is ended by the new process, and lingers across another death.
    client.expect_eof();
    kill_worker(&server);
    counters.wait_open(1);
    client.send_all(b"discarded");
    counters.wait(Counter::BytesDiscarded, 9);
    drop(client);
    counters.wait(Counter::Closed(CloseReason::IdleTimeout), 1);
}

#[test]
fn rescue_keeps_awaited_proxy_header() {
    let server = server(&["--proxy-protocol=all", "--proxy-header-timeout=1m"], "");
    let client: SocketAddr = "192.0.2.7:4000".parse().unwrap();
    let header = encode(Version::V2, client, "10.0.0.1:9999".parse().unwrap());
    let mut after = Client::connect(server.addr());
    after.send_all(&header);
    after.roundtrip(b"before");
    let mut halfway = Client::connect(server.addr());
    halfway.send_all(&header[..10]);
    let counters = Counters::of(&server);
    counters.wait_open(2);
    freeze_supervisor(&server);
    kill_worker(&server);
    halfway.expect_silence(Duration::from_millis(50));
    halfway.send_all(&header[10..]);
    halfway.roundtrip(b"its header is not echoed");
    after.roundtrip(b"after");
    // The bytes of a header are none of the connection's, at a second death as well.
    kill_worker(&server);
    halfway.roundtrip(b"again");
    after.roundtrip(b"and again");
    let mut new = Client::connect(server.addr());
    new.send_all(&header);
    new.roundtrip(b"and a new one");
}

#[test]
fn stopped_worker_takes_its_keeper_along() {
    let server = server(&[], "");
    until("it has a keeper", || server.keeper_pids().len() == 1);
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

/// From here on the supervisor follows: a server with several workers, and its status.
#[track_caller]
fn followed(args: &[&str]) -> Planned {
    let given = [
        "--listen=127.0.0.1:0",
        "--crash-rescue=true",
        "--bake-time=0s",
    ];
    Planned::start(&[&given, args].concat())
}

/// Waits until every worker has a keeper that the supervisor knows; returns the first slot's worker
/// and keeper.
#[track_caller]
fn pair(server: &Server) -> (u32, u32) {
    until_some("every worker has a keeper", || {
        let status = server.status_json();
        let slots = status["slots"].as_array()?.clone();
        let number = |slot: &Value, key: &str| slot[key].as_u64()?.try_into().ok();
        let pairs: Option<Vec<(u32, u32)>> = slots
            .iter()
            .map(|slot| Some((number(slot, "pid")?, number(slot, "keeper_pid")?)))
            .collect();
        pairs?.first().copied()
    })
}

fn kill(pid: u32) {
    Watched::open(pid).expect("it runs").signal(Signal::SIGKILL);
}

#[test]
fn supervisor_follows_each_rescue() {
    let planned = followed(&["--workers=2"]);
    let server = &planned.server;
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.addr())).collect();
    for round in 1..=10 {
        let (worker, keeper) = pair(server);
        kill(worker);
        for client in &mut clients {
            client.roundtrip(b"served by every process");
        }
        until("the keeper is the worker", || {
            server.status_json()["slots"][0]["pid"] == keeper
        });
        until("it is reported", || {
            let log = server.log();
            log.iter()
                .filter(|line| line.contains("worker rescued"))
                .count()
                == round
        });
    }
    let slot = &server.status_json()["slots"][0];
    assert_eq!(
        (&slot["crashes"], &slot["generation"]),
        (&10.into(), &1.into()),
        "{slot}"
    );
    server.reload().expect_success();
    server.upgrade().expect_success();
    let (worker, _) = pair(server);
    kill(worker);
    for client in &mut clients {
        client.roundtrip(b"after a reload and an upgrade");
    }
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

#[test]
fn lost_keeper_is_replaced() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    for _ in 0..3 {
        let (worker, keeper) = pair(server);
        kill(keeper);
        server.wait_log(|line| line.contains("keeper lost"));
        until("it has another keeper", || {
            let (now, other) = pair(server);
            now == worker && other != keeper
        });
        client.roundtrip(b"by the same process");
    }
    let (worker, _) = pair(server);
    kill(worker);
    client.roundtrip(b"by its latest keeper");
    assert!(server.stop().success());
}

#[test]
fn rescue_figures_survive_upgrade() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(server.addr())).collect();
    let (worker, keeper) = pair(server);
    kill(worker);
    for client in &mut clients {
        client.roundtrip(b"served by the keeper");
    }
    let line = server.wait_log(|line| line.contains("worker rescued"));
    assert!(
        line.contains("connections=3 owed_bytes=0 reset=0"),
        "{line}"
    );
    until("the keeper has one of its own", || pair(server).0 == keeper);
    kill(pair(server).1);
    server.wait_log(|line| line.contains("event=keeper_replaced"));
    let check = || {
        let figures = server.status_json()["slots"][0]["rescues"].clone();
        assert_eq!(
            (&figures["count"], &figures["connections"]),
            (&1.into(), &3.into())
        );
        let keepers = (&figures["keepers_lost"], &figures["keepers_replaced"]);
        assert_eq!(keepers, (&1.into(), &1.into()), "{figures}");
    };
    check();
    server.upgrade().expect_success();
    check();
    let (_, keeper) = pair(server);
    let screen = server.command(&["status"]).expect_success().stdout;
    let keepers = format!("keepers      {keeper}; 1 lost, 1 replaced\n");
    assert!(screen.contains(&keepers), "{screen}");
    let rescues = "rescues      1 of 3 connections, 0B owed; ";
    assert!(screen.contains(rescues), "{screen}");
}

#[test]
fn stop_ends_frozen_keeper() {
    let planned = followed(&["--workers=2"]);
    let server = &planned.server;
    let (_, keeper) = pair(server);
    freeze(&Watched::open(keeper).expect("the keeper runs"));
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

#[test]
fn worker_without_keeper_is_restarted() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let (worker, keeper) = pair(server);
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    freeze(&supervisor);
    kill(keeper);
    kill(worker);
    supervisor.signal(Signal::SIGCONT);
    client.expect_eof();
    let again = until_some("the slot has another worker", || {
        let slot = &server.status_json()["slots"][0];
        (slot["generation"] == 2).then(|| slot["pid"].as_u64())
    });
    assert_ne!(again, Some(worker.into()));
    Client::connect(server.addr()).roundtrip(b"served");
    assert!(server.stop().success());
}

#[test]
fn hung_worker_loses_no_client() {
    let planned = followed(&["--workers=1", "--hang-timeout=400ms"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let (worker, keeper) = pair(server);
    Watched::open(worker)
        .expect("it runs")
        .signal(Signal::SIGSTOP);
    client.roundtrip(b"sent to a stopped process");
    until("its keeper is the worker", || {
        server.status_json()["slots"][0]["pid"] == keeper
    });
    assert!(
        server
            .log()
            .iter()
            .any(|line| line.contains("event=worker_hung"))
    );
    assert!(server.stop().success());
}

#[test]
fn keeper_without_report_is_killed() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let (worker, keeper) = pair(server);
    freeze(&Watched::open(keeper).expect("it runs"));
    kill(worker);
    until("the rescue shows", || {
        server.status_json()["slots"][0]["state"] == "rescuing"
    });
    server.wait_log(|line| line.contains("event=rescue_timed_out"));
    until("the slot has another worker", || {
        let slot = &server.status_json()["slots"][0];
        slot["generation"] == 2 && slot["state"] == "serving"
    });
    Client::connect(server.addr()).roundtrip(b"served");
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

#[test]
fn clients_survive_stall_of_rescuer() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let fifo = folder.path().join("hold");
    let hold = format!("rescue.keeper_cloned=hold:{}", fifo.display());
    // A sandboxed worker could not open it.
    let server = server(&["--sandbox=off", "--hang-timeout=400ms"], &hold);
    let clients = Clients::of(&server);
    mkfifo(&fifo, Mode::S_IRWXU).expect("make the FIFO");
    let rescuer = kill_worker(&server);
    until("it waits", || {
        system_call(rescuer) == Some(libc::SYS_openat)
    });
    // The next one finds none.
    std::fs::remove_file(&fifo).expect("remove the FIFO");
    server.wait_log(|line| line.contains("event=rescue_timed_out"));
    server.wait_log(|line| line.contains("event=worker_rescued"));
    clients.expect_served(&server);
}

/// The kernel reports the death to the debugger first: the supervisor can reap the process only
/// afterwards.
#[test]
fn clients_survive_death_of_traced_worker() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let (worker, keeper) = pair(server);
    let worker = Watched::open(worker).expect("it runs");
    let Ok(traced) = Traced::stop(&worker) else {
        return skipped("workers cannot be traced");
    };
    worker.signal(Signal::SIGKILL);
    client.roundtrip(b"served by its keeper");
    until("its report has been received", || {
        server.status_json()["slots"][0]["keeper_pid"] != keeper
    });
    traced.expect("it ran").reap();
    until("the keeper is the worker", || {
        server.status_json()["slots"][0]["pid"] == keeper
    });
    server.wait_log(|line| line.contains("event=worker_rescued"));
    client.roundtrip(b"and again");
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

/// The supervisor receives the report of a rescuer that has died since, before the next one begins.
#[test]
fn supervisor_follows_report_of_dead_rescuer() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    let (worker, keeper) = pair(server);
    freeze(&supervisor);
    kill(worker);
    let next = new_keeper(server, &[keeper]);
    let next = Watched::open(next).expect("it runs");
    until("the rescuer has reported", || {
        client.is_served(b"served") && waits_for_events(keeper)
    });
    freeze(&next);
    kill(keeper);
    assert!(wait_gone(keeper, DEADLINE));
    supervisor.signal(Signal::SIGCONT);
    let count = |log: &[String]| {
        let rescues = log.iter().filter(|line| line.contains("worker_rescued"));
        rescues.filter(|line| line.contains("SIGKILL")).count()
    };
    until("its report is logged", || count(&server.log()) == 1);
    next.signal(Signal::SIGCONT);
    until("the report of the next is", || count(&server.log()) == 2);
    assert_eq!(server.status_json()["slots"][0]["pid"], next.pid());
    client.roundtrip(b"by the second rescuer");
    assert!(!server.log().iter().any(|line| line.contains("keeper_")));
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

/// Waits for a keeper that is none of `known`.
#[track_caller]
fn new_keeper(server: &Server, known: &[u32]) -> u32 {
    until_some("there is another keeper", || {
        let keepers = server.keeper_pids();
        keepers.into_iter().find(|pid| !known.contains(pid))
    })
}

#[test]
fn supervisor_finds_latest_of_quick_rescues() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    let (first, second) = pair(server);
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    freeze(&supervisor);
    kill(first);
    let third = new_keeper(server, &[second]);
    kill(second);
    let fourth = new_keeper(server, &[second, third]);
    client.roundtrip(b"served by the third process");
    supervisor.signal(Signal::SIGCONT);
    until("the third process is the worker", || {
        let slot = &server.status_json()["slots"][0];
        slot["pid"] == third && slot["keeper_pid"] == fourth
    });
    kill(third);
    client.roundtrip(b"served by the fourth");
    until("the fourth process is the worker", || {
        let slot = &server.status_json()["slots"][0];
        // The second process may have died before it reported.
        slot["pid"] == fourth && slot["crashes"].as_u64() >= Some(2)
    });
    let log = server.log();
    assert!(!log.iter().any(|line| line.contains("keeper lost")));
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

/// A process that was cloned and has died while the supervisor did not run.
#[test]
fn supervisor_reaps_unknown_process() {
    let planned = followed(&["--workers=1"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    let (first, second) = pair(server);
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    freeze(&supervisor);
    let mut known = vec![second];
    for dead in [first, second] {
        kill(dead);
        known.push(new_keeper(server, &known));
        client.roundtrip(b"served");
    }
    kill(known[1]);
    assert!(wait_gone(known[1], DEADLINE));
    supervisor.signal(Signal::SIGCONT);
    until("the fourth process is the worker", || {
        server.status_json()["slots"][0]["pid"] == known[2]
    });
    until("every other is reaped", || zombies(server.pid()).is_empty());
    client.roundtrip(b"served by the fourth");
    assert!(server.stop().success());
}

#[test]
fn supervisor_recovers_from_any_two_deaths() {
    let planned = followed(&[
        "--workers=1",
        "--backoff-max=20ms",
        "--backoff-initial=20ms",
    ]);
    let server = &planned.server;
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    // The keeper dies waiting, during its rescue or after it.
    for delay in (0..8).map(|step| Duration::from_micros(150 * step)) {
        let (worker, keeper) = pair(server);
        freeze(&supervisor);
        kill(worker);
        let killed = clock::now();
        while clock::now().since(killed) < delay {}
        kill(keeper);
        supervisor.signal(Signal::SIGCONT);
        until("another process is the worker", || {
            let (now, _) = pair(server);
            now != worker && now != keeper && workers_of(server, 0).contains(&now)
        });
        Client::connect(server.addr()).roundtrip(b"served");
    }
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}

/// Waits for a rescue whose log line has each of `causes`; asserts that it reset no connection.
#[track_caller]
fn expect_cause(server: &Server, mark: usize, causes: &[&str]) {
    let line = server.wait_log_from(mark, |line| {
        line.contains("event=worker_rescued") && causes.iter().all(|cause| line.contains(cause))
    });
    assert!(line.contains(" reset=0 "), "{line}");
}

/// Deaths that a worker causes itself, in the middle of a turn.
#[test]
fn log_names_cause_of_own_death() {
    for (death, causes) in [
        ("kill", &["signal=SIGKILL"][..]),
        ("panic", &["exit_code=101"]),
        ("abort", &["signal=SIGABRT"]),
        ("violate", &["signal=SIGSYS", "its sandbox refused"]),
        ("loop", &["signal=SIGKILL", "event loop stalled"]),
    ] {
        let args = [
            "--listen=127.0.0.1:0",
            "--workers=1",
            "--crash-rescue=true",
            "--hang-timeout=1s",
        ];
        let faults = format!("store=100;store.death={death}");
        let planned = Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", faults));
        let server = &planned.server;
        let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.addr())).collect();
        for round in 0..10 {
            for client in &mut clients {
                client.roundtrip(format!("{death} {round}").as_bytes());
            }
        }
        expect_cause(server, 0, causes);
        assert_eq!(server.status_json()["slots"][0]["crashes"], 1, "{death}");
    }
}

/// Deaths from outside, under load.
#[test]
fn log_names_cause_of_death_from_outside() {
    let planned = followed(&["--workers=1", "--hang-timeout=1s"]);
    let server = &planned.server;
    if !can_trace(server) {
        return skipped("workers cannot be traced");
    }
    let mut deaths = Deaths::of(server, 1, None, 0);
    let clients = Clients::of(server);
    let load = Load::start(server.addr(), LoadSize::small());
    for (death, causes) in [
        (Death::Fault, &["signal=SIGSEGV"][..]),
        (Death::Abort, &["signal=SIGABRT"]),
        (Death::Stall, &["signal=SIGKILL"]),
        (Death::Hang, &["signal=SIGKILL", "event loop stalled"]),
    ] {
        let mark = server.log_len();
        deaths.cause(death);
        expect_cause(server, mark, causes);
        load.go_on_for(2);
    }
    load.finish().assert_clean();
    clients.expect_served(server);
    assert!(server.stop().success());
}

/// A connection that is served at two deaths in a row is reset, and no other.
#[test]
fn fatal_connection_is_reset_alone() {
    let planned = Planned::start_with(
        &["--listen=127.0.0.1:0", "--workers=1", "--crash-rescue=true"],
        |builder| {
            let faults = "store=100;rescue.store=300;store.death=panic";
            builder.env("FAULT_POINTS", faults)
        },
    );
    let server = &planned.server;
    let counters = Counters::of(server);
    let mut bystander = Client::connect(server.addr());
    let mut fatal = Client::connect(server.addr());
    // Every store of the worker is for this client.
    until("the fatal client is reset", || {
        !fatal.is_served(b"one more")
    });
    let line = server.wait_log(|line| line.contains("event=connection_not_continued"));
    assert!(line.contains("reason=poisoned"), "{line}");
    assert!(
        line.contains(&format!("peer={} ", fatal.local_addr())),
        "{line}"
    );
    counters.wait(Counter::Closed(CloseReason::Poisoned), 1);
    bystander.roundtrip(b"still served");
    counters.wait_open(1);
    assert!(server.stop().success());
}
