//! Deadlines of connections: none fires before the worker has polled the socket, long ones cost an
//! idle worker almost nothing, and output in the kernel has one, too.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use procfs::net::TcpState;
use socket2::{Domain, Socket, Type};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::metrics::{CloseReason, Counter, PauseCause, RefusalCause};
use uppercased_ctl::proxy_header::{Version, encode};

use crate::support::adversity::Frozen;
use crate::support::observe::{count_sockets, number, unacknowledged, until, worker_of};
use crate::support::usage::Counters;
use crate::support::{Client, DEADLINE, Deadline, Server, assert_same, pattern, upper};

const IDLE: Duration = Duration::from_millis(400);

/// Starts one worker, so that stopping it affects all clients.
fn server(args: &[&str]) -> Server {
    Server::builder()
        .args(["--listen", "127.0.0.1:0", "--workers", "1"])
        .args(args)
        .start()
}

/// Uses more clients than one poll reports.
#[test]
fn stopped_worker_answers_requests_sent_in_time() {
    let server = server(&["--idle-timeout", "400ms", "--hang-timeout", "off"]);
    let counters = Counters::of(&server);
    let frozen = Frozen::workers(&server);
    let mut clients: Vec<_> = (0..1200).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.send_all(b"first");
    }
    drop(frozen);
    for client in &mut clients {
        client.expect(b"FIRST");
    }
    for _ in 0..2 {
        let frozen = Frozen::workers(&server);
        for client in &mut clients {
            client.send_all(b"in time");
        }
        clients[0].expect_silence(IDLE * 2);
        drop(frozen);
        for client in &mut clients {
            client.expect(b"IN TIME");
        }
    }
    // Silent clients still time out.
    let frozen = Frozen::workers(&server);
    clients[0].expect_silence(IDLE * 2);
    drop(frozen);
    for client in &mut clients {
        client.expect_eof();
    }
    drop(clients);
    counters.wait_open(0);
}

#[test]
fn stopped_worker_reads_headers_sent_in_time() {
    let server = server(&[
        "--proxy-protocol=all",
        "--proxy-trust=127.0.0.1",
        "--proxy-header-timeout=300ms",
        "--hang-timeout=off",
    ]);
    let counters = Counters::of(&server);
    let header = encode(
        Version::V2,
        ([192, 0, 2, 1], 7).into(),
        ([10, 0, 0, 1], 9999).into(),
    );
    let mut whole: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    let mut part = Client::connect(server.addr());
    counters.wait(Counter::Accepted, 21);
    let frozen = Frozen::workers(&server);
    for client in &mut whole {
        client.send_all(&header);
    }
    part.send_all(&header[..header.len() - 1]);
    part.expect_silence(Duration::from_millis(600));
    drop(frozen);
    for client in &mut whole {
        client.roundtrip(b"after the header");
    }
    part.expect_reset();
    assert_eq!(
        counters.count(Counter::Refused(RefusalCause::ProxyTimeout)),
        1
    );
}

#[test]
fn stopped_worker_answers_first_bytes_at_shutdown() {
    let server = server(&["--hang-timeout=off", "--drain-timeout=20s"]);
    let counters = Counters::of(&server);
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    counters.wait_open(20);
    let frozen = Frozen::workers(&server);
    let from = server.log_len();
    server.signal(Signal::SIGTERM);
    server.wait_log_from(from, |line| line.contains("stopping"));
    for client in &mut clients {
        client.send_all(b"a word");
    }
    clients[0].expect_silence(Duration::from_millis(1500));
    drop(frozen);
    for client in &mut clients {
        client.expect(b"A WORD");
        client.expect_eof();
    }
}

#[test]
fn idle_worker_with_deadlines_sleeps() {
    let server = server(&["--idle-timeout", "60s", "--hang-timeout", "off"]);
    let counters = Counters::of(&server);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..100 {
        let client = Client::connect(server.addr());
        client.expect_silence(Duration::from_millis(10));
        clients.push(client);
    }
    counters.wait_open(100);
    let before = counters.count(Counter::Turns);
    // Longer than one rotation of the timer wheel.
    clients[0].expect_silence(Duration::from_millis(8_500));
    let turns = counters.count(Counter::Turns) - before;
    assert!(turns <= 30, "{turns} turns without any work");
}

#[test]
fn flood_at_the_limit_writes_few_lines() {
    let server = server(&["--max-connections", "2"]);
    let counters = Counters::of(&server);
    let from = server.log_len();
    let time = Deadline::after(DEADLINE);
    for _ in 0..500 {
        let mut pair = [
            Client::connect(server.addr()),
            Client::connect(server.addr()),
        ];
        for client in &mut pair {
            client.roundtrip(b"one more");
        }
    }
    let paused = counters.count(Counter::Paused(PauseCause::ConnectionLimit));
    assert!(paused >= 400, "{paused} pauses");
    let lines = |words: &str| -> Vec<String> {
        let log = server.log();
        log.into_iter()
            .skip(from)
            .filter(|line| line.contains(words))
            .collect()
    };
    let times = |words| -> u64 { lines(words).iter().map(|line| number(line, "times")).sum() };
    until("every pause is in some line", || {
        times("accept paused") == counters.count(Counter::Paused(PauseCause::ConnectionLimit))
    });
    let seconds = (DEADLINE - time.left()).as_secs();
    for words in ["accept paused", "accept resumed"] {
        let written = lines(words).len();
        assert!(written as u64 <= seconds + 2, "{written} lines: {words}");
    }
}

#[test]
fn server_reuses_one_free_connection_in_time() {
    let server = server(&["--max-connections", "20"]);
    let counters = Counters::of(&server);
    let mut served: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
    counters.wait_open(20);
    let mut waiting = Client::connect(server.addr());
    waiting.send_all(b"waiting");
    served[0].roundtrip(b"no place is free");
    waiting.expect_open();
    served.pop();
    waiting.expect(b"WAITING");
    assert_eq!(counters.open(), 20);
}

/// Returns a client that reads nothing and whose pending output is only in the kernel.
#[track_caller]
fn owed_by_the_kernel(server: &Server, bytes: usize) -> Client {
    let mut client = with_little_room(server).expect("a client");
    client.send_all(&vec![b'a'; bytes]);
    until("the server has read all of it", || {
        unacknowledged(&client) == 0
    });
    client
}

fn with_little_room(server: &Server) -> io::Result<Client> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    socket.set_recv_buffer_size(4096)?;
    socket.connect(&server.addr().into())?;
    Client::over(socket.into(), server.addr())
}

#[test]
fn kernel_frees_output_of_half_closed_client() {
    let server = server(&["--write-stall-timeout", "1s"]);
    let counters = Counters::of(&server);
    let port = server.addr().port();
    let client = owed_by_the_kernel(&server, 60_000);
    client.half_close();
    counters.wait(Counter::Closed(CloseReason::PeerClosed), 1);
    until("nothing is left in the kernel", || {
        [TcpState::FinWait1, TcpState::LastAck, TcpState::Closing]
            .into_iter()
            .all(|state| count_sockets(port, state) == 0)
    });
    drop(client);
}

#[test]
fn kernel_ends_connection_of_unresponsive_client() {
    let server = server(&["--write-stall-timeout", "1s"]);
    let counters = Counters::of(&server);
    let mut client = owed_by_the_kernel(&server, 60_000);
    counters.wait(Counter::Closed(CloseReason::PeerVanished), 1);
    counters.wait_open(0);
    // Bytes that have arrived can be read; the rest is lost, and the client receives a reset.
    let _ = client.recv_exact(1);
}

/// Returns clients that have been served, each with a time just before its connect.
fn young_clients(server: &Server, count: usize) -> Vec<(Client, Tick)> {
    let connect = |_| {
        let since = clock::now();
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"young");
        (client, since)
    };
    (0..count).map(connect).collect()
}

/// Half of the clients are busy throughout. A reload in between neither resets their age nor ends
/// them early.
#[test]
fn old_connections_end_gracefully_across_reload() {
    const AGE: Duration = Duration::from_secs(3);
    let server = server(&["--max-connection-age", "3s", "--bake-time", "0s"]);
    let mut clients = young_clients(&server, 40);
    server.reload().expect_success();
    let counters = Counters::of(&server);
    let mut lives = Vec::new();
    let idle = clients.split_off(20);
    let mut busy = clients;
    while !busy.is_empty() {
        busy.retain_mut(|(client, since)| {
            // Served as a whole, or ended between two messages.
            let is_served = client.is_served(b"some message");
            if !is_served {
                lives.push(clock::now().since(*since));
            }
            is_served
        });
    }
    for (mut client, since) in idle {
        client.expect_eof();
        lives.push(clock::now().since(since));
    }
    let shortest = lives.iter().min().expect("a life");
    assert!(*shortest >= AGE - AGE / 10, "{lives:?}");
    let aged = || counters.count(Counter::Closed(CloseReason::MaxAge));
    until("every end is counted", || aged() == 40);
}

/// Its age counts from its accept, whichever process serves it.
#[test]
fn rescued_connection_ends_at_its_age() {
    const AGE: Duration = Duration::from_secs(6);
    let server = server(&["--max-connection-age", "6s", "--crash-rescue=true"]);
    let counters = Counters::of(&server);
    let mut clients = young_clients(&server, 20);
    until("the worker has a keeper", || {
        !server.keeper_pids().is_empty()
    });
    clients[0].0.expect_silence(AGE / 2);
    let died = clock::now();
    worker_of(&server, 0).signal(Signal::SIGKILL);
    server.wait_log(|line| line.contains("worker rescued"));
    for (client, _) in &mut clients {
        client.roundtrip(b"rescued");
    }
    for (mut client, since) in clients {
        client.expect_eof();
        let now = clock::now();
        assert!(now.since(since) >= AGE - AGE / 10, "ended early");
        // An age that began anew would end later than this.
        assert!(now.since(died) < AGE - AGE / 10, "ended late");
    }
    let aged = || counters.count(Counter::Closed(CloseReason::MaxAge));
    until("every end is counted", || aged() == 20);
    assert_eq!(counters.count(Counter::Closed(CloseReason::WorkerDied)), 0);
}

/// A client that never pauses gets every reply to what was received, and then the end of the stream.
#[test]
fn flooding_client_is_ended_at_its_age() {
    const STEP: usize = 16 * 1024;
    let server = server(&["--max-connection-age", "2s"]);
    let counters = Counters::of(&server);
    let deadline = Deadline::after(DEADLINE);
    let client = Client::connect(server.addr());
    let (mut sending, is_ended) = (client.try_clone(), AtomicBool::new(false));
    let (sent, received) = std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut sent = 0;
            while !is_ended.load(Ordering::Relaxed) {
                sending.send_all(&pattern(sent, STEP));
                sent += STEP as u64;
            }
            sending.half_close();
            sent
        });
        let (mut received, mut bytes) = (0, vec![0; STEP]);
        loop {
            assert!(deadline.left() > Duration::ZERO, "it is not ended");
            let len = client.socket().read(&mut bytes).expect("no reset");
            if len == 0 {
                break;
            }
            let expected = upper(&pattern(received, len));
            assert_same(&bytes[..len], &expected, "a flood");
            received += len as u64;
        }
        is_ended.store(true, Ordering::Relaxed);
        (sent.join().expect("it only sends"), received)
    });
    assert!(
        received > 0 && sent > received,
        "{sent} sent, {received} received"
    );
    counters.wait(Counter::Closed(CloseReason::MaxAge), 1);
    counters.wait_open(0);
}
