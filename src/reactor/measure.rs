//! Decides which turns are measured.
//!
//! Reading the clock costs a tenth of the user time of a turn that serves one message. So of short
//! turns without chores only every [`TURNS_PER_SAMPLE`]th is measured, and the first one after
//! [`SAMPLE_INTERVAL`]; its duration is counted for all of them. Every other turn is measured by
//! itself.
//!
//! Invariant: each turn is counted once, at most [`TURNS_PER_SAMPLE`] turns without chores late.

use std::time::Duration;

use crate::config::{SAMPLE_INTERVAL, SHORT_TURN, TURNS_PER_SAMPLE};
use uppercased_ctl::clock::Tick;

/// The turns that were not measured, and what follows from the last one that was.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Turns without chores since the last of them that was measured.
    unmeasured: u64,
    /// Whether the turn without chores that was measured last was short.
    short: bool,
    /// The first time at which the next one is measured in any case.
    due: Tick,
}

impl Sampling {
    /// Returns for how many turns the duration of this one, which began at `now`, is counted; `None`
    /// if it is not to be measured.
    #[inline]
    pub(super) fn turns(&mut self, has_chores: bool, now: Tick) -> Option<u64> {
        if has_chores {
            return Some(1);
        }
        self.unmeasured += 1;
        let is_due = !self.short || self.unmeasured >= TURNS_PER_SAMPLE || self.due <= now;
        is_due.then(|| {
            self.due = now + SAMPLE_INTERVAL;
            std::mem::take(&mut self.unmeasured)
        })
    }

    /// Takes the duration of a turn that was measured. One with chores predicts nothing about those
    /// without: a short one does not make long ones be sampled, and a long one does not let the turn
    /// after it, which serves what has piled up, count for all before it.
    #[inline]
    pub(super) fn note(&mut self, took: Duration, has_chores: bool) {
        if !has_chores {
            self.short = took < SHORT_TURN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick::from_millis(1000);

    #[test]
    fn short_turns_are_sampled_and_counted_once() {
        let mut sampling = Sampling::default();
        assert_eq!(sampling.turns(false, NOW), Some(1), "nothing is known yet");
        sampling.note(SHORT_TURN / 2, false);
        for _ in 1..TURNS_PER_SAMPLE {
            assert_eq!(sampling.turns(false, NOW), None);
            assert_eq!(sampling.turns(true, NOW), Some(1));
        }
        assert_eq!(sampling.turns(false, NOW), Some(TURNS_PER_SAMPLE));
        assert_eq!(sampling.turns(false, NOW), None);
        sampling.note(SHORT_TURN, false);
        assert_eq!(
            sampling.turns(false, NOW),
            Some(2),
            "long turns are measured"
        );
        assert_eq!(sampling.turns(false, NOW), Some(1));
    }

    #[test]
    fn chores_do_not_change_the_sampling() {
        let mut sampling = Sampling::default();
        assert_eq!(sampling.turns(false, NOW), Some(1));
        sampling.note(SHORT_TURN, false);
        assert_eq!(sampling.turns(true, NOW), Some(1));
        sampling.note(SHORT_TURN / 2, true);
        assert_eq!(sampling.turns(false, NOW), Some(1), "still long");
        sampling.note(SHORT_TURN / 2, false);
        assert_eq!(sampling.turns(false, NOW), None);
        assert_eq!(sampling.turns(true, NOW), Some(1));
        sampling.note(SHORT_TURN, true);
        assert_eq!(sampling.turns(false, NOW), None, "still short");
    }

    #[test]
    fn rare_turns_are_all_measured() {
        let mut sampling = Sampling::default();
        let mut now = NOW;
        assert_eq!(sampling.turns(false, now), Some(1));
        sampling.note(SHORT_TURN / 2, false);
        now = now + SAMPLE_INTERVAL / 2;
        assert_eq!(sampling.turns(false, now), None);
        now = now + SAMPLE_INTERVAL / 2;
        assert_eq!(sampling.turns(false, now), Some(2));
        now = now + SAMPLE_INTERVAL;
        assert_eq!(sampling.turns(false, now), Some(1));
    }
}
