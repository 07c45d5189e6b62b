//! Every history of up to five events for two slots, from three starting points, under the same
//! laws as the random ones.
//!
//! Whoever may speak may say anything at any time here: there is no kernel that keeps the
//! order sensible. One thing is taken for granted, and checked where it is used: an event that is
//! dropped as stale leaves no trace but its count, so histories that go on from it are those that
//! go on without it, and are not walked again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use uppercased::clock::Tick;
use uppercased::supervisor::machine::{
    Death, Event, Generation, Machine, Policy, RestartConnections, SlotId, Snapshot, WorkerId,
};

use crate::kernel::ms;
use crate::laws::{Laws, law};

const EVENTS_MAX: u32 = 5;

/// What may happen next; workers are the present ones of their slots.
#[derive(Clone, Copy, Debug)]
enum Letter {
    Boot,
    Ready(u16),
    StartFailed(u16),
    SpawnFailed(u16),
    Exited(u16),
    ChannelBroken(u16),
    /// The predecessor of the present worker exits once more.
    Stale(u16),
    Stop,
    /// The next deadline passes.
    Timeout,
    /// Somebody looks before anything is due.
    Glance,
}

const ALPHABET: [Letter; 16] = [
    Letter::Boot,
    Letter::Ready(0),
    Letter::Ready(1),
    Letter::StartFailed(0),
    Letter::StartFailed(1),
    Letter::SpawnFailed(0),
    Letter::SpawnFailed(1),
    Letter::Exited(0),
    Letter::Exited(1),
    Letter::ChannelBroken(0),
    Letter::ChannelBroken(1),
    Letter::Stale(0),
    Letter::Stale(1),
    Letter::Stop,
    Letter::Timeout,
    Letter::Glance,
];

#[derive(Clone)]
struct Walk {
    machine: Machine,
    laws: Laws,
    now: Tick,
}

impl Walk {
    fn new() -> Self {
        let policy = Policy {
            workers: 2,
            start_timeout: ms(1_000),
            drain_timeout: ms(1_000),
            lame_duck: ms(100),
            backoff_initial: ms(100),
            backoff_max: ms(150),
            backoff_reset: ms(5_000),
            lend_after: ms(50),
            restart_connections: RestartConnections::Handover,
            linger_timeout: Duration::from_secs(5),
            bake_time: Duration::from_secs(1),
            handover_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            hang_timeout: None,
        };
        Self {
            machine: Machine::new(policy.clone(), 1),
            laws: Laws::new(policy),
            now: Tick::ZERO,
        }
    }

    fn after(history: &[Letter]) -> Self {
        let mut walk = Self::new();
        for letter in history {
            walk.step(*letter);
        }
        walk
    }

    /// Lets one thing happen; says whether it has changed anything.
    fn step(&mut self, letter: Letter) -> bool {
        // Enough to tell the times apart, too little for a deadline to pass unasked.
        self.now = self.now + ms(1);
        let before = self.machine.snapshot();
        let stale_before = self.machine.stale_events();
        let event = self.event(letter);
        let looked = event.is_none();
        if let Some(event) = event {
            self.laws.event(&event, self.now);
            self.machine.handle(event, self.now);
        } else {
            if matches!(letter, Letter::Timeout)
                && let Some(at) = self.machine.poll_timeout()
            {
                self.now = self.now.max(at);
            }
            self.machine.handle_timeout(self.now);
        }
        while let Some(action) = self.machine.poll_action() {
            self.laws.action(&action, self.now);
        }
        self.laws.rest(&self.machine, self.now, looked);
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

    fn event(&self, letter: Letter) -> Option<Event> {
        let cause = "words".to_owned();
        Some(match letter {
            Letter::Boot => Event::Boot,
            Letter::Ready(slot) => Event::Ready {
                worker: self.worker(slot, 0),
            },
            Letter::StartFailed(slot) => Event::StartFailed {
                worker: self.worker(slot, 0),
                cause,
            },
            Letter::SpawnFailed(slot) => Event::SpawnFailed {
                worker: self.worker(slot, 0),
                cause,
            },
            Letter::Exited(slot) => Event::Exited {
                worker: self.worker(slot, 0),
                how: Death::Exited(1),
            },
            Letter::ChannelBroken(slot) => Event::ChannelBroken {
                worker: self.worker(slot, 0),
                cause,
            },
            Letter::Stale(slot) => Event::Exited {
                worker: self.worker(slot, 1),
                how: Death::Exited(1),
            },
            Letter::Stop => Event::Stop { by: cause },
            Letter::Timeout | Letter::Glance => return None,
        })
    }

    fn worker(&self, slot: u16, back: u32) -> WorkerId {
        let view = self
            .machine
            .slots()
            .nth(usize::from(slot))
            .expect("two slots");
        WorkerId {
            slot: SlotId(slot),
            generation: Generation(view.generation.0.wrapping_sub(back)),
        }
    }
}

fn without_count(snapshot: &Snapshot) -> serde_json::Value {
    let mut value = serde_json::to_value(snapshot).expect("a state can be saved");
    let count = value
        .get_mut("stale_events")
        .expect("it is part of the state");
    *count = serde_json::Value::Null;
    value
}

/// Every history of up to `left` more events; `history` is for the panic message.
fn walk_on(walk: &Walk, history: &mut Vec<Letter>, left: u32, steps: &mut u64) {
    if left == 0 {
        return;
    }
    for letter in ALPHABET {
        let mut next = walk.clone();
        history.push(letter);
        *steps += 1;
        if next.step(letter) {
            walk_on(&next, history, left - 1, steps);
        }
        history.pop();
    }
}

fn every_history_after(start: &[Letter]) -> u64 {
    let mut history = start.to_vec();
    let mut steps = 0;
    let run = AssertUnwindSafe(|| {
        walk_on(&Walk::after(start), &mut history, EVENTS_MAX, &mut steps);
    });
    if let Err(panic) = catch_unwind(run) {
        panic!("after {history:?}: {}", crate::words(&*panic));
    }
    steps
}

const BOOTED: [Letter; 3] = [Letter::Boot, Letter::Ready(0), Letter::Ready(1)];

#[test]
fn every_short_history_from_the_very_start() {
    assert!(every_history_after(&[]) > 1_000);
}

#[test]
fn every_short_history_of_a_serving_supervisor() {
    assert!(every_history_after(&BOOTED) > 10_000);
}

/// Slot 0 backs off and its queue is lent to slot 1.
#[test]
fn every_short_history_of_a_lame_supervisor() {
    let mut start = BOOTED.to_vec();
    start.extend([Letter::Exited(0), Letter::Exited(0), Letter::Timeout]);
    assert!(every_history_after(&start) > 10_000);
}
