//! Workers that an earlier supervisor has started.

use super::planned::{hand_over, handed_over};
use super::*;

const fn alone(slot: u16, generation: u32) -> Adopted {
    Adopted {
        worker: worker(slot, generation),
        other: None,
    }
}

#[test]
fn adopted_workers_serve_beside_missing_slots() {
    let mut stage = Stage::new(policy(4));
    stage.machine = stage.machine.with_listeners(3, Tick::ZERO);
    stage
        .machine
        .adopt(&[alone(0, 7), alone(2, 4)], &[], Tick::from_millis(1));
    assert_eq!(stage.machine.life(), Life::Serving);
    // Slot 3 has no listener yet, so it comes last.
    let begun = [adopt(1, 1), bind(3), spread(3), Action::Announce];
    assert_eq!(stage.actions(), begun);
    assert_eq!(stage.state(0), "serving");
    let recall = recall(1, worker(0, 7));
    stage.timeout(60);
    assert_eq!(stage.at(70, ready(1, 1)), [recall]);
    assert_eq!(stage.at(80, ready(3, 1)), [spread(4)]);
    // Generations continue.
    assert_eq!(stage.at(90, killed(0, 7)), [adopt(0, 8)]);
    let slots: Vec<_> = stage.machine.slots().map(|it| it.generation.0).collect();
    assert_eq!(slots, [8, 1, 4, 1]);
    assert_eq!(stage.at(95, Event::Boot), [], "it has begun");
}

#[test]
fn second_worker_hands_over_to_first() {
    let adopted = || {
        let mut stage = Stage::new(policy(1));
        stage.machine = stage.machine.with_listeners(1, Tick::ZERO);
        let both = Adopted {
            other: Some(Generation(3)),
            ..alone(0, 4)
        };
        stage.machine.adopt(&[both], &[], Tick::from_millis(1));
        let begun = [
            hand_over(worker(0, 3), worker(0, 4), false),
            spread(1),
            Action::Announce,
        ];
        assert_eq!(stage.actions(), begun);
        assert_eq!(stage.state(0), "serving");
        assert!(stage.machine.refusal(Tick::from_millis(2)).is_some());
        stage
    };
    let mut done = adopted();
    assert_eq!(done.at(5, handed_over(0, 3, HandoverEnd::Done)), []);
    assert_eq!(done.at(6, exited(0, 3, 0)), []);
    assert!(done.machine.refusal(Tick::from_millis(7)).is_none());
    // What cannot migrate stays, and blocks nothing.
    let mut incomplete = adopted();
    let within = Duration::MAX;
    let worker_3 = worker(0, 3);
    let cause = "full".to_owned();
    let end = handed_over(0, 3, HandoverEnd::Incomplete { cause });
    assert_eq!(
        incomplete.at(5, end),
        [Action::Leave {
            worker: worker_3,
            within
        }]
    );
    assert!(incomplete.machine.refusal(Tick::from_millis(7)).is_none());
    // A receiver that a keeper continues has connections of its own.
    let mut gone = adopted();
    let end = handed_over(0, 3, HandoverEnd::PeerGone);
    assert_eq!(
        gone.at(5, end),
        [Action::Leave {
            worker: worker_3,
            within
        }]
    );
    assert_eq!(gone.state(0), "serving");
    // If the first dies, the other serves.
    let mut lost = adopted();
    assert_eq!(lost.at(5, killed(0, 4)), []);
    assert_eq!(lost.state(0), "serving");
    assert_eq!(lost.at(6, handed_over(0, 3, HandoverEnd::PeerGone)), []);
}

#[test]
fn leaving_workers_go_on_until_their_end() {
    let mut stage = Stage::new(policy(1));
    stage.machine = stage.machine.with_listeners(1, Tick::ZERO);
    let within = Duration::from_secs(5);
    // One of a slot that stays, and one of a slot that has left, like the one below it.
    let leaving = [(worker(0, 2), Duration::MAX), (worker(2, 3), within)];
    stage
        .machine
        .adopt(&[alone(0, 4)], &leaving, Tick::from_millis(1));
    assert_eq!(stage.actions(), [spread(1), Action::Announce]);
    assert_eq!(stage.state(0), "serving");
    assert_eq!(stage.machine.policy().workers, 1);
    assert!(stage.machine.refusal(Tick::from_millis(2)).is_some());
    let dropped = [2, 1].map(|slot| Action::DropSlot { slot: SlotId(slot) });
    assert_eq!(stage.at(90, exited(2, 3, 0)), dropped);
    // One without an end blocks nothing.
    assert!(stage.machine.refusal(Tick::from_millis(91)).is_none());
    assert_eq!(stage.at(95, exited(0, 2, 0)), []);
}
