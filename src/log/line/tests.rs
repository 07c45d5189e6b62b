//! Unit tests of `line.rs`.

use super::*;
use proptest::prelude::*;

const HUMAN: Style = Style::Human { colour: false };

fn line(style: Style, fields: Vec<(&'static str, Value)>) -> String {
    Line {
        at: SystemTime::UNIX_EPOCH,
        level: Level::INFO,
        target: "here",
        fields: &Fields(fields),
        is_for_journal: false,
    }
    .render(style)
}

#[test]
fn values_are_quoted_when_necessary() {
    let text = line(
        HUMAN,
        vec![
            (MESSAGE, Value::text("it \"is\"\n")),
            ("a", Value::text("plain")),
            ("b", Value::text("")),
            ("c", Value::text("x=\"1\\\"\t")),
            ("d", Value::Plain("-7".to_owned())),
        ],
    );
    assert_eq!(
        text,
        "1970-01-01T00:00:00.000Z INFO it \"is\"\\n a=plain b=\"\" c=\"x=\\\"1\\\\\\\"\\t\" d=-7\n"
    );
}

#[test]
fn message_bytes_are_escaped_once() {
    let bytes = || Value::Bytes(b"a\n\\\"\xff".to_vec(), 7);
    let text = line(HUMAN, vec![("bytes", bytes())]);
    assert!(
        text.ends_with("bytes=\"a\\n\\\\\\\"\\xff…(+7 bytes)\"\n"),
        "{text}"
    );
    let text = line(Style::Json, vec![("bytes", bytes())]);
    assert!(
        text.contains("\"bytes\":\"a\\n\\\\\\\"\u{ff}…(+7 bytes)\""),
        "{text}"
    );
}

#[test]
fn open_telemetry_layout_separates_attributes() {
    let fields = vec![
        (MESSAGE, Value::text("worker ready")),
        ("event", Value::text("worker_ready")),
        ("slot", Value::Plain("3".to_owned())),
        ("severity_text", Value::text("FAKE")),
    ];
    let text = line(Style::OpenTelemetry, fields);
    assert_eq!(
        text,
        "{\"timestamp\":\"1970-01-01T00:00:00.000Z\",\"severity_text\":\"INFO\",\
         \"severity_number\":9,\"instrumentation_scope\":{\"name\":\"here\"},\
         \"body\":\"worker ready\",\"event_name\":\"worker_ready\",\
         \"attributes\":{\"slot\":3,\"severity_text\":\"FAKE\"}}\n"
    );
}

#[test]
fn journal_line_begins_with_priority() {
    for (level, priority) in [
        (Level::ERROR, "<3>"),
        (Level::WARN, "<4>"),
        (Level::INFO, "<6>"),
        (Level::DEBUG, "<7>"),
        (Level::TRACE, "<7>"),
    ] {
        for style in [HUMAN, Style::Json, Style::OpenTelemetry] {
            let long = Value::Text("x".repeat(LOG_LINE_MAX_BYTES), 0);
            let line = Line {
                at: SystemTime::UNIX_EPOCH,
                level,
                target: "here",
                fields: &Fields(vec![(MESSAGE, long)]),
                is_for_journal: true,
            };
            let text = line.render(style);
            assert!(text.starts_with(priority), "{text}");
            assert!(text.len() <= LOG_LINE_MAX_BYTES, "{text}");
        }
    }
}

#[test]
fn only_level_is_coloured() {
    let text = line(
        Style::Human { colour: true },
        vec![("a", Value::text("\x1b[31m"))],
    );
    assert!(
        text.contains(" \x1b[32mINFO\x1b[0m a=\"\\u{1b}[31m\"\n"),
        "{text}"
    );
}

#[test]
fn field_cannot_forge_line_members() {
    let text = line(Style::Json, vec![("level", Value::text("FAKE"))]);
    assert!(!text.contains("FAKE"), "{text}");
}

#[test]
fn long_lines_are_cut_and_marked() {
    let long = "é".repeat(LOG_LINE_MAX_BYTES);
    let text = line(HUMAN, vec![(MESSAGE, Value::text(&long))]);
    assert!(text.len() <= LOG_LINE_MAX_BYTES);
    assert!(text.len() > LOG_LINE_MAX_BYTES - 2 * CUT_MARK_MAX);
    assert!(text.ends_with(" bytes)\n"), "{text}");

    let fields = vec![
        (MESSAGE, Value::text("short")),
        ("long", Value::Text("\"".repeat(LOG_LINE_MAX_BYTES), 10)),
        ("late", Value::Plain("1".to_owned())),
    ];
    let text = line(Style::Json, fields);
    assert!(text.len() <= LOG_LINE_MAX_BYTES);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["message"], "short");
    assert_eq!(json["truncated"], true);
    assert!(json["long"].as_str().unwrap().ends_with(" bytes)"));
}

#[test]
fn huge_value_is_truncated() {
    let mut bounded = Bounded::default();
    for _ in 0..1000 {
        bounded.write_str("0123456789é").unwrap();
    }
    assert!(bounded.text.len() <= LOG_LINE_MAX_BYTES);
    assert_eq!(bounded.text.len() + bounded.cut, 12_000);
}

prop_compose! {
    fn any_value()(
        text in prop_oneof![".{0,60}", "[\"\\\\\n\\x00-\\x1f]{0,3000}", "\\PC{0,2000}"],
        plain: Option<i64>,
        cut in 0..3_usize,
    ) -> Value {
        plain.map_or(Value::Text(text, cut), |number| Value::Plain(number.to_string()))
    }
}

proptest! {
    #[test]
    fn every_event_is_one_bounded_line(
        message in any_value(), a in any_value(), b in any_value(), c in any_value(),
    ) {
        let fields = vec![(MESSAGE, message), ("a", a), ("b", b), ("c", c)];
        let human = line(HUMAN, fields.clone());
        let json = line(Style::Json, fields.clone());
        let telemetry = line(Style::OpenTelemetry, fields);
        for text in [&human, &json, &telemetry] {
            prop_assert!(text.len() <= LOG_LINE_MAX_BYTES);
            prop_assert!(text.ends_with('\n'));
            prop_assert!(!text[..text.len() - 1].contains(char::is_control));
        }
        for json in [json, telemetry] {
            let read = serde_json::from_str::<serde_json::Value>(&json);
            prop_assert!(read.is_ok(), "{}", json);
        }
    }

    #[test]
    fn json_text_reads_back(text in any::<String>()) {
        prop_assume!(text.len() < 500);
        let json = line(Style::Json, vec![("a", Value::text(&text))]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(json["a"].as_str(), Some(text.as_str()));
    }
}
