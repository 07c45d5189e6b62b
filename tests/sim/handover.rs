//! Simulates the two state machines of a handover over a model of their socket. At any step, either
//! side may exit, be continued by another process, be stopped, be delayed, or refuse.
//!
//! A process that is continued dies between any two stores or calls, and its machine with it. The
//! next one has the sockets and the working memory, which is the product's: it is repaired, and must
//! agree with the model. Not simulated: a sender that is continued while its receiver dies for good,
//! because only the kernel's counters show then whether the receiver has served a connection.
//!
//! In half of the worlds only some of the connections migrate, and the rest stay with the sender.
//!
//! Invariants at every instant: at most one side touches a connection; a connection that neither
//! touches still has an owner; connections appear and disappear only by accept and close. At the
//! end: connections that an exited receiver had not acknowledged are back with the sender; those
//! that an exited sender had sent and the receiver adopted belong to the receiver; none remains in
//! flight. Each rule of the handover that is omitted breaks one.
//!
//! `SIM_SEED=42` replays one run and prints its steps; `SIM_SEEDS=4000` sets the number of runs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use uppercased::config::HANDOVER_WINDOW;
use uppercased::handover::HandoverEnd;
use uppercased::handover::machine::{
    Answer, Received, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
};
use uppercased::handover::record::{Left, Message, Packet};
use uppercased::memory::frozen::{Frozen, Phase};
use uppercased::memory::layout::{Flags, Layout, State};
use uppercased::memory::rescue::{Counters, Kernel};
use uppercased::memory::transit::{Answered, Departure, StoredAnswer};
use uppercased::memory::{self, Memory};
use uppercased_ctl::clock::Tick;

/// Number of runs in a plain `cargo test`.
const SEEDS: u64 = 3000;
/// Maximum number of steps per run.
const STEPS_MAX: usize = 20_000;
/// Maximum connections per batch.
const BATCH_MAX: usize = 3;
/// Maximum packets in the socket per direction.
const QUEUE_MAX: usize = 2;

/// A rule that a side omits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The receiver serves connections before it stores that it has acknowledged them.
    ServedFirst,
    /// The receiver does not store its answer.
    AnswerNotStored,
    /// The next process of the receiver has no answers.
    AnswersForgotten,
    /// The next process of the receiver serves what was not acknowledged.
    ArrivalsServed,
    /// The sender does not store that a batch is resolved.
    NotResolved,
    /// The next process of the sender has no batches in flight.
    BatchesForgotten,
    /// The next process of the sender serves what is in flight.
    BatchesServed,
    /// The sender does not store that a connection migrates.
    NoMovingMark,
    /// The sender sends connections that are in flight in another batch, too.
    SentTwice,
    /// The sender ignores acknowledgements.
    AcknowledgementIgnored,
    /// The receiver does not store its link.
    LinkNotStored,
}

/// A descriptor of a connection at one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    No,
    Served,
    /// Suspended: in flight, or received and not acknowledged.
    Moving,
}

/// A connection in the kernel: it exists while any descriptor of it does.
#[derive(Debug)]
struct Connection {
    sender: Held,
    receiver: Held,
    /// Unreceived messages that also hold a descriptor.
    in_message: u32,
    /// Whether its adoption has been acknowledged: then the receiver owns it.
    acknowledged: bool,
    /// Whether the receiver could not adopt it: then it is not offered again.
    stuck: bool,
    /// Whether its owner has ended it.
    ended: bool,
}

/// A message: bytes, and the connections whose descriptors it carries.
#[derive(Clone, Debug)]
struct Parcel {
    bytes: Vec<u8>,
    connections: Vec<usize>,
}

/// The two machines, and the kernel and the processes around them.
#[derive(Debug)]
struct World {
    random: fastrand::Rng,
    told: bool,
    connections: Vec<Connection>,
    sender: Sender,
    receiver: Receiver,
    sender_dead: bool,
    receiver_dead: bool,
    sender_closed: bool,
    receiver_closed: bool,
    to_sender: VecDeque<Parcel>,
    to_receiver: VecDeque<Parcel>,
    sender_memory: Memory,
    receiver_memory: Memory,
    last_generation: u32,
    /// Batches that the sender has not resolved: the places and connections of each.
    batches: Vec<(u32, Vec<(u8, usize)>)>,
    /// What the receiver has committed.
    committed: Received,
    /// The connections of its last answer, while they are not served, and whether it was sent.
    answering: Vec<usize>,
    answer_sent: bool,
    /// Stores or calls until the process dies, per side.
    sender_fuse: Option<u32>,
    receiver_fuse: Option<u32>,
    /// Whether the process has died and is to be continued, per side.
    sender_down: bool,
    receiver_down: bool,
    /// Processes that continued another, per side.
    sender_lives: u32,
    receiver_lives: u32,
    staged: Option<Parcel>,
    moved: u32,
    /// Only this many served connections are still to migrate; the sender stays.
    part: Option<usize>,
    /// Capacity of the receiver.
    limit: u32,
    calm: bool,
    fault: Fault,
}

/// Returns the connection with index `index`, identified in flight by its counts.
fn frozen(index: usize) -> Frozen {
    Frozen {
        unsent: Vec::new(),
        phase: Phase::Open,
        peer_ended: false,
        finish: false,
        peer: ([192, 0, 2, 1], 80).into(),
        bytes_in: index as u64,
        bytes_out: index as u64,
        last_progress: Tick::ZERO,
        opened: Tick::ZERO,
        header_bytes: 0,
    }
}

/// The descriptor number of the first connection.
const FIRST: u32 = 3;
/// The descriptor number of a link, which no connection has.
const LINK: u32 = 9_999;

/// Returns the descriptor number of a connection, the same at both sides.
const fn number_of(index: usize) -> u32 {
    FIRST + index as u32
}

fn fresh_memory() -> Memory {
    let layout = Layout {
        descriptors: LINK,
        buffers: 1,
        buffer_bytes: 16,
    };
    let mut memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
    memory.set_ready();
    memory
}

/// Nothing is in hand, so a repair asks for nothing but closes.
struct NoCounters;

impl Kernel for NoCounters {
    fn counters(&mut self, fd: u32) -> Result<Counters, &'static str> {
        panic!("the counters of {fd} are not needed");
    }

    fn close(&mut self, fd: u32, reset: bool) {
        assert!(!reset, "{fd} is reset");
    }
}

fn rescue(memory: &mut Memory) {
    let rescue = memory.begin_rescue().unwrap();
    memory.finish_closes(&mut NoCounters);
    assert_eq!(memory.repair(rescue, &mut NoCounters).reset, []);
    memory.confirm_rescues();
}

/// Returns the numbers of the connections that a memory's worker serves.
fn served_in(memory: &Memory) -> Vec<u32> {
    let served = |&fd: &u32| !memory.record(fd).flags().has(Flags::MOVING);
    memory.occupied().filter(served).collect()
}

/// Returns the numbers of `connections` that are `held`.
fn numbers(connections: &[Connection], held: impl Fn(&Connection) -> bool) -> Vec<u32> {
    let held = connections.iter().enumerate().filter(|(_, one)| held(one));
    held.map(|(index, _)| number_of(index)).collect()
}

impl Connection {
    const fn of_sender() -> Self {
        Self {
            sender: Held::Served,
            receiver: Held::No,
            in_message: 0,
            acknowledged: false,
            stuck: false,
            ended: false,
        }
    }

    fn lives(&self) -> bool {
        self.sender != Held::No || self.receiver != Held::No || self.in_message > 0
    }
}

impl World {
    /// Returns a world; if `calm`, neither side exits, stops or refuses.
    fn new(seed: u64, told: bool, calm: bool, fault: Fault) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let connections = random.usize(0..30);
        let limit = if calm { u32::MAX } else { random.u32(1..60) };
        let part = (!calm && random.bool()).then(|| random.usize(0..20));
        let (mut sender_memory, mut receiver_memory) = (fresh_memory(), fresh_memory());
        sender_memory.begin_departure(Departure {
            link: LINK,
            last: true,
            part: part.is_some(),
        });
        if fault != Fault::LinkNotStored {
            receiver_memory.begin_arrival(LINK, 0);
        }
        let mut world = Self {
            random,
            told,
            connections: Vec::new(),
            sender_memory,
            receiver_memory,
            last_generation: 0,
            sender: Sender::default(),
            receiver: Receiver::default(),
            sender_dead: false,
            receiver_dead: false,
            sender_closed: false,
            receiver_closed: false,
            to_sender: VecDeque::new(),
            to_receiver: VecDeque::new(),
            batches: Vec::new(),
            committed: Received::default(),
            answering: Vec::new(),
            answer_sent: false,
            sender_fuse: None,
            receiver_fuse: None,
            sender_down: false,
            receiver_down: false,
            sender_lives: 0,
            receiver_lives: 0,
            staged: None,
            moved: 0,
            part,
            limit,
            calm,
            fault,
        };
        (0..connections).for_each(|_| world.open());
        world
    }

    /// Lets the sender accept a connection.
    fn open(&mut self) {
        let fd = number_of(self.connections.len());
        let generation = self.next_generation();
        let peer = ([192, 0, 2, 1], 80).into();
        let memory = &mut self.sender_memory;
        memory.open(fd, generation, peer, Tick::ZERO, State::Open);
        self.connections.push(Connection::of_sender());
    }

    const fn next_generation(&mut self) -> u32 {
        self.last_generation += 1;
        self.last_generation
    }

    fn run(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.is_over() {
                return self.check_end();
            }
            self.step();
            self.check();
        }
        panic!("the handover does not end: {self:?}");
    }

    fn step(&mut self) {
        match self.random.u32(0..200) {
            0 if !self.calm => self.sender_dies(),
            1 if self.may_receiver_die() => self.receiver_dies(),
            188..192 if !self.calm => self.sender_fuse = Some(self.random.u32(0..8)),
            192..196 if !self.calm => self.receiver_fuse = Some(self.random.u32(0..8)),
            196..198 => self.sender_continues(),
            198..200 => self.receiver_continues(),
            2 if !self.calm => {
                self.trace("the sender receives a stop");
                self.sender_handles(SenderEvent::Stop);
            }
            3..10 => self.one_ends(),
            10..16 => self.one_comes(),
            16..80 => self.sender_hears(),
            80..140 => self.sender_turns(),
            _ => self.receiver_hears(),
        }
    }

    /// Ends a served connection.
    fn one_ends(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let index = self.random.usize(0..self.connections.len());
        let one = &mut self.connections[index];
        for (held, memory) in [
            (&mut one.sender, &mut self.sender_memory),
            (&mut one.receiver, &mut self.receiver_memory),
        ] {
            if *held == Held::Served {
                *held = Held::No;
                one.ended = true;
                let mut record = memory.record_mut(number_of(index));
                record.begin_close();
                record.end_close();
            }
        }
    }

    /// Lets the sender accept a client: no other worker empties its queue.
    fn one_comes(&mut self) {
        if !self.sender_is_down() && !self.sender.is_over() {
            self.open();
        }
    }

    fn sender_turns(&mut self) {
        let served = self.connections.iter();
        let served = served.filter(|one| one.sender == Held::Served);
        let (stuck, waiting): (Vec<_>, Vec<_>) = served.partition(|one| one.stuck);
        let (stuck, waiting) = (stuck.len() as u32, waiting.len() as u32);
        let complete = self.part.is_some() || self.random.u32(0..8) == 0;
        let waiting = self.part.map_or(waiting, |left| waiting.min(left as u32));
        self.sender_handles(SenderEvent::Turn {
            waiting,
            stuck,
            complete,
        });
    }

    fn sender_hears(&mut self) {
        if self.sender_is_down() || self.sender_closed {
            return;
        }
        if let Some(parcel) = self.to_sender.pop_front() {
            if self.sender_burns() {
                return;
            }
            let packet = Packet::decode(&parcel.bytes).unwrap();
            self.trace(&format!("the sender receives {packet:?}"));
            let is_acknowledgement = matches!(packet.message, Message::Acknowledged { .. });
            if is_acknowledgement && self.fault == Fault::AcknowledgementIgnored {
                return;
            }
            self.sender_handles(SenderEvent::Received(packet));
        } else if self.receiver_closed {
            self.trace("the sender detects the end");
            self.sender_handles(SenderEvent::PeerGone);
        }
    }

    fn sender_handles(&mut self, event: SenderEvent) {
        if self.sender_is_down() {
            return;
        }
        self.sender.handle(event);
        while let Some(action) = self.sender.poll_action() {
            self.trace(&format!("the sender: {action:?}"));
            if self.sender_burns() {
                return;
            }
            match action {
                SenderAction::Send { sequence } => self.send(sequence),
                SenderAction::Repeat { sequence } => self.repeat(sequence),
                SenderAction::Retry { .. } => self.transmit(),
                SenderAction::Release { sequence, left } => {
                    self.begin_resolving(sequence, left.len());
                    while let Some((place, index)) = self.next_of(sequence, false) {
                        if self.sender_burns() {
                            return;
                        }
                        self.resolve_one(sequence, place);
                        let generation = self.next_generation();
                        let mut record = self.sender_memory.record_mut(number_of(index));
                        if left.contains(&place) {
                            record.take_back(generation);
                        } else {
                            record.end_handover();
                            record.end_close();
                        }
                        let one = &mut self.connections[index];
                        assert_eq!(one.sender, Held::Moving);
                        if left.contains(&place) {
                            assert_eq!(one.receiver, Held::No, "{index} is served at both");
                            one.sender = Held::Served;
                            one.stuck = true;
                            continue;
                        }
                        assert!(
                            one.acknowledged,
                            "{index} is released, but no worker has it"
                        );
                        one.sender = Held::No;
                        self.moved += 1;
                    }
                }
                SenderAction::TakeBack { sequence } => {
                    let last = self.batches.last().map(|batch| batch.0);
                    let is_unsent = last == Some(sequence) && self.staged.take().is_some();
                    let oldest = self.batches.first().map(|batch| batch.0);
                    if !is_unsent && oldest == Some(sequence) {
                        let (_, moved) = self.sender_memory.resolved();
                        self.sender_memory.begin_resolving(sequence, moved);
                    }
                    while let Some((place, index)) = self.next_of(sequence, is_unsent) {
                        if self.sender_burns() {
                            return;
                        }
                        self.resolve_one(sequence, place);
                        let generation = self.next_generation();
                        let mut record = self.sender_memory.record_mut(number_of(index));
                        record.take_back(generation);
                        let one = &mut self.connections[index];
                        assert_eq!(one.sender, Held::Moving);
                        one.sender = Held::Served;
                        one.stuck = true;
                    }
                }
                SenderAction::SendEnd { sequence } => {
                    let moved = self.moved;
                    let message = Message::End { moved };
                    self.to_receiver.push_back(Parcel {
                        bytes: Packet { sequence, message }.encode(),
                        connections: Vec::new(),
                    });
                }
                SenderAction::Finish => {
                    self.sender_closed = true;
                    self.to_sender.clear();
                }
            }
            self.check();
            if self.sender_down {
                return;
            }
        }
        assert!(self.batches.len() <= HANDOVER_WINDOW, "the window");
    }

    /// Stores that a batch is resolved, of which `left` connections stay, unless another process
    /// has.
    fn begin_resolving(&mut self, sequence: u32, left: usize) {
        let (resolved, moved) = self.sender_memory.resolved();
        if resolved != sequence {
            let batch = self.batches.iter().find(|batch| batch.0 == sequence);
            let places = batch.map_or(0, |batch| batch.1.len());
            let moved = moved + (places - left) as u32;
            if self.fault != Fault::NotResolved {
                self.sender_memory.begin_resolving(sequence, moved);
            }
        }
    }

    /// Returns the connection of a batch that is resolved next, with its place: the first, or the
    /// last of a batch that was never sent.
    fn next_of(&self, sequence: u32, is_unsent: bool) -> Option<(u8, usize)> {
        let batch = self.batches.iter().find(|batch| batch.0 == sequence)?;
        let next = if is_unsent {
            batch.1.last()
        } else {
            batch.1.first()
        };
        next.copied()
    }

    fn resolve_one(&mut self, sequence: u32, place: u8) {
        let batch = self.batches.iter_mut().find(|batch| batch.0 == sequence);
        let places = &mut batch.expect("resolved once").1;
        places.retain(|(other, _)| *other != place);
        self.batches.retain(|batch| !batch.1.is_empty());
    }

    fn sender_is_down(&self) -> bool {
        self.sender_dead || self.sender_down
    }

    fn may_receiver_die(&self) -> bool {
        !self.calm && self.sender_lives == 0 && !self.sender_down
    }

    fn receiver_is_down(&self) -> bool {
        self.receiver_dead || self.receiver_down
    }

    /// Counts a store or call of the sender. Returns whether it has died before it.
    fn sender_burns(&mut self) -> bool {
        let burnt = self.sender_fuse.take_if(|left| *left == 0).is_some();
        self.sender_fuse = self.sender_fuse.map(|left| left - 1);
        if burnt && !self.sender_dead && !self.receiver_dead && !self.sender.is_over() {
            self.trace("the sender dies and will continue");
            self.sender_down = true;
        }
        self.sender_down
    }

    fn receiver_burns(&mut self) -> bool {
        let burnt = self.receiver_fuse.take_if(|left| *left == 0).is_some();
        self.receiver_fuse = self.receiver_fuse.map(|left| left - 1);
        if burnt && !self.receiver_dead {
            self.trace("the receiver dies and will continue");
            self.receiver_down = true;
        }
        self.receiver_down
    }

    /// Continues the sender from its records.
    fn sender_continues(&mut self) {
        if !std::mem::take(&mut self.sender_down) || self.sender_dead {
            return;
        }
        self.trace("the sender continues");
        self.sender_lives += 1;
        self.staged = None;
        for one in &mut self.connections {
            one.stuck = false;
        }
        let memory = &mut self.sender_memory;
        rescue(memory);
        let served = |one: &Connection| one.sender == Held::Served;
        let served = numbers(&self.connections, served);
        assert_eq!(served_in(memory), served, "the sender's records");
        let stored = memory.batches().into_iter().map(|batch| {
            let indexed = batch.connections.into_iter();
            let indexed = indexed.map(|(place, fd)| (place, (fd - FIRST) as usize));
            (batch.sequence, indexed.collect())
        });
        assert_eq!(stored.collect::<Vec<_>>(), self.batches);
        if self.fault == Fault::BatchesServed {
            let moving = self.connections.iter_mut();
            let moving = moving.filter(|one| one.sender == Held::Moving);
            moving.for_each(|one| one.sender = Held::Served);
        }
        let in_flight = self.batches.iter().map(|(number, places)| {
            let last = places.last().map_or(0, |last| u32::from(last.0));
            (*number, last + 1)
        });
        let in_flight: Vec<_> = in_flight.collect();
        let (resolved, _) = memory.resolved();
        let last = in_flight.last().map_or(resolved, |last| last.0);
        let forgets = self.fault == Fault::BatchesForgotten;
        let in_flight = if forgets { &[] } else { &*in_flight };
        self.sender = Sender::resumed(last, in_flight);
    }

    /// Continues the receiver from what it had committed.
    fn receiver_continues(&mut self) {
        if !std::mem::take(&mut self.receiver_down) || self.receiver_dead {
            return;
        }
        self.trace("the receiver continues");
        self.receiver_lives += 1;
        for (index, one) in self.connections.iter_mut().enumerate() {
            if one.receiver == Held::Moving {
                let taken = self.answering.contains(&index) || self.fault == Fault::ArrivalsServed;
                one.receiver = if taken { Held::Served } else { Held::No };
            }
        }
        let memory = &mut self.receiver_memory;
        rescue(memory);
        for fd in memory.arriving().collect::<Vec<_>>() {
            let mut record = memory.record_mut(fd);
            if self.fault == Fault::ArrivalsServed {
                record.take_ownership();
                continue;
            }
            record.end_handover();
            record.end_close();
        }
        let served = |one: &Connection| one.receiver == Held::Served;
        let served = numbers(&self.connections, served);
        assert_eq!(served_in(memory), served, "the receiver's records");
        let arrival = memory.arrival().expect("the link is stored");
        let answers = arrival.answers.into_iter();
        let received = Received {
            last_sequence: arrival.answered.last_sequence,
            adopted: arrival.answered.adopted,
            is_refusing: arrival.answered.is_refusing,
            answers: answers
                .map(
                    |StoredAnswer {
                         sequence,
                         taken,
                         left,
                     }| (sequence, Answer { taken, left }),
                )
                .collect(),
        };
        let received = match self.fault {
            Fault::AnswersForgotten => Received::default(),
            Fault::AnswerNotStored => received,
            _ => {
                assert_eq!(received, self.committed);
                received
            }
        };
        self.receiver = Receiver::resumed(received);
        self.receiver_executes(&[]);
    }

    fn send(&mut self, sequence: u32) {
        let most = self.random.usize(1..=BATCH_MAX);
        let most = self.part.map_or(most, |left| most.min(left));
        let served = (0..self.connections.len()).filter(|&index| {
            let one = &self.connections[index];
            match one.sender {
                Held::Served => !one.stuck,
                Held::Moving => self.fault == Fault::SentTwice,
                Held::No => false,
            }
        });
        let batch: Vec<usize> = served.take(most).collect();
        assert!(!batch.is_empty(), "an empty batch");
        if let Some(left) = &mut self.part {
            *left -= batch.len();
        }
        for (place, &index) in (0..).zip(&batch) {
            if self.sender_burns() {
                return;
            }
            self.connections[index].sender = Held::Moving;
            let mut record = self.sender_memory.record_mut(number_of(index));
            if self.fault != Fault::NoMovingMark {
                record.begin_handover(sequence, place);
            }
            if place == 0 {
                self.batches.push((sequence, Vec::new()));
            }
            self.batches.last_mut().unwrap().1.push((place, index));
        }
        let message = Message::Batch(batch.iter().map(|&index| Ok(frozen(index))).collect());
        self.staged = Some(Parcel {
            bytes: Packet { sequence, message }.encode(),
            connections: batch,
        });
        if !self.sender_burns() {
            self.transmit();
        }
    }

    /// Sends a batch in flight again, as far as it is not resolved.
    fn repeat(&mut self, sequence: u32) {
        if self.to_receiver.len() >= QUEUE_MAX || self.receiver_closed {
            return self.sender.handle(SenderEvent::Blocked);
        }
        let batch = self.batches.iter().find(|batch| batch.0 == sequence);
        let batch = &batch.expect("it is in flight").1;
        let connections: Vec<usize> = batch.iter().map(|(_, index)| *index).collect();
        let copies = connections.iter().map(|&index| Ok(frozen(index)));
        let message = Message::Batch(copies.collect());
        let bytes = Packet { sequence, message }.encode();
        for &index in &connections {
            self.connections[index].in_message += 1;
        }
        let count = connections.len() as u32;
        self.to_receiver.push_back(Parcel { bytes, connections });
        if !self.sender_burns() {
            self.sender.handle(SenderEvent::Sent { count });
        }
    }

    fn transmit(&mut self) {
        let parcel = self.staged.take().unwrap();
        let full = self.to_receiver.len() >= QUEUE_MAX || self.receiver_closed;
        if full || self.random.u32(0..6) == 0 {
            self.staged = Some(parcel);
            let cause = "no memory".to_owned();
            let event = if !self.calm && self.random.u32(0..60) == 0 {
                SenderEvent::Failed { cause }
            } else {
                SenderEvent::Blocked
            };
            return self.sender.handle(event);
        }
        for &index in &parcel.connections {
            self.connections[index].in_message += 1;
        }
        let count = parcel.connections.len() as u32;
        self.to_receiver.push_back(parcel);
        if !self.sender_burns() {
            self.sender.handle(SenderEvent::Sent { count });
        }
    }

    fn receiver_hears(&mut self) {
        if self.receiver_is_down() || self.receiver_closed {
            return;
        }
        let mut came = Vec::new();
        if !self.calm && self.random.u32(0..200) == 0 {
            self.trace("the receiver leaves");
            let cause = "leaving".to_owned();
            self.receiver.handle(ReceiverEvent::Unfit { cause });
        } else if let Some(parcel) = self.to_receiver.pop_front() {
            came = parcel.connections;
            for &index in &came {
                self.connections[index].in_message -= 1;
            }
            if self.receiver_burns() {
                return;
            }
            let packet = Packet::decode(&parcel.bytes).unwrap();
            self.trace(&format!(
                "the receiver receives {}: {came:?}",
                packet.sequence
            ));
            // Sometimes a full descriptor table cuts the list short.
            let short = !self.calm && self.random.u32(0..100) == 0;
            // Sometimes it has another version.
            let unreadable = !self.calm && self.random.u32(0..100) == 0 && !came.is_empty();
            if short {
                came.pop();
            }
            let event = if unreadable {
                came.clear();
                ReceiverEvent::Unreadable {
                    sequence: packet.sequence,
                    cause: "version".to_owned(),
                }
            } else {
                let descriptors = came.len();
                ReceiverEvent::Received {
                    packet,
                    descriptors,
                }
            };
            self.receiver.handle(event);
        } else if self.sender_closed {
            self.trace("the receiver detects the end");
            self.receiver.handle(ReceiverEvent::PeerGone);
        }
        self.receiver_executes(&came);
    }

    fn receiver_executes(&mut self, came: &[usize]) {
        while let Some(action) = self.receiver.poll_action() {
            self.trace(&format!("the receiver: {action:?}"));
            if self.receiver_burns() {
                return;
            }
            self.receiver_acts(action, came);
            self.check();
            if self.may_receiver_die() && self.random.u32(0..100) == 0 {
                self.receiver_dies(); // Between any two of its steps.
            }
            if self.receiver_is_down() {
                return;
            }
        }
    }

    fn receiver_acts(&mut self, action: ReceiverAction, came: &[usize]) {
        match action {
            ReceiverAction::Expect { .. } => {}
            ReceiverAction::Adopt { connections } => {
                let sent = connections.iter().flatten();
                let sent = sent.map(|one| one.bytes_in as usize).take(came.len());
                assert!(sent.eq(came.iter().copied()), "other connections came");
                let mut places = Vec::new();
                let mut taken = 0;
                let sequence = self.receiver.last_sequence();
                self.receiver_memory.begin_adoption(sequence);
                for (place, index) in (0..).zip(0..connections.len()) {
                    // A missing one, one without capacity, one that cannot be watched.
                    let full = self.receiver.adopted() + taken >= self.limit;
                    let fails = !self.calm && self.random.u32(0..30) == 0;
                    match came.get(index) {
                        Some(&index) if !full && !fails => {
                            if self.receiver_burns() {
                                return;
                            }
                            let held = self.connections[index].receiver;
                            assert_eq!(held, Held::No, "{index} is adopted twice");
                            self.connections[index].receiver = Held::Moving;
                            let generation = self.next_generation();
                            let memory = &mut self.receiver_memory;
                            let arrived =
                                memory.arrive(number_of(index), generation, &frozen(index));
                            arrived.unwrap();
                            taken += 1;
                        }
                        Some(_) | None => places.push(place),
                    }
                }
                let cause = "full".to_owned();
                let left = (!places.is_empty()).then_some(Left { places, cause });
                self.receiver.handle(ReceiverEvent::Adopted { taken, left });
            }
            ReceiverAction::Repeat { sequence, answer } => {
                self.answer(sequence, answer.message());
                self.answer_sent = true;
            }
            ReceiverAction::RequestAgain { after } => self.answer(after, Message::Again),
            ReceiverAction::Drop => {}
            ReceiverAction::Decline { sequence, cause } => {
                self.commit(Vec::new());
                if self.receiver_burns() {
                    return;
                }
                self.answer(sequence, Message::Declined { cause });
            }
            ReceiverAction::Acknowledge {
                sequence,
                taken,
                left,
            } => {
                let stays = |place: usize| {
                    let mut places = left.iter().flat_map(|left| &left.places);
                    places.any(|stays| usize::from(*stays) == place)
                };
                let came = came.iter().enumerate();
                let taken_in: Vec<usize> = came
                    .filter(|(place, _)| !stays(*place))
                    .map(|(_, index)| *index)
                    .collect();
                assert_eq!(taken as usize, taken_in.len());
                if self.fault == Fault::ServedFirst {
                    self.serve(&taken_in);
                    if self.receiver_burns() {
                        return;
                    }
                }
                self.commit(taken_in.clone());
                if self.receiver_burns() {
                    return;
                }
                self.answer(sequence, Message::Acknowledged { taken, left });
                self.answer_sent = true;
                if self.fault != Fault::ServedFirst {
                    self.serve(&taken_in);
                }
            }
            ReceiverAction::Refuse { sequence, cause } => {
                self.commit(Vec::new());
                if self.receiver_burns() {
                    return;
                }
                self.answer(sequence, Message::Refused { cause });
            }
            ReceiverAction::Finish { complete } => {
                assert!(!complete || self.receiver.adopted() == self.moved);
                self.receiver_closed = true;
                assert!(
                    self.to_receiver.is_empty(),
                    "something was left in the socket"
                );
            }
        }
    }

    /// Lets the receiver serve connections that it has acknowledged.
    fn serve(&mut self, connections: &[usize]) {
        for &index in connections {
            if self.receiver_burns() {
                return;
            }
            let one = &mut self.connections[index];
            assert_eq!(
                one.receiver,
                Held::Moving,
                "served before it is acknowledged"
            );
            one.receiver = Held::Served;
            let mut record = self.receiver_memory.record_mut(number_of(index));
            record.take_ownership();
        }
    }

    /// Stores the next answer, with which `taken` become the receiver's.
    fn commit(&mut self, taken: Vec<usize>) {
        self.committed = self.receiver.received();
        let answered = Answered {
            last_sequence: self.committed.last_sequence,
            adopted: self.committed.adopted,
            is_refusing: self.committed.is_refusing,
        };
        let latest = self.committed.answers.back();
        let latest = latest.filter(|(sequence, _)| *sequence == answered.last_sequence);
        let answer = latest.map(|(sequence, Answer { taken, left })| StoredAnswer {
            sequence: *sequence,
            taken: *taken,
            left: left.clone(),
        });
        if self.fault != Fault::AnswerNotStored {
            self.receiver_memory.store_answer(answered, answer.as_ref());
        }
        for &index in &taken {
            self.connections[index].acknowledged = true;
        }
        self.answering = taken;
        self.answer_sent = false;
    }

    /// Delivers a reply, unless the other side has exited.
    fn answer(&mut self, sequence: u32, message: Message) {
        if !self.sender_closed {
            self.to_sender.push_back(Parcel {
                bytes: Packet { sequence, message }.encode(),
                connections: Vec::new(),
            });
        }
    }

    fn sender_dies(&mut self) {
        self.trace("the sender dies");
        self.sender_dead = true;
        self.sender_closed = true;
        self.staged = None;
        for one in &mut self.connections {
            one.sender = Held::No;
        }
    }

    /// Kills the receiver: messages that it has not received are lost; those it sent can still be
    /// read.
    fn receiver_dies(&mut self) {
        self.trace("the receiver dies");
        self.receiver_dead = true;
        self.receiver_closed = true;
        self.to_receiver.clear();
        if !self.answer_sent {
            for &index in &self.answering {
                self.connections[index].acknowledged = false;
            }
        }
        for one in &mut self.connections {
            one.receiver = Held::No;
            one.in_message = 0;
        }
    }

    /// Checks the invariants of every instant.
    fn check(&self) {
        for (index, one) in self.connections.iter().enumerate() {
            let by_sender = one.sender == Held::Served;
            let by_receiver = one.receiver == Held::Served;
            assert!(!(by_sender && by_receiver), "{index} is touched by both");
            assert!(
                !by_sender || !one.acknowledged,
                "{index} had been acknowledged"
            );
            assert!(
                !by_receiver || one.acknowledged,
                "{index} had not been acknowledged"
            );
            assert!(
                !one.ended || !(by_sender || by_receiver),
                "{index} has ended"
            );
            // A connection without descriptors was ended by its owner, or its owner has exited.
            let owner_dead = if one.acknowledged {
                self.receiver_dead
            } else {
                self.sender_dead
            };
            assert!(one.lives() || one.ended || owner_dead, "{index} is lost");
        }
    }

    fn is_over(&self) -> bool {
        let sender = self.sender_dead || self.sender.is_over();
        sender && !self.sender_down && (self.receiver_dead || self.receiver_closed)
    }

    /// Checks the invariants of the end.
    fn check_end(&self) {
        for (index, one) in self.connections.iter().enumerate() {
            assert!(one.in_message == 0, "{index} stays in the socket");
            let moving = [one.sender, one.receiver].contains(&Held::Moving);
            assert!(!moving, "{index} never arrives");
            if one.ended {
                continue;
            }
            if one.acknowledged && !self.receiver_dead {
                assert_eq!(one.receiver, Held::Served, "{index} is the receiver's");
            }
            if !one.acknowledged && !self.sender_dead {
                assert_eq!(one.sender, Held::Served, "{index} is the sender's");
            }
        }
        let acknowledged = self.connections.iter().filter(|one| one.acknowledged);
        let acknowledged = acknowledged.count() as u32;
        if self.sender_dead {
            return;
        }
        assert_eq!(self.moved, acknowledged, "every acknowledgement arrived");
        let (_, resolved) = self.sender_memory.resolved();
        assert_eq!(resolved, self.moved, "the stored number of migrated ones");
        let Some(end) = self.sender.end() else {
            assert!(self.sender.is_over() && !self.calm, "it received a stop");
            return;
        };
        match end {
            // Connections outside the part belong to the sender, as checked above.
            HandoverEnd::Done if self.part.is_some() => {}
            HandoverEnd::Done => assert_eq!(self.moved as usize, {
                let by_sender = |one: &&Connection| one.ended && !one.acknowledged;
                self.connections.len() - self.connections.iter().filter(by_sender).count()
            }),
            HandoverEnd::Incomplete { .. } => {
                assert!(
                    self.connections
                        .iter()
                        .any(|one| one.stuck && !one.acknowledged)
                );
            }
            HandoverEnd::PeerGone => assert!(self.receiver_closed),
            HandoverEnd::Refused { .. } => assert!(!self.calm),
        }
    }

    fn trace(&self, what: &str) {
        if self.told {
            eprintln!("{what}");
        }
    }
}

/// A world after its run, without the files of its memories.
struct Finished {
    connections: Vec<Connection>,
    sender: Sender,
    sender_dead: bool,
    sender_lives: u32,
    receiver_lives: u32,
    moved: u32,
    part: Option<usize>,
}

impl From<World> for Finished {
    fn from(world: World) -> Self {
        Self {
            connections: world.connections,
            sender: world.sender,
            sender_dead: world.sender_dead,
            sender_lives: world.sender_lives,
            receiver_lives: world.receiver_lives,
            moved: world.moved,
            part: world.part,
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs every seed; a failure reports its seed.
fn run_all(calm: bool) -> Vec<Finished> {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let told = seeds.end - seeds.start == 1;
    let mut worlds = Vec::new();
    for seed in seeds {
        let mut world = World::new(seed, told, calm, Fault::None);
        let run = std::panic::AssertUnwindSafe(|| world.run());
        if let Err(failure) = std::panic::catch_unwind(run) {
            eprintln!("replay it with SIM_SEED={seed}");
            std::panic::resume_unwind(failure);
        }
        worlds.push(world.into());
    }
    worlds
}

#[test]
fn every_connection_has_one_owner_under_faults() {
    let worlds = run_all(false);
    if worlds.len() < 1000 {
        return; // A replay.
    }
    // Every result occurs, with some connections migrated and some left.
    let ends = |wanted: fn(&HandoverEnd) -> bool| {
        let ended = worlds
            .iter()
            .filter(|world| world.sender.end().is_some_and(wanted));
        ended.filter(|world| world.moved > 0).count()
    };
    assert!(ends(|end| *end == HandoverEnd::Done) > 10);
    assert!(ends(|end| *end == HandoverEnd::PeerGone) > 10);
    let stopped = |world: &&Finished| world.sender.is_over() && world.sender.end().is_none();
    let stopped = worlds
        .iter()
        .filter(stopped)
        .filter(|world| world.moved > 0);
    assert!(stopped.count() > 10);
    assert!(ends(|end| matches!(end, HandoverEnd::Refused { .. })) > 10);
    assert!(ends(|end| matches!(end, HandoverEnd::Incomplete { .. })) > 10);
    let crashes = worlds.iter().filter(|world| world.sender_dead).count();
    assert!(crashes > 100, "only {crashes} senders died");
    let continued =
        |lives: fn(&Finished) -> u32| worlds.iter().filter(|world| lives(world) > 0).count();
    let both = |world: &&Finished| world.sender_lives > 0 && world.receiver_lives > 0;
    let both = worlds.iter().filter(both).count();
    let senders = continued(|world| world.sender_lives);
    assert!(senders > 300, "only {senders} senders continued");
    let receivers = continued(|world| world.receiver_lives);
    assert!(receivers > 300, "only {receivers} receivers continued");
    assert!(both > 100, "only {both} worlds continued both");
    let stays = |world: &&Finished| {
        let served = |one: &Connection| one.sender == Held::Served;
        world.part.is_some() && world.moved > 0 && world.connections.iter().any(served)
    };
    let stayed = worlds.iter().filter(stays).count();
    assert!(stayed > 100, "only {stayed} senders stayed");
}

#[test]
fn everything_migrates_without_faults() {
    for world in run_all(true) {
        assert_eq!(world.sender.end(), Some(&HandoverEnd::Done));
        let served = |one: &Connection| one.ended || one.receiver == Held::Served;
        assert!(world.connections.iter().all(served));
    }
}

/// Returns the law that run `seed` breaks with `fault`.
fn broken_law(seed: u64, fault: Fault) -> Option<String> {
    let run = || World::new(seed, false, false, fault).run();
    let payload = std::panic::catch_unwind(run).err()?;
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

#[test]
fn every_omitted_handover_rule_breaks_its_law() {
    for (fault, law) in [
        (Fault::ServedFirst, "had not been acknowledged"),
        (Fault::AnswerNotStored, "is adopted twice"),
        (Fault::AnswersForgotten, "is adopted twice"),
        (Fault::ArrivalsServed, "had not been acknowledged"),
        (Fault::NotResolved, "the stored number of migrated ones"),
        (Fault::BatchesForgotten, "never arrives"),
        (Fault::BatchesServed, "is touched by both"),
        (Fault::NoMovingMark, "the sender's records"),
        (Fault::SentTwice, "is adopted twice"),
        (Fault::AcknowledgementIgnored, "had been acknowledged"),
        (Fault::LinkNotStored, "the receiver's records"),
    ] {
        let mut broken = (0..SEEDS).filter_map(|seed| broken_law(seed, fault));
        let is_found = broken.any(|text| text.contains(law));
        assert!(is_found, "{fault:?} does not break the law: {law}");
    }
}
