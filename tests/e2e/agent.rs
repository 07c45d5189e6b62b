//! The agent check of load balancers: a weight by load while the server is healthy, otherwise the
//! operator's or the server's own state; across reloads, upgrades and stalls.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::Signal;
use uppercased::config::AGENT_FRESH;
use uppercased_ctl::clock;

use crate::support::observe::{field, freeze, lose_worker, until};
use crate::support::{Client, DEADLINE, Server, Watched};

/// Starts one worker with room for ten connections.
#[track_caller]
fn start(args: &[&str]) -> Server {
    let fixed = ["--listen=127.0.0.1:0", "--agent=127.0.0.1:0", "--workers=1"];
    let rest = ["--max-connections=10", "--bake-time=0s"];
    Server::builder().args(fixed).args(rest).args(args).start()
}

fn agent(server: &Server) -> SocketAddr {
    let status = server.status_json();
    status["admin"]["agent"].as_str().unwrap().parse().unwrap()
}

/// Returns the reply of `agent` to a load balancer that sends `words`.
#[track_caller]
fn line_after_sending(agent: SocketAddr, words: &[u8]) -> String {
    let mut stream = TcpStream::connect_timeout(&agent, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(words).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    assert!(
        line.ends_with('\n') && line.lines().count() == 1,
        "{line:?}"
    );
    line.trim_end().to_owned()
}

fn reply(agent: SocketAddr) -> String {
    line_after_sending(agent, b"")
}

/// Waits until the HAProxy state in the reply is `word`.
#[track_caller]
fn until_line(agent: SocketAddr, word: &str) {
    until(word, || reply(agent).split(' ').next() == Some(word));
}

/// Returns the admin endpoint's response.
#[track_caller]
fn page(server: &Server, page: &str) -> String {
    let status = server.status_json();
    let address = status["admin"]["address"].as_str().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {page} HTTP/1.1\r\nHost: here\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn agent_weight_reports_free_capacity() {
    let server = start(&[]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(server.addr())).collect();
    clients
        .iter_mut()
        .for_each(|client| client.roundtrip(b"hold a place"));
    let agent = agent(&server);
    assert_eq!(reply(agent), "ready up 70%");
    // The balancer's input and the way it closes are irrelevant.
    assert_eq!(
        line_after_sending(agent, b"hello from here\n"),
        "ready up 70%"
    );
    drop(TcpStream::connect(agent).unwrap());
    drop(clients);
    until(
        "its places are free again, and the weight follows smoothly",
        || {
            let line = reply(agent);
            let weight = line
                .strip_prefix("ready up ")
                .and_then(|it| it.strip_suffix('%'));
            weight.unwrap().parse::<u8>().unwrap() > 72
        },
    );
    let line = server.wait_log(|line| line.contains("admin endpoint open"));
    assert_eq!(field(&line, "agent"), Some(&*agent.to_string()), "{line}");
}

#[test]
fn operator_drains_and_restores_rotation() {
    let server = start(&["--admin=0"]);
    let agent = agent(&server);
    let ready = |expected: &str| {
        let answer = page(&server, "/readyz");
        assert!(answer.contains(expected), "{answer}");
    };
    until_line(agent, "ready");
    ready(" 200 ");
    for word in ["drain", "maint"] {
        let from = server.log_len();
        let answered = server.command(&["rotation", word]).expect_success();
        assert_eq!(answered.stdout, format!("rotation: {word}\n"));
        let line = server.wait_log_from(from, |line| line.contains("rotation changed"));
        assert_eq!(field(&line, "to"), Some(word), "{line}");
        until_line(agent, word);
        ready(&format!("the server is out of rotation ({word})"));
        assert_eq!(server.status_json()["rotation"], word);
        let screen = server.command(&["status"]).expect_success().stdout;
        assert!(
            screen.contains(&format!("\nrotation     {word}")),
            "{screen}"
        );
        Client::connect(server.addr()).roundtrip(b"all the same");
    }
    // The state survives a reload.
    server.reload().expect_success();
    server.upgrade().expect_success();
    assert_eq!(server.status_json()["rotation"], "maint");
    until_line(agent, "maint");
    server.command(&["rotation", "in"]).expect_success();
    until_line(agent, "ready");
    ready(" 200 ");
    let refused = server.command(&["rotation", "out"]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

#[test]
fn agent_answers_are_counted() {
    let server = start(&["--admin=0"]);
    let agent = agent(&server);
    until_line(agent, "ready");
    server.command(&["rotation", "drain"]).expect_success();
    until_line(agent, "drain");
    let metrics = page(&server, "/metrics");
    for (word, reply) in [("ready", true), ("drain", true), ("maint", false)] {
        let sample = format!("uppercased_agent_answers_total{{answer=\"{word}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
        assert_eq!(line.unwrap() != "0", reply, "{word}: {metrics}");
    }
    // The page and the agent shared one query.
    let answers = &server.status_json()["admin"]["agent_answers"];
    assert!(answers["drain"].as_u64().unwrap() > 0, "{answers}");
    assert_eq!(answers["maint"], 0, "{answers}");
    assert!(server.stop().success());
}

#[test]
fn agent_reports_stop_before_clients_are_refused() {
    // A second signal stops it at once.
    let server = start(&["--lame-duck=1h"]);
    let agent = agent(&server);
    until_line(agent, "ready");
    server.signal(Signal::SIGTERM);
    until_line(agent, "drain");
    Client::connect(server.addr()).roundtrip(b"still served");
    assert!(server.stop().success());
}

#[test]
fn agent_reports_unserved_queue_after_delay() {
    let server = start(&["--backoff-initial=1m", "--backoff-max=1m"]);
    let agent = agent(&server);
    lose_worker(&server, 0);
    server.wait_log(|line| line.contains("worker exited unexpectedly"));
    for _ in 0..20 {
        assert!(reply(agent).starts_with("ready up "));
    }
    let from = server.log_len();
    lose_worker(&server, 0);
    server.wait_log_from(from, |line| line.contains("worker crash-looping"));
    until_line(agent, "down");
}

#[test]
fn agent_keeps_answer_of_stalled_supervisor() {
    let server = start(&[]);
    let agent = agent(&server);
    server.command(&["rotation", "drain"]).expect_success();
    until_line(agent, "drain");
    let supervisor = Watched::open(server.pid()).unwrap();
    freeze(&supervisor);
    // A cached reply is used only for a short time; then a new query is needed.
    let since = clock::now();
    while clock::now().since(since) < 2 * AGENT_FRESH {
        assert!(reply(agent).starts_with("drain"));
    }
    assert!(reply(agent).starts_with("drain"));
    Client::connect(server.addr()).roundtrip(b"workers do not need it");
    supervisor.signal(Signal::SIGCONT);
    server.command(&["rotation", "in"]).expect_success();
    until_line(agent, "ready");
}

#[test]
fn agent_survives_silent_clients_and_crash() {
    let server = start(&[]);
    let agent = agent(&server);
    let strangers: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(agent).unwrap()).collect();
    assert!(reply(agent).starts_with("ready up "));
    drop(strangers);
    let pid = server.status_json()["admin"]["pid"].as_u64().unwrap();
    let process = Watched::open(u32::try_from(pid).unwrap()).unwrap();
    process.signal(Signal::SIGKILL);
    assert!(process.wait_gone(DEADLINE));
    // The listener stays open, so no connection is refused meanwhile.
    assert!(reply(agent).starts_with("ready up "));
    assert_eq!(server.status_json()["admin"]["crashes"], 1);
}

#[test]
fn unavailable_agent_address_refuses_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--agent={}", taken.local_addr().unwrap());
    for (args, code, part) in [
        (
            ["--listen=127.0.0.1:0", &taken],
            1,
            "choose another address with --agent",
        ),
        (
            ["--agent=here", "--workers=1"],
            2,
            "neither an address with a port nor a port",
        ),
    ] {
        let (got, error) = Server::expect_failure(&args);
        let line = error.lines().last().unwrap_or_default();
        assert_eq!(got, code, "{error}");
        assert!(line.contains(part), "{error}");
    }
}
