//! The supervisor's machine, told anything in any order: it stays in a state it may be in, its
//! deadlines are ahead of it, and its saved state is read back as it was. Changed on the way, a
//! state is refused, or a machine that lives with it.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uppercased::clock::Tick;
use uppercased::supervisor::machine::{
    Action, Death, Event, Generation, HandoverEnd, Load, Machine, Policy, ReleaseId, RequestId,
    RestartConnections, ScaleTo, SlotId, Snapshot, WorkerId,
};

mod graft;

use graft::{Edit, graft};

/// Steps of one history.
const STEPS_MAX: usize = 120;
/// Workers that anybody asks for.
const WORKERS_MAX: u16 = 6;

#[derive(Arbitrary, Debug)]
struct History {
    limits: Limits,
    seed: u64,
    inherited: u8,
    before: Vec<Step>,
    edits: Vec<Edit>,
    after: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Limits {
    workers: u8,
    drain: bool,
    hang: bool,
    rebalance: Option<u8>,
    spans: [u8; 11],
}

/// A worker that was spawned, counted from the latest; or one that never was.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Who {
    Latest(u8),
    Stranger(u8, u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum End {
    Done,
    PeerGone,
    Refused,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Boot,
    Ready(Who),
    StartFailed(Who),
    SpawnFailed(Who),
    Exited(Who, bool),
    ChannelBroken(Who),
    Stop,
    Restart(Limits),
    Upgrade,
    PreflightPassed,
    PreflightFailed,
    ExecFailed,
    Resumed(Limits),
    Scale(u8),
    OneMore,
    OneLess,
    HandedOver(Who, End),
    Rebalanced(Who, u8, End),
    Loads(u64),
    Pulse(Who, u8),
    /// Every worker that was spawned and not reaped says that it is ready.
    AllReady,
    Reborn,
    Pass(u8),
    Late(u16),
}

impl Limits {
    fn policy(self) -> Policy {
        let span = |at: usize| Duration::from_millis(u64::from(self.spans[at]) * 20);
        Policy {
            workers: u16::from(self.workers) % (WORKERS_MAX + 1),
            start_timeout: span(0),
            drain_timeout: span(1),
            lame_duck: span(2),
            backoff_initial: span(3),
            backoff_max: span(4),
            backoff_reset: span(5),
            lend_after: span(6),
            restart_connections: if self.drain {
                RestartConnections::Drain
            } else {
                RestartConnections::Handover
            },
            linger_timeout: span(7),
            bake_time: span(8),
            handover_timeout: span(9),
            handshake_timeout: span(10),
            hang_timeout: self.hang.then(|| span(0)),
            rebalance: self.rebalance.map(u16::from),
        }
    }
}

impl End {
    fn end(self) -> HandoverEnd {
        match self {
            Self::Done => HandoverEnd::Done,
            Self::PeerGone => HandoverEnd::PeerGone,
            Self::Refused => HandoverEnd::Refused { cause: "full".to_owned() },
        }
    }
}

struct World {
    machine: Machine,
    now: Tick,
    spawned: Vec<WorkerId>,
    alive: Vec<WorkerId>,
    releases: u32,
    requests: u64,
    exited: bool,
}

impl World {
    fn who(&self, who: Who) -> WorkerId {
        match who {
            Who::Latest(back) if !self.spawned.is_empty() => {
                let back = usize::from(back) % self.spawned.len().min(8);
                self.spawned[self.spawned.len() - 1 - back]
            }
            Who::Latest(number) => worker(number, number),
            Who::Stranger(slot, generation) => worker(slot, generation),
        }
    }

    fn step(&mut self, step: Step) {
        let cause = || "noise".to_owned();
        let event = match step {
            Step::Boot => Event::Boot,
            Step::Ready(who) => Event::Ready { worker: self.who(who) },
            Step::StartFailed(who) => Event::StartFailed { worker: self.who(who), cause: cause() },
            Step::SpawnFailed(who) => Event::SpawnFailed { worker: self.who(who), cause: cause() },
            Step::Exited(who, well) => {
                let worker = self.who(who);
                self.alive.retain(|it| *it != worker);
                let how = if well { Death::Exited(0) } else { Death::Signalled(9) };
                Event::Exited { worker, how, cause: None }
            }
            Step::ChannelBroken(who) => {
                Event::ChannelBroken { worker: self.who(who), cause: cause() }
            }
            Step::Stop => Event::Stop { by: "SIGTERM".to_owned() },
            Step::Restart(limits) => {
                let request = self.request();
                let release = self.release();
                Event::Restart { request, release, policy: limits.policy() }
            }
            Step::Upgrade => Event::Upgrade { request: self.request() },
            Step::PreflightPassed => Event::PreflightPassed,
            Step::PreflightFailed => Event::PreflightFailed { cause: cause() },
            Step::ExecFailed => Event::ExecFailed { cause: cause() },
            Step::Resumed(limits) => {
                Event::Resumed { release: self.release(), policy: limits.policy() }
            }
            Step::Scale(to) => {
                let to = ScaleTo::Exactly(u16::from(to) % (WORKERS_MAX + 1));
                Event::Scale { request: self.request(), to }
            }
            Step::OneMore => Event::Scale { request: self.request(), to: ScaleTo::By(1) },
            Step::OneLess => Event::Scale { request: self.request(), to: ScaleTo::By(-1) },
            Step::HandedOver(who, end) => {
                let worker = self.who(who);
                Event::HandedOver { worker, moved: u32::MAX, left: 1, end: end.end() }
            }
            Step::Rebalanced(who, moved, end) => {
                let worker = self.who(who);
                Event::Rebalanced { worker, moved: moved.into(), end: end.end() }
            }
            Step::Loads(seed) => {
                let load = |(place, worker): (usize, &WorkerId)| {
                    let calls = seed.rotate_left(place as u32 * 7);
                    Load { worker: *worker, calls, turns: calls / 2 }
                };
                Event::Loads { loads: self.alive.iter().enumerate().map(load).collect() }
            }
            Step::Pulse(who, turns) => Event::Pulse { worker: self.who(who), turns: turns.into() },
            Step::AllReady => {
                for worker in self.alive.clone() {
                    self.machine.handle(Event::Ready { worker }, self.now);
                    self.settle();
                }
                return;
            }
            Step::Reborn => {
                let before = self.machine.snapshot();
                let saved = before.to_json().expect("a state can be saved");
                let read = Snapshot::from_json(&saved).expect("and read");
                assert_eq!(read, before);
                self.machine = Machine::restore(read).expect("and restored");
                return;
            }
            Step::Pass(tens) => {
                self.now = self.now + Duration::from_millis(u64::from(tens) * 10);
                return self.look();
            }
            Step::Late(ms) => {
                if let Some(due) = self.machine.poll_timeout() {
                    self.now = self.now.max(due) + Duration::from_millis(ms.into());
                }
                return self.look();
            }
        };
        self.machine.handle(event, self.now);
        self.settle();
    }

    fn look(&mut self) {
        self.machine.handle_timeout(self.now);
        assert!(self.machine.poll_timeout().is_none_or(|due| due > self.now || self.now == END));
        self.settle();
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn release(&mut self) -> ReleaseId {
        self.releases += 1;
        ReleaseId(self.releases)
    }

    fn settle(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            assert!(!self.exited, "{action:?} after the exit");
            match action {
                Action::Spawn { worker, .. } => {
                    self.spawned.push(worker);
                    self.alive.push(worker);
                }
                Action::Exit(_) => self.exited = true,
                _ => {}
            }
        }
        let _ = self.machine.operation();
        for slot in self.machine.slots() {
            let _ = slot.state.name();
        }
    }
}

/// The end of all time, to which sums saturate.
const END: Tick = Tick::from_nanos(u64::MAX);

fn worker(slot: u8, generation: u8) -> WorkerId {
    WorkerId { slot: SlotId(u16::from(slot) % 9), generation: Generation(generation.into()) }
}

fuzz_target!(|history: History| {
    let mut now = Tick::from_millis(5_000);
    let policy = history.limits.policy();
    let mut machine = Machine::new(policy, history.seed);
    if history.inherited > 0 {
        machine = machine.with_listeners(u16::from(history.inherited) % 8, now);
    }
    let mut world = World {
        machine,
        now,
        spawned: Vec::new(),
        alive: Vec::new(),
        releases: ReleaseId::FIRST.0,
        requests: 0,
        exited: false,
    };
    for step in history.before.iter().take(STEPS_MAX) {
        world.step(*step);
    }
    if !history.edits.is_empty() {
        let saved = world.machine.snapshot().to_json().expect("a state can be saved");
        let document = serde_json::from_slice(&saved).expect("it is JSON");
        let changed = graft(document, &history.edits).to_string();
        let Ok(Ok(machine)) = Snapshot::from_json(changed.as_bytes()).map(Machine::restore) else {
            return;
        };
        now = world.now;
        world = World { machine, now, exited: false, ..world };
        // What it had decided may have been changed, so what it says of an end is no matter.
        while world.machine.poll_action().is_some() {}
    }
    for step in history.after.iter().take(STEPS_MAX) {
        world.step(*step);
    }
});
