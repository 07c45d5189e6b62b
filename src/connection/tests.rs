//! Unit tests of `connection.rs`.

use super::*;
use crate::memory::layout::Layout;
use crate::memory::{self, Memory};

const FD: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
const RULES: Rules = Rules {
    bytes_per_turn: 1 << 20,
    idle_timeout: None,
    write_stall_timeout: Some(PATIENCE),
    header_timeout: PATIENCE,
    first_byte_timeout: PATIENCE,
    linger_timeout: PATIENCE,
    max_age: None,
    age_grace: PATIENCE,
    since: Tick::ZERO,
};

/// A peer that sent one message and then has room for `room` bytes.
struct Peer {
    message: Option<&'static [u8]>,
    room: usize,
}

impl Stream for Peer {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let message = self.message.take().ok_or(io::ErrorKind::WouldBlock)?;
        into[..message.len()].copy_from_slice(message);
        Ok(message.len())
    }

    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        match std::mem::take(&mut self.room).min(from.len()) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn end_output(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a connection that has just begun, at tick zero.
fn opened() -> Memory {
    let layout = Layout {
        descriptors: 8,
        buffers: 1,
        buffer_bytes: 4096,
    };
    let mut memory = Memory::adopt(memory::create(layout).unwrap(), layout).unwrap();
    memory.open(
        FD,
        1,
        ([127, 0, 0, 1], 80).into(),
        Tick::from_millis(0),
        State::Open,
    );
    memory
}

/// Returns a connection with nine bytes pending since tick zero.
fn stalled() -> (Memory, Peer) {
    let start = Tick::from_millis(0);
    let mut memory = opened();
    memory
        .record_mut(FD)
        .set_flags(Flags::READABLE.with(Flags::WRITABLE));
    let mut peer = Peer {
        message: Some(b"ten bytes."),
        room: 1,
    };
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &RULES, start);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).pending().unwrap().len(), 9);
    (memory, peer)
}

#[test]
fn finishing_connection_awaits_its_first_message() {
    let mut memory = opened();
    let mut peer = Peer {
        message: None,
        room: 100,
    };
    memory
        .record_mut(FD)
        .set_flags(Flags::LAST_LOOK.with(Flags::WRITABLE));
    let at = Tick::from_millis;
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &RULES, at(1));
    assert_eq!(
        (outcome, memory.record(FD).state()),
        (Outcome::Waiting, State::Open)
    );
    assert_eq!(deadline(&memory.record(FD), &RULES), Some(at(1000)));
    peer.message = Some(b"a word");
    let flags = memory.record(FD).flags().with(Flags::READABLE);
    memory.record_mut(FD).set_flags(flags);
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &RULES, at(999));
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).bytes_moved(), (6, 6));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

#[test]
fn finishing_connection_stops_waiting_at_the_deadline() {
    let mut memory = opened();
    let mut peer = Peer {
        message: None,
        room: 100,
    };
    memory
        .record_mut(FD)
        .set_flags(Flags::LAST_LOOK.with(Flags::WRITABLE));
    let at = Tick::from_millis;
    let _ = drive(&mut memory.record_mut(FD), &mut peer, &RULES, at(1));
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &RULES, at(999));
    assert_eq!(
        (outcome, memory.record(FD).state()),
        (Outcome::Waiting, State::Open)
    );
    let _ = expire(&mut memory.record_mut(FD), &mut peer, &RULES, at(1000));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
    // The shorter of the first-byte timeout and the idle timeout applies.
    let hasty = Rules {
        idle_timeout: Some(PATIENCE / 2),
        ..RULES
    };
    let mut memory = opened();
    memory.record_mut(FD).set_flags(Flags::FINISH);
    assert_eq!(deadline(&memory.record(FD), &hasty), Some(at(500)));
    // An old connection is ended at once.
    let mut memory = opened();
    memory
        .record_mut(FD)
        .set_flags(Flags::LAST_LOOK.with(Flags::WRITABLE));
    let _ = drive(&mut memory.record_mut(FD), &mut peer, &RULES, at(1000));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

#[test]
fn finishing_connection_awaits_its_header() {
    let mut memory = opened();
    let mut peer = Peer {
        message: None,
        room: 100,
    };
    let (at, peer_addr) = (Tick::from_millis, ([127, 0, 0, 1], 80).into());
    memory.open(FD, 1, peer_addr, at(0), State::AwaitingHeader);
    let patient = Rules {
        header_timeout: 5 * PATIENCE,
        ..RULES
    };
    assert_eq!(deadline(&memory.record(FD), &patient), Some(at(5000)));
    memory.record_mut(FD).set_flags(Flags::LAST_LOOK);
    assert_eq!(deadline(&memory.record(FD), &patient), Some(at(1000)));
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &patient, at(999));
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::AwaitingHeader);
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &patient, at(1000));
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

#[test]
fn announced_input_is_received_until_it_would_block() {
    let mut memory = opened();
    let mut peer = Peer {
        message: Some(b"a word"),
        room: 100,
    };
    let announced = Flags::READABLE.with(Flags::READ_DRY);
    memory
        .record_mut(FD)
        .set_flags(announced.with(Flags::WRITABLE));
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &RULES, Tick::ZERO);
    assert_eq!(
        (outcome, memory.record(FD).bytes_moved()),
        (Outcome::Waiting, (6, 6))
    );
    let flags = memory.record(FD).flags();
    assert!(!flags.has(Flags::READABLE) && !flags.has(Flags::READ_DRY));
}

#[test]
fn stalled_peer_is_closed_at_its_deadline() {
    let (mut memory, mut peer) = stalled();
    let early = Tick::from_millis(999);
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &RULES, early);
    assert_eq!(outcome, Outcome::Waiting);
    let late = Tick::from_millis(1000);
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &RULES, late);
    assert_eq!(outcome, Outcome::Close(CloseReason::WriteStall));
}

#[test]
fn slow_reader_renews_its_stall_deadline() {
    let (mut memory, mut peer) = stalled();
    for second in 1..=8 {
        peer.room = 1;
        let now = Tick::from_millis(1000 * second);
        let outcome = expire(&mut memory.record_mut(FD), &mut peer, &RULES, now);
        assert_eq!(outcome, Outcome::Waiting, "second {second}");
        assert_eq!(deadline(&memory.record(FD), &RULES), Some(now + PATIENCE));
    }
    // After its last pending byte it is no longer slow: its input is read.
    peer.room = 1;
    peer.message = Some(b"more");
    let outcome = expire(
        &mut memory.record_mut(FD),
        &mut peer,
        &RULES,
        Tick::from_millis(9000),
    );
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).pending().unwrap().len(), 4);
    assert_eq!(memory.record(FD).bytes_moved(), (14, 10));
}

#[test]
fn request_received_in_time_outlives_late_deadline() {
    let at = Tick::from_millis;
    let mut peer = Peer {
        message: None,
        room: 0,
    };
    let rules = Rules {
        idle_timeout: Some(PATIENCE),
        ..RULES
    };
    // No report of it has come: the process was stopped.
    for flags in [Flags::WRITABLE, Flags::FINISH] {
        let mut memory = opened();
        memory.record_mut(FD).set_flags(flags);
        peer.message = Some(b"in time");
        peer.room = 100;
        let outcome = expire(&mut memory.record_mut(FD), &mut peer, &rules, at(60_000));
        assert_eq!(outcome, Outcome::Waiting);
        assert_eq!(memory.record(FD).bytes_moved(), (7, 7));
        assert_ne!(memory.record(FD).state(), State::LingeringIdle);
    }
    let mut memory = opened();
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &rules, at(60_000));
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::LingeringIdle);
}

/// Rules under which a connection that began at tick zero ends after 9 to 11 s.
const AGING: Rules = Rules {
    max_age: Some(Duration::from_secs(10)),
    ..RULES
};

#[test]
fn old_connection_ends_after_its_last_reply() {
    let (mut memory, mut peer) = stalled();
    let patient = Rules {
        write_stall_timeout: None,
        ..AGING
    };
    let at = Tick::from_millis;
    let due = deadline(&memory.record(FD), &patient).unwrap();
    assert!(at(9_000) <= due && due <= at(11_000), "{due:?}");
    // Output is pending: it is sent first.
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &patient, due);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::Open);
    assert_eq!(
        deadline(&memory.record(FD), &patient),
        None,
        "it fires once"
    );
    peer.room = 100;
    let flags = memory.record(FD).flags().with(Flags::WRITABLE);
    memory.record_mut(FD).set_flags(flags);
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &patient, due);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).bytes_moved(), (10, 10));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
    let outcome = expire(
        &mut memory.record_mut(FD),
        &mut peer,
        &patient,
        due + PATIENCE,
    );
    assert_eq!(outcome, Outcome::Close(CloseReason::MaxAge));
}

#[test]
fn input_of_old_connection_is_answered_first() {
    let mut memory = opened();
    let mut peer = Peer {
        message: Some(b"a word"),
        room: 100,
    };
    let due = deadline(&memory.record(FD), &AGING).unwrap();
    let outcome = expire(&mut memory.record_mut(FD), &mut peer, &AGING, due);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).bytes_moved(), (6, 6));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

/// A peer that has always sent more, and reads everything.
struct Flood;

impl Stream for Flood {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(b'a');
        Ok(into.len())
    }

    fn send(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }

    fn end_output(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn flooding_peer_is_ended_after_grace() {
    let mut memory = opened();
    let due = deadline(&memory.record(FD), &AGING).unwrap();
    let outcome = expire(&mut memory.record_mut(FD), &mut Flood, &AGING, due);
    assert_eq!(outcome, Outcome::Again, "it is served a little longer");
    let end = due + AGING.age_grace;
    let before = due + (AGING.age_grace - Duration::from_millis(1));
    let outcome = drive(&mut memory.record_mut(FD), &mut Flood, &AGING, before);
    assert_eq!(outcome, Outcome::Again);
    let (received, _) = memory.record(FD).bytes_moved();
    let outcome = drive(&mut memory.record_mut(FD), &mut Flood, &AGING, end);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
    assert_eq!(memory.record(FD).bytes_moved(), (received, received));
    let closed = end + PATIENCE;
    let outcome = expire(&mut memory.record_mut(FD), &mut Flood, &AGING, closed);
    assert_eq!(outcome, Outcome::Close(CloseReason::MaxAge));
}

#[test]
fn pending_output_is_sent_after_grace() {
    let (mut memory, mut peer) = stalled();
    let due = deadline_of_life(&memory);
    let late = due + AGING.age_grace;
    peer.room = 1;
    let _ = expire(&mut memory.record_mut(FD), &mut peer, &AGING, due);
    assert_eq!(memory.record(FD).pending().unwrap().len(), 8);
    // The peer has sent more, and reads the rest: nothing more is received.
    peer.room = 100;
    peer.message = Some(b"more");
    let ready = Flags::READABLE.with(Flags::WRITABLE);
    let flags = memory.record(FD).flags().with(ready);
    memory.record_mut(FD).set_flags(flags);
    let outcome = drive(&mut memory.record_mut(FD), &mut peer, &AGING, late);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).bytes_moved(), (10, 10));
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

#[test]
fn grace_goes_on_at_next_worker() {
    let mut memory = opened();
    let due = deadline_of_life(&memory);
    let next = Rules {
        since: due + AGING.age_grace / 2,
        ..AGING
    };
    memory.record_mut(FD).finish();
    let ready = Flags::READABLE.with(Flags::WRITABLE);
    let flags = memory.record(FD).flags().with(ready);
    memory.record_mut(FD).set_flags(flags);
    let end = due + AGING.age_grace;
    let outcome = drive(&mut memory.record_mut(FD), &mut Flood, &next, next.since);
    assert_eq!(outcome, Outcome::Again);
    let outcome = drive(&mut memory.record_mut(FD), &mut Flood, &next, end);
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(memory.record(FD).state(), State::LingeringStop);
}

/// Returns when the connection is too old by [`AGING`].
fn deadline_of_life(memory: &Memory) -> Tick {
    let patient = Rules {
        write_stall_timeout: None,
        ..AGING
    };
    deadline(&memory.record(FD), &patient).unwrap()
}

#[test]
fn ages_of_connections_are_spread() {
    let mut memory = opened();
    let at = Tick::from_millis;
    let mut due: Vec<Tick> = (0..100)
        .map(|port| {
            let peer = ([127, 0, 0, 1], 40_000 + port).into();
            memory.open(FD, 1, peer, at(0), State::Open);
            deadline(&memory.record(FD), &AGING).unwrap()
        })
        .collect();
    due.sort_unstable();
    assert!(at(9_000) <= due[0] && due[99] <= at(11_000));
    let gaps = due.windows(2).map(|two| two[1].since(two[0]));
    assert!(gaps.max().unwrap() < Duration::from_millis(200));
    // When the setting is new, connections that are too old end one after the other.
    let late = Rules {
        since: at(60_000),
        ..AGING
    };
    let due = deadline(&memory.record(FD), &late).unwrap();
    assert!(at(60_000) <= due && due <= at(62_000), "{due:?}");
}
