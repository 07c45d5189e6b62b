//! A worker's lives: each of its processes clones a keeper, which becomes the next one when it
//! dies.
//!
//! A keeper is a copy of its worker as of its clone, with the same descriptor table and working
//! memory. It waits. When the worker's process has ended and had not announced it, the keeper takes
//! its place: it finishes half-done closes, clones a keeper of its own, repairs the memory, and
//! serves.
//!
//! Invariants: nothing private that may have changed since the clone is used or dropped by the
//! keeper, because the descriptors that it owned may be others' by now; only the latest keeper of a
//! process continues it; nothing is opened before the half-done closes are finished; the stack does
//! not grow from life to life.
//!
//! It must not repair connections: `memory::rescue` and `reactor::rescue` do.

use std::io;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use super::phase::Phase;
use super::{Announcement, ServingEnd, Worker};
use crate::config::REARM_BATCH;
use crate::fault;
use crate::log::{self, event};
use crate::memory::life;
use crate::memory::rescue::Rescue;
use crate::reactor::{Descriptors, Reports};
use crate::sys::keeper::{Side, clone_process, own_pidfd, wait_for_end};
use crate::wire::{FromWorker, Rescued};
use tracing::span::EnteredSpan;
use uppercased_ctl::clock::{self, Tick};

/// What a process does once it has a keeper.
#[derive(Debug)]
enum Task {
    /// Report Ready.
    Announce(Announcement),
    /// Continue the worker of a dead process.
    Rescue { rescue: Rescue, woken: Tick },
    /// Report the new keeper.
    ReportKeeper,
}

impl Worker {
    /// Runs the worker, in this process and, if that dies, in those that continue it.
    /// `span` names the process in log lines.
    pub(super) fn run(mut self, announcement: Announcement, mut span: EnteredSpan) -> ExitCode {
        let mut task = Task::Announce(announcement);
        let mut reports = Reports::default();
        loop {
            if self.clone_keeper() == Side::Clone {
                let pidfd = self.pidfd.as_ref().ok_or(io::ErrorKind::NotFound);
                let ended = pidfd.map_err(io::Error::from).and_then(wait_for_end);
                let woken = clock::now();
                drop(span);
                span = log::worker_span(self.id.slot.0, self.id.generation.0).entered();
                fault::begin_rescue();
                fault::point("keeper.woke");
                let rescue = ended.map_err(|error| error.to_string());
                let rescue = rescue.and_then(|()| self.begin_rescue());
                match rescue {
                    // Whatever the task held belongs to the dead process.
                    Ok(rescue) => {
                        mem::forget(mem::replace(&mut task, Task::Rescue { rescue, woken }));
                    }
                    Err(why) => {
                        event!(keeper_ended, error = why);
                        mem::forget((self, task));
                        return ExitCode::SUCCESS;
                    }
                }
                continue;
            }
            match mem::replace(&mut task, Task::ReportKeeper) {
                Task::Announce(announcement) => {
                    if let Err(cause) = self.announce(announcement) {
                        return super::report_failure(self.channel, self.id, &cause);
                    }
                }
                Task::ReportKeeper => self.send(FromWorker::Kept),
                Task::Rescue { rescue, woken } => {
                    fault::point("rescue.keeper_cloned");
                    self = self.continue_dead(rescue, woken, &mut reports);
                }
            }
            match self.serve(&mut reports) {
                ServingEnd::Keep => {}
                ServingEnd::Exit(code) => {
                    // The kernel closes everything when the keeper has ended, too: it waits by a
                    // descriptor of this process.
                    mem::forget(self);
                    return code;
                }
            }
        }
    }

    /// Clones a keeper, if there is to be one. Returns in both processes.
    fn clone_keeper(&self) -> Side {
        if self.pidfd.is_none() {
            return Side::Original;
        }
        let word = self.reactor.memory().keeper_word();
        // The keeper inherits its name, so it is never taken for a worker. A failure is harmless.
        let _ = nix::sys::prctl::set_name(c"uppercased-keep");
        let cloned = clone_process(word);
        if !matches!(cloned, Ok(Side::Clone)) {
            let _ = nix::sys::prctl::set_name(c"uppercased");
        }
        match cloned {
            Ok(side) => side,
            Err(error) => {
                word.store(0, Ordering::Release);
                event!(keeper_not_cloned, %error);
                Side::Original
            }
        }
    }

    /// Takes the place of the process that has ended, as far as the next keeper must find it.
    fn begin_rescue(&mut self) -> Result<Rescue, String> {
        let memory = self.reactor.memory_mut();
        if Phase::of(memory.standing()).is_none() {
            return Err("the phase in its memory is not valid".to_owned());
        }
        let pid = std::process::id();
        if life::keeper(memory.shared()) != i32::try_from(pid).ok() {
            return Err("another keeper has replaced it".to_owned());
        }
        let rescue = memory.begin_rescue().map_err(|why| why.to_string())?;
        memory.set_process(pid);
        memory.finish_closes(&mut Descriptors);
        fault::point("rescue.closes_finished");
        // Only now may a descriptor be opened.
        let pidfd = own_pidfd().map_err(|error| format!("cannot open a pidfd: {error}"))?;
        self.pidfd = Some(pidfd);
        let _ = nix::sys::prctl::set_name(c"uppercased");
        Ok(rescue)
    }

    /// Continues the worker of the dead process.
    fn continue_dead(mut self, rescue: Rescue, woken: Tick, reports: &mut Reports) -> Self {
        // They belong to the time of the clone.
        mem::forget(mem::take(&mut self.deferred));
        self.channel.forget_queued();
        let life = rescue.life;
        let repaired = self.reactor.memory_mut().repair(rescue, &mut Descriptors);
        for reset in &repaired.reset {
            event!(
                connection_not_continued,
                peer = %reset.peer,
                fd = reset.fd,
                reason = reset.reason.name(),
                error = reset.cause
            );
        }
        fault::point("rescue.repaired");
        self.reactor = self
            .reactor
            .continued(&self.config, repaired.last_generation);
        self.continue_phase();
        self.reactor.adopt_listeners(self.id.slot);
        self.reactor.close_unnamed(self.channel.as_fd().as_raw_fd());
        if repaired.was_accepting {
            self.reactor.admit_unlisted();
        }
        self.continue_orphan();
        self.rearm(reports);
        // Before the report of the rescue, after which the supervisor repeats its requests.
        self.conclude_handover();
        fault::point("rescue.rearmed");
        let took = clock::now().since(woken);
        self.send(FromWorker::Rescued(Rescued {
            life,
            pid: std::process::id(),
            connections: repaired.connections,
            owed_bytes: repaired.owed_bytes,
            // Bounded by the number of descriptors.
            reset: repaired.reset.len() as u32,
            is_handing_over: self.reactor.hands_over_all().is_some(),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        }));
        self
    }

    /// Enters the phase that the dead process was in.
    fn continue_phase(&mut self) {
        let standing = self.reactor.memory().standing();
        let Some(phase) = Phase::of(standing) else {
            return; // It was valid a moment ago.
        };
        self.phase = phase;
        let hands_over = self.reactor.hands_over_all();
        match (phase, hands_over) {
            // It died before the phase was stored.
            (Phase::Serving | Phase::StandingBy | Phase::Undecided { .. }, Some(last)) => {
                self.enter(Phase::HandingOver { last });
            }
            (Phase::LameDuck { .. }, _) => self.reactor.stop_handing_over(),
            _ => {}
        }
        match self.phase {
            Phase::Serving | Phase::LameDuck { .. } => {}
            Phase::HandingOver { last: true } if hands_over.is_some() => {}
            Phase::StandingBy | Phase::HandingOver { .. } | Phase::Undecided { .. } => {
                self.reactor.pause_accepting();
            }
            Phase::Leaving { .. } | Phase::Done => self.reactor.drop_listeners(),
            Phase::Draining { .. } => {
                self.reactor.drop_listeners();
                self.reactor.finish_connections();
            }
        }
    }

    /// Watches everything again, and serves between the batches.
    fn rearm(&mut self, reports: &mut Reports) {
        let watched = self.reactor.watch_control_again(&self.channel);
        let watched = watched.and_then(|()| self.reactor.watch_control_again(&self.supervisor));
        let watched = watched.and_then(|()| match &self.adoption {
            Some(adoption) => self.reactor.watch_control_again(&adoption.rendezvous),
            None => Ok(()),
        });
        if let Err(error) = watched {
            event!(event_loop_failed, %error);
        }
        for batch in self.reactor.connections_to_rearm().chunks(REARM_BATCH) {
            self.reactor.rearm(batch);
            if self.turn(reports, Some(Tick::ZERO)).is_err() {
                return; // The next turn fails, too, and says so.
            }
        }
    }
}
