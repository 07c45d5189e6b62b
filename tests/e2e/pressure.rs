//! A server with an external memory limit: with the memory required by docs/reference.md it serves
//! as if unlimited; with less, a worker is killed, the log names the cause, and only its own
//! clients are affected.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use socket2::SockRef;

use crate::support::adversity::{fill_all, skipped};
use crate::support::baseline::Baseline;
use crate::support::cgroup::MemoryGroup;
use crate::support::observe::{descriptors, keepers_of, sockets, until, until_some};
use crate::support::scene::{Scene, WORKER_BYTES_MAX, WORKER_SLACK_BYTES};
use crate::support::usage::Counters;
use crate::support::{Client, Server};

/// Upper bound of one connection's kernel memory, where it counts.
const KERNEL_BYTES_MAX: u64 = 1 << 20;

/// Returns a memory group, or reports why there is none.
fn group() -> Option<MemoryGroup> {
    MemoryGroup::new().map_err(|why| skipped(&why)).ok()
}

#[test]
fn documented_bound_fits_memory_cgroup() {
    const READERS: usize = 60;
    let Some(group) = group() else {
        return;
    };
    let scene = Scene::start(&["--max-connections=100", "--write-stall-timeout=10m"]);
    group.take(&scene.server);
    let before = group.used();
    let mut bound = READERS as u64 * WORKER_BYTES_MAX + WORKER_SLACK_BYTES;
    if group.counts_sockets() {
        bound += READERS as u64 * KERNEL_BYTES_MAX;
    }
    group.limit(before + bound);
    let readers = scene.connect(READERS);
    fill_all(&readers, &scene.counters);
    let mut crowd = scene.connect(30);
    for client in &mut crowd {
        client.roundtrip(b"in a full house");
    }
    let grown = group.used() - before;
    println!(
        "{READERS} readers: {grown} of {bound} bytes; at most {:?}",
        group.peak()
    );
    assert!(grown >= READERS as u64 * 16 * 1024, "they hold something");
    drop((readers, crowd));
    assert_eq!(group.kills(), 0);
    let worker = scene.worker;
    scene.counters.wait_open(1);
    until("the memory is released", || {
        group.used() <= before + WORKER_SLACK_BYTES
    });
    assert_eq!(scene.server.worker_pids(), [worker]);
    scene.assert_as_before();
}

#[test]
fn oom_killed_worker_is_replaced_with_cause() {
    const CLIENTS: usize = 500;
    const LIMIT_BYTES: u64 = 8 << 20;
    let Some(group) = group() else {
        return;
    };
    // Small buffers in the kernel, so that the worker's memory fills up.
    let (shell, program) = group.program(env!("CARGO_BIN_EXE_uppercased"));
    let server = Server::builder().program(shell).args(program);
    let server = server.args([
        "--listen=127.0.0.1:0",
        "--workers=2",
        "--send-buffer=16KiB",
        "--recv-buffer=128KiB",
        "--backoff-initial=10ms",
        "--crash-rescue=off",
    ]);
    let server = server.start();
    let counters = Counters::of(&server);
    let port = server.addr().port();
    let mut good = Client::connect(server.addr());
    good.roundtrip(b"before");
    let good_ones = |pid: &u32| clients_of(*pid, port).contains(&good.local_addr());
    let kept = server.worker_pids().into_iter().find(good_ones);
    let kept = kept.expect("it was taken");
    let before = Baseline::of(&server);
    group.limit(group.used() + LIMIT_BYTES);

    let readers = (0..CLIENTS).map(|_| Client::connect(server.addr()));
    let mut readers: Vec<Client> = readers.collect();
    counters.wait_open(CLIENTS as u64 + 1);
    // The other worker owns all of them.
    let others = clients_of(kept, port);
    readers.retain(|client| !others.contains(&client.local_addr()));
    counters.wait_open(readers.len() as u64 + 1);
    let mark = server.log_len();
    until("a worker has exited", || !push(&readers));
    let died = server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
    let explained = died.contains("SIGKILL") && died.contains("out of memory (oom_kill in ");
    assert!(explained, "{died}");
    assert_eq!(group.kills(), 1, "it was the kernel");
    let lost = readers.len();
    drop(readers);

    // Clients of a worker with enough memory are unaffected.
    good.roundtrip(b"still here");
    assert!(server.worker_pids().contains(&kept), "the other one lives");
    counters.wait_open(1);
    for _ in 0..20 {
        Client::connect(server.addr()).roundtrip(b"and so are new ones");
    }
    let status = server.status_json();
    assert_eq!(status["totals"]["crashes"], 1, "{status}");
    assert_eq!(status["totals"]["closed"]["worker_died"], lost, "{status}");
    let slots = status["slots"].as_array().expect("its slots").iter();
    let mut causes = slots.filter_map(|slot| slot["last_crashes"][0]["error"].as_str());
    assert!(causes.any(|it| it.contains("out of memory")), "{status}");
    counters.wait_open(1);
    before.assert_back(&server);
}

/// The keeper is in a group of its own, so that the kernel kills the worker, and once.
#[test]
fn rescued_oom_kill_has_its_cause() {
    const READERS: usize = 200;
    const LIMIT_BYTES: u64 = 1 << 20;
    let (Some(group), Some(others)) = (group(), group()) else {
        return;
    };
    let (shell, program) = group.program(env!("CARGO_BIN_EXE_uppercased"));
    let server = Server::builder().program(shell).args(program);
    let server = server.args([
        "--listen=127.0.0.1:0",
        "--workers=1",
        "--send-buffer=16KiB",
        "--recv-buffer=128KiB",
        "--crash-rescue=on",
    ]);
    let server = server.start();
    let counters = Counters::of(&server);
    let mut good = Client::connect(server.addr());
    good.roundtrip(b"before");
    let readers: Vec<Client> = (0..READERS)
        .map(|_| Client::connect(server.addr()))
        .collect();
    counters.wait_open(READERS as u64 + 1);
    let keeper = until_some("the worker has a keeper", || {
        keepers_of(&server, 0).first().copied()
    });
    others.take_process(keeper);
    group.limit(group.used() + LIMIT_BYTES);
    until("the kernel kills the worker", || {
        assert!(push(&readers), "a client is reset");
        group.kills() > 0
    });
    group.limit(1 << 40);
    let line = server.wait_log(|line| line.contains("event=worker_rescued"));
    for part in ["SIGKILL", "out of memory (oom_kill in ", " reset=0 "] {
        assert!(line.contains(part), "{line}");
    }
    good.roundtrip(b"after");
    assert_eq!(counters.open(), READERS as u64 + 1);
    let crash = server.status_json()["slots"][0]["last_crashes"][0]["error"].clone();
    assert!(crash.to_string().contains("out of memory"), "{crash}");
    drop(readers);
    assert!(server.stop().success());
}

#[test]
fn kernel_kills_supervisor_last_for_memory() {
    let server = Server::builder().args(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"]);
    let server = server.start();
    let score = |pid: u32| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        text.expect("a process").trim().parse().expect("a number")
    };
    let mut children = server.worker_pids();
    let admin = || server.status_json()["admin"]["pid"].as_u64();
    until("the admin process is there", || admin().is_some());
    children.extend(admin().and_then(|pid| u32::try_from(pid).ok()));
    let supervisor = score(server.pid());
    for child in children {
        until("it is more likely to be killed", || {
            score(child) == (supervisor + 100).min(1000)
        });
    }
}

/// Returns the clients of a worker.
fn clients_of(worker: u32, port: u16) -> BTreeSet<SocketAddr> {
    let held: BTreeSet<String> = descriptors(worker).into_values().collect();
    let all = sockets(port).into_iter();
    let its_own = all.filter(|it| held.contains(&format!("socket:[{}]", it.inode)));
    its_own.map(|it| it.remote_address).collect()
}

/// Sends as much as each client can without reading; returns whether none was reset.
fn push(clients: &[Client]) -> bool {
    let bytes = vec![b'x'; 64 << 10];
    clients.iter().all(|client| {
        let socket = SockRef::from(client.socket());
        socket
            .set_send_buffer_size(32 << 10)
            .expect("a small buffer");
        socket
            .set_recv_buffer_size(4 << 10)
            .expect("a small buffer");
        loop {
            match socket.send_with_flags(&bytes, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    })
}
