//! Decides when the number of workers follows the number of CPUs.
//!
//! Pure. Invariants: a number that an operator has set is never changed; a change needs several
//! counts in a row that agree, and is followed by a rest, which grows if the change fails.

use std::time::Duration;

use crate::config::{RESIZE_REST, RESIZE_REST_MAX, RESIZE_SAMPLES, WORKERS};
use uppercased_ctl::clock::Tick;

/// The numbers of CPUs and workers over time.
#[derive(Debug)]
pub(super) struct Follower {
    /// The number of workers that was last equal to that of CPUs.
    followed: u16,
    /// The number that was required last, until it is reached.
    required: Option<u16>,
    /// Another number of CPUs, and how many counts in a row gave it.
    candidate: (u16, u32),
    not_before: Tick,
    rest: Duration,
}

impl Follower {
    /// Returns a follower whose workers are as many as the CPUs.
    pub(super) const fn new(workers: u16) -> Self {
        Self {
            followed: workers,
            required: None,
            candidate: (workers, 0),
            not_before: Tick::ZERO,
            rest: RESIZE_REST,
        }
    }

    /// Adds a count. Returns the number of workers that is required in place of `workers`, if any.
    pub(super) fn sample(&mut self, cpus: u16, workers: u16, now: Tick) -> Option<u16> {
        let cpus = cpus.clamp(WORKERS.least, WORKERS.most);
        if self.candidate.0 != cpus {
            self.candidate = (cpus, 0);
        }
        self.candidate.1 = self.candidate.1.saturating_add(1);
        if workers != self.followed && (workers == cpus || Some(workers) == self.required) {
            self.followed = workers;
            self.required = None;
            self.rest = RESIZE_REST;
        }
        if workers == cpus {
            return None;
        }
        // An operator has set another number.
        if workers != self.followed {
            return None;
        }
        if self.candidate.1 < RESIZE_SAMPLES || now < self.not_before {
            return None;
        }
        self.not_before = now + self.rest;
        self.rest = (self.rest * 2).min(RESIZE_REST_MAX);
        self.required = Some(cpus);
        Some(cpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::from_millis(seconds * 1000)
    }

    #[test]
    fn workers_follow_cpus_after_several_counts() {
        let mut follower = Follower::new(2);
        assert_eq!(follower.sample(2, 2, at(0)), None);
        assert_eq!(follower.sample(4, 2, at(1)), None);
        assert_eq!(follower.sample(4, 2, at(2)), None);
        assert_eq!(follower.sample(4, 2, at(3)), Some(4));
        // While the operation is in progress.
        assert_eq!(follower.sample(4, 3, at(4)), None);
        assert_eq!(follower.sample(4, 4, at(5)), None);
        // The quota is reduced again: not before the rest has passed.
        for second in 6..13 {
            assert_eq!(follower.sample(1, 4, at(second)), None, "{second}");
        }
        assert_eq!(follower.sample(1, 4, at(13)), Some(1));
    }

    #[test]
    fn cpus_may_return_before_next_count() {
        let mut follower = Follower::new(2);
        let required = (0..3).filter_map(|second| follower.sample(1, 2, at(second)));
        assert_eq!(required.last(), Some(1));
        // No count has seen one worker on one CPU.
        let required = (3..20).find_map(|second| follower.sample(2, 1, at(second)));
        assert_eq!(required, Some(2));
    }

    #[test]
    fn short_change_of_cpus_changes_nothing() {
        let mut follower = Follower::new(2);
        for second in 0..100 {
            let cpus = if second % 3 == 0 { 2 } else { 8 };
            assert_eq!(follower.sample(cpus, 2, at(second)), None);
        }
    }

    #[test]
    fn number_of_operator_is_kept() {
        let mut follower = Follower::new(2);
        for second in 0..20 {
            assert_eq!(follower.sample(4, 8, at(second)), None);
        }
        // The operator returns to the number of CPUs.
        assert_eq!(follower.sample(4, 4, at(20)), None);
        let resized = (21..40).find_map(|second| follower.sample(3, 4, at(second)));
        assert_eq!(resized, Some(3));
    }

    #[test]
    fn failed_change_is_retried_with_growing_rest() {
        let mut follower = Follower::new(2);
        let tried: Vec<u64> = (0..200)
            .filter(|second| follower.sample(1, 2, at(*second)).is_some())
            .collect();
        assert_eq!(tried, [2, 12, 32, 72, 152]);
    }

    #[test]
    fn number_of_workers_stays_in_range() {
        let mut follower = Follower::new(2);
        let resized = (0..9).find_map(|second| follower.sample(u16::MAX, 2, at(second)));
        assert_eq!(resized, Some(WORKERS.most));
    }
}
