//! The supervisor's death: its workers go on serving and accepting, for a bounded time.

use std::time::Duration;

use nix::sys::signal::Signal;
use uppercased_ctl::clock;

use crate::support::load::{Load, LoadSize};
use crate::support::observe::{descriptors, until, until_some, wait_draining, worker_of};
use crate::support::{Client, DEADLINE, Server, Watched, wait_gone};

/// An `orphan_timeout` that a test does not reach.
const LONG: &str = "--orphan-timeout=1h";

/// Starts a server whose workers have keepers.
#[track_caller]
fn server(args: &[&str]) -> Server {
    let given = ["--listen=127.0.0.1:0", "--crash-rescue=true"];
    Server::start(&[&given, args].concat())
}

/// Kills the only worker, which has no supervisor; returns once its keeper is the worker.
#[track_caller]
fn kill_orphan(server: &Server) {
    let keepers = until_some("it has a keeper", || {
        Some(server.orphan_keeper_pids()).filter(|keepers| !keepers.is_empty())
    });
    let worker = only_orphan(server);
    worker.signal(Signal::SIGKILL);
    until("the keeper is the worker", || {
        server.orphan_pids() == keepers
    });
}

#[track_caller]
fn only_orphan(server: &Server) -> Watched {
    until_some("one worker runs", || match server.orphan_pids()[..] {
        [pid] => Watched::open(pid),
        _ => None,
    })
}

/// Kills the supervisor; returns when every worker knows.
#[track_caller]
fn kill_supervisor(server: &Server, workers: usize) {
    server.kill();
    let mut aware = 0;
    server.wait_log(|line| {
        aware += usize::from(line.contains("event=supervisor_lost"));
        aware == workers
    });
}

#[track_caller]
fn assert_all_exit(processes: Vec<u32>) {
    for pid in processes {
        assert!(wait_gone(pid, DEADLINE), "process {pid} stays");
    }
}

#[test]
fn orphans_serve_and_accept() {
    let server = server(&["--workers=2", LONG]);
    let load = Load::start(server.addr(), LoadSize::small());
    load.go_on_for(50);
    kill_supervisor(&server, 2);
    load.go_on_for(200);
    load.finish().assert_clean();
    Client::connect(server.addr()).roundtrip(b"a new client");
}

#[test]
fn orphans_stop_after_timeout() {
    let server = server(&["--workers=2", "--orphan-timeout=300ms"]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let processes = server.processes();
    server.kill();
    client.roundtrip(b"served by an orphan");
    client.expect_eof();
    wait_draining(&server, 2);
    drop(client);
    assert_all_exit(processes);
}

/// A signal that arrives while the supervisor runs is not for the worker, then or later.
#[test]
fn signals_stop_orphans_only() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = server(&["--workers=1", LONG]);
        let mut client = Client::connect(server.addr());
        let worker = worker_of(&server, 0);
        worker.signal(signal);
        client.roundtrip(b"the worker has a supervisor");
        kill_supervisor(&server, 1);
        client.expect_silence(Duration::from_millis(300));
        client.roundtrip(b"served by an orphan");
        worker.signal(signal);
        client.expect_eof();
        let line = server.wait_log(|line| line.contains("event=orphan_stopped"));
        assert!(line.contains(signal.as_str()), "{line}");
        drop(client);
        assert!(worker.wait_gone(DEADLINE));
        until("its keeper is gone, too", || server.processes().is_empty());
    }
}

/// Its keeper continues it, with the same deadline, and obeys signals as it did.
#[test]
fn orphan_survives_its_death() {
    let server = server(&["--workers=1", LONG]);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.addr())).collect();
    kill_supervisor(&server, 1);
    for _ in 0..3 {
        kill_orphan(&server);
        for client in &mut clients {
            client.roundtrip(b"by the next process");
        }
        Client::connect(server.addr()).roundtrip(b"and a new client");
    }
    only_orphan(&server).signal(Signal::SIGTERM);
    for client in &mut clients {
        client.expect_eof();
    }
    drop(clients);
    until("every process has exited", || server.processes().is_empty());
}

#[test]
fn rescued_orphan_keeps_its_deadline() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    let server = server(&["--workers=1", "--orphan-timeout=6s"]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    kill_supervisor(&server, 1);
    for _ in 0..3 {
        client.expect_silence(Duration::from_millis(1000));
        kill_orphan(&server);
        client.roundtrip(b"rescued");
    }
    let rescued = clock::now();
    client.expect_eof();
    // A deadline that began again would be later than this.
    assert!(clock::now().since(rescued) < TIMEOUT);
    drop(client);
    until("every process has exited", || server.processes().is_empty());
}

/// The pidfd tells where the channel does not: a copy of its other end may be open elsewhere.
#[test]
fn orphan_notices_death_by_pidfd() {
    let server = server(&["--workers=1", "--orphan-timeout=300ms"]);
    let worker = worker_of(&server, 0);
    let supervisor = Watched::open(server.pid()).expect("the supervisor runs");
    let copies: Vec<_> = descriptors(server.pid())
        .into_keys()
        .filter_map(|number| supervisor.descriptor(number))
        .collect();
    server.kill();
    assert!(worker.wait_gone(DEADLINE), "it does not notice");
    drop(copies);
}

/// A standby has served nobody, so it leaves; the worker that it was to replace serves on.
#[test]
fn orphaned_standby_exits() {
    let server = Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=1", LONG])
        .env("FAULT_POINTS", "supervisor.successor_spawned=kill")
        .start();
    let first = worker_of(&server, 0);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    assert_eq!(server.command(&["reload"]).code, 1);
    until("one worker is left", || {
        server.orphan_pids() == [first.pid()]
    });
    client.roundtrip(b"after");
    Client::connect(server.addr()).roundtrip(b"a new client");
}
