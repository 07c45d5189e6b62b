//! The account of one conversation: what was taken from the input, what of it was sent, what of
//! that was answered, and whether every answer was right.
//!
//! The three counts are positions in one stream of bytes, and the bytes between them live in one
//! ring of fixed size, so a byte is copied only by the kernel: read into the ring, sent from it,
//! compared in it.
//!
//! Invariants: `answered <= sent <= taken <= answered + window`. A byte between `answered` and
//! `sent` is stored as the answer it must get, one between `sent` and `taken` as it was read.
//!
//! What it must not do: touch a descriptor, grow, or trust the server.

use thiserror::Error;

/// Bytes that one read takes from the input, at most.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// Bytes that may be unanswered before the input is left waiting: what a transfer of any length
/// costs in memory, and what 40 MB/s need on a path with a round trip of 100 ms.
pub(super) const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// What was wrong with the answers. Offsets count bytes of the conversation from 0.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Fault {
    /// The answer to one byte was not its upper-case.
    #[error(
        "wrong reply: byte {offset} is 0x{actual:02x}, expected 0x{expected:02x}; check that this \
         is an uppercased server"
    )]
    WrongByte {
        /// Where in the conversation.
        offset: u64,
        /// The upper-case of the byte that was sent there.
        expected: u8,
        /// What came back instead.
        actual: u8,
    },

    /// More came back than had been sent.
    #[error(
        "wrong reply: {extra} bytes more than the {sent} that were sent; check that this is an \
         uppercased server"
    )]
    Extra {
        /// Bytes sent, all of which had been answered.
        sent: u64,
        /// Bytes in the piece that had no question; more may have followed it.
        extra: u64,
    },

    /// The replies ended before everything was answered, or before the input ended.
    #[error("the server closed the connection; {}", progress(*answered, *missing))]
    EndedEarly {
        /// Bytes that were answered, rightly.
        answered: u64,
        /// Bytes taken from the input that were not; zero if only the input was not at its end.
        missing: u64,
    },
}

/// How far a conversation came, for an error message.
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
    /// Stream position whose byte is at the start of the ring; never past `answered`.
    origin: u64,
    answered: u64,
    sent: u64,
    taken: u64,
    input_ended: bool,
}

impl Exchange {
    /// A conversation that has `window` bytes unanswered at most (at least 1).
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

    /// Where the next input goes; to be followed by [`Self::take`].
    ///
    /// Empty only if the window is full.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.answered == self.taken {
            // Nothing in flight: start over at the front, so that a light conversation stays in
            // the few pages that are in the cache instead of walking through all of the ring.
            self.origin = self.taken;
        }
        let start = self.index(self.taken);
        let end = self.ring.len().min(start + self.free().min(READ_BYTES));
        &mut self.ring[start..end]
    }

    /// `len` bytes of input were put at the start of [`Self::room`].
    pub(super) fn take(&mut self, len: usize) {
        debug_assert!(!self.input_ended, "input after its end");
        debug_assert!(len <= self.free(), "more taken than there was room for");
        self.taken += len as u64;
        self.check_invariants();
    }

    /// There will be no more input.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// The first `len` bytes of [`Self::unsent`] were sent: from now on they can be answered.
    pub(super) fn mark_sent(&mut self, len: usize) {
        let start = self.index(self.sent);
        // The standard library's upper-casing, not this crate's: the client is a check on the
        // server and must not share its code.
        self.ring[start..start + len].make_ascii_uppercase();
        self.sent += len as u64;
        self.check_invariants();
    }

    /// Checks a piece of the reply against what was sent.
    ///
    /// # Errors
    ///
    /// [`Fault::WrongByte`] and [`Fault::Extra`]; the conversation is then over.
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
            // Compare first and look for the place after: equality of slices is the fast path.
            if piece != expected {
                return Err(first_difference(self.answered, expected, piece));
            }
            self.answered += len as u64;
            reply = rest;
        }
        self.check_invariants();
        Ok(())
    }

    /// The verdict when the server has ended its replies in order.
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

    /// The bytes to send next, as far as they lie in one piece; empty only if all were sent.
    pub(super) fn unsent(&self) -> &[u8] {
        self.stored(self.sent, self.taken)
    }

    /// Whether input should be read: it has not ended, and a whole read fits in the window.
    ///
    /// Waiting for a whole read's room keeps a full window from being refilled in crumbs.
    pub(super) fn wants_input(&self) -> bool {
        !self.input_ended && self.free() >= READ_BYTES.min(self.ring.len())
    }

    /// Whether the input has ended and all of it was sent: time to half-close.
    pub(super) fn is_all_sent(&self) -> bool {
        self.input_ended && self.sent == self.taken
    }

    /// Whether the input has ended.
    pub(super) fn has_input_ended(&self) -> bool {
        self.input_ended
    }

    /// Bytes answered, rightly.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Bytes taken from the input and not answered.
    pub(super) fn missing(&self) -> u64 {
        self.taken - self.answered
    }

    /// Bytes that may still be taken.
    fn free(&self) -> usize {
        let held = usize::try_from(self.missing())
            .expect("invariant: no more than the ring's length is unanswered");
        self.ring.len() - held
    }

    /// Where in the ring the byte at a stream position is.
    fn index(&self, position: u64) -> usize {
        let index = (position - self.origin) % self.ring.len() as u64;
        usize::try_from(index).expect("invariant: a remainder is below the ring's length")
    }

    /// The bytes between two stream positions, as far as they lie in one piece.
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

/// The first byte that differs between two pieces of one length, the first of which is at
/// stream position `start`.
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
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Takes as much of `input` as the exchange has room for in one piece, `limit` at most.
    fn feed(exchange: &mut Exchange, input: &[u8], limit: usize) -> usize {
        let room = exchange.room();
        let len = room.len().min(input.len()).min(limit);
        room[..len].copy_from_slice(&input[..len]);
        exchange.take(len);
        len
    }

    fn ask(window: usize, text: &[u8]) -> Exchange {
        let mut exchange = Exchange::new(window);
        assert_eq!(feed(&mut exchange, text, usize::MAX), text.len());
        exchange.mark_sent(text.len());
        exchange
    }

    #[test]
    fn a_whole_conversation_is_in_order() {
        let mut exchange = ask(16, b"hi\n");
        exchange.end_input();
        assert!(exchange.is_all_sent());
        assert_eq!(exchange.check_reply(b"HI\n"), Ok(()));
        assert_eq!(exchange.end_replies(), Ok(()));
    }

    #[test]
    fn nothing_asked_and_nothing_answered_is_in_order() {
        let mut exchange = Exchange::new(16);
        exchange.end_input();
        assert_eq!(exchange.end_replies(), Ok(()));
    }

    #[test]
    fn an_echo_is_a_wrong_answer() {
        let fault = Fault::WrongByte {
            offset: 1,
            expected: b'I',
            actual: b'i',
        };
        assert_eq!(ask(16, b"Hi").check_reply(b"Hi"), Err(fault));
    }

    #[test]
    fn an_answer_before_its_question_is_extra() {
        let mut exchange = Exchange::new(16);
        feed(&mut exchange, b"hi", 2);
        // Read but not sent: the server cannot know it, so this is not an answer to it.
        let fault = exchange.check_reply(b"HI").unwrap_err();
        assert_eq!(fault, Fault::Extra { sent: 0, extra: 2 });
    }

    #[test]
    fn an_early_end_tells_what_is_missing() {
        let mut exchange = ask(16, b"hello");
        exchange.check_reply(b"HE").unwrap();
        exchange.end_input();
        let fault = exchange.end_replies().unwrap_err();
        assert_eq!(
            fault.to_string(),
            "the server closed the connection; 3 of 5 bytes were not answered; see the server's log"
        );
    }

    #[test]
    fn an_end_before_the_end_of_input_is_early() {
        let mut exchange = ask(16, b"hi");
        exchange.check_reply(b"HI").unwrap();
        let fault = Fault::EndedEarly {
            answered: 2,
            missing: 0,
        };
        assert_eq!(exchange.end_replies(), Err(fault));
    }

    #[test]
    fn a_full_window_takes_no_input_until_it_is_answered() {
        let mut exchange = ask(4, b"abcd");
        assert!(!exchange.wants_input());
        assert!(exchange.room().is_empty());
        exchange.check_reply(b"ABCD").unwrap();
        assert!(exchange.wants_input());
        assert_eq!(exchange.room().len(), 4);
    }

    /// One step of a schedule: how much is read, sent and answered.
    fn steps() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        vec((0..40_usize, 0..40_usize, 0..40_usize), 1..60)
    }

    /// Runs `input` through an exchange by the schedule, repeated until done, with a server that
    /// answers `answer(position, byte)`.
    fn converse(
        window: usize,
        input: &[u8],
        schedule: &[(usize, usize, usize)],
        answer: impl Fn(usize, u8) -> u8,
    ) -> Result<(), Fault> {
        let mut exchange = Exchange::new(window);
        let (mut read, mut wire, mut replied) = (0, Vec::new(), 0);
        let mut turn = 0;
        loop {
            // Every turn of the schedule moves at least one byte, so that it ends.
            let (take, send, reply) = schedule[turn % schedule.len()];
            turn += 1;
            if !exchange.has_input_ended() {
                read += feed(&mut exchange, &input[read..], take + 1);
                if read == input.len() {
                    exchange.end_input();
                }
            }
            let len = exchange.unsent().len().min(send + 1);
            wire.extend_from_slice(&exchange.unsent()[..len]);
            exchange.mark_sent(len);
            assert_eq!(wire, input[..wire.len()], "sent as it was read, in order");
            let end = wire.len().min(replied + reply + 1);
            let piece: Vec<u8> = (replied..end).map(|at| answer(at, wire[at])).collect();
            exchange.check_reply(&piece)?;
            replied = end;
            assert!(exchange.missing() <= window as u64, "the window bounds it");
            assert_eq!(exchange.answered(), replied as u64);
            if exchange.is_all_sent() && replied == input.len() {
                return exchange.end_replies();
            }
        }
    }

    proptest! {
        #[test]
        fn any_chunking_of_a_right_answer_is_accepted(
            input in vec(any::<u8>(), 0..400),
            window in 1..100_usize,
            schedule in steps(),
        ) {
            let verdict = converse(window, &input, &schedule, |_, byte| byte.to_ascii_uppercase());
            prop_assert_eq!(verdict, Ok(()));
        }

        #[test]
        fn any_wrong_byte_is_found_where_it_is(
            input in vec(any::<u8>(), 1..400),
            place in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
            window in 1..100_usize,
            schedule in steps(),
        ) {
            let wrong = place.index(input.len());
            let verdict = converse(window, &input, &schedule, |at, byte| {
                byte.to_ascii_uppercase() ^ if at == wrong { flip } else { 0 }
            });
            let expected = input[wrong].to_ascii_uppercase();
            prop_assert_eq!(verdict, Err(Fault::WrongByte {
                offset: wrong as u64,
                expected,
                actual: expected ^ flip,
            }));
        }

        #[test]
        fn any_cut_and_any_surplus_is_counted(
            input in vec(any::<u8>(), 1..100),
            answered in any::<prop::sample::Index>(),
            surplus in vec(any::<u8>(), 1..100),
        ) {
            let mut right = input.clone();
            right.make_ascii_uppercase();
            let cut = answered.index(input.len());
            let mut exchange = ask(100, &input);
            exchange.end_input();
            exchange.check_reply(&right[..cut]).unwrap();
            prop_assert_eq!(exchange.end_replies(), Err(Fault::EndedEarly {
                answered: cut as u64,
                missing: (input.len() - cut) as u64,
            }));

            right.extend_from_slice(&surplus);
            prop_assert_eq!(exchange.check_reply(&right[cut..]), Err(Fault::Extra {
                sent: input.len() as u64,
                extra: surplus.len() as u64,
            }));
        }
    }
}
