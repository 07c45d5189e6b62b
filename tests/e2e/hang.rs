//! The supervisor detects a stalled worker without sending it a request, and replaces it. The limit
//! must exceed the time for which a worker may wait for the CPU on a busy machine; one second does.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::image::Image;
use crate::support::observe::{freeze, owner, until, worker_of};
use crate::support::planned::Planned;
use crate::support::{Client, Server};

#[test]
fn stalled_worker_is_replaced_and_queue_served() {
    let planned = Planned::start(&[
        "--listen=127.0.0.1:0",
        "--workers=1",
        "--hang-timeout=1s",
        "--crash-rescue=off",
    ]);
    let server = &planned.server;
    let mark = server.log_len();
    let hung = worker_of(server, 0);
    freeze(&hung);
    // Waits in the queue of a worker that will never accept it.
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"served by the successor");
    server.wait_log_from(mark, |line| line.contains("worker unresponsive"));
    let died = server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
    assert!(
        died.contains("SIGKILL") && died.contains("event loop stalled"),
        "{died}"
    );
    assert!(hung.is_gone());
}

#[test]
fn idle_worker_is_not_reported_stalled() {
    let planned = Planned::start(&[
        "--listen=127.0.0.1:0",
        "--workers=2",
        "--hang-timeout=1s",
        "--log-level=debug",
    ]);
    let server = &planned.server;
    let before = planned.workers();
    let mut client = Client::connect(server.addr());
    // Much longer than the limit, with only probes to handle.
    for _ in 0..3 {
        client.expect_silence(Duration::from_millis(1000));
        planned.workers().assert_untouched_since(&before);
    }
    client.roundtrip(b"here");
}

#[test]
fn resumed_supervisor_blames_no_worker() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--workers=2", "--hang-timeout=1s"]);
    let server: &Server = &planned.server;
    let before = planned.workers();
    let mut client = Client::connect(server.addr());
    server.signal(Signal::SIGSTOP);
    client.expect_silence(Duration::from_millis(2500));
    server.signal(Signal::SIGCONT);
    client.expect_silence(Duration::from_millis(1500));
    planned.workers().assert_untouched_since(&before);
    let workers: Vec<_> = (0..2).map(|slot| worker_of(server, slot)).collect();
    client.roundtrip(b"here");
    assert!(owner(&client, server.addr(), &workers).is_some());
    until("no worker was killed", || server.worker_pids().len() == 2);
}

#[test]
fn full_accept_queue_is_logged() {
    let planned = Planned::start(&[
        "--listen=127.0.0.1:0",
        "--workers=1",
        "--backlog=4",
        "--hang-timeout=off",
    ]);
    let server = &planned.server;
    let mark = server.log_len();
    let frozen = worker_of(server, 0);
    freeze(&frozen);
    // The kernel admits one more than the limit.
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(server.addr())).collect();
    let full = server.wait_log_from(mark, |line| line.contains("accept queue full"));
    assert!(full.contains("slot=0 length=5 limit=4"), "{full}");
    frozen.signal(Signal::SIGCONT);
    let emptied = server.wait_log_from(mark, |line| line.contains("accept queue emptied"));
    assert!(emptied.contains("slot=0 length=0 limit=4"), "{emptied}");
    for client in &mut clients {
        client.roundtrip(b"served in the end");
    }
    let lines = server.log().split_off(mark);
    let full = lines
        .iter()
        .filter(|line| line.contains("accept queue full"));
    assert_eq!(full.count(), 1, "{lines:?}");
}

/// Starts a server with one worker that its supervisor cannot kill.
fn with_held_worker() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let program = folder.path().join("uppercased");
    let image = Image::copy(folder.path());
    image.with_faults("process.kill=fail").replace(&program);
    let server = Server::builder().program(&program).args([
        "--listen=127.0.0.1:0",
        "--workers=1",
        "--hang-timeout=1s",
    ]);
    (folder, server.start())
}

#[test]
fn worker_held_by_kernel_is_replaced() {
    let (_folder, server) = with_held_worker();
    let held = worker_of(&server, 0);
    freeze(&held);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"served by the successor");
    server.wait_log(|line| line.contains("killed worker still running"));
    assert!(!held.is_gone());
    held.signal(Signal::SIGKILL);
    until("it is reaped", || held.is_gone());
}

#[test]
fn stop_fails_without_worker_held_by_kernel() {
    let (_folder, server) = with_held_worker();
    let held = worker_of(&server, 0);
    freeze(&held);
    server.signal(Signal::SIGTERM);
    server.wait_log(|line| line.contains("stopping"));
    server.signal(Signal::SIGTERM);
    let status = server.wait_exit(Duration::from_secs(30));
    held.signal(Signal::SIGKILL);
    assert_eq!(status.code(), Some(1));
    let last = format!("killed processes have not ended: {}", held.pid());
    server.wait_log(|line| line.contains(&last));
}
