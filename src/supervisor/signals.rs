//! Signals, and the request of each.
//!
//! Invariant: between a save and the exec no signal is lost: earlier signals are saved in the
//! state, later ones are blocked and stay pending in the kernel.

mod terminal;

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::log::event;
use crate::sys::child::is_first_process;
use crate::sys::hangup::{self, Senders};
use crate::sys::signals;

use super::machine::{ScaleTo, Wanted};
use super::tokens::Source;
use terminal::{Hangup, Terminal};

/// Each requests a stop; the second one an immediate stop.
const STOP_SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];
/// Each requests another operation.
const OTHER_SIGNALS: [i32; 5] = [SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU];
/// All signals that have an effect; help and documentation list the same ones.
pub(crate) const HANDLED_SIGNALS: [&[i32]; 2] = [&STOP_SIGNALS, &OTHER_SIGNALS];

/// Whether a stop signal ends the process immediately.
static EARLY_STOP: AtomicBool = AtomicBool::new(false);

/// The request of a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `SIGTERM`: a stop, unless a service manager restarts the service.
    Terminate,
    /// A stop.
    Stop {
        /// The name of the signal, for the log.
        by: String,
    },
    /// A stop, unless one is in progress.
    StopForTerminal,
    LogStatus,
    Operation(Wanted),
}

#[derive(Debug)]
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    terminal: Terminal,
    /// Signals received before an exec and not handled.
    held: Vec<i32>,
}

/// The signals in a saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    terminal: Terminal,
    held: Vec<i32>,
    /// The senders of a SIGHUP among them.
    hangup: Senders,
}

impl Signals {
    /// Handles signals from now on.
    ///
    /// # Errors
    /// The error of the kernel.
    pub(crate) fn handle() -> io::Result<Self> {
        // Handling SIGHUP hides whether it was ignored.
        let terminal = Terminal::of_this_process();
        Ok(Self {
            delivery: delivery()?,
            terminal,
            held: Vec::new(),
        })
    }

    /// # Errors
    /// The signals cannot be watched.
    pub(crate) fn watch(&self, registry: &Registry) -> io::Result<()> {
        let number = self.delivery.get_read().as_raw_fd();
        let token = Source::Signals.token();
        registry.register(&mut SourceFd(&number), token, Interest::READABLE)
    }

    /// Returns the requests of the signals received.
    pub(crate) fn on_ready(&mut self) -> Vec<Request> {
        self.hold();
        let held = std::mem::take(&mut self.held);
        let requests = held
            .into_iter()
            .filter_map(|number| self.meaning_of(number));
        requests.collect()
    }

    /// Keeps received signals for the next program, or for [`Self::on_ready`] if there is none.
    pub(crate) fn hold(&mut self) {
        self.held.extend(self.delivery.pending());
    }

    /// Handles `SIGTERM` again, here or in the next program.
    pub(crate) fn repeat_stop(&mut self) {
        self.held.push(SIGTERM);
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            terminal: self.terminal,
            held: self.held.clone(),
            hangup: hangup::seen(),
        }
    }

    /// # Errors
    /// The error of the kernel.
    pub(crate) fn restore(saved: Saved, registry: &Registry) -> io::Result<Self> {
        let restored = Self {
            delivery: delivery()?,
            terminal: saved.terminal,
            held: saved.held,
        };
        hangup::note(saved.hangup);
        restored.watch(registry)?;
        Ok(restored)
    }

    fn meaning_of(&self, number: i32) -> Option<Request> {
        let by = signal_hook::low_level::signal_name(number).unwrap_or("a signal");
        match number {
            SIGTERM => Some(Request::Terminate),
            SIGINT | SIGQUIT => Some(Request::Stop { by: by.to_owned() }),
            SIGHUP => self.meaning_of_hangup(),
            SIGUSR1 => Some(Request::LogStatus),
            SIGUSR2 => Some(Request::Operation(Wanted::Upgrade)),
            SIGTTIN => Some(Request::Operation(Wanted::Scale(ScaleTo::By(1)))),
            SIGTTOU => Some(Request::Operation(Wanted::Scale(ScaleTo::By(-1)))),
            // The signal only wakes the supervisor, which then reaps orphans.
            SIGCHLD => None,
            _ => {
                event!(signal_ignored, signal = by);
                None
            }
        }
    }

    /// Returns the request of a SIGHUP: a user requests a reload, or the terminal was closed. The
    /// shell and the kernel may both report the latter.
    fn meaning_of_hangup(&self) -> Option<Request> {
        let Hangup {
            stop,
            survived,
            reload,
        } = self.terminal.meaning_of(hangup::take(), terminal::is_open);
        if survived {
            event!(terminal_closed);
        }
        if stop {
            Some(Request::StopForTerminal)
        } else {
            reload.then_some(Request::Operation(Wanted::Reload))
        }
    }
}

/// Lets a stop signal end the process until the supervisor handles it: the kernel drops signals for
/// which the first process of a container has no handler, and reading the configuration may wait
/// for a name server.
pub fn stop_while_starting() {
    if !is_first_process() {
        return;
    }
    EARLY_STOP.store(true, Ordering::Relaxed);
    for signal in STOP_SIGNALS {
        // Fails only for a signal number that does not exist.
        let _ = signals::exit_on(signal, &EARLY_STOP);
    }
}

/// Ends the effect of [`stop_while_starting`]: the caller handles those signals, or need not.
pub fn handle_stops() {
    EARLY_STOP.store(false, Ordering::Relaxed);
}

fn delivery() -> io::Result<SignalDelivery<UnixStream, SignalOnly>> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    hangup::watch()?;
    let mut caught = HANDLED_SIGNALS.concat();
    if is_first_process() {
        caught.push(SIGCHLD);
    }
    SignalDelivery::with_pipe(read, write, SignalOnly, caught)
}
