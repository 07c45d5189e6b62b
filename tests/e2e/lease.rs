//! The lease: workers without a supervisor drain at once when the service manager gives the server
//! up, and serve on while it keeps what they have stored. The test acts as the service manager;
//! `tests/systemd/run` uses the real one.

use std::time::Duration;

use crate::adopt::{adopted, kill_orphan, kill_supervisor, next};
use crate::support::observe::until;
use crate::support::service_manager::ServiceManager;
use crate::support::{Client, Server};

/// More than the time after which an orphan looks at its lease.
const SILENCE: Duration = Duration::from_millis(400);

/// Starts a server of one worker, which without a supervisor serves on for longer than any test.
#[track_caller]
fn start(manager: &ServiceManager) -> Server {
    Server::builder()
        .args(["--listen=127.0.0.1:0", "--workers=1"])
        .args(["--crash-rescue=true", "--orphan-timeout=1h"])
        .env("NOTIFY_SOCKET", manager.notify_socket())
        .start()
}

#[track_caller]
fn expect_served(client: &mut Client) {
    client.expect_silence(SILENCE);
    client.roundtrip(b"served without a supervisor");
}

/// Expects that the worker of `server` drains now.
#[track_caller]
fn expect_drained(mut client: Client, server: &Server) {
    client.expect_eof();
    drop(client);
    let line = server.wait_log(|line| line.contains("event=orphan_stopped"));
    assert!(line.contains("reason=lease_ended"), "{line}");
    until("every process has exited", || server.processes().is_empty());
}

#[test]
fn orphan_drains_when_lease_ends() {
    let manager = ServiceManager::start();
    let server = start(&manager);
    manager.wait_leased();
    let mut client = Client::connect(server.addr());
    kill_supervisor(&server, 1);
    expect_served(&mut client);
    kill_orphan(&server);
    expect_served(&mut client);
    manager.empty_store();
    expect_drained(client, &server);
}

/// Whatever happens to the lease of the supervisor before. The configuration of the later starts is
/// invalid, so they do not replace the worker.
#[test]
fn adopted_worker_has_lease_of_each_supervisor() {
    let manager = ServiceManager::start();
    let first = start(&manager);
    manager.wait_leased();
    let mut client = Client::connect(first.addr());
    kill_supervisor(&first, 1);
    let mut supervisors = Vec::new();
    for _ in 0..2 {
        expect_served(&mut client);
        let mark = manager.len();
        let server = next(&first, &[])
            .env("NOTIFY_SOCKET", manager.notify_socket())
            .env("UPPERCASED_IDLE_TIMEOUT", "soon")
            .hand_over(manager.stored())
            .start();
        assert_eq!(adopted(&server), 1);
        // Then that of the supervisor before goes, because the worker has this one.
        manager.wait_for(mark, "FDSTORE=1\nFDNAME=lease");
        manager.wait_leased();
        server.kill();
        supervisors.push(server);
    }
    expect_served(&mut client);
    kill_orphan(&first);
    expect_served(&mut client);
    manager.empty_store();
    expect_drained(client, &first);
}

#[test]
fn upgrade_keeps_lease() {
    for is_stored_before in [true, false] {
        let manager = ServiceManager::start();
        manager.hold(!is_stored_before);
        let server = start(&manager);
        if is_stored_before {
            manager.wait_leased();
        }
        server.upgrade().expect_success();
        manager.hold(false);
        manager.wait_leased();
        let mut client = Client::connect(server.addr());
        kill_supervisor(&server, 1);
        expect_served(&mut client);
        manager.empty_store();
        expect_drained(client, &server);
    }
}

/// A lease that was never stored, or was let go of while the supervisor ran, tells nothing.
#[test]
fn void_lease_ends_no_orphan() {
    for is_stored in [true, false] {
        let manager = if is_stored {
            ServiceManager::start()
        } else {
            ServiceManager::start_silent()
        };
        let server = start(&manager);
        let mut client = Client::connect(server.addr());
        if is_stored {
            manager.wait_leased();
            manager.empty_store();
            server.wait_log(|line| line.contains("event=lease_voided"));
        }
        kill_supervisor(&server, 1);
        drop(manager);
        expect_served(&mut client);
    }
}
