//! Requests that arrive while the server is busy: none is lost, and pending ones can be listed,
//! withdrawn and answered.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::Server;
use crate::support::hold::Hold;
use crate::support::image::Image;
use crate::support::observe::until;
use crate::support::planned::Planned;
use crate::support::terminal::open_terminal;

/// Starts a server whose operations end after the hold.
#[track_caller]
fn start(workers: &str) -> (Planned, Hold) {
    let fixed = ["--listen=127.0.0.1:0", "--bake-time=0s"];
    Hold::start(&[&fixed, &["--handshake-timeout=100ms", workers][..]].concat())
}

fn pending(planned: &Planned) -> Vec<String> {
    let status = planned.server.status_json();
    let pending = status["pending"].as_array().expect("a list").clone();
    let words = pending
        .into_iter()
        .map(|it| it.as_str().expect("words").to_owned());
    words.collect()
}

fn operations_done(planned: &Planned) -> usize {
    let log = planned.server.log();
    log.iter()
        .filter(|line| line.contains("operation done"))
        .count()
}

#[track_caller]
fn wait_for_operations(planned: &Planned, count: usize) {
    until("the operations to be done", || {
        operations_done(planned) >= count
    });
}

#[test]
fn reload_signal_during_reload_reads_configuration_again() {
    let (planned, hold) = start("--workers=2");
    let server = &planned.server;
    planned.configure("idle_timeout = \"20s\"\n");
    server.signal(Signal::SIGHUP);
    server.wait_log(|line| line.contains("operation started"));
    planned.configure("idle_timeout = \"200ms\"\n");
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGHUP);
    until("the second reload to wait", || {
        pending(&planned) == ["reload (signal)"]
    });
    let shown = server.command(&["status"]).expect_success();
    assert!(
        shown.stdout.contains("pending      reload (signal)"),
        "{shown:?}"
    );
    hold.end();
    wait_for_operations(&planned, 2);
    // The second configuration applies: an idle client is closed.
    let mut client = crate::support::Client::connect(server.addr());
    client.expect_eof();
    assert_eq!(operations_done(&planned), 2);
    assert!(!server.log().iter().any(|line| line.contains("refused")));
}

#[test]
fn upgrade_keeps_pending_signals() {
    let (planned, hold) = start("--workers=2");
    let server = &planned.server;
    server.signal(Signal::SIGUSR2);
    server.wait_log(|line| line.contains("operation started"));
    server.signal(Signal::SIGHUP);
    server.signal(Signal::SIGTTIN);
    hold.end();
    wait_for_operations(&planned, 3);
    assert_eq!(planned.workers().0.len(), 3);
    assert!(pending(&planned).is_empty());
}

#[test]
fn signals_for_fewer_workers_add_up() {
    let (planned, hold) = start("--workers=4");
    let server = &planned.server;
    server.signal(Signal::SIGHUP);
    server.wait_log(|line| line.contains("operation started"));
    for expected in [3, 2, 1].map(|workers| format!("scale to {workers} (signal)")) {
        server.signal(Signal::SIGTTOU);
        until("the signal to be counted", || {
            pending(&planned) == [expected.as_str()]
        });
    }
    hold.end();
    wait_for_operations(&planned, 2);
    assert_eq!(planned.workers().0.len(), 1);
}

#[test]
fn waiting_command_is_answered_after_its_turn() {
    let (planned, hold) = start("--workers=2");
    let server = &planned.server;
    let first = server.start_command(&["reload"]);
    server.wait_log(|line| line.contains("operation started"));
    server
        .command(&["scale", "+1"])
        .expect_failure("in progress");
    let second = server.start_command(&["scale", "+1", "--wait"]);
    until("it to wait", || {
        pending(&planned) == ["scale to 3 (command)"]
    });
    hold.end();
    first.wait().expect_success();
    let answered = second.wait().expect_success();
    assert!(
        answered.stdout.starts_with("scaled to 3 workers"),
        "{answered:?}"
    );
    assert!(answered.stderr.contains("waiting: "), "{answered:?}");
    assert_eq!(planned.workers().0.len(), 3);
}

#[test]
fn timed_out_waiting_command_is_withdrawn() {
    let (planned, hold) = start("--workers=2");
    let server = &planned.server;
    let first = server.start_command(&["reload"]);
    server.wait_log(|line| line.contains("operation started"));
    let second = server.command(&["scale", "4", "--wait", "--timeout", "100ms"]);
    assert_eq!(second.code, 1, "{second:?}");
    server.wait_log(|line| line.contains("request withdrawn"));
    hold.end();
    first.wait().expect_success();
    assert!(pending(&planned).is_empty());
    assert_eq!(planned.workers().0.len(), 2);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn stop_refuses_waiting_command() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--bake-time=20s"]);
    let server = &planned.server;
    let first = server.start_command(&["reload"]);
    server.wait_log(|line| line.contains("operation started"));
    let second = server.start_command(&["upgrade", "--wait"]);
    until("it to wait", || !pending(&planned).is_empty());
    server.signal(Signal::SIGTERM);
    first.wait().expect_failure("the server is stopping");
    second.wait().expect_failure("the server is stopping");
    assert_eq!(server.wait_exit(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn cancel_rolls_back_running_reload() {
    let planned = Planned::start(&["--listen=127.0.0.1:0", "--bake-time=60s", "--workers=2"]);
    let server = &planned.server;
    server.command(&["cancel"]).expect_failure("no operation");
    let mut client = crate::support::Client::connect(server.addr());
    client.roundtrip(b"before");
    let reload = server.start_command(&["reload"]);
    server.wait_log(|line| line.contains("worker standing by"));
    let answered = server.command(&["cancel"]).expect_success();
    assert!(answered.stdout.starts_with("cancelled in "), "{answered:?}");
    server.wait_log(|line| {
        let fields = [" operation=reload ", " client_pid=", " client_uid="];
        line.contains("event=operation_cancelled") && fields.iter().all(|it| line.contains(it))
    });
    reload
        .wait()
        .expect_failure("cancelled by `uppercased cancel`");
    client.roundtrip(b"after");
    let workers = planned.workers();
    workers.assert_serving();
    assert!(workers.0.iter().all(|it| it.release == 1), "{workers:?}");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn cancel_keeps_workers_about_to_leave() {
    let planned = Planned::start(&[
        "--listen=127.0.0.1:0",
        "--handshake-timeout=60s",
        "--workers=3",
    ]);
    let server = &planned.server;
    let before = planned.workers();
    let scale = server.start_command(&["scale", "-2"]);
    server.wait_log(|line| line.contains("operation started"));
    let waiting = server.start_command(&["scale", "+1", "--wait"]);
    until("it to wait", || !pending(&planned).is_empty());
    server.command(&["cancel"]).expect_success();
    scale.wait().expect_failure("3 workers serve");
    // The pending request is handled next.
    waiting.wait().expect_success();
    assert_eq!(planned.workers().0[..3], before.0);
    assert_eq!(planned.workers().0.len(), 4);
}

#[test]
fn relative_path_follows_renamed_directory() {
    let parent = tempfile::tempdir().expect("a folder of its own");
    let [before, after] = ["app", "app.old"].map(|name| parent.path().join(name));
    std::fs::create_dir(&before).expect("create the directory");
    Image::copy(parent.path()).replace(&before.join("uppercased"));
    std::fs::write(before.join("u.toml"), "bake_time = \"0s\"\n").expect("write it");
    let server = Server::builder()
        .cwd(&before)
        .program("./uppercased")
        .args(["--config=u.toml", "--listen=127.0.0.1:0", "--workers=1"])
        .start();
    std::fs::rename(&before, &after).expect("rename the directory");
    // The old path is an empty directory.
    std::fs::create_dir(&before).expect("make another one");
    server.reload().expect_success();
    server.upgrade().expect_success();
    let quick = "bake_time = \"0s\"\nidle_timeout = \"200ms\"\n";
    std::fs::write(after.join("u.toml"), quick).expect("write it");
    server.reload().expect_success();
    let mut client = crate::support::Client::connect(server.addr());
    client.expect_eof();
}

/// A server whose controlling terminal belongs to the test.
struct InTerminal {
    process: std::process::Child,
    terminal: Option<nix::pty::PtyMaster>,
}

impl InTerminal {
    /// Starts it through the command `before`, and waits until it serves.
    #[track_caller]
    fn start(before: &[&str]) -> Self {
        let (terminal, line) = open_terminal();
        let mut command = std::process::Command::new("setsid");
        command.arg("--ctty").args(before);
        command.arg(env!("CARGO_BIN_EXE_uppercased"));
        command.args([
            "--listen=127.0.0.1:0",
            "--workers=1",
            "--control=off",
            "--bake-time=0s",
        ]);
        command
            .stdin(line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("setsid runs");
        let stdout = process.stdout.take().expect("a pipe");
        let first = BufReader::new(stdout).lines().next();
        assert!(
            first
                .expect("a line")
                .expect("text")
                .starts_with("listening on")
        );
        let terminal = Some(terminal);
        Self { process, terminal }
    }

    fn hang_up(&mut self) {
        self.terminal = None;
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("it runs");
    }

    /// Waits for its exit and returns its log.
    #[track_caller]
    fn end(mut self) -> String {
        until("the server to end", || {
            self.process
                .try_wait()
                .expect("it can be waited for")
                .is_some()
        });
        let status = self.process.wait().expect("it has ended");
        let mut log = String::new();
        let mut stderr = self.process.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut log).expect("its log");
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // Both fail if it has been reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn closed_terminal_stops_server() {
    let mut server = InTerminal::start(&[]);
    server.hang_up();
    let log = server.end();
    assert!(log.contains("reason=closed_terminal"), "{log}");
    assert!(!log.contains("operation started"), "{log}");
}

#[test]
fn terminal_closed_during_exec_stops_server() {
    let mut server = InTerminal::start(&["env", "FAULT_POINTS=supervisor.exec=stop"]);
    server.signal(Signal::SIGUSR2);
    let status = format!("/proc/{}/status", server.process.id());
    until("the exec to be near", || {
        let status = std::fs::read_to_string(&status).expect("it lives");
        status.contains("State:\tT")
    });
    // The kernel sends SIGHUP and wakes the process; the next program handles the signal.
    server.hang_up();
    let log = server.end();
    assert!(log.contains("reason=closed_terminal"), "{log}");
}

#[test]
fn nohup_server_survives_terminal_and_reloads() {
    let mut server = InTerminal::start(&["nohup"]);
    server.hang_up();
    let mut stderr = BufReader::new(server.process.stderr.take().expect("a pipe"));
    let mut wait_for = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            let read = stderr.read_line(&mut line).expect("its log");
            assert_ne!(read, 0, "the log ends before {wanted}");
        }
    };
    wait_for("terminal closed, serving on");
    server.signal(Signal::SIGHUP);
    wait_for("operation done");
    server.signal(Signal::SIGTERM);
    let status = server.process.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}
