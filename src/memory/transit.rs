//! The handovers of a worker, as the next life of it continues them: links, batches, answers.
//!
//! A link is a socket, and what was sent through it and not received survives the process. So the
//! sender's batches are in its records, which have their places instead of their generations, and
//! the receiver's last answers are here: the sender sends everything in flight again, and the
//! receiver answers a batch that it has answered before alike.
//!
//! Invariants: a link is stored last when a handover begins, and cleared before it is closed; a
//! batch is resolved in the memory before its records are; an answer is stored before it is sent;
//! the mark for unnamed descriptors is set whenever a descriptor of this process may have been
//! received and not stored, or may not be stored any more and not closed. Every reader is total.
//!
//! It must not decide what is sent or answered: `handover` does.

use std::collections::BTreeMap;

use super::layout::{Flags, HANDOVER_WINDOW, Layout, Place, State};
use super::unsent::load;
use super::{Corrupt, Memory, Probe};

/// The words of [`Layout::HANDOVER`].
const OUT: usize = 0;
const RESOLVED: usize = 1;
const RESULT: usize = 2;
const IN: usize = 3;
const COMING: usize = 4;
const ARRIVING: usize = 5;
const RECEIVED: usize = 6;
const LAST_GENERATION: usize = 7;

/// The words of [`Layout::STANDING`] with the marks for unnamed descriptors.
const UNNAMED: usize = 4;

/// Words for the places of a batch.
const PLACE_WORDS: usize = 4;

/// The bits of a link's word above the descriptor number.
const STORED: u64 = 1 << 32;
const LAST: u64 = 1 << 33;
const PART: u64 = 1 << 34;

/// The source of descriptors that nothing names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The worker's channel, or a request that waits.
    Channel = 0,
    /// The link of a handover.
    Link = 1,
}

/// A handover from this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The descriptor number of its link.
    pub link: u32,
    /// No other worker will accept from the listeners.
    pub last: bool,
    /// Only a part of the connections migrates.
    pub part: bool,
}

/// The result of a handover from this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departed {
    /// The result, by the number that the worker gives it; not 0.
    pub end: u8,
    /// Connections that have migrated.
    pub moved: u32,
    /// Connections that stay.
    pub left: u32,
    /// Only a part was to migrate.
    pub part: bool,
}

/// A batch that the sender has not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number.
    pub sequence: u32,
    /// The places that are not resolved, in ascending order, and their descriptor numbers.
    pub connections: Vec<(u8, u32)>,
}

/// The answer to a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The batch's number.
    pub sequence: u32,
    /// Connections adopted.
    pub taken: u32,
    /// Places of those that are not adopted, in ascending order.
    pub left: Vec<u8>,
}

/// What a receiver has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Number of the last packet that was handled.
    pub last_sequence: u32,
    /// Connections adopted.
    pub adopted: u32,
    /// Whether nothing more is adopted.
    pub is_refusing: bool,
}

/// A handover to this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The descriptor number of its link.
    pub link: u32,
    /// Connections that were announced.
    pub coming: u32,
    /// What was answered.
    pub answered: Answered,
    /// The last answers, of at most [`HANDOVER_WINDOW`] batches, oldest first.
    pub answers: Vec<StoredAnswer>,
}

impl Batch {
    /// Returns the descriptor numbers, in the order of the places.
    #[must_use]
    pub fn descriptors(&self) -> Vec<u32> {
        self.connections.iter().map(|(_, fd)| *fd).collect()
    }
}

impl Answered {
    const REFUSING: u64 = 1 << 31;

    const fn pack(self) -> u64 {
        let refusing = if self.is_refusing { Self::REFUSING } else { 0 };
        ((self.last_sequence as u64) << 32) | refusing | (self.adopted as u64 & !Self::REFUSING)
    }

    const fn unpack(word: u64) -> Self {
        Self {
            last_sequence: (word >> 32) as u32,
            adopted: (word & (Self::REFUSING - 1)) as u32,
            is_refusing: word & Self::REFUSING != 0,
        }
    }
}

impl<P: Probe> Memory<P> {
    /// Stores whether descriptors of `source` may exist that nothing names.
    pub fn set_unnamed(&mut self, source: Source, unnamed: bool) {
        let word = UNNAMED + source as usize;
        if load(self, Layout::STANDING, word) != u64::from(unnamed) {
            self.store(Layout::STANDING, word, unnamed.into());
        }
    }

    /// Returns whether descriptors may exist that nothing names.
    #[must_use]
    pub fn has_unnamed(&self) -> bool {
        [Source::Channel, Source::Link]
            .into_iter()
            .any(|source| load(self, Layout::STANDING, UNNAMED + source as usize) != 0)
    }

    /// Stores a handover from here that begins.
    pub fn begin_departure(&mut self, departure: Departure) {
        let Departure { link, last, part } = departure;
        self.store_transit(RESULT, 0);
        self.store_transit(RESOLVED, 0);
        let flags = if last { LAST } else { 0 } | if part { PART } else { 0 };
        self.store_transit(OUT, u64::from(link) | STORED | flags);
    }

    /// Returns the handover from here, if there is one.
    #[must_use]
    pub fn departure(&self) -> Option<Departure> {
        let word = self.transit(OUT);
        (word & STORED != 0).then_some(Departure {
            link: word as u32,
            last: word & LAST != 0,
            part: word & PART != 0,
        })
    }

    /// Stores the last generation given, before connections lose theirs to a batch.
    pub fn begin_batch(&mut self, last_generation: u32) {
        if self.transit(LAST_GENERATION) != u64::from(last_generation) {
            self.store_transit(LAST_GENERATION, last_generation.into());
        }
    }

    /// Returns the last generation given when the last batch was made.
    pub(super) fn generation_of_batch(&self) -> u32 {
        self.transit(LAST_GENERATION) as u32
    }

    /// Stores that batch `sequence` is about to be resolved, and the number of connections that have
    /// migrated with it.
    pub fn begin_resolving(&mut self, sequence: u32, moved: u32) {
        self.store_transit(RESOLVED, (u64::from(sequence) << 32) | u64::from(moved));
    }

    /// Returns the number of the last batch that was about to be resolved, 0 if there was none, and
    /// the number of connections that have migrated.
    #[must_use]
    pub fn resolved(&self) -> (u32, u32) {
        let word = self.transit(RESOLVED);
        ((word >> 32) as u32, word as u32)
    }

    /// Stores the result of the handover from here, if it is to be reported, and that its link is
    /// about to be closed.
    pub fn end_departure(&mut self, result: Option<Departed>) {
        if let Some(Departed {
            end, left, part, ..
        }) = result
        {
            let part = if part { PART } else { 0 };
            let word = u64::from(left) | part | (u64::from(end) << 40);
            self.store_transit(RESULT, word);
        }
        self.store_transit(OUT, 0);
    }

    /// Returns the result of the last handover from here, until it was reported.
    #[must_use]
    pub fn departed(&self) -> Option<Departed> {
        let word = self.transit(RESULT);
        let (_, moved) = self.resolved();
        let departed = Departed {
            end: (word >> 40) as u8,
            moved,
            left: word as u32,
            part: word & PART != 0,
        };
        (departed.end != 0).then_some(departed)
    }

    /// Stores that the result was reported.
    pub fn end_report(&mut self) {
        self.store_transit(RESULT, 0);
    }

    /// Returns the batches that are not resolved, oldest first.
    #[must_use]
    pub fn batches(&self) -> Vec<Batch> {
        let mut batches: BTreeMap<u32, Vec<(u8, u32)>> = BTreeMap::new();
        for fd in self.departing() {
            if let Some((sequence, place)) = self.place_of(fd) {
                batches.entry(sequence).or_default().push((place, fd));
            }
        }
        let batches = batches.into_iter().map(|(sequence, mut connections)| {
            connections.sort_unstable();
            Batch {
                sequence,
                connections,
            }
        });
        batches.collect()
    }

    /// Stores a handover to here that begins, of `coming` connections.
    pub fn begin_arrival(&mut self, link: u32, coming: u32) {
        self.store_transit(RECEIVED, 0);
        self.store_transit(ARRIVING, 0);
        for slot in 0..HANDOVER_WINDOW {
            self.store(Layout::answer(slot), 0, 0);
        }
        self.store_transit(COMING, coming.into());
        self.store_transit(IN, u64::from(link) | STORED);
    }

    /// Returns the handover to here, if there is one.
    #[must_use]
    pub fn arrival(&self) -> Option<Arrival> {
        let word = self.transit(IN);
        let answered = self.answered();
        let slots = (0..HANDOVER_WINDOW).map(|slot| self.stored_answer(slot));
        let known = |answer: &StoredAnswer| (1..=answered.last_sequence).contains(&answer.sequence);
        let mut answers: Vec<StoredAnswer> = slots.filter(known).collect();
        answers.sort_unstable_by_key(|answer| answer.sequence);
        (word & STORED != 0).then_some(Arrival {
            link: word as u32,
            coming: self.transit(COMING) as u32,
            answered,
            answers,
        })
    }

    /// Stores that the connections that arrive from now on are those of batch `sequence`.
    pub fn begin_adoption(&mut self, sequence: u32) {
        self.store_transit(ARRIVING, sequence.into());
    }

    /// Returns whether the connections marked as arriving are this worker's: their answer is
    /// stored.
    #[must_use]
    pub fn owns_arriving(&self) -> bool {
        let arriving = self.transit(ARRIVING);
        let is_known = (1..=u64::from(self.answered().last_sequence)).contains(&arriving);
        self.transit(IN) & STORED != 0 && is_known
    }

    /// Returns what was answered.
    #[must_use]
    pub fn answered(&self) -> Answered {
        Answered::unpack(self.transit(RECEIVED))
    }

    /// Stores an answer, before it is sent; `answer` if it was one to a batch.
    pub fn store_answer(&mut self, answered: Answered, answer: Option<&StoredAnswer>) {
        if let Some(StoredAnswer {
            sequence,
            taken,
            left,
        }) = answer
        {
            let line = Layout::answer(*sequence as usize % HANDOVER_WINDOW);
            let mut places = [0_u64; PLACE_WORDS];
            for place in left {
                places[usize::from(*place / 64)] |= 1 << (place % 64);
            }
            // An older one's number, until the whole answer is stored.
            self.store(line, 0, 0);
            for (word, places) in (1..).zip(places) {
                self.store(line, word, places);
            }
            self.store(line, 0, (u64::from(*sequence) << 32) | u64::from(*taken));
        }
        self.store_transit(RECEIVED, answered.pack());
    }

    /// Stores that the link of the handover to here is about to be closed.
    pub fn end_arrival(&mut self) {
        self.store_transit(IN, 0);
    }

    /// Returns the connections that are in flight from here.
    pub fn departing(&self) -> impl Iterator<Item = u32> + '_ {
        self.moving(Flags::is_departing)
    }

    /// Returns the connections of the batch that is being adopted.
    pub fn arriving(&self) -> impl Iterator<Item = u32> + '_ {
        self.moving(Flags::is_arriving)
    }

    fn moving(&self, which: fn(Flags) -> bool) -> impl Iterator<Item = u32> + '_ {
        self.occupied().filter(move |&fd| {
            let record = self.record(fd);
            let gone = matches!(record.state(), State::Closing | State::Handed);
            !gone && which(record.flags())
        })
    }

    /// Returns the batch of a departing connection and its place there; `None` if it cannot be in
    /// flight.
    fn place_of(&self, fd: u32) -> Option<(u32, u8)> {
        let (resolved, _) = self.resolved();
        let place = Place::unpack(self.record(fd).generation());
        let ahead = place.batch.wrapping_sub(resolved) & Place::BATCHES;
        let sequence = resolved.checked_add(ahead);
        let sequence = sequence.filter(|&sequence| sequence > 0)?;
        (ahead as usize <= HANDOVER_WINDOW).then_some((sequence, place.place))
    }

    /// Returns the departing connections whose batches cannot be known.
    pub(super) fn misplaced(&self) -> Vec<(u32, Corrupt)> {
        let mut places: BTreeMap<(u32, u8), Vec<u32>> = BTreeMap::new();
        let mut misplaced = Vec::new();
        for fd in self.departing() {
            match self.place_of(fd).filter(|_| self.departure().is_some()) {
                Some(place) => places.entry(place).or_default().push(fd),
                None => misplaced.push((fd, Corrupt("it is in flight without a handover"))),
            }
        }
        let twice = places.into_values().filter(|fds| fds.len() > 1).flatten();
        let cause = Corrupt("it has the place of another connection");
        misplaced.extend(twice.map(|fd| (fd, cause)));
        misplaced
    }

    fn stored_answer(&self, slot: usize) -> StoredAnswer {
        let line = Layout::answer(slot);
        let head = load(self, line, 0);
        let places = (0..=u8::MAX).filter(|place| {
            let word = load(self, line, 1 + usize::from(*place / 64));
            word & (1 << (place % 64)) != 0
        });
        StoredAnswer {
            sequence: (head >> 32) as u32,
            taken: head as u32,
            left: places.collect(),
        }
    }

    fn transit(&self, word: usize) -> u64 {
        load(self, Layout::HANDOVER, word)
    }

    fn store_transit(&mut self, word: usize, value: u64) {
        self.store(Layout::HANDOVER, word, value);
    }

    /// Clears everything of the worker that had the memory before.
    pub(super) fn forget_handovers(&mut self) {
        for word in [OUT, IN, RESULT] {
            self.store_transit(word, 0);
        }
        for source in [Source::Channel, Source::Link] {
            self.set_unnamed(source, false);
        }
    }
}

#[cfg(test)]
mod tests;
