//! Random scripts, separate from the model because fuzz targets derive theirs from bytes.

use std::time::Duration;

use proptest::prelude::*;
use uppercased::connection::Rules;
use uppercased_ctl::clock::Tick;

use crate::model::script::{Op, Terms};
use crate::model::{Event, Meanwhile};

/// Returns a script for some clients. It begins with one, so that short scripts have an effect.
pub(crate) fn script(
    length: usize,
    op: impl Strategy<Value = Op>,
) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op, 1..length).prop_map(|mut ops| {
        ops.insert(0, Op::Event(Event::Connect));
        ops
    })
}

/// Returns any step except a handover.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Turn),
        10 => event().prop_map(Op::Event),
        5 => meanwhile().prop_map(Op::Meanwhile),
        1 => (0u16..400).prop_map(Op::Pass),
    ]
}

/// The same, but the only action in the middle of a turn is output room: the streams of a script
/// are then the same whatever the number of calls in earlier turns.
pub(crate) fn op_in_order() -> impl Strategy<Value = Op> {
    op().prop_map(|op| match op {
        Op::Meanwhile(Meanwhile::Event(Event::Data { client, len: bytes })) => {
            Op::Meanwhile(Meanwhile::Event(Event::Room { client, bytes }))
        }
        Op::Meanwhile(Meanwhile::Event(Event::Room { .. })) | Op::Event(_) | Op::Pass(_) => op,
        Op::Meanwhile(_) => Op::Meanwhile(Meanwhile::Interrupted),
        Op::Turn | Op::Finish | Op::HandOver | Op::TakeBack => op,
    })
}

/// Returns random rules and buffer sizes.
pub(crate) fn terms() -> impl Strategy<Value = Terms> {
    let timeout = || prop::option::weighted(0.3, (1u64..600).prop_map(Duration::from_millis));
    (
        1u32..100,
        1u32..60,
        timeout(),
        timeout(),
        timeout(),
        1u64..600,
        0u64..600,
        0u64..600,
    )
        .prop_map(
            |(
                bytes_per_turn,
                buffer_bytes,
                idle_timeout,
                write_stall_timeout,
                max_age,
                linger,
                first_byte_timeout,
                age_grace,
            )| Terms {
                buffer_bytes,
                rules: Rules {
                    bytes_per_turn,
                    idle_timeout,
                    write_stall_timeout,
                    header_timeout: Duration::from_secs(5),
                    first_byte_timeout: Duration::from_millis(first_byte_timeout),
                    linger_timeout: Duration::from_millis(linger),
                    max_age,
                    age_grace: Duration::from_millis(age_grace),
                    since: Tick::ZERO,
                },
            },
        )
}

fn event() -> impl Strategy<Value = Event> {
    let client = || 0u8..3;
    prop_oneof![
        1 => Just(Event::Connect),
        8 => (client(), 1u16..80).prop_map(|(client, len)| Event::Data { client, len }),
        1 => client().prop_map(|client| Event::Urgent { client }),
        1 => client().prop_map(|client| Event::End { client }),
        8 => (client(), 1u16..80).prop_map(|(client, bytes)| Event::Room { client, bytes }),
    ]
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        2 => Just(Meanwhile::Interrupted),
        5 => event().prop_map(Meanwhile::Event),
    ]
}

/// Returns a step that cuts a connection short.
pub(crate) fn harm() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u8..3).prop_map(|client| Op::Event(Event::Reset { client })),
        (0u8..3).prop_map(|client| Op::Meanwhile(Meanwhile::Event(Event::Reset { client }))),
        Just(Op::Meanwhile(Meanwhile::Refused)),
    ]
}
