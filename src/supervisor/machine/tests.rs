//! One test per rule, with times in milliseconds. The simulation in `tests/sim/supervisor` searches
//! for unexpected histories; these tests state the rules.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test sorts notices from all the rest"
)]

use std::time::Duration;

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn policy(workers: u16) -> Policy {
    Policy {
        workers,
        start_timeout: ms(5_000),
        drain_timeout: ms(30_000),
        lame_duck: ms(1_000),
        backoff_initial: ms(100),
        backoff_max: ms(1_000),
        backoff_reset: ms(10_000),
        lend_after: ms(50),
        reload_connections: ReloadConnections::Handover,
        boot: Boot::All,
        linger_timeout: Duration::from_secs(5),
        bake_time: Duration::from_secs(1),
        handover_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(3),
        hang_timeout: None,
        stall_check: None,
        rebalance: None,
    }
}

const fn worker(slot: u16, generation: u32) -> WorkerId {
    WorkerId {
        slot: SlotId(slot),
        generation: Generation(generation),
    }
}

const fn ready(slot: u16, generation: u32) -> Event {
    Event::Ready {
        worker: worker(slot, generation),
    }
}

const fn killed(slot: u16, generation: u32) -> Event {
    Event::Exited {
        worker: worker(slot, generation),
        exit: ExitStatus::Signalled(9),
        cause: None,
    }
}

const fn exited(slot: u16, generation: u32, code: i32) -> Event {
    Event::Exited {
        worker: worker(slot, generation),
        exit: ExitStatus::Exited(code),
        cause: None,
    }
}

fn start_failed(slot: u16, generation: u32, cause: &str) -> Event {
    Event::StartFailed {
        worker: worker(slot, generation),
        cause: cause.to_owned(),
    }
}

fn spawn_failed(slot: u16, generation: u32) -> Event {
    Event::SpawnFailed {
        worker: worker(slot, generation),
        cause: "fork: EAGAIN".to_owned(),
    }
}

fn channel_broken(slot: u16, generation: u32) -> Event {
    Event::ChannelBroken {
        worker: worker(slot, generation),
        cause: "end of file".to_owned(),
    }
}

fn stop(by: &str) -> Event {
    Event::Stop { by: by.to_owned() }
}

const fn bind(slot: u16) -> Action {
    Action::Spawn {
        worker: worker(slot, 1),
        listener: ListenerSource::Bind,
        release: ReleaseId::FIRST,
        standby: false,
    }
}

const fn adopt(slot: u16, generation: u32) -> Action {
    Action::Spawn {
        worker: worker(slot, generation),
        listener: ListenerSource::Adopt,
        release: ReleaseId::FIRST,
        standby: false,
    }
}

const fn kill(slot: u16, generation: u32) -> Action {
    Action::Kill {
        worker: worker(slot, generation),
    }
}

const fn stop_worker(slot: u16, generation: u32) -> Action {
    Action::StopWorker {
        worker: worker(slot, generation),
    }
}

const fn lend(slot: u16, to: WorkerId) -> Action {
    Action::Lend {
        slot: SlotId(slot),
        to,
    }
}

const fn recall(slot: u16, from: WorkerId) -> Action {
    Action::Recall {
        slot: SlotId(slot),
        from,
        last: false,
    }
}

const fn spread(slots: u16) -> Action {
    Action::Spread { slots }
}

const CLEAN: Action = Action::Exit(Outcome::Clean);

fn failed(cause: &str) -> Action {
    Action::Exit(Outcome::Failed {
        cause: cause.to_owned(),
    })
}

/// A machine with its notices kept apart, so that a test names the actions alone.
struct Stage {
    machine: Machine,
    notices: Vec<Notice>,
}

impl Stage {
    fn new(policy: Policy) -> Self {
        Self {
            machine: Machine::new(policy, 1),
            notices: Vec::new(),
        }
    }

    /// Returns all slots Ready at `at`.
    fn booted(policy: Policy, at: u64) -> Self {
        let workers = policy.workers;
        let mut stage = Self::new(policy);
        stage.at(at, Event::Boot);
        for slot in 0..workers {
            stage.at(at, ready(slot, 1));
        }
        stage.notices.clear();
        stage
    }

    fn at(&mut self, at: u64, event: Event) -> Vec<Action> {
        self.machine.handle(event, Tick::from_millis(at));
        self.actions()
    }

    fn timeout(&mut self, at: u64) -> Vec<Action> {
        self.machine.handle_timeout(Tick::from_millis(at));
        self.actions()
    }

    /// Advances to the next deadline; returns its time in milliseconds.
    fn next_timeout(&mut self) -> (u64, Vec<Action>) {
        let at = self.machine.poll_timeout().expect("a deadline");
        self.machine.handle_timeout(at);
        (at.as_nanos() / 1_000_000, self.actions())
    }

    fn actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Notice(notice) => self.notices.push(notice),
                other => actions.push(other),
            }
        }
        actions
    }

    fn state(&self, slot: usize) -> &'static str {
        self.machine.slots().nth(slot).unwrap().state
    }
}

#[test]
fn boot_starts_slots_in_turn_and_announces_once() {
    let mut stage = Stage::new(policy(3));
    assert_eq!(stage.machine.poll_timeout(), None);
    assert_eq!(stage.at(0, Event::Boot), [bind(0)]);
    assert_eq!(stage.machine.poll_timeout(), Some(Tick::from_millis(5_000)));
    assert_eq!(stage.at(10, ready(0, 1)), [bind(1)]);
    assert_eq!(stage.at(20, ready(1, 1)), [bind(2)]);
    assert_eq!(stage.at(30, ready(2, 1)), [spread(3), Action::Announce]);
    assert_eq!(stage.machine.poll_timeout(), None);
    // A successor is not announced.
    assert_eq!(stage.at(40, killed(1, 1)), [adopt(1, 2)]);
    assert_eq!(stage.at(50, ready(1, 2)), []);
}

#[test]
fn boot_serves_inherited_queues_early() {
    let mut stage = Stage::new(policy(3));
    stage.machine = stage.machine.with_listeners(2, Tick::ZERO);
    assert_eq!(stage.machine.life(), Life::Starting);
    assert_eq!(stage.at(0, Event::Boot), [adopt(0, 1)]);
    assert_eq!(stage.at(10, ready(0, 1)), [adopt(1, 1)]);
    let lend = Action::Lend {
        slot: SlotId(1),
        to: worker(0, 1),
    };
    assert_eq!(stage.next_timeout(), (50, vec![lend]));
    let recall = recall(1, worker(0, 1));
    assert_eq!(stage.at(60, ready(1, 1)), [recall, bind(2)]);
    assert_eq!(stage.at(70, ready(2, 1)), [spread(3), Action::Announce]);
    assert_eq!(stage.machine.life(), Life::Serving);
}

#[test]
fn boot_failure_reports_worker_error_and_kills_rest() {
    let mut stage = Stage::new(policy(3));
    stage.at(0, Event::Boot);
    stage.at(10, ready(0, 1));
    let words = "bind 0.0.0.0:80: permission denied";
    assert_eq!(
        stage.at(20, start_failed(1, 1, words)),
        [kill(0, 1), kill(1, 1)]
    );
    assert_eq!(stage.at(21, exited(1, 1, 1)), []);
    let cause = format!("the worker of slot 1 cannot start: {words}");
    assert_eq!(stage.at(22, killed(0, 1)), [failed(&cause)]);
    assert!(stage.notices.contains(&Notice::BootFailed { cause }));
    assert_eq!(stage.machine.phase_name(), "ended");
}

#[test]
fn boot_fails_by_exit_spawn_failure_and_timeout() {
    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    let cause = "the worker of slot 0 exited before it was ready: exit code 101";
    assert_eq!(stage.at(1, exited(0, 1, 101)), [failed(cause)]);

    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    let cause = "the worker of slot 0 cannot be started: fork: EAGAIN";
    assert_eq!(stage.at(1, spawn_failed(0, 1)), [failed(cause)]);

    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    assert_eq!(stage.next_timeout(), (5_000, vec![kill(0, 1)]));
    let cause = "the worker of slot 0 was not ready within 5s; see its log, or raise start_timeout";
    assert_eq!(stage.at(5_001, killed(0, 1)), [failed(cause)]);
}

#[test]
fn broken_channel_at_boot_waits_for_exit() {
    let mut stage = Stage::new(policy(1));
    stage.at(0, Event::Boot);
    assert_eq!(stage.at(1, channel_broken(0, 1)), [kill(0, 1)]);
    let cause = "the worker of slot 0 exited before it was ready: exit code 101 \
                 (channel broken: end of file)";
    assert_eq!(stage.at(2, exited(0, 1, 101)), [failed(cause)]);
}

#[test]
fn ready_worker_dying_during_boot_is_restarted() {
    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    stage.at(10, ready(0, 1));
    assert_eq!(stage.at(20, killed(0, 1)), [adopt(0, 2)]);
    // Even its successor's failure does not fail the boot.
    assert_eq!(stage.at(30, start_failed(0, 2, "no memory")), []);
    assert_eq!(stage.at(31, exited(0, 2, 1)), []);
    assert_eq!(stage.state(0), "backing off");
    // Its queue was unserved since 20 and slot 1 can borrow it at once; the boot is complete.
    assert_eq!(
        stage.at(100, ready(1, 1)),
        [spread(2), Action::Announce, lend(0, worker(1, 1))],
    );
}

#[test]
fn first_death_restarts_immediately_then_backs_off() {
    let mut stage = Stage::booted(policy(1), 0);
    assert_eq!(stage.at(1_000, killed(0, 1)), [adopt(0, 2)]);
    let mut now = 1_000;
    let mut generation = 2;
    for ceiling in [100, 200, 400, 800, 1_000, 1_000] {
        stage.at(now, ready(0, generation));
        assert_eq!(stage.at(now, killed(0, generation)), []);
        let (at, actions) = stage.next_timeout();
        generation += 1;
        assert_eq!(actions, [adopt(0, generation)]);
        let delay = at - now;
        assert!(
            delay >= ceiling / 2 && delay <= ceiling,
            "{delay} ms of {ceiling}"
        );
        now = at + 1;
    }
}

#[test]
fn long_service_resets_failure_count() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(100, killed(0, 1));
    stage.at(200, ready(0, 2));
    // 9,999 ms of service: not enough. 10,000 ms: enough.
    assert_eq!(stage.at(10_199, killed(0, 2)), []);
    stage.timeout(11_000);
    stage.at(11_000, ready(0, 3));
    assert_eq!(stage.at(21_000, killed(0, 3)), [adopt(0, 4)]);
}

/// Returns the exit status and the cause of the latest failure.
fn last_failure(stage: &Stage) -> (Option<ExitStatus>, Option<&str>) {
    let failure = stage.notices.iter().rev().find_map(|notice| match notice {
        Notice::WorkerDied { exit, cause, .. } => Some((Some(*exit), cause.as_deref())),
        Notice::SpawnFailed { cause, .. } => Some((None, Some(&**cause))),
        _ => None,
    });
    failure.unwrap()
}

#[test]
fn failed_start_and_failed_spawn_count_once() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(10, killed(0, 1));
    stage.at(20, start_failed(0, 2, "no memory"));
    stage.at(30, exited(0, 2, 1));
    assert_eq!(stage.machine.slots().next().unwrap().crashes, 2);
    assert_eq!(last_failure(&stage).1, Some("no memory"));
    stage.next_timeout();
    assert_eq!(stage.at(1_000, spawn_failed(0, 3)), []);
    assert_eq!(stage.machine.slots().next().unwrap().crashes, 3);
    assert_eq!(last_failure(&stage).0, None);
    assert_eq!(stage.state(0), "backing off");
    assert!(matches!(
        stage.notices.last(),
        Some(Notice::BackingOff { failures: 3, .. })
    ));
}

#[test]
fn unready_worker_never_resets_failure_count() {
    let mut stage = Stage::booted(
        Policy {
            backoff_reset: Duration::ZERO,
            ..policy(1)
        },
        0,
    );
    stage.at(10, exited(0, 1, 1));
    assert_eq!(stage.at(20, exited(0, 2, 1)), []);
    assert_eq!(stage.state(0), "backing off");
}

#[test]
fn exit_status_supplies_missing_cause() {
    let mut stage = Stage::booted(policy(1), 0);
    let died = |generation, sign: &str| Event::Exited {
        worker: worker(0, generation),
        exit: ExitStatus::Signalled(9),
        cause: Some(sign.to_owned()),
    };
    stage.at(10, died(1, "out of memory"));
    assert_eq!(last_failure(&stage).1, Some("out of memory"));
    stage.at(20, start_failed(0, 2, "no port"));
    stage.at(30, died(2, "out of memory"));
    assert_eq!(last_failure(&stage).1, Some("no port"));
}

#[test]
fn start_timeout_kills_and_counts_when_reaped() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(10, killed(0, 1));
    assert_eq!(stage.next_timeout(), (5_010, vec![kill(0, 2)]));
    // Only the kernel is awaited, and with a limit.
    let given_up = Tick::from_millis(5_010) + KILL_GRACE;
    assert_eq!(stage.machine.poll_timeout(), Some(given_up));
    // Too late.
    assert_eq!(stage.at(5_011, ready(0, 2)), []);
    assert_eq!(stage.machine.stale_events(), 1);
    assert_eq!(stage.at(5_012, killed(0, 2)), []);
    assert_eq!(stage.state(0), "backing off");
}

#[test]
fn failed_worker_that_stays_is_killed() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(10, killed(0, 1));
    stage.at(20, start_failed(0, 2, "no memory"));
    assert_eq!(stage.next_timeout(), (5_010, vec![kill(0, 2)]));
    stage.at(5_020, killed(0, 2));
    assert_eq!(last_failure(&stage).1, Some("no memory"));
}

#[test]
fn broken_channel_kills_worker_and_unserves_queue() {
    let mut stage = Stage::booted(policy(2), 0);
    assert_eq!(stage.at(1_000, channel_broken(0, 1)), [kill(0, 1)]);
    assert_eq!(stage.at(1_001, channel_broken(0, 1)), []);
    assert_eq!(stage.machine.stale_events(), 0);
    assert_eq!(stage.next_timeout(), (1_050, vec![lend(0, worker(1, 1))]));
    assert_eq!(stage.at(2_000, killed(0, 1)), [adopt(0, 2)]);
    assert_eq!(stage.at(2_010, ready(0, 2)), [recall(0, worker(1, 1))]);
    // The notice of the crash has the second worker's service time, without the wait for the
    // kernel.
    assert!(stage.notices.iter().any(|notice| matches!(
        notice,
        Notice::WorkerDied { served_for: Some(served), .. } if *served == ms(1_000)
    )));
}

#[test]
fn sibling_with_fewest_loans_borrows_queue() {
    let mut stage = Stage::booted(policy(4), 0);
    for slot in [0, 1] {
        assert_eq!(stage.at(100, killed(slot, 1)), [adopt(slot, 2)]);
    }
    assert_eq!(stage.timeout(149), []);
    assert_eq!(
        stage.timeout(150),
        [lend(0, worker(2, 1)), lend(1, worker(3, 1))],
    );
    // The borrower of 0 exits: that queue is lent again at once, the borrower's own after
    // `lend_after`.
    assert_eq!(
        stage.at(160, killed(2, 1)),
        [adopt(2, 2), lend(0, worker(3, 1))],
    );
    assert_eq!(stage.at(170, ready(1, 2)), [recall(1, worker(3, 1))]);
    assert_eq!(stage.next_timeout(), (210, vec![lend(2, worker(1, 2))]));
    assert_eq!(stage.at(220, ready(0, 2)), [recall(0, worker(3, 1))]);
    assert_eq!(stage.at(230, ready(2, 2)), [recall(2, worker(1, 2))]);
}

#[test]
fn loan_waits_for_serving_sibling() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(100, killed(0, 1));
    stage.at(100, killed(1, 1));
    // Only the start deadlines are left.
    assert_eq!(stage.timeout(200), []);
    assert_eq!(stage.machine.poll_timeout(), Some(Tick::from_millis(5_100)));
    assert_eq!(stage.at(300, ready(1, 2)), [lend(0, worker(1, 2))]);
}

#[test]
fn stop_asks_serving_workers_and_kills_others() {
    let mut stage = Stage::booted(policy(3), 0);
    stage.at(100, killed(0, 1));
    stage.at(110, killed(1, 1));
    stage.at(120, exited(1, 2, 1));
    assert_eq!(stage.state(1), "backing off");
    assert_eq!(
        stage.at(130, stop("SIGTERM")),
        [
            lend(0, worker(2, 1)),
            lend(1, worker(2, 1)),
            Action::EndCustody,
            kill(0, 2),
            stop_worker(2, 1),
        ],
        "who waits in a queue is served before it goes",
    );
    assert_eq!(stage.at(131, killed(0, 2)), []);
    assert_eq!(stage.at(9_000, exited(2, 1, 0)), [CLEAN]);
    // No actions after the exit.
    assert_eq!(stage.at(9_001, stop("SIGTERM")), []);
    assert_eq!(stage.at(9_002, Event::Boot), []);
    assert_eq!(stage.machine.stale_events(), 0);
}

#[test]
fn undrained_workers_are_killed_at_deadline() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(1_000, stop("SIGTERM"));
    stage.at(2_000, exited(0, 1, 0));
    // 1,000 + lame duck 1,000 + drain 30,000 + grace 2,000.
    assert_eq!(stage.next_timeout(), (34_000, vec![kill(1, 1)]));
    assert!(stage.notices.contains(&Notice::StillDraining {
        worker: worker(1, 1),
        after: ms(33_000),
    }));
    let given_up = Tick::from_millis(34_000) + KILL_GRACE;
    assert_eq!(stage.machine.poll_timeout(), Some(given_up));
    assert_eq!(stage.at(34_001, killed(1, 1)), [CLEAN]);
}

#[test]
fn second_stop_kills_immediately() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(1_000, stop("SIGTERM"));
    assert_eq!(stage.at(1_001, stop("SIGINT")), [kill(0, 1), kill(1, 1)]);
    assert_eq!(stage.at(1_002, stop("SIGINT")), []);
    assert_eq!(stage.at(1_003, killed(0, 1)), []);
    assert_eq!(stage.at(1_004, killed(1, 1)), [CLEAN]);
}

#[test]
fn stop_ends_boot() {
    let mut stage = Stage::new(policy(2));
    assert_eq!(stage.at(0, stop("SIGINT")), [Action::EndCustody, CLEAN]);

    let mut stage = Stage::new(policy(2));
    stage.at(0, Event::Boot);
    assert_eq!(
        stage.at(1, stop("SIGINT")),
        [Action::EndCustody, kill(0, 1)]
    );
    // The spawn had failed meanwhile, which also ends the worker.
    assert_eq!(stage.at(2, spawn_failed(0, 1)), [CLEAN]);
}

#[test]
fn draining_worker_may_lose_channel_and_finish() {
    let mut stage = Stage::booted(policy(1), 0);
    stage.at(1_000, stop("SIGTERM"));
    assert_eq!(stage.at(1_001, channel_broken(0, 1)), []);
    assert_eq!(stage.at(1_002, exited(0, 1, 0)), [CLEAN]);
}

#[test]
fn stale_events_are_counted_and_dropped() {
    let mut stage = Stage::booted(policy(2), 0);
    stage.at(10, killed(0, 1));
    let stale = [
        Event::Boot,
        ready(0, 1),
        killed(0, 1),
        ready(1, 1),
        ready(7, 1),
        spawn_failed(1, 1),
        start_failed(1, 1, "no"),
        channel_broken(0, 3),
    ];
    for (index, event) in stale.into_iter().enumerate() {
        assert_eq!(stage.at(20, event.clone()), []);
        let total = index as u64 + 1;
        assert_eq!(
            stage.notices.last(),
            Some(&Notice::StaleEvent { event, total })
        );
    }
    assert_eq!((stage.state(0), stage.state(1)), ("starting", "serving"));
}

#[test]
fn extreme_limits_never_overflow() {
    let mut stage = Stage::booted(
        Policy {
            drain_timeout: Duration::MAX,
            lame_duck: Duration::MAX,
            start_timeout: Duration::MAX,
            lend_after: Duration::MAX,
            ..policy(2)
        },
        0,
    );
    stage.at(1, killed(0, 1));
    stage.at(2, stop("SIGTERM"));
    stage.at(3, killed(0, 2));
    assert_eq!(
        stage.machine.poll_timeout(),
        Some(Tick::from_nanos(u64::MAX))
    );
}

mod adopted;
mod balance;
mod cancel;
mod held;
mod pending;
mod planned;
mod rescued;
mod scaling;
