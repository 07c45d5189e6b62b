//! Stopping: pending replies are sent, queued clients are answered, stuck connections are closed,
//! and no process remains, whichever is killed first.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use socket2::SockRef;

use crate::support::bare::Bare;
use crate::support::observe::{
    OWED_BYTES, become_owed, freeze, lose_worker, number, owner, queued, state, until,
    wait_draining, wait_ready, worker_of,
};
use crate::support::{Client, DEADLINE, Lines, Server, Watched, children, pattern, upper};

/// Longer than any drain may last: a test that reaches it has failed.
const NEVER: &str = "--drain-timeout=1h";

/// A slot that fails twice stays without a worker, and its queue is not served.
const PATIENT: [&str; 3] = [
    "--backoff-initial=1h",
    "--backoff-max=1h",
    "--lend-after=1m",
];

/// Starts a server with bounded send buffers, so that output soon becomes pending.
fn start(args: &[&str]) -> Server {
    let common = [
        "--listen=127.0.0.1:0",
        "--send-buffer=64KiB",
        "--hang-timeout=off",
    ];
    Server::builder().args(common).args(args).start()
}

/// Connects a client with replies pending.
fn owing(server: &Server) -> Client {
    let mut client = Client::connect(server.addr());
    become_owed(server, &mut client);
    client
}

/// Reads all pending replies in small pieces, then the end of the stream.
fn collect(mut client: Client) {
    // A small buffer would make this slow: the kernel rarely announces small windows.
    SockRef::from(client.socket())
        .set_recv_buffer_size(1 << 20)
        .expect("set SO_RCVBUF");
    for at in (0..OWED_BYTES).step_by(5000) {
        client.expect(&upper(&pattern(at as u64, 5000)));
    }
    client.expect_eof();
}

/// Kills the worker of `slot` and its successor; a [`PATIENT`] server does not restart it then.
fn leave_without_worker(server: &Server, slot: u16) {
    let mark = server.log_len();
    lose_worker(server, slot);
    wait_ready(server, mark, slot, 2);
    lose_worker(server, slot);
    server.wait_log_from(mark, |line| line.contains("worker crash-looping"));
}

fn assert_stopped(server: &Server, workers: &[Watched]) {
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    for worker in workers {
        assert!(worker.wait_gone(DEADLINE), "worker {}", worker.pid());
    }
}

fn watch_all(server: &Server) -> Vec<Watched> {
    let pids = server.worker_pids();
    pids.into_iter().filter_map(Watched::open).collect()
}

/// Asserts that `signal` stops the server gracefully.
fn stops_gracefully(signal: Signal) {
    let server = start(&["--workers=2", NEVER]);
    let workers = watch_all(&server);
    let owed = owing(&server);
    let mut idle: Vec<_> = (0..8).map(|_| Client::connect(server.addr())).collect();
    for client in &mut idle {
        client.roundtrip(b"then nothing");
    }
    server.signal(signal);
    server.wait_log(|line| line.contains(" stopping ") && line.contains(signal.as_str()));
    for mut client in idle {
        client.expect_eof();
    }
    wait_draining(&server, 2);
    assert!(server.is_running(), "it waits for the one that it owes");
    collect(owed);
    assert_stopped(&server, &workers);
    let log = server.whole_log();
    let total = log.iter().rfind(|line| line.contains("server stopped "));
    let total = total.expect("the totals are logged");
    assert_eq!(number(total, "abandoned_bytes"), 0, "{total}");
    assert_eq!(number(total, "lost_connections"), 0, "{total}");
    assert_eq!(number(total, "accepted"), 9, "{total}");
}

#[test]
fn sigterm_sends_pending_replies() {
    stops_gracefully(Signal::SIGTERM);
}

#[test]
fn sigint_sends_pending_replies() {
    stops_gracefully(Signal::SIGINT);
}

#[test]
fn sigquit_sends_pending_replies() {
    stops_gracefully(Signal::SIGQUIT);
}

#[test]
fn idle_server_stops_immediately() {
    let server = start(&["--workers=2", NEVER]);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn linger_timeout_bounds_wait_for_staying_client() {
    let server = start(&["--workers=1", "--linger-timeout=100ms", NEVER]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"hello");
    assert_eq!(server.stop().code(), Some(0));
    client.expect_eof();
}

#[test]
fn stop_answers_queued_clients() {
    let server = start(&["--workers=2", NEVER]);
    let workers = watch_all(&server);
    for worker in &workers {
        freeze(worker);
    }
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send_all(format!("client {index} was early").as_bytes());
    }
    let port = server.addr().port();
    until("all of them wait", || {
        let waiting = workers.iter().map(|worker| queued(worker.pid(), port));
        waiting.sum::<usize>() == clients.len()
    });
    server.signal(Signal::SIGTERM);
    server.wait_log(|line| line.contains(" stopping "));
    for worker in &workers {
        worker.signal(Signal::SIGCONT);
    }
    for (index, mut client) in clients.into_iter().enumerate() {
        client.expect(format!("CLIENT {index} WAS EARLY").as_bytes());
        client.expect_eof();
    }
    assert_stopped(&server, &workers);
}

/// A sibling empties the queue of a slot without a worker before it stops.
#[test]
fn stop_answers_queued_clients_of_dead_worker() {
    let server = start(&["--workers=2", NEVER, PATIENT[0], PATIENT[1], PATIENT[2]]);
    leave_without_worker(&server, 0);
    // The probability that the other worker gets all of them is 10^-12.
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.send_all(b"some of us wait for nobody");
    }
    until("some clients have closed", || {
        queued(server.pid(), server.addr().port()) > 0
    });
    let workers = watch_all(&server);
    server.signal(Signal::SIGTERM);
    for mut client in clients {
        client.expect(b"SOME OF US WAIT FOR NOBODY");
        client.expect_eof();
    }
    assert_stopped(&server, &workers);
}

/// No client stays in the queue of a stopping server.
#[test]
fn stop_refuses_new_clients() {
    let server = start(&["--workers=2", NEVER, PATIENT[0], PATIENT[1], PATIENT[2]]);
    // One worker will be busy stopping for a while.
    let busy = [worker_of(&server, 1)];
    let mut owed = loop {
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"hello server");
        if owner(&client, server.addr(), &busy).is_some() {
            break client;
        }
    };
    become_owed(&server, &mut owed);
    // The other slot has a listener but no worker.
    leave_without_worker(&server, 0);
    server.signal(Signal::SIGTERM);
    wait_draining(&server, 1);
    for _ in 0..40 {
        let refused = Client::try_connect(server.addr()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert!(server.is_running());
    collect(owed);
    assert_stopped(&server, &busy);
}

#[test]
fn lame_duck_serves_new_clients_then_stops() {
    let server = start(&["--workers=2", "--lame-duck=4s", NEVER]);
    let workers = watch_all(&server);
    let mut early = Client::connect(server.addr());
    early.roundtrip(b"before");
    server.signal(Signal::SIGTERM);
    server.wait_log(|line| line.contains(" stopping "));
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"still welcome");
    }
    early.roundtrip(b"meanwhile");
    for mut client in clients.into_iter().chain([early]) {
        client.expect_eof();
    }
    assert_stopped(&server, &workers);
}

#[test]
fn second_signal_ends_lame_duck() {
    let server = start(&["--workers=2", "--lame-duck=1h", NEVER]);
    let workers = watch_all(&server);
    server.signal(Signal::SIGTERM);
    server.wait_log(|line| line.contains(" stopping "));
    Client::connect(server.addr()).roundtrip(b"still welcome");
    server.signal(Signal::SIGTERM);
    assert_stopped(&server, &workers);
}

#[test]
fn drain_timeout_cuts_non_reading_client() {
    let server = start(&["--workers=2", "--drain-timeout=300ms"]);
    let workers = watch_all(&server);
    let mut owed = owing(&server);
    server.signal(Signal::SIGTERM);
    assert_stopped(&server, &workers);
    let log = server.whole_log();
    let find = |text| log.iter().rfind(|line| line.contains(text)).unwrap();
    let cut = find("drain timed out");
    assert_eq!(number(cut, "connections"), 1, "{cut}");
    assert!(number(find("server stopped "), "abandoned_bytes") > 0);
    // A graceful end would be wrong: the client has not received everything.
    owed.expect_reset();
}

#[test]
fn second_signal_stops_immediately() {
    let server = start(&["--workers=2", NEVER]);
    let workers = watch_all(&server);
    let _owed = owing(&server);
    server.signal(Signal::SIGTERM);
    wait_draining(&server, 2);
    server.signal(Signal::SIGINT);
    assert_stopped(&server, &workers);
    server.wait_log(|line| line.contains("server stop forced") && line.contains("SIGINT"));
}

#[test]
fn stop_completes_despite_suspended_worker() {
    let server = start(&["--workers=2", "--drain-timeout=100ms"]);
    let workers = watch_all(&server);
    freeze(&workers[1]);
    server.signal(Signal::SIGTERM);
    assert_stopped(&server, &workers);
    server.wait_log(|line| line.contains("worker stop timed out"));
}

#[test]
fn stop_during_start_leaves_nothing() {
    let mut starting = Bare::start(&[
        "--workers=100",
        "--listen=127.0.0.1:0",
        "--log-level=debug",
        NEVER,
    ]);
    let log = Lines::follow(starting.take_stderr());
    let first = log.find_from(0, DEADLINE, |line| line.contains("worker starting slot=0"));
    assert!(first.is_some(), "{}", log.text());
    // Paused, so that the signal arrives before many workers are started.
    freeze(starting.process());
    starting.process().signal(Signal::SIGTERM);
    let workers = children(starting.process().pid());
    assert!(workers.len() < 100, "stopped too late to tell anything");
    starting.process().signal(Signal::SIGCONT);
    assert_eq!(starting.wait_exit(DEADLINE).code(), Some(0));
    assert!(log.wait_end(DEADLINE), "a process still holds the log");
    assert!(!log.text().contains(" ready address="), "{}", log.text());
    assert_eq!(starting.stdout().all(), Vec::<String>::new());
}

#[test]
fn orphaned_workers_send_pending_replies_and_exit() {
    let server = start(&["--workers=2", NEVER]);
    let workers = watch_all(&server);
    let owed = owing(&server);
    let mut idle: Vec<_> = (0..8).map(|_| Client::connect(server.addr())).collect();
    for client in &mut idle {
        client.roundtrip(b"then nothing");
    }
    server.kill();
    for mut client in idle {
        client.expect_eof();
    }
    wait_draining(&server, 2);
    let refused = Client::try_connect(server.addr()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    collect(owed);
    for worker in &workers {
        assert!(worker.wait_gone(DEADLINE), "an orphan stays");
    }
    server.whole_log();
}

#[test]
fn orphaned_workers_exit_after_timeout() {
    let server = start(&["--workers=2", "--drain-timeout=300ms"]);
    let workers = watch_all(&server);
    let mut owed = owing(&server);
    server.kill();
    for worker in &workers {
        assert!(worker.wait_gone(DEADLINE), "an orphan stays");
    }
    owed.expect_reset();
}

#[test]
fn orphaned_workers_answer_queued_clients() {
    let server = start(&["--workers=1", NEVER]);
    let worker = worker_of(&server, 0);
    freeze(&worker);
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.send_all(b"in time");
    }
    server.kill();
    worker.signal(Signal::SIGCONT);
    for mut client in clients {
        client.expect(b"IN TIME");
        client.expect_eof();
    }
    assert!(worker.wait_gone(DEADLINE));
}

/// A client that sees the end of its connection may start a server at the same address.
#[test]
fn connection_ends_after_addresses_are_free() {
    let server = Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=2"])
        .env("FAULT_POINTS", "supervisor.ended=stop")
        .start();
    let mut stream = UnixStream::connect(server.control()).expect("connect to the server");
    stream
        .write_all(b"{\"version\":1,\"command\":\"stop\"}\n")
        .expect("send the request");
    until("the supervisor has ended, but not exited", || {
        state(server.pid()) == Some('T')
    });
    stream.set_nonblocking(true).expect("do not wait");
    let mut progress = Vec::new();
    let early = stream.read_to_end(&mut progress);
    let early = early.map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "it has not ended");
    assert!(!progress.is_empty(), "the server reported that it stops");

    let supervisor = Watched::open(server.pid()).expect("it is stopped");
    supervisor.signal(Signal::SIGCONT);
    stream.set_nonblocking(false).expect("wait");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("wait for a time");
    assert_eq!(stream.read_to_end(&mut progress).ok(), Some(0));
    let listen = format!("--listen={}", server.addr());
    let again = Server::start(&[&listen, "--workers=2"]);
    Client::connect(again.addr()).roundtrip(b"served");
}
