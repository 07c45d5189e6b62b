//! The input and output of the supervisor's machine: events, actions, notices.
//!
//! Plain values without behaviour. Each names a worker by slot *and* generation, so that late ones
//! are recognised. They can be serialised because pending actions are part of a snapshot: renaming
//! a variant or a field changes the snapshot's format (and its version).

mod answer;
mod event;
mod notice;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answer::Answer;
pub use event::{Canceller, Event, ListenerSource, Load, Rescue, Wanted};
pub use notice::Notice;

use crate::handover::Part;
pub use uppercased_ctl::control::{Done, ScaleTo};
use uppercased_ctl::identity::{Generation, ReleaseId, RequestId, SlotId, WorkerId};

/// A slot that a machine begins with, of which a worker serves already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The worker that is to serve.
    pub worker: WorkerId,
    /// Another one, which is to hand its connections over to it.
    pub other: Option<Generation>,
}

/// An action that the shell must execute, in sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Start a process; report a failure with [`Event::SpawnFailed`].
    Spawn {
        /// The worker that it becomes. A slot that the shell does not have yet begins with this.
        worker: WorkerId,
        /// Source of its listeners.
        listener: ListenerSource,
        /// The release that it runs.
        release: ReleaseId,
        /// Whether it is to be Ready without accepting, until [`Action::Serve`] or
        /// [`Action::HandOver`] to it: another worker of the slot still serves.
        standby: bool,
    },
    /// SIGKILL, by pidfd. It is no error if the process has exited, or its spawn has failed.
    Kill {
        /// The worker.
        worker: WorkerId,
    },
    /// SIGKILL to its process, but not to its keeper, which continues it. [`Event::Rescued`] or
    /// [`Event::Exited`] follows.
    KillProcess {
        /// The worker.
        worker: WorkerId,
    },
    /// Tell a rescued worker that its rescue is known.
    Confirm {
        /// The worker.
        worker: WorkerId,
    },
    /// Stop waiting for a worker that was killed and has not exited: it no longer belongs to the
    /// slot, and is reaped if it exits later.
    Abandon {
        /// The worker.
        worker: WorkerId,
    },
    /// Close the kept duplicates of all listeners: no worker will adopt one again. From now on a
    /// listener exists only while a worker serves it, so new clients are refused instead of waiting
    /// in a queue that no worker empties. Comes before the first `StopWorker`: otherwise clients
    /// could arrive between a worker's last accept and the close of its listener.
    EndCustody,
    /// Send the worker a request to stop gracefully, over its channel.
    StopWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// Give a duplicate of the slot's listener to a serving sibling, which accepts on it meanwhile.
    Lend {
        /// The slot of the listener.
        slot: SlotId,
        /// The receiver.
        to: WorkerId,
    },
    /// The sibling stops accepting on the slot's listener and closes its duplicate.
    Recall {
        /// The slot of the listener.
        slot: SlotId,
        /// The borrower.
        from: WorkerId,
        /// Whether the slot leaves: then the sibling empties the queue before it closes its
        /// duplicate.
        last: bool,
    },
    /// Make a standby worker accept: it has no predecessor, or its predecessor leaves.
    Serve {
        /// The worker.
        worker: WorkerId,
    },
    /// Connect two workers: `from` stops accepting and sends its connections; `to` adopts them, and
    /// starts accepting if it was a standby. `to` is sent its message first, so its end of the pair
    /// exists before any connection is sent.
    HandOver {
        /// The sender, which leaves.
        from: WorkerId,
        /// The receiver, which continues to serve.
        to: WorkerId,
        /// Whether no worker accepts from the listeners of `from` afterwards.
        last: bool,
    },
    /// Connect two workers that both serve and continue to: `from` sends a part of its connections
    /// to `to` and reports [`Event::Rebalanced`].
    Rebalance {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The part to move.
        part: Part,
    },
    /// Read every worker's counters and answer with [`Event::Loads`] at once.
    TakeLoads,
    /// Make a worker stop accepting and serve its connections until they end.
    Leave {
        /// The worker.
        worker: WorkerId,
        /// Time after which it ends its remaining connections.
        within: Duration,
    },
    /// Read the progress of a handover and answer with [`Event::Progress`] at once.
    TakeProgress {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
    },
    /// Read a worker's turn counter and answer with [`Event::Pulse`] at once.
    TakePulse {
        /// The worker.
        worker: WorkerId,
    },
    /// Make a worker run one turn, in case it was merely idle.
    Ping {
        /// The worker.
        worker: WorkerId,
    },
    /// Steer new connections to the sockets of the first `slots` slots only.
    Steer {
        /// Number of slots that still get new connections.
        slots: u16,
    },
    /// Stop steering: every slot's sockets get new connections again.
    Unsteer,
    /// The number of listening slots has changed: spread new connections over all of them,
    /// according to the configuration in force.
    Spread {
        /// The number of slots.
        slots: u16,
    },
    /// Close the kept duplicates of a slot's listeners: no worker will serve them again.
    CloseListeners {
        /// The slot.
        slot: SlotId,
    },
    /// Drop the last slot; it has no process left.
    DropSlot {
        /// The slot; always the one with the highest number.
        slot: SlotId,
    },
    /// The request is next: prepare it, then begin it with [`Event::Reload`], [`Event::Upgrade`]
    /// or [`Event::Scale`], or abandon it with [`Event::NotBegun`]. One of them must follow, with
    /// this request.
    Begin {
        /// The request.
        request: RequestId,
        /// The operation.
        wanted: Wanted,
        /// Whether connections that cannot move may be drained.
        drain: bool,
    },
    /// Run the preflight of the new binary. [`Event::PreflightPassed`] or
    /// [`Event::PreflightFailed`] must follow, unless the machine stops waiting.
    Preflight,
    /// Kill the child that runs the preflight or reads the configuration of a reload: it timed
    /// out, or its result is no longer wanted. No event follows.
    AbortPreflight,
    /// Exec the binary that passed the preflight, with a snapshot of the machine taken now. Always
    /// the last action of its batch. Report a failure with [`Event::ExecFailed`].
    Exec,
    /// Every slot runs the release: its configuration is now in force for the supervisor too, and
    /// releases that no slot runs can be dropped.
    Commit {
        /// The release.
        release: ReleaseId,
    },
    /// Report the result to the requester. Once for each request.
    Answer {
        /// The request.
        request: RequestId,
        /// The result.
        answer: Answer,
    },
    /// An event to log and count.
    Notice(Notice),
    /// Every slot has been Ready once: print the addresses. Happens once.
    Announce,
    /// Exit: no process is left. The last action.
    Exit(Outcome),
}

/// The result of the supervisor's run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It stopped on request.
    Clean,
    /// It could not start.
    Failed {
        /// The cause, in one line.
        cause: String,
    },
}
