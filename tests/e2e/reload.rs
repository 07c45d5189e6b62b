//! Rolling restarts of real processes: new workers, migrated connections, rollback.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::SockRef;
use uppercased::sys::accept_queue::accept_queue;

use crate::support::image::Image;
use crate::support::load::{Load, LoadSize};
use crate::support::observe::{lose_worker, number, until};
use crate::support::planned::Planned;
use crate::support::service_manager::ServiceManager;
use crate::support::{Client, DEADLINE, children, pattern};

const QUICK: [&str; 3] = [
    "--listen=127.0.0.1:0",
    "--bake-time=0s",
    "--log-level=debug",
];

#[track_caller]
fn start(args: &[&str]) -> Planned {
    Planned::start(&[&QUICK, args].concat())
}

#[test]
fn reload_replaces_workers_and_keeps_connections() {
    let planned = start(&["--workers=3"]);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    let before = planned.workers();
    for _ in 0..3 {
        let answered = server.reload().expect_success();
        assert!(answered.stdout.contains("3 workers"), "{answered:?}");
        load.go_on_for(50);
    }
    let after = planned.workers();
    after.assert_replaced_since(&before);
    assert!(
        after.0.iter().all(|worker| worker.generation == 4),
        "{after:?}"
    );
    let report = load.finish();
    report.assert_clean();
    assert_eq!(server.stop().code(), Some(0));
    let log = server.whole_log();
    let total = log.iter().rfind(|line| line.contains("server stopped "));
    let total = total.expect("the totals are logged");
    assert!(number(total, "migrated") > 20, "{total}");
    assert_eq!(number(total, "lost_connections"), 0, "{total}");
    assert_eq!(number(total, "accepted"), report.connections, "{total}");
}

#[test]
fn sighup_triggers_reload() {
    let planned = start(&["--workers=2"]);
    let mut client = Client::connect(planned.server.addr());
    client.roundtrip(b"before");
    let before = planned.workers();
    let mark = planned.server.log_len();
    planned.server.signal(Signal::SIGHUP);
    planned
        .server
        .wait_log_from(mark, |line| line.contains("operation done"));
    planned.workers().assert_replaced_since(&before);
    client.roundtrip(b"after");
}

#[test]
fn connections_migrate_in_every_state() {
    const PENDING: u64 = 3 << 20;
    let planned = start(&["--workers=1"]);
    let server = &planned.server;
    let addr = server.addr();
    let mut idle = Client::connect(addr);
    idle.roundtrip(b"idle");
    // A client that has not read its reply.
    let mut unread = Client::connect(addr);
    unread.send_all(b"half of a");
    // A client that reads nothing and has sent as much as possible: pending output is at its limit.
    let full = Client::connect(addr);
    let sent = full.send_some(&pattern(0, PENDING as usize));
    // A client that has half-closed with output pending.
    let half_closed = Client::connect(addr);
    let half_sent = half_closed.send_some(&pattern(0, PENDING as usize));
    half_closed.half_close();
    for round in 0..4 {
        server.reload().expect_success();
        idle.roundtrip(format!("round {round}").as_bytes());
    }
    unread.send_all(b" message");
    unread.expect(b"HALF OF A MESSAGE");
    for (mut client, sent, ended) in [(full, sent, false), (half_closed, half_sent, true)] {
        client.expect(&pattern(0, sent).to_ascii_uppercase());
        if !ended {
            client.half_close();
        }
        client.expect_eof();
    }
}

#[test]
fn new_workers_apply_new_configuration() {
    // A flag overrides the file.
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--bake-time=0s", "--workers=2"]);
    let server = &planned.server;
    planned.configure("idle_timeout = \"200ms\"\nlinger_timeout = \"1s\"\n");
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"older than the configuration");
    server.reload().expect_success();
    // The connection has migrated, and the new limits apply to it.
    client.expect_eof();

    planned.configure("log_level = \"warn\"\n");
    server.reload().expect_success();
    let mark = server.log_len();
    planned.configure("");
    server.reload().expect_success();
    let lines = &server.log()[mark..];
    let quiet = !lines.iter().any(|line| line.contains("operation started"));
    assert!(quiet, "the supervisor's own log level: {lines:?}");
}

/// Options that a listener passes to its connections, and its backlog.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ListenerOptions {
    buffers: [usize; 2],
    keepalive: Option<Duration>,
    user_timeout: Option<Duration>,
    backlog: u32,
}

impl ListenerOptions {
    fn of(listener: &OwnedFd) -> Self {
        let socket = SockRef::from(listener);
        let kept_alive = socket.keepalive().expect("SO_KEEPALIVE");
        let after = socket.tcp_keepalive_time().expect("TCP_KEEPIDLE");
        let queue = accept_queue(listener.as_fd()).expect("TCP_INFO");
        Self {
            buffers: [
                socket.recv_buffer_size().expect("SO_RCVBUF"),
                socket.send_buffer_size().expect("SO_SNDBUF"),
            ],
            keepalive: kept_alive.then_some(after),
            user_timeout: socket.tcp_user_timeout().expect("TCP_USER_TIMEOUT"),
            backlog: queue.limit,
        }
    }

    /// Returns the options of every listener stored by the service manager.
    #[track_caller]
    fn of_all(manager: &ServiceManager, workers: usize) -> Vec<Self> {
        let names: Vec<String> = (0..workers).map(|slot| format!("slot-{slot}")).collect();
        manager.wait_stored(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let stored = manager.stored();
        // The lease of the workers is stored, too.
        let listeners = stored.iter().filter(|(name, _)| names.contains(name));
        listeners.map(|(_, listener)| Self::of(listener)).collect()
    }
}

#[test]
fn listener_options_change_only_at_commit() {
    const SECOND: Duration = Duration::from_secs(1);
    let manager = ServiceManager::start();
    let planned = Planned::start_with(
        &[
            "--listen=127.0.0.1:0",
            "--bake-time=0s",
            "--handshake-timeout=300ms",
        ],
        |builder| builder.env("NOTIFY_SOCKET", manager.notify_socket()),
    );
    let server = &planned.server;
    let options = |recv: usize, send: usize, keepalive, stall, backlog| ListenerOptions {
        // The kernel doubles the value for its own overhead.
        buffers: [2 * recv, 2 * send],
        keepalive: Some(keepalive * SECOND),
        user_timeout: Some(stall * SECOND),
        backlog,
    };
    let file = |workers: u16, options: &ListenerOptions| {
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs();
        let [recv, send] = options.buffers.map(|bytes| bytes / 2);
        let (keepalive, stall) = (seconds(options.keepalive), seconds(options.user_timeout));
        let backlog = options.backlog;
        planned.configure(&format!(
            "workers = {workers}\nrecv_buffer = {recv}\nsend_buffer = {send}\n\
             keepalive = \"{keepalive}s\"\nwrite_stall_timeout = \"{stall}s\"\n\
             backlog = {backlog}\n"
        ));
    };
    let (first, second) = (
        options(16_384, 20_480, 31, 61, 17),
        options(32_768, 40_960, 32, 62, 18),
    );
    file(2, &first);
    server.reload().expect_success();
    assert_eq!(
        ListenerOptions::of_all(&manager, 2),
        vec![first.clone(); 2],
        "those of a release that was committed"
    );

    // The first slot's new worker serves before the second slot's fails.
    file(2, &second);
    planned.install(Image::copy(planned.folder()).with_faults("worker.starting.slot1=exit"));
    let answered = server.reload();
    assert_eq!(answered.code, 1, "{answered:?}");
    assert!(
        server
            .log()
            .iter()
            .any(|line| line.contains("handover finished")),
        "the first slot was renewed"
    );
    assert_eq!(
        ListenerOptions::of_all(&manager, 2),
        vec![first; 2],
        "those of before a reload that failed"
    );

    // A new slot binds with the new options; existing listeners are updated.
    file(3, &second);
    planned.install_good();
    server.reload().expect_success();
    assert_eq!(ListenerOptions::of_all(&manager, 3), vec![second; 3]);
}

#[test]
fn reload_changes_number_of_workers() {
    let planned = Planned::start(&[
        "--listen=127.0.0.1:0",
        "--bake-time=0s",
        "--handshake-timeout=500ms",
    ]);
    let server = &planned.server;
    let load = Load::start(server.addr(), LoadSize::small());
    for workers in [4, 1, 2] {
        planned.configure(&format!("workers = {workers}\n"));
        server.reload().expect_success();
        assert_eq!(planned.workers().0.len(), workers);
        planned.workers().assert_serving();
        load.go_on_for(20);
    }
    // A number set by command applies until the configuration gives another.
    server.scale(3).expect_success();
    server.reload().expect_success();
    assert_eq!(planned.workers().0.len(), 3);
    load.finish().assert_clean();
}

#[test]
fn invalid_reload_is_refused_and_changes_nothing() {
    let planned = start(&["--workers=2"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let before = planned.workers();
    for (text, cause) in [
        ("share_port = true\n", "cannot change share_port"),
        ("recv_buffer = \"auto\"\n", "cannot change recv_buffer"),
        ("idle_timeout = \"soon\"\n", "is not a duration"),
        ("no_such_setting = 1\n", "unknown setting"),
        ("= nonsense", "not valid TOML"),
    ] {
        planned.configure(text);
        server.reload().expect_failure(cause);
        planned.workers().assert_untouched_since(&before);
    }
    planned.configure("");
    std::fs::remove_file(planned.program()).unwrap();
    server.reload().expect_failure("cannot open the binary");
    planned.workers().assert_untouched_since(&before);
    client.roundtrip(b"after");
    planned.install_good();
    server.reload().expect_success();
    client.roundtrip(b"and again");
}

#[test]
fn second_operation_is_refused_while_one_runs() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=2", "--bake-time=1h"]);
    let server = &planned.server;
    let mark = server.log_len();
    let first = server.start_command(&["reload"]);
    server.wait_log_from(mark, |line| line.contains("handover finished"));
    for command in [["reload", ""], ["upgrade", ""], ["scale", "3"]] {
        let command: Vec<_> = command
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        server.command(&command).expect_failure("in progress");
    }
    let status = server.status_json();
    assert!(
        status["operation"]
            .as_str()
            .is_some_and(|it| it.contains("reload")),
        "{status}"
    );
    // The waiting requester still gets progress after others were refused. The killed worker is not
    // the canary, so the reload continues.
    let mark = server.log_len();
    lose_worker(server, 1);
    server.wait_log_from(mark, |line| line.contains("worker ready"));
    // A stop comes first, whatever operation is in progress; the waiting requester gets the result.
    server.signal(Signal::SIGTERM);
    first
        .wait()
        .expect_failure("stop")
        .expect_failure("slot 1: worker exited unexpectedly");
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn drain_mode_keeps_connections_until_they_end() {
    let planned = start(&[
        "--workers=2",
        "--reload-connections=drain",
        "--drain-timeout=30s",
    ]);
    let server = &planned.server;
    // So many that every worker has some, whatever the hash.
    let mut clients: Vec<_> = (0..48).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"before");
    }
    server.reload().expect_success();
    planned.workers().assert_serving();
    assert_eq!(
        server.worker_pids().len(),
        4,
        "old ones serve on beside new ones"
    );
    for client in &mut clients {
        client.roundtrip(b"still with the old one");
    }
    server.reload().expect_failure("still draining");
    for mut client in clients {
        client.half_close();
        client.expect_eof();
    }
    until("the old workers have exited", || {
        server.worker_pids().len() == 2
    });
    server.reload().expect_success();
}

#[test]
fn drain_timeout_closes_connections_gracefully() {
    let planned = start(&[
        "--workers=1",
        "--reload-connections=drain",
        "--drain-timeout=300ms",
        "--linger-timeout=5s",
    ]);
    let mut client = Client::connect(planned.server.addr());
    client.roundtrip(b"before");
    planned.server.reload().expect_success();
    client.expect_eof();
    until("the old worker is gone", || {
        planned.server.worker_pids().len() == 1
    });
}

#[test]
fn failing_binary_leaves_old_workers_serving() {
    let planned = start(&["--workers=2"]);
    let server = &planned.server;
    let mut clients: Vec<_> = (0..6).map(|_| Client::connect(server.addr())).collect();
    let before = planned.workers();
    let copy = || Image::copy(planned.folder());
    let broken: [(Image, &str); 6] = [
        (copy().with_faults("worker.starting=exit"), "exit code 3"),
        (copy().with_faults("worker.starting=kill"), "SIGKILL"),
        (copy().with_faults("worker.ready=stop"), "not ready in time"),
        (copy().truncated(), ""),
        (copy().not_executable(), "cannot execute"),
        (Image::other_program(planned.folder()), "exit code 0"),
    ];
    for (image, cause) in broken {
        // Short if the timeout is under test, long otherwise.
        let is_late = cause == "not ready in time";
        planned.configure(if is_late {
            "start_timeout = \"1s\"\n"
        } else {
            ""
        });
        planned.install(image);
        server.reload().expect_failure(cause);
        planned.workers().assert_untouched_since(&before);
        for client in &mut clients {
            client.roundtrip(b"unharmed");
        }
    }
    planned.configure("");
    planned.install_good();
    server.reload().expect_success();
    planned.workers().assert_replaced_since(&before);
    for client in &mut clients {
        client.roundtrip(b"unharmed");
    }
}

#[test]
fn dead_canary_rolls_back_release() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=3", "--bake-time=1h"]);
    let server = &planned.server;
    let before = planned.workers();
    let mark = server.log_len();
    let command = server.start_command(&["reload"]);
    server.wait_log_from(mark, |line| line.contains("handover finished"));
    lose_worker(server, 0);
    command.wait().expect_failure("SIGKILL");
    until("slot 0 serves again", || {
        planned
            .workers()
            .0
            .iter()
            .all(|worker| worker.state == "serving")
    });
    let after = planned.workers();
    assert_eq!(after.0[1..], before.0[1..], "the others were never touched");
    assert_eq!(after.0[0].release, before.0[0].release, "{after:?}");
}

#[test]
fn late_failure_rolls_back_with_connections() {
    // The second slot's new worker cannot start: the canary, already replaced, rolls back live.
    let planned = start(&["--workers=2"]);
    let server = &planned.server;
    let mut clients: Vec<_> = (0..12).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"before");
    }
    let before = planned.workers();
    let image = Image::copy(planned.folder()).with_faults("worker.starting.slot1=exit");
    planned.install(image);
    let answered = server.reload().expect_failure("exit code 3");
    assert!(
        answered.stdout.contains("old release") || answered.stderr.contains("old release"),
        "{answered:?}"
    );
    let after = planned.workers();
    after.assert_serving();
    assert_eq!(after.0[1].pid, before.0[1].pid);
    assert!(after.0[0].generation > before.0[0].generation, "{after:?}");
    assert!(
        after
            .0
            .iter()
            .all(|worker| worker.release == before.0[0].release),
        "{after:?}"
    );
    for client in &mut clients {
        client.roundtrip(b"moved there and back");
    }
}

/// An unresponsive name server or file server blocks only the child that reads the configuration.
#[test]
fn hanging_resolution_never_stops_supervision() {
    let args = [&QUICK[..], &["--workers=2", "--start-timeout=2s"]].concat();
    let planned = Planned::start_with(&args, |builder| {
        builder.env("FAULT_POINTS", "preflight.starting=stop")
    });
    let server = &planned.server;
    let being_read = || {
        let status = server.status_json();
        let operation = status["operation"].as_str();
        operation.is_some_and(|text| text.contains("the configuration is being read"))
    };
    let before = planned.workers();
    let command = server.start_command(&["reload"]);
    until("the configuration is being read", being_read);
    let victim = u32::try_from(before.0[0].pid).unwrap();
    crate::support::Watched::open(victim)
        .unwrap()
        .signal(Signal::SIGKILL);
    until("the worker is replaced", || {
        let now = planned.workers();
        now.0[0].pid != before.0[0].pid && now.0[0].state == "serving"
    });
    assert!(being_read(), "the reload still waits");
    command
        .wait()
        .expect_failure("cannot read the configuration within 2s");
    planned.workers().assert_serving();
    until("the child is gone", || {
        let mut family = [server.worker_pids(), server.keeper_pids()].concat();
        family.sort_unstable();
        children(server.pid()) == family
    });

    let command = server.start_command(&["reload"]);
    until("the configuration is being read", being_read);
    assert_eq!(server.stop().code(), Some(0));
    command.wait().expect_failure("the server is stopping");
}
