//! Tracks one conversation: the bytes read from the input, sent and answered, and whether every
//! answer was correct.
//!
//! The three counts are positions in one byte stream. The bytes between them are in a ring buffer
//! of fixed size that they never leave: read into it, sent from it and compared in it, so only the
//! kernel copies them.
//!
//! Invariants: `answered <= sent <= taken <= answered + window`. A byte between `answered` and
//! `sent` is stored as its expected answer, a byte between `sent` and `taken` as it was read.
//!
//! It must not touch a descriptor, grow, or trust the server.

use thiserror::Error;

/// Maximum bytes of one read from the input.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// Maximum unanswered bytes, beyond which reading pauses. Bounds the memory for a transfer of any
/// length; enough for 40 MB/s at a round-trip time of 100 ms.
pub(super) const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// A wrong answer. Offsets count bytes of the conversation from 0.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Fault {
    /// The answer to a byte was not its upper case.
    #[error(
        "wrong reply: byte {offset} is 0x{actual:02x}, expected 0x{expected:02x}; check that this \
         is an uppercased server"
    )]
    WrongByte {
        /// Position in the conversation.
        offset: u64,
        /// The upper case of the byte sent there.
        expected: u8,
        /// The byte received instead.
        actual: u8,
    },

    /// The server sent more than it had received.
    #[error(
        "wrong reply: {extra} bytes more than the {sent} that were sent; check that this is an \
         uppercased server"
    )]
    Extra {
        /// Bytes sent, all of which had been answered.
        sent: u64,
        /// Surplus bytes in this piece; more may have followed.
        extra: u64,
    },

    /// The replies ended before every byte was answered or before the input ended.
    #[error("the server closed the connection; {}", progress(*answered, *missing))]
    EndedEarly {
        /// Bytes answered correctly.
        answered: u64,
        /// Bytes read from the input but not answered; zero if only the input had not ended.
        missing: u64,
    },
}

/// Describes the progress of a conversation, for an error message.
pub(super) fn progress(answered: u64, missing: u64) -> String {
    if missing == 0 {
        format!("all {answered} bytes sent so far were answered")
    } else {
        format!(
            "{missing} of {} bytes were not answered; see the server's log",
            answered.saturating_add(missing)
        )
    }
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Exchange {
    ring: Box<[u8]>,
    /// Stream position of the byte at the start of the ring; never past `answered`.
    origin: u64,
    answered: u64,
    sent: u64,
    taken: u64,
    input_ended: bool,
}

impl Exchange {
    /// Creates a conversation with at most `window` unanswered bytes (at least 1).
    pub(super) fn new(window: usize) -> Self {
        Self {
            ring: vec![0; window.max(1)].into_boxed_slice(),
            origin: 0,
            answered: 0,
            sent: 0,
            taken: 0,
            input_ended: false,
        }
    }

    /// Returns the room for the next input; [`Self::take`] must follow.
    ///
    /// It is empty only if the window is full.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.answered == self.taken {
            // Nothing is in flight: restart at the front, so that a light conversation touches only
            // a few cached pages of the ring.
            self.origin = self.taken;
        }
        let start = self.index(self.taken);
        let end = self.ring.len().min(start + self.free().min(READ_BYTES));
        &mut self.ring[start..end]
    }

    /// Adds `len` bytes of input, which are at the start of [`Self::room`].
    pub(super) fn take(&mut self, len: usize) {
        debug_assert!(!self.input_ended, "input after its end");
        debug_assert!(len <= self.free(), "more taken than there was room for");
        self.taken += len as u64;
        self.check_invariants();
    }

    /// Marks the end of the input.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// Marks the first `len` bytes of [`Self::unsent`] as sent: from now on they can be answered.
    pub(super) fn mark_sent(&mut self, len: usize) {
        let start = self.index(self.sent);
        // Uses the standard library's upper-casing, not this crate's, because the client must not
        // share the code that it checks.
        self.ring[start..start + len].make_ascii_uppercase();
        self.sent += len as u64;
        self.check_invariants();
    }

    /// Checks a piece of the reply against what was sent.
    ///
    /// # Errors
    ///
    /// [`Fault::WrongByte`] and [`Fault::Extra`]; both end the conversation.
    pub(super) fn check_reply(&mut self, mut reply: &[u8]) -> Result<(), Fault> {
        while !reply.is_empty() {
            let expected = self.stored(self.answered, self.sent);
            let len = expected.len().min(reply.len());
            if len == 0 {
                return Err(Fault::Extra {
                    sent: self.sent,
                    extra: reply.len() as u64,
                });
            }
            let (piece, rest) = reply.split_at(len);
            let expected = &expected[..len];
            // Compare first, then find the position: equality of slices is the fast path.
            if piece != expected {
                return Err(first_difference(self.answered, expected, piece));
            }
            self.answered += len as u64;
            reply = rest;
        }
        self.check_invariants();
        Ok(())
    }

    /// Returns the result after the server has closed its side gracefully.
    ///
    /// # Errors
    ///
    /// [`Fault::EndedEarly`], unless the input has ended and all of it was answered.
    pub(super) fn end_replies(&self) -> Result<(), Fault> {
        if self.input_ended && self.missing() == 0 {
            return Ok(());
        }
        Err(Fault::EndedEarly {
            answered: self.answered,
            missing: self.missing(),
        })
    }

    /// Returns the next bytes to send that are contiguous; empty only if all were sent.
    pub(super) fn unsent(&self) -> &[u8] {
        self.stored(self.sent, self.taken)
    }

    /// Returns whether to read input: it has not ended, and a whole read fits in the window.
    ///
    /// Requiring room for a whole read prevents small reads while the window is nearly full.
    pub(super) fn wants_input(&self) -> bool {
        !self.input_ended && self.free() >= READ_BYTES.min(self.ring.len())
    }

    /// Returns whether the input has ended and all of it was sent, so that the client half-closes.
    pub(super) fn is_all_sent(&self) -> bool {
        self.input_ended && self.sent == self.taken
    }

    /// Returns whether the input has ended.
    pub(super) fn has_input_ended(&self) -> bool {
        self.input_ended
    }

    /// Returns the number of bytes answered correctly.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Returns the number of bytes read from the input and not answered.
    pub(super) fn missing(&self) -> u64 {
        self.taken - self.answered
    }

    /// Returns the number of bytes that may still be read.
    fn free(&self) -> usize {
        let held = usize::try_from(self.missing())
            .expect("invariant: no more than the ring's length is unanswered");
        self.ring.len() - held
    }

    /// Returns the index in the ring for a stream position.
    fn index(&self, position: u64) -> usize {
        let index = (position - self.origin) % self.ring.len() as u64;
        usize::try_from(index).expect("invariant: a remainder is below the ring's length")
    }

    /// Returns the bytes between two stream positions that are contiguous.
    fn stored(&self, from: u64, to: u64) -> &[u8] {
        let len = usize::try_from(to - from)
            .expect("invariant: what is stored is no longer than the ring");
        let start = self.index(from);
        &self.ring[start..self.ring.len().min(start + len)]
    }

    fn check_invariants(&self) {
        debug_assert!(self.origin <= self.answered);
        debug_assert!(self.answered <= self.sent);
        debug_assert!(self.sent <= self.taken);
        debug_assert!(self.taken - self.answered <= self.ring.len() as u64);
    }
}

/// Returns the fault at the first byte that differs between two pieces of equal length, which begin
/// at stream position `start`.
fn first_difference(start: u64, expected: &[u8], actual: &[u8]) -> Fault {
    let (offset, (&expected, &actual)) = (start..)
        .zip(expected.iter().zip(actual))
        .find(|(_, (expected, actual))| expected != actual)
        .expect("invariant: only called for pieces that differ");
    Fault::WrongByte {
        offset,
        expected,
        actual,
    }
}

#[cfg(test)]
mod tests;
