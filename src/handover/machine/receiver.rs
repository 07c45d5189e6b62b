//! The receiving side of a handover.
//!
//! It shares the rules of [the module above](super). It must not know how connections are adopted.

use std::collections::VecDeque;

use super::super::record::{Left, Message, Packet, Record};
use crate::config::HANDOVER_WINDOW;

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
    /// Close the descriptors of the packet, if any, and give the answer that its first copy was
    /// given.
    Repeat {
        /// The batch's number.
        sequence: u32,
        /// The answer.
        answer: Answer,
    },
    /// Request what was received after the packet with this number, and lost.
    RequestAgain {
        /// The number.
        after: u32,
    },
    /// Close the descriptors of the packet, if any: it will come again.
    Drop,
    /// It is over. Comes last.
    Finish {
        /// Whether the sender has sent its end.
        complete: bool,
    },
}

/// The cause of a repeated refusal.
const NO_MORE: &str = "the receiver adopts nothing more";

/// An answer to a batch, as far as another process must repeat it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Connections adopted.
    pub taken: u32,
    /// Places of those that are not adopted, in ascending order.
    pub left: Vec<u8>,
}

impl Answer {
    /// Returns the message.
    #[must_use]
    pub fn message(self) -> Message {
        let Self { taken, left } = self;
        let cause = "its first answer had the cause".to_owned();
        if taken == 0 && left.is_empty() {
            return Message::Declined { cause };
        }
        let left = (!left.is_empty()).then_some(Left {
            places: left,
            cause,
        });
        Message::Acknowledged { taken, left }
    }
}

/// What a receiver leaves to the process that continues it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Number of the last packet that was handled.
    pub last_sequence: u32,
    /// Connections adopted.
    pub adopted: u32,
    /// Whether nothing more is adopted.
    pub is_refusing: bool,
    /// The last answers, of at most [`HANDOVER_WINDOW`] batches, oldest first, each with the batch's
    /// number.
    pub answers: VecDeque<(u32, Answer)>,
}

/// The receiving side.
#[derive(Debug, Default)]
pub struct Receiver {
    last_sequence: u32,
    answers: VecDeque<(u32, Answer)>,
    /// Whether it has requested the packets after the last one, which may arrive with a gap until
    /// then.
    has_lost: bool,
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
    /// Nothing more is adopted; every batch is refused.
    Refusing,
    /// The sender has sent its end.
    Complete,
    Over,
}

impl Receiver {
    /// Returns the receiver of a handover that another process had begun to receive. It gives its
    /// last answer again, which may not have been sent.
    #[must_use]
    pub fn resumed(received: Received) -> Self {
        let Received {
            last_sequence,
            adopted,
            is_refusing,
            answers,
        } = received;
        let last = answers.back().cloned();
        let last = last.map(|(sequence, answer)| ReceiverAction::Repeat { sequence, answer });
        let mut actions: VecDeque<ReceiverAction> = last.into_iter().collect();
        let phase = if is_refusing {
            let cause = NO_MORE.to_owned();
            actions.push_back(ReceiverAction::Refuse {
                sequence: last_sequence,
                cause,
            });
            ReceiverPhase::Refusing
        } else {
            let after = last_sequence;
            actions.push_back(ReceiverAction::RequestAgain { after });
            ReceiverPhase::Receiving
        };
        Self {
            last_sequence,
            answers,
            has_lost: true,
            begun: last_sequence > 0,
            adopted,
            phase,
            actions,
        }
    }

    /// Returns what the process that continues this one must know; to be stored before the next
    /// answer is sent.
    #[must_use]
    pub fn received(&self) -> Received {
        Received {
            last_sequence: self.last_sequence,
            adopted: self.adopted,
            is_refusing: matches!(self.phase, ReceiverPhase::Refusing),
            answers: self.answers.clone(),
        }
    }

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
                let places = left.as_ref().map_or_else(Vec::new, |it| it.places.clone());
                self.remember(sequence, taken, places);
                self.actions.push_back(ReceiverAction::Acknowledge {
                    sequence,
                    taken,
                    left,
                });
            }
            (ReceiverPhase::Receiving, ReceiverEvent::Unreadable { sequence, cause }) => {
                if self.is_repeated(sequence) {
                    self.repeat(sequence);
                } else if sequence == self.last_sequence.wrapping_add(1) {
                    self.last_sequence = sequence;
                    self.has_lost = false;
                    self.remember(sequence, 0, Vec::new());
                    let action = ReceiverAction::Decline { sequence, cause };
                    self.actions.push_back(action);
                } else if self.has_lost {
                    self.actions.push_back(ReceiverAction::Drop);
                } else {
                    self.refuse(sequence, cause);
                }
            }
            // The sender is another process, which may not have read the refusal.
            (
                ReceiverPhase::Refusing,
                ReceiverEvent::Unreadable { sequence, .. }
                | ReceiverEvent::Received {
                    packet:
                        Packet {
                            sequence,
                            message: Message::Batch(_),
                        },
                    ..
                },
            ) => self.repeat(sequence),
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

    /// Returns the number of the last packet that was handled or is being handled.
    #[must_use]
    pub const fn last_sequence(&self) -> u32 {
        self.last_sequence
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
        if matches!(message, Message::Batch(_)) && self.is_repeated(sequence) {
            return self.repeat(sequence);
        }
        let wanted = self.last_sequence.wrapping_add(1);
        if sequence > wanted && self.has_lost {
            return self.actions.push_back(ReceiverAction::Drop);
        }
        if sequence != wanted {
            let cause = format!("packet {sequence} arrived instead of {wanted}");
            return self.refuse(wanted, cause);
        }
        self.last_sequence = sequence;
        self.has_lost = false;
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
            Message::Acknowledged { .. }
            | Message::Declined { .. }
            | Message::Refused { .. }
            | Message::Again => {
                self.refuse(sequence, "the sender sent an answer".to_owned());
            }
            Message::Begin { .. } => {
                self.refuse(sequence, "the sender began the handover twice".to_owned());
            }
        }
    }

    /// Returns whether a batch with this number was handled before.
    fn is_repeated(&self, sequence: u32) -> bool {
        (1..=self.last_sequence).contains(&sequence)
    }

    /// Answers a batch that was answered before, or that follows a refusal. A sender repeats none
    /// that it has resolved, so the answer is among the remembered ones, or was a refusal.
    fn repeat(&mut self, sequence: u32) {
        let known = self.answers.iter().find(|(known, _)| *known == sequence);
        match known.map(|(_, answer)| answer.clone()) {
            Some(answer) => self
                .actions
                .push_back(ReceiverAction::Repeat { sequence, answer }),
            None => self.refuse(sequence, NO_MORE.to_owned()),
        }
    }

    fn remember(&mut self, sequence: u32, taken: u32, left: Vec<u8>) {
        if self.answers.len() == HANDOVER_WINDOW {
            self.answers.pop_front();
        }
        self.answers.push_back((sequence, Answer { taken, left }));
    }

    fn refuse(&mut self, sequence: u32, cause: String) {
        self.phase = ReceiverPhase::Refusing;
        self.last_sequence = self.last_sequence.max(sequence);
        let action = ReceiverAction::Refuse { sequence, cause };
        self.actions.push_back(action);
    }
}
