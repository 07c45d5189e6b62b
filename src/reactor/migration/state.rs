//! The state of migrating connections: one handover to another worker and one from another.
//!
//! It must not know the event loop: `outgoing` and `incoming` execute the handovers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::channel::packets::{self, Packets};
use crate::config::HANDOVER_RETRY;
use crate::fault;
use crate::handover::Part;
use crate::handover::machine::{Receiver, Sender, SenderEvent};
use crate::handover::record::{Message, Packet};
use crate::memory::transit::{Batch, Departure};
use crate::sys::{fd, socket};
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

    /// Returns the link that a dead process had at descriptor `number`.
    ///
    /// # Errors
    /// There is none, or what `epoll_ctl` returned.
    pub(super) fn resumed(number: u32, token: Token, registry: &Registry) -> io::Result<Self> {
        let socket = fd::inherited_link(number).ok_or(io::ErrorKind::NotFound)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        socket::watch_again(socket.as_raw_fd(), registry, token, interest)?;
        Ok(Self {
            packets: Packets::over(socket),
            token,
            ready: true,
        })
    }

    /// Returns its descriptor number.
    pub(super) fn number(&self) -> u32 {
        self.packets.as_fd().as_raw_fd().cast_unsigned()
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
    /// Batches that are not settled.
    pub(super) batches: VecDeque<Batch>,
    /// The batch that the kernel has not accepted.
    pub(super) staged: Option<Vec<u8>>,
    /// When a batch that the kernel has not accepted is offered again.
    pub(super) retry: Option<Tick>,
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
    /// The last batch whose resolution was stored.
    pub(super) resolved: u32,
    /// Whether another process began it, which may have read answers and not acted on them.
    pub(super) is_resumed: bool,
    /// Whether the other worker is gone.
    pub(super) is_peer_gone: bool,
}

impl Outgoing {
    pub(super) fn new(link: Link, last: bool, part: Option<Chosen>) -> Self {
        Self {
            link: Some(link),
            machine: Sender::default(),
            batches: VecDeque::new(),
            staged: None,
            retry: None,
            cursor: 0,
            last,
            part,
            moving: 0,
            moved: 0,
            stuck: BTreeMap::new(),
            sent: 0,
            settled: 0,
            resolved: 0,
            is_resumed: false,
            is_peer_gone: false,
        }
    }

    /// Returns the handover that another process began: `batches` were in flight, after batch
    /// `resolved`, with which `moved` connections had migrated. Of a part, no more is sent.
    pub(super) fn resumed(
        link: Option<Link>,
        departure: Departure,
        batches: Vec<Batch>,
        (resolved, moved): (u32, u32),
    ) -> Self {
        let in_flight = batches.iter().map(|batch| {
            // The last place is resolved last.
            let places = batch.connections.last().map_or(0, |(place, _)| *place);
            (batch.sequence, u32::from(places) + 1)
        });
        let in_flight: Vec<(u32, u32)> = in_flight.collect();
        let last = in_flight.last().map_or(resolved, |last| last.0);
        let moving = batches.iter().map(|batch| batch.connections.len());
        Self {
            link,
            machine: Sender::resumed(last, &in_flight),
            // Bounded by the number of descriptors.
            moving: moving.sum::<usize>() as u32,
            batches: batches.into(),
            staged: None,
            retry: None,
            cursor: 0,
            last: departure.last,
            part: departure.part.then(|| Chosen::Made(VecDeque::new())),
            moved,
            stuck: BTreeMap::new(),
            sent: last.into(),
            settled: resolved.into(),
            resolved,
            is_resumed: true,
            is_peer_gone: false,
        }
    }

    pub(super) fn batch(&mut self, sequence: u32) -> Vec<(u8, u32)> {
        let at = self.batches.iter().position(|it| it.sequence == sequence);
        at.and_then(|at| self.batches.remove(at))
            .map_or_else(Vec::new, |batch| batch.connections)
    }

    /// Returns whether batch `sequence` is the oldest of those that are not settled.
    pub(super) fn is_oldest(&self, sequence: u32) -> bool {
        let oldest = self.batches.front();
        oldest.is_some_and(|batch| batch.sequence == sequence)
    }

    /// Offers batch `sequence` again, which `frame` contains.
    pub(super) fn repeat(&mut self, sequence: u32, frame: &[u8], now: Tick) {
        let batch = self.batches.iter().find(|it| it.sequence == sequence);
        let (Some(batch), Some(link)) = (batch, &mut self.link) else {
            return;
        };
        let fds = batch.descriptors();
        let sent = socket::lend(&fds, |fds| link.packets.send(frame, fds));
        self.retry = (!matches!(sent, Ok(true))).then_some(now + HANDOVER_RETRY);
        self.machine.handle(match sent {
            Ok(true) => SenderEvent::Sent {
                // Bounded by the format.
                count: fds.len() as u32,
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
        let fds = self
            .batches
            .back()
            .map_or_else(Vec::new, Batch::descriptors);
        let Some(link) = &mut self.link else {
            return;
        };
        self.retry = None;
        let event = match socket::lend(&fds, |fds| link.packets.send(&frame, fds)) {
            Ok(true) => {
                self.sent += 1;
                SenderEvent::Sent {
                    // Bounded by the format.
                    count: fds.len() as u32,
                }
            }
            Ok(false) => {
                self.staged = Some(frame);
                self.retry = Some(now + HANDOVER_RETRY);
                SenderEvent::Blocked
            }
            Err(packets::Error::Closed) => {
                // Answers that arrived before the end come first.
                link.ready = true;
                self.staged = Some(frame);
                self.retry = Some(now + HANDOVER_RETRY);
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
        self.retry.is_some_and(|retry| retry <= now)
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
