//! The log of real processes: its contents at each level, its JSON form, and an unread log, which
//! must not block the server.

use std::io::{PipeReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::bare::Bare;
use crate::support::observe::{field, lose_worker, number, wait_ready, worker_of};
use crate::support::{Client, DEADLINE, Lines, Server};

#[test]
fn info_log_covers_server_and_no_client() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0"]);
    let [first, second] = [0, 1].map(|slot| worker_of(&server, slot));
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"at this level a client is no news");
    client.half_close();
    client.expect_eof();
    lose_worker(&server, 0);
    wait_ready(&server, 0, 0, 2);
    let third = worker_of(&server, 0);
    assert_eq!(server.stop().code(), Some(0));

    let log = server.whole_log();
    let line_of = |wanted: &str| -> &String {
        let found = log.iter().find(|line| line.contains(wanted));
        found.unwrap_or_else(|| panic!("no line {wanted:?} in {log:#?}"))
    };
    let starting = line_of(" INFO server starting ");
    assert_eq!(
        number(starting, "pid"),
        u64::from(server.pid()),
        "{starting}"
    );
    assert_eq!(field(starting, "version"), Some(env!("CARGO_PKG_VERSION")));
    let ready = line_of(" INFO server ready ");
    assert_eq!(
        field(ready, "address"),
        Some(server.addr().to_string().as_str())
    );
    assert_eq!(number(ready, "workers"), 2, "{ready}");
    assert_eq!(number(ready, "pid"), u64::from(server.pid()), "{ready}");
    for (slot, generation, worker) in [(0, 1, &first), (1, 1, &second), (0, 2, &third)] {
        let who = format!("slot={slot} generation={generation} ");
        line_of(&format!(" INFO worker starting {who}"));
        let ready = line_of(&format!(" INFO worker ready {who}"));
        assert_eq!(number(ready, "worker_pid"), u64::from(worker.pid()));
    }
    let died = line_of(" ERROR worker exited unexpectedly slot=0 generation=1 ");
    assert!(died.contains("signal=SIGKILL"), "{died}");
    line_of(" INFO server stopping reason=SIGTERM ");
    line_of(" INFO worker stopped slot=0 generation=2");
    line_of(" INFO worker stopped slot=1 generation=1");
    let last = log.last().unwrap();
    assert!(
        last.contains(" INFO server stopped accepted=1 received_bytes=33 sent_bytes=33 "),
        "{last}"
    );

    let port = format!(":{}", client.local_addr().port());
    let news: Vec<_> = log.iter().filter(|line| line.contains(&port)).collect();
    assert!(news.is_empty(), "{news:?}");
}

#[test]
fn reload_logs_four_lines_per_worker() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0", "--bake-time=0s"]);
    let _clients: Vec<Client> = (0..4).map(|_| Client::connect(server.addr())).collect();
    let mark = server.log_len();
    server.reload().expect_success();
    server.wait_log_from(mark, |line| line.contains(" worker stopped slot=1 "));
    let log = server.log().split_off(mark);
    for slot in [0, 1] {
        let of_slot = format!(" slot={slot} ");
        let lines = log.iter().filter(|line| line.contains(&of_slot));
        let events: Vec<_> = lines.filter_map(|line| field(line, "event")).collect();
        let expected = [
            "worker_starting",
            "worker_standing_by",
            "handover_finished",
            "worker_stopped",
        ];
        assert_eq!(events, expected, "{log:#?}");
    }
    // A start and an end of the operation.
    assert_eq!(log.len(), 2 * 4 + 2, "{log:#?}");
}

#[test]
fn connection_keeps_number_across_workers() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0", "--log-level=debug"]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"here");
    let peer = format!(" peer={} ", client.local_addr());
    let line = |event: &str| {
        let event = format!(" event={event} ");
        server.wait_log(|line| line.contains(&event) && line.contains(&peer))
    };
    let opened = line("connection_opened");
    server.reload().expect_success();
    client.roundtrip(b"there");
    let migrated = line("connection_migrated");
    client.half_close();
    client.expect_eof();
    let closed = line("connection_closed");
    let lines = [&opened, &migrated, &closed];
    let generations = lines.map(|line| number(line, "generation"));
    assert_eq!(generations, [1, 2, 2], "{lines:#?}");
    let id = number(&opened, "connection");
    assert!(id > 0, "{opened}");
    assert!(
        lines.iter().all(|line| number(line, "connection") == id),
        "{lines:#?}"
    );

    // Another client's differs.
    let other = Client::connect(server.addr());
    let peer = format!(" peer={} ", other.local_addr());
    let opened =
        server.wait_log(|line| line.contains(" event=connection_opened ") && line.contains(&peer));
    assert_ne!(number(&opened, "connection"), id);
}

/// Returns the log line for the end of a new client that has sent five bytes; `end` ends it.
fn end_of_a_client(server: &Server, end: impl FnOnce(Client)) -> String {
    let mark = server.log_len();
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"bytes");
    let peer = client.local_addr().to_string();
    let of_it = |line: &str, what| line.contains(what) && field(line, "peer") == Some(&peer);
    // From the mark on: an earlier client may have had the same port.
    let opened = server.wait_log_from(mark, |line| of_it(line, " DEBUG connection opened "));
    assert!(field(&opened, "slot").is_some(), "{opened}");
    end(client);
    let closed = server.wait_log_from(mark, |line| of_it(line, " DEBUG connection closed "));
    assert_eq!(number(&closed, "received_bytes"), 5, "{closed}");
    assert_eq!(number(&closed, "sent_bytes"), 5, "{closed}");
    closed
}

#[test]
fn debug_log_gives_reason_of_every_close() {
    let debug = ["--workers=1", "--listen=127.0.0.1:0", "--log-level=debug"];
    let server = Server::start(&debug);
    let reason = |line: &str| field(line, "reason").map(str::to_owned);
    let closed = end_of_a_client(&server, drop);
    assert_eq!(reason(&closed).as_deref(), Some("peer_closed"), "{closed}");
    let closed = end_of_a_client(&server, Client::abort);
    assert_eq!(reason(&closed).as_deref(), Some("peer_reset"), "{closed}");
    let closed = end_of_a_client(&server, |mut client| {
        server.signal(Signal::SIGTERM);
        client.expect_eof();
    });
    assert_eq!(reason(&closed).as_deref(), Some("drained"), "{closed}");

    // A separate server: the other clients need enough time to send five bytes.
    let server = Server::start(&[&debug[..], &["--idle-timeout=2s"]].concat());
    let closed = end_of_a_client(&server, |mut client| client.expect_eof());
    assert_eq!(reason(&closed).as_deref(), Some("idle_timeout"), "{closed}");
}

#[test]
fn trace_log_shows_escaped_bounded_bytes() {
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0", "--log-level=trace"]);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"evil\nFAKE line\0\xff\x1b[31m");
    let shown = r#""evil\nFAKE line\0\xff\x1b[31m""#;
    server.wait_log(|line| line.contains(" TRACE bytes received ") && line.contains(shown));
    let shown = r#""EVIL\nFAKE LINE\0\xff\x1b[31M""#;
    server.wait_log(|line| line.contains(" TRACE bytes sent ") && line.contains(shown));

    client.roundtrip(&[b'x'; 1000]);
    let cut =
        server.wait_log(|line| line.contains(" TRACE bytes received ") && line.contains("xxxx"));
    assert!(cut.contains("x…(+872 bytes)"), "{cut}");
    assert!(!cut.contains(&"x".repeat(129)), "{cut}");
    drop(client);

    assert_eq!(server.stop().code(), Some(0));
    for line in server.whole_log() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.starts_with("FAKE"), "{line:?}");
    }
}

#[test]
fn json_log_identifies_process_in_every_line() {
    let server = Server::start(&[
        "--workers=2",
        "--listen=127.0.0.1:0",
        "--log-level=trace",
        "--log-format=json",
    ]);
    let (addr, supervisor) = (server.addr(), u64::from(server.pid()));
    let mut processes = [server.worker_pids(), server.keeper_pids()].concat();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(addr)).collect();
    for client in &mut clients {
        client.roundtrip(b"a \"quoted\" \\ line\nand one more\r\n\0\x80\xff");
    }
    for mut client in clients {
        client.half_close();
        client.expect_eof();
    }
    let mark = server.log_len();
    lose_worker(&server, 1);
    server.wait_log_from(mark, |line| line.contains("\"worker ready\""));
    processes.extend([server.worker_pids(), server.keeper_pids()].concat());
    server.signal(Signal::SIGUSR1);
    assert_eq!(server.stop().code(), Some(0));

    let mut by_workers = 0;
    let lines = server.whole_log();
    for line in &lines {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {error}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(line[key].is_string(), "no {key}: {line}");
        }
        let pid = line.get("pid").and_then(Value::as_u64);
        let of_worker = ["uppercased::worker", "uppercased::reactor"];
        let target = line["target"].as_str().expect("a target");
        if of_worker.iter().any(|module| target.starts_with(module)) {
            let pid = pid.unwrap_or_else(|| panic!("no pid: {line}"));
            assert!(processes.iter().any(|it| u64::from(*it) == pid), "{line}");
            assert!(line["slot"].as_u64().is_some_and(|slot| slot < 2), "{line}");
            assert!(
                line["generation"]
                    .as_u64()
                    .is_some_and(|g| (1..=2).contains(&g)),
                "{line}"
            );
            by_workers += 1;
        } else {
            assert!(pid.is_none_or(|pid| pid == supervisor), "{line}");
        }
    }
    // At least open, received, sent and close for each client.
    assert!(by_workers >= 80, "{by_workers} of {} lines", lines.len());
}

/// Returns the address that a bare server announces.
fn announced(server: &Bare) -> SocketAddr {
    let line = server.stdout().find_from(0, DEADLINE, |_| true);
    let line = line.expect("it serves");
    let addr = line.strip_prefix("listening on ");
    addr.and_then(|addr| addr.parse().ok())
        .expect("an address is announced")
}

/// Simulates a stalled log collector: the pipe fills up, and clients are still served. When it
/// reads again, the log reports the number of lost lines.
#[test]
fn unread_log_blocks_no_client() {
    let mut server = Bare::start(&["--workers=1", "--listen=127.0.0.1:0", "--log-level=trace"]);
    let addr = announced(&server);
    // Four lines for each client, some of them long: more than twice a pipe's capacity.
    for _ in 0..300 {
        let mut client = Client::connect(addr);
        client.roundtrip(&[b'x'; 500]);
        client.half_close();
        client.expect_eof();
    }

    let mut pipe = PipeReader::from(OwnedFd::from(server.take_stderr()));
    // Make room for one line and the loss report; then read the rest.
    let mut stuck = vec![0; 32 * 1024];
    pipe.read_exact(&mut stuck).unwrap();
    let log = Lines::follow(pipe);
    let mut client = Client::connect(addr);
    client.roundtrip(b"the collector is back");
    // While the pipe filled up, a short line may have fitted where a long one had not, so smaller
    // losses were reported before.
    let lost = log.find_from(0, DEADLINE, |line| {
        line.contains("log lines lost") && number(line, "lines") > 100
    });
    let lost = lost.expect("the loss is logged");
    assert!(field(&lost, "pid").is_some(), "whose lines: {lost}");
    let back = log.find_from(0, DEADLINE, |line| line.contains("THE COLLECTOR IS BACK"));
    assert!(back.is_some());

    server.process().signal(Signal::SIGTERM);
    drop(client);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}

/// Closing the reading end of the log kills neither supervisor nor worker.
#[test]
fn closed_log_pipe_kills_no_process() {
    let mut server = Bare::start(&["--workers=2", "--listen=127.0.0.1:0", "--log-level=debug"]);
    let addr = announced(&server);
    drop(server.take_stderr());
    for _ in 0..20 {
        Client::connect(addr).roundtrip(b"is it read?");
    }
    server.process().signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}
