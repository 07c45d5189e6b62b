//! Simulates the lives of one worker: its memory, its rules, its chain of keepers and its
//! supervisor's part over a model kernel with random clients. The process dies at random stores and
//! calls, also during a rescue; the supervisor dies, too, and is replaced later.
//!
//! Laws: the model checks every byte sent, every deadline and every lost report; each connection
//! ends as its client caused it; a rescue resets nothing but what its peer had reset and what was in
//! hand at two deaths in a row, one of them a crash; a worker is given up only if its rescues were
//! not confirmed; records and descriptors agree at the end of every turn. Each rule of the memory
//! that is omitted breaks one.
//!
//! `SIM_SEED=42` replays one run; `SIM_SEEDS=10000` sets the number of runs.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::model::script::{Op, Terms, World};
use crate::model::server::Fault;
use crate::model::{Event, Meanwhile, Stopped};
use uppercased::config::RESCUES_UNCONFIRMED_MAX;
use uppercased::connection::Rules;
use uppercased::memory::layout::{HANDS, InHand, Layout};
use uppercased::memory::life::{lives, note_crash};
use uppercased::memory::rescue::NoRescue;

/// Number of runs in a plain `cargo test`.
const SEEDS: u64 = 10_000;
/// Steps of a script.
const STEPS_MAX: usize = 100;
/// Most stores and calls between two deaths.
const POINTS_MAX: u64 = 150;
/// Deaths in a row of rescuers, each during the rescue of the one before.
const DEATHS_IN_ROW_MAX: u32 = 3;

/// Returns whether the process died during `work`.
fn dies(work: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => false,
        Err(payload) if payload.is::<Stopped>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

fn event(random: &mut fastrand::Rng) -> Event {
    let client = random.u8(0..8);
    match random.u32(0..100) {
        0..14 => Event::Connect,
        14..20 => Event::Proxied {
            header: random.u8(1..40),
        },
        20..60 => Event::Data {
            client,
            len: random.u16(1..60),
        },
        60..65 => Event::Urgent { client },
        65..70 => Event::End { client },
        70..72 => Event::Reset { client },
        _ => Event::Room {
            client,
            bytes: random.u16(1..60),
        },
    }
}

fn op(random: &mut fastrand::Rng) -> Op {
    match random.u32(0..100) {
        0..55 => Op::Event(event(random)),
        55..60 => Op::Meanwhile(Meanwhile::Event(event(random))),
        60..62 => Op::Meanwhile(Meanwhile::Interrupted),
        62 => Op::Finish,
        63..66 => Op::Pass(random.u16(1..50)),
        _ => Op::Turn,
    }
}

/// Returns the limits of connections: in half of the runs deadlines pass, in a third connections age.
fn terms(random: &mut fastrand::Rng) -> Terms {
    let mut terms = Terms::PLAIN;
    if random.bool() {
        terms.rules = Rules {
            idle_timeout: Some(Duration::from_millis(110)),
            write_stall_timeout: Some(Duration::from_millis(100)),
            linger_timeout: Duration::from_millis(90),
            header_timeout: Duration::from_millis(120),
            ..terms.rules
        };
    }
    if random.u8(0..3) == 0 {
        terms.rules.max_age = Some(Duration::from_millis(80));
        terms.rules.age_grace = Duration::from_millis(20);
    }
    terms
}

/// The supervisor, as far as it takes part in rescues: it takes some deaths for crashes, and
/// confirms most rescues. While it is dead it does neither; the next one confirms a rescue when it
/// adopts the worker.
#[derive(Default)]
struct Supervisor {
    /// Deaths of the worker.
    deaths: u32,
    /// Deaths of the supervisor.
    own_deaths: u32,
    /// Whether it is dead.
    is_dead: bool,
    /// Clients in hand at the deaths of each life.
    in_hand: BTreeMap<u64, BTreeSet<usize>>,
    /// Lives that it has noted as crashed.
    crashed: BTreeSet<u64>,
    /// Rescues begun since the last confirmation, or since one that may not have been stored.
    unconfirmed: u64,
    /// Clients that were reset as poison.
    poisoned: BTreeSet<usize>,
    /// Whether the worker was given up.
    has_given_up: bool,
}

impl Supervisor {
    /// Records a death.
    fn note(&mut self, world: &World, random: &mut fastrand::Rng) {
        self.deaths += 1;
        let shared = world.server.memory.shared();
        let life = lives(shared);
        let in_hand = (0..HANDS).map(Layout::in_hand).filter_map(|(line, at)| {
            let word = shared.line(line).0[at].load(Ordering::Relaxed);
            let fd = InHand::unpack(word)?.fd()?;
            world.kernel.descriptors.get(&fd).copied()
        });
        self.in_hand.entry(life).or_default().extend(in_hand);
        if !self.is_dead && random.u32(0..4) == 0 {
            note_crash(shared, life);
            self.crashed.insert(life);
        }
    }

    /// Sometimes lets the supervisor die, or another one adopt the worker of `world`.
    fn live(&mut self, world: &mut World, random: &mut fastrand::Rng) {
        if random.u32(0..30) > 0 {
            return;
        }
        self.is_dead = !self.is_dead;
        if self.is_dead {
            self.own_deaths += 1;
        } else {
            world.server.memory.confirm_rescues();
            self.unconfirmed = 0;
        }
    }

    /// Rescues the worker of `world` until a rescuer survives, or none is allowed.
    fn rescue(&mut self, world: &mut World, fault: Fault, random: &mut fastrand::Rng) {
        self.note(world, random);
        for death in 0.. {
            let ended = lives(world.server.memory.shared());
            let is_last = death == DEATHS_IN_ROW_MAX;
            let points = if is_last { u64::MAX } else { random.u64(0..60) };
            let mut poisoned = BTreeSet::new();
            let mut rescued = Ok(());
            let begun = self.unconfirmed;
            self.unconfirmed += 1;
            world.countdown.arm(points);
            let died = dies(|| {
                let (server, kernel) = (&mut world.server, &mut world.kernel);
                rescued = server.rescue(kernel, fault, &mut poisoned);
                if rescued.is_ok() && !self.is_dead && random.u32(0..8) > 0 {
                    server.memory.confirm_rescues();
                    self.unconfirmed = 0;
                }
            });
            world.countdown.arm(u64::MAX);
            self.check_poison(ended, poisoned);
            if rescued.is_err() {
                assert_eq!(rescued, Err(NoRescue::Unconfirmed));
                assert!(
                    begun >= RESCUES_UNCONFIRMED_MAX,
                    "given up after {begun} rescues"
                );
                self.has_given_up = true;
            }
            if !died {
                return;
            }
            self.note(world, random);
        }
    }

    /// Checks that each of `poisoned` was in hand when life `ended` and the one before it died, and
    /// that one of these deaths was a crash.
    fn check_poison(&mut self, ended: u64, poisoned: BTreeSet<usize>) {
        for client in poisoned {
            for life in [ended - 1, ended] {
                let in_hand = self.in_hand.get(&life);
                assert!(
                    in_hand.is_some_and(|clients| clients.contains(&client)),
                    "client {client} was reset, and was not in hand when life {life} ended"
                );
            }
            let is_crash = [ended - 1, ended]
                .iter()
                .any(|life| self.crashed.contains(life));
            assert!(is_crash, "client {client} was reset without a crash");
            self.poisoned.insert(client);
        }
    }
}

/// Runs one seed; returns what its supervisor saw.
fn run(seed: u64, fault: Fault) -> Supervisor {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut world = World::new(terms(random));
    let mut supervisor = Supervisor::default();
    world.countdown.arm(random.u64(0..POINTS_MAX));
    for _ in 0..random.usize(1..=STEPS_MAX) {
        let op = op(random);
        let died = dies(|| {
            supervisor.live(&mut world, random);
            world.step(op);
        });
        if !died {
            continue;
        }
        supervisor.rescue(&mut world, fault, random);
        if supervisor.has_given_up {
            return supervisor;
        }
        if op == Op::Finish {
            world.step(Op::Finish); // The supervisor repeats the request.
        }
        world.countdown.arm(random.u64(0..POINTS_MAX));
    }
    world.countdown.arm(u64::MAX);
    world.conclude();
    supervisor
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn rescued_worker_answers_every_byte_once() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (mut runs, mut deaths, mut supervisors) = (0, 0, 0);
    let (mut poisoned, mut given_up) = (0, 0);
    for seed in seeds {
        match catch_unwind(|| run(seed, Fault::None)) {
            Ok(supervisor) => {
                deaths += u64::from(supervisor.deaths);
                supervisors += u64::from(supervisor.own_deaths);
                poisoned += supervisor.poisoned.len();
                given_up += u64::from(supervisor.has_given_up);
            }
            Err(failure) => {
                eprintln!("replay it with SIM_SEED={seed}");
                resume_unwind(failure);
            }
        }
        runs += 1;
    }
    println!(
        "{runs} runs, {deaths} deaths, {supervisors} of supervisors, {poisoned} poisoned, {given_up} given up"
    );
    assert!(runs < SEEDS || (deaths > runs && supervisors > 0 && poisoned > 0 && given_up > 0));
}

/// Returns the law that run `seed` breaks with `fault`.
fn broken_law(seed: u64, fault: Fault) -> Option<String> {
    let payload = catch_unwind(|| run(seed, fault)).err()?;
    assert!(!payload.is::<Stopped>(), "a death was not rescued");
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

#[test]
fn every_omitted_rule_breaks_its_law() {
    for (fault, law) in [
        (
            Fault::HandsIgnored,
            "its counts contradict its unsent output",
        ),
        (Fault::LengthTrusted, "wrong bytes"),
        (Fault::NoReceiveMark, "received while output is pending"),
        (Fault::NoPending, "its counts contradict its unsent output"),
        (Fault::NoFlushMark, "wrong bytes"),
        (Fault::NoAcceptMark, "was never recorded"),
        (Fault::NoCloseMark, "is recorded and closed"),
        (Fault::NoLingerMark, "sent after the end"),
        (Fault::OpenFirst, "a new descriptor was closed"),
        (Fault::HeaderIgnored, "the header was received already"),
    ] {
        let mut broken = (0..SEEDS).filter_map(|seed| broken_law(seed, fault));
        let is_found = broken.any(|text| text.contains(law));
        assert!(is_found, "{fault:?} does not break the law: {law}");
    }
}
