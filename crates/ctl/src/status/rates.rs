//! Rates: the difference of two samples of the same server.
//!
//! The time between them is the server's own (its uptime), so it is exact even if a reply arrives
//! late. Invariants: samples of different instances are not compared; a counter that has decreased
//! (a slot that was removed and added again) gives no rate, never a negative or huge one. Pure: it
//! must not read a clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::data::{Status, Traffic};
use super::processes::ProcessStatus;
use crate::identity::SlotId;
use crate::metrics::Counter;

/// Rates of a whole server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// The time between the samples.
    pub span_ms: u64,
    /// Rates of all slots together, including those removed between the samples.
    pub totals: Rate,
    /// Rates by slot; a new slot has none yet.
    pub slots: BTreeMap<SlotId, Rate>,
    /// The CPU time of each process, by its ID, as a share of one CPU; a new process has none yet.
    pub cpu: BTreeMap<u32, f64>,
}

/// Rates of one slot, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Connections accepted.
    pub accepted: f64,
    /// Messages, i.e. successful reads.
    pub messages: f64,
    /// Bytes received.
    pub received_bytes: f64,
    /// Bytes sent.
    pub sent_bytes: f64,
    /// The worker's busy share of the time, from 0 to 1; for all slots together, the sum of theirs.
    pub busy: f64,
}

impl Rates {
    /// Returns the rates between two samples; `None` if they are of different instances or of the
    /// same moment.
    #[must_use]
    pub fn between(before: &Status, after: &Status) -> Option<Self> {
        let span_ms = after.uptime_ms.checked_sub(before.uptime_ms)?;
        if before.pid != after.pid || span_ms == 0 {
            return None;
        }
        let earlier = |slot: SlotId| before.slots.iter().find(|one| one.slot == slot);
        let slots: BTreeMap<SlotId, Rate> = after
            .slots
            .iter()
            .filter_map(|slot| {
                let earlier = earlier(slot.slot)?;
                let mut rate = Rate::between(&earlier.traffic, &slot.traffic, span_ms)?;
                // A turn is counted when it ends, including the part before the first sample.
                rate.busy = rate.busy.min(1.0);
                Some((slot.slot, rate))
            })
            .collect();
        let mut totals = Rate::between(&before.totals.traffic, &after.totals.traffic, span_ms)?;
        totals.busy = slots.values().map(|rate| rate.busy).sum();
        Some(Self {
            span_ms,
            totals,
            slots,
            cpu: cpu(before, after, span_ms),
        })
    }
}

fn cpu(before: &Status, after: &Status, span_ms: u64) -> BTreeMap<u32, f64> {
    let share = |process: &ProcessStatus| {
        let now = process.usage?;
        // Another process may have got the same ID.
        let then = before.process(process.pid)?.usage;
        let then = then.filter(|it| it.started_at_ms == now.started_at_ms)?;
        let used = now.cpu_ms.checked_sub(then.cpu_ms)?;
        Some((process.pid, used as f64 / span_ms as f64))
    };
    after.processes.iter().filter_map(share).collect()
}

impl Rate {
    fn between(before: &Traffic, after: &Traffic, span_ms: u64) -> Option<Self> {
        let seconds = span_ms as f64 / 1000.0;
        let rate = |before: u64, after: u64| Some(after.checked_sub(before)? as f64 / seconds);
        let counted = |counter: Counter| {
            let key = counter.key();
            let value = |traffic: &Traffic| traffic.counters.get(&key).copied().unwrap_or(0);
            rate(value(before), value(after))
        };
        Some(Self {
            accepted: rate(before.accepted, after.accepted)?,
            messages: counted(Counter::Reads)?,
            received_bytes: rate(before.received_bytes, after.received_bytes)?,
            sent_bytes: rate(before.sent_bytes, after.sent_bytes)?,
            busy: counted(Counter::BusyNs)? / 1e9,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SlotStatus, Usage};
    use super::*;

    fn status(uptime_ms: u64, counts: &[u64]) -> Status {
        let slot = |(number, count): (usize, &u64)| SlotStatus {
            slot: SlotId(number as u16),
            traffic: Traffic {
                accepted: *count,
                received_bytes: count * 10,
                counters: BTreeMap::from([
                    ("reads".to_owned(), count * 2),
                    ("busy_ns".to_owned(), count * 1_000_000),
                ]),
                ..Traffic::default()
            },
            ..SlotStatus::default()
        };
        let mut status = Status {
            pid: 7,
            uptime_ms,
            slots: counts.iter().enumerate().map(slot).collect(),
            ..Status::default()
        };
        status.sum_up();
        status
    }

    #[test]
    fn rates_use_elapsed_time() {
        let rates = Rates::between(&status(1000, &[100, 0]), &status(3500, &[350, 5])).unwrap();
        assert_eq!(rates.span_ms, 2500);
        let first = rates.slots[&SlotId(0)];
        assert_eq!((first.accepted, first.messages), (100.0, 200.0));
        assert_eq!((first.received_bytes, first.busy), (1000.0, 0.1));
        assert_eq!(rates.slots[&SlotId(1)].accepted, 2.0);
        assert_eq!(rates.totals.accepted, 102.0);
        assert!((rates.totals.busy - 0.102).abs() < 1e-9);
    }

    #[test]
    fn rates_compare_same_instance_only() {
        let before = status(1000, &[100]);
        assert_eq!(Rates::between(&before, &before), None);
        assert_eq!(Rates::between(&before, &status(500, &[1])), None);
        let mut other = status(2000, &[100]);
        other.pid = 8;
        assert_eq!(Rates::between(&before, &other), None);
    }

    #[test]
    fn returned_slot_has_no_rate() {
        let before = status(1000, &[100, 900]);
        let mut after = status(2000, &[110, 3, 5]);
        // The sum still includes the counters of the removed slot.
        after.totals.traffic.add(&before.slots[1].traffic);
        let rates = Rates::between(&before, &after).unwrap();
        assert_eq!(rates.slots.keys().collect::<Vec<_>>(), [&SlotId(0)]);
        assert_eq!(rates.totals.accepted, 18.0);
    }

    #[test]
    fn cpu_share_is_of_same_process() {
        let with = |uptime_ms, used: [(u32, u64, u64); 2]| Status {
            processes: used
                .into_iter()
                .map(|(pid, started_at_ms, cpu_ms)| ProcessStatus {
                    pid,
                    usage: Some(Usage {
                        started_at_ms,
                        cpu_ms,
                        ..Usage::default()
                    }),
                    ..ProcessStatus::default()
                })
                .collect(),
            ..status(uptime_ms, &[])
        };
        let before = with(1000, [(7, 1, 500), (8, 1, 9000)]);
        let after = with(3000, [(7, 1, 3500), (8, 2, 9500)]);
        let rates = Rates::between(&before, &after).unwrap();
        assert_eq!(rates.cpu, BTreeMap::from([(7, 1.5)]));
    }

    #[test]
    fn busy_share_never_exceeds_one() {
        let rates = Rates::between(&status(0, &[0]), &status(1000, &[5000])).unwrap();
        assert_eq!(
            (rates.slots[&SlotId(0)].busy, rates.totals.busy),
            (1.0, 1.0)
        );
    }
}
