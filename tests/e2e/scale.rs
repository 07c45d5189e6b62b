//! Scaling up and down under load: no client is refused, reset or closed.

use std::thread::available_parallelism;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::adversity::skipped;
use crate::support::cgroup::CpuGroup;
use crate::support::load::{Load, LoadSize};
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{freeze, lose_worker, queued, until, worker_of};
use crate::support::planned::Planned;
use crate::support::{Client, DEADLINE, Server};

const QUICK: [&str; 2] = ["--listen=127.0.0.1:0", "--handshake-timeout=200ms"];

#[track_caller]
fn start(args: &[&str]) -> Planned {
    Planned::start(&[&QUICK, args].concat())
}

#[test]
fn scaling_up_and_down_loses_no_client() {
    isolated(|| {
        let before = KernelCounters::read();
        let planned = start(&["--workers=2"]);
        let server = &planned.server;
        let load = Load::start(server.addr(), LoadSize::small());
        for workers in [5, 1, 3, 2, 1, 4] {
            server.scale(workers).expect_success();
            load.go_on_for(30);
            let now = planned.workers();
            now.assert_serving();
            assert_eq!(now.0.len(), usize::from(workers));
            assert_eq!(server.worker_pids().len(), usize::from(workers));
        }
        load.finish().assert_clean();
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(server.stop().code(), Some(0));
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn signals_add_and_remove_one_worker() {
    let planned = start(&["--workers=2"]);
    let server = &planned.server;
    let count = || planned.workers().0.len();
    for (signal, expected) in [
        (Signal::SIGTTIN, 3),
        (Signal::SIGTTOU, 2),
        (Signal::SIGTTOU, 1),
    ] {
        let mark = server.log_len();
        server.signal(signal);
        server.wait_log_from(mark, |line| line.contains("operation done"));
        assert_eq!(count(), expected);
    }
    let mark = server.log_len();
    server.signal(Signal::SIGTTOU);
    server.wait_log_from(mark, |line| {
        line.contains("cannot run 0 workers; use 1 to 1024")
    });
    assert_eq!(count(), 1);
}

#[test]
fn impossible_worker_counts_are_refused() {
    let planned = start(&["--workers=2"]);
    let server = &planned.server;
    let before = planned.workers();
    server.command(&["scale", "0"]).expect_failure("0");
    server.command(&["scale", "2000"]).expect_failure("2000");
    server.command(&["scale", "many"]).expect_failure("many");
    server.scale(2).expect_success();
    planned.workers().assert_untouched_since(&before);
}

#[test]
fn dead_leaving_worker_is_replaced_to_serve_queue() {
    isolated(|| {
        let planned = Planned::start(&[
            "--listen=127.0.0.1:0",
            "--workers=2",
            "--handshake-timeout=1s",
            "--hang-timeout=off",
        ]);
        let server = &planned.server;
        let before = KernelCounters::read();
        let victim = worker_of(server, 1);
        freeze(&victim);
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
        until("clients wait for the worker that stands still", || {
            queued(victim.pid(), server.addr().port()) > 0
        });
        let mark = server.log_len();
        let command = server.start_command(&["scale", "1"]);
        server.wait_log_from(mark, |line| line.contains("operation started"));
        victim.signal(Signal::SIGKILL);
        command.wait().expect_success();
        until("one worker is left", || server.worker_pids().len() == 1);
        // All clients are here, including queued ones, whichever worker accepted them.
        for client in &mut clients {
            client.roundtrip(b"waited, and was moved");
            client.half_close();
            client.expect_eof();
        }
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

/// Kills the workers of a slot until it backs off.
fn break_slot(server: &Server, slot: u16) {
    let mark = server.log_len();
    for _ in 0..2 {
        let generation = lose_worker(server, slot);
        assert!(generation.wait_gone(DEADLINE), "a killed worker ends");
    }
    let note = format!("queue lent to sibling slot={slot} ");
    server.wait_log_from(mark, |line| line.contains(&note));
}

#[test]
fn failing_slot_leaves_and_loses_no_client() {
    isolated(|| {
        let planned = start(&[
            "--workers=2",
            "--backoff-initial=10m",
            "--backoff-max=10m",
            "--hang-timeout=off",
        ]);
        let server = &planned.server;
        break_slot(server, 1);
        let before = KernelCounters::read();
        // Clients wait in the lent queue when the slot is closed.
        let borrower = worker_of(server, 0);
        freeze(&borrower);
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(server.addr())).collect();
        let mark = server.log_len();
        let command = server.start_command(&["scale", "1"]);
        server.wait_log_from(mark, |line| line.contains("queue of leaving slot emptied"));
        borrower.signal(Signal::SIGCONT);
        command.wait().expect_success();
        for client in &mut clients {
            client.roundtrip(b"waited in the queue of a slot that left");
        }
        KernelCounters::read().assert_no_loss_since(&before);
        // The number can be raised again, and other operations work.
        server.scale(2).expect_success();
        server.reload().expect_success();
        planned.workers().assert_serving();
    });
}

/// Limits the supervisor to these CPUs, as a change of its cgroup's does.
fn limit(server: &Server, cpus: &[usize]) {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).expect("a CPU");
    }
    let pid = Pid::from_raw(server.pid().cast_signed());
    sched_setaffinity(pid, &set).expect("limit the supervisor");
}

#[test]
fn workers_follow_cpus_and_lose_no_client() {
    isolated(|| {
        let own = sched_getaffinity(Pid::from_raw(0)).expect("the own CPUs");
        let cpus: Vec<usize> = (0..CpuSet::count())
            .filter(|cpu| own.is_set(*cpu).unwrap_or(false))
            .collect();
        if cpus.len() < 2 || available_parallelism().map_or(0, usize::from) != cpus.len() {
            return skipped("the machine has one CPU, or a quota");
        }
        let before = KernelCounters::read();
        let planned = start(&[]);
        let server = &planned.server;
        assert_eq!(planned.workers().0.len(), cpus.len());
        let load = Load::start(server.addr(), LoadSize::small());
        limit(server, &cpus[..1]);
        server.wait_log(|line| line.contains("event=operation_done") && line.contains("workers=1"));
        let words = format!("cpus changed, scaling workers={} cpus=1", cpus.len());
        assert!(server.log().iter().any(|line| line.contains(&words)));
        load.go_on_for(30);
        limit(server, &cpus);
        until("every CPU has a worker", || {
            planned.workers().0.len() == cpus.len()
        });
        load.finish().assert_clean();
        KernelCounters::read().assert_no_loss_since(&before);
        // An operator's number stays.
        server.scale(1).expect_success();
        limit(server, &cpus[..1]);
        server.reload().expect_success();
        limit(server, &cpus);
        server.reload().expect_success();
        assert_eq!(planned.workers().0.len(), 1);
    });
}

/// The quota of the server's cgroup changes, as at the resize of a pod in place.
#[test]
fn workers_follow_cpu_quota_and_lose_no_client() {
    isolated(|| {
        let group = match CpuGroup::new() {
            Ok(group) => group,
            Err(why) => return skipped(&why),
        };
        let cpus = available_parallelism().map_or(0, usize::from);
        if cpus < 2 {
            return skipped("the machine has one CPU, or a quota");
        }
        let before = KernelCounters::read();
        let (shell, program) = group.program(env!("CARGO_BIN_EXE_uppercased"));
        let server = Server::builder().program(shell).args(program).args(QUICK);
        let server = server.start();
        assert_eq!(server.worker_pids().len(), cpus);
        let load = Load::start(server.addr(), LoadSize::small());
        for (quota, workers) in [(Some(1), 1), (None, cpus)] {
            let mark = server.log_len();
            group.limit(quota);
            server.wait_log_from(mark, |line| line.contains("event=cpus_changed"));
            server.wait_log_from(mark, |line| line.contains("event=operation_done"));
            assert_eq!(server.worker_pids().len(), workers);
            load.go_on_for(30);
        }
        load.finish().assert_clean();
        KernelCounters::read().assert_no_loss_since(&before);
        assert_eq!(server.stop().code(), Some(0));
    });
}
