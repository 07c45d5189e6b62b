//! Unit tests of `transit.rs`.

use proptest::prelude::*;

use super::*;
use crate::memory::{Unprobed, create};
use uppercased_ctl::clock::Tick;

const LAYOUT: Layout = Layout {
    descriptors: 32,
    buffers: 2,
    buffer_bytes: 100,
};

fn memory() -> Memory<Unprobed> {
    let mut memory = Memory::adopt(create(LAYOUT).unwrap(), LAYOUT).unwrap();
    for fd in 3..10 {
        let peer = ([192, 0, 2, 1], 80).into();
        memory.open(fd, fd + 100, peer, Tick::ZERO, State::Open);
    }
    memory
}

const DEPARTURE: Departure = Departure {
    link: 20,
    last: true,
    part: false,
};

#[test]
fn records_name_batches_in_flight() {
    let mut memory = memory();
    memory.begin_departure(DEPARTURE);
    assert_eq!(memory.departure(), Some(DEPARTURE));
    // More batches than the bits of a record can number.
    for first in [0, (1 << 24) - 1, u32::MAX - 7] {
        memory.begin_resolving(first, 9);
        let places = [(1, 0, 7), (1, 1, 3), (3, 199, 5)];
        for (ahead, place, fd) in places {
            memory.record_mut(fd).begin_handover(first + ahead, place);
        }
        let batches = [
            (first + 1, vec![(0, 7), (1, 3)]),
            (first + 3, vec![(199, 5)]),
        ];
        let batches = batches.map(|(sequence, connections)| Batch {
            sequence,
            connections,
        });
        assert_eq!(memory.batches(), batches);
        assert_eq!(memory.misplaced(), []);
        assert_eq!(memory.resolved(), (first, 9));
        memory.record_mut(3).end_handover();
        memory.record_mut(7).take_back(200);
        assert_eq!(memory.batches(), batches[1..]);
        for fd in [3, 5] {
            memory.record_mut(fd).end_close();
            let peer = ([192, 0, 2, 1], 80).into();
            memory.open(fd, 1, peer, Tick::ZERO, State::Open);
        }
    }
}

#[test]
fn impossible_places_are_found() {
    let mut memory = memory();
    memory.begin_departure(DEPARTURE);
    memory.begin_resolving(5, 0);
    let window = HANDOVER_WINDOW as u32;
    for (fd, sequence, place) in [
        (3, 4, 0),
        (4, 6 + window, 0),
        (5, 6, 1),
        (6, 6, 1),
        (7, 6, 0),
    ] {
        memory.record_mut(fd).begin_handover(sequence, place);
    }
    let misplaced: Vec<u32> = memory.misplaced().into_iter().map(|(fd, _)| fd).collect();
    assert_eq!(misplaced, [3, 4, 5, 6]);
    memory.end_departure(None);
    assert_eq!(memory.misplaced().len(), 5);
}

#[test]
fn result_is_kept_until_reported() {
    let mut memory = memory();
    memory.begin_departure(DEPARTURE);
    memory.begin_resolving(1, 70_000);
    let result = Departed {
        end: 3,
        moved: 70_000,
        left: u32::MAX,
        part: true,
    };
    memory.end_departure(Some(result));
    assert_eq!(
        (memory.departure(), memory.departed()),
        (None, Some(result))
    );
    memory.end_report();
    assert_eq!(memory.departed(), None);
    memory.end_departure(None);
    assert_eq!(memory.departed(), None);
}

#[test]
fn latest_answers_are_kept() {
    let mut memory = memory();
    assert_eq!(memory.arrival(), None);
    memory.begin_arrival(21, 500);
    let answer = |sequence: u32| StoredAnswer {
        sequence,
        taken: sequence * 10,
        left: vec![0, 63, 64, 199],
    };
    for sequence in 1..=20 {
        let answered = Answered {
            last_sequence: sequence,
            adopted: sequence * 3,
            is_refusing: sequence == 20,
        };
        memory.begin_adoption(sequence);
        assert!(!memory.owns_arriving());
        memory.store_answer(answered, Some(&answer(sequence)));
        assert!(memory.owns_arriving());
        let first = sequence.saturating_sub(HANDOVER_WINDOW as u32) + 1;
        let arrival = Arrival {
            link: 21,
            coming: 500,
            answered,
            answers: (first..=sequence).map(answer).collect(),
        };
        assert_eq!(memory.arrival(), Some(arrival));
    }
    memory.end_arrival();
    assert!(memory.arrival().is_none() && !memory.owns_arriving());
    memory.begin_arrival(22, 0);
    assert_eq!(memory.arrival().unwrap().answers, []);
}

#[test]
fn marks_of_both_sources_are_apart() {
    let mut memory = memory();
    for source in [Source::Channel, Source::Link] {
        assert!(!memory.has_unnamed());
        memory.set_unnamed(source, true);
        assert!(memory.has_unnamed());
        memory.set_unnamed(source, false);
    }
    assert!(!memory.has_unnamed());
}

proptest! {
    #[test]
    fn any_words_are_read(words: [u64; 8], lines in prop::collection::vec(any::<[u64; 5]>(), 6)) {
        let mut memory = memory();
        for (word, value) in words.into_iter().enumerate() {
            memory.store(Layout::HANDOVER, word, value);
        }
        for (slot, line) in lines.into_iter().enumerate() {
            for (word, value) in line.into_iter().enumerate() {
                memory.store(Layout::answer(slot), word, value);
            }
        }
        for fd in 3..10 {
            memory.record_mut(fd).begin_handover(words[0] as u32, fd as u8);
        }
        prop_assert!(memory.batches().len() <= 1);
        prop_assert!(memory.misplaced().len() <= 7);
        let _ = (memory.departed(), memory.owns_arriving());
        if let Some(arrival) = memory.arrival() {
            prop_assert!(arrival.answers.iter().all(|answer| answer.left.is_sorted()));
        }
    }
}
