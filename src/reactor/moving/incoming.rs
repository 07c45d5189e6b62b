//! The side of a handover that connections come to: carries out what `Receiver` decides.
//!
//! Invariants: descriptors are owned values until their batch is recorded as a whole, so whatever
//! goes wrong before that closes them, which the peers do not notice; what is given back is not
//! watched any more, for its sender has the same sockets; nothing is served before its
//! acknowledgement is sent.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::super::accept::Gate;
use super::super::{Reactor, pack_token};
use super::Link;
use crate::channel::packets;
use crate::config::HANDOVER_MESSAGE_BYTES;
use crate::fault;
use crate::handover::machine::{Receiver, ReceiverAction, ReceiverEvent};
use crate::handover::record::{self, Message, Packet};
use crate::memory::frozen::Frozen;
use crate::metrics::Counter;
use crate::sys::socket::Socket;

/// A handover from another worker.
#[derive(Debug)]
pub(in crate::reactor) struct Incoming {
    pub(super) link: Link,
    machine: Receiver,
    buffer: Vec<u8>,
    /// The format that is read.
    version: u16,
}

impl Reactor {
    /// Begins to take in what comes by the socket `link`: `expected` connections, as far as is
    /// known. Places are kept for them, so that accepting cannot take those first.
    ///
    /// A worker that accepts no more, for good, refuses them at once.
    ///
    /// # Errors
    /// As [`Reactor::hand_over`].
    pub fn take_over(&mut self, link: OwnedFd, expected: u32) -> io::Result<()> {
        if self.incoming.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let link = Link::new(link, self.next_token(), self.poll.registry())?;
        let version = fault::value("handover_version").and_then(|text| text.parse().ok());
        let mut incoming = Box::new(Incoming {
            link,
            machine: Receiver::default(),
            buffer: vec![0; HANDOVER_MESSAGE_BYTES],
            version: version.unwrap_or(record::VERSION),
        });
        if self.finishing || self.gate == Gate::Ended {
            // Told at once: the sender still has every choice.
            let cause = "the worker is leaving itself".to_owned();
            incoming.machine.handle(ReceiverEvent::Unfit { cause });
        } else {
            self.expected = expected;
            self.pause_at_limit();
        }
        self.incoming = Some(incoming);
        Ok(())
    }

    /// Takes the next batch in, if there is one.
    pub(in crate::reactor) fn receive_connections(&mut self) {
        let Some(mut incoming) = self.incoming.take() else {
            return;
        };
        let mut descriptors = Vec::new();
        if incoming.link.ready {
            match incoming.link.receive(&mut incoming.buffer) {
                Ok(None) => {}
                Ok(Some(packet)) => {
                    let event = understood(&incoming, &packet);
                    descriptors = packet.descriptors;
                    incoming.machine.handle(event);
                }
                Err(error) => {
                    if !matches!(error, packets::Error::Closed) {
                        tracing::error!(%error, "a handover's socket failed");
                    }
                    incoming.machine.handle(ReceiverEvent::PeerGone);
                }
            }
        }
        let mut descriptors = Some(descriptors);
        let mut complete = false;
        while let Some(action) = incoming.machine.poll_action() {
            let over = match action {
                ReceiverAction::Adopt { connections } => {
                    self.adopt(&mut incoming, descriptors.take(), &connections)
                }
                // The machine asks for it in answer to an adoption only, and then it comes there.
                ReceiverAction::Acknowledge { .. } => false,
                ReceiverAction::Refuse { sequence, cause } => {
                    descriptors = None;
                    tracing::warn!(%cause, "refused to take connections over");
                    let message = Message::Refused { cause };
                    let frame = Packet { sequence, message }.encode();
                    // Without its refusal the sender must see an end instead.
                    !matches!(incoming.link.packets.send(&frame, &[]), Ok(true))
                }
                ReceiverAction::Finish { complete: all } => {
                    complete = all;
                    true
                }
            };
            if over {
                let adopted = incoming.machine.adopted();
                tracing::info!(connections = adopted, complete, "taken over");
                self.expect_no_more();
                return;
            }
        }
        self.incoming = Some(incoming);
    }

    /// Takes a batch in as a whole, acknowledges it and begins to serve it. True if the handover is
    /// over with that.
    fn adopt(
        &mut self,
        incoming: &mut Incoming,
        descriptors: Option<Vec<OwnedFd>>,
        connections: &[Frozen],
    ) -> bool {
        let first = incoming.machine.adopted() == 0;
        if first {
            fault::point("receiver.received");
        }
        let batch = match self.record_all(descriptors.unwrap_or_default(), connections) {
            Ok(batch) => batch,
            Err(cause) => {
                incoming.machine.handle(ReceiverEvent::NotAdopted { cause });
                return false;
            }
        };
        if first {
            fault::point("receiver.adopted");
        }
        incoming.machine.handle(ReceiverEvent::Adopted);
        let Some(ReceiverAction::Acknowledge { sequence, count }) = incoming.machine.poll_action()
        else {
            self.undo(&batch);
            return true;
        };
        let message = Message::Acknowledged { count };
        let frame = Packet { sequence, message }.encode();
        match incoming.link.packets.send(&frame, &[]) {
            // A sender that is gone has no claim to them any more.
            Ok(true) | Err(packets::Error::Closed) => {}
            refused @ (Ok(false) | Err(packets::Error::System { .. })) => {
                // The sender will see an end without an acknowledgement, and keep them.
                tracing::error!(?refused, "a batch cannot be acknowledged: it is given back");
                self.undo(&batch);
                return true;
            }
        }
        if first {
            fault::point("receiver.acknowledged");
        }
        self.memory.count(Counter::MovedIn, u64::from(count));
        self.expected = self.expected.saturating_sub(count);
        self.open += count;
        for fd in batch {
            self.arrived(fd);
            self.memory.keep(fd);
            self.welcome(fd);
        }
        self.pause_at_limit();
        false
    }

    /// Gives the places back that were kept for connections that did not come. Without the usual
    /// hysteresis: nobody had them.
    fn expect_no_more(&mut self) {
        let kept = std::mem::take(&mut self.expected);
        let at_limit = matches!(self.gate, Gate::AtLimit | Gate::Freed(_));
        if kept > 0 && at_limit && self.open < self.max_connections {
            self.set_gate(Gate::Open);
        }
    }

    /// Records and watches every connection of a batch; or none, and why.
    fn record_all(
        &mut self,
        descriptors: Vec<OwnedFd>,
        connections: &[Frozen],
    ) -> Result<Vec<u32>, String> {
        let (count, open, max) = (connections.len(), self.open, self.max_connections);
        if count > (max - open.min(max)) as usize {
            return Err(format!(
                "{count} connections beside the {open} open ones would be more than the limit of {max}"
            ));
        }
        let mut batch = Vec::with_capacity(count);
        for (descriptor, frozen) in descriptors.into_iter().zip(connections) {
            // An owner until it is recorded: what is refused closes it.
            let fd = descriptor.as_raw_fd().cast_unsigned();
            let generation = self.next_generation();
            self.taken_over = generation;
            let recorded = self.memory.arrive(fd, generation, frozen);
            if let Err(error) = recorded {
                self.undo(&batch);
                return Err(error.to_string());
            }
            let socket = Socket::adopt(descriptor);
            batch.push(fd);
            if let Err(error) = socket.watch(self.poll.registry(), pack_token(fd, generation)) {
                self.undo(&batch);
                return Err(format!("a connection cannot be watched: {error}"));
            }
        }
        Ok(batch)
    }

    /// Gives back what was recorded of a batch. The watch first: its sender has the same sockets.
    fn undo(&mut self, batch: &[u32]) {
        for &fd in batch {
            let socket = Socket::numbered(fd);
            // Fails for the one whose watch failed.
            let _ = socket.unwatch(self.poll.registry());
            self.memory.handed(fd);
            socket.close();
            self.memory.closed(fd);
        }
    }
}

/// What a packet is to a receiver.
fn understood(incoming: &Incoming, packet: &packets::Packet) -> ReceiverEvent {
    if packet.truncated {
        let got = packet.descriptors.len();
        let cause = format!(
            "a batch came in part, with {got} descriptors; is the descriptor limit reached?"
        );
        return ReceiverEvent::Unfit { cause };
    }
    match Packet::decode(&incoming.buffer[..packet.length], incoming.version) {
        Ok(read) => ReceiverEvent::Heard {
            packet: read,
            descriptors: packet.descriptors.len(),
        },
        Err(error) => ReceiverEvent::Unfit {
            cause: error.to_string(),
        },
    }
}
