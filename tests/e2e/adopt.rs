//! The supervisor's death: its workers go on serving and accepting, for a bounded time, and the next
//! server on the same addresses goes on with them.

use std::time::Duration;

use nix::sys::signal::Signal;
use uppercased_ctl::clock;

use crate::support::image::Image;
use crate::support::load::{Load, LoadSize};
use crate::support::observe::{
    OWED_BYTES, become_owed, descriptors, lose_worker, number, queued, state, until, until_some,
    wait_draining, wait_ready, worker_of,
};
use crate::support::{
    Client, DEADLINE, Server, ServerBuilder, Watched, children, in_background, pattern, upper,
    wait_gone,
};

/// An `orphan_timeout` that a test does not reach.
const LONG: &str = "--orphan-timeout=1h";
/// Replaced workers are not watched.
const QUICK: &str = "--bake-time=0s";

/// Starts a server whose workers have keepers.
#[track_caller]
fn server(args: &[&str]) -> Server {
    let given = ["--listen=127.0.0.1:0", "--crash-rescue=true"];
    Server::start(&[&given, args].concat())
}

/// Kills the only worker, which has no supervisor; returns once its keeper is the worker.
#[track_caller]
pub(crate) fn kill_orphan(server: &Server) {
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
pub(crate) fn kill_supervisor(server: &Server, workers: usize) {
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

/// Starts the next server after `first`, on the same address.
pub(crate) fn next(first: &Server, args: &[&str]) -> ServerBuilder {
    let listen = format!("--listen={}", first.addr());
    Server::builder()
        .args([listen])
        .args(args)
        .control_of(first)
}

fn has_argument(pid: u32, wanted: &str) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.any(|argument| argument == wanted.as_bytes())
}

/// Waits until the server has replaced the workers that it adopted.
#[track_caller]
fn wait_replaced(server: &Server) {
    server.wait_log(|line| line.contains(" operation done operation=reload "));
}

#[track_caller]
pub(crate) fn adopted(server: &Server) -> usize {
    let log = server.log();
    let adopted = log
        .iter()
        .filter(|line| line.contains("event=orphan_adopted"));
    adopted.count()
}

#[test]
fn next_server_adopts_orphans() {
    let first = server(&["--workers=2", LONG]);
    let load = Load::start(first.addr(), LoadSize::small());
    load.go_on_for(50);
    kill_supervisor(&first, 2);
    load.go_on_for(50);
    let second = next(&first, &["--workers=2", QUICK]).start();
    load.go_on_for(50);
    wait_replaced(&second);
    load.go_on_for(50);
    load.finish().assert_clean();
    assert_eq!(adopted(&second), 2);
    let slots = second.status_json()["slots"].clone();
    assert_eq!(
        (&slots[0]["generation"], &slots[1]["generation"]),
        (&2.into(), &2.into())
    );
    until("the adopted workers have exited", || {
        first.processes().is_empty()
    });
    let mut client = Client::connect(second.addr());
    client.roundtrip(b"before an upgrade");
    second.upgrade().expect_success();
    client.roundtrip(b"after it");
    assert!(second.stop().success());
    assert!(!second.control().with_extension("workers").exists());
}

/// Again and again, without a break for any client.
#[test]
fn each_server_adopts_workers_of_the_last() {
    let first = server(&["--workers=2", LONG]);
    let load = Load::start(first.addr(), LoadSize::small());
    let mut servers = vec![first];
    for round in 0..4 {
        let last = servers.last().expect("there is one");
        load.go_on_for(20);
        last.kill();
        let server = next(last, &["--workers=2", QUICK, LONG]).start();
        assert_eq!(adopted(&server), 2, "round {round}");
        wait_replaced(&server);
        servers.push(server);
    }
    load.go_on_for(50);
    load.finish().assert_clean();
    let last = servers.last().expect("there is one");
    assert_eq!(last.status_json()["slots"][0]["generation"], 5);
    assert!(last.stop().success());
}

/// While one slot bakes, the other still has its adopted worker.
#[test]
fn adopted_worker_is_rescued_and_watched() {
    let first = server(&["--workers=2", LONG]);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(first.addr())).collect();
    kill_supervisor(&first, 2);
    let second = next(&first, &["--workers=2", "--bake-time=1h"]).start();
    second.wait_log(|line| line.contains(" worker standing by slot=0 "));
    let slot = || second.status_json()["slots"][1].clone();
    for lives in 1..=3 {
        let (worker, keeper) = until_some("it has a keeper", || {
            let slot = slot();
            Some((slot["pid"].as_u64()?, slot["keeper_pid"].as_u64()?))
        });
        let worker = u32::try_from(worker).expect("a process ID");
        Watched::open(worker)
            .expect("it runs")
            .signal(Signal::SIGKILL);
        for client in &mut clients {
            client.roundtrip(b"by the next process");
        }
        until("its keeper is the worker", || slot()["pid"] == keeper);
        until("it is reported", || slot()["crashes"] == lives);
    }
    assert_eq!(slot()["generation"], 1);
    assert_eq!(second.command(&["cancel"]).code, 0);
    for client in &mut clients {
        client.roundtrip(b"after the rollback");
    }
    assert!(second.stop().success());
    until("every process has exited", || first.processes().is_empty());
}

/// Its supervisor knows the process that introduced itself; its keeper runs the worker by then.
#[test]
fn worker_that_dies_during_adoption_is_rescued() {
    let first = server(&["--workers=1", LONG]);
    let mut client = Client::connect(first.addr());
    client.roundtrip(b"before");
    kill_supervisor(&first, 1);
    let builder = next(&first, &["--workers=1", QUICK]);
    let builder = builder.env("FAULT_POINTS", "supervisor.adopts=stop");
    let second = in_background(move || builder.start());
    let listen = format!("--listen={}", first.addr());
    let supervisor = until_some("the next supervisor has met the worker", || {
        let is_it = |&pid: &u32| state(pid) == Some('T') && has_argument(pid, &listen);
        children(std::process::id()).into_iter().find(is_it)
    });
    kill_orphan(&first);
    client.roundtrip(b"by the keeper");
    let supervisor = Watched::open(supervisor).expect("it is stopped");
    supervisor.signal(Signal::SIGCONT);
    let second = second.join().expect("it starts");
    wait_replaced(&second);
    client.roundtrip(b"after the adoption");
    assert_eq!(adopted(&second), 1);
    assert!(second.stop().success());
    let total = second.wait_log(|line| line.contains("event=server_stopped"));
    assert_eq!(number(&total, "lost_connections"), 0, "{total}");
}

#[test]
fn one_of_two_starts_adopts() {
    let first = server(&["--workers=2", LONG]);
    let load = Load::start(first.addr(), LoadSize::small());
    kill_supervisor(&first, 2);
    let starts = [0, 1].map(|_| {
        let builder = next(&first, &["--workers=2", QUICK]);
        in_background(move || builder.start_or_fail())
    });
    let starts = starts.map(|start| start.join().expect("it does not panic"));
    let (won, lost): (Vec<_>, Vec<_>) = starts.into_iter().partition(Result::is_ok);
    let [won]: [Server; 1] = won
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .try_into()
        .expect("one wins");
    let lost = lost.into_iter().filter_map(Result::err).collect::<Vec<_>>();
    let [(code, cause)] = &lost[..] else {
        panic!("one is refused: {lost:?}");
    };
    assert!(
        *code == 1 && cause.contains("cannot listen on"),
        "{code}: {cause}"
    );
    assert_eq!(adopted(&won), 2);
    wait_replaced(&won);
    load.go_on_for(50);
    load.finish().assert_clean();
}

/// Neither by a start on its address, nor by a visit to its workers.
#[test]
fn living_supervisor_is_not_disturbed() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("--listen={}:0", crate::support::own_address());
    let start = |listen: &str| {
        Server::builder()
            .args([listen, "--workers=2", "--share-port", "--control=auto"])
            .env("RUNTIME_DIRECTORY", folder.path())
    };
    let first = start(&listen).start();
    let load = Load::start(first.addr(), LoadSize::small());
    load.go_on_for(20);
    let second = start(&format!("--listen={}", first.addr())).start();
    second.wait_log(|line| {
        line.contains("event=orphan_not_adopted") && line.contains("its supervisor runs")
    });
    assert_eq!(adopted(&second), 0);
    load.go_on_for(50);
    load.finish().assert_clean();
    assert_eq!(first.worker_pids().len(), 2);
    assert!(second.stop().success() && first.stop().success());
}

#[test]
fn start_without_adoption_ends_orphans_first() {
    let first = server(&["--workers=2", LONG]);
    let mut client = Client::connect(first.addr());
    client.roundtrip(b"before");
    kill_supervisor(&first, 2);
    let second = next(&first, &["--workers=2", "--adopt=false"]).start();
    client.expect_eof();
    drop(client);
    assert_eq!(adopted(&second), 0);
    Client::connect(second.addr()).roundtrip(b"by new workers");
    until("the orphans have exited", || first.processes().is_empty());
}

#[test]
fn adopted_workers_of_another_user_are_replaced() {
    if !nix::unistd::geteuid().is_root() {
        crate::support::adversity::skipped("only root can run workers as another user");
        return;
    }
    let first = server(&["--workers=2", "--user=nobody", LONG]);
    let load = Load::start(first.addr(), LoadSize::small());
    kill_supervisor(&first, 2);
    let second = next(&first, &["--workers=2", QUICK, "--user=nobody"]).start();
    assert_eq!(adopted(&second), 2);
    wait_replaced(&second);
    load.go_on_for(50);
    load.finish().assert_clean();
}

/// Without any privilege, in the supervisor either.
#[test]
fn ordinary_user_adopts() {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        crate::support::adversity::skipped("only root can become another user");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = Image::for_every_user(folder.path());
    let start = |builder: ServerBuilder| builder.program(program.path()).user(NOBODY).start();
    let first = Server::builder().args(["--listen=127.0.0.1:0", "--crash-rescue=true"]);
    let first = start(first.args(["--workers=2", LONG]));
    let load = Load::start(first.addr(), LoadSize::small());
    load.go_on_for(20);
    let mut servers = vec![first];
    for _ in 0..2 {
        let last = servers.last().expect("there is one");
        kill_supervisor(last, 2);
        load.go_on_for(20);
        let server = start(next(
            last,
            &["--workers=2", "--crash-rescue=true", QUICK, LONG],
        ));
        assert_eq!(adopted(&server), 2);
        wait_replaced(&server);
        servers.push(server);
    }
    // Rescues need no privilege either.
    let last = servers.last().expect("there is one");
    let (worker, keeper) = until_some("the worker has a keeper", || {
        let slot = last.status_json()["slots"][0].clone();
        Some((slot["pid"].as_u64()?, slot["keeper_pid"].as_u64()?))
    });
    let worker = u32::try_from(worker).expect("a process ID");
    Watched::open(worker)
        .expect("it runs")
        .signal(Signal::SIGKILL);
    until("its keeper is the worker", || {
        last.status_json()["slots"][0]["pid"] == keeper
    });
    load.go_on_for(20);
    load.finish().assert_clean();
    assert!(last.stop().success());
}

/// A slot whose processes have all died gets a new worker; the number of slots is as configured.
#[test]
fn adoption_fills_missing_slots() {
    let first = server(&["--workers=3", LONG]);
    kill_supervisor(&first, 3);
    let of_slot_1 = || {
        let mut all = first.processes();
        all.retain(|pid| crate::support::observe::arguments(*pid)[0] == "uppercased: worker 1");
        all
    };
    for pid in of_slot_1() {
        Watched::open(pid).expect("it runs").signal(Signal::SIGSTOP);
    }
    let killed = of_slot_1();
    for &pid in &killed {
        Watched::open(pid).expect("it runs").signal(Signal::SIGKILL);
    }
    // Until then its queue still takes clients.
    assert_all_exit(killed);
    let load = Load::start(first.addr(), LoadSize::small());
    let second = next(&first, &["--workers=4", QUICK]).start();
    assert_eq!(adopted(&second), 2);
    wait_replaced(&second);
    load.go_on_for(50);
    load.finish().assert_clean();
    let slots = second.status_json()["slots"].clone();
    let states = slots
        .as_array()
        .expect("slots")
        .iter()
        .map(|slot| &slot["state"]);
    assert!(states.eq([&"serving"; 4]), "{slots}");
}

/// Returns the generations of the slots' workers.
#[track_caller]
fn generations(server: &Server) -> Vec<u64> {
    let status = server.status_json();
    let slots = status["slots"].as_array().expect("slots").iter();
    slots
        .map(|slot| slot["generation"].as_u64().expect("a number"))
        .collect()
}

/// Configuration files with an error, and what the error message has.
const WRONG: [(&str, &str); 4] = [
    ("workers = 2\nbake_time = \"soon\"\n", "bake_time"),
    ("workers = 2\nworker = 3\n", "unknown setting"),
    ("workers = 2\nbake_time = [\n", "not valid TOML"),
    (
        "workers = 2\nmax_connections = 4000000000\n",
        "max_connections",
    ),
];

/// Each start has another error, and adopts the workers that the one before left.
#[test]
fn start_with_wrong_configuration_adopts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("uppercased.toml");
    let file = path.to_str().expect("a plain path");
    let write = |text: &str| std::fs::write(&path, text).expect("write the configuration");
    write("workers = 2\nbake_time = \"0s\"\ncrash_rescue = true\n");
    let configured = ["--config", file, LONG];
    let listen = ["--listen=127.0.0.1:0"];
    let first = Server::builder().args(listen).args(configured).start();
    let load = Load::start(first.addr(), LoadSize::small());
    load.go_on_for(20);
    let mut servers = vec![first];
    for (text, error) in WRONG {
        let last = servers.last().expect("there is one");
        last.kill();
        write(text);
        let server = next(last, &configured).start();
        let log = server.wait_log(|line| line.contains("event=stored_config_used"));
        assert!(log.contains(" WARN ") && log.contains(error), "{log}");
        assert_eq!(adopted(&server), 2, "{text}");
        assert_eq!(generations(&server), [1, 1], "{text}");
        let shown = server.status_json()["config"]["error"].to_string();
        assert!(shown.contains(error), "{shown}");
        let reported = server.command(&["status"]).expect_success().stdout;
        assert!(reported.contains("\nconfig       refused: "), "{reported}");
        load.go_on_for(20);
        server.reload().expect_failure(error);
        servers.push(server);
    }
    let last = servers.last().expect("there is one");
    write("workers = 3\nbake_time = \"0s\"\n");
    last.reload().expect_success();
    assert_eq!(generations(last), [2, 2, 1]);
    assert!(last.status_json()["config"]["error"].is_null());
    load.go_on_for(50);
    load.finish().assert_clean();
    assert!(last.stop().success());
    // Nothing is left of it.
    write(WRONG[0].0);
    let (code, cause) = next(last, &configured).expect_failure();
    assert!(code == 2 && cause.contains(WRONG[0].1), "{code}: {cause}");
}

/// The number of workers is the one that ran, whatever the configuration was.
#[test]
fn wrong_configuration_keeps_scaled_workers() {
    let first = server(&["--workers=2", LONG]);
    first.scale(3).expect_success();
    kill_supervisor(&first, 3);
    let second = next(&first, &["--workers=2", LONG])
        .env("UPPERCASED_IDLE_TIMEOUT", "soon")
        .start();
    assert_eq!(adopted(&second), 3);
    assert_eq!(generations(&second), [1, 1, 1]);
    assert!(second.stop().success());
}

/// The orphans serve on, and a good start adopts them.
#[test]
fn refused_start_leaves_orphans_serving() {
    let first = server(&["--workers=2", LONG]);
    let load = Load::start(first.addr(), LoadSize::small());
    kill_supervisor(&first, 2);
    let refused = |args: &[&str], env: &str, why: &str| {
        let start = next(&first, args).env("UPPERCASED_IDLE_TIMEOUT", env);
        let (code, cause) = start.expect_failure();
        assert!(code == 2 && cause.contains(why), "{code}: {cause}");
    };
    refused(&["--bake-time=soon"], "1h", "--bake-time");
    refused(&["--no-such-flag"], "1h", "--no-such-flag");
    let stored = first.control().with_extension("workers");
    let stored = stored.join(format!("{}.json", first.addr()));
    let whole = std::fs::read(&stored).expect("the stored configuration");
    for damaged in [&whole[..whole.len() / 2], b"", b"{\"workers\":0}"] {
        std::fs::write(&stored, damaged).expect("damage it");
        refused(
            &[],
            "soon",
            "cannot continue running workers: the stored configuration",
        );
    }
    std::fs::remove_file(&stored).expect("remove it");
    refused(&[], "soon", "UPPERCASED_IDLE_TIMEOUT");
    load.go_on_for(20);
    let second = next(&first, &["--workers=2", QUICK]).start();
    assert_eq!(adopted(&second), 2);
    wait_replaced(&second);
    load.go_on_for(20);
    load.finish().assert_clean();
}

/// The supervisor dies during a handover, which goes on without it, in part or not at all. The next
/// one goes on with both workers, or with the one that is left.
#[test]
fn supervisor_death_in_handover_costs_nothing() {
    for (plan, least) in [
        ("supervisor.handover_ordered=kill", 1),
        // Half of the connections cannot migrate, now and later.
        (
            "supervisor.handover_ordered=kill;receiver.watch=fail_alternately",
            2,
        ),
        ("supervisor.handover_half_ordered=kill", 2),
    ] {
        let first = Server::builder()
            .args(["--listen=127.0.0.1:0", "--crash-rescue=true"])
            .args(["--workers=1", LONG])
            .env("FAULT_POINTS", plan)
            .start();
        let mut clients: Vec<_> = (0..8).map(|_| Client::connect(first.addr())).collect();
        for client in &mut clients {
            client.roundtrip(b"before");
        }
        let load = Load::start(first.addr(), LoadSize::small());
        assert_eq!(first.command(&["reload"]).code, 1, "{plan}");
        for client in &mut clients {
            client.roundtrip(b"without a supervisor");
        }
        Client::connect(first.addr()).roundtrip(b"a new client");
        load.go_on_for(20);
        let second = next(&first, &["--workers=1", QUICK]).start();
        let count = adopted(&second);
        assert!((least..=2).contains(&count), "{plan}: {count}");
        wait_replaced(&second);
        for client in &mut clients {
            client.roundtrip(b"after the reload");
        }
        load.go_on_for(20);
        load.finish().assert_clean();
        drop(clients);
        until("the adopted workers have exited", || {
            first.processes().is_empty()
        });
        assert_eq!(second.status_json()["totals"]["crashes"], 0, "{plan}");
        assert!(second.stop().success());
    }
}

/// The supervisor dies while a slot is being removed. Its worker keeps what has not migrated, and is
/// adopted, also by a server that starts meanwhile; then the slot stays or is removed, as configured.
#[test]
fn supervisor_death_in_scaling_costs_nothing() {
    for workers in [2, 1] {
        let plan = match workers {
            1 => "supervisor.handover_ordered=kill",
            // The receiver waits, and then leaves half of the connections with the sender.
            _ => "receiver.received=stop;receiver.watch=fail_alternately",
        };
        let first = Server::builder()
            .args(["--listen=127.0.0.1:0", "--crash-rescue=true"])
            .args(["--workers=2", LONG])
            .env("FAULT_POINTS", plan)
            .start();
        let receiver = worker_of(&first, 0);
        let mut clients: Vec<_> = (0..24).map(|_| Client::connect(first.addr())).collect();
        for client in &mut clients {
            client.roundtrip(b"before");
        }
        first.signal(Signal::SIGTTOU);
        if workers == 2 {
            until("the receiver waits", || state(receiver.pid()) == Some('T'));
            first.kill();
        }
        first.wait_exit(DEADLINE);
        let number = format!("--workers={workers}");
        let start = next(&first, &[&number, QUICK, "--handshake-timeout=100ms"]);
        let second = in_background(move || start.start());
        if workers == 2 {
            let rendezvous = first.control().with_extension("workers");
            let rendezvous = rendezvous.join(format!("{}-1-1.sock", first.pid()));
            until("the next server has connected", || {
                let sockets = procfs::net::unix().expect("read /proc/net/unix");
                let there = sockets.iter().map(|it| it.path.as_deref());
                there.filter(|path| *path == Some(&rendezvous)).count() > 1
            });
            receiver.signal(Signal::SIGCONT);
        }
        let second = second.join().expect("it starts");
        if workers == 2 {
            assert_eq!(adopted(&second), 2);
        }
        for client in &mut clients {
            client.roundtrip(b"with a supervisor again");
        }
        wait_replaced(&second);
        until("as many slots as configured", || {
            generations(&second).len() == workers
        });
        for client in &mut clients {
            client.roundtrip(b"after the reload");
        }
        Client::connect(second.addr()).roundtrip(b"a new client");
        assert_eq!(second.status_json()["totals"]["crashes"], 0);
        drop(clients);
        until("the adopted workers have exited", || {
            first.processes().is_empty()
        });
        assert!(second.stop().success());
    }
}

/// A slot has been removed, and its worker serves the connections that could not migrate.
#[test]
fn draining_worker_is_adopted() {
    let first = Server::builder()
        .args(["--listen=127.0.0.1:0", "--crash-rescue=true"])
        .args(["--workers=2", "--handshake-timeout=100ms"])
        .args(["--drain-timeout=1h", LONG])
        .env("FAULT_POINTS", "receiver.watch=fail")
        .start();
    let leaving = worker_of(&first, 1);
    let mut clients: Vec<_> = (0..24).map(|_| Client::connect(first.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"before");
    }
    first.command(&["scale", "1", "--drain"]).expect_success();
    kill_supervisor(&first, 2);
    let second = next(&first, &["--workers=1", QUICK]).start();
    assert_eq!(adopted(&second), 2);
    for client in &mut clients {
        client.roundtrip(b"with a supervisor");
    }
    let open = || {
        let slots = second.status_json()["slots"].clone();
        let slots = slots.as_array().expect("slots").iter();
        slots.map(|slot| slot["open"].as_u64()).sum::<Option<u64>>()
    };
    assert_eq!(open(), Some(24));
    assert!(!leaving.is_gone());
    drop(clients);
    assert!(leaving.wait_gone(DEADLINE));
    wait_replaced(&second);
    assert_eq!(generations(&second), [2]);
    assert_eq!(second.status_json()["totals"]["crashes"], 0);
    assert!(second.stop().success());
}

/// A slot has no worker; clients wait in its queue, which is lent to a sibling that no longer accepts.
#[test]
fn lent_queue_is_passed_on() {
    const ACCEPTED: usize = 4;
    const WAITING: usize = 12;
    let first = server(&[
        "--workers=2",
        "--max-connections=4",
        "--backoff-initial=1h",
        "--backoff-max=1h",
        "--backoff-reset=1h",
        "--lend-after=20ms",
        LONG,
    ]);
    let mark = first.log_len();
    lose_worker(&first, 0);
    wait_ready(&first, mark, 0, 2);
    lose_worker(&first, 0);
    first.wait_log_from(mark, |line| line.contains("event=sibling_queue_served"));
    let sibling = worker_of(&first, 1);
    let connect = |count| (0..count).map(|_| Client::connect(first.addr()));
    let mut clients: Vec<_> = connect(ACCEPTED).collect();
    for client in &mut clients {
        client.roundtrip(b"accepted");
    }
    clients.extend(connect(WAITING));
    until("the others wait", || {
        queued(sibling.pid(), first.addr().port()) == WAITING
    });
    kill_supervisor(&first, 1);
    let second = next(&first, &["--workers=2", "--max-connections=100", QUICK]).start();
    assert_eq!(adopted(&second), 1);
    for client in &mut clients {
        client.roundtrip(b"by the next server");
    }
    wait_replaced(&second);
    for client in &mut clients {
        client.roundtrip(b"after the reload");
    }
    assert!(second.stop().success());
}

/// Its clients end gracefully, and there is no time in which nobody serves those that connect.
#[test]
fn orphans_of_another_format_drain() {
    let first = Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=2", LONG])
        .env("FAULT_POINTS", "wire_version=9")
        .start();
    let mut idle = Client::connect(first.addr());
    idle.roundtrip(b"before");
    let mut owed = Client::connect(first.addr());
    become_owed(&first, &mut owed);
    kill_supervisor(&first, 2);
    let second = next(&first, &["--workers=2", QUICK]).start();
    for _ in 0..20 {
        Client::connect(second.addr()).roundtrip(b"a new client");
    }
    idle.expect_eof();
    owed.expect(&upper(&pattern(0, OWED_BYTES)));
    owed.expect_eof();
    drop((idle, owed));
    let log = second.log();
    let count = |event| log.iter().filter(|line| line.contains(event)).count();
    assert_eq!(count("event=orphan_incompatible"), 2);
    assert_eq!((count("event=orphan_ended"), adopted(&second)), (2, 0));
    until("the orphans have exited", || first.processes().is_empty());
    assert!(second.stop().success());
}
