//! The connection core with any chunking, any schedule of partial writes, and any behaviour of a
//! kernel, on a kernel made of queues. `model/script.rs` states the invariants, which are checked
//! after every turn and at the end of each connection.

use std::time::Duration;

use crate::model::script::{Op, Terms, World, ms};
use crate::model::{self, Event, Meanwhile};
use crate::strategy;
use proptest::prelude::*;
use uppercased::connection::Rules;
use uppercased_ctl::metrics::{CloseReason, Counter};

const CONNECT: Op = Op::Event(Event::Connect);

fn data(len: u16) -> Op {
    Op::Event(Event::Data { client: 0, len })
}

fn room(bytes: u16) -> Op {
    Op::Event(Event::Room { client: 0, bytes })
}

fn end() -> Op {
    Op::Event(Event::End { client: 0 })
}

/// Returns a world that has run `ops`.
fn after(terms: Terms, ops: &[Op]) -> World {
    let mut world = World::new(terms);
    world.run(ops);
    world
}

fn with_rules(rules: Rules) -> Terms {
    Terms {
        rules,
        ..Terms::PLAIN
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_byte_is_answered_under_any_schedule(ops in strategy::script(120, strategy::op())) {
        let mut world = after(Terms::PLAIN, &ops);
        world.conclude();
        for (client, wire) in world.kernel.wires.iter().enumerate() {
            prop_assert_eq!(&wire.written, &wire.answer());
            prop_assert_eq!(world.server.end_of(client), Some(CloseReason::PeerClosed));
        }
    }

    #[test]
    fn proxied_client_is_served_after_its_header(
        header in 1u8..40,
        mut ops in prop::collection::vec(strategy::op(), 1..120),
    ) {
        ops.insert(0, Op::Event(Event::Proxied { header }));
        let mut world = after(Terms::PLAIN, &ops);
        world.conclude();
        let wire = &world.kernel.wires[0];
        prop_assert!(wire.header_taken == wire.header || wire.written.is_empty());
    }

    #[test]
    fn connections_end_with_the_right_reason(
        terms in strategy::terms(),
        ops in strategy::script(
            120,
            prop_oneof![
                12 => strategy::op(),
                1 => strategy::harm(),
                1 => Just(Op::HandOver),
                1 => Just(Op::TakeBack),
                1 => Just(Op::Finish),
            ],
        ),
    ) {
        after(terms, &ops).conclude();
    }
}

proptest! {
    // Each case is a script, and one more script per boundary in it.
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn handover_at_any_step_changes_nothing(
        ops in strategy::script(30, strategy::op_in_order()),
    ) {
        let outcome = |ops: &[Op]| {
            let mut world = after(Terms::PLAIN, ops);
            world.conclude();
            let mut ended = world.server.ended;
            ended.sort_unstable();
            let wires = world.kernel.wires.into_iter();
            (wires.map(|wire| wire.written).collect::<Vec<_>>(), ended)
        };
        let plain = outcome(&ops);
        for at in 0..=ops.len() {
            for change in [Op::HandOver, Op::TakeBack] {
                let mut moved = ops.clone();
                moved.insert(at, change);
                prop_assert_eq!(&outcome(&moved), &plain, "{:?} before step {}", change, at);
            }
        }
        // Also at every boundary of the same script, from each to the next.
        let often: Vec<Op> = ops.iter().flat_map(|&op| [Op::HandOver, op]).collect();
        prop_assert_eq!(&outcome(&often), &plain, "handed over before every step");
    }
}

#[test]
fn small_message_costs_one_read_and_write() {
    let mut world = after(Terms::PLAIN, &[CONNECT, room(1000), Op::Turn]);
    let before = world.kernel.calls;
    world.run(&[data(10), Op::Turn, Op::Turn]);
    assert_eq!(world.kernel.calls - before, 2);
    assert_eq!(world.kernel.wires[0].written.len(), 10);
}

#[test]
fn messages_arriving_together_are_answered_together() {
    let mut world = after(Terms::PLAIN, &[CONNECT, room(1000), Op::Turn]);
    let before = world.kernel.calls;
    world.run(&[data(5), data(5), data(5), Op::Turn]);
    assert_eq!(world.kernel.calls - before, 2);
    assert_eq!(world.kernel.wires[0].written.len(), 15);
}

#[test]
fn data_and_end_in_one_report_are_served() {
    for len in [1, 15, 16, 17, 32] {
        let mut world = after(
            Terms::PLAIN,
            &[CONNECT, Op::Turn, room(1000), data(len), end(), Op::Turn],
        );
        assert_eq!(world.server.end_of(0), Some(CloseReason::PeerClosed));
        world.conclude();
    }
}

#[test]
#[should_panic(expected = "was lost")]
fn unreported_end_would_be_stranded() {
    let mut world = after(Terms::PLAIN, &[CONNECT, Op::Turn]);
    world.kernel.hides_ends = true;
    world.run(&[room(1000), data(10), end(), Op::Turn]);
}

#[test]
#[should_panic(expected = "was lost")]
fn bytes_behind_unreported_urgent_data_would_be_stranded() {
    let mut world = after(Terms::PLAIN, &[CONNECT, Op::Turn]);
    world.kernel.hides_ends = true;
    let urgent = Op::Event(Event::Urgent { client: 0 });
    world.run(&[room(1000), data(3), urgent, data(3), Op::Turn]);
}

#[test]
fn budget_divides_long_stream_into_turns() {
    let mut world = after(Terms::PLAIN, &[CONNECT, Op::Turn, room(1000), data(200)]);
    for turn in 1..=4 {
        world.step(Op::Turn);
        // Three reads of 16 reach the budget of 40.
        assert_eq!(world.kernel.wires[0].consumed, turn * 48);
    }
    world.step(Op::Turn);
    assert_eq!(world.kernel.wires[0].written.len(), 200);
}

#[test]
fn end_of_stream_waits_for_last_byte() {
    let mut world = after(
        Terms::PLAIN,
        &[CONNECT, room(3), data(10), end(), Op::Turn, Op::Turn],
    );
    assert_eq!(world.server.end_of(0), None);
    world.run(&[room(6), Op::Turn]);
    assert_eq!(world.server.end_of(0), None);
    world.run(&[room(1), Op::Turn]);
    assert_eq!(world.server.end_of(0), Some(CloseReason::PeerClosed));
    world.conclude();
}

#[test]
fn stop_answers_received_bytes_and_ends_stream() {
    let mut world = after(Terms::PLAIN, &[CONNECT, Op::Turn, room(1000)]);
    // Stopped before the report about these bytes, with an urgent mark among them.
    let urgent = Op::Event(Event::Urgent { client: 0 });
    world.run(&[data(5), urgent, data(100), Op::Finish, Op::Turn, Op::Turn]);
    let wire = &world.kernel.wires[0];
    assert_eq!(
        (wire.written.len(), wire.ended_at, wire.closed),
        (106, Some(106), false)
    );
    world.run(&[data(7), Op::Turn]);
    assert_eq!(
        world.kernel.wires[0].written.len(),
        106,
        "discarded while it lingers"
    );
    world.run(&[end(), Op::Turn]);
    assert_eq!(world.server.end_of(0), Some(CloseReason::Drained));
}

#[test]
fn deadlines_count_from_last_moved_byte() {
    let rules = Rules {
        idle_timeout: Some(Duration::from_millis(100)),
        write_stall_timeout: Some(Duration::from_millis(50)),
        header_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::ZERO,
        linger_timeout: Duration::from_millis(30),
        ..Terms::PLAIN.rules
    };
    let start = [CONNECT, Op::Turn];

    let mut idle = after(with_rules(rules), &start);
    idle.run(&[Op::Pass(99), room(5), data(5), Op::Pass(0), Op::Pass(99)]);
    assert_eq!(idle.kernel.wires[0].ended_at, None);
    idle.step(Op::Pass(1));
    assert_eq!(idle.kernel.now, ms(199));
    assert_eq!(idle.kernel.wires[0].ended_at, Some(5));
    idle.run(&[data(5), Op::Pass(29)]);
    assert_eq!(
        idle.server.end_of(0),
        None,
        "it lingers, and input does not prolong that"
    );
    idle.step(Op::Pass(1));
    assert_eq!(idle.server.end_of(0), Some(CloseReason::IdleTimeout));

    let mut stalled = after(with_rules(rules), &start);
    stalled.run(&[data(5), Op::Turn, Op::Pass(49), room(1), Op::Pass(49)]);
    assert_eq!(
        stalled.server.end_of(0),
        None,
        "a byte read by the client restarts the timeout"
    );
    stalled.step(Op::Pass(50));
    assert_eq!(stalled.server.end_of(0), Some(CloseReason::WriteStall));
    assert!(stalled.kernel.wires[0].abortive, "a loss is never silent");

    let mut stopped = after(with_rules(rules), &start);
    stopped.run(&[Op::Finish, Op::Turn, Op::Pass(29)]);
    assert_eq!(stopped.server.end_of(0), None);
    stopped.step(Op::Pass(1));
    assert_eq!(stopped.server.end_of(0), Some(CloseReason::Drained));
}

#[test]
fn flooding_client_is_ended_at_its_age() {
    let rules = Rules {
        max_age: Some(Duration::from_millis(100)),
        age_grace: Duration::from_millis(20),
        ..Terms::PLAIN.rules
    };
    // More than a turn's budget arrives between any two turns.
    let mut world = after(with_rules(rules), &[CONNECT, room(60_000), Op::Turn]);
    for _ in 0..131 {
        world.run(&[data(100), Op::Pass(1)]);
    }
    let wire = &world.kernel.wires[0];
    let (lived, ended) = (wire.ended.since(wire.accepted), wire.ended_at);
    assert!(ended.is_some_and(|at| at == wire.written.len() && at < wire.arrived.len()));
    let span = Duration::from_millis(110)..=Duration::from_millis(130);
    assert!(span.contains(&lived), "{lived:?}");
    world.run(&[Op::HandOver, data(100), Op::Turn, end()]);
    world.conclude();
    assert_eq!(world.server.end_of(0), Some(CloseReason::MaxAge));
}

#[test]
fn deadline_ends_with_its_connection() {
    let rules = Rules {
        idle_timeout: Some(Duration::from_millis(100)),
        ..Terms::PLAIN.rules
    };
    let mut world = after(with_rules(rules), &[CONNECT, Op::Turn]);
    world.run(&[Op::Pass(60), Op::HandOver, Op::Turn, Op::Pass(39)]);
    assert_eq!(world.kernel.wires[0].ended_at, None);
    world.step(Op::Pass(1));
    assert_eq!(world.kernel.wires[0].ended_at, Some(0));
}

#[test]
fn reset_at_any_call_closes_connection() {
    let reset = Op::Meanwhile(Meanwhile::Event(Event::Reset { client: 0 }));
    let calm = Op::Meanwhile(Meanwhile::Interrupted);
    for calls_before in 0..6 {
        let mut ops = vec![CONNECT, Op::Turn, room(20), data(60)];
        ops.extend(std::iter::repeat_n(calm, calls_before));
        ops.extend([reset, Op::Turn, Op::Turn, room(1), Op::Turn, Op::Turn]);
        let world = after(Terms::PLAIN, &ops);
        assert_eq!(
            world.server.end_of(0),
            Some(CloseReason::PeerReset),
            "{calls_before}"
        );
    }
}

#[test]
fn refused_write_resets_connection() {
    let refused = Op::Meanwhile(Meanwhile::Refused);
    let calm = Op::Meanwhile(Meanwhile::Interrupted);
    let mut world = after(
        Terms::PLAIN,
        &[CONNECT, Op::Turn, room(9), data(5), calm, calm],
    );
    // Two interrupted reads, then the read itself, counted as the third call.
    world.kernel.meanwhile.push_back(model::NOTHING);
    world.run(&[refused, Op::Turn]);
    assert_eq!(world.server.end_of(0), Some(CloseReason::SystemError));
    assert_eq!(world.kernel.wires[0].consumed, 5);
    assert!(world.kernel.wires[0].abortive);
    let out = uppercased::memory::counter(world.server.memory.shared(), Counter::BytesOut);
    assert_eq!(out, 0);
}
