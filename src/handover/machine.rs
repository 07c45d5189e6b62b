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
//!   flight from the refused batch on;
//! - an invalid answer resolves nothing: the batch stays frozen until the receiver acknowledges it
//!   or is gone, because the receiver may own it;
//! - either side may be continued by another process ([`Sender::resumed`], [`Receiver::resumed`]).
//!   The sender then sends everything in flight again, and the receiver requests what it lost. A
//!   batch that the receiver has answered is answered again, alike, and an answer to a batch that
//!   the sender has resolved is dropped, as is one before those that the dead process had read.
//!
//! Pure: no descriptor, no clock. It must not know what a connection is.

mod receiver;

use std::collections::VecDeque;

use super::HandoverEnd;
use super::record::{Left, Message, Packet};
use crate::config::HANDOVER_WINDOW;

pub use receiver::{Answer, Received, Receiver, ReceiverAction, ReceiverEvent};

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
    /// Result of [`SenderAction::Send`], [`SenderAction::Repeat`] or [`SenderAction::Retry`]: the
    /// kernel accepted the batch.
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
    /// Send a batch in flight again, with the same number, the same places and new descriptors. The
    /// receiver may have it already.
    Repeat {
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
    /// The number of the last batch of another process, which this one continues.
    last_of_other: u32,
    /// Batches in flight, oldest first, with their numbers of connections.
    in_flight: VecDeque<(u32, u32)>,
    /// The batch that the kernel has not accepted yet.
    staged: Option<u32>,
    /// Batches in flight that are to be sent again, oldest first.
    repeats: VecDeque<u32>,
    /// Whether the oldest of them is being sent.
    repeating: bool,
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
    /// Returns the sender of a handover that another process began: `in_flight` are the batches
    /// that it had not resolved, oldest first, each with its number and its number of places, and
    /// `last_sequence` is the number of the last batch.
    #[must_use]
    pub fn resumed(last_sequence: u32, in_flight: &[(u32, u32)]) -> Self {
        Self {
            last_sequence,
            last_of_other: last_sequence,
            in_flight: in_flight.iter().copied().collect(),
            repeats: in_flight.iter().map(|(sequence, _)| *sequence).collect(),
            ..Self::default()
        }
    }

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
            SenderEvent::Sent { .. } if self.repeating => {
                self.repeats.pop_front();
                self.repeat_next();
            }
            // The receiver may own it, so it is offered until the receiver is gone.
            SenderEvent::Blocked | SenderEvent::Failed { .. } if self.repeating => {
                self.repeating = false;
            }
            SenderEvent::Sent { count } => {
                let sent = self.staged.take().map(|sequence| (sequence, count));
                self.in_flight.extend(sent);
            }
            SenderEvent::Blocked => {}
            SenderEvent::Failed { cause } => {
                // Only this batch is known not to fit.
                if let Some(sequence) = self.staged.take() {
                    // The receiver expects the number.
                    self.last_sequence = sequence.wrapping_sub(1);
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
            && self.repeats.is_empty()
            && self.in_flight.len() < HANDOVER_WINDOW
    }

    /// Returns whether a batch waits for the kernel to accept it.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.staged.is_some() || !self.repeats.is_empty()
    }

    fn turn(&mut self, waiting: u32, stuck: u32, complete: bool) {
        if !self.repeats.is_empty() {
            self.repeat_next();
        } else if let Some(sequence) = self.staged {
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
            (Message::Acknowledged { .. } | Message::Declined { .. }, _)
                if (1..=self.last_resolved()).contains(&sequence) => {}
            // Another process has read the answers before it; this one comes again after them.
            (Message::Acknowledged { .. } | Message::Declined { .. }, None)
                if (1..=self.last_of_other).contains(&sequence) => {}
            (Message::Again, _) => {
                let sent = self.in_flight.iter().map(|(sent, _)| *sent);
                self.repeats = sent.filter(|sent| *sent > sequence).collect();
            }
            (Message::Refused { cause }, _) => self.take_back_from(sequence, cause),
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

    /// Returns the number of the last batch that was resolved, or 0.
    fn last_resolved(&self) -> u32 {
        let oldest = self.in_flight.front().map(|(oldest, _)| *oldest);
        let oldest = oldest.or(self.staged);
        oldest.map_or(self.last_sequence, |oldest| oldest.wrapping_sub(1))
    }

    /// Takes the refused batch back and those after it. Answers to older ones, which are in flight
    /// only if another process has read their first answers, are still to come.
    fn take_back_from(&mut self, refused: u32, cause: String) {
        let sent = self.in_flight.iter().map(|(sent, _)| *sent);
        let back = sent.filter(|sent| *sent >= refused);
        let back = back.map(|sequence| SenderAction::TakeBack { sequence });
        self.actions.extend(back);
        self.in_flight.retain(|(sent, _)| *sent < refused);
        self.repeats.retain(|repeat| *repeat < refused);
        self.stop_sending(Some(HandoverEnd::Refused { cause }));
    }

    fn repeat_next(&mut self) {
        let next = self.repeats.front().copied();
        self.repeating = next.is_some();
        let next = next.map(|sequence| SenderAction::Repeat { sequence });
        self.actions.extend(next);
    }

    /// Resolves the oldest batch in flight, which was answered.
    fn resolve_oldest(&mut self, stuck_cause: Option<String>, action: SenderAction) {
        if let Some((sequence, _)) = self.in_flight.pop_front() {
            self.repeats.retain(|repeat| *repeat != sequence);
        }
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
        self.repeats.clear();
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

#[cfg(test)]
mod tests;
