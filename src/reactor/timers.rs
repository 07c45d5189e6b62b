//! Deadlines of connections: one for each descriptor number, in a timer wheel.
//!
//! Arming, moving and disarming touch a constant number of words; expiring visits the buckets that
//! time has passed. Nothing is allocated after the start, and a connection without a deadline costs
//! nothing: the tables are zero pages until they are written.
//!
//! Invariants: a number is in at most one bucket; nothing fires before it is due, and it fires at
//! most [`GRANULARITY`] late, or one part in [`PRECISION`] of the time that it was armed for
//! (rounded up, so that a wait never ends just before the deadline and spins). So long deadlines
//! share few buckets, and an idle process wakes rarely. It must not read the clock.

use std::time::Duration;

use uppercased_ctl::clock::Tick;

/// Deadlines are kept to this precision.
pub const GRANULARITY: Duration = Duration::from_millis(8);

/// A deadline may fire late by this fraction (1/n) of the time that was left when it was armed.
pub const PRECISION: u64 = 32;

const WORDS: usize = u16::BITS as usize;
const BUCKETS: usize = WORDS * 64;
/// End of a list; numbers are stored plus one, so that zero pages are empty lists.
const NIL: u32 = 0;

/// The wheel. A deadline beyond one turn of it (8 s) stays in its bucket for as many turns.
#[derive(Debug)]
pub struct Timers {
    heads: Vec<u32>,
    /// Which buckets are not empty, and which of these words are not zero.
    occupied: [u64; WORDS],
    occupied_words: u16,
    next: Vec<u32>,
    previous: Vec<u32>,
    /// When each number is due, in units of the granularity; 0 if it is not armed.
    due: Vec<u64>,
    /// Everything due up to this unit has fired.
    reached: u64,
}

impl Timers {
    /// Returns a wheel for descriptor numbers below `descriptors`.
    #[must_use]
    pub fn new(descriptors: u32, now: Tick) -> Self {
        let count = descriptors as usize;
        Self {
            heads: vec![NIL; BUCKETS],
            occupied: [0; WORDS],
            occupied_words: 0,
            next: vec![NIL; count],
            previous: vec![NIL; count],
            due: vec![0; count],
            reached: units_down(now),
        }
    }

    /// Sets the deadline of `fd`, in place of the one it may have.
    pub fn arm(&mut self, fd: u32, due: Tick, now: Tick) {
        let unit = units_rounded(due, now).max(self.reached + 1);
        if self.due[fd as usize] == unit {
            return;
        }
        self.disarm(fd);
        let bucket = bucket_of(unit);
        let head = self.heads[bucket];
        self.due[fd as usize] = unit;
        self.next[fd as usize] = head;
        self.previous[fd as usize] = NIL;
        if head != NIL {
            self.previous[head as usize - 1] = fd + 1;
        }
        self.heads[bucket] = fd + 1;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.occupied_words |= 1 << (bucket / 64);
    }

    /// Removes the deadline of `fd`, if it has one.
    pub fn disarm(&mut self, fd: u32) {
        let unit = std::mem::take(&mut self.due[fd as usize]);
        if unit == 0 {
            return;
        }
        let (previous, next) = (self.previous[fd as usize], self.next[fd as usize]);
        if next != NIL {
            self.previous[next as usize - 1] = previous;
        }
        if previous != NIL {
            self.next[previous as usize - 1] = next;
            return;
        }
        let bucket = bucket_of(unit);
        self.heads[bucket] = next;
        if next == NIL {
            let word = &mut self.occupied[bucket / 64];
            *word &= !(1 << (bucket % 64));
            if *word == 0 {
                self.occupied_words &= !(1 << (bucket / 64));
            }
        }
    }

    /// Moves every number due by `now` to `fired`; they are no longer armed.
    pub fn expire(&mut self, now: Tick, fired: &mut Vec<u32>) {
        let until = units_down(now);
        let buckets = until.saturating_sub(self.reached).min(BUCKETS as u64);
        for unit in self.reached + 1..=self.reached + buckets {
            let mut entry = self.heads[bucket_of(unit)];
            while entry != NIL {
                let fd = entry - 1;
                entry = self.next[fd as usize];
                if self.due[fd as usize] <= until {
                    self.disarm(fd);
                    fired.push(fd);
                }
            }
        }
        self.reached = self.reached.max(until);
    }

    /// Returns whether `fd` has a deadline that fires in time for `due`.
    #[must_use]
    #[inline]
    pub fn is_armed_by(&self, fd: u32, due: Tick, now: Tick) -> bool {
        let unit = self.due[fd as usize];
        unit != 0 && (unit <= units_up(due) || unit <= units_rounded(due, now))
    }

    /// Returns when to call [`Timers::expire`] next. Possibly early, never late.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        if self.occupied_words == 0 {
            return None;
        }
        let first = bucket_of(self.reached + 1);
        let mut word = first / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (first % 64));
        if bits == 0 {
            // Around the wheel, and back into the part of the first word that was masked off.
            let later = self.occupied_words.rotate_right(word as u32 + 1);
            word = (word + 1 + later.trailing_zeros() as usize) % WORDS;
            bits = self.occupied[word];
        }
        let bucket = word * 64 + bits.trailing_zeros() as usize;
        let ahead = (bucket + BUCKETS - first) % BUCKETS;
        Some(at_unit(self.reached + 1 + ahead as u64))
    }
}

/// Returns the time to arm for a deadline that must not fire late by [`PRECISION`]: it fires before
/// the deadline if that is far away, and is armed again then.
#[must_use]
pub fn ahead(due: Tick, now: Tick) -> Tick {
    let left = due.since(now);
    now + (left - left / PRECISION as u32)
}

const fn granularity_ns() -> u64 {
    GRANULARITY.as_nanos() as u64
}

const fn units_down(at: Tick) -> u64 {
    at.as_nanos() / granularity_ns()
}

const fn units_up(at: Tick) -> u64 {
    at.as_nanos().div_ceil(granularity_ns())
}

/// Returns the unit in which `due` fires: a multiple of a power of two that grows with the time
/// left.
const fn units_rounded(due: Tick, now: Tick) -> u64 {
    let unit = units_up(due);
    let slack = unit.saturating_sub(units_down(now)) / PRECISION;
    let step = 1 << (slack | 1).ilog2();
    unit.saturating_add(step - 1) & !(step - 1)
}

const fn at_unit(unit: u64) -> Tick {
    Tick::from_nanos(unit.saturating_mul(granularity_ns()))
}

const fn bucket_of(unit: u64) -> usize {
    (unit % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    fn fired(timers: &mut Timers, now: Tick) -> Vec<u32> {
        let mut fired = Vec::new();
        timers.expire(now, &mut fired);
        fired.sort_unstable();
        fired
    }

    #[test]
    fn timer_fires_once_when_due() {
        let mut timers = Timers::new(8, ms(1000));
        let now = ms(1000);
        timers.arm(3, ms(1050), now);
        timers.arm(4, ms(1050), now);
        timers.arm(5, ms(60_000), now);
        assert!(timers.is_armed_by(3, ms(1050), now));
        assert!(!timers.is_armed_by(3, ms(1000), now));
        assert!(timers.is_armed_by(5, ms(60_000), now));
        assert!(!timers.is_armed_by(5, ms(58_000), now));
        assert_eq!(timers.next_deadline(), Some(ms(1056)));
        assert!(fired(&mut timers, ms(1049)).is_empty());
        timers.disarm(4);
        assert_eq!(fired(&mut timers, ms(1056)), [3]);
        assert!(fired(&mut timers, ms(59_999)).is_empty());
        assert_eq!(fired(&mut timers, ms(60_000 + 59_000 / 32)), [5]);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn deadline_armed_ahead_fires_in_time() {
        let due = ms(3_600_000);
        let (mut timers, mut now, mut wakes) = (Timers::new(2, ms(0)), ms(0), 0);
        while now < due {
            let at = ahead(due, now);
            assert!(!timers.is_armed_by(1, at, now), "{now:?}");
            timers.arm(1, at, now);
            while fired(&mut timers, now).is_empty() {
                now = timers.next_deadline().unwrap().max(now);
            }
            wakes += 1;
        }
        assert!(now.since(due) <= 2 * GRANULARITY, "{now:?}");
        assert!(wakes <= 6, "{wakes} wakes");
    }

    #[test]
    fn past_deadline_fires_at_next_unit() {
        let mut timers = Timers::new(2, ms(800));
        timers.arm(1, ms(10), ms(800));
        assert_eq!(timers.next_deadline(), Some(ms(808)));
        assert_eq!(fired(&mut timers, ms(808)), [1]);
    }

    #[test]
    fn long_deadlines_rarely_wake_idle_process() {
        for (duration, wakes_at_most) in [(60_000, 2), (600_000, 1), (10_000, 5)] {
            let mut timers = Timers::new(2000, ms(0));
            // Connections that came one after the other, and are all silent.
            for fd in 0..2000 {
                let came = ms(u64::from(fd) * 4);
                timers.arm(fd, came + Duration::from_millis(duration), came);
            }
            let (mut now, mut wakes) = (ms(8_000), 0);
            while let Some(next) = timers.next_deadline().filter(|next| *next <= ms(9_500)) {
                now = next.max(now + Duration::from_nanos(1));
                fired(&mut timers, now);
                wakes += 1;
            }
            assert!(wakes <= 2 * wakes_at_most, "{duration} ms: {wakes} wakes");
        }
    }

    proptest! {
        /// Against the plain table of deadlines: nothing early, nothing missed, and the next
        /// deadline never lies after the earliest one.
        #[test]
        fn wheel_agrees_with_a_table(
            steps in prop::collection::vec((0u32..12, 0u64..20_000, 0u64..3_000, 0u8..4), 1..200),
        ) {
            let mut now = 5_000;
            let mut timers = Timers::new(12, ms(now));
            let mut table = BTreeMap::new();
            for (fd, ahead, passes, what) in steps {
                if what == 0 {
                    timers.disarm(fd);
                    table.remove(&fd);
                } else {
                    timers.arm(fd, ms(now + ahead), ms(now));
                    // When it fires at the latest.
                    table.insert(fd, (now + ahead, now + ahead + ahead / PRECISION));
                }
                if let Some(earliest) = table.values().map(|(_, last)| last).min() {
                    let late = ms((*earliest).max(now)) + GRANULARITY * 2;
                    prop_assert!(timers.next_deadline().is_some_and(|at| at <= late));
                }
                now += passes;
                for fd in fired(&mut timers, ms(now)) {
                    prop_assert!(table.remove(&fd).is_some_and(|(due, _)| due <= now));
                }
                let slack = GRANULARITY.as_millis() as u64 * 2;
                prop_assert!(table.values().all(|&(_, last)| last + slack > now));
            }
        }
    }
}
