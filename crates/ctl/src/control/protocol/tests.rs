//! Unit tests of `protocol.rs`.

use proptest::prelude::*;

use super::*;

const NOW: Options = Options {
    wait: false,
    drain: false,
};

const REQUESTS: [Request; 9] = [
    Request::Cancel,
    Request::Reload(NOW),
    Request::Upgrade(NOW),
    Request::Scale {
        workers: ScaleTo::Exactly(7),
        options: NOW,
    },
    Request::Scale {
        workers: ScaleTo::By(-3),
        options: NOW,
    },
    Request::Reload(Options {
        wait: true,
        drain: false,
    }),
    Request::Rotation {
        to: Rotation::Drain,
    },
    Request::Status,
    Request::Stop,
];

#[test]
fn result_is_one_line() {
    let done = Done {
        replaced: 4,
        workers: 6,
        migrated: 10_000,
        draining: 0,
        closed_after_ms: 30_000,
        duration_ms: 1012,
    };
    let line = |request: Request| done.describe(&request);
    let connections = "10000 connections migrated, 0 draining";
    assert_eq!(
        line(Request::Reload(Options::default())).unwrap(),
        format!("reloaded 4 workers in 1.01 s: {connections}")
    );
    assert_eq!(
        line(Request::Upgrade(Options::default())).unwrap(),
        format!("upgraded 4 workers in 1.01 s: {connections}")
    );
    let scale = Request::Scale {
        workers: ScaleTo::By(2),
        options: Options::default(),
    };
    assert_eq!(
        line(scale).unwrap(),
        format!("scaled to 6 workers in 1.01 s: {connections}")
    );
    assert_eq!((line(Request::Status), line(Request::Stop)), (None, None));
    let draining = Done {
        migrated: 1,
        draining: 12,
        ..done
    };
    let line = draining.describe(&Request::Reload(Options::default()));
    assert_eq!(
        line.unwrap(),
        "reloaded 4 workers in 1.01 s: 1 connection migrated, 12 draining (closed after 30s)"
    );
}

#[test]
fn decode_inverts_encode() {
    for request in REQUESTS {
        let line = request.encode().unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(Request::decode(&line).unwrap(), request);
    }
    let replies = [
        Reply::Progress("two\nlines".into()),
        Reply::Done(Done {
            replaced: 1,
            workers: 2,
            migrated: u64::MAX,
            draining: 4,
            closed_after_ms: 6,
            duration_ms: 5,
        }),
        Reply::Failed(String::new()),
        Reply::Refused("busy".into()),
        Reply::Status(Box::default()),
    ];
    for reply in replies {
        let line = reply.encode().unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(Reply::decode(&line).unwrap(), reply);
    }
}

#[test]
fn version_1_lines_stay_readable() {
    let scale = br#"{"version":1,"command":"scale","workers":3}"#;
    assert_eq!(
        Request::decode(scale).unwrap(),
        Request::Scale {
            workers: ScaleTo::Exactly(3),
            options: NOW
        }
    );
    for (name, request) in REQUESTS.map(|request| (request.name(), request)) {
        let workers = match request {
            Request::Scale {
                workers: ScaleTo::By(_),
                ..
            } => r#""-3""#,
            _ => "7",
        };
        let wait = request
            == Request::Reload(Options {
                wait: true,
                drain: false,
            });
        let line = format!(
            r#"{{"workers":{workers},"to":"drain","wait":{wait},"command":"{name}","version":1}}"#
        );
        assert_eq!(Request::decode(line.as_bytes()).unwrap(), request);
    }
    let done =
        br#"{"done":{"replaced":4,"workers":4,"migrated":9,"draining":0,"duration_ms":312}}"#;
    let expected = Done {
        replaced: 4,
        workers: 4,
        migrated: 9,
        draining: 0,
        closed_after_ms: 0,
        duration_ms: 312,
    };
    assert_eq!(Reply::decode(done).unwrap(), Reply::Done(expected));
}

#[test]
fn sign_makes_worker_count_relative() {
    let read = |text: &str| text.parse::<ScaleTo>();
    for (text, to) in [
        ("6", ScaleTo::Exactly(6)),
        ("+1", ScaleTo::By(1)),
        ("-2", ScaleTo::By(-2)),
    ] {
        assert_eq!(read(text).unwrap(), to);
        assert_eq!(to.to_string(), text);
    }
    for text in [
        "", "+", "-", "+0", "-0", "++1", "+1024", "-32769", "x", "1.5",
    ] {
        let why = read(text).unwrap_err().to_string();
        assert!(why.contains("+1 or -1"), "{why}");
    }
    assert_eq!(ScaleTo::By(-5).from(4), 0);
    assert_eq!(ScaleTo::By(1).from(4), 5);
    assert_eq!(ScaleTo::Exactly(2).from(4), 2);
}

#[test]
fn newer_fields_are_skipped() {
    let line = br#"{"version":1,"command":"stop","why":{"not":[1]}}"#;
    assert_eq!(Request::decode(line).unwrap(), Request::Stop);
    let line = br#"{"done":{"replaced":1,"sparkling":true}}"#;
    let Reply::Done(done) = Reply::decode(line).unwrap() else {
        panic!("it is done");
    };
    assert_eq!((done.replaced, done.workers), (1, 0));
}

#[test]
fn foreign_bytes_are_refused_with_a_reason() {
    let why = |line: &str| Request::decode(line.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        why(r#"{"version":2,"orders":["reload"]}"#),
        "the request has version 2, and this server supports version 1"
    );
    assert!(why(r#"{"version":1,"command":"dance"}"#).contains("`dance`"));
    assert!(why(r#"{"version":1}"#).contains("command"));
    assert!(why(r#"{"command":"stop"}"#).contains("version"));
    assert!(why(r#"{"version":1,"command":"scale"}"#).contains("workers"));
    assert_eq!(
        why(r#"{"version":1,"command":"scale","workers":0}"#),
        "cannot run 0 workers; use 1 to 1024"
    );
    for junk in [
        "",
        "\n",
        "[]",
        "1",
        "nul",
        "GET / HTTP/1.1",
        "{\"version\":",
    ] {
        assert!(why(junk).starts_with("the line is not valid"), "{junk}");
    }
    // The parser must refuse deep nesting before the stack overflows.
    assert!(Request::decode("[".repeat(4000).as_bytes()).is_err());
}

#[test]
fn texts_are_cut_between_characters() {
    let reply = Reply::Failed("ß".repeat(CONTROL_TEXT_MAX_BYTES));
    let Reply::Failed(text) = Reply::decode(&reply.encode().unwrap()).unwrap() else {
        panic!("it failed");
    };
    assert!(text.ends_with("ß…") && text.len() <= CONTROL_TEXT_MAX_BYTES + 3);
}

#[test]
fn lines_survive_round_trip_and_are_bounded() {
    let mut incoming = Incoming::new(8);
    incoming.take(b"ab").unwrap();
    assert_eq!(incoming.line(), None);
    incoming.take(b"c\nde\nf").unwrap();
    assert_eq!(incoming.line().unwrap(), b"abc\n");
    assert_eq!(incoming.line().unwrap(), b"de\n");
    assert_eq!(incoming.line(), None);
    assert_eq!(incoming.rest().unwrap(), b"f");
    assert_eq!(incoming.rest(), None);
    incoming.take(b"1234567\n").unwrap();
    assert!(incoming.line().is_some());
    incoming.take(b"12345678").unwrap();
    assert!(incoming.take(b"\n").is_err());
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
    }

    #[test]
    fn any_byte_change_decodes_or_is_refused(
        which in 0..REQUESTS.len(), at: prop::sample::Index, byte: u8,
    ) {
        let mut line = REQUESTS[which].encode().unwrap();
        let at = at.index(line.len());
        line[at] = byte;
        let _ = Request::decode(&line);
    }

    #[test]
    fn line_reader_ignores_chunking(
        text in "[a\n]{0,60}", sizes in prop::collection::vec(1usize..9, 60),
    ) {
        let mut incoming = Incoming::new(64);
        let (mut left, mut lines) = (text.as_bytes(), Vec::new());
        for size in sizes {
            let (now, later) = left.split_at(size.min(left.len()));
            incoming.take(now).unwrap();
            while let Some(line) = incoming.line() {
                lines.push(line);
            }
            left = later;
        }
        lines.extend(incoming.rest());
        let expected: Vec<_> = text.as_bytes().split_inclusive(|&b| b == b'\n').collect();
        prop_assert_eq!(lines, expected);
    }
}
