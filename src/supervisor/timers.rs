//! Decides when the supervisor may act on deadlines: readiness comes before time.
//!
//! A deadline is acted on only after a poll of the event queue that began after it and that emptied
//! the queue: all events that came in time are then known. A poll that filled its buffer, or that
//! was interrupted, has not emptied it. If this process did not run for a while (stopped, frozen or
//! starved), its children may not have run either, so they get a grace period first.
//!
//! Invariant: no deadline is delayed forever; each delay is bounded.

use std::time::Duration;

use uppercased_ctl::clock::Tick;

/// Polls in a row that may leave the queue unemptied: with 256 reports each, more than there are
/// sources, so each source has been reported by then.
const FULL_POLLS_MAX: usize = 32;
/// This process did not run if a poll, or the work after it, took this much longer than planned.
const STALL: Duration = Duration::from_millis(500);
/// The longest grace period for children after this process was stalled.
const GRACE_MAX: Duration = Duration::from_secs(1);

/// One poll of the event queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollTimes {
    /// Its start.
    pub(super) began: Tick,
    /// Its latest end; `None`: with the next event.
    pub(super) until: Option<Tick>,
    /// Its end.
    pub(super) ended: Tick,
    /// Whether it received every report that was queued at its start.
    pub(super) emptied: bool,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    full_polls: usize,
    last_ended: Option<Tick>,
    held_until: Option<Tick>,
    /// Whether deadlines have been delayed since they were last acted on.
    held: bool,
}

impl Timers {
    /// Records a poll; returns the time up to which deadlines may be acted on, if any.
    pub(super) fn polled(&mut self, poll: PollTimes) -> Option<Tick> {
        let worked = self
            .last_ended
            .map_or(Duration::ZERO, |at| poll.began.since(at));
        let overslept = poll.until.map_or(Duration::ZERO, |until| {
            poll.ended.since(until.max(poll.began))
        });
        self.last_ended = Some(poll.ended);
        let stalled = worked.max(overslept);
        if stalled > STALL && !self.held {
            self.held = true;
            self.held_until = Some(poll.ended + stalled.min(GRACE_MAX));
        }
        if self.held_until.is_some_and(|until| poll.began < until) {
            return None;
        }
        self.held_until = None;
        if !poll.emptied && self.full_polls < FULL_POLLS_MAX {
            self.full_polls += 1;
            return None;
        }
        self.full_polls = 0;
        self.held = false;
        Some(poll.began)
    }

    /// Returns the latest end of the next poll when the next deadline is `due`.
    pub(super) fn wait_until(&self, due: Option<Tick>) -> Option<Tick> {
        match (due, self.held_until) {
            (Some(due), Some(held)) => Some(due.max(held)),
            (due, _) => due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    fn poll(began: u64, ended: u64, emptied: bool) -> PollTimes {
        PollTimes {
            began: at(began),
            until: Some(at(ended)),
            ended: at(ended),
            emptied,
        }
    }

    #[test]
    fn deadlines_wait_for_emptied_queue() {
        let mut timers = Timers::default();
        // It began before the deadline: the next poll decides.
        assert_eq!(timers.polled(poll(0, 100, true)), Some(at(0)));
        assert_eq!(timers.polled(poll(100, 100, false)), None);
        assert_eq!(timers.polled(poll(101, 101, true)), Some(at(101)));
        let mut full = 0;
        while timers.polled(poll(200, 200, false)).is_none() {
            full += 1;
        }
        assert_eq!(full, FULL_POLLS_MAX, "there is a bound");
    }

    #[test]
    fn stalled_process_gives_its_children_time() {
        let mut timers = Timers::default();
        timers.polled(poll(0, 10, true));
        let frozen = PollTimes {
            ended: at(60_000),
            ..poll(10, 20, true)
        };
        assert_eq!(timers.polled(frozen), None);
        assert_eq!(timers.wait_until(Some(at(20))), Some(at(61_000)));
        assert_eq!(timers.polled(poll(60_000, 60_500, true)), None);
        assert_eq!(timers.polled(poll(61_000, 61_000, true)), Some(at(61_000)));
        assert_eq!(timers.wait_until(Some(at(20))), Some(at(20)));

        // A process that is stalled repeatedly still acts on deadlines.
        let mut acted = 0;
        for turn in 0..10 {
            let began = 100_000 + turn * 10_000;
            let stalled = PollTimes {
                ended: at(began + 9_999),
                ..poll(began, began, true)
            };
            acted += usize::from(timers.polled(stalled).is_some());
        }
        assert!(acted >= 3, "{acted}");
    }
}
