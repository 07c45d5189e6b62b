//! The wait of the event loop: its end and its reports.
//!
//! Invariants: the wait ends no later than the next deadline; a turn after which a deadline has
//! passed, or with any report but those of connections, has chores; with `busy_poll` it polls for a while
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
    /// Waits for readiness, for the next deadline or for `deadline`, which is the worker's.
    ///
    /// # Errors
    /// What `epoll_wait` returned; interruptions are not errors.
    pub fn wait(&mut self, reports: &mut Reports, deadline: Option<Tick>) -> io::Result<()> {
        let due = self.chores_due(deadline);
        if !self.busy_poll(reports, due)? {
            let timeout = if self.ready.is_empty() {
                due.map(|due| due.since(self.now))
            } else {
                Some(Duration::ZERO)
            };
            self.poll(reports, timeout)?;
        }
        self.now = clock::now();
        // A worker with a deadline is about to stop, and the end of a connection may be its last.
        self.has_chores =
            deadline.is_some() || self.is_moving() || due.is_some_and(|due| due <= self.now);
        self.memory.count(Counter::Turns, 1);
        Ok(())
    }

    /// Polls for reports. An interrupted wait, as after a long stop of the process, reports
    /// nothing, so the kernel is polled once more, without waiting.
    #[inline(always)]
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
    fn busy_poll(&mut self, reports: &mut Reports, due: Option<Tick>) -> io::Result<bool> {
        if self.spin.duration.is_none() || !self.ready.is_empty() {
            return Ok(false);
        }
        let until = due.map_or(self.spin.until, |due| due.min(self.spin.until));
        while self.now < until {
            self.poll(reports, Some(Duration::ZERO))?;
            if !reports.0.is_empty() {
                return Ok(true);
            }
            self.now = clock::now();
        }
        Ok(false)
    }

    /// Returns when a turn must do more than serve connections, if no report causes it earlier.
    fn chores_due(&self, deadline: Option<Tick>) -> Option<Tick> {
        // A burst may have left connections in a queue, which are not reported again.
        if self.is_accepting() && self.acceptors.iter().any(|acceptor| acceptor.ready) {
            return Some(self.now);
        }
        let due = earlier(deadline, self.gate.opens_at());
        let due = earlier(due, self.timers.next_deadline());
        let due = earlier(due, self.lines.due());
        earlier(due, self.migration_due())
    }
}

/// Returns the earlier of two times, as far as there are any.
#[inline]
fn earlier(one: Option<Tick>, other: Option<Tick>) -> Option<Tick> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
