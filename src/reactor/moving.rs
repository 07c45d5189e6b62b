//! Connections on their way to another worker, or from it: carries out what `handover` decides.
//!
//! Invariants:
//! - a connection that is on its way is marked as moving in its record, and is neither watched nor
//!   in the ready queue nor has it a deadline: nothing here touches it;
//! - one batch is sent and one taken in each turn, so that serving goes on between them;
//! - descriptors that were received are owned values until their batch is recorded as a whole, so
//!   whatever goes wrong before that closes them, which the peers do not notice;
//! - after the acknowledgement the sender closes without reading and without ending a stream;
//! - every acknowledgement there is has been read before the receiver's end is believed.
//!
//! It must not know of workers and messages: who moves where, and what comes after, is the
//! worker's to say.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::accept::Gate;
use super::{Reactor, pack_token};
use crate::channel::packets::{self, Packets};
use crate::clock::Tick;
use crate::config::{HANDOVER_BATCH_CONNECTIONS, HANDOVER_MESSAGE_BYTES, HANDOVER_RETRY};
use crate::connection::Outcome;
use crate::fault;
use crate::handover::machine::{
    End, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
};
use crate::handover::record::{self, BatchEncoder, CAUSE_MAX_BYTES, Message, Packet};
use crate::memory::frozen::Frozen;
use crate::memory::layout::Flags;
use crate::metrics::{CloseReason, Counter, PauseCause};
use crate::sys::socket::{self, Socket};

/// An answer is a header and at most a cause.
const ANSWER_MAX_BYTES: usize = CAUSE_MAX_BYTES + 64;
/// The number of the first batch, for the fault points.
const FIRST: u32 = 1;

/// What came of handing over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Connections that the other worker has.
    pub moved: u32,
    /// Why it is over.
    pub end: End,
}

/// One end of a handover's socket pair.
#[derive(Debug)]
pub(super) struct Link {
    packets: Packets,
    token: Token,
    /// There may be something to receive.
    ready: bool,
}

impl Link {
    fn new(socket: OwnedFd, token: Token, registry: &Registry) -> io::Result<Self> {
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

    /// The next packet, or why there is none; `None` if there is none now.
    fn receive(&mut self, into: &mut [u8]) -> Result<Option<packets::Packet>, packets::Error> {
        let received = self.packets.receive(into);
        self.ready = matches!(received, Ok(Some(_)));
        received
    }
}

/// A handover to another worker.
#[derive(Debug)]
pub(super) struct Outgoing {
    link: Option<Link>,
    machine: Sender,
    /// Batches that are not settled: number and connections.
    batches: VecDeque<(u32, Vec<u32>)>,
    /// The batch that the kernel has not taken, and when it is offered again.
    staged: Option<(Vec<u8>, Tick)>,
    /// Where the search for connections goes on.
    cursor: u32,
    /// Nobody will accept from these listeners after this worker.
    last: bool,
    moving: u32,
    moved: u32,
}

impl Outgoing {
    fn batch(&mut self, sequence: u32) -> Vec<u32> {
        let at = self.batches.iter().position(|batch| batch.0 == sequence);
        at.and_then(|at| self.batches.remove(at))
            .map_or_else(Vec::new, |batch| batch.1)
    }

    fn is_due(&self, now: Tick) -> bool {
        self.staged.as_ref().is_some_and(|(_, retry)| *retry <= now)
    }
}

/// A handover from another worker.
#[derive(Debug)]
pub(super) struct Incoming {
    link: Link,
    machine: Receiver,
    buffer: Vec<u8>,
    /// The format that is read.
    version: u16,
}

impl Reactor {
    /// Begins to hand every connection over by the socket `link`, and stops accepting; the
    /// listeners are kept until it is clear how this ends. If nobody else accepts from them
    /// (`last`), accepting goes on until no connection is left, and what stands in the queues then
    /// moves as well. What comes of it is told by [`Reactor::handed_over`].
    ///
    /// # Errors
    /// A handover is under way already, or what `epoll_ctl` returned; nothing has changed then, and
    /// the socket is closed.
    pub fn hand_over(&mut self, link: OwnedFd, last: bool) -> io::Result<()> {
        if self.outgoing.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let link = Link::new(link, self.next_token(), self.poll.registry())?;
        if !last {
            self.hold_accepting();
        }
        self.outgoing = Some(Box::new(Outgoing {
            link: Some(link),
            machine: Sender::default(),
            batches: VecDeque::new(),
            staged: None,
            cursor: 0,
            last,
            moving: 0,
            moved: 0,
        }));
        Ok(())
    }

    /// Begins to take in what comes by the socket `link`.
    ///
    /// # Errors
    /// As [`Reactor::hand_over`].
    pub fn take_over(&mut self, link: OwnedFd) -> io::Result<()> {
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
        if self.finishing {
            // Told at once: the sender still has every choice.
            let cause = "the worker is stopping".to_owned();
            incoming.machine.handle(ReceiverEvent::Unfit { cause });
        }
        self.incoming = Some(incoming);
        Ok(())
    }

    /// Sends no further batch. What is on its way is settled first; the rest stays.
    pub fn stop_handing_over(&mut self) {
        if let Some(mut outgoing) = self.outgoing.take() {
            outgoing.machine.handle(SenderEvent::Stop);
            self.carry_out(&mut outgoing);
            self.outgoing = (!self.concludes(&outgoing)).then_some(outgoing);
        }
    }

    /// Whether connections may still go or come: the process must not end yet.
    #[must_use]
    pub const fn is_moving(&self) -> bool {
        self.outgoing.is_some() || self.incoming.is_some()
    }

    /// What came of [`Reactor::hand_over`], once, when it is over; not if that was by a stop.
    pub const fn handed_over(&mut self) -> Option<HandedOver> {
        self.handed_over.take()
    }

    /// Notes that there may be something to receive by the socket that is watched as `token`.
    pub(super) fn moving_is_ready(&mut self, token: Token) {
        let outgoing = self.outgoing.as_mut().and_then(|one| one.link.as_mut());
        let incoming = self.incoming.as_mut().map(|one| &mut one.link);
        let mut links = outgoing.into_iter().chain(incoming);
        if let Some(link) = links.find(|link| link.token == token) {
            link.ready = true;
        }
    }

    /// When moving goes on by itself, if it does.
    pub(super) fn moving_due(&self) -> Option<Tick> {
        let incoming = self.incoming.as_ref().is_some_and(|one| one.link.ready);
        let Some(outgoing) = &self.outgoing else {
            return incoming.then_some(self.now);
        };
        let waiting = self.open > outgoing.moving;
        let ready = outgoing.link.as_ref().is_some_and(|link| link.ready);
        if incoming || ready || (waiting && outgoing.machine.has_room()) {
            return Some(self.now);
        }
        outgoing.staged.as_ref().map(|(_, retry)| *retry)
    }

    /// Sends what can be sent in this turn, and settles what has been answered.
    pub(super) fn send_connections(&mut self) {
        let Some(mut outgoing) = self.outgoing.take() else {
            return;
        };
        let was_ready = outgoing.link.as_ref().is_some_and(|link| link.ready);
        self.hear_answers(&mut outgoing);
        self.carry_out(&mut outgoing);
        if !outgoing.machine.is_blocked() || was_ready || outgoing.is_due(self.now) {
            let mut waiting = self.open - outgoing.moving;
            let mut complete = true;
            if waiting == 0 && outgoing.last {
                complete = self.empty_queues();
                waiting = self.open - outgoing.moving;
            }
            let event = SenderEvent::Turn { waiting, complete };
            outgoing.machine.handle(event);
            self.carry_out(&mut outgoing);
        }
        self.outgoing = (!self.concludes(&outgoing)).then_some(outgoing);
    }

    /// Takes the next batch in, if there is one.
    pub(super) fn receive_connections(&mut self) {
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
                return;
            }
        }
        self.incoming = Some(incoming);
    }

    /// Gives up what is on its way at the end of a stop's time. It is closed without a reset: the
    /// other worker may have it.
    pub(super) fn abandon_moving(&mut self) {
        self.incoming = None;
        let Some(mut outgoing) = self.outgoing.take() else {
            return;
        };
        for (_, batch) in std::mem::take(&mut outgoing.batches) {
            for fd in batch {
                self.memory
                    .count(Counter::Closed(CloseReason::DrainTimeout), 1);
                self.forget(fd);
            }
        }
    }

    /// Reads every answer there is.
    fn hear_answers(&mut self, outgoing: &mut Outgoing) {
        let mut buffer = [0; ANSWER_MAX_BYTES];
        while let Some(link) = outgoing.link.as_mut().filter(|link| link.ready) {
            let event = match link.receive(&mut buffer) {
                Ok(None) => return,
                Ok(Some(packet)) if packet.truncated => SenderEvent::Nonsense {
                    cause: "an answer came in part".to_owned(),
                },
                Ok(Some(packet)) => {
                    match Packet::decode(&buffer[..packet.length], record::VERSION) {
                        Ok(packet) => SenderEvent::Heard(packet),
                        Err(error) => SenderEvent::Nonsense {
                            cause: error.to_string(),
                        },
                    }
                }
                Err(packets::Error::Closed) => SenderEvent::PeerGone,
                Err(error) => {
                    tracing::error!(%error, "a handover's socket failed");
                    SenderEvent::PeerGone
                }
            };
            outgoing.machine.handle(event);
            self.carry_out(outgoing);
        }
    }

    fn carry_out(&mut self, outgoing: &mut Outgoing) {
        while let Some(action) = outgoing.machine.poll_action() {
            match action {
                SenderAction::Send { sequence } => {
                    let (frame, batch) = self.put_away(outgoing, sequence);
                    if sequence == FIRST {
                        fault::point("sender.frozen");
                    }
                    outgoing.batches.push_back((sequence, batch));
                    self.transmit(outgoing, sequence, frame);
                }
                SenderAction::Retry { sequence } => {
                    if let Some((frame, _)) = outgoing.staged.take() {
                        self.transmit(outgoing, sequence, frame);
                    }
                }
                SenderAction::Release { sequence } => {
                    if sequence == FIRST {
                        fault::point("sender.acknowledged");
                    }
                    self.release(outgoing, sequence);
                }
                SenderAction::TakeBack { sequence } => {
                    for fd in outgoing.batch(sequence) {
                        outgoing.moving -= 1;
                        self.take_up(fd);
                    }
                    outgoing.staged = None;
                }
                SenderAction::SendEnd { sequence } => {
                    let moved = outgoing.moved;
                    let message = Message::End { moved };
                    let frame = Packet { sequence, message }.encode();
                    if let Some(link) = &outgoing.link {
                        // For the other side's log; everything is settled without it.
                        let _ = link.packets.send(&frame, &[]);
                    }
                }
                SenderAction::Finish => outgoing.link = None,
            }
        }
    }

    /// Chooses connections, as many as fit a batch, and puts them away.
    fn put_away(&mut self, outgoing: &mut Outgoing, sequence: u32) -> (Vec<u8>, Vec<u32>) {
        let mut encoder = BatchEncoder::new(sequence);
        let mut batch = Vec::new();
        // From the cursor on, then from the beginning: lower numbers may have been taken since.
        let mut candidates: Vec<u32> = Vec::new();
        for first in [outgoing.cursor, 0] {
            let free = |&fd: &u32| !self.memory.head(fd).flags.has(Flags::MOVING);
            let found = self.memory.occupied_from(first).filter(free);
            candidates.extend(found.take(HANDOVER_BATCH_CONNECTIONS));
            if !candidates.is_empty() {
                break;
            }
        }
        for fd in candidates {
            // Nothing is being closed between two steps of a turn, so all of them are connections.
            let Some(frozen) = self.memory.freeze(fd) else {
                continue;
            };
            if !encoder.push(&frozen) {
                break;
            }
            // Fails only for what is not watched, and then there is nothing to end.
            let _ = Socket::numbered(fd).unwatch(self.poll.registry());
            self.timers.disarm(fd);
            self.memory.depart(fd);
            batch.push(fd);
            outgoing.cursor = fd + 1;
        }
        outgoing.moving += encoder.count();
        (encoder.finish(), batch)
    }

    fn transmit(&mut self, outgoing: &mut Outgoing, sequence: u32, frame: Vec<u8>) {
        let batch = outgoing.batches.back().map_or(&[][..], |batch| &batch.1);
        let Some(link) = &mut outgoing.link else {
            return;
        };
        let event = match socket::lend(batch, |fds| link.packets.send(&frame, fds)) {
            Ok(true) => SenderEvent::Sent,
            Ok(false) => {
                outgoing.staged = Some((frame, self.now + HANDOVER_RETRY));
                SenderEvent::Blocked
            }
            Err(packets::Error::Closed) => {
                // What the other end has said before it went comes first.
                link.ready = true;
                outgoing.staged = Some((frame, self.now + HANDOVER_RETRY));
                SenderEvent::Blocked
            }
            Err(error) => SenderEvent::Failed {
                cause: format!("a batch could not be sent: {error}"),
            },
        };
        if sequence == FIRST && event == SenderEvent::Sent {
            fault::point("sender.sent");
        }
        outgoing.machine.handle(event);
    }

    /// Forgets connections that are another worker's now.
    fn release(&mut self, outgoing: &mut Outgoing, sequence: u32) {
        let batch = outgoing.batch(sequence);
        let count = batch.len() as u32;
        for fd in batch {
            self.memory.count(Counter::MovedOut, 1);
            self.forget(fd);
        }
        outgoing.moving -= count;
        outgoing.moved += count;
        self.set_gate(self.gate.after_close(self.open, self.max_connections));
    }

    /// Closes a descriptor whose connection may be another worker's.
    fn forget(&mut self, fd: u32) {
        self.memory.handed(fd);
        Socket::numbered(fd).close();
        self.memory.closed(fd);
        self.open -= 1;
    }

    /// Serves a connection (again) that was on its way: what is ready is reported by watching it.
    fn take_up(&mut self, fd: u32) {
        self.memory.keep(fd);
        let token = pack_token(fd, self.memory.head(fd).generation);
        if let Err(error) = Socket::numbered(fd).watch(self.poll.registry(), token) {
            tracing::error!(%error, fd, "the event loop cannot watch a connection again");
            return self.close(fd, CloseReason::SystemError);
        }
        self.welcome(fd);
    }

    /// Gives a connection that was on its way its place in the loop.
    fn welcome(&mut self, fd: u32) {
        let flags = self.memory.head(fd).flags;
        if self.finishing {
            self.memory.set_flags(fd, flags.with(Flags::LAST_LOOK));
        }
        if self.memory.head(fd).flags.has(Flags::READABLE) {
            self.enqueue(fd);
        }
        self.conclude(fd, Outcome::Waiting);
    }

    /// Takes what stands in the accept queues; true if there is nothing any more, and the listeners
    /// are let go.
    fn empty_queues(&mut self) -> bool {
        let emptied = self.sweep();
        if emptied && self.open == 0 {
            self.let_go();
            return true;
        }
        false
    }

    /// Whether handing over is over, and what was to be done after it is done.
    fn concludes(&mut self, outgoing: &Outgoing) -> bool {
        let Some(end) = outgoing.machine.end() else {
            return false;
        };
        match end {
            End::Stopped => return true,
            End::PeerGone => self.begin_accepting(),
            // Once more where nobody else takes what is in the queues, and perhaps not now.
            End::Refused { .. } if outgoing.last && !self.sweep() => return false,
            End::Refused { .. } | End::Done => self.let_go(),
        }
        self.handed_over = Some(HandedOver {
            moved: outgoing.moved,
            end: end.clone(),
        });
        true
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
        for fd in batch {
            self.memory.keep(fd);
            self.open += 1;
            self.welcome(fd);
        }
        if self.open >= self.max_connections && self.gate == Gate::Open {
            self.pause(Gate::AtLimit, PauseCause::ConnectionLimit);
        }
        false
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
