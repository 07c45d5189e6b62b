//! Reload and upgrade, and the rules of every planned operation: one test per rule.

use super::*;
use uppercased_ctl::clock::millis;

mod handovers;

const fn serve(slot: u16, generation: u32) -> Action {
    Action::Serve {
        worker: worker(slot, generation),
    }
}

const NOT_ASKED: RequestId = RequestId::NOBODY;
pub(super) const ASKED: RequestId = RequestId(7);
pub(super) const NEXT: ReleaseId = ReleaseId(2);

pub(super) const fn calm(workers: u16) -> Policy {
    Policy {
        bake_time: Duration::ZERO,
        ..policy(workers)
    }
}

pub(super) fn reload(policy: Policy) -> Event {
    Event::Reload {
        request: ASKED,
        release: NEXT,
        policy,
        drain: false,
    }
}

pub(super) const fn scale(to: u16) -> Event {
    Event::Scale {
        request: ASKED,
        to: ScaleTo::Exactly(to),
        drain: false,
    }
}

const fn standby(slot: u16, generation: u32, release: ReleaseId) -> Action {
    Action::Spawn {
        worker: worker(slot, generation),
        listener: ListenerSource::Adopt,
        release,
        standby: true,
    }
}

pub(super) const fn hand_over(from: WorkerId, to: WorkerId, last: bool) -> Action {
    Action::HandOver { from, to, last }
}

pub(super) const fn handed_over(slot: u16, generation: u32, end: HandoverEnd) -> Event {
    Event::HandedOver {
        worker: worker(slot, generation),
        moved: 10,
        left: 0,
        end,
    }
}

pub(super) fn refused_by_peer(slot: u16, generation: u32, left: u32) -> Event {
    Event::HandedOver {
        worker: worker(slot, generation),
        moved: 0,
        left,
        end: HandoverEnd::Refused {
            cause: "full".to_owned(),
        },
    }
}

pub(super) fn done(
    replaced: u16,
    workers: u16,
    migrated: u64,
    draining: u64,
    duration_ms: u64,
) -> Action {
    Action::Answer {
        request: ASKED,
        answer: Answer::Done(Done {
            replaced,
            workers,
            migrated,
            draining,
            duration_ms,
            closed_after_ms: millis(policy(1).drain_timeout),
        }),
    }
}

pub(super) fn failure(cause: &str) -> Action {
    Action::Answer {
        request: ASKED,
        answer: Answer::Failed {
            cause: cause.to_owned(),
        },
    }
}

pub(super) fn refusal(cause: &str) -> Action {
    Action::Answer {
        request: ASKED,
        answer: Answer::Refused {
            cause: cause.to_owned(),
        },
    }
}

pub(super) const COMMIT: Action = Action::Commit { release: NEXT };
const START_AGAIN: &str = "the server is still starting; try again when it is ready";

impl Stage {
    /// Returns the release of the slot's main worker.
    fn release(&self, slot: usize) -> ReleaseId {
        self.machine.slots().nth(slot).unwrap().release
    }
}

#[test]
fn reload_replaces_slots_in_turn_then_answers() {
    let mut stage = Stage::booted(calm(2), 0);
    assert_eq!(stage.at(100, reload(calm(2))), [standby(0, 2, NEXT)]);
    assert_eq!(
        stage.at(110, ready(0, 2)),
        [hand_over(worker(0, 1), worker(0, 2), false)],
    );
    assert_eq!(
        stage.at(120, handed_over(0, 1, HandoverEnd::Done)),
        [standby(1, 2, NEXT)],
    );
    assert_eq!(stage.at(121, exited(0, 1, 0)), []);
    assert_eq!(
        stage.at(130, ready(1, 2)),
        [hand_over(worker(1, 1), worker(1, 2), false)],
    );
    // The new release is in force; the answer waits until the last old worker has exited.
    assert_eq!(
        stage.at(140, handed_over(1, 1, HandoverEnd::Done)),
        [COMMIT]
    );
    assert_eq!(stage.at(141, exited(1, 1, 0)), [done(2, 2, 20, 0, 41)]);
    assert_eq!(stage.machine.release(), NEXT);
    assert_eq!(stage.machine.poll_timeout(), None);
    // A crashed worker is replaced with it.
    let replacement = Action::Spawn {
        worker: worker(0, 3),
        listener: ListenerSource::Adopt,
        release: NEXT,
        standby: false,
    };
    assert_eq!(stage.at(200, killed(0, 2)), [replacement]);
}

#[test]
fn canary_is_watched_before_others_follow() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(100, reload(policy(2)));
    stage.at(110, ready(0, 2));
    assert_eq!(stage.at(120, handed_over(0, 1, HandoverEnd::Done)), []);
    stage.at(121, exited(0, 1, 0));
    assert_eq!(stage.next_timeout(), (1_120, vec![standby(1, 2, NEXT)]));

    // The canary fails: everything is rolled back, though there is only one slot.
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(100, reload(policy(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage.at(121, exited(0, 1, 0));
    assert_eq!(stage.at(500, killed(0, 2)), [adopt(0, 3)]);
    let cause = "the new worker of slot 0 exited after 390.0ms of service: \
                 signal 9 (SIGKILL); every worker runs the old release";
    assert_eq!(stage.at(510, ready(0, 3)), [failure(cause)]);
    assert_eq!(stage.release(0), ReleaseId::FIRST);
}

#[test]
fn draining_predecessor_delays_nothing() {
    let policy = Policy {
        reload_connections: ReloadConnections::Drain,
        ..calm(1)
    };
    let mut stage = Stage::booted(policy.clone(), 0);
    stage.at(100, reload(policy.clone()));
    assert_eq!(
        stage.at(110, ready(0, 2)),
        [
            Action::Serve {
                worker: worker(0, 2)
            },
            Action::Leave {
                worker: worker(0, 1),
                within: ms(30_000),
            },
            COMMIT,
            done(1, 1, 0, 0, 10),
        ],
    );
    let cause = "1 old worker still draining (for at most 36.99s); try again later";
    assert_eq!(stage.at(120, reload(policy)), [refusal(cause)]);
    // 110 + drain 30,000 + linger 5,000 + grace 2,000.
    assert_eq!(stage.next_timeout(), (37_110, vec![kill(0, 1)]));
    assert_eq!(stage.at(37_111, killed(0, 1)), []);
}

#[test]
fn failed_successor_changes_nothing() {
    let words = "no such group";
    let cause = "the new worker of slot 0 exited before it was ready: exit code 1 \
                 (no such group); every worker runs the old release";
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    assert_eq!(stage.at(110, start_failed(0, 2, words)), []);
    assert_eq!(stage.at(111, exited(0, 2, 1)), [failure(cause)]);
    assert_eq!(
        (stage.state(0), stage.release(0)),
        ("serving", ReleaseId::FIRST)
    );
    assert_eq!(stage.machine.poll_timeout(), None);

    // It does not count as the slot's failure: the next crash is the first.
    assert_eq!(stage.at(200, killed(0, 1)), [adopt(0, 3)]);

    let mut stage = Stage::booted(calm(1), 0);
    let slow = Policy {
        start_timeout: ms(7_000),
        ..calm(1)
    };
    stage.at(100, reload(slow));
    assert_eq!(stage.next_timeout(), (7_100, vec![kill(0, 2)]));
    assert_eq!(stage.at(7_101, ready(0, 2)), []);
    let cause = "the new worker of slot 0 exited before it was ready: \
                 signal 9 (SIGKILL) (not ready in time); every worker runs the old release";
    assert_eq!(stage.at(7_102, killed(0, 2)), [failure(cause)]);
}

#[test]
fn failure_in_later_slot_rolls_back_earlier_slots() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage.at(121, exited(0, 1, 0));
    assert_eq!(
        stage.at(130, spawn_failed(1, 2)),
        [standby(0, 3, ReleaseId::FIRST)],
    );
    assert_eq!(
        stage.at(140, ready(0, 3)),
        [hand_over(worker(0, 2), worker(0, 3), false)],
    );
    stage.at(150, handed_over(0, 2, HandoverEnd::Done));
    let cause = "the new worker of slot 1 cannot be started: fork: EAGAIN; \
                 every worker runs the old release";
    assert_eq!(stage.at(151, exited(0, 2, 0)), [failure(cause)]);
    assert_eq!(stage.machine.release(), ReleaseId::FIRST);

    // The rollback can fail too; then the answer names the release of each slot.
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    stage.at(121, exited(0, 1, 0));
    stage.at(130, spawn_failed(1, 2));
    let cause = "the new worker of slot 1 cannot be started: fork: EAGAIN; \
                 slot 0 still runs release 2";
    assert_eq!(stage.at(140, spawn_failed(0, 3)), [failure(cause)]);
    // Its next worker runs the old release.
    assert_eq!(stage.at(200, killed(0, 2)), [adopt(0, 4)]);
}

#[test]
fn superseded_worker_has_not_failed() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    stage.at(110, ready(0, 2));
    stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    // A worker that leaves and exits abnormally counts as failed.
    stage.at(121, killed(0, 1));
    let crashes = |stage: &Stage, slot| stage.machine.slots().nth(slot).unwrap().crashes;
    assert_eq!(crashes(&stage, 0), 1);
    // A replacement crashes: the starting successor in the other slot is killed.
    let back = stage.at(130, killed(0, 2));
    assert!(back.contains(&kill(1, 2)), "{back:?}");
    stage.at(140, killed(1, 2));
    assert_eq!((crashes(&stage, 0), crashes(&stage, 1)), (2, 0));
}

#[test]
fn dead_successor_returns_slot_to_predecessor() {
    let cause = "the new worker of slot 0 exited after 10.0ms of service: \
                 signal 9 (SIGKILL); every worker runs the old release";
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    assert_eq!(stage.at(120, killed(0, 2)), [failure(cause)]);
    assert!(stage.notices.contains(&Notice::Restored {
        worker: worker(0, 1)
    }));
    // Its later report is accepted, but only once.
    assert_eq!(stage.at(121, handed_over(0, 1, HandoverEnd::PeerGone)), []);
    assert_eq!(stage.machine.stale_events(), 0);
    stage.at(122, handed_over(0, 1, HandoverEnd::PeerGone));
    assert_eq!(stage.machine.stale_events(), 1);

    // It detected the loss before the supervisor did.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    assert_eq!(
        stage.at(119, handed_over(0, 1, HandoverEnd::PeerGone)),
        [kill(0, 2)],
    );
    assert_eq!(stage.state(0), "serving");
    assert!(matches!(
        stage.at(120, killed(0, 2)).as_slice(),
        [Action::Answer {
            answer: Answer::Failed { .. },
            ..
        }]
    ));
}

#[test]
fn restored_finished_worker_is_replaced_immediately() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, killed(0, 2));
    assert_eq!(
        stage.at(121, handed_over(0, 1, HandoverEnd::Done)),
        [kill(0, 1)]
    );
    assert_eq!(stage.at(122, exited(0, 1, 0)), [adopt(0, 3)]);
    let view = stage.machine.slots().next().unwrap();
    assert_eq!(view.crashes, 1, "only its successor's");

    // A worker that was refused is sent a request to accept again.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, killed(0, 2));
    assert_eq!(stage.at(121, refused_by_peer(0, 1, 5)), [serve(0, 1)]);
    assert_eq!(stage.machine.slots().next().unwrap().crashes, 1);
}

#[test]
fn starting_successor_replaces_dead_worker() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, reload(calm(2)));
    assert_eq!(stage.at(110, killed(0, 1)), []);
    assert_eq!(stage.state(0), "starting");
    // It is Ready without accepting, and no worker hands over to it.
    assert_eq!(
        stage.at(120, ready(0, 2)),
        [
            Action::Serve {
                worker: worker(0, 2)
            },
            standby(1, 2, NEXT)
        ],
    );

    // The same if it must be killed: its exit is not awaited.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    assert_eq!(stage.at(110, channel_broken(0, 1)), [kill(0, 1)]);
    assert_eq!(
        stage.at(120, ready(0, 2)),
        [
            Action::Serve {
                worker: worker(0, 2)
            },
            COMMIT
        ],
    );
    assert_eq!(stage.at(130, killed(0, 1)), [done(1, 1, 0, 0, 30)]);
    // Its service time is reported nevertheless.
    assert!(stage.notices.iter().any(|notice| matches!(
        notice,
        Notice::WorkerDied { served_for: Some(served), .. } if *served == ms(110)
    )));
}

#[test]
fn idle_slot_adopts_new_release_directly() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(10, killed(0, 1));
    stage.at(20, exited(0, 2, 1));
    assert_eq!(stage.state(0), "backing off");
    let spawn = |generation| Action::Spawn {
        worker: worker(0, generation),
        listener: ListenerSource::Adopt,
        release: NEXT,
        standby: false,
    };
    assert_eq!(stage.at(30, reload(calm(1))), [spawn(3)]);
    assert_eq!(stage.at(40, ready(0, 3)), [COMMIT, done(1, 1, 0, 0, 10)]);

    let mut stage = Stage::booted(calm(1), 0);
    stage.at(10, killed(0, 1));
    assert_eq!(stage.at(30, reload(calm(1))), [kill(0, 2)]);
    assert_eq!(stage.at(31, killed(0, 2)), [spawn(3)]);
    assert_eq!(stage.machine.slots().next().unwrap().crashes, 1);
}

#[test]
fn borrower_returns_queue_before_leaving() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(10, killed(1, 1));
    assert_eq!(stage.timeout(60), [lend(1, worker(0, 1))]);
    stage.at(70, reload(calm(2)));
    assert_eq!(
        stage.at(80, ready(0, 2)),
        [
            recall(1, worker(0, 1)),
            hand_over(worker(0, 1), worker(0, 2), false),
            lend(1, worker(0, 2)),
        ],
    );
}

#[test]
fn only_one_operation_runs_while_serving() {
    let mut stage = Stage::new(calm(2));
    assert_eq!(stage.at(0, scale(3)), [refusal(START_AGAIN)]);
    let mut stage = Stage::booted(calm(2), 0);
    let same = Event::Reload {
        request: ASKED,
        release: ReleaseId::FIRST,
        policy: calm(2),
        drain: false,
    };
    assert_eq!(stage.at(99, same), [refusal("release 1 already runs")]);
    stage.at(100, reload(calm(2)));
    let cause = "reload in progress: slot 0 of 2 is being replaced; try again when it is done";
    assert_eq!(stage.at(101, scale(3)), [refusal(cause)]);
    assert_eq!(
        stage.at(
            101,
            Event::Upgrade {
                request: ASKED,
                drain: false,
            }
        ),
        [refusal(cause)]
    );
    assert_eq!(
        stage.at(110, stop("SIGTERM")),
        [
            failure("the server is stopping"),
            Action::EndCustody,
            kill(0, 2),
            stop_worker(0, 1),
            stop_worker(1, 1),
        ],
    );
    assert_eq!(stage.at(111, scale(3)), [refusal("the server is stopping")]);
}

#[test]
fn stop_during_handover_asks_both_to_finish() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    assert_eq!(
        stage.at(120, stop("SIGTERM")),
        [
            failure("the server is stopping"),
            Action::EndCustody,
            stop_worker(0, 1),
            stop_worker(0, 2),
        ],
    );
    assert_eq!(stage.at(130, handed_over(0, 1, HandoverEnd::Done)), []);
    assert_eq!(stage.at(140, exited(0, 2, 0)), []);
    assert_eq!(stage.at(150, stop("SIGTERM")), [kill(0, 1)]);
    assert_eq!(stage.at(160, killed(0, 1)), [CLEAN]);
}

#[test]
fn upgrade_runs_preflight_exec_and_roll() {
    let mut stage = Stage::booted(calm(1), 0);
    let upgrade = Event::Upgrade {
        request: ASKED,
        drain: false,
    };
    assert_eq!(stage.at(100, upgrade.clone()), [Action::Preflight]);
    assert_eq!(stage.at(200, Event::PreflightPassed), [Action::Exec]);
    let resumed = Event::Resumed {
        release: NEXT,
        policy: calm(1),
    };
    assert_eq!(stage.at(210, resumed.clone()), [standby(0, 2, NEXT)]);
    stage.at(211, resumed);
    assert_eq!(stage.machine.stale_events(), 1);
    stage.at(220, ready(0, 2));
    assert_eq!(
        stage.at(230, handed_over(0, 1, HandoverEnd::Done)),
        [COMMIT]
    );
    assert_eq!(stage.at(231, exited(0, 1, 0)), [done(1, 1, 10, 0, 131)]);

    // A stop ends a running preflight.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, upgrade.clone());
    assert_eq!(
        stage.at(110, stop("SIGTERM")),
        [
            Action::AbortPreflight,
            failure("the server is stopping"),
            Action::EndCustody,
            stop_worker(0, 1),
        ],
    );

    // The supervisor's program has been replaced, although the workers have not.
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, upgrade.clone());
    stage.at(200, Event::PreflightPassed);
    let resumed = Event::Resumed {
        release: NEXT,
        policy: calm(1),
    };
    stage.at(210, resumed);
    let cause = "the new worker of slot 0 cannot be started: fork: EAGAIN; every worker \
                 runs the old release; the supervisor runs the new binary";
    assert_eq!(stage.at(220, spawn_failed(0, 2)), [failure(cause)]);

    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, upgrade.clone());
    let cause = "truncated".to_owned();
    let told = failure("truncated; the running binary is unchanged");
    let failed = Event::PreflightFailed {
        cause: cause.clone(),
    };
    assert_eq!(stage.at(110, failed), std::slice::from_ref(&told));
    stage.at(200, upgrade.clone());
    stage.at(210, Event::PreflightPassed);
    assert_eq!(stage.at(220, Event::ExecFailed { cause }), [told]);
    stage.at(300, upgrade);
    let cause = "the new binary did not start within 5s; see its log, or raise start_timeout; \
                 the running binary is unchanged";
    assert_eq!(
        stage.next_timeout(),
        (5_300, vec![Action::AbortPreflight, failure(cause)]),
    );
}

#[test]
fn requests_without_caller_are_answered() {
    let mut stage = Stage::booted(calm(1), 0);
    let to = ScaleTo::By(-1);
    let request = NOT_ASKED;
    assert_eq!(
        stage.at(
            100,
            Event::Scale {
                request,
                to,
                drain: false,
            }
        ),
        [Action::Answer {
            request,
            answer: Answer::Refused {
                cause: "cannot run 0 workers; use 1 to 1024".to_owned()
            }
        }],
    );
}

#[test]
fn death_during_rollback_is_reported() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(1)));
    stage.at(110, ready(0, 2));
    stage.at(120, refused_by_peer(0, 1, 5));
    assert_eq!(stage.release(0), ReleaseId::FIRST);
    let cause = "cannot migrate 5 connections of slot 0 generation 1: full; slot 0 still runs \
                 release 2";
    assert_eq!(stage.at(130, killed(0, 1)), [failure(cause)]);
    assert_eq!(stage.release(0), NEXT);
}
