//! The rules of a handover: which worker owns which connection at every instant, as two state
//! machines.
//!
//! Events in, actions out; the shell executes each action in order and reports its result.
//!
//! Invariants:
//! - a batch belongs to the sender until that has received the acknowledgement; while it is in
//!   flight neither side touches its connections: the sender has frozen them, and the receiver
//!   serves none before its acknowledgement is sent;
//! - at most [`HANDOVER_WINDOW`] batches are in flight, and each is resolved exactly once: released
//!   when it was acknowledged, except the connections that the receiver cannot adopt; taken back
//!   when it was declined or refused or could not be sent, or the receiver is gone;
//! - a connection that the receiver cannot adopt is not offered again, and does not stop the
//!   others;
//! - a receiver that has refused adopts nothing afterwards, so a refusal resolves everything in
//!   flight;
//! - an invalid answer resolves nothing: the batch stays frozen until the receiver acknowledges it
//!   or is gone, because the receiver may own it.
//!
//! Pure: no descriptor, no clock. It must not know what a connection is.

use std::collections::VecDeque;

use super::HandoverEnd;
use super::record::{Left, Message, Packet, Record};
use crate::config::HANDOVER_WINDOW;

/// An event of a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderEvent {
    /// The turn has time for a batch.
    Turn {
        /// Connections that are neither in flight nor offered before.
        waiting: u32,
        /// Connections that the receiver could not adopt.
        stuck: u32,
        /// Whether no more will be added to them.
        complete: bool,
    },
    /// Result of [`SenderAction::Send`] or [`SenderAction::Retry`]: the kernel accepted the batch.
    Sent {
        /// Connections in it.
        count: u32,
    },
    /// Result of the same: the kernel does not accept it now.
    Blocked,
    /// Result of the same: the kernel will never accept it.
    Failed {
        /// The cause.
        cause: String,
    },
    /// The receiver sent a packet.
    Received(Packet),
    /// The receiver sent bytes that are not a packet.
    Invalid {
        /// The error.
        cause: String,
    },
    /// The receiver is gone, and every packet from it has been handled.
    PeerGone,
    /// Send no more.
    Stop,
}

/// An action of a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderAction {
    /// Freeze a batch of at least one connection and send it.
    Send {
        /// The batch's number.
        sequence: u32,
    },
    /// Send the last batch again, which the kernel did not accept.
    Retry {
        /// The batch's number.
        sequence: u32,
    },
    /// Close the descriptors of a batch, without reading or ending a stream; serve those at the
    /// places `left` again, and never offer them again.
    Release {
        /// The batch's number.
        sequence: u32,
        /// Places in the batch, in ascending order.
        left: Vec<u8>,
    },
    /// Serve the connections of a batch again, and never offer them again.
    TakeBack {
        /// The batch's number.
        sequence: u32,
    },
    /// Send the end. Whether it arrives does not matter.
    SendEnd {
        /// The packet's number.
        sequence: u32,
    },
    /// The handover is over ([`Sender::end`] has the result): close the socket. Comes last.
    Finish,
}

/// The sending side.
#[derive(Debug, Default)]
pub struct Sender {
    last_sequence: u32,
    /// Batches in flight, oldest first, with their numbers of connections.
    in_flight: VecDeque<(u32, u32)>,
    /// The batch that the kernel has not accepted yet.
    staged: Option<u32>,
    /// The cause for the first connection that the receiver could not adopt.
    stuck_cause: Option<String>,
    phase: SenderPhase,
    actions: VecDeque<SenderAction>,
}

#[derive(Debug, Default)]
enum SenderPhase {
    #[default]
    Sending,
    /// No more batches; those in flight have to be resolved first.
    Settling(Option<HandoverEnd>),
    Over(Option<HandoverEnd>),
}

impl Sender {
    /// Handles an event. After the end, events have no effect.
    pub fn handle(&mut self, event: SenderEvent) {
        if matches!(self.phase, SenderPhase::Over(_)) {
            return;
        }
        match event {
            SenderEvent::Turn {
                waiting,
                stuck,
                complete,
            } => self.turn(waiting, stuck, complete),
            SenderEvent::Sent { count } => {
                let sent = self.staged.take().map(|sequence| (sequence, count));
                self.in_flight.extend(sent);
            }
            SenderEvent::Blocked => {}
            SenderEvent::Failed { cause } => {
                // Only this batch is known not to fit.
                if let Some(sequence) = self.staged.take() {
                    self.stuck_cause.get_or_insert(cause);
                    self.actions.push_back(SenderAction::TakeBack { sequence });
                }
            }
            SenderEvent::Received(packet) => self.receive(packet),
            SenderEvent::Invalid { cause } => {
                self.stop_sending(Some(HandoverEnd::Refused { cause }));
            }
            SenderEvent::PeerGone => self.finish(Some(HandoverEnd::PeerGone)),
            SenderEvent::Stop => self.stop_sending(None),
        }
        self.check_invariants();
    }

    /// Returns the next action. Its result must be handled before the next call.
    pub fn poll_action(&mut self) -> Option<SenderAction> {
        self.actions.pop_front()
    }

    /// Returns whether everything in flight is resolved and nothing more will be sent.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, SenderPhase::Over(_))
    }

    /// Returns the result; `None` before the end, and after a stop.
    #[must_use]
    pub const fn end(&self) -> Option<&HandoverEnd> {
        match &self.phase {
            SenderPhase::Over(end) => end.as_ref(),
            SenderPhase::Sending | SenderPhase::Settling(_) => None,
        }
    }

    /// Returns whether a turn now would send another batch.
    #[must_use]
    pub fn has_room(&self) -> bool {
        matches!(self.phase, SenderPhase::Sending)
            && self.staged.is_none()
            && self.in_flight.len() < HANDOVER_WINDOW
    }

    /// Returns whether a batch waits for the kernel to accept it.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.staged.is_some()
    }

    fn turn(&mut self, waiting: u32, stuck: u32, complete: bool) {
        if let Some(sequence) = self.staged {
            self.actions.push_back(SenderAction::Retry { sequence });
        } else if waiting > 0 && self.has_room() {
            let sequence = self.next_sequence();
            self.staged = Some(sequence);
            self.actions.push_back(SenderAction::Send { sequence });
        } else if waiting == 0
            && complete
            && self.in_flight.is_empty()
            && matches!(self.phase, SenderPhase::Sending)
        {
            let sequence = self.next_sequence();
            self.actions.push_back(SenderAction::SendEnd { sequence });
            self.finish(Some(match &self.stuck_cause {
                Some(cause) if stuck > 0 => HandoverEnd::Incomplete {
                    cause: cause.clone(),
                },
                Some(_) | None => HandoverEnd::Done,
            }));
        }
    }

    fn receive(&mut self, packet: Packet) {
        let Packet { sequence, message } = packet;
        let due = self.in_flight.front().copied();
        let due = due.filter(|(oldest, _)| *oldest == sequence);
        match (message, due) {
            (Message::Acknowledged { taken, left }, Some((_, count)))
                if accounts_for(taken, left.as_ref(), count) =>
            {
                let (left, cause) =
                    left.map_or_else(Default::default, |it| (it.places, Some(it.cause)));
                self.resolve_oldest(cause, SenderAction::Release { sequence, left });
            }
            (Message::Declined { cause }, Some(_)) => {
                self.resolve_oldest(Some(cause), SenderAction::TakeBack { sequence });
            }
            (Message::Refused { cause }, _) => self.finish(Some(HandoverEnd::Refused { cause })),
            (
                Message::Acknowledged { .. }
                | Message::Declined { .. }
                | Message::Begin { .. }
                | Message::Batch(_)
                | Message::End { .. },
                _,
            ) => {
                let cause = format!("the receiver sent an unexpected answer to packet {sequence}");
                self.stop_sending(Some(HandoverEnd::Refused { cause }));
            }
        }
    }

    /// Resolves the oldest batch in flight, which was answered.
    fn resolve_oldest(&mut self, stuck_cause: Option<String>, action: SenderAction) {
        self.in_flight.pop_front();
        self.stuck_cause = self.stuck_cause.take().or(stuck_cause);
        self.actions.push_back(action);
        if self.in_flight.is_empty()
            && let SenderPhase::Settling(end) = &self.phase
        {
            self.finish(end.clone());
        }
    }

    /// Sends no more; the handover ends when everything in flight is resolved. A batch that the
    /// kernel never accepted comes back at once.
    fn stop_sending(&mut self, end: Option<HandoverEnd>) {
        if matches!(self.phase, SenderPhase::Sending) || end.is_none() {
            self.phase = SenderPhase::Settling(end.clone());
        }
        if let Some(sequence) = self.staged.take() {
            self.actions.push_back(SenderAction::TakeBack { sequence });
        }
        if self.in_flight.is_empty() {
            self.finish(end);
        }
    }

    /// Takes everything in flight back, and ends. A stop remains a stop, whatever the receiver
    /// does.
    fn finish(&mut self, end: Option<HandoverEnd>) {
        let sent = self.in_flight.drain(..).map(|(sequence, _)| sequence);
        let back = sent.chain(self.staged.take());
        let back = back.map(|sequence| SenderAction::TakeBack { sequence });
        self.actions.extend(back);
        let end = match &self.phase {
            SenderPhase::Settling(None) => None,
            SenderPhase::Settling(Some(_)) | SenderPhase::Sending | SenderPhase::Over(_) => end,
        };
        self.phase = SenderPhase::Over(end);
        self.actions.push_back(SenderAction::Finish);
    }

    const fn next_sequence(&mut self) -> u32 {
        self.last_sequence = self.last_sequence.wrapping_add(1);
        self.last_sequence
    }

    fn check_invariants(&self) {
        debug_assert!(self.in_flight.len() <= HANDOVER_WINDOW);
        debug_assert!(
            !matches!(self.phase, SenderPhase::Over(_))
                || (self.in_flight.is_empty() && self.staged.is_none()),
            "everything is resolved in the end"
        );
        debug_assert!(
            !matches!(self.phase, SenderPhase::Settling(_)) || self.staged.is_none(),
            "a sender that ends sends nothing"
        );
    }
}

/// Returns whether an acknowledgement accounts for each of `count` connections exactly once.
fn accounts_for(taken: u32, left: Option<&Left>, count: u32) -> bool {
    let places = left.map_or(&[][..], |left| &left.places);
    let within = places.iter().all(|place| u32::from(*place) < count);
    within && taken.checked_add(places.len() as u32) == Some(count)
}

/// An event of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// The sender sent a packet with descriptors.
    Received {
        /// The packet.
        packet: Packet,
        /// Number of descriptors.
        descriptors: usize,
    },
    /// Nothing more may be adopted: the sender sent bytes that are not a whole packet, or this
    /// worker stops.
    Unfit {
        /// The cause, in one line.
        cause: String,
    },
    /// The sender sent a batch that cannot be decoded.
    Unreadable {
        /// The batch's number.
        sequence: u32,
        /// The cause, in one line.
        cause: String,
    },
    /// Result of [`ReceiverAction::Adopt`]: the batch is recorded and watched, except some whose
    /// descriptors are closed.
    Adopted {
        /// Connections that are recorded and watched.
        taken: u32,
        /// Those that are not.
        left: Option<Left>,
    },
    /// The sender is gone or has finished, and every packet from it has been handled.
    PeerGone,
}

/// An action of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverAction {
    /// Reserve places for connections to come.
    Expect {
        /// Their number.
        coming: u32,
    },
    /// Record and watch these connections, as many of them as possible; serve none yet.
    Adopt {
        /// The connections, in the order of their descriptors. There may be fewer of those.
        connections: Vec<Record>,
    },
    /// Acknowledge the connections of the batch that are adopted; then serve them.
    Acknowledge {
        /// The batch's number.
        sequence: u32,
        /// Adopted connections.
        taken: u32,
        /// Connections that are not adopted.
        left: Option<Left>,
    },
    /// Close the descriptors of the batch, if any, and answer that none of it is adopted.
    Decline {
        /// The batch's number.
        sequence: u32,
        /// The cause.
        cause: String,
    },
    /// Close the descriptors of the packet, if any, and answer that nothing more is adopted.
    Refuse {
        /// The number of the refused packet.
        sequence: u32,
        /// The cause.
        cause: String,
    },
    /// It is over. Comes last.
    Finish {
        /// Whether the sender has sent its end.
        complete: bool,
    },
}

/// The receiving side.
#[derive(Debug, Default)]
pub struct Receiver {
    last_sequence: u32,
    /// Whether the sender has sent the number of connections.
    begun: bool,
    /// Connections adopted.
    adopted: u32,
    phase: ReceiverPhase,
    actions: VecDeque<ReceiverAction>,
}

#[derive(Debug, Default)]
enum ReceiverPhase {
    #[default]
    Receiving,
    /// A batch is being adopted.
    Adopting {
        sequence: u32,
    },
    /// Nothing more is adopted. Packets are dropped: the sender has been answered.
    Refusing,
    /// The sender has sent its end.
    Complete,
    Over,
}

impl Receiver {
    /// Handles an event. After the end, events have no effect.
    pub fn handle(&mut self, event: ReceiverEvent) {
        match (&self.phase, event) {
            (ReceiverPhase::Over, _) => {}
            (phase, ReceiverEvent::PeerGone) => {
                let complete = matches!(phase, ReceiverPhase::Complete);
                self.phase = ReceiverPhase::Over;
                self.actions.push_back(ReceiverAction::Finish { complete });
            }
            (&ReceiverPhase::Adopting { sequence }, ReceiverEvent::Adopted { taken, left }) => {
                self.phase = ReceiverPhase::Receiving;
                self.adopted = self.adopted.saturating_add(taken);
                self.actions.push_back(ReceiverAction::Acknowledge {
                    sequence,
                    taken,
                    left,
                });
            }
            (ReceiverPhase::Receiving, ReceiverEvent::Unreadable { sequence, cause }) => {
                if sequence == self.last_sequence.wrapping_add(1) {
                    self.last_sequence = sequence;
                    let action = ReceiverAction::Decline { sequence, cause };
                    self.actions.push_back(action);
                } else {
                    self.refuse(sequence, cause);
                }
            }
            (
                ReceiverPhase::Receiving,
                ReceiverEvent::Received {
                    packet,
                    descriptors,
                },
            ) => {
                self.receive(packet, descriptors);
            }
            (ReceiverPhase::Receiving, ReceiverEvent::Unfit { cause }) => {
                self.refuse(self.last_sequence.wrapping_add(1), cause);
            }
            // Refused already, after the end, or a result without an action: no answer is due.
            (
                ReceiverPhase::Receiving
                | ReceiverPhase::Adopting { .. }
                | ReceiverPhase::Refusing
                | ReceiverPhase::Complete,
                _,
            ) => {}
        }
    }

    /// Returns the next action. Its result must be handled before the next call.
    pub fn poll_action(&mut self) -> Option<ReceiverAction> {
        self.actions.pop_front()
    }

    /// Returns the number of connections adopted so far.
    #[must_use]
    pub const fn adopted(&self) -> u32 {
        self.adopted
    }

    fn receive(&mut self, packet: Packet, descriptors: usize) {
        let Packet { sequence, message } = packet;
        if let (Message::Begin { coming }, 0, 0, false) =
            (&message, sequence, self.last_sequence, self.begun)
        {
            self.begun = true;
            let action = ReceiverAction::Expect { coming: *coming };
            return self.actions.push_back(action);
        }
        let wanted = self.last_sequence.wrapping_add(1);
        if sequence != wanted {
            let cause = format!("packet {sequence} arrived instead of {wanted}");
            return self.refuse(sequence, cause);
        }
        self.last_sequence = sequence;
        match message {
            // Fewer may arrive: the kernel passes them in order, as far as there are free numbers.
            Message::Batch(connections) if connections.len() < descriptors => {
                let count = connections.len();
                let cause = format!("{count} connections arrived with {descriptors} descriptors");
                self.refuse(sequence, cause);
            }
            Message::Batch(connections) => {
                self.phase = ReceiverPhase::Adopting { sequence };
                self.actions
                    .push_back(ReceiverAction::Adopt { connections });
            }
            Message::End { moved } if moved == self.adopted => {
                self.phase = ReceiverPhase::Complete;
            }
            Message::End { moved } => {
                let adopted = self.adopted;
                let cause = format!("the sender sent {moved} connections, and {adopted} arrived");
                self.refuse(sequence, cause);
            }
            Message::Acknowledged { .. } | Message::Declined { .. } | Message::Refused { .. } => {
                self.refuse(sequence, "the sender sent an answer".to_owned());
            }
            Message::Begin { .. } => {
                self.refuse(sequence, "the sender began the handover twice".to_owned());
            }
        }
    }

    fn refuse(&mut self, sequence: u32, cause: String) {
        self.phase = ReceiverPhase::Refusing;
        let action = ReceiverAction::Refuse { sequence, cause };
        self.actions.push_back(action);
    }
}

#[cfg(test)]
mod tests;
