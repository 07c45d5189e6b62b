//! Handovers that stall, stay incomplete or roll back.

use super::*;

/// Samples the handover from `from` to `to`, with this result.
fn sample(stage: &mut Stage, from: WorkerId, to: WorkerId, progress: Progress) -> Vec<Action> {
    let (at, actions) = stage.next_timeout();
    assert_eq!(actions, [Action::TakeProgress { from, to }], "at {at}");
    stage.at(at, Event::Progress { from, to, progress })
}

const fn progress(sent: u64, settled: u64, answered: u64) -> Progress {
    Progress {
        sent,
        settled,
        answered,
    }
}

#[test]
fn stalled_side_of_a_handover_is_replaced() {
    let (old, new) = (worker(0, 1), worker(0, 2));
    let begun = || {
        let mut stage = Stage::booted(calm(1), 0);
        stage.at(100, reload(calm(1)));
        stage.at(110, ready(0, 2));
        stage
    };
    // As long as either number grows there is no deadline.
    let mut stage = begun();
    for step in 0..100 {
        let found = progress(step + 1, step, step);
        assert_eq!(sample(&mut stage, old, new, found), []);
    }
    assert_eq!(
        stage.at(300_000, handed_over(0, 1, HandoverEnd::Done)),
        [COMMIT]
    );

    // Three samples without progress are one too few.
    let mut stage = begun();
    for _ in 0..4 {
        assert_eq!(sample(&mut stage, old, new, progress(6, 2, 3)), []);
    }
    assert_eq!(sample(&mut stage, old, new, progress(6, 2, 4)), []);
    for _ in 0..3 {
        assert_eq!(sample(&mut stage, old, new, progress(6, 2, 4)), []);
    }
    // The receiver must answer what was sent and not answered.
    assert_eq!(
        sample(&mut stage, old, new, progress(6, 2, 4)),
        [kill(0, 2)]
    );
    let given_up = stage
        .machine
        .poll_timeout()
        .expect("it is not awaited for ever");
    assert_eq!(given_up, Tick::from_millis(22_610) + KILL_GRACE);
    assert!(matches!(
        stage.at(23_000, killed(0, 2)).as_slice(),
        [Action::Answer {
            answer: Answer::Failed { .. },
            ..
        }]
    ));
    assert_eq!(
        (stage.state(0), stage.release(0)),
        ("serving", ReleaseId::FIRST)
    );
}

#[test]
fn stalled_sender_does_not_cost_the_receiver() {
    let (old, new) = (worker(0, 1), worker(0, 2));
    // It has sent nothing, or has not read the answers.
    for found in [progress(0, 0, 0), progress(6, 2, 6)] {
        let mut stage = Stage::booted(calm(1), 0);
        stage.at(100, reload(calm(1)));
        stage.at(110, ready(0, 2));
        let mut last = Vec::new();
        while last.is_empty() {
            last = sample(&mut stage, old, new, found);
        }
        assert_eq!(last, [kill(0, 1), COMMIT]);
        let cause = "the handover of slot 0 generation 1 stalled, and it was killed; \
                     everything else is done";
        assert_eq!(stage.at(100_000, killed(0, 1)), [failure(cause)]);
        assert_eq!((stage.state(0), stage.release(0)), ("serving", NEXT));
    }
}

#[test]
fn staying_connections_roll_back_reload() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage.at(121, exited(0, 1, 0));
    stage.at(130, ready(1, 2));
    // Migrated connections return, and the earlier slot gets the old release again.
    assert_eq!(
        stage.at(140, refused_by_peer(1, 1, 5)),
        [
            serve(1, 1),
            hand_over(worker(1, 2), worker(1, 1), false),
            standby(0, 3, ReleaseId::FIRST),
        ],
    );
    assert_eq!(stage.release(1), ReleaseId::FIRST);
    assert_eq!(stage.at(150, handed_over(1, 2, HandoverEnd::Done)), []);
    assert_eq!(stage.at(151, exited(1, 2, 0)), []);
    stage.at(160, ready(0, 3));
    stage.at(170, handed_over(0, 2, HandoverEnd::Done));
    let cause = "cannot migrate 5 connections of slot 1 generation 1: full; every worker runs the \
                 old release";
    assert_eq!(stage.at(171, exited(0, 2, 0)), [failure(cause)]);
    assert_eq!(stage.machine.release(), ReleaseId::FIRST);

    // Connections that cannot return either are not closed for that.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, refused_by_peer(0, 1, 5));
    let told = stage.at(130, refused_by_peer(0, 2, 1));
    assert!(matches!(
        told[..],
        [
            Action::Leave {
                within: Duration::MAX,
                ..
            },
            Action::Answer {
                answer: Answer::Failed { .. },
                ..
            }
        ]
    ));
    assert_eq!(stage.state(0), "serving");
}

#[test]
fn refused_connections_drain_on_request() {
    let mut stage = Stage::booted(calm(1), 0);
    let request = Event::Reload {
        request: ASKED,
        release: NEXT,
        policy: calm(1),
        drain: true,
    };
    stage.at(100, request);
    stage.at(110, ready(0, 2));
    let leave = Action::Leave {
        worker: worker(0, 1),
        within: ms(30_000),
    };
    assert_eq!(
        stage.at(120, refused_by_peer(0, 1, 5)),
        [leave, COMMIT, done(1, 1, 0, 5, 20)],
    );
    assert_eq!(stage.at(9_000, exited(0, 1, 0)), []);
    assert!(stage.notices.contains(&Notice::WorkerStopped {
        worker: worker(0, 1),
        exit: ExitStatus::Exited(0),
    }));
}
