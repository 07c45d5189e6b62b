//! One worker in detail, as lines for people.

use std::collections::BTreeMap;

use super::data::{SlotStatus, Status};
use super::durations::Durations;
use super::processes::ProcessStatus;
use super::rates::Rates;
use super::text::{by_frequency, exited, notes, usage_cells};
use crate::metrics::{Counter, PauseCause};
use crate::units::{age, counted, per_second, percent, short, time_ms};

/// Returns everything known about a slot's worker, the most important first; lines may be long.
pub(super) fn lines(slot: &SlotStatus, status: &Status, rates: Option<&Rates>) -> Vec<String> {
    let traffic = &slot.traffic;
    let mut lines = vec![format!(
        "{:<12} {} for {}, generation {}, release {}, crashes {}",
        format!("slot {}", slot.slot),
        slot.condition(),
        age(slot.age_ms),
        slot.generation,
        slot.release,
        short(slot.crashes),
    )];
    let used = |name: &str, pid: Option<u32>| {
        let process = status.process(pid?)?;
        Some(format!("{name:<12} {}", usage(process, rates)))
    };
    lines.extend(used("process", slot.pid));
    lines.extend(used("keeper", slot.keeper_pid));
    lines.extend(notes(slot, status));
    let earlier = slot.last_crashes.iter().skip(1).map(exited);
    lines.extend(earlier.map(|crash| format!("        {crash}")));
    let limit = status.capacity / (status.slots.len() as u64).max(1);
    lines.push(format!(
        "connections  {} open of {}, {} accepted, {} migrated in, {} out",
        short(traffic.open),
        short(limit),
        short(traffic.accepted),
        short(traffic.migrated_in),
        short(traffic.migrated_out),
    ));
    if let Some(rate) = rates.and_then(|rates| rates.slots.get(&slot.slot)) {
        lines.push(format!(
            "rates        {} acc/s, {} msg/s, {}B/s in, {}B/s out, busy {}",
            per_second(rate.accepted),
            per_second(rate.messages),
            per_second(rate.received_bytes),
            per_second(rate.sent_bytes),
            percent(rate.busy),
        ));
    }
    lines.push(format!(
        "traffic      {}B in, {}B out",
        short(traffic.received_bytes),
        short(traffic.sent_bytes)
    ));
    for queue in &slot.accept_queues {
        lines.push(format!(
            "listens on   {}: {} pending, limit {}, inode {}",
            queue.address,
            short(queue.length),
            short(queue.limit),
            queue.inode
        ));
    }
    for (name, counts) in [
        ("closed", &traffic.closed),
        ("refused", &traffic.refused),
        ("paused", &pauses(slot)),
    ] {
        if !counts.is_empty() {
            lines.push(format!("{name:<12} {}", by_frequency(counts)));
        }
    }
    if let Some(turned) = slot.turn_age_ms {
        lines.push(format!("last turn    {} ago", age(turned)));
    }
    if let Some(cpu) = slot.cpu {
        lines.push(format!("pinned       to CPU {cpu}"));
    }
    for (name, times) in [
        ("starts", &slot.starts),
        ("handovers", &slot.handovers),
        ("rescues", &slot.rescues.times),
    ] {
        lines.extend(durations(times).map(|shown| format!("{name:<12} {shown}")));
    }
    if let Some(sandbox) = &slot.sandbox {
        let missing = sandbox
            .missing
            .iter()
            .map(|what| format!("; without {what}"));
        let missing: String = missing.collect();
        lines.push(format!(
            "sandbox      {}{missing}",
            sandbox.layers.join(" ")
        ));
    }
    lines
}

fn usage(process: &ProcessStatus, rates: Option<&Rates>) -> String {
    let [memory, cpu, descriptors] = usage_cells(process, rates);
    let started = process.usage.map(|usage| age(usage.age_ms));
    format!(
        "pid {}: memory {memory}, cpu {cpu}, fds {descriptors}, up {}, {} in 10m",
        process.pid,
        started.unwrap_or_else(|| "-".to_owned()),
        counted(process.restarts_10m.into(), "restart"),
    )
}

/// Returns the slot's accept pauses by cause.
fn pauses(slot: &SlotStatus) -> BTreeMap<String, u64> {
    let causes = PauseCause::ALL.into_iter();
    let counts = causes.filter_map(|cause| {
        let count = slot.traffic.counters.get(&Counter::Paused(cause).key())?;
        Some((cause.name().to_owned(), *count))
    });
    counts.collect()
}

fn durations(times: &Durations) -> Option<String> {
    let average = times.sum_us.checked_div(times.count)?;
    let ms = |us: u64| time_ms(us as f64 / 1e3);
    let last = ms(times.last_us);
    Some(format!(
        "{}, average {}, last {last}",
        short(times.count),
        ms(average)
    ))
}
