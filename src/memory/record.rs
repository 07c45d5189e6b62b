//! One record of the working memory: the state of a connection, and the store rules by which it
//! changes.
//!
//! A [`Record`] reads and a [`RecordMut`] writes; both are found once, by descriptor number, and
//! then hold their cache line. The rules are listed in [the module above](super); each method names
//! its rule, and makes its stores in the sequence that the rule requires.
//!
//! Invariant: the first word is read once, when the handle is created, and kept in it: a record has
//! one writer, the holder of the handle.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::Ordering;

use super::counters::add;
use super::hands::{Hand, Hands};
use super::layout::{Flags, HANDS, Head, InHand, Layout, Pending, Place, State};
use super::pool::Pool;
use super::store::{Probe, Unprobed, store};
use crate::sys::shared::{Bytes, Line, Words};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::Counter;

/// The words of a record.
pub(super) const HEAD: usize = 0;
pub(super) const PENDING: usize = 1;
const BYTES_IN: usize = 2;
const BYTES_OUT: usize = 3;
const LAST_PROGRESS: usize = 4;
/// When it was accepted, in nanoseconds, with the length of its PROXY header in the lowest bits.
const OPENED: usize = 5;
const ADDRESS: usize = 6;
/// The bits of [`OPENED`] that hold the length of the header.
const HEADER_BITS: u64 = 0xffff;

/// A record, to be read.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    words: &'a Line,
    head: u64,
}

/// A record, to be written by its owner.
#[derive(Debug)]
pub struct RecordMut<'a, P = Unprobed> {
    pub(super) record: Record<'a>,
    pub(super) fd: u32,
    pub(super) layout: Layout,
    pub(super) scratch: usize,
    pub(super) words: Words<'a>,
    pub(super) bytes: Bytes<'a>,
    pub(super) pool: &'a mut Pool,
    pub(super) hands: &'a mut Hands,
    pub(super) probe: &'a mut P,
}

/// Everything a record contains.
pub(super) struct Entry {
    pub(super) pending: Option<Pending>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) last_progress: Tick,
    pub(super) opened: Tick,
    pub(super) header_bytes: u16,
    pub(super) peer: SocketAddr,
    pub(super) state: State,
    pub(super) flags: Flags,
    pub(super) generation: u32,
}

/// The pool of pending-output buffers is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no buffer is left for pending output")]
pub struct NoBuffer;

impl<'a> Record<'a> {
    /// Returns the record in line `words`.
    #[inline]
    pub(super) fn new(words: &'a Line) -> Self {
        let head = words.0[HEAD].load(Ordering::Relaxed);
        Self { words, head }
    }

    /// Returns the first word, which reads as free if no [`Head`] packs to it.
    #[inline]
    const fn head(&self) -> Head {
        match Head::unpack(self.head) {
            Some(head) => head,
            None => Head::FREE,
        }
    }

    /// Returns whether it is an open connection of `generation` with exactly the flags `flags`, and
    /// no output is pending.
    #[inline]
    #[must_use]
    pub fn is_open_with(&self, generation: u32, flags: Flags) -> bool {
        let expected = Head {
            state: State::Open,
            flags,
            port: 0,
            generation,
        };
        let differs = (self.head ^ expected.pack()) & !Head::PORT;
        differs | self.load(PENDING) == 0
    }

    /// Returns the state.
    #[inline]
    #[must_use]
    pub const fn state(&self) -> State {
        self.head().state
    }

    /// Returns the state of the connection between two readiness reports.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> Flags {
        Head::flags_of(self.head)
    }

    /// Distinguishes the connection from earlier ones with the same descriptor number.
    #[inline]
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.head().generation
    }

    /// Returns the output that the kernel has not accepted yet.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> Option<Pending> {
        Pending::unpack(self.load(PENDING))
    }

    /// Returns when bytes last moved; or when the stream was ended from here, once it lingers.
    #[inline]
    #[must_use]
    pub fn last_progress(&self) -> Tick {
        Tick::from_nanos(self.load(LAST_PROGRESS))
    }

    /// Returns when the connection was accepted, rounded down to 65 us.
    #[must_use]
    pub fn opened_at(&self) -> Tick {
        Tick::from_nanos(self.load(OPENED) & !HEADER_BITS)
    }

    /// Returns the length of the PROXY header that was received; 0 without one. The kernel counts
    /// these bytes as read, and the record does not.
    #[must_use]
    pub fn header_bytes(&self) -> u16 {
        (self.load(OPENED) & HEADER_BITS) as u16
    }

    /// Returns the numbers of bytes received from the peer and sent to it.
    #[must_use]
    pub fn bytes_moved(&self) -> (u64, u64) {
        (self.load(BYTES_IN), self.load(BYTES_OUT))
    }

    /// Returns the peer's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        let high = u128::from(self.load(ADDRESS)) << 64;
        let address = Ipv6Addr::from_bits(high | u128::from(self.load(ADDRESS + 1)));
        SocketAddr::new(address.to_canonical(), self.head().port)
    }

    #[inline]
    fn load(&self, word: usize) -> u64 {
        self.words.0[word].load(Ordering::Relaxed)
    }
}

impl<'a, P> Deref for RecordMut<'a, P> {
    type Target = Record<'a>;

    #[inline]
    fn deref(&self) -> &Record<'a> {
        &self.record
    }
}

impl<P: Probe> RecordMut<'_, P> {
    /// Returns the connection's descriptor number.
    #[inline]
    #[must_use]
    pub const fn fd(&self) -> u32 {
        self.fd
    }

    /// Rule 1, before the call: returns room in the scratch buffer, in hand for this connection. Not
    /// to be called when the words in hand are used up:
    /// [`Memory::must_answer`](super::Memory::must_answer).
    #[inline(always)]
    pub fn begin_receive(&mut self) -> &mut [u8] {
        debug_assert!(
            self.pending().is_none(),
            "nothing is received while output is pending"
        );
        debug_assert!(!self.is_in_hand(), "a connection is in one word only");
        let (word, start) = self.hands.next();
        let (fd, len) = (self.fd, 0);
        self.set_in_hand(word, InHand::Recv { fd, start, len });
        let room = self.layout.room_at(start) as usize;
        self.bytes.range(self.scratch + start as usize, room)
    }

    /// Rule 1, after the call: `len` bytes were received; they are transformed in place
    /// ([`RecordMut::bytes_in`]) and sent.
    #[inline(always)]
    pub fn end_receive(&mut self, len: u32, now: Tick) -> Hand {
        // Counted first: once the length is in hand, the count is known to include it.
        self.add(BYTES_IN, len);
        let (word, start) = self.hands.next();
        let fd = self.fd;
        self.set_in_hand(word, InHand::Recv { fd, start, len });
        self.store(LAST_PROGRESS, now.as_nanos());
        self.hands.hold(fd, len, self.layout.room_at(start))
    }

    /// Returns the bytes of `hand`.
    #[inline(always)]
    pub fn bytes_in(&mut self, hand: Hand) -> &mut [u8] {
        let at = self.scratch + hand.start as usize;
        self.bytes.range(at, hand.len as usize)
    }

    /// Rule 2: of the bytes of `hand`, which is the next to be answered, the kernel accepted the
    /// first `sent`; keeps the rest.
    ///
    /// # Errors
    /// [`NoBuffer`] if the pool is empty; the rest is then in hand until
    /// [`RecordMut::begin_close`].
    #[inline(always)]
    pub fn end_send(&mut self, hand: Hand, sent: u32) -> Result<(), NoBuffer> {
        self.add(BYTES_OUT, sent);
        if sent < hand.len {
            self.keep_rest(hand, sent)?;
        }
        if let Some((word, next)) = self.hands.first() {
            debug_assert_eq!(next, hand, "hands are answered in order");
            self.set_in_hand(word, InHand::Nothing);
            self.hands.release();
        }
        Ok(())
    }

    /// Clears the call in hand, which moved no byte.
    #[inline(always)]
    pub fn end_call(&mut self) {
        let (word, _) = self.hands.next();
        self.set_in_hand(word, InHand::Nothing);
    }

    /// Returns whether input of other connections, or earlier input of this one, is in hand: the
    /// scratch buffer is in use, and this connection must wait.
    #[inline]
    #[must_use]
    pub const fn must_wait(&self) -> bool {
        !self.hands.is_empty()
    }

    /// Rule 3, before the call: returns the pending output, in hand; `None` if there is none.
    #[inline]
    pub fn begin_flush(&mut self) -> Option<&[u8]> {
        let pending = self.pending()?;
        debug_assert!(!self.is_in_hand(), "a connection is in one word only");
        let (word, _) = self.hands.next();
        self.set_in_hand(word, InHand::Flush { fd: self.fd });
        let (at, length) = self.layout.pending(pending);
        Some(self.bytes.range(at, length))
    }

    /// Rule 3, after the call: the kernel accepted `sent` more bytes. Returns whether nothing is
    /// pending any more.
    #[inline]
    pub fn end_flush(&mut self, sent: u32, now: Tick) -> bool {
        self.add(BYTES_OUT, sent);
        self.store(LAST_PROGRESS, now.as_nanos());
        let rest = self.pending().map(|was| Pending {
            offset: was.offset + sent,
            ..was
        });
        let done = rest.is_none_or(Pending::is_empty);
        match rest {
            Some(rest) if !done => self.store(PENDING, rest.pack()),
            Some(spent) => {
                self.store(PENDING, 0);
                self.release(spent.buffer);
            }
            None => {}
        }
        self.end_call();
        done
    }

    /// Returns the scratch buffer, for bytes that are not sent.
    #[inline]
    pub fn scratch(&mut self) -> &mut [u8] {
        debug_assert!(self.hands.is_empty(), "the scratch buffer is in use");
        let length = self.layout.buffer_bytes as usize;
        self.bytes.range(self.scratch, length)
    }

    /// Rule 6, before the call: the stream is ended from here; `state` is the reason why it
    /// lingers.
    pub fn begin_linger(&mut self, state: State, now: Tick) {
        debug_assert!(
            self.pending().is_none(),
            "a stream is ended after its last byte"
        );
        self.store(LAST_PROGRESS, now.as_nanos());
        self.set_state(state);
    }

    /// Rule 5, before the call. Returns the number of bytes received and given up: if it is not
    /// zero, the connection is to be reset, because an end of stream would hide the loss.
    pub fn begin_close(&mut self) -> u64 {
        self.set_state(State::Closing);
        self.settle();
        let (received, sent) = self.bytes_moved();
        received.saturating_sub(sent)
    }

    /// Rules 5 and 8, after the call.
    pub fn end_close(&mut self) {
        if let Some(pending) = self.pending() {
            self.store(PENDING, 0);
            self.release(pending.buffer);
        }
        self.set_head(Head {
            state: State::Free,
            flags: Flags::default(),
            ..self.head()
        });
    }

    /// Rule 5, before the call, for a connection that cannot be continued: it is to be reset. In one
    /// store, so that a rescue that repeats it finds the same.
    pub(super) fn condemn(&mut self) {
        self.set_head(Head {
            state: State::Closing,
            flags: Flags::RESET,
            ..self.head()
        });
    }

    /// Rule 5, after the call, when the pool is not known.
    pub(super) fn forget(&mut self) {
        self.store(PENDING, 0);
        self.set_head(Head {
            state: State::Free,
            flags: Flags::default(),
            ..self.head()
        });
    }

    /// Rule 8: the connection migrates to another worker, at `place` of batch `sequence`; nothing
    /// more is done to it here. Its readiness and its generation are dropped.
    pub fn begin_handover(&mut self, sequence: u32, place: u8) {
        self.set_head(Head {
            flags: self.flags().lasting().with(Flags::MOVING),
            generation: Place::pack(sequence, place),
            ..self.head()
        });
    }

    /// Rule 8: the connection does not migrate; nothing is ready yet, as after
    /// [`Memory::thaw`](super::Memory::thaw).
    pub fn take_back(&mut self, generation: u32) {
        self.set_head(Head {
            flags: self.flags().resumed(),
            generation,
            ..self.head()
        });
    }

    /// Rule 8: the connection belongs to this worker from now on; nothing is ready yet, as after
    /// [`Memory::thaw`](super::Memory::thaw).
    pub fn take_ownership(&mut self) {
        self.set_flags(self.flags().resumed());
    }

    /// Rule 8: the connection belongs to another worker, and its descriptor here is about to be
    /// closed.
    pub fn end_handover(&mut self) {
        self.set_state(State::Handed);
    }

    /// Rule 9, before the header is received: stores the client's address.
    pub fn set_client(&mut self, client: SocketAddr) {
        self.store_address(client.ip());
        self.set_head(Head {
            port: client.port(),
            ..self.head()
        });
    }

    /// Rule 9, after the header of `length` bytes was received: the connection is served from now
    /// on.
    pub fn end_header(&mut self, length: u16, now: Tick) {
        debug_assert_eq!(self.state(), State::AwaitingHeader);
        self.store_opened(self.opened_at(), length);
        self.store(LAST_PROGRESS, now.as_nanos());
        self.set_state(State::Open);
    }

    /// Makes the connection end as soon as no output is pending on it.
    pub fn finish(&mut self) {
        self.set_flags(self.flags().with(Flags::LAST_LOOK));
    }

    /// Replaces the flags; stores nothing if they are the same.
    #[inline(always)]
    pub fn set_flags(&mut self, flags: Flags) {
        if self.flags() != flags {
            self.record.head = Head::with_flags(self.head, flags);
            self.store(HEAD, self.record.head);
        }
    }

    /// Adds `amount` to a counter.
    #[inline]
    pub fn count(&mut self, counter: Counter, amount: u64) {
        add(self.words, counter, amount);
    }

    /// Rule 4: stores a whole record, pending output first and state last.
    pub(super) fn enter(&mut self, entry: &Entry) {
        self.store(PENDING, entry.pending.map_or(0, Pending::pack));
        self.store(BYTES_IN, entry.bytes_in);
        self.store(BYTES_OUT, entry.bytes_out);
        self.store(LAST_PROGRESS, entry.last_progress.as_nanos());
        self.store_opened(entry.opened, entry.header_bytes);
        self.store_address(entry.peer.ip());
        self.set_head(Head {
            state: entry.state,
            flags: entry.flags,
            port: entry.peer.port(),
            generation: entry.generation,
        });
    }

    /// Clears what is in hand for this connection. Of those in this worker's hands
    /// only the next to be answered can end.
    pub(super) fn settle(&mut self) {
        for word in 0..HANDS {
            if self.holds(word) {
                self.set_in_hand(word, InHand::Nothing);
            }
        }
        let next = self.hands.first();
        if next.is_some_and(|(_, hand)| hand.fd == self.fd) {
            self.hands.release();
        }
    }

    pub(super) fn is_in_hand(&self) -> bool {
        (0..HANDS).any(|word| self.holds(word))
    }

    fn holds(&self, word: usize) -> bool {
        let (line, word) = Layout::in_hand(word);
        let word = self.words.line(line).0[word].load(Ordering::Relaxed);
        InHand::unpack(word).and_then(InHand::fd) == Some(self.fd)
    }

    /// Frees a buffer that no record names.
    pub(super) fn release(&mut self, buffer: u32) {
        if !self.pool.give(buffer) {
            // Refused only by a file system without holes; the pages are then merely kept.
            let _ = self
                .bytes
                .discard(self.layout.buffer(buffer), Layout::STRIDE);
        }
    }

    #[cold]
    fn keep_rest(&mut self, hand: Hand, sent: u32) -> Result<(), NoBuffer> {
        let buffer = self.pool.take().ok_or(NoBuffer)?;
        let rest = hand.len - sent;
        let from = self.scratch + (hand.start + sent) as usize;
        self.bytes
            .copy(from, self.layout.buffer(buffer), rest as usize);
        let pending = Pending {
            buffer,
            offset: 0,
            end: rest,
        };
        self.store(PENDING, pending.pack());
        Ok(())
    }

    fn store_opened(&mut self, opened: Tick, header_bytes: u16) {
        let time = opened.as_nanos() & !HEADER_BITS;
        self.store(OPENED, time | u64::from(header_bytes));
    }

    fn store_address(&mut self, address: IpAddr) {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let bits = address.to_bits();
        self.store(ADDRESS, (bits >> 64) as u64);
        self.store(ADDRESS + 1, bits as u64);
    }

    #[inline(always)]
    fn set_in_hand(&mut self, word: usize, in_hand: InHand) {
        debug_assert!(word < HANDS, "the words in hand are used up");
        let (line, word) = Layout::in_hand(word);
        store(self.probe, self.words.line(line), word, in_hand.pack());
    }

    fn set_state(&mut self, state: State) {
        self.set_head(Head {
            state,
            ..self.head()
        });
    }

    #[inline]
    fn set_head(&mut self, head: Head) {
        self.record.head = head.pack();
        self.store(HEAD, self.record.head);
    }

    #[inline]
    fn add(&mut self, word: usize, amount: u32) {
        let sum = self.load(word).wrapping_add(u64::from(amount));
        self.store(word, sum);
    }

    #[inline]
    fn store(&mut self, word: usize, value: u64) {
        store(self.probe, self.record.words, word, value);
    }
}
