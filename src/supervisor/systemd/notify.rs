//! What the service manager (systemd) is told, and when: sd_notify(3) as a state machine.
//!
//! The shell shows it the supervisor as it is ([`View`]) after every turn; what has changed since
//! becomes messages. [`mod@crate::supervisor::systemd`] sends them.
//!
//! Invariants: a message that could not be sent is kept and tried again; what waits is bounded (of
//! each kind the latest, of each slot one removal and one deposit after it); a reload that was asked
//! for is confirmed however it ends, or whoever asked would wait until a timeout; no start and no
//! reload that goes on is too long; the watchdog is fed only while every queue is
//! served.
//!
//! It must not read a clock, or know a socket.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{
    NOTIFY_EXTENSION, NOTIFY_RETRY, NOTIFY_STATUS_BUSY, NOTIFY_STATUS_IDLE,
    NOTIFY_STATUS_MAX_CHARS, NOTIFY_STOP_MARGIN,
};
use crate::supervisor::machine::{Life, Planned, Queue, SlotView};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Every slot serves; or a reload has ended.
    Ready,
    /// A reload or an upgrade began.
    Reloading {
        /// When.
        at: Tick,
    },
    /// A stop began.
    Stopping {
        /// How long it takes at most.
        within: Duration,
    },
    /// A start or a reload goes on: it is to be waited for, so much longer at least.
    Extend {
        /// From now on.
        within: Duration,
    },
    /// One line for people.
    Status(String),
    /// A sign of life.
    Watchdog,
    /// Keep the slot's listeners; they go along.
    Store(SlotId),
    /// Let go of the slot's listeners.
    Remove(SlotId),
    /// Close what goes along when everything up to here has been done.
    Barrier,
}

/// The supervisor, as far as this matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Where it is in its life.
    pub(crate) life: Life,
    /// What is under way.
    pub(crate) planned: Option<Planned>,
}

/// What is to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The watchdog is not fed from now on.
    Withheld {
        /// Why.
        cause: String,
    },
    /// It is fed again.
    Fed,
}

/// What the service manager believes, if it has read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Notifier {
    /// How often the watchdog is fed, if there is one.
    watchdog: Option<Duration>,
    said: Said,
    /// A reload was asked for by a signal, which is how a service manager asks.
    asked: bool,
    outbox: VecDeque<Message>,
    /// Nothing is sent before, because nobody reads.
    paused_until: Option<Tick>,
    status: String,
    status_due: Tick,
    feeding_due: Tick,
    /// Why the watchdog is not fed, if so.
    withheld: Option<String>,
}

impl Notifier {
    /// Of a supervisor that starts. `watchdog`: how long a service manager waits for a sign of life
    /// before it kills, if it does; one is given twice in that time.
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        Self {
            watchdog: watchdog.map(|limit| limit / 2),
            said: Said::Nothing,
            asked: false,
            outbox: VecDeque::new(),
            paused_until: None,
            status: String::new(),
            status_due: Tick::ZERO,
            feeding_due: Tick::ZERO,
            withheld: None,
        }
    }

    /// Of one that goes on after an exec in place: what was said before still holds.
    pub(crate) fn resumed(watchdog: Option<Duration>) -> Self {
        Self {
            said: Said::Reloading,
            ..Self::new(watchdog)
        }
    }

    /// A signal asks for a reload or an upgrade: there will be a beginning and an end of it even if
    /// it is refused at once.
    pub(crate) const fn reload_asked(&mut self) {
        self.asked = true;
    }

    /// The slot's listeners are to be kept, instead of any that were before.
    pub(crate) fn store(&mut self, slot: SlotId) {
        self.outbox.retain(|it| *it != Message::Store(slot));
        self.outbox.push_back(Message::Store(slot));
    }

    /// The slot's listeners are not to be kept any more.
    pub(crate) fn remove(&mut self, slot: SlotId) {
        let same = [Message::Store(slot), Message::Remove(slot)];
        self.outbox.retain(|it| !same.contains(it));
        self.outbox.push_back(Message::Remove(slot));
    }

    /// It is to be known when what has been said so far has been done.
    pub(crate) fn barrier(&mut self) {
        self.outbox.retain(|it| *it != Message::Barrier);
        self.outbox.push_back(Message::Barrier);
    }

    /// Compares the supervisor with what was said of it. `status` makes the line for people, and
    /// `ailing` says what is wrong with a slot; each is asked only when that is due.
    pub(crate) fn observe(
        &mut self,
        view: View,
        status: impl FnOnce() -> String,
        ailing: impl FnOnce() -> Option<String>,
        now: Tick,
    ) -> Option<Change> {
        let told = self.tell_life(view, now);
        if told || self.status_due <= now {
            self.tell_status(status());
            let awaited = match view.life {
                Life::Starting => true,
                Life::Serving => self.said == Said::Reloading,
                Life::Stopping { .. } => false,
            };
            if awaited {
                self.extend();
            }
            let pause = if awaited || view.planned.is_some() {
                NOTIFY_STATUS_BUSY
            } else {
                NOTIFY_STATUS_IDLE
            };
            self.status_due = now + pause;
        }
        self.feed(ailing, now)
    }

    /// The next message to send, unless it is too early to try again.
    pub(crate) fn poll_message(&mut self, now: Tick) -> Option<Message> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        self.outbox.pop_front()
    }

    /// The message was not taken.
    pub(crate) fn refused(&mut self, message: Message, now: Tick) {
        self.outbox.push_front(message);
        self.paused_until = Some(now + NOTIFY_RETRY);
    }

    /// Slots whose listeners are still to be let go of, as nobody has taken the message yet.
    pub(crate) fn removals(&self) -> Vec<SlotId> {
        let removed = |message: &Message| match message {
            Message::Remove(slot) => Some(*slot),
            _ => None,
        };
        self.outbox.iter().filter_map(removed).collect()
    }

    /// How many messages wait to be taken.
    pub(crate) fn waiting(&self) -> u64 {
        self.outbox.len() as u64
    }

    /// Why the watchdog is not fed, if there is one and it is not.
    pub(crate) fn withheld(&self) -> Option<&str> {
        self.withheld.as_deref()
    }

    /// When to call [`Self::observe`] and [`Self::poll_message`] at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Tick> {
        let feeding = self.watchdog.filter(|_| self.withheld.is_none());
        let feeding = feeding.map(|_| self.feeding_due);
        let retry = self.paused_until.filter(|_| !self.outbox.is_empty());
        let due = [Some(self.status_due), feeding, retry];
        due.into_iter().flatten().min()
    }

    /// Says whether there was anything to tell.
    fn tell_life(&mut self, view: View, now: Tick) -> bool {
        match view.life {
            Life::Starting => false,
            Life::Serving => self.tell_serving(view.planned == Some(Planned::Renewal), now),
            Life::Stopping { .. } if self.said == Said::Stopping => false,
            Life::Stopping { until } => {
                let left = until.map_or(Duration::ZERO, |until| until.since(now));
                let within = left.saturating_add(NOTIFY_STOP_MARGIN);
                self.replace_state(Message::Stopping { within });
                self.said = Said::Stopping;
                true
            }
        }
    }

    fn tell_serving(&mut self, renewing: bool, now: Tick) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let begins = asked || (renewing && self.said == Said::Ready);
        if begins {
            self.replace_state(Message::Reloading { at: now });
            self.said = Said::Reloading;
        }
        let ends = !renewing && self.said != Said::Ready;
        if ends {
            self.take_back_extension();
            self.outbox.push_back(Message::Ready);
            self.said = Said::Ready;
        }
        begins || ends
    }

    /// Of the messages about the whole, those that were not sent yet do not matter any more.
    fn replace_state(&mut self, message: Message) {
        let of_the_whole = |it: &Message| match it {
            Message::Ready
            | Message::Reloading { .. }
            | Message::Stopping { .. }
            | Message::Extend { .. } => true,
            Message::Status(_)
            | Message::Watchdog
            | Message::Store(_)
            | Message::Remove(_)
            | Message::Barrier => false,
        };
        self.outbox.retain(|it| !of_the_whole(it));
        self.outbox.push_back(message);
    }

    /// The machine has a deadline for whatever is under way, so there is an end to this.
    fn extend(&mut self) {
        let within = NOTIFY_EXTENSION;
        self.take_back_extension();
        self.outbox.push_back(Message::Extend { within });
    }

    fn take_back_extension(&mut self) {
        self.outbox
            .retain(|it| !matches!(it, Message::Extend { .. }));
    }

    fn tell_status(&mut self, line: String) {
        if line == self.status {
            return;
        }
        self.outbox.retain(|it| !matches!(it, Message::Status(_)));
        self.outbox.push_back(Message::Status(line.clone()));
        self.status = line;
    }

    fn feed(&mut self, ailing: impl FnOnce() -> Option<String>, now: Tick) -> Option<Change> {
        let every = self.watchdog?;
        if now < self.feeding_due {
            return None;
        }
        self.outbox.retain(|it| *it != Message::Watchdog);
        if let Some(cause) = ailing() {
            // What makes it well again is an event, which brings the next look.
            let before = self.withheld.replace(cause.clone());
            return before.is_none().then_some(Change::Withheld { cause });
        }
        self.outbox.push_back(Message::Watchdog);
        self.feeding_due = now + every;
        self.withheld.take().map(|_| Change::Fed)
    }
}

impl Message {
    /// As sd_notify(3) wants it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            // One message: without the time a reload is not recognised as begun.
            Self::Reloading { at } => {
                format!("RELOADING=1\nMONOTONIC_USEC={}", at.as_nanos() / 1000)
            }
            Self::Stopping { within } => {
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros())
            }
            Self::Extend { within } => format!("EXTEND_TIMEOUT_USEC={}", within.as_micros()),
            // Each line is an assignment of its own.
            Self::Status(line) => {
                let line = line.replace('\n', " ");
                let shown = line.chars().take(NOTIFY_STATUS_MAX_CHARS);
                format!("STATUS={}", shown.collect::<String>())
            }
            Self::Watchdog => "WATCHDOG=1".to_owned(),
            // Not polled: a listener has nothing to say that would make it worthless.
            Self::Store(slot) => format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", stored_name(*slot)),
            Self::Barrier => "BARRIER=1".to_owned(),
            Self::Remove(slot) => format!("FDSTOREREMOVE=1\nFDNAME={}", stored_name(*slot)),
        }
    }
}

/// The name under which a slot's listeners are kept, all of them: which is for which address they
/// say themselves.
pub(crate) fn stored_name(slot: SlotId) -> String {
    format!("{STORED}{slot}")
}

/// The slot whose listeners have this name; `None`: it is not one of ours.
pub(crate) fn stored_slot(name: &str) -> Option<SlotId> {
    let number = name.strip_prefix(STORED)?.parse().ok()?;
    Some(SlotId(number))
}

const STORED: &str = "slot-";

/// The first slot whose queue nobody serves. A slot without a worker is no reason for a restart of
/// the whole service as long as a sibling serves its queue, or it has none: a shortage for one worker
/// would become an outage. While something planned is under way a queue may be between two workers;
/// it may never be that of a slot that waits for its next try, or whose worker had to be killed
/// because it did not answer.
pub(crate) fn ailing<'a>(
    slots: impl IntoIterator<Item = SlotView<'a>>,
    excused: bool,
) -> Option<String> {
    slots.into_iter().find_map(|slot| {
        let served = match slot.queue {
            Queue::Served | Queue::Lent { .. } | Queue::Unbound | Queue::Closed => true,
            Queue::Unserved { .. } => excused && !slot.is_ailing,
        };
        (!served).then(|| format!("slot {} is {}", slot.id, slot.state))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn serving(planned: Option<Planned>) -> View {
        let life = Life::Serving;
        View { life, planned }
    }

    fn starting() -> View {
        let life = Life::Starting;
        View {
            life,
            planned: None,
        }
    }

    fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    /// Shows it a supervisor with nothing to say to people and nothing wrong.
    fn look(notifier: &mut Notifier, view: View, now: Tick) {
        notifier.observe(view, String::new, || None, now);
    }

    /// All that is said, but for how long to wait.
    fn said(notifier: &mut Notifier, now: Tick) -> Vec<Message> {
        let mut said = all_said(notifier, now);
        said.retain(|it| !matches!(it, Message::Extend { .. }));
        said
    }

    fn all_said(notifier: &mut Notifier, now: Tick) -> Vec<Message> {
        std::iter::from_fn(|| notifier.poll_message(now)).collect()
    }

    #[test]
    fn ready_comes_when_every_slot_serves_and_once() {
        let mut notifier = Notifier::new(None);
        look(&mut notifier, starting(), at(1));
        assert_eq!(said(&mut notifier, at(1)), []);
        look(&mut notifier, serving(None), at(2));
        look(&mut notifier, serving(None), at(3));
        assert_eq!(said(&mut notifier, at(3)), [Message::Ready]);
    }

    #[test]
    fn a_reload_has_a_beginning_and_an_end_and_a_scaling_has_none() {
        let mut notifier = Notifier::new(None);
        look(&mut notifier, serving(None), at(1));
        said(&mut notifier, at(1));
        look(&mut notifier, serving(Some(Planned::Scaling)), at(2));
        assert_eq!(said(&mut notifier, at(2)), []);
        look(&mut notifier, serving(Some(Planned::Renewal)), at(3));
        look(&mut notifier, serving(Some(Planned::Renewal)), at(4));
        assert_eq!(
            said(&mut notifier, at(4)),
            [Message::Reloading { at: at(3) }]
        );
        look(&mut notifier, serving(None), at(5));
        assert_eq!(said(&mut notifier, at(5)), [Message::Ready]);
    }

    #[test]
    fn a_reload_that_is_refused_at_once_is_confirmed_all_the_same() {
        let mut notifier = Notifier::new(None);
        look(&mut notifier, serving(None), at(1));
        said(&mut notifier, at(1));
        notifier.reload_asked();
        look(&mut notifier, serving(None), at(2));
        let both = [Message::Reloading { at: at(2) }, Message::Ready];
        assert_eq!(said(&mut notifier, at(2)), both);
        // Something else is under way: that is no reason to wait for it.
        notifier.reload_asked();
        look(&mut notifier, serving(Some(Planned::Scaling)), at(3));
        let both = [Message::Reloading { at: at(3) }, Message::Ready];
        assert_eq!(said(&mut notifier, at(3)), both);
    }

    #[test]
    fn a_barrier_comes_once_and_behind_all_that_it_is_to_confirm() {
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
        assert_eq!(said(&mut notifier, at(1)), all);
    }

    #[test]
    fn the_program_after_an_exec_ends_what_the_one_before_began() {
        let mut notifier = Notifier::resumed(None);
        look(&mut notifier, serving(Some(Planned::Renewal)), at(1));
        assert_eq!(said(&mut notifier, at(1)), []);
        look(&mut notifier, serving(None), at(2));
        assert_eq!(said(&mut notifier, at(2)), [Message::Ready]);
    }

    #[test]
    fn a_start_or_a_reload_that_goes_on_is_to_be_waited_for() {
        let within = NOTIFY_EXTENSION;
        let longer = Message::Extend { within };
        assert_eq!(longer.text(), "EXTEND_TIMEOUT_USEC=15000000");
        assert!(NOTIFY_STATUS_BUSY * 3 < within, "some may come late");
        let renewing = serving(Some(Planned::Renewal));
        let asked = |notifier: &mut Notifier, view, now| {
            look(notifier, view, now);
            all_said(notifier, now).contains(&longer)
        };
        let mut notifier = Notifier::new(None);
        let second = |number: u64| at(1000 * number);
        assert!(asked(&mut notifier, starting(), second(0)));
        assert_eq!(notifier.poll_timeout(), Some(second(1)));
        assert!(asked(&mut notifier, starting(), second(1)));
        assert!(!asked(&mut notifier, serving(None), second(2)));
        let scaling = serving(Some(Planned::Scaling));
        assert!(!asked(&mut notifier, scaling, second(7)), "nobody waits");
        assert!(asked(&mut notifier, renewing, second(8)));
        assert!(asked(&mut notifier, renewing, second(9)));
        assert!(!asked(&mut notifier, serving(None), second(10)));
        // One that was not sent before the end is not sent after it.
        look(&mut notifier, renewing, second(11));
        look(&mut notifier, serving(None), second(12));
        let both = [Message::Reloading { at: second(11) }, Message::Ready];
        assert_eq!(all_said(&mut notifier, second(12)), both);
        let mut resumed = Notifier::resumed(None);
        assert!(asked(&mut resumed, renewing, second(0)));
    }

    #[test]
    fn a_line_for_people_is_not_too_long_to_be_read() {
        let line = "ß".repeat(5000);
        assert!(Message::Status(line).text().len() < 4096);
    }

    #[test]
    fn a_stop_says_how_long_it_takes_and_is_the_last_word() {
        let mut notifier = Notifier::new(None);
        look(&mut notifier, serving(Some(Planned::Renewal)), at(1));
        let life = Life::Stopping {
            until: Some(at(32_001)),
        };
        let stopping = View {
            life,
            planned: None,
        };
        look(&mut notifier, stopping, at(1));
        let within = Duration::from_secs(32) + NOTIFY_STOP_MARGIN;
        assert_eq!(said(&mut notifier, at(1)), [Message::Stopping { within }]);
        notifier.reload_asked();
        look(&mut notifier, stopping, at(3));
        assert_eq!(said(&mut notifier, at(3)), []);
    }

    #[test]
    fn the_line_for_people_is_made_now_and_then_and_sent_when_it_has_changed() {
        let mut notifier = Notifier::new(None);
        let line = |notifier: &mut Notifier, text: &str, now| {
            notifier.observe(serving(None), || text.to_owned(), || None, now);
            said(notifier, now)
        };
        let status = |text: &str| Message::Status(text.to_owned());
        let first = [Message::Ready, status("one")];
        assert_eq!(line(&mut notifier, "one", at(0)), first);
        assert_eq!(line(&mut notifier, "two", at(1)), []);
        let due = at(0) + NOTIFY_STATUS_IDLE;
        assert_eq!(notifier.poll_timeout(), Some(due));
        assert_eq!(line(&mut notifier, "two", due), [status("two")]);
        let due = due + NOTIFY_STATUS_IDLE;
        assert_eq!(line(&mut notifier, "two", due), []);
        assert_eq!(status("a\nREADY=1").text(), "STATUS=a READY=1");
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_and_at_once_when_all_is_well_again() {
        let mut notifier = Notifier::new(Some(LIMIT));
        let mut feed = |wrong: Option<&str>, now| {
            let wrong = wrong.map(str::to_owned);
            let change = notifier.observe(serving(None), String::new, || wrong, now);
            let fed = said(&mut notifier, now).contains(&Message::Watchdog);
            (fed, change, notifier.poll_timeout())
        };
        // The line for people keeps it awake, too.
        assert_eq!(feed(None, at(0)), (true, None, Some(at(5000))));
        assert_eq!(feed(None, at(4999)), (false, None, Some(at(5000))));
        assert!(feed(None, at(5000)).0);
        let cause = "slot 1 is backing off".to_owned();
        let withheld = Some(Change::Withheld {
            cause: cause.clone(),
        });
        let (fed, change, due) = feed(Some(&cause), at(10_000));
        assert_eq!((fed, change), (false, withheld));
        assert_eq!(due, Some(at(15_000)), "nothing is due that cannot be done");
        assert_eq!(feed(Some(&cause), at(11_000)), (false, None, due));
        let (fed, change, _) = feed(None, at(11_001));
        assert_eq!((fed, change), (true, Some(Change::Fed)));
    }

    #[test]
    fn what_was_not_taken_is_offered_again_later() {
        let mut notifier = Notifier::new(None);
        notifier.store(SlotId(0));
        notifier.store(SlotId(1));
        look(&mut notifier, starting(), at(0));
        let first = notifier.poll_message(at(0)).unwrap();
        notifier.refused(first, at(0));
        assert_eq!(notifier.poll_message(at(1)), None);
        let due = at(0) + NOTIFY_RETRY;
        assert_eq!(notifier.poll_timeout(), Some(due));
        let both = [Message::Store(SlotId(0)), Message::Store(SlotId(1))];
        assert_eq!(said(&mut notifier, due), both);
    }

    #[test]
    fn a_removal_comes_before_what_is_kept_instead() {
        let mut notifier = Notifier::new(None);
        let slot = SlotId(7);
        notifier.store(slot);
        notifier.remove(slot);
        notifier.store(slot);
        let both = [Message::Remove(slot), Message::Store(slot)];
        assert_eq!(said(&mut notifier, at(0)), both);
        assert_eq!(both[0].text(), "FDSTOREREMOVE=1\nFDNAME=slot-7");
        assert_eq!(both[1].text(), "FDSTORE=1\nFDNAME=slot-7\nFDPOLL=0");
        assert_eq!(stored_slot("slot-7"), Some(slot));
        for other in ["slot-", "slot-x", "slot-70000", "uppercased.socket", ""] {
            assert_eq!(stored_slot(other), None, "{other}");
        }
    }

    #[test]
    fn a_reload_is_one_message_with_its_time_in_microseconds() {
        let text = Message::Reloading { at: at(12) }.text();
        assert_eq!(text, "RELOADING=1\nMONOTONIC_USEC=12000");
    }

    /// What may happen to a supervisor that serves.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Show(Option<Planned>),
        Ask,
        Store(u16),
        Remove(u16),
        Read,
        Refuse,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Show(None)),
            Just(Step::Show(Some(Planned::Renewal))),
            Just(Step::Show(Some(Planned::Scaling))),
            Just(Step::Ask),
            (0..3_u16).prop_map(Step::Store),
            (0..3_u16).prop_map(Step::Remove),
            Just(Step::Read),
            Just(Step::Refuse),
        ]
    }

    proptest! {
        /// However slowly it is read: what waits is bounded, what is believed in the end is true,
        /// and nobody waits for the end of a reload.
        #[test]
        fn in_the_end_what_is_believed_is_true(steps in prop::collection::vec(step(), 0..60)) {
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
                    Step::Show(planned) => look(&mut notifier, serving(planned), now),
                    Step::Ask => notifier.reload_asked(),
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
                // Begin, how long, end, line, watchdog; a removal and a deposit of each slot.
                prop_assert!(notifier.outbox.len() <= 5 + 2 * 3);
            }
            let end = Tick::ZERO + NOTIFY_RETRY * 1000;
            look(&mut notifier, serving(None), end);
            for message in said(&mut notifier, end) {
                read(message, &mut believed_kept);
            }
            prop_assert_eq!(believed_kept, kept);
            prop_assert_eq!(last, Some(Message::Ready));
        }
    }
}
