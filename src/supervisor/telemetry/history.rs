//! Messages per second of the last minutes, of the server or of one slot, so that a dashboard shows
//! them as soon as it starts.
//!
//! Bounded. The counter is sampled once a second; after a longer pause, as of a stopped process, the
//! seconds in between get its average. It must not read a clock.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{HISTORY_EVERY, HISTORY_LEN};
use uppercased_ctl::clock::Tick;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    /// Messages per second, oldest first.
    rates: VecDeque<u32>,
    /// The latest sample of the counter.
    latest: Option<(Tick, u64)>,
}

impl History {
    /// Returns when the next sample is due.
    pub(crate) fn due(&self) -> Tick {
        self.latest.map_or(Tick::ZERO, |(at, _)| at + HISTORY_EVERY)
    }

    /// Adds a sample of the counter of messages.
    pub(crate) fn sample(&mut self, messages: u64, now: Tick) {
        let Some((at, before)) = self.latest.replace((now, messages)) else {
            return;
        };
        let seconds = now.since(at).max(Duration::from_millis(1)).as_secs_f64();
        let rate = (messages.saturating_sub(before) as f64 / seconds).round() as u32;
        let missed = (seconds.round() as usize).clamp(1, HISTORY_LEN);
        for _ in 0..missed {
            if self.rates.len() == HISTORY_LEN {
                self.rates.pop_front();
            }
            self.rates.push_back(rate);
        }
    }

    /// Returns the messages of each of the last seconds, at most `count`, oldest first.
    pub(crate) fn latest(&self, count: usize) -> Vec<u32> {
        let older = self.rates.len().saturating_sub(count);
        self.rates.iter().skip(older).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_averages_over_missed_seconds() {
        let mut history = History::default();
        assert_eq!(history.due(), Tick::ZERO);
        history.sample(1000, Tick::from_millis(5_000));
        assert_eq!(history.due(), Tick::from_millis(6_000));
        history.sample(1500, Tick::from_millis(6_000));
        history.sample(1510, Tick::from_millis(7_010));
        history.sample(4510, Tick::from_millis(10_010));
        // Slots of an implausible worker were left out.
        history.sample(10, Tick::from_millis(11_000));
        assert_eq!(history.latest(9), [500, 10, 1000, 1000, 1000, 0]);
        assert_eq!(history.latest(2), [1000, 0]);
    }

    #[test]
    fn history_is_bounded() {
        let mut history = History::default();
        history.sample(0, Tick::ZERO);
        for second in 1..2000 {
            history.sample(second, Tick::from_millis(second * 1000));
        }
        assert_eq!(history.latest(usize::MAX), vec![1; HISTORY_LEN]);
        history.sample(u64::MAX, Tick::from_millis(u64::MAX / 1_000_000));
        assert_eq!(history.latest(usize::MAX).len(), HISTORY_LEN);
    }
}
