//! One thread of the load: an event loop for its share of the connections.
//!
//! connect → report Ready → wait for the start → load (warm-up, then measurement) → wait for the
//! last answers → close. Sockets are registered once, edge-triggered, in both directions. Planned
//! times use a kernel timer, which has the clock's resolution; the event loop's own timeout, in
//! milliseconds, is only for deadlines.
//!
//! Invariants: in steady state a message costs one receive, one send, one clock read and its share
//! of a wait, and allocates nothing; an answer that does not arrive in time is a failure, never a
//! reason to wait forever; the thread exits by itself, whatever the server does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use serde::{Deserialize, Serialize};

use super::failure::Fault;
use super::options::{Close, Pattern};
use super::plan::Plan;
use super::record::{Record, Recorder};
use super::slot::{self, Next, Slot, State, Work};
use super::socket::Wire;
use super::truth::Truth;
use uppercased_ctl::clock::{self, Tick};

/// Token of the waker: commands on the board have changed.
pub(super) const REQUESTS: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Maximum number of events per poll.
const EVENTS_MAX: usize = 1024;
/// Maximum connections in progress per thread: below any backlog, since the kernel would delay
/// those beyond it by a second.
const CONNECTING_MAX: usize = 128;
/// A run with a message count is abandoned if something failed and no message was answered for this
/// multiple of the reply timeout: the server is gone, so the count will never be reached.
const GIVE_UP_TIMEOUTS: u32 = 3;
/// Delay before a failed connection is retried.
const RETRY: Duration = Duration::from_millis(100);
/// Number of deadline checks within the shortest timeout.
const SWEEPS_PER_TIMEOUT: u32 = 10;
/// Minimum and maximum interval of deadline checks.
const SWEEP: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The task of one thread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Share {
    /// The whole plan.
    pub plan: Plan,
    /// The server's address.
    pub target: SocketAddr,
    /// Index of this thread among all threads.
    pub index: u32,
    /// Number of threads in all processes.
    pub threads: u32,
}

/// Commands to a running thread, and its counters.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Start of the load: nanoseconds of a [`Tick`]; 0 until it is known.
    pub start: AtomicU64,
    /// Whether to end early.
    pub stop: AtomicBool,
    /// Whether to end without waiting for the last answers.
    pub hurry: AtomicBool,
    /// Messages answered so far.
    pub answered: AtomicU64,
    /// Failures so far.
    pub failed: AtomicU64,
    /// Open connections.
    pub open: AtomicU64,
}

/// The phases that a thread reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reached {
    /// Every connection was tried.
    Ready,
    /// The measurement has ended.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connecting.
    Ramp,
    /// Connected, waiting for the start.
    Ready,
    /// The load runs: start and end of the measurement.
    Load(Tick, Tick),
    /// Waiting for the last answers.
    Drain,
}

struct Engine<'a> {
    work: Work<'a>,
    share: &'a Share,
    board: &'a Board,
    poll: Poll,
    timer: TimerFd,
    /// The time that the timer is set to.
    timer_at: Option<Tick>,
    slots: Vec<Slot>,
    phase: Phase,
    /// Slots to connect.
    to_connect: VecDeque<usize>,
    /// Slots to connect later, in order of time.
    to_retry: VecDeque<(Tick, usize)>,
    connecting: usize,
    open: u64,
    failed: u64,
    /// Slots with more to read.
    again: Vec<usize>,
    next_number: u64,
    next_sweep: Tick,
    cpu_before: Option<Duration>,
    cpu: Duration,
    /// Messages answered, and since when the number is unchanged.
    progress: (u64, Tick),
}

impl Share {
    /// Returns the thread's number of connections.
    #[must_use]
    pub(super) fn connections(&self) -> usize {
        portion(self.plan.connections.into(), self.index, self.threads) as usize
    }

    /// Returns the thread's number of messages, if they are limited.
    #[must_use]
    pub(super) fn quota(&self) -> Option<u64> {
        let count = self.plan.count?;
        // Threads without connections have no messages.
        let busy = self.threads.min(self.plan.connections);
        Some(portion(count, self.index, busy))
    }
}

/// Returns the part of `whole` for `index` of `parts`.
fn portion(whole: u64, index: u32, parts: u32) -> u64 {
    let (parts, index) = (u64::from(parts.max(1)), u64::from(index));
    if index >= parts {
        return 0;
    }
    whole / parts + u64::from(index < whole % parts)
}

/// Runs one thread's share. `poll` has a waker with the token [`REQUESTS`], which must be woken
/// after each change of the commands on `board`.
///
/// # Errors
/// The event loop itself failed; the record has failures of connections.
pub(super) fn run(
    share: &Share,
    truth: &Truth,
    board: &Board,
    poll: Poll,
    reached: impl Fn(Reached),
) -> io::Result<Record> {
    // Otherwise the kernel may delay timers by 50 us to save power.
    let _ = nix::sys::prctl::set_timerslack(1);
    let timer = TimerFd::new(
        ClockId::CLOCK_MONOTONIC,
        TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
    )?;
    let number = timer.as_fd().as_raw_fd();
    poll.registry()
        .register(&mut SourceFd(&number), TIMER, Interest::READABLE)?;
    let work = Work {
        plan: &share.plan,
        truth,
        recorder: Recorder::new(),
        rng: Rng::with_seed(share.index.into()),
        quota: share.quota(),
        loading: false,
        reads: true,
        agenda: BinaryHeap::with_capacity(share.connections()),
        outstanding: 0,
        answered: 0,
        buffer: slot::buffer(),
    };
    let slots = (0..share.connections())
        .map(|at| Slot::new(at, &work))
        .collect();
    let mut engine = Engine {
        work,
        share,
        board,
        poll,
        timer,
        timer_at: None,
        slots,
        phase: Phase::Ramp,
        to_connect: VecDeque::with_capacity(share.connections()),
        to_retry: VecDeque::with_capacity(share.connections()),
        connecting: 0,
        open: 0,
        failed: 0,
        again: Vec::with_capacity(EVENTS_MAX),
        next_number: share.index.into(),
        next_sweep: clock::now(),
        cpu_before: None,
        cpu: Duration::ZERO,
        progress: (0, clock::now()),
    };
    // Connections that end after a number of messages are opened when the load begins.
    if share.plan.messages_each.is_none() {
        engine.to_connect.extend(0..share.connections());
    }
    engine.run(&reached)?;
    Ok(engine.work.recorder.finish(engine.cpu))
}

impl Engine<'_> {
    fn run(&mut self, reached: &impl Fn(Reached)) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut again = Vec::with_capacity(EVENTS_MAX);
        loop {
            let now = clock::now();
            if self.advance(reached, now) {
                return Ok(());
            }
            self.connect_some(now);
            self.remind(now);
            self.sweep(now);
            self.work.recorder.roll(now);
            self.publish();
            let timeout = self.timeout(now)?;
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            // A later event in this batch cannot refer to a slot whose connection is replaced
            // below: each descriptor has one event, for its own slot.
            for event in &events {
                let Token(at) = event.token();
                if at < self.slots.len() {
                    let failed = event.is_error();
                    let readable = event.is_readable() || event.is_read_closed() || failed;
                    self.slots[at].ready(readable, event.is_writable() || failed);
                    self.serve(at, event.is_read_closed() || failed);
                }
            }
            std::mem::swap(&mut again, &mut self.again);
            for at in again.drain(..) {
                self.serve(at, true);
            }
        }
    }

    /// Enters the next phase when it is due; returns true at the end.
    fn advance(&mut self, reached: &impl Fn(Reached), now: Tick) -> bool {
        let stop = self.board.stop.load(Ordering::Acquire);
        match self.phase {
            Phase::Ramp if self.to_connect.is_empty() && self.connecting == 0 => {
                self.phase = Phase::Ready;
                self.publish();
                reached(Reached::Ready);
                self.advance(reached, now)
            }
            Phase::Ramp => stop,
            Phase::Ready => {
                let start = self.start();
                if let Some(start) = start
                    && now >= start
                {
                    self.begin(start, now);
                }
                stop
            }
            Phase::Load(from, until) => {
                if self.cpu_before.is_none() && now >= from {
                    self.cpu_before = Some(thread_cpu());
                }
                let done = self.work.quota == Some(0) && self.work.outstanding == 0;
                if now >= until || done || stop || self.is_hopeless(now) {
                    self.end(until, now);
                    reached(Reached::Over);
                    return self.is_drained();
                }
                false
            }
            Phase::Drain if self.board.hurry.load(Ordering::Acquire) => {
                // These answers are not awaited, so this is not a failure; but the wait counts as a
                // stall.
                let waiting = self
                    .slots
                    .iter()
                    .filter_map(|slot| slot.account.waits_since());
                for since in waiting {
                    self.work.recorder.waited(since, now);
                }
                true
            }
            Phase::Drain => self.is_drained(),
        }
    }

    /// Returns whether the message count can no longer be reached.
    fn is_hopeless(&mut self, now: Tick) -> bool {
        if self.work.quota.is_none() || self.failed == 0 || self.work.answered > self.progress.0 {
            self.progress = (self.work.answered, now);
        }
        now.since(self.progress.1) >= self.share.plan.timeout * GIVE_UP_TIMEOUTS
    }

    /// Returns the start of the load, if known.
    fn start(&self) -> Option<Tick> {
        let start = self.board.start.load(Ordering::Acquire);
        (start > 0).then(|| Tick::from_nanos(start))
    }

    fn begin(&mut self, start: Tick, now: Tick) {
        let plan = &self.share.plan;
        let from = start + plan.warmup;
        let until = from + plan.duration;
        self.phase = Phase::Load(from, until);
        self.work.loading = true;
        self.work.reads = plan.pattern != Pattern::Stall;
        self.work.recorder.open(from, until, plan.interval);
        let (index, threads) = (f64::from(self.share.index), f64::from(self.share.threads));
        for at in 0..self.slots.len() {
            // Spread evenly among the slots of all threads.
            let place = (at as f64 * threads + index) / f64::from(plan.connections);
            self.slots[at].plan_first(&mut self.work, start, place.fract());
            match self.slots[at].state {
                State::Away => self.to_connect.push_back(at),
                State::Open { .. } => self.fed(at, now),
                State::Connecting { .. } => {}
            }
        }
    }

    fn end(&mut self, until: Tick, now: Tick) {
        self.phase = Phase::Drain;
        self.work.loading = false;
        self.work.recorder.cut(now);
        if let Some(before) = self.cpu_before {
            self.cpu = thread_cpu().saturating_sub(before);
        }
        for slot in &self.slots {
            slot.count_unsent(&mut self.work, until.min(now));
        }
        self.work.agenda.clear();
        self.to_connect.clear();
        self.to_retry.clear();
        for at in 0..self.slots.len() {
            if matches!(self.slots[at].state, State::Connecting { .. }) {
                self.connecting -= 1;
                self.slots[at].leave(&mut self.work, false);
            }
        }
        if !self.work.reads {
            self.work.reads = true;
            for (at, slot) in self.slots.iter_mut().enumerate() {
                slot.account.wait_from(now);
                self.again.push(at);
            }
        }
        self.next_sweep = now;
    }

    /// Returns whether no answer is awaited any more.
    fn is_drained(&self) -> bool {
        let waits = |slot: &Slot| {
            matches!(slot.state, State::Open { .. }) && slot.account.waits_since().is_some()
        };
        self.work.outstanding == 0 && !self.slots.iter().any(waits)
    }

    fn connect_some(&mut self, now: Tick) {
        while let Some(&(at_time, at)) = self.to_retry.front() {
            if at_time > now {
                break;
            }
            self.to_retry.pop_front();
            self.to_connect.push_back(at);
        }
        while self.connecting < CONNECTING_MAX {
            // A connection is not opened if no message is left to send.
            if self.work.quota == Some(0) && self.phase != Phase::Ramp {
                self.to_connect.clear();
            }
            let Some(at) = self.to_connect.pop_front() else {
                return;
            };
            let number = self.next_number;
            self.next_number += u64::from(self.share.threads);
            let sources = &self.share.plan.sources;
            let source = match sources.len() as u64 {
                0 => None,
                count => sources.get((number % count) as usize).copied(),
            };
            let Plan { receive_buffer, .. } = self.share.plan;
            let registry = self.poll.registry();
            match Wire::open(
                self.share.target,
                source,
                receive_buffer,
                registry,
                Token(at),
            ) {
                Ok(wire) => {
                    self.slots[at].connect(wire, number, &self.work, now);
                    self.connecting += 1;
                }
                Err(error) => {
                    self.slots[at].account.number = number;
                    self.lose(at, &Fault::Io(error), now);
                }
            }
        }
    }

    /// Sends on every slot that is due.
    fn remind(&mut self, now: Tick) {
        while let Some(&Reverse((due, at))) = self.work.agenda.peek() {
            if due > now {
                break;
            }
            self.work.agenda.pop();
            if let Err(fault) = self.slots[at].remind(&mut self.work, now) {
                self.lose(at, &fault, now);
            }
        }
    }

    /// Serves a slot whose socket is ready.
    #[inline]
    fn serve(&mut self, at: usize, to_the_end: bool) {
        if matches!(self.slots[at].state, State::Connecting { .. }) && !self.established(at) {
            return;
        }
        match self.slots[at].turn(&mut self.work, to_the_end) {
            Ok(Next::Wait) => {}
            Ok(Next::Again) => self.again.push(at),
            Ok(Next::Done) => self.finish(at),
            Err(fault) => self.lose(at, &fault, clock::now()),
        }
    }

    /// Records an established connection; returns false if it failed.
    fn established(&mut self, at: usize) -> bool {
        let now = clock::now();
        let slot = &mut self.slots[at];
        let (since, mut wire) = match std::mem::replace(&mut slot.state, State::Away) {
            State::Connecting { since, wire } => (since, wire),
            other => {
                slot.state = other;
                return true;
            }
        };
        self.connecting -= 1;
        let connected = wire.connected(self.share.target);
        let prepared = connected.and_then(|()| match self.share.plan.proxy_protocol {
            Some(version) => wire.send_proxy_header(version),
            None => Ok(()),
        });
        if let Err(error) = prepared {
            self.lose(at, &Fault::Io(error), now);
            return false;
        }
        slot.state = State::Open { since, wire };
        self.open += 1;
        self.work.recorder.opened(now);
        self.fed(at, now);
        matches!(self.slots[at].state, State::Open { .. })
    }

    fn fed(&mut self, at: usize, now: Tick) {
        match self.slots[at].feed(&mut self.work, false, now) {
            Ok(()) if !self.work.reads => self.again.push(at),
            Ok(()) => {}
            Err(fault) => self.lose(at, &fault, now),
        }
    }

    /// Closes a completed connection and opens the next one.
    fn finish(&mut self, at: usize) {
        let reset = self.share.plan.close == Close::Rst;
        self.slots[at].leave(&mut self.work, reset);
        self.open -= 1;
        if self.work.loading {
            self.to_connect.push_back(at);
        }
    }

    /// Closes a failed connection.
    fn lose(&mut self, at: usize, fault: &Fault, now: Tick) {
        let slot = &mut self.slots[at];
        match slot.state {
            State::Connecting { .. } => self.connecting -= 1,
            State::Open { .. } => self.open -= 1,
            State::Away => {}
        }
        if let Some(since) = slot.account.waits_since() {
            self.work.recorder.waited(since, now);
        }
        self.work.recorder.failed(slot.account.number, fault, now);
        self.failed += 1;
        slot.leave(&mut self.work, true);
        if self.work.loading {
            self.to_retry.push_back((now + RETRY, at));
        }
    }

    /// Checks every deadline, at intervals.
    fn sweep(&mut self, now: Tick) {
        if now < self.next_sweep {
            return;
        }
        let plan = &self.share.plan;
        let shortest = plan.timeout.min(plan.connect_timeout);
        self.next_sweep = now + (shortest / SWEEPS_PER_TIMEOUT).clamp(SWEEP.0, SWEEP.1);
        for at in 0..self.slots.len() {
            if let Some(fault) = self.slots[at].overdue(plan, self.work.reads, now) {
                self.lose(at, &fault, now);
            }
        }
    }

    /// Publishes the counters on the board.
    fn publish(&self) {
        let Board {
            answered,
            failed,
            open,
            ..
        } = self.board;
        answered.store(self.work.answered, Ordering::Relaxed);
        failed.store(self.failed, Ordering::Relaxed);
        open.store(self.open, Ordering::Relaxed);
    }

    /// Returns how long to wait for readiness, and sets the timer for the next planned message.
    fn timeout(&mut self, now: Tick) -> io::Result<Duration> {
        if !self.again.is_empty() {
            return Ok(Duration::ZERO);
        }
        let next = self.work.agenda.peek().map(|Reverse((due, _))| *due);
        if let Some(due) = next
            && next != self.timer_at
        {
            self.timer_at = next;
            let at = TimeSpec::from_duration(Duration::from_nanos(due.as_nanos().max(1)));
            self.timer.set(
                Expiration::OneShot(at),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?;
        }
        let mut wake = self.next_sweep;
        match self.phase {
            Phase::Ready => wake = self.start().map_or(wake, |start| wake.min(start)),
            Phase::Load(from, until) => wake = wake.min(if now < from { from } else { until }),
            Phase::Ramp | Phase::Drain => {}
        }
        if let Some(&(at, _)) = self.to_retry.front() {
            wake = wake.min(at);
        }
        Ok(wake.since(now))
    }
}

/// Returns the CPU time of this thread.
fn thread_cpu() -> Duration {
    clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_leaves_no_remainder() {
        for (whole, parts) in [(10, 3), (2, 4), (0, 2), (7, 1)] {
            let sum: u64 = (0..parts).map(|index| portion(whole, index, parts)).sum();
            assert_eq!(sum, whole);
        }
        assert_eq!(portion(5, 3, 2), 0);
    }
}
