//! One slot: the place for a worker, its life as a state, and who serves its accept queue.
//!
//! Pure: no descriptor, no clock, no decision. [`super::machine`] decides; a slot only knows which
//! changes are possible at all.
//!
//! Invariants:
//! - the state changes in `Slot::enter` and nowhere else, so "who serves the queue" can never
//!   drift apart from "what the worker is doing";
//! - at most one process lives in a slot, the one of the slot's present generation;
//! - a queue that has been bound is served by the slot's own worker, lent to a sibling, or known to
//!   be unserved since a given time. It is never forgotten.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::clock::Tick;
pub use crate::identity::{Generation, SlotId, WorkerId};

/// How a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Death {
    /// It exited by itself with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It is gone, but somebody else has taken its status.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signalled(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {number} ({signal})"),
                // Real-time signals have no name.
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Unknown => write!(f, "unknown cause"),
        }
    }
}

/// The latest failure of a slot, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDeath {
    /// Who died.
    pub worker: WorkerId,
    /// How; `None` if the process could not even be made.
    pub how: Option<Death>,
    /// Why, if anybody said so: the worker's own words, or the supervisor's reason to kill it.
    pub cause: Option<String>,
    /// When the supervisor learned of it.
    pub at: Tick,
}

/// What a slot's worker is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// Its turn at boot has not come.
    Waiting,
    /// Spawned, not Ready yet.
    Starting {
        /// When it must be Ready.
        deadline: Tick,
        /// Its own last words, if it has said that it cannot start. It exits next; if it does not,
        /// the deadline still stands.
        words: Option<String>,
    },
    /// Ready, accepting on the slot's listener.
    Serving,
    /// Sent SIGKILL, not reaped yet. No deadline: the kernel ends a killed process and its pidfd
    /// always tells. (A process stuck in the kernel for ever cannot be helped by a second SIGKILL;
    /// its queue is lent meanwhile.)
    Killing {
        /// Why it had to be killed.
        why: KillReason,
        /// How long it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// Its own last words, carried over from `Starting`.
        words: Option<String>,
    },
    /// No process; one is started at `until`.
    BackingOff {
        /// When the next worker is spawned.
        until: Tick,
    },
    /// Told to finish what it owes and exit.
    Stopping,
    /// No process, and none will be started.
    Stopped,
}

impl SlotState {
    /// One or two words for status and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting { .. } => "starting",
            Self::Serving => "serving",
            Self::Killing { .. } => "killing",
            Self::BackingOff { .. } => "backing off",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether a process exists (or was ordered and has not been reported as failed).
    #[must_use]
    pub const fn is_live(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Serving | Self::Killing { .. } | Self::Stopping => true,
            Self::Waiting | Self::BackingOff { .. } | Self::Stopped => false,
        }
    }

    /// Whether the change to `next` makes sense at all. What is not listed is a bug.
    fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Waiting => matches!(next, Self::Starting { .. } | Self::Stopped),
            Self::Starting { .. } => matches!(
                next,
                Self::Serving | Self::Killing { .. } | Self::BackingOff { .. } | Self::Stopped
            ),
            Self::Serving => matches!(
                next,
                Self::Starting { .. }
                    | Self::Killing { .. }
                    | Self::BackingOff { .. }
                    | Self::Stopping
            ),
            Self::Killing { .. } => matches!(
                next,
                Self::Starting { .. } | Self::BackingOff { .. } | Self::Stopped
            ),
            Self::BackingOff { .. } => matches!(next, Self::Starting { .. } | Self::Stopped),
            Self::Stopping => matches!(next, Self::Killing { .. } | Self::Stopped),
            Self::Stopped => false,
        }
    }
}

/// Why the supervisor killed a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillReason {
    /// It was not Ready in time.
    StartTimedOut,
    /// Nothing can be said to it any more.
    ChannelBroken {
        /// What broke.
        cause: String,
    },
    /// A sibling could not start at boot, so nothing starts.
    BootFailed,
    /// The supervisor stops, and this one was not serving, did not finish in time, or was told to
    /// end at once.
    Stop,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartTimedOut => write!(f, "not ready in time"),
            Self::ChannelBroken { cause } => write!(f, "its channel broke: {cause}"),
            Self::BootFailed => write!(f, "the boot failed"),
            Self::Stop => write!(f, "the supervisor stops"),
        }
    }
}

/// Who accepts from the slot's listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Queue {
    /// No worker of the slot has ever been Ready: the supervisor holds no listener.
    Unbound,
    /// The slot's own worker.
    Served,
    /// Nobody. New clients wait in it.
    Unserved {
        /// When its own worker stopped serving.
        since: Tick,
    },
    /// A sibling, until the slot's own worker is back.
    Lent {
        /// When its own worker stopped serving; kept, so that a second loan needs no second wait.
        since: Tick,
        /// The borrower; it serves, or the loan has ended.
        to: WorkerId,
    },
}

/// A slot, with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    /// The generation of the present worker, or of the latest one.
    pub(super) generation: Generation,
    pub(super) state: SlotState,
    /// When `state` was entered.
    pub(super) since: Tick,
    pub(super) queue: Queue,
    /// Failures in a row, without a full `backoff_reset` of service between them. Wiped when such
    /// a worker dies, not while it lives: nobody looks at it before.
    pub(super) failures: u32,
    /// Failures of all time.
    pub(super) deaths: u32,
    pub(super) last_death: Option<LastDeath>,
}

impl Slot {
    pub(super) const fn new(id: SlotId) -> Self {
        Self {
            id,
            generation: Generation(0),
            state: SlotState::Waiting,
            since: Tick::ZERO,
            queue: Queue::Unbound,
            failures: 0,
            deaths: 0,
            last_death: None,
        }
    }

    /// The only place where a slot changes its state.
    pub(super) fn enter(&mut self, next: SlotState, now: Tick) {
        debug_assert!(
            self.state.may_become(&next),
            "slot {} cannot go from {:?} to {next:?}",
            self.id,
            self.state,
        );
        match &next {
            SlotState::Serving => self.queue = Queue::Served,
            // It goes on accepting for the lame-duck time.
            SlotState::Stopping => {}
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => {
                if self.queue == Queue::Served {
                    self.queue = Queue::Unserved { since: now };
                }
            }
        }
        self.state = next;
        self.since = now;
    }

    /// Begins the next generation, to be Ready by `deadline`.
    pub(super) fn start(&mut self, deadline: Tick, now: Tick) -> WorkerId {
        self.generation = self.generation.next();
        self.enter(
            SlotState::Starting {
                deadline,
                words: None,
            },
            now,
        );
        self.worker()
    }

    /// Ends the process by force; the caller sends the signal.
    pub(super) fn kill(&mut self, why: KillReason, now: Tick) {
        let (served_for, words) = match &self.state {
            SlotState::Starting { words, .. } => (None, words.clone()),
            SlotState::Serving | SlotState::Stopping => (Some(now.since(self.since)), None),
            SlotState::Waiting
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => (None, None),
        };
        self.enter(
            SlotState::Killing {
                why,
                served_for,
                words,
            },
            now,
        );
    }

    /// Ends a loan whose borrower no longer serves.
    pub(super) fn end_loan(&mut self) {
        match self.queue {
            Queue::Lent { since, .. } => self.queue = Queue::Unserved { since },
            Queue::Unbound | Queue::Served | Queue::Unserved { .. } => {}
        }
    }

    /// The present worker, or the latest one.
    pub(super) const fn worker(&self) -> WorkerId {
        WorkerId {
            slot: self.id,
            generation: self.generation,
        }
    }

    /// When the slot's own state must be looked at again.
    pub(super) const fn deadline(&self) -> Option<Tick> {
        match &self.state {
            SlotState::Starting { deadline, .. } => Some(*deadline),
            SlotState::BackingOff { until } => Some(*until),
            SlotState::Waiting
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Stopping
            | SlotState::Stopped => None,
        }
    }

    /// Whether `worker` is this slot's and accepts.
    pub(super) fn is_served_by(&self, worker: WorkerId) -> bool {
        self.worker() == worker && self.state == SlotState::Serving
    }

    /// What in this slot contradicts itself, if anything.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        let served = match &self.state {
            SlotState::Serving | SlotState::Stopping => true,
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => false,
        };
        if served != (self.queue == Queue::Served) {
            return Some("its queue and its worker disagree on who serves");
        }
        if self.state == SlotState::Waiting && self.generation != Generation(0) {
            return Some("it waits for its first worker and has had one");
        }
        if self.state.is_live() && self.generation == Generation(0) {
            return Some("it has a worker without a generation");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_in_a_log_line() {
        let worker = WorkerId {
            slot: SlotId(0),
            generation: Generation(3),
        };
        assert_eq!(worker.to_string(), "slot 0 generation 3");
        assert_eq!(Death::Exited(1).to_string(), "exit code 1");
        assert_eq!(Death::Signalled(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(Death::Signalled(40).to_string(), "signal 40");
    }

    #[test]
    fn a_queue_is_unserved_from_the_moment_its_worker_stops_serving() {
        let mut slot = Slot::new(SlotId(0));
        slot.start(Tick::from_millis(50), Tick::from_millis(0));
        assert_eq!(slot.queue, Queue::Unbound);
        slot.enter(SlotState::Serving, Tick::from_millis(10));
        slot.kill(KillReason::Stop, Tick::from_millis(30));
        let since = Tick::from_millis(30);
        assert_eq!(slot.queue, Queue::Unserved { since });
        // The successor's start does not restart that clock.
        slot.start(Tick::from_millis(90), Tick::from_millis(40));
        assert_eq!(slot.queue, Queue::Unserved { since });
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "cannot go from Stopped")]
    fn a_stopped_slot_stays_stopped() {
        let mut slot = Slot::new(SlotId(0));
        slot.enter(SlotState::Stopped, Tick::ZERO);
        slot.start(Tick::ZERO, Tick::ZERO);
    }
}
