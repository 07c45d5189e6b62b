//! The wait of the event loop: its end and its reports.
//!
//! Invariants: the wait ends no later than the next deadline; with `busy_poll` it polls for a while
//! before it sleeps ([`Spin`](super::spin::Spin)), which is still one turn of the loop.
//!
//! It must not act on the reports.

use std::io;
use std::time::Duration;

use mio::Events;

use super::Reactor;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::metrics::Counter;

/// Maximum readiness reports per turn.
const EVENTS_PER_TURN: usize = 1024;

/// The kernel's readiness reports of one turn. They are kept outside the [`Reactor`], so that it
/// can iterate over them and serve each at once.
#[derive(Debug)]
pub struct Reports(pub(super) Events);

impl Default for Reports {
    fn default() -> Self {
        Self(Events::with_capacity(EVENTS_PER_TURN))
    }
}

impl Reactor {
    /// Waits for readiness, for the next deadline or for `deadline`.
    ///
    /// # Errors
    /// What `epoll_wait` returned; interruptions are not errors.
    pub fn wait(&mut self, reports: &mut Reports, deadline: Option<Tick>) -> io::Result<()> {
        if !self.busy_poll(reports, deadline)? {
            self.poll(reports, self.timeout(deadline))?;
        }
        self.now = clock::now();
        self.memory.count(Counter::Turns, 1);
        Ok(())
    }

    /// Polls for reports. An interrupted wait, as after a long stop of the process, reports
    /// nothing, so the kernel is polled once more, without waiting.
    fn poll(&mut self, reports: &mut Reports, timeout: Option<Duration>) -> io::Result<()> {
        for timeout in [timeout, Some(Duration::ZERO)] {
            match self.poll.poll(&mut reports.0, timeout) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => reports.0.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Polls without sleeping, if there was work recently. Returns whether there were reports.
    fn busy_poll(&mut self, reports: &mut Reports, deadline: Option<Tick>) -> io::Result<bool> {
        if self.spin.duration.is_none() {
            return Ok(false);
        }
        let due = match self.timeout(deadline) {
            // There is work already.
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

    fn timeout(&self, deadline: Option<Tick>) -> Option<Duration> {
        let accepts = self.is_accepting() && self.acceptors.iter().any(|a| a.ready);
        if accepts || !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = [
            deadline,
            self.gate.opens_at(),
            self.timers.next_deadline(),
            self.migration_due(),
            self.lines.due(),
        ]
        .into_iter()
        .flatten()
        .min()?;
        Some(due.since(self.now))
    }
}
