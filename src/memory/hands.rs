//! Which parts of the scratch buffer are in use: private, because the words in hand show it.
//!
//! Each receive gets the next word and everything that is left of the scratch buffer; what it left
//! unused is the next one's, from a cache line of its own on. So small messages of many connections
//! share a page. Hands are released in the order of their receipt, and nothing is reused before all
//! of them are.

use super::layout::{HANDS, SCRATCH_BYTES};
use crate::config::RECEIVE_ROOM_MIN;
use crate::sys::shared::LINE_BYTES;

/// Input of one connection in the scratch buffer that is not answered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Hand {
    pub(super) fd: u32,
    /// Its first byte, counted from the scratch buffer's.
    pub(super) start: u32,
    pub(super) len: u32,
    is_full: bool,
}

impl Hand {
    /// Returns the connection's descriptor number.
    #[inline]
    #[must_use]
    pub const fn fd(self) -> u32 {
        self.fd
    }

    /// Returns the number of bytes received.
    #[inline]
    #[must_use]
    pub const fn length(self) -> u32 {
        self.len
    }

    /// Returns whether the bytes fill the room that the receive had, so that there may be more.
    #[inline]
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.is_full
    }
}

/// The hands in use, in the order of their receipt. The word of each is the one of its place.
#[derive(Debug, Default)]
pub(super) struct Hands {
    held: [Hand; HANDS],
    first: usize,
    end: usize,
    /// Where the next receive begins in the scratch buffer.
    start: u32,
    are_full: bool,
}

impl Hands {
    /// Returns the word of the next receive, and its first byte in the scratch buffer.
    #[inline(always)]
    pub(super) const fn next(&self) -> (usize, u32) {
        (self.end, self.start)
    }

    /// Takes what the receive that was offered `room` bytes has brought.
    #[inline(always)]
    pub(super) fn hold(&mut self, fd: u32, len: u32, room: u32) -> Hand {
        let hand = Hand {
            fd,
            start: self.start,
            len,
            is_full: len == room,
        };
        self.held[self.end] = hand;
        self.end += 1;
        let line = LINE_BYTES as u32;
        self.start = (self.start + len + line - 1) & !(line - 1);
        let is_tight = self.start + RECEIVE_ROOM_MIN > SCRATCH_BYTES as u32;
        self.are_full = self.end == HANDS || is_tight || hand.is_full;
        hand
    }

    /// Returns the hand that is answered next, and its word.
    #[inline(always)]
    pub(super) fn first(&self) -> Option<(usize, Hand)> {
        (self.first < self.end).then(|| (self.first, self.held[self.first]))
    }

    /// Releases the hand that is answered next.
    #[inline(always)]
    pub(super) const fn release(&mut self) {
        self.first += 1;
        if self.first >= self.end {
            (self.first, self.end) = (0, 0);
            (self.start, self.are_full) = (0, false);
        }
    }

    #[inline(always)]
    pub(super) const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Returns whether no further receive fits: the hands are then to be answered. That is so after
    /// one that filled its room, since the rest of its input comes next on its connection.
    #[inline(always)]
    pub(super) const fn are_full(&self) -> bool {
        self.are_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_are_apart_until_all_are_released() {
        let mut hands = Hands::default();
        let mut end = 0;
        for fd in 0..HANDS as u32 {
            assert!(!hands.are_full());
            let (word, start) = hands.next();
            assert_eq!((word, start.is_multiple_of(64)), (fd as usize, true));
            assert!(start >= end);
            end = start + hands.hold(fd, 65, 4096).length();
        }
        assert!(hands.are_full());
        for fd in 0..HANDS as u32 {
            assert!(!hands.is_empty());
            assert_eq!(hands.next().0, HANDS);
            assert_eq!(hands.first().map(|(_, hand)| hand.fd()), Some(fd));
            hands.release();
        }
        assert!(hands.is_empty());
        assert_eq!(hands.next(), (0, 0));
    }

    #[test]
    fn full_receive_ends_the_batch() {
        let mut hands = Hands::default();
        assert!(hands.hold(3, 100, 100).is_full());
        assert!(hands.are_full());
        hands.release();
        let most = SCRATCH_BYTES as u32;
        let _ = hands.hold(3, most - RECEIVE_ROOM_MIN, most);
        assert!(!hands.are_full());
        let _ = hands.hold(4, 1, RECEIVE_ROOM_MIN);
        assert!(hands.are_full());
    }
}
