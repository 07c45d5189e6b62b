//! One worker process in the supervisor: the process, its channel, its memory.
//!
//! Invariants: a message reaches exactly the worker addressed; a message is received only under the
//! worker's own name, within its quota, and its texts are truncated to one short line. A worker
//! reads untrusted input: a compromised one can harm only itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::Registry;
use serde::{Deserialize, Serialize};

use crate::channel::rendezvous::Rendezvous;
use crate::channel::{self, Channel, Received};
use crate::config::{KEEPER_RETRY, WORKER_WORDS_MAX_CHARS};
use crate::handover::HandoverEnd;
use crate::log::event;
use crate::memory::life;
use crate::supervisor::machine::{ExitStatus, ListenerSource};
use crate::supervisor::rendezvous::RendezvousFile;
use crate::supervisor::subprocess::{self, Subprocess};
use crate::supervisor::tokens::Source;
use crate::sys::fd::{Descriptor, Inherited, Kept};
use crate::sys::image::{Image, Process};
use crate::sys::keeper::own_pidfd;
use crate::sys::shared::SharedMemory;
use crate::wire::{Envelope, FromWorker, Rescued, Start, ToWorker};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{ReleaseId, WorkerId};
use uppercased_ctl::status::Sandboxed;

/// The process of a worker, and the channel to it.
pub(crate) type WorkerProcess = Subprocess<Channel<ToWorker, FromWorker>>;

/// A process of a slot.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) worker: WorkerId,
    pub(crate) release: ReleaseId,
    /// Identifies its registrations in the event loop; never used for another child.
    pub(crate) serial: u64,
    pub(crate) process: WorkerProcess,
    pub(crate) memory: SharedMemory,
    /// Its sandbox, once it is Ready.
    pub(crate) sandbox: Option<Sandboxed>,
    pub(crate) quota: Quota,
    pub(crate) life: Life,
    /// The file of its rendezvous.
    pub(crate) rendezvous: Option<RendezvousFile>,
    /// The process group of an adopted worker, which is no child of this process.
    pub(crate) group: Option<i32>,
}

/// A worker in a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    worker: WorkerId,
    release: ReleaseId,
    process: subprocess::Saved,
    memory: Descriptor,
    sandbox: Option<Sandboxed>,
    life: Life,
    rendezvous: Option<RendezvousFile>,
    group: Option<i32>,
}

/// The messages that a worker may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Whether the report of its start is outstanding.
    starting: bool,
    /// Remaining messages: one about its start, and one for each command that has an answer.
    left: u32,
    /// Remaining reports of lost listeners: one for each set of listeners sent to it.
    reports: u32,
    /// Remaining reports of new keepers: one for each that was requested.
    keepers: u32,
}

impl Quota {
    /// The quota of a new worker.
    pub(crate) const NEW: Self = Self {
        starting: true,
        left: 1,
        reports: 1,
        keepers: 0,
    };

    /// Returns the quota of a worker started by an earlier binary of this process: at most these
    /// answers are outstanding.
    pub(crate) const fn resumed(is_ready: bool) -> Self {
        Self {
            starting: !is_ready,
            left: 3,
            reports: 1,
            keepers: 1,
        }
    }

    /// Counts a message sent to the worker.
    const fn note_sent(&mut self, message: &ToWorker) {
        match message {
            ToWorker::Stop(_) | ToWorker::Leave { .. } | ToWorker::HandOver(_) => {
                self.left = self.left.saturating_add(1);
            }
            ToWorker::Lend { .. } => self.reports = self.reports.saturating_add(1),
            ToWorker::Keep => self.keepers = self.keepers.saturating_add(1),
            ToWorker::Start(_)
            | ToWorker::Recall { .. }
            | ToWorker::Serve
            | ToWorker::TakeOver(_)
            | ToWorker::Confirm
            | ToWorker::Adopt
            | ToWorker::Ping => {}
        }
    }

    /// Counts a message from the worker; returns false if it exceeds the quota.
    fn allows(&mut self, message: &FromWorker) -> bool {
        let unasked = match message {
            // Allowed once for each process that ends, which the fleet knows.
            FromWorker::Rescued(_) => return !self.starting,
            // Sent to a supervisor that is to become the worker's.
            FromWorker::Adoptable(_) | FromWorker::NotAdoptable { .. } => return false,
            FromWorker::ListenerLost { .. } => Some(&mut self.reports),
            FromWorker::Kept => Some(&mut self.keepers),
            FromWorker::Ready(_)
            | FromWorker::Failed { .. }
            | FromWorker::Draining { .. }
            | FromWorker::HandedOver(_) => None,
        };
        if let Some(left) = unasked {
            let fits = !self.starting && *left > 0;
            *left = left.saturating_sub(1);
            return fits;
        }
        let about_its_start = matches!(message, FromWorker::Ready(_) | FromWorker::Failed { .. });
        let fits = about_its_start == self.starting && self.left > 0;
        self.starting = false;
        // A worker that exceeds its quota may not send again.
        self.left = if fits { self.left - 1 } else { 0 };
        fits
    }
}

/// A process that waits for the end of a worker's process.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) worker: WorkerId,
    /// The worker's serial number.
    pub(super) serial: u64,
    pub(super) process: Process,
}

/// A keeper in a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedKeeper {
    pub(super) worker: WorkerId,
    pub(super) pid: i32,
    pub(super) process: Descriptor,
}

impl Keeper {
    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(super) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> SavedKeeper {
        SavedKeeper {
            worker: self.worker,
            pid: self.process.pid(),
            process: kept.keep(&self.process),
        }
    }
}

/// How a worker's processes are succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    /// The number of the last life that is known to have ended.
    pub(super) ended: u64,
    /// The process that ended last, while the next has not reported: its exit, and the deadline.
    pub(super) pending: Option<(ExitStatus, Tick)>,
    /// The latest report that came before the exit of the process that it followed.
    pub(super) early: Option<Rescued>,
    /// The last keeper that ended, which may have run the worker for a time, and its exit.
    pub(super) last_keeper: Option<(i32, ExitStatus)>,
    /// Reports that may arrive meanwhile: the process may have been followed by several.
    pub(super) reports: u64,
    /// Whether a keeper that was to report was killed because it had not.
    pub(super) overdue: bool,
    /// Whether it was killed because it hung.
    pub(super) hung: bool,
    /// Whether it is not to be rescued any more.
    pub(super) doomed: bool,
    /// Time of the next request for a keeper.
    pub(super) keep_at: Option<Tick>,
    /// Time of the last.
    pub(super) kept_at: Option<Tick>,
}

impl Life {
    /// Has another keeper requested, not too soon after the last request.
    pub(super) fn request_keeper(&mut self) {
        let earliest = self.kept_at.map(|at| at + KEEPER_RETRY);
        self.keep_at = Some(earliest.unwrap_or(Tick::ZERO));
    }

    /// Returns the exit status to report for a worker that is not continued: the first process ended
    /// by itself, and its keeper only because it could not continue.
    pub(crate) fn exit_of_last(&self, exit: ExitStatus) -> ExitStatus {
        self.pending.map_or(exit, |(first, _)| first)
    }
}

/// The reason why a worker's channel is no longer usable.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// The worker's end is closed. It is exiting: the kernel closes its descriptors before it
    /// reports the exit, so the exit status is not known yet.
    Closed,
    /// The worker sent an invalid or disallowed message.
    Broken(String),
}

/// A worker that is to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spawn {
    pub(crate) worker: WorkerId,
    pub(crate) listener: ListenerSource,
    pub(crate) release: ReleaseId,
    pub(crate) standby: bool,
}

/// The resources for starting a worker.
pub(crate) struct NewWorker<'a> {
    pub(crate) worker: WorkerId,
    pub(crate) image: &'a Image,
    pub(crate) start: Start,
    pub(crate) memory: &'a SharedMemory,
    pub(crate) lease: BorrowedFd<'a>,
    pub(crate) rendezvous: Option<&'a Rendezvous>,
    pub(crate) listeners: &'a [OwnedFd],
}

impl NewWorker<'_> {
    /// Starts the worker, with its first message in its channel.
    ///
    /// # Errors
    /// There is no process then.
    pub(crate) fn start(self) -> io::Result<WorkerProcess> {
        let Self {
            worker, mut start, ..
        } = self;
        start.adoptable = self.rendezvous.is_some();
        let supervisor = own_pidfd()?;
        let mut descriptors = vec![self.memory.as_fd(), supervisor.as_fd(), self.lease];
        if let Some(rendezvous) = self.rendezvous {
            descriptors.push(rendezvous.as_fd());
        }
        if start.adopt {
            descriptors.extend(self.listeners.iter().map(AsFd::as_fd));
        }
        let message = ToWorker::Start(Box::new(start));
        let name = format!("uppercased: worker {}", worker.slot);
        let arguments = [name.as_str(), "worker"];
        let first = Envelope { worker, message };
        Subprocess::start(self.image, arguments, &first, &descriptors, |cause| {
            FromWorker::Failed { cause }
        })
    }
}

impl Child {
    /// Receives the worker's next message, with its descriptors; `None` if there is none now.
    pub(crate) fn receive(&mut self) -> Option<Result<(FromWorker, Vec<OwnedFd>), Unusable>> {
        let received = match self.process.channel.receive() {
            Ok(received) => received?,
            Err(channel::Error::Closed) => return Some(Err(Unusable::Closed)),
            Err(error) => return Some(Err(Unusable::Broken(error.to_string()))),
        };
        let Received {
            envelope: Envelope { worker, message },
            descriptors,
        } = received;
        Some(if worker != self.worker {
            Err(Unusable::Broken(format!("it claims to be {worker}")))
        } else if self.quota.allows(&message) {
            Ok((with_short_texts(message), descriptors))
        } else {
            let cause = "it exceeded its message quota";
            Err(Unusable::Broken(cause.to_owned()))
        })
    }

    pub(crate) fn send(
        &mut self,
        message: ToWorker,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), String> {
        let worker = self.worker;
        self.quota.note_sent(&message);
        match self
            .process
            .channel
            .send(&Envelope { worker, message }, descriptors)
        {
            // It is exiting; its pidfd reports the status next. See `Unusable::Closed`.
            Err(channel::Error::Closed) => Ok(()),
            sent => sent.map_err(|error| error.to_string()),
        }
    }

    /// Returns whether it has reported Ready. Until then its memory may name processes of the
    /// worker that had the memory before.
    pub(super) const fn is_ready(&self) -> bool {
        self.sandbox.is_some()
    }

    pub(crate) fn kill(&self) {
        if let Err(error) = self.process.kill() {
            event!(worker_kill_failed, slot = self.worker.slot.0, generation = self.worker.generation.0, worker_pid = self.pid(), %error);
        }
    }

    pub(crate) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Returns the exit status `exit` of its process, or that of an announced exit if the process is
    /// another's child, so that its exit status is unknown.
    pub(super) fn exit_status(&self, exit: ExitStatus) -> ExitStatus {
        let is_announced = self.group.is_some() && life::is_retired(&self.memory);
        match exit {
            ExitStatus::Unknown if is_announced => ExitStatus::Exited(0),
            exit => exit,
        }
    }

    /// Returns the process `pid`, which the worker claims to be its own or its keeper's.
    ///
    /// # Errors
    /// There is no such process, or it cannot be the worker's.
    pub(super) fn claimed(&self, pid: i32) -> io::Result<Process> {
        match self.group {
            None => Process::of_child(pid),
            Some(group) => Process::of_group(pid, group),
        }
    }

    pub(crate) fn watch(&self, registry: &Registry) -> io::Result<()> {
        let channel = Source::Channel(self.serial);
        let process = Source::Process(self.serial);
        self.process.watch(registry, channel, process)
    }

    pub(crate) fn save<'a>(&'a self, kept: &mut Kept<'a>) -> Saved {
        Saved {
            worker: self.worker,
            release: self.release,
            process: self.process.save(kept),
            memory: kept.keep(&self.memory),
            sandbox: self.sandbox.clone(),
            life: self.life,
            rendezvous: self.rendezvous.clone(),
            group: self.group,
        }
    }

    /// # Errors
    /// A descriptor is missing, or its memory cannot be mapped.
    pub(crate) fn restore(
        saved: Saved,
        inherited: &mut Inherited,
        serial: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            worker: saved.worker,
            release: saved.release,
            serial,
            process: Subprocess::restore(saved.process, inherited, Channel::over)?,
            memory: SharedMemory::map(inherited.take(saved.memory)?)?,
            quota: Quota::resumed(saved.sandbox.is_some()),
            life: saved.life,
            rendezvous: saved.rendezvous,
            group: saved.group,
            sandbox: saved.sandbox,
        })
    }
}

/// Returns the message with each text from the worker truncated to one short printable line.
fn with_short_texts(mut message: FromWorker) -> FromWorker {
    match &mut message {
        FromWorker::Failed { cause } => *cause = one_short_line(cause),
        FromWorker::HandedOver(ended) => {
            if let HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } =
                &mut ended.end
            {
                *cause = one_short_line(cause);
            }
        }
        FromWorker::Ready(_)
        | FromWorker::Draining { .. }
        | FromWorker::ListenerLost { .. }
        | FromWorker::Kept
        | FromWorker::Rescued(_)
        | FromWorker::Adoptable(_)
        | FromWorker::NotAdoptable { .. } => {}
    }
    message
}

fn one_short_line(text: &str) -> String {
    let letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    letters.take(WORKER_WORDS_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stop;
    use uppercased_ctl::identity::SlotId;

    const fn draining() -> FromWorker {
        FromWorker::Draining { connections: 1 }
    }

    const fn failed() -> FromWorker {
        FromWorker::Failed {
            cause: String::new(),
        }
    }

    #[test]
    fn worker_sends_one_message_per_command() {
        let mut quota = Quota::NEW;
        assert!(quota.allows(&failed()), "it may fail");
        assert!(!quota.allows(&draining()), "it was not asked");
        let mut quota = Quota::NEW;
        assert!(quota.allows(&failed()));
        quota.note_sent(&ToWorker::Serve);
        quota.note_sent(&ToWorker::Stop(Stop {
            lame_duck_ms: 0,
            drain_timeout_ms: 0,
        }));
        assert!(quota.allows(&draining()));
        assert!(!quota.allows(&draining()));
    }

    #[test]
    fn worker_reports_lost_listeners_once_for_each_set() {
        let slot = SlotId(0);
        let lost = FromWorker::ListenerLost { slot };
        let mut quota = Quota::resumed(true);
        assert!(quota.allows(&lost));
        assert!(!quota.allows(&lost));
        quota.note_sent(&ToWorker::Lend { slot });
        assert!(quota.allows(&lost));
        let mut new = Quota::NEW;
        assert!(!new.allows(&lost), "it has none yet");
    }

    #[test]
    fn message_quota_silences_worker() {
        for wrong in [draining(), failed()] {
            let mut quota = Quota::resumed(matches!(wrong, FromWorker::Failed { .. }));
            assert!(!quota.allows(&wrong));
            assert!(!quota.allows(&draining()) && !quota.allows(&failed()));
        }
    }

    #[test]
    fn error_messages_are_bounded_and_printable() {
        let long = "\u{1b}[2J\n".repeat(10_000);
        let said = one_short_line(&long);
        assert!(said.len() <= 4 * WORKER_WORDS_MAX_CHARS && !said.contains(char::is_control));
        assert_eq!(one_short_line("cannot bind"), "cannot bind");
    }
}
