//! One connection of the load from the client's side: bytes requested, bytes owed, and since when.
//!
//! A connection is two positions in one stream and a queue of messages, each with its end in the
//! stream and the start time of its latency. The shell calls [`Connection::begin`] for a message,
//! [`Connection::send`] while bytes are pending, [`Connection::receive`] while bytes are readable,
//! and [`Connection::answered`] after that.
//!
//! Invariants: received ≤ sent ≤ begun; every byte received has been checked; a fault ends the
//! connection. Beginning a message allocates nothing. Pure: the socket is a [`Stream`], the time is
//! passed in.

use std::collections::VecDeque;
use std::io;

use super::failure::Fault;
use super::truth::{PIECE_MAX, Truth};
use uppercased_ctl::clock::Tick;

/// The two directions of a non-blocking stream socket.
pub trait Stream {
    /// Receives at most `into.len()` bytes; returns 0 at the end of the peer's stream.
    ///
    /// # Errors
    /// `WouldBlock` if no data is available; `Interrupted` if the call must be repeated; otherwise
    /// the connection has ended.
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Sends as much of `from` as the kernel accepts, and returns the number of bytes.
    ///
    /// # Errors
    /// See [`Stream::recv`].
    fn send(&mut self, from: &[u8]) -> io::Result<usize>;

    /// Ends this side's stream; the peer receives the end after the last byte.
    ///
    /// # Errors
    /// The connection has already ended.
    fn end_output(&mut self) -> io::Result<()>;
}

/// The state of a connection.
#[derive(Debug)]
pub struct Connection {
    /// Number of the connection, unique among all threads.
    pub number: u64,
    /// Offset in the pattern at which its stream begins.
    start: u64,
    begun: u64,
    sent: u64,
    received: u64,
    /// Unanswered messages, in order.
    messages: VecDeque<Message>,
    /// The last progress of a connection that waits for an answer.
    waiting_since: Tick,
    ended: bool,
}

/// An unanswered message.
#[derive(Clone, Copy, Debug)]
struct Message {
    /// Its end in the stream.
    end: u64,
    /// The start time of its latency.
    from: Tick,
}

/// The result of one receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Number of bytes received, all correct, and whether more may be available.
    Bytes(usize, bool),
    /// Nothing to receive now.
    Nothing,
    /// The end of the stream, with no bytes owed; expected only after this side has ended its own.
    End,
}

impl Connection {
    /// Creates connection `number`, with room for `pipeline` outstanding messages.
    #[must_use]
    pub fn new(number: u64, truth: &Truth, pipeline: usize) -> Self {
        Self {
            number,
            start: truth.start(number),
            begun: 0,
            sent: 0,
            received: 0,
            messages: VecDeque::with_capacity(pipeline),
            waiting_since: Tick::ZERO,
            ended: false,
        }
    }

    /// Resets it to connection `number`, keeping its memory.
    pub fn reset(&mut self, number: u64, truth: &Truth) {
        let mut messages = std::mem::take(&mut self.messages);
        messages.clear();
        *self = Self {
            messages,
            ..Self::new(number, truth, 0)
        };
    }

    /// Begins a message of `size` bytes whose latency counts from `from`.
    #[inline]
    pub fn begin(&mut self, size: u32, from: Tick, now: Tick) {
        if self.messages.is_empty() {
            self.waiting_since = now;
        }
        self.begun += u64::from(size);
        let end = self.begun;
        self.messages.push_back(Message { end, from });
    }

    /// Sends pending bytes, as many as the kernel accepts, and returns the result.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn send(&mut self, stream: &mut impl Stream, truth: &Truth) -> Result<Sent, Fault> {
        let before = self.sent;
        while self.sent < self.begun {
            let piece = truth.to_send(self.start, self.sent, self.begun - self.sent);
            match stream.send(piece) {
                Ok(taken) => {
                    self.sent += taken as u64;
                    if taken < piece.len() {
                        return Ok(Sent::Full(self.sent - before));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Sent::Full(self.sent - before));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
        Ok(Sent::All(self.sent - before))
    }

    /// Ends this side's stream: no further message follows.
    ///
    /// # Errors
    /// The connection broke.
    pub fn end(&mut self, stream: &mut impl Stream) -> Result<(), Fault> {
        self.ended = true;
        stream.end_output().map_err(Fault::Io)
    }

    /// Receives once, and checks the bytes.
    ///
    /// # Errors
    /// The bytes are wrong, too many, or ended early, or the connection broke.
    #[inline]
    pub fn receive(
        &mut self,
        stream: &mut impl Stream,
        buffer: &mut [u8],
        truth: &Truth,
    ) -> Result<Received, Fault> {
        let room = buffer.len().min(PIECE_MAX);
        let count = loop {
            match stream.recv(&mut buffer[..room]) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::Nothing);
                }
                Err(error) => return Err(Fault::Io(error)),
            }
        };
        if count == 0 {
            return if self.ended && self.received == self.begun {
                Ok(Received::End)
            } else {
                Err(self.cut_short())
            };
        }
        if self.received + count as u64 > self.sent {
            // Requested bytes are checked separately from excess ones.
            let asked = (self.sent - self.received) as usize;
            self.check(&buffer[..asked], truth)?;
            let position = self.sent;
            return Err(Fault::TooMuch { position });
        }
        self.check(&buffer[..count], truth)?;
        self.received += count as u64;
        Ok(Received::Bytes(count, count == room))
    }

    /// Accounts at `now` for the bytes received: calls `answer` with the start time of each
    /// completed message's latency. Returns how long the connection had made no progress.
    #[inline]
    pub fn answered(&mut self, mut answer: impl FnMut(Tick), now: Tick) -> Tick {
        while let Some(message) = self.messages.front() {
            if message.end > self.received {
                break;
            }
            answer(message.from);
            self.messages.pop_front();
        }
        std::mem::replace(&mut self.waiting_since, now)
    }

    /// Starts waiting at `now` for the outstanding answers, which were not read before.
    pub const fn wait_from(&mut self, now: Tick) {
        self.waiting_since = now;
    }

    /// Returns the number of outstanding messages.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.messages.len()
    }

    /// Returns whether bytes are waiting to be sent.
    #[inline]
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.sent < self.begun
    }

    /// Returns whether this side has ended its stream.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns since when it has waited for an answer or for the end of the stream; `None` if it
    /// does not wait.
    #[must_use]
    pub fn waits_since(&self) -> Option<Tick> {
        (self.ended || !self.messages.is_empty()).then_some(self.waiting_since)
    }

    /// Returns the fault for a timeout.
    #[must_use]
    pub const fn silence(&self) -> Fault {
        Fault::Silent {
            position: self.received,
            owed: self.begun - self.received,
        }
    }

    const fn cut_short(&self) -> Fault {
        Fault::Ended {
            position: self.received,
            owed: self.begun - self.received,
        }
    }

    #[inline]
    fn check(&self, bytes: &[u8], truth: &Truth) -> Result<(), Fault> {
        truth
            .check(self.start, self.received, bytes)
            .map_err(|wrong| Fault::Wrong {
                position: self.received + wrong.at as u64,
                wrong,
            })
    }
}

/// The result of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All pending bytes were sent; the number sent now.
    All(u64),
    /// The kernel accepts no more now; the number of bytes sent.
    Full(u64),
}

#[cfg(test)]
mod tests;
