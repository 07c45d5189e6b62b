//! Unit tests of `notify.rs`.

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn serving(operation: Option<OperationKind>) -> View {
    let life = Life::Serving;
    View { life, operation }
}

fn starting() -> View {
    let life = Life::Starting;
    View {
        life,
        operation: None,
    }
}

fn at(ms: u64) -> Tick {
    Tick::from_millis(ms)
}

/// Observes a healthy supervisor without a failure.
fn observe(notifier: &mut Notifier, view: View, now: Tick) {
    notifier.observe(view, String::new, || None, now);
}

/// Returns all messages, without the timeouts.
fn messages(notifier: &mut Notifier, now: Tick) -> Vec<Message> {
    let mut messages = all_messages(notifier, now);
    messages.retain(|it| !matches!(it, Message::Extend { .. }));
    messages
}

fn all_messages(notifier: &mut Notifier, now: Tick) -> Vec<Message> {
    std::iter::from_fn(|| notifier.poll_message(now)).collect()
}

#[test]
fn ready_is_sent_once_when_all_serve() {
    let mut notifier = Notifier::new(None);
    observe(&mut notifier, starting(), at(1));
    assert_eq!(messages(&mut notifier, at(1)), []);
    observe(&mut notifier, serving(None), at(2));
    observe(&mut notifier, serving(None), at(3));
    assert_eq!(messages(&mut notifier, at(3)), [Message::Ready]);
}

#[test]
fn reload_is_notified_and_scaling_is_not() {
    let mut notifier = Notifier::new(None);
    observe(&mut notifier, serving(None), at(1));
    messages(&mut notifier, at(1));
    observe(
        &mut notifier,
        serving(Some(OperationKind::Scale { to: 2 })),
        at(2),
    );
    assert_eq!(messages(&mut notifier, at(2)), []);
    observe(&mut notifier, serving(Some(OperationKind::Reload)), at(3));
    observe(&mut notifier, serving(Some(OperationKind::Reload)), at(4));
    assert_eq!(
        messages(&mut notifier, at(4)),
        [Message::Reloading { at: at(3) }]
    );
    observe(&mut notifier, serving(None), at(5));
    assert_eq!(messages(&mut notifier, at(5)), [Message::Ready]);
}

#[test]
fn refused_reload_is_confirmed() {
    let mut notifier = Notifier::new(None);
    observe(&mut notifier, serving(None), at(1));
    messages(&mut notifier, at(1));
    notifier.note_reload_request();
    observe(&mut notifier, serving(None), at(2));
    let both = [Message::Reloading { at: at(2) }, Message::Ready];
    assert_eq!(messages(&mut notifier, at(2)), both);
    // Another operation is in progress, and is no reason to wait.
    notifier.note_reload_request();
    observe(
        &mut notifier,
        serving(Some(OperationKind::Scale { to: 2 })),
        at(3),
    );
    let both = [Message::Reloading { at: at(3) }, Message::Ready];
    assert_eq!(messages(&mut notifier, at(3)), both);
}

#[test]
fn barrier_follows_messages_it_confirms() {
    let mut notifier = Notifier::new(None);
    let (one, other) = (SlotId(1), SlotId(2));
    notifier.remove(one);
    notifier.barrier();
    notifier.remove(other);
    notifier.barrier();
    let all = [
        Message::Remove(one),
        Message::Remove(other),
        Message::Barrier,
    ];
    assert_eq!(messages(&mut notifier, at(1)), all);
}

#[test]
fn new_program_completes_notifications_after_exec() {
    let mut notifier = Notifier::resumed(None);
    observe(&mut notifier, serving(Some(OperationKind::Reload)), at(1));
    assert_eq!(messages(&mut notifier, at(1)), []);
    observe(&mut notifier, serving(None), at(2));
    assert_eq!(messages(&mut notifier, at(2)), [Message::Ready]);
}

#[test]
fn long_start_or_reload_extends_timeout() {
    let within = NOTIFY_EXTENSION;
    let longer = Message::Extend { within };
    assert_eq!(longer.text(), "EXTEND_TIMEOUT_USEC=15000000");
    assert!(NOTIFY_STATUS_BUSY * 3 < within, "some may come late");
    let reloading = serving(Some(OperationKind::Reload));
    let asked = |notifier: &mut Notifier, view, now| {
        observe(notifier, view, now);
        all_messages(notifier, now).contains(&longer)
    };
    let mut notifier = Notifier::new(None);
    let second = |number: u64| at(1000 * number);
    assert!(asked(&mut notifier, starting(), second(0)));
    assert_eq!(notifier.deadline(), Some(second(1)));
    assert!(asked(&mut notifier, starting(), second(1)));
    assert!(!asked(&mut notifier, serving(None), second(2)));
    let scaling = serving(Some(OperationKind::Scale { to: 2 }));
    assert!(!asked(&mut notifier, scaling, second(7)), "nobody waits");
    assert!(asked(&mut notifier, reloading, second(8)));
    assert!(asked(&mut notifier, reloading, second(9)));
    assert!(!asked(&mut notifier, serving(None), second(10)));
    // A message not sent before the stop is not sent after it.
    observe(&mut notifier, reloading, second(11));
    observe(&mut notifier, serving(None), second(12));
    let both = [Message::Reloading { at: second(11) }, Message::Ready];
    assert_eq!(all_messages(&mut notifier, second(12)), both);
    let mut resumed = Notifier::resumed(None);
    assert!(asked(&mut resumed, reloading, second(0)));
}

#[test]
fn status_line_is_bounded() {
    let line = "ß".repeat(5000);
    assert!(Message::Status(line).text().len() < 4096);
}

#[test]
fn stop_announces_its_duration_last() {
    let mut notifier = Notifier::new(None);
    observe(&mut notifier, serving(Some(OperationKind::Reload)), at(1));
    let life = Life::Stopping {
        until: Some(at(32_001)),
    };
    let stopping = View {
        life,
        operation: None,
    };
    observe(&mut notifier, stopping, at(1));
    let within = Duration::from_secs(32) + NOTIFY_STOP_MARGIN;
    assert_eq!(
        messages(&mut notifier, at(1)),
        [Message::Stopping { within }]
    );
    notifier.note_reload_request();
    observe(&mut notifier, stopping, at(3));
    assert_eq!(messages(&mut notifier, at(3)), []);
}

#[test]
fn status_line_is_sent_when_changed() {
    let mut notifier = Notifier::new(None);
    let line = |notifier: &mut Notifier, text: &str, now| {
        notifier.observe(serving(None), || text.to_owned(), || None, now);
        messages(notifier, now)
    };
    let status = |text: &str| Message::Status(text.to_owned());
    let first = [Message::Ready, status("one")];
    assert_eq!(line(&mut notifier, "one", at(0)), first);
    assert_eq!(line(&mut notifier, "two", at(1)), []);
    let due = at(0) + NOTIFY_STATUS_IDLE;
    assert_eq!(notifier.deadline(), Some(due));
    assert_eq!(line(&mut notifier, "two", due), [status("two")]);
    let due = due + NOTIFY_STATUS_IDLE;
    assert_eq!(line(&mut notifier, "two", due), []);
    assert_eq!(status("a\nREADY=1").text(), "STATUS=a READY=1");
}

#[test]
fn watchdog_is_fed_twice_and_upon_recovery() {
    let mut notifier = Notifier::new(Some(LIMIT));
    let mut feed = |wrong: Option<Unserved>, now| {
        let change = notifier.observe(serving(None), String::new, || wrong, now);
        let fed = messages(&mut notifier, now).contains(&Message::Watchdog);
        (fed, change, notifier.deadline())
    };
    // The status line keeps it awake, too.
    assert_eq!(feed(None, at(0)), (true, None, Some(at(5000))));
    assert_eq!(feed(None, at(4999)), (false, None, Some(at(5000))));
    assert!(feed(None, at(5000)).0);
    let unserved = Unserved {
        slot: SlotId(1),
        state: "backing off",
    };
    let (fed, change, due) = feed(Some(unserved), at(10_000));
    assert_eq!((fed, change), (false, Some(Change::Withheld(unserved))));
    assert_eq!(due, Some(at(15_000)), "nothing is due that cannot be done");
    assert_eq!(feed(Some(unserved), at(11_000)), (false, None, due));
    let (fed, change, _) = feed(None, at(11_001));
    assert_eq!((fed, change), (true, Some(Change::Fed)));
}

#[test]
fn unsent_message_is_retried() {
    let mut notifier = Notifier::new(None);
    notifier.store(SlotId(0));
    notifier.store(SlotId(1));
    observe(&mut notifier, starting(), at(0));
    let first = notifier.poll_message(at(0)).unwrap();
    notifier.refused(first, at(0));
    assert_eq!(notifier.poll_message(at(1)), None);
    let due = at(0) + NOTIFY_RETRY;
    assert_eq!(notifier.deadline(), Some(due));
    let both = [Message::Store(SlotId(0)), Message::Store(SlotId(1))];
    assert_eq!(messages(&mut notifier, due), both);
}

#[test]
fn removal_precedes_replacement() {
    let mut notifier = Notifier::new(None);
    let slot = SlotId(7);
    notifier.store(slot);
    notifier.remove(slot);
    notifier.store(slot);
    let both = [Message::Remove(slot), Message::Store(slot)];
    assert_eq!(messages(&mut notifier, at(0)), both);
    assert_eq!(both[0].text(), "FDSTOREREMOVE=1\nFDNAME=slot-7");
    assert_eq!(both[1].text(), "FDSTORE=1\nFDNAME=slot-7\nFDPOLL=0");
    assert_eq!(stored_slot("slot-7"), Some(slot));
    for other in ["slot-", "slot-x", "slot-70000", "uppercased.socket", ""] {
        assert_eq!(stored_slot(other), None, "{other}");
    }
}

#[test]
fn reload_message_has_monotonic_microseconds() {
    let text = Message::Reloading { at: at(12) }.text();
    assert_eq!(text, "RELOADING=1\nMONOTONIC_USEC=12000");
}

/// Events of a serving supervisor.
#[derive(Clone, Copy, Debug)]
enum Step {
    Show(Option<OperationKind>),
    Ask,
    Store(u16),
    Remove(u16),
    Read,
    Refuse,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Show(None)),
        Just(Step::Show(Some(OperationKind::Reload))),
        Just(Step::Show(Some(OperationKind::Scale { to: 2 }))),
        Just(Step::Ask),
        (0..3_u16).prop_map(Step::Store),
        (0..3_u16).prop_map(Step::Remove),
        Just(Step::Read),
        Just(Step::Refuse),
    ]
}

proptest! {
    /// However slowly the service manager reads, the outbox is bounded, the final state is correct,
    /// and every reload is confirmed.
    #[test]
    fn believed_state_converges_to_actual_state(steps in prop::collection::vec(step(), 0..60)) {
        let mut notifier = Notifier::new(Some(LIMIT));
        let mut kept = [false; 3];
        let mut believed_kept = [false; 3];
        let mut last = None;
        let mut read = |message: Message, kept: &mut [bool; 3]| match message {
            Message::Store(slot) => kept[slot.index()] = true,
            Message::Remove(slot) => kept[slot.index()] = false,
            Message::Ready | Message::Reloading { .. } => last = Some(message),
            _ => {}
        };
        for (step, now) in steps.into_iter().zip(1..) {
            // Each later than a pause after a refusal.
            let now = Tick::ZERO + NOTIFY_RETRY * now;
            match step {
                Step::Show(operation) => observe(&mut notifier, serving(operation), now),
                Step::Ask => notifier.note_reload_request(),
                Step::Store(slot) => {
                    notifier.store(SlotId(slot));
                    kept[usize::from(slot)] = true;
                }
                Step::Remove(slot) => {
                    notifier.remove(SlotId(slot));
                    kept[usize::from(slot)] = false;
                }
                Step::Read => if let Some(message) = notifier.poll_message(now) {
                    read(message, &mut believed_kept);
                },
                Step::Refuse => if let Some(message) = notifier.poll_message(now) {
                    notifier.refused(message, now);
                },
            }
            // Begin, duration, end, status line, watchdog; a removal and a deposit of each slot.
            prop_assert!(notifier.outbox.len() <= 5 + 2 * 3);
        }
        let end = Tick::ZERO + NOTIFY_RETRY * 1000;
        observe(&mut notifier, serving(None), end);
        for message in messages(&mut notifier, end) {
            read(message, &mut believed_kept);
        }
        prop_assert_eq!(believed_kept, kept);
        prop_assert_eq!(last, Some(Message::Ready));
    }
}
