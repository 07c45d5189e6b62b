//! Unit tests of `record.rs`.

use proptest::prelude::*;

use super::*;

fn frozen(unsent: &[u8]) -> Frozen {
    Frozen {
        unsent: unsent.to_vec(),
        phase: Phase::Open,
        peer_ended: true,
        finish: false,
        peer: "192.0.2.7:4000".parse().unwrap(),
        bytes_in: 0x0102_0304,
        bytes_out: 0x0102_0302,
        last_progress: Tick::from_nanos(7),
        opened: Tick::from_nanos(6),
        header_bytes: 0,
    }
}

fn batch_of(connections: Vec<Frozen>) -> Packet {
    Packet {
        sequence: 3,
        message: Message::Batch(connections.into_iter().map(Ok).collect()),
    }
}

#[test]
fn bytes_of_version_1_stay_readable() {
    let frame = b"UPHO\x01\x00\x01\x00\x03\x00\x00\x00\x01\x00\x00\x00\x3c\x00\x00\x00\
            \x01\x01\xa0\x0f\x02\x00\x00\x00\
            \0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\x00\x02\x07\
            \x04\x03\x02\x01\0\0\0\0\x02\x03\x02\x01\0\0\0\0\
            \x07\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\0\0AB";
    let packet = batch_of(vec![frozen(b"AB")]);
    assert_eq!(Packet::decode(frame), Ok(packet.clone()));
    assert_eq!(packet.encode(), frame);
    let refusal = b"UPHO\x09\x00\x04\x00\x03\x00\x00\x00\0\0\0\0\x02\x00\x00\x00no";
    let message = Message::Refused { cause: "no".into() };
    let read = Packet::decode(refusal);
    assert_eq!(
        read,
        Ok(Packet {
            sequence: 3,
            message
        }),
        "in any version"
    );
}

#[test]
fn foreign_bytes_are_refused_with_a_reason() {
    let good = batch_of(vec![frozen(b"AB")]).encode();
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        Packet::decode(&frame)
    };
    assert_eq!(with(0, b'X'), Err(Error::Magic));
    let (got, wanted) = (3, VERSION);
    assert_eq!(with(4, 3), Err(Error::Version { got, wanted }));
    assert_eq!(with(6, 9), Err(Error::Kind(9)));
    assert_eq!(with(COUNT_AT, 0), Err(Error::Count(0)));
    assert_eq!(with(COUNT_AT, 201), Err(Error::Count(201)));
    assert!(matches!(with(LENGTH_AT, 1), Err(Error::Length { .. })));
    for (at, byte) in [(COUNT_AT, 2), (24, 1), (26, 1)] {
        assert!(
            matches!(with(at, byte), Err(Error::Record { .. })),
            "{at} {byte}"
        );
    }
    for (at, byte) in [(20, 0), (20, 5), (21, 4)] {
        let Message::Batch(records) = with(at, byte).unwrap().message else {
            panic!("it is a batch");
        };
        assert!(matches!(records[..], [Err(_)]), "{at} {byte}");
    }
    for length in 0..good.len() {
        let cut = Packet::decode(&good[..length]);
        assert!(matches!(cut, Err(Error::Length { .. })), "{length}");
    }
}

#[test]
fn batch_accepts_connections_that_fit() {
    let mut many = BatchEncoder::new(1);
    let small = frozen(b"");
    assert_eq!((0..300).filter(|_| many.push(&small)).count(), 200);
    let mut few = BatchEncoder::new(1);
    let large = frozen(&vec![b'A'; SCRATCH_BYTES]);
    assert!(few.push(&large) && !few.push(&large) && few.push(&small));
    let frame = few.finish();
    assert!(frame.len() <= HANDOVER_MESSAGE_BYTES);
    let read = Packet::decode(&frame).unwrap();
    assert_eq!(read.message, Message::Batch(vec![Ok(large), Ok(small)]));
}

#[test]
fn unreadable_record_spoils_no_other() {
    let mut frame = batch_of(vec![frozen(b"AB"), frozen(b"CD"), frozen(b"EF")]).encode();
    frame[HEADER_BYTES + RECORD_BYTES + 2] = 9;
    let Message::Batch(records) = Packet::decode(&frame).unwrap().message else {
        panic!("it is a batch");
    };
    assert_eq!(records[0], Ok(frozen(b"AB")));
    assert!(records[1].is_err());
    assert_eq!(records[2], Ok(frozen(b"EF")));
    frame[4] = 9;
    assert!(Packet::decode(&frame).is_err());
    assert_eq!(sequence_of_batch(&frame), Some(3));
}

#[test]
fn positions_out_of_order_are_refused() {
    let left = |places: &[u8]| {
        let left = Left {
            places: places.to_vec(),
            cause: "full".to_owned(),
        };
        let message = Message::Acknowledged {
            taken: 1,
            left: Some(left),
        };
        Packet::decode(
            &Packet {
                sequence: 1,
                message,
            }
            .encode(),
        )
    };
    assert!(left(&[0, 2]).is_ok());
    for wrong in [&[][..], &[1, 1], &[2, 1]] {
        assert_eq!(left(wrong), Err(Error::Places));
    }
}

#[test]
fn long_cause_is_cut_between_characters() {
    let cause = "ß".repeat(CAUSE_MAX_BYTES);
    let message = Message::Refused { cause };
    let frame = Packet {
        sequence: 1,
        message,
    }
    .encode();
    let read = Packet::decode(&frame).unwrap().message;
    assert!(matches!(read, Message::Refused { cause } if cause == "ß".repeat(256)));
}

fn any_frozen() -> impl Strategy<Value = Frozen> {
    (
        prop::collection::vec(any::<u8>(), 0..50),
        prop::sample::select(vec![
            Phase::Open,
            Phase::LingeringIdle,
            Phase::LingeringStop,
            Phase::AwaitingHeader,
        ]),
        any::<(bool, bool, [u8; 16], u16, u64, u64, u64, u64)>(),
    )
        .prop_map(|(unsent, phase, rest)| {
            let (peer_ended, finish, ip, port, bytes_in, bytes_out, last, opened) = rest;
            Frozen {
                unsent,
                phase,
                peer_ended,
                finish,
                peer: SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port),
                bytes_in,
                bytes_out,
                last_progress: Tick::from_nanos(last),
                opened: Tick::from_nanos(opened),
                header_bytes: opened as u16,
            }
        })
}

proptest! {
    #[test]
    fn decode_inverts_encode(
        connections in prop::collection::vec(any_frozen(), 1..20),
        sequence: u32,
        count: u32,
        places in prop::collection::btree_set(0..200u8, 1..200),
        cause in "\\PC{0,60}",
    ) {
        let places = places.into_iter().collect();
        let left = Left { places, cause: cause.clone() };
        let messages = [
            Message::Batch(connections.into_iter().map(Ok).collect()),
            Message::Begin { coming: count },
            Message::End { moved: count },
            Message::Acknowledged { taken: count, left: None },
            Message::Acknowledged { taken: count, left: Some(left) },
            Message::Declined { cause: cause.clone() },
            Message::Refused { cause },
        ];
        for message in messages {
            let packet = Packet { sequence, message };
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }
    }

    #[test]
    fn decoder_is_total(
        connections in prop::collection::vec(any_frozen(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut frame = batch_of(connections).encode();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Ok(packet) = Packet::decode(&frame) {
            if let Message::Batch(records) = &packet.message
                && records.iter().any(Result::is_err)
            {
                return Ok(());
            }
            let again = packet.encode();
            prop_assert_eq!(Packet::decode(&again), Ok(packet));
        }
    }
}
