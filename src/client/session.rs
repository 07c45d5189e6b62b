//! Moves the bytes of one conversation between standard input, the socket and standard output.
//!
//! One thread, one `poll` per iteration. The socket is non-blocking. Standard input and output are
//! not, because that flag belongs to the open file, which other processes share: input is read only
//! after `poll` reported it, and output is written blocking. That is intended backpressure: while
//! the reader of the output is slow, neither socket nor input is read.
//!
//! `epoll` (and so mio) is not used because it rejects regular files.
//!
//! It must not decide whether an answer is correct (`exchange` does), or use the standard library's
//! buffered input, whose buffer is invisible to `poll`.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::Error;
use super::exchange::{Exchange, READ_BYTES, WINDOW_BYTES};
use uppercased_ctl::output;

/// The interactive prompt.
const PROMPT: &[u8] = b"> ";

/// A conversation over a connected socket.
pub(super) struct Session<'a> {
    stream: &'a TcpStream,
    input: io::Stdin,
    screen: Screen,
    exchange: Exchange,
    reply: Box<[u8]>,
    /// The error of a send. Earlier replies can still be read, so it is reported after them.
    send_failure: Option<io::Error>,
    half_closed: bool,
}

/// The result of `poll`.
struct Ready {
    socket: bool,
    input: bool,
}

/// Whether the server may send more.
#[derive(PartialEq, Eq)]
enum Replies {
    Open,
    Ended,
}

impl<'a> Session<'a> {
    /// Creates a conversation between this process's standard input and output and `stream`; it
    /// prompts if both are terminals.
    ///
    /// # Errors
    ///
    /// A socket option cannot be set.
    pub(super) fn new(stream: &'a TcpStream) -> Result<Self, Error> {
        let prepared = stream
            .set_nonblocking(true)
            // A line is a packet: otherwise the second of two quick lines would wait for the
            // acknowledgement of the first.
            .and_then(|()| stream.set_nodelay(true));
        prepared.map_err(Error::Socket)?;
        let input = io::stdin();
        let interactive = input.is_terminal() && output::stdout().is_terminal();
        Ok(Self {
            stream,
            input,
            screen: Screen::new(interactive),
            exchange: Exchange::new(WINDOW_BYTES),
            reply: vec![0; READ_BYTES].into_boxed_slice(),
            send_failure: None,
            half_closed: false,
        })
    }

    /// Returns whether the session is interactive.
    pub(super) fn is_interactive(&self) -> bool {
        self.screen.interactive
    }

    /// Runs the conversation to its end: success if every byte was answered correctly.
    ///
    /// # Errors
    ///
    /// A wrong, missing or surplus answer, a broken connection, or a failure of standard input
    /// or output.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let result = self.converse();
        // A result printed next must start on a new line.
        self.screen.finish_line();
        result
    }

    fn converse(&mut self) -> Result<(), Error> {
        self.screen.prompt()?;
        loop {
            let ready = self.wait()?;
            if ready.socket && self.take_reply()? == Replies::Ended {
                return self.end_replies();
            }
            if ready.input {
                self.take_input()?;
            }
            self.send();
        }
    }

    /// Waits until a descriptor is ready.
    fn wait(&self) -> Result<Ready, Error> {
        let mut interest = PollFlags::POLLIN;
        if self.send_failure.is_none() && !self.exchange.unsent().is_empty() {
            interest |= PollFlags::POLLOUT;
        }
        let socket = PollFd::new(self.stream.as_fd(), interest);
        let input = PollFd::new(self.input.as_fd(), PollFlags::POLLIN);
        // Omitted, not just without events: a hang-up is always reported, so with no room for input
        // the loop would spin.
        let polled = if self.send_failure.is_none() && self.exchange.wants_input() {
            2
        } else {
            1
        };
        let mut fds = [socket, input];
        match poll(&mut fds[..polled], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::Wait(errno.into())),
        }
        // After an interruption no flag is set, so no read can block.
        let readable = |fd: &PollFd<'_>| {
            fd.revents()
                .is_some_and(|flags| flags.intersects(!PollFlags::POLLOUT))
        };
        Ok(Ready {
            socket: readable(&fds[0]),
            input: polled == 2 && readable(&fds[1]),
        })
    }

    /// Reads one piece of the reply, prints it and checks it.
    fn take_reply(&mut self) -> Result<Replies, Error> {
        let len = match (&mut &*self.stream).read(&mut self.reply) {
            Ok(0) => return Ok(Replies::Ended),
            Ok(len) => len,
            Err(error) if is_passing(&error) => return Ok(Replies::Open),
            Err(error) => return Err(self.broken(error)),
        };
        let piece = &self.reply[..len];
        let checked = self.exchange.check_reply(piece);
        // Printed even if wrong, since the server sent it.
        self.screen.show(piece)?;
        checked?;
        if self.exchange.missing() == 0 && !self.exchange.has_input_ended() {
            self.screen.prompt()?;
        }
        Ok(Replies::Open)
    }

    /// Reads one piece of input, or its end.
    fn take_input(&mut self) -> Result<(), Error> {
        let room = self.exchange.room();
        match nix::unistd::read(self.input.as_fd(), &mut *room) {
            Ok(0) => self.exchange.end_input(),
            Ok(len) => {
                self.screen.typed(&room[..len]);
                self.exchange.take(len);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(Error::Input(errno.into())),
        }
        Ok(())
    }

    /// Sends what the socket accepts, then half-closes if that was all.
    fn send(&mut self) {
        while self.send_failure.is_none() && !self.exchange.unsent().is_empty() {
            match (&mut &*self.stream).write(self.exchange.unsent()) {
                Ok(len) => self.exchange.mark_sent(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.send_failure = Some(error),
            }
        }
        if self.exchange.is_all_sent() && !self.half_closed {
            self.half_closed = true;
            // Fails only if the connection is broken; the next read then reports the cause.
            drop(self.stream.shutdown(Shutdown::Write));
        }
    }

    /// Returns the result when the server has half-closed.
    fn end_replies(&mut self) -> Result<(), Error> {
        if let Some(error) = self.send_failure.take() {
            return Err(self.broken(error));
        }
        // The end of the input may be pending but unread. `echo hi | uppercased client` must not
        // fail because a server answers and closes before that end is read.
        if self.exchange.wants_input() {
            let mut input = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            if poll(&mut input, PollTimeout::ZERO) == Ok(1) {
                self.take_input()?;
            }
        }
        Ok(self.exchange.end_replies()?)
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Broken {
            source,
            answered: self.exchange.answered(),
            missing: self.exchange.missing(),
        }
    }
}

/// Standard output with its cursor state.
struct Screen {
    interactive: bool,
    /// Whether the cursor is at the start of a line.
    line_start: bool,
}

impl Screen {
    fn new(interactive: bool) -> Self {
        Self {
            interactive,
            line_start: true,
        }
    }

    /// Prints the prompt, unless an unfinished line is on the screen.
    fn prompt(&mut self) -> Result<(), Error> {
        if self.interactive && self.line_start {
            self.show(PROMPT)?;
        }
        Ok(())
    }

    /// Notes the user's input `bytes`, which the terminal has echoed.
    fn typed(&mut self, bytes: &[u8]) {
        self.line_start = bytes.ends_with(b"\n");
    }

    /// Writes all of `bytes`, blocking while the reader of the output is slow.
    fn show(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(last) = bytes.last() {
            self.line_start = *last == b'\n';
        }
        output::write(bytes).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Error::OutputClosed,
            _ => Error::Output(error),
        })
    }

    /// Moves the cursor to the start of a line, on a terminal.
    fn finish_line(&mut self) {
        if self.interactive && !self.line_start {
            // This may fail if the terminal is gone.
            drop(self.show(b"\n"));
        }
    }
}

/// Returns whether to retry a failed read after the next wait.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
