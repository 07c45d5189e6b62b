//! Immediate restarts, whatever state the predecessor left in the kernel; and the risk of the
//! option that allows them: a second instance that joins the port by mistake.
//!
//! These servers listen on loopback addresses of one test, 127.x.y.z, so that no other process can
//! get the same address and port between a stop and the next start.

use std::net::{Shutdown, SocketAddr};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use procfs::net::TcpState;
use socket2::SockRef;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::netns::isolated;
use crate::support::observe::{count_sockets, descriptors, owner, until};
use crate::support::planned::Planned;
use crate::support::{Client, DEADLINE, Server, Watched, own_address};

fn start_on(addr: SocketAddr, more: &[&str]) -> Server {
    let listen = format!("--listen={addr}");
    Server::builder()
        .args([listen.as_str(), "--workers=2"])
        .args(more)
        .start()
}

fn first_start(more: &[&str]) -> Server {
    start_on((own_address(), 0).into(), more)
}

/// Kills the supervisor, the keepers and the workers, with open connections.
fn kill_everything(server: &Server) {
    let [keepers, workers] = [server.keeper_pids(), server.worker_pids()].map(|pids| {
        pids.into_iter()
            .filter_map(Watched::open)
            .collect::<Vec<_>>()
    });
    server.kill();
    for process in keepers.iter().chain(&workers) {
        process.signal(Signal::SIGKILL);
    }
    for process in keepers.iter().chain(&workers) {
        assert!(process.wait_gone(DEADLINE));
    }
}

/// Asserts that a start on `listen` is refused with an error that names `holder`.
#[track_caller]
fn assert_refused(listen: &str, holder: &Server) {
    let args = [format!("--listen={listen}"), "--workers=1".to_owned()];
    let (code, error) = Server::builder().args(args).expect_failure();
    assert_eq!(code, 1, "{error}");
    assert_eq!(error.lines().count(), 1, "one line: {error}");
    let pid = format!("pid {} ", holder.pid());
    assert!(
        error.contains(&pid),
        "{listen}: it names pid {}: {error}",
        holder.pid()
    );
    assert!(error.contains("--share-port"), "{error}");
}

#[test]
fn server_restarts_beside_time_wait_sockets() {
    // The server closes an idle client. The side that closes first keeps the connection in
    // TIME_WAIT for a minute, under the server's port.
    let server = first_start(&["--idle-timeout=50ms"]);
    let addr = server.addr();
    for _ in 0..10 {
        Client::connect(addr).expect_eof();
    }
    until("ten connections are in TIME_WAIT", || {
        count_sockets(addr.port(), TcpState::TimeWait) >= 10
    });
    assert_eq!(server.stop().code(), Some(0));
    drop(server);
    assert!(count_sockets(addr.port(), TcpState::TimeWait) >= 10);

    let again = start_on(addr, &[]);
    assert_eq!(again.addr(), addr);
    assert!(
        count_sockets(addr.port(), TcpState::TimeWait) >= 10,
        "and they still exist"
    );
    Client::connect(addr).roundtrip(b"as if nothing had happened");
}

#[test]
fn server_restarts_after_everything_was_killed() {
    let server = first_start(&[]);
    let addr = server.addr();
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(addr)).collect();
    for client in &mut clients {
        client.roundtrip(b"established");
    }
    kill_everything(&server);
    drop(server);
    // The clients have not closed, so their connections are half-closed and belong to no process.
    until("ten connections are in FIN_WAIT2", || {
        count_sockets(addr.port(), TcpState::FinWait2) >= 10
    });
    let again = start_on(addr, &[]);
    Client::connect(addr).roundtrip(b"back at once");
    for client in &mut clients {
        client.expect_eof();
    }
    // Repeat, in addition to the remains of the first crash.
    drop(clients);
    let mut client = Client::connect(addr);
    client.roundtrip(b"second life");
    kill_everything(&again);
    drop(again);
    let third = start_on(addr, &[]);
    Client::connect(third.addr()).roundtrip(b"third life");
}

#[test]
fn second_instance_on_same_address_is_refused() {
    // The kernel chose the port of the first server, which locked it after bind.
    let server = first_start(&[]);
    let addr = server.addr();
    assert_refused(&addr.to_string(), &server);
    Client::connect(addr).roundtrip(b"undisturbed");

    // With a fixed port, a second instance is also refused.
    drop(server);
    let server = start_on(addr, &[]);
    assert_refused(&addr.to_string(), &server);
    // A worker's crash changes nothing and leaves no gap.
    for pid in server.worker_pids() {
        Watched::open(pid).unwrap().signal(Signal::SIGKILL);
    }
    assert_refused(&addr.to_string(), &server);
    Client::connect(addr).roundtrip(b"undisturbed");
}

#[test]
fn equivalent_address_is_refused() {
    // In a namespace, where no other test has the same port in the other family.
    isolated(refuse_other_spellings);
}

fn refuse_other_spellings() {
    let everywhere = Server::start(&["--listen=0.0.0.0:0", "--workers=1"]);
    let port = everywhere.addr().port();
    for spelling in ["0.0.0.0", "127.0.0.1", "127.0.0.2", "localhost", "*"] {
        assert_refused(&format!("{spelling}:{port}"), &everywhere);
    }
    assert_refused(&port.to_string(), &everywhere);
    // IPv6 alone is another port.
    let beside = Server::start(&[&format!("--listen=[::1]:{port}"), "--workers=1"]);
    Client::connect(beside.addr()).roundtrip(b"no overlap");

    let specific = first_start(&[]);
    let port = specific.addr().port();
    for spelling in ["0.0.0.0", "*"] {
        assert_refused(&format!("{spelling}:{port}"), &specific);
    }
}

/// The more specific address silently receives every IPv4 client of the dual-stack one.
#[test]
fn dual_stack_address_holds_every_ipv4_address() {
    let dual = Server::start(&["--listen=*:0", "--workers=1"]);
    let port = dual.addr().port();
    for spelling in ["*", "0.0.0.0", "127.0.0.1", "[::]", "[::1]"] {
        assert_refused(&format!("{spelling}:{port}"), &dual);
    }
    Client::connect(dual.addr()).roundtrip(b"still mine");
    Client::connect((std::net::Ipv6Addr::LOCALHOST, port).into()).roundtrip(b"this one, too");
}

#[test]
fn ipv6_only_address_holds_no_ipv4_address() {
    isolated(serve_ipv6_alone);
}

fn serve_ipv6_alone() {
    let six = Server::start(&["--listen=[::]:0", "--workers=1"]);
    let port = six.addr().port();
    for spelling in ["[::]", "[::1]", "*"] {
        assert_refused(&format!("{spelling}:{port}"), &six);
    }
    let four = Server::start(&[&format!("--listen=127.0.0.1:{port}"), "--workers=1"]);
    Client::connect(four.addr()).roundtrip(b"four");
    Client::connect(six.addr()).roundtrip(b"six");
}

#[test]
fn shared_port_is_served_by_both_instances() {
    let first = first_start(&[]);
    let addr = first.addr();
    let second = start_on(addr, &["--share-port"]);
    let watch = |server: &Server| -> Vec<Watched> {
        let pids = server.worker_pids();
        pids.into_iter().filter_map(Watched::open).collect()
    };
    let (of_first, of_second) = (watch(&first), watch(&second));
    let mut served = (0, 0);
    for _ in 0..60 {
        let mut client = Client::connect(addr);
        client.roundtrip(b"whose client am I?");
        served.0 += usize::from(owner(&client, addr, &of_first).is_some());
        served.1 += usize::from(owner(&client, addr, &of_second).is_some());
    }
    assert_eq!(served.0 + served.1, 60);
    assert!(served.0 > 0 && served.1 > 0, "{served:?}");

    // Either may stop, and the other continues to serve.
    assert_eq!(first.stop().code(), Some(0));
    for _ in 0..20 {
        Client::connect(addr).roundtrip(b"the second alone");
    }
    // The first server held the lock, but the second is detected without it.
    drop(first);
    assert_refused(&addr.to_string(), &second);
}

#[test]
fn port_lock_ends_with_holder() {
    let first = first_start(&[]);
    let addr = first.addr();
    assert_eq!(first.stop().code(), Some(0));
    let second = start_on(addr, &[]);
    kill_everything(&second);
    let third = start_on(addr, &[]);
    Client::connect(addr).roundtrip(b"the port is free");
    assert_refused(&addr.to_string(), &third);
}

/// After their supervisor is killed, workers release the port at once and drain beside the new
/// server's workers.
#[test]
fn server_restarts_beside_draining_orphans() {
    let first = first_start(&["--drain-timeout=1h", "--linger-timeout=1m"]);
    let addr = first.addr();
    let mut client = Client::connect(addr);
    client.roundtrip(b"of the first");
    let orphans = first.worker_pids();
    first.kill();
    client.expect_eof();
    let lets_go = |line: &str| line.contains(" INFO drain started ");
    let mark = first
        .log()
        .iter()
        .position(|line| lets_go(line))
        .map_or(0, |at| at + 1);
    first.wait_log_from(mark, lets_go);
    let second = start_on(addr, &[]);
    Client::connect(addr).roundtrip(b"of the second");
    assert!(second.is_running());
    // The client has not closed its side, so the orphan that owns it waits.
    let alive = || {
        let lives = |pid: &&u32| Watched::open(**pid).is_some_and(|worker| !worker.is_gone());
        orphans.iter().filter(lives).count()
    };
    until("the unused orphan has exited", || alive() == 1);
    drop(client);
    for pid in orphans {
        assert!(Watched::open(pid).is_none_or(|w| w.wait_gone(DEADLINE)));
    }
}

/// Ends every listener of the server, as `ss -K` does; returns their number.
fn end_listeners(server: &Server) -> usize {
    let supervisor = Watched::open(server.pid()).expect("the supervisor");
    let numbers = descriptors(server.pid()).into_keys();
    let sockets = numbers.filter_map(|number| supervisor.descriptor(number));
    let ended = sockets.filter(|socket| {
        let socket = SockRef::from(socket);
        let ours = socket.local_addr().ok().and_then(|it| it.as_socket());
        ours.is_some_and(|it| it.port() == server.addr().port())
            && socket.is_listener().is_ok_and(|listens| listens)
            && socket.shutdown(Shutdown::Read).is_ok()
    });
    ended.count()
}

#[test]
fn lost_listener_is_bound_again() {
    if !geteuid().is_root() {
        skipped("only root can take descriptors of another process");
        return;
    }
    let server = first_start(&["--bake-time=0s"]);
    let mut kept: Vec<_> = (0..10).map(|_| Client::connect(server.addr())).collect();
    for client in &mut kept {
        client.roundtrip(b"before");
    }
    let workers = server.worker_pids();
    for round in 0..3 {
        let from = server.log_len();
        assert_eq!(end_listeners(&server), 2);
        for slot in ["slot=0", "slot=1"] {
            let replaced = |line: &str| line.contains("listeners replaced") && line.contains(slot);
            server.wait_log_from(from, replaced);
        }
        for _ in 0..20 {
            Client::connect(server.addr()).roundtrip(b"after");
        }
        for client in &mut kept {
            client.roundtrip(b"all the time");
        }
        assert_eq!(server.worker_pids(), workers, "round {round}");
    }
    server.command(&["reload"]).expect_success();
    for client in &mut kept {
        client.roundtrip(b"and in the next worker");
    }
}

/// A listener that cannot be bound is reported everywhere, and the next program retries it.
#[test]
fn lost_listener_stays_unready_across_upgrade() {
    if !geteuid().is_root() {
        skipped("only root can take descriptors of another process");
        return;
    }
    let listen = format!("--listen={}", SocketAddr::from((own_address(), 0)));
    let planned = Planned::start(&[&listen, "--workers=1", "--bake-time=0s"]);
    let server = &planned.server;
    planned.install(Image::copy(planned.folder()).with_faults("relisten.bind=fail"));
    server.upgrade().expect_success();
    assert_eq!(end_listeners(server), 1);
    let line = server.wait_log(|line| line.contains("listener rebind failed "));
    let worker = "worker_slot=0 worker_generation=2";
    assert!(line.contains(worker), "{line}");
    let status = server.status_json();
    assert!(status["slots"][0]["lost_listener_ms"].is_u64(), "{status}");
    let ready = server.command(&["status", "--ready"]);
    assert_ne!(ready.code, 0, "{ready:?}");
    let screen = server.command(&["status"]).expect_success().stdout;
    assert!(screen.contains("slot 0 lost a listener"), "{screen}");

    let from = server.log_len();
    planned.install_good();
    server.upgrade().expect_success();
    // Concerns the worker that reported the loss; its successor would report it itself.
    server.wait_log_from(from, |line| {
        line.contains("listener bound again") && line.contains(worker)
    });
    until("it is ready", || {
        server.command(&["status", "--ready"]).code == 0
    });
    Client::connect(server.addr()).roundtrip(b"served again");
}
