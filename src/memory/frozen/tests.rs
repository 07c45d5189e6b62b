//! Unit tests of `frozen.rs`.

use proptest::prelude::*;

use super::super::{Unprobed, WARM_BUFFERS, create};
use super::*;
use crate::memory::layout::Layout;

const LAYOUT: Layout = Layout {
    descriptors: 8,
    buffers: 2,
    buffer_bytes: 100,
};

fn memory(layout: Layout) -> Memory<Unprobed> {
    Memory::adopt(create(layout).unwrap(), layout).unwrap()
}

fn frozen(unsent: &[u8]) -> Frozen {
    Frozen {
        unsent: unsent.to_vec(),
        phase: Phase::Open,
        peer_ended: false,
        finish: false,
        peer: "192.0.2.7:4000".parse().unwrap(),
        bytes_in: 1_000 + unsent.len() as u64,
        bytes_out: 1_000,
        last_progress: Tick::from_millis(9),
        opened: Tick::from_millis(3),
        header_bytes: 0,
    }
}

#[test]
fn connection_migrates_at_every_byte_boundary() {
    let message: Vec<u8> = (0..100).map(|i| b'A' + i % 26).collect();
    let small = memory(LAYOUT).layout();
    for sent in 0..=100 {
        let (mut from, mut to) = (memory(small), memory(LAYOUT));
        from.open(
            3,
            7,
            "[2001:db8::1]:80".parse().unwrap(),
            Tick::ZERO,
            State::Open,
        );
        from.record_mut(3).begin_receive()[..100].copy_from_slice(&message);
        let hand = from.record_mut(3).end_receive(100, Tick::from_millis(1));
        from.record_mut(3).end_send(hand, sent / 2).unwrap();
        from.record_mut(3).begin_flush().unwrap();
        from.record_mut(3)
            .end_flush(sent - sent / 2, Tick::from_millis(2));
        let copy = from.record_mut(3).freeze().unwrap();
        assert_eq!(copy.unsent, &message[sent as usize..]);
        assert_eq!(
            from.record_mut(3).freeze().unwrap(),
            copy,
            "the sender keeps its own"
        );
        to.thaw(5, 1, &copy).unwrap();
        assert_eq!(to.record_mut(5).freeze().unwrap(), copy);
        assert_eq!(to.record(5).flags(), Flags::default());
        let rest = to
            .record_mut(5)
            .begin_flush()
            .map(<[u8]>::to_vec)
            .unwrap_or_default();
        assert_eq!(rest, &message[sent as usize..]);
    }
}

proptest! {
    #[test]
    fn thaw_inverts_freeze(
        unsent in prop::collection::vec(any::<u8>(), 0..=100)
            .prop_map(|bytes| bytes.to_ascii_uppercase()),
        lingering in prop::option::of(any::<bool>()),
        peer_ended: bool,
        finish: bool,
        ip: [u8; 16],
        port: u16,
        bytes_out in 0..u64::MAX / 2,
        times: (u64, u64),
    ) {
        let phase = match lingering {
            Some(true) if unsent.is_empty() => Phase::LingeringIdle,
            Some(false) if unsent.is_empty() => Phase::LingeringStop,
            _ => Phase::Open,
        };
        let ip = std::net::Ipv6Addr::from(ip).to_canonical();
        let sent = Frozen {
            bytes_in: bytes_out + unsent.len() as u64,
            unsent,
            phase,
            peer_ended,
            finish,
            peer: SocketAddr::new(ip, port),
            bytes_out,
            last_progress: Tick::from_nanos(times.0),
            // The record rounds it down.
            opened: Tick::from_nanos(times.1 & !0xffff),
            header_bytes: times.1 as u16,
        };
        let text = serde_json::to_string(&sent).unwrap();
        let arrived: Frozen = serde_json::from_str(&text).unwrap();
        let mut memory = memory(LAYOUT);
        memory.thaw(5, 9, &arrived).unwrap();
        prop_assert_eq!(memory.record_mut(5).freeze(), Some(sent.clone()));
        prop_assert_eq!(rescued(&mut memory, 5, 0), Ok(Some(sent)));
        prop_assert_eq!(memory.record(5).generation(), 9);
    }
}

#[test]
fn refused_thaw_changes_nothing() {
    let mut memory = memory(LAYOUT);
    let mut refused = |fd, generation, frozen: &Frozen| {
        let before = memory.occupied().count();
        let error = memory.thaw(fd, generation, frozen).unwrap_err();
        assert_eq!(memory.occupied().count(), before);
        error
    };
    let descriptors = 8;
    assert_eq!(
        refused(8, 1, &frozen(b"")),
        ThawError::NoRecord { fd: 8, descriptors }
    );
    let unsent = SCRATCH_BYTES + 1;
    assert_eq!(
        refused(3, 1, &frozen(&vec![b'A'; unsent])),
        ThawError::TooLong { unsent }
    );
    let miscounted = Frozen {
        bytes_out: 1_001,
        ..frozen(b"AB")
    };
    assert!(matches!(
        refused(3, 1, &miscounted),
        ThawError::Inconsistent(_)
    ));
    let ended = Frozen {
        phase: Phase::LingeringStop,
        ..frozen(b"AB")
    };
    assert!(matches!(refused(3, 1, &ended), ThawError::Inconsistent(_)));
    memory.thaw(3, 1, &frozen(b"AB")).unwrap();
    memory.thaw(4, 2, &frozen(b"CD")).unwrap();
    assert_eq!(
        memory.thaw(5, 3, &frozen(b"EF")),
        Err(ThawError::NoBuffer(NoBuffer))
    );
    assert_eq!(
        memory.thaw(4, 3, &frozen(b"")),
        Err(ThawError::Occupied { fd: 4 })
    );
    memory.record_mut(4).begin_close();
    assert_eq!(
        memory.thaw(4, 2, &frozen(b"")),
        Err(ThawError::Occupied { fd: 4 })
    );
}

#[test]
fn thaw_repairs_bytes_in_hand() {
    let mut memory = memory(LAYOUT);
    memory.open(
        3,
        1,
        "192.0.2.7:4000".parse().unwrap(),
        Tick::ZERO,
        State::Open,
    );
    memory.record_mut(3).begin_receive()[..4].copy_from_slice(b"abcd");
    let _ = memory.record_mut(3).end_receive(4, Tick::ZERO);
    let found = rescued(&mut memory, 3, 3).unwrap().unwrap();
    assert_eq!(
        (found.bytes_in, found.bytes_out, &*found.unsent),
        (4, 1, &b"BCD"[..])
    );
    memory.thaw(3, 1, &found).unwrap();
    assert_eq!(memory.record_mut(3).freeze(), Some(found));
    assert_eq!(memory.record_mut(3).begin_flush(), Some(&b"BCD"[..]));
    // The same with a flush in hand, more often than there are buffers: each is given back.
    for _ in 0..WARM_BUFFERS {
        let found = rescued(&mut memory, 3, 2).unwrap().unwrap();
        memory.thaw(3, 1, &found).unwrap();
        assert_eq!(memory.record_mut(3).begin_flush(), Some(&b"CD"[..]));
    }
}

#[test]
fn finishing_connection_thaws_with_last_look() {
    let mut memory = memory(LAYOUT);
    let finish = Frozen {
        finish: true,
        ..frozen(b"")
    };
    memory.thaw(3, 1, &finish).unwrap();
    assert_eq!(memory.record(3).flags(), Flags::LAST_LOOK);
}

#[test]
fn free_record_cannot_be_frozen() {
    let mut memory = memory(LAYOUT);
    assert_eq!(memory.record_mut(3).freeze(), None);
    memory.thaw(3, 1, &frozen(b"AB")).unwrap();
    assert_eq!(memory.record_mut(3).begin_close(), 2);
    assert_eq!(memory.record_mut(3).freeze(), None);
    assert_eq!(rescued(&mut memory, 3, 0), Ok(None));
    memory.record_mut(3).end_close();
    assert_eq!(memory.record_mut(3).freeze(), None);
}
