//! Drives the supervisor's machine with any events in any order: its state stays valid, its
//! deadlines lie ahead, and its saved state restores unchanged. A modified saved state is either
//! refused or restored to a machine that works.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uppercased::supervisor::machine::{
    Action, Boot, Canceller, Event, ExitStatus, Generation, HandoverEnd, Load, Machine, Policy,
    Progress, ReleaseId, ReloadConnections, RequestId, ScaleTo, SlotId, Snapshot, Wanted, WorkerId,
};
use uppercased_ctl::clock::Tick;

mod graft;

use graft::{Edit, graft};

/// Steps per history.
const STEPS_MAX: usize = 120;
/// Maximum number of workers requested.
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
    stall: bool,
    boot_all: bool,
    rebalance: Option<u8>,
    spans: [u8; 11],
}

/// A spawned worker, counted from the latest, or one that never existed.
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
enum Want {
    Reload,
    Upgrade,
    Exactly(u8),
    OneMore,
    OneLess,
}

/// Origin of a request that may have to wait.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Caller {
    Signal,
    Patient,
    Impatient,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Boot,
    Ready(Who),
    StartFailed(Who),
    SpawnFailed(Who),
    Exited(Who, bool),
    ChannelBroken(Who),
    ChannelClosed(Who),
    Stop,
    Reload(Limits, bool),
    Upgrade(bool),
    Requested(Want, Caller, bool),
    /// A waiting caller, counted from the latest, cancels.
    Withdrawn(u8),
    Cancel,
    /// The shell begins a request that it was handed, or reports another result.
    Prepared(Limits),
    NotPrepared,
    /// A request that was never handed out cannot begin.
    NotBegun(Want, u8),
    PreflightPassed,
    PreflightFailed,
    ExecFailed,
    Resumed(Limits),
    Scale(Want, bool),
    HandedOver(Who, End),
    Progress(Who, Who, [u8; 3]),
    Rebalanced(Who, u8, End),
    Loads(u64),
    Pulse(Who, u8),
    /// Every worker that was spawned and not reaped reports ready.
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
            reload_connections: if self.drain {
                ReloadConnections::Drain
            } else {
                ReloadConnections::Handover
            },
            linger_timeout: span(7),
            bake_time: span(8),
            handover_timeout: span(9),
            handshake_timeout: span(10),
            hang_timeout: self.hang.then(|| span(0)),
            stall_check: self.stall.then(|| span(10)),
            boot: if self.boot_all { Boot::All } else { Boot::Any },
            rebalance: self.rebalance.map(u16::from),
        }
    }
}

impl Want {
    fn wanted(self) -> Wanted {
        match self {
            Self::Reload => Wanted::Reload,
            Self::Upgrade => Wanted::Upgrade,
            Self::Exactly(_) | Self::OneMore | Self::OneLess => Wanted::Scale(self.to()),
        }
    }

    fn to(self) -> ScaleTo {
        match self {
            Self::Exactly(to) => ScaleTo::Exactly(u16::from(to) % (WORKERS_MAX + 1)),
            Self::OneMore | Self::Reload => ScaleTo::By(1),
            Self::OneLess | Self::Upgrade => ScaleTo::By(-1),
        }
    }
}

impl End {
    fn end(self) -> HandoverEnd {
        match self {
            Self::Done => HandoverEnd::Done,
            Self::PeerGone => HandoverEnd::PeerGone,
            Self::Refused => HandoverEnd::Refused {
                cause: "full".to_owned(),
            },
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
    /// Requests that the shell was handed and has not returned.
    handed: Option<(RequestId, Wanted)>,
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
            Step::Ready(who) => Event::Ready {
                worker: self.who(who),
            },
            Step::StartFailed(who) => Event::StartFailed {
                worker: self.who(who),
                cause: cause(),
            },
            Step::SpawnFailed(who) => Event::SpawnFailed {
                worker: self.who(who),
                cause: cause(),
            },
            Step::Exited(who, well) => {
                let worker = self.who(who);
                self.alive.retain(|it| *it != worker);
                let exit = if well {
                    ExitStatus::Exited(0)
                } else {
                    ExitStatus::Signalled(9)
                };
                Event::Exited {
                    worker,
                    exit,
                    cause: None,
                }
            }
            Step::ChannelBroken(who) => Event::ChannelBroken {
                worker: self.who(who),
                cause: cause(),
            },
            Step::Stop => Event::Stop {
                by: "SIGTERM".to_owned(),
            },
            Step::ChannelClosed(who) => Event::ChannelClosed {
                worker: self.who(who),
            },
            Step::Reload(limits, drain) => {
                let request = self.request();
                let release = self.release();
                Event::Reload {
                    request,
                    release,
                    policy: limits.policy(),
                    drain,
                }
            }
            Step::Upgrade(drain) => Event::Upgrade {
                request: self.request(),
                drain,
            },
            Step::Requested(want, caller, drain) => {
                let wanted = match (want, caller) {
                    // No signal carries a number.
                    (Want::Exactly(_), Caller::Signal) => Wanted::Reload,
                    (want, _) => want.wanted(),
                };
                let (request, wait) = match caller {
                    Caller::Signal => (RequestId::NOBODY, true),
                    Caller::Patient => (self.request(), true),
                    Caller::Impatient => (self.request(), false),
                };
                Event::Requested {
                    request,
                    wanted,
                    wait,
                    drain,
                }
            }
            Step::Withdrawn(back) => Event::Withdrawn {
                request: RequestId(self.requests.saturating_sub(back.into())),
            },
            Step::Cancel => Event::Cancel {
                request: self.request(),
                by: Canceller::default(),
            },
            Step::Prepared(limits) => {
                let Some((request, wanted)) = self.handed.take() else {
                    return;
                };
                let drain = limits.drain;
                match wanted {
                    Wanted::Reload => {
                        let release = self.release();
                        Event::Reload {
                            request,
                            release,
                            policy: limits.policy(),
                            drain,
                        }
                    }
                    Wanted::Upgrade => Event::Upgrade { request, drain },
                    Wanted::Scale(to) => Event::Scale { request, to, drain },
                }
            }
            Step::NotPrepared => {
                let Some((request, wanted)) = self.handed.take() else {
                    return;
                };
                Event::NotBegun {
                    request,
                    wanted,
                    cause: cause(),
                }
            }
            Step::NotBegun(want, request) => Event::NotBegun {
                request: RequestId(request.into()),
                wanted: want.wanted(),
                cause: cause(),
            },
            Step::PreflightPassed => Event::PreflightPassed,
            Step::PreflightFailed => Event::PreflightFailed { cause: cause() },
            Step::ExecFailed => Event::ExecFailed { cause: cause() },
            Step::Resumed(limits) => Event::Resumed {
                release: self.release(),
                policy: limits.policy(),
            },
            Step::Scale(want, drain) => Event::Scale {
                request: self.request(),
                to: want.to(),
                drain,
            },
            Step::Progress(from, to, [sent, settled, answered]) => {
                let progress = Progress {
                    sent: sent.into(),
                    settled: settled.into(),
                    answered: answered.into(),
                };
                Event::Progress {
                    from: self.who(from),
                    to: self.who(to),
                    progress,
                }
            }
            Step::HandedOver(who, end) => {
                let worker = self.who(who);
                Event::HandedOver {
                    worker,
                    moved: u32::MAX,
                    left: 1,
                    end: end.end(),
                }
            }
            Step::Rebalanced(who, moved, end) => {
                let worker = self.who(who);
                Event::Rebalanced {
                    worker,
                    moved: moved.into(),
                    end: end.end(),
                }
            }
            Step::Loads(seed) => {
                let load = |(place, worker): (usize, &WorkerId)| {
                    let calls = seed.rotate_left(place as u32 * 7);
                    Load {
                        worker: *worker,
                        calls,
                        turns: calls / 2,
                    }
                };
                Event::Loads {
                    loads: self.alive.iter().enumerate().map(load).collect(),
                }
            }
            Step::Pulse(who, turns) => Event::Pulse {
                worker: self.who(who),
                turns: turns.into(),
            },
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
        assert!(
            self.machine
                .poll_timeout()
                .is_none_or(|due| due > self.now || self.now == END)
        );
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
                Action::Begin {
                    request, wanted, ..
                } => self.handed = Some((request, wanted)),
                // The child that reads the configuration has ended; there is no result.
                Action::AbortPreflight => self.handed = None,
                Action::Exit(_) => {
                    self.exited = true;
                    assert_eq!(
                        self.machine.operation(),
                        None,
                        "nothing begins after the exit"
                    );
                }
                _ => {}
            }
        }
        let _ = self.machine.operation();
        let _ = self.machine.pending();
        for slot in self.machine.slots() {
            let _ = (slot.state, slot.stalled_since);
        }
    }
}

/// The maximum time, to which sums saturate.
const END: Tick = Tick::from_nanos(u64::MAX);

fn worker(slot: u8, generation: u8) -> WorkerId {
    WorkerId {
        slot: SlotId(u16::from(slot) % 9),
        generation: Generation(generation.into()),
    }
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
        handed: None,
        exited: false,
    };
    for step in history.before.iter().take(STEPS_MAX) {
        world.step(*step);
    }
    if !history.edits.is_empty() {
        let saved = world
            .machine
            .snapshot()
            .to_json()
            .expect("a state can be saved");
        let document = serde_json::from_slice(&saved).expect("it is JSON");
        let changed = graft(document, &history.edits).to_string();
        let Ok(Ok(machine)) = Snapshot::from_json(changed.as_bytes()).map(Machine::restore) else {
            return;
        };
        now = world.now;
        world = World {
            machine,
            now,
            handed: None,
            exited: false,
            ..world
        };
        // Its pending actions may have been modified, so an exit among them is ignored.
        while world.machine.poll_action().is_some() {}
    }
    for step in history.after.iter().take(STEPS_MAX) {
        world.step(*step);
    }
});
