//! Scaling up and down, and stalled workers: one test per rule.

use super::planned::{
    COMMIT, NEXT, calm, done, failure, hand_over, handed_over, refusal, refused_by_peer, reload,
    scale,
};
use super::*;

#[test]
fn slots_are_added_in_turn_and_stay() {
    let mut stage = Stage::booted(calm(1), 0);
    assert_eq!(stage.at(100, scale(3)), [bind(1)]);
    assert_eq!(stage.at(110, ready(1, 1)), [spread(2), bind(2)]);
    assert_eq!(
        stage.at(120, ready(2, 1)),
        [spread(3), done(0, 3, 0, 0, 20)]
    );
    assert_eq!(stage.at(130, scale(3)), [done(0, 3, 0, 0, 0)]);

    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, scale(3));
    stage.at(110, ready(1, 1));
    let cause = "the new worker of slot 2 exited before it was ready: exit code 1; \
                 2 workers serve";
    let dropped = Action::DropSlot { slot: SlotId(2) };
    assert_eq!(stage.at(120, exited(2, 1, 1)), [dropped, failure(cause)]);
    // The next worker there has a new generation.
    let again = Action::Spawn {
        worker: worker(2, 2),
        listener: ListenerSource::Bind,
        release: ReleaseId::FIRST,
        standby: false,
    };
    assert_eq!(stage.at(130, scale(3)), [again]);
    assert_eq!(
        stage.at(131, scale(0)),
        [refusal("cannot run 0 workers; use 1 to 1024")]
    );
    assert_eq!(
        stage.at(131, scale(1_025)),
        [refusal("cannot run 1025 workers; use 1 to 1024")]
    );
}

#[test]
fn slots_leave_in_lossless_order() {
    let mut stage = Stage::booted(calm(3), 0);
    let request = Event::Scale {
        request: RequestId(7),
        to: ScaleTo::Exactly(1),
        drain: true,
    };
    assert_eq!(stage.at(100, request), [Action::Steer { slots: 1 }]);
    // Handshakes begun before get their time.
    assert_eq!(
        stage.next_timeout(),
        (3_100, vec![hand_over(worker(2, 1), worker(0, 1), true)]),
    );
    let close = |slot| Action::CloseListeners { slot: SlotId(slot) };
    let drop = |slot| Action::DropSlot { slot: SlotId(slot) };
    assert_eq!(
        stage.at(3_200, handed_over(2, 1, HandoverEnd::Done)),
        [close(2), hand_over(worker(1, 1), worker(0, 1), true)],
    );
    // This one is refused, and empties its queue before it releases it.
    let leave = Action::Leave {
        worker: worker(1, 1),
        within: ms(30_000),
    };
    assert_eq!(
        stage.at(3_300, refused_by_peer(1, 1, 4)),
        [leave, close(1), Action::Unsteer],
    );
    assert_eq!(
        stage.at(3_301, exited(2, 1, 0)),
        [drop(2), done(0, 1, 10, 4, 3_201)]
    );
    assert!(matches!(
        stage.at(3_400, scale(2)).as_slice(),
        [Action::Answer {
            answer: Answer::Refused { .. },
            ..
        }]
    ));
    assert_eq!(stage.at(9_000, exited(1, 1, 0)), [drop(1)]);
    let again = Action::Spawn {
        worker: worker(1, 2),
        listener: ListenerSource::Bind,
        release: ReleaseId::FIRST,
        standby: false,
    };
    assert_eq!(stage.at(9_001, scale(2)), [again]);
}

#[test]
fn slot_stays_when_connections_find_no_room() {
    let mut stage = Stage::booted(calm(3), 0);
    stage.at(100, scale(2));
    assert_eq!(
        stage.timeout(3_100),
        [hand_over(worker(2, 1), worker(0, 1), true)],
    );
    // The other sibling is tried for the rest.
    assert_eq!(
        stage.at(3_200, refused_by_peer(2, 1, 4)),
        [hand_over(worker(2, 1), worker(1, 1), true)],
    );
    let cause = "cannot migrate 2 connections of slot 2 generation 1: full; 3 workers serve";
    assert_eq!(
        stage.at(3_300, refused_by_peer(2, 1, 2)),
        [
            Action::Serve {
                worker: worker(2, 1)
            },
            Action::Unsteer,
            failure(cause)
        ],
    );
    assert_eq!(stage.state(2), "serving");
    assert_eq!(stage.machine.policy().workers, 3);
}

#[test]
fn returned_slot_keeps_failure_count() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(50, killed(1, 1));
    stage.at(60, ready(1, 2));
    stage.at(100, scale(1));
    stage.timeout(3_100);
    stage.at(3_200, handed_over(1, 2, HandoverEnd::Done));
    stage.at(3_300, exited(1, 2, 0));
    assert_eq!(stage.machine.slots().count(), 1);
    assert_eq!(stage.machine.crashes_before(SlotId(1)), 1);
    let saved = stage.machine.snapshot().to_json().unwrap();
    let restored = Machine::restore(Snapshot::from_json(&saved).unwrap()).unwrap();
    assert_eq!(restored.crashes_before(SlotId(1)), 1);
    stage.at(3_400, scale(2));
    assert_eq!(stage.machine.slots().nth(1).unwrap().crashes, 1);
}

#[test]
fn remaining_slots_receive_in_turn() {
    let mut stage = Stage::booted(calm(4), 0);
    stage.at(100, scale(2));
    assert_eq!(
        stage.timeout(3_100),
        [hand_over(worker(3, 1), worker(0, 1), true)],
    );
    let next = hand_over(worker(2, 1), worker(1, 1), true);
    let later = stage.at(3_200, handed_over(3, 1, HandoverEnd::Done));
    assert!(later.contains(&next), "{later:?}");
}

#[test]
fn failed_leaving_slot_restarts_and_leaves_later() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(100, scale(1));
    stage.timeout(3_100);
    assert_eq!(stage.at(3_200, killed(1, 1)), [adopt(1, 2)]);
    assert_eq!(
        stage.at(3_210, ready(1, 2)),
        [hand_over(worker(1, 2), worker(0, 1), true)],
    );
    // The receiver crashes: the sender serves again until there is another receiver.
    assert_eq!(stage.at(3_220, killed(0, 1)), [adopt(0, 2)]);
    assert_eq!(
        stage.at(3_221, handed_over(1, 2, HandoverEnd::PeerGone)),
        []
    );
    assert_eq!(stage.state(1), "serving");
    assert_eq!(
        stage.at(3_230, ready(0, 2)),
        [hand_over(worker(1, 2), worker(0, 2), true)],
    );
}

#[test]
fn reload_scales_to_new_worker_count() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(100, reload(calm(2)));
    stage.at(110, ready(0, 2));
    let grown = Action::Spawn {
        worker: worker(1, 1),
        listener: ListenerSource::Bind,
        release: NEXT,
        standby: false,
    };
    assert_eq!(
        stage.at(120, handed_over(0, 1, HandoverEnd::Done)),
        [COMMIT, grown],
    );
    stage.at(121, exited(0, 1, 0));
    assert_eq!(
        stage.at(130, ready(1, 1)),
        [spread(2), done(1, 2, 10, 0, 30)]
    );
}

#[test]
fn stalled_loop_is_noticed_and_worker_replaced() {
    let policy = Policy {
        hang_timeout: Some(ms(4_000)),
        ..calm(1)
    };
    let mut stage = Stage::booted(policy, 0);
    let sample = Action::TakePulse {
        worker: worker(0, 1),
    };
    let pulse = |turns| Event::Pulse {
        worker: worker(0, 1),
        turns,
    };
    let ping = Action::Ping {
        worker: worker(0, 1),
    };
    assert_eq!(stage.next_timeout(), (1_000, vec![sample.clone()]));
    assert_eq!(stage.at(1_000, pulse(5)), []);
    // It was idle.
    stage.next_timeout();
    assert_eq!(stage.at(2_000, pulse(5)), std::slice::from_ref(&ping));
    stage.next_timeout();
    assert_eq!(stage.at(3_000, pulse(6)), []);
    // However late the supervisor is, it takes one sample.
    assert_eq!(stage.timeout(90_000), std::slice::from_ref(&sample));
    for at in [90_000, 91_000, 92_000] {
        assert_eq!(stage.at(at, pulse(6)), std::slice::from_ref(&ping));
        assert_eq!(stage.next_timeout(), (at + 1_000, vec![sample.clone()]));
    }
    assert_eq!(stage.at(93_000, pulse(6)), [kill(0, 1)]);
    assert!(stage.notices.iter().any(|notice| matches!(
        notice,
        Notice::WorkerHung { after, .. } if *after == ms(90_000)
    )));
    assert_eq!(stage.at(93_001, killed(0, 1)), [adopt(0, 2)]);
    // Not requested, and not about this worker.
    stage.at(93_002, pulse(7));
    assert_eq!(stage.machine.stale_events(), 1);
}

#[test]
fn missed_polls_before_commit_prove_no_stall() {
    let with = |limit| Policy {
        hang_timeout: Some(ms(limit)),
        ..calm(1)
    };
    let pulse = Event::Pulse {
        worker: worker(0, 2),
        turns: 5,
    };
    let mut stage = Stage::booted(with(400), 0);
    stage.at(10, reload(with(4_000)));
    stage.at(20, ready(0, 2));
    for sample in [120, 220, 320, 420] {
        stage.timeout(sample);
        stage.at(sample, pulse.clone());
    }
    stage.at(430, handed_over(0, 1, HandoverEnd::Done));
    stage.at(431, exited(0, 1, 0));
    // A fourth miss would be one too many under the old limit, but is far below the new one.
    let sample = Action::TakePulse {
        worker: worker(0, 2),
    };
    assert_eq!(stage.next_timeout(), (1_430, vec![sample]));
    assert_eq!(stage.at(1_430, pulse), []);
    assert_eq!(stage.state(0), "serving");
}

#[test]
fn late_canary_is_still_watched_first() {
    let mut stage = Stage::booted(policy(3), 0);
    for slot in [0, 1] {
        stage.at(100, killed(slot, 1));
        stage.at(101, exited(slot, 2, 1));
    }
    stage.at(102, reload(policy(3)));
    stage.at(110, exited(0, 3, 1));
    assert_eq!(stage.state(0), "backing off");
    assert_eq!(stage.state(1), "starting");
    // The canary is in the slot whose turn has passed.
    while stage.state(0) == "backing off" {
        stage.next_timeout();
    }
    stage.at(900, ready(0, 4));
    let early = stage.at(901, exited(1, 3, 1));
    let follows = |it: &Action| matches!(it, Action::Spawn { standby: true, .. });
    assert!(!early.iter().any(follows), "{early:?}");
    let stood = stage.timeout(1_900);
    assert!(stood.iter().any(follows), "{stood:?}");
}

/// Returns two slots, of which slot 1 has failed twice and backs off; its queue is not lent yet.
fn with_a_broken_slot(policy: Policy) -> Stage {
    let mut stage = Stage::booted(policy, 0);
    stage.at(100, killed(1, 1));
    stage.at(110, exited(1, 2, 1));
    assert_eq!(stage.state(1), "backing off");
    stage
}

#[test]
fn failing_slot_leaves_through_sibling() {
    let policy = Policy {
        backoff_initial: Duration::from_secs(600),
        backoff_max: Duration::from_secs(600),
        ..calm(2)
    };
    let mut stage = with_a_broken_slot(policy);
    let (at, actions) = stage.next_timeout();
    assert_eq!((at, actions), (150, vec![lend(1, worker(0, 1))]));
    assert_eq!(stage.at(200, scale(1)), [Action::Steer { slots: 1 }]);
    let empty = Action::Recall {
        slot: SlotId(1),
        from: worker(0, 1),
        last: true,
    };
    let slot = SlotId(1);
    let (close, drop) = (Action::CloseListeners { slot }, Action::DropSlot { slot });
    assert_eq!(
        stage.next_timeout(),
        (
            3_200,
            vec![empty, close, drop, Action::Unsteer, done(0, 1, 0, 0, 3_000)]
        ),
    );
    assert_eq!(stage.machine.slots().count(), 1);
}

#[test]
fn shrinking_fails_without_receiver() {
    let policy = Policy {
        backoff_initial: Duration::from_secs(600),
        backoff_max: Duration::from_secs(600),
        ..calm(2)
    };
    let mut stage = with_a_broken_slot(policy);
    stage.at(200, scale(1));
    stage.at(210, killed(0, 1));
    stage.at(220, exited(0, 2, 1));
    // Two worker starts, from the end of the handshakes on.
    assert_eq!(stage.timeout(3_200), []);
    let (at, actions) = stage.next_timeout();
    assert_eq!(at, 13_200);
    let cause = "cannot remove slot 1: it is backing off, or no sibling is ready; 2 workers serve";
    assert_eq!(actions, [Action::Unsteer, failure(cause)]);
}

#[test]
fn stalled_worker_is_reported_before_it_hangs() {
    let policy = Policy {
        hang_timeout: Some(ms(4_500)),
        stall_check: Some(ms(1_000)),
        ..calm(1)
    };
    let mut stage = Stage::booted(policy, 0);
    let pulse = |turns| Event::Pulse {
        worker: worker(0, 1),
        turns,
    };
    let stalled = |stage: &Stage| stage.machine.slots().next().unwrap().stalled_since;
    stage.timeout(1_000);
    stage.at(1_000, pulse(5));
    for (at, since) in [(2_000, None), (3_000, Some(Tick::from_millis(1_000)))] {
        stage.timeout(at);
        stage.at(at, pulse(5));
        assert_eq!(stalled(&stage), since, "at {at}");
    }
    assert!(matches!(
        stage.notices.last(),
        Some(Notice::WorkerStalled { after, .. }) if *after == ms(2_000)
    ));
    stage.timeout(4_000);
    stage.at(4_000, pulse(6));
    assert_eq!(stalled(&stage), None);
    assert!(matches!(
        stage.notices.last(),
        Some(Notice::WorkerRunsAgain { .. })
    ));
    // A hang takes five samples, even if stalls are detected sooner.
    for at in [5_000, 6_000, 7_000, 8_000] {
        stage.timeout(at);
        assert_eq!(stage.at(at, pulse(6)).len(), 1, "a ping at {at}");
    }
    stage.timeout(9_000);
    assert_eq!(stage.at(9_000, pulse(6)), [kill(0, 1)]);
}

/// Returns three slots, of which the second cannot start.
fn degraded(policy: Policy) -> Stage {
    let mut stage = Stage::new(Policy {
        boot: Boot::Any,
        ..policy
    });
    assert_eq!(stage.at(0, Event::Boot), [bind(0)]);
    assert_eq!(stage.at(10, ready(0, 1)), [bind(1)]);
    let again = Action::Spawn {
        worker: worker(1, 2),
        listener: ListenerSource::Bind,
        release: ReleaseId::FIRST,
        standby: false,
    };
    assert_eq!(
        stage.at(20, exited(1, 1, 1)),
        [spread(1), Action::Announce, again]
    );
    assert_eq!(stage.machine.life(), Life::Serving);
    assert_eq!(stage.at(30, exited(1, 2, 1)), []);
    assert_eq!(stage.state(1), "backing off");
    assert_eq!(stage.state(2), "waiting");
    stage
}

#[test]
fn boot_serves_without_failing_slots() {
    let mut stage = degraded(calm(3));
    let (at, actions) = stage.next_timeout();
    let [Action::Spawn { worker: next, .. }] = actions.as_slice() else {
        panic!("the missing slot is tried again: {actions:?}");
    };
    assert_eq!(*next, worker(1, 3));
    // Sockets are sorted by slot: the third slot binds after the second.
    assert_eq!(stage.at(at + 1, ready(1, 3)), [spread(2), bind(2)]);
    assert_eq!(stage.at(at + 2, ready(2, 1)), [spread(3)]);
}

#[test]
fn degraded_server_can_be_scaled() {
    let drop = |slot| Action::DropSlot { slot: SlotId(slot) };
    let slow = Policy {
        backoff_initial: Duration::from_secs(600),
        backoff_max: Duration::from_secs(600),
        ..calm(3)
    };
    let mut stage = degraded(slow);
    stage.at(100, scale(1));
    let all = [drop(2), drop(1), Action::Unsteer, done(0, 1, 0, 0, 3_000)];
    assert_eq!(stage.next_timeout(), (3_100, all.to_vec()));
    assert_eq!(stage.machine.slots().count(), 1);

    // More slots need the missing one first, which is retried at once.
    let mut stage = degraded(calm(3));
    let now = stage.at(100, scale(4));
    assert!(matches!(now.as_slice(), [Action::Spawn { worker: it, .. }] if *it == worker(1, 3)));
    let cause = "the new worker of slot 1 exited before it was ready: exit code 1; \
                 1 workers serve";
    assert_eq!(stage.at(110, exited(1, 3, 1)), [failure(cause)]);
    assert_eq!(stage.machine.slots().count(), 3);
}

#[test]
fn degraded_server_can_be_reloaded() {
    let mut stage = degraded(calm(3));
    stage.at(100, reload(calm(3)));
    stage.at(110, ready(0, 2));
    let tried = stage.at(120, handed_over(0, 1, HandoverEnd::Done));
    assert!(
        matches!(tried.as_slice(), [Action::Spawn { worker: it, release: NEXT, .. }] if *it == worker(1, 3)),
        "the new release is tried where no worker was: {tried:?}"
    );
    // It was broken before, so the roll continues.
    stage.at(121, exited(0, 1, 0));
    assert_eq!(
        stage.at(130, exited(1, 3, 1)),
        [COMMIT, done(1, 3, 10, 0, 30)]
    );
    assert_eq!(stage.state(1), "backing off");
}

#[test]
fn closed_channel_ends_service_before_reaping() {
    let mut stage = Stage::booted(calm(2), 0);
    let closed = Event::ChannelClosed {
        worker: worker(1, 1),
    };
    assert_eq!(stage.at(100, closed), [kill(1, 1)]);
    // A traced process may never be reaped; its clients need not wait for that.
    assert_eq!(stage.next_timeout(), (150, vec![lend(1, worker(0, 1))]));
    assert_eq!(stage.at(9_000, killed(1, 1)), [adopt(1, 2)]);
    assert!(
        stage
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::WorkerDied { cause: None, .. }))
    );
}
