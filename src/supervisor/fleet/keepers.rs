//! The keepers: the process beside each worker that becomes the worker when its process dies.
//!
//! A worker clones its keeper by itself, as a child of the supervisor, whose ID the kernel stores in
//! the worker's memory. When a worker's process has ended, its keeper's process takes its place
//! here; the worker keeps its identity, its channel and its memory.
//!
//! Invariants: the ID in the memory is a claim, so only a child of this process that belongs to no
//! other part becomes a keeper; a worker that is killed on purpose is not rescued, and its keeper is
//! killed first; a keeper that has taken its worker's place reports within [`RESCUE_TIMEOUT`].

use std::io;

use mio::Registry;

use crate::config::{KEEPER_RETRY, RESCUE_TIMEOUT};
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
    /// Watches the keeper that a worker's memory names, unless it is known.
    pub(super) fn find_keeper(&mut self, worker: WorkerId, registry: &Registry) {
        let Some(child) = self.child(worker) else {
            return;
        };
        let (serial, named) = (child.serial, life::keeper(&child.memory));
        let Some(pid) = named.filter(|&pid| !self.pids().any(|known| known == pid)) else {
            return;
        };
        let watched = Process::of_child(pid).and_then(|process| {
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
            }
            Err(error) => event!(keeper_not_watched; worker, keeper_pid = pid, %error),
        }
    }

    /// Lets a worker's keeper take the place of its process, which has ended with `exit`. Returns
    /// whether there is one.
    pub(super) fn succeed(
        &mut self,
        worker: WorkerId,
        exit: ExitStatus,
        registry: &Registry,
    ) -> bool {
        self.find_keeper(worker, registry);
        let Some(child) = self.child(worker) else {
            return false;
        };
        if child.life.doomed || life::is_retired(&child.memory) {
            return false;
        }
        let (serial, ended) = (child.serial, child.pid());
        // The oldest: it may have cloned a keeper of its own by now.
        let oldest = self.keepers.iter().position(|keeper| {
            keeper.serial == serial && keeper.process.pid() != ended && !keeper.process.has_ended()
        });
        let Some(keeper) = oldest.map(|index| self.keepers.remove(index)) else {
            return false;
        };
        subprocess::unwatch_process(&keeper.process, registry);
        let Some(child) = self.child_mut(worker) else {
            return false;
        };
        child.process.unwatch_end(registry);
        child.process.continue_as(keeper.process);
        let first = child.life.exit_of_last(exit);
        child.life.pending = Some((first, clock::now() + RESCUE_TIMEOUT));
        let watched = child.process.watch_end(registry, Source::Process(serial));
        if let Err(error) = watched {
            event!(keeper_not_watched; worker, keeper_pid = child.pid(), %error);
        }
        self.machine(machine::Event::Kept {
            worker,
            kept: false,
        });
        true
    }

    /// Handles the report of a keeper that has become the worker. Returns the event for the machine.
    ///
    /// # Errors
    /// No process of the worker has ended.
    pub(super) fn rescued(
        &mut self,
        worker: WorkerId,
        rescued: Rescued,
        registry: &Registry,
    ) -> Result<Event, String> {
        // The report may arrive before the end of the process is.
        let child = self.child(worker).ok_or("there is no such worker")?;
        if !child.life.is_pending()
            && let Some(exit) = child.process.reap()
        {
            self.succeed(worker, exit, registry);
        }
        self.find_keeper(worker, registry);
        let child = self.child_mut(worker).ok_or("there is no such worker")?;
        let life = &mut child.life;
        let (exit, _) = life.pending.take().ok_or("none of its processes ended")?;
        life.ended += 1;
        let is_hang = std::mem::take(&mut life.hung);
        if is_hang || exit != ExitStatus::KILLED {
            life::note_crash(&child.memory, life.ended);
        }
        Ok(Event::Rescued {
            worker,
            exit,
            is_hang,
            rescued,
        })
    }

    /// Handles the exit of a keeper of the worker with this serial number.
    pub(crate) fn on_keeper_exit(&mut self, serial: u64, registry: &Registry) {
        let mut lost = None;
        self.keepers.retain(|keeper| {
            if keeper.serial != serial || keeper.process.reap().is_ok_and(|exit| exit.is_none()) {
                return true;
            }
            subprocess::unwatch_process(&keeper.process, registry);
            lost = Some(keeper.worker);
            false
        });
        let Some(worker) = lost else {
            return;
        };
        let is_last = !self.keepers.iter().any(|keeper| keeper.serial == serial);
        let Some(child) = self.child_mut(worker).filter(|_| is_last) else {
            return;
        };
        if child.life.doomed || life::is_retired(&child.memory) || child.process.has_ended() {
            return;
        }
        let earliest = child.life.kept_at.map(|at| at + KEEPER_RETRY);
        child.life.keep_at = Some(earliest.unwrap_or(Tick::ZERO));
        event!(keeper_lost; worker);
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

    /// Requests keepers, and gives up those that do not report.
    pub(super) fn keepers_timeout(&mut self, now: Tick) {
        let workers: Vec<WorkerId> = self.children().map(|child| child.worker).collect();
        for worker in workers {
            let Some(child) = self.child_mut(worker) else {
                continue;
            };
            let life = &mut child.life;
            if life.keep_at.is_some_and(|at| at <= now) {
                life.keep_at = None;
                life.kept_at = Some(now);
                self.send(worker, ToWorker::Keep, &[]);
            } else if life.pending.is_some_and(|(_, until)| until <= now) && !life.doomed {
                event!(rescue_timed_out; worker, worker_pid = child.pid());
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

    /// Returns the process ID of a worker's keeper.
    pub(crate) fn keeper_of(&self, worker: WorkerId) -> Option<u32> {
        let serial = self.child(worker)?.serial;
        let keeper = self.keepers.iter().rfind(|it| it.serial == serial)?;
        Some(keeper.process.pid().unsigned_abs())
    }
}
