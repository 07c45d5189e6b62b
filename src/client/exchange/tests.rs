//! Unit tests of `exchange.rs`.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Takes as much of `input` as fits in one piece, at most `limit`.
fn feed(exchange: &mut Exchange, input: &[u8], limit: usize) -> usize {
    let room = exchange.room();
    let len = room.len().min(input.len()).min(limit);
    room[..len].copy_from_slice(&input[..len]);
    exchange.take(len);
    len
}

fn ask(window: usize, text: &[u8]) -> Exchange {
    let mut exchange = Exchange::new(window);
    assert_eq!(feed(&mut exchange, text, usize::MAX), text.len());
    exchange.mark_sent(text.len());
    exchange
}

#[test]
fn complete_exchange_succeeds() {
    let mut exchange = ask(16, b"hi\n");
    exchange.end_input();
    assert!(exchange.is_all_sent());
    assert_eq!(exchange.check_reply(b"HI\n"), Ok(()));
    assert_eq!(exchange.end_replies(), Ok(()));
}

#[test]
fn empty_exchange_succeeds() {
    let mut exchange = Exchange::new(16);
    exchange.end_input();
    assert_eq!(exchange.end_replies(), Ok(()));
}

#[test]
fn plain_echo_is_wrong() {
    let fault = Fault::WrongByte {
        offset: 1,
        expected: b'I',
        actual: b'i',
    };
    assert_eq!(ask(16, b"Hi").check_reply(b"Hi"), Err(fault));
}

#[test]
fn reply_before_request_is_extra() {
    let mut exchange = Exchange::new(16);
    feed(&mut exchange, b"hi", 2);
    // Read but not sent: the server cannot have received it, so this does not answer it.
    let fault = exchange.check_reply(b"HI").unwrap_err();
    assert_eq!(fault, Fault::Extra { sent: 0, extra: 2 });
}

#[test]
fn early_end_reports_missing_bytes() {
    let mut exchange = ask(16, b"hello");
    exchange.check_reply(b"HE").unwrap();
    exchange.end_input();
    let fault = exchange.end_replies().unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the server closed the connection; 3 of 5 bytes were not answered; see the server's log"
    );
}

#[test]
fn end_before_end_of_input_is_early() {
    let mut exchange = ask(16, b"hi");
    exchange.check_reply(b"HI").unwrap();
    let fault = Fault::EndedEarly {
        answered: 2,
        missing: 0,
    };
    assert_eq!(exchange.end_replies(), Err(fault));
}

#[test]
fn full_window_pauses_input() {
    let mut exchange = ask(4, b"abcd");
    assert!(!exchange.wants_input());
    assert!(exchange.room().is_empty());
    exchange.check_reply(b"ABCD").unwrap();
    assert!(exchange.wants_input());
    assert_eq!(exchange.room().len(), 4);
}

/// Returns schedules; a step is the numbers of bytes read, sent and answered.
fn steps() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    vec((0..40_usize, 0..40_usize, 0..40_usize), 1..60)
}

/// Runs `input` through an exchange by the schedule, repeated until done, against a server that
/// answers `answer(position, byte)`.
fn converse(
    window: usize,
    input: &[u8],
    schedule: &[(usize, usize, usize)],
    answer: impl Fn(usize, u8) -> u8,
) -> Result<(), Fault> {
    let mut exchange = Exchange::new(window);
    let (mut read, mut wire, mut replied) = (0, Vec::new(), 0);
    let mut turn = 0;
    loop {
        // Every pass through the schedule moves at least one byte, so it ends.
        let (take, send, reply) = schedule[turn % schedule.len()];
        turn += 1;
        if !exchange.has_input_ended() {
            read += feed(&mut exchange, &input[read..], take + 1);
            if read == input.len() {
                exchange.end_input();
            }
        }
        let len = exchange.unsent().len().min(send + 1);
        wire.extend_from_slice(&exchange.unsent()[..len]);
        exchange.mark_sent(len);
        assert_eq!(wire, input[..wire.len()], "sent as it was read, in order");
        let end = wire.len().min(replied + reply + 1);
        let piece: Vec<u8> = (replied..end).map(|at| answer(at, wire[at])).collect();
        exchange.check_reply(&piece)?;
        replied = end;
        assert!(exchange.missing() <= window as u64, "the window bounds it");
        assert_eq!(exchange.answered(), replied as u64);
        if exchange.is_all_sent() && replied == input.len() {
            return exchange.end_replies();
        }
    }
}

proptest! {
    #[test]
    fn correct_reply_is_accepted_in_any_chunks(
        input in vec(any::<u8>(), 0..400),
        window in 1..100_usize,
        schedule in steps(),
    ) {
        let result = converse(window, &input, &schedule, |_, byte| byte.to_ascii_uppercase());
        prop_assert_eq!(result, Ok(()));
    }

    #[test]
    fn wrong_byte_is_found_at_any_position(
        input in vec(any::<u8>(), 1..400),
        place in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
        window in 1..100_usize,
        schedule in steps(),
    ) {
        let wrong = place.index(input.len());
        let result = converse(window, &input, &schedule, |at, byte| {
            byte.to_ascii_uppercase() ^ if at == wrong { flip } else { 0 }
        });
        let expected = input[wrong].to_ascii_uppercase();
        prop_assert_eq!(result, Err(Fault::WrongByte {
            offset: wrong as u64,
            expected,
            actual: expected ^ flip,
        }));
    }

    #[test]
    fn missing_and_surplus_bytes_are_counted(
        input in vec(any::<u8>(), 1..100),
        answered in any::<prop::sample::Index>(),
        surplus in vec(any::<u8>(), 1..100),
    ) {
        let mut right = input.clone();
        right.make_ascii_uppercase();
        let cut = answered.index(input.len());
        let mut exchange = ask(100, &input);
        exchange.end_input();
        exchange.check_reply(&right[..cut]).unwrap();
        prop_assert_eq!(exchange.end_replies(), Err(Fault::EndedEarly {
            answered: cut as u64,
            missing: (input.len() - cut) as u64,
        }));

        right.extend_from_slice(&surplus);
        prop_assert_eq!(exchange.check_reply(&right[cut..]), Err(Fault::Extra {
            sent: input.len() as u64,
            extra: surplus.len() as u64,
        }));
    }
}
