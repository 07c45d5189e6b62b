//! What the machine reports: for the log, and for whoever waits for an operation.
//!
//! Plain values without behaviour, as all of what goes in and out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Event, HandoverEnd, ListenerSource, RequestId};
use crate::supervisor::machine::worker::Death;
use uppercased_ctl::identity::{SlotId, WorkerId};

/// Something worth a log line, with all that the line needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A worker is being spawned.
    WorkerStarting {
        /// Who.
        worker: WorkerId,
        /// Where its listener comes from.
        listener: ListenerSource,
    },
    /// A new worker is Ready beside the one that serves.
    WorkerStandingBy {
        /// Who.
        worker: WorkerId,
        /// From its spawn to its Ready.
        took: Duration,
    },
    /// A planned operation begins.
    OperationStarted {
        /// "restart", "upgrade", "scale to 3".
        what: String,
        /// Who asked.
        request: RequestId,
    },
    /// A planned operation ended, or did not begin.
    OperationEnded {
        /// "restart", "upgrade", "scale to 3".
        what: String,
        /// How.
        answer: Answer,
    },
    /// Somebody has ended an operation before it was over; it goes back.
    OperationCancelled {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// Who.
        by: String,
    },
    /// Something is in a request's way, and it waits for that.
    RequestPending {
        /// As in [`Notice::OperationStarted`]; a number of workers includes what waited before.
        what: String,
        /// Who asked.
        request: RequestId,
    },
    /// Its caller has left, and it does not wait any more.
    RequestWithdrawn {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// Who asked.
        request: RequestId,
    },
    /// It could not be prepared, so nothing has changed.
    NotBegun {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// Why, in one line.
        cause: String,
    },
    /// Connections are to move from one worker to another.
    HandoverStarted {
        /// Who leaves.
        from: WorkerId,
        /// Who goes on.
        to: WorkerId,
    },
    /// That is over.
    HandoverEnded {
        /// Who was to leave.
        from: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Connections that were left.
        left: u32,
        /// What comes of it.
        end: HandoverEnd,
        /// How long it took.
        took: Duration,
    },
    /// One side of a handover has kept the other waiting for too long; it is killed.
    HandoverTimedOut {
        /// Who was to leave.
        from: WorkerId,
        /// Who was to go on.
        to: WorkerId,
        /// Which of the two it is.
        stalled: WorkerId,
        /// How long ago the handover began.
        after: Duration,
    },
    /// A worker is too busy: a part of its connections is to move.
    RebalanceStarted {
        /// Who gives.
        from: WorkerId,
        /// Who takes.
        to: WorkerId,
        /// Calls a second of the one that gives.
        from_calls: u64,
        /// And of the one that takes.
        to_calls: u64,
    },
    /// That is over.
    RebalanceEnded {
        /// Who gave.
        from: WorkerId,
        /// Who took.
        to: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Done, or why not (all) of it.
        end: HandoverEnd,
        /// How long it took.
        took: Duration,
    },
    /// A part has not moved in time. Whoever does not answer will be noticed by its pulse.
    RebalanceTimedOut {
        /// Who was to give.
        from: WorkerId,
        /// Who was to take.
        to: WorkerId,
        /// How long it had.
        after: Duration,
    },
    /// A predecessor serves its slot again, because its successor failed.
    Restored {
        /// Who.
        worker: WorkerId,
    },
    /// A restart goes back: the slots it renewed get the old release again.
    RollingBack {
        /// Why.
        cause: String,
        /// How many slots.
        slots: u16,
    },
    /// A worker's loop stands still; it is killed.
    WorkerHung {
        /// Who.
        worker: WorkerId,
        /// For how long nothing moved, at least.
        after: Duration,
    },
    /// A killed worker has not ended: something in the kernel holds it. It is given up.
    NotEnded {
        /// Who.
        worker: WorkerId,
        /// How long it has been awaited.
        after: Duration,
    },
    /// A worker's loop has made no turn although it was asked to.
    WorkerStalled {
        /// Who.
        worker: WorkerId,
        /// For how long nothing moved, about.
        after: Duration,
    },
    /// A worker that had stalled makes turns again.
    WorkerRunsAgain {
        /// Who.
        worker: WorkerId,
        /// For how long nothing moved, about.
        after: Duration,
    },
    /// A worker serves.
    WorkerReady {
        /// Who.
        worker: WorkerId,
        /// From its spawn to its Ready.
        took: Duration,
    },
    /// A worker ended that should not have.
    WorkerDied {
        /// Who.
        worker: WorkerId,
        /// How.
        how: Death,
        /// How long it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// Why, if anybody said so.
        cause: Option<String>,
    },
    /// A worker ended as it was told to, one way or the other.
    WorkerStopped {
        /// Who.
        worker: WorkerId,
        /// How; anything but exit code 0 means that it did not end by itself.
        how: Death,
    },
    /// A process could not be made.
    SpawnFailed {
        /// Who would have been.
        worker: WorkerId,
        /// What the system said.
        cause: String,
    },
    /// A worker was not Ready in time and is killed.
    StartTimedOut {
        /// Who.
        worker: WorkerId,
        /// How long it was given.
        after: Duration,
    },
    /// A worker's channel broke; the worker is killed.
    ChannelBroken {
        /// Who.
        worker: WorkerId,
        /// What broke.
        cause: String,
    },
    /// The slot failed again and pauses.
    BackingOff {
        /// Which.
        slot: SlotId,
        /// For how long.
        delay: Duration,
        /// Failures in a row, this one included.
        failures: u32,
    },
    /// A sibling serves the slot's queue now.
    Lent {
        /// Whose queue.
        slot: SlotId,
        /// Which sibling.
        to: WorkerId,
        /// How long nobody had served it (on a second loan: since its own worker stopped).
        after: Duration,
    },
    /// A slot without a worker leaves: a sibling has emptied its queue.
    LeftWithoutWorker {
        /// Which.
        slot: SlotId,
        /// Which sibling.
        from: WorkerId,
    },
    /// The slot's own worker is back.
    Recalled {
        /// Whose queue.
        slot: SlotId,
        /// From which sibling.
        from: WorkerId,
    },
    /// A graceful stop begins.
    Stopping {
        /// Who asked.
        by: String,
        /// After this, what is left is killed.
        at_most: Duration,
    },
    /// A second request to stop: everything is killed.
    StopForced {
        /// Who asked.
        by: String,
    },
    /// A worker has not finished in time and is killed.
    StillDraining {
        /// Who.
        worker: WorkerId,
        /// How long it had.
        after: Duration,
    },
    /// A worker could not start at boot; the server serves without it, and tries again.
    Degraded {
        /// Whose.
        slot: SlotId,
        /// Why, in one line.
        cause: String,
    },
    /// The boot failed; what runs already is killed.
    BootFailed {
        /// Why, in one line.
        cause: String,
    },
    /// Something was not as an invariant of the machine promises; it went on without it.
    InvariantBroken {
        /// What, in words.
        what: String,
        /// How many times something was.
        total: u64,
    },
    /// An event about a worker that is no more, an unknown slot, or something already told. It has
    /// been dropped.
    StaleEvent {
        /// The event.
        event: Event,
        /// How many there have been.
        total: u64,
    },
}
