//! PROXY headers on listeners that require them: client addresses, trusted senders, and invalid
//! headers; across reloads, crashes and partial headers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::SockRef;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};
use uppercased_ctl::proxy_header::{Version, encode};

use crate::support::adversity::{Frozen, has_ipv6};
use crate::support::observe::{field, freeze, lose_worker, number, until, worker_of};
use crate::support::usage::Counters;
use crate::support::{Client, DEADLINE, Server};

const CLIENT: &str = "192.0.2.7:4000";
const OTHER: &str = "192.0.2.8:4000";
const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

/// Starts one worker that requires headers and logs every connection.
#[track_caller]
fn server(args: &[&str]) -> Server {
    let given = [
        "--listen=127.0.0.1:0",
        "--workers=1",
        "--proxy-protocol=all",
    ];
    let rest = ["--log-level=debug", "--bake-time=0s"];
    Server::builder()
        .args(given)
        .args(rest)
        // Longer than delays on a busy machine; a flag of a test overrides it.
        .env("UPPERCASED_PROXY_HEADER_TIMEOUT", "1m")
        .args(args)
        .start()
}

fn header(version: Version, client: &str) -> Vec<u8> {
    encode(
        version,
        client.parse().unwrap(),
        "10.0.0.1:9999".parse().unwrap(),
    )
}

/// Returns a version 2 header of the proxy itself, as for a health check.
fn local_header() -> Vec<u8> {
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec()
}

/// Returns a proxy's connection for `client`, already served.
#[track_caller]
fn client_via_proxy(server: &Server, version: Version, client: &str) -> Client {
    let mut proxy = Client::connect(server.addr());
    proxy.send_all(&header(version, client));
    proxy.roundtrip(b"behind a header");
    proxy
}

fn refused(counters: &Counters, cause: RefusalCause) -> u64 {
    counters.count(Counter::Refused(cause))
}

/// Returns the log line of the next refusal, from line `from` on.
#[track_caller]
fn refusal(server: &Server, from: usize) -> String {
    server.wait_log_from(from, |line| line.contains("connection refused"))
}

#[test]
fn header_names_client_and_is_not_echoed() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let mut bytes = 0;
    for version in VERSIONS {
        for client in [CLIENT, "[2001:db8::7]:4000"] {
            let from = server.log_len();
            // In one segment with the first bytes.
            let mut proxy = Client::connect(server.addr());
            proxy.send_all(&[&header(version, client), &b"at once"[..]].concat());
            proxy.expect(b"AT ONCE");
            proxy.stream(0, 300_000);
            bytes += 7 + 300_000;
            let via = proxy.local_addr().to_string();
            proxy.half_close();
            proxy.expect_eof();
            for word in [" proxy header accepted", " connection closed"] {
                let line = server.wait_log_from(from, |line| line.contains(word));
                assert_eq!(field(&line, "peer"), Some(client), "{line}");
                assert_eq!(field(&line, "via"), Some(&*via), "{line}");
            }
        }
    }
    counters.wait_open(0);
    assert_eq!(
        counters.count(Counter::BytesIn),
        bytes,
        "no header among them"
    );
    assert_eq!(counters.count(Counter::BytesOut), bytes);
    let totals = &server.status_json()["totals"];
    assert_eq!(totals["closed"]["peer_closed"], 4, "{totals}");
}

#[test]
fn header_may_arrive_byte_by_byte() {
    let server = server(&[]);
    for version in VERSIONS {
        let mut proxy = Client::connect(server.addr());
        for byte in header(version, CLIENT) {
            proxy.send_all(&[byte]);
            // Long enough for the worker to parse the part received so far.
            proxy.expect_silence(Duration::from_millis(1));
        }
        proxy.roundtrip(b"whole");
    }
}

#[test]
fn partial_header_costs_no_polling() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let mut proxy = Client::connect(server.addr());
    let header = header(Version::V2, CLIENT);
    proxy.send_all(&header[..20]);
    proxy.expect_silence(Duration::from_millis(50));
    let before = counters.count(Counter::Turns);
    proxy.expect_silence(Duration::from_millis(300));
    let turns = counters.count(Counter::Turns) - before;
    assert!(turns < 10, "{turns} turns without work");
    proxy.send_all(&header[20..]);
    proxy.roundtrip(b"whole");
}

#[test]
fn local_header_serves_proxy_as_client() {
    // The lists apply to clients, not to proxies.
    let server = server(&["--allow=192.0.2.0/24"]);
    for header in [local_header(), b"PROXY UNKNOWN\r\n".to_vec()] {
        let from = server.log_len();
        let mut proxy = Client::connect(server.addr());
        proxy.send_all(&header);
        proxy.roundtrip(b"are you there?");
        let line = server.wait_log_from(from, |line| line.contains(" proxy header accepted"));
        let own = proxy.local_addr().to_string();
        assert_eq!(field(&line, "peer"), Some(&*own), "{line}");
    }
}

#[test]
fn untrusted_proxy_is_reset_before_reading() {
    let server = server(&["--proxy-trust=127.0.0.2,::1"]);
    let counters = Counters::of(&server);
    let stranger = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match Client::try_connect_from(stranger, server.addr()) {
        Ok(mut client) => client.expect_reset(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(refused(&counters, RefusalCause::ProxyUntrusted), 1);
    assert_eq!(counters.count(Counter::Accepted), 0);
    let line = refusal(&server, 0);
    assert_eq!(field(&line, "reason"), Some("proxy_untrusted"), "{line}");
    let friend = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let mut friend = Client::try_connect_from(friend, server.addr()).unwrap();
    friend.send_all(&header(Version::V2, CLIENT));
    friend.roundtrip(b"known");
}

#[test]
fn invalid_header_is_reset_and_counted() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let v2 = b"\r\n\r\n\0\r\nQUIT\n".as_slice();
    let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
    let cases: [(&[u8], RefusalCause); 6] = [
        (b"hello\n", RefusalCause::ProxyMissing),
        (
            b"PROXY TCP4 1.2.3.4 nonsense\r\n",
            RefusalCause::ProxyMalformed,
        ),
        (
            &[v2, b"\x31\x11\0\x0c"].concat(),
            RefusalCause::ProxyMalformed,
        ),
        (
            &[v2, b"\x21\x12\0\x0c0123456789ab"].concat(),
            RefusalCause::ProxyMalformed,
        ),
        (&long, RefusalCause::ProxyTooLong),
        (
            &[v2, b"\x21\x11\xff\xff"].concat(),
            RefusalCause::ProxyTooLong,
        ),
    ];
    let mut expected = BTreeMap::new();
    for (bytes, cause) in cases {
        let mut proxy = Client::connect(server.addr());
        proxy.send_all(bytes);
        proxy.expect_reset();
        *expected.entry(cause.name()).or_insert(0) += 1;
    }
    // A connection that ends within its header.
    let mut short = Client::connect(server.addr());
    short.send_all(b"PROXY TC");
    short.half_close();
    short.expect_reset();
    *expected.entry("proxy_missing").or_insert(0) += 1;
    assert_refused_so_far(&server, &expected);
    // A connection that is aborted at once is not an error, either.
    Client::connect(server.addr()).abort();
    counters.wait(Counter::Closed(CloseReason::PeerReset), 1);
}

#[test]
fn late_header_is_reset_and_counted() {
    let server = server(&["--proxy-header-timeout=300ms"]);
    // Sent before the worker polls, so that a complete header cannot time out.
    let frozen = Frozen::workers(&server);
    let mut part = Client::connect(server.addr());
    part.send_all(b"PROXY TCP4 1.2");
    drop(frozen);
    let mut silent = Client::connect(server.addr());
    part.expect_reset();
    silent.expect_reset();
    assert_refused_so_far(&server, &[("proxy_timeout", 2)].into());
}

/// Asserts the refusals by cause, that no client is connected, and that the log has the refusals.
#[track_caller]
fn assert_refused_so_far(server: &Server, expected: &BTreeMap<&str, u64>) {
    Counters::of(server).wait_open(0);
    let totals = &server.status_json()["totals"];
    assert_eq!(totals["refused"], serde_json::json!(expected), "{totals}");
    let count: u64 = expected.values().sum();
    assert_eq!(totals["closed"], serde_json::json!({ "refused": count }));
    assert_eq!(totals["received_bytes"], 0, "{totals}");
    for cause in expected.keys() {
        let cause = format!("reason={cause}");
        let line = server.wait_log(|line| line.contains(&cause));
        assert!(
            line.contains("connection refused") && number(&line, "refused") > 0,
            "{line}"
        );
        if line.contains("malformed") {
            assert!(
                line.contains("error=\"cannot read the PROXY header: "),
                "{line}"
            );
        }
    }
}

#[test]
fn lists_and_limits_apply_to_proxied_client() {
    let server = server(&[
        "--deny=192.0.2.9,127.0.0.0/8",
        "--max-connections-per-source=2",
    ]);
    let counters = Counters::of(&server);
    let from = server.log_len();
    let mut denied = Client::connect(server.addr());
    denied.send_all(&header(Version::V1, "192.0.2.9:1"));
    denied.expect_reset();
    assert_eq!(refused(&counters, RefusalCause::Denied), 1);
    let line = refusal(&server, from);
    assert_eq!(field(&line, "peer"), Some("192.0.2.9:1"), "{line}");
    assert!(
        field(&line, "via").is_some_and(|via| via.starts_with("127.0.0.1:")),
        "{line}"
    );

    let mut first = [(); 2].map(|()| client_via_proxy(&server, Version::V2, CLIENT));
    let mut third = Client::connect(server.addr());
    third.send_all(&header(Version::V2, CLIENT));
    third.expect_reset();
    assert_eq!(refused(&counters, RefusalCause::PerSourceLimit), 1);
    // A connection without its header does not count towards any client yet.
    let _waiting = [(); 5].map(|()| Client::connect(server.addr()));
    let mut second = client_via_proxy(&server, Version::V2, OTHER);

    // After migration, connections count towards the same clients.
    server.reload().expect_success();
    for client in first.iter_mut().chain([&mut second]) {
        client.roundtrip(b"moved");
    }
    let mut third = Client::connect(server.addr());
    third.send_all(&header(Version::V2, CLIENT));
    third.expect_reset();
    let [gone, _kept] = first;
    drop(gone);
    until("its place is available", || {
        let mut again = Client::connect(server.addr());
        again.send_all(&header(Version::V2, CLIENT));
        again.is_served(b"and now?")
    });
}

#[test]
fn connection_without_header_counts_for_no_source() {
    let server = server(&["--max-connections-per-source=2"]);
    // A client with the address of the proxy, which has other connections waiting.
    let client = "127.0.0.1:4000";
    let waiting = [(); 5].map(|()| Client::connect(server.addr()));
    Counters::of(&server).wait_open(5);
    let mut served = [(); 2].map(|()| client_via_proxy(&server, Version::V2, client));
    server.reload().expect_success();
    served.iter_mut().for_each(|one| one.roundtrip(b"moved"));
    let counters = Counters::of(&server);
    // Connections that close before their header free no place of a client.
    drop(waiting);
    counters.wait_open(2);
    let mut third = Client::connect(server.addr());
    third.send_all(&header(Version::V2, client));
    third.expect_reset();
    drop(served);
    counters.wait_open(0);
    let _served = [(); 2].map(|()| client_via_proxy(&server, Version::V2, client));
}

#[test]
fn reload_migrates_partial_headers_and_client_addresses() {
    halves_and_clients_move("reload");
}

#[test]
fn upgrade_migrates_partial_headers_and_client_addresses() {
    halves_and_clients_move("upgrade");
}

#[track_caller]
fn halves_and_clients_move(by: &str) {
    let server = server(&[]);
    let mut named = client_via_proxy(&server, Version::V1, CLIENT);
    let mut halves = Vec::new();
    for version in VERSIONS {
        let header = header(version, OTHER);
        for cut in [0, 1, 8, 16, header.len() - 1] {
            let mut proxy = Client::connect(server.addr());
            proxy.send_all(&header[..cut]);
            halves.push((proxy, header[cut..].to_vec()));
        }
    }
    Counters::of(&server).wait_open(1 + halves.len() as u64);
    let from = server.log_len();
    server.command(&[by]).expect_success();
    let moved = server.status_json()["totals"]["migrated_in"].clone();
    assert_eq!(moved, 1 + halves.len(), "all of them");
    for (proxy, rest) in &mut halves {
        proxy.send_all(rest);
        proxy.roundtrip(b"half before, half after");
    }
    named.roundtrip(b"still me");
    drop(named);
    let line = server.wait_log_from(from, |line| {
        line.contains(" connection closed") && field(line, "peer") == Some(CLIENT)
    });
    assert!(field(&line, "via").is_some(), "{line}");
}

#[test]
fn stop_bounds_wait_for_header() {
    let server = server(&["--proxy-header-timeout=10m"]);
    let mut named = client_via_proxy(&server, Version::V2, CLIENT);
    let mut waiting = Client::connect(server.addr());
    waiting.send_all(b"PROXY TCP4 ");
    Counters::of(&server).wait_open(2);
    server.signal(Signal::SIGTERM);
    named.expect_eof();
    waiting.expect_eof();
    drop((named, waiting));
    assert!(server.stop().success());
}

#[test]
fn stop_answers_client_with_header_in_flight() {
    let server = server(&[]);
    let mut named = client_via_proxy(&server, Version::V2, CLIENT);
    let mut coming = Client::connect(server.addr());
    coming.send_all(b"PROXY TCP4 ");
    Counters::of(&server).wait_open(2);
    server.signal(Signal::SIGTERM);
    named.expect_eof();
    coming.expect_silence(Duration::from_millis(20));
    coming.send_all(b"192.0.2.7 10.0.0.1 4000 9999\r\nat once");
    coming.expect(b"AT ONCE");
    coming.expect_eof();
    drop((named, coming));
    assert!(server.wait_exit(DEADLINE).success());
}

#[test]
fn silent_client_leaving_is_no_refusal() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    let mut probe = Client::connect(server.addr());
    probe.half_close();
    probe.expect_eof();
    counters.wait(Counter::Closed(CloseReason::PeerClosed), 1);
    assert_eq!(refused(&counters, RefusalCause::ProxyMissing), 0);
}

/// The header is parsed only when complete, even with the smallest buffer.
#[test]
fn longest_header_fits_smallest_buffer() {
    let server = server(&["--recv-buffer=4KiB"]);
    let fields = 4096 - 16 - 12 - 3;
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    bytes.extend(u16::try_from(12 + 3 + fields).unwrap().to_be_bytes());
    bytes.extend([192, 0, 2, 7, 10, 0, 0, 1, 0x0f, 0xa0, 0x27, 0x0f, 0x04]);
    bytes.extend(u16::try_from(fields).unwrap().to_be_bytes());
    bytes.resize(4096, 0);
    for piece in [4096, 536, 100, 7] {
        let mut proxy = Client::connect(server.addr());
        for part in bytes.chunks(piece) {
            proxy.send_all(part);
        }
        proxy.roundtrip(b"behind all of it");
    }
}

fn send_urgent(proxy: &Client, byte: u8) {
    let sent = SockRef::from(proxy.socket()).send_out_of_band(&[byte]);
    assert_eq!(sent.unwrap(), 1);
}

#[test]
fn urgent_data_may_follow_header() {
    let server = server(&[]);
    let counters = Counters::of(&server);
    for version in VERSIONS {
        let header = header(version, CLIENT);
        let mut proxy = Client::connect(server.addr());
        proxy.send_all(&header[..20]);
        send_urgent(&proxy, header[20]);
        proxy.expect_reset();
        let mut proxy = Client::connect(server.addr());
        proxy.send_all(&header);
        send_urgent(&proxy, b'u');
        proxy.send_all(b"rgent");
        proxy.expect(b"URGENT");
    }
    counters.wait(Counter::Refused(RefusalCause::ProxyMissing), 2);
}

#[test]
fn stop_answers_bytes_behind_header() {
    let server = server(&["--hang-timeout=off"]);
    let worker = worker_of(&server, 0);
    freeze(&worker);
    // One is in the accept queue with its header; the other is idle.
    let mut last = Client::connect(server.addr());
    last.send_all(&[&header(Version::V2, CLIENT), &b"last words"[..]].concat());
    let mut silent = Client::connect(server.addr());
    server.signal(Signal::SIGTERM);
    worker.signal(Signal::SIGCONT);
    last.expect(b"LAST WORDS");
    last.expect_eof();
    silent.expect_eof();
    drop((last, silent));
    assert!(server.wait_exit(DEADLINE).success());
}

#[test]
fn replacement_worker_requires_headers() {
    let server = server(&[]);
    let mut waiting = Client::connect(server.addr());
    waiting.send_all(b"PROXY ");
    Counters::of(&server).wait_open(1);
    lose_worker(&server, 0);
    waiting.expect_reset();
    until("a successor serves", || {
        let mut proxy = Client::connect(server.addr());
        proxy.send_all(&header(Version::V2, CLIENT));
        proxy.is_served(b"anybody?")
    });
    let mut bare = Client::connect(server.addr());
    bare.send_all(b"no header\n");
    bare.expect_reset();
}

#[test]
fn only_named_listeners_require_headers() {
    let [asks, plain] = ["127.0.0.1:0", "127.0.0.2:0"].map(|listen| format!("--listen={listen}"));
    // Otherwise its only sibling would serve the queues of a slot that cannot restart.
    let server = Server::builder()
        .args([&asks, &plain])
        .args([
            "--proxy-protocol=127.0.0.1:0",
            "--workers=2",
            "--lend-after=0s",
        ])
        .args(["--backoff-initial=1m", "--backoff-max=1m"])
        .start();
    let [asks, plain]: [SocketAddr; 2] = server.addrs().try_into().unwrap();
    let header = header(Version::V1, CLIENT);
    let both_are_as_told = || {
        for _ in 0..20 {
            let mut proxy = Client::connect(asks);
            proxy.send_all(&header);
            proxy.roundtrip(b"asked for");
            let mut client = Client::connect(plain);
            // Mostly upper case already.
            client.roundtrip(&header);
        }
    };
    both_are_as_told();
    for _ in 0..2 {
        let mark = server.log_len();
        lose_worker(&server, 1);
        server.wait_log_from(mark, |line| line.contains("worker exited unexpectedly"));
    }
    server.wait_log(|line| line.contains("queue lent to sibling"));
    both_are_as_told();
}

#[test]
fn trusted_list_matches_ipv4_mapped_proxy() {
    if !has_ipv6() {
        return;
    }
    let server = Server::start(&["--listen=*:0", "--workers=1", "--proxy-protocol=all"]);
    let mut proxy = Client::connect(SocketAddr::from(([127, 0, 0, 1], server.addr().port())));
    proxy.send_all(&header(Version::V1, CLIENT));
    proxy.roundtrip(b"in whatever dress");
}

#[test]
fn own_client_sends_proxy_header() {
    let server = server(&[]);
    for version in ["v1", "v2"] {
        let mut client = Command::new(env!("CARGO_BIN_EXE_uppercased"))
            .args([
                "client",
                &server.addr().to_string(),
                "--proxy-protocol",
                version,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        client
            .stdin
            .take()
            .unwrap()
            .write_all(b"from behind\n")
            .unwrap();
        let output = client.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"FROM BEHIND\n", "{output:?}");
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn proxy_settings_serving_no_client_are_refused() {
    for (args, part) in [
        (
            vec!["--proxy-protocol=127.0.0.1:1"],
            "not one of the addresses",
        ),
        (
            vec!["--proxy-protocol=all", "--proxy-trust=none"],
            "no network may send the header",
        ),
        (
            vec!["--proxy-protocol=some"],
            "none, all, or addresses as in listen",
        ),
        (vec!["--proxy-header-timeout=1ms"], "too short"),
    ] {
        let (code, stderr) = Server::expect_failure(&args);
        assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
        assert!(stderr.contains(part), "{part:?} is missing: {stderr}");
    }
}
