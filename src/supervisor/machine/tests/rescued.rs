//! Workers whose keepers continue them.

use super::planned::{calm, handed_over, reload};
use super::*;
use crate::config::CRASHES_RESCUED_MAX;

const fn kept(slot: u16, generation: u32) -> Event {
    Event::Kept {
        worker: worker(slot, generation),
        kept: true,
    }
}

const fn rescued(slot: u16, generation: u32, exit: ExitStatus) -> Event {
    Event::Rescued {
        worker: worker(slot, generation),
        rescue: Rescue {
            exit,
            is_hang: false,
            cause: None,
            connections: 3,
            owed_bytes: 0,
            reset: 0,
            is_handing_over: false,
            took: ms(2),
        },
    }
}

fn hung(slot: u16, generation: u32) -> Event {
    let mut event = rescued(slot, generation, ExitStatus::KILLED);
    if let Event::Rescued { rescue, .. } = &mut event {
        rescue.is_hang = true;
    }
    event
}

const fn confirm(slot: u16, generation: u32) -> Action {
    Action::Confirm {
        worker: worker(slot, generation),
    }
}

const fn serve(slot: u16, generation: u32) -> Action {
    Action::Serve {
        worker: worker(slot, generation),
    }
}

#[test]
fn rescued_worker_goes_on() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(1, kept(0, 1));
    let again = [confirm(0, 1), serve(0, 1)];
    assert_eq!(stage.at(10, rescued(0, 1, ExitStatus::KILLED)), again);
    let view = stage.machine.slots().next().expect("a slot");
    assert_eq!((view.crashes, view.generation.0), (1, 1));
    assert!(
        stage
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::WorkerRescued { connections: 3, .. }))
    );
    // Without a keeper that continues it, the next end is an exit.
    assert_eq!(stage.at(20, killed(0, 1)), [adopt(0, 2)]);
}

#[test]
fn rescued_worker_gets_lent_queues_again() {
    let mut stage = Stage::booted(calm(2), 0);
    stage.at(10, killed(0, 1));
    stage.at(11, killed(0, 2));
    let lent = lend(0, worker(1, 1));
    while !stage.next_timeout().1.contains(&lent) {}
    let (at, _) = stage.next_timeout();
    let again = [confirm(1, 1), serve(1, 1), lent];
    assert_eq!(stage.at(at, rescued(1, 1, ExitStatus::KILLED)), again);
}

#[test]
fn stopping_worker_is_stopped_again() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(10, stop("SIGTERM"));
    let again = [confirm(0, 1), stop_worker(0, 1)];
    assert_eq!(stage.at(20, rescued(0, 1, ExitStatus::KILLED)), again);
    assert_eq!(stage.at(30, exited(0, 1, 0)), [CLEAN]);
}

#[test]
fn hang_ends_only_kept_process() {
    let policy = Policy {
        hang_timeout: Some(ms(400)),
        ..calm(1)
    };
    let mut stage = Stage::booted(policy, 0);
    stage.at(0, kept(0, 1));
    let pulse = || Event::Pulse {
        worker: worker(0, 1),
        turns: 5,
    };
    let process = Action::KillProcess {
        worker: worker(0, 1),
    };
    let mut ended = Vec::new();
    while !ended.contains(&process) {
        let (at, _) = stage.next_timeout();
        ended = stage.at(at, pulse());
        assert!(at < 1_000 && !ended.contains(&kill(0, 1)));
    }
    // The keeper hangs, too: after the time for its rescue it is not waited for again.
    let mut last = 0;
    while !ended.contains(&kill(0, 1)) {
        (last, _) = stage.next_timeout();
        ended = stage.at(last, pulse());
        assert!(last < 5_000);
    }
    assert!(last > 3_000, "{last}");
}

#[test]
fn lost_request_for_handover_is_repeated() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(10, reload(calm(1)));
    stage.at(20, ready(0, 2));
    let request = Action::HandOver {
        from: worker(0, 1),
        to: worker(0, 2),
        last: false,
    };
    let rescued_now = |is_handing_over| {
        let mut event = rescued(0, 1, ExitStatus::KILLED);
        if let Event::Rescued { rescue, .. } = &mut event {
            rescue.is_handing_over = is_handing_over;
        }
        event
    };
    assert_eq!(stage.at(30, rescued_now(true)), [confirm(0, 1)]);
    assert_eq!(stage.at(40, rescued_now(false)), [confirm(0, 1), request]);
    let done = handed_over(0, 1, HandoverEnd::Done);
    assert_eq!(stage.at(50, done).len(), 1);
    // It has reported the end before.
    let leave = Action::Leave {
        worker: worker(0, 1),
        within: KILL_GRACE,
    };
    assert_eq!(stage.at(50, rescued_now(false)), [confirm(0, 1), leave]);
}

#[test]
fn crash_loop_in_handover_fails_operation() {
    let mut stage = Stage::booted(calm(1), 0);
    stage.at(10, reload(calm(1)));
    stage.at(20, ready(0, 2));
    for at in 0..=CRASHES_RESCUED_MAX as u64 {
        stage.at(30 + at, rescued(0, 1, ExitStatus::Signalled(11)));
    }
    let end = stage.at(50, killed(0, 1));
    let is_named = |action: &Action| format!("{action:?}").contains("crashed too often");
    assert!(end.iter().any(is_named), "{end:?}");
}

#[test]
fn stalled_handover_ends_kept_process_first() {
    let (from, to) = (worker(0, 1), worker(0, 2));
    for (sent, stalled) in [(1, to), (0, from)] {
        let mut stage = Stage::booted(calm(1), 0);
        stage.at(10, reload(calm(1)));
        stage.at(20, ready(0, 2));
        let progress = Progress {
            sent,
            settled: 0,
            answered: 0,
        };
        for end in [
            Action::KillProcess { worker: stalled },
            Action::Kill { worker: stalled },
        ] {
            for generation in [1, 2] {
                let (at, _) = stage.next_timeout();
                stage.at(at, kept(0, generation));
            }
            let mut ended = Vec::new();
            while !ended.contains(&end) {
                assert_eq!(ended, [], "{stalled}");
                let (at, _) = stage.next_timeout();
                let sample = Event::Progress { from, to, progress };
                ended = stage.at(at, sample);
            }
        }
    }
}

#[test]
fn hang_gives_handover_its_time_again() {
    let limit = ms(1_000);
    let (from, to) = (worker(0, 1), worker(0, 2));
    let progress = Progress::default();
    let process = Action::KillProcess { worker: from };
    for hang in (300..1_500).step_by(50) {
        let policy = Policy {
            hang_timeout: Some(ms(hang)),
            handover_timeout: limit,
            ..calm(1)
        };
        let mut stage = Stage::booted(policy.clone(), 0);
        stage.at(10, reload(policy));
        stage.at(20, ready(0, 2));
        stage.at(20, kept(0, 1));
        let (mut hung, mut ended) = (None, None);
        while ended.is_none() {
            let (at, asked) = stage.next_timeout();
            let mut actions = Vec::new();
            if asked.contains(&Action::TakePulse { worker: from }) {
                let (worker, turns) = (from, 5);
                actions.extend(stage.at(at, Event::Pulse { worker, turns }));
            }
            if asked.contains(&Action::TakeProgress { from, to }) {
                actions.extend(stage.at(at, Event::Progress { from, to, progress }));
            }
            hung = hung.or_else(|| actions.contains(&process).then_some(at));
            ended = actions.contains(&kill(0, 1)).then_some(at);
        }
        let time = ms(ended.unwrap_or(0) - hung.expect("its process was killed first"));
        assert!(time >= limit * 3 / 4, "{hang}: {time:?}");
    }
}

#[test]
fn crash_loop_is_not_rescued() {
    let mut stage = Stage::booted(calm(1), 0);
    let crash = || rescued(0, 1, ExitStatus::Signalled(11));
    // Kills from outside and hangs are no crashes.
    for at in 0..20 {
        let killed = stage.at(at, rescued(0, 1, ExitStatus::KILLED));
        assert_eq!(killed, [confirm(0, 1), serve(0, 1)]);
        let ended = stage.at(at, hung(0, 1));
        assert_eq!(ended, [confirm(0, 1), serve(0, 1)]);
    }
    for at in 0..CRASHES_RESCUED_MAX as u64 {
        assert_eq!(stage.at(100 + at, crash()), [confirm(0, 1), serve(0, 1)]);
    }
    assert_eq!(stage.at(200, crash()), [kill(0, 1)]);
    assert_eq!(stage.at(201, crash()), [], "it was killed");
    assert_eq!(stage.at(202, killed(0, 1)), [adopt(0, 2)]);
    // Crashes that are far apart are rescued for ever.
    stage.at(203, ready(0, 2));
    for at in 1..20 {
        let rescue = rescued(0, 2, ExitStatus::Signalled(11));
        assert_eq!(stage.at(at * 60_000, rescue), [confirm(0, 2), serve(0, 2)]);
    }
}

#[test]
fn new_release_that_dies_rolls_back() {
    let policy = Policy {
        bake_time: ms(1_000),
        ..calm(1)
    };
    let mut stage = Stage::booted(policy.clone(), 0);
    stage.at(10, reload(policy));
    stage.at(20, ready(0, 2));
    stage.at(30, handed_over(0, 1, HandoverEnd::Done));
    stage.at(31, exited(0, 1, 0));
    let actions = stage.at(40, rescued(0, 2, ExitStatus::Signalled(11)));
    assert_eq!(actions[..2], [confirm(0, 2), serve(0, 2)]);
    let back = Action::Spawn {
        worker: worker(0, 3),
        listener: ListenerSource::Adopt,
        release: ReleaseId::FIRST,
        standby: true,
    };
    assert!(actions.contains(&back), "{actions:?}");
    assert!(stage.notices.iter().any(|notice| matches!(
        notice,
        Notice::RollingBack { cause, .. } if cause.contains("died and was rescued")
    )));
}
