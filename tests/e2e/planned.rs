//! The proof that planned operations lose nothing.
//!
//! Under connection churn, long-lived byte-verified streams, slow readers, half-closed and idle
//! clients, a server is reloaded, upgraded and scaled repeatedly, in its own network namespace.
//! `SO_REUSEPORT` hides a broken handover behind a fresh bind, so reachability proves nothing: the
//! kernel's counters of resets, aborted connections and dropped handshakes must not change at all,
//! and every client checks every byte. It runs on loopback, over a delayed link (loopback hides the
//! handshake race), with one worker, and behind PROXY headers.
//!
//! `E2E_PROOF=long` runs the long version: at least 200 reloads, 20 upgrades and 50 scaling steps.
//!
//! Other tests show that the proof can fail: they break adoption and handover intentionally.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::support::adversity::skipped;
use crate::support::baseline::Baseline;
use crate::support::image::Image;
use crate::support::link::{DELAY, Link, listen_any_port};
use crate::support::load::{Load, LoadSize, Origin, Report};
use crate::support::netns::{KernelCounters, isolated, isolated_within};
use crate::support::planned::Planned;

/// The number of operations.
#[derive(Clone, Copy)]
struct Effort {
    reloads: u32,
    upgrades: u32,
    /// Pairs of a step up and a step down.
    scales: u32,
    handshake_timeout: &'static str,
}

const SHORT: Effort = Effort {
    reloads: 8,
    upgrades: 2,
    scales: 2,
    handshake_timeout: "--handshake-timeout=300ms",
};

const LONG: Effort = Effort {
    reloads: 200,
    upgrades: 20,
    scales: 25,
    handshake_timeout: "--handshake-timeout=1s",
};

fn is_long() -> bool {
    std::env::var("E2E_PROOF").is_ok_and(|what| what == "long")
}

fn effort() -> Effort {
    if is_long() { LONG } else { SHORT }
}

/// Returns the time limit of one proof.
fn patience() -> Duration {
    Duration::from_secs(if is_long() { 60 * 60 } else { 600 })
}

/// The server's address and the clients' origin.
struct Place {
    listen: String,
    origin: Origin,
    size: LoadSize,
}

impl Place {
    fn loopback() -> Self {
        let listen = "--listen=127.0.0.1:0".to_owned();
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        Self {
            listen,
            origin: Origin::of(addr),
            size: if is_long() {
                LoadSize::large()
            } else {
                LoadSize::small()
            },
        }
    }
}

fn start(place: &Place, workers: u16, effort: &Effort, faults: &str) -> Planned {
    let workers = format!("--workers={workers}");
    let proxied = if place.size.is_proxied { "all" } else { "none" };
    let proxied = format!("--proxy-protocol={proxied}");
    let args = [
        place.listen.as_str(),
        &workers,
        &proxied,
        "--bake-time=0s",
        effort.handshake_timeout,
    ];
    Planned::start_with(&args, |builder| builder.env("FAULT_POINTS", faults))
}

/// Runs all operations under load; returns the report of the clients.
fn operate(planned: &Planned, place: &Place, workers: u16, effort: &Effort) -> Report {
    let server = &planned.server;
    let load = Load::start_from(place.origin.clone(), server.addr(), place.size.clone());
    for round in 1..=effort.reloads {
        server.reload().expect_success();
        if round % (effort.reloads / effort.upgrades.max(1)).max(1) == 0 {
            let version = format!("version=1.{round}.0");
            planned.install(Image::copy(planned.folder()).with_faults(&version));
            server.upgrade().expect_success();
        }
        if round % (effort.reloads / effort.scales.max(1)).max(1) == 0 {
            server.scale(workers + 1).expect_success();
            server.scale(workers).expect_success();
        }
        load.go_on_for(10);
    }
    load.finish()
}

#[track_caller]
fn prove(place: &Place, workers: u16, clients: impl Fn() -> KernelCounters) {
    let effort = effort();
    let planned = start(place, workers, &effort, "");
    // After every later reload the server must return to the resources that it has after the first.
    planned.server.reload().expect_success();
    let baseline = Baseline::of(&planned.server);
    let (servers, theirs) = (KernelCounters::read(), clients());
    let report = operate(&planned, place, workers, &effort);
    println!("{report}");
    report.assert_clean();
    KernelCounters::read().assert_no_loss_since(&servers);
    clients().assert_no_loss_since(&theirs);
    baseline.assert_back(&planned.server);
    assert_eq!(planned.server.stop().code(), Some(0));
    KernelCounters::read().assert_no_loss_since(&servers);
}

#[test]
fn operations_lose_nothing_on_loopback() {
    isolated_within(patience(), || {
        prove(&Place::loopback(), 3, KernelCounters::read);
    });
}

#[test]
fn operations_lose_nothing_with_one_worker() {
    isolated_within(patience(), || {
        prove(&Place::loopback(), 1, KernelCounters::read);
    });
}

#[test]
fn operations_lose_nothing_behind_proxy() {
    isolated_within(patience(), || {
        let mut place = Place::loopback();
        place.size.is_proxied = true;
        prove(&place, 2, KernelCounters::read);
    });
}

#[test]
fn operations_lose_nothing_over_delayed_link() {
    isolated_within(patience(), || {
        let link = match Link::new(DELAY) {
            Ok(link) => link,
            Err(why) => return skipped(&why),
        };
        let place = Place {
            listen: format!("--listen={}", listen_any_port()),
            origin: link.origin(),
            size: LoadSize::far(),
        };
        prove(&place, 2, || link.clients().run(KernelCounters::read));
        assert_eq!(link.dropped(), 0, "the link itself lost packets");
    });
}

/// Runs the proof against an intentionally broken server; returns whether the proof detected it.
fn is_noticed(faults: &str) -> bool {
    // Some losses show only as an absent reply.
    const DEADLINE: Duration = Duration::from_secs(5);
    let mut place = Place::loopback();
    place.size.deadline = DEADLINE;
    let planned = start(&place, 2, &SHORT, faults);
    let before = KernelCounters::read();
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        operate(&planned, &place, 2, &SHORT).assert_clean();
        KernelCounters::read().assert_no_loss_since(&before);
    }));
    attempt.is_err()
}

#[test]
fn proof_detects_rebound_listener() {
    isolated(|| assert!(is_noticed("worker.adopting=violate:unlisten_all")));
}

#[test]
fn proof_detects_lost_bytes() {
    isolated(|| {
        assert!(is_noticed("sender.requested=violate:drop_input"));
    });
}

#[test]
fn proof_detects_closed_connections() {
    isolated(|| assert!(is_noticed("sender.requested=violate:end_clients")));
}
