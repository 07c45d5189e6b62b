//! How long something took, each time it happened: a histogram with its sum and the latest one.
//!
//! Invariant: the counts add up to `count`. The bounds are part of the format: an upgrade in place
//! goes on counting in the same cells. Other bounds ⇒ another name for `within`.
//! It must not measure anything itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a cell holds at most, in milliseconds: from a fork on an idle machine to a restart of very
/// many workers. What took longer has a cell of its own, the last one.
pub const BOUNDS_MS: [u64; 15] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000,
];

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How often.
    pub count: u64,
    /// All of them together, in microseconds.
    pub sum_us: u64,
    /// The latest one, in microseconds.
    pub last_us: u64,
    /// How many took at most as long as each of [`BOUNDS_MS`] and longer than the one before; last,
    /// those that took longer than all. Cells at the end that are zero are left out.
    pub within: Vec<u64>,
}

impl Durations {
    /// Whether it never happened.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one.
    pub fn note(&mut self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let cell = BOUNDS_MS.partition_point(|&bound| took > Duration::from_millis(bound));
        if self.within.len() <= cell {
            self.within.resize(cell + 1, 0);
        }
        self.within[cell] = self.within[cell].saturating_add(1);
        self.count = self.count.saturating_add(1);
        self.sum_us = self.sum_us.saturating_add(took_us);
        self.last_us = took_us;
    }

    /// Each bound, in seconds (the last one is infinite), and how many are in its cell.
    pub fn cells(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let seconds = |ms: &u64| Duration::from_millis(*ms).as_secs_f64();
        let bounds = BOUNDS_MS.iter().map(seconds).chain([f64::INFINITY]);
        let counts = self.within.iter().copied().chain(std::iter::repeat(0));
        bounds.zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_falls_into_cell_within_bound() {
        let mut durations = Durations::default();
        assert!(durations.is_empty());
        let spans = [0, 1000, 1001, 59_999_999, 60_000_000, 60_000_001, u64::MAX];
        for us in spans {
            durations.note(Duration::from_micros(us));
        }
        assert_eq!(durations.count, 7);
        assert_eq!((durations.sum_us, durations.last_us), (u64::MAX, u64::MAX));
        let cells: Vec<(f64, u64)> = durations.cells().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            cells,
            [(0.001, 2), (0.002, 1), (60.0, 2), (f64::INFINITY, 2)]
        );
        assert_eq!(durations.cells().count(), BOUNDS_MS.len() + 1);
        assert!(BOUNDS_MS.is_sorted());
    }
}
