//! The worker's working memory: all state of its connections, in one shared file.
//!
//! One memfd per slot, created and also held by the supervisor, holds the metrics, one record for
//! each descriptor number, the scratch buffer and the pool of pending-output buffers. A reader that
//! maps it after the worker's death, at any instant, can determine what each connection
//! had received and not sent ([`unsent()`]); so the death of a worker need not be the death of its
//! connections.
//!
//! # The store rules
//! A killed process leaves memory at a point of its program order, and the next reader sees it
//! through the kernel's own locks; so plain stores suffice, as long as the compiler keeps their
//! order (`Release` stores, which are plain moves on x86-64) and each of them is one word:
//!
//! 1. receive: [`InHand::Recv`](layout::InHand::Recv) with length 0 *before* the call, after it the
//!    bytes received, the length in hand, and only then is the scratch transformed and sent
//!    ([`RecordMut::begin_receive`], [`RecordMut::end_receive`]). Up to [`HANDS`] connections are
//!    in hand at once, each in a word of its own, and none in two. The words name parts of the
//!    scratch that do not overlap: the bytes of one are not written again while any word is set,
//!    except to transform them. Only the last of the words set may have the length 0, so each can
//!    be repaired by itself: from its start and length and the kernel's counters of its connection;
//! 2. a short send: the rest is copied to a buffer, *then* the record names it, *then* the word is
//!    cleared ([`RecordMut::end_send`]); while output is pending nothing is received;
//! 3. flush: [`InHand::Flush`](layout::InHand::Flush), send, the record's offset, the word cleared
//!    ([`RecordMut::begin_flush`], [`RecordMut::end_flush`]); the end of the pending range never
//!    moves meanwhile;
//! 4. accept: the accepting mark, a record for each descriptor (pending output first, state last),
//!    the mark off again ([`Memory::begin_accept`], [`Memory::open`], [`Memory::end_accept`]); a
//!    connection that comes from another owner is recorded in the same order ([`Memory::thaw`]);
//! 5. close: state Closing, close, state Free, before anything else can create a descriptor
//!    ([`RecordMut::begin_close`], [`RecordMut::end_close`]); whatever is still owed then stays
//!    recorded until after the state is Closing, or its loss would look like a connection that owes
//!    nothing;
//! 6. end of stream: the lingering state, then the call, which may be made twice
//!    ([`RecordMut::begin_linger`]);
//! 7. free buffers are known privately only: a buffer that no record names is free;
//! 8. handover: the link is stored before anything is sent, and cleared before it is closed. At the
//!    sender the record is marked as moving, with its batch and place instead of its generation,
//!    before the connection is sent. When the answer was read, the batch is stored as resolved,
//!    *then* each record is Handed, the descriptor closed, the record Free
//!    ([`RecordMut::begin_handover`], [`Memory::begin_resolving`], [`RecordMut::end_handover`],
//!    [`RecordMut::end_close`]), or unmarked with a new generation ([`RecordMut::take_back`]): of a
//!    batch that was sent in ascending order of the places, so that the last one shows its size;
//!    of one that was never sent in descending order, so that the rest is a whole batch. At the
//!    receiver the batch, *then* its records marked as arriving, *then* the answer is stored, *then*
//!    the answer is sent, *then* the records are unmarked ([`Memory::begin_adoption`],
//!    [`Memory::arrive`], [`Memory::store_answer`], [`RecordMut::take_ownership`]): they are the
//!    receiver's once the answer is stored. Those of an answer that is not stored are Handed;
//! 9. PROXY header: while it is awaited it stays in the kernel. Then the record is given the
//!    client's address, *then* exactly the header is received, *then* its length is stored, *then*
//!    the state is Open ([`RecordMut::set_client`], [`RecordMut::end_header`]). Until the state is
//!    Open the kernel's count of bytes read is the length: 0 before the receive. These bytes are
//!    not answered and are not among the record's bytes received;
//! 10. listeners: the entry, *then* the watch; the entry cleared, *then* the close
//!     ([`Memory::enter_listener`], [`Memory::clear_listener`]);
//! 11. descriptors from other processes: a mark, *then* the receive, *then* the store that names
//!     them, *then* the mark cleared; the same around the close of one that nothing names any more
//!     ([`Memory::set_unnamed`]).
//!
//! Only these rules write this memory. It must not make system calls on connections: it records
//! what the reactor does.

mod counters;
pub mod frozen;
mod hands;
pub mod layout;
pub mod life;
mod pool;
mod record;
pub mod rescue;
mod store;
pub mod transit;
mod unsent;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::SHORT_TURN;
use crate::sys::shared::{self, SharedMemory};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{CloseReason, Counter, TurnClass};

pub use counters::{
    Moves, counter, is_believable, moves, open_by, open_connections, release, room,
};
pub use hands::Hand;
pub use pool::WARM_BUFFERS;
pub use record::{NoBuffer, Record, RecordMut};
pub use store::{Probe, Unprobed};
pub use unsent::{Corrupt, unsent};

use counters::add;
use layout::{Flags, HANDS, Layout, MAGIC, State};
use record::Entry;
use store::store;

/// The word of [`Layout::ACCEPTING`] with one more than the highest number ever recorded.
const USED: usize = 1;

/// The working memory as its writer has it; one for each worker.
#[derive(Debug)]
pub struct Memory<P = Unprobed> {
    shared: SharedMemory,
    layout: Layout,
    /// The layout's, computed once.
    scratch: usize,
    pool: pool::Pool,
    hands: hands::Hands,
    /// One more than the highest descriptor number ever recorded: reading records beyond it would
    /// only allocate pages of zeroes.
    used: u32,
    probe: P,
}

/// Creates the file for one slot.
///
/// # Errors
/// `InvalidInput` for a layout that the words cannot express, else what the kernel returned.
pub fn create(layout: Layout) -> io::Result<OwnedFd> {
    if !layout.is_valid() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "impossible memory layout",
        ));
    }
    shared::create("uppercased-slot", layout.total_bytes())
}

impl Memory {
    /// Opens the memory for a new worker of the slot.
    ///
    /// Counters continue from where the last worker left them; connections that it still had are
    /// counted as [`CloseReason::WorkerDied`]; everything else starts empty.
    ///
    /// # Errors
    /// `InvalidData` if the file is smaller than the layout, else what mapping it returned.
    pub fn adopt(fd: OwnedFd, layout: Layout) -> io::Result<Self> {
        Self::with_probe(fd, layout, Unprobed)
    }
}

impl<P: Probe> Memory<P> {
    /// As [`Memory::adopt`], with a probe that observes every store.
    ///
    /// # Errors
    /// As [`Memory::adopt`].
    pub fn with_probe(fd: OwnedFd, layout: Layout, probe: P) -> io::Result<Self> {
        let shared = SharedMemory::map(fd)?;
        if !layout.is_valid() || shared.len() < layout.total_bytes() {
            let why = format!(
                "{} bytes of working memory do not hold {layout:?}",
                shared.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let lost = open_connections(&shared);
        let mut memory = Self {
            shared,
            layout,
            scratch: layout.scratch(),
            pool: pool::Pool::new(layout.buffers),
            hands: hands::Hands::default(),
            used: 0,
            probe,
        };
        memory.wipe()?;
        memory.count(Counter::Closed(CloseReason::WorkerDied), lost);
        Ok(memory)
    }

    /// Returns the record of `fd`, to be read.
    #[inline]
    #[must_use]
    pub fn record(&self, fd: u32) -> Record<'_> {
        Record::new(self.shared.line(Layout::record(fd)))
    }

    /// Returns the record of `fd`, to be written.
    #[inline]
    pub fn record_mut(&mut self, fd: u32) -> RecordMut<'_, P> {
        let (words, bytes) = self.shared.split_at(self.scratch);
        RecordMut {
            record: Record::new(words.line(Layout::record(fd))),
            fd,
            layout: self.layout,
            scratch: self.scratch,
            words,
            bytes,
            pool: &mut self.pool,
            hands: &mut self.hands,
            probe: &mut self.probe,
        }
    }

    /// Returns the input in hand that is to be answered next.
    #[inline]
    #[must_use]
    pub fn next_in_hand(&self) -> Option<Hand> {
        self.hands.first().map(|(_, hand)| hand)
    }

    /// Returns whether what is in hand must be answered before anything more is received.
    #[inline]
    #[must_use]
    pub fn must_answer(&self) -> bool {
        self.hands.are_full()
    }

    /// Rule 4, before a burst of accepts.
    pub fn begin_accept(&mut self) {
        self.store(Layout::ACCEPTING, 0, 1);
    }

    /// Rule 4: records a new connection in `state`, open or awaiting its PROXY header; `peer` is
    /// the proxy then.
    pub fn open(&mut self, fd: u32, generation: u32, peer: SocketAddr, now: Tick, state: State) {
        let entry = Entry {
            pending: None,
            bytes_in: 0,
            bytes_out: 0,
            last_progress: now,
            opened: now,
            header_bytes: 0,
            peer,
            state,
            flags: Flags::default(),
            generation,
        };
        self.enter(fd, &entry);
    }

    /// Rule 4, after the burst.
    pub fn end_accept(&mut self) {
        self.store(Layout::ACCEPTING, 0, 0);
    }

    /// Adds `amount` to a counter.
    #[inline]
    pub fn count(&mut self, counter: Counter, amount: u64) {
        add(self.shared.words(), counter, amount);
    }

    /// Counts a turn of the loop that worked for `took`, and with it `turns` less one that were not
    /// measured. They are taken to have worked as long, but to have been short: a process that was
    /// stopped in the middle of one turn was not stopped in all of them.
    pub fn count_turns(&mut self, turns: u64, took: Duration) {
        let in_ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ns = in_ns(took);
        let others = in_ns(took.min(SHORT_TURN)).saturating_mul(turns.saturating_sub(1));
        self.count(Counter::BusyNs, ns.saturating_add(others));
        self.count(Counter::Took(TurnClass::of(ns)), turns);
    }

    /// Returns the layout.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the mapping, for readers.
    #[must_use]
    pub const fn shared(&self) -> &SharedMemory {
        &self.shared
    }

    /// Returns the probe.
    pub const fn probe(&mut self) -> &mut P {
        &mut self.probe
    }

    /// Returns the descriptor numbers whose records are not free.
    pub fn occupied(&self) -> impl Iterator<Item = u32> + '_ {
        self.occupied_from(0)
    }

    /// Returns those from number `first` on.
    pub fn occupied_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        (first..self.used).filter(|&fd| self.record(fd).state() != State::Free)
    }

    /// Returns one more than the highest descriptor number ever recorded.
    #[must_use]
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// Stores how many batches of the handover from here were sent, and how many of them are
    /// settled.
    pub fn note_sent(&mut self, sent: u64, settled: u64) {
        self.store(Layout::MOVING, 0, sent);
        self.store(Layout::MOVING, 1, settled);
    }

    /// Stores how many batches of the handover to here were answered.
    pub fn note_answered(&mut self, answered: u64) {
        self.store(Layout::MOVING, 2, answered);
    }

    fn wipe(&mut self) -> io::Result<()> {
        self.begin_first_life();
        self.forget_handovers();
        for word in 0..HANDS {
            let (line, word) = Layout::in_hand(word);
            self.store(line, word, 0);
        }
        self.store(Layout::ACCEPTING, 0, 0);
        self.store(Layout::ACCEPTING, USED, 0);
        self.shared.clear_from(Layout::LISTENERS)?;
        let layout = self.layout;
        let numbers = [
            MAGIC,
            layout.descriptors.into(),
            layout.buffers.into(),
            layout.buffer_bytes.into(),
        ];
        for (word, number) in numbers.into_iter().enumerate() {
            self.store(Layout::HEADER, word, number);
        }
        Ok(())
    }

    fn enter(&mut self, fd: u32, entry: &Entry) {
        self.use_number(fd);
        self.record_mut(fd).enter(entry);
    }

    /// Stores that the record of `fd` may be used, before it is.
    fn use_number(&mut self, fd: u32) {
        if fd >= self.used {
            self.used = fd + 1;
            self.store(Layout::ACCEPTING, USED, self.used.into());
        }
    }

    fn store(&mut self, line: usize, word: usize, value: u64) {
        store(&mut self.probe, self.shared.line(line), word, value);
    }
}

#[cfg(test)]
mod tests;
