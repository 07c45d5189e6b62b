//! Counts the starts of one process and its restarts within the last ten minutes.
//!
//! Bounded: one counter per minute. It must not read a clock.

use serde::{Deserialize, Serialize};

use uppercased_ctl::clock::{Tick, millis};

/// The window of [`Starts::restarts`] in minutes.
const MINUTES: usize = 10;

/// The starts of one process: a worker of a slot, a keeper, the admin process, the supervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Starts {
    total: u64,
    /// The minute of the latest restart, counted from the start of the system.
    minute: u64,
    /// Restarts in each of the last minutes; minute `m` is at index `m % MINUTES`.
    restarts: [u32; MINUTES],
}

impl Starts {
    /// Counts a start; each but the first one is a restart.
    pub(crate) fn note(&mut self, now: Tick) {
        if self.total > 0 {
            self.note_restart(now);
        }
        self.total = self.total.saturating_add(1);
    }

    /// Counts a restart that is no new start: another process continues.
    pub(crate) fn note_restart(&mut self, now: Tick) {
        let minute = minute_of(now);
        for empty in self.minute + 1..=minute.min(self.minute + MINUTES as u64) {
            self.restarts[index_of(empty)] = 0;
        }
        self.minute = self.minute.max(minute);
        let count = &mut self.restarts[index_of(self.minute)];
        *count = count.saturating_add(1);
    }

    /// Returns the number of all starts.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Returns the restarts within the last ten minutes, to the minute.
    pub(crate) fn restarts(&self, now: Tick) -> u32 {
        let first = (minute_of(now) + 1).saturating_sub(MINUTES as u64);
        let oldest = (self.minute + 1).saturating_sub(MINUTES as u64);
        let minutes = first.max(oldest)..=self.minute;
        let counts = minutes.map(|minute| self.restarts[index_of(minute)]);
        counts.fold(0, u32::saturating_add)
    }
}

fn minute_of(now: Tick) -> u64 {
    millis(now.since(Tick::ZERO)) / 60_000
}

const fn index_of(minute: u64) -> usize {
    (minute % MINUTES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minute(number: u64) -> Tick {
        Tick::from_millis(number * 60_000 + 7)
    }

    #[test]
    fn first_start_is_no_restart() {
        let mut starts = Starts::default();
        starts.note(minute(3));
        assert_eq!((starts.total(), starts.restarts(minute(3))), (1, 0));
        starts.note(minute(3));
        starts.note_restart(minute(4));
        assert_eq!((starts.total(), starts.restarts(minute(4))), (2, 2));
    }

    #[test]
    fn restarts_leave_window_after_ten_minutes() {
        let mut starts = Starts::default();
        for (now, counted) in [(100, 1), (104, 2), (109, 3), (110, 3), (150, 1), (159, 2)] {
            starts.note_restart(minute(now));
            assert_eq!(starts.restarts(minute(now)), counted, "{now}");
        }
        assert_eq!(starts.restarts(minute(160)), 1);
        assert_eq!(starts.restarts(minute(168)), 1);
        assert_eq!(starts.restarts(minute(169)), 0);
        assert_eq!(starts.restarts(minute(u32::MAX.into())), 0);
        let mut starts = Starts::default();
        starts.note_restart(minute(2));
        assert_eq!(starts.restarts(minute(5)), 1, "the system has just started");
    }
}
