//! Children that have been killed and are not reaped yet.
//!
//! A killed process usually ends at once, but one that waits for a disk or a file server does not. So
//! nobody waits for it: its pidfd reports the end, and an exec in place passes it on.
//!
//! Invariants: nothing here blocks; a child stays until it is reaped; its channel stays as long, and
//! is emptied before it is closed (see [`Packets::purge`]).

pub(crate) mod evidence;
pub(crate) mod orphans;

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;

use crate::channel::packets::Packets;
use crate::sys::image::Process;
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::WorkerId;

use super::Supervisor;
use super::fleet::children::{death_of, kill};
use super::state::SavedKilled;
use super::tokens::Source;

/// How often a child is looked at again whose end is not reported, or that could not be killed.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A child that nobody wants any more.
#[derive(Debug)]
pub(super) struct Killed {
    process: Process,
    channel: Packets,
    /// When to kill it and to look for its end once more; `None`: its end is reported.
    retry: Option<Tick>,
}

impl Killed {
    pub(super) const fn new(process: Process, channel: Packets) -> Self {
        Self {
            process,
            channel,
            retry: None,
        }
    }

    /// Its process number.
    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// What a new program needs to reap it.
    pub(super) fn saved(&self) -> SavedKilled {
        SavedKilled {
            pid: self.pid(),
            process: self.process.as_fd().as_raw_fd(),
            channel: self.channel.as_fd().as_raw_fd(),
        }
    }

    /// The descriptors that go with that.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.process.as_fd(), self.channel.as_fd()]
    }

    /// Whether it is gone.
    fn reap(&self) -> bool {
        let gone = death_of(&self.process).is_some();
        if gone {
            self.channel.purge();
        }
        gone
    }
}

impl Supervisor {
    /// Kills children and reaps them when they have ended.
    pub(super) fn take_killed(&mut self, children: Vec<(Process, Packets)>) {
        for (process, channel) in children {
            self.kill_later_reaped(process, channel);
        }
    }

    /// Takes a worker that was killed and has not ended out of its slot.
    pub(super) fn abandon(&mut self, worker: WorkerId) {
        self.unwatch_channel(worker);
        let slot = self.slots.get_mut(worker.slot.index());
        if let Some((process, channel)) = slot.and_then(|slot| slot.abandon(worker)) {
            self.kill_later_reaped(process, channel);
        }
    }

    /// What is left of children at the end of this process, which can wait no longer; `None`: nothing.
    pub(super) fn left_alone(&self) -> Option<String> {
        if self.killed.is_empty() {
            return None;
        }
        let pids: Vec<String> = self.killed.iter().map(|it| it.pid().to_string()).collect();
        Some(format!(
            "killed processes have not ended: {}; something in the kernel holds them, see \
             /proc/PID/stack",
            pids.join(" ")
        ))
    }

    /// Kills a child, and reaps it when it has ended.
    pub(super) fn kill_later_reaped(&mut self, process: Process, channel: Packets) {
        for number in [channel.as_fd().as_raw_fd(), process.as_fd().as_raw_fd()] {
            // Fails only if it was not watched.
            let _ = self.poll.registry().deregister(&mut SourceFd(&number));
        }
        let mut child = Killed::new(process, channel);
        self.kill_and_watch(&mut child);
        if !child.reap() {
            self.killed.push(child);
        }
    }

    /// Watches the children that an earlier program of this process has left.
    pub(super) fn watch_killed(&mut self) {
        let mut killed = std::mem::take(&mut self.killed);
        for child in &mut killed {
            self.kill_and_watch(child);
        }
        self.killed = killed;
    }

    /// Reaps every child that has ended.
    pub(super) fn reap_killed(&mut self) {
        self.killed.retain(|child| !child.reap());
    }

    /// When to look at those again whose end is not reported.
    pub(super) fn killed_timeout(&self) -> Option<Tick> {
        self.killed.iter().filter_map(|child| child.retry).min()
    }

    /// Looks at those again, if it is time.
    pub(super) fn retry_killed(&mut self, now: Tick) {
        if self.killed_timeout().is_some_and(|due| due <= now) {
            self.watch_killed();
            self.reap_killed();
        }
    }

    fn kill_and_watch(&self, child: &mut Killed) {
        let number = child.process.as_fd().as_raw_fd();
        // Its registration ends with it: nothing else is ever reported under this number.
        let watched = match self.watch(number, Source::Killed, Interest::READABLE) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => Ok(()),
            watched => watched,
        };
        let killed = kill(&child.process).or_else(|error| match error {
            // It has ended already.
            _ if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            error => Err(error),
        });
        child.retry = None;
        if let Err(error) = killed.and(watched) {
            tracing::error!(pid = child.pid(), %error, "cannot kill a child: trying again");
            child.retry = Some(clock::now() + RETRY_EVERY);
        }
    }
}
