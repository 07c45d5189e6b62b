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

use std::time::Duration;

use uppercased_ctl::clock::Tick;

/// When a worker goes on polling.
#[derive(Debug)]
pub(super) struct Spin {
    /// For so long after work; `None`: never.
    pub(super) duration: Option<Duration>,
    /// Polling goes on till then.
    pub(super) until: Tick,
}

impl Spin {
    pub(super) const fn new(duration: Option<Duration>) -> Self {
        Self {
            duration,
            until: Tick::ZERO,
        }
    }

    /// There was work at `now`. Orders from the supervisor are none: it sends some only to see
    /// whether we are there.
    pub(super) fn worked(&mut self, now: Tick) {
        if let Some(duration) = self.duration {
            self.until = now + duration;
        }
    }
}
