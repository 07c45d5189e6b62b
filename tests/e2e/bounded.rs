//! The supervisor is not blocked by other processes: full pipes, silent clients, floods.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::adversity::skipped;
use crate::support::observe::until;
use crate::support::{DEADLINE, Server, Watched, in_background};

const PROGRAM: &str = env!("CARGO_BIN_EXE_uppercased");

/// Returns a full pipe and its reader.
fn full_pipe() -> (std::io::PipeReader, OwnedFd) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let writer = OwnedFd::from(writer);
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).expect("flags");
    while nix::unistd::write(&writer, &[b'.'; 4096]).is_ok() {}
    while nix::unistd::write(&writer, b".").is_ok() {}
    let none = nix::fcntl::OFlag::empty();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(none)).expect("flags");
    (reader, writer)
}

fn start(stdout: impl Into<Stdio>, stderr: impl Into<Stdio>, args: &[&str]) -> (Child, Watched) {
    let child = Command::new(PROGRAM)
        .args(args)
        .env("UPPERCASED_CONTROL", "off")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .expect("start the program");
    let watched = Watched::open(child.id()).expect("a child that was not reaped");
    (child, watched)
}

/// Reads until `wanted` has arrived or the pipe has ended.
fn read_until(reader: &mut impl std::io::Read, wanted: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains(wanted) {
        match reader.read(&mut bytes).expect("a pipe can be read") {
            0 => break,
            count => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    text
}

#[test]
fn full_standard_output_delays_only_the_announcement() {
    for stops_first in [true, false] {
        let (mut reader, writer) = full_pipe();
        let (mut child, watched) = start(
            writer,
            Stdio::piped(),
            &["--listen=127.0.0.1:0", "--workers=1", "--sandbox=off"],
        );
        let mut log = child.stderr.take().unwrap();
        assert!(read_until(&mut log, " ready ").contains(" ready "));
        if !stops_first {
            let text = read_until(&mut reader, "listening on 127.0.0.1:");
            assert!(text.contains("listening on 127.0.0.1:"), "it is not lost");
        }
        watched.signal(Signal::SIGTERM);
        let status = watched.exit_status(DEADLINE).expect("it stops");
        assert_eq!(status.code(), Some(0));
        drop(child.wait());
    }
}

#[test]
fn full_standard_error_never_blocks_failed_start() {
    for reads in [true, false] {
        let (mut reader, writer) = full_pipe();
        let (mut child, watched) = start(Stdio::null(), writer, &["--workers=0"]);
        if reads {
            let text = read_until(&mut reader, "--workers");
            assert!(text.contains("--workers"), "the cause is not lost");
        }
        let status = watched.exit_status(DEADLINE).expect("it ends");
        assert_eq!(status.code(), Some(2));
        drop(child.wait());
    }
}

#[test]
fn silent_control_clients_give_way_to_a_status() {
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=1"]);
    let silent: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(server.control()).unwrap())
        .collect();
    let mut slow = UnixStream::connect(server.control()).unwrap();
    slow.write_all(b"{\"version\":").unwrap();
    server
        .command(&["status", "--ready", "--timeout=5s"])
        .expect_success();
    drop((silent, slow));
}

#[test]
fn flood_at_the_lock_never_stops_supervision() {
    let server = Server::start(&["--workers=2", "--listen=127.0.0.1:0"]);
    let name = format!("uppercased/{}", server.addr());
    let over = Arc::new(AtomicBool::new(false));
    let flood = {
        let over = Arc::clone(&over);
        in_background(move || {
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            let mut asked = 0_u64;
            while !over.load(Ordering::Relaxed) {
                // Blocks when the queue is full, which ends the flood.
                drop(UnixStream::connect_addr(&address));
                asked += 1;
            }
            asked
        })
    };
    let before = server.worker_pids();
    Watched::open(before[0]).unwrap().signal(Signal::SIGKILL);
    until("the worker is replaced", || {
        let now = server.worker_pids();
        now.len() == 2 && !now.contains(&before[0])
    });
    server.command(&["status", "--timeout=5s"]).expect_success();
    over.store(true, Ordering::Relaxed);
    let asked = flood.join().unwrap();
    assert!(asked > 0, "there was a flood");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn unkillable_workers_refuse_start() {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can run workers as another user");
        return;
    }
    let output = Command::new("setpriv")
        .args(["--bounding-set=-kill", "--inh-caps=-kill", PROGRAM])
        .args(["--listen=127.0.0.1:0", "--user=nobody"])
        .env("UPPERCASED_CONTROL", "off")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        skipped("setpriv (util-linux) is not installed");
        return;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("CAP_KILL") && error.contains("user"),
        "{error}"
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn resumed_supervisor_keeps_its_workers() {
    let server = Server::start(&["--listen=127.0.0.1:0", "--workers=2", "--hang-timeout=1s"]);
    let before = server.worker_pids();
    let supervisor = Watched::open(server.pid()).unwrap();
    for _ in 0..2 {
        supervisor.signal(Signal::SIGSTOP);
        // The test is about elapsed time.
        assert!(!supervisor.wait_gone(Duration::from_secs(3)));
        supervisor.signal(Signal::SIGCONT);
        server.status_json();
    }
    assert_eq!(server.worker_pids(), before);
}
