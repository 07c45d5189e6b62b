//! The locks of the addresses that this instance listens on: they exclude other instances.
//!
//! Invariant: connection attempts never fill a lock's queue, and cost a bounded time in each turn.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use crate::config::LOCK_CHECKS_PAUSE;
use crate::log::event;
use crate::port::{Lock, lock_bound};
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::wire::Listen;
use uppercased_ctl::clock::Tick;

use super::tokens::Source;

#[derive(Debug)]
pub(crate) struct PortLocks {
    locks: Vec<Lock>,
    /// End of the pause of all locks after a turn with too many attempts.
    paused_until: Option<Tick>,
}

/// The locks in a saved state.
pub(crate) type Saved = Vec<Descriptor>;

impl PortLocks {
    /// # Errors
    /// One of `locks` cannot be watched.
    pub(crate) fn new(locks: Vec<Lock>, registry: &Registry) -> io::Result<Self> {
        let locks = Self {
            locks,
            paused_until: None,
        };
        locks.watch_from(0, registry)?;
        Ok(locks)
    }

    /// Locks addresses whose ports the kernel has just chosen for this instance.
    pub(crate) fn add_bound(&mut self, addresses: &[Listen], registry: &Registry) {
        let before = self.locks.len();
        match lock_bound(addresses) {
            Ok(locks) => self.locks.extend(locks),
            // The sockets are bound already: only the early refusal of a later instance is lost.
            Err(error) => event!(port_lock_unavailable, %error),
        }
        if let Err(error) = self.watch_from(before, registry) {
            event!(port_lock_unwatched, %error);
        }
    }

    /// Refuses the attempts at the lock at `index`.
    pub(crate) fn on_ready(&mut self, index: usize, now: Tick) {
        if self.paused_until.is_none() && self.locks.get(index).is_some_and(Lock::discard_checks) {
            self.paused_until = Some(now + LOCK_CHECKS_PAUSE);
        }
    }

    pub(crate) const fn deadline(&self) -> Option<Tick> {
        self.paused_until
    }

    pub(crate) fn handle_timeout(&mut self, now: Tick) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            for index in 0..self.locks.len() {
                self.on_ready(index, now);
            }
        }
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        self.locks.iter().map(|lock| kept.keep(lock)).collect()
    }

    /// # Errors
    /// A descriptor is missing, or cannot be watched.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        registry: &Registry,
    ) -> io::Result<Self> {
        let locks = saved.into_iter().map(|lock| inherited.take(lock));
        let locks = locks.map(|lock| lock.map(Lock::from));
        Self::new(locks.collect::<io::Result<_>>()?, registry)
    }

    fn watch_from(&self, first: usize, registry: &Registry) -> io::Result<()> {
        for (index, lock) in self.locks.iter().enumerate().skip(first) {
            let number = lock.as_fd().as_raw_fd();
            let token = Source::Lock(index).token();
            registry.register(&mut SourceFd(&number), token, Interest::READABLE)?;
        }
        Ok(())
    }
}
