//! What goes into the supervisor's machine and what comes out: events, actions, notices.
//!
//! Plain values without behaviour. Each names a worker by slot *and* generation, so that what comes
//! late is recognised. They can be serialised because actions not yet carried out are part of a
//! snapshot: renaming a variant or a field changes the snapshot's format (and its version).

mod notice;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::Policy;
use super::worker::{Death, Progress};
pub use notice::Notice;

use crate::handover::HandoverEnd;
use crate::handover::Part;
pub use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::identity::{ReleaseId, RequestId, SlotId, WorkerId};

/// What happened in the world.
///
/// Of one worker, report messages of its channel before its `Exited`: its own error report names the
/// cause better than an exit code does. Any other order is handled, without that text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Begin. Once, first.
    Boot,
    /// The worker's listener is deposited and it serves.
    Ready {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker's own error report before it exits without having been Ready.
    StartFailed {
        /// The worker.
        worker: WorkerId,
        /// The error message.
        cause: String,
    },
    /// The answer to [`Action::Spawn`] when no process exists (fork or the like failed).
    SpawnFailed {
        /// The worker that does not exist.
        worker: WorkerId,
        /// The system's error.
        cause: String,
    },
    /// The process is gone and reaped.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// The exit status.
        how: Death,
        /// The cause that the exit status tells, where the worker reported none.
        cause: Option<String>,
    },
    /// The channel ended or carried nonsense; the process may still live.
    ChannelBroken {
        /// The worker at its other end.
        worker: WorkerId,
        /// The error.
        cause: String,
    },
    /// The worker's end of the channel is closed: it is ending, and not reaped yet, or it lives and
    /// cannot be told anything any more. How it ended, if it did, its exit tells.
    ChannelClosed {
        /// The worker at its other end.
        worker: WorkerId,
    },
    /// Stop: the first time gracefully, the second time at once.
    Stop {
        /// The requester, for the log ("SIGTERM").
        by: String,
    },
    /// Replace every worker, one slot after the other, with a release that the shell has prepared
    /// and validated.
    Restart {
        /// The request.
        request: RequestId,
        /// What the new workers run.
        release: ReleaseId,
        /// The limits of the release's configuration; in force once every slot has been replaced.
        /// Its `workers` is the number asked for by the configuration if that has changed there,
        /// else the number in force: when all are replaced, the restart goes on by scaling to it.
        policy: Policy,
        /// Connections that cannot move may be left to drain.
        drain: bool,
    },
    /// Replace the supervisor's own program by the one on disk, then every worker.
    Upgrade {
        /// The request.
        request: RequestId,
        /// As in [`Event::Restart`].
        drain: bool,
    },
    /// The new program has shown that it can take over.
    PreflightPassed,
    /// The new program cannot take over.
    PreflightFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// The answer to [`Action::Exec`] if this program still runs after it.
    ExecFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// The first event from the new program to the restored machine, after [`Action::Exec`].
    Resumed {
        /// The release that the new program made of itself and of its configuration.
        release: ReleaseId,
        /// Its limits, as in [`Event::Restart`].
        policy: Policy,
    },
    /// Set the number of workers.
    Scale {
        /// The request.
        request: RequestId,
        /// The target number of workers.
        to: ScaleTo,
        /// As in [`Event::Restart`].
        drain: bool,
    },
    /// An operation is requested. If it can begin, now or later, [`Action::Begin`] follows.
    Requested {
        /// The request; [`RequestId::NOBODY`] for a signal.
        request: RequestId,
        /// The operation.
        wanted: Wanted,
        /// Whether it waits while something is in its way, instead of being refused. So do all
        /// signals.
        wait: bool,
        /// Whether connections that cannot move may be drained.
        drain: bool,
    },
    /// The requester does not wait any more.
    Withdrawn {
        /// The request.
        request: RequestId,
    },
    /// End the operation in progress, and take back what it has changed.
    Cancel {
        /// The request.
        request: RequestId,
        /// The requester, for clients that wait for the operation.
        by: String,
    },
    /// The answer to [`Action::Begin`] if the operation cannot be prepared.
    NotBegun {
        /// The request.
        request: RequestId,
        /// The operation.
        wanted: Wanted,
        /// The cause, in one line.
        cause: String,
    },
    /// A worker that was told to hand over reports how that ended.
    HandedOver {
        /// The worker.
        worker: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Connections that it still has.
        left: u32,
        /// What it does now.
        end: HandoverEnd,
    },
    /// A worker that was told to hand a part over reports how that ended. It serves on.
    Rebalanced {
        /// The worker.
        worker: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Done, or why not (all) of the part has moved.
        end: HandoverEnd,
    },
    /// The answer to [`Action::TakeLoads`].
    Loads {
        /// Of every worker that serves; of others it does not matter.
        loads: Vec<Load>,
    },
    /// The answer to [`Action::TakeProgress`].
    Progress {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The counters of both sides.
        progress: Progress,
    },
    /// The answer to [`Action::TakePulse`].
    Pulse {
        /// The worker.
        worker: WorkerId,
        /// Turns of its loop, all in all. Equal to the last answer: it has made none since.
        turns: u64,
    },
}

/// How much a worker has done in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The worker.
    pub worker: WorkerId,
    /// System calls on connections: reads and writes, and bytes in the measure of calls.
    pub calls: u64,
    /// Turns of its loop.
    pub turns: u64,
}

/// A requested operation, before it is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Reload the configuration, and replace every worker.
    Reload,
    /// The new program is to take over.
    Upgrade,
    /// Change the number of workers.
    Scale(ScaleTo),
}

/// Where a new worker gets its slot's listener from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerSource {
    /// It binds one itself: the slot has never had one.
    Bind,
    /// It adopts the one deposited with the supervisor. A fresh one would leave the old queue, and
    /// the clients in it, unserved.
    Adopt,
}

impl ListenerSource {
    /// In a log line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Adopt => "adopt",
        }
    }
}

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

/// How a planned operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// As it should.
    Done(Done),
    /// It did not begin: another operation is in progress, or there is nothing to do it with.
    Refused {
        /// The cause, in one line, and when to try again.
        cause: String,
    },
    /// It began, and what it had changed has been taken back as far as the cause says.
    Failed {
        /// The cause, in one line, and what runs now.
        cause: String,
    },
}

/// What a planned operation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Slots that have a new worker.
    pub renewed: u16,
    /// Slots there are now.
    pub workers: u16,
    /// Connections that moved to another worker, live.
    pub moved: u64,
    /// Connections that were left with their worker until they end or `drain_timeout` passes.
    pub drained: u64,
    /// From the request to now.
    pub took: Duration,
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
