//! What the supervisor tells people: one log line a notice, and the addresses on standard output.

use std::io::Write;

use crate::config::Config;
use crate::identity::{SlotId, WorkerId};
use crate::memory;
use crate::metrics::Counter;
use crate::wire::Listen;

use super::children::{Child, SlotResources};
use super::machine::{Death, Notice, Verdict};

/// Nothing was refused, and the first worker is about to start.
pub(super) fn starting(config: &Config) {
    tracing::info!(
        workers = config.workers,
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
}

/// Every slot serves: says where, for people on the log and for scripts on standard output.
pub(super) fn announce(config: &Config, listen: &[Listen]) {
    let shown: Vec<String> = listen.iter().map(shown).collect();
    tracing::info!(
        address = shown.join(" "),
        workers = config.workers,
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    let mut out = std::io::stdout().lock();
    let lines = shown
        .iter()
        .try_for_each(|address| writeln!(out, "listening on {address}"));
    if let Err(error) = lines.and_then(|()| out.flush()) {
        tracing::debug!(%error, "standard output does not take the addresses");
    }
}

/// Logs a notice.
pub(super) fn notice(notice: &Notice, slots: &[SlotResources]) {
    let pid = |worker: &WorkerId| {
        slots
            .get(worker.slot.index())
            .and_then(SlotResources::child)
            .map(Child::pid)
    };
    match notice {
        Notice::WorkerStarting { worker, listener } => {
            tracing::info!(
                slot = worker.slot.0,
                generation = worker.generation.0,
                ?listener,
                "worker starting"
            );
        }
        Notice::WorkerStandingBy { .. }
        | Notice::OperationStarted { .. }
        | Notice::OperationEnded { .. }
        | Notice::HandoverStarted { .. }
        | Notice::HandoverEnded { .. }
        | Notice::HandoverTimedOut { .. }
        | Notice::Restored { .. }
        | Notice::RollingBack { .. }
        | Notice::WorkerHung { .. } => {}
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
            let connections = open_in(slots, worker.slot);
            tracing::error!(slot = worker.slot.0, generation = worker.generation.0, %how,
                served_ms = served_for.map(|span| span.as_millis()), cause = cause.as_deref(),
                connections_lost = connections, "worker died");
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
        Notice::WorkerStopped { worker, how } => match open_in(slots, worker.slot) {
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
        // Told once, as the verdict.
        Notice::BootFailed { cause } => tracing::debug!(cause, "cannot start"),
        Notice::StaleEvent { event, total } => {
            tracing::debug!(?event, total, "stale event dropped");
        }
    }
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

/// Everything is over: what the slots did, all together.
pub(super) fn ended(verdict: &Verdict, slots: &[SlotResources]) {
    if *verdict == Verdict::Clean {
        let total = |counter| -> u64 {
            slots
                .iter()
                .map(|slot| memory::counter(slot.memory(), counter))
                .sum()
        };
        let lost: u64 = slots
            .iter()
            .map(|slot| memory::open_connections(slot.memory()))
            .sum();
        tracing::info!(
            accepted = total(Counter::Accepted),
            bytes_in = total(Counter::BytesIn),
            bytes_out = total(Counter::BytesOut),
            abandoned = total(Counter::BytesAbandoned),
            connections_lost = lost,
            "stopped"
        );
    }
}

fn open_in(slots: &[SlotResources], slot: SlotId) -> u64 {
    slots
        .get(slot.index())
        .map_or(0, |slot| memory::open_connections(slot.memory()))
}

fn shown(listen: &Listen) -> String {
    if listen.dual_stack {
        format!("*:{}", listen.addr.port())
    } else {
        listen.addr.to_string()
    }
}
