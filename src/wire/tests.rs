//! The frames: every message survives a round trip, and nothing else is accepted.

use std::fmt::Debug;

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::handover::{HandedOver, HandoverEnd, Part};
use uppercased_ctl::status::{AgentAnswers, Sandboxed};

fn envelope<M>(message: M) -> Envelope<M> {
    let worker = WorkerId {
        slot: SlotId(3),
        generation: Generation(70_000),
    };
    Envelope { worker, message }
}

const fn lend(slot: u16) -> ToWorker {
    ToWorker::Lend { slot: SlotId(slot) }
}

fn sandbox() -> Sandboxed {
    Sandboxed {
        layers: vec!["seccomp".into()],
        missing: vec!["landlock: none here".into()],
    }
}

fn to_worker() -> Vec<ToWorker> {
    let active_within = std::time::Duration::from_secs(2);
    let listen = vec![Listen {
        addr: "[::1]:9999".parse().unwrap(),
        dual_stack: false,
    }];
    vec![
        ToWorker::Start(Box::new(Start {
            config: Config::default(),
            listen,
            adopt: true,
            adoptable: true,
            standby: true,
            cpu: Some(1),
            max_connections: 100,
            room: 200,
            descriptors: 200,
        })),
        lend(9),
        ToWorker::Recall {
            slot: SlotId(u16::MAX),
            last: true,
        },
        ToWorker::Stop(Stop {
            lame_duck_ms: 0,
            drain_timeout_ms: u64::MAX,
        }),
        ToWorker::Serve,
        ToWorker::HandOver(HandOver {
            to: WorkerId::default(),
            last: true,
            part: Some(Part {
                permille: 333,
                at_most: 200,
                active_within,
            }),
        }),
        ToWorker::TakeOver(TakeOver {
            from: WorkerId::default(),
            expected: 3,
        }),
        ToWorker::Leave {
            drain_timeout_ms: 5,
        },
        ToWorker::Ping,
        ToWorker::Keep,
        ToWorker::Confirm,
    ]
}

fn from_worker() -> Vec<FromWorker> {
    vec![
        FromWorker::Ready(Ready {
            listen: Vec::new(),
            sandbox: sandbox(),
        }),
        FromWorker::Failed {
            cause: "no \"luck\"\n".into(),
        },
        FromWorker::Draining { connections: 7 },
        FromWorker::HandedOver(HandedOver {
            moved: 1,
            left: 2,
            end: HandoverEnd::Refused {
                cause: "full".into(),
            },
            part: true,
        }),
        FromWorker::ListenerLost { slot: SlotId(3) },
        FromWorker::Kept,
        FromWorker::Adoptable(Box::new(Adoptable {
            drain_timeout_ms: 30_000,
            listen: Vec::new(),
            sandbox: Sandboxed::default(),
            lent: vec![SlotId(3)],
            passed: vec![SlotId(4)],
            is_handing_over: true,
            leaves_within_ms: Some(30_000),
        })),
        FromWorker::NotAdoptable {
            cause: "its supervisor runs".to_owned(),
        },
        FromWorker::Rescued(Rescued {
            life: 2,
            pid: 4242,
            connections: 4,
            owed_bytes: u64::MAX,
            reset: 1,
            is_handing_over: true,
            took_us: 900,
        }),
    ]
}

fn to_admin() -> Vec<ToAdmin> {
    vec![
        ToAdmin::Start(Box::new(StartAdmin {
            config: Config::default(),
            http: true,
            agent: false,
        })),
        ToAdmin::Status { number: 0 },
    ]
}

fn from_admin() -> Vec<FromAdmin> {
    let agent = AgentAnswers {
        ready: 1,
        drain: 2,
        maint: 3,
        down: u64::MAX,
    };
    vec![
        FromAdmin::Ready { sandbox: sandbox() },
        FromAdmin::Failed { cause: "x".into() },
        FromAdmin::Ask {
            number: u64::MAX,
            agent,
        },
    ]
}

fn from_preflight() -> Vec<FromPreflight> {
    vec![
        FromPreflight::Resolved {
            config: serde_json::to_value(Config::default()).unwrap(),
        },
        FromPreflight::Answered { job: Job::Start },
        FromPreflight::Failed { cause: "x".into() },
    ]
}

fn survive<M: Message + Clone + Debug + PartialEq>(messages: Vec<M>) {
    for message in messages {
        let sent = envelope(message);
        let frame = sent.encode(2).unwrap();
        assert_eq!(Envelope::decode(&frame).unwrap(), (sent, 2));
    }
}

#[test]
fn encoded_messages_decode_unchanged() {
    survive(to_worker());
    survive(from_worker());
    survive(to_admin());
    survive(from_admin());
    survive(vec![
        ToPreflight::Resolve,
        ToPreflight::TakeOver,
        ToPreflight::Ask,
    ]);
    survive(from_preflight());
}

#[test]
fn frame_bytes_of_version_1_stay_readable() {
    let frame = b"UPPR\x01\x00\x01\x00\x02\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x13\x00\x00\x00{\"lend\":{\"slot\":1}}";
    let (read, descriptors) = Envelope::<ToWorker>::decode(frame).unwrap();
    let worker = WorkerId {
        slot: SlotId(2),
        generation: Generation(5),
    };
    assert_eq!((read.worker, &read.message), (worker, &lend(1)));
    assert_eq!(descriptors, 1);
    assert_eq!(read.encode(1).unwrap(), frame);
}

#[test]
fn unknown_fields_are_skipped() {
    let read: ToWorker = serde_json::from_str(r#"{"lend":{"slot":1,"why":"because"}}"#).unwrap();
    assert_eq!(read, lend(1));
}

#[test]
fn other_directions_are_refused() {
    let frame = envelope(lend(1)).encode(0).unwrap();
    assert!(matches!(
        Envelope::<FromWorker>::decode(&frame),
        Err(Error::Direction {
            wanted: Direction::FromWorker,
            got: 1
        })
    ));
    assert!(matches!(
        Envelope::<ToAdmin>::decode(&frame),
        Err(Error::Direction { .. })
    ));
}

#[test]
fn invalid_frames_are_refused_with_reason() {
    let good = envelope(lend(1)).encode(0).unwrap();
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        Envelope::<ToWorker>::decode(&frame)
    };
    assert!(matches!(with(0, b'X'), Err(Error::Magic)));
    assert!(matches!(with(4, 2), Err(Error::Version(2))));
    assert!(matches!(with(6, 99), Err(Error::Direction { got: 99, .. })));
    assert!(matches!(with(16, 201), Err(Error::Descriptors(201))));
    assert!(matches!(with(20, 1), Err(Error::Length { .. })));
    assert!(matches!(with(24, b'['), Err(Error::Body { .. })));
    assert!(matches!(with(26, b'X'), Err(Error::Body { .. })));
    assert!(matches!(
        Envelope::<ToWorker>::decode(&good[..23]),
        Err(Error::Length { .. })
    ));
    assert!(matches!(
        envelope(FromWorker::Failed {
            cause: "x".repeat(FRAME_MAX_BYTES)
        })
        .encode(0),
        Err(Error::TooLong(_))
    ));
    assert!(matches!(
        envelope(lend(1)).encode(FDS_MAX + 1),
        Err(Error::Descriptors(_))
    ));
}

fn decode_as_each(frame: &[u8]) {
    let _ = Envelope::<ToWorker>::decode(frame);
    let _ = Envelope::<FromWorker>::decode(frame);
    let _ = Envelope::<ToAdmin>::decode(frame);
    let _ = Envelope::<FromAdmin>::decode(frame);
    let _ = Envelope::<ToPreflight>::decode(frame);
    let _ = Envelope::<FromPreflight>::decode(frame);
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_as_each(&bytes);
    }

    #[test]
    fn any_changed_byte_decodes_or_is_refused(
        which: prop::sample::Index, at: prop::sample::Index, byte: u8,
    ) {
        let frames: Vec<Vec<u8>> = to_worker()
            .into_iter()
            .map(|message| envelope(message).encode(0).unwrap())
            .chain(from_worker().into_iter().map(|message| envelope(message).encode(0).unwrap()))
            .collect();
        let mut frame = which.get(&frames).clone();
        let at = at.index(frame.len());
        frame[at] = byte;
        decode_as_each(&frame);
    }
}
