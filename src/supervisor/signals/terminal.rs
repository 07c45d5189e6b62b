//! Stops the server when the terminal from which it was started is closed.
//!
//! SIGHUP has two meanings. A user or a service manager requests a reload; the closing of a
//! terminal ends the processes started there. A shell passes the latter on to its jobs, so the
//! sender alone is not enough: the terminal must no longer exist. A server that was started with
//! SIGHUP ignored (`nohup`) survives its terminal, and can still be reloaded.
//!
//! It must not act on a signal.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::sys::hangup::Senders;

/// The terminal at the start of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terminal {
    /// Whether there was a controlling terminal.
    controls: bool,
    /// Whether SIGHUP was ignored.
    survives: bool,
}

/// The meaning of SIGHUPs; several may have arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hangup {
    /// Whether the terminal was closed, and the server stops.
    pub(crate) stop: bool,
    /// Whether the terminal was closed, and the server survives that.
    pub(crate) survived: bool,
    /// Whether a reload is requested.
    pub(crate) reload: bool,
}

impl Terminal {
    /// Returns the terminal of this process. Must be called before SIGHUP is handled.
    pub(crate) fn of_this_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            controls: is_open(),
            survives: ignores_hangup(&status),
        }
    }

    /// Returns the meaning of signals from these senders. `open` returns whether the terminal still
    /// exists.
    pub(crate) fn meaning_of(self, senders: Senders, open: impl FnOnce() -> bool) -> Hangup {
        let passed_on = senders.leader && self.controls && !open();
        let closed = senders.kernel || passed_on;
        // A signal of an unknown sender counts as a user's.
        let reload = senders.others || (senders.leader && !passed_on) || !closed;
        Hangup {
            stop: closed && !self.survives,
            survived: closed && self.survives,
            reload,
        }
    }
}

/// Returns whether this process has a controlling terminal.
pub(crate) fn is_open() -> bool {
    let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
    let opened = File::options()
        .read(true)
        .custom_flags(flags)
        .open("/dev/tty");
    opened.is_ok()
}

/// Returns whether the mask of ignored signals in a `/proc/PID/status` includes SIGHUP, which is
/// number 1.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED_THERE: Terminal = Terminal {
        controls: true,
        survives: false,
    };
    const STOP: Hangup = Hangup {
        stop: true,
        survived: false,
        reload: false,
    };
    const RELOAD: Hangup = Hangup {
        stop: false,
        survived: false,
        reload: true,
    };

    fn from(kernel: bool, leader: bool, others: bool) -> Senders {
        Senders {
            kernel,
            leader,
            others,
        }
    }

    #[test]
    fn closed_terminal_stops_and_sent_hangup_reloads() {
        let meaning = |senders, open: bool| STARTED_THERE.meaning_of(senders, || open);
        assert_eq!(meaning(from(true, false, false), false), STOP);
        // The shell passes SIGHUP on, or its user has typed `kill -HUP %1`.
        assert_eq!(meaning(from(false, true, false), false), STOP);
        assert_eq!(meaning(from(false, true, false), true), RELOAD);
        assert_eq!(meaning(from(false, false, true), false), RELOAD);
        assert_eq!(meaning(from(false, false, false), false), RELOAD);
        assert_eq!(
            meaning(from(true, false, true), false),
            Hangup {
                reload: true,
                ..STOP
            }
        );
        // Without a terminal the leader of the session counts as any supervisor.
        let daemon = Terminal::default();
        assert_eq!(
            daemon.meaning_of(from(false, true, false), || false),
            RELOAD
        );
    }

    #[test]
    fn ignored_hangup_survives_terminal_only() {
        let terminal = Terminal {
            survives: true,
            ..STARTED_THERE
        };
        let survived = Hangup {
            survived: true,
            ..Hangup::default()
        };
        assert_eq!(
            terminal.meaning_of(from(true, false, false), || false),
            survived
        );
        assert_eq!(
            terminal.meaning_of(from(false, false, true), || false),
            RELOAD
        );
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000000001\n"));
        assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
