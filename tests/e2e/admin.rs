//! The admin endpoint: its metrics agree with the clients across crashes, reloads and upgrades; its
//! health pages are correct while the server stops or stalls; scrapers do not disturb the service.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use socket2::{Domain, Socket, Type};

use crate::support::adversity::skipped;
use crate::support::netns::isolated;
use crate::support::observe::{freeze, lose_worker, until, until_some, worker_of};
use crate::support::{Client, DEADLINE, Server, Watched, wait_gone};
use uppercased::config::TURNS_PER_SAMPLE;

/// The promised content type.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn start(args: &[&str]) -> Server {
    let fixed = ["--listen=127.0.0.1:0", "--admin=0", "--bake-time=0s"];
    Server::builder().args(fixed).args(args).start()
}

fn admin(server: &Server) -> SocketAddr {
    let status = server.status_json();
    let address = status["admin"]["address"].as_str().expect("an address");
    address.parse().expect("a TCP address")
}

fn admin_pid(server: &Server) -> Option<u32> {
    let pid = &server.status_json()["admin"]["pid"];
    pid.as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// Sends `bytes` and returns the whole response.
fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.write_all(bytes).expect("send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn status_of(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").and_then(|it| it.get(..3));
    let code = code.and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"))
}

/// Returns the status and body of a page.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
    let answer = exchange(address, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    (status_of(&answer), body.to_owned())
}

/// Returns the metrics, checked by a parser of the format.
fn scrape(address: SocketAddr) -> String {
    let asked =
        "GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: application/openmetrics-text\r\n\r\n";
    let answer = exchange(address, asked.as_bytes());
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.contains(OPENMETRICS), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let parsed = openmetrics_parser::openmetrics::parse_openmetrics(body);
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {body}"));
    assert!(parsed.families.len() > 10, "{body}");
    body.to_owned()
}

/// Returns all monotonic series, without those of single processes, which restart with each process.
fn growing(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.split('{').next()?;
        let grows = ["_total", "_bucket", "_count", "_sum"];
        let grows = grows.iter().any(|suffix| name.ends_with(suffix));
        let of_process = [
            "uppercased_admin_requests_total",
            "process_cpu_seconds_total",
        ];
        let own = of_process.contains(&name);
        (grows && !own).then(|| Some((series.to_owned(), value.parse().ok()?)))?
    });
    samples.collect()
}

/// Returns the sum of a series over all its labels.
fn sum(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let labels_end = match rest.strip_prefix('{') {
            Some(labels) => labels.find('}')? + 2,
            None => 0,
        };
        rest.get(labels_end..)?
            .strip_prefix(' ')?
            .parse::<u64>()
            .ok()
    });
    let values: Vec<u64> = values.collect();
    assert!(!values.is_empty(), "no {name} in {text}");
    values.iter().sum()
}

#[test]
fn counters_match_clients_across_crash_and_reload() {
    const CLIENTS: usize = 20;
    const LINE: &[u8] = b"one line of text\n";
    let server = start(&["--workers=2"]);
    let address = admin(&server);
    let mut sent = 0;
    let mut connected = 0;
    for round in 1..=3_u32 {
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| Client::connect(server.addr()))
            .collect();
        connected += CLIENTS as u64;
        for client in &mut clients {
            client.roundtrip(LINE);
            sent += LINE.len() as u64;
            // While clients are active.
            scrape(address);
        }
        // A worker may increment a counter shortly after its effect is visible.
        let counted = |text: &String| {
            let bytes = [
                "uppercased_received_bytes_total",
                "uppercased_sent_bytes_total",
            ];
            bytes.iter().all(|name| sum(text, name) == sent)
        };
        let text = until_some("every byte is counted", || {
            Some(scrape(address)).filter(counted)
        });
        assert_eq!(
            sum(&text, "uppercased_connections_accepted_total"),
            connected
        );
        assert_eq!(sum(&text, "uppercased_connections_open"), CLIENTS as u64);
        assert_eq!(sum(&text, "uppercased_ready"), 1);
        // The turn that served a client may not be counted yet, nor the last sampled turns, at each
        // of two workers.
        let unsampled = 2 * u64::from(round) * TURNS_PER_SAMPLE;
        let turns = sum(&text, "uppercased_turns_total");
        let took = sum(&text, "uppercased_turn_duration_seconds_count");
        assert!(took > 0 && turns.abs_diff(took) <= 2 * u64::from(round) + 2 + unsampled);
        if round == 2 {
            // With all connections open, so that they migrate.
            server.reload().expect_success();
            until("every connection is counted as moved", || {
                let text = scrape(address);
                sum(&text, "uppercased_connections_migrated_in_total") == CLIENTS as u64
                    && sum(&text, "uppercased_connections_accepted_total") == connected
                    && sum(&text, "uppercased_connections_open") == CLIENTS as u64
            });
        }
        drop(clients);
        until("every connection is closed", || {
            let text = scrape(address);
            sum(&text, "uppercased_connections_closed_total") == connected
                && sum(&text, "uppercased_connections_open") == 0
        });
        if round == 1 {
            lose_worker(&server, 0);
            until("the crash is counted and the slot serves again", || {
                let text = scrape(address);
                sum(&text, "uppercased_worker_crashes_total") == 1
                    && get(address, "/readyz").0 == 200
            });
        }
    }
    let (code, body) = get(address, "/status");
    let shown: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (code, &shown["totals"]["received_bytes"]),
        (200, &sent.into())
    );
    assert!(server.stop().success());
}

/// Sums of rates would count a series twice if it restarted or continued under another label.
#[test]
fn counters_never_decrease_when_slots_leave() {
    let server = start(&["--workers=3"]);
    let address = admin(&server);
    lose_worker(&server, 2);
    until("the crash is counted and the slot serves again", || {
        sum(&scrape(address), "uppercased_worker_crashes_total") == 1
            && get(address, "/readyz").0 == 200
    });
    let of_last = |text: &str| {
        let accepted = "uppercased_connections_accepted_total{slot=\"2\"} ";
        let found = text.lines().find_map(|line| line.strip_prefix(accepted));
        found
            .expect("slot 2 is reported")
            .parse::<u64>()
            .expect("a number")
    };
    let mut clients = 0;
    let mut serve_some = |of_slot: Option<u64>| {
        until("slot 2 has accepted clients", || {
            Client::connect(server.addr()).roundtrip(b"count me");
            clients += 1;
            let text = scrape(address);
            let closed = sum(&text, "uppercased_connections_closed_total");
            closed == clients && of_slot.is_none_or(|before| of_last(&text) > before)
        });
        clients
    };
    serve_some(Some(0));
    let mut before = growing(&scrape(address));
    let mut compare = |what: &str| {
        let text = scrape(address);
        let now = growing(&text);
        for (series, value) in &before {
            let now = now.get(series).copied();
            assert!(now >= Some(*value), "{what}: {series} {value} {now:?}");
        }
        before = now;
        text
    };
    server.scale(1).expect_success();
    let text = compare("slots have left");
    let taken = of_last(&text);
    assert!(taken > 0 && !text.contains("uppercased_connections_open{slot=\"2\"}"));
    let clients = serve_some(None);
    compare("one slot serves");
    server.upgrade().expect_success();
    compare("another program continues");
    server.scale(3).expect_success();
    assert_eq!(of_last(&compare("slots have returned")), taken);
    let clients = clients.max(serve_some(Some(taken)));
    let text = compare("they serve again");
    assert_eq!(sum(&text, "uppercased_connections_accepted_total"), clients);
    assert_eq!(sum(&text, "uppercased_worker_crashes_total"), 1);
    let status = server.status_json();
    assert_eq!(status["totals"]["accepted"], clients);
    assert_eq!(status["totals"]["crashes"], 1);
    assert!(server.stop().success());
}

/// Returns the resident set of a process in bytes.
fn resident_set(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("a process");
    let pages = text.split(' ').nth(1).and_then(|it| it.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}

#[test]
fn processes_show_usage_and_restarts() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let processes = |server: &Server| {
        let status = server.status_json();
        let list = status["processes"].as_array().expect("a list").clone();
        let named =
            |it: serde_json::Value| (it["process"].as_str().expect("a name").to_owned(), it);
        list.into_iter().map(named).collect::<BTreeMap<_, _>>()
    };
    let descriptors =
        |all: &BTreeMap<String, serde_json::Value>| all["worker"]["usage"]["descriptors"].as_u64();
    let before = processes(&server);
    let names: Vec<&str> = before.keys().map(String::as_str).collect();
    assert_eq!(names, ["admin", "keeper", "supervisor", "worker"]);
    assert_eq!(before["supervisor"]["pid"], server.pid());
    for (name, process) in &before {
        let usage = &process["usage"];
        let counted = usage["resident_bytes"].as_u64();
        let resident = resident_set(process["pid"].as_u64().expect("a process"));
        if name == "keeper" {
            // Not the pages of its worker a second time; and only root learns which they are.
            let few = counted.is_some_and(|bytes| bytes > 0 && bytes < resident / 2);
            assert!(few || !geteuid().is_root(), "{counted:?} of {resident}");
        } else {
            assert!(
                counted > Some(resident / 2),
                "{name}: {counted:?} of {resident}"
            );
        }
        assert!(
            usage["started_at_ms"].as_u64() > Some(1_700_000_000_000),
            "{name}: {usage}"
        );
        assert_eq!(process["restarts_10m"], 0, "{name}");
    }
    let clients: Vec<Client> = (0..5).map(|_| Client::connect(server.addr())).collect();
    if let Some(first) = descriptors(&before) {
        until("five descriptors more", || {
            descriptors(&processes(&server)) == Some(first + 5)
        });
    }
    drop(clients);

    lose_worker(&server, 0);
    until("another worker", || {
        processes(&server)["worker"]["restarts_10m"] == 1
    });
    let text = scrape(address);
    assert_eq!(sum(&text, "uppercased_worker_starts_total"), 2);
    let restarts = "uppercased_process_recent_restarts{process=";
    for (process, count) in [("worker\",slot=\"0", 1), ("supervisor\",slot=\"", 0)] {
        let line = format!("{restarts}\"{process}\"}} {count}");
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    server.upgrade().expect_success();
    let after = processes(&server);
    let restarts = ["admin", "supervisor", "worker"].map(|it| after[it]["restarts_10m"].as_u64());
    assert_eq!(restarts, [Some(1), Some(1), Some(2)]);
    assert_eq!(
        after["supervisor"]["usage"]["started_at_ms"],
        before["supervisor"]["usage"]["started_at_ms"]
    );
    assert!(server.stop().success());
}

#[test]
fn failed_reload_shows_in_metrics() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("uppercased.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("write the file");
    write("");
    let config = format!("--config={}", file.display());
    let server = start(&["--workers=1", &config]);
    let shown = || {
        let text = scrape(admin(&server));
        let name = "uppercased_config_last_reload_";
        let at = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}success_timestamp_seconds ")))
            .expect("a time");
        (
            sum(&text, &format!("{name}successful")),
            at.parse::<f64>().expect("a number"),
        )
    };
    let (successful, started) = shown();
    assert_eq!(successful, 1);
    write("workerz = 3");
    server.reload().expect_failure("workerz");
    assert_eq!(shown(), (0, started));
    write("");
    server.reload().expect_success();
    let (successful, reloaded) = shown();
    assert_eq!(successful, 1);
    assert!(reloaded > started, "{reloaded} {started}");
    assert!(server.stop().success());
}

#[test]
fn metrics_default_to_older_format() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let answer = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let parsed = openmetrics_parser::prometheus::parse_prometheus(body);
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {body}"));
    assert!(parsed.families.len() > 10, "{body}");
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    match promtool {
        Ok(mut promtool) => {
            let mut input = promtool.stdin.take().expect("a pipe");
            input.write_all(body.as_bytes()).expect("it reads");
            drop(input);
            let output = promtool.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{output:?}");
        }
        Err(error) => skipped(&format!("promtool: {error}")),
    }
    assert!(server.stop().success());
}

#[test]
fn metrics_show_queue_of_stalled_worker() {
    let server = start(&["--workers=1", "--hang-timeout=off", "--backlog=7"]);
    let address = admin(&server);
    let text = scrape(address);
    assert_eq!(sum(&text, "uppercased_accept_queue_limit"), 7);
    assert_eq!(sum(&text, "uppercased_accept_queue_length"), 0);
    let worker = worker_of(&server, 0);
    freeze(&worker);
    let waiting = [(); 3].map(|()| Client::connect(server.addr()));
    until("all three are seen", || {
        sum(&scrape(address), "uppercased_accept_queue_length") == 3
    });
    worker.signal(Signal::SIGCONT);
    for mut client in waiting {
        client.roundtrip(b"taken after all");
    }
    assert_eq!(sum(&scrape(address), "uppercased_accept_queue_length"), 0);
    assert!(server.stop().success());
}

#[test]
fn admin_process_is_replaced_after_crash() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let mut client = Client::connect(server.addr());
    let workers = server.worker_pids();
    let first = until_some("an admin process", || admin_pid(&server));
    Watched::open(first).expect("alive").signal(Signal::SIGKILL);
    // Requests meanwhile wait at the listener or are lost with the process.
    let second = until_some("another one", || {
        admin_pid(&server).filter(|pid| *pid != first)
    });
    assert!(wait_gone(first, DEADLINE));
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(server.status_json()["admin"]["crashes"], 1);
    assert_eq!(sum(&scrape(address), "uppercased_admin_crashes_total"), 1);
    assert_eq!(server.worker_pids(), workers);
    // The setting survives an upgrade.
    server.upgrade().expect_success();
    assert_eq!(sum(&scrape(address), "uppercased_admin_crashes_total"), 1);
    client.roundtrip(b"still here");
    assert!(server.stop().success());
    assert!(wait_gone(second, DEADLINE));
}

#[test]
fn admin_process_exits_with_killed_supervisor() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
    let admin = until_some("an admin process", || admin_pid(&server));
    server.kill();
    assert!(wait_gone(admin, DEADLINE), "it survives its supervisor");
}

#[test]
fn stalled_supervisor_is_unhealthy() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    assert_eq!(get(address, "/healthz").0, 200);
    freeze(&Watched::open(server.pid()).expect("it lives"));
    let (code, why) = get(address, "/healthz");
    assert_eq!(code, 503, "{why}");
    assert!(why.contains("no answer in time"), "{why}");
    assert_eq!(get(address, "/metrics").0, 503);
    // Workers do not depend on the admin process.
    Client::connect(server.addr()).roundtrip(b"served all the same");
    server.signal(Signal::SIGCONT);
    assert_eq!(get(address, "/healthz").0, 200);
    assert!(server.stop().success());
}

#[test]
fn stopping_server_is_alive_and_not_ready() {
    let server = start(&["--workers=2", "--lame-duck=1h"]);
    let address = admin(&server);
    assert_eq!(get(address, "/readyz").0, 200);
    server.signal(Signal::SIGTERM);
    until("not ready from the moment a stop begins", || {
        get(address, "/readyz") == (503, "the server is draining\n".to_owned())
    });
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(sum(&scrape(address), "uppercased_slot_serving"), 0);
    let admin = until_some("an admin process", || admin_pid(&server));
    // A second stop ends it at once.
    server.stop();
    assert!(wait_gone(admin, DEADLINE));
    assert!(TcpStream::connect_timeout(&address, DEADLINE).is_err());
}

#[test]
fn admin_address_survives_upgrade() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let mut client = Client::connect(server.addr());
    client.roundtrip(b"before");
    let first = until_some("an admin process", || admin_pid(&server));
    server.upgrade().expect_success();
    assert_eq!(admin(&server), address);
    assert!(wait_gone(first, DEADLINE), "it survives the upgrade");
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
    client.roundtrip(b"after");
    until("every byte is counted", || {
        sum(&scrape(address), "uppercased_received_bytes_total") == 11
    });
    // Only supervisor, worker, keeper and admin process are running.
    until("only four processes run", || server.processes().len() == 4);
    assert!(server.stop().success());
}

#[test]
fn invalid_requests_are_refused_and_counted() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let long = format!("GET /status HTTP/1.1\r\nA: {}", "a".repeat(9000));
    for (request, code) in [
        ("GET /other HTTP/1.1\r\n\r\n", 404),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            405,
        ),
        ("\u{1}\u{2}\r\n\r\n", 400),
        (&long, 431),
        ("GET /metr", 408),
    ] {
        let answer = exchange(address, request.as_bytes());
        assert_eq!(status_of(&answer), code, "{request:?}: {answer}");
    }
    let head = exchange(address, b"HEAD /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(
        status_of(&head) == 200 && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let head = exchange(address, b"HEAD /other HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(
        status_of(&head) == 404 && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let text = scrape(address);
    for (code, times) in [(400, 1), (404, 2), (405, 1), (408, 1), (431, 1)] {
        let line = format!("uppercased_admin_requests_total{{code=\"{code}\"}} {times}");
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    assert!(server.stop().success());
}

#[test]
fn silent_clients_time_out() {
    let server = start(&["--workers=1"]);
    let address = admin(&server);
    let silent: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect_timeout(&address, DEADLINE).expect("connect"))
        .collect();
    assert_eq!(get(address, "/healthz").0, 200);
    drop(silent);
    assert!(server.stop().success());
}

/// Its threads allocate and free response buffers inside the sandbox.
#[test]
fn admin_process_serves_many_large_responses() {
    const CLIENTS: usize = 4;
    const EACH: usize = 8;
    let server = start(&["--workers=8"]);
    let address = admin(&server);
    let ask = || {
        for _ in 0..EACH {
            scrape(address);
            for page in ["/metrics", "/status"] {
                assert_eq!(get(address, page).0, 200, "{page}");
            }
        }
    };
    // A client error fails the test.
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(ask);
        }
    });
    assert_eq!(server.status_json()["admin"]["crashes"], 0);
    assert!(server.stop().success());
}

#[test]
fn unix_socket_belongs_to_owner_and_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("admin");
    let flag = format!("--admin={}", path.display());
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=1", &flag]);
    let made = std::fs::symlink_metadata(&path).expect("the socket");
    assert!(made.file_type().is_socket());
    assert_eq!(made.permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
        .write_all(b"GET /readyz HTTP/1.0\r\n\r\n")
        .expect("send");
    stream.shutdown(Shutdown::Write).expect("end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(server.stop().success());
    assert!(!path.exists(), "it still exists");
}

#[test]
fn unavailable_admin_address_refuses_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let flag = format!("--admin={}", taken.local_addr().expect("its address"));
    let (code, why) = Server::expect_failure(&["--listen=127.0.0.1:0", &flag]);
    assert!(code == 1 && why.contains("choose another address"), "{why}");

    let (code, why) = Server::expect_failure(&["--admin=0.0.0.0:9100"]);
    assert!(
        code == 2 && why.contains("admin_allow lists no network"),
        "{why}"
    );
}

/// The admin process uses a private channel to the supervisor.
#[test]
fn admin_process_needs_no_control_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("admin");
    let flag = format!("--admin={}", path.display());
    let server = Server::start(&["--listen=127.0.0.1:0", "--control=off", &flag]);
    let mut stream = UnixStream::connect(&path).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
        .write_all(b"GET /readyz HTTP/1.0\r\n\r\n")
        .expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(server.stop().success());
}

#[test]
fn listed_networks_read_remote_admin_endpoint() {
    isolated(|| {
        for address in ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"] {
            let mut ip = Command::new("ip");
            let added = ip.args(["address", "add", address, "dev", "lo"]).status();
            assert!(added.expect("run ip").success());
        }
        let config = tempfile::NamedTempFile::new().expect("a file");
        let allow = |network: &str| {
            let text = format!("admin_allow = \"{network}\"\n");
            std::fs::write(config.path(), text).expect("write the configuration");
        };
        allow("192.0.2.2");
        let path = config.path().to_str().expect("a path").to_owned();
        let server = Server::builder()
            .args([
                "--listen=127.0.0.1:0",
                "--admin=0.0.0.0:0",
                "--bake-time=0s",
            ])
            .args(["--workers=1", "--config", &path])
            .start();
        let port = admin(&server).port();
        let read_from = |source: [u8; 4], path: &str| {
            let to = SocketAddr::from(([192, 0, 2, 1], port));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket
                .bind(&SocketAddr::from((source, 0)).into())
                .expect("bind");
            socket.connect(&to.into()).expect("connect");
            let mut stream = TcpStream::from(socket);
            let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
            stream
                .write_all(request.as_bytes())
                .expect("send a request");
            let mut answer = String::new();
            // A reload may replace the process meanwhile.
            let read = stream.read_to_string(&mut answer);
            read.is_ok().then(|| status_of(&answer))
        };
        for path in ["/metrics", "/readyz", "/healthz", "/status"] {
            assert_eq!(read_from([192, 0, 2, 2], path), Some(200), "{path}");
            assert_eq!(read_from([192, 0, 2, 3], path), Some(403), "{path}");
        }
        // This machine may always read.
        let metrics = scrape(SocketAddr::from(([127, 0, 0, 1], port)));
        let refused = "uppercased_admin_requests_total{code=\"403\"} 4\n";
        assert!(metrics.contains(refused), "{metrics}");
        server.wait_log(|line| line.contains("admin client refused peer=192.0.2.3"));

        allow("192.0.2.3");
        server.reload().expect_success();
        until("the new list is in force", || {
            read_from([192, 0, 2, 3], "/readyz") == Some(200)
        });
        assert_eq!(read_from([192, 0, 2, 2], "/readyz"), Some(403));
    });
}
