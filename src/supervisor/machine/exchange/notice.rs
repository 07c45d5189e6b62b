//! What the machine reports: for the log, and for clients that wait for an operation.
//!
//! Plain values without behaviour, as all of what goes in and out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::event::{Event, ListenerSource};
use crate::handover::HandoverEnd;
use crate::supervisor::machine::worker::Death;
use uppercased_ctl::identity::{RequestId, SlotId, WorkerId};

/// Something worth a log line, with all that the line needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A worker is being spawned.
    WorkerStarting {
        /// The worker.
        worker: WorkerId,
        /// Where its listener comes from.
        listener: ListenerSource,
    },
    /// A new worker is Ready beside the one that serves.
    WorkerStandingBy {
        /// The worker.
        worker: WorkerId,
        /// From its spawn to its Ready.
        took: Duration,
    },
    /// A planned operation begins.
    OperationStarted {
        /// "restart", "upgrade", "scale to 3".
        what: String,
        /// The request.
        request: RequestId,
    },
    /// A planned operation ended, or did not begin.
    OperationEnded {
        /// "restart", "upgrade", "scale to 3".
        what: String,
        /// The result.
        answer: Answer,
    },
    /// An operation was cancelled; it rolls back.
    OperationCancelled {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// The requester.
        by: String,
    },
    /// Something is in a request's way, and it waits for that.
    RequestPending {
        /// As in [`Notice::OperationStarted`]; a number of workers includes what waited before.
        what: String,
        /// The request.
        request: RequestId,
    },
    /// Its caller has left, and it does not wait any more.
    RequestWithdrawn {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// The request.
        request: RequestId,
    },
    /// It could not be prepared, so nothing has changed.
    NotBegun {
        /// As in [`Notice::OperationStarted`].
        what: String,
        /// The cause, in one line.
        cause: String,
    },
    /// Connections are to move from one worker to another.
    HandoverStarted {
        /// The sender, which leaves.
        from: WorkerId,
        /// The receiver, which serves on.
        to: WorkerId,
    },
    /// That is over.
    HandoverEnded {
        /// The sender.
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
    /// One side of a handover has stalled; it is killed.
    HandoverTimedOut {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The stalled one of the two.
        stalled: WorkerId,
        /// How long ago the handover began.
        after: Duration,
    },
    /// A worker is too busy: a part of its connections is to move.
    RebalanceStarted {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// Calls a second of the one that gives.
        from_calls: u64,
        /// And of the one that takes.
        to_calls: u64,
    },
    /// That is over.
    RebalanceEnded {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Done, or why not (all) of it.
        end: HandoverEnd,
        /// How long it took.
        took: Duration,
    },
    /// A part has not moved in time. A worker that does not answer is detected by its pulse.
    RebalanceTimedOut {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// How long it had.
        after: Duration,
    },
    /// A predecessor serves its slot again, because its successor failed.
    Restored {
        /// The worker.
        worker: WorkerId,
    },
    /// A restart rolls back: the slots it replaced get the old release again.
    RollingBack {
        /// The cause.
        cause: String,
        /// The number of slots.
        slots: u16,
    },
    /// A worker's loop has stalled for too long; it is killed.
    WorkerHung {
        /// The worker.
        worker: WorkerId,
        /// For how long nothing moved, at least.
        after: Duration,
    },
    /// A killed worker has not ended: something in the kernel holds it. It is given up.
    NotEnded {
        /// The worker.
        worker: WorkerId,
        /// How long it has been awaited.
        after: Duration,
    },
    /// A worker's loop has made no turn although it was asked to.
    WorkerStalled {
        /// The worker.
        worker: WorkerId,
        /// For how long nothing moved, about.
        after: Duration,
    },
    /// A worker that had stalled makes turns again.
    WorkerRunsAgain {
        /// The worker.
        worker: WorkerId,
        /// For how long nothing moved, about.
        after: Duration,
    },
    /// A worker serves.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
        /// From its spawn to its Ready.
        took: Duration,
    },
    /// A worker ended that should not have.
    WorkerDied {
        /// The worker.
        worker: WorkerId,
        /// The exit status.
        how: Death,
        /// How long it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// The cause, if it is known.
        cause: Option<String>,
    },
    /// A worker ended as it was told to, one way or the other.
    WorkerStopped {
        /// The worker.
        worker: WorkerId,
        /// The exit status; anything but exit code 0 means that it did not end by itself.
        how: Death,
    },
    /// A process could not be made.
    SpawnFailed {
        /// The worker that does not exist.
        worker: WorkerId,
        /// The system's error.
        cause: String,
    },
    /// A worker was not Ready in time and is killed.
    StartTimedOut {
        /// The worker.
        worker: WorkerId,
        /// How long it was given.
        after: Duration,
    },
    /// A worker's channel broke; the worker is killed.
    ChannelBroken {
        /// The worker.
        worker: WorkerId,
        /// The error.
        cause: String,
    },
    /// The slot failed again and pauses.
    BackingOff {
        /// The slot.
        slot: SlotId,
        /// For how long.
        delay: Duration,
        /// Failures in a row, this one included.
        failures: u32,
    },
    /// A sibling serves the slot's queue now.
    Lent {
        /// The slot of the queue.
        slot: SlotId,
        /// The sibling.
        to: WorkerId,
        /// How long it was unserved (on a second loan: since its own worker stopped).
        after: Duration,
    },
    /// A slot without a worker leaves: a sibling has emptied its queue.
    LeftWithoutWorker {
        /// The slot.
        slot: SlotId,
        /// The sibling.
        from: WorkerId,
    },
    /// The slot's own worker is back.
    Recalled {
        /// The slot of the queue.
        slot: SlotId,
        /// From which sibling.
        from: WorkerId,
    },
    /// A graceful stop begins.
    Stopping {
        /// The requester.
        by: String,
        /// After this, what is left is killed.
        at_most: Duration,
    },
    /// A second request to stop: everything is killed.
    StopForced {
        /// The requester.
        by: String,
    },
    /// A worker has not finished in time and is killed.
    StillDraining {
        /// The worker.
        worker: WorkerId,
        /// How long it had.
        after: Duration,
    },
    /// A worker could not start at boot; the server serves without it, and tries again.
    Degraded {
        /// The slot.
        slot: SlotId,
        /// The cause, in one line.
        cause: String,
    },
    /// The boot failed; what runs already is killed.
    BootFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// Something was not as an invariant of the machine promises; it went on without it.
    InvariantBroken {
        /// Its description.
        what: String,
        /// The number so far.
        total: u64,
    },
    /// An event about a worker that is no more, an unknown slot, or something already told. It has
    /// been dropped.
    StaleEvent {
        /// The event.
        event: Event,
        /// The number so far.
        total: u64,
    },
}
