//! Placement of connections and workers: steering, CPU pinning, and busy polling.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use uppercased_ctl::clock::now;
use uppercased_ctl::metrics::Counter;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::observe::{lose_worker, some_within, state, until, worker_of};
use crate::support::planned::Planned;
use crate::support::usage::{Counters, cpu_time};
use crate::support::{Client, Server};

const QUICK: [&str; 3] = [
    "--listen=127.0.0.1:0",
    "--handshake-timeout=300ms",
    "--bake-time=0s",
];

fn usable_cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("the own affinity");
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).expect("in range"))
        .collect()
}

/// Runs `body` in a thread that stays on one CPU.
fn on_cpu<T: Send>(cpu: usize, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let there = scope.spawn(move || {
            let mut set = CpuSet::new();
            set.set(cpu).expect("in range");
            sched_setaffinity(Pid::from_raw(0), &set).expect("a CPU that may be used");
            body()
        });
        there.join().expect("a check failed there")
    })
}

/// Returns the number of connections accepted by each slot so far.
#[track_caller]
fn accepted(server: &Server) -> Vec<u64> {
    let status = server.status_json();
    let slots = status["slots"].as_array().expect("slots");
    let count = |slot: &serde_json::Value| slot["accepted"].as_u64().expect("a number");
    slots.iter().map(count).collect()
}

/// Returns how many of `count` connections from `cpu` each slot accepts.
#[track_caller]
fn taken_from(server: &Server, cpu: usize, count: usize) -> Vec<u64> {
    let before = accepted(server);
    on_cpu(cpu, || exchange(server.addr(), count));
    let after = accepted(server).into_iter().zip(before);
    after.map(|(after, before)| after - before).collect()
}

/// Exchanges a message on each of `count` connections; a reply implies acceptance.
#[track_caller]
fn exchange(addr: SocketAddr, count: usize) {
    for _ in 0..count {
        Client::connect(addr).roundtrip(b"where do i go");
    }
}

/// Asserts that connections from the CPUs go only to the slots of those CPUs.
#[track_caller]
fn assert_steered(server: &Server, cpus: &[usize], slots: usize) {
    for (at, &cpu) in cpus.iter().enumerate() {
        let taken = taken_from(server, cpu, 24);
        assert_eq!(taken.len(), slots);
        for (slot, &count) in taken.iter().enumerate() {
            let own = slot % cpus.len() == at;
            assert_eq!(
                count > 0,
                own,
                "CPU {cpu}, slot {slot} of {slots}: {taken:?}"
            );
        }
    }
}

#[test]
fn cpu_steering_survives_worker_changes() {
    let cpus = usable_cpus();
    if cpus.len() < 2 {
        skipped("this test needs two CPUs");
        return;
    }
    let cpus = &cpus[..];
    let here = u16::try_from(cpus.len()).expect("a machine for tests");
    let workers = format!("--workers={here}");
    // No queue is lent, so that no sibling accepts another worker's connections.
    let more = [&*workers, "--steer=cpu", "--pin", "--lend-after=1m"];
    let planned = Planned::start(&[&QUICK[..], &more].concat());
    let server = &planned.server;
    let slots = usize::from(here);
    assert_steered(server, cpus, slots);
    server.reload().expect_success();
    assert_steered(server, cpus, slots);
    server.scale(2 * here).expect_success();
    assert_steered(server, cpus, 2 * slots);
    server.scale(here).expect_success();
    assert_steered(server, cpus, slots);
    planned.install(Image::copy(planned.folder()));
    server.upgrade().expect_success();
    assert_steered(server, cpus, slots);
    let mark = server.log_len();
    lose_worker(server, 0);
    server.wait_log_from(mark, |line| line.contains("worker ready"));
    assert_steered(server, cpus, slots);
}

#[test]
fn random_steering_reaches_every_worker() {
    let planned = Planned::start(&[&QUICK[..], &["--workers=3"]].concat());
    let server = &planned.server;
    planned.configure("steer = \"random\"\n");
    server.reload().expect_success();
    let cpu = usable_cpus()[0];
    let taken = taken_from(server, cpu, 90);
    assert!(taken.iter().all(|&count| count > 5), "{taken:?}");
    let status = server.status_json();
    let slots = status["slots"].as_array().expect("slots");
    let shares = slots.iter().map(|slot| slot["accepted_percent"].as_u64());
    let sum: u64 = shares.flatten().sum();
    assert!((98..=102).contains(&sum), "{status}");
    // By CPU: they go to the workers of that CPU, every n-th slot from the first on.
    planned.configure("steer = \"cpu\"\n");
    server.reload().expect_success();
    let taken = taken_from(server, cpu, 20);
    let step = usable_cpus().len();
    let own: u64 = taken.iter().step_by(step).sum();
    assert_eq!(own, 20, "{taken:?}");
    // By hash: any worker may get them.
    planned.configure("");
    server.reload().expect_success();
    let taken = taken_from(server, cpu, 90);
    assert!(taken.iter().all(|&count| count > 5), "{taken:?}");
}

#[test]
fn steering_excludes_shared_port() {
    let (code, error) = Server::expect_failure(&["--share-port", "--steer=cpu"]);
    assert_eq!(code, 2);
    assert!(error.contains("--steer: "), "{error}");
}

#[test]
fn pinned_workers_keep_cpus_after_restarts_and_crashes() {
    let cpus = usable_cpus();
    let planned = Planned::start(&[&QUICK[..], &["--workers=3", "--pin"]].concat());
    let server = &planned.server;
    let assert_pinned = |slots: usize| {
        let status = server.status_json();
        let slots_shown = status["slots"].as_array().expect("slots");
        assert_eq!(slots_shown.len(), slots);
        for (slot, shown) in slots_shown.iter().enumerate() {
            let expected = cpus[slot % cpus.len()] as u64;
            assert_eq!(shown["cpu"].as_u64(), Some(expected), "{shown}");
        }
    };
    assert_pinned(3);
    server.reload().expect_success();
    assert_pinned(3);
    server.scale(4).expect_success();
    assert_pinned(4);
    planned.install(Image::copy(planned.folder()));
    server.upgrade().expect_success();
    assert_pinned(4);
    let mark = server.log_len();
    lose_worker(server, 1);
    server.wait_log_from(mark, |line| line.contains("worker ready"));
    assert_pinned(4);
    exchange(server.addr(), 8);
}

/// Waits until the worker sleeps; returns its CPU time so far.
#[track_caller]
fn idle_time(worker: u32) -> Duration {
    // Several consecutive samples, with pauses, in which a polling worker would be running.
    let mut polls = 0;
    until("the worker sleeps", || {
        let sleeps = state(worker) == Some('S');
        polls = if sleeps { polls + 1 } else { 0 };
        polls == 40
    });
    cpu_time(worker)
}

/// Polling shows in CPU time, not in turns, and ends. The gain in speed is not tested.
#[test]
fn busy_polling_worker_eventually_sleeps() {
    let start = |more: &[&str]| {
        let server = Server::start(&[&QUICK[..], &["--workers=1"], more].concat());
        let worker = worker_of(&server, 0).pid();
        exchange(server.addr(), 3);
        (server, worker)
    };
    const MESSAGES: u64 = 20;
    // CPU time far above that for a message or two.
    const POLLING: Duration = Duration::from_millis(50);
    let (plain, worker) = start(&[]);
    let before = idle_time(worker);
    exchange(plain.addr(), MESSAGES as usize);
    let without = idle_time(worker) - before;
    assert!(without < POLLING, "{without:?} without polling");
    let (server, worker) = start(&["--busy-poll=1s"]);
    let before = idle_time(worker);
    // One message is enough, unless the worker gets almost no CPU time during that second.
    let polled = (0..MESSAGES).find_map(|_| {
        exchange(server.addr(), 1);
        some_within(Duration::from_secs(2), || {
            (cpu_time(worker) >= before + POLLING).then_some(())
        })
    });
    assert!(polled.is_some(), "{:?}", cpu_time(worker) - before);
    idle_time(worker);
    let counters = Counters::of(&server);
    let turns = counters.count(Counter::Turns);
    assert!(turns < 300, "{turns} turns for a few messages");
    // It sleeps and still responds, including to the supervisor's stall probe.
    exchange(server.addr(), 1);
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(plain.stop().code(), Some(0));
}

/// One second of polling exceeds the supervisor's stall timeout.
#[test]
fn busy_polling_worker_is_not_reported_stalled() {
    let server = Server::start(
        &[
            &QUICK[..],
            &["--workers=1", "--busy-poll=1s", "--hang-timeout=800ms"],
        ]
        .concat(),
    );
    let worker = worker_of(&server, 0).pid();
    let mut client = Client::connect(server.addr());
    for _ in 0..2 {
        client.roundtrip(b"and now a second of silence");
        idle_time(worker);
    }
    assert_eq!(worker_of(&server, 0).pid(), worker);
    assert_eq!(server.stop().code(), Some(0));
}

/// Not a test: reports the effect of polling before sleep on response times, and its cost. Run it
/// on an idle machine, with `cargo test --release --test e2e placement:: -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn report_latency_with_and_without_polling() {
    const SPAN: Duration = Duration::from_secs(2);
    for connections in [1, 50] {
        for busy_poll in ["off", "50us", "1ms"].repeat(3) {
            let flag = format!("--busy-poll={busy_poll}");
            let server = Server::start(&[&QUICK[..], &["--workers=1", "--pin", &flag]].concat());
            let worker = worker_of(&server, 0).pid();
            let clients: Vec<Client> = (0..connections)
                .map(|_| Client::connect(server.addr()))
                .collect();
            let before = cpu_time(worker);
            // With a second CPU, the worker has the first one to itself.
            let cpu = *usable_cpus().last().expect("one at least");
            let mut times = on_cpu(cpu, || exchanged(clients, SPAN));
            let used = cpu_time(worker) - before;
            times.sort_unstable();
            let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize];
            eprintln!(
                "{connections:2} connections, busy_poll {busy_poll:4}: {:7} exchanges, p50 {:?}, \
                 p99 {:?}, {:.0} % of a CPU",
                times.len(),
                at(0.5),
                at(0.99),
                used.as_secs_f64() / SPAN.as_secs_f64() * 100.0
            );
        }
    }
}

/// Returns the response times of messages of 64 bytes, sent one after the other on each connection.
fn exchanged(clients: Vec<Client>, span: Duration) -> Vec<Duration> {
    let end = now() + span;
    let talk = |mut client: Client| {
        let mut times = Vec::new();
        let mut sent = now();
        while sent < end {
            client.roundtrip(&[b'x'; 64]);
            let answered = now();
            times.push(answered.since(sent));
            sent = answered;
        }
        times
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .into_iter()
            .map(|client| scope.spawn(move || talk(client)))
            .collect();
        let ended = running.into_iter();
        let times = ended.flat_map(|one| one.join().expect("every answer is right"));
        times.collect()
    })
}
