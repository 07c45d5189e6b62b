//! The events that the machine handles.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::policy::Policy;
use super::super::worker::{ExitStatus, Progress};
use crate::handover::HandoverEnd;
use uppercased_ctl::control::ScaleTo;
use uppercased_ctl::identity::{ReleaseId, RequestId, WorkerId};

/// An event.
///
/// For each worker, report the messages of its channel before its `Exited`: the worker's own error
/// report names the cause better than an exit status does. Any other sequence is handled, but
/// without that text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Begin the boot. Sent once, before any other event.
    Boot,
    /// The supervisor holds the worker's listeners, and the worker serves.
    Ready {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker reported an error and exits without having been Ready.
    StartFailed {
        /// The worker.
        worker: WorkerId,
        /// The error message.
        cause: String,
    },
    /// The answer to [`Action::Spawn`](super::Action::Spawn) if no process could be created.
    SpawnFailed {
        /// The worker that was to be started.
        worker: WorkerId,
        /// The system's error.
        cause: String,
    },
    /// The process has exited and was reaped.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// The exit status.
        exit: ExitStatus,
        /// The cause derived from the exit status, if the worker reported none.
        cause: Option<String>,
    },
    /// Whether a worker has a keeper has changed.
    Kept {
        /// The worker.
        worker: WorkerId,
        /// Whether it has one.
        kept: bool,
    },
    /// The worker's process ended, and its keeper has become the worker.
    Rescued {
        /// The worker.
        worker: WorkerId,
        /// The report.
        rescue: Rescue,
    },
    /// The channel failed or carried an invalid message; the process may still run.
    ChannelBroken {
        /// The worker at its other end.
        worker: WorkerId,
        /// The error.
        cause: String,
    },
    /// The worker closed its end of the channel: it is exiting and not reaped yet, or it runs and
    /// cannot receive messages any more. If it exited, [`Event::Exited`] reports how.
    ChannelClosed {
        /// The worker at its other end.
        worker: WorkerId,
    },
    /// Stop: gracefully the first time, immediately the second time.
    Stop {
        /// The requester, for the log ("SIGTERM").
        by: String,
    },
    /// Replace every worker, one slot after the other, with a release that the shell has prepared
    /// and validated.
    Reload {
        /// The request.
        request: RequestId,
        /// The release of the new workers.
        release: ReleaseId,
        /// The limits of the release's configuration, in force once every slot has been replaced.
        /// Its `workers` is the configured number if that has changed, else the number in force:
        /// after the last replacement the reload continues by scaling to it.
        policy: Policy,
        /// Whether connections that cannot migrate may be left to drain.
        drain: bool,
    },
    /// Replace the supervisor's own program by the new binary, then every worker.
    Upgrade {
        /// The request.
        request: RequestId,
        /// As in [`Event::Reload`].
        drain: bool,
    },
    /// The new binary passed its preflight.
    PreflightPassed,
    /// The new binary failed its preflight.
    PreflightFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// The exec failed; the answer to [`Action::Exec`](super::Action::Exec).
    ExecFailed {
        /// The cause, in one line.
        cause: String,
    },
    /// The first event from the new binary to the restored machine, after
    /// [`Action::Exec`](super::Action::Exec).
    Resumed {
        /// The release of the new binary and its configuration.
        release: ReleaseId,
        /// Its limits, as in [`Event::Reload`].
        policy: Policy,
    },
    /// Set the number of workers.
    Scale {
        /// The request.
        request: RequestId,
        /// The target number of workers.
        to: ScaleTo,
        /// As in [`Event::Reload`].
        drain: bool,
    },
    /// An operation is requested. If it can begin, now or later,
    /// [`Action::Begin`](super::Action::Begin) follows.
    Requested {
        /// The request; [`RequestId::NOBODY`] for a signal.
        request: RequestId,
        /// The operation.
        wanted: Wanted,
        /// Whether the request waits for obstacles to pass instead of being refused. Requests of
        /// signals always wait.
        wait: bool,
        /// Whether connections that cannot move may be drained.
        drain: bool,
    },
    /// The requester has disconnected.
    Withdrawn {
        /// The request.
        request: RequestId,
    },
    /// Cancel the operation in progress and roll back its changes.
    Cancel {
        /// The request.
        request: RequestId,
        /// The requester, reported to clients that wait for the operation.
        by: Canceller,
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
    /// A worker reports the result of its handover.
    HandedOver {
        /// The worker.
        worker: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Connections that it still has.
        left: u32,
        /// The result, which implies what the worker does next.
        end: HandoverEnd,
    },
    /// A worker reports the result of a partial handover. It continues to serve.
    Rebalanced {
        /// The worker.
        worker: WorkerId,
        /// Connections that have moved.
        moved: u32,
        /// Done, or the reason why not all of the part has moved.
        end: HandoverEnd,
    },
    /// The answer to [`Action::TakeLoads`](super::Action::TakeLoads).
    Loads {
        /// The loads of every serving worker; others are ignored.
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
        /// Turns of its loop since its start. If unchanged since the last answer, it has made none.
        turns: u64,
    },
}

/// A rescue, as the keeper reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// The exit status of the process.
    pub exit: ExitStatus,
    /// Whether it was killed because it hung.
    pub is_hang: bool,
    /// The cause derived from the exit status.
    pub cause: Option<String>,
    /// Connections that continue.
    pub connections: u32,
    /// Bytes that the process had received and not answered.
    pub owed_bytes: u64,
    /// Connections that were reset.
    pub reset: u32,
    /// Whether it continues the handover of all its connections.
    pub is_handing_over: bool,
    /// Time from the wake-up of the keeper to its report.
    pub took: Duration,
}

/// The work that a worker has done since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The worker.
    pub worker: WorkerId,
    /// System calls on connections: reads, writes, and bytes converted to calls.
    pub calls: u64,
    /// Turns of its loop.
    pub turns: u64,
}

/// A requested operation, before it is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Reload the configuration, and replace every worker.
    Reload,
    /// Upgrade to the new binary.
    Upgrade,
    /// Change the number of workers.
    Scale(ScaleTo),
}

/// The source of a new worker's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerSource {
    /// It binds its own: the slot has never had any.
    Bind,
    /// It adopts the supervisor's duplicates. New ones would leave the old queue, and the clients
    /// in it, unserved.
    Adopt,
}

impl ListenerSource {
    /// Returns the name used in log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Adopt => "adopt",
        }
    }
}

/// The client that cancels an operation; unknown once it has disconnected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canceller {
    /// Its process ID.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: Option<u32>,
}

impl fmt::Display for Canceller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`uppercased cancel`")?;
        match (self.pid, self.uid) {
            (Some(pid), Some(uid)) => write!(out, " (process {pid} of user {uid})"),
            _ => Ok(()),
        }
    }
}
