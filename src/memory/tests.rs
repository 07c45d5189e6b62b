//! Unit tests of `memory.rs`.

use std::os::fd::AsFd as _;

use super::layout::{InHand, Pending, SCRATCH_BYTES};
use super::record::{HEAD, PENDING};
use super::*;

const LAYOUT: Layout = Layout {
    descriptors: 16,
    buffers: 20,
    buffer_bytes: 4096,
};

fn memory() -> Memory {
    Memory::adopt(create(LAYOUT).unwrap(), LAYOUT).unwrap()
}

fn peer() -> SocketAddr {
    "192.0.2.7:4000".parse().unwrap()
}

#[test]
fn record_holds_peer_and_counts() {
    let mut memory = memory();
    memory.begin_accept();
    memory.open(5, 1, peer(), Tick::from_millis(3), State::Open);
    memory.end_accept();
    memory.record_mut(5).begin_receive()[..4].copy_from_slice(b"abcd");
    let hand = memory.record_mut(5).end_receive(4, Tick::from_millis(9));
    let mut record = memory.record_mut(5);
    record.bytes_in(hand).make_ascii_uppercase();
    record.end_send(hand, 1).unwrap();
    assert_eq!(memory.record(5).peer(), peer());
    assert_eq!(memory.record(5).bytes_moved(), (4, 1));
    assert_eq!(memory.record(5).last_progress(), Tick::from_millis(9));
    let opened = Tick::from_millis(3).as_nanos() >> 16 << 16;
    assert_eq!(memory.record(5).opened_at(), Tick::from_nanos(opened));
    assert_eq!(memory.record_mut(5).begin_flush().unwrap(), b"BCD");
    assert!(!memory.record_mut(5).end_flush(2, Tick::from_millis(10)));
    assert_eq!(unsent(&mut memory, 5, 1).unwrap(), b"D");
    assert_eq!(memory.record_mut(5).begin_flush().unwrap(), b"D");
    assert!(memory.record_mut(5).end_flush(1, Tick::from_millis(11)));
    assert_eq!(memory.record_mut(5).begin_flush(), None);
    assert_eq!(memory.occupied().collect::<Vec<_>>(), [5]);
}

#[test]
fn released_memory_keeps_its_counters() {
    let mut memory = memory();
    memory.begin_accept();
    memory.open(5, 1, peer(), Tick::ZERO, State::Open);
    memory.end_accept();
    memory.count(Counter::Accepted, 1);
    release(memory.shared()).unwrap();
    assert_eq!(memory.occupied().count(), 0);
    assert_eq!(open_connections(memory.shared()), 1);
    assert!(is_believable(memory.shared()));
}

#[test]
fn counters_survive_their_worker() {
    let mut first = memory();
    let again = first.shared().as_fd().try_clone_to_owned().unwrap();
    first.count(Counter::Accepted, 3);
    first.count(Counter::Closed(CloseReason::PeerClosed), 1);
    first.open(7, 1, peer(), Tick::ZERO, State::Open);
    drop(first);
    let second = Memory::adopt(again, LAYOUT).unwrap();
    assert_eq!(counter(second.shared(), Counter::Accepted), 3);
    let died = Counter::Closed(CloseReason::WorkerDied);
    assert_eq!(counter(second.shared(), died), 2);
    assert_eq!(open_connections(second.shared()), 0);
    assert_eq!(second.occupied().count(), 0);
}

#[test]
fn empty_pool_leaves_rest_in_hand() {
    let layout = Layout {
        buffers: 0,
        ..LAYOUT
    };
    let mut memory = Memory::adopt(create(layout).unwrap(), layout).unwrap();
    memory.open(3, 1, peer(), Tick::ZERO, State::Open);
    memory.record_mut(3).begin_receive()[..2].copy_from_slice(b"xy");
    let hand = memory.record_mut(3).end_receive(2, Tick::ZERO);
    assert_eq!(memory.record_mut(3).end_send(hand, 1), Err(NoBuffer));
    assert_eq!(unsent(&mut memory, 3, 1).unwrap(), b"Y");
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "used up")]
fn receive_without_a_word_is_refused() {
    let descriptors = HANDS as u32 + 1;
    let layout = Layout {
        descriptors,
        ..LAYOUT
    };
    let mut memory = Memory::adopt(create(layout).unwrap(), layout).unwrap();
    for fd in 0..descriptors {
        memory.open(fd, 1, peer(), Tick::ZERO, State::Open);
        memory.record_mut(fd).begin_receive();
        let _ = memory.record_mut(fd).end_receive(1, Tick::ZERO);
    }
}

#[test]
fn corrupt_words_are_refused() {
    let mut memory = memory();
    memory.open(3, 1, peer(), Tick::ZERO, State::Open);
    memory.record_mut(3).begin_receive();
    let _ = memory.record_mut(3).end_receive(2, Tick::ZERO);
    assert!(unsent(&mut memory, 3, 3).is_err());
    let too_much = LAYOUT.buffer_bytes + 1;
    let received = |start, len| InHand::Recv { fd: 3, start, len }.pack();
    let (line, last) = Layout::in_hand(HANDS - 1);
    memory.store(Layout::in_hand(0).0, 0, received(0, too_much));
    assert!(
        unsent(&mut memory, 3, too_much.into()).is_err(),
        "found by fuzzing"
    );
    let end = SCRATCH_BYTES as u32 - 64;
    memory.store(Layout::in_hand(0).0, 0, received(end, 0));
    assert!(unsent(&mut memory, 3, 65).is_err(), "beyond the buffer");
    assert_eq!(unsent(&mut memory, 3, 64), Ok(vec![0; 64]));
    memory.store(line, last, received(0, 2));
    assert!(unsent(&mut memory, 3, 0).is_err(), "in hand twice");
    memory.store(line, last, 9 << 60);
    assert!(unsent(&mut memory, 3, 64).is_ok(), "it names none");
    memory.store(line, last, 0);
    memory.record_mut(3).settle();
    memory.store(Layout::record(3), PENDING, u64::MAX);
    assert!(unsent(&mut memory, 3, 0).is_err());
    let beyond = Pending {
        buffer: 20,
        offset: 0,
        end: 1,
    };
    memory.store(Layout::record(3), PENDING, beyond.pack());
    assert!(unsent(&mut memory, 3, 0).is_err());
    assert!(unsent(&mut memory, LAYOUT.descriptors, 0).is_err());
    memory.store(Layout::record(3), HEAD, 0xff);
    assert!(unsent(&mut memory, 3, 0).is_err());
    assert_eq!(memory.record(3).state(), State::Free);
}

#[test]
fn undersized_file_is_refused() {
    let small = create(Layout {
        buffers: 1,
        ..LAYOUT
    })
    .unwrap();
    let refused = Memory::adopt(small, LAYOUT).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
}
