//! One slot: the place for a worker, its life as a state, and who serves its accept queue.
//!
//! Three kinds of seats. The *main* one is of the worker that serves, or should. During a restart
//! a *successor* comes up beside it; once that one serves, the old worker is a *predecessor* until
//! it has handed over, or drained, what it has.
//!
//! Pure: no descriptor, no clock, no decision. [`super::Machine`] decides; a slot only knows which
//! changes are possible at all.
//!
//! Invariants:
//! - the main seat's state changes in `Slot::enter` and nowhere else, so "who serves the queue" can
//!   never drift apart from "what the worker is doing";
//! - a process has one seat, and no generation is used twice: `born` counts them for all seats,
//!   since a predecessor that returns to the main seat is older than a successor that failed;
//! - at most one predecessor hands over at a time; while it does, the main seat is taken by the
//!   worker it hands over to, or is retired;
//! - a queue that has been bound is served by the slot's own worker, lent to a sibling, or known to
//!   be unserved since a given time. It is never forgotten.

mod invariants;
mod seats;

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub(super) use seats::{
    Predecessor, PredecessorStage, Pulse, Seat, Successor, SuccessorState, Watch,
};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::ReleaseId;
pub use uppercased_ctl::identity::{Generation, SlotId, WorkerId};

/// How a worker's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Death {
    /// It exited by itself with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It is gone, but somebody else has taken its status.
    Unknown,
    /// It was killed and did not end: something in the kernel holds it. Nobody waits for it any
    /// more.
    Lost,
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
            Self::Lost => write!(f, "killed, held by the kernel"),
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
        /// It was spawned as a successor and lost its main worker since: it does not accept before
        /// it is told to.
        standby: bool,
    },
    /// Ready, accepting on the slot's listener.
    Serving,
    /// Sent SIGKILL, not reaped yet. Its pidfd tells when it has ended; its queue is lent meanwhile.
    Killing {
        /// When it is given up: something in the kernel holds it, which no signal ends.
        until: Tick,
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
    /// The slot leaves: its last worker hands over as a predecessor, or has, and nobody follows.
    Retired,
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
            Self::Retired => "retired",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// Whether a process exists (or was ordered and has not been reported as failed).
    #[must_use]
    pub const fn is_live(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Serving | Self::Killing { .. } | Self::Stopping => true,
            Self::Waiting | Self::BackingOff { .. } | Self::Retired | Self::Stopped => false,
        }
    }

    /// Whether the change to `next` makes sense at all. What is not listed is a bug.
    fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Waiting => matches!(next, Self::Starting { .. } | Self::Retired | Self::Stopped),
            Self::Starting { .. } => matches!(
                next,
                Self::Serving
                    | Self::Starting { .. }
                    | Self::Killing { .. }
                    | Self::BackingOff { .. }
                    | Self::Stopped
            ),
            // To itself: a successor takes over, or a predecessor comes back.
            Self::Serving => matches!(
                next,
                Self::Serving
                    | Self::Starting { .. }
                    | Self::Killing { .. }
                    | Self::BackingOff { .. }
                    | Self::Retired
                    | Self::Stopping
            ),
            Self::Killing { .. } => matches!(
                next,
                Self::Serving | Self::Starting { .. } | Self::BackingOff { .. } | Self::Stopped
            ),
            Self::BackingOff { .. } => {
                matches!(next, Self::Starting { .. } | Self::Retired | Self::Stopped)
            }
            Self::Retired => matches!(
                next,
                Self::Serving | Self::Starting { .. } | Self::BackingOff { .. } | Self::Stopped
            ),
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
    /// Its end of the channel is closed; it has mostly ended by itself.
    ChannelClosed,
    /// A sibling could not start at boot, so nothing starts.
    BootFailed,
    /// Its loop stood still.
    Hung,
    /// It has done nothing wrong: its slot gets another worker in its place.
    Superseded,
    /// The operation that it was started for has failed.
    OperationFailed,
    /// Connections were to go from it or to come to it, and it was its turn for too long.
    HandoverTimedOut,
    /// Its predecessor has lost touch with it, and serves again.
    PeerGone,
    /// It was to end and did not, although its time was over.
    Overstayed,
    /// The supervisor stops, and this one was not serving, did not finish in time, or was told to
    /// end at once.
    Stop,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartTimedOut => write!(f, "not ready in time"),
            Self::ChannelBroken { cause } => write!(f, "its channel broke: {cause}"),
            Self::ChannelClosed => write!(f, "it closed its channel"),
            Self::BootFailed => write!(f, "the boot failed"),
            Self::Hung => write!(f, "its loop stood still"),
            Self::Superseded => write!(f, "another worker takes its place"),
            Self::OperationFailed => write!(f, "the operation it was started for failed"),
            Self::HandoverTimedOut => write!(f, "its handover made no progress"),
            Self::PeerGone => write!(f, "its predecessor lost touch with it"),
            Self::Overstayed => write!(f, "it had to leave and did not"),
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
    /// Nobody, for good: its listeners are closed, and no client can come.
    Closed,
}

/// A slot, with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    /// The generation of the main worker, or of the latest one.
    pub(super) generation: Generation,
    /// The latest generation of all seats.
    pub(super) born: Generation,
    /// What the main worker runs, or the latest one ran.
    pub(super) release: ReleaseId,
    /// What the next main worker will run.
    pub(super) next_release: ReleaseId,
    pub(super) state: SlotState,
    /// When `state` was entered.
    pub(super) since: Tick,
    pub(super) queue: Queue,
    pub(super) pulse: Option<Pulse>,
    /// The main worker came back from handing over, and has not said how that ended for it.
    pub(super) owes_word: bool,
    pub(super) successor: Option<Successor>,
    /// Oldest first. A restart that goes back may add one to another that still drains.
    pub(super) predecessors: Vec<Predecessor>,
    /// Failures in a row, without a full `backoff_reset` of service between them. Wiped when such
    /// a worker dies, not while it lives: nobody looks at it before.
    pub(super) failures: u32,
    /// Failures of all time.
    pub(super) deaths: u32,
    pub(super) last_death: Option<LastDeath>,
}

impl Slot {
    /// A slot without a worker. `born` is the latest generation of an earlier slot of the same
    /// number, `release` what its workers will run.
    pub(super) const fn new(id: SlotId, born: Generation, release: ReleaseId) -> Self {
        Self {
            id,
            generation: Generation(0),
            born,
            release,
            next_release: release,
            state: SlotState::Waiting,
            since: Tick::ZERO,
            queue: Queue::Unbound,
            pulse: None,
            owes_word: false,
            successor: None,
            predecessors: Vec::new(),
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
            // The one goes on accepting for the lame-duck time, the other until it has handed over.
            SlotState::Stopping | SlotState::Retired => {}
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Stopped => {
                self.unserve(now);
            }
        }
        self.state = next;
        self.since = now;
        self.pulse = None;
        self.owes_word = false;
    }

    /// Nobody serves the queue any more, if somebody did.
    pub(super) fn unserve(&mut self, now: Tick) {
        if self.queue == Queue::Served {
            self.queue = Queue::Unserved { since: now };
        }
    }

    /// Begins the next generation in the main seat, to be Ready by `deadline`.
    pub(super) fn start(&mut self, deadline: Tick, now: Tick) -> WorkerId {
        self.born = self.born.next();
        self.generation = self.born;
        self.release = self.next_release;
        self.enter(
            SlotState::Starting {
                deadline,
                words: None,
                standby: false,
            },
            now,
        );
        self.worker()
    }

    /// Begins the next generation beside the main worker.
    pub(super) fn start_successor(
        &mut self,
        release: ReleaseId,
        deadline: Tick,
        now: Tick,
    ) -> WorkerId {
        self.born = self.born.next();
        self.successor = Some(Successor {
            generation: self.born,
            release,
            since: now,
            state: SuccessorState::Starting {
                deadline,
                words: None,
            },
        });
        self.named(self.born)
    }

    /// The successor that has just become Ready takes the main seat; who was there leaves, from
    /// `stage` on. `None` without such a successor.
    pub(super) fn promote(&mut self, stage: PredecessorStage, now: Tick) -> Option<WorkerId> {
        let successor = self.successor.take()?;
        self.relieve(stage);
        self.generation = successor.generation;
        self.release = successor.release;
        self.next_release = successor.release;
        self.enter(SlotState::Serving, now);
        Some(self.worker())
    }

    /// Makes a predecessor of the main worker; the caller gives the seat a new state.
    pub(super) fn relieve(&mut self, stage: PredecessorStage) {
        self.predecessors.push(Predecessor {
            generation: self.generation,
            release: self.release,
            served_since: self.since,
            pulse: self.pulse.take(),
            stage,
        });
    }

    /// The main worker is lost: a successor that is still starting takes its place, and what is
    /// left of it is a predecessor until it is reaped. Says whether there was one.
    pub(super) fn yield_to_successor(&mut self, now: Tick) -> bool {
        let Some(Successor {
            generation,
            release,
            since,
            state: SuccessorState::Starting { deadline, words },
        }) = self.successor.clone()
        else {
            return false;
        };
        self.successor = None;
        if let SlotState::Killing {
            until,
            why,
            served_for,
            ..
        } = self.state.clone()
        {
            let served_for = served_for.unwrap_or_default();
            self.relieve(PredecessorStage::Killing {
                until,
                why,
                served_for,
            });
        }
        self.generation = generation;
        self.release = release;
        self.next_release = release;
        let standby = true;
        let next = SlotState::Starting {
            deadline,
            words,
            standby,
        };
        self.enter(next, now);
        self.since = since;
        true
    }

    /// Ends the process by force, and waits for that until `until`; the caller sends the signal.
    pub(super) fn kill(&mut self, why: KillReason, until: Tick, now: Tick) {
        let (served_for, words) = match &self.state {
            SlotState::Starting { words, .. } => (None, words.clone()),
            SlotState::Serving | SlotState::Stopping => (Some(now.since(self.since)), None),
            SlotState::Waiting
            | SlotState::Killing { .. }
            | SlotState::BackingOff { .. }
            | SlotState::Retired
            | SlotState::Stopped => (None, None),
        };
        self.enter(
            SlotState::Killing {
                until,
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
            Queue::Unbound | Queue::Served | Queue::Unserved { .. } | Queue::Closed => {}
        }
    }

    /// The main worker, or the latest one.
    pub(super) const fn worker(&self) -> WorkerId {
        self.named(self.generation)
    }

    pub(super) const fn named(&self, generation: Generation) -> WorkerId {
        WorkerId {
            slot: self.id,
            generation,
        }
    }

    /// Where the worker of that generation is, or was last. The main seat comes last: that of a
    /// retired slot still bears the name of the worker that left it.
    pub(super) fn seat(&self, generation: Generation) -> Option<Seat> {
        let of = |it: &Predecessor| it.generation == generation;
        if let Some(index) = self.predecessors.iter().position(of) {
            return Some(Seat::Predecessor(index));
        }
        if self.successor.as_ref().map(|it| it.generation) == Some(generation) {
            return Some(Seat::Successor);
        }
        (self.generation == generation).then_some(Seat::Main)
    }

    /// The predecessor that hands over, if one does.
    pub(super) fn handing_over(&self) -> Option<usize> {
        let hands = |it: &Predecessor| matches!(it.stage, PredecessorStage::HandingOver { .. });
        self.predecessors.iter().position(hands)
    }

    /// Whether no process is in any seat.
    pub(super) const fn is_empty(&self) -> bool {
        !self.state.is_live() && self.successor.is_none() && self.predecessors.is_empty()
    }

    /// Whether it serves with `release` and has nothing left to take in.
    pub(super) fn is_renewed(&self, release: ReleaseId) -> bool {
        self.state == SlotState::Serving && self.release == release && self.handing_over().is_none()
    }

    /// Its workers that were killed and are awaited, each with when it is given up.
    pub(super) fn killed(&self) -> impl Iterator<Item = (WorkerId, Tick)> {
        let main = match &self.state {
            SlotState::Killing { until, .. } => Some((self.worker(), *until)),
            SlotState::Waiting
            | SlotState::Starting { .. }
            | SlotState::Serving
            | SlotState::BackingOff { .. }
            | SlotState::Retired
            | SlotState::Stopping
            | SlotState::Stopped => None,
        };
        let successor = self.successor.iter().filter_map(|it| match &it.state {
            SuccessorState::Killing { until, .. } => Some((self.named(it.generation), *until)),
            SuccessorState::Starting { .. } => None,
        });
        let predecessors = self.predecessors.iter().filter_map(|it| match &it.stage {
            PredecessorStage::Killing { until, .. } => Some((self.named(it.generation), *until)),
            PredecessorStage::HandingOver { .. }
            | PredecessorStage::Leaving { .. }
            | PredecessorStage::Stopping => None,
        });
        main.into_iter().chain(successor).chain(predecessors)
    }

    /// When one of its seats must be looked at again, pulses and killed workers apart.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let main = match &self.state {
            SlotState::Starting { deadline, .. } => Some(*deadline),
            SlotState::BackingOff { until } => Some(*until),
            SlotState::Waiting
            | SlotState::Serving
            | SlotState::Killing { .. }
            | SlotState::Retired
            | SlotState::Stopping
            | SlotState::Stopped => None,
        };
        let successor = self.successor.iter().map(|it| match &it.state {
            SuccessorState::Starting { deadline, .. } => Some(*deadline),
            SuccessorState::Killing { .. } => None,
        });
        let predecessors = self.predecessors.iter().map(|it| match &it.stage {
            PredecessorStage::HandingOver { deadline, .. } => *deadline,
            PredecessorStage::Leaving { deadline, .. } => Some(*deadline),
            PredecessorStage::Stopping | PredecessorStage::Killing { .. } => None,
        });
        main.into_iter()
            .chain(successor.flatten())
            .chain(predecessors.flatten())
            // One that leaves with connections that cannot move ends with them.
            .filter(|at| *at < Tick::MAX)
            .min()
    }

    /// Whether `worker` is this slot's and accepts.
    pub(super) fn is_served_by(&self, worker: WorkerId) -> bool {
        self.worker() == worker && self.state == SlotState::Serving
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
        let mut slot = Slot::new(SlotId(0), Generation(0), ReleaseId::FIRST);
        slot.start(Tick::from_millis(50), Tick::from_millis(0));
        assert_eq!(slot.queue, Queue::Unbound);
        slot.enter(SlotState::Serving, Tick::from_millis(10));
        slot.kill(
            KillReason::Stop,
            Tick::from_millis(40),
            Tick::from_millis(30),
        );
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
        let mut slot = Slot::new(SlotId(0), Generation(0), ReleaseId::FIRST);
        slot.enter(SlotState::Stopped, Tick::ZERO);
        slot.start(Tick::ZERO, Tick::ZERO);
    }
}
