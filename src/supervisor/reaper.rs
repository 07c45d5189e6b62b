//! Reaps killed children and orphans, and finds the causes of crashes.
//!
//! A killed process usually exits at once, but one that waits for a disk or a file server does not.
//! No part of the supervisor waits for it: its pidfd reports the exit, and is passed on at an exec.
//!
//! Invariants: nothing here blocks; a child is kept until it is reaped, as is its socket, which is
//! emptied before it is closed (see [`Packets::purge`]).

pub(crate) mod evidence;
pub(crate) mod orphans;

use std::io;
use std::time::Duration;

use mio::Registry;

use crate::channel::packets::Packets;
use crate::log::event;
use crate::sys::fd::{Inherited, Kept};
use uppercased_ctl::clock::{self, Tick};

use super::machine::ExitStatus;
use super::subprocess::{self, Ended, Subprocess};
use super::tokens::Source;
use evidence::Evidence;

/// Interval at which a child is killed and reaped again if its exit is not reported, or if it could
/// not be killed.
const RETRY_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Reaper {
    killed: Vec<Killed>,
    evidence: Evidence,
}

/// A child that was killed and not reaped yet.
#[derive(Debug)]
struct Killed {
    child: Ended,
    /// Time to kill and reap it again; `None`: its exit is reported.
    retry: Option<Tick>,
}

/// The killed children in a saved state.
pub(crate) type Saved = Vec<subprocess::Saved>;

impl Reaper {
    pub(crate) fn new() -> Self {
        Self {
            killed: Vec::new(),
            evidence: Evidence::gathered(),
        }
    }

    #[cfg(test)]
    pub(crate) fn holding(child: Ended) -> Self {
        let mut reaper = Self::new();
        reaper.killed.push(Killed { child, retry: None });
        reaper
    }

    /// Kills a child, and reaps it when it has exited.
    pub(crate) fn kill(&mut self, child: Ended, registry: &Registry) {
        child.unwatch(registry);
        let mut killed = Killed { child, retry: None };
        killed.kill_and_watch(registry);
        if !killed.is_reaped() {
            self.killed.push(killed);
        }
    }

    /// Reaps every killed child that has exited.
    pub(crate) fn on_ready(&mut self) {
        self.killed.retain(|child| !child.is_reaped());
    }

    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.killed.iter().filter_map(|child| child.retry).min()
    }

    pub(crate) fn handle_timeout(&mut self, registry: &Registry, now: Tick) {
        if self.deadline().is_some_and(|due| due <= now) {
            self.watch(registry);
            self.on_ready();
        }
    }

    /// Returns whether every killed child is reaped.
    pub(crate) fn is_empty(&self) -> bool {
        self.killed.is_empty()
    }

    /// Returns the error to report at exit about children that have not exited; `None` without any.
    pub(crate) fn unreaped(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let pids: Vec<String> = self.pids().map(|pid| pid.to_string()).collect();
        Some(format!(
            "killed processes have not ended: {}; something in the kernel holds them, see \
             /proc/PID/stack",
            pids.join(" ")
        ))
    }

    /// Returns the process numbers of the children that are not reaped.
    pub(crate) fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        self.killed.iter().map(|killed| killed.child.pid())
    }

    /// Returns the cause of a child's exit status, if there is evidence.
    pub(crate) fn cause_of(&mut self, exit: ExitStatus, now: Tick) -> Option<String> {
        self.evidence.cause_of(exit, now)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        let killed = self.killed.iter();
        killed.map(|killed| killed.child.save(kept)).collect()
    }

    /// # Errors
    /// A descriptor is missing.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        registry: &Registry,
    ) -> io::Result<Self> {
        let mut reaper = Self::new();
        for child in saved {
            let child = Subprocess::restore(child, inherited, Packets::over)?;
            reaper.killed.push(Killed { child, retry: None });
        }
        reaper.watch(registry);
        Ok(reaper)
    }

    fn watch(&mut self, registry: &Registry) {
        for child in &mut self.killed {
            child.kill_and_watch(registry);
        }
    }
}

impl Killed {
    fn is_reaped(&self) -> bool {
        let is_reaped = self.child.reap().is_some();
        if is_reaped {
            self.child.channel.purge();
        }
        is_reaped
    }

    fn kill_and_watch(&mut self, registry: &Registry) {
        // Its registration ends with it: nothing else is ever reported under this number.
        let watched = match self.child.watch_end(registry, Source::Killed) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => Ok(()),
            watched => watched,
        };
        self.retry = None;
        if let Err(error) = self.child.kill().and(watched) {
            event!(child_kill_failed, child_pid = self.child.pid(), %error);
            self.retry = Some(clock::now() + RETRY_EVERY);
        }
    }
}
