//! One worker: its release, its state, and its exit.
//!
//! Pure: no descriptor, no clock, no decision. The machine decides; [`Worker::enter`] is the only
//! place where a worker changes its state, and rejects invalid changes.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::STALL_CHECKS;
use uppercased_ctl::clock::Tick;
use uppercased_ctl::identity::{Generation, ReleaseId, WorkerId};

/// The exit status of a worker's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited by itself with this code.
    Exited(i32),
    /// It was ended by this signal.
    Signalled(i32),
    /// It has exited, but another process has reaped its exit status.
    Unknown,
    /// It was killed and has not exited: something in the kernel blocks it. It is no longer
    /// awaited.
    Lost,
}

impl ExitStatus {
    /// The end by SIGKILL, which is sent from outside.
    pub const KILLED: Self = Self::Signalled(Signal::SIGKILL as i32);

    /// Returns the exit code of a process that exited by itself.
    #[must_use]
    pub const fn exit_code(self) -> Option<i32> {
        let Self::Exited(code) = self else {
            return None;
        };
        Some(code)
    }

    /// Returns the name of the signal that ended the process, or its number if it has no name.
    #[must_use]
    pub fn signal(self) -> Option<String> {
        let Self::Signalled(number) = self else {
            return None;
        };
        let name = Signal::try_from(number).map(|signal| signal.as_str().to_owned());
        Some(name.unwrap_or_else(|_| number.to_string()))
    }
}

impl fmt::Display for ExitStatus {
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

/// The reason why the supervisor killed a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillReason {
    /// It was not Ready in time.
    StartTimedOut,
    /// Its channel is unusable.
    ChannelBroken {
        /// The error.
        cause: String,
    },
    /// It closed its end of the channel; in most cases it has exited by itself.
    ChannelClosed,
    /// A sibling could not start at boot, so the boot failed.
    BootFailed,
    /// Its event loop made no progress.
    Hung,
    /// Another worker replaced it; it did not fail.
    Superseded,
    /// The operation that started it failed.
    OperationFailed,
    /// It stalled a handover for too long.
    HandoverTimedOut,
    /// Its predecessor lost the connection to it, and serves again.
    PeerGone,
    /// It did not exit by its deadline.
    LeaveTimedOut,
    /// It crashed too often in a short time.
    CrashLoop,
    /// The supervisor stops, and this worker did not serve, did not finish in time, or was to exit
    /// at once.
    Stop,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartTimedOut => write!(f, "not ready in time"),
            Self::ChannelBroken { cause } => write!(f, "channel broken: {cause}"),
            Self::ChannelClosed => write!(f, "it closed its channel"),
            Self::BootFailed => write!(f, "the boot failed"),
            Self::Hung => write!(f, "event loop stalled"),
            Self::Superseded => write!(f, "replaced by another worker"),
            Self::OperationFailed => write!(f, "its operation failed"),
            Self::HandoverTimedOut => write!(f, "its handover stalled"),
            Self::PeerGone => write!(f, "its predecessor lost the connection to it"),
            Self::LeaveTimedOut => write!(f, "it did not exit in time"),
            Self::CrashLoop => write!(f, "it crashed too often"),
            Self::Stop => write!(f, "the server is stopping"),
        }
    }
}

/// Samples of one worker's counter of event loop turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulse {
    /// Due time of the next sample.
    pub(super) due: Tick,
    /// Whether a sample was requested and has not arrived.
    pub(super) awaited: bool,
    /// The latest sample.
    pub(super) turns: Option<u64>,
    /// Time at which a sample last differed from the one before.
    pub(super) moved: Tick,
    /// Samples in a row without a new turn.
    pub(super) misses: u32,
}

impl Pulse {
    /// Returns the samples of a worker of which the first is due at `due`.
    pub(super) const fn due_at(due: Tick, now: Tick) -> Self {
        Self {
            due,
            awaited: false,
            turns: None,
            moved: now,
            misses: 0,
        }
    }

    /// Returns the time since which the worker has stalled, if it has.
    pub(super) fn stalled_since(&self) -> Option<Tick> {
        (self.misses >= STALL_CHECKS).then_some(self.moved)
    }
}

/// The progress of a handover, as its two sides count it. Each number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Batches sent.
    pub sent: u64,
    /// Sent batches whose answer the sender has read.
    pub settled: u64,
    /// Sent batches that the receiver has answered.
    pub answered: u64,
}

/// Samples of the progress of one handover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// The latest sample.
    pub(super) progress: Progress,
    /// Samples in a row without progress.
    pub(super) misses: u32,
    /// Whether a process was killed for that, and its keeper continues it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_continued: bool,
}

/// The state of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WorkerState {
    /// Spawned, not Ready yet.
    Starting {
        /// Deadline for its Ready.
        deadline: Tick,
        /// Whether it was spawned beside another worker, and does not accept until it is requested
        /// to.
        standby: bool,
        /// Its own error report. It exits next; if it does not, the deadline still applies.
        error: Option<String>,
    },
    /// Ready, accepting on the slot's listener.
    Serving {
        /// Whether it resumed after a handover whose result it has not reported.
        owes_report: bool,
    },
    /// It sends its connections to another worker.
    HandingOver {
        to: WorkerId,
        /// Time of the next sample of its progress; `None`: the receiver has been abandoned.
        deadline: Option<Tick>,
        watch: Watch,
        /// Whether it returns connections, because not all of them could be handed over to it, or an
        /// earlier supervisor had begun: what cannot migrate stays with it.
        back: bool,
    },
    /// It no longer accepts, and exits when no connection is left.
    Leaving {
        deadline: Tick,
        /// Whether no connection is left, so that it is about to exit.
        done: bool,
    },
    /// The supervisor stops, and has sent it a request to finish and exit.
    Stopping,
    /// Sent SIGKILL, not reaped yet. Its pidfd reports the exit.
    Killed {
        /// Time at which it is abandoned: something in the kernel blocks it, which no signal ends.
        until: Tick,
        why: KillReason,
        /// Time for which it had served; `None` if it never was Ready.
        served_for: Option<Duration>,
        /// Its own report, carried over from `Starting`.
        error: Option<String>,
        /// Whether it was leaving or superseded: its exit does not count as a failure of its
        /// release.
        leaving: bool,
    },
}

impl WorkerState {
    /// Returns one or two words for status and logs.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Serving { .. } => "serving",
            Self::HandingOver { .. } => "handing over",
            Self::Leaving { .. } => "leaving",
            Self::Stopping => "stopping",
            Self::Killed { .. } => "killing",
        }
    }

    /// Returns whether the change to `next` is valid. One that is not listed is a bug.
    const fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Starting { .. } => matches!(next, Self::Serving { .. } | Self::Killed { .. }),
            Self::Serving { .. } => !matches!(next, Self::Starting { .. } | Self::Serving { .. }),
            // To itself: another sibling becomes the receiver. To `Serving`: rolled back.
            Self::HandingOver { .. } => !matches!(next, Self::Starting { .. }),
            Self::Leaving { .. } => matches!(next, Self::Stopping | Self::Killed { .. }),
            Self::Stopping => matches!(next, Self::Killed { .. }),
            Self::Killed { .. } => false,
        }
    }

    /// Returns whether the worker's event loop is to be sampled.
    pub(super) const fn has_pulse(&self) -> bool {
        matches!(self, Self::Serving { .. } | Self::HandingOver { .. })
    }

    /// Returns the time at which the machine must act on it; killed workers have their own
    /// deadline.
    pub(super) const fn deadline(&self) -> Option<Tick> {
        match self {
            Self::Starting { deadline, .. } | Self::Leaving { deadline, .. } => Some(*deadline),
            Self::HandingOver { deadline, .. } => *deadline,
            Self::Serving { .. } | Self::Stopping | Self::Killed { .. } => None,
        }
    }
}

/// A process of a slot, from its spawn until it is reaped or abandoned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Worker {
    pub(super) generation: Generation,
    pub(super) release: ReleaseId,
    pub(super) state: WorkerState,
    /// Time at which `state` was entered; for a worker that serves, when it began to serve.
    pub(super) since: Tick,
    /// Time at which it became Ready.
    pub(super) served_since: Option<Tick>,
    pub(super) pulse: Option<Pulse>,
    /// Whether it has a keeper, which continues it if its process dies.
    pub(super) kept: bool,
    /// Times of its latest crashes that its keepers continued.
    pub(super) crashed: Vec<Tick>,
}

impl Worker {
    pub(super) fn enter(&mut self, next: WorkerState, now: Tick) {
        debug_assert!(
            self.state.may_become(&next),
            "generation {} cannot go from {:?} to {next:?}",
            self.generation,
            self.state,
        );
        self.since = if matches!(next, WorkerState::Serving { .. }) {
            *self.served_since.get_or_insert(now)
        } else {
            now
        };
        if !next.has_pulse() {
            self.pulse = None;
        }
        self.state = next;
    }

    pub(super) fn served_for(&self, now: Tick) -> Option<Duration> {
        Some(now.since(self.served_since?))
    }

    pub(super) const fn is_starting(&self) -> bool {
        matches!(self.state, WorkerState::Starting { .. })
    }

    pub(super) const fn is_serving(&self) -> bool {
        matches!(self.state, WorkerState::Serving { .. })
    }

    pub(super) const fn is_handing_over(&self) -> bool {
        matches!(self.state, WorkerState::HandingOver { .. })
    }

    /// Returns whether it hands over what it can, and keeps the rest.
    pub(super) const fn is_returning(&self) -> bool {
        matches!(self.state, WorkerState::HandingOver { back: true, .. })
    }

    /// Returns whether it is leaving, so that its exit is no failure.
    pub(super) const fn is_leaving(&self) -> bool {
        match self.state {
            WorkerState::Starting { .. } | WorkerState::Serving { .. } => false,
            WorkerState::HandingOver { .. }
            | WorkerState::Leaving { .. }
            | WorkerState::Stopping => true,
            WorkerState::Killed { leaving, .. } => leaving,
        }
    }

    pub(super) fn was_killed_for(&self, reason: &KillReason) -> bool {
        matches!(&self.state, WorkerState::Killed { why, .. } if why == reason)
    }

    /// Returns the time at which it is abandoned, if it was killed.
    pub(super) const fn killed_until(&self) -> Option<Tick> {
        let WorkerState::Killed { until, .. } = self.state else {
            return None;
        };
        Some(until)
    }
}

/// The exit of a process, or the failure to create it.
pub(super) struct ExitReport {
    /// `None`: the process could not be created.
    pub(super) exit: Option<ExitStatus>,
    /// `None`: it never was Ready.
    pub(super) served_for: Option<Duration>,
    pub(super) cause: Option<String>,
}

impl fmt::Display for ExitReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(exit) = self.exit else {
            let cause = self.cause.as_deref().unwrap_or("unknown cause");
            return write!(out, "cannot be started: {cause}");
        };
        match self.served_for {
            None => write!(out, "exited before it was ready: {exit}")?,
            Some(served) => write!(out, "exited after {served:.1?} of service: {exit}")?,
        }
        match &self.cause {
            None => Ok(()),
            Some(cause) => write!(out, " ({cause})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_in_log_line() {
        let worker = WorkerId {
            slot: uppercased_ctl::identity::SlotId(0),
            generation: Generation(3),
        };
        assert_eq!(worker.to_string(), "slot 0 generation 3");
        assert_eq!(ExitStatus::Exited(1).to_string(), "exit code 1");
        assert_eq!(ExitStatus::Signalled(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(ExitStatus::Signalled(40).to_string(), "signal 40");
    }
}
