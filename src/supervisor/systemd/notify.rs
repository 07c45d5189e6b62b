//! The messages to the service manager (systemd): sd_notify(3) as a state machine.
//!
//! The shell passes it a [`View`] of the supervisor after every turn; changes become messages.
//! [`mod@crate::supervisor::systemd`] sends them.
//!
//! Invariants: a message that could not be sent is kept and retried; the outbox is bounded (the
//! latest of each kind, and for each slot one removal and one deposit after it); a requested reload
//! is confirmed whatever its result, because the requester would otherwise wait until a timeout; a
//! start or a reload in progress never exceeds its timeout; the watchdog is fed only while every
//! queue is served.
//!
//! It must not read a clock, or access a socket.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::config::{
    NOTIFY_EXTENSION, NOTIFY_RETRY, NOTIFY_STATUS_BUSY, NOTIFY_STATUS_IDLE,
    NOTIFY_STATUS_MAX_CHARS, NOTIFY_STOP_MARGIN,
};
use crate::supervisor::machine::{Life, OperationKind, Queue, SlotView};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::SlotId;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Every slot serves; or a reload has ended.
    Ready,
    /// A reload or an upgrade began.
    Reloading {
        /// Start time.
        at: Tick,
    },
    /// A stop began.
    Stopping {
        /// Maximum duration.
        within: Duration,
    },
    /// A start or a reload is in progress: extends its timeout.
    Extend {
        /// Timeout, from now on.
        within: Duration,
    },
    /// The status line.
    Status(String),
    /// A watchdog ping.
    Watchdog,
    /// Store the slot's listeners, which are sent with it.
    Store(SlotId),
    /// Remove the slot's listeners.
    Remove(SlotId),
    /// Store the lease's end, which is sent with it.
    StoreLease,
    /// Close the descriptor sent with it when all earlier messages have been handled.
    Barrier,
}

/// The state of the supervisor that messages depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) life: Life,
    /// The operation in progress, or one that replaces workers and is queued.
    pub(crate) operation: Option<OperationKind>,
}

/// A change to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The watchdog is not fed from now on.
    Withheld(Unserved),
    /// It is fed again.
    Fed,
}

/// A slot whose queue no worker serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unserved {
    pub(crate) slot: SlotId,
    /// The state of the slot, in one or two words.
    pub(crate) state: &'static str,
}

impl fmt::Display for Unserved {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "slot {} is {}", self.slot, self.state)
    }
}

/// The state known to the service manager once it has read every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Notifier {
    /// Interval at which the watchdog is fed, if there is one.
    watchdog: Option<Duration>,
    sent: Sent,
    /// Whether a signal has requested a reload, as a service manager does.
    reload_requested: bool,
    outbox: VecDeque<Message>,
    /// End of the pause in sending while the service manager does not read.
    paused_until: Option<Tick>,
    status: String,
    status_due: Tick,
    feeding_due: Tick,
    /// The reason why the watchdog is not fed, if so.
    withheld: Option<String>,
}

impl Notifier {
    /// Returns the state of a starting supervisor. `watchdog`: the time after which a service
    /// manager kills a supervisor that sends no ping, if it does; two are sent in that time.
    pub(crate) fn new(watchdog: Option<Duration>) -> Self {
        Self {
            watchdog: watchdog.map(|limit| limit / 2),
            sent: Sent::Nothing,
            reload_requested: false,
            outbox: VecDeque::new(),
            paused_until: None,
            status: String::new(),
            status_due: Tick::ZERO,
            feeding_due: Tick::ZERO,
            withheld: None,
        }
    }

    /// Returns the state of a supervisor after an exec: the messages of the earlier binary remain
    /// valid.
    pub(crate) fn resumed(watchdog: Option<Duration>) -> Self {
        Self {
            sent: Sent::Reloading,
            ..Self::new(watchdog)
        }
    }

    /// Records that a signal requests a reload or an upgrade: its beginning and end are reported
    /// even if it is refused at once.
    pub(crate) const fn note_reload_request(&mut self) {
        self.reload_requested = true;
    }

    /// Requests that the slot's listeners be stored, replacing earlier ones.
    pub(crate) fn store(&mut self, slot: SlotId) {
        self.outbox.retain(|it| *it != Message::Store(slot));
        self.outbox.push_back(Message::Store(slot));
    }

    /// Requests that the slot's listeners be removed.
    pub(crate) fn remove(&mut self, slot: SlotId) {
        let same = [Message::Store(slot), Message::Remove(slot)];
        self.outbox.retain(|it| !same.contains(it));
        self.outbox.push_back(Message::Remove(slot));
    }

    /// Requests that the lease's end be stored.
    pub(crate) fn store_lease(&mut self) {
        self.outbox.push_back(Message::StoreLease);
    }

    /// Queues a barrier after the messages so far.
    pub(crate) fn barrier(&mut self) {
        self.outbox.retain(|it| *it != Message::Barrier);
        self.outbox.push_back(Message::Barrier);
    }

    /// Compares the supervisor with the messages sent. `status` returns the status line, and
    /// `unserved` a slot whose queue is not served; each is called only when due.
    pub(crate) fn observe(
        &mut self,
        view: View,
        status: impl FnOnce() -> String,
        unserved: impl FnOnce() -> Option<Unserved>,
        now: Tick,
    ) -> Option<Change> {
        let told = self.send_life(view, now);
        if told || self.status_due <= now {
            self.send_status(status());
            let awaited = match view.life {
                Life::Starting => true,
                Life::Serving => self.sent == Sent::Reloading,
                Life::Stopping { .. } => false,
            };
            if awaited {
                self.extend();
            }
            let pause = if awaited || view.operation.is_some() {
                NOTIFY_STATUS_BUSY
            } else {
                NOTIFY_STATUS_IDLE
            };
            self.status_due = now + pause;
        }
        self.feed(unserved, now)
    }

    /// Returns the next message to send, unless a retry is not due yet.
    pub(crate) fn poll_message(&mut self, now: Tick) -> Option<Message> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        self.outbox.pop_front()
    }

    /// Keeps a message that could not be sent.
    pub(crate) fn refused(&mut self, message: Message, now: Tick) {
        self.outbox.push_front(message);
        self.paused_until = Some(now + NOTIFY_RETRY);
    }

    /// Returns the slots whose removal has not been sent yet.
    pub(crate) fn removals(&self) -> Vec<SlotId> {
        let removed = |message: &Message| match message {
            Message::Remove(slot) => Some(*slot),
            _ => None,
        };
        self.outbox.iter().filter_map(removed).collect()
    }

    /// Returns the number of messages that wait to be sent.
    pub(crate) fn waiting(&self) -> u64 {
        self.outbox.len() as u64
    }

    /// Returns why the watchdog is not fed, if there is one and it is not.
    pub(crate) fn withheld(&self) -> Option<&str> {
        self.withheld.as_deref()
    }

    /// Returns the latest time at which to call [`Self::observe`] and [`Self::poll_message`].
    pub(crate) fn deadline(&self) -> Option<Tick> {
        let feeding = self.watchdog.filter(|_| self.withheld.is_none());
        let feeding = feeding.map(|_| self.feeding_due);
        let retry = self.paused_until.filter(|_| !self.outbox.is_empty());
        let due = [Some(self.status_due), feeding, retry];
        due.into_iter().flatten().min()
    }

    /// Returns whether there was a message to send.
    fn send_life(&mut self, view: View, now: Tick) -> bool {
        match view.life {
            Life::Starting => false,
            Life::Serving => {
                let reloads = view.operation.is_some_and(OperationKind::replaces_workers);
                self.send_serving(reloads, now)
            }
            Life::Stopping { .. } if self.sent == Sent::Stopping => false,
            Life::Stopping { until } => {
                let left = until.map_or(Duration::ZERO, |until| until.since(now));
                let within = left.saturating_add(NOTIFY_STOP_MARGIN);
                self.replace_state(Message::Stopping { within });
                self.sent = Sent::Stopping;
                true
            }
        }
    }

    fn send_serving(&mut self, reloading: bool, now: Tick) -> bool {
        let requested = std::mem::take(&mut self.reload_requested);
        let begins = requested || (reloading && self.sent == Sent::Ready);
        if begins {
            self.replace_state(Message::Reloading { at: now });
            self.sent = Sent::Reloading;
        }
        let ends = !reloading && self.sent != Sent::Ready;
        if ends {
            self.take_back_extension();
            self.outbox.push_back(Message::Ready);
            self.sent = Sent::Ready;
        }
        begins || ends
    }

    /// Replaces unsent messages about the whole server, which are outdated.
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
            | Message::StoreLease
            | Message::Barrier => false,
        };
        self.outbox.retain(|it| !of_the_whole(it));
        self.outbox.push_back(message);
    }

    /// Extends the timeout. The machine has a deadline for every operation, so this ends.
    fn extend(&mut self) {
        let within = NOTIFY_EXTENSION;
        self.take_back_extension();
        self.outbox.push_back(Message::Extend { within });
    }

    fn take_back_extension(&mut self) {
        self.outbox
            .retain(|it| !matches!(it, Message::Extend { .. }));
    }

    fn send_status(&mut self, line: String) {
        if line == self.status {
            return;
        }
        self.outbox.retain(|it| !matches!(it, Message::Status(_)));
        self.outbox.push_back(Message::Status(line.clone()));
        self.status = line;
    }

    fn feed(&mut self, unserved: impl FnOnce() -> Option<Unserved>, now: Tick) -> Option<Change> {
        let every = self.watchdog?;
        if now < self.feeding_due {
            return None;
        }
        self.outbox.retain(|it| *it != Message::Watchdog);
        if let Some(unserved) = unserved() {
            // A recovery is an event, and triggers the next check.
            let before = self.withheld.replace(unserved.to_string());
            return before.is_none().then_some(Change::Withheld(unserved));
        }
        self.outbox.push_back(Message::Watchdog);
        self.feeding_due = now + every;
        self.withheld.take().map(|_| Change::Fed)
    }
}

impl Message {
    /// Returns the message in the format of sd_notify(3).
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            // One message: without the time, systemd does not recognise the start of a reload.
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
            // Not polled: systemd would drop a listener when an event is reported on it.
            Self::Store(slot) => format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", stored_name(*slot)),
            // Polled: systemd drops it when no worker has the lease any more.
            Self::StoreLease => format!("FDSTORE=1\nFDNAME={STORED_LEASE}"),
            Self::Barrier => "BARRIER=1".to_owned(),
            Self::Remove(slot) => format!("FDSTOREREMOVE=1\nFDNAME={}", stored_name(*slot)),
        }
    }
}

/// Returns the name under which all of a slot's listeners are stored; their addresses distinguish
/// them.
pub(crate) fn stored_name(slot: SlotId) -> String {
    format!("{STORED}{slot}")
}

/// Returns the slot whose listeners have this name; `None`: it is not one of ours.
pub(crate) fn stored_slot(name: &str) -> Option<SlotId> {
    let number = name.strip_prefix(STORED)?.parse().ok()?;
    Some(SlotId(number))
}

const STORED: &str = "slot-";
/// The name under which the lease's end is stored.
pub(crate) const STORED_LEASE: &str = "lease";

/// Returns the first slot whose queue no worker serves. A slot without a worker is no reason to
/// restart the whole service while a sibling serves its queue, or it has none: the lack of one
/// worker would become an outage. While an operation is in progress a queue may be between two
/// workers; but not the queue of a slot that is backing off, or whose worker was killed because it
/// was unresponsive.
pub(crate) fn unserved(
    slots: impl IntoIterator<Item = SlotView>,
    excused: bool,
) -> Option<Unserved> {
    slots.into_iter().find_map(|slot| {
        let served = match slot.queue {
            Queue::Served | Queue::Lent { .. } | Queue::Unbound | Queue::Closed => true,
            Queue::Unserved { .. } => excused && !slot.is_failing,
        };
        (!served).then_some(Unserved {
            slot: slot.id,
            state: slot.state,
        })
    })
}

#[cfg(test)]
mod tests;
