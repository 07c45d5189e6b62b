//! Unit tests of `record.rs`.

use super::*;

const STEP: Duration = Duration::from_millis(100);

fn at(ms: u64) -> Tick {
    Tick::from_millis(ms)
}

/// Returns a recorder that counts from 1000 to 1250 ms.
fn opened() -> Recorder {
    let mut recorder = Recorder::new();
    recorder.open(at(1000), at(1250), STEP);
    recorder
}

fn answer(recorder: &mut Recorder, from: u64, now: u64) {
    recorder.received(10, at(now));
    recorder.answer(at(from), at(now));
}

#[test]
fn record_counts_everything_within_window_only() {
    let mut recorder = opened();
    recorder.opened(at(500));
    for (from, now) in [
        (990, 999),
        (995, 1000),
        (1001, 1099),
        (1100, 1249),
        (1240, 1260),
    ] {
        answer(&mut recorder, from, now);
    }
    let record = recorder.finish(STEP);
    let messages: Vec<u64> = record.pieces.iter().map(|piece| piece.messages).collect();
    assert_eq!(messages, [2, 0, 1]);
    let bytes: u64 = record.pieces.iter().map(|piece| piece.bytes).sum();
    assert_eq!(bytes, 30);
    // The late answer still counts, with its full latency.
    assert_eq!(histogram::unpack(&record.answers).unwrap().len(), 4);
    assert_eq!(record.connections, 0, "opened during the warm-up");
}

#[test]
fn initial_connections_count() {
    let mut recorder = Recorder::new();
    recorder.opened(at(5));
    assert_eq!(recorder.finish(STEP).connections, 1);
}

#[test]
fn stall_shows_in_every_piece_it_spans() {
    let mut recorder = opened();
    recorder.roll(at(1245));
    recorder.waited(at(1110), at(1245));
    let record = recorder.finish(STEP);
    let stalls: Vec<u64> = record
        .pieces
        .iter()
        .map(|p| p.stall_ns / 1_000_000)
        .collect();
    assert_eq!(stalls, [0, 135, 135]);
    assert_eq!(record.longest_stall_ns, 135_000_000);
}

#[test]
fn unsent_message_is_no_answer() {
    let mut recorder = opened();
    answer(&mut recorder, 1000, 1003);
    for due in [900, 1050, 1249, 1250] {
        recorder.unsent(at(due), STEP, 1);
    }
    let record = recorder.finish(STEP);
    let answers = histogram::unpack(&record.answers).unwrap();
    assert_eq!((answers.len(), answers.max() / 1_000_000), (1, 3));
    let waits = histogram::unpack(&record.waits).unwrap();
    assert_eq!((record.planned, record.unsent, waits.len()), (2, 2, 2));
    assert_eq!(waits.max() / 1_000_000, 200);
}

#[test]
fn two_million_unsent_messages_are_counted_quickly() {
    let mut recorder = opened();
    // One per 100 ns for 250 ms, and the same number before the beginning.
    let gap = Duration::from_nanos(100);
    recorder.unsent(at(750), gap, u64::MAX);
    let record = recorder.finish(STEP);
    assert_eq!(record.unsent, 2_500_000);
    let waits = histogram::unpack(&record.waits).unwrap();
    assert_eq!(waits.len(), 2_500_000);
    let median_ms = waits.value_at_quantile(0.5) as f64 / 1e6;
    assert!((median_ms - 125.0).abs() < 1.0, "{median_ms}");
    let mut recorder = opened();
    recorder.unsent(at(1000), STEP, 2);
    assert_eq!(recorder.finish(STEP).unsent, 2, "no more than there were");
}

#[test]
fn lateness_differs_from_busy_connection() {
    let mut recorder = opened();
    recorder.planned(at(1000), true, at(1010));
    recorder.planned(at(1000), false, at(1010));
    recorder.planned(at(1010), true, at(1010));
    let record = recorder.finish(STEP);
    assert_eq!((record.planned, record.late), (3, 1));
}

#[test]
fn catching_up_after_stall_is_not_lateness() {
    let mut recorder = opened();
    recorder.planned(at(1010), false, at(1200));
    recorder.planned(at(1195), true, at(1201));
    assert_eq!(recorder.record.late, 0);
    recorder.planned(at(1201), true, at(1203));
    assert_eq!(recorder.record.late, 1);
}

#[test]
fn early_end_shortens_last_piece() {
    let mut recorder = opened();
    answer(&mut recorder, 1000, 1120);
    recorder.cut(at(1130));
    recorder.roll(at(2000));
    let record = recorder.finish(STEP);
    assert_eq!(record.pieces.len(), 2);
    assert_eq!(record.pieces[1].messages, 1);
}

#[test]
fn failures_count_outside_window() {
    let mut recorder = Recorder::new();
    let fault = Fault::Ended {
        position: 7,
        owed: 1,
    };
    for _ in 0..30 {
        recorder.failed(4, &fault, at(3));
    }
    let record = recorder.finish(STEP);
    assert_eq!(
        (record.failed(), record.first.len()),
        (30, FIRST_FAILURES_MAX)
    );
    assert_eq!(record.first[0].position, Some(7));
}
