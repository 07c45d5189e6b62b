//! The channel between the supervisor and one of its processes: framed messages with descriptors.
//!
//! Invariants: no call blocks; a channel sends one type of message and receives one other; the
//! descriptors of a refused message are closed ([`packets`] owns them by then); truncated control
//! data, or a number of descriptors other than the message announces, is an error, because the
//! kernel has then closed some silently; a message that the kernel does not accept now waits in a
//! queue of at most [`QUEUE_MAX`] messages.
//!
//! It must not interpret messages.

pub mod packets;
pub mod rendezvous;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, poll};

use crate::wire::{self, Envelope, FRAME_MAX_BYTES, Message};
use packets::Packets;

/// Maximum number of queued messages. Supervisor and worker exchange only a handful in all: an end
/// that leaves this many unread is unresponsive.
pub const QUEUE_MAX: usize = 64;

/// Time for the first message to arrive at a child process.
const FIRST_MESSAGE_TIMEOUT_MS: u16 = 10_000;

/// One end of a channel, which sends `Out` and receives `In`.
#[derive(Debug)]
pub struct Channel<Out, In> {
    packets: Packets,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    messages: PhantomData<fn(Out) -> In>,
}

/// A message and its descriptors.
#[derive(Debug)]
pub struct Received<In> {
    /// The message, and the worker that sends or receives it.
    pub envelope: Envelope<In>,
    /// The descriptors, as many as the message announced.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a channel fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end is closed.
    #[error("the peer has closed the channel")]
    Closed,
    /// The other end does not read.
    #[error("the peer has not read {QUEUE_MAX} messages")]
    QueueFull,
    /// Descriptors were lost in transit.
    #[error(
        "a message announced {wanted} descriptors and carried {got}; raise the descriptor limit"
    )]
    Descriptors {
        /// Number announced.
        wanted: usize,
        /// Number received.
        got: usize,
    },
    /// The message is invalid.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The kernel refused an operation.
    #[error("cannot {operation} on the channel: {source}")]
    System {
        /// `"send"` or `"receive"`.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl<Out: Message, In: Message> Channel<Out, In> {
    /// Returns both ends of a new channel, close-on-exec.
    ///
    /// # Errors
    /// The error of `socketpair`.
    pub fn pair() -> io::Result<(Self, Channel<In, Out>)> {
        let (here, there) = Packets::pair()?;
        Ok((Self::over_packets(here), Channel::over_packets(there)))
    }

    /// Returns a channel over an inherited end of a socket pair.
    #[must_use]
    pub const fn over(socket: OwnedFd) -> Self {
        Self::over_packets(Packets::over(socket))
    }

    const fn over_packets(packets: Packets) -> Self {
        Self {
            packets,
            queue: VecDeque::new(),
            messages: PhantomData,
        }
    }

    /// Returns the socket, to be purged and closed.
    #[must_use]
    pub fn into_packets(self) -> Packets {
        self.packets
    }

    /// Sends, or queues what the kernel does not accept now.
    ///
    /// # Errors
    /// The channel has failed, or the message is too long.
    pub fn send(
        &mut self,
        envelope: &Envelope<Out>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let frame = envelope.encode(descriptors.len())?;
        self.flush()?;
        if self.queue.is_empty() && self.packets.send(&frame, descriptors)? {
            return Ok(());
        }
        if self.queue.len() >= QUEUE_MAX {
            return Err(Error::QueueFull);
        }
        let kept = descriptors
            .iter()
            .map(BorrowedFd::try_clone_to_owned)
            .collect::<Result<_, _>>();
        let kept = kept.map_err(|source| Error::System {
            operation: "send",
            source,
        })?;
        self.queue.push_back((frame, kept));
        Ok(())
    }

    /// Returns whether no message is queued.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// Continues over another socket, under the same descriptor number. What is queued was for the
    /// former peer.
    ///
    /// # Errors
    /// What the system returned; nothing has changed then.
    pub fn replace_socket(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.packets.replace(socket)?;
        self.queue.clear();
        Ok(())
    }

    /// Forgets the queued messages and does not close their descriptors: in the copy of a process
    /// that has gone on, their numbers may be others' by now.
    pub fn forget_queued(&mut self) {
        std::mem::forget(std::mem::take(&mut self.queue));
    }

    /// Discards messages that the other end sent before it exited: see [`Packets::purge`].
    pub fn purge(&self) {
        self.packets.purge();
    }

    /// Sends queued messages until the kernel accepts no more.
    fn flush(&mut self) -> Result<(), Error> {
        while let Some((frame, descriptors)) = self.queue.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            if !self.packets.send(frame, &borrowed)? {
                break;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Sends queued messages until the kernel accepts no more, and returns the next message, or
    /// `None` if there is none now. Call it until then whenever the channel is readable or
    /// writable.
    ///
    /// # Errors
    /// The channel has failed; [`Error::Closed`] is its orderly end.
    pub fn receive(&mut self) -> Result<Option<Received<In>>, Error> {
        self.receive_after(|| {})
    }

    /// Like [`Self::receive`]; calls `prepare` before it receives a message with descriptors.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_after(&mut self, prepare: impl FnOnce()) -> Result<Option<Received<In>>, Error> {
        match self.flush() {
            // A closed end is reported below, after the messages that it sent before.
            Ok(()) | Err(Error::Closed) => {}
            Err(error) => return Err(error),
        }
        match self.packets.carries_descriptors() {
            None => return Ok(None),
            Some(true) => prepare(),
            Some(false) => {}
        }
        let mut frame = vec![0; FRAME_MAX_BYTES];
        let Some(packet) = self.packets.receive(&mut frame)? else {
            return Ok(None);
        };
        let descriptors = packet.descriptors;
        let (envelope, wanted) = Envelope::decode(&frame[..packet.length])?;
        if packet.truncated || descriptors.len() != wanted {
            return Err(Error::Descriptors {
                wanted,
                got: descriptors.len(),
            });
        }
        Ok(Some(Received {
            envelope,
            descriptors,
        }))
    }

    /// Waits for the first message, which the supervisor sends to every child process.
    ///
    /// # Errors
    /// As [`Self::receive`]; also if none arrives within 10 s.
    pub fn receive_first(&mut self) -> Result<Received<In>, Error> {
        let failed = |source| Error::System {
            operation: "receive",
            source,
        };
        let mut readable = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut readable, FIRST_MESSAGE_TIMEOUT_MS).map_err(|errno| failed(errno.into()))?;
        let received = self.receive()?;
        received.ok_or_else(|| failed(io::ErrorKind::TimedOut.into()))
    }
}

impl From<packets::Error> for Error {
    fn from(error: packets::Error) -> Self {
        match error {
            packets::Error::Closed => Self::Closed,
            packets::Error::System { operation, source } => Self::System { operation, source },
        }
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.packets.as_fd()
    }
}

#[cfg(test)]
mod tests;
