//! Unit tests of `machine.rs`.

use super::*;

const SENT: SenderEvent = SenderEvent::Sent { count: 2 };

fn release(sequence: u32) -> SenderAction {
    let left = Vec::new();
    SenderAction::Release { sequence, left }
}

fn actions(sender: &mut Sender, event: SenderEvent) -> Vec<SenderAction> {
    sender.handle(event);
    std::iter::from_fn(|| sender.poll_action()).collect()
}

fn turn(waiting: u32) -> SenderEvent {
    SenderEvent::Turn {
        waiting,
        stuck: 0,
        complete: true,
    }
}

fn acknowledged(sequence: u32) -> SenderEvent {
    let message = Message::Acknowledged {
        taken: 2,
        left: None,
    };
    SenderEvent::Received(Packet { sequence, message })
}

/// Returns a sender with two batches in flight: 1 and 2.
fn waiting() -> Sender {
    let mut sender = Sender::default();
    for sequence in [1, 2] {
        let sent = actions(&mut sender, turn(5));
        assert_eq!(sent, [SenderAction::Send { sequence }]);
        assert!(actions(&mut sender, SENT).is_empty());
    }
    sender
}

#[test]
fn window_bounds_batches_in_flight() {
    let mut sender = Sender::default();
    for _ in 0..HANDOVER_WINDOW {
        assert_eq!(actions(&mut sender, turn(5)).len(), 1);
        actions(&mut sender, SENT);
    }
    assert!(actions(&mut sender, turn(5)).is_empty());
    actions(&mut sender, acknowledged(1));
    assert_eq!(actions(&mut sender, turn(5)).len(), 1);
}

#[test]
fn acknowledgements_pace_the_batches() {
    let mut sender = waiting();
    let first = actions(&mut sender, acknowledged(1));
    assert_eq!(first, [release(1)]);
    assert!(actions(&mut sender, turn(0)).is_empty(), "2 is on its way");
    actions(&mut sender, acknowledged(2));
    let end = [SenderAction::SendEnd { sequence: 3 }, SenderAction::Finish];
    assert_eq!(actions(&mut sender, turn(0)), end);
    assert_eq!(sender.end(), Some(&HandoverEnd::Done));
    assert!(actions(&mut sender, SenderEvent::PeerGone).is_empty());
}

#[test]
fn receiver_end_brings_batches_back() {
    let back = [
        SenderAction::TakeBack { sequence: 2 },
        SenderAction::TakeBack { sequence: 3 },
        SenderAction::Finish,
    ];
    let cause = "full".to_owned();
    let refused = Packet {
        sequence: 2,
        message: Message::Refused {
            cause: cause.clone(),
        },
    };
    for (event, end) in [
        (SenderEvent::PeerGone, HandoverEnd::PeerGone),
        (
            SenderEvent::Received(refused),
            HandoverEnd::Refused { cause },
        ),
    ] {
        let mut sender = waiting();
        actions(&mut sender, acknowledged(1));
        // The third is put away, and the kernel has no room for it.
        actions(&mut sender, turn(5));
        actions(&mut sender, SenderEvent::Blocked);
        assert!(sender.is_blocked());
        assert_eq!(actions(&mut sender, event), back);
        assert_eq!(sender.end(), Some(&end));
    }
}

#[test]
fn stop_waits_for_batches_in_flight() {
    let mut sender = waiting();
    actions(&mut sender, acknowledged(1));
    actions(&mut sender, turn(5));
    actions(&mut sender, SenderEvent::Blocked);
    let back = [SenderAction::TakeBack { sequence: 3 }];
    assert_eq!(actions(&mut sender, SenderEvent::Stop), back);
    assert!(actions(&mut sender, turn(5)).is_empty());
    assert_eq!(sender.end(), None);
    let last = [release(2), SenderAction::Finish];
    assert_eq!(actions(&mut sender, acknowledged(2)), last);
    assert!(sender.is_over() && sender.end().is_none());
    let mut idle = Sender::default();
    assert_eq!(
        actions(&mut idle, SenderEvent::Stop),
        [SenderAction::Finish]
    );
}

#[test]
fn stop_stays_a_stop() {
    let cause = || "noise".to_owned();
    let refused = Packet {
        sequence: 1,
        message: Message::Refused { cause: cause() },
    };
    for last in [SenderEvent::Received(refused), SenderEvent::PeerGone] {
        let mut sender = waiting();
        actions(&mut sender, SenderEvent::Invalid { cause: cause() });
        actions(&mut sender, SenderEvent::Stop);
        actions(&mut sender, last);
        assert!(sender.is_over() && sender.end().is_none());
    }
    let mut sender = waiting();
    actions(&mut sender, SenderEvent::Invalid { cause: cause() });
    actions(&mut sender, SenderEvent::PeerGone);
    assert_eq!(sender.end(), Some(&HandoverEnd::PeerGone));
}

#[test]
fn stuck_connection_stops_no_other() {
    let mut sender = waiting();
    let answer = |sequence, message| SenderEvent::Received(Packet { sequence, message });
    let left = Left {
        places: vec![1],
        cause: "no descriptor".to_owned(),
    };
    let some = Message::Acknowledged {
        taken: 1,
        left: Some(left),
    };
    let resolved = actions(&mut sender, answer(1, some));
    let (sequence, left) = (1, vec![1]);
    assert_eq!(resolved, [SenderAction::Release { sequence, left }]);
    let cause = "unreadable".to_owned();
    let resolved = actions(&mut sender, answer(2, Message::Declined { cause }));
    assert_eq!(resolved, [SenderAction::TakeBack { sequence: 2 }]);
    let again = actions(&mut sender, turn(1));
    assert_eq!(again, [SenderAction::Send { sequence: 3 }]);
    actions(&mut sender, SENT);
    assert_eq!(actions(&mut sender, acknowledged(3)), [release(3)]);
    let stuck = SenderEvent::Turn {
        waiting: 0,
        stuck: 3,
        complete: true,
    };
    actions(&mut sender, stuck);
    let cause = "no descriptor".to_owned();
    assert_eq!(sender.end(), Some(&HandoverEnd::Incomplete { cause }));
}

#[test]
fn acknowledgement_accounts_for_each_connection_once() {
    let left = |places: &[u8]| {
        Some(Left {
            places: places.to_vec(),
            cause: String::new(),
        })
    };
    for (taken, left) in [
        (1, None),
        (3, None),
        (2, left(&[0])),
        (1, left(&[2])),
        (u32::MAX, left(&[0, 1])),
    ] {
        let mut sender = waiting();
        let message = Message::Acknowledged { taken, left };
        let sequence = 1;
        let answer = SenderEvent::Received(Packet { sequence, message });
        assert!(actions(&mut sender, answer).is_empty(), "{taken}");
    }
}

#[test]
fn unreadable_batch_is_declined_and_the_next_read() {
    let mut receiver = Receiver::default();
    let begin = received(0, Message::Begin { coming: 7 });
    let actions = answers(&mut receiver, begin);
    assert_eq!(actions, [ReceiverAction::Expect { coming: 7 }]);
    let (sequence, cause) = (1, "version 9".to_owned());
    let unreadable = ReceiverEvent::Unreadable {
        sequence,
        cause: cause.clone(),
    };
    let actions = answers(&mut receiver, unreadable);
    assert_eq!(actions, [ReceiverAction::Decline { sequence, cause }]);
    let next = answers(&mut receiver, received(2, Message::Batch(Vec::new())));
    assert!(matches!(next[..], [ReceiverAction::Adopt { .. }]));
}

#[test]
fn invalid_answer_settles_nothing() {
    let cause = || "noise".to_owned();
    for event in [
        acknowledged(2),
        SenderEvent::Invalid { cause: cause() },
        SenderEvent::Received(Packet {
            sequence: 1,
            message: Message::End { moved: 0 },
        }),
    ] {
        let mut sender = waiting();
        assert!(actions(&mut sender, event).is_empty());
        assert_eq!(sender.end(), None);
        actions(&mut sender, acknowledged(1));
        let back = [SenderAction::TakeBack { sequence: 2 }, SenderAction::Finish];
        assert_eq!(actions(&mut sender, SenderEvent::PeerGone), back);
    }
}

fn answers(receiver: &mut Receiver, event: ReceiverEvent) -> Vec<ReceiverAction> {
    receiver.handle(event);
    std::iter::from_fn(|| receiver.poll_action()).collect()
}

fn received(sequence: u32, message: Message) -> ReceiverEvent {
    ReceiverEvent::Received {
        packet: Packet { sequence, message },
        descriptors: 0,
    }
}

#[test]
fn misplaced_packet_is_refused() {
    let is_batch = |event: &ReceiverEvent| {
        let ReceiverEvent::Received { packet, .. } = event else {
            return false;
        };
        matches!(packet.message, Message::Batch(_))
    };
    let events = [
        received(2, Message::Batch(Vec::new())),
        received(1, Message::End { moved: 1 }),
        received(
            1,
            Message::Acknowledged {
                taken: 1,
                left: None,
            },
        ),
        received(0, Message::End { moved: 0 }),
        received(1, Message::Begin { coming: 1 }),
        ReceiverEvent::Received {
            packet: Packet {
                sequence: 1,
                message: Message::Batch(Vec::new()),
            },
            descriptors: 1,
        },
        ReceiverEvent::Unfit {
            cause: "noise".to_owned(),
        },
    ];
    for event in events {
        let mut receiver = Receiver::default();
        let actions = answers(&mut receiver, event.clone());
        assert!(
            matches!(actions[..], [ReceiverAction::Refuse { .. }]),
            "{event:?}"
        );
        // Once, but a sender that is another process may not have read it.
        let again = usize::from(is_batch(&event));
        assert_eq!(answers(&mut receiver, event).len(), again);
        let over = answers(&mut receiver, ReceiverEvent::PeerGone);
        assert_eq!(over, [ReceiverAction::Finish { complete: false }]);
    }
}

#[test]
fn resumed_sender_repeats_before_it_continues() {
    let mut sender = Sender::resumed(3, &[(2, 2), (3, 2)]);
    let repeat = |sequence| [SenderAction::Repeat { sequence }];
    assert!(sender.is_blocked() && !sender.has_room());
    assert_eq!(actions(&mut sender, turn(5)), repeat(2));
    assert_eq!(actions(&mut sender, SENT), repeat(3));
    let cause = "no memory".to_owned();
    assert!(actions(&mut sender, SenderEvent::Failed { cause }).is_empty());
    assert_eq!(actions(&mut sender, turn(5)), repeat(3));
    assert!(actions(&mut sender, SENT).is_empty());
    // Both answers of batch 2 arrive.
    assert_eq!(actions(&mut sender, acknowledged(2)), [release(2)]);
    assert!(actions(&mut sender, acknowledged(2)).is_empty());
    let again = Packet {
        sequence: 2,
        message: Message::Again,
    };
    assert!(actions(&mut sender, SenderEvent::Received(again)).is_empty());
    assert_eq!(actions(&mut sender, turn(5)), repeat(3));
    assert!(actions(&mut sender, SENT).is_empty());
    assert_eq!(actions(&mut sender, acknowledged(3)), [release(3)]);
    assert_eq!(
        actions(&mut sender, turn(5)),
        [SenderAction::Send { sequence: 4 }]
    );
}

#[test]
fn answer_after_lost_one_is_awaited_again() {
    let mut sender = Sender::resumed(2, &[(1, 2), (2, 2)]);
    // The dead process has read the answer to batch 1.
    assert!(actions(&mut sender, acknowledged(2)).is_empty());
    assert_eq!(actions(&mut sender, acknowledged(1)), [release(1)]);
    assert_eq!(actions(&mut sender, acknowledged(2)), [release(2)]);
    let mut sender = waiting();
    assert!(actions(&mut sender, acknowledged(2)).is_empty());
    assert!(
        !sender.has_room(),
        "an answer to a batch of its own is invalid"
    );
}

#[test]
fn unsendable_batch_leaves_no_gap() {
    let mut sender = waiting();
    actions(&mut sender, turn(5));
    let cause = "too large".to_owned();
    actions(&mut sender, SenderEvent::Failed { cause });
    let next = [SenderAction::Send { sequence: 3 }];
    assert_eq!(actions(&mut sender, turn(5)), next);
}

#[test]
fn resumed_receiver_repeats_answers() {
    let batch = |sequence| received(sequence, Message::Batch(Vec::new()));
    let mut receiver = Receiver::default();
    answers(&mut receiver, batch(1));
    let adopted = ReceiverEvent::Adopted {
        taken: 2,
        left: None,
    };
    answers(&mut receiver, adopted);
    let mut receiver = Receiver::resumed(receiver.received());
    let first: Vec<_> = std::iter::from_fn(|| receiver.poll_action()).collect();
    let answer = Answer {
        taken: 2,
        left: Vec::new(),
    };
    let repeat = ReceiverAction::Repeat {
        sequence: 1,
        answer,
    };
    let request = ReceiverAction::RequestAgain { after: 1 };
    assert_eq!(first, [repeat.clone(), request]);
    // The second was lost.
    assert_eq!(answers(&mut receiver, batch(3)), [ReceiverAction::Drop]);
    assert_eq!(answers(&mut receiver, batch(1)), [repeat]);
    let adopt = answers(&mut receiver, batch(2));
    assert!(matches!(adopt[..], [ReceiverAction::Adopt { .. }]));
}

#[test]
fn batch_is_acknowledged_after_adoption() {
    let mut receiver = Receiver::default();
    let batch = received(1, Message::Batch(Vec::new()));
    let adopt = answers(&mut receiver, batch);
    assert!(matches!(adopt[..], [ReceiverAction::Adopt { .. }]));
    let (taken, left) = (0, None);
    let adopted = ReceiverEvent::Adopted {
        taken,
        left: left.clone(),
    };
    let actions = answers(&mut receiver, adopted);
    let sequence = 1;
    let acknowledged = ReceiverAction::Acknowledge {
        sequence,
        taken,
        left,
    };
    assert_eq!(actions, [acknowledged]);
    assert!(answers(&mut receiver, received(2, Message::End { moved: 0 })).is_empty());
    let over = answers(&mut receiver, ReceiverEvent::PeerGone);
    assert_eq!(over, [ReceiverAction::Finish { complete: true }]);
    assert!(answers(&mut receiver, ReceiverEvent::PeerGone).is_empty());
}
