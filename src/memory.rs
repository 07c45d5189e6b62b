//! The worker's working memory: everything that matters about its connections, in one shared file.
//!
//! One memfd a slot, made and also held by the supervisor, holds the scratch buffer, one record for
//! each descriptor number, the pool of pending-output buffers and the metrics. Whoever maps it
//! after the worker's death, at whatever instant that came, can tell what each connection had
//! received and was not yet sent ([`unsent()`]); so the death of a worker need not be the death of
//! its connections.
//!
//! # The store rules
//! A killed process leaves memory at a point of its program order, and the next reader sees it
//! through the kernel's own locks; so plain stores suffice, as long as the compiler keeps their
//! order (`Release` stores, which are plain moves on x86-64) and each of them is one word:
//!
//! 1. receive: [`InHand::Recv`] with length 0 *before* the call, after it the bytes received, the
//!    length in hand, and only then is the scratch transformed and sent ([`Memory::receiving`],
//!    [`Memory::received`]);
//! 2. a short send: the rest is copied to a buffer, *then* the record names it, *then* nothing is
//!    in hand ([`Memory::sent`]); while output is pending nothing is received;
//! 3. flush: [`InHand::Flush`], send, the record's offset, nothing in hand ([`Memory::flushing`],
//!    [`Memory::flushed`]); the end of the pending range never moves meanwhile;
//! 4. accept: the accepting mark, a record for each descriptor (pending output first, state last),
//!    the mark off again ([`Memory::accepting`], [`Memory::opened`], [`Memory::accepted`]); a
//!    connection that comes from another owner is recorded in the same order ([`Memory::thaw`]);
//! 5. close: state Closing, close, state Free, before anything else can create a descriptor
//!    ([`Memory::closing`], [`Memory::closed`]); whatever is still owed then stays recorded until
//!    after the state says Closing, or its loss would look like a connection that owes nothing;
//! 6. end of stream: the lingering state, then the call, which may be made twice
//!    ([`Memory::lingering`]);
//! 7. free buffers are known privately only: a buffer that no record names is free;
//! 8. handover: at the sender the record is marked as moving before the connection is sent, and
//!    says Handed after the acknowledgement was read, before the descriptor is closed; then it is
//!    Free ([`Memory::depart`], [`Memory::handed`], [`Memory::closed`]). At the receiver it is marked
//!    as moving until its acknowledgement is sent ([`Memory::arrive`]). What comes to nothing is
//!    unmarked at the sender ([`Memory::keep`]) and Handed at the receiver;
//! 9. PROXY header: while it is awaited it is only looked at, so the kernel holds it. Then the
//!    record is given the client's address, *then* exactly the header is received, *then* the state
//!    says Open ([`Memory::named`], [`Memory::introduced`]). Between the last two the kernel's count
//!    of bytes read tells: none before, the header's after. They are owed to nobody, and are not
//!    among the record's, which does not say how many they were: who tells from the kernel's
//!    counters what is owed on such a connection has them in there, too.
//!
//! Nothing else writes this memory, and this file must not make system calls on connections: it
//! records what the reactor does.

mod counters;
pub mod frozen;
mod introduction;
pub mod layout;
mod pool;
mod unsent;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sys::shared::{self, SharedMemory};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::{CloseReason, Counter, TurnClass};

pub use counters::{Moves, counter, is_believable, moves, open_by, open_connections, room};
pub use pool::WARM_BUFFERS;
pub use unsent::{Corrupt, unsent};

use counters::metrics_cell;
use layout::{Flags, Head, InHand, Layout, MAGIC, Pending, State};

/// Is told of every store, so that a test can stop the world after each. The product's is
/// [`Unprobed`], which compiles to nothing.
pub trait Probe {
    /// A store was made.
    fn stored(&mut self);
}

/// No probe.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unprobed;

impl Probe for Unprobed {
    #[inline(always)]
    fn stored(&mut self) {}
}

/// The writer's side; one for each worker.
#[derive(Debug)]
pub struct Memory<P = Unprobed> {
    shared: SharedMemory,
    layout: Layout,
    pool: pool::Pool,
    /// One more than the highest descriptor number that ever had a connection: reading records
    /// beyond it would only make pages of zeroes.
    used: u32,
    probe: P,
}

/// The words of a record.
const HEAD: usize = 0;
const PENDING: usize = 1;
const BYTES_IN: usize = 2;
const BYTES_OUT: usize = 3;
const LAST_PROGRESS: usize = 4;
const OPENED: usize = 5;
const ADDRESS: usize = 6;

/// Makes the file for one slot; nobody has written it yet.
///
/// # Errors
/// `InvalidInput` for a layout that the words cannot name, else what the kernel returned.
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
    /// Takes the memory over for a new worker of the slot.
    ///
    /// Counters go on from where the last worker left them; connections that it still had are
    /// counted as [`CloseReason::WorkerDied`]; everything else begins empty.
    ///
    /// # Errors
    /// `InvalidData` if the file is smaller than the layout, else what mapping it returned.
    pub fn adopt(fd: OwnedFd, layout: Layout) -> io::Result<Self> {
        Self::with_probe(fd, layout, Unprobed)
    }
}

impl<P: Probe> Memory<P> {
    /// As [`Memory::adopt`], with a probe that is told of every store.
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
            pool: pool::Pool::new(layout.buffers),
            used: 0,
            probe,
        };
        memory.wipe()?;
        memory.count(Counter::Closed(CloseReason::WorkerDied), lost);
        Ok(memory)
    }

    /// Rule 1, before the call: the scratch buffer, in hand for `fd`.
    #[inline]
    pub fn receiving(&mut self, fd: u32) -> &mut [u8] {
        debug_assert!(
            self.pending(fd).is_none(),
            "nothing is received while output is pending"
        );
        self.take_in_hand(InHand::Recv { fd, len: 0 });
        self.shared
            .bytes(Layout::SCRATCH, self.layout.buffer_bytes as usize)
    }

    /// Rule 1, after the call: `len` bytes came, to be transformed in place and sent.
    #[inline]
    pub fn received(&mut self, fd: u32, len: u32, now: Tick) -> &mut [u8] {
        // Counted first: once the length is in hand, the count is known to include it.
        self.add(Layout::record(fd), BYTES_IN, u64::from(len));
        self.take_in_hand(InHand::Recv { fd, len });
        self.store(Layout::record(fd), LAST_PROGRESS, now.as_nanos());
        self.shared.bytes(Layout::SCRATCH, len as usize)
    }

    /// Rule 2: of the `len` bytes received, the kernel took the first `sent`; the rest is kept.
    ///
    /// # Errors
    /// [`NoBuffer`] if the pool is empty; the rest is then in hand until [`Memory::closing`].
    #[inline]
    pub fn sent(&mut self, fd: u32, sent: u32, len: u32) -> Result<(), NoBuffer> {
        self.add(Layout::record(fd), BYTES_OUT, u64::from(sent));
        if sent < len {
            self.keep_rest(fd, sent, len)?;
        }
        self.take_in_hand(InHand::Nothing);
        Ok(())
    }

    /// Nothing came of the call in hand.
    #[inline]
    pub fn settled(&mut self) {
        self.take_in_hand(InHand::Nothing);
    }

    /// Rule 3, before the call: the pending output of `fd`, in hand.
    #[inline]
    pub fn flushing(&mut self, fd: u32) -> Option<&[u8]> {
        let pending = self.pending(fd)?;
        self.take_in_hand(InHand::Flush { fd });
        let (at, length) = self.layout.pending(pending);
        Some(self.shared.bytes(at, length))
    }

    /// Rule 3, after the call: the kernel took `sent` more bytes. True if nothing is pending now.
    #[inline]
    pub fn flushed(&mut self, fd: u32, sent: u32, now: Tick) -> bool {
        let record = Layout::record(fd);
        self.add(record, BYTES_OUT, u64::from(sent));
        self.store(record, LAST_PROGRESS, now.as_nanos());
        let rest = self.pending(fd).map(|was| Pending {
            offset: was.offset + sent,
            ..was
        });
        let done = rest.is_none_or(Pending::is_empty);
        match rest {
            Some(rest) if !done => self.store(record, PENDING, rest.pack()),
            Some(spent) => {
                self.store(record, PENDING, 0);
                self.release(spent.buffer);
            }
            None => {}
        }
        self.take_in_hand(InHand::Nothing);
        done
    }

    /// The scratch buffer for bytes that are owed to nobody.
    pub fn spare(&mut self) -> &mut [u8] {
        self.shared
            .bytes(Layout::SCRATCH, self.layout.buffer_bytes as usize)
    }

    /// Rule 4, before a burst of accepts.
    pub fn accepting(&mut self) {
        self.store(Layout::ACCEPTING, 0, 1);
    }

    /// Rule 4: `fd` is a connection from now on.
    pub fn opened(&mut self, fd: u32, generation: u32, peer: SocketAddr, now: Tick) {
        self.begun(fd, generation, peer, now, State::Open);
    }

    /// The same of one in `state`: open, or awaiting its PROXY header; `peer` is the proxy then.
    pub fn begun(&mut self, fd: u32, generation: u32, peer: SocketAddr, now: Tick, state: State) {
        let entry = Entry {
            pending: None,
            bytes_in: 0,
            bytes_out: 0,
            last_progress: now,
            opened: now,
            peer,
            state,
            flags: Flags::default(),
            generation,
        };
        self.enter(fd, &entry);
    }

    /// Rule 4, after the burst.
    pub fn accepted(&mut self) {
        self.store(Layout::ACCEPTING, 0, 0);
    }

    /// Rule 6, before the call: the stream of `fd` is ended from here; `state` says why it lingers.
    pub fn lingering(&mut self, fd: u32, state: State, now: Tick) {
        debug_assert!(
            self.pending(fd).is_none(),
            "a stream is ended after its last byte"
        );
        self.store(Layout::record(fd), LAST_PROGRESS, now.as_nanos());
        let head = self.head(fd);
        self.set_head(fd, Head { state, ..head });
    }

    /// Rule 5, before the call. Returns the bytes that were received and are given up: if there are
    /// any, the connection is to be reset, because an end of stream would hide the loss.
    pub fn closing(&mut self, fd: u32) -> u64 {
        let head = self.head(fd);
        let state = State::Closing;
        self.set_head(fd, Head { state, ..head });
        if self.holds_in_hand(fd) {
            self.take_in_hand(InHand::Nothing);
        }
        let (received, sent) = self.bytes_moved(fd);
        received.saturating_sub(sent)
    }

    /// Rules 5 and 8, after the call.
    pub fn closed(&mut self, fd: u32) {
        if let Some(pending) = self.pending(fd) {
            self.store(Layout::record(fd), PENDING, 0);
            self.release(pending.buffer);
        }
        let head = self.head(fd);
        self.set_head(
            fd,
            Head {
                state: State::Free,
                flags: Flags::default(),
                ..head
            },
        );
    }

    /// Rule 8: `fd` is going to another worker; nothing more is done to it here. What is
    /// remembered of its readiness is forgotten.
    pub fn depart(&mut self, fd: u32) {
        let head = self.head(fd);
        self.set_flags(fd, head.flags.lasting().with(Flags::MOVING));
    }

    /// Rule 8: `fd` is this worker's after all, or from now on; nothing is ready yet, as after
    /// [`Memory::thaw`].
    pub fn keep(&mut self, fd: u32) {
        let lasting = self.head(fd).flags.lasting();
        let flags = if lasting.has(Flags::FINISH) {
            lasting.with(Flags::LAST_LOOK)
        } else {
            lasting
        };
        self.set_flags(fd, flags);
    }

    /// Rule 8: `fd` is another worker's, and its descriptor here is about to be closed.
    pub fn handed(&mut self, fd: u32) {
        let head = self.head(fd);
        let state = State::Handed;
        self.set_head(fd, Head { state, ..head });
    }

    /// Replaces what is remembered of `fd`.
    #[inline]
    pub fn set_flags(&mut self, fd: u32, flags: Flags) {
        let head = self.head(fd);
        if head.flags != flags {
            self.set_head(fd, Head { flags, ..head });
        }
    }

    /// Adds `amount` to a counter.
    #[inline]
    pub fn count(&mut self, counter: Counter, amount: u64) {
        let cell = metrics_cell(&self.shared, counter);
        cell.store(
            cell.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Counts a turn of the loop whose work took so long.
    #[inline]
    pub fn count_turn(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count(Counter::BusyNs, ns);
        self.count(Counter::Took(TurnClass::of(ns)), 1);
    }

    /// The layout in force.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The mapping, for readers.
    #[must_use]
    pub const fn shared(&self) -> &SharedMemory {
        &self.shared
    }

    /// The probe.
    pub const fn probe(&mut self) -> &mut P {
        &mut self.probe
    }

    /// The first word of the record of `fd`. A word that means nothing reads as free.
    #[inline]
    #[must_use]
    pub fn head(&self, fd: u32) -> Head {
        head_of(&self.shared, fd)
    }

    /// What the kernel has not taken yet of the output of `fd`.
    #[inline]
    #[must_use]
    pub fn pending(&self, fd: u32) -> Option<Pending> {
        Pending::unpack(self.load(Layout::record(fd), PENDING))
    }

    /// When `fd` last received, or had output taken; or was half-closed, once it lingers.
    #[inline]
    #[must_use]
    pub fn last_progress(&self, fd: u32) -> Tick {
        Tick::from_nanos(self.load(Layout::record(fd), LAST_PROGRESS))
    }

    /// When `fd` was accepted.
    #[must_use]
    pub fn opened_at(&self, fd: u32) -> Tick {
        Tick::from_nanos(self.load(Layout::record(fd), OPENED))
    }

    /// Bytes received from and sent to the peer of `fd`.
    #[must_use]
    pub fn bytes_moved(&self, fd: u32) -> (u64, u64) {
        let record = Layout::record(fd);
        (self.load(record, BYTES_IN), self.load(record, BYTES_OUT))
    }

    /// The peer of `fd`.
    #[must_use]
    pub fn peer(&self, fd: u32) -> SocketAddr {
        let record = Layout::record(fd);
        let high = u128::from(self.load(record, ADDRESS)) << 64;
        let address = Ipv6Addr::from_bits(high | u128::from(self.load(record, ADDRESS + 1)));
        SocketAddr::new(address.to_canonical(), self.head(fd).port)
    }

    /// Descriptor numbers that are connections, or are being closed.
    pub fn occupied(&self) -> impl Iterator<Item = u32> + '_ {
        self.occupied_from(0)
    }

    /// The same from number `first` on.
    pub fn occupied_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        (first..self.used).filter(|&fd| self.head(fd).state != State::Free)
    }

    /// Notes how many batches of the handover from here were sent, and how many of them are settled.
    pub fn note_sent(&mut self, sent: u64, settled: u64) {
        self.store(Layout::MOVING, 0, sent);
        self.store(Layout::MOVING, 1, settled);
    }

    /// Notes how many batches of the handover to here were answered.
    pub fn note_answered(&mut self, answered: u64) {
        self.store(Layout::MOVING, 2, answered);
    }

    fn wipe(&mut self) -> io::Result<()> {
        self.store(Layout::IN_HAND, 0, 0);
        self.store(Layout::ACCEPTING, 0, 0);
        self.shared.clear_from(Layout::record(0))?;
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

    /// Rule 4: the record of `fd`, pending output first and state last.
    fn enter(&mut self, fd: u32, entry: &Entry) {
        self.used = self.used.max(fd + 1);
        let record = Layout::record(fd);
        let head = Head {
            state: entry.state,
            flags: entry.flags,
            port: entry.peer.port(),
            generation: entry.generation,
        };
        self.store(record, PENDING, entry.pending.map_or(0, Pending::pack));
        self.store(record, BYTES_IN, entry.bytes_in);
        self.store(record, BYTES_OUT, entry.bytes_out);
        self.store(record, LAST_PROGRESS, entry.last_progress.as_nanos());
        self.store(record, OPENED, entry.opened.as_nanos());
        self.store_address(fd, entry.peer.ip());
        self.store(record, HEAD, head.pack());
    }

    fn store_address(&mut self, fd: u32, address: IpAddr) {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let (record, bits) = (Layout::record(fd), address.to_bits());
        self.store(record, ADDRESS, (bits >> 64) as u64);
        self.store(record, ADDRESS + 1, bits as u64);
    }

    fn holds_in_hand(&self, fd: u32) -> bool {
        match InHand::unpack(self.load(Layout::IN_HAND, 0)) {
            Some(InHand::Recv { fd: held, .. } | InHand::Flush { fd: held }) => held == fd,
            Some(InHand::Nothing) | None => false,
        }
    }

    #[cold]
    fn keep_rest(&mut self, fd: u32, sent: u32, len: u32) -> Result<(), NoBuffer> {
        let buffer = self.pool.take().ok_or(NoBuffer)?;
        let rest = len - sent;
        let from = Layout::SCRATCH + sent as usize;
        self.shared
            .copy(from, self.layout.buffer(buffer), rest as usize);
        let pending = Pending {
            buffer,
            offset: 0,
            end: rest,
        };
        self.store(Layout::record(fd), PENDING, pending.pack());
        Ok(())
    }

    fn release(&mut self, buffer: u32) {
        if !self.pool.give(buffer) {
            // Refused only by a file system without holes; the pages are then merely kept.
            let _ = self
                .shared
                .discard(self.layout.buffer(buffer), Layout::STRIDE);
        }
    }

    #[inline]
    fn take_in_hand(&mut self, in_hand: InHand) {
        self.store(Layout::IN_HAND, 0, in_hand.pack());
    }

    #[inline]
    fn set_head(&mut self, fd: u32, head: Head) {
        self.store(Layout::record(fd), HEAD, head.pack());
    }

    #[inline]
    fn add(&mut self, line: usize, word: usize, amount: u64) {
        let sum = self.load(line, word).wrapping_add(amount);
        self.store(line, word, sum);
    }

    #[inline]
    fn load(&self, line: usize, word: usize) -> u64 {
        self.shared.line(line).0[word].load(Ordering::Relaxed)
    }

    /// `Release` keeps this store behind everything before it in program order; on x86-64 it is a
    /// plain move.
    #[inline]
    fn store(&mut self, line: usize, word: usize, value: u64) {
        self.shared.line(line).0[word].store(value, Ordering::Release);
        self.probe.stored();
    }
}

/// Everything a record says.
struct Entry {
    pending: Option<Pending>,
    bytes_in: u64,
    bytes_out: u64,
    last_progress: Tick,
    opened: Tick,
    peer: SocketAddr,
    state: State,
    flags: Flags,
    generation: u32,
}

/// The pool of pending-output buffers is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no buffer is left for pending output")]
pub struct NoBuffer;

fn head_of(shared: &SharedMemory, fd: u32) -> Head {
    let word = shared.line(Layout::record(fd)).0[HEAD].load(Ordering::Relaxed);
    Head::unpack(word).unwrap_or(Head::FREE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        descriptors: 16,
        buffers: 20,
        buffer_bytes: 4096,
    };

    fn memory() -> Memory {
        Memory::adopt(create(LAYOUT).unwrap(), LAYOUT).unwrap()
    }

    fn peer() -> SocketAddr {
        "192.0.2.7:4000".parse().unwrap()
    }

    #[test]
    fn a_record_says_who_and_how_much() {
        let mut memory = memory();
        memory.accepting();
        memory.opened(5, 1, peer(), Tick::from_millis(3));
        memory.accepted();
        memory.receiving(5)[..4].copy_from_slice(b"abcd");
        memory
            .received(5, 4, Tick::from_millis(9))
            .make_ascii_uppercase();
        memory.sent(5, 1, 4).unwrap();
        assert_eq!(memory.peer(5), peer());
        assert_eq!(memory.bytes_moved(5), (4, 1));
        assert_eq!(memory.last_progress(5), Tick::from_millis(9));
        assert_eq!(memory.opened_at(5), Tick::from_millis(3));
        assert_eq!(memory.flushing(5).unwrap(), b"BCD");
        assert!(!memory.flushed(5, 2, Tick::from_millis(10)));
        assert_eq!(unsent(&mut memory, 5, 1).unwrap(), b"D");
        assert_eq!(memory.flushing(5).unwrap(), b"D");
        assert!(memory.flushed(5, 1, Tick::from_millis(11)));
        assert_eq!(memory.flushing(5), None);
        assert_eq!(memory.occupied().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn counters_outlive_their_worker_and_its_connections_are_accounted_for() {
        let mut first = memory();
        let again = first.shared().fd().try_clone_to_owned().unwrap();
        first.count(Counter::Accepted, 3);
        first.count(Counter::Closed(CloseReason::PeerClosed), 1);
        first.opened(7, 1, peer(), Tick::ZERO);
        drop(first);
        let second = Memory::adopt(again, LAYOUT).unwrap();
        assert_eq!(counter(second.shared(), Counter::Accepted), 3);
        let died = Counter::Closed(CloseReason::WorkerDied);
        assert_eq!(counter(second.shared(), died), 2);
        assert_eq!(open_connections(second.shared()), 0);
        assert_eq!(second.occupied().count(), 0);
    }

    #[test]
    fn an_empty_pool_leaves_the_rest_in_hand() {
        let layout = Layout {
            buffers: 0,
            ..LAYOUT
        };
        let mut memory = Memory::adopt(create(layout).unwrap(), layout).unwrap();
        memory.opened(3, 1, peer(), Tick::ZERO);
        memory.receiving(3)[..2].copy_from_slice(b"xy");
        memory.received(3, 2, Tick::ZERO);
        assert_eq!(memory.sent(3, 1, 2), Err(NoBuffer));
        assert_eq!(unsent(&mut memory, 3, 1).unwrap(), b"Y");
    }

    #[test]
    fn nonsense_is_told_from_sense() {
        let mut memory = memory();
        memory.opened(3, 1, peer(), Tick::ZERO);
        memory.receiving(3);
        memory.received(3, 2, Tick::ZERO);
        assert!(unsent(&mut memory, 3, 3).is_err());
        let too_much = LAYOUT.buffer_bytes + 1;
        memory.take_in_hand(InHand::Recv {
            fd: 3,
            len: too_much,
        });
        assert!(
            unsent(&mut memory, 3, too_much.into()).is_err(),
            "found by fuzzing"
        );
        memory.store(Layout::IN_HAND, 0, 9 << 56);
        assert!(unsent(&mut memory, 3, 0).is_err());
        memory.settled();
        memory.store(Layout::record(3), PENDING, u64::MAX);
        assert!(unsent(&mut memory, 3, 0).is_err());
        let beyond = Pending {
            buffer: 20,
            offset: 0,
            end: 1,
        };
        memory.store(Layout::record(3), PENDING, beyond.pack());
        assert!(unsent(&mut memory, 3, 0).is_err());
        assert!(unsent(&mut memory, LAYOUT.descriptors, 0).is_err());
        memory.store(Layout::record(3), HEAD, 0xff);
        assert!(unsent(&mut memory, 3, 0).is_err());
        assert_eq!(memory.head(3).state, State::Free);
    }

    #[test]
    fn a_file_too_small_for_the_layout_is_refused() {
        let small = create(Layout {
            buffers: 1,
            ..LAYOUT
        })
        .unwrap();
        let refused = Memory::adopt(small, LAYOUT).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
