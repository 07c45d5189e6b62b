//! Polling for more work for a while before sleeping (`busy_poll`).
//!
//! A worker that sleeps has to be woken: an interrupt or a word from another CPU, a context switch,
//! a cache gone cold. One that asks the kernel again and again instead has the next message as soon
//! as it is there, at the price of a CPU.
//!
//! Invariants: it goes on only as long as connections bring work, and for `busy_poll` after the last
//! of it, so an idle worker sleeps; it ends with the first report, whatever that is about, and with
//! the next deadline; all of it is one turn of the loop, as a sleep is, so whoever counts turns
//! cannot tell the difference.
//!
//! It must not read the clock but for its own end: once after each poll that brought nothing.

use std::io;
use std::time::Duration;

use super::{Reactor, Reports};
use uppercased_ctl::clock::{self, Tick};

/// When a worker goes on polling.
#[derive(Debug)]
pub(super) struct Spin {
    /// For so long after work; `None`: never.
    patience: Option<Duration>,
    /// Polling goes on till then.
    until: Tick,
}

impl Spin {
    pub(super) const fn new(patience: Option<Duration>) -> Self {
        Self {
            patience,
            until: Tick::ZERO,
        }
    }

    /// There was work at `now`. Orders from the supervisor are none: it sends some only to see
    /// whether we are there.
    pub(super) fn worked(&mut self, now: Tick) {
        if let Some(patience) = self.patience {
            self.until = now + patience;
        }
    }
}

impl Reactor {
    /// Polls without sleeping, if there was work lately: true if that brought something.
    pub(super) fn spins(
        &mut self,
        reports: &mut Reports,
        deadline: Option<Tick>,
    ) -> io::Result<bool> {
        if self.spin.patience.is_none() {
            return Ok(false);
        }
        let due = match self.timeout(deadline) {
            // There is something to do already.
            Some(Duration::ZERO) => return Ok(false),
            Some(timeout) => self.now + timeout,
            None => self.spin.until,
        };
        let until = self.spin.until.min(due);
        while self.now < until {
            self.poll(reports, Some(Duration::ZERO))?;
            if !reports.0.is_empty() {
                return Ok(true);
            }
            self.now = clock::now();
        }
        Ok(false)
    }
}
