//! The bytes to send and to expect: a pattern in which every byte depends on its position in the
//! connection's stream.
//!
//! Invariants: each connection begins at its own offset, so that an answer on the wrong connection
//! is detected like one that is lost, duplicated or shifted; the period is prime, so no power of
//! two (a buffer, a page, a message) divides an undetectable shift. The pattern is built once;
//! checking is one comparison of two slices. It must not use the server's transformation, which it
//! checks. Pure.

use fastrand::Rng;

use super::options::Expect;

/// Maximum number of bytes sent or checked in one piece.
pub const PIECE_MAX: usize = 64 * 1024;

/// The period for small messages: both tables fit into the second-level cache.
const SMALL_PERIOD: u32 = 131_071;
/// The period for larger messages.
const LARGE_PERIOD: u32 = 1_048_573;
/// Maximum size of a small message in bytes.
const SMALL_MESSAGE: u32 = 16 * 1024;
/// The distance between the offsets of consecutive connections; prime, so that they spread.
const STEP: u64 = 7919;
/// Fixed, so that every measurement sends the same bytes.
const SEED: u64 = 0x7570_7065_7263_6173;

/// The pattern and its answer.
#[derive(Debug)]
pub struct Truth {
    /// One period and one more piece, so that a piece never wraps.
    sent: Vec<u8>,
    /// The answer, of the same length; `None`: answers are counted, not checked.
    answer: Option<Vec<u8>>,
    period: u64,
}

/// A wrong byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its index in the checked bytes.
    pub at: usize,
    /// The expected byte.
    pub expected: u8,
    /// The received byte.
    pub got: u8,
}

impl Truth {
    /// Creates the pattern for messages of at most `largest` bytes.
    #[must_use]
    pub fn new(expect: Expect, largest: u32) -> Self {
        let period = if largest <= SMALL_MESSAGE {
            SMALL_PERIOD
        } else {
            LARGE_PERIOD
        };
        let mut rng = Rng::with_seed(SEED);
        // Half of the bytes are lower-case letters, which a server must change; the others are
        // arbitrary.
        let mut sent: Vec<u8> = (0..period)
            .map(|_| {
                if rng.bool() {
                    rng.u8(b'a'..=b'z')
                } else {
                    rng.u8(..)
                }
            })
            .collect();
        sent.extend_from_within(..PIECE_MAX);
        let answer = match expect {
            Expect::Upper => Some(sent.to_ascii_uppercase()),
            Expect::Echo => Some(sent.clone()),
            Expect::None => None,
        };
        Self {
            sent,
            answer,
            period: u64::from(period),
        }
    }

    /// Returns the offset in the pattern of the stream of connection `number`.
    #[must_use]
    pub fn start(&self, number: u64) -> u64 {
        number.wrapping_mul(STEP) % self.period
    }

    /// Returns the bytes to send from `position` of a stream that begins at `start`: `wanted`
    /// bytes, at most a piece.
    #[inline]
    #[must_use]
    pub fn to_send(&self, start: u64, position: u64, wanted: u64) -> &[u8] {
        let at = self.place(start, position);
        let len = wanted.min(PIECE_MAX as u64) as usize;
        &self.sent[at..at + len]
    }

    /// Checks that `bytes`, at most a piece, are the answer from `position` on.
    ///
    /// # Errors
    /// The first wrong byte.
    #[inline]
    pub fn check(&self, start: u64, position: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let Some(answer) = &self.answer else {
            return Ok(());
        };
        let at = self.place(start, position);
        let expected = &answer[at..at + bytes.len()];
        if expected == bytes {
            return Ok(());
        }
        let differs = |(expected, got): (&u8, &u8)| expected != got;
        let at = expected.iter().zip(bytes).position(differs).unwrap_or(0);
        Err(Wrong {
            at,
            expected: expected[at],
            got: bytes[at],
        })
    }

    #[inline]
    fn place(&self, start: u64, position: u64) -> usize {
        (start.wrapping_add(position) % self.period) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::LazyLock;

    use super::*;

    static UPPER: LazyLock<Truth> = LazyLock::new(|| Truth::new(Expect::Upper, 64));
    static ECHO: LazyLock<Truth> = LazyLock::new(|| Truth::new(Expect::Echo, 64));

    #[test]
    fn stream_is_independent_of_chunking() {
        for largest in [64, 1 << 20] {
            let truth = Truth::new(Expect::Upper, largest);
            let (start, long) = (truth.start(3), 3 * truth.period);
            let mut position = 0;
            let mut whole = Vec::new();
            while position < long {
                let piece = truth.to_send(start, position, long - position);
                whole.extend_from_slice(piece);
                position += piece.len() as u64;
            }
            let again = truth.to_send(start, 1234, 99);
            assert_eq!(again, &whole[1234..1333]);
            whole.make_ascii_uppercase();
            for (at, piece) in whole.chunks(1000).enumerate() {
                truth.check(start, at as u64 * 1000, piece).unwrap();
            }
        }
    }

    #[test]
    fn expected_reply_is_selectable() {
        let upper = Truth::new(Expect::Upper, 64);
        let echo = Truth::new(Expect::Echo, 64);
        let none = Truth::new(Expect::None, 64);
        let sent = upper.to_send(0, 0, 64).to_vec();
        assert!(upper.check(0, 0, &sent).is_err(), "not changed at all");
        assert!(echo.check(0, 0, &sent).is_ok());
        assert!(none.check(0, 0, &[0; 64]).is_ok());
    }

    #[test]
    fn reply_of_another_connection_is_wrong() {
        let truth = &*UPPER;
        for other in 1..2000 {
            let strayed = truth
                .to_send(truth.start(other), 0, 64)
                .to_ascii_uppercase();
            assert!(truth.check(truth.start(0), 0, &strayed).is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn check_finds_wrong_byte(
            position in 0u64..1 << 40, len in 1usize..5000, at: prop::sample::Index, by in 1u8..,
        ) {
            let truth = &*ECHO;
            let mut bytes = truth.to_send(5, position, len as u64).to_vec();
            let at = at.index(len);
            let expected = bytes[at];
            bytes[at] = bytes[at].wrapping_add(by);
            let wrong = Wrong { at, expected, got: bytes[at] };
            prop_assert_eq!(truth.check(5, position, &bytes), Err(wrong));
        }

        #[test]
        fn check_finds_lost_and_duplicated_bytes(position in 0u64..1 << 40, shift in 1u64..131_071) {
            // A shift is detected within the next 32 bytes, except with a probability of about
            // 2^-64.
            let truth = &*UPPER;
            let shifted = truth.to_send(5, position + shift, 32).to_ascii_uppercase();
            prop_assert!(truth.check(5, position, &shifted).is_err());
        }
    }
}
