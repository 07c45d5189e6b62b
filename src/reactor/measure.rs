//! Decides which turns are measured.
//!
//! Reading the clock costs a tenth of the user time of a turn that serves one message. So of short
//! turns without chores only every [`TURNS_PER_SAMPLE`]th is measured, and its duration is counted
//! for all of them; every other turn is measured by itself.
//!
//! Invariant: each turn is counted once, at most [`TURNS_PER_SAMPLE`] turns without chores late.

use std::time::Duration;

use crate::config::{SHORT_TURN, TURNS_PER_SAMPLE};

/// The turns that were not measured, and what follows from the last one that was.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Turns without chores since the last of them that was measured.
    unmeasured: u64,
    /// Whether the turn without chores that was measured last was short.
    short: bool,
}

impl Sampling {
    /// Returns for how many turns the duration of this one is counted; `None` if it is not to be
    /// measured.
    #[inline]
    pub(super) fn turns(&mut self, has_chores: bool) -> Option<u64> {
        if has_chores {
            return Some(1);
        }
        self.unmeasured += 1;
        let due = !self.short || self.unmeasured >= TURNS_PER_SAMPLE;
        due.then(|| std::mem::take(&mut self.unmeasured))
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

    #[test]
    fn short_turns_are_sampled_and_counted_once() {
        let mut sampling = Sampling::default();
        assert_eq!(sampling.turns(false), Some(1), "nothing is known yet");
        sampling.note(SHORT_TURN / 2, false);
        for _ in 1..TURNS_PER_SAMPLE {
            assert_eq!(sampling.turns(false), None);
            assert_eq!(sampling.turns(true), Some(1));
        }
        assert_eq!(sampling.turns(false), Some(TURNS_PER_SAMPLE));
        assert_eq!(sampling.turns(false), None);
        sampling.note(SHORT_TURN, false);
        assert_eq!(sampling.turns(false), Some(2), "long turns are measured");
        assert_eq!(sampling.turns(false), Some(1));
    }

    #[test]
    fn chores_do_not_change_the_sampling() {
        let mut sampling = Sampling::default();
        assert_eq!(sampling.turns(false), Some(1));
        sampling.note(SHORT_TURN, false);
        assert_eq!(sampling.turns(true), Some(1));
        sampling.note(SHORT_TURN / 2, true);
        assert_eq!(sampling.turns(false), Some(1), "still long");
        sampling.note(SHORT_TURN / 2, false);
        assert_eq!(sampling.turns(false), None);
        assert_eq!(sampling.turns(true), Some(1));
        sampling.note(SHORT_TURN, true);
        assert_eq!(sampling.turns(false), None, "still short");
    }
}
