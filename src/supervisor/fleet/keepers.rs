//! The keepers: the process beside each worker that becomes the worker when its process dies.
//!
//! A worker clones its keeper by itself, as a child of the supervisor, whose ID the kernel stores in
//! the worker's memory. When a worker's process has ended, its keeper's process takes its place
//! here; the worker keeps its identity, its channel and its memory.
//!
//! Invariants: the ID in the memory is a claim, so only a child of this process that belongs to no
//! other part becomes a keeper, and for an adopted worker, whose processes are not children of this
//! one, only a process of its process group; a worker that is killed on purpose is not rescued, and
//! its keeper is killed first; a keeper that has taken its worker's place reports within
//! [`RESCUE_TIMEOUT`].

use std::io;

use mio::Registry;
use nix::libc::{ECHILD, ESRCH};

use crate::config::{RESCUE_TIMEOUT, RESCUES_UNCONFIRMED_MAX};
use crate::log::event;
use crate::memory::life;
use crate::supervisor::machine::{self, ExitStatus};
use crate::supervisor::subprocess;
use crate::supervisor::tokens::Source;
use crate::sys::fd::Inherited;
use crate::sys::image::Process;
use crate::wire::{Rescued, ToWorker};
use uppercased_ctl::clock::{self, Tick};
use uppercased_ctl::identity::WorkerId;

use super::children::{Keeper, Life, SavedKeeper};
use super::{Event, Fleet};

impl Fleet {
    /// Watches the keeper that a worker's memory names, unless it is known. Returns whether there
    /// may be one.
    pub(super) fn find_keeper(&mut self, worker: WorkerId, registry: &Registry) -> bool {
        let Some(child) = self.child(worker) else {
            return false;
        };
        let (serial, named) = (child.serial, life::keeper(&child.memory));
        let Some(pid) = named.filter(|_| child.is_ready()) else {
            return false;
        };
        if self.is_known(pid) {
            return self.keepers.iter().any(|it| it.serial == serial);
        }
        let watched = child.claimed(pid).and_then(|process| {
            subprocess::watch_process(&process, registry, Source::Keeper(serial))?;
            Ok(process)
        });
        match watched {
            Ok(process) => {
                self.keepers.push(Keeper {
                    worker,
                    serial,
                    process,
                });
                self.machine(machine::Event::Kept { worker, kept: true });
                true
            }
            Err(error) if matches!(error.raw_os_error(), Some(ESRCH | ECHILD)) => false,
            Err(error) => {
                event!(keeper_not_watched; worker, keeper_pid = pid, %error);
                true
            }
        }
    }

    /// Watches the keeper of a worker that must have one; requests another if there is none.
    fn require_keeper(&mut self, worker: WorkerId, registry: &Registry) {
        if !self.find_keeper(worker, registry)
            && let Some(child) = self.child_mut(worker)
        {
            child.life.request_keeper();
        }
    }

    /// Handles the report of a new keeper.
    pub(super) fn keeper_replaced(&mut self, worker: WorkerId, registry: &Registry) {
        let before = self.keeper_of(worker);
        self.require_keeper(worker, registry);
        let now = self.keeper_of(worker).filter(|&now| before != Some(now));
        if let Some(keeper_pid) = now {
            event!(keeper_replaced; worker, keeper_pid);
            self.events.push_back(Event::KeeperReplaced(worker.slot));
        }
    }

    /// Lets the process that runs a worker now, or will, take the place of the one that is known and
    /// has ended. Returns whether there is one.
    pub(super) fn succeed(&mut self, worker: WorkerId, registry: &Registry) -> bool {
        let Some(child) = self.child(worker) else {
            return false;
        };
        if child.life.doomed || !child.is_ready() || life::is_retired(&child.memory) {
            return false;
        }
        let (serial, ended) = (child.serial, child.pid());
        let named = || (life::process(&child.memory), life::keeper(&child.memory));
        let Some(next) = successor(ended, named, |pid| self.runs(serial, pid)) else {
            return false;
        };
        // It has ended, too, and the supervisor may never have known it.
        let passed = life::process(&child.memory).filter(|&pid| pid != ended && pid != next);
        let Some(process) = self.take_keeper(serial, next, registry) else {
            return false;
        };
        let Some(child) = self.child_mut(worker) else {
            return false;
        };
        let Some(exit) = child.process.reap() else {
            return false;
        };
        child.process.unwatch_end(registry);
        child.process.continue_as(process);
        let first = child.life.exit_of_last(exit);
        child.life.pending = Some((first, clock::now() + RESCUE_TIMEOUT));
        child.life.reports = RESCUES_UNCONFIRMED_MAX;
        let watched = child.process.watch_end(registry, Source::Process(serial));
        if let Err(error) = watched {
            event!(keeper_not_watched; worker, keeper_pid = child.pid(), %error);
        }
        if let Some(passed) = passed {
            self.reap_keeper(worker, passed, registry);
        }
        let kept = self.keeper_of(worker).is_some();
        self.machine(machine::Event::Kept { worker, kept });
        true
    }

    /// Returns whether `pid` is a running child that is a keeper of this worker, or no other's.
    fn runs(&self, serial: u64, pid: i32) -> bool {
        match self.keepers.iter().find(|keeper| keeper.pid() == pid) {
            Some(keeper) => keeper.serial == serial && !keeper.process.has_ended(),
            None if self.is_known(pid) => false,
            None => self.claimed(serial, pid).is_some_and(|it| !it.has_ended()),
        }
    }

    /// Returns whether a process has a part in this server already, so that no worker may claim it.
    fn is_known(&self, pid: i32) -> bool {
        self.others.contains(&pid) || self.pids().any(|known| known == pid)
    }

    fn claimed(&self, serial: u64, pid: i32) -> Option<Process> {
        let child = self.children().find(|child| child.serial == serial)?;
        child.claimed(pid).ok()
    }

    /// Returns the process `pid`, which is a keeper no longer.
    fn take_keeper(&mut self, serial: u64, pid: i32, registry: &Registry) -> Option<Process> {
        let is_it = |it: &Keeper| it.serial == serial && it.pid() == pid;
        let Some(index) = self.keepers.iter().position(is_it) else {
            return self.claimed(serial, pid);
        };
        let keeper = self.keepers.remove(index);
        subprocess::unwatch_process(&keeper.process, registry);
        Some(keeper.process)
    }

    /// Handles the report of a keeper that has become the worker. Returns the event for the machine;
    /// `None` if the dead process cannot be reaped yet: the report waits for that.
    ///
    /// # Errors
    /// No process of the worker has ended.
    pub(super) fn rescued(
        &mut self,
        worker: WorkerId,
        rescued: Rescued,
        registry: &Registry,
    ) -> Result<Option<Event>, String> {
        // The report may arrive before the end of the process is.
        let child = self.child(worker).ok_or("there is no such worker")?;
        if child.process.has_ended() {
            self.succeed(worker, registry);
        }
        let reporter = i32::try_from(rescued.pid).map_err(|_| "it reports no process")?;
        let is_latest = self.child(worker).is_some_and(|it| it.pid() == reporter);
        if is_latest {
            self.require_keeper(worker, registry);
        } else {
            self.find_keeper(worker, registry);
            self.reap_keeper(worker, reporter, registry);
        }
        let child = self.child_mut(worker).ok_or("there is no such worker")?;
        let life = &mut child.life;
        if life.pending.is_none() && child.process.is_over() {
            life.early = Some(rescued);
            return Ok(None);
        }
        let (exit, until) = life.pending.ok_or("none of its processes ended")?;
        let ended = rescued.life.saturating_sub(1);
        if ended <= life.ended || life.reports == 0 {
            return Err(format!("it reports life {} out of turn", rescued.life));
        }
        life.ended = ended;
        life.reports -= 1;
        life.overdue = false;
        // A process that reported and has died is followed by another, which is to report, too.
        let next_exit = life.last_keeper.filter(|&(pid, _)| pid == reporter);
        let next_exit = next_exit.map_or(ExitStatus::Unknown, |(_, exit)| exit);
        life.pending = (!is_latest).then_some((next_exit, until));
        let is_hang = std::mem::take(&mut life.hung);
        if is_hang || exit != ExitStatus::KILLED {
            life::note_crash(&child.memory, ended);
        }
        Ok(Some(Event::Rescued {
            worker,
            exit,
            is_hang,
            rescued,
        }))
    }

    /// Reaps a process that ran the worker for a time and has ended; it need not be known.
    fn reap_keeper(&mut self, worker: WorkerId, pid: i32, registry: &Registry) {
        if let Some(keeper) = self.keepers.iter().find(|it| it.pid() == pid) {
            return self.on_keeper_exit(keeper.serial, registry);
        }
        if self.is_known(pid) {
            return; // It runs.
        }
        let exit = Process::of_child(pid).ok();
        let exit = exit.and_then(|process| subprocess::reap_process(&process));
        if let Some((child, exit)) = self.child_mut(worker).zip(exit) {
            child.life.last_keeper = Some((pid, exit));
        }
    }

    /// Handles the report that came before the exit of the process, which has been reaped now.
    pub(super) fn handle_early_report(&mut self, worker: WorkerId, registry: &Registry) {
        let early = self.child_mut(worker).and_then(|it| it.life.early.take());
        let Some(rescued) = early else {
            return;
        };
        match self.rescued(worker, rescued, registry) {
            Ok(event) => self.events.extend(event),
            Err(cause) => self.channel_broke(worker, cause, registry),
        }
    }

    /// Handles the exit of a keeper of the worker with this serial number.
    pub(crate) fn on_keeper_exit(&mut self, serial: u64, registry: &Registry) {
        let mut lost = Vec::new();
        self.keepers.retain(|keeper| {
            if keeper.serial != serial {
                return true;
            }
            let Some(exit) = subprocess::reap_process(&keeper.process) else {
                return true;
            };
            subprocess::unwatch_process(&keeper.process, registry);
            lost.push((keeper.pid(), exit));
            false
        });
        let Some(worker) = self.worker_with(serial) else {
            return;
        };
        let Some(child) = self.child_mut(worker) else {
            return;
        };
        child.life.last_keeper = lost.last().copied().or(child.life.last_keeper);
        // Else it was the worker's process for a time, or had been replaced.
        let named = life::keeper(&child.memory);
        let is_latest = lost.iter().any(|&(pid, _)| named == Some(pid));
        if !is_latest
            || child.life.doomed
            || life::is_retired(&child.memory)
            || child.process.has_ended()
        {
            return;
        }
        child.life.request_keeper();
        event!(keeper_lost; worker);
        self.events.push_back(Event::KeeperLost(worker.slot));
        self.machine(machine::Event::Kept {
            worker,
            kept: false,
        });
    }

    /// Kills a worker's process, but not its keeper, which continues the worker.
    pub(crate) fn kill_process(&mut self, worker: WorkerId) {
        if let Some(child) = self.child_mut(worker) {
            child.life.hung = true;
            child.kill();
        }
    }

    /// Kills the keepers of the worker with this serial number.
    pub(super) fn kill_keepers(&self, serial: u64) {
        for keeper in self.keepers.iter().filter(|it| it.serial == serial) {
            // Fails only if it has ended.
            let _ = keeper.process.kill();
        }
    }

    /// Makes sure that a worker is not rescued.
    pub(super) fn doom(&mut self, worker: WorkerId) {
        if let Some(child) = self.child_mut(worker) {
            child.life.doomed = true;
            let serial = child.serial;
            self.kill_keepers(serial);
        }
    }

    pub(super) fn keepers_deadline(&self) -> Option<Tick> {
        let lives = self.children().map(|child| child.life);
        let due = |life: Life| {
            // One that is killed has the machine's deadline.
            let report = life.pending.filter(|_| !life.doomed).map(|(_, at)| at);
            [report, life.keep_at]
        };
        lives.flat_map(due).flatten().min()
    }

    /// Requests keepers, and kills those that do not report: the keeper of the first one continues
    /// the worker; that of the second one in a row does not.
    pub(super) fn keepers_timeout(&mut self, now: Tick) {
        let workers: Vec<WorkerId> = self.children().map(|child| child.worker).collect();
        for worker in workers {
            let Some(child) = self.child_mut(worker) else {
                continue;
            };
            let worker_pid = child.pid();
            let life = &mut child.life;
            if life.keep_at.is_some_and(|at| at <= now) {
                life.keep_at = None;
                life.kept_at = Some(now);
                self.send(worker, ToWorker::Keep, &[]);
            } else if life.pending.is_some_and(|(_, until)| until <= now) && !life.doomed {
                event!(rescue_timed_out; worker, worker_pid);
                if !life.overdue {
                    life.overdue = true;
                    life.pending = life.pending.map(|(exit, _)| (exit, now + RESCUE_TIMEOUT));
                    self.kill_process(worker);
                    continue;
                }
                self.kill(worker);
                let cause = "its keeper did not continue it in time".to_owned();
                self.machine(machine::Event::ChannelBroken { worker, cause });
            }
        }
    }

    pub(super) fn restore_keepers(
        &mut self,
        saved: Vec<SavedKeeper>,
        inherited: &mut Inherited,
        registry: &Registry,
    ) -> io::Result<()> {
        for keeper in saved {
            let process = Process::inherited(keeper.pid, inherited.take(keeper.process)?);
            // A worker that has ended since then has no use for it.
            let Some(child) = self.child(keeper.worker) else {
                let _ = process.kill();
                continue;
            };
            let serial = child.serial;
            subprocess::watch_process(&process, registry, Source::Keeper(serial))?;
            self.keepers.push(Keeper {
                worker: keeper.worker,
                serial,
                process,
            });
        }
        Ok(())
    }

    /// Kills the keepers that are left when every worker has ended. Their pidfds report the exits.
    pub(crate) fn kill_all_keepers(&self) {
        for keeper in &self.keepers {
            // Fails only if it has ended.
            let _ = keeper.process.kill();
        }
    }

    /// Returns whether a keeper has not exited.
    pub(crate) fn has_keepers(&self) -> bool {
        !self.keepers.is_empty()
    }

    /// Returns whether a keeper has taken the place of a worker's process, and has not reported.
    pub(crate) fn is_rescuing(&self, worker: WorkerId) -> bool {
        self.child(worker)
            .is_some_and(|child| child.life.pending.is_some())
    }

    /// Returns the process ID of a worker's keeper.
    pub(crate) fn keeper_of(&self, worker: WorkerId) -> Option<u32> {
        let serial = self.child(worker)?.serial;
        let keeper = self.keepers.iter().rfind(|it| it.serial == serial)?;
        Some(keeper.process.pid().unsigned_abs())
    }
}

/// Returns the process that runs a worker, or will, after the process `ended`. `named` reads the
/// process and the keeper that the worker's memory names, and may return others each time.
///
/// Several processes may have died since this was looked at. The process that the memory names runs
/// the worker; if it has ended, it stores nothing any more, so that the named keeper is its own.
fn successor(
    ended: i32,
    named: impl Fn() -> (Option<i32>, Option<i32>),
    runs: impl Fn(i32) -> bool,
) -> Option<i32> {
    let process = || named().0.unwrap_or(ended);
    for _ in 0..=RESCUES_UNCONFIRMED_MAX {
        let last = process();
        if last != ended && runs(last) {
            return Some(last);
        }
        let (_, keeper) = named();
        let keeper = keeper.filter(|&keeper| runs(keeper));
        // Else the keeper has become the process meanwhile.
        if process() == last {
            return keeper;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const WORKER: i32 = 10;
    const KEEPERS: [i32; 3] = [11, 12, 13];

    /// Returns the successor of the worker for a memory that names `process` and `keeper`.
    fn after(process: i32, keeper: i32, alive: &[i32]) -> Option<i32> {
        let named = || (Some(process), Some(keeper));
        successor(WORKER, named, |pid| alive.contains(&pid))
    }

    #[test]
    fn latest_life_succeeds_after_several_deaths() {
        let [first, second, third] = KEEPERS;
        assert_eq!(after(WORKER, first, &[first]), Some(first));
        assert_eq!(after(first, first, &[first]), Some(first));
        assert_eq!(after(first, second, &[first, second]), Some(first));
        assert_eq!(after(first, second, &[second]), Some(second));
        assert_eq!(after(second, second, &[second]), Some(second));
        assert_eq!(after(second, third, &[second, third]), Some(second));
        assert_eq!(after(second, third, &[third]), Some(third));
    }

    #[test]
    fn worker_without_living_keeper_has_no_successor() {
        let [first, second, _] = KEEPERS;
        assert_eq!(after(WORKER, first, &[]), None);
        assert_eq!(after(first, first, &[]), None);
        assert_eq!(after(first, second, &[WORKER]), None);
        let nothing = || (None, None);
        assert_eq!(successor(WORKER, nothing, |_| true), None);
        let only_keeper = || (None, Some(first));
        assert_eq!(successor(WORKER, only_keeper, |_| true), Some(first));
    }

    #[test]
    fn keeper_that_takes_over_meanwhile_is_found() {
        let [first, second, _] = KEEPERS;
        // Each is what the memory names one read later.
        let steps = [(WORKER, first), (first, second), (first, second)];
        for reads in 0..3 {
            let read = Cell::new(0);
            let named = || {
                let step = usize::from(read.get() > reads);
                read.set(read.get() + 1);
                let (process, keeper) = steps[step];
                (Some(process), Some(keeper))
            };
            let found = successor(WORKER, named, |pid| KEEPERS.contains(&pid));
            assert_eq!(found, Some(first), "{reads}");
        }
    }

    #[test]
    fn memory_that_changes_forever_ends_search() {
        let read = Cell::new(0);
        let named = || {
            read.set(read.get() + 1);
            (Some(100 + read.get()), Some(1))
        };
        assert_eq!(successor(WORKER, named, |_| false), None);
    }
}
