//! Abusive clients, malicious or faulty. Excess connections are refused with a cause. Under any
//! other abuse, memory stays within its bound, a well-behaved client is always served, and the
//! server recovers fully afterwards.
//!
//! Descriptor exhaustion and pauses at the connection limit are in `tests/e2e/limits.rs`.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use procfs::net::TcpState;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use socket2::{SockFilter, SockRef};
use uppercased_ctl::clock::now;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};

use crate::support::adversity::{fill_all, has_ipv6, skipped};
use crate::support::diagnosis::{queued, tcp_sockets};
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{count_sockets, number, until};
use crate::support::scene::Scene;
use crate::support::syn_flood::{SynFlood, set_ipv4};
use crate::support::usage::Counters;
use crate::support::{Client, Server, in_background};

/// Upper bound of the kernel memory of one connection.
const KERNEL_BYTES_MAX: u64 = 1 << 20;

const FIRST: IpAddr = source(2);
const SECOND: IpAddr = source(3);

/// Returns a loopback address to connect from.
const fn source(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, last))
}

/// Starts one worker, so that its counters are the server's.
#[track_caller]
fn server(args: &[&str]) -> Server {
    Server::builder()
        .args(["--listen", "127.0.0.1:0", "--workers", "1"])
        .args(args)
        .start()
}

#[track_caller]
fn served(source: IpAddr, addr: SocketAddr) -> Client {
    let client = Client::try_connect_from(source, addr);
    let mut client = client.unwrap_or_else(|error| panic!("connect from {source}: {error}"));
    client.roundtrip(b"am I in?");
    client
}

/// Asserts that a client from `source` is reset, at any stage.
#[track_caller]
fn refused(source: IpAddr, addr: SocketAddr) {
    match Client::try_connect_from(source, addr) {
        Ok(mut client) => client.expect_reset(),
        // The reset arrived before connect returned.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("connect from {source}: {error}"),
    }
}

fn is_served(source: IpAddr, addr: SocketAddr) -> bool {
    Client::try_connect_from(source, addr).is_ok_and(|mut client| client.is_served(b"and I?"))
}

fn refusals(counters: &Counters, cause: RefusalCause) -> u64 {
    counters.count(Counter::Refused(cause))
}

fn closed(counters: &Counters, reason: CloseReason) -> u64 {
    counters.count(Counter::Closed(reason))
}

#[test]
fn source_limit_refuses_excess_connection() {
    let server = server(&["--max-connections-per-source", "3", "--bake-time=0s"]);
    let (addr, counters) = (server.addr(), Counters::of(&server));
    let mut first: Vec<Client> = (0..3).map(|_| served(FIRST, addr)).collect();
    refused(FIRST, addr);
    let mut second = served(SECOND, addr);
    assert_eq!(refusals(&counters, RefusalCause::PerSourceLimit), 1);
    let line = server.wait_log(|line| line.contains("connection refused"));
    assert!(line.contains("reason=per_source_limit"), "{line}");
    assert_eq!(number(&line, "refused"), 1, "{line}");

    // Each closed connection frees a place.
    first.pop();
    counters.wait_open(3);
    first.push(served(FIRST, addr));
    refused(FIRST, addr);

    // Migrated connections count, and none is refused.
    server.reload().expect_success();
    for client in first.iter_mut().chain([&mut second]) {
        client.roundtrip(b"moved, and never cut");
    }
    refused(FIRST, addr);
    first.pop();
    until("its place is available", || is_served(FIRST, addr));
    let totals = &server.status_json()["totals"];
    assert_eq!(totals["migrated_in"], 4, "{totals}");
    assert!(totals["refused"]["per_source_limit"].as_u64() >= Some(3));
    let screen = server.command(&["status"]).expect_success().stdout;
    assert!(screen.contains("\nrefused      "), "{screen}");
}

#[test]
fn prefix_groups_addresses_into_one_source() {
    let server = server(&["--max-connections-per-source=2", "--source-prefix-v4=24"]);
    let addr = server.addr();
    let _held = [served(FIRST, addr), served(SECOND, addr)];
    refused(source(200), addr);
    served(IpAddr::from([127, 0, 1, 2]), addr);
}

#[test]
fn source_rate_limit_slows_fast_source() {
    const BURST: u64 = 5;
    let server = server(&["--accept-rate-per-source", "5"]);
    let (addr, counters) = (server.addr(), Counters::of(&server));
    let begin = now();
    // Repeat until some are refused, because the machine may be slow.
    let (mut taken, mut refused) = (0, 0);
    until("some are refused", || {
        match is_served(FIRST, addr) {
            true => taken += 1,
            false => refused += 1,
        }
        refused == 20
    });
    let seconds = now().since(begin).as_secs();
    assert!(taken >= BURST, "the burst is served: {taken}");
    assert!(taken <= BURST + 5 * (seconds + 1), "{taken} in {seconds} s");
    assert_eq!(refusals(&counters, RefusalCause::PerSourceRate), refused);
    server.wait_log(|line| line.contains("per_source_rate"));
    let stderr = server.log();
    let stderr = stderr
        .iter()
        .filter(|line| line.contains("per_source_rate"));
    let stderr = stderr.count() as u64;
    assert!(
        (1..=seconds + 2).contains(&stderr),
        "{stderr} in {seconds} s"
    );

    served(SECOND, addr);
    until("its rate has recovered", || is_served(FIRST, addr));
    counters.wait_open(0);
}

#[test]
fn access_lists_select_clients_and_follow_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lists.toml");
    let write = |deny: &str| {
        let text = format!("allow = [\"127.0.0.0/29\", \"::1\"]\ndeny = [{deny}]\n");
        fs::write(&file, text).unwrap();
    };
    write("\"127.0.0.5\"");
    let name = file.display().to_string();
    let server = server(&["--config", &name, "--bake-time=0s"]);
    let (addr, counters) = (server.addr(), Counters::of(&server));
    let mut first = served(FIRST, addr);
    for _ in 0..2 {
        refused(source(5), addr);
    }
    refused(source(9), addr);
    assert_eq!(refusals(&counters, RefusalCause::Denied), 2);
    assert_eq!(refusals(&counters, RefusalCause::NotAllowed), 1);

    // An invalid list changes nothing.
    write("\"127.0.0.2/24\"");
    let wrong = "deny: \"127.0.0.2/24\" has bits set beyond its prefix";
    server.reload().expect_failure(wrong);
    served(FIRST, addr);
    // A valid list applies to new connections; existing ones stay open.
    write("\"127.0.0.2\"");
    server.reload().expect_success();
    refused(FIRST, addr);
    served(source(5), addr);
    first.roundtrip(b"in before");
    let totals = &server.status_json()["totals"];
    assert_eq!(totals["refused"]["denied"], 3, "{totals}");
    assert_eq!(totals["refused"]["not_allowed"], 1, "{totals}");
}

#[test]
fn access_lists_match_ipv4_mapped_client() {
    if !has_ipv6() {
        return;
    }
    let server = Server::start(&["--listen=*:0", "--workers=1", "--deny=127.0.0.2,::1"]);
    let port = server.addr().port();
    refused(FIRST, SocketAddr::from(([127, 0, 0, 1], port)));
    served(SECOND, SocketAddr::from(([127, 0, 0, 1], port)));
    let v6 = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
    refused(v6, SocketAddr::new(v6, port));
}

#[test]
fn invalid_access_list_is_refused() {
    for (args, parts) in [
        (["--deny", "10.0.0.0/33"], ["--deny", "0 to 32"]),
        (["--allow", "10.1.0.0/8"], ["--allow", "10.0.0.0/8"]),
        (["--allow", ""], ["--allow", "empty"]),
        (["--deny", "example.org"], ["--deny", "not an IP address"]),
        (
            ["--source-prefix-v4", "33"],
            ["--source-prefix-v4", "1 to 32"],
        ),
        (
            ["--accept-rate-per-source", "0"],
            ["0 is too low", "or off"],
        ),
    ] {
        let (code, stderr) = Server::expect_failure(&args);
        assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is missing: {stderr}");
        }
    }
}

#[test]
fn slow_readers_hold_bounded_memory() {
    const READERS: usize = 40;
    let scene = Scene::start(&[]);
    let readers = scene.connect(READERS);
    fill_all(&readers, &scene.counters);
    scene.assert_bounded(READERS);
    let held = tcp_sockets(scene.addr().port());
    let most = held.iter().map(|socket| socket.memory_bytes).max();
    assert!(most < Some(KERNEL_BYTES_MAX), "one holds {most:?} bytes");
    drop(readers);
    scene.assert_as_before();
}

#[test]
fn idle_timeout_closes_silent_clients() {
    const SILENT: usize = 300;
    // Long enough that the pinging client is not idle on a busy machine.
    let scene = Scene::start(&["--idle-timeout=3s", "--linger-timeout=1s"]);
    let mut silent = scene.connect(SILENT);
    scene.assert_bounded(SILENT);
    for client in &mut silent {
        client.expect_eof();
    }
    let ended = Counter::Closed(CloseReason::IdleTimeout);
    scene.counters.wait(ended, SILENT as u64);
    scene.assert_as_before();
}

#[test]
fn connection_flood_waits_in_queue_and_disappears() {
    const PLACES: u64 = 50;
    const FLOOD: usize = 300;
    let scene = Scene::start(&["--max-connections", &PLACES.to_string()]);
    let flood = scene.connect(FLOOD);
    scene.counters.wait_open(PLACES);
    let port = scene.addr().port();
    until("the others wait", || {
        queued(port) as usize == FLOOD + 1 - PLACES as usize
    });
    scene.assert_bounded(PLACES as usize);
    drop(flood);
    // Queued clients are accepted, found to have disconnected, and closed.
    scene
        .counters
        .wait(Counter::Closed(CloseReason::PeerClosed), FLOOD as u64 + 1);
    scene.assert_as_before();
}

/// Limit of half-open connections, filled from sources that never reply.
const SYN_QUEUE: u32 = 128;

/// Starts a server with such a queue in this namespace and floods it until it is full.
#[track_caller]
fn flooded() -> Option<(Scene, SynFlood, KernelCounters)> {
    // Drops a half-open connection after 3 s instead of a minute.
    set_ipv4("tcp_synack_retries", 1);
    let scene = Scene::start(&["--backlog", &SYN_QUEUE.to_string()]);
    let flood = SynFlood::new(scene.addr());
    let mut flood = flood.map_err(|why| skipped(&why)).ok()?;
    let before = KernelCounters::read();
    flood.send(1000);
    let held = half_open(scene.addr().port());
    assert!(held >= SYN_QUEUE as usize, "{held} are half-open");
    Some((scene, flood, before))
}

fn half_open(port: u16) -> usize {
    count_sockets(port, TcpState::SynRecv)
}

#[track_caller]
fn assert_over(scene: Scene) {
    let port = scene.addr().port();
    until("the kernel has dropped them", || half_open(port) == 0);
    scene.assert_as_before();
}

#[test]
fn syn_flood_blocks_no_client_with_cookies() {
    isolated(|| {
        set_ipv4("tcp_syncookies", 1);
        let Some((scene, mut flood, before)) = flooded() else {
            return;
        };
        let mut clients = Vec::new();
        for _ in 0..20 {
            flood.send(100);
            clients.push(served(FIRST, scene.addr()));
        }
        // Half-open connections are not in the accept queue, and `status` shows none.
        let queue = &scene.server.status_json()["slots"][0]["accept_queues"][0];
        assert_eq!(queue["length"], 0, "{queue}");
        assert_eq!(queue["limit"], SYN_QUEUE, "{queue}");
        scene.assert_bounded(clients.len());
        drop(clients);
        let after = KernelCounters::read();
        let rise = |name| after.count(name) - before.count(name);
        let names = ["TCPReqQFullDoCookies", "SyncookiesRecv", "ListenDrops"];
        println!("{:?}", names.map(|name| (name, rise(name))));
        assert!(rise("TCPReqQFullDoCookies") > 1000, "the queue was full");
        assert!(rise("SyncookiesRecv") > 0, "they connected by cookie");
        assert_over(scene);
    });
}

#[test]
fn syn_flood_without_cookies_blocks_only_new_clients() {
    isolated(|| {
        set_ipv4("tcp_syncookies", 0);
        // Otherwise the kernel reserves the last quarter of the queue for known peers.
        set_ipv4("tcp_max_syn_backlog", 64 * SYN_QUEUE);
        let Some((scene, mut flood, before)) = flooded() else {
            return;
        };
        flood.send(1000);
        let dropped = || KernelCounters::read().count("TCPReqQFullDrop");
        let by_now = dropped();
        let late = in_background({
            let addr = scene.addr();
            move || Client::connect(addr)
        });
        until("its request is dropped like the others", || {
            dropped() > by_now
        });
        // It connects by a retransmitted SYN, once the kernel has dropped the others.
        let mut late = late.join().expect("the client is accepted");
        late.roundtrip(b"at last");
        drop(late);
        let after = KernelCounters::read();
        let names = ["TCPReqQFullDrop", "ListenDrops", "TCPReqQFullDoCookies"];
        let rise = |name| after.count(name) - before.count(name);
        println!("{:?}", names.map(|name| (name, rise(name))));
        assert_eq!(rise("TCPReqQFullDoCookies"), 0);
        assert!(rise("ListenDrops") >= rise("TCPReqQFullDrop"));
        assert_over(scene);
    });
}

#[test]
fn reset_flood_leaves_nothing() {
    const RESETS: usize = 1000;
    let scene = Scene::start(&[]);
    for number in 0..RESETS {
        let mut client = Client::connect(scene.addr());
        // At every stage: queued, with unread input, with a reply pending.
        match number % 3 {
            0 => {}
            1 => client.send_all(b"something"),
            _ => client.roundtrip(b"something"),
        }
        client.abort();
    }
    let gone = || {
        closed(&scene.counters, CloseReason::PeerReset)
            + scene.counters.count(Counter::AcceptFailed)
    };
    until("every disconnect is detected", || gone() == RESETS as u64);
    scene.assert_bounded(RESETS);
    let waiting = count_sockets(scene.addr().port(), TcpState::TimeWait);
    assert_eq!(waiting, 0, "a reset leaves no TIME-WAIT");
    scene.assert_as_before();
}

/// Makes the client's host unreachable: all packets to it are dropped, and it acknowledges nothing.
/// Its connections stay open on the server.
#[track_caller]
fn vanish(client: &Client) {
    const RETURN: u16 = 0x06;
    let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
    let socket = SockRef::from(client.socket());
    socket.attach_filter(&nothing).expect("any socket can be");
}

#[test]
fn server_deadlines_end_half_open_connections() {
    // Few clients and a long timeout, so that the first is not disconnected before the last is
    // full.
    const VANISHED: usize = 5;
    let scene = Scene::start(&[
        "--idle-timeout=6s",
        "--write-stall-timeout=6s",
        "--linger-timeout=1s",
    ]);
    // Half of them have replies pending when their host vanishes; the others are idle.
    let owed = scene.connect(VANISHED);
    fill_all(&owed, &scene.counters);
    let silent = scene.connect(VANISHED);
    owed.iter().chain(&silent).for_each(vanish);
    scene.assert_bounded(2 * VANISHED);
    let count = VANISHED as u64;
    for reason in [CloseReason::WriteStall, CloseReason::IdleTimeout] {
        scene.counters.wait(Counter::Closed(reason), count);
    }
    scene.counters.wait_open(1);
    // These clients receive neither FIN nor RST.
    for client in &silent {
        client.expect_open();
    }
    scene.assert_as_before();
}

#[test]
fn byte_at_a_time_client_costs_no_memory() {
    const CLIENTS: usize = 20;
    const BYTES: usize = 500;
    let scene = Scene::start(&[]);
    let mut clients = scene.connect(CLIENTS);
    for _ in 0..BYTES {
        for client in &mut clients {
            client.send_all(b"x");
        }
    }
    scene.assert_bounded(0);
    for client in &mut clients {
        client.expect(&[b'X'; BYTES]);
    }
    // One client also reads slowly.
    let trickle = &mut clients[0];
    trickle.send_all(&[b'y'; BYTES]);
    for _ in 0..BYTES {
        trickle.expect(b"Y");
    }
    drop(clients);
    scene.assert_as_before();
}

/// Limits the address space to slightly more than its current size: the strictest memory bound,
/// since a worker that exceeds it crashes.
#[test]
fn full_server_serves_under_memory_pressure() {
    const READERS: usize = 60;
    const SPARE_BYTES: u64 = 2 << 20;
    let scene = Scene::start(&["--max-connections=100"]);
    let status = fs::read_to_string(format!("/proc/{}/status", scene.worker)).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size = size.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = size.expect("its size").parse().unwrap();
    let limit = Some(kib * 1024 + SPARE_BYTES);
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    prlimit(
        Pid::from_raw(scene.worker.cast_signed()),
        Resource::As,
        limit,
    )
    .unwrap();
    let readers = scene.connect(READERS);
    fill_all(&readers, &scene.counters);
    let mut crowd = scene.connect(30);
    for client in &mut crowd {
        client.roundtrip(b"in a full house");
    }
    scene.assert_bounded(READERS + 30);
    drop((readers, crowd));
    scene.assert_as_before();
}
