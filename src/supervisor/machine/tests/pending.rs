//! Queued requests: one test per rule.

use super::planned::{ASKED, calm, done, handed_over, reload, scale};
use super::*;

fn by_signal(wanted: Wanted) -> Event {
    Event::Requested {
        request: RequestId::NOBODY,
        wanted,
        wait: true,
        drain: false,
    }
}

const fn waiting(request: u64, wanted: Wanted) -> Event {
    Event::Requested {
        request: RequestId(request),
        wanted,
        wait: true,
        drain: false,
    }
}

const fn begin(request: RequestId, wanted: Wanted) -> Action {
    Action::Begin {
        request,
        wanted,
        drain: false,
    }
}

fn refused(request: RequestId, cause: &str) -> Action {
    Action::Answer {
        request,
        answer: Answer::Refused {
            cause: cause.to_owned(),
        },
    }
}

const NOBODY: RequestId = RequestId::NOBODY;
const MORE: Wanted = Wanted::Scale(ScaleTo::By(1));
const FEWER: Wanted = Wanted::Scale(ScaleTo::By(-1));

/// Returns one slot whose successor takes over: the reload ends with the next `exited(0, 1, 0)`.
fn reloading() -> Stage {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage
}

#[test]
fn signals_during_operation_begin_after_it() {
    let mut stage = reloading();
    for wanted in [Wanted::Reload, Wanted::Upgrade, Wanted::Reload] {
        assert_eq!(stage.at(121, by_signal(wanted)), []);
    }
    assert_eq!(
        stage.machine.pending(),
        [
            (OperationKind::Reload, NOBODY),
            (OperationKind::Upgrade, NOBODY)
        ]
    );
    assert_eq!(
        stage.at(130, exited(0, 1, 0)),
        [done(1, 1, 10, 0, 30), begin(NOBODY, Wanted::Reload)],
    );
    // The shell may need time; further requests are not blocked.
    let cause = "reload about to begin: the configuration is being read; try again when it \
                 is done";
    assert_eq!(stage.at(131, scale(2)), [refused(ASKED, cause)]);
    let again = Event::Reload {
        request: NOBODY,
        release: ReleaseId(3),
        policy: calm(1),
        drain: false,
    };
    stage.at(140, again);
    stage.at(150, ready(0, 3));
    stage.at(160, handed_over(0, 2, HandoverEnd::Done));
    assert_eq!(
        stage.at(161, exited(0, 2, 0)).last(),
        Some(&begin(NOBODY, Wanted::Upgrade)),
    );
    assert!(stage.machine.pending().is_empty());
}

#[test]
fn signals_for_workers_add_up_to_target() {
    let mut stage = reloading();
    for (wanted, expected) in [
        (MORE, (OperationKind::Scale { to: 2 }, NOBODY)),
        (MORE, (OperationKind::Scale { to: 3 }, NOBODY)),
        (FEWER, (OperationKind::Scale { to: 2 }, NOBODY)),
    ] {
        assert_eq!(stage.at(121, by_signal(wanted)), []);
        assert_eq!(stage.machine.pending(), [expected]);
    }
    // Back at the original number: nothing is left to do. Numbers below the minimum are refused.
    assert_eq!(stage.at(122, by_signal(FEWER)), []);
    assert!(stage.machine.pending().is_empty());
    assert_eq!(
        stage.at(123, by_signal(FEWER)),
        [refused(NOBODY, "cannot run 0 workers; use 1 to 1024")],
    );
    stage.at(124, by_signal(MORE));
    // A number requested by a command comes in between, then the next signal.
    stage.at(125, waiting(8, Wanted::Scale(ScaleTo::Exactly(5))));
    stage.at(126, by_signal(FEWER));
    assert_eq!(
        stage.machine.pending(),
        [
            (OperationKind::Scale { to: 2 }, NOBODY),
            (OperationKind::Scale { to: 5 }, RequestId(8)),
            (OperationKind::Scale { to: 4 }, NOBODY)
        ],
    );
    assert_eq!(
        stage.at(130, exited(0, 1, 0)).last(),
        Some(&begin(NOBODY, Wanted::Scale(ScaleTo::Exactly(2)))),
    );
}

#[test]
fn signals_during_boot_begin_after_it() {
    let mut stage = Stage::new(calm(1));
    stage.at(0, Event::Boot);
    assert_eq!(stage.at(1, by_signal(Wanted::Reload)), []);
    assert_eq!(
        stage.at(2, ready(0, 1)).last(),
        Some(&begin(NOBODY, Wanted::Reload)),
    );
}

#[test]
fn pending_requests_survive_failure_and_exec() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(101, by_signal(Wanted::Reload));
    let saved = stage.machine.snapshot().to_json().unwrap();
    let read = Snapshot::from_json(&saved).unwrap();
    stage.machine = Machine::restore(read).unwrap();
    stage.at(110, start_failed(0, 2, "no such group"));
    assert_eq!(
        stage.at(111, exited(0, 2, 1)).last(),
        Some(&begin(NOBODY, Wanted::Reload)),
    );
}

#[test]
fn unprepared_request_is_refused_and_next_begins() {
    let mut stage = Stage::booted(calm(1), 0);
    let begins = |request, wanted| [begin(RequestId(request), wanted)];
    assert_eq!(
        stage.at(100, waiting(8, Wanted::Reload)),
        begins(8, Wanted::Reload),
    );
    assert_eq!(stage.at(101, waiting(9, Wanted::Upgrade)), []);
    let not_begun = Event::NotBegun {
        request: RequestId(8),
        wanted: Wanted::Reload,
        cause: "no such file".to_owned(),
    };
    assert_eq!(
        stage.at(102, not_begun),
        [
            refused(RequestId(8), "no such file"),
            begin(RequestId(9), Wanted::Upgrade)
        ],
    );
}

#[test]
fn waiting_commands_are_bounded_and_withdrawn() {
    let mut stage = reloading();
    for request in 10..18 {
        assert_eq!(stage.at(121, waiting(request, Wanted::Reload)), []);
    }
    let cause = "8 requests are already waiting; try again later";
    assert_eq!(
        stage.at(122, waiting(18, Wanted::Reload)),
        [refused(RequestId(18), cause)],
    );
    // Signals are never refused for their number.
    assert_eq!(stage.at(123, by_signal(Wanted::Upgrade)), []);
    let request = RequestId(10);
    assert_eq!(stage.at(124, Event::Withdrawn { request }), []);
    assert_eq!(stage.machine.pending().len(), 8);
    let impatient = Event::Requested {
        request: RequestId(19),
        wanted: Wanted::Reload,
        wait: false,
        drain: false,
    };
    let cause = "reload in progress: old workers are exiting; try again when it is done";
    assert_eq!(stage.at(125, impatient), [refused(RequestId(19), cause)]);
    assert_eq!(
        stage.at(130, exited(0, 1, 0)).last(),
        Some(&begin(RequestId(11), Wanted::Reload)),
    );
}

#[test]
fn stop_refuses_pending_requests() {
    let mut stage = reloading();
    stage.at(121, by_signal(Wanted::Reload));
    stage.at(122, waiting(8, Wanted::Upgrade));
    let answers = stage.at(123, stop("SIGTERM"));
    let cause = "the server is stopping";
    for request in [NOBODY, RequestId(8)] {
        assert!(answers.contains(&refused(request, cause)), "{answers:?}");
    }
    assert!(stage.machine.pending().is_empty());
    assert_eq!(
        stage.at(124, by_signal(Wanted::Reload)),
        [refused(NOBODY, cause)],
    );
}

#[test]
fn exit_refuses_dispatched_requests() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(5, waiting(8, Wanted::Upgrade));
    stage.at(6, stop("SIGTERM"));
    assert_eq!(
        stage.at(7, exited(0, 1, 0)),
        [refused(RequestId(8), "the server is stopping"), CLEAN],
    );
    assert_eq!(stage.machine.operation(), None);
}

#[test]
fn request_waits_for_old_workers_to_drain() {
    let policy = Policy {
        reload_connections: ReloadConnections::Drain,
        ..calm(1)
    };
    let mut stage = Stage::booted(policy.clone(), 0);
    stage.at(100, reload(policy));
    stage.at(110, ready(0, 2));
    assert_eq!(stage.at(120, by_signal(Wanted::Reload)), []);
    assert_eq!(
        stage.at(500, exited(0, 1, 0)),
        [begin(NOBODY, Wanted::Reload)],
    );
}

const RELOAD: Event = Event::Requested {
    request: ASKED,
    wanted: Wanted::Reload,
    wait: false,
    drain: false,
};

#[test]
fn reading_configuration_blocks_nothing_else() {
    let mut stage = Stage::booted(calm(1), 0);
    assert_eq!(stage.at(100, RELOAD), [begin(ASKED, Wanted::Reload)]);
    assert_eq!(stage.at(110, killed(0, 1)), [adopt(0, 2)]);
    assert_eq!(stage.at(120, ready(0, 2)), []);
    let actions = stage.at(130, reload(calm(1)));
    assert!(matches!(actions[..], [Action::Spawn { standby: true, .. }]));
    // Its deadline ends with it.
    assert_eq!(stage.at(140, ready(0, 3)).len(), 1);
    stage.at(150, handed_over(0, 2, HandoverEnd::Done));
    stage.at(151, exited(0, 2, 0));
    assert_eq!(stage.machine.poll_timeout(), None);
}

#[test]
fn hanging_configuration_times_out() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, RELOAD);
    let (at, actions) = stage.next_timeout();
    assert_eq!((at, &actions[0]), (5_100, &Action::AbortPreflight));
    let Action::Answer {
        answer: Answer::Refused { cause },
        ..
    } = &actions[1]
    else {
        panic!("{actions:?}");
    };
    assert!(cause.contains("within 5s") && cause.contains("start_timeout"));
    assert_eq!(stage.machine.operation(), None);

    // A stop does not wait for it.
    stage.at(6_000, RELOAD);
    let actions = stage.at(6_001, stop("SIGTERM"));
    assert_eq!(actions[0], Action::AbortPreflight);
    assert_eq!(actions[1], refused(ASKED, "the server is stopping"));
}
