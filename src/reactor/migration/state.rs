//! The state of migrating connections: one handover to another worker and one from another.
//!
//! It must not know the event loop: `outgoing` and `incoming` execute the handovers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::channel::packets::{self, Packets};
use crate::config::HANDOVER_RETRY;
use crate::fault;
use crate::handover::Part;
use crate::handover::machine::{Receiver, Sender, SenderEvent};
use crate::handover::record::{Message, Packet};
use crate::sys::socket;
use uppercased_ctl::clock::Tick;

/// The number of the first batch, for the fault points.
pub(super) const FIRST: u32 = 1;

/// One end of a handover's socket pair.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) packets: Packets,
    pub(super) token: Token,
    /// Whether it may have packets.
    pub(super) ready: bool,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, token: Token, registry: &Registry) -> io::Result<Self> {
        let number = socket.as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        // Closing it ends the watch: this process has no other descriptor of it.
        registry.register(&mut SourceFd(&number), token, interest)?;
        Ok(Self {
            packets: Packets::over(socket),
            token,
            ready: true,
        })
    }

    /// Receives the next packet; `None` if there is none now.
    pub(super) fn receive(
        &mut self,
        into: &mut [u8],
    ) -> Result<Option<packets::Packet>, packets::Error> {
        let received = self.packets.receive(into);
        self.ready = matches!(received, Ok(Some(_)));
        received
    }

    /// Sends a packet without descriptors. Returns whether the kernel accepted it.
    pub(super) fn offers(&self, sequence: u32, message: Message) -> bool {
        let frame = Packet { sequence, message }.encode();
        matches!(self.packets.send(&frame, &[]), Ok(true))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.packets.purge();
    }
}

/// A handover from another worker.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(super) link: Link,
    pub(super) machine: Receiver,
    pub(super) buffer: Vec<u8>,
    /// Batches answered.
    pub(super) answered: u64,
}

/// A handover to another worker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(super) link: Option<Link>,
    pub(super) machine: Sender,
    /// Batches that are not settled: number and connections.
    pub(super) batches: VecDeque<(u32, Vec<u32>)>,
    /// The batch that the kernel has not accepted, and when it is offered again.
    pub(super) staged: Option<(Vec<u8>, Tick)>,
    /// Where the search for connections continues.
    pub(super) cursor: u32,
    /// No other worker will accept from these listeners.
    pub(super) last: bool,
    /// The connections of a partial handover; `None`: all of them migrate, and the worker exits.
    pub(super) part: Option<Chosen>,
    pub(super) moving: u32,
    pub(super) moved: u32,
    /// Connections that the other worker cannot adopt: number and generation.
    pub(super) stuck: BTreeMap<u32, u32>,
    /// Batches sent, and those settled, as the supervisor reads them.
    pub(super) sent: u64,
    pub(super) settled: u64,
}

impl Outgoing {
    pub(super) fn new(link: Link, last: bool, part: Option<Chosen>) -> Self {
        Self {
            link: Some(link),
            machine: Sender::default(),
            batches: VecDeque::new(),
            staged: None,
            cursor: 0,
            last,
            part,
            moving: 0,
            moved: 0,
            stuck: BTreeMap::new(),
            sent: 0,
            settled: 0,
        }
    }

    pub(super) fn batch(&mut self, sequence: u32) -> Vec<u32> {
        let at = self.batches.iter().position(|batch| batch.0 == sequence);
        at.and_then(|at| self.batches.remove(at))
            .map_or_else(Vec::new, |batch| batch.1)
    }

    /// Offers batch `sequence` again, which `frame` contains.
    pub(super) fn repeat(&mut self, sequence: u32, frame: &[u8]) {
        let batch = self.batches.iter().find(|batch| batch.0 == sequence);
        let (Some((_, batch)), Some(link)) = (batch, &mut self.link) else {
            return;
        };
        let sent = socket::lend(batch, |fds| link.packets.send(frame, fds));
        self.machine.handle(match sent {
            Ok(true) => SenderEvent::Sent {
                // Bounded by the format.
                count: batch.len() as u32,
            },
            Ok(false) => SenderEvent::Blocked,
            Err(error) => {
                // Answers that arrived before the end come first.
                link.ready = true;
                SenderEvent::Failed {
                    cause: error.to_string(),
                }
            }
        });
    }

    /// Offers the last batch to the kernel.
    pub(super) fn transmit(&mut self, sequence: u32, frame: Vec<u8>, now: Tick) {
        let batch = self.batches.back().map_or(&[][..], |batch| &batch.1);
        let Some(link) = &mut self.link else {
            return;
        };
        let event = match socket::lend(batch, |fds| link.packets.send(&frame, fds)) {
            Ok(true) => {
                self.sent += 1;
                SenderEvent::Sent {
                    // Bounded by the format.
                    count: batch.len() as u32,
                }
            }
            Ok(false) => {
                self.staged = Some((frame, now + HANDOVER_RETRY));
                SenderEvent::Blocked
            }
            Err(packets::Error::Closed) => {
                // Answers that arrived before the end come first.
                link.ready = true;
                self.staged = Some((frame, now + HANDOVER_RETRY));
                SenderEvent::Blocked
            }
            Err(error) => SenderEvent::Failed {
                cause: format!("a batch could not be sent: {error}"),
            },
        };
        if sequence == FIRST && matches!(event, SenderEvent::Sent { .. }) {
            fault::point("sender.sent");
        }
        self.machine.handle(event);
    }

    pub(super) fn is_due(&self, now: Tick) -> bool {
        self.staged.as_ref().is_some_and(|(_, retry)| *retry <= now)
    }
}

/// The connections of a part.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// To be chosen in the next turn.
    Pending(Part),
    /// The remaining ones, by number and generation, in migration order.
    Made(VecDeque<(u32, u32)>),
}

impl Chosen {
    pub(super) const fn pending(part: Part) -> Self {
        Self::Pending(part)
    }

    /// Returns whether a turn would choose connections or send a batch.
    pub(super) fn waits(&self) -> bool {
        match self {
            Self::Pending(_) => true,
            Self::Made(left) => !left.is_empty(),
        }
    }

    /// Returns the first `most` of the remaining ones.
    pub(super) fn next(&self, most: usize) -> Vec<u32> {
        match self {
            Self::Pending(_) => Vec::new(),
            Self::Made(left) => left.iter().take(most).map(|(fd, _)| *fd).collect(),
        }
    }
}
