//! The client on a pseudo-terminal.

use super::*;

/// The key that ends the input, at the start of a line.
const CTRL_D: &str = "\x04";

/// A client on a pseudo-terminal, with its user.
struct Person {
    child: Child,
    terminal: PtyMaster,
    /// Screen output not checked yet.
    screen: Vec<u8>,
}

impl Person {
    #[track_caller]
    fn start(addr: SocketAddr) -> Self {
        let (terminal, line) = open_terminal();
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

    /// Asserts that exactly `text` follows on the screen, where a line ends with `\r\n`.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        while self.screen.len() < text.len() && self.read_more() {}
        let len = self.screen.len().min(text.len());
        let next: Vec<u8> = self.screen.drain(..len).collect();
        assert_eq!(String::from_utf8_lossy(&next), text);
    }

    /// Asserts that the client exits with `code` and prints nothing more.
    #[track_caller]
    fn sees_the_end(mut self, code: i32) {
        while self.read_more() {}
        assert_eq!(String::from_utf8_lossy(&self.screen), "");
        let watched = Watched::open(self.child.id()).unwrap();
        let status = watched.exit_status(DEADLINE).expect("the client ends");
        assert_eq!(status.code(), Some(code));
    }

    /// Waits for more output; returns false when the client has closed the terminal.
    #[track_caller]
    fn read_more(&mut self) -> bool {
        if !poll_one(&self.terminal, PollFlags::POLLIN, DEADLINE) {
            let screen = String::from_utf8_lossy(&self.screen);
            panic!("nothing more comes after {screen:?}");
        }
        let mut piece = [0; 4096];
        match self.terminal.read(&mut piece) {
            Ok(len) => self.screen.extend_from_slice(&piece[..len]),
            // Linux returns EIO once the other side is closed.
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

/// Asserts the greeting, except for the client's own port, chosen by the kernel.
#[track_caller]
fn sees_greeting(person: &mut Person, addr: SocketAddr) {
    person.sees(&format!("connected to {addr} from 127.0.0.1:"));
    while !person.screen.contains(&b' ') && person.read_more() {}
    let digits = person
        .screen
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let digits = digits.count();
    person.screen.drain(..digits);
    person.sees(" (end with Ctrl-D)\r\n");
}

#[test]
fn client_prompts_for_lines_until_ctrl_d() {
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
fn client_reports_close_at_prompt() {
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
    person.sees("all 3 bytes sent so far were answered\r\n");
    person.sees_the_end(1);
}

#[test]
fn ctrl_d_within_line_sends_partial_line() {
    let server = serve_one(answer_all);
    let mut person = Person::start(server.addr);
    sees_greeting(&mut person, server.addr);
    person.sees("> ");
    person.types("hel");
    person.sees("hel");
    person.types(CTRL_D);
    // The line is unfinished, so no prompt follows.
    person.sees("HEL");
    person.types("lo\n");
    person.sees("lo\r\nLO\r\n> ");
    person.types(CTRL_D);
    person.sees("\r\n");
    person.sees_the_end(0);
}

#[test]
fn client_waits_for_replies_after_ctrl_d() {
    // The server replies only at the end of the input.
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
fn client_shows_and_reports_wrong_reply() {
    let server = serve_one(|mut stream| {
        let line = swallow(&mut stream, 3);
        stream.write_all(&line).unwrap();
        drop(stream.read(&mut [0]));
    });
    let mut person = Person::start(server.addr);
    sees_greeting(&mut person, server.addr);
    person.sees("> ");
    person.types("hi\n");
    person.sees("hi\r\nhi\r\nuppercased: wrong reply: byte 0 is 0x68, ");
    person.sees("expected 0x48; check that this is an uppercased server\r\n");
    person.sees_the_end(1);
}
