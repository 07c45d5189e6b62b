//! One connection of the load, as seen by the client: what was asked, what is owed, and since when.
//!
//! A connection is two positions in one stream and a queue of messages, each with its end in the
//! stream and the time from which its answer counts. The shell calls [`Connection::begin`] for a
//! message, [`Connection::send`] while there is something to send, [`Connection::receive`] while
//! there is something to read, and [`Connection::answered`] after that.
//!
//! Invariants: received ≤ sent ≤ begun; every byte received has been checked; a fault ends the
//! connection. A message that is begun allocates nothing.
//! Pure: the socket is a [`Stream`], the time is handed in.

use std::collections::VecDeque;
use std::io;

use super::failure::Fault;
use super::truth::{PIECE_MAX, Truth};
use uppercased_ctl::clock::Tick;

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

/// A connection's account.
#[derive(Debug)]
pub struct Connection {
    /// Which, of all there ever are.
    pub number: u64,
    /// Where its stream begins in the pattern.
    start: u64,
    begun: u64,
    sent: u64,
    received: u64,
    /// Messages that are not answered, in order.
    messages: VecDeque<Message>,
    /// Since when it waits for an answer and nothing came.
    waiting_since: Tick,
    ended: bool,
}

/// A message that is not answered.
#[derive(Clone, Copy, Debug)]
struct Message {
    /// Where it ends in the stream.
    end: u64,
    /// From when its answer's time counts.
    from: Tick,
}

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, all of them right; whether there may be more.
    Bytes(usize, bool),
    /// Nothing now.
    Nothing,
    /// The end, and nothing is owed; expected only after this side has ended its stream.
    End,
}

impl Connection {
    /// The connection `number`, with room for `pipeline` messages on their way.
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

    /// Begins anew as connection `number`, keeping its memory.
    pub fn renew(&mut self, number: u64, truth: &Truth) {
        let mut messages = std::mem::take(&mut self.messages);
        messages.clear();
        *self = Self {
            messages,
            ..Self::new(number, truth, 0)
        };
    }

    /// Takes a message of `size` bytes on; its answer's time counts from `from`.
    #[inline]
    pub fn begin(&mut self, size: u32, from: Tick, now: Tick) {
        if self.messages.is_empty() {
            self.waiting_since = now;
        }
        self.begun += u64::from(size);
        let end = self.begun;
        self.messages.push_back(Message { end, from });
    }

    /// Sends what was begun, as much as the kernel takes: how much that was.
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

    /// Ends this side's stream: no message will follow.
    ///
    /// # Errors
    /// The connection broke.
    pub fn end(&mut self, stream: &mut impl Stream) -> Result<(), Fault> {
        self.ended = true;
        stream.end_output().map_err(Fault::Io)
    }

    /// Receives once, and checks what came.
    ///
    /// # Errors
    /// It is wrong, or too much, or ended before its time; or the connection broke.
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
            // What is right of it is told apart from what is too much.
            let asked = (self.sent - self.received) as usize;
            self.check(&buffer[..asked], truth)?;
            let position = self.sent;
            return Err(Fault::TooMuch { position });
        }
        self.check(&buffer[..count], truth)?;
        self.received += count as u64;
        Ok(Received::Bytes(count, count == room))
    }

    /// Takes note, at `now`, of what was received: `answer` is told from when each message that is
    /// complete counts. Returns how long nothing had come.
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

    /// Messages on their way.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is something to send.
    #[inline]
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.sent < self.begun
    }

    /// Whether this side has ended its stream.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Since when it waits in vain for an answer, or for the end of the stream; `None` if it does
    /// not wait.
    #[must_use]
    pub fn waits_since(&self) -> Option<Tick> {
        (self.ended || !self.messages.is_empty()).then_some(self.waiting_since)
    }

    /// What giving up waiting is called.
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

/// How far a send got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Everything that was begun is sent; so many bytes now.
    All(u64),
    /// The kernel takes no more now; so many bytes it took.
    Full(u64),
}

#[cfg(test)]
mod tests;
