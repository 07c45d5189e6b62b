//! The durations of a repeated event: a histogram with its sum and the latest value.
//!
//! Invariant: the counts add up to `count`. The bounds are part of the format, since the same cells
//! continue after an upgrade in place; with other bounds, `within` needs another name. It must not
//! measure anything itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the cells in milliseconds: from a fork on an idle machine to a reload of very
/// many workers. Longer durations are in an additional last cell.
pub const BOUNDS_MS: [u64; 15] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000,
];

/// A histogram of durations; see the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// Number of events.
    pub count: u64,
    /// Sum of all durations, in microseconds.
    pub sum_us: u64,
    /// The latest duration, in microseconds.
    pub last_us: u64,
    /// Number of durations in each cell: at most the bound of [`BOUNDS_MS`] and above the previous
    /// one; the last cell has those above all bounds. Zeros at the end are omitted.
    pub within: Vec<u64>,
}

impl Durations {
    /// Returns whether there was no event.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a duration.
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

    /// Returns each bound in seconds (the last one is infinite) with its cell's count.
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
