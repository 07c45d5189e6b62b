//! Limits of connections, descriptors, memory and time: each holds, affects only the client that
//! exceeds it, and is counted by its cause.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use nix::poll::PollFlags;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use uppercased_ctl::metrics::{CloseReason, Counter, PauseCause, RefusalCause};
use uppercased_ctl::process::raise_descriptor_limit;

use crate::support::adversity::fill_all;
use crate::support::baseline::Baseline;
use crate::support::diagnosis::{queued, tcp_sockets};
use crate::support::observe::{descriptors, until};
use crate::support::usage::{Counters, cpu_time, resident_bytes};
use crate::support::{Client, DEADLINE, Server, poll_one};

const AT_LIMIT: Counter = Counter::Paused(PauseCause::ConnectionLimit);
const OUT_OF_DESCRIPTORS: Counter = Counter::Paused(PauseCause::ProcessDescriptors);
const WRITE_STALL: Counter = Counter::Closed(CloseReason::WriteStall);

/// Upper bounds of one client's kernel memory, and of its worker memory: the pending output buffer
/// and slightly more.
const KERNEL_BYTES_MAX: u64 = 1 << 20;
const WORKER_BYTES_MAX: u64 = (64 + 4) << 10;

/// Starts one worker, shared by the clients within and beyond a limit.
fn server(args: &[&str]) -> Server {
    Server::builder()
        .args(["--listen", "127.0.0.1:0", "--workers", "1"])
        .args(args)
        .start()
}

/// Connects `count` clients one after the other, so that they are queued in this order.
fn connect(server: &Server, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::connect(server.addr())).collect()
}

/// Sends as much as possible now; returns whether the connection has been reset.
#[track_caller]
fn send_until_reset(client: &Client) -> bool {
    let mut socket = client.socket();
    socket.set_nonblocking(true).expect("any socket can be");
    loop {
        match socket.write(&[b'a'; 16 * 1024]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            // The reset was reported before.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn clients_wait_in_queue_at_connection_limit() {
    let server = server(&["--max-connections", "20"]);
    let port = server.addr().port();
    let counters = Counters::of(&server);
    let mut served = connect(&server, 20);
    for client in &mut served {
        client.roundtrip(b"in");
    }
    server.wait_log(|line| line.contains("accept paused") && line.contains("connection_limit"));
    assert_eq!(counters.count(AT_LIMIT), 1);

    let mut waiting = connect(&server, 5);
    for client in &mut waiting {
        client.send_all(b"waiting");
    }
    until("all wait", || queued(port) == 5);

    // Hysteresis: a single place is given away after a while, a tenth of them at once.
    let log = server.log_len();
    served.truncate(19);
    waiting[0].expect(b"WAITING");
    // Full again.
    counters.wait(AT_LIMIT, 2);
    until("four wait", || queued(port) == 4);
    served.truncate(17);
    server.wait_log_from(log, |line| line.contains("accept resumed"));
    for client in &mut waiting[1..3] {
        client.expect(b"WAITING");
    }
    counters.wait(AT_LIMIT, 3);
    until("two wait", || queued(port) == 2);
    for client in &waiting[3..] {
        client.expect_open();
    }

    drop(served);
    for client in &mut waiting[3..] {
        client.expect(b"WAITING");
    }
    assert_eq!(counters.count(Counter::Accepted), 25);
    assert_eq!(
        counters.count(Counter::Refused(RefusalCause::SystemError)),
        0
    );
}

#[test]
fn limit_of_one_serves_clients_in_turn() {
    let server = server(&["--max-connections", "1"]);
    for (number, mut client) in connect(&server, 10).into_iter().enumerate() {
        client.roundtrip(format!("number {number}").as_bytes());
    }
    let counters = Counters::of(&server);
    counters.wait(AT_LIMIT, 10);
    counters.wait_open(0);
}

#[test]
fn accepting_pauses_without_descriptors_and_resumes() {
    let server = server(&["--accept-retry", "50ms"]);
    let counters = Counters::of(&server);
    let [worker] = server.worker_pids()[..] else {
        panic!("one worker was requested");
    };
    let before = Baseline::of(&server);
    let pid = Pid::from_raw(worker.cast_signed());
    let limit = getrlimit(Resource::Nofile);
    let lower = |soft: u64| {
        let lowered = Rlimit {
            current: Some(soft),
            maximum: limit.maximum,
        };
        prlimit(pid, Resource::Nofile, lowered).unwrap();
    };

    // As many as are needed to use every number up to the highest.
    let mut served = Vec::new();
    let used = loop {
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"in");
        served.push(client);
        let used = descriptors(worker);
        if (0..).zip(used.keys()).all(|(at, number)| at == *number) && served.len() >= 5 {
            break used.len();
        }
    };
    // From outside, because the server keeps a reserve itself: no descriptor is free.
    lower(used as u64);
    let mut waiting = connect(&server, 5);
    for client in &mut waiting {
        client.send_all(b"waiting");
    }
    counters.wait(OUT_OF_DESCRIPTORS, 1);
    server.wait_log(|line| line.contains("accept paused") && line.contains("process_descriptors"));

    // No busy loop: an attempt costs a few turns and almost no CPU time.
    let (tries, turns) = (
        counters.count(OUT_OF_DESCRIPTORS),
        counters.count(Counter::Turns),
    );
    let time = cpu_time(worker);
    counters.wait(OUT_OF_DESCRIPTORS, tries + 10);
    let turns = counters.count(Counter::Turns) - turns;
    let time = cpu_time(worker) - time;
    assert!(turns < 60, "{turns} turns for 10 tries");
    assert!(
        time < Duration::from_millis(200),
        "{time:?} for 500 ms of pause"
    );
    // Accepted clients are still served.
    for client in &mut served {
        client.roundtrip(b"still in");
    }
    assert_eq!(queued(server.addr().port()), 5);
    for client in &waiting {
        client.expect_open();
    }

    // Each closed connection frees a place at once.
    served.pop();
    waiting[0].expect(b"WAITING");
    // All are accepted once descriptors are available again, without a close.
    lower(limit.current.unwrap());
    for client in &mut waiting[1..] {
        client.expect(b"WAITING");
    }
    counters.wait_open(served.len() as u64 + 5);
    assert_eq!(
        counters.count(Counter::Refused(RefusalCause::SystemError)),
        0
    );
    drop((served, waiting));
    counters.wait_open(0);
    before.assert_back(&server);
}

#[test]
fn write_stall_timeout_closes_client_and_frees_memory() {
    const CLIENTS: usize = 20;
    let server = server(&["--write-stall-timeout", "1s"]);
    let counters = Counters::of(&server);
    let worker = server.worker_pids()[0];
    let mut reader = Client::connect(server.addr());
    reader.roundtrip(b"before");
    // A client that has sent no more than the server has read, so that no unread input can turn a
    // close into a reset.
    let mut modest = Client::connect(server.addr());
    let kept = || counters.count(Counter::Backpressure) > 0;
    let mut sent = 6;
    while !kept() {
        modest.send_all(&[b'a'; 4096]);
        sent += 4096;
        until("it is answered or kept", || {
            counters.count(Counter::BytesOut) == sent || kept()
        });
    }
    // The others send as much as they can.
    let stalled = connect(&server, CLIENTS);
    let mut cut = vec![false; CLIENTS];
    until("all are cut", || {
        for (client, cut) in stalled.iter().zip(&mut cut) {
            *cut |= send_until_reset(client);
        }
        !cut.contains(&false)
    });
    counters.wait(WRITE_STALL, CLIENTS as u64 + 1);
    counters.wait_open(1);
    assert!(counters.count(Counter::BytesAbandoned) > 0);
    // A reset, because a graceful close would mark the reply as complete.
    modest.expect_reset();
    reader.roundtrip(b"one that reads is none of them");
    // Almost all of their buffers were freed.
    let resident = resident_bytes(worker);
    let mut again = connect(&server, CLIENTS);
    for client in &mut again {
        client.roundtrip(b"as many as before");
    }
    let grown = resident_bytes(worker).saturating_sub(resident);
    assert!(grown < WORKER_BYTES_MAX, "grown by {grown}");
}

#[test]
fn non_reading_client_delays_no_other() {
    const CLIENTS: usize = 50;
    let server = server(&[]);
    let port = server.addr().port();
    let counters = Counters::of(&server);
    let worker = server.worker_pids()[0];
    let mut bystander = Client::connect(server.addr());
    bystander.roundtrip(b"before");
    let before = resident_bytes(worker);

    let hogs = connect(&server, CLIENTS);
    fill_all(&hogs, &counters);
    let grown = resident_bytes(worker).saturating_sub(before);
    let held: Vec<u64> = tcp_sockets(port)
        .iter()
        .map(|socket| socket.memory_bytes)
        .collect();
    let most = held.iter().max().copied().unwrap_or_default();
    let sum: u64 = held.iter().sum();
    assert!(sum > CLIENTS as u64 * 200_000, "they do hold some: {sum}");
    assert!(most < KERNEL_BYTES_MAX, "one holds {most} bytes");
    assert!(
        grown < CLIENTS as u64 * WORKER_BYTES_MAX,
        "the worker grew by {grown} bytes"
    );

    bystander.stream(0, 2 << 20);
    Client::connect(server.addr()).roundtrip(b"new ones, too");
    counters.wait_open(CLIENTS as u64 + 1);
}

#[test]
fn idle_connection_holds_no_buffer() {
    const CLIENTS: usize = 1000;
    const BYTES_EACH_MAX: u64 = 256;
    raise_descriptor_limit().unwrap();
    // With one deadline per connection, which is all that is stored.
    let server = server(&["--idle-timeout", "1h"]);
    let counters = Counters::of(&server);
    let worker = server.worker_pids()[0];
    // First incur the one-time costs, which are not those of idle connections.
    Client::connect(server.addr()).stream(0, 1 << 20);
    counters.wait_open(0);
    let before = resident_bytes(worker);

    let mut idle = connect(&server, CLIENTS);
    // Use each connection once, as is typical of idle ones.
    for client in &mut idle {
        client.roundtrip(b"hello, and then nothing");
    }
    counters.wait_open(CLIENTS as u64);
    let each = resident_bytes(worker).saturating_sub(before) / CLIENTS as u64;
    assert!(each < BYTES_EACH_MAX, "{each} bytes each");

    // Many silent clients delay no other.
    Client::connect(server.addr()).stream(0, 1 << 20);
    drop(idle);
    counters.wait_open(0);
}

#[test]
fn accept_flood_delays_no_existing_client() {
    raise_descriptor_limit().unwrap();
    let server = server(&["--accepts-per-turn", "4"]);
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    let mut flood = Vec::new();
    for round in 0..20 {
        flood.extend(connect(&server, 20));
        client.roundtrip(format!("round {round}").as_bytes());
    }
    counters.wait_open(401);
}

#[test]
fn fast_sender_gets_only_its_budget() {
    let server = server(&["--bytes-per-turn", "4KiB"]);
    let counters = Counters::of(&server);
    // Busy for as long as the others need it.
    let mut fast = Client::connect(server.addr());
    let mut sending = fast.try_clone();
    let mut others = connect(&server, 10);
    std::thread::scope(|scope| {
        let streaming = scope.spawn(move || fast.stream(0, 24 << 20));
        while !streaming.is_finished() {
            for other in &mut others {
                other.roundtrip(b"and I?");
            }
        }
        streaming.join().unwrap();
    });
    sending.half_close();
    sending.expect_eof();
    assert!(counters.count(Counter::Turns) >= 24 << 20 >> 16);
}

#[test]
fn refusals_pauses_and_closes_are_counted_by_cause() {
    let server = server(&["--max-connections", "3", "--idle-timeout", "1s"]);
    let counters = Counters::of(&server);
    let clients = connect(&server, 3);
    counters.wait(AT_LIMIT, 1);
    for client in &clients {
        assert!(poll_one(client.socket(), PollFlags::POLLIN, DEADLINE));
    }
    drop(clients);
    let idle = Counter::Closed(CloseReason::IdleTimeout);
    counters.wait(idle, 3);
    counters.wait_open(0);
    let mut moved = String::new();
    for counter in Counter::all() {
        let is_cause = matches!(counter, Counter::Closed(_) | Counter::Paused(_));
        if is_cause && counters.count(counter) > 0 {
            let _ = write!(moved, "{counter:?}={} ", counters.count(counter));
        }
    }
    assert_eq!(moved, "Closed(IdleTimeout)=3 Paused(ConnectionLimit)=1 ");
}
