//! `uppercased client` as a process: against servers that do right and servers that do not, as a
//! filter and on a terminal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use socket2::SockRef;

use self::support::{
    DEADLINE, Watched, answer_all, assert_same, in_background, pattern, poll_one, serve_one,
    serve_one_at, upper,
};

/// A run of the client, to its end.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Run {
    /// Asserts that it succeeded with `expected` on standard output, and was quiet.
    #[track_caller]
    fn assert_success(&self, expected: &[u8]) {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        assert_same(&self.stdout, expected, "standard output");
    }

    /// Asserts that it failed with `code` and said `said`, on one line.
    #[track_caller]
    fn assert_failure(&self, code: i32, said: &str) {
        assert_eq!(self.stderr, format!("uppercased: {said}\n"));
        assert_eq!(self.code, Some(code));
    }
}

fn client(target: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uppercased"));
    command.args(["client", target]).stderr(Stdio::piped());
    command
}

/// Waits for a client whose standard output is not needed, or is read elsewhere.
#[track_caller]
fn finish(mut child: Child, stdout: Vec<u8>) -> Run {
    let watched = Watched::open(child.id()).unwrap();
    if !watched.wait_gone(DEADLINE) {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("the client did not end");
    }
    let mut stderr = String::new();
    let mut said = child.stderr.take().unwrap();
    said.read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    Run {
        code,
        stdout,
        stderr,
    }
}

/// Runs the client as a filter, with `feed` at the other end of its standard input.
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

/// Runs the client with `input` on a pipe; that the client leaves before it has taken all is fine.
#[track_caller]
fn pipe(addr: SocketAddr, input: impl Into<Vec<u8>>) -> Run {
    let input = input.into();
    filter(addr, move |mut stdin| drop(stdin.write_all(&input)))
}

/// Runs the client with a regular file that has `input` as its standard input.
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

/// A port of 127.0.0.1 on which nobody listens: it is bound as long as the socket lives.
fn deaf_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    socket.bind(&any.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// Reads exactly `len` bytes and answers nothing.
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
    fn a_line_comes_back() {
        let server = serve_one(answer_all);
        pipe(server.addr, "hi\n").assert_success(b"HI\n");
        assert_eq!(server.join(), 3);
    }

    #[test]
    fn every_byte_value_comes_back() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let server = serve_one(answer_all);
        pipe(server.addr, all.clone()).assert_success(&upper(&all));
    }

    #[test]
    fn no_input_is_a_conversation_without_words() {
        let server = serve_one(answer_all);
        pipe(server.addr, "").assert_success(b"");
        assert_eq!(server.join(), 0);
    }

    #[test]
    fn a_regular_file_is_input() {
        let input = pattern(0, 1_000_000);
        let server = serve_one(answer_all);
        redirect(server.addr, &input).assert_success(&upper(&input));
    }

    #[test]
    fn the_server_sees_the_end_of_the_input() {
        // Answers only after it: without the half-close both would wait for ever.
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all)).unwrap();
        });
        let input = pattern(0, 1_000_000);
        pipe(server.addr, input.clone()).assert_success(&upper(&input));
    }

    #[test]
    fn a_server_that_answers_and_closes_at_once_is_no_failure() {
        // It closes before it can have seen the half-close.
        let server = serve_one(|mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&upper(&line)).unwrap();
        });
        redirect(server.addr, b"hi\n").assert_success(b"HI\n");
    }

    #[test]
    fn a_long_transfer_streams_both_ways() {
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
    fn input_waits_while_too_much_is_unanswered() {
        const WINDOW_BYTES: usize = 4 * 1024 * 1024;
        const TOTAL_BYTES: usize = 3 * WINDOW_BYTES;
        /// Silence that is taken for the client's waiting; too short would only weaken the test.
        const MOMENT: Duration = Duration::from_millis(50);

        let server = serve_one(|mut stream| {
            let mut held = Vec::new();
            let mut piece = vec![0; 64 * 1024];
            let mut most = 0;
            loop {
                // Holds back its answers for as long as more comes.
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

mod failures {
    use super::*;

    #[test]
    fn an_early_close_tells_how_much_is_missing() {
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all[..2])).unwrap();
        });
        let run = pipe(server.addr, "hello\n");
        run.assert_failure(
            1,
            "the server closed the connection; 4 of 6 bytes were not answered; see the server's log",
        );
        assert_eq!(run.stdout, b"HE");
    }

    #[test]
    fn a_close_is_noticed_while_the_input_waits() {
        let server = serve_one(|mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&upper(&line)).unwrap();
        });
        // The input has not ended when the server closes: this end is held until after the run.
        let mut child = client(&server.addr.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hi\n").unwrap();
        let run = finish(child, Vec::new());
        run.assert_failure(
            1,
            "the server closed the connection; all 3 bytes until then were answered",
        );
        drop(stdin);
    }

    #[test]
    fn a_wrong_byte_is_named_by_its_place() {
        const WRONG: usize = 100_000;
        let server = serve_one(|mut stream| {
            let mut answer = upper(&swallow_all(&mut stream));
            answer[WRONG] = b'?';
            // The client leaves at the wrong byte, with the rest on its way.
            drop(stream.write_all(&answer));
        });
        let mut input = pattern(0, 200_000);
        input[WRONG] = b'x';
        let run = pipe(server.addr, input.clone());
        run.assert_failure(
            1,
            "wrong answer: byte 100000 of the reply is 0x3f and should be 0x58; \
             is this an uppercased server?",
        );
        // What came is shown, with the wrong byte in it.
        assert_same(&run.stdout[..WRONG], &upper(&input[..WRONG]), "before it");
        assert_eq!(run.stdout[WRONG], b'?');
    }

    #[test]
    fn more_than_was_asked_is_a_failure() {
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all)).unwrap();
            stream.write_all(b"!!").unwrap();
        });
        let run = pipe(server.addr, "hi\n");
        run.assert_failure(
            1,
            "wrong answer: 2 more bytes came back than the 3 that were sent; \
             is this an uppercased server?",
        );
    }

    #[test]
    fn a_greeting_is_a_failure() {
        let server = serve_one(|mut stream| {
            stream.write_all(b"220 smtp\r\n").unwrap();
            // Not closed before the client has left.
            drop(stream.read(&mut [0]));
        });
        let (_held, input) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
        let child = client(&server.addr.to_string())
            .stdin(input)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        finish(child, Vec::new()).assert_failure(
            1,
            "wrong answer: 10 more bytes came back than the 0 that were sent; \
             is this an uppercased server?",
        );
    }

    #[test]
    fn a_reset_is_told_apart_from_a_close() {
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all[..2])).unwrap();
            SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        });
        let run = pipe(server.addr, "hello\n");
        // Whether the two bytes before the reset are still to be had is up to the kernel.
        assert_eq!(run.code, Some(1));
        let said = run
            .stderr
            .strip_prefix("uppercased: the server reset the connection; ");
        let said = said.unwrap_or_else(|| panic!("{:?}", run.stderr));
        let missing = 6 - run.stdout.len();
        assert_eq!(
            said,
            format!("{missing} of 6 bytes were not answered; see the server's log\n")
        );
    }

    #[test]
    fn a_reset_in_the_middle_of_sending_is_a_reset() {
        let server = serve_one(|mut stream| {
            drop(swallow(&mut stream, 1000));
            SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        });
        let run = filter(
            server.addr,
            |mut stdin| {
                while stdin.write_all(&[b'x'; 4096]).is_ok() {}
            },
        );
        assert_eq!(run.code, Some(1));
        let said = &run.stderr;
        assert!(
            said.starts_with("uppercased: the server reset the connection; "),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    #[test]
    fn nobody_listening_is_one_clear_line() {
        let (_held, addr) = deaf_port();
        pipe(addr, "hi\n").assert_failure(
            1,
            &format!(
                "cannot connect to {addr}: connection refused; \
                 is the server running, and on this port?"
            ),
        );
    }

    #[test]
    fn an_address_that_is_none_is_bad_usage() {
        for (target, why) in [
            ("nowhere", "the port is missing"),
            ("nowhere:0", "the port is not a number from 1 to 65535"),
            ("::1:9999", "an IPv6 address needs brackets before the port"),
        ] {
            let child = client(target)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            finish(child.unwrap(), Vec::new()).assert_failure(
                2,
                &format!(
                    "cannot read the address {target:?}: {why}; \
                     write HOST:PORT, as in localhost:9999 or [::1]:9999"
                ),
            );
        }
    }

    #[test]
    fn input_that_cannot_be_read_is_told() {
        let server = serve_one(answer_all);
        let child = client(&server.addr.to_string())
            .stdin(File::open("/").unwrap())
            .stdout(Stdio::null())
            .spawn();
        let run = finish(child.unwrap(), Vec::new());
        run.assert_failure(1, "cannot read standard input: Is a directory");
    }

    #[test]
    fn output_that_cannot_be_written_is_told() {
        let server = serve_one(answer_all);
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = client(&server.addr.to_string())
            .stdin(Stdio::piped())
            .stdout(full)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
        let run = finish(child, Vec::new());
        run.assert_failure(1, "cannot write standard output: No space left on device");
    }

    #[test]
    fn a_reader_that_left_is_no_news() {
        let server = serve_one(|mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&upper(&line)).unwrap();
            drop(stream.read(&mut [0]));
        });
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut child = client(&server.addr.to_string())
            .stdin(Stdio::piped())
            .stdout(write)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
        let run = finish(child, Vec::new());
        assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""));
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
    fn names_resolve() {
        let server = serve_one(answer_all);
        ask(&format!("localhost:{}", server.addr.port())).assert_success(b"HI");
    }

    #[test]
    fn ipv6_literals_are_addresses() {
        let loopback: SocketAddr = (Ipv6Addr::LOCALHOST, 0).into();
        if let Err(error) = TcpListener::bind(loopback) {
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: ipv6_literals_are_addresses: no IPv6 on loopback: {error}"
            ));
            return;
        }
        let server = serve_one_at(loopback, answer_all);
        ask(&format!("[::1]:{}", server.addr.port())).assert_success(b"HI");
    }
}

mod on_a_terminal {
    use super::*;

    /// The key that ends the input, at the start of a line.
    const CTRL_D: &str = "\x04";

    /// A client on a pseudo-terminal, and the person in front of it.
    struct Person {
        child: Child,
        terminal: PtyMaster,
        /// What is on the screen and was not looked at yet.
        screen: Vec<u8>,
    }

    impl Person {
        #[track_caller]
        fn start(addr: SocketAddr) -> Self {
            // Not `openpty`: its descriptors would be inherited by the other tests' children.
            let terminal =
                posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
            grantpt(&terminal).unwrap();
            unlockpt(&terminal).unwrap();
            let line: OwnedFd = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NOCTTY.bits())
                .open(ptsname_r(&terminal).unwrap())
                .unwrap()
                .into();
            let child = client(&addr.to_string())
                .stdin(line.try_clone().unwrap())
                .stdout(line.try_clone().unwrap())
                .stderr(line)
                .spawn()
                .unwrap();
            Self {
                child,
                terminal,
                screen: Vec::new(),
            }
        }

        fn types(&mut self, keys: &str) {
            self.terminal.write_all(keys.as_bytes()).unwrap();
        }

        /// Asserts that exactly `text` comes next on the screen. A line ends with `\r\n` there.
        #[track_caller]
        fn sees(&mut self, text: &str) {
            while self.screen.len() < text.len() && self.look() {}
            let len = self.screen.len().min(text.len());
            let next: Vec<u8> = self.screen.drain(..len).collect();
            assert_eq!(String::from_utf8_lossy(&next), text);
        }

        /// Asserts that the client ends with `code` and leaves nothing more on the screen.
        #[track_caller]
        fn sees_the_end(mut self, code: i32) {
            while self.look() {}
            assert_eq!(String::from_utf8_lossy(&self.screen), "");
            let watched = Watched::open(self.child.id()).unwrap();
            let status = watched.exit_status(DEADLINE).expect("the client ends");
            assert_eq!(status.code(), Some(code));
        }

        /// Waits for more on the screen; false when the client has left the terminal.
        #[track_caller]
        fn look(&mut self) -> bool {
            if !poll_one(&self.terminal, PollFlags::POLLIN, DEADLINE) {
                let screen = String::from_utf8_lossy(&self.screen);
                panic!("nothing more comes after {screen:?}");
            }
            let mut piece = [0; 4096];
            match self.terminal.read(&mut piece) {
                Ok(len) => self.screen.extend_from_slice(&piece[..len]),
                // What a terminal answers that nobody has open any more.
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => return false,
                Err(error) => panic!("the terminal: {error}"),
            }
            true
        }
    }

    impl Drop for Person {
        fn drop(&mut self) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }

    /// The greeting, but for the client's own port, which the kernel chose.
    #[track_caller]
    fn sees_greeting(person: &mut Person, addr: SocketAddr) {
        person.sees(&format!("connected to {addr} from 127.0.0.1:"));
        while !person.screen.contains(&b' ') && person.look() {}
        let digits = person
            .screen
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let digits = digits.count();
        person.screen.drain(..digits);
        person.sees(" (end with Ctrl-D)\r\n");
    }

    #[test]
    fn lines_are_asked_for_and_answered_until_ctrl_d() {
        let server = serve_one(answer_all);
        let mut person = Person::start(server.addr);
        sees_greeting(&mut person, server.addr);
        person.sees("> ");
        person.types("hi\n");
        person.sees("hi\r\nHI\r\n> ");
        person.types("Grüße, 2\n");
        person.sees("Grüße, 2\r\nGRüßE, 2\r\n> ");
        person.types(CTRL_D);
        person.sees("\r\n");
        person.sees_the_end(0);
        assert_eq!(server.join(), 3 + 11);
    }

    #[test]
    fn the_servers_close_is_told_at_the_prompt() {
        let (close, closing) = std::sync::mpsc::channel();
        let server = serve_one(move |mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&upper(&line)).unwrap();
            closing.recv_timeout(DEADLINE).unwrap();
        });
        let mut person = Person::start(server.addr);
        sees_greeting(&mut person, server.addr);
        person.sees("> ");
        person.types("hi\n");
        person.sees("hi\r\nHI\r\n> ");
        close.send(()).unwrap();
        person.sees("\r\nuppercased: the server closed the connection; ");
        person.sees("all 3 bytes until then were answered\r\n");
        person.sees_the_end(1);
    }

    #[test]
    fn ctrl_d_within_a_line_sends_what_there_is() {
        let server = serve_one(answer_all);
        let mut person = Person::start(server.addr);
        sees_greeting(&mut person, server.addr);
        person.sees("> ");
        person.types("hel");
        person.sees("hel");
        person.types(CTRL_D);
        // The line is not finished, so there is no prompt behind it.
        person.sees("HEL");
        person.types("lo\n");
        person.sees("lo\r\nLO\r\n> ");
        person.types(CTRL_D);
        person.sees("\r\n");
        person.sees_the_end(0);
    }

    #[test]
    fn the_rest_is_waited_for_after_ctrl_d() {
        // Answers only when there is no more to come.
        let server = serve_one(|mut stream| {
            let all = swallow_all(&mut stream);
            stream.write_all(&upper(&all)).unwrap();
        });
        let mut person = Person::start(server.addr);
        sees_greeting(&mut person, server.addr);
        person.sees("> ");
        person.types("one\n");
        person.sees("one\r\n");
        person.types("two\n");
        person.sees("two\r\n");
        person.types(CTRL_D);
        person.sees("ONE\r\nTWO\r\n");
        person.sees_the_end(0);
    }

    #[test]
    fn a_wrong_answer_is_shown_and_told() {
        let server = serve_one(|mut stream| {
            let line = swallow(&mut stream, 3);
            stream.write_all(&line).unwrap();
            drop(stream.read(&mut [0]));
        });
        let mut person = Person::start(server.addr);
        sees_greeting(&mut person, server.addr);
        person.sees("> ");
        person.types("hi\n");
        person.sees("hi\r\nhi\r\nuppercased: wrong answer: byte 0 of the reply is 0x68 ");
        person.sees("and should be 0x48; is this an uppercased server?\r\n");
        person.sees_the_end(1);
    }
}
