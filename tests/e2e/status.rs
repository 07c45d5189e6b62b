//! `status` of a real server: sockets including foreign ones, rates while workers are replaced, and
//! durations of operations.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::adversity::skipped;
use crate::support::netns::Namespace;
use crate::support::terminal::open_terminal;
use crate::support::{Client, DEADLINE, Deadline, Lines, Server, Watched, pattern, poll_one};

/// Returns one line of `--watch --json` that satisfies `wanted`.
fn find(lines: &Lines, from: usize, mut wanted: impl FnMut(&Value) -> bool) -> Option<Value> {
    let mut found = None;
    lines.find_from(from, DEADLINE, |line| {
        let look: Value = serde_json::from_str(line).unwrap();
        let is_it = wanted(&look);
        found = Some(look).filter(|_| is_it);
        is_it
    });
    found
}

#[test]
fn status_names_foreign_sockets_and_owners() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2", "--share-port"]);
    let stranger =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    stranger.set_reuse_port(true).unwrap();
    // Bound before the server listens, so that it receives a client only when the test connects
    // one.
    stranger.bind(&server.addr().into()).unwrap();
    let mut client = Client::connect(server.addr());
    client.roundtrip(&pattern(0, 100));
    stranger.listen(1).unwrap();
    let _listening: TcpListener = stranger.into();

    let status = server.status_json();
    let sockets = &status["sockets"];
    assert_eq!(sockets["unknown"], Value::Null, "{sockets}");
    assert_eq!(sockets["states"]["LISTEN"], 3, "{sockets}");
    assert_eq!(sockets["states"]["ESTABLISHED"], 1, "{sockets}");
    assert_eq!(sockets["local_clients"]["ESTABLISHED"], 1, "{sockets}");
    let others = sockets["others"].as_array().unwrap();
    assert_eq!(others.len(), 1, "{sockets}");
    assert_eq!(others[0]["pid"], std::process::id());

    let screen = server.command(&["status"]).expect_success().stdout;
    let line = format!("also bound   pid {} (", std::process::id());
    assert!(screen.contains(&line), "{screen}");
    assert!(screen.contains(" msg/s; "), "{screen}");
    for line in screen.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }

    let list = server
        .command(&["status", "--sockets"])
        .expect_success()
        .stdout;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 1 + 4, "{list}");
    for slot in 0..2 {
        let pid = status["slots"][slot]["pid"].as_u64().unwrap();
        let owner = format!(" slot {slot}, pid {pid}");
        assert!(
            lines[1..4].iter().any(|line| line.ends_with(&owner)),
            "{list}"
        );
    }
    let short = server.command(&["status", "--sockets", "--limit", "1"]);
    assert!(short.expect_success().stdout.contains("… 3 more; "));

    // The side that closes first keeps the connection in TIME_WAIT.
    client.half_close();
    client.expect_eof();
    drop(client);
    let status = server.status_json();
    let sockets = &status["sockets"];
    assert_eq!(sockets["local_clients"]["TIME_WAIT"], 1, "{sockets}");
    assert_eq!(sockets["states"]["ESTABLISHED"], Value::Null, "{sockets}");
}

#[test]
fn rates_continue_while_workers_are_replaced() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let mut client = Client::connect(server.addr());
    let watching = server.start_command(&["status", "--watch", "100ms", "--json"]);
    let lines = watching.stdout();
    assert!(find(lines, 0, |look| look["rates"].is_null()).is_some());
    client.roundtrip(&pattern(0, 1000));
    let busy = find(lines, 0, |look| {
        look["rates"]["totals"]["received_bytes"].as_f64() > Some(0.0)
    });
    let busy = busy.expect("what was sent shows as a rate");
    let span_ms = busy["rates"]["span_ms"].as_u64().unwrap();
    assert!(span_ms > 0, "{busy}");
    let counted =
        busy["rates"]["totals"]["received_bytes"].as_f64().unwrap() * span_ms as f64 / 1000.0;
    assert!(counted <= 1000.5, "{busy}");

    server.reload().expect_success();
    server.upgrade().expect_success();
    client.roundtrip(&pattern(0, 1000));
    let status = server.status_json();
    assert_eq!(status["last_operation"]["operation"], "upgrade");
    assert_eq!(status["last_operation"]["result"], "done");
    for slot in status["slots"].as_array().unwrap() {
        // The first worker, and one each for the reload and the upgrade.
        assert_eq!(slot["starts"]["count"], 3, "{slot}");
        assert_eq!(slot["handovers"]["count"], 2, "{slot}");
    }
    let what: Vec<&str> = status["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["operation"].as_str().unwrap())
        .collect();
    assert_eq!(what, ["reload", "upgrade"]);
    let screen = server.command(&["status"]).expect_success().stdout;
    assert!(screen.contains("last         upgrade done "), "{screen}");

    // All rates are plausible: nothing was counted twice or from zero.
    for line in lines.all() {
        let look: Value = serde_json::from_str(&line).unwrap();
        let span_ms = look["rates"]["span_ms"].as_u64().unwrap_or(0);
        let rate = look["rates"]["totals"]["received_bytes"]
            .as_f64()
            .unwrap_or(0.0);
        assert!(rate * span_ms as f64 / 1000.0 <= 2000.5, "{line}");
    }
    server.stop();
    let ended = watching.wait();
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.stderr.contains("cannot follow the server"),
        "{ended:?}"
    );
}

#[test]
fn ctrl_c_ends_status_watch_successfully() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["status", "--watch", "--control"])
        .arg(server.control())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let watched = Watched::open(child.id()).unwrap();
    let lines = Lines::follow(child.stdout.take().unwrap());
    let begun = lines.find_from(0, DEADLINE, |line| line.starts_with("slot "));
    watched.signal(Signal::SIGINT);
    let status = watched.exit_status(DEADLINE);
    let _ = child.kill();
    child.wait().unwrap();
    assert!(begun.is_some(), "{}", lines.text());
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

#[test]
fn status_reports_stalled_supervisor() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "1"]);
    server.signal(Signal::SIGSTOP);
    let stopped = format!("process {} is stopped", server.pid());
    for command in [
        &["status", "--timeout", "100ms"][..],
        &["status", "--ready", "--timeout", "100ms"],
        &["status", "--watch", "--timeout", "100ms"],
        // Even without `--timeout` it does not wait forever.
        &["status"],
    ] {
        let answered = server.command(command);
        assert_eq!(answered.code, 1, "{answered:?}");
        assert!(answered.stderr.contains(&stopped), "{answered:?}");
    }
    server.signal(Signal::SIGCONT);
    server.command(&["status", "--ready"]).expect_success();
}

/// A terminal gets the same blocks as a pipe, without control sequences.
#[test]
fn status_watch_prints_plain_blocks_on_terminal() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "1"]);
    let (mut terminal, line) = open_terminal();
    let mut child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["status", "--watch", "--control"])
        .arg(server.control())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(line)
        .spawn()
        .unwrap();
    let mut shown = String::new();
    let deadline = Deadline::after(DEADLINE);
    while !shown.contains("listening on") && poll_one(&terminal, PollFlags::POLLIN, deadline.left())
    {
        let mut piece = [0; 4096];
        let len = terminal.read(&mut piece).unwrap();
        shown.push_str(&String::from_utf8_lossy(&piece[..len]));
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert!(shown.contains("listening on"), "{shown:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn status_shows_sockets_of_other_namespace() {
    let Ok(namespace) = Namespace::fresh() else {
        skipped("cannot create a network namespace");
        return;
    };
    let server = Server::builder()
        .args(["--listen", "127.0.0.1:0", "--workers", "3"])
        .namespace(&namespace)
        .start();
    let sockets = &server.status_json()["sockets"];
    assert_eq!(sockets["states"]["LISTEN"], 3, "{sockets}");
    assert_eq!(sockets["others"].as_array().map(Vec::len), Some(0));
}
