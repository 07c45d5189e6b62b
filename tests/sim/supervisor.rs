//! Simulates the supervisor's state machine with random faults and checks its laws at every step.
//!
//! - `SIM_SEED=n cargo test --test sim supervisor -- --nocapture` replays one seed and prints every
//!   step;
//! - `SIM_SEEDS=m cargo test --test sim supervisor` runs seeds 0 to m.
//!
//! `kernel.rs` simulates the processes, `laws.rs` states the invariants, `exhaustive.rs` tries
//! every short history instead of long random ones. Each machine runs beside a twin that is saved
//! and restored repeatedly; the two must never differ.

mod exhaustive;
mod kernel;
mod laws;

use std::any::Any;
use std::collections::BTreeMap;
use std::env;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fastrand::Rng;
use uppercased::supervisor::machine::{
    Action, Answer, Canceller, Event, HandoverEnd, Machine, Notice, Policy, ReleaseId, RequestId,
    ScaleTo, Snapshot, Wanted,
};
use uppercased_ctl::clock::Tick;

use kernel::{Kernel, ms};
use laws::{Laws, law};

const SEEDS_DEFAULT: u64 = 96;
const STEPS_PER_SEED: u64 = 2_000;
/// A stop that takes more steps than this is considered endless.
const STEPS_TO_STOP_MAX: u64 = 10_000;
/// Maximum delay of the shell's call for a deadline.
const SHELL_DELAY_MAX: Duration = ms(40);
/// Maximum number of workers requested.
const WORKERS_MAX: u16 = 5;

/// Number of occurrences of each kind of action and notice.
type Tally = BTreeMap<&'static str, u64>;

#[test]
fn every_law_holds_for_every_seed() {
    let number = |name| {
        let text = env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .expect("SIM_SEED and SIM_SEEDS are numbers"),
        )
    };
    if let Some(seed) = number("SIM_SEED") {
        simulate(seed, true, &mut Tally::new());
        return;
    }
    let mut tally = Tally::new();
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    for seed in 0..seeds {
        simulate(seed, false, &mut tally);
    }
    // A kind that never occurs in a world is not tested by it.
    if seeds >= SEEDS_DEFAULT {
        for kind in KINDS {
            let seen = tally.get(kind).copied().unwrap_or(0);
            assert!(
                seen >= 10,
                "the simulation reached {kind} only {seen} times"
            );
        }
    }
}

#[test]
fn seed_replays_exactly() {
    let tally = |seed| {
        let mut tally = Tally::new();
        simulate(seed, false, &mut tally);
        tally
    };
    assert_eq!(tally(11), tally(11));
    assert_ne!(tally(11), tally(12));
}

/// Runs one seed; a panic in it is raised again with seed and step.
fn simulate(seed: u64, trace: bool, tally: &mut Tally) {
    let mut step = 0;
    let run = AssertUnwindSafe(|| {
        let mut rng = Rng::with_seed(seed);
        while step < STEPS_PER_SEED {
            World::new(&mut rng, trace).run(&mut step, tally);
        }
    });
    if let Err(panic) = catch_unwind(run) {
        let panic_message = panic_message(&*panic);
        panic!(
            "seed {seed} step {step}: {panic_message}\nreplay: SIM_SEED={seed} cargo test --test sim supervisor"
        );
    }
}

/// Returns the message of a caught panic.
fn panic_message(panic: &dyn Any) -> String {
    let owned = panic.downcast_ref::<String>().cloned();
    let owned = owned.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    owned.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// One supervisor from boot to exit.
struct World<'a> {
    rng: &'a mut Rng,
    trace: bool,
    kernel: Kernel,
    machine: Machine,
    /// The twin: saved and restored at random, otherwise treated alike.
    twin: Machine,
    laws: Laws,
    exit_due: Option<Tick>,
    /// Requests that the shell was handed and is still preparing.
    beginning: Option<(RequestId, Wanted)>,
    /// Waiting callers that are recorded.
    waiters: Vec<RequestId>,
    /// Releases and requests so far.
    releases: u32,
    requests: u64,
}

impl<'a> World<'a> {
    fn new(rng: &'a mut Rng, trace: bool) -> Self {
        let policy = kernel::policy(rng);
        let start = Tick::from_millis(rng.u64(0..1_000_000));
        // Some machines begin with listeners from an earlier instance or a socket unit.
        let inherited = [0, 0, rng.u16(0..=policy.workers)][rng.usize(0..3)];
        let machine = Machine::new(policy.clone(), rng.u64(..)).with_listeners(inherited, start);
        Self {
            trace,
            kernel: Kernel::new(start, rng),
            twin: machine.clone(),
            machine,
            laws: Laws::new(policy, inherited, start),
            exit_due: None,
            beginning: None,
            waiters: Vec::new(),
            releases: ReleaseId::FIRST.0,
            requests: 0,
            rng,
        }
    }

    fn run(mut self, step: &mut u64, tally: &mut Tally) {
        let stop_at = *step + self.rng.u64(0..STEPS_PER_SEED);
        self.apply_event(Event::Boot, tally);
        while !self.laws.has_exited() {
            *step += 1;
            law!(
                *step < stop_at + STEPS_TO_STOP_MAX,
                "the supervisor does not stop"
            );
            if *step == stop_at {
                self.apply_event(stop("SIGTERM"), tally);
            } else if *step > stop_at && self.rng.u8(0..40) == 0 {
                self.apply_event(stop("SIGINT"), tally);
            } else {
                self.step(tally);
            }
        }
        law!(
            self.kernel.processes() == 0,
            "a process outlives the supervisor"
        );
        // Events after the end are ignored: the laws refuse any action.
        for _ in 0..5 {
            if let Some(event) = self.kernel.misbehaviour(self.rng) {
                self.apply_event(event, tally);
            }
            self.apply_event(stop("SIGTERM"), tally);
            self.handle_deadlines(tally);
        }
    }

    fn step(&mut self, tally: &mut Tally) {
        if self.beginning.is_some() && self.rng.u8(0..4) == 0 {
            return self.prepared(tally);
        }
        if self.rng.u8(0..24) == 0 {
            let event = self.request();
            self.apply_event(event, tally);
            return;
        }
        if self.rng.u8(0..16) == 0 {
            if let Some(event) = self.kernel.misbehaviour(self.rng) {
                self.apply_event(event, tally);
            }
            return;
        }
        if self.rng.u8(0..16) == 0 {
            // A spurious wakeup.
            self.handle_deadlines(tally);
            return;
        }
        let late = if self.rng.bool() {
            Duration::ZERO
        } else {
            ms(self.rng.u64(0..40))
        };
        let deadline = self.machine.poll_timeout().map(|at| at + late);
        match (deadline, self.kernel.next_due()) {
            (Some(deadline), due) if due.is_none_or(|due| deadline < due) => {
                self.kernel.advance(deadline);
                self.handle_deadlines(tally);
            }
            (_, Some(_)) => {
                if let Some(event) = self.kernel.happen(self.rng) {
                    self.apply_event(event, tally);
                }
            }
            // The machine is quiet; time passes until the next disturbance.
            (_, None) => {
                let idle = ms(self.rng.u64(0..30_000));
                self.kernel.advance(self.kernel.now() + idle);
            }
        }
    }

    /// Makes a random request, busy or not.
    fn request(&mut self) -> Event {
        // Some callers do not wait for the result.
        let request = if self.rng.u8(0..4) == 0 {
            RequestId::NOBODY
        } else {
            self.requests += 1;
            RequestId(self.requests)
        };
        let here = self.machine.policy().workers;
        if request != RequestId::NOBODY && self.rng.u8(0..4) == 0 {
            let by = Canceller::default();
            return Event::Cancel { request, by };
        }
        if self.rng.bool() {
            return self.patient_request(request);
        }
        // Begun at once and without a waiting caller, a request still has a number.
        let request = match request {
            RequestId::NOBODY => {
                self.requests += 1;
                RequestId(self.requests)
            }
            request => request,
        };
        match self.rng.u8(0..8) {
            0..4 => {
                let (release, policy) = self.new_release(here);
                Event::Reload {
                    request,
                    release,
                    policy,
                    drain: self.rng.bool(),
                }
            }
            4 => Event::Upgrade {
                request,
                drain: self.rng.bool(),
            },
            5 => Event::Scale {
                request,
                to: ScaleTo::By(1),
                drain: self.rng.bool(),
            },
            6 => Event::Scale {
                request,
                to: ScaleTo::By(-1),
                drain: self.rng.bool(),
            },
            _ => Event::Scale {
                request,
                to: ScaleTo::Exactly(self.rng.u16(0..=WORKERS_MAX)),
                drain: self.rng.bool(),
            },
        }
    }

    /// Sends a signal, or a command that may wait; sometimes a waiting caller cancels.
    fn patient_request(&mut self, request: RequestId) -> Event {
        if !self.waiters.is_empty() && self.rng.u8(0..8) == 0 {
            let at = self.rng.usize(0..self.waiters.len());
            let request = self.waiters.swap_remove(at);
            return Event::Withdrawn { request };
        }
        let wanted = match self.rng.u8(0..6) {
            0 | 1 => Wanted::Reload,
            2 => Wanted::Upgrade,
            3 => Wanted::Scale(ScaleTo::By(1)),
            4 => Wanted::Scale(ScaleTo::By(-1)),
            _ if request == RequestId::NOBODY => Wanted::Reload,
            _ => Wanted::Scale(ScaleTo::Exactly(self.rng.u16(1..=WORKERS_MAX))),
        };
        let wait = request == RequestId::NOBODY || self.rng.u8(0..4) > 0;
        if wait && request != RequestId::NOBODY {
            self.waiters.push(request);
        }
        Event::Requested {
            request,
            wanted,
            wait,
            // A signal cannot request it.
            drain: request != RequestId::NOBODY && self.rng.bool(),
        }
    }

    /// Completes the preparation of a request, or fails it.
    fn prepared(&mut self, tally: &mut Tally) {
        let Some((request, wanted)) = self.beginning.take() else {
            return;
        };
        let event = match wanted {
            _ if self.rng.u8(0..8) == 0 => Event::NotBegun {
                request,
                wanted,
                cause: "no such file".to_owned(),
            },
            Wanted::Reload => {
                let (release, policy) = self.new_release(self.machine.policy().workers);
                Event::Reload {
                    request,
                    release,
                    policy,
                    drain: self.rng.bool(),
                }
            }
            Wanted::Upgrade => Event::Upgrade {
                request,
                drain: self.rng.bool(),
            },
            Wanted::Scale(to) => Event::Scale {
                request,
                to,
                drain: self.rng.bool(),
            },
        };
        self.apply_event(event, tally);
    }

    fn new_release(&mut self, workers: u16) -> (ReleaseId, Policy) {
        self.releases += 1;
        let mut policy = kernel::policy(self.rng);
        if self.rng.u8(0..4) > 0 {
            policy.workers = workers;
        }
        (ReleaseId(self.releases), policy)
    }

    /// Tries to exec the new binary; only the saved state survives.
    fn exec(&mut self, tally: &mut Tally) {
        if self.rng.u8(0..4) == 0 {
            let cause = "no such file".to_owned();
            return self.apply_event(Event::ExecFailed { cause }, tally);
        }
        for machine in [&mut self.machine, &mut self.twin] {
            *machine = reborn(machine);
        }
        let (release, policy) = self.new_release(self.machine.policy().workers);
        self.apply_event(Event::Resumed { release, policy }, tally);
    }

    fn apply_event(&mut self, event: Event, tally: &mut Tally) {
        let now = self.kernel.now();
        self.trace(&format_args!("{event:?}"));
        self.laws.event(&event, now);
        self.machine.handle(event.clone(), now);
        self.twin.handle(event, now);
        self.aftermath(false, tally);
    }

    fn handle_deadlines(&mut self, tally: &mut Tally) {
        let now = self.kernel.now();
        self.trace(&"handles its deadlines");
        self.machine.handle_timeout(now);
        self.twin.handle_timeout(now);
        self.aftermath(true, tally);
    }

    /// Carries out the machine's actions, and checks everything.
    fn aftermath(&mut self, timed_out: bool, tally: &mut Tally) {
        let now = self.kernel.now();
        self.swap_twin();
        let mut exec = false;
        loop {
            let action = self.machine.poll_action();
            law!(
                action == self.twin.poll_action(),
                "the restored twin differs at {action:?}"
            );
            let Some(action) = action else { break };
            self.trace(&format_args!("    {action:?}"));
            law!(!exec, "{action:?} comes after Exec");
            exec = matches!(action, Action::Exec);
            if let Action::Begin {
                request, wanted, ..
            } = &action
            {
                self.beginning = Some((*request, *wanted));
            }
            if let Action::AbortPreflight = action {
                self.beginning = None;
            }
            *tally.entry(kind(&action)).or_default() += 1;
            if matches!(action, Action::Exit(_)) {
                // The shell exits with its requests unfinished.
                self.beginning = None;
                let in_time = self.exit_due.is_none_or(|due| now <= due);
                law!(in_time, "the exit was due at {:?}", self.exit_due);
            }
            self.laws.action(&action, now);
            self.kernel.execute(&action, self.rng);
        }
        self.swap_twin();
        let due = self.machine.poll_timeout();
        law!(
            due == self.twin.poll_timeout(),
            "the restored twin has another deadline"
        );
        self.laws.rest(&self.machine, now, timed_out);
        self.exit_due = self
            .laws
            .must_exit_by(self.kernel.delay_max(), SHELL_DELAY_MAX);
        if exec {
            self.exec(tally);
        } else if self.beginning.is_some() && self.rng.u8(0..4) > 0 {
            self.prepared(tally);
        }
    }

    /// Occasionally restores either of the two from its saved state.
    fn swap_twin(&mut self) {
        let machine = match self.rng.u8(0..64) {
            0 => &mut self.machine,
            1 => &mut self.twin,
            _ => return,
        };
        *machine = reborn(machine);
    }

    /// Prints past the test's captured output, which a passing test would not show.
    fn trace(&self, line: &dyn std::fmt::Display) {
        if self.trace {
            let now = self.kernel.now().as_nanos() / 1_000_000;
            let _ = writeln!(std::io::stderr(), "{now:>9} ms  {line}");
        }
    }
}

/// Returns the machine restored from its own saved state.
fn reborn(machine: &Machine) -> Machine {
    let saved = machine.snapshot().to_json().expect("a state can be saved");
    let read = Snapshot::from_json(&saved).expect("what was saved can be read");
    law!(read == machine.snapshot(), "saving changes the state");
    Machine::restore(read).expect("what was read can be restored")
}

fn stop(by: &str) -> Event {
    Event::Stop { by: by.to_owned() }
}

const KINDS: [&str; 68] = [
    "Bind",
    "Adopt",
    "Inherit",
    "StandBy",
    "Kill",
    "Abandon",
    "EndCustody",
    "StopWorker",
    "Lend",
    "Recall",
    "LeftWithoutWorker",
    "Degraded",
    "WorkerStalled",
    "Serve",
    "HandOver",
    "LastHandOver",
    "Leave",
    "Rebalance",
    "TakeLoads",
    "TakePulse",
    "TakeProgress",
    "Ping",
    "Steer",
    "Unsteer",
    "Spread",
    "CloseListeners",
    "DropSlot",
    "Begin",
    "Preflight",
    "AbortPreflight",
    "Exec",
    "Commit",
    "Done",
    "Refused",
    "Failed",
    "Announce",
    "Clean",
    "BootFailed",
    "WorkerStarting",
    "WorkerStandingBy",
    "WorkerReady",
    "WorkerDied",
    "WorkerStopped",
    "OperationStarted",
    "OperationEnded",
    "OperationCancelled",
    "RequestPending",
    "RequestWithdrawn",
    "NotBegun",
    "HandoverStarted",
    "HandoverDone",
    "HandoverPeerGone",
    "HandoverRefused",
    "HandoverTimedOut",
    "RebalanceStarted",
    "RebalanceEnded",
    "RebalanceTimedOut",
    "Restored",
    "RollingBack",
    "WorkerHung",
    "SpawnFailed",
    "StartTimedOut",
    "ChannelBroken",
    "BackingOff",
    "Stopping",
    "StopForced",
    "StillDraining",
    "StaleEvent",
];

fn kind(action: &Action) -> &'static str {
    use uppercased::supervisor::machine::{ListenerSource, Outcome};
    match action {
        Action::Spawn { standby: true, .. } => "StandBy",
        Action::Spawn {
            worker, listener, ..
        } => match listener {
            ListenerSource::Bind => "Bind",
            ListenerSource::Adopt if worker.generation.0 == 1 => "Inherit",
            ListenerSource::Adopt => "Adopt",
        },
        Action::Kill { .. } => "Kill",
        Action::KillProcess { .. } => "KillProcess",
        Action::Confirm { .. } => "Confirm",
        Action::Abandon { .. } => "Abandon",
        Action::EndCustody => "EndCustody",
        Action::StopWorker { .. } => "StopWorker",
        Action::Lend { .. } => "Lend",
        Action::Recall { .. } => "Recall",
        Action::Serve { .. } => "Serve",
        Action::HandOver { last: false, .. } => "HandOver",
        Action::HandOver { last: true, .. } => "LastHandOver",
        Action::Leave { .. } => "Leave",
        Action::Rebalance { .. } => "Rebalance",
        Action::TakeLoads => "TakeLoads",
        Action::TakePulse { .. } => "TakePulse",
        Action::TakeProgress { .. } => "TakeProgress",
        Action::Ping { .. } => "Ping",
        Action::Steer { .. } => "Steer",
        Action::Unsteer => "Unsteer",
        Action::Spread { .. } => "Spread",
        Action::CloseListeners { .. } => "CloseListeners",
        Action::DropSlot { .. } => "DropSlot",
        Action::Begin { .. } => "Begin",
        Action::Preflight => "Preflight",
        Action::AbortPreflight => "AbortPreflight",
        Action::Exec => "Exec",
        Action::Commit { .. } => "Commit",
        Action::Answer { answer, .. } => match answer {
            Answer::Done(_) => "Done",
            Answer::Refused { .. } => "Refused",
            Answer::Failed { .. } => "Failed",
        },
        Action::Announce => "Announce",
        Action::Exit(Outcome::Clean) => "Clean",
        Action::Exit(Outcome::Failed { .. }) => "BootFailed",
        Action::Notice(notice) => match notice {
            Notice::WorkerStarting { .. } => "WorkerStarting",
            Notice::WorkerStandingBy { .. } => "WorkerStandingBy",
            Notice::WorkerReady { .. } => "WorkerReady",
            Notice::WorkerDied { .. } => "WorkerDied",
            Notice::WorkerRescued { .. } => "WorkerRescued",
            Notice::WorkerStopped { .. } => "WorkerStopped",
            Notice::OperationStarted { .. } => "OperationStarted",
            Notice::OperationEnded { .. } => "OperationEnded",
            Notice::OperationCancelled { .. } => "OperationCancelled",
            Notice::CancelRefused { .. } => "CancelRefused",
            Notice::RequestPending { .. } => "RequestPending",
            Notice::RequestWithdrawn { .. } => "RequestWithdrawn",
            Notice::NotBegun { .. } => "NotBegun",
            Notice::HandoverStarted { .. } => "HandoverStarted",
            Notice::HandoverEnded { end, .. } => match end {
                HandoverEnd::Done => "HandoverDone",
                HandoverEnd::PeerGone => "HandoverPeerGone",
                HandoverEnd::Refused { .. } | HandoverEnd::Incomplete { .. } => "HandoverRefused",
            },
            Notice::HandoverTimedOut { .. } => "HandoverTimedOut",
            Notice::RebalanceStarted { .. } => "RebalanceStarted",
            Notice::RebalanceEnded { .. } => "RebalanceEnded",
            Notice::RebalanceTimedOut { .. } => "RebalanceTimedOut",
            Notice::Restored { .. } => "Restored",
            Notice::RollingBack { .. } => "RollingBack",
            Notice::WorkerHung { .. } => "WorkerHung",
            Notice::NotEnded { .. } => "Abandon",
            Notice::SpawnFailed { .. } => "SpawnFailed",
            Notice::StartTimedOut { .. } => "StartTimedOut",
            Notice::ChannelBroken { .. } => "ChannelBroken",
            Notice::BackingOff { .. } => "BackingOff",
            Notice::Lent { .. } => "Lend",
            Notice::Recalled { .. } => "Recall",
            Notice::LeftWithoutWorker { .. } => "LeftWithoutWorker",
            Notice::Stopping { .. } => "Stopping",
            Notice::StopForced { .. } => "StopForced",
            Notice::StillDraining { .. } => "StillDraining",
            Notice::BootFailed { .. } => "BootFailed",
            Notice::Degraded { .. } => "Degraded",
            Notice::WorkerStalled { .. } => "WorkerStalled",
            Notice::WorkerRunsAgain { .. } => "WorkerRunsAgain",
            Notice::InvariantBroken { .. } => "InvariantBroken",
            Notice::StaleEvent { .. } => "StaleEvent",
        },
    }
}
