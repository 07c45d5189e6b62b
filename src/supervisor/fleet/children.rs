//! One worker process as the supervisor has it: the process, its channel, its memory.
//!
//! Invariants: what a worker is told or asked goes to the very worker that is meant; what it says is
//! taken only under its own name, only so often as it was asked, and in few words. A worker reads what
//! strangers send: one that is in their hands must be able to end itself, and no more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::wait::WaitStatus;

use crate::channel::{self, Channel};
use crate::config::WORKER_WORDS_MAX_CHARS;
use crate::fault;
use crate::identity::{ReleaseId, SlotId, WorkerId};
use crate::sys::image::{Image, Process};
use crate::sys::shared::SharedMemory;
use crate::wire::{Envelope, Failed, HandedOver, HandoverEnd, Message, Ready, Sandboxed, Start};

use crate::supervisor::machine::Death;

/// A process that lives in a slot.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) worker: WorkerId,
    pub(crate) release: ReleaseId,
    /// Names its registrations in the event loop; never used again for another child.
    pub(crate) serial: u64,
    pub(crate) process: Process,
    pub(crate) channel: Channel,
    pub(crate) memory: SharedMemory,
    /// How it has locked itself in, once it has said so.
    pub(crate) sandbox: Option<Sandboxed>,
    pub(crate) talk: Talk,
}

/// What a worker may still say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Talk {
    /// It has not said how its start went.
    starting: bool,
    /// Messages at most: the one about its start, and one for each order that wants an answer.
    left: u32,
    /// Reports of lost listeners at most: one for each set of listeners that it was given.
    reports: u32,
}

impl Talk {
    /// Of a new worker.
    pub(crate) const NEW: Self = Self {
        starting: true,
        left: 1,
        reports: 1,
    };

    /// Of one that this process's earlier program has started and talked to. What it is to answer
    /// is not known, and at most this.
    pub(crate) const fn resumed(is_ready: bool) -> Self {
        Self {
            starting: !is_ready,
            left: 3,
            reports: 1,
        }
    }

    /// It is told something.
    const fn told(&mut self, message: &Message) {
        if let Message::Stop(_) | Message::Leave(_) | Message::HandOver(_) = message {
            self.left = self.left.saturating_add(1);
        }
        if let Message::Lend(_) = message {
            self.reports = self.reports.saturating_add(1);
        }
    }

    /// It says something; false if it may not.
    fn takes(&mut self, message: &Message) -> bool {
        if let Message::ListenerLost(_) = message {
            let fits = !self.starting && self.reports > 0;
            self.reports = self.reports.saturating_sub(1);
            return fits;
        }
        let about_its_start = matches!(message, Message::Ready(_) | Message::Failed(_));
        let fits = about_its_start == self.starting && self.left > 0;
        self.starting = false;
        // Who once says too much has nothing to say any more.
        self.left = if fits { self.left - 1 } else { 0 };
        fits
    }
}

/// What a worker said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It can serve, on these addresses; with the listeners that it bound, if it did.
    Ready(Ready, Vec<OwnedFd>),
    /// It cannot serve.
    Failed(String),
    /// It stops, with so many connections open.
    Draining(u32),
    /// Its handover has ended.
    HandedOver(HandedOver),
    /// A listener of this slot listens no more.
    ListenerLost(SlotId),
    /// Its end of the channel is closed: it is ending, and the kernel closes its descriptors
    /// before it reports the end. How it ended is not known yet.
    Closed,
    /// Its channel is of no use any more.
    Broken(String),
}

/// What it takes to start a worker.
pub(crate) struct Birth<'a> {
    pub(crate) worker: WorkerId,
    pub(crate) image: &'a Image,
    pub(crate) start: Start,
    pub(crate) memory: &'a SharedMemory,
    pub(crate) listeners: &'a [OwnedFd],
}

impl Birth<'_> {
    /// Forks and executes a worker and tells it what to be: the process, and its channel.
    ///
    /// # Errors
    /// There is no process then.
    pub(crate) fn give(self) -> io::Result<(Process, Channel)> {
        let Self { worker, start, .. } = self;
        let (mut here, there) = Channel::pair()?;
        let mut descriptors = vec![self.memory.fd()];
        if start.adopt {
            descriptors.extend(self.listeners.iter().map(AsFd::as_fd));
        }
        // Said before the worker is born: it waits in the channel.
        let message = Message::Start(Box::new(start));
        here.send(&Envelope { worker, message }, &descriptors)
            .map_err(io::Error::other)?;
        let name = format!("uppercased: worker {}", worker.slot);
        let arguments = [name.as_str(), "worker"];
        let process = self.image.spawn(arguments, &there, |error| {
            let cause = format!("cannot execute the worker's program: {error}");
            last_words(&there, worker, cause);
        })?;
        Ok((process, here))
    }
}

impl Child {
    /// The next thing that the worker said; `None` if there is nothing now.
    pub(crate) fn hear(&mut self) -> Option<Heard> {
        let received = match self.channel.receive() {
            Ok(received) => received?,
            Err(channel::Error::Closed) => return Some(Heard::Closed),
            Err(error) => return Some(Heard::Broken(error.to_string())),
        };
        let heard = match received.envelope.message {
            _ if received.envelope.worker != self.worker => {
                Heard::Broken(format!("it calls itself {}", received.envelope.worker))
            }
            ref message if !self.talk.takes(message) => {
                Heard::Broken("it says more than it was asked".to_owned())
            }
            Message::Ready(ready) => Heard::Ready(ready, received.descriptors),
            Message::Failed(failed) => Heard::Failed(in_few_words(&failed.cause)),
            Message::Draining(draining) => Heard::Draining(draining.connections),
            Message::HandedOver(mut ended) => {
                if let HandoverEnd::Refused { cause } = &mut ended.end {
                    *cause = in_few_words(cause);
                }
                Heard::HandedOver(ended)
            }
            Message::ListenerLost(lost) => Heard::ListenerLost(lost.slot),
            Message::Start(_)
            | Message::Lend(_)
            | Message::Recall(_)
            | Message::Stop(_)
            | Message::Serve(_)
            | Message::HandOver(_)
            | Message::TakeOver(_)
            | Message::Leave(_)
            | Message::Ping(_)
            | Message::Preflight(_)
            | Message::Resolve(_)
            | Message::Resolved(_)
            | Message::StartAdmin(_)
            | Message::Ask(_)
            | Message::Told(_) => {
                Heard::Broken("it sent a message that no worker sends".to_owned())
            }
        };
        Some(heard)
    }

    /// Sends a message to the worker.
    pub(crate) fn say(
        &mut self,
        message: Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), String> {
        let worker = self.worker;
        self.talk.told(&message);
        match self
            .channel
            .send(&Envelope { worker, message }, descriptors)
        {
            // It is ending; its pidfd is about to tell how. See `Heard::Closed`.
            Err(channel::Error::Closed) => Ok(()),
            sent => sent.map_err(|error| error.to_string()),
        }
    }

    /// Ends the worker at once.
    pub(crate) fn kill(&self) {
        // One that has been reaped is gone already.
        if let Err(error) = kill(&self.process)
            && error.raw_os_error() != Some(nix::libc::ESRCH)
        {
            tracing::error!(worker = %self.worker, %error, "cannot kill a worker");
        }
    }

    /// How the worker ended, if it did.
    pub(crate) fn reap(&self) -> Option<Death> {
        death_of(&self.process)
    }

    /// Its process number, for people.
    pub(crate) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The number of its channel's descriptor.
    pub(crate) fn channel_number(&self) -> RawFd {
        self.channel.as_fd().as_raw_fd()
    }

    /// The number of its pidfd.
    pub(crate) fn process_number(&self) -> RawFd {
        self.process.as_fd().as_raw_fd()
    }
}

/// What a worker says in its own words, as one line that can be shown to anybody.
fn in_few_words(text: &str) -> String {
    let letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    letters.take(WORKER_WORDS_MAX_CHARS).collect()
}

/// Kills a worker's process.
///
/// # Errors
/// As [`Process::kill`].
pub(crate) fn kill(process: &Process) -> io::Result<()> {
    // A test plays a kernel that does not let go of the process.
    if fault::value("process.kill") == Some("ignore") {
        return Ok(());
    }
    process.kill()
}

/// How a child ended, if it did; it is reaped then.
pub(crate) fn death_of(process: &Process) -> Option<Death> {
    match process.reap() {
        Ok(None) => None,
        Ok(Some(WaitStatus::Exited(_, code))) => Some(Death::Exited(code)),
        Ok(Some(WaitStatus::Signaled(_, signal, _))) => Some(Death::Signalled(signal as i32)),
        Ok(Some(_)) | Err(_) => Some(Death::Unknown),
    }
}

/// Says in a child that could not be executed why, over its end of the channel.
pub(crate) fn last_words(there: &Channel, worker: WorkerId, cause: String) {
    let Ok(end) = there.as_fd().try_clone_to_owned() else {
        return;
    };
    let message = Message::Failed(Failed { cause });
    // Nobody is left to tell if this fails; the exit code still says that it failed.
    let _ = Channel::over(end).send(&Envelope { worker, message }, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Draining, Serve, Stop};

    fn draining() -> Message {
        Message::Draining(Draining { connections: 1 })
    }

    fn failed() -> Message {
        Message::Failed(Failed {
            cause: String::new(),
        })
    }

    #[test]
    fn a_worker_says_how_it_starts_and_then_one_thing_for_each_order() {
        let mut talk = Talk::NEW;
        assert!(talk.takes(&failed()), "it may fail");
        assert!(!talk.takes(&draining()), "it was not asked");
        let mut talk = Talk::NEW;
        assert!(talk.takes(&failed()));
        talk.told(&Message::Serve(Serve {}));
        talk.told(&Message::Stop(Stop {
            lame_duck_ms: 0,
            drain_timeout_ms: 0,
        }));
        assert!(talk.takes(&draining()));
        assert!(!talk.takes(&draining()));
    }

    #[test]
    fn worker_reports_lost_listeners_once_for_each_set() {
        let slot = SlotId(0);
        let lost = Message::ListenerLost(crate::wire::ListenerLost { slot });
        let mut talk = Talk::resumed(true);
        assert!(talk.takes(&lost));
        assert!(!talk.takes(&lost));
        talk.told(&Message::Lend(crate::wire::Lend { slot }));
        assert!(talk.takes(&lost));
        let mut new = Talk::NEW;
        assert!(!new.takes(&lost), "it has none yet");
    }

    #[test]
    fn who_says_too_much_is_not_heard_again() {
        for wrong in [draining(), failed()] {
            let mut talk = Talk::resumed(matches!(wrong, Message::Failed(_)));
            assert!(!talk.takes(&wrong));
            assert!(!talk.takes(&draining()) && !talk.takes(&failed()));
        }
    }

    #[test]
    fn words_are_few_and_move_no_cursor() {
        let long = "\u{1b}[2J\n".repeat(10_000);
        let said = in_few_words(&long);
        assert!(said.len() <= 4 * WORKER_WORDS_MAX_CHARS && !said.contains(char::is_control));
        assert_eq!(in_few_words("cannot bind"), "cannot bind");
    }
}
