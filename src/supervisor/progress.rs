//! The progress of an operation, in lines for the client that waits for it.

use std::fmt;
use std::time::Duration;

use crate::handover::HandoverEnd;
use uppercased_ctl::clock::millis;
use uppercased_ctl::control::protocol::counted;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::units::took;

use super::machine::{Canceller, ExitStatus, Notice};

/// A step that is reported to the waiting client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress<'a> {
    /// The request waits for an obstacle to pass.
    Waiting {
        obstacle: &'a str,
    },
    /// A successor is ready beside the active worker.
    NewWorkerReady {
        slot: SlotId,
        after: Duration,
    },
    /// A worker of a slot without another one is ready.
    WorkerReady {
        slot: SlotId,
        after: Duration,
    },
    HandoverEnded {
        slot: SlotId,
        migrated: u32,
        remaining: u32,
        end: &'a HandoverEnd,
        after: Duration,
    },
    WorkerExited {
        slot: SlotId,
        exit: ExitStatus,
    },
    /// A keeper has continued a worker, whose process ended so.
    WorkerRescued {
        slot: SlotId,
        connections: u32,
        exit: ExitStatus,
    },
    Cancelled {
        by: Canceller,
    },
    RollingBack {
        cause: &'a str,
        slots: u16,
    },
    /// The server stops.
    Stopping,
}

impl<'a> Progress<'a> {
    /// Returns the step that a notice reports, if it is one.
    pub(super) fn of(notice: &'a Notice) -> Option<Self> {
        Some(match notice {
            Notice::WorkerStandingBy { worker, took } => Self::NewWorkerReady {
                slot: worker.slot,
                after: *took,
            },
            Notice::WorkerReady { worker, took } => Self::WorkerReady {
                slot: worker.slot,
                after: *took,
            },
            Notice::HandoverEnded {
                from,
                moved,
                left,
                end,
                took,
            } => Self::HandoverEnded {
                slot: from.slot,
                migrated: *moved,
                remaining: *left,
                end,
                after: *took,
            },
            Notice::OperationCancelled { by, .. } => Self::Cancelled { by: *by },
            Notice::RollingBack { cause, slots } => Self::RollingBack {
                cause,
                slots: *slots,
            },
            Notice::WorkerDied { worker, exit, .. } => Self::WorkerExited {
                slot: worker.slot,
                exit: *exit,
            },
            Notice::WorkerRescued {
                worker,
                exit,
                connections,
                ..
            } => Self::WorkerRescued {
                slot: worker.slot,
                connections: *connections,
                exit: *exit,
            },
            _ => return None,
        })
    }
}

impl fmt::Display for Progress<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |after: &Duration| took(millis(*after));
        match self {
            Self::Waiting { obstacle } => write!(out, "waiting: {obstacle}"),
            Self::NewWorkerReady { slot, after } => {
                write!(out, "slot {slot}: new worker ready ({})", span(after))
            }
            Self::WorkerReady { slot, after } => {
                write!(out, "slot {slot}: worker ready ({})", span(after))
            }
            Self::HandoverEnded {
                slot,
                migrated,
                remaining,
                end,
                after,
            } => match end {
                HandoverEnd::Done => {
                    let after = span(after);
                    let migrated = counted((*migrated).into(), "connection");
                    write!(out, "slot {slot}: {migrated} migrated ({after})")
                }
                HandoverEnd::PeerGone => {
                    write!(out, "slot {slot}: new worker gone, old worker serving")
                }
                HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => write!(
                    out,
                    "slot {slot}: {migrated} connections migrated, {remaining} remaining: {cause}"
                ),
            },
            Self::WorkerExited { slot, exit } => {
                write!(out, "slot {slot}: worker exited unexpectedly: {exit}")
            }
            Self::WorkerRescued {
                slot,
                connections,
                exit,
            } => {
                let connections = counted((*connections).into(), "connection");
                write!(
                    out,
                    "slot {slot}: worker rescued with {connections}: {exit}"
                )
            }
            Self::Cancelled { by } => write!(out, "cancelled by {by}: rolling back"),
            Self::RollingBack { cause, slots } => {
                let slots = counted((*slots).into(), "slot");
                write!(out, "rolling back {slots}: {cause}")
            }
            Self::Stopping => write!(out, "stopping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uppercased_ctl::identity::{Generation, WorkerId};

    #[test]
    fn each_step_has_one_line() {
        let worker = WorkerId {
            slot: SlotId(3),
            generation: Generation(2),
        };
        let ended = |end| Notice::HandoverEnded {
            from: worker,
            moved: 5,
            left: 1,
            end,
            took: Duration::from_micros(3200),
        };
        let ready = Notice::WorkerStandingBy {
            worker,
            took: Duration::from_millis(5),
        };
        let rescued = Notice::WorkerRescued {
            worker,
            exit: ExitStatus::KILLED,
            cause: None,
            connections: 1,
            owed_bytes: 0,
            reset: 0,
            took: Duration::ZERO,
        };
        let cause = "full".to_owned();
        for (notice, line) in [
            (ready, "slot 3: new worker ready (5 ms)"),
            (
                rescued,
                "slot 3: worker rescued with 1 connection: signal 9 (SIGKILL)",
            ),
            (
                ended(HandoverEnd::Done),
                "slot 3: 5 connections migrated (3 ms)",
            ),
            (
                ended(HandoverEnd::Incomplete { cause }),
                "slot 3: 5 connections migrated, 1 remaining: full",
            ),
        ] {
            assert_eq!(Progress::of(&notice).unwrap().to_string(), line);
        }
        let restored = Notice::Restored { worker };
        assert!(Progress::of(&restored).is_none());
    }
}
