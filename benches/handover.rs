//! What a planned operation costs while connections are live: how long it takes, and what its
//! clients feel of it.
//!
//! The program as built serves with one worker, the bench's clients (a process of their own) hold
//! connections to it, and the bench gives orders on the control socket. [`PINGING`] of the clients
//! ping, each with one message of 64 bytes on its way at any time; the others are idle, or have
//! sent until nothing moved any more without reading, so that the worker owes them output which has
//! to move as well. Every byte is compared, every connection is asked at the end, and one that is
//! lost, reset or wrong fails the bench.
//!
//! A line is one case, each figure the median of its rounds with least and most in brackets:
//!
//! - `total`: from the order to the verdict, as whoever gave the order sees it. For a reload:
//!   starting the new worker, the handover, the end of the old one. An upgrade puts the pre-flight
//!   and the exec of the supervisor before that. `scale 1` gives handshakes time before it moves
//!   anything (the time is set short here, and part of the total).
//! - `handover`: of it the handover itself, from the supervisor's order to the last
//!   acknowledgement, as the log has it, in whole milliseconds.
//! - `each`: the same divided by the connections that moved.
//! - `stall`: the longest time from a ping to its answer that any client saw from the order to the
//!   verdict; `without`: the same over as long a time just before, with no operation. Only the
//!   difference is the operation's: the pinging clients keep worker and clients busy, and on a
//!   machine with few cores a new process has to share them, as has whatever else runs there.
//! - `ran`, `waited`: what the worker that took over had of the processors meanwhile, from its start
//!   to the verdict: time in which it ran, and time in which it could have run but others did. The
//!   first is the work, and hardly depends on what else the machine does.
//!
//! `cargo bench --bench handover`; without `--bench` among its arguments one small round shows that
//! it works.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock, waits, and is several parties at once"
)]

use std::time::Duration;

use uppercased_ctl::control::{Options, Request, ScaleTo};

use self::clients::{Clients, Load};
use self::server::{HANDSHAKE_TIMEOUT, Operation, ProcessorTime, Server};

#[path = "handover/clients.rs"]
mod clients;
#[path = "handover/server.rs"]
mod server;

/// Clients that ping.
const PINGING: usize = 32;
/// Rounds of a case.
const ROUNDS: usize = 15;
/// Rounds of a case that needs new connections for each.
const SLOW_ROUNDS: usize = 5;
/// One client in so many does not read, in the cases with such clients.
const ONE_STALLED_IN: usize = 20;
/// Output that a client who does not read is owed at least, on the average.
const OWED_BYTES_MIN: u64 = 16 * 1024;
/// Descriptors that a process needs for the largest case.
const DESCRIPTORS: u64 = 11_000;

/// One round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    operation: Operation,
    processor: ProcessorTime,
    stall: Duration,
    /// With no operation.
    without: Duration,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first() {
        Some(role) if role == clients::ROLE => clients::run(&args[1..]),
        _ if args.iter().any(|arg| arg == "--bench") => measure(),
        _ => try_out(),
    }
}

fn measure() {
    let descriptors = clients::raise_descriptor_limit();
    assert!(
        descriptors >= DESCRIPTORS,
        "a process may have {descriptors} descriptors, and {DESCRIPTORS} are needed; see ulimit -Hn"
    );
    headline();
    for connections in [0, 1_000, 10_000] {
        renewals(
            "reload",
            Request::Reload(Options::default()),
            idle(connections),
            ROUNDS,
        );
    }
    for connections in [1_000, 10_000] {
        let stalled = connections / ONE_STALLED_IN;
        let load = Load {
            idle: connections - stalled,
            pinging: PINGING,
            stalled,
        };
        renewals("reload", Request::Reload(Options::default()), load, ROUNDS);
    }
    renewals(
        "upgrade",
        Request::Upgrade(Options::default()),
        idle(10_000),
        ROUNDS,
    );
    scaling(idle(10_000), SLOW_ROUNDS);
}

/// Shows that it works, quickly.
fn try_out() {
    headline();
    let load = Load {
        idle: 100,
        pinging: 4,
        stalled: 4,
    };
    renewals("reload", Request::Reload(Options::default()), load, 1);
    scaling(load, 1);
}

const fn idle(connections: usize) -> Load {
    Load {
        idle: connections,
        pinging: PINGING,
        stalled: 0,
    }
}

/// The same operation again and again over the same connections.
fn renewals(name: &str, request: Request, load: Load, rounds: usize) {
    let server = Server::start();
    let mut clients = Clients::start(server.addr, load);
    if load.stalled > 0 {
        let owed = server.owed_bytes();
        let least = load.stalled as u64 * OWED_BYTES_MIN;
        assert!(
            owed >= least,
            "clients that do not read are owed {owed} bytes"
        );
    }
    // What it takes is not known before the first, which is not counted.
    let mut span = server.order(request).total;
    let samples: Vec<Sample> = (0..rounds)
        .map(|_| {
            let sample = sample(&server, &mut clients, request, span);
            span = sample.operation.total;
            assert_eq!(sample.operation.moved, load.total() as u64);
            sample
        })
        .collect();
    clients.finish();
    server.stop();
    row(name, load, &samples);
}

/// One worker more, and back to one, which takes over what the kernel gave to the other: about half
/// of the connections, which are new in every round.
fn scaling(load: Load, rounds: usize) {
    let server = Server::start();
    let (mut more, mut fewer) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut clients = Clients::start(server.addr, load);
        let [up, down] = [2, 1].map(|to| Request::Scale {
            workers: ScaleTo::Exactly(to),
            options: Options::default(),
        });
        let span = 2 * HANDSHAKE_TIMEOUT;
        more.push(sample(&server, &mut clients, up, span));
        clients.finish();
        let mut clients = Clients::start(server.addr, load);
        fewer.push(sample(&server, &mut clients, down, span));
        clients.finish();
    }
    server.stop();
    row("scale 2", load, &more);
    row("scale 1", load, &fewer);
}

/// As long a time as the operation is thought to take without it, then the operation.
fn sample(server: &Server, clients: &mut Clients, request: Request, span: Duration) -> Sample {
    clients.mark();
    std::thread::sleep(span);
    let without = clients.mark();
    let earlier = server.processor_time();
    clients.mark();
    let operation = server.order(request);
    let with = clients.mark();
    let processor = server.processor_time().since(earlier);
    assert!(with.answers > 0 && without.answers > 0, "nobody pinged");
    Sample {
        operation,
        processor,
        stall: with.longest,
        without: without.longest,
    }
}

fn headline() {
    // Others' work on the same processors is in almost every figure: say how much there is.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{processors} processors, load average {load}");
    println!(
        "{:8} {:>6} {:>7} {:>6}  {:20} {:16} {:17} {:20} {:20} {:17} waited, ms",
        "",
        "idle",
        "stalled",
        "moved",
        "total, ms",
        "handover, ms",
        "each, us",
        "stall, ms",
        "without, ms",
        "ran, ms",
    );
}

fn row(name: &str, load: Load, samples: &[Sample]) {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let of = |figure: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
    let show = |time: &dyn Fn(&Sample) -> Duration| of(&|sample| millis(time(sample))).show(1);
    let moved = of(&|sample| sample.operation.moved as f64);
    // Whole milliseconds over a few connections would say nothing.
    let each = (moved.least >= 500.0).then(|| {
        of(&|sample| millis(sample.operation.handover) * 1e3 / sample.operation.moved as f64)
    });
    let Load { idle, stalled, .. } = load;
    println!(
        "{name:8} {idle:>6} {stalled:>7} {:>6.0}  {:20} {:16} {:17} {:20} {:20} {:17} {}",
        moved.median,
        show(&|sample| sample.operation.total),
        of(&|sample| millis(sample.operation.handover)).show(0),
        each.map_or_else(|| "-".to_owned(), |each| each.show(1)),
        show(&|sample| sample.stall),
        show(&|sample| sample.without),
        show(&|sample| sample.processor.ran),
        show(&|sample| sample.processor.waited),
    );
}

/// Least, median and most of some figures.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        Self {
            least: sorted[0],
            median: sorted[sorted.len() / 2],
            most: sorted[sorted.len() - 1],
        }
    }

    fn show(&self, digits: usize) -> String {
        let Self {
            least,
            median,
            most,
        } = self;
        format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
    }
}
