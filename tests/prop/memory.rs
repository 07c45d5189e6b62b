//! Kills a worker at every point: after each store to its working memory, and around each of its
//! system calls. At every point the memory and the kernel's counters determine the bytes received
//! and not yet sent, and a successor answers every byte exactly once.
//!
//! A script runs once to count its points and then once per point, stopped there: the world
//! unwinds, and only the memory and the kernel remain. Readers of the memory that each omit one
//! rule must be detected, which shows that the check can fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::model::script::{Memory, Op, Terms, World};
use crate::model::server::{Fault, Rescuer, fresh_memory};
use crate::model::{Event, Kernel, Meanwhile, NOTHING, Stopped, Stops, Wire};
use crate::strategy;
use proptest::prelude::*;
use uppercased::connection::Rules;
use uppercased::memory::frozen::{Phase, rescued};
use uppercased::memory::layout::{Flags, HANDS, InHand, Layout, State};
use uppercased::memory::transit::{Answered, Departure, StoredAnswer};
use uppercased::memory::unsent;
use uppercased::sys::shared::SharedMemory;
use uppercased_ctl::metrics::CloseReason;

/// A reader of the bytes owed on connection `fd`: the product's [`unsent`], or a faulty one.
type Reader = fn(&mut Memory, u32, u64) -> Vec<u8>;

/// Runs `ops` in a new world, whose worker is killed at point `point`. Returns the step at which
/// that happened; `None` if the script finished.
fn die_at(terms: Terms, ops: &[Op], point: u64) -> (World, Option<usize>) {
    let mut world = World::new(terms);
    world.countdown.arm(point);
    for (index, &op) in ops.iter().enumerate() {
        if dies(|| world.step(op)) {
            return (world, Some(index));
        }
    }
    (world, None)
}

/// Returns whether the countdown reached zero during `work`.
fn dies(work: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => false,
        Err(payload) if payload.is::<Stopped>() => true,
        Err(payload) => resume_unwind(payload),
    }
}

/// Returns the number of points at which the worker can be killed.
fn points(terms: Terms, ops: &[Op]) -> u64 {
    let (world, death) = die_at(terms, ops, u64::MAX);
    assert_eq!(death, None);
    world.countdown.taken()
}

/// Checks the memory of a worker that was just killed, as read by `reader`.
fn check(memory: &mut Memory, kernel: &Kernel, reader: Reader) -> Result<(), String> {
    check_hands(memory)?;
    let accepting = word(memory, Layout::ACCEPTING, 0) != 0;
    let mut buffers = BTreeSet::new();
    for fd in 0..memory.layout().descriptors {
        let state = memory.record(fd).state();
        if let Some(pending) = memory.record(fd).pending()
            && !buffers.insert(pending.buffer)
        {
            return Err(format!("buffer {} is named twice", pending.buffer));
        }
        let Some(&client) = kernel.descriptors.get(&fd) else {
            match state {
                State::Free | State::Closing | State::Handed => continue,
                open => return Err(format!("{fd} is recorded {open:?}, and closed")),
            }
        };
        let wire = &kernel.wires[client];
        let expected = wire.arrived[wire.written.len()..wire.consumed].to_ascii_uppercase();
        match state {
            State::Free if !accepting => return Err(format!("{fd} is open, and not recorded")),
            State::Free if wire.consumed > 0 => return Err(format!("{fd} was served unrecorded")),
            State::Handed => return Err(format!("{fd} was handed over without a receiver")),
            State::AwaitingHeader => {
                return Err(format!("{fd} awaits a header that is not required"));
            }
            // Whatever is recorded, its peer gets nothing more.
            State::Closing if wire.reset => {}
            State::Closing => {
                let (received, sent) = memory.record(fd).bytes_moved();
                let lost = wire.ended_at.is_none() && !expected.is_empty();
                if lost != (received > sent) {
                    return Err(format!("{fd} is closed, and its loss is not recorded"));
                }
            }
            State::LingeringIdle | State::LingeringStop => {
                let answered = wire.ended_at.unwrap_or(wire.consumed);
                let told = reader(memory, fd, (wire.consumed - wire.written.len()) as u64);
                if !told.is_empty() || answered != wire.written.len() {
                    return Err(format!("{fd} lingers with unsent bytes: {told:?}"));
                }
            }
            State::Open if wire.ended_at.is_some() => {
                return Err(format!("{fd} was ended, and is recorded open"));
            }
            // No bytes are owed to a peer that reset the connection; the kernel reports the reset.
            State::Open if wire.reset => {}
            State::Free | State::Open => {
                let told = reader(memory, fd, expected.len() as u64);
                if told != expected {
                    return Err(format!("{fd} is read as {told:?}, expected {expected:?}"));
                }
                check_counts(memory, fd, client, wire)?;
            }
        }
    }
    Ok(())
}

/// Checks the words in hand: no connection has two, no two ranges overlap, and only the last
/// receive may have an unknown length. So each word can be repaired by itself.
fn check_hands(memory: &Memory) -> Result<(), String> {
    let (mut held, mut end) = (BTreeSet::new(), 0);
    for in_hand in hands(memory) {
        if !in_hand.fd().is_none_or(|fd| held.insert(fd)) {
            return Err(format!("{in_hand:?}: its connection is in hand twice"));
        }
        if let InHand::Recv { start, len, .. } = in_hand {
            if start < end {
                return Err(format!("{in_hand:?} begins before {end}"));
            }
            let room = memory.layout().room_at(start);
            end = start + if len == 0 { room } else { len };
        }
    }
    Ok(())
}

/// Checks the rest of the record, which may be another connection's if stores are out of order.
fn check_counts(memory: &mut Memory, fd: u32, client: usize, wire: &Wire) -> Result<(), String> {
    let Some(found) = rescued(memory, fd, wire.owed() as u64).unwrap() else {
        return Ok(());
    };
    let told = (found.bytes_in, found.bytes_out, found.peer.port());
    let (consumed, written) = (wire.consumed as u64, wire.written.len() as u64);
    if told == (consumed, written, client as u16) {
        return Ok(());
    }
    Err(format!(
        "{fd} is read as {told:?} where {client} moved {consumed} and {written}"
    ))
}

fn sound(memory: &mut Memory, fd: u32, owed: u64) -> Vec<u8> {
    unsent(memory, fd, owed).unwrap()
}

/// Reads with a fault: uses the stored length, not the kernel's counters.
fn trusting_the_length(memory: &mut Memory, fd: u32, _owed: u64) -> Vec<u8> {
    match in_hand_of(memory, fd) {
        InHand::Recv { start, len, .. } => {
            let at = memory.layout().scratch() + start as usize;
            bytes(memory, (at, len as usize))
        }
        InHand::Nothing | InHand::Flush { .. } => recorded(memory, fd),
    }
}

/// Reads with a fault: assumes that every input in hand begins at the start of the scratch buffer.
fn ignoring_the_start(memory: &mut Memory, fd: u32, owed: u64) -> Vec<u8> {
    let told = sound(memory, fd, owed);
    let InHand::Recv { len, .. } = in_hand_of(memory, fd) else {
        return told;
    };
    let end = if len == 0 { told.len() } else { len as usize };
    let at = memory.layout().scratch() + end - told.len();
    bytes(memory, (at, told.len()))
}

/// Reads with a fault: reads only the first word in hand.
fn ignoring_all_hands_but_one(memory: &mut Memory, fd: u32, owed: u64) -> Vec<u8> {
    if hands(memory)[0].fd() == Some(fd) {
        return sound(memory, fd, owed);
    }
    recorded(memory, fd)
}

/// Reads with a fault: ignores the bytes in hand.
fn ignoring_the_hand(memory: &mut Memory, fd: u32, _owed: u64) -> Vec<u8> {
    recorded(memory, fd)
}

/// Reads with a fault: recognizes a read only once its length was stored, as if no store preceded
/// the call.
fn ignoring_the_mark_before_the_call(memory: &mut Memory, fd: u32, owed: u64) -> Vec<u8> {
    if matches!(in_hand_of(memory, fd), InHand::Recv { len: 0, .. }) {
        return recorded(memory, fd);
    }
    sound(memory, fd, owed)
}

fn recorded(memory: &Memory, fd: u32) -> Vec<u8> {
    let Some(pending) = memory.record(fd).pending() else {
        return Vec::new();
    };
    let at = memory.layout().buffer(pending.buffer) + pending.offset as usize;
    bytes(memory, (at, pending.len() as usize))
}

fn bytes(memory: &Memory, (at, length): (usize, usize)) -> Vec<u8> {
    let again = memory.shared().as_fd().try_clone_to_owned().unwrap();
    let mut view = SharedMemory::map(again).unwrap();
    view.split_at(0).1.range(at, length).to_ascii_uppercase()
}

/// Returns the input that each word in hand names.
fn hands(memory: &Memory) -> [InHand; HANDS] {
    std::array::from_fn(|at| {
        let (line, at) = Layout::in_hand(at);
        InHand::unpack(word(memory, line, at)).unwrap()
    })
}

/// Returns the input in hand for connection `fd`.
fn in_hand_of(memory: &Memory, fd: u32) -> InHand {
    let mut hands = hands(memory).into_iter();
    let own = hands.find(|in_hand| in_hand.fd() == Some(fd));
    own.unwrap_or(InHand::Nothing)
}

fn word(memory: &Memory, line: usize, at: usize) -> u64 {
    memory.shared().line(line).0[at].load(Ordering::Relaxed)
}

/// Kills the worker at every point of `ops` and checks the memory each time.
fn check_every_point(terms: Terms, ops: &[Op], reader: Reader) -> Result<u64, String> {
    let count = points(terms, ops);
    for point in 0..count {
        let (mut world, death) = die_at(terms, ops, point);
        assert!(death.is_some());
        check(&mut world.server.memory, &world.kernel, reader)
            .map_err(|why| format!("killed at point {point} of {count}: {why}"))?;
    }
    Ok(count)
}

/// Kills the worker at `point`; a successor takes over, the script continues, and every connection
/// ends correctly.
fn rescue_at(terms: Terms, ops: &[Op], point: u64) {
    let (mut world, death) = die_at(terms, ops, point);
    let Some(index) = death else {
        world.countdown.arm(u64::MAX);
        return world.conclude();
    };
    world.rescue(Fault::None);
    if ops[index] == Op::Finish {
        world.step(Op::Finish); // The stop request is repeated to the successor.
    }
    world.step(Op::Turn);
    world.run(&ops[index + 1..]);
    world.conclude();
}

/// Kills the worker at `point`, and again at every point of moving the bytes in hand to their place
/// in the same memory. The check must hold after each kill, and the repair can be restarted.
fn repair_in_place(terms: Terms, ops: &[Op], point: u64) {
    for second in 0.. {
        let (mut world, _) = die_at(terms, ops, point);
        world.countdown.arm(second);
        let died_again = dies(|| repair(&mut world));
        world.countdown.arm(u64::MAX);
        check(&mut world.server.memory, &world.kernel, sound).unwrap();
        repair(&mut world);
        let memory = &mut world.server.memory;
        assert_eq!(hands(memory), [InHand::Nothing; HANDS]);
        check(memory, &world.kernel, ignoring_the_hand).unwrap();
        if !died_again {
            return;
        }
    }
}

fn repair(world: &mut World) {
    let memory = &mut world.server.memory;
    let kernel = &mut Rescuer {
        kernel: &mut world.kernel,
        lengths: BTreeMap::new(),
        ignores_headers: false,
    };
    let rescue = memory.begin_rescue().unwrap();
    memory.finish_closes(kernel);
    memory.repair(rescue, kernel);
}

/// Returns a script of several connections, each with its own fault.
fn rich_script() -> Vec<Op> {
    let data = |client, len| Op::Event(Event::Data { client, len });
    let room = |client, bytes| Op::Event(Event::Room { client, bytes });
    let end = |client| Op::Event(Event::End { client });
    let connect = Op::Event(Event::Connect);
    let amid = |event| Op::Meanwhile(Meanwhile::Event(event));
    let signal = Op::Meanwhile(Meanwhile::Interrupted);
    vec![
        connect,
        connect,
        data(0, 5),
        Op::Turn,
        room(0, 1000),
        Op::Turn,
        // A message in parts, one of them during the turn; another client is not read meanwhile.
        data(0, 20),
        data(1, 40),
        signal,
        amid(Event::Data { client: 0, len: 7 }),
        Op::Turn,
        Op::Turn,
        // A partial send, then flushes of one byte, of some, of all.
        room(1, 3),
        Op::Turn,
        connect,
        room(1, 1),
        Op::Turn,
        data(2, 16),
        room(2, 16),
        amid(Event::Room {
            client: 1,
            bytes: 2,
        }),
        Op::Turn,
        room(1, 1000),
        Op::Turn,
        Op::Turn,
        // An end after data, an end after pending output, a reset, a failed call.
        data(0, 9),
        end(0),
        data(2, 30),
        end(2),
        Op::Turn,
        connect,
        connect,
        room(2, 10),
        Op::Turn,
        data(3, 12),
        data(4, 12),
        room(4, 5),
        Op::Turn,
        Op::Event(Event::Reset { client: 4 }),
        room(2, 1000),
        Op::Turn,
        data(3, 40),
        Op::Turn,
        connect,
        Op::Turn,
        room(5, 4),
        data(5, 8),
        Op::Meanwhile(Meanwhile::Refused),
        Op::Turn,
        // One client does not read, one sends nothing; then the worker stops.
        connect,
        data(6, 30),
        connect,
        Op::Turn,
        Op::Pass(60),
        data(1, 18),
        Op::Pass(60),
        data(7, 30),
        Op::Turn,
        end(7),
        Op::Turn,
        data(1, 3),
        Op::Finish,
        Op::Turn,
        Op::Turn,
        data(1, 3),
        Op::Turn,
        end(1),
        Op::Turn,
        Op::Pass(100),
    ]
}

/// Returns a script in which several connections are in hand at once.
fn crowd_script() -> Vec<Op> {
    let data = |client, len| Op::Event(Event::Data { client, len });
    let room = |client, bytes| Op::Event(Event::Room { client, bytes });
    let amid = |event| Op::Meanwhile(Meanwhile::Event(event));
    let calm = Op::Meanwhile(NOTHING);
    let mut ops = vec![Op::Event(Event::Connect); 6];
    ops.push(Op::Turn);
    ops.extend((0..6).map(|client| room(client, 60)));
    ops.push(Op::Turn);
    // Five short messages. More arrives meanwhile, and one call is interrupted.
    ops.extend((0..5).map(|client| data(client, 5 + u16::from(client))));
    ops.extend([calm, Op::Meanwhile(Meanwhile::Interrupted)]);
    ops.push(amid(Event::Data { client: 0, len: 3 }));
    ops.extend([Op::Turn, Op::Turn]);
    // The third fills its room, and its rest comes before the last one's message.
    ops.extend([data(0, 4), data(1, 9), data(2, 48), data(3, 6)]);
    ops.extend([Op::Turn, Op::Turn]);
    // After all are received: the second has reset its connection, the third has ended its stream,
    // and the kernel refuses the send to the fourth. The fifth had ended its stream before, which
    // leaves nothing in hand.
    ops.extend([data(0, 7), data(1, 8), data(2, 9), data(3, 10)]);
    ops.extend([data(5, 6), calm, calm]);
    ops.push(amid(Event::Reset { client: 1 }));
    ops.push(amid(Event::End { client: 2 }));
    ops.extend([calm, calm, calm, calm]);
    ops.extend([Op::Meanwhile(Meanwhile::Refused), Op::Turn, Op::Turn]);
    ops.extend([data(0, 2), data(5, 3), Op::Event(Event::End { client: 4 })]);
    ops.push(Op::Turn);
    // The kernel accepts a part of each answer.
    ops.extend([data(0, 16), data(5, 15), data(0, 16), data(5, 16)]);
    ops.extend([Op::Turn, data(0, 10), data(5, 15), Op::Turn]);
    ops.extend([data(0, 10), data(5, 15), Op::Turn, room(5, 9), Op::Turn]);
    ops.extend([room(0, 1000), room(5, 1000), Op::Turn, Op::Turn]);
    ops
}

/// Returns the scripts whose every point is tried.
fn scripts() -> [(Terms, Vec<Op>); 2] {
    [
        (rich_terms(), rich_script()),
        (rich_terms(), crowd_script()),
    ]
}

fn rich_terms() -> Terms {
    Terms {
        rules: Rules {
            idle_timeout: Some(Duration::from_millis(110)),
            write_stall_timeout: Some(Duration::from_millis(100)),
            header_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::ZERO,
            linger_timeout: Duration::from_millis(90),
            ..Terms::PLAIN.rules
        },
        ..Terms::PLAIN
    }
}

/// Returns the owner of the connection by the rules of the memory, if both workers exited now.
fn owner(sender: &Memory, receiver: &Memory) -> &'static str {
    let (there, here) = (sender.record(3).state(), receiver.record(5));
    let is_marked = here.flags().has(Flags::MOVING);
    if here.state() == State::Open && (!is_marked || receiver.owns_arriving()) {
        return "receiver";
    }
    assert_eq!(there, State::Open, "no worker has it");
    "sender"
}

/// Rescues the worker of `memory`, if it serves yet.
fn continue_handover(memory: &mut Memory, kernel: &mut Kernel) {
    let rescuer = &mut Rescuer {
        kernel,
        lengths: BTreeMap::new(),
        ignores_headers: false,
    };
    let rescue = memory.begin_rescue().unwrap();
    memory.finish_closes(rescuer);
    let repaired = memory.repair(rescue, rescuer);
    assert_eq!(repaired.reset, []);
    // A batch that has no answer is sent again.
    for fd in memory.arriving().collect::<Vec<_>>() {
        memory.record_mut(fd).end_handover();
        memory.record_mut(fd).end_close();
    }
}

/// Returns the answer to a batch of one connection, which the receiver adopts.
fn first_answer() -> (Answered, StoredAnswer) {
    let answered = Answered {
        last_sequence: 1,
        adopted: 1,
        is_refusing: false,
    };
    let answer = StoredAnswer {
        sequence: 1,
        taken: 1,
        left: Vec::new(),
    };
    (answered, answer)
}

fn any_script() -> impl Strategy<Value = (Terms, Vec<Op>)> {
    let op = prop_oneof![12 => strategy::op(), 1 => strategy::harm(), 1 => Just(Op::Finish)];
    (strategy::terms(), strategy::script(30, op))
}

#[test]
fn unsent_bytes_are_known_after_every_store() {
    for (terms, ops) in scripts() {
        let points = check_every_point(terms, &ops, sound).unwrap();
        assert!(points > 400, "only {points} points to be killed at");
    }
    let (world, _) = die_at(rich_terms(), &crowd_script(), u64::MAX);
    assert_eq!(world.server.most_in_hand, HANDS.min(5));
    let (world, _) = die_at(rich_terms(), &rich_script(), u64::MAX);
    let ends: BTreeSet<CloseReason> = world.server.ended.iter().map(|end| end.1).collect();
    let all = [
        CloseReason::PeerClosed,
        CloseReason::PeerReset,
        CloseReason::IdleTimeout,
        CloseReason::WriteStall,
        CloseReason::Drained,
        CloseReason::SystemError,
    ];
    assert_eq!(ends, all.into(), "every way to end occurs in the script");
}

#[test]
fn successor_answers_every_byte_exactly_once() {
    for (terms, ops) in scripts() {
        for point in 0..=points(terms, &ops) {
            rescue_at(terms, &ops, point);
        }
    }
}

#[test]
fn interrupted_repair_can_be_repeated() {
    for (terms, ops) in scripts() {
        for point in 0..points(terms, &ops) {
            repair_in_place(terms, &ops, point);
        }
    }
}

#[test]
fn readers_omitting_a_rule_are_caught() {
    let readers: [Reader; 5] = [
        trusting_the_length,
        ignoring_the_start,
        ignoring_the_hand,
        ignoring_all_hands_but_one,
        ignoring_the_mark_before_the_call,
    ];
    for reader in readers {
        let verdict = check_every_point(rich_terms(), &crowd_script(), reader);
        assert!(verdict.is_err_and(|why| why.contains("is read as")));
    }
}

/// Stops after each store of a handover; at each point the records of both sides name one owner,
/// which has every byte, and it keeps that when both workers are rescued.
#[test]
fn handover_leaves_one_owner_after_every_store() {
    let mut owners = Vec::new();
    for point in 0.. {
        let world = World::new(Terms::PLAIN);
        let stops = || Stops(Rc::clone(&world.countdown));
        let (mut sender, mut receiver) = (fresh_memory(16, stops()), fresh_memory(16, stops()));
        let now = world.kernel.now;
        sender.open(3, 1, ([192, 0, 2, 1], 80).into(), now, State::Open);
        sender.record_mut(3).begin_receive()[..4].copy_from_slice(b"ABCD");
        let hand = sender.record_mut(3).end_receive(4, now);
        sender.record_mut(3).end_send(hand, 1).unwrap();
        world.countdown.arm(point);
        let died = dies(|| {
            let (link, last, part) = (9, false, false);
            sender.begin_departure(Departure { link, last, part });
            receiver.begin_arrival(9, 1);
            let frozen = sender.record_mut(3).freeze().unwrap();
            sender.record_mut(3).begin_handover(1, 0);
            receiver.begin_adoption(1);
            receiver.arrive(5, 9, &frozen).unwrap();
            let (answered, answer) = first_answer();
            receiver.store_answer(answered, Some(&answer));
            // The acknowledgement is sent, and then read.
            receiver.record_mut(5).take_ownership();
            sender.begin_resolving(1, 1);
            sender.record_mut(3).end_handover();
            sender.record_mut(3).end_close();
            sender.end_departure(None);
            receiver.end_arrival();
        });
        world.countdown.arm(u64::MAX);
        let owner = owner(&sender, &receiver);
        let mut kernel = world.kernel;
        for memory in [&mut sender, &mut receiver] {
            continue_handover(memory, &mut kernel);
        }
        let is_in_flight = sender.record(3).flags().is_departing();
        assert_eq!(sender.batches().len(), usize::from(is_in_flight));
        if owner == "sender" {
            assert_eq!(receiver.record(5).state(), State::Free, "at point {point}");
        } else {
            assert!(!receiver.record(5).flags().has(Flags::MOVING));
            let (answered, answer) = first_answer();
            let arrival = receiver.arrival();
            let is_known = arrival.is_none_or(|it| it.answers == [answer.clone()]);
            assert!(is_known && receiver.answered() == answered);
        }
        let told = match owner {
            "receiver" => rescued(&mut receiver, 5, 3),
            _ => rescued(&mut sender, 3, 3),
        };
        assert_eq!(told.unwrap().unwrap().unsent, b"BCD", "at point {point}");
        owners.push(owner);
        if !died {
            break;
        }
    }
    assert!(owners.is_sorted_by(|before, after| before == after || *after == "receiver"));
    assert_eq!(owners.last(), Some(&"receiver"));
    assert!(owners.len() > 10);
}

/// Stops after each store of an introduction; at each point the kernel's count of bytes read shows
/// whether the header is still unread; once it is read, the client is known.
#[test]
fn proxy_header_state_is_known_after_every_store() {
    let (proxy, client) = (([10, 0, 0, 1], 80).into(), ([192, 0, 2, 7], 4000).into());
    let mut consumed_at = Vec::new();
    for point in 0.. {
        let world = World::new(Terms::PLAIN);
        let mut memory = fresh_memory(16, Stops(Rc::clone(&world.countdown)));
        let now = world.kernel.now;
        memory.open(3, 1, proxy, now, State::AwaitingHeader);
        world.countdown.arm(point);
        let mut consumed = false;
        let died = dies(|| {
            memory.record_mut(3).set_client(client);
            consumed = true;
            memory.record_mut(3).end_header(107, now);
        });
        world.countdown.arm(u64::MAX);
        let told = rescued(&mut memory, 3, 0).unwrap().unwrap();
        assert!(told.unsent.is_empty() && told.bytes_in == 0);
        if consumed {
            assert_eq!(told.peer, client, "at point {point}");
        } else {
            assert_eq!(told.phase, Phase::AwaitingHeader, "at point {point}");
        }
        consumed_at.push(consumed);
        if !died {
            assert_eq!(told.phase, Phase::Open);
            break;
        }
    }
    assert!(consumed_at.len() > 5 && consumed_at.contains(&false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn unsent_bytes_are_known_in_any_script((terms, ops) in any_script()) {
        let verdict = check_every_point(terms, &ops, sound);
        prop_assert!(verdict.is_ok(), "{:?}", verdict);
    }

    #[test]
    fn successor_continues_any_script((terms, ops) in any_script(), seed: u64) {
        let count = points(terms, &ops);
        for step in 0..20.min(count) {
            rescue_at(terms, &ops, (seed % count + step * (count / 20).max(1)) % count);
        }
    }

    #[test]
    fn interrupted_repair_can_be_repeated_in_any_script((terms, ops) in any_script(), seed: u64) {
        let count = points(terms, &ops);
        for step in 0..20.min(count) {
            repair_in_place(terms, &ops, (seed % count + step * (count / 20).max(1)) % count);
        }
    }
}
