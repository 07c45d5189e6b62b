//! The supervisor and its workers as processes: their descriptors, the cost of a crash, and the
//! effect of a crash-looping slot on clients.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use procfs::net::TcpState;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::observe::{
    arguments, descriptors, freeze, lose_worker, number, owner, queued, sockets, until, until_some,
    wait_ready, worker_of,
};
use crate::support::{Client, DEADLINE, Server, Watched, children, own_address, upper};

/// Counts descriptors by the kind of their target.
fn kinds(held: &BTreeMap<i32, String>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for target in held.values() {
        // "socket:[123]" and "/memfd:name (deleted)" without the parts that differ between
        // processes.
        let kind = target.split([' ', '[']).next().unwrap_or_default();
        *kinds.entry(kind.to_owned()).or_insert(0) += 1;
    }
    kinds
}

/// Returns the inodes of the sockets among `held`.
fn socket_inodes(held: &BTreeMap<i32, String>) -> Vec<u64> {
    let inode = |target: &String| {
        let number = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        number.parse().ok()
    };
    held.values().filter_map(inode).collect()
}

fn watch_all(pids: Vec<u32>) -> Vec<Watched> {
    pids.into_iter().filter_map(Watched::open).collect()
}

#[test]
fn workers_hold_only_their_own_descriptors() {
    // Left open in the launching process, as by a careless shell.
    let left_open = nix::unistd::dup(std::io::stderr()).unwrap();
    let server = Server::start(&[
        "--workers=3",
        "--listen=127.0.0.1:0",
        "--listen=127.0.0.2:0",
    ]);
    let workers = server.worker_pids();
    let number = left_open.as_raw_fd();
    assert!(
        descriptors(server.pid()).contains_key(&number),
        "it is inherited"
    );
    assert_eq!(workers.len(), 3);
    let mut family = [server.keeper_pids(), workers.clone()].concat();
    family.sort_unstable();
    assert_eq!(children(server.pid()), family, "and no other children");
    let mut names = Vec::new();
    let mut seen_sockets = Vec::new();
    let log = descriptors(server.pid())[&2].clone();

    for &pid in &workers {
        names.push(arguments(pid)[0].clone());
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm, "uppercased\n");

        // It does not hold any descriptor inherited by the supervisor, either.
        let mut held = descriptors(pid);
        assert_eq!(held.remove(&0).unwrap(), "/dev/null");
        assert_eq!(held.remove(&1).unwrap(), "/dev/null");
        assert_eq!(held.remove(&2).unwrap(), log);
        assert!(held[&3].starts_with("socket:"), "the channel: {held:?}");
        assert!(log.starts_with("pipe:"), "{log}");
        let expected = [
            ("pipe:".to_owned(), 2), // The log, reopened for non-blocking writes; the lease.
            ("/memfd:uppercased-slot".to_owned(), 1),
            ("anon_inode:".to_owned(), 3), // The epoll instance, two pidfds; see below.
            ("socket:".to_owned(), 4), // The channel, the rendezvous, a listener for each address.
        ];
        assert_eq!(kinds(&held), expected.into(), "{held:?}");
        for one in ["anon_inode:[eventpoll]", "anon_inode:[pidfd]"] {
            assert!(held.values().any(|t| t == one), "{held:?}");
        }

        let own = socket_inodes(&held);
        let listening = |port| {
            let all = sockets(port);
            let own = all.iter().filter(|e| own.contains(&e.inode));
            own.filter(|e| e.state == TcpState::Listen).count()
        };
        for addr in server.addrs() {
            assert_eq!(listening(addr.port()), 1, "its own listener on {addr}");
        }
        seen_sockets.extend(own);
    }
    names.sort();
    let expected = [0, 1, 2].map(|slot| format!("uppercased: worker {slot}"));
    assert_eq!(names, expected);

    // A sibling's listener would swallow connections, and a sibling's channel would hide its end.
    let count = seen_sockets.len();
    seen_sockets.sort_unstable();
    seen_sockets.dedup();
    assert_eq!(seen_sockets.len(), count, "no socket is in two workers");
    // The supervisor also holds every listener, but no worker's end of a channel.
    let custody = socket_inodes(&descriptors(server.pid()));
    let kept = seen_sockets.iter().filter(|s| custody.contains(s)).count();
    assert_eq!(kept, 3 * 2);
}

#[test]
fn supervisor_leaks_no_descriptor_after_crash() {
    let server = Server::start(&[
        "--workers=2",
        "--listen=127.0.0.1:0",
        "--backoff-initial=1ms",
        "--backoff-max=1ms",
    ]);
    // The supervisor may still be closing the descriptors of its start.
    let mut last = None;
    let before = until_some("the supervisor's descriptors settle", || {
        let now = kinds(&descriptors(server.pid()));
        let has_settled = last.replace(now.clone()) == Some(now);
        has_settled.then(|| last.clone()).flatten()
    });
    for generation in 2..=8 {
        let mark = server.log_len();
        lose_worker(&server, 1);
        wait_ready(&server, mark, 1, generation);
    }
    until("the supervisor's descriptors are as before", || {
        kinds(&descriptors(server.pid())) == before
    });
    Client::connect(server.addr()).roundtrip(b"still here");
    // A successor has the same descriptors as a first worker: restarts leak none.
    let workers = [0, 1].map(|slot| worker_of(&server, slot));
    until(
        "both workers hold the same, the client's connection being closed",
        || {
            let [first, latest] = workers.each_ref().map(|w| kinds(&descriptors(w.pid())));
            first == latest
        },
    );
}

#[test]
fn worker_role_refuses_manual_start() {
    let (code, reported) = Server::expect_failure(&["worker"]);
    assert_eq!(code, 2);
    assert_eq!(reported.lines().count(), 1, "{reported}");
    assert!(reported.contains("run `uppercased serve`"), "{reported}");
}

#[test]
fn crash_costs_only_connections_of_worker() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0"]);
    let workers = watch_all(server.worker_pids());
    // The kernel's hash gives both workers some.
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"hello");
    }
    let victim = worker_of(&server, 0);
    let (on_victim, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(|client| {
        let owner = owner(client, server.addr(), &workers).expect("accepted: it has answered");
        owner.pid() == victim.pid()
    });
    assert!(
        !on_victim.is_empty() && !others.is_empty(),
        "40 of 40 on one"
    );

    let mark = server.log_len();
    let lost = on_victim.len();
    lose_worker(&server, 0);
    for mut client in on_victim {
        client.expect_eof();
    }
    for mut client in others {
        client.expect_open();
        client.roundtrip(b"nothing happened here");
    }
    let died = server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
    assert!(died.contains("slot=0 generation=1 "), "{died}");
    assert!(died.contains("signal=SIGKILL"), "{died}");
    assert!(
        !died.contains(" error="),
        "nothing is known beyond that: {died}"
    );
    let lost = lost as u64;
    assert_eq!(number(&died, "lost_connections"), lost, "{died}");
    wait_ready(&server, mark, 0, 2);
    let log = server.log();
    assert!(
        !log.iter().any(|line| line.contains("worker crash-looping")),
        "the first death is answered at once: {log:?}"
    );
}

/// Fills the accept queue of a stopped worker, kills it, and expects its successor to serve it.
fn a_queue_outlives_its_worker(workers: usize) {
    let count = format!("--workers={workers}");
    let server = Server::start(&[&count, "--listen=127.0.0.1:0", "--hang-timeout=off"]);
    let port = server.addr().port();
    let victim = worker_of(&server, 0);
    freeze(&victim);
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(server.addr())).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send_all(format!("client {index} is waiting").as_bytes());
    }
    // The probability that the other worker gets all of them is 10^-12.
    let least = if workers == 1 { clients.len() } else { 1 };
    until("clients wait for the worker that stands still", || {
        queued(victim.pid(), port) >= least
    });

    lose_worker(&server, 0);
    for (index, client) in clients.iter_mut().enumerate() {
        client.expect(&upper(format!("client {index} is waiting").as_bytes()));
        client.half_close();
        client.expect_eof();
    }
    let successor = worker_of(&server, 0);
    assert_ne!(successor.pid(), victim.pid());
    assert_eq!(queued(successor.pid(), port), 0);
}

#[test]
fn queue_outlives_worker_beside_another() {
    a_queue_outlives_its_worker(2);
}

#[test]
fn queue_outlives_only_worker() {
    a_queue_outlives_its_worker(1);
}

#[test]
fn failing_slot_backs_off_without_delaying_clients() {
    const PAUSE_MS: u64 = 100;
    let server = Server::start(&[
        "--workers=2",
        "--listen=127.0.0.1:0",
        "--backoff-initial=100ms",
        "--backoff-reset=1h",
        "--lend-after=0s",
    ]);
    let mut delays = Vec::new();
    for generation in 2..=5 {
        let mark = server.log_len();
        lose_worker(&server, 0);
        if generation == 2 {
            // The first crash causes no delay, so no queue is lent for long.
            wait_ready(&server, mark, 0, generation);
            continue;
        }
        let pause = server.wait_log_from(mark, |line| line.contains("worker crash-looping"));
        delays.push((number(&pause, "delay_ms"), number(&pause, "failures")));
        let lent = server.wait_log_from(mark, |line| line.contains("queue lent to sibling"));
        assert!(lent.contains(" slot=0 to_slot=1 "), "{lent}");
        // Both queues are served, by the one remaining worker or by the replacement.
        for _ in 0..16 {
            let mut client = Client::connect(server.addr());
            client.roundtrip(b"whose queue is this?");
        }
        wait_ready(&server, mark, 0, generation);
        server.wait_log_from(mark, |line| line.contains("queue recalled"));
    }
    for (index, (delay, failures)) in delays.iter().enumerate() {
        // Doubled each time, minus up to half of it as jitter.
        let ceiling = PAUSE_MS << index;
        assert!((ceiling / 2..=ceiling).contains(delay), "{delays:?}");
        assert_eq!(*failures, index as u64 + 2, "{delays:?}");
    }

    // The failure count belongs to the slot: the first crash of the other slot causes no delay.
    let mark = server.log_len();
    lose_worker(&server, 1);
    wait_ready(&server, mark, 1, 2);
    let since = &server.log()[mark..];
    assert!(
        !since
            .iter()
            .any(|line| line.contains("worker crash-looping")),
        "{since:?}"
    );
    Client::connect(server.addr()).roundtrip(b"all is well");
}

#[test]
fn sibling_serves_lent_queue_until_recalled() {
    let server = Server::start(&[
        "--workers=2",
        "--listen=127.0.0.1:0",
        "--backoff-initial=1h",
        "--backoff-max=1h",
        "--backoff-reset=1h",
        "--lend-after=20ms",
        "--hang-timeout=off",
    ]);
    let port = server.addr().port();
    let mark = server.log_len();
    lose_worker(&server, 0);
    wait_ready(&server, mark, 0, 2);
    lose_worker(&server, 0);
    server.wait_log_from(mark, |line| line.contains("queue lent to sibling"));
    let sibling = worker_of(&server, 1);
    until("the sibling holds both listeners", || {
        let own = descriptors(sibling.pid());
        let own = socket_inodes(&own);
        let all = sockets(port);
        let listeners = all.iter().filter(|e| e.state == TcpState::Listen);
        listeners.filter(|e| own.contains(&e.inode)).count() == 2
    });
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"answered by the only worker there is");
    }

    // The borrower is killed, too: for a moment no worker is left, and the loan starts again.
    let mark = server.log_len();
    freeze(&sibling);
    let mut waiting: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    until("all of them wait", || queued(sibling.pid(), port) == 20);
    lose_worker(&server, 1);
    server.wait_log_from(mark, |line| line.contains("queue lent to sibling"));
    for client in &mut waiting {
        client.roundtrip(b"both queues survived");
    }
}

#[test]
fn worker_stalled_at_start_is_replaced() {
    const TRIES: usize = 200;
    let server = Server::start(&[
        "--workers=1",
        "--listen=127.0.0.1:0",
        "--start-timeout=1s",
        "--backoff-initial=1ms",
        "--backoff-max=1ms",
        "--crash-rescue=off",
    ]);
    // A test cannot stall a new worker, but can stop it before it is ready. The log shows whether
    // the stop came in time; if not, repeat.
    let mut hung = None;
    for _ in 0..TRIES {
        let mark = server.log_len();
        let old = worker_of(&server, 0);
        old.signal(Signal::SIGKILL);
        let new = loop {
            let born = children(server.pid())
                .into_iter()
                .find(|pid| *pid != old.pid());
            if let Some(new) = born.and_then(Watched::open) {
                break new;
            }
        };
        new.signal(Signal::SIGSTOP);
        let outcome = server.wait_log_from(mark, |line| {
            line.contains(" worker ready ") || line.contains("worker start timed out")
        });
        if outcome.contains("worker start timed out") {
            hung = Some((mark, outcome));
            break;
        }
    }
    let (mark, outcome) = hung.expect("one of many starts is caught in time");
    assert_eq!(number(&outcome, "duration_ms"), 1000, "{outcome}");
    let died = |line: &str| {
        line.contains("worker exited unexpectedly") && line.contains("not ready in time")
    };
    server.wait_log_from(mark, died);
    Client::connect(server.addr()).roundtrip(b"the next one is fine");
}

#[test]
fn workers_ignore_signals() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0"]);
    let workers = server.worker_pids();
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    // A signal to the whole group, such as Ctrl-C, also reaches the workers, which act only on
    // commands of the supervisor.
    for pid in &workers {
        let worker = Watched::open(*pid).unwrap();
        for signal in [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGUSR1,
            Signal::SIGPIPE,
        ] {
            worker.signal(signal);
        }
    }
    client.roundtrip(b"after");
    drop(client);
    assert_eq!(server.worker_pids(), workers);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn error_names_foreign_listener() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let own = format!("pid {} ", std::process::id());
    let args = [format!("--listen={addr}"), "--workers=2".to_owned()];
    let (code, reported) = Server::builder().args(&args).expect_failure();
    assert_eq!(code, 1, "{reported}");
    assert!(
        reported.contains(&own) && reported.contains(&addr.to_string()),
        "{reported}"
    );

    // It does not share the port, so an intentional join also fails, in the worker.
    let server = Server::builder().args(&args).args(["--share-port"]);
    let (code, reported) = server.expect_failure();
    assert_eq!(code, 1, "{reported}");
    assert!(
        reported.contains(&own) && reported.contains("in use"),
        "{reported}"
    );
}

#[test]
fn unavailable_address_refuses_start_and_leaves_nothing() {
    let good = TcpListener::bind((own_address(), 0)).unwrap();
    let addr = good.local_addr().unwrap();
    drop(good);
    // No host has an address of the documentation network (RFC 5737).
    let (code, reported) = Server::expect_failure(&[
        &format!("--listen={addr}"),
        "--listen=192.0.2.1:7777",
        "--workers=3",
    ]);
    assert_eq!(code, 1, "{reported}");
    let reason = reported
        .lines()
        .find(|line| line.starts_with("uppercased: "));
    let reason = reason.expect("one line for people");
    assert!(reason.contains("192.0.2.1:7777"), "{reason}");
    assert!(reason.contains("does not have the address"), "{reason}");
    // The end of the log, for which `expect_failure` has waited, shows that no process remains.
    assert!(Client::try_connect(addr).is_err());
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_uppercased");

#[test]
fn container_init_reaps_orphans() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    nix::unistd::mkfifo(&gate, Mode::S_IRWXU).unwrap();
    let first = format!(
        "(read line <'{}' &); exec '{PROGRAM}' \"$@\"",
        gate.display()
    );
    fs::write(folder.path().join("first"), first).unwrap();
    let script = format!(
        "exec unshare --pid --fork --kill-child sh '{}' \"$@\"",
        folder.path().join("first").display()
    );
    let namespaces = Command::new("unshare")
        .args(["--pid", "--fork", "true"])
        .output();
    if !namespaces.is_ok_and(|made| made.status.success()) {
        skipped("cannot create a process namespace");
        return;
    }
    let server = Server::builder()
        .program(Image::script(folder.path(), &script).path())
        .args(["--workers=1", "--listen=127.0.0.1:0"])
        .start();
    let first = children(server.pid())[0];
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let orphan = until_some("an orphan", || {
        children(first).into_iter().find(|pid| name(*pid) == "sh\n")
    });
    let orphan = Watched::open(orphan).unwrap();
    fs::write(&gate, "go\n").unwrap();
    let place = PathBuf::from(format!("/proc/{}", orphan.pid()));
    until("the orphan is buried", || !place.exists());
    // Its own children are recognized: the worker, and the keeper that continues it.
    let [worker, keeper] = children(first)[..] else {
        panic!("a worker and its keeper");
    };
    Watched::open(worker).unwrap().signal(Signal::SIGKILL);
    server.wait_log(|line| line.contains("worker rescued"));
    assert!(children(first).contains(&keeper));
}

#[test]
fn error_names_file_size_limit() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("ulimit -f 0; exec '{PROGRAM}' \"$@\"");
    let (code, reported) = Server::builder()
        .program(Image::script(folder.path(), &script).path())
        .args(["--workers=1", "--listen=127.0.0.1:0"])
        .expect_failure();
    assert_eq!(code, 1, "{reported}");
    assert!(reported.contains("RLIMIT_FSIZE"), "{reported}");
}

#[test]
fn failed_start_keeps_exit_code_without_stderr() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    for args in [
        ["--listen=192.0.2.1:7777", "--workers=1"],
        ["--listen=127.0.0.1:0", "--admin=/nowhere/at/all"],
    ] {
        let status = Command::new(PROGRAM)
            .args(args)
            .arg("--control=off")
            .stderr(full.try_clone().unwrap())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}: {status}");
    }
}

#[test]
fn json_log_includes_fatal_error() {
    let args = [
        "--listen=127.0.0.1:0",
        "--admin=/nowhere/at/all",
        "--log-format=json",
    ];
    let (code, reported) = Server::expect_failure(&args);
    assert_eq!(code, 1, "{reported}");
    // Workers that end with the server may log after it.
    let mut lines = reported.lines();
    assert!(
        lines.any(|line| line.starts_with('{') && line.contains("/nowhere/at/all")),
        "{reported}"
    );
}

#[test]
fn many_dying_workers_are_all_replaced() {
    let server = Server::start(&[
        "--workers=4",
        "--listen=127.0.0.1:0",
        "--backoff-initial=1ms",
        "--backoff-max=1ms",
    ]);
    for round in 2..=4 {
        let mark = server.log_len();
        for slot in 0..4 {
            lose_worker(&server, slot);
        }
        for slot in 0..4 {
            wait_ready(&server, mark, slot, round);
        }
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
        for client in &mut clients {
            client.roundtrip(b"after the massacre");
        }
    }
    let pids = until_some("four workers", || {
        let pids = server.worker_pids();
        (pids.len() == 4).then_some(pids)
    });
    assert_eq!(server.stop().code(), Some(0));
    for pid in pids {
        assert!(Watched::open(pid).is_none_or(|w| w.wait_gone(DEADLINE)));
    }
}

/// The server does not inherit blocked or ignored signals from its launcher.
#[test]
fn server_resets_inherited_signal_state() {
    let server = Server::builder()
        .program("env")
        .args(["--block-signal", "--ignore-signal=CHLD"])
        .args([env!("CARGO_BIN_EXE_uppercased")])
        .args(["--workers=1", "--listen=127.0.0.1:0"])
        .start();
    let mark = server.log_len();
    lose_worker(&server, 0);
    server.wait_log_from(mark, |line| line.contains("SIGKILL"));
    wait_ready(&server, mark, 0, 2);
    assert_eq!(server.stop().code(), Some(0));
}

/// The removal is that of a cleaner of temporary directories.
#[test]
fn removed_control_socket_is_recreated() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0"]);
    fs::remove_file(server.control()).unwrap();
    let mark = server.log_len();
    server.signal(Signal::SIGUSR1);
    server.wait_log_from(mark, |line| line.contains("restored"));
    server.reload().expect_success();
}

/// A limit that is too small is reported by name before any process is started.
#[test]
fn error_names_limit_that_is_too_small() {
    for (limit, cause) in [
        ("ulimit -f 1024", "ulimit -f"),
        ("ulimit -v 262144", "ulimit -v"),
    ] {
        let script = format!("{limit}; exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_uppercased")])
            .args(["--listen=127.0.0.1:0", "--workers=4", "--control=off"])
            .args(["--max-connections=4096"])
            .output()
            .unwrap();
        let reported = String::from_utf8_lossy(&output.stderr);
        let last = reported.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{reported}");
        assert!(last.contains(cause), "{reported}");
    }
}

#[test]
fn boot_serves_without_failing_worker() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let program = folder.path().join("uppercased");
    let broken = Image::copy(folder.path()).with_faults("worker.starting.slot1=exit");
    broken.replace(&program);
    let server = Server::builder()
        .program(&program)
        .args(["--listen=127.0.0.1:0", "--workers=2", "--bake-time=0s"])
        .args(["--backoff-initial=10m", "--backoff-max=10m"])
        .start();
    server.wait_log(|line| line.contains("slot has no worker slot=1 "));
    server.wait_log(|line| line.contains("worker crash-looping"));
    for _ in 0..8 {
        Client::connect(server.addr()).roundtrip(b"by those that started");
    }
    let ready = server.command(&["status", "--ready"]).expect_success();
    let words = "ready, degraded: 1 of 2 workers missing; slot 1 is backing off, its queue unbound";
    assert_eq!(ready.stdout.trim(), words);
    // It failed before the reload, so the reload has not failed.
    server.reload().expect_success();
    server
        .command(&["scale", "3"])
        .expect_failure("slot 1 exited");
    Image::copy(folder.path()).replace(&program);
    server.reload().expect_success();
    let ready = server.command(&["status", "--ready"]).expect_success();
    assert_eq!(ready.stdout, "ready\n");
    server.scale(1).expect_success();
}

#[test]
fn boot_of_all_ends_with_failing_worker() {
    let (code, reported) = Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=2", "--boot=all"])
        .env("FAULT_POINTS", "worker.starting.slot1=exit")
        .expect_failure();
    assert_eq!(code, 1, "{reported}");
    assert!(
        reported.contains("the worker of slot 1 exited"),
        "{reported}"
    );
}

#[test]
fn stopped_worker_is_stalled_and_not_ready() {
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=2", "--hang-timeout=off"]);
    let ready = || server.command(&["status", "--ready"]);
    ready().expect_success();
    let victim = worker_of(&server, 1);
    freeze(&victim);
    server.wait_log(|line| line.contains("worker stalled slot=1 "));
    ready().expect_failure("slot 1 is stalled ");
    assert_eq!(server.status_json()["slots"][1]["state"], "stalled");
    victim.signal(Signal::SIGCONT);
    server.wait_log(|line| line.contains("worker running again slot=1 "));
    ready().expect_success();
}

/// A server that a test starts and stops itself.
struct Started(std::process::Child);

impl Started {
    fn on(address: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
            .args(["--listen", address, "--workers=1", "--control=off"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("start the server"))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    /// Waits until it serves or has exited; returns whether it serves.
    fn serves(&mut self) -> bool {
        let mut line = String::new();
        let output = self.0.stdout.take().expect("a pipe was asked for");
        let read = BufReader::new(output).read_line(&mut line);
        read.expect("the server writes text");
        line.starts_with("listening on")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // Fails only if it has exited.
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A wildcard and a specific address, started at the same moment, in either order.
#[test]
fn only_one_of_conflicting_instances_starts() {
    for round in 0..20 {
        let free = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut addresses = [format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}")];
        if round % 2 == 1 {
            addresses.reverse();
        }
        let mut started = addresses.map(|address| Started::on(&address));
        let serving = started.each_mut().map(Started::serves);
        assert_eq!(
            serving.iter().filter(|one| **one).count(),
            1,
            "round {round}"
        );
        for (one, serves) in started.iter_mut().zip(serving) {
            if !serves {
                until("the other one ends", || one.has_ended());
            }
        }
    }
}
