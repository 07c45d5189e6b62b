//! Simulates the lives of one worker: its memory, its rules and its chain of keepers over a model
//! kernel with random clients. The process dies at random stores and calls, also during a rescue.
//!
//! Laws: the model checks every byte sent, every deadline and every lost report; each connection
//! ends as its client caused it; a rescue resets nothing that its peer had not reset; records and
//! descriptors agree at the end of every turn. Each rule of the memory that is omitted breaks one.
//!
//! `SIM_SEED=42` replays one run; `SIM_SEEDS=10000` sets the number of runs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use crate::model::script::{Op, Terms, World};
use crate::model::server::Fault;
use crate::model::{Event, Meanwhile, Stopped};
use uppercased::connection::Rules;

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
        0..20 => Event::Connect,
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

/// Returns the limits of connections; in half of the runs deadlines pass.
fn terms(random: &mut fastrand::Rng) -> Terms {
    let mut terms = Terms::PLAIN;
    if random.bool() {
        terms.rules = Rules {
            idle_timeout: Some(Duration::from_millis(110)),
            write_stall_timeout: Some(Duration::from_millis(100)),
            linger_timeout: Duration::from_millis(90),
            ..terms.rules
        };
    }
    terms
}

/// Runs one seed; returns the number of deaths.
fn run(seed: u64, fault: Fault) -> u32 {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut world = World::new(terms(random));
    let mut deaths = 0;
    world.countdown.arm(random.u64(0..POINTS_MAX));
    for _ in 0..random.usize(1..=STEPS_MAX) {
        let op = op(random);
        if !dies(|| world.step(op)) {
            continue;
        }
        deaths += 1 + rescue(&mut world, fault, random);
        if op == Op::Finish {
            world.step(Op::Finish); // The supervisor repeats the request.
        }
        world.countdown.arm(random.u64(0..POINTS_MAX));
    }
    world.countdown.arm(u64::MAX);
    world.conclude();
    deaths
}

/// Rescues the worker of `world`; returns the number of rescuers that died.
fn rescue(world: &mut World, fault: Fault, random: &mut fastrand::Rng) -> u32 {
    for death in 0..DEATHS_IN_ROW_MAX {
        world.countdown.arm(random.u64(0..60));
        let died = dies(|| world.rescue(fault));
        world.countdown.arm(u64::MAX);
        if !died {
            return death;
        }
    }
    world.rescue(fault);
    DEATHS_IN_ROW_MAX
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
    let (mut runs, mut deaths) = (0, 0);
    for seed in seeds {
        match catch_unwind(|| run(seed, Fault::None)) {
            Ok(died) => deaths += died,
            Err(failure) => {
                eprintln!("replay it with SIM_SEED={seed}");
                resume_unwind(failure);
            }
        }
        runs += 1;
    }
    assert!(runs < SEEDS || u64::from(deaths) > runs, "{deaths} deaths");
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
    ] {
        let mut broken = (0..SEEDS).filter_map(|seed| broken_law(seed, fault));
        let is_found = broken.any(|text| text.contains(law));
        assert!(is_found, "{fault:?} does not break the law: {law}");
    }
}
