//! `top`: a live view of a running server on a terminal, with keys for commands.
//!
//! One loop waits for keys, signals, the reply to the latest sample and the output of an operation;
//! `model` interprets them, `view` draws the result. It runs in its own process, like every
//! command.
//!
//! Invariants: it waits nowhere else, so keys work while a server does not reply; the terminal's
//! modes are restored whenever `top` leaves it. A lost server is polled for until it is back, since
//! restarts are watched too. Must not: send a server anything but status requests without
//! confirmation.

use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use ratatui_core::terminal::Terminal;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::config::{STATUS_ANSWER_TIMEOUT, TOP_CONNECT_TIMEOUT};
use crate::fault;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::control::client::{Conversation, Error as AskError};
use uppercased_ctl::control::{Reply, Request};
use uppercased_ctl::output;
use uppercased_ctl::sampler::Sampler;

use model::{Action, Model};
use terminal::{Ansi, Modes};
use view::Palette;

mod keys;
mod model;
mod terminal;
mod view;

/// The server to watch, and the refresh interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The control socket; `None`: that of the only running server.
    pub control: Option<PathBuf>,
    /// Refresh interval.
    pub every: Duration,
}

/// An error that stops `top`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input or output is not a terminal.
    #[error(
        "cannot start the dashboard: standard input and output must be a terminal; use `uppercased \
         status --watch` instead"
    )]
    NoTerminal,
    /// The terminal cannot position its cursor.
    #[error(
        "cannot start the dashboard: TERM is \"dumb\"; use `uppercased status --watch` instead"
    )]
    Dumb,
    /// No server is running at the start.
    #[error("{0}")]
    NoServer(String),
    /// The terminal or the wait failed.
    #[error("cannot use this terminal: {0}")]
    System(#[from] io::Error),
}

/// Maximum bytes of keys read at once.
const KEYS_BYTES: usize = 256;

/// Finds the control socket of the only server; called again when that server is gone.
pub type Find<'a> = &'a dyn Fn() -> Result<PathBuf, String>;

/// Shows the server until the user quits.
///
/// See [`Error`]; a server that is lost later is not an error.
pub fn run(options: &Options, find: Find<'_>) -> Result<ExitCode, Error> {
    if !io::stdin().is_terminal() || !output::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        return Err(Error::Dumb);
    }
    let path = match &options.control {
        Some(path) => path.clone(),
        None => find().map_err(Error::NoServer)?,
    };
    // Connect first: without a server the terminal is left unchanged.
    let first = Conversation::open(&path, Some(STATUS_ANSWER_TIMEOUT));
    drop(first.map_err(|error| Error::NoServer(error.to_string()))?);

    let mut top = Top::enter(options, find, path)?;
    let end = top.show();
    top.modes.leave();
    match end? {
        End::Quit => Ok(ExitCode::SUCCESS),
        End::Signalled(number) => {
            // Ends the process by the signal's default action, after the terminal is restored.
            let _ = signal_hook::low_level::emulate_default_handler(number);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The reason why the loop ends.
enum End {
    Quit,
    Signalled(i32),
}

struct Top<'a> {
    options: &'a Options,
    find: Find<'a>,
    path: PathBuf,
    model: Model,
    sampler: Sampler,
    palette: Palette,
    modes: Modes,
    screen: Terminal<Ansi>,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    next_sample: Tick,
    /// The pending status request and its deadline.
    sampling: Option<(Conversation, Tick)>,
    operation: Option<Conversation>,
}

/// The sources with input.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    keys: bool,
    signals: bool,
    sample: bool,
    operation: bool,
}

impl<'a> Top<'a> {
    fn enter(options: &'a Options, find: Find<'a>, path: PathBuf) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let caught = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH];
        let signals = SignalDelivery::with_pipe(read, write, SignalOnly, caught)?;
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let modes = Modes::enter()?;
        Ok(Self {
            options,
            find,
            path,
            model: Model::default(),
            sampler: Sampler::new(None),
            palette: Palette { colour: !no_colour },
            modes,
            screen: Terminal::new(Ansi::default())?,
            signals,
            next_sample: clock::now(),
            sampling: None,
            operation: None,
        })
    }

    fn show(&mut self) -> io::Result<End> {
        loop {
            self.begin_sample();
            self.draw()?;
            fault::point("top.drawn");
            let ready = self.wait()?;
            if ready.signals
                && let Some(end) = self.handle_signals()?
            {
                return Ok(end);
            }
            if ready.keys
                && let Some(end) = self.read_keys()?
            {
                return Ok(end);
            }
            if ready.sample {
                self.read_sample();
            }
            if ready.operation {
                self.read_operation();
            }
            self.abandon_late_sample();
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let now = clock::now();
        let (model, palette) = (&self.model, self.palette);
        let mut first_row = None;
        self.screen.draw(|frame| {
            let area = frame.area();
            first_row = view::draw(model, palette, now, area, frame.buffer_mut());
        })?;
        self.model.scrolled_to(first_row);
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        let due = self.sampling.as_ref().map_or_else(
            || (!self.model.paused).then_some(self.next_sample),
            |(_, until)| Some(*until),
        );
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            // Rounded up, so that the last millisecond is slept and not busy-polled.
            let left = due.since(clock::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let input = io::stdin();
        let sample = self.sampling.as_ref().map(|(sample, _)| sample.as_fd());
        let operation = self.operation.as_ref().map(AsFd::as_fd);
        let sources = [
            Some(input.as_fd()),
            Some(self.signals.get_read().as_fd()),
            sample,
            operation,
        ];
        let watched: Vec<BorrowedFd<'_>> = sources.into_iter().flatten().collect();
        let mut polled: Vec<PollFd<'_>> = watched
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut happened = polled.iter().map(|one| one.any().unwrap_or(false));
        let mut next = |is_there: bool| is_there && happened.next().unwrap_or(false);
        Ok(Ready {
            keys: next(true),
            signals: next(true),
            sample: next(sample.is_some()),
            operation: next(operation.is_some()),
        })
    }

    fn handle_signals(&mut self) -> io::Result<Option<End>> {
        let pending: Vec<i32> = self.signals.pending().collect();
        for number in pending {
            match number {
                SIGINT => return Ok(Some(End::Quit)),
                SIGTERM | SIGHUP | SIGQUIT => return Ok(Some(End::Signalled(number))),
                SIGTSTP => self.suspend()?,
                // Another process used the terminal, or its size changed.
                SIGCONT => self.resume()?,
                _ => {}
            }
        }
        Ok(None)
    }

    fn suspend(&mut self) -> io::Result<()> {
        self.modes.leave();
        raise(Signal::SIGSTOP)?;
        self.resume()
    }

    fn resume(&mut self) -> io::Result<()> {
        self.modes.enter_again()?;
        self.screen.clear()
    }

    fn read_keys(&mut self) -> io::Result<Option<End>> {
        let mut bytes = [0; KEYS_BYTES];
        let count = match io::stdin().lock().read(&mut bytes) {
            // The terminal is gone.
            Ok(0) => return Ok(Some(End::Quit)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error),
        };
        for key in keys::keys(&bytes[..count]) {
            match self.model.press(key) {
                None => {}
                Some(Action::Quit) => return Ok(Some(End::Quit)),
                Some(Action::Suspend) => self.suspend()?,
                Some(Action::Redraw) => self.screen.clear()?,
                Some(Action::Ask(request)) => self.begin_operation(&request),
            }
            // Input that arrived together, perhaps pasted, must not answer a question not yet
            // shown.
            if self.model.question().is_some() {
                break;
            }
        }
        Ok(None)
    }

    fn begin_operation(&mut self, request: &Request) {
        match self.ask(request) {
            Ok(conversation) => self.operation = Some(conversation),
            Err(error) => self.model.operation_lost(&error.to_string()),
        }
    }

    /// Sends a request. Connecting is the only blocking call; it is short, because the kernel
    /// completes it.
    fn ask(&self, request: &Request) -> Result<Conversation, AskError> {
        let mut conversation = Conversation::open(&self.path, Some(TOP_CONNECT_TIMEOUT))?;
        conversation.ask(request)?;
        Ok(conversation)
    }

    fn read_operation(&mut self) {
        let Some(conversation) = &mut self.operation else {
            return;
        };
        let received = conversation.read_ready();
        match received {
            Ok(received) => {
                let mut over = false;
                for reply in received.replies {
                    over |= self.model.handle_reply(reply);
                }
                if over {
                    self.operation = None;
                } else if received.ended {
                    self.operation = None;
                    self.model.operation_lost(&AskError::Lost.to_string());
                }
            }
            Err(error) => {
                self.operation = None;
                self.model.operation_lost(&error.to_string());
            }
        }
    }

    fn begin_sample(&mut self) {
        let now = clock::now();
        if self.sampling.is_some() || self.model.paused || now < self.next_sample {
            return;
        }
        self.next_sample = now + self.options.every;
        match self.ask(&Request::Status) {
            Ok(conversation) => self.sampling = Some((conversation, now + STATUS_ANSWER_TIMEOUT)),
            Err(error) => self.sample_failed(error.to_string()),
        }
    }

    fn read_sample(&mut self) {
        let Some((conversation, _)) = &mut self.sampling else {
            return;
        };
        let failed = match conversation.read_ready() {
            Ok(received) => match received.replies.into_iter().next() {
                Some(Reply::Status(status)) => {
                    let sample = self.sampler.complete(*status, conversation.server());
                    self.sampling = None;
                    return self.model.add_sample(sample, clock::now());
                }
                Some(Reply::Refused(cause)) => cause,
                Some(_) => "the server's answer does not match the request".to_owned(),
                None if received.ended => AskError::Lost.to_string(),
                // The rest has not arrived yet.
                None => return,
            },
            Err(error) => error.to_string(),
        };
        self.sample_failed(failed);
    }

    fn abandon_late_sample(&mut self) {
        if let Some((_, until)) = &self.sampling
            && *until <= clock::now()
        {
            self.sample_failed(AskError::TimedOut.to_string());
        }
    }

    /// Records the failure and looks for the server again: another, with another process ID, may
    /// have replaced it.
    fn sample_failed(&mut self, why: String) {
        self.sampling = None;
        self.model.set_error(why);
        if self.options.control.is_none()
            && let Ok(path) = (self.find)()
        {
            self.path = path;
        }
    }
}
