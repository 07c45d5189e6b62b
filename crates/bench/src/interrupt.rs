//! Handles Ctrl-C and the other signals that end a measurement early.
//!
//! The first signal ends the load gracefully: the last answers may arrive, and commands and the
//! server get a grace period. A second one (`timeout` sends two) skips that. Both report the
//! results so far, end every child and remove every file.
//!
//! Invariants: a signal that was ignored at the start, as under `nohup`, stays ignored. Every wait
//! of a measurement checks [`Interrupt::haste`] at least every [`STEP`].
#![expect(
    clippy::disallowed_methods,
    reason = "the load generator is a process of its own, and has threads; the server has none"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use procfs::process::Process;
use signal_hook::iterator::Signals;

/// Interval at which a wait checks for an interrupt.
pub(super) const STEP: Duration = Duration::from_millis(100);

/// Signals that end a measurement.
const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// How urgently the measurement must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Haste {
    /// Not interrupted.
    None,
    /// Early, gracefully.
    Soon,
    /// At once: anything that can be killed or omitted is not waited for.
    Now,
}

/// Counts the signals received.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicU32>);

impl Interrupt {
    /// Handles the signals that end this process by default and are not ignored.
    ///
    /// # Errors
    /// The system rejected a handler.
    pub(super) fn watch() -> io::Result<Self> {
        let ignored = ignored();
        let is_ignored = |signal: Signal| ignored & (1 << (signal as u64 - 1)) != 0;
        let watched = SIGNALS.into_iter().filter(|signal| !is_ignored(*signal));
        let mut signals = Signals::new(watched.map(|signal| signal as i32))?;
        let interrupt = Self::default();
        let counted = interrupt.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                counted.0.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(interrupt)
    }

    /// Returns the number of signals received.
    #[must_use]
    pub(super) fn signals(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns how urgently the measurement must end.
    #[must_use]
    pub(super) fn haste(&self) -> Haste {
        match self.signals() {
            0 => Haste::None,
            1 => Haste::Soon,
            _ => Haste::Now,
        }
    }
}

/// Returns the signals ignored by this process, as a mask; none if `/proc` is not mounted.
fn ignored() -> u64 {
    let status = Process::myself().and_then(|process| process.status());
    status.map_or(0, |status| status.sigign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_signal_is_more_urgent() {
        let interrupt = Interrupt::default();
        let mut seen = vec![interrupt.haste()];
        for _ in 0..3 {
            interrupt.0.fetch_add(1, Ordering::Relaxed);
            seen.push(interrupt.haste());
        }
        let expected = [Haste::None, Haste::Soon, Haste::Now, Haste::Now];
        assert_eq!(seen, expected);
    }
}
