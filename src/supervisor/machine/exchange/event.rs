//! What the machine is told.

use serde::{Deserialize, Serialize};

use super::super::policy::Policy;
use super::super::worker::{Death, Progress};
use crate::handover::HandoverEnd;
use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::identity::{ReleaseId, RequestId, WorkerId};

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
    /// The answer to [`Action::Spawn`](super::Action::Spawn) when no process exists (fork or the like failed).
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
    /// The answer to [`Action::Exec`](super::Action::Exec) if this program still runs after it.
    ExecFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// The first event from the new program to the restored machine, after [`Action::Exec`](super::Action::Exec).
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
    /// An operation is requested. If it can begin, now or later, [`Action::Begin`](super::Action::Begin) follows.
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
    /// The answer to [`Action::Begin`](super::Action::Begin) if the operation cannot be prepared.
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
    /// The answer to [`Action::TakeLoads`](super::Action::TakeLoads).
    Loads {
        /// Of every worker that serves; of others it does not matter.
        loads: Vec<Load>,
    },
    /// The answer to [`Action::TakeProgress`](super::Action::TakeProgress).
    Progress {
        /// The sender.
        from: WorkerId,
        /// The receiver.
        to: WorkerId,
        /// The counters of both sides.
        progress: Progress,
    },
    /// The answer to [`Action::TakePulse`](super::Action::TakePulse).
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
