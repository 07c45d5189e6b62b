//! Follows the number of CPUs with `workers = "auto"`, as when a pod is resized in place.
//!
//! [`Follower`] decides. It must not scale: the supervisor does.

use crate::config::RESIZE_SAMPLE_EVERY;
use crate::sys::quota::Quota;
use uppercased_ctl::clock::Tick;

mod follower;

use follower::Follower;

/// The CPUs of this process over time.
#[derive(Debug)]
pub(super) struct Resize {
    quota: Quota,
    follower: Follower,
    next: Tick,
}

impl Resize {
    /// Begins to count; `workers` is the number that `auto` gave.
    pub(super) fn new(workers: u16, now: Tick) -> Self {
        Self {
            quota: Quota::of_this_process(),
            follower: Follower::new(workers),
            next: now + RESIZE_SAMPLE_EVERY,
        }
    }

    /// Returns when to count next.
    pub(super) const fn deadline(&self) -> Tick {
        self.next
    }

    /// Counts the CPUs, if it is time. Returns the number of workers that they require in place of
    /// `workers`, if any.
    pub(super) fn handle_timeout(&mut self, workers: u16, now: Tick) -> Option<u16> {
        if now < self.next {
            return None;
        }
        self.next = now + RESIZE_SAMPLE_EVERY;
        // A count that fails is left out: the next one may succeed.
        let cpus = self.quota.cpus().ok()?;
        self.follower.sample(cpus, workers, now)
    }
}
