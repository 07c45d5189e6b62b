//! What goes into the supervisor's machine and what comes out: events, actions, notices.
//!
//! Plain values without behaviour. Each names a worker by slot *and* generation, so that what comes
//! late is recognised. They can be serialised because actions not yet carried out are part of a
//! snapshot: renaming a variant or a field changes the snapshot's format (and its version).

mod answer;
mod event;
mod notice;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answer::{Answer, Done};
pub use event::{Event, ListenerSource, Load, Wanted};
pub use notice::Notice;

use crate::handover::Part;
pub use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::identity::{ReleaseId, RequestId, SlotId, WorkerId};

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Start a process; if that fails, say so with [`Event::SpawnFailed`].
    Spawn {
        /// The worker that it becomes. A slot that the shell does not have yet begins with this.
        worker: WorkerId,
        /// Where its listener comes from.
        listener: ListenerSource,
        /// The release that it runs.
        release: ReleaseId,
        /// Whether it is to be Ready without accepting, until [`Action::Serve`] or
        /// [`Action::HandOver`] to it: another worker of the slot still serves.
        standby: bool,
    },
    /// SIGKILL, by pidfd. The process may be gone already, or its spawn may have failed: no error.
    Kill {
        /// The worker.
        worker: WorkerId,
    },
    /// Wait no longer for a worker that was killed and has not ended: it is none of the slot's any
    /// more, and reaped when it ends after all.
    Abandon {
        /// The worker.
        worker: WorkerId,
    },
    /// Close the kept duplicates of all listeners: no worker will adopt one any more. From now on
    /// a listener lives as long as a worker serves it, so that new clients are refused, and not
    /// left to wait in a queue that no worker will empty. Comes before the first `StopWorker`: else
    /// clients could arrive between a worker's last accept and the end of its listener.
    EndCustody,
    /// Order the worker to stop gracefully, over its channel.
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
        /// From whom.
        from: WorkerId,
        /// The slot leaves: the sibling accepts what waits before it closes its duplicate.
        last: bool,
    },
    /// Have a worker that stands by accept: it has no predecessor, or that one leaves.
    Serve {
        /// The worker.
        worker: WorkerId,
    },
    /// Connect two workers: `from` stops accepting and sends its connections, `to` takes them in,
    /// and accepts if it stood by. `to` is told first: its end of the pair is there before any
    /// connection is on its way.
    HandOver {
        /// The sender, which leaves.
        from: WorkerId,
        /// The receiver, which serves on.
        to: WorkerId,
        /// No worker accepts from the listeners of `from` after it.
        last: bool,
    },
    /// Connect two workers that both serve, and go on serving: `from` sends a part of its
    /// connections to `to`, and says [`Event::Rebalanced`].
    Rebalance {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The part to move.
        part: Part,
    },
    /// Read what every worker has done so far, and answer with [`Event::Loads`] at once.
    TakeLoads,
    /// Tell a worker to stop accepting and to serve what is established until it ends.
    Leave {
        /// The worker.
        worker: WorkerId,
        /// It finishes what is left after this time.
        within: Duration,
    },
    /// Read how far a handover is, and answer with [`Event::Progress`] at once.
    TakeProgress {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
    },
    /// Read how many turns a worker's loop has made, and answer with [`Event::Pulse`] at once.
    TakePulse {
        /// The worker.
        worker: WorkerId,
    },
    /// Have a worker make a turn, in case it only had nothing to do.
    Ping {
        /// The worker.
        worker: WorkerId,
    },
    /// Give new connections to the sockets of the first `slots` slots only.
    Steer {
        /// How many slots still get new connections.
        slots: u16,
    },
    /// Give new connections to every slot's sockets again.
    Unsteer,
    /// So many slots listen now: spread new connections over all of them, as the configuration in
    /// force says.
    Spread {
        /// The number of slots.
        slots: u16,
    },
    /// Close the kept duplicates of a slot's listeners: no worker will serve them any more.
    CloseListeners {
        /// The slot.
        slot: SlotId,
    },
    /// Forget the last slot; no process of it is left.
    DropSlot {
        /// The slot; always the one with the highest number.
        slot: SlotId,
    },
    /// It is the request's turn: prepare it, and begin it with [`Event::Restart`],
    /// [`Event::Upgrade`] or [`Event::Scale`], or give it up with [`Event::NotBegun`]. One of them
    /// must follow, with this request.
    Begin {
        /// The request.
        request: RequestId,
        /// The operation.
        wanted: Wanted,
        /// Whether connections that cannot move may be drained.
        drain: bool,
    },
    /// Let the program on disk show that it can take over: [`Event::PreflightPassed`] or
    /// [`Event::PreflightFailed`] must follow, unless the machine stops waiting.
    Preflight,
    /// The child that tries the new program, or that reads the configuration of a reload, took too
    /// long, or its result is not wanted any more: end it. No event follows.
    AbortPreflight,
    /// Become the program that passed, with a snapshot of the machine taken now. Comes last of its
    /// batch. If it fails, say so with [`Event::ExecFailed`].
    Exec,
    /// The release is everybody's now: its configuration is in force for the supervisor too, and
    /// whatever no slot runs can be let go.
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
    /// Something to log and count.
    Notice(Notice),
    /// Every slot has been Ready once: print the address. Once in a life.
    Announce,
    /// The last action ever: no process is left.
    Exit(Verdict),
}

/// How the supervisor's life ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It was asked to stop, and did.
    Clean,
    /// It could not start.
    Failed {
        /// The cause, in one line.
        cause: String,
    },
}
