//! Unit tests of `agent.rs`.

use super::*;
use uppercased_ctl::limits::UNSERVED_GRACE;
use uppercased_ctl::status::SlotStatus;

/// Returns a status of two serving slots with this many of a hundred connections open, and this
/// much busy time so far.
fn status(open: u64, busy_ms: u64) -> Status {
    let slot = SlotStatus {
        queue: "served".to_owned(),
        ..SlotStatus::default()
    };
    let mut status = Status {
        phase: "serving".to_owned(),
        capacity: 100,
        slots: vec![slot.clone(), slot],
        ..Status::default()
    };
    status.totals.traffic.open = open;
    let counters = &mut status.totals.traffic.counters;
    counters.insert(Counter::BusyNs.key(), busy_ms * 1_000_000);
    status
}

fn at(ms: u64) -> Tick {
    Tick::from_millis(ms)
}

fn answer(agent: &mut Agent, status: &Status, ms: u64) -> String {
    let line = agent.answer(Some(status), at(ms)).to_string();
    let words = line.strip_suffix('\n').unwrap();
    assert!(!words.contains(['\r', '\n']), "one line: {line:?}");
    words.to_owned()
}

#[test]
fn weight_is_free_capacity_and_never_zero() {
    let once = |open| answer(&mut Agent::default(), &status(open, 0), 0);
    assert_eq!(once(0), "ready up 100%");
    assert_eq!(once(25), "ready up 75%");
    assert_eq!(once(100), "ready up 1%");
    assert_eq!(once(1000), "ready up 1%");
    let unknown = Status {
        capacity: 0,
        ..status(50, 0)
    };
    assert_eq!(answer(&mut Agent::default(), &unknown, 0), "ready up 100%");
}

#[test]
fn busy_workers_gradually_lower_weight() {
    let mut agent = Agent::default();
    assert_eq!(answer(&mut agent, &status(0, 0), 0), "ready up 100%");
    // Both are busy half of the time.
    let mut weights = Vec::new();
    for second in 1..=60 {
        let line = answer(&mut agent, &status(0, 1000 * second), 1000 * second);
        let weight = line
            .strip_prefix("ready up ")
            .and_then(|it| it.strip_suffix('%'));
        weights.push(weight.and_then(|it| it.parse::<u8>().ok()).unwrap());
    }
    assert!(weights[0] > 90, "no leap: {weights:?}");
    assert!(
        weights.is_sorted_by(|earlier, later| earlier >= later),
        "{weights:?}"
    );
    assert_eq!(weights[59], 50);
    // After a long gap only the latest interval counts; a counter reset is not a load.
    assert_eq!(
        answer(&mut agent, &status(10, 0), 3_600_000),
        "ready up 90%"
    );
}

#[test]
fn drained_server_reports_it_and_returns_whole() {
    let mut agent = Agent::default();
    let mut status = status(0, 0);
    for (rotation, word) in [
        ("drain", "drain # "),
        ("maint", "maint # "),
        ("in", "ready up 100%"),
    ] {
        status.rotation = rotation.to_owned();
        assert!(
            answer(&mut agent, &status, 0).starts_with(word),
            "{rotation}"
        );
    }
    for (phase, word) in [
        ("booting", "down"),
        ("draining", "drain"),
        ("killing", "drain"),
        ("dancing", "drain"),
    ] {
        status.phase = phase.to_owned();
        assert!(answer(&mut agent, &status, 0).starts_with(word), "{phase}");
    }
}

#[test]
fn agent_reports_down_exactly_when_unready() {
    let mut agent = Agent::default();
    let mut status = status(0, 0);
    let limit = u64::try_from(UNSERVED_GRACE.as_millis()).unwrap();
    let mut ready = |queue: &str, unserved_ms, stalled_ms| {
        let slot = &mut status.slots[1];
        slot.queue = queue.to_owned();
        (slot.unserved_ms, slot.stalled_ms) = (unserved_ms, stalled_ms);
        let line = answer(&mut agent, &status, 0);
        assert_eq!(
            line.starts_with("down"),
            status.unready().is_some(),
            "{line}"
        );
        line.starts_with("ready up")
    };
    assert!(ready("unserved", limit - 1, None));
    assert!(!ready("unserved", limit, None));
    assert!(ready("lent", 0, None));
    assert!(!ready("served", 0, Some(12_000)));
    assert!(ready("served", 0, None));
}

#[test]
fn answers_are_counted_by_state() {
    let mut answers = AgentAnswers::default();
    let lines = [
        Line::Ready(1),
        Line::Drain(""),
        Line::Drain(""),
        Line::Maint(""),
        Line::Down(""),
    ];
    for line in lines {
        line.count(&mut answers);
        let text = line.to_string();
        let word = text.split([' ', '\n']).next().unwrap();
        assert!(answers.by_word().iter().any(|(known, _)| *known == word));
    }
    let counted = answers.by_word().map(|(_, count)| count);
    assert_eq!(counted, [1, 2, 1, 1]);
}

#[test]
fn silent_supervisor_changes_nothing() {
    let mut agent = Agent::default();
    assert!(matches!(agent.answer(None, at(0)), Line::Down(_)));
    assert_eq!(answer(&mut agent, &status(25, 0), 0), "ready up 75%");
    assert_eq!(agent.answer(None, at(1000)), Line::Ready(75));
}
