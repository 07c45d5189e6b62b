//! The service over real sockets and processes: every byte returns in upper case, in order, for any
//! chunks, pipelining and number of clients, on every kind of address, from every worker.
//!
//! Tests of closing are in `tests/e2e/closing.rs`, tests of limits in `tests/e2e/limits.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sys::socket::{MsgFlags, send};
use uppercased_ctl::metrics::Counter;
use uppercased_ctl::process::raise_descriptor_limit;

use crate::support::adversity::{Frozen, expect_pattern, fill, has_ipv6};
use crate::support::diagnosis::{queued, tcp_sockets, unread};
use crate::support::netns::isolated;
use crate::support::observe::until;
use crate::support::usage::Counters;
use crate::support::{Client, Server, pattern, upper};

const LOCAL: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn one_worker() -> Server {
    Server::builder()
        .args(LOCAL)
        .args(["--workers", "1"])
        .start()
}

#[test]
fn every_byte_value_returns_with_letters_uppercased() {
    let server = one_worker();
    let mut client = Client::connect(server.addr());
    let all: Vec<u8> = (0..=u8::MAX).collect();
    client.send_all(&all);
    let mut expected = all.clone();
    expected[usize::from(b'a')..=usize::from(b'z')].copy_from_slice(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    client.expect(&expected);
    for value in 0..=u8::MAX {
        client.roundtrip(&[value]);
    }
    client.roundtrip(&[0; 5000]);
    client.roundtrip(&[0xff; 5000]);
    client.roundtrip("na\u{ef}ve stra\u{df}e \u{2013} \u{3b1}\0\r\n".as_bytes());
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn any_chunking_yields_same_bytes() {
    let server = one_worker();
    let mut client = Client::connect(server.addr());
    let bytes = pattern(0, 3000);
    for byte in &bytes {
        client.send_all(std::slice::from_ref(byte));
    }
    client.expect(&upper(&bytes));
    // Around the sizes of pages, of the scratch buffer and of one turn's budget.
    let mut at = 0;
    for size in [1, 4095, 4097, 65_535, 65_536, 65_537, 262_143, 262_145] {
        client.stream(at, size);
        at += size as u64;
    }
}

#[test]
fn long_stream_is_exact_in_full_duplex() {
    let server = one_worker();
    Client::connect(server.addr()).stream(7, 64 << 20);
}

#[test]
fn pipelined_messages_are_answered_in_order() {
    let server = one_worker();
    let mut client = Client::connect(server.addr());
    // Lengths from 1 to 100, sent without waiting for replies.
    let mut at = 0;
    for message in 0..1000_u64 {
        let len = 1 + usize::try_from(message % 100).unwrap();
        client.send_all(&pattern(at, len));
        at += len as u64;
    }
    expect_pattern(&mut client, 0..at);
}

#[test]
fn messages_arriving_together_are_answered_together() {
    let server = one_worker();
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"hello");
    // A read is counted after its reply was sent.
    counters.wait(Counter::Reads, 1);
    let frozen = Frozen::workers(&server);
    for _ in 0..100 {
        client.send_all(b"one of many\n");
    }
    until("all has arrived", || unread(server.addr().port()) == 1200);
    drop(frozen);
    client.expect(b"ONE OF MANY\n".repeat(100).as_slice());
    counters.wait(Counter::Reads, 2);
    assert_eq!(counters.count(Counter::Reads), 2, "one read for all");
}

#[test]
fn concurrent_connections_never_mix() {
    const CLIENTS: u32 = 320;
    raise_descriptor_limit().unwrap();
    let server = Server::builder()
        .args(LOCAL)
        .args(["--workers", "2"])
        .start();
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|_| Client::connect(server.addr()))
        .collect();
    // Each client has its own stream and sends a piece of it per round, before any client reads.
    let piece = |client: u32, round: u64| {
        let client = u64::from(client);
        let len = 1 + (client * 37 + round * 101) % 1500;
        pattern(
            client * 1_000_003 + round * 2000,
            usize::try_from(len).unwrap(),
        )
    };
    for round in 0..8 {
        for (number, client) in (0..CLIENTS).zip(&mut clients) {
            client.send_all(&piece(number, round));
        }
        for (number, client) in (0..CLIENTS).zip(&mut clients).rev() {
            client.expect(&upper(&piece(number, round)));
        }
    }
    assert_eq!(Counters::of(&server).open(), u64::from(CLIENTS));
}

#[test]
fn writing_before_reading_completes_within_buffers() {
    let server = Server::builder()
        .args(LOCAL)
        .args(["--workers", "1", "--pending-output", "64KiB"])
        .args(["--recv-buffer", "128KiB", "--send-buffer", "128KiB"])
        .start();
    let mut client = Client::connect(server.addr());
    let bytes = pattern(0, (64 + 128 + 128) * 1024);
    client.send_all(&bytes);
    client.half_close();
    crate::support::assert_same(&client.read_to_end(), &upper(&bytes), "the answer");
}

#[test]
fn full_buffers_apply_backpressure_to_one_client() {
    let server = one_worker();
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    let sent = fill(&client, &counters);
    let read = counters.count(Counter::BytesIn);
    assert!(read < sent, "it stopped reading: {read} of {sent}");

    let mut other = Client::connect(server.addr());
    other.stream(5, 1 << 20);
    let read_since = counters.count(Counter::BytesIn) - read;
    assert_eq!(
        read_since,
        1 << 20,
        "nothing more is read from a client that does not read"
    );

    expect_pattern(&mut client, 0..sent);
    client.roundtrip(b"and on it goes");
    assert_eq!(counters.count(Counter::BytesAbandoned), 0);
}

#[test]
fn urgent_bytes_are_served_in_band() {
    let urge = |client: &Client, bytes: &[u8]| {
        let sent = send(client.socket().as_raw_fd(), bytes, MsgFlags::MSG_OOB).unwrap();
        assert_eq!(sent, bytes.len());
    };
    let server = one_worker();
    let mut client = Client::connect(server.addr());
    urge(&client, b"x");
    client.expect(b"X");
    client.roundtrip(b"after");

    // Sent together, so that a read stops at the mark with more input behind it and no further
    // event.
    let frozen = Frozen::workers(&server);
    client.send_all(b"abc");
    urge(&client, b"d");
    client.send_all(b"efg");
    until("all has arrived", || unread(server.addr().port()) == 7);
    drop(frozen);
    client.expect(b"ABCDEFG");

    let mut expected = Vec::new();
    for round in 0..200 {
        let bytes = pattern(round * 10, 7);
        client.send_all(&bytes[..4]);
        urge(&client, &bytes[4..5]);
        client.send_all(&bytes[5..]);
        expected.extend(upper(&bytes));
    }
    client.expect(&expected);

    let frozen = Frozen::workers(&server);
    urge(&client, b"several at once");
    client.send_all(b"last");
    urge(&client, b"!");
    client.half_close();
    until("all has arrived", || unread(server.addr().port()) >= 20);
    drop(frozen);
    assert_eq!(client.read_to_end(), b"SEVERAL AT ONCELAST!");
}

#[test]
fn bytes_sent_before_accept_are_answered() {
    let server = one_worker();
    let frozen = Frozen::workers(&server);
    let mut early: Vec<Client> = (0..20).map(|_| Client::connect(server.addr())).collect();
    for client in &mut early {
        client.send_all(b"early");
    }
    drop(frozen);
    for client in &mut early {
        client.expect(b"EARLY");
    }
}

#[test]
fn every_worker_serves_port_chosen_by_kernel() {
    let server = Server::builder()
        .args(LOCAL)
        .args(["--workers", "3"])
        .start();
    assert_eq!(server.addrs().len(), 1);
    assert_eq!(server.worker_pids().len(), 3);
    let counters = Counters::of(&server);
    let mut clients: Vec<Client> = (0..150).map(|_| Client::connect(server.addr())).collect();
    for client in &mut clients {
        client.roundtrip(b"hello server");
    }
    let accepted = counters.by_slot(Counter::Accepted);
    assert_eq!(accepted.len(), 3);
    assert_eq!(accepted.iter().sum::<u64>(), 150);
    // A third of 150 is expected; the probability of none is 10^-26.
    assert!(!accepted.contains(&0), "{accepted:?}");

    drop(clients);
    counters.wait_open(0);
}

#[test]
fn several_addresses_of_both_families_are_served() {
    // In a namespace, where no other test has the port in the other family.
    isolated(|| {
        if has_ipv6() {
            serve_both_families();
        }
    });
}

fn serve_both_families() {
    let server = Server::builder()
        .args(["--listen", "127.0.0.1:0", "--listen", "[::1]:0"])
        .args(["--listen", "*:0", "--workers", "2"])
        .start();
    let [v4, v6, both] = server.addrs() else {
        panic!("{:?}", server.addrs());
    };
    assert_eq!(v4.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(v6.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let announced = server.stdout();
    assert!(
        announced[2].ends_with(&format!("*:{}", both.port())),
        "{announced:?}"
    );
    let both_v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, both.port()));
    // Often enough that each worker gets some on each of its sockets.
    for _ in 0..20 {
        for addr in [*v4, *v6, *both, both_v6] {
            Client::connect(addr).roundtrip(b"hello");
        }
    }
    // The kernel may choose the same number for both.
    if v4.port() != v6.port() {
        let elsewhere = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.port()));
        assert!(Client::try_connect(elsewhere).is_err(), "IPv4 only");
        let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, v6.port()));
        assert!(Client::try_connect(elsewhere).is_err(), "IPv6 only");
    }
    let accepted = Counters::of(&server).by_slot(Counter::Accepted);
    assert!(!accepted.contains(&0), "{accepted:?}");
}

#[test]
fn accept_queue_has_requested_length() {
    let longest = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let longest: u32 = longest.trim().parse().unwrap();
    for (args, expected) in [(&["--backlog", "7"][..], 7), (&[], longest)] {
        let server = Server::builder()
            .args(LOCAL)
            .args(["--workers", "2"])
            .args(args)
            .start();
        let sockets = tcp_sockets(server.addr().port());
        let queues: Vec<u32> = sockets.iter().map(|socket| socket.send_queue).collect();
        assert!(sockets.iter().all(|socket| socket.listens));
        assert_eq!(queues, [expected; 2]);
    }
}

#[test]
fn full_queue_is_served_eventually() {
    let server = Server::builder()
        .args(LOCAL)
        .args(["--workers", "1", "--backlog", "4"])
        .start();
    let port = server.addr().port();
    let frozen = Frozen::workers(&server);
    // The kernel queues one more than the limit.
    let mut waiting: Vec<Client> = (0..5).map(|_| Client::connect(server.addr())).collect();
    until("all wait", || queued(port) == 5);
    drop(frozen);
    for client in &mut waiting {
        client.roundtrip(b"at last");
    }
}

#[test]
fn default_address_is_ipv4_port_9999() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    check.args(["check", "--print"]).env_clear();
    let output = check.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    let listen = shown.lines().find(|line| line.starts_with("listen"));
    assert!(
        listen.is_some_and(|line| line.contains("\"0.0.0.0:9999\"") && line.contains("default")),
        "{shown}"
    );
}
