//! What the supervisor tells people: one log line a notice, and the addresses on standard output.

use std::time::Duration;

use crate::config::Config;
use crate::fault;
use crate::handover::HandoverEnd;
use crate::wire::Listen;
use uppercased_ctl::identity::WorkerId;
use uppercased_ctl::metrics::{CloseReason, Counter};

use super::fleet::children::Child;
use super::fleet::resources::SlotResources;
use super::fleet::totals::Totals;
use super::machine::{Answer, Death, Notice};

/// Nothing was refused, and the first worker is about to start.
pub(super) fn starting(config: &Config, ignored: &[String]) {
    tracing::info!(
        workers = config.workers,
        pid = std::process::id(),
        version = fault::program_version(),
        "starting"
    );
    for what in ignored {
        tracing::info!(what, "part of the configuration ignored");
    }
}

/// Logs that every slot serves, and returns the addresses as lines for scripts.
pub(super) fn announce(listen: &[Listen], workers: usize) -> Vec<u8> {
    let shown: Vec<String> = listen.iter().map(Listen::to_string).collect();
    tracing::info!(
        address = shown.join(" "),
        workers,
        pid = std::process::id(),
        version = fault::program_version(),
        "ready"
    );
    let lines = shown
        .iter()
        .map(|address| format!("listening on {address}\n"));
    lines.collect::<String>().into_bytes()
}

/// Logs a notice.
pub(super) fn notice(notice: &Notice, slots: &[SlotResources]) {
    let pid = |worker: &WorkerId| {
        let slot = slots.get(worker.slot.index())?;
        slot.child(*worker).map(Child::pid)
    };
    let lost = |worker: &WorkerId| {
        let slot = slots.get(worker.slot.index());
        slot.map_or(0, |slot| slot.lost_with(*worker))
    };
    match notice {
        Notice::WorkerStarting { worker, listener } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                listener = listener.name(),
                "worker starting"
            );
        }
        Notice::WorkerStandingBy { worker, took } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                worker_pid = pid(worker),
                took_ms = took.as_millis(),
                "worker standing by"
            );
        }
        Notice::OperationStarted { what, request } => {
            tracing::info!(what, request = request.0, "operation started");
        }
        Notice::OperationEnded { what, answer } => operation_ended(what, answer),
        Notice::NotBegun { what, cause } => tracing::error!(what, cause, "operation refused"),
        Notice::RequestPending { what, request } => {
            tracing::info!(what, request = request.0, "request pending");
        }
        Notice::OperationCancelled { what, by } => {
            tracing::warn!(what, by, "operation cancelled");
        }
        Notice::RequestWithdrawn { what, request } => {
            tracing::info!(what, request = request.0, "request withdrawn");
        }
        Notice::HandoverStarted { from, to } => {
            tracing::info!(
                slot = from.slot.0,
                generation = from.generation.0,
                to_slot = to.slot.0,
                to_generation = to.generation.0,
                "handover started"
            );
        }
        Notice::HandoverEnded {
            from,
            moved,
            left,
            end,
            took,
        } => handover_ended(*from, (*moved, *left), end, *took),
        Notice::HandoverTimedOut {
            from,
            to,
            stalled,
            after,
        } => {
            tracing::error!(
                slot = stalled.slot.0,
                generation = stalled.generation.0,
                from_generation = from.generation.0,
                to_generation = to.generation.0,
                after_ms = after.as_millis(),
                "handover stalled: killing the worker"
            );
        }
        Notice::RebalanceStarted {
            from,
            to,
            from_calls,
            to_calls,
        } => {
            tracing::info!(
                slot = from.slot.0,
                to_slot = to.slot.0,
                calls_per_s = from_calls,
                to_calls_per_s = to_calls,
                "rebalancing"
            );
        }
        Notice::RebalanceEnded {
            from,
            to,
            moved,
            end,
            took,
        } => rebalance_ended((*from, *to), *moved, end, *took),
        Notice::RebalanceTimedOut { from, to, after } => {
            tracing::warn!(
                slot = from.slot.0,
                to_slot = to.slot.0,
                after_ms = after.as_millis(),
                "rebalancing not done in time: not waited for any more"
            );
        }
        Notice::Restored { worker } => {
            tracing::warn!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                "the old worker serves its slot again"
            );
        }
        Notice::RollingBack { cause, slots } => {
            tracing::error!(cause, slots, "rolling back");
        }
        Notice::WorkerHung { worker, after } => {
            tracing::error!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                after_ms = after.as_millis(),
                "worker hangs: killing it"
            );
        }
        Notice::NotEnded { worker, after } => {
            tracing::error!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                worker_pid = pid(worker),
                after_ms = after.as_millis(),
                "killed worker has not ended"
            );
        }
        Notice::WorkerReady { worker, took } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                worker_pid = pid(worker),
                took_ms = took.as_millis(),
                "worker ready"
            );
        }
        Notice::WorkerDied {
            worker,
            how,
            served_for,
            cause,
        } => {
            tracing::error!(slot = worker.slot.0, generation = worker.generation.0, %how,
                served_ms = served_for.map(|span| span.as_millis()), cause,
                connections_lost = lost(worker), "worker died");
        }
        Notice::WorkerStopped {
            worker,
            how: Death::Exited(0),
        } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                "worker stopped"
            );
        }
        Notice::WorkerStopped { worker, how } => match lost(worker) {
            0 => tracing::debug!(slot = worker.slot.0, generation = worker.generation.0, %how,
                "worker ended with nothing left to do"),
            connections => tracing::warn!(slot = worker.slot.0, generation = worker.generation.0,
                %how, connections_lost = connections, "worker ended before it had finished"),
        },
        Notice::SpawnFailed { worker, cause } => {
            tracing::error!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                cause,
                "worker not started"
            );
        }
        Notice::StartTimedOut { worker, after } => {
            tracing::error!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                after_ms = after.as_millis(),
                "worker not ready in time: killing it"
            );
        }
        Notice::ChannelBroken { worker, cause } => {
            tracing::error!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                cause,
                "worker's channel broke: killing it"
            );
        }
        Notice::BackingOff {
            slot,
            delay,
            failures,
        } => {
            tracing::warn!(
                slot = slot.0,
                delay_ms = delay.as_millis(),
                failures,
                "slot keeps failing: waiting before the next try"
            );
        }
        Notice::Lent { slot, to, after } => {
            tracing::warn!(
                slot = slot.0,
                to_slot = to.slot.0,
                to_generation = to.generation.0,
                after_ms = after.as_millis(),
                "queue lent to a sibling"
            );
        }
        Notice::Recalled { slot, from } => {
            tracing::info!(slot = slot.0, from_slot = from.slot.0, "queue recalled");
        }
        Notice::LeftWithoutWorker { slot, from } => {
            tracing::info!(
                slot = slot.0,
                from_slot = from.slot.0,
                "slot left: a sibling emptied its queue"
            );
        }
        Notice::Stopping { by, at_most } => {
            tracing::info!(by, at_most_ms = at_most.as_millis(), "stopping");
        }
        Notice::StopForced { by } => tracing::warn!(by, "stopping at once"),
        Notice::StillDraining { worker, after } => {
            tracing::warn!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                after_ms = after.as_millis(),
                "worker has not stopped in time: killing it"
            );
        }
        Notice::WorkerStalled { worker, after } => {
            tracing::warn!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                pid = pid(worker),
                after_ms = after.as_millis(),
                "worker stalled"
            );
        }
        Notice::WorkerRunsAgain { worker, after } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                pid = pid(worker),
                after_ms = after.as_millis(),
                "worker runs again"
            );
        }
        Notice::Degraded { slot, cause } => {
            tracing::error!(slot = slot.0, cause, "serving without a worker");
        }
        // Told once, as the verdict.
        Notice::BootFailed { cause } => tracing::debug!(cause, "cannot start"),
        Notice::InvariantBroken { what, total } => {
            tracing::error!(what, total, "invariant broken");
        }
        Notice::StaleEvent { event, total } => {
            tracing::debug!(?event, total, "stale event dropped");
        }
    }
}

/// A worker has handed its connections over, or some of them.
fn handover_ended(from: WorkerId, (moved, left): (u32, u32), end: &HandoverEnd, took: Duration) {
    let (slot, generation) = (from.slot.0, from.generation.0);
    let took_ms = took.as_millis();
    match end {
        HandoverEnd::Done => tracing::info!(slot, generation, moved, took_ms, "handover done"),
        HandoverEnd::PeerGone => tracing::error!(
            slot,
            generation,
            moved,
            left,
            took_ms,
            "the new worker is gone: the old one serves on"
        ),
        HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => tracing::warn!(
            slot,
            generation,
            moved,
            left,
            took_ms,
            cause,
            "connections could not be handed over"
        ),
    }
}

/// A part of a worker's connections has moved, or some of it.
fn rebalance_ended(
    (from, to): (WorkerId, WorkerId),
    moved: u32,
    end: &HandoverEnd,
    took: Duration,
) {
    let (slot, to_slot) = (from.slot.0, to.slot.0);
    let took_ms = took.as_millis();
    let cause = match end {
        HandoverEnd::Done => {
            return tracing::info!(slot, to_slot, moved, took_ms, "rebalanced");
        }
        HandoverEnd::PeerGone => "the other worker is gone",
        HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => cause.as_str(),
    };
    tracing::warn!(slot, to_slot, moved, took_ms, cause, "rebalanced in part");
}

/// A worker has begun to stop.
pub(super) fn draining(worker: WorkerId, connections: u32) {
    tracing::debug!(
        slot = worker.slot.0,
        generation = worker.generation.0,
        connections,
        "worker draining"
    );
}

/// What a notice means to whoever waits for an operation; `None`: nothing.
pub(super) fn progress(notice: &Notice) -> Option<String> {
    Some(match notice {
        Notice::WorkerStandingBy { worker, took } => {
            format!("{worker} stands by after {took:.0?}")
        }
        Notice::WorkerReady { worker, took } => format!("{worker} serves after {took:.0?}"),
        Notice::HandoverEnded {
            from,
            moved,
            left,
            end,
            took,
        } => match end {
            HandoverEnd::Done => format!("{from}: {moved} connections moved in {took:.1?}"),
            HandoverEnd::PeerGone => {
                format!("{from} serves on: the worker that was to follow it is gone")
            }
            HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => {
                format!("{from}: {moved} connections moved, {left} could not ({cause})")
            }
        },
        Notice::OperationCancelled { by, .. } => format!("cancelled by {by}: rolling back"),
        Notice::RollingBack { cause, slots } => format!("{cause}: {slots} slots go back"),
        Notice::WorkerDied { worker, how, .. } => format!("{worker} died: {how}"),
        _ => return None,
    })
}

/// How an operation ended, or why it did not begin.
fn operation_ended(what: &str, answer: &Answer) {
    match answer {
        Answer::Done(done) => tracing::info!(
            what,
            renewed = done.renewed,
            workers = done.workers,
            connections_moved = done.moved,
            connections_drained = done.drained,
            took_ms = done.took.as_millis(),
            "operation done"
        ),
        Answer::Refused { cause } => tracing::warn!(what, cause, "operation refused"),
        Answer::Failed { cause } => tracing::error!(what, cause, "operation failed"),
    }
}

/// How an operation has failed, in one line, if it has.
pub(super) fn failure(what: &str, answer: &Answer) -> Option<String> {
    match answer {
        Answer::Done(_) => None,
        Answer::Refused { cause } => Some(format!("{what} refused: {cause}")),
        Answer::Failed { cause } => Some(format!("{what} failed: {cause}")),
    }
}

/// Everything is over: what the slots did, all together.
pub(super) fn ended(totals: &Totals) {
    tracing::info!(
        accepted = totals.count(Counter::Accepted),
        bytes_in = totals.count(Counter::BytesIn),
        bytes_out = totals.count(Counter::BytesOut),
        abandoned = totals.count(Counter::BytesAbandoned),
        connections_moved = totals.count(Counter::MovedOut),
        connections_lost = totals.count(Counter::Closed(CloseReason::WorkerDied)),
        "stopped"
    );
}
