//! What the service manager (systemd) is told, and when: sd_notify(3) as a state machine.
//!
//! The shell shows it the supervisor as it is ([`View`]) after every turn; what has changed since
//! becomes messages. [`mod@super::systemd`] sends them.
//!
//! Invariants: a message that could not be sent is kept and tried again; what waits is bounded (of
//! each kind the latest, of each slot one removal and one deposit after it); a reload that was asked
//! for is confirmed however it ends, or whoever asked would wait until a timeout; the watchdog is
//! fed only while every slot is well.
//!
//! It must not read a clock, or know a socket.

use std::collections::VecDeque;
use std::time::Duration;

use super::machine::{KillReason, SlotState, SlotView};
use crate::clock::Tick;
use crate::config::{NOTIFY_RETRY, NOTIFY_STATUS_BUSY, NOTIFY_STATUS_IDLE, NOTIFY_STOP_MARGIN};
use crate::identity::SlotId;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
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
    /// One line for people.
    Status(String),
    /// A sign of life.
    Watchdog,
    /// Keep the slot's listeners; they go along.
    Store(SlotId),
    /// Let go of the slot's listeners.
    Remove(SlotId),
}

/// The supervisor, as far as this matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Where it is in its life.
    pub(super) phase: Phase,
    /// Whether something planned is under way.
    pub(super) operating: bool,
    /// Whether that is a restart or an upgrade.
    pub(super) renewing: bool,
    /// What is wrong with some slot, if anything is.
    pub(super) ailing: Option<String>,
}

/// Where the supervisor is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Some slot has never been Ready.
    Starting,
    /// All have.
    Serving,
    /// No worker is to be left.
    Stopping {
        /// When what is left will be killed; `None`: it has been.
        until: Option<Tick>,
    },
}

/// What is to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
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
pub(super) struct Notifier {
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
    withheld: bool,
}

impl Notifier {
    /// Of a supervisor that starts. `watchdog`: how long a service manager waits for a sign of life
    /// before it kills, if it does; one is given twice in that time.
    pub(super) fn new(watchdog: Option<Duration>) -> Self {
        Self {
            watchdog: watchdog.map(|limit| limit / 2),
            said: Said::Nothing,
            asked: false,
            outbox: VecDeque::new(),
            paused_until: None,
            status: String::new(),
            status_due: Tick::ZERO,
            feeding_due: Tick::ZERO,
            withheld: false,
        }
    }

    /// Of one that goes on after an exec in place: what was said before still holds.
    pub(super) fn resumed(watchdog: Option<Duration>) -> Self {
        Self {
            said: Said::Reloading,
            ..Self::new(watchdog)
        }
    }

    /// A signal asks for a reload or an upgrade: there will be a beginning and an end of it even if
    /// it is refused at once.
    pub(super) const fn reload_asked(&mut self) {
        self.asked = true;
    }

    /// The slot's listeners are to be kept, instead of any that were before.
    pub(super) fn store(&mut self, slot: SlotId) {
        self.outbox.retain(|it| *it != Message::Store(slot));
        self.outbox.push_back(Message::Store(slot));
    }

    /// The slot's listeners are not to be kept any more.
    pub(super) fn remove(&mut self, slot: SlotId) {
        let same = [Message::Store(slot), Message::Remove(slot)];
        self.outbox.retain(|it| !same.contains(it));
        self.outbox.push_back(Message::Remove(slot));
    }

    /// Compares the supervisor with what was said of it. `status` makes the line for people, and is
    /// called only when that is due.
    pub(super) fn observe(
        &mut self,
        view: &View,
        status: impl FnOnce() -> String,
        now: Tick,
    ) -> Option<Change> {
        let before = self.said;
        self.tell_phase(view, now);
        if self.said != before || self.status_due <= now {
            self.tell_status(status());
            let pause = if view.operating {
                NOTIFY_STATUS_BUSY
            } else {
                NOTIFY_STATUS_IDLE
            };
            self.status_due = now + pause;
        }
        self.feed(view, now)
    }

    /// The next message to send, unless it is too early to try again.
    pub(super) fn poll_message(&mut self, now: Tick) -> Option<Message> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        self.outbox.pop_front()
    }

    /// The message was not taken.
    pub(super) fn refused(&mut self, message: Message, now: Tick) {
        self.outbox.push_front(message);
        self.paused_until = Some(now + NOTIFY_RETRY);
    }

    /// When to call [`Self::observe`] and [`Self::poll_message`] at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        let feeding = self.watchdog.filter(|_| !self.withheld);
        let feeding = feeding.map(|_| self.feeding_due);
        let retry = self.paused_until.filter(|_| !self.outbox.is_empty());
        let due = [Some(self.status_due), feeding, retry];
        due.into_iter().flatten().min()
    }

    fn tell_phase(&mut self, view: &View, now: Tick) {
        match (view.phase, self.said) {
            (Phase::Stopping { until }, Said::Nothing | Said::Ready | Said::Reloading) => {
                let left = until.map_or(Duration::ZERO, |until| until.since(now));
                let within = left.saturating_add(NOTIFY_STOP_MARGIN);
                self.replace_state(Message::Stopping { within });
                self.said = Said::Stopping;
            }
            (Phase::Serving, Said::Nothing | Said::Ready | Said::Reloading) => {
                let begins = self.said == Said::Ready && view.renewing;
                if begins || std::mem::take(&mut self.asked) {
                    self.replace_state(Message::Reloading { at: now });
                    self.said = Said::Reloading;
                }
                self.asked = false;
                if !view.renewing && self.said != Said::Ready {
                    self.outbox.retain(|it| *it != Message::Ready);
                    self.outbox.push_back(Message::Ready);
                    self.said = Said::Ready;
                }
            }
            (Phase::Starting, _) | (Phase::Stopping { .. } | Phase::Serving, Said::Stopping) => {}
        }
    }

    /// Of the messages about the whole, those that were not sent yet do not matter any more.
    fn replace_state(&mut self, message: Message) {
        let of_the_whole = |it: &Message| match it {
            Message::Ready | Message::Reloading { .. } | Message::Stopping { .. } => true,
            Message::Status(_) | Message::Watchdog | Message::Store(_) | Message::Remove(_) => {
                false
            }
        };
        self.outbox.retain(|it| !of_the_whole(it));
        self.outbox.push_back(message);
    }

    fn tell_status(&mut self, line: String) {
        if line == self.status {
            return;
        }
        self.outbox.retain(|it| !matches!(it, Message::Status(_)));
        self.outbox.push_back(Message::Status(line.clone()));
        self.status = line;
    }

    fn feed(&mut self, view: &View, now: Tick) -> Option<Change> {
        let every = self.watchdog?;
        if now < self.feeding_due {
            return None;
        }
        self.outbox.retain(|it| *it != Message::Watchdog);
        if let Some(cause) = &view.ailing {
            // What makes it well again is an event, which brings the next look.
            let cause = cause.clone();
            return (!std::mem::replace(&mut self.withheld, true))
                .then_some(Change::Withheld { cause });
        }
        self.outbox.push_back(Message::Watchdog);
        self.feeding_due = now + every;
        std::mem::take(&mut self.withheld).then_some(Change::Fed)
    }
}

impl Message {
    /// As sd_notify(3) wants it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            // One message: without the time a reload is not recognised as begun.
            Self::Reloading { at } => {
                format!("RELOADING=1\nMONOTONIC_USEC={}", at.as_nanos() / 1000)
            }
            Self::Stopping { within } => {
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", within.as_micros())
            }
            // Each line is an assignment of its own.
            Self::Status(line) => format!("STATUS={}", line.replace('\n', " ")),
            Self::Watchdog => "WATCHDOG=1".to_owned(),
            // Not polled: a listener has nothing to say that would make it worthless.
            Self::Store(slot) => format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", stored_name(*slot)),
            Self::Remove(slot) => format!("FDSTOREREMOVE=1\nFDNAME={}", stored_name(*slot)),
        }
    }
}

/// The name under which a slot's listeners are kept, all of them: which is for which address they
/// say themselves.
pub(super) fn stored_name(slot: SlotId) -> String {
    format!("{STORED}{slot}")
}

/// The slot whose listeners have this name; `None`: it is not one of ours.
pub(super) fn stored_slot(name: &str) -> Option<SlotId> {
    let number = name.strip_prefix(STORED)?.parse().ok()?;
    Some(SlotId(number))
}

const STORED: &str = "slot-";

/// What is wrong with the first slot that is not well. While something planned is under way a slot
/// may be between two workers; it may never have failed so often that it waits, or have a worker
/// that had to be killed because it did not answer.
pub(super) fn ailing<'a>(
    slots: impl IntoIterator<Item = SlotView<'a>>,
    excused: bool,
) -> Option<String> {
    slots.into_iter().find_map(|slot| {
        let well = match slot.state {
            SlotState::Serving => true,
            SlotState::BackingOff { .. }
            | SlotState::Killing {
                why:
                    KillReason::Hung
                    | KillReason::StartTimedOut
                    | KillReason::ChannelBroken { .. }
                    | KillReason::Overstayed,
                ..
            } => false,
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Killing { .. }
            | SlotState::Retired
            | SlotState::Stopping
            | SlotState::Stopped => excused,
        };
        (!well).then(|| format!("slot {} is {}", slot.id, slot.state.name()))
    })
}
