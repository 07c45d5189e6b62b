//! Running under a service manager: notifications, passed sockets, and stored sockets that keep
//! accept queues alive between instances. The test acts as the service manager; `tests/systemd/run`
//! uses the real one.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use procfs::net::TcpState;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use uppercased_ctl::clock;

use crate::support::image::Image;
use crate::support::load::{Load, LoadSize};
use crate::support::netns::{KernelCounters, isolated};
use crate::support::observe::{
    OWED_BYTES, become_owed, count_sockets, lose_worker, until, wait_draining, wait_ready,
};
use crate::support::planned::Planned;
use crate::support::service_manager::{Named, ServiceManager};
use crate::support::{Client, Server, ServerBuilder, own_address, pattern, upper};

const QUICK: [&str; 4] = [
    "--listen=127.0.0.1:0",
    "--workers=2",
    "--bake-time=0s",
    "--handshake-timeout=300ms",
];

/// Builds a server that notifies `manager`.
fn under(manager: &ServiceManager) -> ServerBuilder {
    Server::builder().env("NOTIFY_SOCKET", manager.notify_socket())
}

/// Returns a listening socket like one bound by a socket unit.
fn unit_socket(shared: bool) -> (OwnedFd, SocketAddr) {
    unit_socket_at(SocketAddr::from(([127, 0, 0, 1], 0)), shared)
}

fn unit_socket_at(addr: SocketAddr, shared: bool) -> (OwnedFd, SocketAddr) {
    let socket = tcp_socket();
    socket.set_reuse_address(true).expect("set SO_REUSEADDR");
    socket.set_reuse_port(shared).expect("set SO_REUSEPORT");
    socket.bind(&addr.into()).expect("bind");
    socket.listen(128).expect("listen");
    let bound = socket.local_addr().expect("it is bound");
    let bound = bound.as_socket().expect("to an address of IPv4");
    (socket.into(), bound)
}

fn tcp_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
}

fn unit(socket: OwnedFd) -> Named {
    ("uppercased.socket".to_owned(), socket)
}

/// Connects clients that the kernel accepts before a server runs, and sends their requests.
fn come_early(addr: SocketAddr, count: usize) -> Vec<Client> {
    let come = |_| {
        let mut client = Client::connect(addr);
        client.send_all(b"is anybody there?");
        client
    };
    (0..count).map(come).collect()
}

#[track_caller]
fn assert_served(clients: Vec<Client>) {
    for mut client in clients {
        client.expect(b"IS ANYBODY THERE?");
        client.roundtrip(b"good");
        client.half_close();
        client.expect_eof();
    }
}

fn monotonic_us(message: &str) -> u64 {
    let time = message
        .lines()
        .find_map(|it| it.strip_prefix("MONOTONIC_USEC="));
    time.expect("a reload has a time")
        .parse()
        .expect("a number")
}

/// Asserts one reload or upgrade, with any result: one start with a timestamp, and one end.
#[track_caller]
fn assert_one_reload(manager: &ServiceManager, start: usize, asked_us: u64) {
    let (reloading, next) = manager.wait_for(start, "RELOADING=1");
    manager.wait_for(next, "READY=1");
    assert!(monotonic_us(&reloading) >= asked_us, "{reloading}");
    let steps = manager.steps_from(start);
    let steps: Vec<&String> = steps
        .iter()
        .filter(|it| !it.starts_with("FDSTORE"))
        .collect();
    assert_eq!(steps, [&reloading, "READY=1"]);
}

fn now_us() -> u64 {
    clock::now().as_nanos() / 1000
}

fn every_step_is_reported(manager: &ServiceManager) {
    let planned = Planned::start_with(&QUICK, |builder| {
        builder.env("NOTIFY_SOCKET", manager.notify_socket())
    });
    let server = &planned.server;
    manager.wait_for(0, "READY=1");
    manager.wait_for(0, "STATUS=2 workers, 0 connections");

    let (mark, asked) = (manager.len(), now_us());
    server.signal(Signal::SIGHUP);
    assert_one_reload(manager, mark, asked);

    let (mark, asked) = (manager.len(), now_us());
    planned.configure("no_such_setting = 1\n");
    server.signal(Signal::SIGHUP);
    assert_one_reload(manager, mark, asked);
    // There is no other message for it.
    let refused = "STATUS=2 workers, 0 connections; reload refused: ";
    manager.wait_for(mark, refused);
    planned.configure("");

    let (mark, asked) = (manager.len(), now_us());
    server.reload().expect_success();
    assert_one_reload(manager, mark, asked);

    for (plan, done) in [("version=7.1.0", true), ("main.starting=exit", false)] {
        let (mark, asked) = (manager.len(), now_us());
        planned.install(Image::copy(planned.folder()).with_faults(plan));
        assert_eq!(server.upgrade().code == 0, done, "{plan}");
        assert_one_reload(manager, mark, asked);
    }

    let mark = manager.len();
    assert_eq!(server.stop().code(), Some(0));
    let beginning = "STOPPING=1\nEXTEND_TIMEOUT_USEC=";
    let (stopping, _) = manager.wait_for(mark, beginning);
    let within_us: u64 = stopping[beginning.len()..].parse().expect("a number");
    // The drain timeout, the time to kill a worker, and a margin.
    assert!((32_000_000..=40_000_000).contains(&within_us), "{stopping}");
    assert_eq!(manager.steps_from(mark), [stopping]);
    manager.wait_stored(&["slot-0", "slot-1"]);
}

#[test]
fn every_step_is_notified_at_path() {
    every_step_is_reported(&ServiceManager::start());
}

#[test]
fn every_step_is_notified_at_abstract_name() {
    let name = format!("uppercased-test/{}", std::process::id());
    every_step_is_reported(&ServiceManager::start_abstract(&name));
}

#[test]
fn long_start_and_reload_extend_timeout() {
    let manager = ServiceManager::start();
    let server = under(&manager)
        .args(["--listen=127.0.0.1:0", "--workers=2", "--bake-time=2s"])
        .start();
    let longer = "EXTEND_TIMEOUT_USEC=";
    let (_, starting) = manager.wait_for(0, longer);
    let (_, mark) = manager.wait_for(starting, "READY=1");
    server.reload().expect_success();
    let (_, reloading) = manager.wait_for(mark, "RELOADING=1");
    let (_, next) = manager.wait_for(reloading, longer);
    let (_, again) = manager.wait_for(next, longer);
    manager.wait_for(again, "READY=1");
    let status = &server.status_json()["service_manager"];
    assert_eq!(status["refused"], 0, "{status}");
    assert!(status["sent"].as_u64() >= Some(again as u64), "{status}");
}

#[test]
fn only_supervisor_has_systemd_variables() {
    let manager = ServiceManager::start();
    let (socket, addr) = unit_socket(true);
    let planned = Planned::start_with(&QUICK[1..], |builder| {
        builder
            .env("NOTIFY_SOCKET", manager.notify_socket())
            .env("WATCHDOG_USEC", "10000000")
            .args([format!("--listen={addr}")])
            .hand_over(vec![unit(socket)])
    });
    let server = &planned.server;
    let variables = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("may be read");
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let names = [
            "NOTIFY_SOCKET=",
            "WATCHDOG_USEC=",
            "LISTEN_FDS=",
            "LISTEN_PID=",
        ];
        names.map(|name| environment.split('\0').any(|it| it.starts_with(name)))
    };
    assert_eq!(variables(server.pid()), [true; 4]);
    for pid in server.worker_pids() {
        assert_eq!(variables(pid), [false; 4]);
    }
    server.upgrade().expect_success();
    // The sockets were passed once.
    assert_eq!(variables(server.pid()), [true, true, false, false]);
    for pid in server.worker_pids() {
        assert_eq!(variables(pid), [false; 4]);
    }
}

/// Kills the workers of slot 1 until it backs off.
fn break_slot_1(server: &Server) {
    let mark = server.log_len();
    lose_worker(server, 1);
    wait_ready(server, mark, 1, 2);
    lose_worker(server, 1);
    server.wait_log_from(mark, |line| line.contains("worker crash-looping"));
}

#[test]
fn watchdog_is_fed_while_sibling_serves() {
    let manager = ServiceManager::start();
    let server = under(&manager)
        .args(QUICK)
        .args(["--backoff-initial=1h", "--backoff-max=1h"])
        .env("WATCHDOG_USEC", "40000")
        .start();
    break_slot_1(&server);
    server.wait_log(|line| line.contains("queue lent to sibling"));
    let mark = manager.await_all_read();
    let (_, next) = manager.wait_for(mark, "WATCHDOG=1");
    manager.wait_for(next, "WATCHDOG=1");
    manager.wait_for(
        0,
        "STATUS=2 workers, 0 connections; degraded: 1 of 2 workers missing",
    );
}

#[test]
fn watchdog_is_not_fed_while_queue_waits() {
    let manager = ServiceManager::start();
    let server = under(&manager)
        .args(QUICK)
        .args([
            "--backoff-initial=1h",
            "--backoff-max=1h",
            "--lend-after=1m",
        ])
        .env("WATCHDOG_USEC", "40000")
        .start();
    let (_, next) = manager.wait_for(0, "WATCHDOG=1");
    manager.wait_for(next, "WATCHDOG=1");

    let mark = server.log_len();
    break_slot_1(&server);
    server.wait_log_from(mark, |line| {
        line.contains("watchdog not fed slot=1 state=\"backing off\"")
    });
    // Messages sent before have been read by then.
    let mark = manager.await_all_read();
    let silent = manager.find_within(Duration::from_millis(500), mark, "WATCHDOG=1");
    assert_eq!(silent, None, "a queue is not served");

    let (mark, fed) = (server.log_len(), manager.len());
    server.reload().expect_success();
    server.wait_log_from(mark, |line| line.contains("watchdog fed again"));
    manager.wait_for(fed, "WATCHDOG=1");
}

#[test]
fn watchdog_of_another_process_is_not_fed() {
    let manager = ServiceManager::start();
    let server = under(&manager)
        .args(QUICK)
        .env("WATCHDOG_USEC", "2000")
        .env("WATCHDOG_PID", "1")
        .start();
    manager.wait_for(0, "STATUS=");
    assert_eq!(server.stop().code(), Some(0));
    manager.wait_for(0, "STOPPING=1");
    assert_eq!(manager.find_within(Duration::ZERO, 0, "WATCHDOG=1"), None);
}

#[test]
fn unread_notify_socket_blocks_no_client() {
    let mut manager = ServiceManager::start_silent();
    let server = under(&manager)
        .args(QUICK)
        .env("WATCHDOG_USEC", "1000")
        .start();
    server.wait_log(|line| line.contains("notify socket blocked"));
    let load = Load::start(server.addr(), LoadSize::small());
    server.reload().expect_success();
    load.go_on_for(50);
    load.finish().assert_clean();
    // Taken before it reads: a slow reader may be reported again.
    let complaints = server.log();
    let complaints = complaints
        .iter()
        .filter(|line| line.contains("notify socket blocked"));
    assert_eq!(complaints.count(), 1, "it is said once");
    manager.read();
    server.wait_log(|line| line.contains("notify socket writable again"));
    let (_, next) = manager.wait_for(0, "RELOADING=1");
    manager.wait_for(next, "READY=1");
}

#[test]
fn clients_waiting_at_socket_unit_are_served() {
    let (socket, addr) = unit_socket(true);
    let early = come_early(addr, 8);
    let server = Server::builder()
        .args(["--workers=3", &format!("--listen={addr}")])
        .hand_over(vec![unit(socket)])
        .start();
    assert_eq!(server.addr(), addr);
    assert_served(early);
    assert_eq!(
        count_sockets(addr.port(), TcpState::Listen),
        3,
        "one for each slot"
    );
    let load = Load::start(server.addr(), LoadSize::small());
    load.go_on_for(50);
    load.finish().assert_clean();
}

#[test]
fn slots_reclaim_unit_and_stored_sockets() {
    let manager = ServiceManager::start();
    let (socket, addr) = unit_socket(true);
    let start = |kept: Vec<Named>| {
        // As systemd does: the unit's sockets first, then the stored ones.
        let mut sockets = vec![unit(socket.try_clone().expect("duplicate"))];
        sockets.extend(kept);
        under(&manager)
            .args(["--workers=3", &format!("--listen={addr}")])
            .hand_over(sockets)
            .start()
    };
    let first = start(Vec::new());
    manager.wait_stored(&["slot-0", "slot-1", "slot-2"]);
    first.kill();
    wait_draining(&first, 3);
    let early = come_early(addr, 32);
    let mark = manager.len();
    let second = start(manager.stored());
    assert_served(early);
    assert_eq!(count_sockets(addr.port(), TcpState::Listen), 3);
    manager.wait_for(mark, "READY=1");
    let removed = manager.find_within(Duration::ZERO, mark, "FDSTOREREMOVE=1");
    assert_eq!(removed, None, "everything is where it was");
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn each_socket_of_unit_gets_worker() {
    let (first, addr) = unit_socket(true);
    let (second, _) = unit_socket_at(addr, true);
    let sockets = || -> Vec<Named> {
        let duplicate = |socket: &OwnedFd| unit(socket.try_clone().expect("duplicate"));
        [&first, &second].map(duplicate).into()
    };
    let listen = format!("--listen={addr}");
    let (code, error) = Server::builder()
        .args(["--workers=1", &listen])
        .hand_over(sockets())
        .expect_failure();
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("2 sockets") && error.contains("ListenStream="),
        "{error}"
    );

    let early = come_early(addr, 16);
    let server = Server::builder()
        .args(["--workers=2", &listen])
        .hand_over(sockets())
        .start();
    assert_served(early);
    assert_eq!(count_sockets(addr.port(), TcpState::Listen), 2);
    server.scale(1).expect_failure("too few");
    server.scale(3).expect_success();
    server.upgrade().expect_success();
    server.scale(1).expect_failure("too few");
}

#[test]
fn unusable_sockets_refuse_start() {
    let (alone, addr) = unit_socket(false);
    let refused = |socket: OwnedFd, listen: String, cause: &str| {
        let (code, error) = Server::builder()
            .args(["--workers=2", &listen])
            .hand_over(vec![unit(socket)])
            .expect_failure();
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(cause), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    refused(alone, format!("--listen={addr}"), "ReusePort=yes");
    let (elsewhere, _) = unit_socket(true);
    refused(
        elsewhere,
        format!("--listen={addr}"),
        "which `listen` does not name",
    );
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(
        datagrams.into(),
        format!("--listen={addr}"),
        "not a stream socket",
    );
    let bound = tcp_socket();
    refused(bound.into(), format!("--listen={addr}"), "not listening");
}

#[test]
fn useless_stored_socket_is_released() {
    let manager = ServiceManager::start();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let server = under(&manager)
        .args(QUICK)
        .hand_over(vec![("slot-7".to_owned(), datagrams.into())])
        .start();
    server.wait_log(|line| line.contains("stored socket unusable, closed"));
    manager.wait_for(0, "FDSTOREREMOVE=1\nFDNAME=slot-7");
    Client::connect(server.addr()).roundtrip(b"unharmed");
}

/// Ends the first of two instances with `end`; the second gets the stored sockets.
fn the_next_instance_serves_who_waits(end: impl Fn(&Server)) {
    let manager = ServiceManager::start();
    let before = KernelCounters::read();
    let first = under(&manager).args(QUICK).start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    let mut idle = Client::connect(first.addr());
    idle.roundtrip(b"then nothing");
    end(&first);
    idle.expect_eof();
    // Otherwise its worker waits for it and resets it after `linger_timeout`.
    drop(idle);

    let early = come_early(first.addr(), 32);
    let mark = manager.len();
    let second = under(&manager)
        .args(QUICK)
        .hand_over(manager.stored())
        .start();
    assert_eq!(second.addr(), first.addr(), "also where any port would do");
    manager.wait_for(mark, "READY=1");
    assert_served(early);
    manager.wait_stored(&["slot-0", "slot-1"]);
    let port = first.addr().port();
    assert_eq!(
        count_sockets(port, TcpState::Listen),
        2,
        "no socket was bound anew"
    );
    let load = Load::start(second.addr(), LoadSize::small());
    load.go_on_for(50);
    second.reload().expect_success();
    load.go_on_for(50);
    load.finish().assert_clean();
    KernelCounters::read().assert_no_loss_since(&before);
}

#[test]
fn killed_supervisor_leaves_no_queue_behind() {
    isolated(|| {
        the_next_instance_serves_who_waits(|first| {
            first.kill();
            wait_draining(first, 2);
        });
    });
}

#[test]
fn restart_leaves_no_queue_behind() {
    isolated(|| {
        the_next_instance_serves_who_waits(|first| {
            assert_eq!(first.stop().code(), Some(0));
        });
    });
}

#[test]
fn orphaned_worker_replies_beside_next_instance() {
    let manager = ServiceManager::start();
    let first = under(&manager)
        .args(QUICK)
        .args(["--send-buffer=64KiB"])
        .start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    let mut owed = Client::connect(first.addr());
    become_owed(&first, &mut owed);
    first.kill();
    let second = under(&manager)
        .args(QUICK)
        .hand_over(manager.stored())
        .start();
    Client::connect(second.addr()).roundtrip(b"served by the next one");
    SockRef::from(owed.socket())
        .set_recv_buffer_size(1 << 20)
        .expect("set SO_RCVBUF");
    owed.expect(&upper(&pattern(0, OWED_BYTES)));
    owed.expect_eof();
}

#[test]
fn surplus_slots_are_served_before_leaving() {
    isolated(|| {
        let manager = ServiceManager::start();
        let before = KernelCounters::read();
        let first = under(&manager).args(QUICK).start();
        first.scale(4).expect_success();
        manager.wait_stored(&["slot-0", "slot-1", "slot-2", "slot-3"]);
        first.kill();
        wait_draining(&first, 4);
        let early = come_early(first.addr(), 64);
        let second = under(&manager)
            .args(QUICK)
            .hand_over(manager.stored())
            .start();
        let load = Load::start(second.addr(), LoadSize::small());
        assert_served(early);
        second.wait_log(|line| line.contains("operation done"));
        assert_eq!(second.worker_pids().len(), 2);
        manager.wait_stored(&["slot-0", "slot-1"]);
        load.go_on_for(50);
        load.finish().assert_clean();
        until("their sockets are closed", || {
            count_sockets(first.addr().port(), TcpState::Listen) == 2
        });
        KernelCounters::read().assert_no_loss_since(&before);
    });
}

#[test]
fn left_slot_receives_no_client_while_socket_stored() {
    let manager = ServiceManager::start();
    let server = under(&manager).args(QUICK).start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    manager.wait_for(0, "READY=1");
    manager.hold(true);
    server.scale(1).expect_success();
    let port = server.addr().port();
    assert_eq!(
        count_sockets(port, TcpState::Listen),
        2,
        "one has no worker"
    );
    assert_served(come_early(server.addr(), 64));
    manager.hold(false);
    manager.wait_stored(&["slot-0"]);
    // A child forked by another test holds it until exec.
    until("it is closed", || {
        count_sockets(port, TcpState::Listen) == 1
    });
    assert_served(come_early(server.addr(), 64));
}

/// Scales from two slots to one and upgrades while the service manager does not read.
fn an_upgrade_forgets_nothing(environment: &[(&str, &str)], untold: bool) {
    let manager = ServiceManager::start();
    let planned = Planned::start_with(&QUICK, |builder| {
        let builder = builder.env("NOTIFY_SOCKET", manager.notify_socket());
        let with = |builder: ServerBuilder, (name, value): &(&str, &str)| builder.env(name, value);
        environment.iter().fold(builder, with)
    });
    let server = &planned.server;
    manager.wait_stored(&["slot-0", "slot-1"]);
    manager.wait_for(0, "READY=1");
    let mark = server.log_len();
    manager.hold(true);
    if untold {
        server.wait_log_from(mark, |line| line.contains("notify socket blocked"));
    }
    server.scale(1).expect_success();
    server.upgrade().expect_success();
    let error = || server.status_json()["service_manager"].clone();
    let status = error();
    assert_eq!(status["releasing"], true, "{status}");
    assert_eq!(status["refused"].as_u64() > Some(0), untold, "{status}");
    // The other slot's socket is still in the group, but no worker serves it.
    let port = server.addr().port();
    assert_eq!(count_sockets(port, TcpState::Listen), 2);
    assert_served(come_early(server.addr(), 64));
    manager.hold(false);
    manager.wait_stored(&["slot-0"]);
    until("the server knows", || error()["releasing"] == false);
    assert_served(come_early(server.addr(), 64));
    assert_eq!(count_sockets(port, TcpState::Listen), 1);
}

#[test]
fn upgrade_continues_waiting_for_store_removal() {
    an_upgrade_forgets_nothing(&[], false);
}

#[test]
fn upgrade_sends_pending_store_removals() {
    // Fill the queue of messages.
    an_upgrade_forgets_nothing(&[("WATCHDOG_USEC", "1000")], true);
}

#[test]
fn stored_sockets_follow_number_of_workers() {
    let manager = ServiceManager::start();
    let server = under(&manager).args(QUICK).start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    server.scale(3).expect_success();
    manager.wait_stored(&["slot-0", "slot-1", "slot-2"]);
    server.scale(1).expect_success();
    manager.wait_stored(&["slot-0"]);
    server.scale(2).expect_success();
    manager.wait_stored(&["slot-0", "slot-1"]);
}

#[test]
fn retained_slots_are_stored_again() {
    let manager = ServiceManager::start();
    let server = under(&manager)
        .args(&QUICK[..3])
        .args(["--handshake-timeout=60s"])
        .start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    let scale = server.start_command(&["scale", "1"]);
    manager.wait_stored(&["slot-0"]);
    server.command(&["cancel"]).expect_success();
    scale.wait().expect_failure("2 workers serve");
    manager.wait_stored(&["slot-0", "slot-1"]);
}

#[test]
fn unlistened_address_is_released_from_store() {
    let manager = ServiceManager::start();
    let listen = |addrs: &[SocketAddr]| -> Vec<String> {
        addrs
            .iter()
            .map(|addr| format!("--listen={addr}"))
            .collect()
    };
    // Ports of a private address: another test cannot reuse a closed one.
    let any = SocketAddr::from((own_address(), 0));
    let first = under(&manager)
        .args(&QUICK[1..])
        .args(listen(&[any, any]))
        .start();
    manager.wait_stored(&["slot-0", "slot-0", "slot-1", "slot-1"]);
    let addrs = first.addrs().to_vec();
    assert_eq!(first.stop().code(), Some(0));
    let second = under(&manager)
        .args(&QUICK[1..])
        .args(listen(&addrs[1..]))
        .hand_over(manager.stored())
        .start();
    manager.wait_stored(&["slot-0", "slot-1"]);
    second.wait_log(|line| line.contains("its address is no longer configured"));
    until("no process listens there", || {
        count_sockets(addrs[0].port(), TcpState::Listen) == 0
    });
    TcpStream::connect(addrs[0]).expect_err("no process listens there");
    Client::connect(addrs[1]).roundtrip(b"still here");
    assert_eq!(second.stop().code(), Some(0));

    // A new address is bound in addition to the stored ones.
    let third = under(&manager)
        .args(&QUICK[1..])
        .args(listen(&[addrs[1], any]))
        .hand_over(manager.stored())
        .start();
    manager.wait_stored(&["slot-0", "slot-0", "slot-1", "slot-1"]);
    for addr in third.addrs() {
        Client::connect(*addr).roundtrip(b"both");
    }
}
