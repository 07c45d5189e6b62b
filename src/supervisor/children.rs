//! One worker process as the supervisor has it: the process, its channel, its memory.
//!
//! Invariant: what a worker is told or asked goes to the very worker that is meant; what it says is
//! taken only under its own name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::wait::WaitStatus;

use crate::channel::{self, Channel};
use crate::identity::{ReleaseId, WorkerId};
use crate::sys::image::{Image, Process};
use crate::sys::shared::SharedMemory;
use crate::wire::{Envelope, Failed, HandedOver, Message, Ready, Sandboxed, Start};

use super::machine::Death;

/// A process that lives in a slot.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) worker: WorkerId,
    pub(super) release: ReleaseId,
    /// Names its registrations in the event loop; never used again for another child.
    pub(super) serial: u64,
    pub(super) process: Process,
    pub(super) channel: Channel,
    pub(super) memory: SharedMemory,
    /// How it has locked itself in, once it has said so.
    pub(super) sandbox: Option<Sandboxed>,
}

/// What a worker said.
#[derive(Debug)]
pub(super) enum Heard {
    /// It can serve, on these addresses; with the listeners that it bound, if it did.
    Ready(Ready, Vec<OwnedFd>),
    /// It cannot serve.
    Failed(String),
    /// It stops, with so many connections open.
    Draining(u32),
    /// Its handover has ended.
    HandedOver(HandedOver),
    /// Its end of the channel is closed: it is ending, and the kernel closes its descriptors
    /// before it reports the end. How it ended is not known yet.
    Closed,
    /// Its channel is of no use any more.
    Broken(String),
}

/// What it takes to start a worker.
pub(super) struct Birth<'a> {
    pub(super) worker: WorkerId,
    pub(super) image: &'a Image,
    pub(super) start: Start,
    pub(super) memory: &'a SharedMemory,
    pub(super) listeners: &'a [OwnedFd],
}

impl Birth<'_> {
    /// Forks and executes a worker and tells it what to be: the process, and its channel.
    ///
    /// # Errors
    /// There is no process then.
    pub(super) fn give(self) -> io::Result<(Process, Channel)> {
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
        let process = self.image.spawn(arguments, &[there.as_fd()], |error| {
            let cause = format!("cannot execute the worker's program: {error}");
            last_words(&there, worker, cause);
        })?;
        Ok((process, here))
    }
}

impl Child {
    /// The next thing that the worker said; `None` if there is nothing now.
    pub(super) fn hear(&mut self) -> Option<Heard> {
        let received = match self.channel.receive() {
            Ok(received) => received?,
            Err(channel::Error::Closed) => return Some(Heard::Closed),
            Err(error) => return Some(Heard::Broken(error.to_string())),
        };
        let heard = match received.envelope.message {
            _ if received.envelope.worker != self.worker => {
                Heard::Broken(format!("it calls itself {}", received.envelope.worker))
            }
            Message::Ready(ready) => Heard::Ready(ready, received.descriptors),
            Message::Failed(failed) => Heard::Failed(failed.cause),
            Message::Draining(draining) => Heard::Draining(draining.connections),
            Message::HandedOver(ended) => Heard::HandedOver(ended),
            Message::Start(_)
            | Message::Lend(_)
            | Message::Recall(_)
            | Message::Stop(_)
            | Message::Serve(_)
            | Message::HandOver(_)
            | Message::TakeOver(_)
            | Message::Leave(_)
            | Message::Ping(_)
            | Message::Preflight(_) => {
                Heard::Broken("it sent a message that only the supervisor sends".to_owned())
            }
        };
        Some(heard)
    }

    /// Sends a message to the worker.
    pub(super) fn say(
        &mut self,
        message: Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), String> {
        let worker = self.worker;
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
    pub(super) fn kill(&self) {
        // Fails only if it has been reaped, and then there is nothing to kill.
        let _ = self.process.kill();
    }

    /// How the worker ended, if it did.
    pub(super) fn reap(&self) -> Option<Death> {
        death_of(&self.process)
    }

    /// Its process number, for people.
    pub(super) const fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The number of its channel's descriptor.
    pub(super) fn channel_number(&self) -> RawFd {
        self.channel.as_fd().as_raw_fd()
    }

    /// The number of its pidfd.
    pub(super) fn process_number(&self) -> RawFd {
        self.process.as_fd().as_raw_fd()
    }
}

/// How a child ended, if it did; it is reaped then.
pub(super) fn death_of(process: &Process) -> Option<Death> {
    match process.reap() {
        Ok(None) => None,
        Ok(Some(WaitStatus::Exited(_, code))) => Some(Death::Exited(code)),
        Ok(Some(WaitStatus::Signaled(_, signal, _))) => Some(Death::Signalled(signal as i32)),
        Ok(Some(_)) | Err(_) => Some(Death::Unknown),
    }
}

/// Says in a child that could not be executed why, over its end of the channel.
pub(super) fn last_words(there: &Channel, worker: WorkerId, cause: String) {
    let Ok(end) = there.as_fd().try_clone_to_owned() else {
        return;
    };
    let message = Message::Failed(Failed { cause });
    // Nobody is left to tell if this fails; the exit code still says that it failed.
    let _ = Channel::over(end).send(&Envelope { worker, message }, &[]);
}
