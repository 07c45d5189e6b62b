//! `SIGTERM` from a service manager: a stop drains, a restart leaves the workers to the next
//! supervisor. A script stands in for `busctl`; `tests/systemd/run` uses the real one.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::support::image::Image;
use crate::support::observe::{until, worker_of};
use crate::support::service_manager::ServiceManager;
use crate::support::{Client, DEADLINE, Server};

/// Answers like `busctl` about a job of the type in the file `job`, or about none without that file.
const BUSCTL: &str = r#"cd "${0%/*}"
case "$*" in
*Unit\ Job) [ -e job ] && echo '(uo) 7 "/org/freedesktop/systemd1/job/7"' || echo '(uo) 0 "/"' ;;
*/job/7\ *JobType) read -r job <job && echo "s \"$job\"" ;;
*) exit 1 ;;
esac"#;

/// Puts a program `busctl` in a folder of its own.
fn busctl(script: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let image = Image::script(folder.path(), script);
    fs::rename(image.path(), folder.path().join("busctl")).expect("rename an own file");
    folder
}

fn set_job(folder: &TempDir, job: &str) {
    fs::write(folder.path().join("job"), format!("{job}\n")).expect("write an own file");
}

/// Returns a `PATH` on which `programs` comes first.
fn path_with(programs: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", programs.display())
}

/// Starts a server under `manager` that finds `busctl` in `programs` first.
fn start(manager: &ServiceManager, programs: &Path, args: &[&str]) -> Server {
    Server::builder()
        .env("NOTIFY_SOCKET", manager.notify_socket())
        .env("PATH", path_with(programs))
        .args(["--listen=127.0.0.1:0", "--workers=2"])
        .args(args)
        .start()
}

/// Starts a server under a service manager that runs `job`, or none if it is empty.
fn start_with_job(job: &str, orphan_timeout: &str) -> (Server, TempDir, ServiceManager) {
    let (manager, programs) = (ServiceManager::start(), busctl(BUSCTL));
    if !job.is_empty() {
        set_job(&programs, job);
    }
    let orphan_timeout = format!("--orphan-timeout={orphan_timeout}");
    let server = start(&manager, programs.path(), &[&orphan_timeout]);
    (server, programs, manager)
}

#[test]
fn restart_leaves_workers_serving() {
    for job in ["restart", "try-restart", "start"] {
        let (server, _programs, _manager) = start_with_job(job, "1h");
        let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.addr())).collect();
        let workers = [0, 1].map(|slot| worker_of(&server, slot));
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
        let line = server.wait_log(|line| line.contains("event=server_leaving"));
        assert!(line.contains("workers=2 connections=8"), "{line}");
        for client in &mut clients {
            client.roundtrip(b"served without a supervisor");
        }
        Client::connect(server.addr()).roundtrip(b"a new client");
        // Each still has its keeper.
        assert_eq!(server.processes().len(), 4);
        drop(clients);
        for worker in workers {
            worker.signal(Signal::SIGTERM);
        }
        until("every process has exited", || server.processes().is_empty());
    }
}

#[test]
fn stop_and_stray_signal_drain() {
    for job in ["stop", ""] {
        let (server, _programs, _manager) = start_with_job(job, "1h");
        let mut client = Client::connect(server.addr());
        server.signal(Signal::SIGTERM);
        client.expect_eof();
        drop(client);
        assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
        assert!(server.processes().is_empty());
        let log = server.whole_log();
        assert!(!log.iter().any(|line| line.contains("service_job_unknown")));
    }
}

#[test]
fn stop_follows_unknown_job() {
    for (script, cause) in [
        (
            "echo 'Failed to connect to bus' >&2; exit 1",
            "Failed to connect to bus",
        ),
        ("echo nonsense", "unknown answer of systemd: nonsense"),
    ] {
        let (manager, programs) = (ServiceManager::start(), busctl(script));
        let server = start(&manager, programs.path(), &["--orphan-timeout=1h"]);
        server.signal(Signal::SIGTERM);
        let line = server.wait_log(|line| line.contains("event=service_job_unknown"));
        assert!(line.contains(cause), "{line}");
        assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
        assert!(server.processes().is_empty());
    }
}

/// The client is served while the question is open; a second signal ends it.
#[test]
fn silent_service_manager_delays_no_stop() {
    for is_impatient in [false, true] {
        let programs = busctl(r#"read -r line <"${0%/*}/gate""#);
        let gate = programs.path().join("gate");
        nix::unistd::mkfifo(&gate, Mode::S_IRWXU).expect("make a FIFO");
        let gate = fs::OpenOptions::new().read(true).write(true).open(gate);
        let mut gate = gate.expect("both ends, so this waits for nobody");
        let manager = ServiceManager::start();
        let server = start(&manager, programs.path(), &["--orphan-timeout=1h"]);
        let mut client = Client::connect(server.addr());
        server.signal(Signal::SIGTERM);
        client.roundtrip(b"while systemd is asked");
        if is_impatient {
            server.signal(Signal::SIGTERM);
        } else {
            let line = server.wait_log(|line| line.contains("event=service_job_unknown"));
            assert!(line.contains("no answer in time"), "{line}");
        }
        client.expect_eof();
        drop(client);
        assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
        // It is left to its own timeout.
        gate.write_all(b"\n").expect("there is room");
        until("every process has exited", || server.processes().is_empty());
    }
}

#[test]
fn restart_drains_without_orphan_timeout() {
    let (server, _programs, _manager) = start_with_job("restart", "0s");
    let mut client = Client::connect(server.addr());
    server.signal(Signal::SIGTERM);
    client.expect_eof();
    drop(client);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    assert!(server.processes().is_empty());
}

/// Runs `drain-leftovers` as systemd does for `ExecStopPost=`.
fn after_stop(server: &Server, programs: &Path, result: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["drain-leftovers", "--control"])
        .arg(server.control())
        .env("SERVICE_RESULT", result)
        .env("PATH", path_with(programs))
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn leftovers_drain_at_stop_only() {
    let (server, programs, _manager) = start_with_job("restart", "1h");
    let mut client = Client::connect(server.addr());
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    let left = "systemd does not stop the service: its workers serve on\n";
    assert_eq!(after_stop(&server, programs.path(), "success"), left);
    client.roundtrip(b"left for the next supervisor");
    // A stop that came while the service was being restarted.
    set_job(&programs, "stop");
    let drained = std::thread::scope(|scope| {
        let command = scope.spawn(|| after_stop(&server, programs.path(), "success"));
        client.expect_eof();
        drop(client);
        command.join().expect("it succeeds")
    });
    assert_eq!(drained, "2 workers drained\n");
    until("every process has exited", || server.processes().is_empty());
}

#[test]
fn leftovers_of_living_supervisor_are_untouched() {
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=2"]);
    let mut client = Client::connect(server.addr());
    let answered = server.command(&["drain-leftovers"]).expect_success();
    assert_eq!(answered.stdout, "0 workers drained\n");
    client.roundtrip(b"undisturbed");
    assert!(server.stop().success());
}

#[test]
fn leftovers_drain_by_hand() {
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=2", "--orphan-timeout=1h"]);
    server.kill();
    until("both workers know", || {
        let answered = server.command(&["drain-leftovers"]).expect_success();
        server.processes().is_empty() || answered.stdout == "2 workers drained\n"
    });
    until("every process has exited", || server.processes().is_empty());
}
