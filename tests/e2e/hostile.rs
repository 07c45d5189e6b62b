//! A compromised worker: forged messages and memory contents cost at most its own process. They
//! never cost the supervisor time or memory, harm a sibling, or falsify the state of other workers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt as _;

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use uppercased::memory::layout::Layout;

use crate::support::adversity::skipped;
use crate::support::image::Image;
use crate::support::observe::{descriptors, freeze, until, until_some, wait_ready, worker_of};
use crate::support::planned::Planned;
use crate::support::usage::resident_bytes;
use crate::support::{Client, DEADLINE, Server};

const QUICK: [&str; 5] = [
    "--listen=127.0.0.1:0",
    "--bake-time=0s",
    "--workers=2",
    "--backoff-initial=10ms",
    "--admin=0",
];

/// Starts workers that misbehave in the way `what` as soon as they have a client.
#[track_caller]
fn with_misbehaviour(what: &str) -> Planned {
    let planned = Planned::start(&QUICK);
    let plan = format!("worker.misbehave={what}");
    planned.install(Image::copy(planned.folder()).with_faults(&plan));
    planned.server.reload().expect_success();
    planned.workers().assert_serving();
    planned
}

/// Connects a client to one of the workers and waits until that worker has exited; returns the
/// status of its slot.
#[track_caller]
fn provoke(planned: &Planned) -> (TcpStream, Value) {
    let before = planned.workers();
    let server = &planned.server;
    let mut client = TcpStream::connect(server.addr()).expect("connect");
    client.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    client.write_all(b"a client").expect("send");
    let slot = until_some("a dead worker", || {
        let status = server.status_json();
        let mut slots = status["slots"].as_array()?.iter();
        slots.find(|it| it["last_crashes"][0].is_object()).cloned()
    });
    until("every slot serves", || {
        planned.workers().0.iter().all(|it| it.state == "serving")
    });
    // The sibling is the same process.
    let after = planned.workers();
    let changed = before
        .0
        .iter()
        .zip(&after.0)
        .filter(|(a, b)| a.pid != b.pid);
    assert_eq!(changed.count(), 1, "{after:?} after {before:?}");
    (client, slot)
}

/// Asserts that the server works normally.
#[track_caller]
fn assert_well(planned: &Planned) {
    let server = &planned.server;
    planned.install_good();
    server.reload().expect_success();
    for _ in 0..8 {
        Client::connect(server.addr()).roundtrip(b"served");
    }
    let status = server.status_json();
    let addr = server.addr().to_string();
    assert_eq!(status["addresses"][0].as_str(), Some(addr.as_str()));
    for slot in status["slots"].as_array().expect("slots") {
        let layers = slot["sandbox"]["layers"].as_array();
        assert!(layers.is_some_and(|layers| layers.len() > 2), "{slot}");
    }
    assert_eq!(status["totals"]["crashes"], 1, "{status}");
}

#[test]
fn forged_messages_end_worker_and_are_ignored() {
    for (what, why) in [
        ("ready", "exceeded its message quota"),
        ("handover", "exceeded its message quota"),
        ("another", "it claims to be"),
        ("noise", "does not begin with the magic bytes"),
    ] {
        let planned = with_misbehaviour(what);
        let (_client, slot) = provoke(&planned);
        let cause = slot["last_crashes"][0]["error"]
            .as_str()
            .unwrap_or_default();
        assert!(cause.contains(why), "{what}: {slot}");
        assert_well(&planned);
    }
}

#[test]
fn message_flood_costs_supervisor_nothing() {
    let planned = with_misbehaviour("flood");
    let supervisor = planned.server.pid();
    let before = resident_bytes(supervisor);
    let (_client, slot) = provoke(&planned);
    let cause = slot["last_crashes"][0]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(cause.contains("exceeded its message quota"), "{slot}");
    let grown = resident_bytes(supervisor).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");
    assert_well(&planned);
}

/// With SO_LINGER a close waits for a peer that does not read. The receiver performs the last close
/// of a migrated connection.
#[test]
fn lingering_connection_never_blocks_supervisor() {
    let planned = with_misbehaviour("linger");
    let (_does_not_read, slot) = provoke(&planned);
    let cause = slot["last_crashes"][0]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(cause.contains("exceeded its message quota"), "{slot}");
    assert_well(&planned);
}

/// Each new connection inherits the listener's options in every worker; a replaced worker can keep
/// the listener while it drains.
#[test]
fn lingering_listener_neither_blocks_nor_resets_clients() {
    for what in ["listeners wait", "listeners reset"] {
        let planned = Planned::start(&[
            "--listen=127.0.0.1:0",
            "--workers=1",
            "--bake-time=0s",
            "--reload-connections=drain",
            "--send-buffer=200KiB",
        ]);
        let server = &planned.server;
        let plan = format!("worker.misbehave={what}");
        planned.install(Image::copy(planned.folder()).with_faults(&plan));
        server.reload().expect_success();
        let mut of_the_stranger = Client::connect(server.addr());
        of_the_stranger.roundtrip(b"it keeps the listeners");
        planned.install_good();
        server.reload().expect_success();
        for _ in 0..2 {
            of_the_stranger.roundtrip(b"and sets what they pass on");
        }

        // Its replies exceed its receive buffer, so output is pending when the server closes.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        socket.connect(&server.addr().into()).expect("connect");
        let mut reads_late = TcpStream::from(socket);
        let deadline = Some(DEADLINE);
        reads_late.set_read_timeout(deadline).expect("a timeout");
        reads_late.set_write_timeout(deadline).expect("a timeout");
        let sent = vec![b'a'; 64 * 1024];
        reads_late.write_all(&sent).expect("send");
        reads_late.shutdown(Shutdown::Write).expect("half-close");
        until("the server closes it", || {
            server.status_json()["totals"]["closed"]["peer_closed"].as_u64() >= Some(1)
        });
        Client::connect(server.addr()).roundtrip(b"served meanwhile");
        let mut got = Vec::new();
        let read = reads_late.read_to_end(&mut got);
        assert!(read.is_ok(), "{what}: {read:?} after {} bytes", got.len());
        assert!(got == sent.to_ascii_uppercase(), "{what}: {}", got.len());
    }
}

#[test]
fn invalid_worker_memory_is_ignored() {
    let planned = with_misbehaviour("scribble");
    let server = &planned.server;
    for _ in 0..2 {
        let _ended = provoke_and_forget(&planned);
    }
    server.wait_log(|line| line.contains("worker counters invalid"));
    planned.install_good();
    server.reload().expect_success();
    let client = Client::connect(server.addr());
    let status = server.status_json();
    let open = status["totals"]["open"].as_u64();
    assert_eq!(open, Some(1), "{status}");
    let taken = status["totals"]["accepted"].as_u64();
    assert!(taken.is_some_and(|taken| taken < 100), "{status}");
    drop(client);
}

/// Connects a client to a worker and waits until the worker has been replaced.
#[track_caller]
fn provoke_and_forget(planned: &Planned) -> TcpStream {
    let crashes = |planned: &Planned| planned.server.status_json()["totals"]["crashes"].as_u64();
    let before = crashes(planned);
    let client = TcpStream::connect(planned.server.addr()).expect("connect");
    until("another death", || crashes(planned) > before);
    until("every slot serves", || {
        planned.workers().0.iter().all(|it| it.state == "serving")
    });
    client
}

/// A worker's memory names the process that continues it. Another part's process is none.
#[test]
fn claimed_process_of_another_part_is_untouched() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("only root can write to a worker's memory");
    }
    let server = Server::start(&["--workers=1", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"]);
    let admin = || server.status_json()["admin"]["pid"].as_u64();
    let claimed = until_some("an admin process", admin);
    let worker = worker_of(&server, 0);
    freeze(&worker);
    let memory = descriptors(worker.pid()).into_iter();
    let memory = memory.filter(|(_, target)| target.starts_with("/memfd:uppercased-slot"));
    let numbers: Vec<i32> = memory.map(|(number, _)| number).collect();
    let [number] = numbers[..] else {
        panic!("one memory: {numbers:?}");
    };
    let memory = format!("/proc/{}/fd/{number}", worker.pid());
    let memory = std::fs::OpenOptions::new().write(true).open(memory);
    let keeper = Layout::LIFE as u64;
    memory
        .expect("the memory of the worker")
        .write_all_at(&claimed.to_ne_bytes(), keeper)
        .expect("the first word of the line");
    worker.signal(Signal::SIGKILL);
    wait_ready(&server, 0, 0, 2);
    assert_eq!(admin(), Some(claimed));
    Client::connect(server.addr()).roundtrip(b"by another worker");
    let status = server.status_json();
    assert_eq!(status["admin"]["crashes"], 0, "{status}");
    assert!(server.stop().success());
    assert!(server.processes().is_empty());
}
