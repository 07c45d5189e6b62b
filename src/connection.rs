//! One connection: bytes in, the same bytes upper-cased out, and when it is over.
//!
//! Everything a connection is lies in its record in the working memory; this file holds the rules
//! by which the record changes. [`drive`] serves it as far as readiness and budget allow,
//! [`expire`] answers its deadline, [`deadline`] says when that is.
//!
//! Invariants:
//! - what is sent is what was received, upper-cased, in order, nothing added or left out;
//! - while output is pending nothing is received (backpressure), so a connection holds at most one
//!   buffer of it;
//! - an end of stream is answered only after the last byte owed;
//! - a recorded readiness bit is cleared only by the kernel's own word that there is nothing more.
//!
//! It must not know of sockets, clocks, the event loop or logs: the socket is a [`Stream`], the
//! time is handed in.

use std::io;
use std::time::Duration;

use crate::clock::Tick;
use crate::memory::layout::{Flags, State};
use crate::memory::{Memory, Probe};
use crate::metrics::{CloseReason, Counter};
use crate::uppercase::make_uppercase;

/// The two directions of a non-blocking stream socket.
pub trait Stream {
    /// Receives at most `into.len()` bytes; 0 is the end of the peer's stream.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing now; `Interrupted` to be called again; else the
    /// connection is over.
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Sends as much of `from` as the kernel takes, and says how much that was.
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

/// What a connection may use and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes received in one turn of the loop; the call that reaches it still completes.
    pub bytes_per_turn: u32,
    /// Nothing moved for this long: the stream is ended.
    pub idle_timeout: Option<Duration>,
    /// Pending output and none of it taken for this long: the connection is cut.
    pub write_stall_timeout: Option<Duration>,
    /// How long the peer has to close once its stream was ended from here.
    pub linger_timeout: Duration,
}

/// What is to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It waits for readiness or its deadline.
    Waiting,
    /// Its budget is used up and there may be more: call again in the next turn.
    Again,
    /// It is over and its descriptor is to be closed. What it owed stays recorded until
    /// [`Memory::closing`] says so.
    Close(CloseReason),
}

/// Serves connection `fd` as far as its readiness and budget allow.
#[inline]
pub fn drive<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    rules: &Rules,
    now: Tick,
) -> Outcome {
    let head = memory.head(fd);
    let mut flags = head.flags;
    let outcome = match head.state {
        State::Open => serve(memory, fd, stream, rules, &mut flags, now),
        State::LingeringIdle => {
            discard(memory, stream, rules, &mut flags, CloseReason::IdleTimeout)
        }
        State::LingeringStop => discard(memory, stream, rules, &mut flags, CloseReason::Drained),
        State::Free | State::Closing => Outcome::Waiting,
    };
    memory.set_flags(fd, flags);
    outcome
}

/// When connection `fd` must be looked at even if nothing happens to it.
#[must_use]
pub fn deadline<P: Probe>(memory: &Memory<P>, fd: u32, rules: &Rules) -> Option<Tick> {
    let patience = match memory.head(fd).state {
        State::Open if memory.pending(fd).is_some() => rules.write_stall_timeout?,
        State::Open => rules.idle_timeout?,
        State::LingeringIdle | State::LingeringStop => rules.linger_timeout,
        State::Free | State::Closing => return None,
    };
    Some(memory.last_progress(fd) + patience)
}

/// Acts on the deadline of connection `fd`, if it has passed.
pub fn expire<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    rules: &Rules,
    now: Tick,
) -> Outcome {
    if deadline(memory, fd, rules).is_none_or(|due| due > now) {
        return Outcome::Waiting;
    }
    match memory.head(fd).state {
        State::Open if memory.pending(fd).is_some() => Outcome::Close(CloseReason::WriteStall),
        State::Open => end_stream(memory, fd, stream, State::LingeringIdle, now),
        State::LingeringIdle => Outcome::Close(CloseReason::IdleTimeout),
        State::LingeringStop => Outcome::Close(CloseReason::Drained),
        State::Free | State::Closing => Outcome::Waiting,
    }
}

/// The reason behind an error of a connection's socket. A peer's reset is an outcome, not an error.
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

#[inline]
fn serve<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    rules: &Rules,
    flags: &mut Flags,
    now: Tick,
) -> Outcome {
    let mut budget = rules.bytes_per_turn;
    loop {
        match flush(memory, fd, stream, flags, now) {
            Progress::Clear => {}
            Progress::Blocked => return Outcome::Waiting,
            Progress::Over(reason) => return Outcome::Close(reason),
        }
        if flags.has(Flags::PEER_ENDED) {
            return Outcome::Close(CloseReason::PeerClosed);
        }
        if !flags.has(Flags::READABLE) {
            return if flags.has(Flags::FINISH) {
                end_stream(memory, fd, stream, State::LingeringStop, now)
            } else {
                Outcome::Waiting
            };
        }
        if budget == 0 {
            return Outcome::Again;
        }
        match exchange(memory, fd, stream, flags, now) {
            Ok(moved) => budget = budget.saturating_sub(moved),
            Err(reason) => return Outcome::Close(reason),
        }
    }
}

enum Progress {
    Clear,
    Blocked,
    Over(CloseReason),
}

/// Sends what is pending; [`Progress::Clear`] if nothing is.
#[inline]
fn flush<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    flags: &mut Flags,
    now: Tick,
) -> Progress {
    if memory.pending(fd).is_none() {
        return Progress::Clear;
    }
    if !flags.has(Flags::WRITABLE) {
        return Progress::Blocked;
    }
    let result = memory.flushing(fd).map(|rest| retry(|| stream.send(rest)));
    match result {
        None => Progress::Clear,
        Some(Ok(sent)) => {
            count_sent(memory, sent);
            if memory.flushed(fd, narrow(sent), now) {
                return Progress::Clear;
            }
            // A short send is the kernel's word that it is full; the next edge will come.
            *flags = flags.without(Flags::WRITABLE);
            Progress::Blocked
        }
        Some(Err(error)) => {
            memory.settled();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Progress::Over(reason_of(&error));
            }
            *flags = flags.without(Flags::WRITABLE);
            Progress::Blocked
        }
    }
}

/// Receives once and answers what came; returns the bytes received.
#[inline]
fn exchange<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    flags: &mut Flags,
    now: Tick,
) -> Result<u32, CloseReason> {
    let scratch = memory.receiving(fd);
    let room = scratch.len();
    let received = match retry(|| stream.recv(scratch)) {
        Ok(received) => received,
        Err(error) => {
            memory.settled();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(reason_of(&error));
            }
            *flags = flags.without(Flags::READABLE).without(Flags::READ_DRY);
            return Ok(0);
        }
    };
    if received == 0 {
        memory.settled();
        *flags = flags.without(Flags::READABLE).with(Flags::PEER_ENDED);
        return Ok(0);
    }
    if received < room && !flags.has(Flags::READ_DRY) {
        // Everything there was has been taken, and whatever comes now raises an edge of its own.
        *flags = flags.without(Flags::READABLE);
    }
    let bytes = memory.received(fd, narrow(received), now);
    make_uppercase(bytes);
    let result = retry(|| stream.send(bytes));
    memory.count(Counter::Reads, 1);
    memory.count(Counter::BytesIn, received as u64);
    let sent = match result {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        // What came stays in hand: from here to its close the connection owes it.
        Err(error) => return Err(reason_of(&error)),
    };
    count_sent(memory, sent);
    if sent < received {
        *flags = flags.without(Flags::WRITABLE);
        memory.count(Counter::Backpressure, 1);
    }
    if memory.sent(fd, narrow(sent), narrow(received)).is_err() {
        // Sized so that it cannot happen: one buffer for every connection there may be.
        return Err(CloseReason::SystemError);
    }
    Ok(narrow(received))
}

/// Throws input away until the peer closes: closing with unread input would reset the connection
/// and could destroy the reply in flight.
fn discard<P: Probe>(
    memory: &mut Memory<P>,
    stream: &mut impl Stream,
    rules: &Rules,
    flags: &mut Flags,
    reason: CloseReason,
) -> Outcome {
    let mut budget = rules.bytes_per_turn;
    while flags.has(Flags::READABLE) {
        if budget == 0 {
            return Outcome::Again;
        }
        match retry(|| stream.recv(memory.spare())) {
            Ok(0) => return Outcome::Close(reason),
            Ok(received) => {
                memory.count(Counter::BytesDiscarded, received as u64);
                budget = budget.saturating_sub(narrow(received));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *flags = flags.without(Flags::READABLE).without(Flags::READ_DRY);
            }
            Err(error) => return Outcome::Close(reason_of(&error)),
        }
    }
    Outcome::Waiting
}

fn end_stream<P: Probe>(
    memory: &mut Memory<P>,
    fd: u32,
    stream: &mut impl Stream,
    state: State,
    now: Tick,
) -> Outcome {
    memory.lingering(fd, state, now);
    match stream.end_output() {
        Ok(()) => Outcome::Waiting,
        Err(error) => Outcome::Close(reason_of(&error)),
    }
}

fn count_sent<P: Probe>(memory: &mut Memory<P>, sent: usize) {
    if sent > 0 {
        memory.count(Counter::Writes, 1);
        memory.count(Counter::BytesOut, sent as u64);
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
