//! The life of the process that runs a worker: its keeper, its end, its phase, its listeners.
//!
//! A worker outlives its process: when that dies, its keeper becomes the next life of the same
//! worker, with the same memory. What the next life has to know beyond the connections is here.
//!
//! Invariants: everything but the line of the supervisor is written by the worker only; every reader
//! is total, because the writer may have left any words; the entry of a listener is stored before it
//! is watched, and cleared before it is closed.
//!
//! It must not decide whether a worker is rescued: [`rescue`](super::rescue) does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::layout::{LISTENERS_MAX, Layout};
use super::{Memory, Probe};
use crate::sys::shared::SharedMemory;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;

/// The words of [`Layout::LIFE`].
const KEEPER: usize = 0;
const STAGE: usize = 1;
const LIVES: usize = 2;
const UNCONFIRMED: usize = 3;
const CULPRIT: usize = 4;
const CULPRIT_LIFE: usize = 5;
const PROCESS: usize = 6;

/// The words of [`Layout::STANDING`].
const PHASE: usize = 0;
const UNTIL: usize = 1;
const DRAIN_TIMEOUT: usize = 2;
const ORPHANED_UNTIL: usize = 3;

/// The word of [`Layout::SUPERVISOR`].
const CRASHED_LIFE: usize = 0;

/// Whether the worker is to be rescued when its process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not reported Ready.
    Starting,
    /// It has reported Ready.
    Ready,
    /// It ends by itself.
    Retired,
}

/// A worker's phase, as the next life continues it. The numbers are the worker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The phase.
    pub phase: u8,
    /// When the phase ends; zero if it has no end.
    pub until: Tick,
    /// Grace period of a stop that follows.
    pub drain_timeout: Duration,
}

/// A listener that a worker accepts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its descriptor number.
    pub fd: u32,
    /// The slot that owns it.
    pub owner: SlotId,
    /// Whether its connections begin with a PROXY header.
    pub proxied: bool,
}

/// The table of listeners is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker serves at most {LISTENERS_MAX} listeners")]
pub struct NoEntry;

impl Listener {
    /// Packs it into one word: descriptor 32 bits, owner 16, PROXY header 1, and 1 that is always
    /// set, so that no entry is 0.
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.fd as u64 | ((self.owner.0 as u64) << 32) | ((self.proxied as u64) << 48) | (1 << 49)
    }

    /// Unpacks one word; `None` if no listener packs to it.
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word >> 49 != 1 {
            return None;
        }
        Some(Self {
            fd: word as u32,
            owner: SlotId((word >> 32) as u16),
            proxied: (word >> 48) & 1 == 1,
        })
    }
}

/// Returns the process ID of a worker's keeper as the memory has it: a claim, to be verified.
#[must_use]
pub fn keeper(shared: &SharedMemory) -> Option<i32> {
    let pid = load(shared, Layout::LIFE, KEEPER) as i32;
    (pid > 0).then_some(pid)
}

/// Returns the process ID of the process that runs the worker as the memory has it: a claim, to be
/// verified.
#[must_use]
pub fn process(shared: &SharedMemory) -> Option<i32> {
    let pid = load(shared, Layout::LIFE, PROCESS) as i32;
    (pid > 0).then_some(pid)
}

/// Returns whether the worker ends by itself, so that no keeper continues it.
#[must_use]
pub fn is_retired(shared: &SharedMemory) -> bool {
    stage(shared) == Some(Stage::Retired)
}

/// Returns the number of the life, from 1.
#[must_use]
pub fn lives(shared: &SharedMemory) -> u64 {
    load(shared, Layout::LIFE, LIVES)
}

/// Stores that life number `life` of the worker ended by a crash and not by a signal from outside.
/// For the supervisor.
pub fn note_crash(shared: &SharedMemory, life: u64) {
    shared.line(Layout::SUPERVISOR).0[CRASHED_LIFE].store(life, Ordering::Release);
}

/// Returns the life that ended by a crash most recently; 0 if none did.
pub(super) fn crashed_life(shared: &SharedMemory) -> u64 {
    load(shared, Layout::SUPERVISOR, CRASHED_LIFE)
}

pub(super) fn stage(shared: &SharedMemory) -> Option<Stage> {
    match load(shared, Layout::LIFE, STAGE) {
        0 => Some(Stage::Starting),
        1 => Some(Stage::Ready),
        2 => Some(Stage::Retired),
        _ => None,
    }
}

pub(super) fn unconfirmed(shared: &SharedMemory) -> u64 {
    load(shared, Layout::LIFE, UNCONFIRMED)
}

/// Returns the connection at whose expense the last but one life ended, and the number of that life.
pub(super) fn last_culprit(shared: &SharedMemory) -> (u64, u64) {
    (
        load(shared, Layout::LIFE, CULPRIT),
        load(shared, Layout::LIFE, CULPRIT_LIFE),
    )
}

fn load(shared: &SharedMemory, line: usize, word: usize) -> u64 {
    shared.line(line).0[word].load(Ordering::Relaxed)
}

impl<P: Probe> Memory<P> {
    /// Returns the word in which the kernel stores the keeper's process ID (its lower half).
    #[must_use]
    pub fn keeper_word(&self) -> &AtomicU64 {
        &self.shared.line(Layout::LIFE).0[KEEPER]
    }

    /// Stores the ID of the process that runs the worker, before its keeper is cloned: so the two IDs
    /// are those of a process and its keeper, or those of two processes of which the earlier died
    /// before the later had cloned a keeper.
    pub fn set_process(&mut self, pid: u32) {
        self.store(Layout::LIFE, PROCESS, pid.into());
    }

    /// Stores that the worker has reported Ready: from now on its keeper continues it.
    pub fn set_ready(&mut self) {
        self.store(Layout::LIFE, STAGE, 1);
    }

    /// Stores that the worker ends by itself: its keeper ends, too.
    pub fn retire(&mut self) {
        self.store(Layout::LIFE, STAGE, 2);
    }

    /// Stores that the supervisor has confirmed the rescues so far.
    pub fn confirm_rescues(&mut self) {
        self.store(Layout::LIFE, UNCONFIRMED, 0);
    }

    /// Returns the phase as stored.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            phase: load(&self.shared, Layout::STANDING, PHASE) as u8,
            until: Tick::from_nanos(load(&self.shared, Layout::STANDING, UNTIL)),
            drain_timeout: Duration::from_nanos(load(
                &self.shared,
                Layout::STANDING,
                DRAIN_TIMEOUT,
            )),
        }
    }

    /// Stores the phase, its name last.
    pub fn set_standing(&mut self, standing: Standing) {
        if self.standing() == standing {
            return;
        }
        let drain = u64::try_from(standing.drain_timeout.as_nanos()).unwrap_or(u64::MAX);
        self.store(Layout::STANDING, UNTIL, standing.until.as_nanos());
        self.store(Layout::STANDING, DRAIN_TIMEOUT, drain);
        self.store(Layout::STANDING, PHASE, standing.phase.into());
    }

    /// Returns when the time of an orphan is over, as stored; `None` if the worker is none.
    #[must_use]
    pub fn orphaned_until(&self) -> Option<Tick> {
        let until = load(&self.shared, Layout::STANDING, ORPHANED_UNTIL);
        (until != 0).then(|| Tick::from_nanos(until))
    }

    /// Stores when the time of an orphan is over; `None`: the worker has a supervisor.
    pub fn set_orphaned(&mut self, until: Option<Tick>) {
        let until = until.map_or(0, Tick::as_nanos);
        self.store(Layout::STANDING, ORPHANED_UNTIL, until);
    }

    /// Stores a listener, before it is watched.
    ///
    /// # Errors
    /// [`NoEntry`]; nothing has changed then.
    pub fn enter_listener(&mut self, listener: Listener) -> Result<(), NoEntry> {
        let free = (0..LISTENERS_MAX).find(|&entry| self.listener_word(entry) == 0);
        let (line, word) = Layout::listener(free.ok_or(NoEntry)?);
        self.store(line, word, listener.pack());
        Ok(())
    }

    /// Clears the entry of a listener, before it is closed.
    pub fn clear_listener(&mut self, fd: u32) {
        for entry in 0..LISTENERS_MAX {
            let stored = Listener::unpack(self.listener_word(entry));
            if stored.is_some_and(|listener| listener.fd == fd) {
                let (line, word) = Layout::listener(entry);
                self.store(line, word, 0);
            }
        }
    }

    /// Returns the listeners; a word that names none is skipped.
    pub fn listeners(&self) -> impl Iterator<Item = Listener> + '_ {
        (0..LISTENERS_MAX).filter_map(|entry| Listener::unpack(self.listener_word(entry)))
    }

    /// Starts the next life. Returns its number.
    ///
    /// The life that ended is stored before its culprit: a process that dies between the two must
    /// not leave the culprit of this life as that of the life before.
    pub(super) fn begin_life(&mut self, culprit: u64) -> u64 {
        let ended = lives(&self.shared);
        let unconfirmed = unconfirmed(&self.shared).saturating_add(1);
        self.store(Layout::LIFE, UNCONFIRMED, unconfirmed);
        self.store(Layout::LIFE, CULPRIT_LIFE, ended);
        self.store(Layout::LIFE, CULPRIT, culprit);
        self.store(Layout::LIFE, LIVES, ended.wrapping_add(1));
        ended.wrapping_add(1)
    }

    /// Clears everything of the worker that had the memory before.
    pub(super) fn begin_first_life(&mut self) {
        for word in [KEEPER, STAGE, UNCONFIRMED, CULPRIT, CULPRIT_LIFE, PROCESS] {
            self.store(Layout::LIFE, word, 0);
        }
        self.store(Layout::LIFE, LIVES, 1);
        for word in [PHASE, UNTIL, DRAIN_TIMEOUT, ORPHANED_UNTIL] {
            self.store(Layout::STANDING, word, 0);
        }
        note_crash(&self.shared, 0);
    }

    fn listener_word(&self, entry: usize) -> u64 {
        let (line, word) = Layout::listener(entry);
        load(&self.shared, line, word)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn listener_survives_its_word(fd: u32, owner: u16, proxied: bool, any: u64) {
            let listener = Listener { fd, owner: SlotId(owner), proxied };
            prop_assert_eq!(Listener::unpack(listener.pack()), Some(listener));
            if let Some(read) = Listener::unpack(any) {
                prop_assert_eq!(read.pack(), any);
            }
        }
    }
}
