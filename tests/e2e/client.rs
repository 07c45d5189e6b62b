//! `uppercased client` as a process: against correct and faulty servers, as a filter and on a
//! terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failures;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::pty::PtyMaster;
use socket2::SockRef;

use crate::support::adversity::has_ipv6;
use crate::support::terminal::open_terminal;
use crate::support::{
    DEADLINE, Watched, answer_all, assert_same, in_background, pattern, poll_one, serve_one,
    serve_one_at, upper,
};

/// A completed run of the client.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Run {
    /// Asserts that it succeeded with `expected` on standard output and empty standard error.
    #[track_caller]
    fn assert_success(&self, expected: &[u8]) {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        assert_same(&self.stdout, expected, "standard output");
    }

    /// Asserts that it failed with `code` and the one-line message `error`.
    #[track_caller]
    fn assert_failure(&self, code: i32, error: &str) {
        assert_eq!(self.stderr, format!("uppercased: {error}\n"));
        assert_eq!(self.code, Some(code));
    }
}

fn client(target: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    command.args(["client", target]).stderr(Stdio::piped());
    command
}

/// Waits for a client whose standard output is unused or read elsewhere.
#[track_caller]
fn finish(mut child: Child, stdout: Vec<u8>) -> Run {
    let watched = Watched::open(child.id()).unwrap();
    if !watched.wait_gone(DEADLINE) {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the client did not end");
    }
    let mut stderr = String::new();
    let mut error = child.stderr.take().unwrap();
    error.read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    Run {
        code,
        stdout,
        stderr,
    }
}

/// Runs the client as a filter; `feed` writes to its standard input.
#[track_caller]
fn filter(addr: SocketAddr, feed: impl FnOnce(ChildStdin) + Send + 'static) -> Run {
    let mut child = client(&addr.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let feeding = in_background(move || feed(stdin));
    let reading = in_background(move || {
        let mut stdout = Vec::new();
        output.read_to_end(&mut stdout).unwrap();
        stdout
    });
    let mut run = finish(child, Vec::new());
    run.stdout = reading.join().unwrap();
    feeding.join().unwrap();
    run
}

/// Runs the client with `input` on a pipe; it may exit before it has read everything.
#[track_caller]
fn pipe(addr: SocketAddr, input: impl Into<Vec<u8>>) -> Run {
    let input = input.into();
    filter(addr, move |mut stdin| drop(stdin.write_all(&input)))
}

/// Runs the client with a regular file containing `input` as its standard input.
#[track_caller]
fn redirect(addr: SocketAddr, input: &[u8]) -> Run {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    let output = client(&addr.to_string())
        .stdin(file)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = output.unwrap();
    let mut stdout = Vec::new();
    let mut output = child.stdout.take().unwrap();
    output.read_to_end(&mut stdout).unwrap();
    finish(child, stdout)
}

/// Returns a port of 127.0.0.1 without a listener; it stays bound while the socket is open.
fn deaf_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// Reads exactly `len` bytes and sends nothing.
fn swallow(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads up to the client's half-close.
fn swallow_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

mod as_a_filter {
    use super::*;

    #[test]
    fn client_prints_reply_to_line() {
        let server = serve_one(answer_all);
        pipe(server.addr, "hi\n").assert_success(b"HI\n");
        assert_eq!(server.join(), 3);
    }

    #[test]
    fn client_passes_every_byte_value() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let server = serve_one(answer_all);
        pipe(server.addr, all.clone()).assert_success(&upper(&all));
    }

    #[test]
    fn empty_input_is_a_valid_session() {
        let server = serve_one(answer_all);
        pipe(server.addr, "").assert_success(b"");
        assert_eq!(server.join(), 0);
    }

    #[test]
    fn client_reads_regular_file() {
        let input = pattern(0, 1_000_000);
        let server = serve_one(answer_all);
        redirect(server.addr, &input).assert_success(&upper(&input));
    }

    #[test]
    fn server_receives_end_of_input() {
        // The server replies only after the half-close; without it both would wait forever.
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all)).unwrap();
        });
        let input = pattern(0, 1_000_000);
        pipe(server.addr, input.clone()).assert_success(&upper(&input));
    }

    #[test]
    fn immediate_close_after_reply_is_success() {
        // It closes before the half-close can arrive.
        let server = serve_one(|mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&upper(&line)).unwrap();
        });
        redirect(server.addr, b"hi\n").assert_success(b"HI\n");
    }

    #[test]
    fn long_transfer_streams_both_ways() {
        const TOTAL_BYTES: usize = 64 * 1024 * 1024;
        const STEP_BYTES: usize = 256 * 1024;
        let server = serve_one(answer_all);
        let mut child = client(&server.addr.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feeding = in_background(move || {
            for at in (0..TOTAL_BYTES).step_by(STEP_BYTES) {
                stdin.write_all(&pattern(at as u64, STEP_BYTES)).unwrap();
            }
        });
        let mut stdout = child.stdout.take().unwrap();
        let mut step = vec![0; STEP_BYTES];
        for at in (0..TOTAL_BYTES).step_by(STEP_BYTES) {
            stdout.read_exact(&mut step).unwrap();
            assert_same(&step, &upper(&pattern(at as u64, STEP_BYTES)), "a step");
        }
        assert_eq!(stdout.read(&mut step).unwrap(), 0);
        feeding.join().unwrap();
        finish(child, Vec::new()).assert_success(b"");
        assert_eq!(server.join(), TOTAL_BYTES as u64);
    }

    #[test]
    fn client_pauses_input_while_replies_are_due() {
        const WINDOW_BYTES: usize = 4 * 1024 * 1024;
        const TOTAL_BYTES: usize = 3 * WINDOW_BYTES;
        /// How long silence must last to show that the client waits; a shorter one would only
        /// weaken the test.
        const MOMENT: Duration = Duration::from_millis(50);

        let server = serve_one(|mut stream| {
            let mut held = Vec::new();
            let mut piece = vec![0; 64 * 1024];
            let mut most = 0;
            loop {
                // Holds back its replies while more input arrives.
                if poll_one(&stream, PollFlags::POLLIN, MOMENT) {
                    match stream.read(&mut piece).unwrap() {
                        0 => break,
                        len => held.extend_from_slice(&piece[..len]),
                    }
                    continue;
                }
                most = most.max(held.len());
                stream.write_all(&upper(&held)).unwrap();
                held.clear();
            }
            stream.write_all(&upper(&held)).unwrap();
            most
        });
        let input = pattern(0, TOTAL_BYTES);
        pipe(server.addr, input.clone()).assert_success(&upper(&input));
        let most = server.join();
        assert!(most <= WINDOW_BYTES, "{most} bytes were unanswered");
    }
}

mod addresses {
    use super::*;

    fn ask(target: &str) -> Run {
        let mut child = client(target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hi").unwrap();
        let mut stdout = Vec::new();
        let mut output = child.stdout.take().unwrap();
        output.read_to_end(&mut stdout).unwrap();
        finish(child, stdout)
    }

    #[test]
    fn client_resolves_names() {
        let server = serve_one(answer_all);
        ask(&format!("localhost:{}", server.addr.port())).assert_success(b"HI");
    }

    #[test]
    fn client_accepts_ipv6_literals() {
        let loopback: SocketAddr = (Ipv6Addr::LOCALHOST, 0).into();
        if !has_ipv6() {
            return;
        }
        let server = serve_one_at(loopback, answer_all);
        ask(&format!("[::1]:{}", server.addr.port())).assert_success(b"HI");
    }
}
