//! The rules of one connection: receive, transform, send, and close.
//!
//! A connection consists of its record in the working memory; this file holds the rules by which
//! the record changes. [`drive`] serves a connection as far as readiness and budget allow,
//! [`expire`] acts on its deadline, [`deadline`] returns it. The ordinary case, an open connection
//! with input and without pending output, can be served in two steps, with those of other
//! connections between them: [`receive`] and [`answer`].
//!
//! Invariants:
//! - every byte received is sent back once, in order, as [`service`] transformed it;
//! - while output is pending nothing is received (backpressure), so a connection holds at most one
//!   buffer of it;
//! - an end of stream is answered only after the last pending byte;
//! - a recorded readiness bit is cleared only when the kernel reported that there is nothing more.
//!
//! It must not know sockets, clocks, the event loop or logs: the socket is a [`Stream`], the time
//! is passed in.

use std::io;
use std::time::Duration;

use crate::config::{AGE_GRACE, Config, FIRST_BYTE_TIMEOUT};
use crate::memory::layout::{Flags, State};
use crate::memory::{Hand, NoBuffer, Probe, Record, RecordMut};
use crate::service;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{CloseReason, Counter, RefusalCause};

/// The two directions of a non-blocking stream socket.
pub trait Stream {
    /// Receives at most `into.len()` bytes; 0 is the end of the peer's stream.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing now; `Interrupted` to be called again; otherwise the
    /// connection is over.
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Sends as much of `from` as the kernel accepts and returns the number of bytes.
    ///
    /// # Errors
    /// As [`Stream::recv`].
    fn send(&mut self, from: &[u8]) -> io::Result<usize>;

    /// Ends this side's stream; the peer sees it after the last byte.
    ///
    /// # Errors
    /// The connection is over already.
    fn end_output(&mut self) -> io::Result<()>;
}

/// Limits on a connection.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes received in one turn of the loop; the call that reaches it still completes.
    pub bytes_per_turn: u32,
    /// The stream is ended if no byte moved for this long.
    pub idle_timeout: Option<Duration>,
    /// The connection is closed if the kernel accepted none of its pending output for this long.
    pub write_stall_timeout: Option<Duration>,
    /// Timeout for a PROXY header, where one is required.
    pub header_timeout: Duration,
    /// When the worker stops, a peer that has never sent a byte has this long from its accept: it
    /// was admitted, so its first request is answered.
    pub first_byte_timeout: Duration,
    /// Timeout for the peer to close after its stream was ended from here.
    pub linger_timeout: Duration,
    /// The stream is ended at this age, give or take a tenth.
    pub max_age: Option<Duration>,
    /// At that age what has arrived is answered first, for this long if the peer never pauses.
    pub age_grace: Duration,
    /// When these rules began to apply: connections that are too old by then do not end all at
    /// once.
    pub since: Tick,
}

impl Rules {
    /// Returns the rules of a worker that begins to serve at `now`.
    #[must_use]
    pub fn new(config: &Config, now: Tick) -> Self {
        Self {
            bytes_per_turn: config.bytes_per_turn,
            idle_timeout: config.idle_timeout,
            write_stall_timeout: config.write_stall_timeout,
            header_timeout: config.proxy_header_timeout,
            first_byte_timeout: FIRST_BYTE_TIMEOUT,
            linger_timeout: config.linger_timeout,
            max_age: config.max_connection_age,
            age_grace: AGE_GRACE,
            since: now,
        }
    }

    /// Returns when the connection of `record` is too old. It follows from the record, so it is the
    /// same after a migration or a rescue.
    fn end_of_life(&self, record: &Record<'_>) -> Option<Tick> {
        let age = self.max_age?;
        let opened = record.opened_at();
        // A fifth of the age, times a number from 0 to 1 that differs between connections.
        let spread = mixed(opened.as_nanos() ^ u64::from(record.peer().port())) >> 32;
        let spread = (age / 5).mul_f64(spread as f64 / f64::from(u32::MAX));
        let due = opened + (age - age / 10) + spread;
        Some(if due + self.age_grace < self.since {
            self.since + spread
        } else {
            due
        })
    }

    /// Returns why the stream of a lingering connection was ended after its last reply.
    fn reason_of_stop(&self, record: &Record<'_>) -> CloseReason {
        match self.end_of_life(record) {
            Some(due) if due <= record.last_progress() => CloseReason::MaxAge,
            _ => CloseReason::Drained,
        }
    }
}

/// Returns `number` with its bits mixed (the finalizer of SplitMix64), so that neighbours differ.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The next step for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It waits for readiness or its deadline.
    Waiting,
    /// Its budget is used up and there may be more: drive it again in the next turn.
    Again,
    /// It is over and its descriptor is to be closed. What it owed stays recorded until
    /// [`RecordMut::begin_close`].
    Close(CloseReason),
    /// The caller must peek at its PROXY header.
    Header,
    /// It is to be refused: nothing was received, and no header has arrived.
    Refuse(RefusalCause),
}

/// Drives the connection of `record` as far as its readiness and budget allow.
#[inline]
pub fn drive<P: Probe>(
    record: &mut RecordMut<'_, P>,
    stream: &mut impl Stream,
    rules: &Rules,
    now: Tick,
) -> Outcome {
    let state = record.state();
    let mut turn = Turn::new(record, stream, rules, now);
    let outcome = match state {
        State::Open => turn.relay(rules.bytes_per_turn),
        State::LingeringIdle => turn.discard(CloseReason::IdleTimeout),
        State::LingeringStop => {
            let reason = rules.reason_of_stop(turn.record);
            turn.discard(reason)
        }
        State::AwaitingHeader => Outcome::Header,
        State::Free | State::Closing | State::Handed => Outcome::Waiting,
    };
    turn.end(outcome)
}

/// The flags of a connection that [`receive`] serves.
pub const ORDINARY: Flags = Flags::READABLE.with(Flags::WRITABLE);

/// Receives once from the connection of `record`, which is open, owes nothing and has the flags
/// [`ORDINARY`]. Returns `None` if the input is in hand: the share of the connection ends with
/// [`answer`] then.
#[inline(always)]
pub fn receive<P: Probe>(
    record: &mut RecordMut<'_, P>,
    stream: &mut impl Stream,
    rules: &Rules,
    now: Tick,
) -> Option<Outcome> {
    let mut turn = Turn::new(record, stream, rules, now);
    let outcome = match turn.receive() {
        Ok(Some(_)) => return None,
        Ok(None) => turn.relay(rules.bytes_per_turn),
        Err(reason) => Outcome::Close(reason),
    };
    Some(turn.end(outcome))
}

/// Answers the input `hand` of the connection of `record`, and continues as [`drive`] does. Returns
/// `None` if the connection owes nothing and only waits for input, as most do.
#[inline(always)]
pub fn answer<P: Probe>(
    record: &mut RecordMut<'_, P>,
    stream: &mut impl Stream,
    rules: &Rules,
    hand: Hand,
    now: Tick,
) -> Option<Outcome> {
    let mut turn = Turn::new(record, stream, rules, now);
    let outcome = match turn.reply(hand) {
        Ok(()) if turn.flags == Flags::WRITABLE => None,
        Ok(()) => Some(turn.relay(rules.bytes_per_turn.saturating_sub(hand.length()))),
        Err(reason) => Some(Outcome::Close(reason)),
    };
    turn.end(outcome)
}

/// Returns when [`expire`] must be called for the connection of `record` if nothing happens to it.
#[must_use]
pub fn deadline(record: &Record<'_>, rules: &Rules) -> Option<Tick> {
    let due = deadline_of_progress(record, rules);
    if rules.max_age.is_none() || record.state() != State::Open || is_finishing(record) {
        return due;
    }
    let aged = rules.end_of_life(record);
    due.into_iter().chain(aged).min()
}

/// Returns the deadline that counts from the last progress.
fn deadline_of_progress(record: &Record<'_>, rules: &Rules) -> Option<Tick> {
    let timeout = match record.state() {
        State::Open if record.pending().is_some() => rules.write_stall_timeout?,
        State::Open if is_finishing(record) && record.bytes_moved().0 == 0 => {
            let first_byte_timeout = rules.first_byte_timeout;
            rules
                .idle_timeout
                .map_or(first_byte_timeout, |idle| idle.min(first_byte_timeout))
        }
        State::Open => rules.idle_timeout?,
        State::LingeringIdle | State::LingeringStop => rules.linger_timeout,
        // From its accept on: no byte moves before. The header counts as the first byte.
        State::AwaitingHeader if is_finishing(record) => {
            rules.header_timeout.min(rules.first_byte_timeout)
        }
        State::AwaitingHeader => rules.header_timeout,
        State::Free | State::Closing | State::Handed => return None,
    };
    Some(record.last_progress() + timeout)
}

fn is_finishing(record: &Record<'_>) -> bool {
    record.flags().has(Flags::FINISH)
}

/// Acts on the deadline of the connection of `record`, if it has passed.
///
/// The process may have been stopped, or starved of CPU, so the clock alone proves nothing: what
/// arrived meanwhile is served first, and the deadline counts only if that changed nothing.
/// The caller looks for a PROXY header before this.
pub fn expire<P: Probe>(
    record: &mut RecordMut<'_, P>,
    stream: &mut impl Stream,
    rules: &Rules,
    now: Tick,
) -> Outcome {
    if !is_due(record, rules, now) {
        return Outcome::Waiting;
    }
    if record.state() != State::AwaitingHeader {
        let unseen = Flags::READABLE.with(Flags::WRITABLE);
        record.set_flags(record.flags().with(unseen));
        let outcome = drive(record, stream, rules, now);
        // A peer that floods a lingering connection does not prolong it.
        if matches!(outcome, Outcome::Close(_)) || !is_due(record, rules, now) {
            return outcome;
        }
    }
    let is_by_age = deadline_of_progress(record, rules).is_none_or(|due| due > now);
    match record.state() {
        // As when the worker stops: what has arrived is answered, then the stream is ended.
        State::Open if is_by_age => {
            record.finish();
            drive(record, stream, rules, now)
        }
        State::Open if record.pending().is_some() => Outcome::Close(CloseReason::WriteStall),
        // Nothing of a header was received, so no output is pending.
        State::Open | State::AwaitingHeader if is_finishing(record) => {
            end_stream(record, stream, State::LingeringStop, now)
        }
        State::Open => end_stream(record, stream, State::LingeringIdle, now),
        State::LingeringIdle => Outcome::Close(CloseReason::IdleTimeout),
        State::LingeringStop => Outcome::Close(rules.reason_of_stop(record)),
        State::AwaitingHeader => Outcome::Refuse(RefusalCause::ProxyTimeout),
        State::Free | State::Closing | State::Handed => Outcome::Waiting,
    }
}

/// Returns whether the deadline of the connection of `record` has passed.
#[must_use]
pub fn is_due(record: &Record<'_>, rules: &Rules, now: Tick) -> bool {
    deadline(record, rules).is_some_and(|due| due <= now)
}

/// Returns the close reason for an error of a connection's socket. A peer's reset is an outcome,
/// not an error.
#[must_use]
pub fn reason_of(error: &io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => CloseReason::PeerReset,
        io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => CloseReason::PeerVanished,
        _ => CloseReason::SystemError,
    }
}

/// One connection in one turn of the loop.
struct Turn<'a, 'm, P, S> {
    record: &'a mut RecordMut<'m, P>,
    stream: &'a mut S,
    rules: &'a Rules,
    /// The record's flags; written back at the end.
    flags: Flags,
    now: Tick,
}

/// The result of sending the pending output.
enum Flushed {
    /// Nothing is pending.
    Clear,
    /// The kernel accepts no more now.
    Blocked,
}

impl<'a, 'm, P: Probe, S: Stream> Turn<'a, 'm, P, S> {
    #[inline(always)]
    fn new(
        record: &'a mut RecordMut<'m, P>,
        stream: &'a mut S,
        rules: &'a Rules,
        now: Tick,
    ) -> Self {
        Self {
            flags: record.flags(),
            record,
            stream,
            rules,
            now,
        }
    }

    /// Stores the flags.
    #[inline(always)]
    fn end<T>(self, outcome: T) -> T {
        self.record.set_flags(self.flags);
        outcome
    }

    #[inline]
    fn relay(&mut self, mut budget: u32) -> Outcome {
        loop {
            match self.flush() {
                Ok(Flushed::Clear) => {}
                Ok(Flushed::Blocked) => return Outcome::Waiting,
                Err(reason) => return Outcome::Close(reason),
            }
            if self.flags.has(Flags::PEER_ENDED) {
                return Outcome::Close(CloseReason::PeerClosed);
            }
            if self.flags.has(Flags::FINISH) && self.is_finished() {
                let state = State::LingeringStop;
                return end_stream(self.record, self.stream, state, self.now);
            }
            if !self.flags.has(Flags::READABLE) {
                return Outcome::Waiting;
            }
            if budget == 0 || self.record.must_wait() {
                return Outcome::Again;
            }
            match self.exchange() {
                Ok(received) => budget = budget.saturating_sub(received),
                Err(reason) => return Outcome::Close(reason),
            }
        }
    }

    /// Returns whether the peer has sent nothing yet and still has time to.
    fn awaits_first_byte(&self) -> bool {
        self.record.bytes_moved().0 == 0
            && self.record.last_progress() + self.rules.first_byte_timeout > self.now
    }

    /// Returns whether nothing more is received from the peer of a connection that is to end: nothing
    /// is there and its first byte has had its time, or the connection is past its grace.
    #[cold]
    fn is_finished(&self) -> bool {
        if !self.flags.has(Flags::READABLE) {
            return !self.awaits_first_byte();
        }
        let rules = self.rules;
        let end = rules.end_of_life(self.record);
        end.is_some_and(|due| due + rules.age_grace <= self.now)
    }

    /// Sends pending output.
    #[inline]
    fn flush(&mut self) -> Result<Flushed, CloseReason> {
        if self.record.pending().is_none() {
            return Ok(Flushed::Clear);
        }
        if !self.flags.has(Flags::WRITABLE) {
            return Ok(Flushed::Blocked);
        }
        let Some(rest) = self.record.begin_flush() else {
            return Ok(Flushed::Clear);
        };
        let sent = match retry(|| self.stream.send(rest)) {
            Ok(sent) => sent,
            Err(error) => {
                self.record.end_call();
                if error.kind() == io::ErrorKind::TimedOut {
                    // The kernel's own timeout for output that the peer does not read
                    // (TCP_USER_TIMEOUT).
                    return Err(CloseReason::WriteStall);
                }
                return self
                    .nothing_more(Flags::WRITABLE, &error)
                    .map(|()| Flushed::Blocked);
            }
        };
        self.count_sent(sent);
        if self.record.end_flush(narrow(sent), self.now) {
            return Ok(Flushed::Clear);
        }
        // A short send means that the kernel is full; the next edge will come.
        self.flags = self.flags.without(Flags::WRITABLE);
        Ok(Flushed::Blocked)
    }

    /// Receives once, transforms and sends; returns the number of bytes received.
    #[inline]
    fn exchange(&mut self) -> Result<u32, CloseReason> {
        let Some(hand) = self.receive()? else {
            return Ok(0);
        };
        self.reply(hand)?;
        Ok(hand.length())
    }

    /// Receives once; returns what is in hand then.
    #[inline(always)]
    fn receive(&mut self) -> Result<Option<Hand>, CloseReason> {
        let scratch = self.record.begin_receive();
        let received = match retry(|| self.stream.recv(scratch)) {
            Ok(received) => received,
            Err(error) => {
                self.record.end_call();
                let announced = Flags::READABLE.with(Flags::READ_DRY);
                return self.nothing_more(announced, &error).map(|()| None);
            }
        };
        if received == 0 {
            self.record.end_call();
            self.flags = self.flags.without(Flags::READABLE).with(Flags::PEER_ENDED);
            return Ok(None);
        }
        Ok(Some(self.record.end_receive(narrow(received), self.now)))
    }

    /// Transforms and sends what is in hand.
    #[inline(always)]
    fn reply(&mut self, hand: Hand) -> Result<(), CloseReason> {
        if !hand.is_full() && !self.flags.has(Flags::READ_DRY) {
            // Everything was received, and new bytes raise a new edge.
            self.flags = self.flags.without(Flags::READABLE);
        }
        let bytes = self.record.bytes_in(hand);
        service::transform(bytes);
        let result = retry(|| self.stream.send(bytes));
        let received = u64::from(hand.length());
        self.record.count(Counter::Reads, 1);
        self.record.count(Counter::BytesIn, received);
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // The bytes stay in hand: the connection owes them until its close.
            Err(error) => return Err(reason_of(&error)),
        };
        self.count_sent(sent);
        if (sent as u64) < received {
            self.flags = self.flags.without(Flags::WRITABLE);
            self.record.count(Counter::Backpressure, 1);
        }
        // Sized so that it cannot happen: one buffer for every connection there may be.
        let kept = self.record.end_send(hand, narrow(sent));
        kept.map_err(|NoBuffer| CloseReason::SystemError)
    }

    /// Discards input until the peer closes: closing with unread input would reset the connection
    /// and could destroy the reply in flight.
    fn discard(&mut self, reason: CloseReason) -> Outcome {
        let mut budget = self.rules.bytes_per_turn;
        while self.flags.has(Flags::READABLE) {
            if budget == 0 {
                return Outcome::Again;
            }
            match retry(|| self.stream.recv(self.record.scratch())) {
                Ok(0) => return Outcome::Close(reason),
                Ok(received) => {
                    self.record.count(Counter::BytesDiscarded, received as u64);
                    budget = budget.saturating_sub(narrow(received));
                }
                Err(error) => {
                    let announced = Flags::READABLE.with(Flags::READ_DRY);
                    if let Err(reason) = self.nothing_more(announced, &error) {
                        return Outcome::Close(reason);
                    }
                }
            }
        }
        Outcome::Waiting
    }

    /// Clears `what` if the call would block; any other error ends the connection.
    fn nothing_more(&mut self, what: Flags, error: &io::Error) -> Result<(), CloseReason> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(reason_of(error));
        }
        self.flags = self.flags.without(what);
        Ok(())
    }

    #[inline]
    fn count_sent(&mut self, sent: usize) {
        if sent > 0 {
            self.record.count(Counter::Writes, 1);
            self.record.count(Counter::BytesOut, sent as u64);
        }
    }
}

/// Ends the stream from here; `state` is the reason why the connection lingers then.
fn end_stream<P: Probe>(
    record: &mut RecordMut<'_, P>,
    stream: &mut impl Stream,
    state: State,
    now: Tick,
) -> Outcome {
    record.begin_linger(state, now);
    match stream.end_output() {
        Ok(()) => Outcome::Waiting,
        Err(error) => Outcome::Close(reason_of(&error)),
    }
}

#[inline]
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Counts come from buffers of at most 64 KiB.
#[inline]
const fn narrow(bytes: usize) -> u32 {
    bytes as u32
}

#[cfg(test)]
mod tests;
