//! The sending side of a handover: executes the decisions of `Sender`.
//!
//! Invariants: a batch is frozen as a whole before it is sent, the watch ended first; after the
//! acknowledgement its descriptors are closed without reading and without ending a stream; every
//! answer that has arrived is read before the receiver's end is acted on.

use std::io;
use std::os::fd::OwnedFd;

use super::super::{Reactor, pack_token};
use super::state::{Chosen, FIRST, Link, Outgoing};
use crate::channel::packets;
use crate::config::{HANDOVER_BATCH_CONNECTIONS, HANDOVER_TURN, HANDOVER_WINDOW};
use crate::fault;
use crate::handover::machine::{SenderAction, SenderEvent};
use crate::handover::record::{BatchEncoder, CAUSE_MAX_BYTES, Message, Packet};
use crate::handover::{HandedOver, HandoverEnd, Part};
use crate::log::event;
use crate::memory::layout::{Flags, State};
use crate::memory::transit::{Batch, Departed, Departure, Source};
use crate::sys::socket::Socket;
use uppercased_ctl::clock;
use uppercased_ctl::metrics::{CloseReason, Counter};

/// An answer is a header, at most a list of the connections that stay, and at most a cause.
const ANSWER_MAX_BYTES: usize = CAUSE_MAX_BYTES + HANDOVER_BATCH_CONNECTIONS + 64;

/// Answers read in one step: a correct receiver never sends more at once.
const ANSWERS_AT_ONCE: usize = HANDOVER_WINDOW + 1;

impl Reactor {
    /// Begins to hand over every connection by the socket `link`, and stops accepting; the
    /// listeners are kept until the result is known. If no other worker accepts from them (`last`),
    /// accepting continues until no connection is left, and the connections in the queues then
    /// migrate as well. [`Reactor::handed_over`] returns the result.
    ///
    /// # Errors
    /// A handover is in progress already, or what `epoll_ctl` returned; nothing has changed then,
    /// and the socket is closed.
    pub fn hand_over(&mut self, link: OwnedFd, last: bool) -> io::Result<()> {
        if self.outgoing.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let link = Link::new(link, self.next_token(), self.poll.registry())?;
        let departure = Departure {
            link: link.number(),
            last,
            part: false,
        };
        self.memory.begin_departure(departure);
        if !last {
            self.pause_accepting();
        }
        // The number is final now, except for connections in queues that only this worker empties.
        let coming = self.open;
        let message = Message::Begin { coming };
        let frame = Packet {
            sequence: 0,
            message,
        }
        .encode();
        // Refused only by a socket whose other end is gone, and that is noticed in any case.
        let _ = link.packets.send(&frame, &[]);
        self.memory.note_sent(0, 0);
        self.outgoing = Some(Box::new(Outgoing::new(link, last, None)));
        Ok(())
    }

    /// Begins to hand over some connections by the socket `link`, and continues everything else.
    /// [`Reactor::handed_over`] returns the result.
    ///
    /// # Errors
    /// As [`Reactor::hand_over`].
    pub fn hand_over_part(&mut self, link: OwnedFd, part: Part) -> io::Result<()> {
        if self.outgoing.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let link = Link::new(link, self.next_token(), self.poll.registry())?;
        let departure = Departure {
            link: link.number(),
            last: false,
            part: true,
        };
        self.memory.begin_departure(departure);
        let part = Some(Chosen::pending(part));
        self.memory.note_sent(0, 0);
        self.outgoing = Some(Box::new(Outgoing::new(link, false, part)));
        Ok(())
    }

    /// Sends no further batch. Batches in flight are settled first; the other connections stay.
    pub fn stop_handing_over(&mut self) {
        if let Some(mut outgoing) = self.outgoing.take() {
            outgoing.machine.handle(SenderEvent::Stop);
            self.execute(&mut outgoing);
            self.outgoing = (!self.finish_handover(&outgoing)).then_some(outgoing);
        }
    }

    /// Sends batches and settles answered ones, within this turn's time.
    pub(crate) fn send_connections(&mut self) {
        let Some(mut outgoing) = self.outgoing.take() else {
            return;
        };
        let until = clock::now() + HANDOVER_TURN;
        loop {
            let was_ready = outgoing.link.as_ref().is_some_and(|link| link.ready);
            self.receive_answers(&mut outgoing);
            self.execute(&mut outgoing);
            let is_due = !outgoing.machine.is_blocked() || was_ready || outgoing.is_due(self.now);
            // A worker whose handover is over may serve on, and needs its listeners.
            if is_due && !outgoing.machine.is_over() {
                let event = self.count_waiting(&mut outgoing);
                outgoing.machine.handle(event);
                self.execute(&mut outgoing);
            }
            self.memory.note_sent(outgoing.sent, outgoing.settled);
            let goes_on = outgoing.machine.has_room() && self.may_send(&outgoing)
                || outgoing.link.as_ref().is_some_and(|link| link.ready);
            if !goes_on || outgoing.machine.is_over() || clock::now() >= until {
                break;
            }
        }
        self.outgoing = (!self.finish_handover(&outgoing)).then_some(outgoing);
    }

    /// Returns whether a turn would find connections to send.
    pub(super) fn may_send(&self, outgoing: &Outgoing) -> bool {
        match &outgoing.part {
            Some(part) => part.waits(),
            None => self.open > outgoing.moving + outgoing.stuck.len() as u32,
        }
    }

    /// Counts the connections that could migrate in this turn, and whether none will be added.
    fn count_waiting(&mut self, outgoing: &mut Outgoing) -> SenderEvent {
        if let Some(part) = &mut outgoing.part {
            return SenderEvent::Turn {
                waiting: self.choose(part),
                stuck: outgoing.stuck.len() as u32,
                complete: true,
            };
        }
        // Some may have ended here since then.
        let is_open = |fd: u32, generation: u32| {
            let record = self.memory.record(fd);
            record.generation() == generation && record.state() != State::Free
        };
        outgoing
            .stuck
            .retain(|fd, generation| is_open(*fd, *generation));
        let stuck = outgoing.stuck.len() as u32;
        let mut waiting = self.open - outgoing.moving - stuck;
        let mut complete = true;
        if waiting == 0 && outgoing.last {
            complete = self.empty_queues();
            waiting = self.open - outgoing.moving - stuck;
        }
        SenderEvent::Turn {
            waiting,
            stuck,
            complete,
        }
    }

    /// Receives the answers that have arrived; those beyond one window in the next step.
    fn receive_answers(&mut self, outgoing: &mut Outgoing) {
        let mut buffer = [0; ANSWER_MAX_BYTES];
        for _ in 0..ANSWERS_AT_ONCE {
            let Some(link) = outgoing.link.as_mut().filter(|link| link.ready) else {
                return;
            };
            let event = match link.receive(&mut buffer) {
                Ok(None) => return,
                Ok(Some(packet)) if packet.truncated => SenderEvent::Invalid {
                    cause: "an answer came in part".to_owned(),
                },
                Ok(Some(packet)) => match Packet::decode(&buffer[..packet.length]) {
                    Ok(packet) => SenderEvent::Received(packet),
                    Err(error) => SenderEvent::Invalid {
                        cause: error.to_string(),
                    },
                },
                Err(error) => {
                    if !matches!(error, packets::Error::Closed) {
                        event!(handover_socket_failed, %error);
                    }
                    outgoing.is_peer_gone = true;
                    SenderEvent::PeerGone
                }
            };
            outgoing.machine.handle(event);
            self.execute(outgoing);
        }
    }

    pub(super) fn execute(&mut self, outgoing: &mut Outgoing) {
        while let Some(action) = outgoing.machine.poll_action() {
            match action {
                SenderAction::Send { sequence } => {
                    let (frame, batch) = self.freeze_batch(outgoing, sequence);
                    if sequence == FIRST {
                        fault::point("sender.frozen");
                    }
                    outgoing.batches.push_back(batch);
                    outgoing.transmit(sequence, frame, self.now);
                }
                SenderAction::Repeat { sequence } => {
                    let frame = self.batch_again(outgoing, sequence);
                    outgoing.repeat(sequence, &frame, self.now);
                }
                SenderAction::Retry { sequence } => {
                    if let Some(frame) = outgoing.staged.take() {
                        outgoing.transmit(sequence, frame, self.now);
                    }
                }
                SenderAction::Release { sequence, left } => {
                    if sequence == FIRST {
                        fault::point("sender.acknowledged");
                    }
                    outgoing.settled += 1;
                    self.release(outgoing, sequence, &left);
                }
                SenderAction::TakeBack { sequence } => self.take_back(outgoing, sequence),
                SenderAction::SendEnd { sequence } => {
                    let moved = outgoing.moved;
                    let message = Message::End { moved };
                    let frame = Packet { sequence, message }.encode();
                    if let Some(link) = &outgoing.link {
                        // For the receiver's log; everything is settled without it.
                        let _ = link.packets.send(&frame, &[]);
                    }
                }
                SenderAction::Finish => self.close_outgoing(outgoing),
            }
        }
    }

    /// Freezes as many connections as fit a batch.
    fn freeze_batch(&mut self, outgoing: &mut Outgoing, sequence: u32) -> (Vec<u8>, Batch) {
        let mut encoder = BatchEncoder::new(sequence);
        let mut connections = Vec::new();
        self.memory.begin_batch(self.last_generation);
        // A batch has fewer connections than a byte has values.
        for (place, fd) in (0..=u8::MAX).zip(self.candidates(outgoing)) {
            // No connection is being closed between two steps of a turn.
            let Some(frozen) = self.memory.record_mut(fd).freeze() else {
                continue;
            };
            if !encoder.push(&frozen) {
                break;
            }
            // Fails only if it is not watched.
            let _ = Socket::numbered(fd).unwatch(self.poll.registry());
            self.timers.disarm(fd);
            self.memory.record_mut(fd).begin_handover(sequence, place);
            connections.push((place, fd));
            outgoing.cursor = fd + 1;
        }
        outgoing.moving += encoder.count();
        let batch = Batch {
            sequence,
            connections,
        };
        (encoder.finish(), batch)
    }

    /// Returns a batch in flight as it was sent: nothing has touched its connections since.
    fn batch_again(&mut self, outgoing: &Outgoing, sequence: u32) -> Vec<u8> {
        let mut encoder = BatchEncoder::new(sequence);
        let batch = outgoing.batches.iter().find(|it| it.sequence == sequence);
        for (_, fd) in batch.into_iter().flat_map(|batch| &batch.connections) {
            let frozen = self.memory.record_mut(*fd).freeze();
            // It fitted when it was sent first.
            let _ = frozen.is_some_and(|frozen| encoder.push(&frozen));
        }
        encoder.finish()
    }

    /// Returns candidates for the next batch, as many as may fit.
    fn candidates(&self, outgoing: &Outgoing) -> Vec<u32> {
        if let Some(part) = &outgoing.part {
            return part.next(HANDOVER_BATCH_CONNECTIONS);
        }
        // From the cursor on, then from the beginning: lower numbers may have been used since.
        let mut candidates: Vec<u32> = Vec::new();
        for first in [outgoing.cursor, 0] {
            let free = |&fd: &u32| {
                !self.memory.record(fd).flags().has(Flags::MOVING)
                    && !outgoing.stuck.contains_key(&fd)
            };
            let found = self.memory.occupied_from(first).filter(free);
            candidates.extend(found.take(HANDOVER_BATCH_CONNECTIONS));
            if !candidates.is_empty() {
                break;
            }
        }
        candidates
    }

    /// Closes migrated connections; those at the places `left` stay.
    fn release(&mut self, outgoing: &mut Outgoing, sequence: u32, left: &[u8]) {
        // Another process may have released some of them.
        if outgoing.resolved != sequence {
            let batch = outgoing.batches.iter().find(|it| it.sequence == sequence);
            let places = batch.map_or(0, |batch| batch.connections.len());
            outgoing.moved += (places - left.len()) as u32;
            outgoing.resolved = sequence;
            self.memory.begin_resolving(sequence, outgoing.moved);
        }
        for (place, fd) in outgoing.batch(sequence) {
            if left.contains(&place) {
                self.keep_stuck(outgoing, fd);
                continue;
            }
            self.memory.count(Counter::MigratedOut, 1);
            self.close_migrated(fd);
            outgoing.moving -= 1;
        }
        self.gate_after_close();
    }

    /// Serves the connections of a batch again.
    fn take_back(&mut self, outgoing: &mut Outgoing, sequence: u32) {
        outgoing.settled += 1;
        let is_latest = outgoing
            .batches
            .back()
            .is_some_and(|it| it.sequence == sequence);
        // Only the latest batch can wait for the kernel.
        let is_unsent = is_latest && outgoing.staged.take().is_some();
        // Answers to older ones are still to come if this one was refused.
        if !is_unsent && outgoing.is_oldest(sequence) && outgoing.resolved != sequence {
            outgoing.resolved = sequence;
            self.memory.begin_resolving(sequence, outgoing.moved);
        }
        let mut connections = outgoing.batch(sequence);
        if is_unsent {
            connections.reverse();
        }
        let is_doubtful = outgoing.is_resumed && outgoing.is_peer_gone;
        for (_, fd) in connections {
            if is_doubtful && !self.was_returned(fd) {
                outgoing.moving -= 1;
                self.lose(fd);
            } else {
                self.keep_stuck(outgoing, fd);
            }
        }
    }

    /// Serves a connection again that the other worker could not adopt.
    fn keep_stuck(&mut self, outgoing: &mut Outgoing, fd: u32) {
        outgoing.moving -= 1;
        let generation = self.next_generation();
        outgoing.stuck.insert(fd, generation);
        self.memory.record_mut(fd).take_back(generation);
        self.watch_again(fd);
    }

    /// Watches a connection again that was migrating, which reports its readiness.
    fn watch_again(&mut self, fd: u32) {
        let record = self.memory.record(fd);
        let token = pack_token(fd, record.generation());
        if let Err(error) = Socket::numbered(fd).watch(self.poll.registry(), token) {
            event!(connection_watch_failed, %error, fd);
            return self.close(fd, CloseReason::SystemError);
        }
        self.resume_connection(fd);
    }

    /// Accepts what is in the queues. Returns whether they are empty; without an open connection
    /// the listeners are closed then.
    fn empty_queues(&mut self) -> bool {
        let emptied = self.accept_all();
        if emptied && self.open == 0 {
            self.drop_listeners();
        }
        emptied
    }

    /// Completes a handover that is over; returns whether it is.
    pub(super) fn finish_handover(&mut self, outgoing: &Outgoing) -> bool {
        let Some(end) = outgoing.machine.end() else {
            // The result of a stopped handover is not reported.
            return outgoing.machine.is_over();
        };
        match end {
            // The worker continues, and has never stopped accepting.
            _ if outgoing.part.is_some() => {}
            HandoverEnd::PeerGone => self.begin_accepting(),
            // The listeners stay until the supervisor decides about the connections.
            HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => {}
            HandoverEnd::Done => self.drop_listeners(),
        }
        self.handed_over = Some(HandedOver {
            moved: outgoing.moved,
            left: self.open,
            end: end.clone(),
            part: outgoing.part.is_some(),
        });
        true
    }

    /// Stores the result of a handover that is over, and closes its link.
    pub(super) fn close_outgoing(&mut self, outgoing: &mut Outgoing) {
        let result = outgoing.machine.end().map(|end| Departed {
            end: end.number(),
            moved: outgoing.moved,
            left: self.open,
            part: outgoing.part.is_some(),
        });
        self.memory.set_unnamed(Source::Link, true);
        self.memory.end_departure(result);
        outgoing.link = None;
        self.memory.set_unnamed(Source::Link, false);
    }
}
