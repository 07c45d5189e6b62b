//! Killed workers that do not exit: operations continue without them.

use super::planned::{calm, reload};
use super::*;

const fn abandon(slot: u16, generation: u32) -> Action {
    Action::Abandon {
        worker: worker(slot, generation),
    }
}

const GRACE: u64 = 2_000;

#[test]
fn killed_worker_that_stays_is_replaced() {
    assert_eq!(KILL_GRACE, ms(GRACE));
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(100, channel_broken(0, 1));
    assert_eq!(stage.timeout(150), [lend(0, worker(1, 1))]);
    let given_up = stage.next_timeout();
    assert_eq!(given_up, (100 + GRACE, vec![abandon(0, 1), adopt(0, 2)]));
    assert_eq!(stage.machine.slots().next().unwrap().crashes, 1);
    let not_ended = Notice::NotEnded {
        worker: worker(0, 1),
        after: KILL_GRACE,
    };
    assert!(stage.notices.contains(&not_ended), "{:?}", stage.notices);
    // Its late exit is ignored.
    assert_eq!(stage.at(3_000, killed(0, 1)), []);
    assert_eq!(stage.machine.stale_events(), 1);
}

#[test]
fn stop_ends_without_worker_that_stays() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(100, stop("SIGTERM"));
    assert_eq!(stage.at(200, stop("SIGTERM")), [kill(0, 1)]);
    let (at, actions) = stage.next_timeout();
    assert_eq!(at, 200 + GRACE);
    assert_eq!(actions, [abandon(0, 1), Action::Exit(Outcome::Clean)]);
    assert_eq!(stage.machine.poll_timeout(), None);
}

#[test]
fn drain_waits_for_others_when_one_stays() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(100, channel_broken(0, 1));
    stage.at(110, stop("SIGTERM"));
    assert_eq!(stage.next_timeout(), (100 + GRACE, vec![abandon(0, 1)]));
    let end = stage.at(3_000, exited(1, 1, 0));
    assert_eq!(end, [Action::Exit(Outcome::Clean)]);
}

#[test]
fn failed_boot_ends_without_worker_that_stays() {
    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    stage.at(10, ready(0, 1));
    assert_eq!(
        stage.at(20, start_failed(1, 1, "no")),
        [kill(0, 1), kill(1, 1)]
    );
    stage.at(30, exited(1, 1, 1));
    let (at, actions) = stage.next_timeout();
    assert_eq!(at, 20 + GRACE);
    assert!(
        matches!(
            actions.as_slice(),
            [Action::Abandon { .. }, Action::Exit(Outcome::Failed { .. })]
        ),
        "{actions:?}"
    );
}

#[test]
fn roll_back_ends_without_successor_that_stays() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    assert_eq!(stage.at(200, channel_broken(0, 2)), [kill(0, 2)]);
    let (at, actions) = stage.next_timeout();
    assert_eq!((at, actions.first()), (200 + GRACE, Some(&abandon(0, 2))));
    let answered = |it: &Action| {
        matches!(it, Action::Answer { answer: Answer::Failed { cause }, .. }
            if cause.contains("held by the kernel"))
    };
    assert!(actions.iter().any(answered), "{actions:?}");
    assert_eq!(stage.state(0), "serving");
}

#[test]
fn dead_end_state_is_found() {
    let mut machine = Stage::booted(policy(1), 0).machine;
    assert_eq!(machine.endless(), None);
    machine.phase = Phase::Forced;
    assert!(machine.endless().unwrap().contains("phase"));
    machine.phase = Phase::Serving;
    machine.slots[0].workers[0].state = WorkerState::Stopping;
    assert!(machine.endless().unwrap().contains("stopping"));
}
