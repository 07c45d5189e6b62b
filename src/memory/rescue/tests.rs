//! Repairs of memories whose worker died, over a model of the kernel.

use proptest::prelude::*;

use super::*;
use crate::memory::layout::{Pending, SCRATCH_BYTES};
use crate::memory::{create, life::note_crash};
use uppercased_ctl::clock::Tick;

const LAYOUT: Layout = Layout {
    descriptors: 32,
    buffers: 32,
    buffer_bytes: 4096,
};

/// Connections by number, and the numbers closed, with a reset or not.
#[derive(Debug, Default)]
struct Model {
    connections: BTreeMap<u32, Counters>,
    closed: Vec<(u32, bool)>,
}

impl Kernel for Model {
    fn counters(&mut self, fd: u32) -> Result<Counters, &'static str> {
        self.connections.get(&fd).copied().ok_or("it is closed")
    }

    fn close(&mut self, fd: u32, reset: bool) {
        self.connections.remove(&fd);
        self.closed.push((fd, reset));
    }
}

/// Returns the memory of a worker that serves connections 3 to 9, with what the kernel counted.
fn serving() -> (Memory, Model) {
    let mut memory = Memory::adopt(create(LAYOUT).unwrap(), LAYOUT).unwrap();
    memory.set_ready();
    let mut model = Model::default();
    for fd in 3..10 {
        memory.count(Counter::Accepted, 1);
        let peer = ([192, 0, 2, 1], 1000 + fd as u16).into();
        memory.open(fd, fd + 100, peer, Tick::ZERO, State::Open);
        model.connections.insert(fd, Counters::default());
    }
    (memory, model)
}

/// Receives `bytes` on `fd`, into the memory and the counters.
fn receive(memory: &mut Memory, model: &mut Model, fd: u32, bytes: &[u8]) {
    let mut record = memory.record_mut(fd);
    record.begin_receive()[..bytes.len()].copy_from_slice(bytes);
    let _ = record.end_receive(bytes.len() as u32, Tick::ZERO);
    let counters = model.connections.get_mut(&fd).unwrap();
    counters.received += bytes.len() as u64;
    counters.read += bytes.len() as u64;
}

fn rescue(memory: &mut Memory, model: &mut Model) -> Repaired {
    let rescue = memory.begin_rescue().unwrap();
    memory.finish_closes(model);
    memory.repair(rescue, model)
}

fn unsent_of(memory: &mut Memory, fd: u32) -> Vec<u8> {
    memory.record_mut(fd).freeze().unwrap().unsent
}

#[test]
fn answers_in_hand_become_pending() {
    let (mut memory, mut model) = serving();
    receive(&mut memory, &mut model, 4, b"first");
    receive(&mut memory, &mut model, 5, b"second");
    model.connections.get_mut(&4).unwrap().written = 2;
    let repaired = rescue(&mut memory, &mut model);
    assert_eq!((repaired.connections, repaired.owed_bytes), (7, 9));
    assert_eq!(repaired.last_generation, 109);
    assert_eq!(unsent_of(&mut memory, 4), b"RST");
    assert_eq!(unsent_of(&mut memory, 5), b"SECOND");
    assert!(model.closed.is_empty() && repaired.reset.is_empty());
    assert_eq!(counters::balance(memory.shared()), 7);
}

#[test]
fn worker_is_rescued_only_while_it_serves() {
    let (mut memory, _) = serving();
    for life in 2..2 + RESCUES_UNCONFIRMED_MAX {
        assert_eq!(memory.begin_rescue().unwrap().life, life);
    }
    assert_eq!(memory.begin_rescue(), Err(NoRescue::Unconfirmed));
    memory.confirm_rescues();
    assert!(memory.begin_rescue().is_ok());
    memory.retire();
    assert_eq!(memory.begin_rescue(), Err(NoRescue::Retired));
    let mut new = Memory::adopt(create(LAYOUT).unwrap(), LAYOUT).unwrap();
    assert_eq!(new.begin_rescue(), Err(NoRescue::Starting));
}

#[test]
fn connection_that_kills_twice_is_reset_alone() {
    let (mut memory, mut model) = serving();
    for life in 1..=2 {
        receive(&mut memory, &mut model, 6, b"poison");
        let repaired = rescue(&mut memory, &mut model);
        if life == 1 {
            assert!(repaired.reset.is_empty());
            // As if the answer had been sent, and the input came again.
            let counters = model.connections.get_mut(&6).unwrap();
            counters.written = counters.read;
            memory.record_mut(6).begin_flush();
            memory.record_mut(6).end_flush(6, Tick::ZERO);
            note_crash(memory.shared(), 1);
        } else {
            let [reset] = repaired.reset[..] else {
                panic!("{repaired:?}");
            };
            assert_eq!((reset.fd, reset.reason), (6, CloseReason::Poisoned));
        }
    }
    assert_eq!(model.closed, [(6, true)]);
    assert_eq!(memory.occupied().count(), 6);
}

#[test]
fn kills_from_outside_are_not_poison() {
    let (mut memory, mut model) = serving();
    for _ in 1..=3 {
        receive(&mut memory, &mut model, 6, b"x");
        assert!(rescue(&mut memory, &mut model).reset.is_empty());
        let counters = model.connections.get_mut(&6).unwrap();
        counters.written = counters.read;
        memory.record_mut(6).begin_flush();
        memory.record_mut(6).end_flush(1, Tick::ZERO);
    }
    assert_eq!(memory.occupied().count(), 7);
}

#[test]
fn closed_connection_keeps_its_generation() {
    let (mut memory, mut model) = serving();
    memory.record_mut(9).begin_close();
    memory.record_mut(9).end_close();
    let repaired = rescue(&mut memory, &mut model);
    assert_eq!((repaired.connections, repaired.last_generation), (6, 109));
}

#[test]
fn contradictions_reset_one_connection() {
    type Spoil = fn(&mut Memory, &mut Model);
    let cases: [(u32, Spoil); 6] = [
        (5, |memory, _| memory.store(Layout::record(5), HEAD, 0xff)),
        (5, |memory, _| memory.store(Layout::record(5), 1, u64::MAX)),
        (5, |memory, _| memory.store(Layout::record(5), 2, 1)),
        (4, |_, model| {
            model.connections.get_mut(&4).unwrap().received = 1;
        }),
        (4, |_, model| {
            model.connections.get_mut(&4).unwrap().written = 9;
        }),
        (4, |_, model| model.connections.retain(|&fd, _| fd != 4)),
    ];
    for (number, (culprit, spoil)) in cases.into_iter().enumerate() {
        let (mut memory, mut model) = serving();
        receive(&mut memory, &mut model, 4, b"in hand");
        spoil(&mut memory, &mut model);
        let repaired = rescue(&mut memory, &mut model);
        assert_eq!(model.closed, [(culprit, true)], "case {number}");
        assert_eq!(repaired.reset[0].reason, CloseReason::Corrupt);
        assert_eq!(repaired.connections, 6);
    }
}

#[test]
fn buffer_named_twice_resets_both() {
    let (mut memory, mut model) = serving();
    let pending = Pending {
        buffer: 1,
        offset: 0,
        end: 5,
    };
    for fd in [7, 8] {
        memory.store(Layout::record(fd), 2, 5);
        memory.store(Layout::record(fd), 1, pending.pack());
    }
    assert_eq!(rescue(&mut memory, &mut model).connections, 5);
    assert_eq!(model.closed, [(7, true), (8, true)]);
}

#[test]
fn invalid_word_condemns_only_its_connection() {
    let (mut memory, mut model) = serving();
    receive(&mut memory, &mut model, 4, b"known");
    receive(&mut memory, &mut model, 5, b"lost");
    let (line, word) = Layout::in_hand(1);
    memory.store(line, word, u64::MAX);
    let repaired = rescue(&mut memory, &mut model);
    assert_eq!(model.closed, [(5, true)]);
    assert_eq!(repaired.connections, 6);
    assert_eq!(unsent_of(&mut memory, 4), b"KNOWN");
}

#[test]
fn connection_reset_by_its_peer_is_closed() {
    let (mut memory, mut model) = serving();
    receive(&mut memory, &mut model, 4, b"in vain");
    model.connections.get_mut(&4).unwrap().is_over = true;
    let repaired = rescue(&mut memory, &mut model);
    assert_eq!(repaired.reset[0].reason, CloseReason::PeerReset);
    assert_eq!(memory.occupied().count(), 6);
}

#[test]
fn header_that_was_read_is_not_owed() {
    let (mut memory, mut model) = serving();
    let peer = ([192, 0, 2, 1], 80).into();
    for fd in [10, 11] {
        memory.open(fd, fd, peer, Tick::ZERO, State::AwaitingHeader);
        model.connections.insert(fd, Counters::default());
    }
    let header = model.connections.get_mut(&11).unwrap();
    (header.received, header.read) = (28, 28);
    rescue(&mut memory, &mut model);
    assert_eq!(memory.record(10).state(), State::AwaitingHeader);
    assert_eq!(memory.record(11).state(), State::Open);
    assert_eq!(memory.record(11).header_bytes(), 28);
    receive(&mut memory, &mut model, 11, b"after it");
    rescue(&mut memory, &mut model);
    assert_eq!(unsent_of(&mut memory, 11), b"AFTER IT");
}

proptest! {
    /// Whatever the words are, the repair ends, and every connection that it keeps has a record
    /// that can be served.
    #[test]
    fn any_words_are_repaired(
        words in prop::collection::vec((0..SPOILED_LINES, 0..8_usize, any_word()), 0..20),
        input in prop::collection::vec((3..10_u32, 1..9_usize), 0..4),
    ) {
        let (mut memory, mut model) = serving();
        let mut received = Vec::new();
        for (fd, length) in input {
            if !received.contains(&fd) {
                receive(&mut memory, &mut model, fd, &b"aaaaaaaaa"[..length]);
                received.push(fd);
            }
        }
        for (line, word, value) in words {
            let line = match line {
                0..4 => Layout::in_hand(0).0 + (line % 2) * 64,
                4 => Layout::HANDOVER,
                _ => Layout::record(line as u32 - 5),
            };
            memory.store(line, word, value);
        }
        let repaired = rescue(&mut memory, &mut model);
        let arriving: Vec<u32> = memory.arriving().collect();
        let kept = memory.occupied().filter(|fd| !arriving.contains(fd));
        let kept: Vec<u32> = kept.collect();
        prop_assert_eq!(kept.len(), repaired.connections as usize);
        prop_assert_eq!(counters::balance(memory.shared()), kept.len() as i64);
        let mut buffers = Vec::new();
        for fd in kept {
            let frozen = memory.record_mut(fd).freeze();
            prop_assert!(frozen.is_some_and(|it| it.unsent.len() <= SCRATCH_BYTES));
            buffers.extend(memory.record(fd).pending().map(|pending| pending.buffer));
        }
        let count = buffers.len();
        buffers.sort_unstable();
        buffers.dedup();
        prop_assert_eq!(buffers.len(), count);
        let again = rescue(&mut memory, &mut model);
        prop_assert_eq!(again.connections, repaired.connections, "it is repeated");
        prop_assert!(again.reset.is_empty());
    }
}

/// The lines of the words in hand and of handovers, and the first records.
const SPOILED_LINES: usize = 5 + 14;

/// Words that mean something more often than chance would have it.
fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..10_u64,
        (3..10_u32, 0..3_u32, 0..9_u32).prop_map(|(fd, line, len)| {
            let start = line * 64;
            InHand::Recv { fd, start, len }.pack()
        }),
        (0..40_u32, 0..9_u32).prop_map(|(buffer, end)| {
            Pending {
                buffer,
                offset: 0,
                end,
            }
            .pack()
        }),
    ]
}
