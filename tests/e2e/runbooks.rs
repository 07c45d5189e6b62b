//! Executes the runbooks of `docs/runbooks.md`: the symptoms appear, the commands help, and the
//! quoted output is the program's.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::image::Image;
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{lose_worker, queued, state, until, worker_of};
use crate::support::planned::Planned;
use crate::support::{Client, Server, own_address};

const QUICK: [&str; 3] = ["--listen=127.0.0.1:0", "--workers=2", "--bake-time=0s"];

/// One runbook of the page.
struct Runbook(String);

impl Runbook {
    #[track_caller]
    fn open(title: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbooks.md");
        let page = fs::read_to_string(path).expect("the page is there");
        let (_, text) = page
            .split_once(&format!("\n## {title}\n"))
            .unwrap_or_else(|| panic!("no runbook {title}"));
        let text = text.split("\n## ").next().unwrap_or(text).to_owned();
        for step in ["**When**", "**Do**", "**Check**", "**Why**"] {
            assert_eq!(text.matches(step).count(), 1, "{step} of {title}");
        }
        Self(text)
    }

    /// Asserts that the runbook contains `words` and that the program has just printed them.
    #[track_caller]
    fn quotes(&self, words: &str, error: &str) {
        assert!(error.contains(words), "not said: {words}\n{error}");
        assert!(self.0.contains(words), "not in the runbook: {words}");
    }
}

/// Returns the output of `uppercased status`.
fn screen(server: &Server) -> String {
    server.command(&["status"]).expect_success().stdout
}

fn version(planned: &Planned) -> String {
    let status = planned.server.status_json();
    status["version"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn operator_replaces_supervisor() {
    let runbook = Runbook::open("Replace a supervisor that died");
    let start = |listen: &str| {
        let args = [
            listen,
            "--workers=1",
            "--bake-time=0s",
            "--orphan-timeout=30s",
        ];
        Server::builder().args(args)
    };
    let first = start("--listen=127.0.0.1:0").start();
    let mut client = Client::connect(first.addr());
    client.roundtrip(b"before");
    first.kill();
    let lost = first.wait_log(|line| line.contains("event=supervisor_lost"));
    runbook.quotes(
        r#"supervisor gone error="the peer has closed the channel" connections=1 timeout_ms=30000"#,
        &lost,
    );
    let listen = format!("--listen={}", first.addr());
    let second = start(&listen).control_of(&first).start();
    let adopted = second.wait_log(|line| line.contains("event=orphan_adopted"));
    runbook.quotes(
        "INFO worker adopted slot=0 generation=1 worker_pid=",
        &adopted,
    );
    let done = second.wait_log(|line| line.contains("event=operation_done"));
    runbook.quotes(
        "operation done operation=reload replaced=1 workers=1 migrated=1 draining=0",
        &done,
    );
    client.roundtrip(b"after");
}

#[test]
fn operator_rolls_out() {
    let runbook = Runbook::open("Roll out a release");
    let planned = Planned::start(&QUICK);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");

    planned.configure("idle_timeout = \"5m\"\n");
    let answered = server.reload().expect_success();
    runbook.quotes("reloaded 2 workers in ", &answered.stdout);
    runbook.quotes("1 connection migrated, 0 draining", &answered.stdout);
    runbook.quotes(": new worker ready (", &answered.stderr);
    client.roundtrip(b"with the new configuration");

    planned.install(Image::copy(planned.folder()).with_faults("version=0.2.0"));
    let answered = server.upgrade().expect_success();
    runbook.quotes("upgraded 2 workers in ", &answered.stdout);
    client.roundtrip(b"with the new program");
    runbook.quotes("uppercased 0.2.0, pid ", &screen(server));

    let before = planned.workers();
    planned.configure("workers = 2\nidle_timeout = \"5\"\n");
    let answered = server.reload();
    assert_eq!(answered.code, 1, "{answered:?}");
    runbook.quotes("refused: ", &answered.stdout);
    let why = "uppercased.toml:2: idle_timeout: \"5\" is not a duration: it has no unit";
    runbook.quotes(why, &answered.stdout);
    assert_eq!(planned.workers(), before);
    client.roundtrip(b"nothing has changed");
}

#[test]
fn operator_rolls_back() {
    let runbook = Runbook::open("Roll back a release");
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=2", "--bake-time=1s"]);
    let server = &planned.server;
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let (pid, good) = (server.pid(), version(&planned));

    let dies = "version=0.2.0;worker.standing_by=kill";
    planned.install(Image::copy(planned.folder()).with_faults(dies));
    let answered = server.upgrade();
    assert_eq!(answered.code, 1, "{answered:?}");
    for words in [
        "failed: the new worker of slot 0 died and was rescued: signal 9 (SIGKILL)",
        "every worker runs the old release; the supervisor runs the new binary",
    ] {
        runbook.quotes(words, &answered.stdout);
    }
    assert_eq!(version(&planned), "0.2.0");
    client.roundtrip(b"by an old worker");

    planned.install_good();
    let answered = server.upgrade().expect_success();
    runbook.quotes("upgraded 2 workers in ", &answered.stdout);
    assert_eq!(version(&planned), good);
    assert_eq!(server.status_json()["pid"], u64::from(pid));
    client.roundtrip(b"by the old version");
}

#[test]
fn worker_dies_and_is_rescued() {
    let runbook = Runbook::open("Find out why workers die");
    let server = Server::builder().args(QUICK).start();
    let worker = worker_of(&server, 0);
    let mut clients = Vec::new();
    // The kernel distributes them.
    until("the worker has a client", || {
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"before");
        clients.push(client);
        server.status_json()["slots"][0]["open"] == 1
    });
    worker.signal(Signal::SIGKILL);
    let rescued = server.wait_log(|line| line.contains("event=worker_rescued"));
    let words = "WARN worker rescued slot=0 generation=1 worker_pid=";
    runbook.quotes(words, &rescued);
    let words = "signal=SIGKILL connections=1 owed_bytes=0 reset=0 duration_ms=";
    runbook.quotes(words, &rescued);
    for client in &mut clients {
        client.roundtrip(b"and after");
    }
    let shown = screen(&server);
    for words in [
        "keepers      ",
        "rescues      1 of 1 connection, 0B owed; ",
        "slot 0: generation 1 exited ",
        "signal 9 (SIGKILL)",
    ] {
        runbook.quotes(words, &shown);
    }
    server.reload().expect_success();
    assert_eq!(server.status_json()["totals"]["crashes"], 1);
}

#[test]
fn worker_keeps_dying() {
    let runbook = Runbook::open("Fix a crash-looping worker");
    let server = Server::builder()
        .args(QUICK)
        // Longer than any wait below, so that only the commands end the pause.
        .args(["--backoff-initial=10m", "--backoff-max=10m"])
        .start();
    for generation in 1..=2 {
        let start = server.log_len();
        lose_worker(&server, 0);
        let died = server.wait_log_from(start, |line| line.contains("worker exited unexpectedly"));
        runbook.quotes("ERROR worker exited unexpectedly slot=0 generation=", &died);
        assert!(
            died.contains(&format!("generation={generation} ")),
            "{died}"
        );
        if generation == 1 {
            server.wait_log_from(start, |line| line.contains("worker ready"));
        }
    }
    let failing = server.wait_log(|line| line.contains("worker crash-looping"));
    let words = "WARN worker crash-looping, restart delayed slot=0 delay_ms=";
    runbook.quotes(words, &failing);
    let lent = server.wait_log(|line| line.contains("queue lent to"));
    runbook.quotes("WARN queue lent to sibling slot=0 to_slot=1", &lent);
    let shown = screen(&server);
    for words in [
        "backing off",
        "slot 0: its queue is lent to slot 1",
        "signal 9 (SIGKILL)",
    ] {
        runbook.quotes(words, &shown);
    }
    // Clients are served wherever the kernel queues them.
    for _ in 0..8 {
        Client::connect(server.addr()).roundtrip(b"by the sibling");
    }

    let answered = server.reload().expect_success();
    runbook.quotes("reloaded 2 workers in ", &answered.stdout);
    let recalled = server.wait_log(|line| line.contains("queue recalled"));
    runbook.quotes("INFO queue recalled slot=0 from_slot=1", &recalled);
    assert_eq!(server.status_json()["totals"]["crashes"], 2);
}

#[test]
fn only_worker_keeps_dying() {
    let runbook = Runbook::open("Fix a crash-looping worker");
    let server = Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=1", "--bake-time=0s"])
        // Longer than any wait below, so that only the commands end the pause.
        .args(["--backoff-initial=10m", "--backoff-max=10m"])
        .start();
    for _ in 1..=2 {
        let start = server.log_len();
        lose_worker(&server, 0);
        server.wait_log_from(start, |line| {
            line.contains("worker ready") || line.contains("worker crash-looping")
        });
    }
    runbook.quotes("its queue is unserved", &screen(&server));
    let mut waiting = Client::connect(server.addr());
    waiting.send_all(b"waiting");
    server.command(&["scale", "2"]).expect_success();
    waiting.expect(b"WAITING");
    server.reload().expect_success();
    let status = server.status_json();
    let slots = status["slots"].as_array().expect("a list of slots");
    assert!(
        slots.iter().all(|slot| slot["state"] == "serving"),
        "{status}"
    );
}

#[test]
fn queue_overflows() {
    isolated(|| {
        let runbook = Runbook::open("Relieve a full accept queue");
        let somaxconn = "/proc/sys/net/core/somaxconn";
        fs::write(somaxconn, "3").expect("the namespace is ours");
        let server = Server::builder()
            .args(QUICK)
            .args(["--hang-timeout=off", "--steer=random"])
            .start();
        let (port, worker) = (server.addr().port(), worker_of(&server, 0));
        worker.signal(Signal::SIGSTOP);
        until("it stands still", || state(worker.pid()) == Some('T'));

        let overflows = || KernelCounters::read().count("ListenOverflows");
        let before = overflows();
        let mut waiting = Vec::new();
        // One more than the limit, as the page says. Dropped clients are not notified: their
        // kernels retry. (On a busy machine the other queue may overflow, too.)
        until("its queue overflows", || {
            waiting.push(connecting(&server));
            overflows() > before && queued(worker.pid(), port) == 4
        });
        assert!(runbook.0.contains("TcpExtListenOverflows"));
        worker.signal(Signal::SIGCONT);
        until("it is emptied", || queued(worker.pid(), port) == 0);

        fs::write(somaxconn, "4096").expect("the namespace is ours");
        let answered = server.reload().expect_success();
        runbook.quotes("reloaded 2 workers in ", &answered.stdout);
        let answered = server.command(&["scale", "4"]).expect_success();
        runbook.quotes("scaled to 4 workers in ", &answered.stdout);
        let status = server.status_json();
        let slots = status["slots"].as_array().expect("a list of slots");
        assert_eq!(slots.len(), 4);
        for slot in slots {
            assert_eq!(slot["accept_queues"][0]["limit"], 4096, "{slot}");
        }
        drop(waiting);
    });
}

/// Returns a socket with a connect in progress, without waiting for it.
fn connecting(server: &Server) -> socket2::Socket {
    let family = socket2::Domain::for_address(server.addr());
    let socket = socket2::Socket::new(family, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.set_nonblocking(true).expect("any socket can be");
    // The connect is in progress, whatever this returns.
    let _ = socket.connect(&server.addr().into());
    socket
}

#[test]
fn connection_limit_is_reached() {
    let runbook = Runbook::open("Raise the connection limit");
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--bake-time=0s", "--workers=1"]);
    let server = &planned.server;
    planned.configure("max_connections = 3\n");
    server.reload().expect_success();
    let mut served: Vec<Client> = (0..3).map(|_| Client::connect(server.addr())).collect();
    for client in &mut served {
        client.roundtrip(b"in");
    }
    let paused = server.wait_log(|line| line.contains("accept paused"));
    runbook.quotes(
        "WARN accept paused reason=connection_limit connections=3",
        &paused,
    );
    let mut waiting = Client::connect(server.addr());
    waiting.send_all(b"waiting");

    planned.configure("max_connections = 5000000\n");
    let answered = server.reload();
    // If the machine permits that many, the kernel reports another error or none.
    if answered.code != 0 {
        runbook.quotes(
            "refused: max_connections 5000000 requires a descriptor limit of",
            &answered.stdout,
        );
    }
    planned.configure("max_connections = 100\n");
    let answered = server.reload().expect_success();
    runbook.quotes("reloaded 1 worker in ", &answered.stdout);
    waiting.expect(b"WAITING");
    for client in &mut served {
        client.roundtrip(b"still in");
    }
    runbook.quotes("connections  ", &screen(server));
}

#[test]
fn port_is_taken() {
    let runbook = Runbook::open("Free a port that is in use");
    // A private address, so that no other test gets the port between a stop and the next start.
    let own = format!("--listen={}:0", own_address());
    let server = Server::start(&[&own, "--workers=2", "--bake-time=0s"]);
    let listen = format!("--listen={}", server.addr());
    let (code, error) = Server::expect_failure(&["--workers=2", &listen]);
    assert_eq!(code, 1, "{error}");
    for words in [
        "uppercased: cannot listen on ",
        "(uppercased) listens on ",
        "stop it, choose another address with --listen, or share the port with --share-port",
    ] {
        runbook.quotes(words, &error);
    }
    assert!(error.contains(&format!("pid {} ", server.pid())), "{error}");
    // The running server is unaffected.
    Client::connect(server.addr()).roundtrip(b"served");

    let answered = server.command(&["stop"]).expect_success();
    runbook.quotes("stopping\n", &answered.stderr);
    runbook.quotes("stopped\n", &answered.stdout);
    let again = Server::start(&["--workers=2", &listen]);
    Client::connect(again.addr()).roundtrip(b"served again");
}

/// Returns a server with one worker and this configuration.
fn one_worker(configuration: &str) -> Planned {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=1", "--bake-time=0s"]);
    planned.configure(configuration);
    planned.server.reload().expect_success();
    planned
}

/// Asserts that a new client is reset, perhaps before its connect has returned.
#[track_caller]
fn expect_refusal(server: &Server) {
    if let Ok(mut client) = Client::try_connect(server.addr()) {
        client.expect_reset();
    }
}

#[test]
fn clients_are_reset() {
    let runbook = Runbook::open("Find out why clients are reset");
    let planned = one_worker("max_connections_per_source = 1\n");
    let server = &planned.server;
    let mut served = Client::connect(server.addr());
    served.roundtrip(b"in");
    expect_refusal(server);
    let refused = server.wait_log(|line| line.contains("event=connection_refused"));
    runbook.quotes("WARN connection refused peer=127.0.0.1:", &refused);
    runbook.quotes("reason=per_source_limit refused=1", &refused);
    assert!(screen(server).contains("\nrefused      1 per_source_limit\n"));
    assert!(runbook.0.contains("\nrefused      2 per_source_limit\n"));
    planned.configure("max_connections_per_source = 2\n");
    server.reload().expect_success();
    Client::connect(server.addr()).roundtrip(b"in, too");
    served.roundtrip(b"still in");
}

#[test]
fn one_worker_is_slow() {
    let runbook = Runbook::open("Find out why one worker is slow");
    let server = Server::builder()
        .args(QUICK)
        .args(["--hang-timeout=off"])
        .start();
    let worker = worker_of(&server, 0);
    worker.signal(Signal::SIGSTOP);
    let stalled = server.wait_log(|line| line.contains("event=worker_stalled"));
    runbook.quotes(
        "WARN worker stalled slot=0 generation=1 worker_pid=",
        &stalled,
    );
    let asked = server.command(&["status", "--ready"]);
    assert_eq!(asked.code, 1, "{asked:?}");
    runbook.quotes("not ready: slot 0 is stalled ", &asked.stdout);
    runbook.quotes("     1 stalled ", &screen(&server));
    worker.signal(Signal::SIGCONT);
    let again = server.wait_log(|line| line.contains("event=worker_recovered"));
    runbook.quotes("INFO worker running again", &again);
    until("it is ready", || {
        server.command(&["status", "--ready"]).code == 0
    });
}

#[test]
fn latency_is_high() {
    let runbook = Runbook::open("Find out why latency is high");
    let server = Server::builder().args(QUICK).start();
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let shown = screen(&server);
    runbook.quotes("\nrates ", &shown);
    runbook.quotes(" msg/s; ", &shown);
    runbook.quotes("\nqueues       0 pending, limit ", &shown);
    let scaled = server.command(&["scale", "+1"]).expect_success();
    runbook.quotes("slot 2: worker ready (", &scaled.stderr);
    runbook.quotes("scaled to 3 workers in ", &scaled.stdout);
    runbook.quotes("0 connections migrated, 0 draining", &scaled.stdout);
    client.roundtrip(b"after");
}

#[test]
fn memory_grows_for_clients_that_do_not_read() {
    let runbook = Runbook::open("Find out why memory grows");
    let planned = one_worker("");
    let server = &planned.server;
    let stalled = Client::connect(server.addr());
    let totals = || server.status_json()["totals"].clone();
    until("output is buffered", || {
        while stalled.send_some(&[b'x'; 16_384]) > 0 {}
        totals()["counters"]["backpressure"].as_u64() > Some(0)
    });
    runbook.quotes("\nconnections  ", &screen(server));
    runbook.quotes("\ntraffic      ", &screen(server));
    planned.configure("write_stall_timeout = \"1s\"\n");
    let answered = server.reload().expect_success();
    runbook.quotes("reloaded 1 worker in ", &answered.stdout);
    until("the client is closed", || {
        totals()["closed"]["write_stall"] == 1
    });
    runbook.quotes("write_stall", &screen(server));
}

#[test]
fn server_is_not_ready() {
    let runbook = Runbook::open("Find out why the server is not ready");
    let server = Server::builder().args(QUICK).start();
    server.command(&["rotation", "drain"]).expect_success();
    let asked = server.command(&["status", "--ready"]);
    assert_eq!(asked.code, 1, "{asked:?}");
    runbook.quotes(
        "not ready: the server is out of rotation (drain)",
        &asked.stdout,
    );
    let answered = server.command(&["rotation", "in"]).expect_success();
    runbook.quotes("rotation: in", &answered.stdout);
    let asked = server.command(&["status", "--ready"]).expect_success();
    runbook.quotes("ready", &asked.stdout);
}

#[test]
fn reload_does_not_end() {
    let runbook = Runbook::open("Find out why a reload does not end");
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=1", "--bake-time=10m"]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let reload = server.start_command(&["reload"]);
    let words = "operation    reload in progress: the first new worker is being watched";
    until("the first worker is watched", || {
        screen(&server).contains(words)
    });
    runbook.quotes(words, &screen(&server));
    let refused = server.reload();
    assert_eq!(refused.code, 1, "{refused:?}");
    let words = "refused: reload in progress: the first new worker is being watched; try again when it \
                 is done";
    runbook.quotes(words, &refused.stdout);
    let cancelled = server.command(&["cancel"]).expect_success();
    runbook.quotes("cancelled in ", &cancelled.stdout);
    runbook.quotes("1 worker serving", &cancelled.stdout);
    let failed = reload.wait();
    assert_eq!(failed.code, 1, "{failed:?}");
    runbook.quotes(
        "failed: cancelled by `uppercased cancel` (process ",
        &failed.stdout,
    );
    runbook.quotes("every worker runs the old release", &failed.stdout);
    client.roundtrip(b"after");
}

#[test]
fn noisy_source_is_denied() {
    let runbook = Runbook::open("Find the noisy source");
    let planned = one_worker("");
    let server = &planned.server;
    let mut noisy = Client::connect(server.addr());
    noisy.roundtrip(b"hello");
    planned.configure("deny = \"127.0.0.0/8\"\n");
    let answered = server.reload().expect_success();
    runbook.quotes("reloaded 1 worker in ", &answered.stdout);
    runbook.quotes("1 connection migrated, 0 draining", &answered.stdout);
    expect_refusal(server);
    let refused = server.wait_log(|line| line.contains("event=connection_refused"));
    runbook.quotes("reason=denied refused=1", &refused);
    noisy.roundtrip(b"established connections stay");
}
