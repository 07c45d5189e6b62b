//! The supervisor's output: one log line per notice, and the addresses on standard output.

use std::time::Duration;

use crate::config::{Config, Ignored};
use crate::fault;
use crate::handover::HandoverEnd;
use crate::log::event;
use crate::wire::Listen;
use uppercased_ctl::identity::WorkerId;
use uppercased_ctl::metrics::{CloseReason, Counter};

use super::fleet::children::Child;
use super::fleet::resources::SlotResources;
use super::fleet::totals::Totals;
use super::machine::{Answer, ExitStatus, Notice, OperationKind};

/// Logs the start: every check has passed, and the first worker is about to start.
pub(super) fn starting(config: &Config, ignored: &[Ignored]) {
    event!(
        server_starting,
        workers = config.workers,
        pid = std::process::id(),
        version = fault::program_version()
    );
    for part in ignored {
        match part {
            Ignored::ServiceLinks(names) => {
                event!(config_part_ignored, variables = names.join(" "));
            }
            Ignored::AbsentAddress { address, host } => {
                event!(config_part_ignored, %address, host);
            }
        }
    }
}

/// Logs that every slot serves, and returns the addresses as lines for scripts.
pub(super) fn announce(listen: &[Listen], workers: usize) -> Vec<u8> {
    let shown: Vec<String> = listen.iter().map(Listen::to_string).collect();
    event!(
        server_ready,
        address = shown.join(" "),
        workers,
        pid = std::process::id(),
        version = fault::program_version()
    );
    let lines = shown
        .iter()
        .map(|address| format!("listening on {address}\n"));
    lines.collect::<String>().into_bytes()
}

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
            event!(worker_starting; worker, listener = listener.name());
        }
        Notice::WorkerStandingBy { worker, took } => {
            event!(
                worker_standing_by; worker,
                worker_pid = pid(worker), duration_ms = took.as_millis()
            );
        }
        Notice::OperationStarted { operation, request } => {
            let (operation, to_workers) = (operation.name(), operation.to_workers());
            event!(
                operation_started,
                operation,
                to_workers,
                request = request.0
            );
        }
        Notice::OperationEnded { operation, answer } => operation_ended(*operation, answer),
        Notice::NotBegun { operation, cause } => {
            let (operation, to_workers) = (operation.name(), operation.to_workers());
            event!(operation_not_prepared, operation, to_workers, error = cause);
        }
        Notice::RequestPending { operation, request } => {
            let (operation, to_workers) = (operation.name(), operation.to_workers());
            event!(request_pending, operation, to_workers, request = request.0);
        }
        Notice::OperationCancelled { operation, by } => {
            let (operation, to_workers) = (operation.name(), operation.to_workers());
            event!(
                operation_cancelled,
                operation,
                to_workers,
                client_pid = by.pid,
                client_uid = by.uid
            );
        }
        Notice::CancelRefused { cause } => {
            event!(operation_refused, operation = "cancel", error = cause);
        }
        Notice::RequestWithdrawn { operation, request } => {
            let (operation, to_workers) = (operation.name(), operation.to_workers());
            event!(
                request_withdrawn,
                operation,
                to_workers,
                request = request.0
            );
        }
        Notice::HandoverStarted { from, to } => {
            event!(handover_started; from, to_slot = to.slot.0, to_generation = to.generation.0);
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
            event!(
                handover_stalled; stalled,
                from_generation = from.generation.0, to_generation = to.generation.0,
                duration_ms = after.as_millis()
            );
        }
        Notice::RebalanceStarted {
            from,
            to,
            from_calls,
            to_calls,
        } => {
            event!(
                rebalance_started,
                slot = from.slot.0,
                to_slot = to.slot.0,
                calls_per_second = from_calls,
                to_calls_per_second = to_calls
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
            event!(
                rebalance_timed_out,
                slot = from.slot.0,
                to_slot = to.slot.0,
                duration_ms = after.as_millis()
            );
        }
        Notice::Restored { worker } => event!(worker_restored; worker),
        Notice::RollingBack { cause, slots } => event!(rollback_started, error = cause, slots),
        Notice::WorkerHung { worker, after } => {
            event!(worker_hung; worker, duration_ms = after.as_millis());
        }
        Notice::NotEnded { worker, after } => {
            event!(
                worker_not_reaped; worker,
                worker_pid = pid(worker), duration_ms = after.as_millis()
            );
        }
        Notice::WorkerReady { worker, took } => {
            event!(
                worker_ready; worker,
                worker_pid = pid(worker), duration_ms = took.as_millis()
            );
        }
        Notice::WorkerDied {
            worker,
            exit,
            served_for,
            cause,
        } => {
            event!(
                worker_died; worker,
                exit_code = exit.exit_code(), signal = exit.signal(),
                served_ms = served_for.map(|span| span.as_millis()), error = cause,
                lost_connections = lost(worker)
            );
        }
        Notice::WorkerRescued {
            worker,
            exit,
            cause,
            connections,
            owed_bytes,
            reset,
            took,
        } => {
            event!(
                worker_rescued; worker, worker_pid = pid(worker),
                exit_code = exit.exit_code(), signal = exit.signal(), error = cause,
                connections, owed_bytes, reset, duration_ms = took.as_millis()
            );
        }
        Notice::WorkerStopped {
            worker,
            exit: ExitStatus::Exited(0),
        } => event!(worker_stopped; worker),
        Notice::WorkerStopped { worker, exit } => match lost(worker) {
            0 => {
                event!(
                    worker_killed_idle; worker,
                    exit_code = exit.exit_code(), signal = exit.signal()
                );
            }
            connections => event!(
                worker_cut_short; worker,
                exit_code = exit.exit_code(), signal = exit.signal(), lost_connections = connections
            ),
        },
        Notice::SpawnFailed { worker, cause } => event!(worker_start_failed; worker, error = cause),
        Notice::StartTimedOut { worker, after } => {
            event!(worker_start_timed_out; worker, duration_ms = after.as_millis());
        }
        Notice::ChannelBroken { worker, cause } => {
            event!(worker_channel_broken; worker, error = cause);
        }
        Notice::BackingOff {
            slot,
            delay,
            failures,
        } => {
            event!(
                worker_backing_off,
                slot = slot.0,
                delay_ms = delay.as_millis(),
                failures
            );
        }
        Notice::Lent { slot, to, after } => {
            event!(
                queue_lent,
                slot = slot.0,
                to_slot = to.slot.0,
                to_generation = to.generation.0,
                duration_ms = after.as_millis()
            );
        }
        Notice::Recalled { slot, from } => {
            event!(queue_recalled, slot = slot.0, from_slot = from.slot.0);
        }
        Notice::LeftWithoutWorker { slot, from } => {
            event!(queue_emptied, slot = slot.0, from_slot = from.slot.0);
        }
        Notice::Stopping { by, at_most } => {
            event!(
                server_stopping,
                reason = by,
                timeout_ms = at_most.as_millis()
            );
        }
        Notice::StopForced { by } => event!(server_stop_forced, reason = by),
        Notice::StillDraining { worker, after } => {
            event!(worker_stop_timed_out; worker, duration_ms = after.as_millis());
        }
        Notice::WorkerStalled { worker, after } => {
            event!(
                worker_stalled; worker,
                worker_pid = pid(worker), duration_ms = after.as_millis()
            );
        }
        Notice::WorkerRunsAgain { worker, after } => {
            event!(
                worker_recovered; worker,
                worker_pid = pid(worker), duration_ms = after.as_millis()
            );
        }
        Notice::Degraded { slot, cause } => {
            event!(slot_without_worker, slot = slot.0, error = cause);
        }
        // Reported once, with the result.
        Notice::BootFailed { cause } => event!(boot_failed, error = cause),
        Notice::InvariantBroken { what, total } => event!(invariant_broken, error = what, total),
        Notice::StaleEvent { event, total } => {
            let dropped = serde_json::to_string(event).unwrap_or_default();
            event!(stale_event_dropped, dropped, total);
        }
    }
}

/// Logs the result of a handover.
fn handover_ended(from: WorkerId, (moved, left): (u32, u32), end: &HandoverEnd, took: Duration) {
    let duration_ms = took.as_millis();
    match end {
        HandoverEnd::Done => event!(handover_finished; from, migrated = moved, duration_ms),
        HandoverEnd::PeerGone => event!(
            handover_receiver_gone; from,
            migrated = moved, remaining = left, duration_ms
        ),
        HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => event!(
            handover_incomplete; from,
            migrated = moved, remaining = left, duration_ms, error = cause
        ),
    }
}

/// Logs the result of a partial handover.
fn rebalance_ended(
    (from, to): (WorkerId, WorkerId),
    moved: u32,
    end: &HandoverEnd,
    took: Duration,
) {
    let (slot, to_slot) = (from.slot.0, to.slot.0);
    let duration_ms = took.as_millis();
    let error = match end {
        HandoverEnd::Done => {
            return event!(
                rebalance_finished,
                slot,
                to_slot,
                migrated = moved,
                duration_ms
            );
        }
        HandoverEnd::PeerGone => "the receiver exited",
        HandoverEnd::Refused { cause } | HandoverEnd::Incomplete { cause } => cause.as_str(),
    };
    event!(
        rebalance_incomplete,
        slot,
        to_slot,
        migrated = moved,
        duration_ms,
        error
    );
}

/// Logs that a worker has begun to stop.
pub(super) fn draining(worker: WorkerId, connections: u32) {
    event!(worker_draining; worker, connections);
}

/// Logs the result of an operation.
fn operation_ended(operation: OperationKind, answer: &Answer) {
    let (operation, to_workers) = (operation.name(), operation.to_workers());
    match answer {
        Answer::Done(done) => event!(
            operation_done,
            operation,
            to_workers,
            replaced = done.replaced,
            workers = done.workers,
            migrated = done.migrated,
            draining = done.draining,
            duration_ms = done.duration_ms
        ),
        Answer::Refused { cause } => {
            event!(operation_refused, operation, to_workers, error = cause);
        }
        Answer::Failed { cause } => {
            event!(operation_failed, operation, to_workers, error = cause);
        }
    }
}

/// Returns the failure of an operation in one line, if it failed.
pub(super) fn failure(operation: OperationKind, answer: &Answer) -> Option<String> {
    match answer {
        Answer::Done(_) => None,
        Answer::Refused { cause } => Some(format!("{operation} refused: {cause}")),
        Answer::Failed { cause } => Some(format!("{operation} failed: {cause}")),
    }
}

/// Logs the totals of all slots at the exit.
pub(super) fn ended(totals: &Totals) {
    event!(
        server_stopped,
        accepted = totals.count(Counter::Accepted),
        received_bytes = totals.count(Counter::BytesIn),
        sent_bytes = totals.count(Counter::BytesOut),
        abandoned_bytes = totals.count(Counter::BytesAbandoned),
        migrated = totals.count(Counter::MigratedOut),
        lost_connections = totals.count(Counter::Closed(CloseReason::WorkerDied))
    );
}
