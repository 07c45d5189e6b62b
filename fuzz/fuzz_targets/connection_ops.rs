//! Any script of clients, calls and faults leaves every connection exact, against the model kernel
//! of the property tests.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uppercased::connection::Rules;

#[expect(dead_code, reason = "the property tests use more of it")]
#[path = "../../tests/prop/model/mod.rs"]
mod model;

use model::script::{Op, Terms, World};
use model::{Event, Meanwhile};

/// Steps per script; longer ones find no more than shorter ones.
const STEPS_MAX: usize = 200;

#[derive(Arbitrary, Debug)]
struct Script {
    bytes_per_turn: u8,
    buffer_bytes: u8,
    idle_timeout_ms: Option<u8>,
    write_stall_timeout_ms: Option<u8>,
    first_word_ms: u8,
    linger_timeout_ms: u8,
    max_age_ms: Option<u8>,
    age_grace_ms: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Happens(Happening),
    Interrupted,
    Refused,
    Meanwhile(Happening),
    Turn,
    Pass(u8),
    Finish,
    HandOver,
    TakeBack,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Happening {
    Connect,
    Data(u8, u8),
    Urgent(u8),
    End(u8),
    Reset(u8),
    Room(u8, u8),
    Proxied(u8),
}

impl Happening {
    fn event(self) -> Event {
        let client = |number: u8| number % 3;
        match self {
            Self::Connect => Event::Connect,
            Self::Proxied(header) => Event::Proxied { header },
            Self::Data(number, len) => Event::Data {
                client: client(number),
                len: u16::from(len).max(1),
            },
            Self::Urgent(number) => Event::Urgent {
                client: client(number),
            },
            Self::End(number) => Event::End {
                client: client(number),
            },
            Self::Reset(number) => Event::Reset {
                client: client(number),
            },
            Self::Room(number, bytes) => Event::Room {
                client: client(number),
                bytes: u16::from(bytes).max(1),
            },
        }
    }
}

impl Step {
    fn op(self) -> Op {
        match self {
            Self::Happens(happening) => Op::Event(happening.event()),
            Self::Interrupted => Op::Meanwhile(Meanwhile::Interrupted),
            Self::Refused => Op::Meanwhile(Meanwhile::Refused),
            Self::Meanwhile(happening) => Op::Meanwhile(Meanwhile::Event(happening.event())),
            Self::Turn => Op::Turn,
            Self::Pass(ms) => Op::Pass(ms.into()),
            Self::Finish => Op::Finish,
            Self::HandOver => Op::HandOver,
            Self::TakeBack => Op::TakeBack,
        }
    }
}

fuzz_target!(|script: Script| {
    let span = |ms: u8| Duration::from_millis(u64::from(ms).max(1) * 3);
    let mut world = World::new(Terms {
        buffer_bytes: u32::from(script.buffer_bytes).max(1),
        rules: Rules {
            bytes_per_turn: u32::from(script.bytes_per_turn).max(1),
            idle_timeout: script.idle_timeout_ms.map(span),
            write_stall_timeout: script.write_stall_timeout_ms.map(span),
            first_byte_timeout: span(script.first_word_ms),
            linger_timeout: span(script.linger_timeout_ms),
            max_age: script.max_age_ms.map(span),
            age_grace: span(script.age_grace_ms),
            ..Terms::PLAIN.rules
        },
    });
    for step in script.steps.iter().take(STEPS_MAX) {
        world.step(step.op());
    }
    world.conclude();
});
