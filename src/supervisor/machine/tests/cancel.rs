//! Cancelled operations: the rollback of each, and the requests that are answered.

use super::planned::{ASKED, NEXT, calm, failure, hand_over, handed_over, reload, scale};
use super::*;

const CANCELLER: RequestId = RequestId(9);

fn cancel() -> Event {
    Event::Cancel {
        request: CANCELLER,
        by: Canceller::default(),
    }
}

fn cancelled(workers: u16, duration_ms: u64) -> Action {
    Action::Answer {
        request: CANCELLER,
        answer: Answer::Done(Done {
            workers,
            duration_ms,
            ..Done::default()
        }),
    }
}

fn refused(cause: &str) -> Action {
    Action::Answer {
        request: CANCELLER,
        answer: Answer::Refused {
            cause: cause.to_owned(),
        },
    }
}

#[test]
fn cancel_without_operation_is_refused() {
    let mut stage = Stage::booted(calm(1), 0);
    let cause = "no operation is in progress";
    assert_eq!(stage.at(100, cancel()), [refused(cause)]);
}

#[test]
fn cancelled_reload_stops_reading_configuration() {
    let mut stage = Stage::booted(calm(1), 0);
    let asked = Event::Requested {
        request: ASKED,
        wanted: Wanted::Reload,
        wait: false,
        drain: false,
    };
    stage.at(100, asked);
    let cause = "cancelled by `uppercased cancel`; nothing has changed".to_owned();
    let answer = Answer::Refused { cause };
    let request = ASKED;
    assert_eq!(
        stage.at(150, cancel()),
        [
            Action::AbortPreflight,
            Action::Answer { request, answer },
            cancelled(1, 0)
        ],
    );
}

#[test]
fn cancelled_reload_rolls_back() {
    // While the canary is watched.
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(100, reload(policy(2)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage.at(121, exited(0, 1, 0));
    let back = Action::Spawn {
        worker: worker(0, 3),
        listener: ListenerSource::Adopt,
        release: ReleaseId::FIRST,
        standby: true,
    };
    assert_eq!(stage.at(200, cancel()), [back]);
    let cause = "the operation is already being cancelled";
    assert_eq!(stage.at(201, cancel()), [refused(cause)]);
    assert_eq!(
        stage.at(210, ready(0, 3)),
        [hand_over(worker(0, 2), worker(0, 3), false)],
    );
    stage.at(220, handed_over(0, 2, HandoverEnd::Done));
    let cause = "cancelled by `uppercased cancel`; every worker runs the old release";
    assert_eq!(
        stage.at(221, exited(0, 2, 0)),
        [failure(cause), cancelled(2, 21)],
    );
    assert_ne!(stage.machine.release(), NEXT);
}

#[test]
fn cancelled_preflight_is_ended() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(
        100,
        Event::Upgrade {
            request: ASKED,
            drain: false,
        },
    );
    let cause = "cancelled by `uppercased cancel`; the running binary is unchanged";
    assert_eq!(
        stage.at(150, cancel()),
        [Action::AbortPreflight, failure(cause), cancelled(1, 0)],
    );
}

#[test]
fn cancelled_growth_removes_added_workers() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, scale(3));
    assert_eq!(stage.at(110, ready(1, 1)).last(), Some(&bind(2)));
    assert_eq!(stage.at(120, cancel()), [kill(2, 1)]);
    let actions = stage.at(121, killed(2, 1));
    assert!(actions.contains(&Action::Steer { slots: 1 }), "{actions:?}");
    // The handshakes of slot 1 get their time, then the slot leaves.
    let (_, actions) = stage.next_timeout();
    assert_eq!(actions, [hand_over(worker(1, 1), worker(0, 1), true)]);
    stage.at(3_200, handed_over(1, 1, HandoverEnd::Done));
    let actions = stage.at(3_201, exited(1, 1, 0));
    let cause = "cancelled by `uppercased cancel`; 1 workers serve";
    assert!(actions.contains(&failure(cause)), "{actions:?}");
    assert_eq!(actions.last(), Some(&cancelled(1, 3_081)));
}

#[test]
fn cancelled_shrinking_keeps_slots_that_have_not_left() {
    let mut stage = Stage::booted(calm(3), 0);
    stage.at(100, scale(1));
    let cause = "cancelled by `uppercased cancel`; 3 workers serve";
    assert_eq!(
        stage.at(150, cancel()),
        [Action::Unsteer, failure(cause), cancelled(3, 0)],
    );

    // One has begun to leave and does so, the other stays.
    stage.at(200, scale(1));
    let (_, actions) = stage.next_timeout();
    assert_eq!(actions, [hand_over(worker(2, 1), worker(0, 1), true)]);
    assert_eq!(stage.at(3_300, cancel()), []);
    stage.at(3_310, handed_over(2, 1, HandoverEnd::Done));
    let actions = stage.at(3_311, exited(2, 1, 0));
    let cause = "cancelled by `uppercased cancel`; 2 workers serve";
    assert!(actions.contains(&failure(cause)), "{actions:?}");
    assert_eq!(actions.last(), Some(&cancelled(2, 11)));
}

#[test]
fn stop_answers_cancelling_caller() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    stage.at(101, ready(0, 2));
    stage.at(110, cancel());
    let actions = stage.at(111, stop("SIGTERM"));
    for request in [ASKED, CANCELLER] {
        let cause = "the server is stopping".to_owned();
        let answer = Answer::Failed { cause };
        let action = Action::Answer { request, answer };
        assert!(actions.contains(&action), "{actions:?}");
    }
}
