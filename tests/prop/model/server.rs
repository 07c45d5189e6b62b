//! The event loop reduced to its rules: the reactor's `handle_report`, `answer_hands`, `conclude`,
//! `read_header` and `close` over the model kernel; and its replacement after a crash.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;

use uppercased::connection::{self, ORDINARY, Outcome, Rules, Stream};
use uppercased::handover::record::{BatchEncoder, Message, Packet};
use uppercased::memory::frozen::Frozen;
use uppercased::memory::layout::{Flags, HANDS, InHand, Layout, State};
use uppercased::memory::rescue::{self, Counters, NoRescue};
use uppercased::memory::{self, Memory};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::metrics::CloseReason;

use super::{CLIENTS_MAX, Handle, Kernel, Report, Stops};

/// Number of records: for the clients of a server and of its successor.
pub const DESCRIPTORS: u32 = 3 + 2 * CLIENTS_MAX as u32;

/// A worker's loop.
#[derive(Debug)]
pub struct Server {
    /// Its working memory.
    pub memory: Memory<Stops>,
    /// Limits of its connections.
    pub rules: Rules,
    /// Descriptors with work to do.
    pub ready: VecDeque<u32>,
    /// Ended connections: client and reason.
    pub ended: Vec<(usize, CloseReason)>,
    /// The largest number of connections that were in hand at once.
    pub most_in_hand: usize,
    in_hand: usize,
    /// Bytes received in this turn, by client.
    shares: BTreeMap<usize, usize>,
    last_generation: u32,
}

/// Returns a new memory with buffers of `buffer_bytes`.
pub fn fresh_memory(buffer_bytes: u32, stops: Stops) -> Memory<Stops> {
    let layout = Layout {
        descriptors: DESCRIPTORS,
        buffers: 2 * DESCRIPTORS,
        buffer_bytes,
    };
    let mut memory = Memory::with_probe(memory::create(layout).unwrap(), layout, stops).unwrap();
    memory.set_ready();
    memory
}

/// Returns the first descriptor number of a successor, beyond its predecessor's.
const fn other_numbers(kernel: &Kernel) -> u32 {
    if kernel.first_fd == 3 {
        3 + CLIENTS_MAX as u32
    } else {
        3
    }
}

impl Server {
    /// Returns an event loop without work.
    pub fn new(memory: Memory<Stops>, rules: Rules) -> Self {
        Self {
            memory,
            rules,
            ready: VecDeque::new(),
            ended: Vec::new(),
            most_in_hand: 0,
            in_hand: 0,
            shares: BTreeMap::new(),
            last_generation: 0,
        }
    }

    /// Runs one turn: reports, connections left over from the last turn, accepts, deadlines.
    pub fn turn(&mut self, kernel: &mut Kernel) {
        let left_over = self.ready.len();
        for report in kernel.wait() {
            self.record(kernel, report);
        }
        self.answer_hands(kernel);
        self.work(kernel, left_over);
    }

    /// Runs the second half of a turn, with the first `left_over` ready connections.
    pub fn work(&mut self, kernel: &mut Kernel, left_over: usize) {
        for _ in 0..left_over {
            let Some(fd) = self.ready.pop_front() else {
                break;
            };
            let flags = self.memory.record(fd).flags();
            if !flags.has(Flags::QUEUED) {
                continue;
            }
            self.memory
                .record_mut(fd)
                .set_flags(flags.without(Flags::QUEUED));
            self.drive(kernel, fd);
        }
        self.accept(kernel);
        let occupied: Vec<u32> = self.memory.occupied().collect();
        for fd in occupied {
            let record = self.memory.record(fd);
            let is_due = connection::is_due(&record, &self.rules, kernel.now);
            if is_due && record.state() == State::AwaitingHeader {
                self.read_header(kernel, fd);
            }
            self.expire(kernel, fd);
        }
        self.shares.clear();
    }

    fn expire(&mut self, kernel: &mut Kernel, fd: u32) {
        let stream = &mut Handle { kernel, fd };
        let now = stream.kernel.now;
        let record = &mut self.memory.record_mut(fd);
        let outcome = connection::expire(record, stream, &self.rules, now);
        self.conclude(kernel, fd, outcome);
    }

    /// Peeks at the header of `fd`, and receives it if all of it is there.
    fn read_header(&mut self, kernel: &mut Kernel, fd: u32) {
        let flags = self.memory.record(fd).flags();
        let length = kernel.wire(fd).header;
        match kernel.peek_header(fd) {
            Ok(0) => return self.close(kernel, fd, CloseReason::PeerClosed),
            Ok(count) if count == length => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.enqueue(fd),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return self.close(kernel, fd, connection::reason_of(&error));
            }
            Ok(_) | Err(_) => {
                if flags.has(Flags::READ_DRY) && !flags.has(Flags::FINISH) {
                    return self.close(kernel, fd, CloseReason::Refused);
                }
                let mut record = self.memory.record_mut(fd);
                record.set_flags(flags.without(Flags::READABLE));
                if connection::is_due(&record, &self.rules, kernel.now) {
                    self.expire(kernel, fd);
                }
                return;
            }
        }
        let client = ([198, 51, 100, 1], kernel.descriptors[&fd] as u16).into();
        self.memory.record_mut(fd).set_client(client);
        match kernel.receive_header(fd) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.enqueue(fd),
            Err(error) => return self.close(kernel, fd, connection::reason_of(&error)),
        }
        let now = kernel.now;
        self.memory.record_mut(fd).end_header(length as u16, now);
        self.drive(kernel, fd);
    }

    /// Requests every connection to end as soon as nothing is owed on it.
    pub fn finish(&mut self, kernel: &mut Kernel) {
        let occupied: Vec<u32> = self.memory.occupied().collect();
        for fd in occupied {
            self.memory.record_mut(fd).finish();
            self.enqueue(fd);
            let wire = kernel.wire(fd);
            if wire.ended_at.is_none() {
                wire.arrived_at_stop = wire.arrived.len();
            }
        }
    }

    /// Returns whether the loop has no work before the next event.
    pub fn is_quiet(&self, kernel: &Kernel) -> bool {
        let reported = |&client: &usize| kernel.wires[client].reported_next();
        self.ready.is_empty()
            && kernel.queue.is_empty()
            && !kernel.descriptors.values().any(reported)
    }

    /// Hands every connection to a successor in another memory, under other numbers, by the rules
    /// of the working memory; each travels in the real format, and the kernel's state with its
    /// descriptor.
    pub fn handed_over(mut self, kernel: &mut Kernel, memory: Memory<Stops>) -> Self {
        let mut successor = Self::new(memory, self.rules);
        successor.ended = std::mem::take(&mut self.ended);
        successor.last_generation = self.last_generation + 1000;
        let first_fd = other_numbers(kernel);
        let occupied: Vec<u32> = self.memory.occupied().collect();
        for (sequence, fd) in (1..).zip(occupied) {
            let frozen = self.memory.record_mut(fd).freeze().unwrap();
            let mut batch = BatchEncoder::new(sequence);
            assert!(batch.push(&frozen));
            self.memory.record_mut(fd).begin_handover(sequence, 0);
            assert_eq!(self.memory.record_mut(fd).freeze().as_ref(), Some(&frozen));
            let packet = Packet::decode(&batch.finish()).unwrap();
            let arrived = Message::Batch(vec![Ok(frozen)]);
            assert_eq!((packet.sequence, &packet.message), (sequence, &arrived));
            let Message::Batch(arrived) = packet.message else {
                continue;
            };
            let number = kernel.transfer(fd, first_fd);
            successor.receive(kernel, number, arrived[0].as_ref().unwrap());
            // The acknowledgement has been read.
            self.memory.record_mut(fd).end_handover();
            self.memory.record_mut(fd).end_close();
            assert_eq!(self.memory.record_mut(fd).freeze(), None);
        }
        assert_eq!(self.memory.occupied().count(), 0);
        successor
    }

    /// Adopts a connection of another worker, acknowledges it and begins to serve it.
    fn receive(&mut self, kernel: &mut Kernel, fd: u32, frozen: &Frozen) {
        self.last_generation += 1;
        let generation = self.last_generation;
        self.memory.arrive(fd, generation, frozen).unwrap();
        assert!(self.memory.record(fd).flags().has(Flags::MOVING));
        assert_eq!(self.memory.record_mut(fd).freeze().as_ref(), Some(frozen));
        kernel.watch(fd, generation);
        self.memory.record_mut(fd).take_ownership();
        if self.memory.record(fd).flags().has(Flags::READABLE) {
            self.enqueue(fd);
        }
    }

    /// Begins to send every connection to a receiver that exits before it has acknowledged any.
    pub fn taken_back(&mut self, kernel: &mut Kernel) {
        let occupied: Vec<u32> = self.memory.occupied().collect();
        for fd in occupied {
            let before = self.memory.record_mut(fd).freeze();
            self.memory.record_mut(fd).begin_handover(1, 0);
            self.ready.retain(|&ready| ready != fd);
            self.last_generation += 1;
            let generation = self.last_generation;
            self.memory.record_mut(fd).take_back(generation);
            assert_eq!(self.memory.record_mut(fd).freeze(), before);
            kernel.watch(fd, generation);
            if self.memory.record(fd).flags().has(Flags::READABLE) {
                self.enqueue(fd);
            }
        }
    }

    /// Continues the worker after its death: repairs the memory and goes on with the same
    /// descriptors. To be repeated if this life dies, too. Adds to `poisoned` the clients that it
    /// resets, since processes died serving them.
    ///
    /// # Errors
    /// Why the worker is not rescued.
    pub fn rescue(
        &mut self,
        kernel: &mut Kernel,
        fault: Fault,
        poisoned: &mut BTreeSet<usize>,
    ) -> Result<(), NoRescue> {
        fault.spoil(&self.memory);
        let lengths = fault.lengths(&self.memory);
        let rescue = self.memory.begin_rescue()?;
        let mut pidfd = None;
        if fault == Fault::OpenFirst {
            pidfd = Some(kernel.open_other());
        }
        let mut rescuer = Rescuer {
            kernel,
            lengths,
            ignores_headers: fault == Fault::HeaderIgnored,
        };
        self.memory.finish_closes(&mut rescuer);
        if fault != Fault::OpenFirst {
            rescuer.kernel.others.clear();
        }
        let pidfd = pidfd.unwrap_or_else(|| rescuer.kernel.open_other());
        let clients = rescuer.kernel.descriptors.clone();
        let repaired = self.memory.repair(rescue, &mut rescuer);
        assert!(
            kernel.others.contains(&pidfd),
            "a new descriptor was closed"
        );
        self.ready.clear();
        self.shares.clear();
        self.in_hand = 0;
        self.last_generation = repaired.last_generation;
        for reset in repaired.reset {
            // The kernel has forgotten a connection that its peer reset; nothing else is reset.
            match reset.reason {
                CloseReason::PeerReset => {}
                CloseReason::Poisoned => {
                    poisoned.insert(clients[&reset.fd]);
                }
                _ => panic!("{reset:?}"),
            }
        }
        let recorded: Vec<u32> = self.memory.occupied().collect();
        let open: Vec<u32> = kernel.descriptors.keys().copied().collect();
        for fd in open {
            if !recorded.contains(&fd) {
                assert!(repaired.was_accepting, "{fd} was never recorded");
                self.open(kernel, fd);
            }
        }
        self.memory.end_accept();
        for fd in recorded {
            assert!(
                kernel.descriptors.contains_key(&fd),
                "{fd} is recorded and closed"
            );
            // Its deadline may restart: the time of the last progress is stored before the state
            // that it belongs to.
            kernel.wire(fd).last_moved = kernel.now;
            let record = self.memory.record(fd);
            let generation = record.generation();
            if matches!(record.state(), State::LingeringIdle | State::LingeringStop) {
                // A duplicate is harmless; the next read detects a closed peer.
                let _ = Handle { kernel, fd }.end_output();
            }
            kernel.watch(fd, generation);
            if self.memory.record(fd).flags().has(Flags::READABLE) {
                self.enqueue(fd);
            }
        }
        Ok(())
    }

    /// Accepts the connections in the queue.
    fn accept(&mut self, kernel: &mut Kernel) {
        if kernel.queue.is_empty() {
            return;
        }
        self.memory.begin_accept();
        while let Some(fd) = kernel.accept() {
            self.open(kernel, fd);
        }
        self.memory.end_accept();
    }

    fn open(&mut self, kernel: &mut Kernel, fd: u32) {
        self.last_generation += 1;
        let now = kernel.now;
        kernel.wire(fd).accepted = now;
        let peer = ([192, 0, 2, 1], kernel.descriptors[&fd] as u16).into();
        let state = match kernel.wire(fd).header {
            0 => State::Open,
            _ => State::AwaitingHeader,
        };
        self.memory.open(fd, self.last_generation, peer, now, state);
        kernel.watch(fd, self.last_generation);
    }

    fn record(&mut self, kernel: &mut Kernel, report: Report) {
        let fd = report.fd;
        let ordinary = report.readable && report.writable && !report.dry;
        let record = self.memory.record(fd);
        if ordinary && record.is_open_with(report.generation, Flags::WRITABLE) {
            return self.receive_one(kernel, fd);
        }
        let mut record = self.memory.record_mut(fd);
        assert_eq!(record.generation(), report.generation);
        assert!(!matches!(record.state(), State::Free | State::Closing));
        let mut flags = record.flags();
        if report.readable {
            flags = flags.with(Flags::READABLE);
        }
        if report.writable {
            flags = flags.with(Flags::WRITABLE);
        }
        if report.dry {
            flags = flags.with(Flags::READABLE).with(Flags::READ_DRY);
        }
        record.set_flags(flags);
        let has_work = flags.has(Flags::READABLE) || record.pending().is_some();
        if has_work && !flags.has(Flags::QUEUED) {
            self.answer_hands(kernel);
            self.drive(kernel, fd);
        }
    }

    fn enqueue(&mut self, fd: u32) {
        let mut record = self.memory.record_mut(fd);
        let flags = record.flags();
        if !flags.has(Flags::QUEUED) {
            record.set_flags(flags.with(Flags::QUEUED));
            self.ready.push_back(fd);
        }
    }

    fn drive(&mut self, kernel: &mut Kernel, fd: u32) {
        let before = kernel.wire(fd).consumed;
        let stream = &mut Handle { kernel, fd };
        let now = stream.kernel.now;
        let record = &mut self.memory.record_mut(fd);
        let outcome = connection::drive(record, stream, &self.rules, now);
        self.check_share(kernel, fd, before);
        self.conclude(kernel, fd, outcome);
    }

    /// Receives from a connection, and answers all that is in hand if no more fits.
    fn receive_one(&mut self, kernel: &mut Kernel, fd: u32) {
        let before = kernel.wire(fd).consumed;
        let stream = &mut Handle { kernel, fd };
        let now = stream.kernel.now;
        let record = &mut self.memory.record_mut(fd);
        record.set_flags(ORDINARY);
        let outcome = connection::receive(record, stream, &self.rules, now);
        self.check_share(kernel, fd, before);
        if let Some(outcome) = outcome {
            return self.conclude(kernel, fd, outcome);
        }
        self.in_hand += 1;
        self.most_in_hand = self.most_in_hand.max(self.in_hand);
        if self.memory.must_answer() {
            self.answer_hands(kernel);
        }
    }

    fn answer_hands(&mut self, kernel: &mut Kernel) {
        while let Some(hand) = self.memory.next_in_hand() {
            let fd = hand.fd();
            let before = kernel.wire(fd).consumed;
            let stream = &mut Handle { kernel, fd };
            let now = stream.kernel.now;
            let record = &mut self.memory.record_mut(fd);
            let outcome = connection::answer(record, stream, &self.rules, hand, now);
            self.check_share(kernel, fd, before);
            self.conclude(kernel, fd, outcome.unwrap_or(Outcome::Waiting));
        }
        self.in_hand = 0;
    }

    /// Checks that no connection receives more than its budget in one turn.
    fn check_share(&mut self, kernel: &mut Kernel, fd: u32, before: usize) {
        let share = self.shares.entry(kernel.descriptors[&fd]).or_default();
        *share += kernel.wire(fd).consumed - before;
        let most = self.rules.bytes_per_turn + self.memory.layout().buffer_bytes;
        assert!(*share < most as usize, "{share} bytes received in one turn");
    }

    fn conclude(&mut self, kernel: &mut Kernel, fd: u32, outcome: Outcome) {
        match outcome {
            Outcome::Waiting => {}
            Outcome::Again => self.enqueue(fd),
            Outcome::Close(reason) => self.close(kernel, fd, reason),
            Outcome::Header => self.read_header(kernel, fd),
            Outcome::Refuse(_) => self.close(kernel, fd, CloseReason::Refused),
        }
    }

    fn close(&mut self, kernel: &mut Kernel, fd: u32, reason: CloseReason) {
        let client = kernel.descriptors[&fd];
        let abandoned = self.memory.record_mut(fd).begin_close();
        assert_eq!(
            abandoned as usize,
            kernel.wires[client]
                .ended_at
                .map_or_else(|| kernel.wires[client].owed(), |_| 0),
            "the abandoned bytes are the unsent ones"
        );
        if abandoned > 0 || reason == CloseReason::Refused {
            kernel.abort(fd);
        }
        kernel.close(fd);
        self.memory.record_mut(fd).end_close();
        self.ended.push((client, reason));
    }

    /// Returns how `client` ended, if it did.
    pub fn end_of(&self, client: usize) -> Option<CloseReason> {
        let end = self.ended.iter().find(|(ended, _)| *ended == client);
        end.map(|&(_, reason)| reason)
    }

    /// Returns the earliest time of last progress with which a connection in `state` survives at
    /// `now`.
    pub fn patience(&self, fd: u32) -> Option<std::time::Duration> {
        let record = self.memory.record(fd);
        match record.state() {
            State::Open if record.pending().is_some() => self.rules.write_stall_timeout,
            State::Open if self.ends_unseen(fd) => {
                let idle = self.rules.idle_timeout.into_iter();
                idle.chain([self.rules.first_byte_timeout]).min()
            }
            State::Open => self.rules.idle_timeout,
            State::LingeringIdle | State::LingeringStop => Some(self.rules.linger_timeout),
            State::AwaitingHeader if record.flags().has(Flags::FINISH) => {
                let timeout = self.rules.header_timeout;
                Some(timeout.min(self.rules.first_byte_timeout))
            }
            State::AwaitingHeader => Some(self.rules.header_timeout),
            State::Free | State::Closing | State::Handed => None,
        }
    }

    /// Returns whether `fd` is to end before it has ever sent anything.
    pub fn ends_unseen(&self, fd: u32) -> bool {
        let record = self.memory.record(fd);
        record.flags().has(Flags::FINISH) && record.bytes_moved().0 == 0
    }

    /// Returns whether `fd` has a deadline that `now` has reached.
    pub fn overdue(&self, fd: u32, last_moved: Tick, now: Tick) -> bool {
        self.patience(fd)
            .is_some_and(|patience| last_moved + patience <= now)
    }
}

/// The kernel as a repair asks it.
#[derive(Debug)]
pub struct Rescuer<'a> {
    /// The kernel.
    pub kernel: &'a mut Kernel,
    /// Bytes owed by descriptor number, instead of the counters.
    pub lengths: BTreeMap<u32, u64>,
    /// Whether the bytes of headers are left out of the counters.
    pub ignores_headers: bool,
}

impl rescue::Kernel for Rescuer<'_> {
    fn counters(&mut self, fd: u32) -> Result<Counters, &'static str> {
        let Some(&client) = self.kernel.descriptors.get(&fd) else {
            return Err("it is no connection");
        };
        let wire = &self.kernel.wires[client];
        let (read, written) = (wire.consumed as u64, wire.written.len() as u64);
        let length = self.lengths.get(&fd);
        let header = match self.ignores_headers {
            false => wire.header_taken as u64,
            true => 0,
        };
        Ok(Counters {
            received: (wire.header_arrived + wire.arrived.len()) as u64,
            read: header + read,
            written: length.map_or(written, |length| read - length),
            is_over: wire.reset,
        })
    }

    fn close(&mut self, fd: u32, reset: bool) {
        if reset && self.kernel.descriptors.contains_key(&fd) {
            self.kernel.abort(fd);
        }
        self.kernel.close(fd);
    }
}

/// A rule that a rescue or the stores before it omit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    None,
    /// The words in hand are ignored.
    HandsIgnored,
    /// The stored length is taken for what is owed.
    LengthTrusted,
    /// The store before a receive is missing (rule 1).
    NoReceiveMark,
    /// The store of pending output is missing (rule 2).
    NoPending,
    /// The store before a flush is missing (rule 3).
    NoFlushMark,
    /// The accepting mark is missing (rule 4).
    NoAcceptMark,
    /// The state before a close is missing (rule 5).
    NoCloseMark,
    /// The state before an end of stream is missing (rule 6).
    NoLingerMark,
    /// A descriptor is opened before the closes are finished.
    OpenFirst,
    /// A header that was received and not recorded is expected again (rule 9).
    HeaderIgnored,
}

impl Fault {
    /// Changes the memory of a dead worker as if the fault had been there before.
    fn spoil(self, memory: &Memory<Stops>) {
        let word = |line: usize, word: usize| &memory.shared().line(line).0[word];
        for (line, at) in (0..HANDS).map(Layout::in_hand) {
            let in_hand = InHand::unpack(word(line, at).load(Ordering::Relaxed));
            let unmarked = matches!(in_hand, Some(InHand::Recv { len: 0, .. }));
            let flushed = matches!(in_hand, Some(InHand::Flush { .. }));
            if self == Self::HandsIgnored
                || (self == Self::NoReceiveMark && unmarked)
                || (self == Self::NoFlushMark && flushed)
            {
                word(line, at).store(0, Ordering::Relaxed);
            }
        }
        if self == Self::NoAcceptMark {
            word(Layout::ACCEPTING, 0).store(0, Ordering::Relaxed);
        }
        for fd in memory.occupied() {
            let line = Layout::record(fd);
            if self == Self::NoPending {
                word(line, 1).store(0, Ordering::Relaxed);
            }
            let is_missing = match memory.record(fd).state() {
                State::Closing => self == Self::NoCloseMark,
                State::LingeringIdle | State::LingeringStop => self == Self::NoLingerMark,
                _ => false,
            };
            if is_missing {
                let head = word(line, 0).load(Ordering::Relaxed) & !0xff;
                word(line, 0).store(head | State::Open as u64, Ordering::Relaxed);
            }
        }
    }

    /// Returns the lengths in hand, if they are trusted.
    fn lengths(self, memory: &Memory<Stops>) -> BTreeMap<u32, u64> {
        if self != Self::LengthTrusted {
            return BTreeMap::new();
        }
        let words = (0..HANDS).map(Layout::in_hand).filter_map(|(line, at)| {
            let word = memory.shared().line(line).0[at].load(Ordering::Relaxed);
            match InHand::unpack(word)? {
                InHand::Recv { fd, len, .. } => Some((fd, len.into())),
                InHand::Nothing | InHand::Flush { .. } => None,
            }
        });
        words.collect()
    }
}
