//! What a slot has: its listeners, its memory, and the process that lives in it now.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::wait::WaitStatus;

use crate::channel::{self, Channel};
use crate::identity::WorkerId;
use crate::memory;
use crate::memory::layout::Layout;
use crate::sys::image::{Image, Process};
use crate::sys::shared::SharedMemory;
use crate::wire::{Envelope, Failed, Listen, Message, Start};

use super::machine::Death;

/// The possessions of one slot.
#[derive(Debug)]
pub(super) struct SlotResources {
    /// Duplicates of the slot's listeners, from its first Ready on.
    listeners: Vec<OwnedFd>,
    memory: SharedMemory,
    child: Option<Child>,
}

/// The process that lives in a slot.
#[derive(Debug)]
pub(super) struct Child {
    worker: WorkerId,
    process: Process,
    channel: Channel,
}

/// What a worker said.
#[derive(Debug)]
pub(super) enum Heard {
    /// It serves, on these addresses.
    Ready(Vec<Listen>),
    /// It cannot serve.
    Failed(String),
    /// It stops, with so many connections open.
    Draining(u32),
    /// Its end of the channel is closed: it is ending, and the kernel closes its descriptors
    /// before it reports the end. How it ended is not known yet.
    Closed,
    /// Its channel is of no use any more.
    Broken(String),
}

impl SlotResources {
    /// A slot without listeners and without a worker.
    pub(super) fn new(layout: Layout) -> io::Result<Self> {
        let memory = SharedMemory::map(memory::create(layout)?)?;
        Ok(Self {
            listeners: Vec::new(),
            memory,
            child: None,
        })
    }

    /// Forks and executes a worker and tells it what to be.
    pub(super) fn spawn(
        &mut self,
        worker: WorkerId,
        start: Start,
        image: &Image,
    ) -> io::Result<()> {
        let adopt = start.adopt;
        let (mut here, there) = Channel::pair()?;
        let mut descriptors = vec![self.memory.fd()];
        if adopt {
            descriptors.extend(self.listeners.iter().map(AsFd::as_fd));
        }
        // Said before the worker is born: it waits in the channel.
        let message = Message::Start(Box::new(start));
        here.send(&Envelope { worker, message }, &descriptors)
            .map_err(io::Error::other)?;
        let name = format!("uppercased: worker {}", worker.slot);
        let process = image.spawn(&[&name, "worker"], &there, |error| {
            let cause = format!("cannot execute the worker's program: {error}");
            let mut there = Channel::over(match there.as_fd().try_clone_to_owned() {
                Ok(end) => end,
                Err(_) => return,
            });
            let message = Message::Failed(Failed { cause });
            // Nobody is left to tell if this fails; the exit code still says that it failed.
            let _ = there.send(&Envelope { worker, message }, &[]);
        })?;
        self.child = Some(Child {
            worker,
            process,
            channel: here,
        });
        Ok(())
    }

    /// The next thing that the worker said; `None` if there is nothing now.
    pub(super) fn hear(&mut self) -> Option<(WorkerId, Heard)> {
        let child = self.child.as_mut()?;
        let worker = child.worker;
        let received = match child.channel.receive() {
            Ok(received) => received?,
            Err(channel::Error::Closed) => return Some((worker, Heard::Closed)),
            Err(error) => return Some((worker, Heard::Broken(error.to_string()))),
        };
        let heard = match received.envelope.message {
            _ if received.envelope.worker != worker => {
                Heard::Broken(format!("it calls itself {}", received.envelope.worker))
            }
            Message::Ready(ready) => match self.keep(received.descriptors, &ready.listen) {
                Ok(()) => Heard::Ready(ready.listen),
                Err(cause) => Heard::Broken(cause),
            },
            Message::Failed(failed) => Heard::Failed(failed.cause),
            Message::Draining(draining) => Heard::Draining(draining.connections),
            Message::HandedOver(_) => return None,
            Message::Start(_)
            | Message::Lend(_)
            | Message::Recall(_)
            | Message::Stop(_)
            | Message::Serve(_)
            | Message::HandOver(_)
            | Message::TakeOver(_)
            | Message::Leave(_)
            | Message::Ping(_) => {
                Heard::Broken("it sent a message that only the supervisor sends".to_owned())
            }
        };
        Some((worker, heard))
    }

    /// Keeps the listeners that a slot's first worker bound.
    fn keep(&mut self, deposited: Vec<OwnedFd>, listen: &[Listen]) -> Result<(), String> {
        match (self.listeners.is_empty(), deposited.len()) {
            (true, count) if count == listen.len() && count > 0 => self.listeners = deposited,
            (false, 0) => {}
            (true, count) => {
                return Err(format!(
                    "it deposited {count} listeners for {} addresses",
                    listen.len()
                ));
            }
            (false, _) => return Err("it deposited listeners where it was to adopt them".into()),
        }
        Ok(())
    }

    /// Sends a message to the worker, if it is still the one that is meant.
    pub(super) fn say(
        &mut self,
        worker: WorkerId,
        message: Message,
        descriptors: &[OwnedFd],
    ) -> Result<(), String> {
        let Some(child) = self.child.as_mut().filter(|child| child.worker == worker) else {
            return Ok(());
        };
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = child
            .channel
            .send(&Envelope { worker, message }, &descriptors);
        match sent {
            // It is ending; its pidfd is about to tell how. See `Heard::Closed`.
            Err(channel::Error::Closed) => Ok(()),
            sent => sent.map_err(|error| error.to_string()),
        }
    }

    /// Ends the worker at once, if it is still the one that is meant.
    pub(super) fn kill(&self, worker: WorkerId) {
        if let Some(child) = self.child.as_ref().filter(|child| child.worker == worker) {
            // Fails only if it has been reaped, and then there is nothing to kill.
            let _ = child.process.kill();
        }
    }

    /// Ends and reaps a worker that cannot be watched.
    pub(super) fn discard_child(&mut self) {
        if let Some(child) = self.child.take() {
            child.process.destroy();
        }
    }

    /// How the worker ended, if it did.
    pub(super) fn reap(&self) -> Option<(WorkerId, Death)> {
        let child = self.child.as_ref()?;
        let how = match child.process.reap() {
            Ok(None) => return None,
            Ok(Some(WaitStatus::Exited(_, code))) => Death::Exited(code),
            Ok(Some(WaitStatus::Signaled(_, signal, _))) => Death::Signalled(signal as i32),
            Ok(Some(_)) | Err(_) => Death::Unknown,
        };
        Some((child.worker, how))
    }

    /// Takes what is left of the worker out of the slot.
    pub(super) const fn bury(&mut self) -> Option<Child> {
        self.child.take()
    }

    /// Duplicates of the slot's listeners, to be lent.
    pub(super) fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.listeners.iter().map(OwnedFd::try_clone).collect()
    }

    /// Lets go of the listeners: the slot stops, and new clients are to be refused at once.
    pub(super) fn release_listeners(&mut self) {
        self.listeners.clear();
    }

    /// The process that lives here.
    pub(super) const fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// The slot's memory, for its counters.
    pub(super) const fn memory(&self) -> &SharedMemory {
        &self.memory
    }
}

impl Child {
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
