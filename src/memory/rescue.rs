//! The repair of a working memory whose process died at any instant, so that the next life of the
//! worker can continue every connection.
//!
//! The records are exact, except for the connections in hand, whose unsent bytes follow from the
//! kernel's counters. The memory is untrusted input: the process may have died of what it wrote. A
//! connection whose words contradict themselves or the kernel is reset, alone.
//!
//! Invariants: half-done closes are finished before any descriptor is opened, since the number of
//! each is the next to be given out; a repair that is cut short by the death of its process is
//! repeated by the next, with the same result; nothing is answered that the counters do not confirm;
//! after a repair every record is free or can be served, and nothing is in hand.
//!
//! It must not touch a connection but through [`Kernel`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::counters::{self, add};
use super::frozen::rescued;
use super::hands::Hands;
use super::layout::{Flags, HANDS, Head, InHand, Layout, State};
use super::life::{self, Stage};
use super::pool::Pool;
use super::record::HEAD;
use super::unsent::{checked_pending, load};
use super::{Corrupt, Memory, Probe};
use crate::config::RESCUES_UNCONFIRMED_MAX;
use uppercased_ctl::metrics::{CloseReason, Counter};

pub use crate::sys::tcp::Counters;

/// What a repair needs of the kernel.
pub trait Kernel {
    /// Returns the counters of connection `fd`.
    ///
    /// # Errors
    /// Why they are unknown or cannot be trusted.
    fn counters(&mut self, fd: u32) -> Result<Counters, &'static str>;

    /// Closes the number, which may be closed already; `reset`: the peer must not take the end for
    /// a complete answer.
    fn close(&mut self, fd: u32, reset: bool);
}

/// The reason why a worker is not rescued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRescue {
    /// It had not reported Ready.
    #[error("it was not ready")]
    Starting,
    /// It ended by itself.
    #[error("it ended by itself")]
    Retired,
    /// The supervisor has not confirmed the last rescues.
    #[error("{RESCUES_UNCONFIRMED_MAX} rescues in a row were not confirmed")]
    Unconfirmed,
    /// Its memory says nothing that it can have meant.
    #[error("its memory is not valid")]
    Invalid,
}

/// A rescue that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// The number of the life that begins.
    pub life: u64,
    /// The connection at whose expense two lives in a row have ended, one of them by a crash.
    poison: Option<u32>,
}

/// The result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Connections that continue.
    pub connections: u32,
    /// Bytes of answers in hand that were restored.
    pub owed_bytes: u64,
    /// Connections that were reset.
    pub reset: Vec<Reset>,
    /// The highest generation of a record, free ones included: a new connection with the number
    /// and generation of one that is closed would be taken for it, and for its deaths.
    pub last_generation: u32,
    /// Whether a connection may have been accepted and not recorded.
    pub was_accepting: bool,
}

/// A connection that was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Its descriptor number.
    pub fd: u32,
    /// Its peer, as far as the record can be read.
    pub peer: SocketAddr,
    /// The reason counted.
    pub reason: CloseReason,
    /// The contradiction.
    pub cause: &'static str,
}

impl<P: Probe> Memory<P> {
    /// Begins the next life of the worker, unless it is not to be continued.
    ///
    /// # Errors
    /// [`NoRescue`]; nothing has changed then.
    pub fn begin_rescue(&mut self) -> Result<Rescue, NoRescue> {
        match life::stage(&self.shared) {
            Some(Stage::Ready) => {}
            Some(Stage::Starting) => return Err(NoRescue::Starting),
            Some(Stage::Retired) => return Err(NoRescue::Retired),
            None => return Err(NoRescue::Invalid),
        }
        if life::unconfirmed(&self.shared) >= RESCUES_UNCONFIRMED_MAX {
            return Err(NoRescue::Unconfirmed);
        }
        let culprit = self.culprit();
        let ended = life::lives(&self.shared);
        let (last_culprit, last_life) = life::last_culprit(&self.shared);
        let crashed = life::crashed_life(&self.shared);
        let is_poison = culprit.is_some_and(|(_, word)| word == last_culprit)
            && last_life.checked_add(1) == Some(ended)
            && (crashed == last_life || crashed == ended);
        let life = self.begin_life(culprit.map_or(0, |(_, word)| word));
        Ok(Rescue {
            life,
            poison: culprit.map(|(fd, _)| fd).filter(|_| is_poison),
        })
    }

    /// Finishes the closes that the last life began. To be called before any descriptor is opened.
    pub fn finish_closes(&mut self, kernel: &mut impl Kernel) {
        self.used = self.stored_used();
        for fd in 0..self.used {
            match self.record(fd).state() {
                State::Closing => {
                    let record = self.record(fd);
                    let (received, sent) = record.bytes_moved();
                    kernel.close(fd, received > sent || record.flags().has(Flags::RESET));
                }
                // Another worker has it.
                State::Handed => kernel.close(fd, false),
                State::Free
                | State::Open
                | State::LingeringIdle
                | State::LingeringStop
                | State::AwaitingHeader => continue,
            }
            self.free(fd);
        }
    }

    /// Returns whether a connection may have been accepted and not recorded.
    #[must_use]
    pub fn is_accepting(&self) -> bool {
        load(self, Layout::ACCEPTING, 0) != 0
    }

    /// Repairs the memory, after [`Memory::finish_closes`].
    pub fn repair(&mut self, rescue: Rescue, kernel: &mut impl Kernel) -> Repaired {
        self.hands = Hands::default();
        let mut repaired = Repaired {
            was_accepting: self.is_accepting(),
            ..Repaired::default()
        };
        let in_hand = self.read_hands();
        let mut wrong: BTreeMap<u32, Corrupt> = BTreeMap::new();
        let mut buffers: BTreeMap<u32, u32> = BTreeMap::new();
        for fd in 0..self.used {
            match self.check(fd, in_hand.of(fd)) {
                Err(cause) => {
                    wrong.insert(fd, cause);
                }
                Ok(Some(buffer)) => {
                    if let Some(other) = buffers.insert(buffer, fd) {
                        let cause = Corrupt("two connections name one buffer");
                        wrong.insert(fd, cause);
                        wrong.insert(other, cause);
                    }
                }
                Ok(None) => {}
            }
        }
        wrong.extend(self.misplaced());
        for (fd, Corrupt(cause)) in wrong {
            self.reset(fd, CloseReason::Corrupt, cause, kernel, &mut repaired);
        }
        let arrived = self.own_arriving();
        let buffers = self.occupied().filter_map(|fd| self.record(fd).pending());
        let buffers = buffers.map(|pending| pending.buffer).collect();
        self.pool = Pool::with_used(self.layout.buffers, &buffers);
        for fd in self.occupied().collect::<Vec<_>>() {
            if self.record(fd).flags().has(Flags::MOVING) {
                continue; // Nothing was done to it since it was marked.
            }
            if rescue.poison == Some(fd) {
                let cause = "two processes in a row died serving it";
                self.reset(fd, CloseReason::Poisoned, cause, kernel, &mut repaired);
                continue;
            }
            match self.repair_one(fd, &in_hand, kernel) {
                Ok(owed) => repaired.owed_bytes += owed,
                Err(Wrong::Over) => {
                    let cause = "its peer has reset it";
                    self.reset(fd, CloseReason::PeerReset, cause, kernel, &mut repaired);
                }
                Err(Wrong::Corrupt(Corrupt(cause))) => {
                    self.reset(fd, CloseReason::Corrupt, cause, kernel, &mut repaired);
                }
            }
        }
        // Those that are not valid, and those whose connection is not served any more.
        for word in 0..HANDS {
            let (line, word) = Layout::in_hand(word);
            self.store(line, word, 0);
        }
        // Those that are still marked as arriving are their sender's.
        let (all, arriving) = (self.occupied().count(), self.arriving().count());
        repaired.connections = (all - arriving) as u32;
        let generations = (0..self.used).map(|fd| self.record(fd));
        let generations = generations.filter(|record| !record.flags().is_departing());
        let generations = generations.map(|record| record.generation());
        let last = generations.max().unwrap_or(0);
        repaired.last_generation = last.max(self.generation_of_batch());
        self.correct_counters(repaired.connections, arrived);
        repaired
    }

    /// Takes the connections that arrived in a batch whose answer is stored. Returns their number.
    fn own_arriving(&mut self) -> u64 {
        if !self.owns_arriving() {
            return 0;
        }
        let arriving: Vec<u32> = self.arriving().collect();
        for &fd in &arriving {
            self.record_mut(fd).take_ownership();
        }
        arriving.len() as u64
    }

    /// Makes the counters agree with the records: the process may have died between the two.
    /// `arrived` connections may not have been counted.
    fn correct_counters(&self, open: u32, arrived: u64) {
        let counted = counters::balance(&self.shared);
        let too_many = counted.saturating_sub(open.into());
        if too_many > 0 {
            // It was being closed, in most cases because its peer had closed it.
            let counter = Counter::Closed(CloseReason::PeerClosed);
            return add(self.shared.words(), counter, too_many.unsigned_abs());
        }
        let missing = too_many.unsigned_abs();
        let migrated = missing.min(arrived);
        add(self.shared.words(), Counter::MigratedIn, migrated);
        add(self.shared.words(), Counter::Accepted, missing - migrated);
    }

    /// Returns the connection that was being served: the one received from, else the next to be
    /// answered. With it, its number and generation in one word.
    fn culprit(&self) -> Option<(u32, u64)> {
        let words = (0..HANDS).map(|word| {
            let (line, word) = Layout::in_hand(word);
            InHand::unpack(load(self, line, word)).unwrap_or(InHand::Nothing)
        });
        let set: Vec<InHand> = words.filter(|it| *it != InHand::Nothing).collect();
        let received = set
            .iter()
            .find(|it| matches!(it, InHand::Recv { len: 0, .. } | InHand::Flush { .. }));
        let fd = received.or_else(|| set.first())?.fd()?;
        (fd < self.layout.descriptors).then_some(())?;
        let generation = self.record(fd).generation();
        Some((fd, (u64::from(generation) << 32) | u64::from(fd)))
    }

    fn read_hands(&self) -> InHands {
        let mut hands = InHands::default();
        for word in 0..HANDS {
            let (line, word) = Layout::in_hand(word);
            match InHand::unpack(load(self, line, word)) {
                Some(InHand::Nothing) => {}
                Some(in_hand) => {
                    let fd = in_hand.fd().unwrap_or(u32::MAX);
                    let times = hands.named.entry(fd).or_insert((in_hand, 0));
                    times.1 += 1;
                }
                None => hands.is_one_invalid = true,
            }
        }
        hands
    }

    /// Checks the record of `fd` as far as it can be checked alone. Returns the buffer that it
    /// names.
    fn check(&self, fd: u32, in_hand: InHand) -> Result<Option<u32>, Corrupt> {
        let head = Head::unpack(load(self, Layout::record(fd), HEAD));
        let head = head.ok_or(Corrupt("a state means nothing"))?;
        if head.state == State::Free {
            return Ok(None);
        }
        if head.generation == 0 && !head.flags.is_departing() {
            return Err(Corrupt("a connection has no generation"));
        }
        let pending = checked_pending(self, fd)?;
        let unsent = pending.map_or(0, |pending| u64::from(pending.len()));
        let (received, sent) = self.record(fd).bytes_moved();
        match head.state {
            State::Open if in_hand != InHand::Nothing => {}
            State::Open if received.checked_sub(sent) == Some(unsent) => {}
            State::Open => return Err(Corrupt("its counts contradict its unsent output")),
            _ if in_hand != InHand::Nothing => {
                return Err(Corrupt("it is in hand and is not open"));
            }
            _ if received != sent => return Err(Corrupt("output is owed after its end")),
            _ if pending.is_some() => return Err(Corrupt("output is pending after its end")),
            State::AwaitingHeader if received > 0 => {
                return Err(Corrupt("it was answered before its header"));
            }
            _ => {}
        }
        Ok(pending.map(|pending| pending.buffer))
    }

    /// Repairs the record of `fd`, which is valid by itself. Returns the bytes that were in hand.
    fn repair_one(
        &mut self,
        fd: u32,
        hands: &InHands,
        kernel: &mut impl Kernel,
    ) -> Result<u64, Wrong> {
        let in_hand = hands.of(fd);
        if hands.is_named_twice(fd) {
            return Err(Corrupt("a connection is in hand twice").into());
        }
        let state = self.record(fd).state();
        if state == State::AwaitingHeader {
            let counters = trusted(kernel, fd)?;
            if counters.read > 0 {
                let length = u16::try_from(counters.read);
                let length = length.map_err(|_| Corrupt("more than a header was read"))?;
                let mut record = self.record_mut(fd);
                let now = record.last_progress();
                record.end_header(length, now);
            }
        }
        let is_doubtful = hands.is_one_invalid && state == State::Open;
        let owed = if in_hand == InHand::Nothing && !is_doubtful {
            0
        } else {
            self.owed(fd, kernel)?
        };
        if in_hand == InHand::Nothing {
            let mut record = self.record_mut(fd);
            let pending = record
                .pending()
                .map_or(0, |pending| u64::from(pending.len()));
            if is_doubtful && owed != pending {
                return Err(Corrupt("it was in hand in a word that means nothing").into());
            }
            let flags = record.flags().resumed();
            record.set_flags(flags);
            return Ok(0);
        }
        let generation = self.record(fd).generation();
        let frozen = rescued(self, fd, owed)?.ok_or(Corrupt("it is in hand and is not open"))?;
        self.thaw(fd, generation, &frozen)
            .map_err(|_| Corrupt("its output cannot be stored"))?;
        Ok(owed)
    }

    /// Returns the bytes that were read from the connection and not answered, by the kernel's
    /// counters.
    fn owed(&self, fd: u32, kernel: &mut impl Kernel) -> Result<u64, Wrong> {
        let counters = trusted(kernel, fd)?;
        if counters.is_over {
            return Err(Wrong::Over);
        }
        let record = self.record(fd);
        let header = u64::from(record.header_bytes());
        let (received, _) = record.bytes_moved();
        if received.saturating_add(header) > counters.received {
            return Err(Corrupt("more was recorded than the kernel received").into());
        }
        let answered = counters.written.checked_add(header);
        let owed = answered.and_then(|answered| counters.read.checked_sub(answered));
        Ok(owed.ok_or(Corrupt("more was sent than the kernel received"))?)
    }

    /// Resets connection `fd`, by rule 5.
    fn reset(
        &mut self,
        fd: u32,
        reason: CloseReason,
        cause: &'static str,
        kernel: &mut impl Kernel,
        repaired: &mut Repaired,
    ) {
        let peer = self.record(fd).peer();
        self.record_mut(fd).condemn();
        self.count(Counter::Closed(reason), 1);
        kernel.close(fd, true);
        self.free(fd);
        repaired.reset.push(Reset {
            fd,
            peer,
            reason,
            cause,
        });
    }

    /// Rule 5, after the call. The pool is rebuilt later.
    fn free(&mut self, fd: u32) {
        self.record_mut(fd).forget();
    }

    fn stored_used(&self) -> u32 {
        let used = load(self, Layout::ACCEPTING, super::USED);
        u32::try_from(used)
            .unwrap_or(u32::MAX)
            .min(self.layout.descriptors)
    }
}

/// The words in hand.
#[derive(Debug, Default)]
struct InHands {
    /// By descriptor number, with the number of words that name it.
    named: BTreeMap<u32, (InHand, u32)>,
    /// Whether a word means nothing, so that it may have named any connection.
    is_one_invalid: bool,
}

impl InHands {
    fn of(&self, fd: u32) -> InHand {
        let named = self.named.get(&fd);
        named.map_or(InHand::Nothing, |(in_hand, _)| *in_hand)
    }

    fn is_named_twice(&self, fd: u32) -> bool {
        self.named.get(&fd).is_some_and(|(_, times)| *times > 1)
    }
}

/// Why a connection does not continue.
enum Wrong {
    Corrupt(Corrupt),
    /// The kernel says that it is over.
    Over,
}

impl From<Corrupt> for Wrong {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

fn trusted(kernel: &mut impl Kernel, fd: u32) -> Result<Counters, Corrupt> {
    kernel.counters(fd).map_err(Corrupt)
}

#[cfg(test)]
mod tests;
