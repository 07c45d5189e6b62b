//! Rate-limits log lines that a peer can cause: one line per second and kind, with the number of
//! events counted. Pure.
//!
//! Invariants: every event is counted in exactly one line, which is written at most a second after
//! the previous one; a kind costs two words of memory. Must not: write, or read the clock.

use std::time::Duration;

use uppercased_ctl::clock::Tick;

/// Minimum interval between two lines of a kind.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Counts not yet written, by kind (a number below `KINDS`).
#[derive(Debug)]
pub struct Tally<const KINDS: usize> {
    kinds: [Kind; KINDS],
    /// The earliest time at which a count is due without another event.
    due: Option<Tick>,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    unwritten: u64,
    next: Tick,
}

impl<const KINDS: usize> Default for Tally<KINDS> {
    fn default() -> Self {
        let kind = Kind {
            unwritten: 0,
            next: Tick::ZERO,
        };
        Self {
            kinds: [kind; KINDS],
            due: None,
        }
    }
}

impl<const KINDS: usize> Tally<KINDS> {
    /// Counts an event of `kind`. Returns the number of events if a line is to be written now.
    pub fn note(&mut self, kind: usize, now: Tick) -> Option<u64> {
        let one = &mut self.kinds[kind];
        one.unwritten += 1;
        if now < one.next {
            self.due = Some(self.due.map_or(one.next, |due| due.min(one.next)));
            return None;
        }
        one.next = now + LINE_EVERY;
        Some(std::mem::take(&mut one.unwritten))
    }

    /// Returns when to call [`Tally::overdue`]; `None` if everything is written.
    #[must_use]
    pub const fn due(&self) -> Option<Tick> {
        self.due
    }

    /// Returns a kind and its count to be written now. Call it until it returns `None`.
    pub fn overdue(&mut self, now: Tick) -> Option<(usize, u64)> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        let waiting = |one: &Kind| one.unwritten > 0;
        let kinds = &mut self.kinds;
        let found = kinds.iter().position(|one| waiting(one) && one.next <= now);
        let Some(kind) = found else {
            let next = kinds.iter().filter(|one| waiting(one)).map(|one| one.next);
            self.due = next.min();
            return None;
        };
        let one = &mut kinds[kind];
        one.next = now + LINE_EVERY;
        Some((kind, std::mem::take(&mut one.unwritten)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_writes_one_line_per_second() {
        let mut tally = Tally::<2>::default();
        let at = Tick::from_millis;
        let mut lines = Vec::new();
        for ms in 0..2_500 {
            while let Some(line) = tally.overdue(at(ms)) {
                lines.push((ms, line));
            }
            if let Some(count) = tally.note(0, at(ms)) {
                lines.push((ms, (0, count)));
            }
        }
        assert_eq!(tally.note(1, at(2_500)), Some(1), "kinds do not share");
        assert_eq!(tally.due(), Some(at(3_000)));
        assert_eq!(tally.overdue(at(2_999)), None);
        lines.extend(tally.overdue(at(3_000)).map(|line| (3_000, line)));
        assert_eq!(tally.overdue(at(3_000)), None);
        assert_eq!(tally.due(), None, "an idle process has nothing to wake for");
        let written: u64 = lines.iter().map(|(_, (_, count))| count).sum();
        assert_eq!((lines.len(), written), (4, 2_500), "{lines:?}");
    }
}
