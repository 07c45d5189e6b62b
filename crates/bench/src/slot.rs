//! A place for one connection of the load, which it drives by the pattern.
//!
//! Invariants: a slot is on the agenda at most once; the latency of a planned message counts from
//! its planned time, however late it is sent; no message begins outside the load's time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;

use super::connection::{Connection, Received, Sent};
use super::failure::Fault;
use super::options::{Arrivals, Close, Pattern};
use super::plan::{Pace, Plan};
use super::record::Recorder;
use super::socket::Wire;
use super::truth::{PIECE_MAX, Truth};
use uppercased_ctl::clock::{self, Tick};

/// Receives per turn of one connection before the others are served: at most 1 MiB.
const RECEIVES_PER_TURN: u32 = 16;

/// State shared by all slots of a thread.
#[derive(Debug)]
pub(super) struct Work<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The bytes to send and to expect.
    pub truth: &'a Truth,
    /// Records events.
    pub recorder: Recorder,
    /// Random numbers for sizes and gaps.
    pub rng: Rng,
    /// Messages that may still begin; `None`: unlimited.
    pub quota: Option<u64>,
    /// Whether messages may begin.
    pub loading: bool,
    /// Whether answers are read.
    pub reads: bool,
    /// The due time of each slot's next message.
    pub agenda: BinaryHeap<Reverse<(Tick, usize)>>,
    /// Outstanding messages.
    pub outstanding: usize,
    /// Messages answered since the thread began, for the progress display.
    pub answered: u64,
    /// The receive buffer.
    pub buffer: Vec<u8>,
}

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its number in the thread.
    pub at: usize,
    /// The state of its connection.
    pub state: State,
    /// The messages of its connection.
    pub account: Connection,
    readable: bool,
    writable: bool,
    /// The time of its next planned message.
    due: Tick,
    on_agenda: bool,
    /// Messages that may still begin on this connection.
    left: u32,
}

/// The state of a slot's connection.
#[derive(Debug)]
pub(super) enum State {
    /// None.
    Away,
    /// In progress.
    Connecting {
        /// When it began to connect.
        since: Tick,
        /// The socket.
        wire: Wire,
    },
    /// Established.
    Open {
        /// When it began to connect.
        since: Tick,
        /// The socket.
        wire: Wire,
    },
}

/// The next step that a slot needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Next {
    /// Readiness, or its time on the agenda.
    Wait,
    /// Another turn.
    Again,
    /// A new connection: this one is complete.
    Done,
}

impl Work<'_> {
    /// Takes one message from the quota; returns whether there was one.
    #[inline]
    fn take_one(&mut self) -> bool {
        match &mut self.quota {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// Takes up to `count` messages from the quota; returns their number.
    fn take(&mut self, count: u64) -> u64 {
        let Some(left) = &mut self.quota else {
            return count;
        };
        let taken = count.min(*left);
        *left -= taken;
        taken
    }

    /// Returns the gap from one planned message of a connection to the next.
    #[inline]
    fn gap(&mut self, gap_ns: f64, arrivals: Arrivals) -> Duration {
        let gap = match arrivals {
            Arrivals::Constant => gap_ns,
            // An exponential distribution; 1 - f64() is never 0.
            Arrivals::Poisson => -gap_ns * (1.0 - self.rng.f64()).ln(),
        };
        Duration::from_nanos(gap as u64)
    }
}

impl Slot {
    /// Creates a slot without a connection.
    #[must_use]
    pub(super) fn new(at: usize, work: &Work<'_>) -> Self {
        let pipeline = match work.plan.pace {
            Pace::Silence => 0,
            Pace::Answers if work.plan.pattern == Pattern::Stall => 0,
            Pace::Answers | Pace::Schedule { .. } => work.plan.pipeline as usize,
        };
        Self {
            at,
            state: State::Away,
            account: Connection::new(0, work.truth, pipeline),
            readable: false,
            writable: false,
            due: Tick::ZERO,
            on_agenda: false,
            left: 0,
        }
    }

    /// Starts with a connection in progress.
    pub(super) fn connect(&mut self, wire: Wire, number: u64, work: &Work<'_>, now: Tick) {
        self.account.reset(number, work.truth);
        self.left = work.plan.messages_each.unwrap_or(u32::MAX);
        (self.readable, self.writable) = (false, false);
        self.state = State::Connecting { since: now, wire };
    }

    /// Plans the first message. First messages of a thread are spread over the first gap, as
    /// `place` of `places`, so that they do not all begin at once.
    pub(super) fn plan_first(&mut self, work: &mut Work<'_>, start: Tick, place: f64) {
        if let Pace::Schedule { gap_ns, arrivals } = work.plan.pace {
            let first = match arrivals {
                Arrivals::Constant => Duration::from_nanos((gap_ns * place) as u64),
                Arrivals::Poisson => work.gap(gap_ns, arrivals),
            };
            self.due = start + first;
        }
    }

    /// Handles its time on the agenda.
    ///
    /// # Errors
    /// The connection has ended.
    pub(super) fn remind(&mut self, work: &mut Work<'_>, now: Tick) -> Result<(), Fault> {
        let due_in_time = self.on_agenda;
        self.on_agenda = false;
        if matches!(self.state, State::Open { .. }) {
            self.feed(work, due_in_time, now)
        } else {
            Ok(())
        }
    }

    /// Begins the messages that are due, and sends. `free`: nothing prevented the connection from
    /// sending earlier.
    ///
    /// # Errors
    /// The connection has ended.
    #[inline]
    pub(super) fn feed(&mut self, work: &mut Work<'_>, free: bool, now: Tick) -> Result<(), Fault> {
        self.begin(work, free, now);
        let State::Open { wire, .. } = &mut self.state else {
            return Ok(());
        };
        if self.account.is_behind() && self.writable {
            let sent = match self.account.send(wire, work.truth)? {
                Sent::All(sent) => sent,
                Sent::Full(sent) => {
                    self.writable = false;
                    sent
                }
            };
            work.recorder.sent(sent, now);
        }
        let spoken = self.left == 0 && !self.account.is_behind() && !self.account.has_ended();
        if spoken && work.plan.close == Close::Half {
            self.account.end(wire)?;
        }
        Ok(())
    }

    /// Begins the messages that are due.
    #[inline]
    fn begin(&mut self, work: &mut Work<'_>, free: bool, now: Tick) {
        let State::Open { since, .. } = self.state else {
            return;
        };
        if !work.loading {
            return;
        }
        let pipeline = work.plan.pipeline as usize;
        match work.plan.pace {
            Pace::Silence => {}
            Pace::Answers => {
                while self.left > 0
                    && self.account.in_flight() < pipeline
                    // Without reading, the next message begins when the last one is sent.
                    && (work.reads || !self.account.is_behind())
                    && work.take_one()
                {
                    let size = work.plan.sizes.draw(&mut work.rng);
                    // The first latency of a connection opened for its messages includes the
                    // handshake.
                    let first = Some(self.left) == work.plan.messages_each;
                    self.account
                        .begin(size, if first { since } else { now }, now);
                    work.outstanding += 1;
                    if work.plan.messages_each.is_some() {
                        self.left -= 1;
                    }
                }
            }
            Pace::Schedule { gap_ns, arrivals } => {
                while self.due <= now && self.account.in_flight() < pipeline && work.take_one() {
                    let size = work.plan.sizes.draw(&mut work.rng);
                    work.recorder.planned(self.due, free, now);
                    self.account.begin(size, self.due, now);
                    work.outstanding += 1;
                    self.due = self.due + work.gap(gap_ns, arrivals);
                }
                if self.account.in_flight() < pipeline && !self.on_agenda {
                    self.on_agenda = true;
                    work.agenda.push(Reverse((self.due, self.at)));
                }
            }
        }
    }

    /// Records that the socket is ready.
    #[inline]
    pub(super) const fn ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Receives, checks and sends until the socket is not ready or the turn is over. `to_the_end`:
    /// the kernel has reported an end or an error, so a short read is not the last one.
    ///
    /// # Errors
    /// The connection has ended.
    #[inline]
    pub(super) fn turn(&mut self, work: &mut Work<'_>, to_the_end: bool) -> Result<Next, Fault> {
        let mut receives = 0;
        while self.readable && work.reads {
            let State::Open { wire, .. } = &mut self.state else {
                return Ok(Next::Wait);
            };
            if receives == RECEIVES_PER_TURN {
                return Ok(Next::Again);
            }
            receives += 1;
            match self.account.receive(wire, &mut work.buffer, work.truth)? {
                Received::Nothing => self.readable = false,
                Received::End => return Ok(Next::Done),
                Received::Bytes(bytes, more) => {
                    let now = clock::now();
                    if !more && !to_the_end {
                        self.readable = false;
                    }
                    self.settle(work, bytes, now);
                    self.feed(work, self.on_agenda, now)?;
                    let spoken = self.left == 0 && self.account.in_flight() == 0;
                    if spoken && work.plan.close != Close::Half {
                        return Ok(Next::Done);
                    }
                }
            }
        }
        if self.writable && (self.account.is_behind() || !work.reads) {
            self.feed(work, self.on_agenda, clock::now())?;
        }
        // Without reading, the socket's buffers are the limit.
        if !work.reads && self.writable {
            return Ok(Next::Again);
        }
        Ok(Next::Wait)
    }

    /// Closes the connection and abandons its messages.
    pub(super) fn leave(&mut self, work: &mut Work<'_>, reset: bool) {
        work.outstanding -= self.account.in_flight();
        if let State::Connecting { wire, .. } | State::Open { wire, .. } = &self.state
            && reset
        {
            wire.reset_on_close();
        }
        self.state = State::Away;
        self.account.reset(self.account.number, work.truth);
    }

    /// Returns the fault if the connection has exceeded a timeout. The reply timeout applies only
    /// if the connection `reads`.
    #[must_use]
    pub(super) fn overdue(&self, plan: &Plan, reads: bool, now: Tick) -> Option<Fault> {
        match self.state {
            State::Connecting { since, .. } if now.since(since) >= plan.connect_timeout => {
                Some(Fault::Unconnected)
            }
            State::Open { .. } if reads => {
                let since = self.account.waits_since()?;
                (now.since(since) >= plan.timeout).then(|| self.account.silence())
            }
            State::Connecting { .. } | State::Open { .. } | State::Away => None,
        }
    }

    /// Counts the messages planned until the end and never sent, within the quota. Random arrivals
    /// count with their mean gap.
    pub(super) fn count_unsent(&self, work: &mut Work<'_>, until: Tick) {
        let Pace::Schedule { gap_ns, .. } = work.plan.pace else {
            return;
        };
        // The loop would not advance with a gap of zero.
        let gap = Duration::from_nanos((gap_ns as u64).max(1));
        let wanted = until.since(self.due).as_nanos().div_ceil(gap.as_nanos());
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let taken = work.take(wanted);
        work.recorder.unsent(self.due, gap, taken);
    }

    #[inline]
    fn settle(&mut self, work: &mut Work<'_>, bytes: usize, now: Tick) {
        let before = self.account.in_flight();
        work.recorder.received(bytes, now);
        let recorder = &mut work.recorder;
        let waited_since = self
            .account
            .answered(|from| recorder.answer(from, now), now);
        recorder.waited(waited_since, now);
        let answered = before - self.account.in_flight();
        work.outstanding -= answered;
        work.answered += answered as u64;
    }
}

/// Returns a buffer for one receive.
#[must_use]
pub(super) fn buffer() -> Vec<u8> {
    vec![0; PIECE_MAX]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Pattern};
    use crate::plan::{Facts, settle};

    /// Calls `body` with a thread's state for the defaults of `rate`, modified by `change`.
    fn with<R>(change: impl FnOnce(&mut Options), body: impl FnOnce(&mut Work<'_>) -> R) -> R {
        let mut options = Options {
            pattern: Some(Pattern::Rate),
            ..Options::default()
        };
        change(&mut options);
        let facts = Facts {
            cpus: 2,
            descriptors: 1000,
            loopback: true,
        };
        let plan = settle(&options, &facts).unwrap();
        let truth = Truth::new(plan.expect, plan.sizes.most());
        body(&mut Work {
            plan: &plan,
            truth: &truth,
            recorder: Recorder::new(),
            rng: Rng::with_seed(7),
            quota: plan.count,
            loading: true,
            reads: true,
            agenda: BinaryHeap::new(),
            outstanding: 0,
            answered: 0,
            buffer: buffer(),
        })
    }

    /// Selects the default 50 connections, with one message per second each.
    fn one_a_second(options: &mut Options) {
        options.rate = Some(50.0);
    }

    #[test]
    fn arrivals_have_requested_rate() {
        const DRAWS: u32 = 100_000;
        let draw = |work: &mut Work<'_>| work.gap(1e6, Arrivals::Poisson).as_secs_f64() * 1e3;
        let gaps: Vec<f64> = with(|_| {}, |work| (0..DRAWS).map(|_| draw(work)).collect());
        let mean = gaps.iter().sum::<f64>() / f64::from(DRAWS);
        let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        let deviation = (squares / f64::from(DRAWS)).sqrt();
        // Both are 1 for an exponential distribution of mean 1.
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!((deviation - 1.0).abs() < 0.03, "{deviation}");
        let constant = with(|_| {}, |work| work.gap(5000.0, Arrivals::Constant));
        assert_eq!(constant, Duration::from_nanos(5000));
    }

    #[test]
    fn first_messages_spread_over_first_gap() {
        for (place, ms) in [(0.0, 1000), (0.5, 1500), (0.98, 1980)] {
            let due = with(one_a_second, |work| {
                let mut slot = Slot::new(0, work);
                slot.plan_first(work, Tick::from_millis(1000), place);
                slot.due
            });
            assert_eq!(due, Tick::from_millis(ms));
        }
    }

    #[test]
    fn unsent_messages_are_counted_singly() {
        let record = with(one_a_second, |work| {
            let (from, until) = (Tick::from_millis(1000), Tick::from_millis(6000));
            work.recorder.open(from, until, Duration::from_millis(100));
            let mut slot = Slot::new(0, work);
            slot.plan_first(work, from, 0.5);
            slot.count_unsent(work, until);
            std::mem::take(&mut work.recorder).finish(Duration::ZERO)
        });
        // At 1.5, 2.5, ... 5.5 seconds.
        assert_eq!((record.planned, record.unsent), (5, 5));
    }

    #[test]
    fn quota_ends() {
        let count = |options: &mut Options| options.count = Some(2);
        let taken: Vec<bool> = with(count, |work| (0..3).map(|_| work.take_one()).collect());
        assert_eq!(taken, [true, true, false]);
    }
}
