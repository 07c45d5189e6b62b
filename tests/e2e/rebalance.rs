//! Busy connections of one worker spread over the others; clients notice only shorter response
//! times.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::ppoll;
use uppercased_ctl::clock::now;
use uppercased_ctl::metrics::{CloseReason, Counter};

use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{owner, some_within, until, worker_of};
use crate::support::planned::Planned;
use crate::support::usage::Counters;
use crate::support::{Client, Server, Watched};

/// Longer than the required samples and pauses, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const WATCHFUL: [&str; 5] = [
    "--listen=127.0.0.1:0",
    "--workers=2",
    "--rebalance",
    "--bake-time=0s",
    "--handshake-timeout=100ms",
];

/// Returns `count` connections of `wanted`; those accepted by another worker are closed.
#[track_caller]
fn all_of(wanted: &Watched, server: &Server, count: usize) -> Vec<Client> {
    let mut own = Vec::new();
    for _ in 0..count * 50 {
        if own.len() == count {
            return own;
        }
        let mut client = Client::connect(server.addr());
        client.roundtrip(b"whose am i");
        let processes = [Watched::open(wanted.pid()).expect("it lives")];
        if owner(&client, server.addr(), &processes).is_some() {
            own.push(client);
        } else {
            client.half_close();
            client.expect_eof();
        }
    }
    panic!(
        "only {} of {count} connections reached the worker",
        own.len()
    );
}

/// Clients that exchange without a pause until stopped, each in its own thread.
struct Talk<'a> {
    ends: &'a AtomicBool,
    exchanges: &'a AtomicU64,
}

impl Talk<'_> {
    fn go_on(&self, client: &mut Client, number: usize) {
        let mut count = 0_u64;
        while !self.ends.load(Ordering::Relaxed) {
            client.roundtrip(format!("message {count} of client {number}").as_bytes());
            count += 1;
            self.exchanges.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs `body` while all of `clients` exchange; afterwards no reply is pending.
fn while_talking(clients: &mut [Client], body: impl FnOnce(&AtomicU64)) {
    let (ends, exchanges) = (AtomicBool::new(false), AtomicU64::new(0));
    let talk = Talk {
        ends: &ends,
        exchanges: &exchanges,
    };
    std::thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            let talk = &talk;
            scope.spawn(move || talk.go_on(client, number));
        }
        // Otherwise a failure in `body` would wait forever for the exchanging threads.
        let _stop = Stop(&ends);
        body(&exchanges);
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn open(server: &Server) -> Vec<u64> {
    let status = server.status_json();
    let slots = status["slots"].as_array().expect("slots");
    let count = |slot: &serde_json::Value| slot["open"].as_u64().expect("a number");
    slots.iter().map(count).collect()
}

#[track_caller]
fn end_in_order(clients: Vec<Client>) {
    for mut client in clients {
        client.roundtrip(b"the last word");
        client.half_close();
        client.expect_eof();
    }
}

#[test]
fn busy_connections_spread_without_byte_errors() {
    isolated(|| {
        let before = KernelCounters::read();
        let server = Server::start(&WATCHFUL);
        let counters = Counters::of(&server);
        let mut clients = all_of(&worker_of(&server, 1), &server, 8);
        let silent = all_of(&worker_of(&server, 1), &server, 3);
        assert_eq!(counters.open(), 11);
        while_talking(&mut clients, |exchanges| {
            // Within the threshold: the other worker has at least three of eight.
            let spread = some_within(PATIENCE, || {
                let moved = counters.by_slot(Counter::MigratedIn);
                (moved[0] >= 3).then_some(moved)
            });
            assert!(spread.is_some(), "{:?}", server.log());
            let at = exchanges.load(Ordering::Relaxed);
            until("every client continues", || {
                exchanges.load(Ordering::Relaxed) > at + 400
            });
        });
        let out = counters.by_slot(Counter::MigratedOut);
        assert_eq!(out[1], counters.by_slot(Counter::MigratedIn)[0]);
        server.wait_log(|line| line.contains(" rebalance finished ") && line.contains("migrated="));
        let now = open(&server);
        assert!(now[0] >= 3 && now[1] >= 3, "{now:?}");
        end_in_order(clients);
        end_in_order(silent);
        let closed = Counter::Closed(CloseReason::PeerReset);
        assert_eq!(counters.count(closed), 0);
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(server.stop().code(), Some(0));
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn operations_run_during_rebalancing_without_loss() {
    isolated(|| {
        let before = KernelCounters::read();
        let planned = Planned::start(&WATCHFUL);
        let server = &planned.server;
        let mut clients = all_of(&worker_of(server, 0), server, 8);
        while_talking(&mut clients, |_| {
            // Reload as soon as connections migrate, so that migrated connections migrate again.
            server.wait_log(|line| line.contains("INFO rebalance started "));
            server.reload().expect_success();
            server.scale(1).expect_success();
            let mark = server.log_len();
            server.scale(2).expect_success();
            // The remaining worker has all connections, and the other is idle.
            server.wait_log_from(mark, |line| line.contains(" rebalance finished "));
            server.upgrade().expect_success();
        });
        assert_eq!(open(server).iter().sum::<u64>(), 8);
        end_in_order(clients);
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(server.stop().code(), Some(0));
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn reload_enables_rebalancing() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=2", "--bake-time=0s"]);
    let server = &planned.server;
    let mut clients = all_of(&worker_of(server, 1), server, 4);
    while_talking(&mut clients, |exchanges| {
        until("a good many exchanges", || {
            exchanges.load(Ordering::Relaxed) > 2_000
        });
        assert_eq!(open(server), [0, 4]);
        planned.configure("rebalance = true\nrebalance_threshold = 20\n");
        server.reload().expect_success();
        server
            .wait_log(|line| line.contains(" rebalance finished ") && line.contains("migrated=2"));
    });
    assert_eq!(open(server), [2, 2]);
    end_in_order(clients);
}

/// The receiver is killed while it adopts its first connections, every time.
#[test]
fn unacknowledged_connections_return_from_dead_receiver() {
    isolated(|| {
        for point in ["receiver.received", "receiver.adopted"] {
            let before = KernelCounters::read();
            let server = Server::builder()
                .args(WATCHFUL)
                .env("FAULT_POINTS", format!("{point}=kill"))
                .start();
            let mut clients = all_of(&worker_of(&server, 1), &server, 6);
            while_talking(&mut clients, |exchanges| {
                server.wait_log(|line| line.contains("rebalance incomplete"));
                let at = exchanges.load(Ordering::Relaxed);
                until("every client continues", || {
                    exchanges.load(Ordering::Relaxed) > at + 400
                });
            });
            assert_eq!(open(&server), [0, 6], "{point}");
            end_in_order(clients);
            KernelCounters::read().assert_no_loss_since(&before);
        }
    });
}

/// Not a test: reports the effect of migration on response times. Run it on an idle machine, with
/// `cargo test --release --test e2e rebalance:: -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn report_latency_with_and_without_rebalancing() {
    const CONNECTIONS: usize = 32;
    for (turn, rebalance) in ["--rebalance=false", "--rebalance"]
        .repeat(3)
        .iter()
        .enumerate()
    {
        let server = Server::start(&["--listen=127.0.0.1:0", "--workers=2", rebalance]);
        let mut clients = all_of(&worker_of(&server, 1), &server, CONNECTIONS);
        // The first run covers the samples and the first migrations, if any.
        let ran = [12_000, 5_000].map(|messages| sampled(&mut clients, messages));
        let mut times = ran.into_iter().next_back().expect("two runs");
        times.sort_unstable();
        let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize];
        eprintln!(
            "{turn}: {rebalance:17} open {:?}, {} answers: p50 {:?}, p99 {:?}, p99.9 {:?}",
            open(&server),
            times.len(),
            at(0.5),
            at(0.99),
            at(0.999)
        );
        end_in_order(clients);
    }
}

/// Sends `messages` messages of 1 KiB from every client, one per millisecond; returns the response
/// times, counted from the due time of each message.
fn sampled(clients: &mut [Client], messages: u32) -> Vec<Duration> {
    const EVERY: Duration = Duration::from_millis(1);
    let message = [b'x'; 1024];
    std::thread::scope(|scope| {
        let talk = |client: &mut Client| {
            let start = now();
            let mut times = Vec::new();
            for number in 0..messages {
                let due = start + EVERY * number;
                let rest = due.since(now());
                // An interruption only makes it slightly early.
                let _ = ppoll(&mut [], Some(rest.into()), None);
                client.roundtrip(&message);
                times.push(now().since(due));
            }
            times
        };
        let running: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(move || talk(client)))
            .collect();
        let ended = running.into_iter();
        let times = ended.flat_map(|one| one.join().expect("every answer is right"));
        times.collect()
    })
}
