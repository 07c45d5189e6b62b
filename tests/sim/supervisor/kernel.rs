//! The simulated world of the supervisor: a clock, processes, and faults.
//!
//! Every event derives from one seed. A process acts and sends messages at random times; a message
//! reaches the supervisor later, perhaps after the process has exited, and the exit is reported
//! later still. Handovers end in every possible way, or never; event loops stall; new binaries fail
//! the pre-flight check. The shell is also late. The kernel holds some killed processes forever,
//! and never reports their exit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use uppercased::supervisor::machine::{
    Action, Boot, Event, ExitStatus, Generation, HandoverEnd, KILL_GRACE, Load, Notice, Policy,
    Progress, ReleaseId, ReloadConnections, Rescue, SlotId, WorkerId,
};
use uppercased_ctl::clock::Tick;

use crate::supervisor::laws::law;

/// Maximum delay of the report of an exit or of a failed spawn.
pub(crate) const KERNEL_DELAY_MAX: Duration = Duration::from_millis(700);

/// Fault rates in percent, drawn once per seed, so that calm worlds, which progress far, occur as
/// well as turbulent ones.
#[derive(Debug)]
struct Weather {
    spawn_fails: u8,
    start_hangs: u8,
    start_fails: u8,
    dies_young: u8,
    says_twice: u8,
    stop_hangs: u8,
    told_late: u8,
    handover_fails: u8,
    leave_hangs: u8,
    preflight_fails: u8,
    held: u8,
    lifetime_ms: u64,
}

/// More slots than any simulated supervisor has.
const SLOTS_MAX: u16 = 7;
/// More processes than a slot needs at once: the main one, its successor, and those that still
/// drain or are being killed.
const PROCESSES_PER_SLOT_MAX: usize = 5;

#[derive(Debug)]
struct Process {
    /// If false, a zombie whose exit is not yet reported.
    alive: bool,
    /// Whether the kernel will hold it when it is killed.
    to_be_held: bool,
    /// Whether it was killed and is held: then its exit is never reported.
    held: bool,
    hangs_on_stop: bool,
    /// Whether its event loop is stalled: then it neither sends nor acts until it is killed.
    hung: bool,
    turns: u64,
    calls: u64,
    pinged: bool,
}

/// A scheduled event.
#[derive(Debug)]
enum Due {
    /// The supervisor receives the event.
    Deliver(Event),
    /// A process sends the event, if it is still running.
    Send(WorkerId, Event),
    /// A process exits, if it is still running.
    Die(WorkerId, ExitStatus),
    /// A handover ends with this result, if it has not ended yet.
    Finish(WorkerId, HandoverEnd),
    /// The pre-flight check of a new binary ends, if that check is still awaited.
    Outcome(u64, Event),
}

#[derive(Debug)]
pub(crate) struct Kernel {
    weather: Weather,
    now: Tick,
    /// Not reaped yet.
    processes: BTreeMap<WorkerId, Process>,
    /// By time; the number preserves the order of events at the same time.
    due: BTreeMap<(Tick, u64), Due>,
    scheduled: u64,
    /// The sender of each handover, with its receiver.
    handovers: BTreeMap<WorkerId, WorkerId>,
    /// Handovers that never end by themselves, and whether the receiver is the cause.
    stalled: BTreeMap<WorkerId, bool>,
    /// Samples of handovers so far.
    checks: u64,
    /// Every process that was ever started.
    names: BTreeSet<WorkerId>,
    /// Number of the awaited pre-flight check.
    trial: Option<u64>,
    /// Events sent lately; some are sent again.
    told: Vec<Event>,
}

impl Kernel {
    pub(crate) fn new(now: Tick, rng: &mut Rng) -> Self {
        let storm = [0_u8, 5, 25][rng.usize(0..3)];
        let mut chance = |calm: u8| rng.u8(0..=calm.saturating_add(storm));
        let weather = Weather {
            spawn_fails: chance(1),
            start_hangs: chance(1),
            start_fails: chance(1),
            dies_young: chance(1),
            says_twice: chance(10),
            stop_hangs: chance(10),
            told_late: chance(10),
            handover_fails: chance(20),
            leave_hangs: chance(5),
            preflight_fails: chance(20),
            held: chance(1),
            lifetime_ms: [200, 5_000, 100_000][rng.usize(0..3)],
        };
        Self {
            weather,
            now,
            processes: BTreeMap::new(),
            due: BTreeMap::new(),
            scheduled: 0,
            handovers: BTreeMap::new(),
            stalled: BTreeMap::new(),
            checks: 0,
            names: BTreeSet::new(),
            trial: None,
            told: Vec::new(),
        }
    }

    pub(crate) const fn now(&self) -> Tick {
        self.now
    }

    /// Returns the number of processes not reaped yet.
    pub(crate) fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Returns the maximum time until the exit of a killed process is known, or no longer awaited.
    pub(crate) fn delay_max(&self) -> Duration {
        if self.weather.held > 0 {
            KILL_GRACE
        } else {
            KERNEL_DELAY_MAX
        }
    }

    /// Returns the time of the next event.
    pub(crate) fn next_due(&self) -> Option<Tick> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn advance(&mut self, to: Tick) {
        self.now = self.now.max(to);
    }

    /// Executes the next scheduled event; returns the event that the supervisor receives from it,
    /// if any.
    pub(crate) fn happen(&mut self, rng: &mut Rng) -> Option<Event> {
        let ((at, _), due) = self.due.pop_first()?;
        self.advance(at);
        match due {
            Due::Deliver(event) => {
                if let Event::Exited { worker, .. } = &event {
                    let reaped = self.processes.remove(worker);
                    law!(
                        reaped.is_some_and(|it| !it.alive),
                        "{worker} is reaped alive"
                    );
                }
                self.remember(&event);
                return Some(event);
            }
            Due::Finish(from, end) => self.finish(from, end, rng),
            Due::Outcome(trial, event) => {
                if self.trial == Some(trial) {
                    self.trial = None;
                    self.remember(&event);
                    return Some(event);
                }
            }
            Due::Send(worker, event) => {
                if self.is_well(worker) {
                    let delay = self.delay(rng);
                    self.schedule(delay, Due::Deliver(event));
                }
            }
            Due::Die(worker, exit) => self.die(worker, exit, rng),
        }
        None
    }

    /// Carries out an action of the machine.
    pub(crate) fn execute(&mut self, action: &Action, rng: &mut Rng) {
        match action {
            Action::Spawn { worker, .. } => self.spawn(*worker, rng),
            Action::Kill { worker } => {
                if let Some(process) = self.processes.get_mut(worker) {
                    process.held = process.to_be_held && process.alive;
                }
                self.die(*worker, ExitStatus::Signalled(9), rng);
            }
            // Its keeper, if it has one, reports the rescue.
            Action::KillProcess { worker } => self.die(*worker, ExitStatus::KILLED, rng),
            Action::Confirm { .. } => {}
            Action::Abandon { worker } => {
                let process = self.processes.remove(worker);
                law!(
                    process.is_some_and(|it| it.held && !it.alive),
                    "{worker} was abandoned although it would have exited"
                );
            }
            Action::StopWorker { worker } => {
                self.handovers.remove(worker);
                if self.is_well(*worker) && !self.processes[worker].hangs_on_stop {
                    let exit = if rng.u8(0..8) == 0 {
                        ExitStatus::Signalled(11)
                    } else {
                        ExitStatus::Exited(0)
                    };
                    self.schedule(ms(rng.u64(0..3_000)), Due::Die(*worker, exit));
                }
            }
            Action::HandOver { from, to, .. } => self.hand_over(*from, *to, rng),
            Action::Rebalance { from, to, .. } => self.rebalance(*from, *to, rng),
            Action::TakeLoads => self.send_loads(rng),
            Action::Leave { worker, .. } => self.leave(*worker, rng),
            Action::TakePulse { worker } => self.send_pulse(*worker, rng),
            Action::TakeProgress { from, to } => self.send_progress(*from, *to),
            Action::Ping { worker } => {
                if let Some(process) = self.processes.get_mut(worker) {
                    process.pinged = true;
                }
            }
            Action::Preflight => {
                self.scheduled += 1;
                let trial = self.scheduled;
                self.trial = Some(trial);
                let cause = "it does not start".to_owned();
                let outcome = if lucky(self.weather.preflight_fails, rng) {
                    (rng.bool()).then_some(Event::PreflightFailed { cause })
                } else {
                    Some(Event::PreflightPassed)
                };
                if let Some(event) = outcome {
                    self.schedule(ms(rng.u64(0..200)), Due::Outcome(trial, event));
                }
            }
            Action::AbortPreflight => self.trial = None,
            Action::Exit(_) => {
                law!(
                    self.processes.is_empty(),
                    "Exit leaves {:?}",
                    self.processes
                );
            }
            Action::Lend { to, .. } => law!(self.exists(*to), "lent to {to}, which has exited"),
            Action::Recall { from, .. } => {
                law!(self.exists(*from), "recalled from {from}, which has exited");
            }
            Action::Notice(
                Notice::WorkerHung { worker, .. } | Notice::WorkerStalled { worker, .. },
            ) => {
                law!(
                    !self.is_well(*worker),
                    "{worker} is healthy but reported as stalled"
                );
            }
            Action::Serve { worker } => {
                law!(
                    self.exists(*worker),
                    "{worker} receives a message after its exit"
                );
            }
            Action::DropSlot { slot } => {
                let left = self.processes.keys().any(|worker| worker.slot == *slot);
                law!(!left, "slot {slot} is dropped while it has a process");
            }
            Action::Notice(_)
            | Action::Announce
            | Action::EndCustody
            | Action::Steer { .. }
            | Action::Unsteer
            | Action::Spread { .. }
            | Action::CloseListeners { .. }
            | Action::Exec
            | Action::Begin { .. }
            | Action::Commit { .. }
            | Action::Answer { .. } => {}
        }
    }

    /// Injects a fault without a cause in any process. Some faults show at once, as an event.
    pub(crate) fn misbehaviour(&mut self, rng: &mut Rng) -> Option<Event> {
        let victim = rng.choice(self.processes.keys().copied().collect::<Vec<_>>());
        match rng.u8(0..10) {
            // An operator's `kill -9`, or the OOM killer.
            0 | 1 => {
                if let Some(worker) = victim {
                    self.die(worker, ExitStatus::Signalled(9), rng);
                }
                None
            }
            2 => victim
                .filter(|worker| self.is_alive(*worker))
                .map(|worker| Event::ChannelBroken {
                    worker,
                    cause: "nonsense".to_owned(),
                }),
            // A status reaped by other code.
            3 => {
                if let Some(worker) = victim {
                    self.die(worker, ExitStatus::Unknown, rng);
                }
                None
            }
            4 | 5 => rng.choice(self.told.clone()),
            6 => Some(Event::Boot),
            // An endless loop, or a worker stopped by a debugger.
            7 => {
                if let Some(process) = victim.and_then(|worker| self.processes.get_mut(&worker)) {
                    process.hung = true;
                }
                None
            }
            _ => Some(self.about_unknown_worker(rng)),
        }
    }

    fn spawn(&mut self, worker: WorkerId, rng: &mut Rng) {
        law!(self.names.insert(worker), "{worker} was started before");
        let beside = self.processes.keys().filter(|it| it.slot == worker.slot);
        law!(
            beside.count() < PROCESSES_PER_SLOT_MAX,
            "too many in the slot of {worker}: {:?}",
            self.processes
        );
        let cause = "no".to_owned();
        if lucky(self.weather.spawn_fails, rng) {
            let delay = self.delay(rng);
            self.schedule(delay, Due::Deliver(Event::SpawnFailed { worker, cause }));
            return;
        }
        self.processes.insert(
            worker,
            Process {
                alive: true,
                to_be_held: lucky(self.weather.held, rng),
                held: false,
                hangs_on_stop: lucky(self.weather.stop_hangs, rng),
                hung: false,
                turns: 0,
                calls: 0,
                pinged: false,
            },
        );
        if lucky(self.weather.start_hangs, rng) {
            return;
        }
        let start = ms(rng.u64(0..300));
        if lucky(self.weather.start_fails, rng) {
            self.schedule(
                start,
                Due::Send(worker, Event::StartFailed { worker, cause }),
            );
            // Some workers report that and then do not exit.
            if rng.u8(0..4) > 0 {
                let after = ms(rng.u64(0..50));
                self.schedule(start + after, Due::Die(worker, ExitStatus::Exited(1)));
            }
            return;
        }
        if lucky(self.weather.dies_young, rng) {
            self.schedule(start, Due::Die(worker, ExitStatus::Exited(101)));
            return;
        }
        self.schedule(start, Due::Send(worker, Event::Ready { worker }));
        if lucky(self.weather.says_twice, rng) {
            let again = start + ms(rng.u64(0..500));
            self.schedule(again, Due::Send(worker, Event::Ready { worker }));
        }
        let life = start + ms(rng.u64(0..self.weather.lifetime_ms));
        match rng.u8(0..4) {
            0 => self.schedule(life, Due::Die(worker, ExitStatus::Signalled(11))),
            1 => self.schedule(life, Due::Die(worker, ExitStatus::Exited(rng.i32(0..3)))),
            2 if rng.bool() => {
                let closed = Event::ChannelClosed { worker };
                self.schedule(life, Due::Send(worker, closed));
            }
            2 => {
                let cause = "end of file".to_owned();
                self.schedule(
                    life,
                    Due::Send(worker, Event::ChannelBroken { worker, cause }),
                );
            }
            // Runs until it is killed.
            _ => {}
        }
    }

    fn die(&mut self, worker: WorkerId, exit: ExitStatus, rng: &mut Rng) {
        let Some(process) = self.processes.get_mut(&worker).filter(|it| it.alive) else {
            return;
        };
        process.alive = false;
        self.handovers.remove(&worker);
        // The sender of its handover detects that the socket pair is closed.
        let mut bereft = Vec::new();
        self.handovers.retain(|from, to| {
            if *to == worker {
                bereft.push(*from);
            }
            *to != worker
        });
        for from in bereft {
            let after = ms(rng.u64(0..20));
            let event = handed_over(from, 0, HandoverEnd::PeerGone);
            self.schedule(after, Due::Send(from, event));
        }
        if self.processes.get(&worker).is_some_and(|it| it.held) {
            return;
        }
        let delay = self.delay(rng);
        self.schedule(
            delay,
            Due::Deliver(Event::Exited {
                worker,
                exit,
                cause: None,
            }),
        );
    }

    fn hand_over(&mut self, from: WorkerId, to: WorkerId, rng: &mut Rng) {
        law!(self.exists(from), "{from} is to hand over after its exit");
        law!(
            self.exists(to),
            "{from} is to hand over to {to}, which has exited"
        );
        if !self.is_alive(to) {
            let event = handed_over(from, 0, HandoverEnd::PeerGone);
            self.schedule(ms(1), Due::Send(from, event));
            return;
        }
        self.handovers.insert(from, to);
        self.stalled.remove(&from);
        let end = if !lucky(self.weather.handover_fails, rng) {
            HandoverEnd::Done
        } else {
            match rng.u8(0..3) {
                0 => HandoverEnd::PeerGone,
                1 => HandoverEnd::Refused {
                    cause: "full".to_owned(),
                },
                // It never ends.
                _ => {
                    self.stalled.insert(from, rng.bool());
                    return;
                }
            }
        };
        self.schedule(ms(rng.u64(0..200)), Due::Finish(from, end));
    }

    fn finish(&mut self, from: WorkerId, end: HandoverEnd, rng: &mut Rng) {
        let both = self
            .handovers
            .get(&from)
            .is_some_and(|to| self.is_well(*to));
        if !both || !self.is_well(from) {
            return;
        }
        self.handovers.remove(&from);
        let left = match &end {
            HandoverEnd::Done => 0,
            HandoverEnd::PeerGone
            | HandoverEnd::Refused { .. }
            | HandoverEnd::Incomplete { .. } => rng.u32(0..9),
        };
        let event = handed_over(from, left, end.clone());
        let delay = self.delay(rng);
        self.schedule(delay, Due::Deliver(event.clone()));
        if lucky(self.weather.says_twice, rng) {
            self.schedule(delay + ms(1), Due::Deliver(event));
        }
        match end {
            HandoverEnd::PeerGone
            | HandoverEnd::Refused { .. }
            | HandoverEnd::Incomplete { .. } => {}
            HandoverEnd::Done => {
                if !lucky(self.weather.leave_hangs, rng) {
                    // Its exit report comes first: it is in the channel when the process exits.
                    let after = delay + ms(2);
                    self.schedule(after, Due::Die(from, ExitStatus::Exited(0)));
                }
            }
        }
    }

    /// Schedules the exit for when its connections have ended; some never end.
    fn leave(&mut self, worker: WorkerId, rng: &mut Rng) {
        law!(self.exists(worker), "{worker} is to leave after its exit");
        if !lucky(self.weather.leave_hangs, rng) && self.is_well(worker) {
            let after = KERNEL_DELAY_MAX + ms(rng.u64(0..2_000));
            self.schedule(after, Due::Die(worker, ExitStatus::Exited(0)));
        }
    }

    /// Reports the progress of a handover from shared memory; it grows while both sides are active.
    fn send_progress(&mut self, from: WorkerId, to: WorkerId) {
        self.checks += 1;
        let moves = !self.stalled.contains_key(&from) && self.is_well(from) && self.is_well(to);
        let receiver = self
            .stalled
            .get(&from)
            .copied()
            .unwrap_or_else(|| !self.is_well(to));
        let answered = if moves { self.checks } else { 1 };
        let sent = answered + u64::from(receiver);
        let progress = Progress {
            sent,
            settled: answered,
            answered,
        };
        let event = Event::Progress { from, to, progress };
        self.schedule(Duration::ZERO, Due::Deliver(event));
    }

    /// Reports the counter of turns from shared memory, which is readable in any state of its
    /// writer.
    fn send_pulse(&mut self, worker: WorkerId, rng: &mut Rng) {
        let process = self.processes.get_mut(&worker);
        let process = process.expect("law: only a running worker has a pulse");
        if process.alive && !process.hung && (process.pinged || rng.bool()) {
            process.turns += rng.u64(1..100);
            process.pinged = false;
        }
        let turns = process.turns;
        self.schedule(Duration::ZERO, Due::Deliver(Event::Pulse { worker, turns }));
    }

    /// Reports the work counters from shared memory; some workers do most of the work.
    fn send_loads(&mut self, rng: &mut Rng) {
        let mut loads = Vec::new();
        for (worker, process) in &mut self.processes {
            if process.alive && !process.hung {
                if process.pinged || rng.bool() {
                    process.turns += rng.u64(1..100);
                    process.pinged = false;
                }
                let busy = (worker.slot.0 + worker.generation.0 as u16).is_multiple_of(3);
                process.calls += rng.u64(0..if busy { 100_000 } else { 2_000 });
            }
            loads.push(Load {
                worker: *worker,
                calls: process.calls,
                turns: process.turns,
            });
        }
        self.schedule(Duration::ZERO, Due::Deliver(Event::Loads { loads }));
    }

    /// Migrates some connections; both workers continue to serve. Some never report the end.
    fn rebalance(&mut self, from: WorkerId, to: WorkerId, rng: &mut Rng) {
        law!(
            self.exists(from),
            "{from} is to hand over a part after its exit"
        );
        law!(
            self.exists(to),
            "{from} is to hand over a part to {to}, which has exited"
        );
        let end = if !self.is_alive(to) {
            HandoverEnd::PeerGone
        } else if lucky(self.weather.handover_fails, rng) {
            let cause = "full".to_owned();
            match rng.u8(0..3) {
                0 => HandoverEnd::PeerGone,
                1 => HandoverEnd::Refused { cause },
                _ => return,
            }
        } else {
            HandoverEnd::Done
        };
        let event = Event::Rebalanced {
            worker: from,
            moved: rng.u32(0..3),
            end,
        };
        self.schedule(ms(rng.u64(0..200)), Due::Send(from, event));
    }

    /// Returns a message from or about a worker that never existed or has exited.
    fn about_unknown_worker(&self, rng: &mut Rng) -> Event {
        let slot = SlotId(rng.u16(0..SLOTS_MAX));
        let present = self.processes.keys().find(|worker| worker.slot == slot);
        let present = present.map_or(0, |worker| worker.generation.0);
        // Older than the present one, or so far ahead that this seed does not reach it.
        let generation = if present > 1 && rng.bool() {
            Generation(rng.u32(0..present))
        } else {
            Generation(rng.u32(1_000_000..2_000_000))
        };
        let worker = WorkerId { slot, generation };
        let cause = "stale".to_owned();
        match rng.u8(0..13) {
            11 => Event::Kept { worker, kept: true },
            12 => Event::Rescued {
                worker,
                rescue: Rescue {
                    exit: ExitStatus::KILLED,
                    is_hang: false,
                    cause: None,
                    connections: 1,
                    owed_bytes: 0,
                    reset: 0,
                    is_handing_over: rng.bool(),
                    took: ms(1),
                },
            },
            10 => Event::Rebalanced {
                worker,
                moved: 1,
                end: HandoverEnd::Done,
            },
            0 => Event::Ready { worker },
            1 => Event::StartFailed { worker, cause },
            2 => Event::SpawnFailed { worker, cause },
            3 => Event::ChannelBroken { worker, cause },
            4 => handed_over(worker, 0, HandoverEnd::Done),
            5 => Event::Pulse { worker, turns: 1 },
            6 => Event::ExecFailed { cause },
            7 => Event::Resumed {
                release: ReleaseId(rng.u32(..)),
                policy: policy(rng),
            },
            _ => Event::Exited {
                worker,
                exit: ExitStatus::Exited(0),
                cause: Some(cause),
            },
        }
    }

    fn remember(&mut self, event: &Event) {
        const TOLD_MAX: usize = 8;
        // A number read from memory cannot be duplicated.
        if matches!(
            event,
            Event::Pulse { .. } | Event::Loads { .. } | Event::Progress { .. }
        ) {
            return;
        }
        if self.told.len() == TOLD_MAX {
            self.told.remove(0);
        }
        self.told.push(event.clone());
    }

    fn is_alive(&self, worker: WorkerId) -> bool {
        self.processes.get(&worker).is_some_and(|it| it.alive)
    }

    /// Returns whether the worker is running and its event loop is not stalled.
    fn is_well(&self, worker: WorkerId) -> bool {
        let well = |it: &Process| it.alive && !it.hung;
        self.processes.get(&worker).is_some_and(well)
    }

    fn exists(&self, worker: WorkerId) -> bool {
        self.processes.contains_key(&worker)
    }

    fn delay(&self, rng: &mut Rng) -> Duration {
        if lucky(self.weather.told_late, rng) {
            let max = u64::try_from(KERNEL_DELAY_MAX.as_nanos()).expect("well below 584 years");
            Duration::from_nanos(rng.u64(0..=max))
        } else {
            ms(rng.u64(0..3))
        }
    }

    fn schedule(&mut self, delay: Duration, due: Due) {
        self.scheduled += 1;
        self.due.insert((self.now + delay, self.scheduled), due);
    }
}

/// Returns limits of all sizes, of the same order of magnitude as the run times of [`Kernel`]'s
/// processes.
pub(crate) fn policy(rng: &mut Rng) -> Policy {
    Policy {
        workers: rng.u16(1..=5),
        start_timeout: ms(rng.u64(150..2_000)),
        drain_timeout: ms(rng.u64(0..4_000)),
        lame_duck: ms(rng.u64(0..1_000)),
        backoff_initial: ms(rng.u64(10..200)),
        backoff_max: ms(rng.u64(100..3_000)),
        backoff_reset: ms(rng.u64(0..20_000)),
        lend_after: ms([0, 50, 400][rng.usize(0..3)]),
        reload_connections: if rng.u8(0..4) == 0 {
            ReloadConnections::Drain
        } else {
            ReloadConnections::Handover
        },
        boot: [Boot::Any, Boot::All][rng.usize(0..2)],
        linger_timeout: ms(rng.u64(0..1_000)),
        bake_time: ms([0, 100, 1_000][rng.usize(0..3)]),
        handover_timeout: ms([50, 500, 3_000][rng.usize(0..3)]),
        handshake_timeout: ms([0, 100, 1_000][rng.usize(0..3)]),
        hang_timeout: [None, Some(ms(200)), Some(ms(2_000))][rng.usize(0..3)],
        stall_check: [None, Some(ms(100))][rng.usize(0..2)],
        rebalance: [None, Some(10), Some(200)][rng.usize(0..3)],
    }
}

fn handed_over(worker: WorkerId, left: u32, end: HandoverEnd) -> Event {
    Event::HandedOver {
        worker,
        moved: 3,
        left,
        end,
    }
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn lucky(percent: u8, rng: &mut Rng) -> bool {
    rng.u8(0..100) < percent
}
