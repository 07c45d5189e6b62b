//! Polls for more work for a while before sleeping (`busy_poll`).
//!
//! Waking a sleeping worker costs an interrupt or a signal from another CPU, a context switch and a
//! cold cache. A worker that polls instead receives the next message at once, at the cost of a CPU.
//!
//! Invariants: polling continues only for `busy_poll` after the last work, so an idle worker
//! sleeps; it ends with the first report of any kind, and with the next deadline; all of it is one
//! turn of the loop, like a sleep.
//!
//! It must not read the clock, except once after each poll without reports.

use std::time::Duration;

use uppercased_ctl::clock::Tick;

/// The polling period of a worker.
#[derive(Debug)]
pub(super) struct Spin {
    /// Time to poll after work; `None`: never.
    pub(super) duration: Option<Duration>,
    /// When polling ends.
    pub(super) until: Tick,
}

impl Spin {
    pub(super) const fn new(duration: Option<Duration>) -> Self {
        Self {
            duration,
            until: Tick::ZERO,
        }
    }

    /// Records work at `now`. The supervisor's messages do not count: it sends some only as a ping.
    pub(super) fn worked(&mut self, now: Tick) {
        if let Some(duration) = self.duration {
            self.until = now + duration;
        }
    }
}
