//! The notices of the machine: for the log, and for clients that wait for an operation.
//!
//! Plain values without behaviour, like events and actions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::event::{Canceller, Event, ListenerSource};
use crate::handover::HandoverEnd;
use crate::supervisor::machine::worker::ExitStatus;
use uppercased_ctl::identity::{RequestId, SlotId, WorkerId};
use uppercased_ctl::operation::OperationKind;

/// A log line with all its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// A worker is being spawned.
    WorkerStarting {
        /// The worker.
        worker: WorkerId,
        /// Source of its listeners.
        listener: ListenerSource,
    },
    /// A successor is Ready; the active worker still serves.
    WorkerStandingBy {
        /// The worker.
        worker: WorkerId,
        /// Time from its spawn to its Ready.
        took: Duration,
    },
    /// A planned operation began.
    OperationStarted {
        /// The operation.
        operation: OperationKind,
        /// The request.
        request: RequestId,
    },
    /// A planned operation ended, or did not begin.
    OperationEnded {
        /// The operation.
        operation: OperationKind,
        /// The result.
        answer: Answer,
    },
    /// An operation was cancelled and rolls back.
    OperationCancelled {
        /// The operation.
        operation: OperationKind,
        /// The requester.
        by: Canceller,
    },
    /// A cancellation was refused.
    CancelRefused {
        /// The cause, in one line.
        cause: String,
    },
    /// A request waits for an obstacle to pass.
    RequestPending {
        /// The operation; its number of workers includes the changes that were already waiting.
        operation: OperationKind,
        /// The request.
        request: RequestId,
    },
    /// The client of a waiting request disconnected; the request was dropped.
    RequestWithdrawn {
        /// The operation.
        operation: OperationKind,
        /// The request.
        request: RequestId,
    },
    /// A request could not be prepared; nothing has changed.
    NotBegun {
        /// The operation.
        operation: OperationKind,
        /// The cause, in one line.
        cause: String,
    },
    /// A handover between two workers began.
    HandoverStarted {
        /// The sender, which leaves.
        from: WorkerId,
        /// The receiver, which continues to serve.
        to: WorkerId,
    },
    /// A handover ended.
    HandoverEnded {
        /// The sender.
        from: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Connections that stayed with the sender.
        left: u32,
        /// The result.
        end: HandoverEnd,
        /// Its duration.
        took: Duration,
    },
    /// One side of a handover stalled and is killed.
    HandoverTimedOut {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The stalled side.
        stalled: WorkerId,
        /// Time since the handover began.
        after: Duration,
    },
    /// A worker is overloaded: a part of its connections is to move.
    RebalanceStarted {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// Calls per second of the sender.
        from_calls: u64,
        /// Calls per second of the receiver.
        to_calls: u64,
    },
    /// A rebalancing move ended.
    RebalanceEnded {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Done, or the reason why not all of the part has moved.
        end: HandoverEnd,
        /// Its duration.
        took: Duration,
    },
    /// A part did not move in time. An unresponsive worker is detected by its pulse.
    RebalanceTimedOut {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// Its time limit.
        after: Duration,
    },
    /// A predecessor serves its slot again, because its successor failed.
    Restored {
        /// The worker.
        worker: WorkerId,
    },
    /// A roll reverses: the slots that it replaced get the old release again.
    RollingBack {
        /// The cause.
        cause: String,
        /// The number of slots.
        slots: u16,
    },
    /// A worker's event loop stalled for too long; the worker is killed.
    WorkerHung {
        /// The worker.
        worker: WorkerId,
        /// Minimum duration of the stall.
        after: Duration,
    },
    /// A killed worker has not exited: something in the kernel blocks it. It is no longer awaited.
    NotEnded {
        /// The worker.
        worker: WorkerId,
        /// Time since the kill.
        after: Duration,
    },
    /// A worker's event loop has stalled: it made no turn although it was pinged.
    WorkerStalled {
        /// The worker.
        worker: WorkerId,
        /// Approximate duration of the stall.
        after: Duration,
    },
    /// The event loop of a stalled worker runs again.
    WorkerRunsAgain {
        /// The worker.
        worker: WorkerId,
        /// Approximate duration of the stall.
        after: Duration,
    },
    /// A worker serves.
    WorkerReady {
        /// The worker.
        worker: WorkerId,
        /// Time from its spawn to its Ready.
        took: Duration,
    },
    /// A worker exited unexpectedly.
    WorkerDied {
        /// The worker.
        worker: WorkerId,
        /// The exit status.
        exit: ExitStatus,
        /// Time for which it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// The cause, if it is known.
        cause: Option<String>,
    },
    /// The process of a worker ended, and its keeper continues the worker.
    WorkerRescued {
        /// The worker.
        worker: WorkerId,
        /// The exit status of the process.
        exit: ExitStatus,
        /// The cause, if it is known.
        cause: Option<String>,
        /// Connections that continue.
        connections: u32,
        /// Bytes that the process had received and not answered.
        owed_bytes: u64,
        /// Connections that were reset.
        reset: u32,
        /// Time from the wake-up of the keeper to its report.
        took: Duration,
    },
    /// A worker that was to stop exited, normally or not.
    WorkerStopped {
        /// The worker.
        worker: WorkerId,
        /// The exit status; anything but exit code 0 means that it did not exit by itself.
        exit: ExitStatus,
    },
    /// A process could not be created.
    SpawnFailed {
        /// The worker that was to be started.
        worker: WorkerId,
        /// The system's error.
        cause: String,
    },
    /// A worker was not Ready in time and is killed.
    StartTimedOut {
        /// The worker.
        worker: WorkerId,
        /// The time limit.
        after: Duration,
    },
    /// A worker's channel broke; the worker is killed.
    ChannelBroken {
        /// The worker.
        worker: WorkerId,
        /// The error.
        cause: String,
    },
    /// The slot failed again; its restart is delayed.
    BackingOff {
        /// The slot.
        slot: SlotId,
        /// The delay.
        delay: Duration,
        /// Failures in a row, this one included.
        failures: u32,
    },
    /// A sibling now serves the slot's queue.
    Lent {
        /// The slot of the queue.
        slot: SlotId,
        /// The sibling.
        to: WorkerId,
        /// Time for which it was unserved (on a second loan: since its own worker stopped).
        after: Duration,
    },
    /// A slot without a worker leaves: a sibling has emptied its queue.
    LeftWithoutWorker {
        /// The slot.
        slot: SlotId,
        /// The sibling.
        from: WorkerId,
    },
    /// The slot's own worker serves again.
    Recalled {
        /// The slot of the queue.
        slot: SlotId,
        /// The sibling that had borrowed the queue.
        from: WorkerId,
    },
    /// A graceful stop began.
    Stopping {
        /// The requester.
        by: String,
        /// Time limit, after which the remaining processes are killed.
        at_most: Duration,
    },
    /// A second stop request: every process is killed.
    StopForced {
        /// The requester.
        by: String,
    },
    /// A worker has not finished in time and is killed.
    StillDraining {
        /// The worker.
        worker: WorkerId,
        /// The time limit.
        after: Duration,
    },
    /// A worker could not start at boot; the server runs without it and keeps trying.
    Degraded {
        /// The slot.
        slot: SlotId,
        /// The cause, in one line.
        cause: String,
    },
    /// The boot failed; the processes started so far are killed.
    BootFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// An invariant of the machine was violated; the machine continued without the value concerned.
    InvariantBroken {
        /// Its description.
        what: String,
        /// Violations so far.
        total: u64,
    },
    /// An event about a worker that has exited, about an unknown slot, or repeated. It was dropped.
    StaleEvent {
        /// The event.
        event: Event,
        /// Stale events so far.
        total: u64,
    },
}
