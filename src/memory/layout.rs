//! The layout of the working memory, and the encoding of its words.
//!
//! Pure arithmetic: offsets from three numbers, words from fields and back. A word that another
//! process may read is untrusted input, so every unpacking is total: any 64 bits give a value or
//! `None`, never a panic.

use crate::sys::shared::LINE_BYTES;
use uppercased_ctl::metrics::Counter;

pub use crate::config::{HANDOVER_WINDOW, HANDS, LISTENERS_MAX, SCRATCH_BYTES};

/// Identifies this layout; another version has another number.
pub const MAGIC: u64 = u64::from_be_bytes(*b"UPPRMEM2");

const PAGE_BYTES: usize = 4096;
const LINE_WORDS: usize = LINE_BYTES / 8;

/// The three numbers that fix the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Records, one for each descriptor number below this.
    pub descriptors: u32,
    /// Pending-output buffers in the pool.
    pub buffers: u32,
    /// Bytes that one receive takes, at most [`SCRATCH_BYTES`]. A buffer holds that maximum in any
    /// case: a connection from another worker may owe more than this one would receive at once.
    pub buffer_bytes: u32,
}

impl Layout {
    /// Maximum number of records: descriptor numbers go no higher on any Linux (`fs.nr_open` stays
    /// below 2^30).
    pub const MAX_DESCRIPTORS: u32 = 1 << 30;
    /// Maximum number of buffers: their number has 24 bits in the pending word.
    pub const MAX_BUFFERS: u32 = (1 << 24) - 1;

    /// Returns whether the words can express the three numbers.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.descriptors > 0
            && self.descriptors <= Self::MAX_DESCRIPTORS
            && self.buffers <= Self::MAX_BUFFERS
            && self.buffer_bytes > 0
            && self.buffer_bytes as usize <= SCRATCH_BYTES
    }

    /// Returns the total number of bytes.
    #[must_use]
    pub const fn total_bytes(self) -> usize {
        self.pool_offset() + self.buffers as usize * Self::STRIDE
    }

    /// The header line: magic, descriptors, buffers, bytes per buffer.
    pub const HEADER: usize = 0;
    /// The line of the accepting mark, and of the number of records ever used.
    pub const ACCEPTING: usize = LINE_BYTES;
    /// The line with the progress of handovers: batches sent, settled and answered.
    pub const MOVING: usize = 2 * LINE_BYTES;
    /// The line with the life of the process that runs the worker (see [`super::life`]).
    pub const LIFE: usize = 3 * LINE_BYTES;
    /// The line with the phase of the worker (see [`super::life`]).
    pub const STANDING: usize = 4 * LINE_BYTES;
    /// The only line that the supervisor writes (see [`super::life`]).
    pub const SUPERVISOR: usize = 5 * LINE_BYTES;

    /// Returns the line that holds metrics cell `cell`.
    #[must_use]
    pub const fn metrics_line(cell: usize) -> usize {
        6 * LINE_BYTES + (cell / LINE_WORDS) * LINE_BYTES
    }

    /// Returns the line of word `word` of those in hand, and its place there. These are the only
    /// lines written several times per message. They lie behind the metrics, which do not move
    /// when [`HANDS`] changes: after an upgrade the supervisor reads those of older workers.
    #[inline]
    #[must_use]
    pub const fn in_hand(word: usize) -> (usize, usize) {
        let first = Self::metrics_line(Counter::COUNT - 1) + LINE_BYTES;
        (first + (word / LINE_WORDS) * LINE_BYTES, word % LINE_WORDS)
    }

    /// The line with the handovers from the worker and to it (see [`super::transit`]).
    pub const HANDOVER: usize = Self::LISTENERS - (1 + HANDOVER_WINDOW) * LINE_BYTES;

    /// Returns the line of one of the last answers to batches, of [`HANDOVER_WINDOW`].
    #[must_use]
    pub const fn answer(slot: usize) -> usize {
        Self::HANDOVER + (1 + slot) * LINE_BYTES
    }

    /// The table of listeners, between the header and the records.
    pub const LISTENERS: usize = PAGE_BYTES;

    /// Returns the line of entry `entry` of the table of listeners, and its place there.
    #[must_use]
    pub const fn listener(entry: usize) -> (usize, usize) {
        let line = Self::LISTENERS + (entry / LINE_WORDS) * LINE_BYTES;
        (line, entry % LINE_WORDS)
    }

    /// Returns the record of descriptor number `fd`: one cache line.
    #[inline]
    #[must_use]
    pub const fn record(fd: u32) -> usize {
        const TABLE: usize = (LISTENERS_MAX * 8).next_multiple_of(PAGE_BYTES);
        Self::LISTENERS + TABLE + fd as usize * LINE_BYTES
    }

    /// Returns the scratch buffer. Everything before it is words, everything from it on is bytes.
    #[inline]
    #[must_use]
    pub const fn scratch(self) -> usize {
        Self::record(self.descriptors).next_multiple_of(PAGE_BYTES)
    }

    /// Returns the first byte of buffer number `buffer`.
    #[must_use]
    pub const fn buffer(self, buffer: u32) -> usize {
        self.pool_offset() + buffer as usize * Self::STRIDE
    }

    /// Returns the maximum number of bytes of a receive whose first byte is byte `start` of the
    /// scratch buffer.
    #[inline]
    #[must_use]
    pub const fn room_at(self, start: u32) -> u32 {
        let left = (SCRATCH_BYTES as u32).saturating_sub(start);
        if left < self.buffer_bytes {
            left
        } else {
            self.buffer_bytes
        }
    }

    /// Returns the offset of pending output and its number of bytes.
    #[must_use]
    pub const fn pending(self, pending: Pending) -> (usize, usize) {
        let start = self.buffer(pending.buffer) + pending.offset as usize;
        (start, pending.len() as usize)
    }

    /// Bytes from one buffer to the next: whole pages, so that each can be freed alone, with room
    /// for whatever a worker may owe. Untouched pages cost nothing.
    pub const STRIDE: usize = SCRATCH_BYTES.next_multiple_of(PAGE_BYTES);

    const fn pool_offset(self) -> usize {
        self.scratch() + SCRATCH_BYTES
    }
}

const _: () = assert!(
    Layout::in_hand(HANDS - 1).0 + LINE_BYTES <= Layout::HANDOVER,
    "header, metrics and what is in hand fit before the handovers"
);

/// What the worker has in hand at this instant for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InHand {
    /// Nothing.
    Nothing,
    /// Bytes of `fd` in the scratch buffer: `len` of them, or not yet known (0).
    Recv {
        /// The connection's descriptor number.
        fd: u32,
        /// The first of them, counted from the scratch buffer's first byte: a multiple of
        /// [`LINE_BYTES`].
        start: u32,
        /// Bytes received; 0 from before the call until its result is stored.
        len: u32,
    },
    /// The pending output of `fd` is being sent.
    Flush {
        /// The connection's descriptor number.
        fd: u32,
    },
}

impl InHand {
    /// Packs it into one word: kind 4 bits, start 11 (in lines), length 17, descriptor 32.
    #[inline]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Recv { fd, start, len } => {
                let line = start as u64 / LINE_BYTES as u64;
                (1 << 60) | (line << 49) | ((len as u64) << 32) | fd as u64
            }
            Self::Flush { fd } => (2 << 60) | fd as u64,
        }
    }

    /// Unpacks one word; `None` if no [`InHand`] packs to it.
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        let fd = (word & 0xffff_ffff) as u32;
        let len = ((word >> 32) & 0x1_ffff) as u32;
        let start = ((word >> 49) & 0x7ff) as u32 * LINE_BYTES as u32;
        match (word >> 60, start, len) {
            (0, 0, 0) if fd == 0 => Some(Self::Nothing),
            (1, ..) if (start + len) as usize <= SCRATCH_BYTES => {
                Some(Self::Recv { fd, start, len })
            }
            (2, 0, 0) => Some(Self::Flush { fd }),
            _ => None,
        }
    }

    /// Returns the connection's descriptor number.
    #[must_use]
    pub const fn fd(self) -> Option<u32> {
        match self {
            Self::Nothing => None,
            Self::Recv { fd, .. } | Self::Flush { fd } => Some(fd),
        }
    }
}

/// Output that the kernel did not accept yet: bytes `offset..end` of a pool buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Number of the buffer in the pool.
    pub buffer: u32,
    /// First byte not yet sent.
    pub offset: u32,
    /// One past the last byte owed; it does not change while the buffer is flushed.
    pub end: u32,
}

impl Pending {
    /// Returns the number of unsent bytes.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end - self.offset
    }

    /// Returns whether nothing is left; such a value is never stored.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end == self.offset
    }

    /// Packs it into one word: buffer 24 bits, offset 20, end 20. Never 0, which means no pending
    /// output.
    #[must_use]
    pub const fn pack(self) -> u64 {
        ((self.buffer as u64) << 40) | ((self.offset as u64) << 20) | self.end as u64
    }

    /// Unpacks one word; `None` for 0 and for words that [`Pending::pack`] never returns.
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        let buffer = (word >> 40) as u32;
        let offset = ((word >> 20) & 0xf_ffff) as u32;
        let end = (word & 0xf_ffff) as u32;
        if offset < end && end as usize <= SCRATCH_BYTES {
            Some(Self {
                buffer,
                offset,
                end,
            })
        } else {
            None
        }
    }
}

/// The state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No connection has this descriptor number.
    Free = 0,
    /// It is served.
    Open = 1,
    /// Its stream is ended from here after `idle_timeout`; input is discarded until the peer closes
    /// or the linger time ends. A rescuer ends the stream again, which is harmless.
    LingeringIdle = 2,
    /// The same, because the worker stops.
    LingeringStop = 3,
    /// The descriptor is being closed; a rescuer closes the number again, with a reset if more was
    /// received than sent, or [`Flags::RESET`] is set.
    Closing = 4,
    /// Another worker has acknowledged the connection; this one's descriptor is being closed. A
    /// rescuer closes the number, never with a reset, and does nothing else to it.
    Handed = 5,
    /// It is open, and its PROXY header is still in the kernel, whole or in part: nothing has been
    /// received. A rescuer looks there first, or serves it if the kernel has counted bytes read.
    AwaitingHeader = 6,
}

impl State {
    /// Returns the state of this number.
    #[must_use]
    pub const fn unpack(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Free),
            1 => Some(Self::Open),
            2 => Some(Self::LingeringIdle),
            3 => Some(Self::LingeringStop),
            4 => Some(Self::Closing),
            5 => Some(Self::Handed),
            6 => Some(Self::AwaitingHeader),
            _ => None,
        }
    }
}

/// The state of a connection between two readiness reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// The kernel may have input, or an end of stream.
    pub const READABLE: Self = Self(1);
    /// The kernel may take output.
    pub const WRITABLE: Self = Self(1 << 1);
    /// Receive until the call would block: a short receive is no proof of emptiness, because an end
    /// of stream, an error or urgent data was reported.
    pub const READ_DRY: Self = Self(1 << 2);
    /// The peer ended its stream; what is pending is still owed.
    pub const PEER_ENDED: Self = Self(1 << 3);
    /// It is in the ready queue.
    pub const QUEUED: Self = Self(1 << 4);
    /// The worker stops: end the stream as soon as no output is pending.
    pub const FINISH: Self = Self(1 << 5);

    /// Migrating, at both ends, until the acknowledgement: neither worker may touch it. It is the
    /// receiver's once the receiver's record has no mark any more, or the sender's is
    /// [`State::Handed`] or free; until then it is the sender's. It has no readiness meanwhile.
    pub const MOVING: Self = Self(1 << 6);

    /// Migrating to this worker. Its readiness bit has no other meaning meanwhile.
    pub const ARRIVING: Self = Self::MOVING.with(Self::WRITABLE);

    /// Being closed with a reset, whatever the counts are: a rescue could not continue it.
    pub const RESET: Self = Self(1 << 7);

    /// Set when the worker stops. Input in the kernel by then is still answered, so the connection
    /// receives once more, until the call would block: no report tells whether a short receive
    /// proves emptiness.
    pub const LAST_LOOK: Self = Self::FINISH.with(Self::READABLE).with(Self::READ_DRY);

    /// Returns the flags that belong to the connection itself, without readiness and queueing.
    #[must_use]
    pub const fn lasting(self) -> Self {
        Self(self.0 & Self::PEER_ENDED.with(Self::FINISH).0)
    }

    /// Returns the flags with which a connection begins or continues at a worker: nothing is ready
    /// until the event loop reports it, but one that is to finish has work at once, its last
    /// receive.
    #[must_use]
    pub const fn resumed(self) -> Self {
        let lasting = self.lasting();
        if lasting.has(Self::FINISH) {
            lasting.with(Self::LAST_LOOK)
        } else {
            lasting
        }
    }

    /// Returns whether the connection is in flight to another worker.
    #[must_use]
    pub const fn is_departing(self) -> bool {
        self.has(Self::MOVING) && !self.has(Self::WRITABLE)
    }

    /// Returns whether the connection has arrived from another worker, which may still own it.
    #[must_use]
    pub const fn is_arriving(self) -> bool {
        self.has(Self::MOVING) && self.has(Self::WRITABLE)
    }

    /// Returns whether any of `other` is set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the flags with `other` set.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the flags with `other` cleared.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The place of a connection in flight, which its record has instead of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The lower bits of the number of its batch.
    pub batch: u32,
    /// Its place in the batch.
    pub place: u8,
}

impl Place {
    /// The bits of a batch's number that are kept.
    pub const BATCHES: u32 = (1 << 24) - 1;

    /// Packs a place: batch 24 bits, place 8.
    #[must_use]
    pub const fn pack(sequence: u32, place: u8) -> u32 {
        (sequence << u8::BITS) | place as u32
    }

    /// Unpacks a place.
    #[must_use]
    pub const fn unpack(word: u32) -> Self {
        Self {
            batch: word >> u8::BITS,
            place: word as u8,
        }
    }
}

/// The first word of a record: state 8 bits, flags 8, peer port 16, generation 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The state of the record.
    pub state: State,
    /// The flags.
    pub flags: Flags,
    /// The peer's port.
    pub port: u16,
    /// Distinguishes the connection from earlier ones with the same number; never 0.
    pub generation: u32,
}

impl Head {
    /// The head of a record that was never used.
    pub const FREE: Self = Self {
        state: State::Free,
        flags: Flags(0),
        port: 0,
        generation: 0,
    };

    /// The bits of the port in the word.
    pub const PORT: u64 = 0xffff << 16;

    /// Returns the flags in a word.
    #[inline]
    #[must_use]
    pub const fn flags_of(word: u64) -> Flags {
        Flags((word >> 8) as u8)
    }

    /// Returns a word with other flags.
    #[inline]
    #[must_use]
    pub const fn with_flags(word: u64, flags: Flags) -> u64 {
        (word & !(0xff << 8)) | ((flags.0 as u64) << 8)
    }

    /// Packs it into one word.
    #[inline]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.state as u64
            | ((self.flags.0 as u64) << 8)
            | ((self.port as u64) << 16)
            | ((self.generation as u64) << 32)
    }

    /// Unpacks one word; `None` if its state is invalid.
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        match State::unpack((word & 0xff) as u8) {
            Some(state) => Some(Self {
                state,
                flags: Self::flags_of(word),
                port: (word >> 16) as u16,
                generation: (word >> 32) as u32,
            }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn regions_do_not_overlap_and_are_aligned() {
        let layout = Layout {
            descriptors: 1000,
            buffers: 3,
            buffer_bytes: 5000,
        };
        assert_eq!(Layout::metrics_line(0), 384, "whatever HANDS is");
        assert!(Layout::metrics_line(Counter::COUNT - 1) < Layout::in_hand(0).0);
        assert!(Layout::in_hand(HANDS - 1).0 + LINE_BYTES <= Layout::HANDOVER);
        assert!(Layout::answer(HANDOVER_WINDOW - 1) + LINE_BYTES <= Layout::LISTENERS);
        assert!(Layout::listener(LISTENERS_MAX - 1).0 + LINE_BYTES <= Layout::record(0));
        assert!(Layout::record(999) + LINE_BYTES <= layout.scratch());
        assert!(layout.scratch() + SCRATCH_BYTES <= layout.buffer(0));
        assert!(layout.scratch().is_multiple_of(PAGE_BYTES));
        assert_eq!(layout.buffer(1) - layout.buffer(0), Layout::STRIDE);
        assert!(layout.buffer(0).is_multiple_of(PAGE_BYTES));
        assert_eq!(layout.total_bytes(), layout.buffer(2) + Layout::STRIDE);
    }

    proptest! {
        #[test]
        fn every_word_unpacks_exactly_or_not(word: u64) {
            if let Some(in_hand) = InHand::unpack(word) {
                prop_assert_eq!(in_hand.pack(), word);
            }
            if let Some(pending) = Pending::unpack(word) {
                prop_assert_eq!(pending.pack(), word);
                prop_assert!(!pending.is_empty());
            }
            if let Some(head) = Head::unpack(word) {
                prop_assert_eq!(head.pack(), word);
            }
        }

        #[test]
        fn every_value_survives_packing(
            fd: u32,
            len in 0..=SCRATCH_BYTES as u32,
            line in 0..SCRATCH_BYTES / LINE_BYTES,
            buffer in 0..=Layout::MAX_BUFFERS,
            end in 1..=SCRATCH_BYTES as u32,
            port: u16,
            generation: u32,
            flags: u8,
        ) {
            let start = (line * LINE_BYTES) as u32;
            let len = len.min(SCRATCH_BYTES as u32 - start);
            let received = InHand::Recv { fd, start, len };
            for in_hand in [InHand::Nothing, received, InHand::Flush { fd }] {
                prop_assert_eq!(InHand::unpack(in_hand.pack()), Some(in_hand));
            }
            let pending = Pending { buffer, offset: end / 2, end };
            prop_assert_eq!(Pending::unpack(pending.pack()), Some(pending));
            let head = Head { state: State::Closing, flags: Flags(flags), port, generation };
            prop_assert_eq!(Head::unpack(head.pack()), Some(head));
        }
    }
}
