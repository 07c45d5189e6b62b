//! Which pending-output buffers are free: private, because the records alone show which are in use.

use std::collections::BTreeSet;

/// Free buffers whose pages are kept for the next slow peer; those of further ones are given back.
pub const WARM_BUFFERS: usize = 16;

/// The free buffers, by number.
#[derive(Debug)]
pub(super) struct Pool {
    /// Free, pages kept; the last one freed is the first one reused.
    warm: Vec<u32>,
    /// Free, pages given back.
    cold: Vec<u32>,
    /// Never used: all from this number on.
    fresh: u32,
    buffers: u32,
}

impl Pool {
    pub(super) const fn new(buffers: u32) -> Self {
        Self {
            warm: Vec::new(),
            cold: Vec::new(),
            fresh: 0,
            buffers,
        }
    }

    /// Returns the pool after the death of its process: every buffer but those in use is free, and
    /// the pages of those that were used before are given back with their next use.
    pub(super) fn with_used(buffers: u32, used: &BTreeSet<u32>) -> Self {
        let fresh = used.last().map_or(0, |last| last + 1).min(buffers);
        Self {
            warm: Vec::new(),
            cold: (0..fresh).filter(|buffer| !used.contains(buffer)).collect(),
            fresh,
            buffers,
        }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.warm.pop().or_else(|| self.cold.pop()).or_else(|| {
            let fresh = (self.fresh < self.buffers).then_some(self.fresh)?;
            self.fresh += 1;
            Some(fresh)
        })
    }

    /// Frees a buffer. Returns false if its pages are to be given back.
    pub(super) fn give(&mut self, buffer: u32) -> bool {
        let keep = self.warm.len() < WARM_BUFFERS;
        if keep {
            self.warm.push(buffer);
        } else {
            self.cold.push(buffer);
        }
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_runs_out_and_recovers() {
        let mut pool = Pool::new(18);
        let taken: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, (0..18).collect::<Vec<_>>());
        let kept = taken.iter().filter(|&&buffer| pool.give(buffer)).count();
        assert_eq!(kept, WARM_BUFFERS);
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), 18);
    }
}
