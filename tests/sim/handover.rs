//! Simulates the two state machines of a handover over a model of their socket. At any step, either
//! side may exit, be stopped, be delayed, or refuse.
//!
//! In half of the worlds only some of the connections migrate, and the rest stay with the sender.
//!
//! Invariants at every instant: at most one side touches a connection; a connection that neither
//! touches still has an owner; connections appear and disappear only by accept and close. At the
//! end: connections that an exited receiver had not acknowledged are back with the sender; those
//! that an exited sender had sent and the receiver adopted belong to the receiver; none remains in
//! flight.
//!
//! `SIM_SEED=42` replays one run and prints its steps; `SIM_SEEDS=4000` sets the number of runs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use uppercased::config::HANDOVER_WINDOW;
use uppercased::handover::HandoverEnd;
use uppercased::handover::machine::{
    Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
};
use uppercased::handover::record::{Left, Message, Packet};
use uppercased::memory::frozen::{Frozen, Phase};
use uppercased_ctl::clock::Tick;

/// Number of runs in a plain `cargo test`.
const SEEDS: u64 = 3000;
/// Maximum number of steps per run.
const STEPS_MAX: usize = 20_000;
/// Maximum connections per batch.
const BATCH_MAX: usize = 3;
/// Maximum packets in the socket per direction.
const QUEUE_MAX: usize = 2;

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
    /// Whether an unreceived message also holds a descriptor.
    in_message: bool,
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
    /// Batches that the sender has not resolved.
    batches: Vec<(u32, Vec<usize>)>,
    staged: Option<Parcel>,
    moved: u32,
    /// Only this many served connections are still to migrate; the sender stays.
    part: Option<usize>,
    /// Capacity of the receiver.
    limit: u32,
    calm: bool,
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

impl Connection {
    const fn of_sender() -> Self {
        Self {
            sender: Held::Served,
            receiver: Held::No,
            in_message: false,
            acknowledged: false,
            stuck: false,
            ended: false,
        }
    }

    fn lives(&self) -> bool {
        self.sender != Held::No || self.receiver != Held::No || self.in_message
    }
}

impl World {
    /// Returns a world; if `calm`, neither side exits, stops or refuses.
    fn new(seed: u64, told: bool, calm: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let connections = random.usize(0..30);
        let limit = if calm { u32::MAX } else { random.u32(1..60) };
        let part = (!calm && random.bool()).then(|| random.usize(0..20));
        Self {
            random,
            told,
            connections: (0..connections).map(|_| Connection::of_sender()).collect(),
            sender: Sender::default(),
            receiver: Receiver::default(),
            sender_dead: false,
            receiver_dead: false,
            sender_closed: false,
            receiver_closed: false,
            to_sender: VecDeque::new(),
            to_receiver: VecDeque::new(),
            batches: Vec::new(),
            staged: None,
            moved: 0,
            part,
            limit,
            calm,
        }
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
            1 if !self.calm => self.receiver_dies(),
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
        for held in [&mut one.sender, &mut one.receiver] {
            if *held == Held::Served {
                *held = Held::No;
                one.ended = true;
            }
        }
    }

    /// Lets the sender accept a client: no other worker empties its queue.
    fn one_comes(&mut self) {
        if !self.sender_dead && !self.sender.is_over() {
            self.connections.push(Connection::of_sender());
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
        if self.sender_dead || self.sender_closed {
            return;
        }
        if let Some(parcel) = self.to_sender.pop_front() {
            let packet = Packet::decode(&parcel.bytes).unwrap();
            self.trace(&format!("the sender receives {packet:?}"));
            self.sender_handles(SenderEvent::Received(packet));
        } else if self.receiver_closed {
            self.trace("the sender detects the end");
            self.sender_handles(SenderEvent::PeerGone);
        }
    }

    fn sender_handles(&mut self, event: SenderEvent) {
        if self.sender_dead {
            return;
        }
        self.sender.handle(event);
        while let Some(action) = self.sender.poll_action() {
            self.trace(&format!("the sender: {action:?}"));
            match action {
                SenderAction::Send { sequence } => self.send(sequence),
                SenderAction::Retry { .. } => self.transmit(),
                SenderAction::Release { sequence, left } => {
                    for (place, index) in (0..).zip(self.resolved(sequence)) {
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
                    for index in self.resolved(sequence) {
                        let one = &mut self.connections[index];
                        assert_eq!(one.sender, Held::Moving);
                        one.sender = Held::Served;
                        one.stuck = true;
                    }
                    if self.batches.iter().all(|batch| batch.0 < sequence) {
                        self.staged = None;
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
        }
        assert!(self.batches.len() <= HANDOVER_WINDOW, "the window");
    }

    fn resolved(&mut self, sequence: u32) -> Vec<usize> {
        let at = self.batches.iter().position(|batch| batch.0 == sequence);
        self.batches.remove(at.expect("resolved once")).1
    }

    fn send(&mut self, sequence: u32) {
        let most = self.random.usize(1..=BATCH_MAX);
        let most = self.part.map_or(most, |left| most.min(left));
        let served = (0..self.connections.len()).filter(|&index| {
            let one = &self.connections[index];
            one.sender == Held::Served && !one.stuck
        });
        let batch: Vec<usize> = served.take(most).collect();
        assert!(!batch.is_empty(), "an empty batch");
        if let Some(left) = &mut self.part {
            *left -= batch.len();
        }
        for &index in &batch {
            self.connections[index].sender = Held::Moving;
        }
        let message = Message::Batch(batch.iter().map(|&index| Ok(frozen(index))).collect());
        self.staged = Some(Parcel {
            bytes: Packet { sequence, message }.encode(),
            connections: batch.clone(),
        });
        self.batches.push((sequence, batch));
        self.transmit();
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
            self.connections[index].in_message = true;
        }
        let count = parcel.connections.len() as u32;
        self.to_receiver.push_back(parcel);
        self.sender.handle(SenderEvent::Sent { count });
    }

    fn receiver_hears(&mut self) {
        if self.receiver_dead || self.receiver_closed {
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
                self.connections[index].in_message = false;
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
        while let Some(action) = self.receiver.poll_action() {
            self.trace(&format!("the receiver: {action:?}"));
            self.receiver_acts(action, &came);
            self.check();
            if !self.calm && self.random.u32(0..100) == 0 {
                self.receiver_dies(); // Between any two of its steps.
            }
            if self.receiver_dead {
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
                for (place, index) in (0..).zip(0..connections.len()) {
                    // A missing one, one without capacity, one that cannot be watched.
                    let full = self.receiver.adopted() + taken >= self.limit;
                    let fails = !self.calm && self.random.u32(0..30) == 0;
                    match came.get(index) {
                        Some(&index) if !full && !fails => {
                            self.connections[index].receiver = Held::Moving;
                            taken += 1;
                        }
                        Some(_) | None => places.push(place),
                    }
                }
                let cause = "full".to_owned();
                let left = (!places.is_empty()).then_some(Left { places, cause });
                self.receiver.handle(ReceiverEvent::Adopted { taken, left });
            }
            ReceiverAction::Decline { sequence, cause } => {
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
                self.answer(sequence, Message::Acknowledged { taken, left });
                for index in taken_in {
                    let one = &mut self.connections[index];
                    assert_eq!(
                        one.receiver,
                        Held::Moving,
                        "served before it is acknowledged"
                    );
                    one.acknowledged = true;
                    one.receiver = Held::Served;
                }
            }
            ReceiverAction::Refuse { sequence, cause } => {
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
        for one in &mut self.connections {
            one.receiver = Held::No;
            one.in_message = false;
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
        sender && (self.receiver_dead || self.receiver_closed)
    }

    /// Checks the invariants of the end.
    fn check_end(&self) {
        for (index, one) in self.connections.iter().enumerate() {
            assert!(!one.in_message, "{index} stays in the socket");
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

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs every seed; a failure reports its seed.
fn run_all(calm: bool) -> Vec<World> {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let told = seeds.end - seeds.start == 1;
    let mut worlds = Vec::new();
    for seed in seeds {
        let mut world = World::new(seed, told, calm);
        let run = std::panic::AssertUnwindSafe(|| world.run());
        if let Err(failure) = std::panic::catch_unwind(run) {
            eprintln!("replay it with SIM_SEED={seed}");
            std::panic::resume_unwind(failure);
        }
        worlds.push(world);
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
    let stopped = |world: &&World| world.sender.is_over() && world.sender.end().is_none();
    let stopped = worlds
        .iter()
        .filter(stopped)
        .filter(|world| world.moved > 0);
    assert!(stopped.count() > 10);
    assert!(ends(|end| matches!(end, HandoverEnd::Refused { .. })) > 10);
    assert!(ends(|end| matches!(end, HandoverEnd::Incomplete { .. })) > 10);
    let crashes = worlds.iter().filter(|world| world.sender_dead).count();
    assert!(crashes > 100, "only {crashes} senders died");
    let stays = |world: &&World| {
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
