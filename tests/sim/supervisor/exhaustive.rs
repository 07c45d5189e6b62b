//! Tries every short history of two slots, from starting points in the middle of operations, under
//! the same laws as the random histories.
//!
//! Every process may send any message at any time here: no kernel restricts the order. One
//! assumption is checked where it is used: an event that is dropped as stale changes only its
//! count, so a history that continues after it equals the one without it, and is not repeated.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use uppercased::supervisor::machine::{
    Boot, Event, ExitStatus, Generation, HandoverEnd, Machine, Policy, ReleaseId,
    ReloadConnections, RequestId, ScaleTo, SlotId, Snapshot, WorkerId,
};
use uppercased_ctl::clock::Tick;

use crate::supervisor::kernel::ms;
use crate::supervisor::laws::{Laws, law};

/// Number of events after the starting point: more where few are possible, fewer where many are.
const EVENTS_MAX: u32 = 5;
const PLANNED_EVENTS_MAX: u32 = 4;

/// One of a slot's workers.
#[derive(Clone, Copy, Debug)]
enum Role {
    Main(u16),
    Successor(u16),
    /// The oldest of them.
    Predecessor(u16),
    /// The generation before the main one, in any state.
    Former(u16),
}

use Role::{Former, Main, Predecessor, Successor};

/// A possible next event.
#[derive(Clone, Copy, Debug)]
enum Letter {
    Boot,
    Ready(Role),
    StartFailed(Role),
    SpawnFailed(Role),
    Exited(Role),
    ChannelBroken(Role),
    Done(Role),
    PeerGone(Role),
    Refused(Role),
    Reload,
    Upgrade,
    Passed,
    Resumed,
    ExecFailed,
    OneMore,
    OneLess,
    Stop,
    /// The next deadline passes.
    Timeout,
    /// The shell calls before any deadline.
    Glance,
}

const CRASHES: [Letter; 16] = [
    Letter::Boot,
    Letter::Ready(Main(0)),
    Letter::Ready(Main(1)),
    Letter::StartFailed(Main(0)),
    Letter::StartFailed(Main(1)),
    Letter::SpawnFailed(Main(0)),
    Letter::SpawnFailed(Main(1)),
    Letter::Exited(Main(0)),
    Letter::Exited(Main(1)),
    Letter::ChannelBroken(Main(0)),
    Letter::ChannelBroken(Main(1)),
    Letter::Exited(Former(0)),
    Letter::Exited(Former(1)),
    Letter::Stop,
    Letter::Timeout,
    Letter::Glance,
];

/// Most events concern slot 0.
const PLANNED: [Letter; 28] = [
    Letter::Ready(Main(0)),
    Letter::Ready(Main(1)),
    Letter::Ready(Successor(0)),
    Letter::Ready(Successor(1)),
    Letter::StartFailed(Successor(0)),
    Letter::SpawnFailed(Successor(0)),
    Letter::Exited(Main(0)),
    Letter::Exited(Main(1)),
    Letter::Exited(Successor(0)),
    Letter::Exited(Successor(1)),
    Letter::Exited(Predecessor(0)),
    Letter::Exited(Predecessor(1)),
    Letter::ChannelBroken(Main(0)),
    Letter::ChannelBroken(Successor(0)),
    Letter::ChannelBroken(Predecessor(0)),
    Letter::Done(Predecessor(0)),
    Letter::PeerGone(Predecessor(0)),
    Letter::Refused(Predecessor(0)),
    Letter::Done(Main(0)),
    Letter::Refused(Main(0)),
    Letter::Done(Predecessor(1)),
    Letter::PeerGone(Predecessor(1)),
    Letter::Refused(Predecessor(1)),
    Letter::Reload,
    Letter::OneMore,
    Letter::OneLess,
    Letter::Stop,
    Letter::Timeout,
];

const UPGRADE: [Letter; 14] = [
    Letter::Upgrade,
    Letter::Passed,
    Letter::Resumed,
    Letter::ExecFailed,
    Letter::Ready(Main(0)),
    Letter::Ready(Successor(0)),
    Letter::Exited(Main(0)),
    Letter::Exited(Successor(0)),
    Letter::Exited(Predecessor(0)),
    Letter::Done(Predecessor(0)),
    Letter::PeerGone(Predecessor(0)),
    Letter::OneLess,
    Letter::Stop,
    Letter::Timeout,
];

#[derive(Clone)]
struct Walk {
    machine: Machine,
    laws: Laws,
    now: Tick,
    asked: u32,
}

/// The event that a letter stands for at this point.
enum Happening {
    Event(Box<Event>),
    Look,
    /// No worker has that role.
    Nothing,
}

impl Walk {
    fn new() -> Self {
        let policy = policy();
        Self {
            machine: Machine::new(policy.clone(), 1),
            laws: Laws::new(policy, 0, Tick::ZERO),
            now: Tick::ZERO,
            asked: 0,
        }
    }

    fn after(history: &[Letter]) -> Self {
        let mut walk = Self::new();
        for letter in history {
            walk.step(*letter);
        }
        walk
    }

    /// Applies one event; returns whether it has changed anything.
    fn step(&mut self, letter: Letter) -> bool {
        // Enough to distinguish the times, too little for a deadline to pass unnoticed.
        self.now = self.now + ms(1);
        let before = self.machine.snapshot();
        let stale_before = self.machine.stale_events();
        self.asked += 1;
        let mut timed_out = false;
        match self.happening(letter) {
            Happening::Event(event) => {
                self.laws.event(&event, self.now);
                self.machine.handle(*event, self.now);
            }
            Happening::Look => {
                timed_out = true;
                if matches!(letter, Letter::Timeout)
                    && let Some(at) = self.machine.poll_timeout()
                {
                    self.now = self.now.max(at);
                }
                self.machine.handle_timeout(self.now);
            }
            Happening::Nothing => return false,
        }
        while let Some(action) = self.machine.poll_action() {
            self.laws.action(&action, self.now);
        }
        self.laws.rest(&self.machine, self.now, timed_out);
        let after = self.machine.snapshot();
        if self.machine.stale_events() == stale_before {
            return before != after;
        }
        law!(
            without_count(&before) == without_count(&after),
            "a stale event has an effect"
        );
        false
    }

    fn happening(&self, letter: Letter) -> Happening {
        let cause = || "cause".to_owned();
        let exit = ExitStatus::Exited(1);
        let request = RequestId(self.asked.into());
        let release = ReleaseId(self.asked + 1);
        let policy = || Policy {
            workers: self.machine.policy().workers,
            ..policy()
        };
        let of = |role, event: &dyn Fn(WorkerId) -> Event| self.worker(role).map(event);
        let handed_over = |role, end: HandoverEnd| {
            self.worker(role).map(|worker| Event::HandedOver {
                worker,
                moved: 1,
                left: 1,
                end,
            })
        };
        let event = match letter {
            Letter::Ready(role) => of(role, &|worker| Event::Ready { worker }),
            Letter::StartFailed(role) => of(role, &|worker| Event::StartFailed {
                worker,
                cause: cause(),
            }),
            Letter::SpawnFailed(role) => of(role, &|worker| Event::SpawnFailed {
                worker,
                cause: cause(),
            }),
            Letter::Exited(role) => of(role, &|worker| Event::Exited {
                worker,
                exit,
                cause: None,
            }),
            Letter::ChannelBroken(role) => of(role, &|worker| Event::ChannelBroken {
                worker,
                cause: cause(),
            }),
            Letter::Done(role) => handed_over(role, HandoverEnd::Done),
            Letter::PeerGone(role) => handed_over(role, HandoverEnd::PeerGone),
            Letter::Refused(role) => handed_over(role, HandoverEnd::Refused { cause: cause() }),
            Letter::Boot => Some(Event::Boot),
            Letter::Reload => Some(Event::Reload {
                request,
                release,
                policy: policy(),
                drain: false,
            }),
            Letter::Upgrade => Some(Event::Upgrade {
                request,
                drain: false,
            }),
            Letter::Passed => Some(Event::PreflightPassed),
            Letter::Resumed => Some(Event::Resumed {
                release,
                policy: policy(),
            }),
            Letter::ExecFailed => Some(Event::ExecFailed { cause: cause() }),
            Letter::OneMore => Some(Event::Scale {
                request,
                to: ScaleTo::By(1),
                drain: false,
            }),
            Letter::OneLess => Some(Event::Scale {
                request,
                to: ScaleTo::By(-1),
                drain: false,
            }),
            Letter::Stop => Some(Event::Stop { by: cause() }),
            Letter::Timeout | Letter::Glance => return Happening::Look,
        };
        event.map_or(Happening::Nothing, |event| {
            Happening::Event(Box::new(event))
        })
    }

    fn worker(&self, role: Role) -> Option<WorkerId> {
        let (Main(slot) | Successor(slot) | Predecessor(slot) | Former(slot)) = role;
        let view = self.machine.slots().nth(usize::from(slot))?;
        let generation = match role {
            Main(_) => view.generation,
            Former(_) => Generation(view.generation.0.wrapping_sub(1)),
            Successor(_) => view.successor?.worker.generation,
            Predecessor(_) => view.predecessors.first()?.worker.generation,
        };
        Some(WorkerId {
            slot: SlotId(slot),
            generation,
        })
    }
}

/// Limits far enough apart to be distinguished by their times.
const fn policy() -> Policy {
    Policy {
        workers: 2,
        start_timeout: ms(1_000),
        drain_timeout: ms(1_000),
        lame_duck: ms(100),
        backoff_initial: ms(100),
        backoff_max: ms(150),
        backoff_reset: ms(5_000),
        lend_after: ms(50),
        reload_connections: ReloadConnections::Handover,
        boot: Boot::Any,
        linger_timeout: ms(500),
        bake_time: Duration::ZERO,
        handover_timeout: ms(700),
        handshake_timeout: ms(300),
        hang_timeout: None,
        stall_check: None,
        rebalance: None,
    }
}

fn without_count(snapshot: &Snapshot) -> serde_json::Value {
    let mut value = serde_json::to_value(snapshot).expect("a state can be saved");
    let count = value
        .pointer_mut("/machine/stale_events")
        .expect("it is part of the state");
    *count = serde_json::Value::Null;
    value
}

/// Runs every history of up to `left` more events; `history` is for the panic message.
fn walk_on(
    walk: &Walk,
    alphabet: &[Letter],
    history: &mut Vec<Letter>,
    left: u32,
    steps: &mut u64,
) {
    if left == 0 {
        return;
    }
    for letter in alphabet {
        let mut next = walk.clone();
        history.push(*letter);
        *steps += 1;
        if next.step(*letter) {
            walk_on(&next, alphabet, history, left - 1, steps);
        }
        history.pop();
    }
}

fn every_history_after(start: &[&[Letter]], alphabet: &[Letter], events: u32) -> u64 {
    let mut history = start.concat();
    let mut steps = 0;
    let run = AssertUnwindSafe(|| {
        let walk = Walk::after(&history);
        walk_on(&walk, alphabet, &mut history, events, &mut steps);
    });
    if let Err(panic) = catch_unwind(run) {
        panic!("after {history:?}: {}", super::panic_message(&*panic));
    }
    steps
}

const BOOTED: &[Letter] = &[Letter::Boot, Letter::Ready(Main(0)), Letter::Ready(Main(1))];

#[test]
fn every_short_history_from_boot() {
    assert!(every_history_after(&[], &CRASHES, EVENTS_MAX) > 1_000);
}

#[test]
fn every_short_history_while_serving() {
    assert!(every_history_after(&[BOOTED], &CRASHES, EVENTS_MAX) > 10_000);
}

/// Slot 0 backs off and its queue is lent to slot 1.
#[test]
fn every_short_history_of_lame_duck() {
    let lame = [
        Letter::Exited(Main(0)),
        Letter::Exited(Main(0)),
        Letter::Timeout,
    ];
    assert!(every_history_after(&[BOOTED, &lame], &CRASHES, EVENTS_MAX) > 10_000);
}

#[test]
fn every_short_history_of_new_reload() {
    let start = [BOOTED, &[Letter::Reload]];
    assert!(every_history_after(&start, &PLANNED, PLANNED_EVENTS_MAX) > 10_000);
}

#[test]
fn every_short_history_of_handover() {
    let start = [BOOTED, &[Letter::Reload, Letter::Ready(Successor(0))]];
    assert!(every_history_after(&start, &PLANNED, PLANNED_EVENTS_MAX) > 10_000);
}

/// Slot 0 runs the new release, and slot 1 hands over.
#[test]
fn every_short_history_of_second_handover() {
    let second = [
        Letter::Reload,
        Letter::Ready(Successor(0)),
        Letter::Done(Predecessor(0)),
        Letter::Ready(Successor(1)),
    ];
    let start = [BOOTED, &second];
    assert!(every_history_after(&start, &PLANNED, PLANNED_EVENTS_MAX) > 10_000);
}

/// Slot 1 could not be replaced, and slot 0 is rolled back.
#[test]
fn every_short_history_of_rollback() {
    let back = [
        Letter::Reload,
        Letter::Ready(Successor(0)),
        Letter::Done(Predecessor(0)),
        Letter::Exited(Predecessor(0)),
        Letter::Exited(Successor(1)),
    ];
    let start = [BOOTED, &back];
    assert!(every_history_after(&start, &PLANNED, PLANNED_EVENTS_MAX) > 10_000);
}

/// Slot 1 hands over to slot 0 and gets no successor.
#[test]
fn every_short_history_of_leaving_slot() {
    let start = [BOOTED, &[Letter::OneLess, Letter::Timeout]];
    assert!(every_history_after(&start, &PLANNED, PLANNED_EVENTS_MAX) > 10_000);
}

#[test]
fn every_short_history_of_upgrade() {
    let start = [BOOTED, &[Letter::Upgrade]];
    assert!(every_history_after(&start, &UPGRADE, EVENTS_MAX) > 1_000);
}
