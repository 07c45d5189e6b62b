//! The end of connections: a graceful close by either side, a reset, a vanished client. The server
//! first sends pending output, loses nothing in flight, and continues.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use nix::poll::PollFlags;
use socket2::SockRef;
use uppercased_ctl::metrics::{CloseReason, Counter};

use crate::support::adversity::{Frozen, expect_pattern, fill};
use crate::support::diagnosis::queued;
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::until;
use crate::support::usage::Counters;
use crate::support::{Client, DEADLINE, Deadline, Server, pattern, poll_one, upper};

const PEER_CLOSED: Counter = Counter::Closed(CloseReason::PeerClosed);
const PEER_RESET: Counter = Counter::Closed(CloseReason::PeerReset);
const IDLE_TIMEOUT: Counter = Counter::Closed(CloseReason::IdleTimeout);

/// Starts one worker, so that all clients share it.
fn server(args: &[&str]) -> Server {
    Server::builder()
        .args(["--listen", "127.0.0.1:0", "--workers", "1"])
        .args(args)
        .start()
}

/// Waits for the end of the server's stream without reading the preceding bytes.
#[track_caller]
fn wait_half_closed(client: &Client) {
    assert!(
        is_half_closed(client, DEADLINE),
        "the server does not close"
    );
}

fn is_half_closed(client: &Client, within: Duration) -> bool {
    // From poll.h; the library has no name for it.
    const POLLRDHUP: PollFlags = PollFlags::from_bits_retain(0x2000);
    poll_one(client.socket(), POLLRDHUP, within)
}

/// Returns an idle client that has sent `bytes`. They arrive before the worker polls, so even a
/// short idle timeout cannot expire first.
fn sends_and_stays_silent(server: &Server, bytes: &[u8]) -> Client {
    let frozen = Frozen::workers(server);
    let mut client = Client::connect(server.addr());
    client.send_all(bytes);
    drop(frozen);
    client
}

#[test]
fn half_close_receives_remaining_output_then_eof() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    client.half_close();
    client.expect_eof();

    let mut client = Client::connect(server.addr());
    client.roundtrip(b"some");
    client.send_all(&pattern(0, 100_000));
    client.half_close();
    expect_pattern(&mut client, 0..100_000);
    client.expect_eof();
    counters.wait(PEER_CLOSED, 2);
    counters.wait_open(0);
}

#[test]
fn half_close_behind_full_buffers_loses_nothing() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let mut client = Client::connect(server.addr());
    let sent = fill(&client, &counters);
    client.half_close();
    expect_pattern(&mut client, 0..sent);
    client.expect_eof();
    counters.wait(PEER_CLOSED, 1);
    assert_eq!(counters.count(Counter::BytesAbandoned), 0);
}

#[test]
fn server_sees_bytes_and_fin_in_one_segment() {
    let server = server(&[]);
    // Held back so that the end of the stream is sent with it.
    let last = |client: &mut Client, bytes: &[u8]| {
        SockRef::from(client.socket()).set_tcp_cork(true).unwrap();
        client.send_all(bytes);
        client.half_close();
    };
    for round in 0..50 {
        let mut client = Client::connect(server.addr());
        if round % 2 == 0 {
            client.roundtrip(b"served already");
        }
        last(&mut client, b"the last bytes");
        assert_eq!(client.read_to_end(), b"THE LAST BYTES", "round {round}");
    }
    // The same for clients in the accept queue.
    let frozen = Frozen::workers(&server);
    let mut client = Client::connect(server.addr());
    last(&mut client, b"never seen before");
    drop(frozen);
    assert_eq!(client.read_to_end(), b"NEVER SEEN BEFORE");
}

#[test]
fn peer_reset_is_counted_in_every_state() {
    let server = server(&[]);
    let workers = server.worker_pids();
    let counters = Counters::of(&server);
    let mut bystander = Client::connect(server.addr());
    bystander.roundtrip(b"before");

    let idle = Client::connect(server.addr());
    counters.wait_open(2);
    idle.abort();
    counters.wait(PEER_RESET, 1);

    let mut unread = Client::connect(server.addr());
    unread.send_all(b"the answer to this is never read");
    counters.wait(Counter::BytesOut, 38);
    unread.abort();
    counters.wait(PEER_RESET, 2);

    let full = Client::connect(server.addr());
    fill(&full, &counters);
    full.abort();
    counters.wait(PEER_RESET, 3);

    let frozen = Frozen::workers(&server);
    let mut queue = Client::connect(server.addr());
    queue.send_all(b"not accepted yet");
    until("it is queued", || queued(server.addr().port()) == 1);
    queue.abort();
    let mut both = Client::connect(server.addr());
    both.send_all(b"bytes, then the end of all");
    both.half_close();
    both.abort();
    drop(frozen);
    counters.wait(PEER_RESET, 5);

    bystander.roundtrip(b"after");
    assert_eq!(counters.open(), 1);
    assert_eq!(server.worker_pids(), workers, "no worker exited");
    assert_eq!(counters.count(Counter::Closed(CloseReason::SystemError)), 0);
    drop(bystander);
    assert!(server.stop().success());
}

#[test]
fn client_leaving_during_reply_affects_no_other() {
    let server = server(&[]);
    let workers = server.worker_pids();
    let counters = Counters::of(&server);
    // Closing with unread input causes a reset, possibly while the server is writing (SIGPIPE).
    for round in 0..50 {
        let client = Client::connect(server.addr());
        for _ in 0..20 {
            client.send_some(&pattern(round, 16 * 1024));
        }
        drop(client);
    }
    counters.wait(Counter::Accepted, 50);
    counters.wait_open(0);
    let ended = counters.count(PEER_RESET) + counters.count(PEER_CLOSED);
    assert_eq!(ended, 50, "each for one of the two reasons");
    assert_eq!(server.worker_pids(), workers, "no worker exited");
    Client::connect(server.addr()).roundtrip(b"still there");
}

#[test]
fn idle_timeout_closes_only_idle_connections() {
    let server = server(&["--idle-timeout", "2s"]);
    let counters = Counters::of(&server);
    let mut busy = Client::connect(server.addr());
    let mut silent = Client::connect(server.addr());
    let mut used = Client::connect(server.addr());
    used.roundtrip(b"used");
    let late = Deadline::after(DEADLINE);
    let closed = |client| is_half_closed(client, Duration::ZERO);
    while !(closed(&silent) && closed(&used)) {
        busy.roundtrip(b"busy");
        assert!(!late.left().is_zero(), "idle, and not closed");
    }
    silent.expect_eof();
    used.expect_eof();
    drop((silent, used));
    counters.wait(IDLE_TIMEOUT, 2);
    busy.roundtrip(b"the one that is busy goes on");
    assert_eq!(counters.count(IDLE_TIMEOUT), 2);
}

#[test]
fn close_destroys_no_reply_in_flight() {
    isolated(|| {
        let server = server(&["--idle-timeout", "200ms", "--linger-timeout", "1m"]);
        let counters = Counters::of(&server);
        let before = KernelCounters::read();
        let mut client = sends_and_stays_silent(&server, b"first");
        wait_half_closed(&client);
        // The reply stays unread on this side. If the server closed fully, any of these would cause
        // a reset, which would destroy the reply.
        for round in 0..64 {
            client.send_all(&pattern(round, 16 * 1024));
        }
        counters.wait(Counter::BytesDiscarded, 1 << 20);
        assert_eq!(client.read_to_end(), b"FIRST");
        assert_eq!(counters.open(), 1, "it lingers");
        drop(client);
        counters.wait(IDLE_TIMEOUT, 1);
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn linger_timeout_ends_lingering() {
    let server = server(&["--idle-timeout", "50ms", "--linger-timeout", "300ms"]);
    let counters = Counters::of(&server);
    let mut silent = Client::connect(server.addr());
    silent.expect_eof();
    counters.wait(IDLE_TIMEOUT, 1);

    // Sending does not extend the timeout.
    let stubborn = Client::connect(server.addr());
    wait_half_closed(&stubborn);
    let late = Deadline::after(DEADLINE);
    let error = loop {
        match stubborn.socket().write_all(b"and another thing") {
            Ok(()) => assert!(!late.left().is_zero(), "it lingers without a limit"),
            Err(error) => break error,
        }
    };
    let kind = error.kind();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{error}"
    );
    counters.wait(IDLE_TIMEOUT, 2);
    counters.wait_open(0);
}

#[test]
fn server_closes_immediately_without_linger() {
    let server = server(&["--idle-timeout", "50ms", "--linger-timeout", "0s"]);
    let counters = Counters::of(&server);
    let mut client = sends_and_stays_silent(&server, b"one");
    wait_half_closed(&client);
    counters.wait(IDLE_TIMEOUT, 1);
    counters.wait_open(0);
    assert_eq!(client.read_to_end(), upper(b"one"));
}
