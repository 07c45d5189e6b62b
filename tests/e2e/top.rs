//! `top` on a pseudo-terminal, against a real server: the screen, and the state of the terminal
//! after the exit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::poll::PollFlags;
use nix::pty::PtyMaster;
use nix::sys::signal::Signal;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::observe::until;
use crate::support::terminal::open_terminal;
use crate::support::{
    Client, DEADLINE, Deadline, Server, Watched, give_children_default_signals, poll_one,
};

const ROWS: usize = 24;
const COLUMNS: usize = 80;

/// The parts of a terminal needed by `top`: a grid of characters, a cursor, and two screens.
struct Screen {
    rows: usize,
    columns: usize,
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    alternate: bool,
    cursor_hidden: bool,
    /// Bytes of an incomplete sequence or character.
    rest: Vec<u8>,
}

impl Screen {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            cells: vec![vec![' '; columns]; rows],
            row: 0,
            column: 0,
            alternate: false,
            cursor_hidden: false,
            rest: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let text = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.to_owned(),
            Err(error) => String::from_utf8_lossy(&self.rest[..error.valid_up_to()]).into_owned(),
        };
        let mut left = text.as_str();
        while let Some(letter) = left.chars().next() {
            if letter == '\x1b' {
                let Some(end) = left[1..].find(|c: char| c.is_ascii_alphabetic()) else {
                    break;
                };
                self.obey(&left[1..end + 2]);
                left = &left[end + 2..];
            } else {
                self.put(letter);
                left = &left[letter.len_utf8()..];
            }
        }
        let read = text.len() - left.len();
        self.rest.drain(..read);
    }

    /// Applies a sequence, given without its escape.
    fn obey(&mut self, sequence: &str) {
        match sequence {
            "[?1049h" => self.alternate = true,
            "[?1049l" => self.alternate = false,
            "[?25l" => self.cursor_hidden = true,
            "[?25h" => self.cursor_hidden = false,
            "[2J" => self.cells = vec![vec![' '; self.columns]; self.rows],
            _ => {
                if let Some(place) = sequence.strip_prefix('[').and_then(|s| s.strip_suffix('H')) {
                    let (row, column) = place.split_once(';').unwrap();
                    self.row = row.parse::<usize>().unwrap() - 1;
                    self.column = column.parse::<usize>().unwrap() - 1;
                }
            }
        }
    }

    fn put(&mut self, letter: char) {
        match letter {
            '\n' => self.row += 1,
            '\r' => self.column = 0,
            _ => {
                if let Some(cell) = self
                    .cells
                    .get_mut(self.row)
                    .and_then(|r| r.get_mut(self.column))
                {
                    *cell = letter;
                }
                self.column += 1;
            }
        }
    }

    fn text(&self) -> String {
        let lines = self.cells.iter().map(|row| row.iter().collect::<String>());
        let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// `top` and its user.
struct Person {
    child: Child,
    watched: Watched,
    terminal: PtyMaster,
    /// Kept open, so that its settings can be read after the exit.
    line: OwnedFd,
    screen: Screen,
}

impl Person {
    #[track_caller]
    fn start(control: &Path, environment: &[(&str, &str)]) -> Self {
        give_children_default_signals();
        let (terminal, line) = open_terminal();
        tcsetwinsize(&line, size(ROWS, COLUMNS)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_uppercased"))
            .args(["top", "--every", "100ms", "--control"])
            .arg(control)
            .envs(environment.iter().copied())
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self {
            watched: Watched::open(child.id()).unwrap(),
            child,
            terminal,
            line,
            screen: Screen::new(ROWS, COLUMNS),
        }
    }

    /// Resizes the window.
    fn resizes(&mut self, rows: usize, columns: usize) {
        tcsetwinsize(&self.line, size(rows, columns)).unwrap();
        self.screen = Screen::new(rows, columns);
        self.screen.alternate = true;
        // The kernel signals the foreground group of a session; here there is none.
        self.watched.signal(Signal::SIGWINCH);
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen satisfies `wanted`.
    #[track_caller]
    fn sees_that(&mut self, what: &str, wanted: impl Fn(&Screen) -> bool) {
        let deadline = Deadline::after(DEADLINE);
        while !wanted(&self.screen) {
            let more = poll_one(&self.terminal, PollFlags::POLLIN, deadline.left());
            assert!(more, "no {what} on the screen:\n{}", self.screen.text());
            let mut piece = [0; 4096];
            let len = self.terminal.read(&mut piece).unwrap();
            self.screen.take(&piece[..len]);
        }
    }

    #[track_caller]
    fn sees(&mut self, words: &str) {
        self.sees_that(words, |screen| screen.text().contains(words));
    }

    /// Asserts that `top` exits and restores the terminal; returns the exit status.
    #[track_caller]
    fn sees_the_end(mut self) -> std::process::ExitStatus {
        self.sees_that("first screen again", |screen| {
            !screen.alternate && !screen.cursor_hidden
        });
        let status = self.watched.exit_status(DEADLINE).expect("it ends");
        assert!(self.is_as_it_was());
        status
    }

    fn is_as_it_was(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap();
        modes
            .local_modes
            .contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
            && modes.output_modes.contains(OutputModes::OPOST)
    }
}

fn size(rows: usize, columns: usize) -> Winsize {
    Winsize {
        ws_row: rows as u16,
        ws_col: columns as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        self.watched.signal(Signal::SIGKILL);
        drop(self.child.wait());
    }
}

#[test]
fn user_watches_and_reloads() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let workers = server.worker_pids();
    let mut person = Person::start(&server.control(), &[]);
    for pid in &workers {
        person.sees(&pid.to_string());
    }
    person.sees("2 LISTEN");
    assert!(person.screen.alternate && !person.is_as_it_was());
    person.types("r");
    person.sees("Reload and replace every worker? [y/N]");
    person.types("n");
    person.sees("q quit");
    assert_eq!(server.worker_pids(), workers, "no is no");

    person.types("r");
    person.sees("Reload and replace every worker? [y/N]");
    person.types("y");
    person.sees("reloaded 2 workers in ");
    person.sees("last         reload done ");
    let renewed = server.worker_pids();
    assert!(
        renewed.iter().all(|pid| !workers.contains(pid)),
        "{renewed:?}"
    );
    person.types("+");
    person.sees("Scale to 3 workers (now 2)? [y/N]");
    person.types("y");
    person.sees("scaled to ");
    person.sees("3 LISTEN");
    assert_eq!(server.worker_pids().len(), 3);
    for line in person.screen.text().lines() {
        assert!(line.chars().count() <= COLUMNS);
    }
    person.types("-");
    person.sees("Scale to 2 workers (now 3)? [y/N]");
    person.types("y");
    person.sees("2 LISTEN");
    person.sees("scaled to ");
    let left = server.worker_pids();
    assert_eq!(left.len(), 2);
    person.types("u");
    person.sees("Upgrade to the binary on disk? [y/N]");
    person.types("y");
    person.sees("upgraded ");
    person.sees("last         upgrade done ");
    let renewed = server.worker_pids();
    assert!(renewed.iter().all(|pid| !left.contains(pid)), "{renewed:?}");

    // Pasted by accident, before the question was shown.
    person.types("ry");
    person.sees("Reload and replace every worker? [y/N]");
    person.types("n");
    person.sees("q quit");
    assert_eq!(server.worker_pids(), renewed);
    person.types("q");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_scrolls_in_any_window_size() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "12"]);
    let mut person = Person::start(&server.control(), &[]);
    person.sees("12 LISTEN");
    person.sees("  11 ");
    person.resizes(12, 40);
    person.sees("rows 1 to 5 of 12, 0 not serving");
    person.sees("q quit r u + - Enter s c p ? help");
    // Far beyond the end, and back.
    person.types("\x1b[6~\x1b[6~\x1b[6~");
    person.sees("rows 8 to 12 of 12");
    person.sees("\n> 11 serving");
    person.types("\x1b[A");
    person.sees("\n> 10 serving");
    person.sees("rows 8 to 12 of 12");
    person.resizes(30, 100);
    person.sees("  11 ");
    person.sees("\n   0 ");
    person.resizes(1, 10);
    person.sees("q quit");
    person.resizes(ROWS, COLUMNS);
    person.sees("12 LISTEN");
    person.types("q");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_shows_history_worker_and_sources() {
    let server = Server::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let mut client = Client::connect(server.addr());
    let rates = || server.status_json()["history"].clone();
    until("a second with messages", || {
        client.roundtrip(b"a message");
        let rates = rates();
        rates
            .as_array()
            .is_some_and(|all| all.iter().any(|rate| rate != 0))
    });
    // From before its start.
    let mut person = Person::start(&server.control(), &[("NO_COLOR", "1")]);
    person.sees("messages/s of all workers (peak ");
    person.sees("█");
    person.sees("s        "); // The axis.
    person.sees_that("bars of a worker", |screen| {
        let text = screen.text();
        let mut rows = text.lines();
        rows.any(|row| row.contains(" serving ") && row.contains('█'))
    });
    person.sees(">  0 ");
    person.types("\x1b[B\r");
    let keeper = server.status_json()["slots"][1]["keeper_pid"].to_string();
    person.sees(&format!("keeper       pid {keeper}: memory "));
    person.sees("slot 1       serving for ");
    let address = server.addr().to_string();
    person.sees(&format!("listens on   {address}: 0 pending, limit "));
    person.types("c");
    person.sees("\n127.0.0.1 ");
    person.types("c");
    person.sees(">  1 ");
    person.types("ss");
    person.sees(" [by queue]");
    person.types("q");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_shows_steps_of_foreign_operation() {
    let server = Server::start(&[
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "1",
        "--bake-time",
        "30s",
    ]);
    let mut person = Person::start(&server.control(), &[]);
    person.sees("serving");
    let reload = server.start_command(&["reload"]);
    person.sees("\n  slot 0: new worker ready (");
    server.command(&["cancel"]).expect_success();
    person.sees("last         reload failed");
    reload.wait().expect_failure("cancelled");
    person.types("q");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_waits_for_vanished_server() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let control = server.control();
    let mut person = Person::start(&control, &[]);
    person.sees("serving");
    server.stop();
    person.sees("no answer for ");
    person.sees(", retrying: ");
    // Another server at the same path.
    let flag = control.to_str().unwrap();
    let server = Server::builder()
        .args(["--listen", "127.0.0.1:0", "--control", flag])
        .start();
    let pid = format!("pid {}: serving", server.pid());
    person.sees(&pid);
    person.sees_that("an answer again", |screen| {
        !screen.text().contains("retrying")
    });
    person.types("\x03");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_restores_terminal_at_every_exit() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    for (signal, code) in [
        (Signal::SIGINT, Some(0)),
        (Signal::SIGTERM, None),
        (Signal::SIGQUIT, None),
    ] {
        let mut person = Person::start(&server.control(), &[]);
        person.sees("serving");
        person.watched.signal(signal);
        assert_eq!(person.sees_the_end().code(), code, "{signal}");
    }
    let person = Person::start(&server.control(), &[("FAULT_POINTS", "top.drawn=panic")]);
    assert_ne!(person.sees_the_end().code(), Some(0));
}

#[test]
fn suspended_top_releases_and_retakes_terminal() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let mut person = Person::start(&server.control(), &[]);
    person.sees("serving");
    for stop in ["\x1a", "SIGTSTP"] {
        match stop {
            "SIGTSTP" => person.watched.signal(Signal::SIGTSTP),
            key => person.types(key),
        }
        person.sees_that("first screen", |screen| !screen.alternate);
        let id = WaitId::Pid(rustix::process::Pid::from_child(&person.child));
        // It exits or stops; the test runner ends a test that waits forever.
        let stopped = waitid(id, WaitIdOptions::STOPPED | WaitIdOptions::EXITED).unwrap();
        assert!(stopped.is_some_and(|status| status.stopped()), "{stop}");
        assert!(person.is_as_it_was(), "{stop}");
        person.screen = Screen::new(ROWS, COLUMNS);
        person.watched.signal(Signal::SIGCONT);
        person.sees("serving");
        assert!(person.screen.alternate && !person.is_as_it_was(), "{stop}");
    }
    person.types("q");
    assert_eq!(person.sees_the_end().code(), Some(0));
}

#[test]
fn top_requires_terminal_and_server() {
    let output = Command::new(env!("CARGO_BIN_EXE_uppercased"))
        .args(["top", "--control", "/nowhere"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let reported = String::from_utf8(output.stderr).unwrap();
    assert!(
        reported.contains("cannot start the dashboard"),
        "{reported}"
    );
    assert_eq!(reported.matches('\n').count(), 1, "{reported}");

    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let mut person = Person::start(&server.control(), &[("TERM", "dumb")]);
    person.sees("cannot start the dashboard: TERM is");
    let status = person.watched.exit_status(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(2));
    assert!(!person.screen.alternate && person.is_as_it_was());

    let mut person = Person::start(Path::new("/nowhere/control"), &[]);
    person.sees("no server is listening on control socket /nowhere/control");
    let status = person.watched.exit_status(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(2));
    assert!(!person.screen.alternate && person.is_as_it_was());
}
