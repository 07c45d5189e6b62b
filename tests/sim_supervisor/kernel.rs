//! The world that the simulated supervisor lives in: a clock, processes, and bad luck.
//!
//! Everything comes from one seed. A process says and does things at times of its own; what it says
//! reaches the supervisor later, perhaps after its death; its exit is told later still. The shell's
//! own lateness is played too. What this kernel never does is lose an exit: Linux does not either.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use uppercased::clock::Tick;
use uppercased::supervisor::machine::{
    Action, Death, Event, Generation, Policy, RestartConnections, SlotId, WorkerId,
};

use crate::laws::law;

/// The longest that this kernel takes to tell of an exit or of a failed spawn.
pub(crate) const KERNEL_DELAY_MAX: Duration = Duration::from_millis(700);

/// How bad the luck is, as chances in percent; drawn once a round so that calm worlds, in which
/// much is reached, are seen as well as stormy ones.
#[derive(Debug)]
struct Weather {
    spawn_fails: u8,
    start_hangs: u8,
    start_fails: u8,
    dies_young: u8,
    says_twice: u8,
    stop_hangs: u8,
    told_late: u8,
    lifetime_ms: u64,
}

#[derive(Debug)]
struct Process {
    /// False: a zombie, its exit on the way.
    alive: bool,
    hangs_on_stop: bool,
}

/// What will happen.
#[derive(Debug)]
enum Due {
    /// The supervisor learns of it.
    Tell(Event),
    /// A process says it, if it still lives.
    Say(WorkerId, Event),
    /// A process ends, if it still lives.
    Die(WorkerId, Death),
}

#[derive(Debug)]
pub(crate) struct Kernel {
    weather: Weather,
    workers: u16,
    now: Tick,
    /// Not reaped yet.
    processes: BTreeMap<WorkerId, Process>,
    /// By time; the number keeps the order of what is due at the same time.
    due: BTreeMap<(Tick, u64), Due>,
    scheduled: u64,
    /// Told lately; some of it is told again.
    told: Vec<Event>,
}

impl Kernel {
    pub(crate) fn new(workers: u16, now: Tick, rng: &mut Rng) -> Self {
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
            lifetime_ms: [200, 5_000, 100_000][rng.usize(0..3)],
        };
        Self {
            weather,
            workers,
            now,
            processes: BTreeMap::new(),
            due: BTreeMap::new(),
            scheduled: 0,
            told: Vec::new(),
        }
    }

    pub(crate) const fn now(&self) -> Tick {
        self.now
    }

    /// Processes not reaped yet.
    pub(crate) fn processes(&self) -> usize {
        self.processes.len()
    }

    /// When something happens next.
    pub(crate) fn next_due(&self) -> Option<Tick> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn advance(&mut self, to: Tick) {
        self.now = self.now.max(to);
    }

    /// Lets the next thing happen; the event, if the supervisor learns of one by it.
    pub(crate) fn happen(&mut self, rng: &mut Rng) -> Option<Event> {
        let ((at, _), due) = self.due.pop_first()?;
        self.advance(at);
        match due {
            Due::Tell(event) => {
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
            Due::Say(worker, event) => {
                if self.is_alive(worker) {
                    let delay = self.delay(rng);
                    self.schedule(delay, Due::Tell(event));
                }
            }
            Due::Die(worker, how) => self.die(worker, how, rng),
        }
        None
    }

    /// Carries out what the machine wants done.
    pub(crate) fn carry_out(&mut self, action: &Action, rng: &mut Rng) {
        match action {
            Action::Spawn { worker, .. } => self.spawn(*worker, rng),
            Action::Kill { worker } => self.die(*worker, Death::Signalled(9), rng),
            Action::StopWorker { worker } => {
                if let Some(process) = self.processes.get(worker)
                    && !process.hangs_on_stop
                {
                    let how = if rng.u8(0..8) == 0 {
                        Death::Signalled(11)
                    } else {
                        Death::Exited(0)
                    };
                    self.schedule(ms(rng.u64(0..3_000)), Due::Die(*worker, how));
                }
            }
            Action::Exit(_) => {
                law!(
                    self.processes.is_empty(),
                    "Exit leaves {:?}",
                    self.processes
                );
            }
            Action::Lend { to, .. } => law!(self.exists(*to), "lent to {to}, which is no more"),
            Action::Recall { from, .. } => {
                law!(self.exists(*from), "recalled from {from}, which is no more");
            }
            Action::Notice(_) | Action::Announce | Action::EndCustody => {}
        }
        law!(
            self.processes.len() <= usize::from(self.workers),
            "{} processes for {} slots",
            self.processes.len(),
            self.workers
        );
    }

    /// A piece of bad luck that no process is to blame for. Some of it shows at once, as an event.
    pub(crate) fn mischief(&mut self, rng: &mut Rng) -> Option<Event> {
        let victim = rng.choice(self.processes.keys().copied().collect::<Vec<_>>());
        match rng.u8(0..8) {
            // An operator with `kill -9`, or the OOM killer.
            0 | 1 => {
                if let Some(worker) = victim {
                    self.die(worker, Death::Signalled(9), rng);
                }
                None
            }
            2 => victim
                .filter(|worker| self.is_alive(*worker))
                .map(|worker| Event::ChannelBroken {
                    worker,
                    cause: "nonsense".to_owned(),
                }),
            // A status taken by somebody else.
            3 => {
                if let Some(worker) = victim {
                    self.die(worker, Death::Unknown, rng);
                }
                None
            }
            4 | 5 => rng.choice(self.told.clone()),
            6 => Some(Event::Boot),
            _ => Some(self.about_nobody(rng)),
        }
    }

    fn spawn(&mut self, worker: WorkerId, rng: &mut Rng) {
        law!(
            !self.processes.keys().any(|it| it.slot == worker.slot),
            "two in the slot of {worker}"
        );
        let cause = "no".to_owned();
        if lucky(self.weather.spawn_fails, rng) {
            let delay = self.delay(rng);
            self.schedule(delay, Due::Tell(Event::SpawnFailed { worker, cause }));
            return;
        }
        self.processes.insert(
            worker,
            Process {
                alive: true,
                hangs_on_stop: lucky(self.weather.stop_hangs, rng),
            },
        );
        if lucky(self.weather.start_hangs, rng) {
            return;
        }
        let start = ms(rng.u64(0..300));
        if lucky(self.weather.start_fails, rng) {
            self.schedule(
                start,
                Due::Say(worker, Event::StartFailed { worker, cause }),
            );
            // Some say it and then do not go.
            if rng.u8(0..4) > 0 {
                let after = ms(rng.u64(0..50));
                self.schedule(start + after, Due::Die(worker, Death::Exited(1)));
            }
            return;
        }
        if lucky(self.weather.dies_young, rng) {
            self.schedule(start, Due::Die(worker, Death::Exited(101)));
            return;
        }
        self.schedule(start, Due::Say(worker, Event::Ready { worker }));
        if lucky(self.weather.says_twice, rng) {
            let again = start + ms(rng.u64(0..500));
            self.schedule(again, Due::Say(worker, Event::Ready { worker }));
        }
        let life = start + ms(rng.u64(0..self.weather.lifetime_ms));
        match rng.u8(0..4) {
            0 => self.schedule(life, Due::Die(worker, Death::Signalled(11))),
            1 => self.schedule(life, Due::Die(worker, Death::Exited(rng.i32(0..3)))),
            2 => {
                let cause = "end of file".to_owned();
                self.schedule(
                    life,
                    Due::Say(worker, Event::ChannelBroken { worker, cause }),
                );
            }
            // Lives until somebody ends it.
            _ => {}
        }
    }

    fn die(&mut self, worker: WorkerId, how: Death, rng: &mut Rng) {
        let Some(process) = self.processes.get_mut(&worker).filter(|it| it.alive) else {
            return;
        };
        process.alive = false;
        let delay = self.delay(rng);
        self.schedule(delay, Due::Tell(Event::Exited { worker, how }));
    }

    /// A message from or about a worker that never was or is no more.
    fn about_nobody(&self, rng: &mut Rng) -> Event {
        let slot = SlotId(rng.u16(0..self.workers + 2));
        let present = self.processes.keys().find(|worker| worker.slot == slot);
        let present = present.map_or(0, |worker| worker.generation.0);
        // Before the present one, or so far ahead that this round will not reach it.
        let generation = if present > 1 && rng.bool() {
            Generation(rng.u32(0..present))
        } else {
            Generation(rng.u32(1_000_000..2_000_000))
        };
        let worker = WorkerId { slot, generation };
        let cause = "stale".to_owned();
        match rng.u8(0..5) {
            0 => Event::Ready { worker },
            1 => Event::StartFailed { worker, cause },
            2 => Event::SpawnFailed { worker, cause },
            3 => Event::ChannelBroken { worker, cause },
            _ => Event::Exited {
                worker,
                how: Death::Exited(0),
            },
        }
    }

    fn remember(&mut self, event: &Event) {
        const TOLD_MAX: usize = 8;
        if self.told.len() == TOLD_MAX {
            self.told.remove(0);
        }
        self.told.push(event.clone());
    }

    fn is_alive(&self, worker: WorkerId) -> bool {
        self.processes.get(&worker).is_some_and(|it| it.alive)
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

/// Limits of all sizes, in the order of magnitude of the lives of [`Kernel`]'s processes.
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
        restart_connections: RestartConnections::Handover,
        linger_timeout: Duration::from_secs(5),
        bake_time: Duration::from_secs(1),
        handover_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(3),
        hang_timeout: None,
    }
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn lucky(percent: u8, rng: &mut Rng) -> bool {
    rng.u8(0..100) < percent
}
