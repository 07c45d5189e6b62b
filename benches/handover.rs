//! The cost of a planned operation with live connections: its duration, and its effect on the
//! clients.
//!
//! The built program serves with one worker, the load generator's engine holds connections to it,
//! and the bench sends commands to the control socket. [`PINGING`] of the clients ping, each with
//! one outstanding message of 64 bytes; the others are idle, or have sent without reading until no
//! bytes moved, so that the worker has pending output to migrate. Every byte is compared, every
//! connection is checked at the end, and a lost, reset or wrong one fails the bench.
//!
//! A line is one case; each figure is the median of its rounds, with minimum and maximum in
//! brackets:
//!
//! - `total`: from the request to the result, measured by the caller. For a reload: start of the
//!   new worker, handover, exit of the old one. An upgrade first runs the pre-flight check and the
//!   exec of the supervisor. `scale 1` waits for handshakes before it migrates connections (the
//!   wait is short here, and part of the total).
//! - `handover`: the handover's share of it, from the supervisor's command to the last
//!   acknowledgement, from the log, in whole milliseconds.
//! - `each`: the handover's share divided by the number of migrated connections.
//! - `stall`: the longest time from a ping to its reply that any client measured during the
//!   operation, in intervals of 5 ms; `without`: the same over an equal time just before, without
//!   an operation. Only the difference is caused by the operation: the pinging clients keep worker
//!   and clients busy, and on a machine with few cores a new process competes with them, as does
//!   any other load.
//! - `ran`, `waited`: scheduler times of the new worker, from its start to the result: time
//!   running, and time runnable but not running. The first is the work, and hardly depends on other
//!   load.
//!
//! `cargo bench --bench handover`; without `--bench` among its arguments, it runs one small round
//! as a smoke test.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock, waits, and is several parties at once"
)]

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use uppercased_bench::team::{PART, run_part};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::control::{Options, Request, ScaleTo};
use uppercased_ctl::process::raise_descriptor_limit;

use self::clients::{Clients, INTERVAL, Load, Stalls};
use self::server::{HANDSHAKE_TIMEOUT, Operation, ProcessorTime, Server};

#[path = "handover/clients.rs"]
mod clients;
#[path = "handover/server.rs"]
mod server;

/// Clients that ping.
const PINGING: usize = 32;
/// Rounds of a case.
const ROUNDS: usize = 15;
/// Rounds of a case that needs new connections for each round.
const SLOW_ROUNDS: usize = 5;
/// One client in this many does not read, in the cases with stalled clients.
const ONE_STALLED_IN: usize = 20;
/// Descriptors that a process needs for the largest case.
const DESCRIPTORS: u64 = 11_000;

/// One round.
#[derive(Clone, Debug)]
struct Round {
    operation: Operation,
    processor: ProcessorTime,
    /// From the request to the result.
    window: Range<Tick>,
    /// An equal time without an operation.
    without: Range<Tick>,
}

/// The figures of a round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    operation: Operation,
    processor: ProcessorTime,
    stall: Duration,
    /// The same without an operation.
    without: Duration,
}

impl Round {
    fn sample(&self, stalls: &Stalls) -> Sample {
        Sample {
            operation: self.operation,
            processor: self.processor,
            stall: stalls.longest(&self.window),
            without: stalls.longest(&self.without),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == PART) {
        return run_part();
    }
    if args.iter().any(|arg| arg == "--bench") {
        measure();
    } else {
        try_out();
    }
    ExitCode::SUCCESS
}

fn measure() {
    let descriptors = raise_descriptor_limit().expect("the limit");
    assert!(
        descriptors >= DESCRIPTORS,
        "a process may have {descriptors} descriptors, and {DESCRIPTORS} are needed; see ulimit -Hn"
    );
    headline();
    for connections in [0, 1_000, 10_000] {
        repeat(
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
        repeat("reload", Request::Reload(Options::default()), load, ROUNDS);
    }
    repeat(
        "upgrade",
        Request::Upgrade(Options::default()),
        idle(10_000),
        ROUNDS,
    );
    scaling(idle(10_000), SLOW_ROUNDS);
}

/// Runs a short smoke test.
fn try_out() {
    headline();
    let load = Load {
        idle: 100,
        pinging: 4,
        stalled: 4,
    };
    repeat("reload", Request::Reload(Options::default()), load, 1);
    scaling(load, 1);
}

const fn idle(connections: usize) -> Load {
    Load {
        idle: connections,
        pinging: PINGING,
        stalled: 0,
    }
}

/// Repeats one operation over the same connections.
fn repeat(name: &str, request: Request, load: Load, rounds: usize) {
    let server = Server::start();
    let clients = Clients::start(&server, load);
    // The duration is unknown before the first round, which is not counted.
    let mut span = server.run(request).total;
    let rounds: Vec<Round> = (0..rounds)
        .map(|_| {
            let round = round(&server, request, span);
            span = round.operation.total;
            assert_eq!(round.operation.migrated, load.total() as u64);
            round
        })
        .collect();
    let stalls = clients.finish();
    server.stop();
    let samples: Vec<Sample> = rounds.iter().map(|round| round.sample(&stalls)).collect();
    row(name, load, &samples);
}

/// Adds a worker and removes it again; the remaining one takes over its connections, about half of
/// all, which are new in every round.
fn scaling(load: Load, rounds: usize) {
    let server = Server::start();
    let (mut more, mut fewer) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let clients = Clients::start(&server, load);
        let [up, down] = [2, 1].map(|to| Request::Scale {
            workers: ScaleTo::Exactly(to),
            options: Options::default(),
        });
        let span = 2 * HANDSHAKE_TIMEOUT;
        let round_up = round(&server, up, span);
        more.push(round_up.sample(&clients.finish()));
        let clients = Clients::start(&server, load);
        let round_down = round(&server, down, span);
        fewer.push(round_down.sample(&clients.finish()));
    }
    server.stop();
    row("scale 2", load, &more);
    row("scale 1", load, &fewer);
}

/// Measures an equal time without the operation, then the operation.
fn round(server: &Server, request: Request, span: Duration) -> Round {
    // The previous operation may extend into the current interval.
    std::thread::sleep(INTERVAL);
    let begun = clock::now();
    std::thread::sleep(span);
    let without = begun..clock::now();
    let earlier = server.processor_time();
    let begun = clock::now();
    let operation = server.run(request);
    let window = begun..clock::now();
    let processor = server.processor_time().since(earlier);
    Round {
        operation,
        processor,
        window,
        without,
    }
}

fn headline() {
    // Other load on these CPUs affects almost every figure, so report it.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{processors} processors, load average {load}");
    println!(
        "{:8} {:>6} {:>7} {:>8}  {:20} {:16} {:17} {:20} {:20} {:17} waited, ms",
        "",
        "idle",
        "stalled",
        "migrated",
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
    let migrated = of(&|sample| sample.operation.migrated as f64);
    // Over a few connections, whole milliseconds are meaningless.
    let each = (migrated.least >= 500.0).then(|| {
        of(&|sample| millis(sample.operation.handover) * 1e3 / sample.operation.migrated as f64)
    });
    let Load { idle, stalled, .. } = load;
    println!(
        "{name:8} {idle:>6} {stalled:>7} {:>8.0}  {:20} {:16} {:17} {:20} {:20} {:17} {}",
        migrated.median,
        show(&|sample| sample.operation.total),
        of(&|sample| millis(sample.operation.handover)).show(0),
        each.map_or_else(|| "-".to_owned(), |each| each.show(1)),
        show(&|sample| sample.stall),
        show(&|sample| sample.without),
        show(&|sample| sample.processor.ran),
        show(&|sample| sample.processor.waited),
    );
}

/// Minimum, median and maximum of a list of figures.
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
