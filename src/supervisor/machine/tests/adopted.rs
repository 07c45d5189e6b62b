//! Workers that an earlier supervisor has started.

use super::*;

#[test]
fn adopted_workers_serve_beside_missing_slots() {
    let mut stage = Stage::new(policy(4));
    stage.machine = stage.machine.with_listeners(3, Tick::ZERO);
    stage
        .machine
        .adopt(&[worker(0, 7), worker(2, 4)], Tick::from_millis(1));
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
