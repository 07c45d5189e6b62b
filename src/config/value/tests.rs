//! Unit tests of `value.rs`.

use super::*;
use proptest::prelude::*;

const FACTS: Facts<'static> = Facts {
    cpus: 3,
    ..Facts::NONE
};
const ANY_SIZE: Size = Size {
    least: 0,
    most: u32::MAX,
};
const ANY_SPAN: Span = Span {
    least: Duration::ZERO,
    most: Duration::MAX,
};

#[test]
fn sizes_are_plain_or_binary() {
    for (text, bytes) in [
        ("0", 0),
        ("65536", 65_536),
        ("65536B", 65_536),
        ("64k", 65_536),
        ("64K", 65_536),
        ("64KiB", 65_536),
        ("64 KiB", 65_536),
        ("1MiB", 1 << 20),
        ("1m", 1 << 20),
        ("1GiB", 1 << 30),
    ] {
        assert_eq!(ANY_SIZE.parse(text, &FACTS), Ok(bytes), "{text}");
    }
    // KB and kib are refused: KB may mean 1000 bytes, and kib is not a standard spelling.
    for text in [
        "",
        "k",
        "KiB",
        "64KB",
        "64kib",
        "6.4k",
        "-1",
        "+1",
        "1 2",
        "1k k",
        "0x10",
        "99999999999999999999999",
        "5GiB",
    ] {
        assert!(ANY_SIZE.parse(text, &FACTS).is_err(), "{text}");
    }
}

#[test]
fn durations_need_a_unit() {
    let why = ANY_SPAN.parse("30", &FACTS).unwrap_err();
    assert_eq!(why, "\"30\" is not a duration: it has no unit");
    let why = ANY_SPAN.parse("30x", &FACTS).unwrap_err();
    assert_eq!(
        why,
        "\"30x\" is not a duration: \"x\" is not a unit of time"
    );
    assert!(ANY_SPAN.parse("", &FACTS).is_err());
    assert!(ANY_SPAN.parse("-1s", &FACTS).is_err());
    assert!(
        ANY_SPAN
            .parse("99999999999999999999999y", &FACTS)
            .unwrap_err()
            .ends_with("too long")
    );
    assert_eq!(ANY_SPAN.parse("1m30s", &FACTS), Ok(Duration::from_secs(90)));
}

#[test]
fn counts_hold_their_bounds() {
    let grammar = Count::<u16> {
        least: 1,
        most: 1024,
    };
    assert_eq!(grammar.parse("1", &FACTS), Ok(1));
    assert_eq!(grammar.parse("1024", &FACTS), Ok(1024));
    assert_eq!(grammar.parse("0", &FACTS).unwrap_err(), "0 is too low");
    assert_eq!(grammar.parse("-7", &FACTS).unwrap_err(), "-7 is too low");
    for absurd in ["1025", "70000", "99999999999999999999999"] {
        assert!(
            grammar
                .parse(absurd, &FACTS)
                .unwrap_err()
                .ends_with("too high")
        );
    }
    for noise in ["", "-", "two", "1.5", "+1", "1e3", " 1", "٣"] {
        assert!(grammar.parse(noise, &FACTS).is_err(), "{noise}");
    }
}

#[test]
fn auto_workers_follow_cpus_within_bounds() {
    let grammar = PerCpu(Count { least: 1, most: 2 });
    assert_eq!(grammar.parse("auto", &FACTS), Ok(2));
    let none = Facts { cpus: 0, ..FACTS };
    assert_eq!(grammar.parse("auto", &none), Ok(1));
}

uppercased_ctl::words! {
    enum Letter {
        A = "a",
        B = "b",
        C = "c",
    }
}

#[test]
fn choice_reads_as_sentence() {
    let choice = Choice::<Letter>::new();
    assert_eq!(choice.accepts(), "a, b or c");
    assert_eq!(
        choice.parse("A", &FACTS).unwrap_err(),
        "\"A\" is not a valid choice"
    );
}

proptest! {
    #[test]
    fn every_size_reads_back(bytes: u32) {
        prop_assert_eq!(ANY_SIZE.parse(&ANY_SIZE.show(&bytes), &FACTS), Ok(bytes));
    }

    #[test]
    fn every_duration_reads_back(seconds in 0..u64::MAX / 2, nanos in 0..1_000_000_000_u32) {
        let span = Duration::new(seconds, nanos);
        prop_assert_eq!(ANY_SPAN.parse(&ANY_SPAN.show(&span), &FACTS), Ok(span));
    }

    #[test]
    fn value_parsers_never_panic(text in ".{0,40}") {
        let _ = ANY_SIZE.parse(&text, &FACTS);
        let _ = ANY_SPAN.parse(&text, &FACTS);
        let _ = OrWord("auto", Count { least: 1_u32, most: 9 }).parse(&text, &FACTS);
    }
}
