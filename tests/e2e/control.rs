//! Commands to a running server, against stand-ins with scripted replies: requests, output and exit
//! codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use uppercased_ctl::status::{Sample, SlotStatus, Status};

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::{DEADLINE, Watched, in_background};

/// The result of a run.
#[derive(Debug)]
struct Outcome {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

/// A runtime directory for stand-in servers.
struct Place {
    directory: TempDir,
}

/// A server that reads one request per connection and sends a scripted reply.
struct StandIn {
    path: PathBuf,
    /// The requests received.
    ended: JoinHandle<Vec<String>>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a server with the process ID `pid`. It accepts one connection per entry of `scripts`,
    /// and sends the script if the connection carries a request.
    fn server(&self, pid: u32, scripts: &[&str]) -> StandIn {
        let path = self.path().join(format!("{pid}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let scripts: Vec<String> = scripts.iter().map(|&script| script.to_owned()).collect();
        let ended = in_background(move || {
            let mut requests = Vec::new();
            let mut scripts = scripts.into_iter();
            while scripts.len() > 0 {
                let (stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let request = request(&stream);
                // A connection without a request only probes for a running server.
                if let Some(request) = request {
                    requests.push(request);
                    let script = scripts.next().unwrap();
                    // Some tests use clients that give up early.
                    let _ = (&stream).write_all(script.as_bytes());
                }
            }
            requests
        });
        StandIn { path, ended }
    }

    /// Runs the program with `args` in this directory.
    fn run(&self, args: &[&str]) -> Outcome {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"UPPERCASED_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(args)
            .env("RUNTIME_DIRECTORY", self.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let watched = Watched::open(child.id()).unwrap();
        // The output is small enough for the pipes.
        if !watched.wait_gone(DEADLINE) {
            watched.signal(Signal::SIGKILL);
            panic!("still running after {DEADLINE:?}: {command:?}");
        }
        let output = child.wait_with_output().unwrap();
        Outcome {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        }
    }

    /// Returns the one-line error message of a run without effect.
    fn complaint(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert_eq!(outcome.stdout, "", "{outcome:?}");
        assert_eq!(outcome.stderr.matches('\n').count(), 1, "{outcome:?}");
        outcome.stderr
    }
}

fn request(stream: &UnixStream) -> Option<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    Some(line).filter(|line| !line.is_empty())
}

const DONE: &str =
    r#"{"done":{"replaced":4,"workers":6,"migrated":10000,"draining":0,"duration_ms":312}}"#;

#[test]
fn command_separates_result_from_progress() {
    let connections = "10000 connections migrated, 0 draining\n";
    for (args, sent, verdict) in [
        (
            ["reload"].as_slice(),
            r#"{"version":1,"command":"reload"}"#,
            "reloaded 4 workers in 312 ms: ",
        ),
        (
            &["upgrade"],
            r#"{"version":1,"command":"upgrade"}"#,
            "upgraded 4 workers in 312 ms: ",
        ),
        (
            &["scale", "6"],
            r#"{"version":1,"command":"scale","workers":6}"#,
            "scaled to 6 workers in 312 ms: ",
        ),
    ] {
        let place = Place::new();
        let script = format!("{{\"progress\":\"slot 0\\nrenewed\"}}\n{DONE}\n");
        let server = place.server(4711, &[&script]);
        let outcome = place.run(args);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(outcome.stderr, "slot 0\\nrenewed\n");
        assert_eq!(outcome.stdout, format!("{verdict}{connections}"));
        assert_eq!(server.ended.join().unwrap(), [format!("{sent}\n")]);
    }
}

#[test]
fn only_completed_operation_is_success() {
    for (script, stdout, stderr) in [
        (
            "{\"failed\":\"slot 1 died; the old workers serve\"}\n",
            "failed: slot 1 died; the old workers serve\n",
            "",
        ),
        (
            "{\"refused\":\"reload in progress\"}\n",
            "refused: reload in progress\n",
            "",
        ),
        (
            "{\"refused\":\"/etc/a\\nb: it is missing\"}\n",
            "refused: /etc/a\\nb: it is missing\n",
            "",
        ),
        (
            "",
            "",
            "uppercased: cannot get an answer: the server closed the connection; see its log\n",
        ),
        (
            "{\"progress\":\"slot 0\"}\n{\"done\":{\"ren",
            "",
            "slot 0\nuppercased: cannot get an answer: the server closed the connection; see its \
             log\n",
        ),
        ("hello\n", "", "cannot read the server's answer"),
        ("{\"status\":{}}\n", "", "it does not match the request"),
    ] {
        let place = Place::new();
        let server = place.server(1, &[script]);
        let outcome = place.run(&["reload"]);
        assert_eq!(outcome.code, Some(1), "{script}: {outcome:?}");
        assert_eq!(outcome.stdout, stdout, "{script}");
        assert!(outcome.stderr.contains(stderr), "{script}: {outcome:?}");
        server.ended.join().unwrap();
    }
}

#[test]
fn timeout_limits_wait() {
    let place = Place::new();
    let path = place.path().join("1.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    for (command, error) in [
        ("reload", "no answer in time"),
        ("stop", "no answer in time"),
        ("status", "cannot get the status within 20ms"),
    ] {
        let outcome = place.run(&[command, "--timeout", "20ms"]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(error), "{outcome:?}");
    }
}

#[test]
fn stop_waits_until_server_exits() {
    let place = Place::new();
    let server = place.server(1, &["{\"progress\":\"stopping\"}\n", ""]);
    let outcome = place.run(&["stop"]);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "stopped\n")
    );
    // The server closes before it confirms the stop.
    let outcome = place.run(&["stop"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(
        outcome.stderr.contains("closed the connection"),
        "{outcome:?}"
    );
    let sent = server.ended.join().unwrap();
    assert_eq!(sent[0], "{\"version\":1,\"command\":\"stop\"}\n");
}

#[test]
fn status_prints_screen_or_json_line() {
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: 4711,
        phase: "running".to_owned(),
        addresses: vec!["127.0.0.1:9999".to_owned()],
        slots: vec![SlotStatus::default(); 3],
        ..Status::default()
    };
    let script = format!(
        "{{\"status\":{}}}\n",
        serde_json::to_string(&status).unwrap()
    );
    let place = Place::new();
    // The text output also has rates, from the second sample on.
    let server = place.server(1, &[&script, &script, &script]);
    let outcome = place.run(&["status"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    for line in status.lines() {
        assert!(
            outcome.stdout.lines().any(|shown| shown == line),
            "{line}: {outcome:?}"
        );
    }

    let outcome = place.run(&["status", "--json"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    assert_eq!(outcome.stdout.matches('\n').count(), 1);
    let read: Status = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(read, status);
    server.ended.join().unwrap();
}

#[test]
fn status_watch_ends_with_server() {
    let status = |pid: u32, uptime_ms: u64, accepted: u64| {
        let mut status = Status {
            pid,
            uptime_ms,
            slots: vec![SlotStatus::default()],
            ..Status::default()
        };
        status.slots[0].traffic.accepted = accepted;
        status.sum_up();
        let status = serde_json::to_string(&status).unwrap();
        format!("{{\"status\":{status}}}\n")
    };
    let scripts = [
        status(7, 1000, 10),
        status(7, 3000, 14),
        status(8, 9000, 1),
        String::new(),
    ];
    let scripts: Vec<&str> = scripts.iter().map(String::as_str).collect();
    let place = Place::new();
    let server = place.server(1, &scripts);
    let outcome = place.run(&["status", "--watch", "100ms", "--json"]);
    server.ended.join().unwrap();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(
        outcome.stderr.contains("cannot follow the server"),
        "{outcome:?}"
    );
    let samples: Vec<Sample> = outcome
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let rates: Vec<Option<f64>> = samples
        .iter()
        .map(|sample| sample.rates.as_ref().map(|rates| rates.totals.accepted))
        .collect();
    // Over the server's two seconds, not the tenth of a second elapsed here.
    assert_eq!(rates, [None, Some(2.0), None]);

    let server = place.server(2, &[scripts[0], scripts[1], ""]);
    let path = server.path.to_str().unwrap();
    let outcome = place.run(&["status", "--watch=100ms", "--control", path]);
    server.ended.join().unwrap();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let blocks: Vec<&str> = outcome.stdout.split("\n\n").collect();
    assert_eq!(blocks.len(), 2, "{outcome:?}");
    assert!(!outcome.stdout.contains('\x1b'), "{outcome:?}");
    assert!(blocks[1].contains("rates 2s     2.00 acc/s"), "{outcome:?}");
    // Without a server from the start.
    fs::remove_file(&server.path).unwrap();
    place.complaint(&["status", "--watch", "--control", path]);
}

#[test]
fn rotation_state_sets_exit_code() {
    let status_of = |phase: &str, queue: &str| {
        let slot = SlotStatus {
            queue: queue.to_owned(),
            ..SlotStatus::default()
        };
        let status = Status {
            phase: phase.to_owned(),
            slots: vec![slot],
            ..Status::default()
        };
        format!(
            "{{\"status\":{}}}\n",
            serde_json::to_string(&status).unwrap()
        )
    };
    let place = Place::new();
    let (serving, stopping) = (
        status_of("serving", "served"),
        status_of("draining", "served"),
    );
    let failing =
        status_of("serving", "unserved").replace("\"queue\"", "\"unserved_ms\":5000,\"queue\"");
    let server = place.server(1, &[&serving, &stopping, &failing]);
    let ready = || {
        let outcome = place.run(&["status", "--ready"]);
        (outcome.code, outcome.stdout)
    };
    assert_eq!(ready(), (Some(0), "ready\n".to_owned()));
    let why = "not ready: the server is draining\n";
    assert_eq!(ready(), (Some(1), why.to_owned()));
    assert_eq!(ready().0, Some(1));
    server.ended.join().unwrap();
    // Without a server there is no result.
    assert_eq!(ready().0, Some(2));
}

#[test]
fn command_finds_server_by_flag_variable_or_default() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let here = place.server(1, &["{\"refused\":\"here\"}\n"; 3]);
    let there = elsewhere.server(2, &["{\"refused\":\"there\"}\n"; 2]);
    let path = there.path.to_str().unwrap();
    let named = place.run(&["reload", "--control", path]);
    assert_eq!(named.stdout, "refused: there\n");
    let variable = [("UPPERCASED_CONTROL", path)];
    let named = place.run_with(&["reload"], &variable);
    assert_eq!(named.stdout, "refused: there\n");
    let flag = ["reload", "--control", here.path.to_str().unwrap()];
    assert_eq!(place.run_with(&flag, &variable).stdout, "refused: here\n");
    for word in ["auto", "off"] {
        let found = place.run_with(&["reload"], &[("UPPERCASED_CONTROL", word)]);
        assert_eq!(found.stdout, "refused: here\n");
    }
    here.ended.join().unwrap();
    there.ended.join().unwrap();
}

#[test]
fn command_fails_without_server() {
    let place = Place::new();
    let shown = place.path().display().to_string();
    let line = place.complaint(&["reload"]);
    assert!(
        line.contains("cannot find a running server") && line.contains(&shown),
        "{line}"
    );
    // A stale socket, and files that are not sockets.
    drop(UnixListener::bind(place.path().join("1.sock")).unwrap());
    fs::write(place.path().join("2.sock"), "").unwrap();
    let line = place.complaint(&["status"]);
    assert!(line.contains("--control"), "{line}");
    for name in ["1.sock", "2.sock", "3.sock"] {
        let path = place.path().join(name);
        let line = place.complaint(&["stop", "--control", path.to_str().unwrap()]);
        assert!(
            line.contains("no server is listening on control socket"),
            "{line}"
        );
    }
    let path = format!("/{}", "x".repeat(200));
    place.complaint(&["stop", "--control", &path]);
    let outcome = place.run_with(&["stop"], &[("UPPERCASED_CONTROL", "relative")]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("UPPERCASED_CONTROL"), "{outcome:?}");
}

#[test]
fn command_reports_server_of_another_user() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can become another user");
        return;
    }
    let place = Place::new();
    let path = place.path().join("7.sock");
    let _server = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // Other users may not be able to read the build directory.
    let program = Image::for_every_user(place.path());
    let outcome = Command::new(program.path())
        .arg("status")
        .env("RUNTIME_DIRECTORY", place.path())
        .env_remove("UPPERCASED_CONTROL")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let line = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.status.code(), Some(2), "{line}");
    assert!(
        line.contains("cannot use any control socket as this user, "),
        "{line}"
    );
    assert!(line.contains("run the command as root"), "{line}");
}

#[test]
fn command_asks_to_choose_between_servers() {
    let place = Place::new();
    let script = r#"{"status":{"addresses":["127.0.0.1:80","[::1]:80"]}}"#.to_owned() + "\n";
    let first = place.server(11, &[&script]);
    let second = place.server(12, &["{\"refused\":\"no\"}\n"]);
    let line = place.complaint(&["reload"]);
    for part in [
        "cannot choose a server: 2 are running",
        "pid 11 on 127.0.0.1:80 [::1]:80 (",
        "pid 12 on an unknown address (",
        "--control PATH",
    ] {
        let part = part.trim_end_matches(" PATH");
        assert!(line.contains(part), "{part}: {line}");
    }
    // Neither server received a reload request.
    for server in [first, second] {
        let sent = server.ended.join().unwrap();
        assert_eq!(sent, ["{\"version\":1,\"command\":\"status\"}\n"]);
    }
}

#[test]
fn command_names_unreadable_directory() {
    if nix::unistd::geteuid().is_root() {
        skipped("root can read every directory");
        return;
    }
    let place = Place::new();
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(place.path(), closed).unwrap();
    let line = place.complaint(&["reload"]);
    assert!(line.contains("cannot use any control socket"), "{line}");
}
