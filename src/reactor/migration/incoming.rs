//! The receiving side of a handover: executes the decisions of `Receiver`.
//!
//! Invariants: a connection is adopted unless that is impossible: limits apply to new clients only.
//! The descriptor of one that is not adopted is closed, which its peer does not notice, and is no
//! longer watched, because its sender has the same socket; no connection is served before its
//! acknowledgement is sent.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::super::accept::Gate;
use super::super::{Reactor, pack_token};
use super::state::{Incoming, Link};
use crate::channel::packets;
use crate::config::{HANDOVER_COUNT_TIMEOUT, HANDOVER_MESSAGE_BYTES, HANDOVER_TURN};
use crate::fault;
use crate::handover::machine::{Answer, Receiver, ReceiverAction, ReceiverEvent};
use crate::handover::record::{self, Left, Message, Packet, Record};
use crate::log::event;
use crate::memory::transit::{Answered, Source, StoredAnswer};
use crate::sys::socket::Socket;
use uppercased_ctl::clock;
use uppercased_ctl::metrics::Counter;

/// The result of adopting a batch.
struct AdoptedBatch {
    /// Recorded and watched.
    batch: Vec<u32>,
    left: Option<Left>,
}

impl Reactor {
    /// Starts adopting connections from the socket `link`: `expected` of them, as far as is known.
    /// Places are reserved for them, so that accepting cannot use those; a worker that does not
    /// accept yet waits until the sender has sent the number.
    ///
    /// A worker that has stopped accepting for good refuses them at once.
    ///
    /// # Errors
    /// As [`Reactor::hand_over`].
    pub fn take_over(&mut self, link: OwnedFd, expected: u32) -> io::Result<()> {
        if self.incoming.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let link = Link::new(link, self.next_token(), self.poll.registry())?;
        let mut incoming = Box::new(Incoming {
            link,
            machine: Receiver::default(),
            buffer: vec![0; HANDOVER_MESSAGE_BYTES],
            answered: 0,
        });
        self.memory.begin_arrival(incoming.link.number(), expected);
        self.memory.note_answered(0);
        if self.finishing || self.gate == Gate::Ended {
            // At once: the sender still has every option.
            let cause = "the worker is leaving itself".to_owned();
            incoming.machine.handle(ReceiverEvent::Unfit { cause });
        } else {
            self.expected = expected;
            self.pause_at_limit();
            self.counts_until = (!self.accepting).then_some(self.now + HANDOVER_COUNT_TIMEOUT);
        }
        self.incoming = Some(incoming);
        Ok(())
    }

    /// Adopts batches within this turn's time.
    pub(crate) fn receive_connections(&mut self) {
        let Some(mut incoming) = self.incoming.take() else {
            return;
        };
        let until = clock::now() + HANDOVER_TURN;
        if self.counts_until.is_some_and(|until| until <= self.now) {
            event!(takeover_not_counted);
            self.accept_while_expecting(self.expected);
        }
        loop {
            if self.receive_batch(&mut incoming) {
                let adopted = incoming.machine.adopted();
                event!(takeover_finished, connections = adopted);
                self.accept_while_expecting(self.expected);
                self.expect_no_more();
                return self.close_incoming(incoming);
            }
            if !incoming.link.ready || clock::now() >= until {
                break;
            }
        }
        self.incoming = Some(incoming);
        self.pause_at_limit();
    }

    /// Accepts again, while `coming` connections are still to arrive.
    fn accept_while_expecting(&mut self, coming: u32) {
        self.expected = coming;
        let was = self.is_accepting();
        self.counts_until = None;
        self.update_watches(was);
        self.pause_at_limit();
    }

    /// Closes the link of a handover to here.
    pub(super) fn close_incoming(&mut self, incoming: Box<Incoming>) {
        self.memory.set_unnamed(Source::Link, true);
        self.memory.end_arrival();
        drop(incoming);
        self.memory.set_unnamed(Source::Link, false);
    }

    /// Handles the next packet, if there is one. Returns whether the handover is over.
    fn receive_batch(&mut self, incoming: &mut Incoming) -> bool {
        self.memory.set_unnamed(Source::Link, true);
        let mut descriptors = Vec::new();
        if incoming.link.ready {
            match incoming.link.receive(&mut incoming.buffer) {
                Ok(None) => {}
                Ok(Some(packet)) => {
                    let event = decode(incoming, &packet);
                    descriptors = packet.descriptors;
                    incoming.machine.handle(event);
                }
                Err(error) => {
                    if !matches!(error, packets::Error::Closed) {
                        event!(handover_socket_failed, %error);
                    }
                    incoming.machine.handle(ReceiverEvent::PeerGone);
                }
            }
        }
        let is_over = self.execute_received(incoming, descriptors);
        self.memory.set_unnamed(Source::Link, false);
        is_over
    }

    /// Executes what the receiver requests, with the `descriptors` of the packet. Returns whether
    /// the handover is over.
    pub(super) fn execute_received(
        &mut self,
        incoming: &mut Incoming,
        descriptors: Vec<OwnedFd>,
    ) -> bool {
        let mut descriptors = Some(descriptors);
        while let Some(action) = incoming.machine.poll_action() {
            let over = match action {
                ReceiverAction::Expect { coming } => {
                    self.accept_while_expecting(coming);
                    false
                }
                ReceiverAction::Adopt { connections } => {
                    self.adopt(incoming, descriptors.take(), connections)
                }
                // The machine requests it only after an adoption, which handles it.
                ReceiverAction::Acknowledge { .. } => false,
                ReceiverAction::Decline { sequence, cause } => {
                    descriptors = None;
                    event!(takeover_batch_declined, error = %cause);
                    self.answer(incoming, sequence, Message::Declined { cause })
                }
                ReceiverAction::Refuse { sequence, cause } => {
                    descriptors = None;
                    event!(takeover_refused, error = %cause);
                    self.answer(incoming, sequence, Message::Refused { cause })
                }
                ReceiverAction::Repeat { sequence, answer } => {
                    descriptors = None;
                    // It was counted when it was given first.
                    !incoming.link.offers(sequence, answer.message())
                }
                ReceiverAction::RequestAgain { after } => {
                    !incoming.link.offers(after, Message::Again)
                }
                ReceiverAction::Drop => {
                    descriptors = None;
                    false
                }
                ReceiverAction::Finish { .. } => true,
            };
            if over {
                return true;
            }
        }
        false
    }

    /// Answers a packet. Returns true if that is impossible: the sender must then see the socket
    /// close.
    fn answer(&mut self, incoming: &mut Incoming, sequence: u32, message: Message) -> bool {
        self.store_answer(incoming);
        incoming.answered += 1;
        self.memory.note_answered(incoming.answered);
        !incoming.link.offers(sequence, message)
    }

    /// Stores what the process that continues this one must know of the next answer.
    fn store_answer(&mut self, incoming: &Incoming) {
        let received = incoming.machine.received();
        let answered = Answered {
            last_sequence: received.last_sequence,
            adopted: received.adopted,
            is_refusing: received.is_refusing,
        };
        let latest = received.answers.back();
        let latest = latest.filter(|(sequence, _)| *sequence == received.last_sequence);
        let answer = latest.map(|(sequence, Answer { taken, left })| StoredAnswer {
            sequence: *sequence,
            taken: *taken,
            left: left.clone(),
        });
        self.memory.store_answer(answered, answer.as_ref());
    }

    /// Adopts as much of a batch as it can, acknowledges it and begins to serve it. Returns whether
    /// the handover is over.
    fn adopt(
        &mut self,
        incoming: &mut Incoming,
        descriptors: Option<Vec<OwnedFd>>,
        connections: Vec<Record>,
    ) -> bool {
        let first = incoming.machine.adopted() == 0;
        if first {
            fault::point("receiver.received");
        }
        let before = self.memory.answered();
        self.memory.begin_adoption(incoming.machine.last_sequence());
        let AdoptedBatch { batch, left } =
            self.adopt_batch(descriptors.unwrap_or_default(), connections);
        if let Some(left) = &left {
            let (count, cause) = (left.places.len(), left.cause.as_str());
            event!(takeover_incomplete, connections = count, error = cause);
        }
        if first {
            fault::point("receiver.adopted");
        }
        // Both are bounded by the batch.
        let (count, stay) = (
            batch.len() as u32,
            left.as_ref().map_or(0, |it| it.places.len()),
        );
        incoming
            .machine
            .handle(ReceiverEvent::Adopted { taken: count, left });
        let Some(ReceiverAction::Acknowledge {
            sequence,
            taken,
            left,
        }) = incoming.machine.poll_action()
        else {
            self.release_batch(&batch);
            return true;
        };
        let message = Message::Acknowledged { taken, left };
        let frame = Packet { sequence, message }.encode();
        self.store_answer(incoming);
        match incoming.link.packets.send(&frame, &[]) {
            // A sender that is gone no longer owns them.
            Ok(true) | Err(packets::Error::Closed) => {}
            refused @ (Ok(false) | Err(packets::Error::System { .. })) => {
                // The sender will see the socket close without an acknowledgement, and keep them.
                let error =
                    refused.map_or_else(|error| error.to_string(), |_| "no room".to_owned());
                event!(takeover_batch_returned, error);
                self.memory.store_answer(before, None);
                self.release_batch(&batch);
                return true;
            }
        }
        incoming.answered += 1;
        self.memory.note_answered(incoming.answered);
        if first {
            fault::point("receiver.acknowledged");
        }
        self.memory.count(Counter::MigratedIn, u64::from(count));
        self.expected = self.expected.saturating_sub(count + stay as u32);
        self.open += count;
        for fd in batch {
            self.count_source(fd);
            self.memory.record_mut(fd).take_ownership();
            self.log_migrated(fd);
            self.resume_connection(fd);
        }
        false
    }

    fn log_migrated(&self, fd: u32) {
        let connection = Socket::numbered(fd);
        let peer = self.memory.record(fd).peer();
        event!(connection_migrated, connection = connection.cookie(), %peer, fd);
    }

    /// Frees the places reserved for connections that did not arrive. Without the usual hysteresis:
    /// no connection had them.
    fn expect_no_more(&mut self) {
        let kept = std::mem::take(&mut self.expected);
        let at_limit = matches!(self.gate, Gate::AtLimit | Gate::Freed(_));
        if kept > 0 && at_limit && self.open < self.max_connections {
            self.set_gate(Gate::Open);
        }
    }

    /// Records and watches the connections of a batch, as many as possible.
    fn adopt_batch(&mut self, descriptors: Vec<OwnedFd>, connections: Vec<Record>) -> AdoptedBatch {
        let mut batch = Vec::with_capacity(connections.len());
        let mut places = Vec::new();
        let mut first_cause = None;
        let mut descriptors = descriptors.into_iter();
        // A batch has fewer connections than a byte has values.
        for (place, connection) in (0..=u8::MAX).zip(connections) {
            // Without one, the kernel could pass no more: so neither has any of the rest.
            let descriptor = descriptors.next().ok_or_else(|| {
                "this process has no descriptor left; is the descriptor limit reached?".to_owned()
            });
            match descriptor.and_then(|descriptor| self.adopt_connection(descriptor, connection)) {
                Ok(fd) => batch.push(fd),
                Err(cause) => {
                    places.push(place);
                    first_cause.get_or_insert(cause);
                }
            }
        }
        let left = first_cause.map(|cause| Left { places, cause });
        AdoptedBatch { batch, left }
    }

    /// Records and watches one connection; on failure closes its descriptor and returns the cause.
    fn adopt_connection(&mut self, descriptor: OwnedFd, connection: Record) -> Result<u32, String> {
        let frozen = connection.map_err(|what| format!("its record cannot be read: {what}"))?;
        // Owned until it is recorded: a failure before that closes it.
        let fd = descriptor.as_raw_fd().cast_unsigned();
        let generation = self.next_generation();
        self.memory
            .arrive(fd, generation, &frozen)
            .map_err(|error| error.to_string())?;
        let socket = Socket::adopt(descriptor);
        let token = pack_token(fd, generation);
        let watched =
            fault::fail("receiver.watch").and_then(|()| socket.watch(self.poll.registry(), token));
        watched.map_err(|error| {
            self.release_batch(&[fd]);
            format!("it cannot be watched: {error}")
        })?;
        Ok(fd)
    }

    /// Releases the recorded part of a batch. The watch first: its sender has the same sockets.
    pub(super) fn release_batch(&mut self, batch: &[u32]) {
        for &fd in batch {
            let socket = Socket::numbered(fd);
            // Fails for the one whose watch failed.
            let _ = socket.unwatch(self.poll.registry());
            let mut record = self.memory.record_mut(fd);
            record.end_handover();
            socket.close();
            record.end_close();
        }
    }
}

/// Decodes a packet into an event for the receiver.
fn decode(incoming: &Incoming, packet: &packets::Packet) -> ReceiverEvent {
    let frame = &incoming.buffer[..packet.length];
    let decoded = fault::fail("receiver.decode")
        .map_err(|error| error.to_string())
        .and_then(|()| Packet::decode(frame).map_err(|error| error.to_string()));
    match decoded {
        Ok(read) => ReceiverEvent::Received {
            packet: read,
            descriptors: packet.descriptors.len(),
        },
        Err(cause) => match record::sequence_of_batch(frame) {
            Some(sequence) => ReceiverEvent::Unreadable { sequence, cause },
            None => ReceiverEvent::Unfit { cause },
        },
    }
}
