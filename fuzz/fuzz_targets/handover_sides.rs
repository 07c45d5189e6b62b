//! Either side of a handover, given any messages from its peer and its own worker in any order:
//! every batch is settled once, no message follows the end, and the two bounds hold.
#![no_main]

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uppercased::config::HANDOVER_WINDOW;
use uppercased::handover::machine::{
    Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
};
use uppercased::handover::record::{Left, Message, Packet};
use uppercased::memory::frozen::{Frozen, Phase};
use uppercased_ctl::clock::Tick;

#[derive(Arbitrary, Debug)]
enum Said {
    Acknowledged(u8, Vec<u8>),
    Declined,
    Begin(u8),
    Refused,
    End(u8),
    Batch(u8),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Turn(u8, bool),
    Sent,
    Blocked,
    Failed,
    Nonsense,
    PeerGone,
    Stop,
    Adopted(u8),
    Unreadable(i8),
    /// The sequence number is the expected one plus this.
    Heard(i8, Said, u8),
}

fn cause() -> String {
    "noise".to_owned()
}

/// As the decoder returns them: in ascending order, at least one.
fn left(places: &[u8]) -> Option<Left> {
    let places: BTreeSet<u8> = places.iter().copied().collect();
    let places: Vec<u8> = places.into_iter().collect();
    (!places.is_empty()).then(|| Left {
        places,
        cause: cause(),
    })
}

fn frozen() -> Frozen {
    Frozen {
        unsent: Vec::new(),
        phase: Phase::Open,
        peer_ended: false,
        finish: false,
        peer: ([192, 0, 2, 1], 80).into(),
        bytes_in: 0,
        bytes_out: 0,
        last_progress: Tick::ZERO,
        opened: Tick::ZERO,
        header_bytes: 0,
    }
}

fn packet(due: u32, off: i8, said: &Said) -> Packet {
    let message = match *said {
        Said::Acknowledged(taken, ref places) => Message::Acknowledged {
            taken: taken.into(),
            left: left(places),
        },
        Said::Declined => Message::Declined { cause: cause() },
        Said::Begin(coming) => Message::Begin {
            coming: coming.into(),
        },
        Said::Refused => Message::Refused { cause: cause() },
        Said::End(moved) => Message::End {
            moved: moved.into(),
        },
        Said::Batch(count) => Message::Batch(vec![Ok(frozen()); usize::from(count % 4)]),
    };
    Packet {
        sequence: due.wrapping_add_signed(off.into()),
        message,
    }
}

#[derive(Default)]
struct Leaving {
    sender: Sender,
    on_their_way: BTreeSet<u32>,
    asked: bool,
    over: bool,
}

impl Leaving {
    fn step(&mut self, step: &Step) {
        let oldest = self.on_their_way.first().copied().unwrap_or(1);
        let event = match step {
            Step::Turn(waiting, complete) => SenderEvent::Turn {
                waiting: (*waiting).into(),
                stuck: 0,
                complete: *complete,
            },
            // Replies are sent only to requests.
            Step::Sent if self.asked => SenderEvent::Sent { count: 2 },
            Step::Blocked if self.asked => SenderEvent::Blocked,
            Step::Failed if self.asked => SenderEvent::Failed { cause: cause() },
            Step::Heard(off, said, _) => SenderEvent::Received(packet(oldest, *off, said)),
            Step::Nonsense => SenderEvent::Invalid { cause: cause() },
            Step::PeerGone => SenderEvent::PeerGone,
            Step::Stop => SenderEvent::Stop,
            _ => return,
        };
        self.asked = false;
        self.sender.handle(event);
        while let Some(action) = self.sender.poll_action() {
            assert!(!self.over, "{action:?} after the end");
            match action {
                SenderAction::Send { sequence } => {
                    assert!(self.on_their_way.insert(sequence));
                    self.asked = true;
                }
                SenderAction::Retry { sequence } | SenderAction::Repeat { sequence } => {
                    assert!(self.on_their_way.contains(&sequence));
                    self.asked = true;
                }
                SenderAction::Release { sequence, .. } | SenderAction::TakeBack { sequence } => {
                    assert!(
                        self.on_their_way.remove(&sequence),
                        "{sequence} is settled twice"
                    );
                }
                SenderAction::SendEnd { .. } => assert!(self.on_their_way.is_empty()),
                SenderAction::Finish => self.over = true,
            }
            assert!(self.on_their_way.len() <= HANDOVER_WINDOW + 1);
        }
        assert_eq!(self.over, self.sender.is_over());
        assert!(
            !self.over || self.on_their_way.is_empty(),
            "{:?}",
            self.on_their_way
        );
    }
}

#[derive(Default)]
struct Coming {
    receiver: Receiver,
    due: u32,
    adopting: bool,
    /// The refused packet.
    refused: Option<u32>,
    over: bool,
}

impl Coming {
    fn step(&mut self, step: &Step) {
        let event = match step {
            Step::Heard(off, said, descriptors) => {
                let descriptors = usize::from(descriptors % 4);
                let packet = packet(self.due + 1, *off, said);
                ReceiverEvent::Received {
                    packet,
                    descriptors,
                }
            }
            Step::Nonsense | Step::Stop => ReceiverEvent::Unfit { cause: cause() },
            Step::Adopted(taken) if self.adopting => ReceiverEvent::Adopted {
                taken: (*taken).into(),
                left: None,
            },
            Step::Unreadable(off) => ReceiverEvent::Unreadable {
                sequence: (self.due + 1).wrapping_add_signed((*off).into()),
                cause: cause(),
            },
            Step::PeerGone => ReceiverEvent::PeerGone,
            _ => return,
        };
        // The shell answers before it passes in any other event.
        let answer = matches!(event, ReceiverEvent::Adopted { .. });
        if self.adopting && !answer && event != ReceiverEvent::PeerGone {
            return;
        }
        self.adopting = false;
        self.receiver.handle(event);
        while let Some(action) = self.receiver.poll_action() {
            assert!(!self.over, "{action:?} after the end");
            match action {
                ReceiverAction::Adopt { .. } => {
                    assert!(
                        self.refused.is_none(),
                        "something is taken in after a refusal"
                    );
                    self.adopting = true;
                }
                ReceiverAction::Expect { .. } => assert_eq!(self.due, 0),
                ReceiverAction::Acknowledge { sequence, .. }
                | ReceiverAction::Decline { sequence, .. } => {
                    assert_eq!(sequence, self.due + 1);
                    self.due = sequence;
                }
                ReceiverAction::Repeat { sequence, .. } => assert!(sequence <= self.due),
                ReceiverAction::RequestAgain { .. } | ReceiverAction::Drop => {
                    panic!("{action:?} without a death");
                }
                ReceiverAction::Refuse { sequence, .. } => {
                    let first = *self.refused.get_or_insert(sequence);
                    assert!(sequence <= first, "a refusal of what was not sent");
                }
                ReceiverAction::Finish { complete } => {
                    assert!(!complete || self.refused.is_none());
                    self.over = true;
                }
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let (mut leaving, mut coming) = (Leaving::default(), Coming::default());
    for step in &steps {
        leaving.step(step);
        coming.step(step);
    }
});
