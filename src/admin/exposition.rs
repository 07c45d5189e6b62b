//! A status as OpenMetrics text, for Prometheus and its like.
//!
//! Invariants: names and labels come from [`Counter`], and every counter of every slot is there, also
//! at zero; the number of series is bounded by slots and addresses times what the enum has. It must
//! not count anything itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::answer::unready;
use crate::metrics::{Counter, TurnClass};
use crate::status::{AcceptQueueStatus, SlotStatus, Status};

/// What the `slot` label of slots that are no more says, all of them together.
const GONE: &str = "gone";

/// The text, from a status and this process's answers by their status.
///
/// # Errors
/// None that is known: the text goes into memory.
pub(super) fn write(status: &Status, answered: &[(u16, u64)]) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("uppercased");
    registry.register_collector(Box::new(Snapshot {
        status: status.clone(),
        answered: answered.to_vec(),
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What one answer is made of.
#[derive(Debug)]
struct Snapshot {
    status: Status,
    answered: Vec<(u16, u64)>,
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let Self { status, answered } = self;
        let version = vec![(vec![("version", status.version.clone())], 1)];
        gauge(encoder, "build_info", "The program that runs.", version)?;
        let ready = i64::from(unready(status).is_none());
        let help = "Whether the server is up and every slot serves.";
        let alone = encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?;
        ConstGauge::new(ready).encode(alone)?;
        let help = "Time since the server was started.";
        let unit = Some(&Unit::Seconds);
        let alone = encoder.encode_descriptor("uptime", help, unit, MetricType::Gauge)?;
        ConstGauge::new(in_seconds(status.uptime_ms)).encode(alone)?;
        self.slots(encoder)?;
        self.counters(encoder)?;
        let by_code = answered.iter().map(|(code, count)| {
            let labels = vec![("code", code.to_string())];
            (labels, *count)
        });
        let help = "Requests that this admin process has answered.";
        counter(encoder, "admin_requests", help, by_code.collect())
    }
}

impl Snapshot {
    fn slots(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let of_each = |value: fn(&SlotStatus) -> u64| -> Vec<(Labels, i64)> {
            let slots = self.status.slots.iter();
            let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
            slots
                .map(|slot| (of_slot(slot), signed(value(slot))))
                .collect()
        };
        let serving = of_each(|slot| u64::from(slot.state == "serving"));
        gauge(
            encoder,
            "slot_serving",
            "Whether the slot's worker serves.",
            serving,
        )?;
        let generation = of_each(|slot| slot.generation.0.into());
        let help = "Workers that have lived in the slot.";
        gauge(encoder, "slot_generation", help, generation)?;
        let ages = self.status.slots.iter();
        let ages = ages.map(|slot| (of_slot(slot), slot.age_ms)).collect();
        seconds(
            encoder,
            "slot_state_age",
            "Time in the present state.",
            ages,
        )?;
        let open = of_each(|slot| slot.traffic.open);
        gauge(encoder, "connections_open", "Connections now.", open)?;
        let help = "Connections that wait to be accepted.";
        let waiting = self.of_each_queue(|queue| queue.length);
        gauge(encoder, "accept_queue_length", help, waiting)?;
        let help = "Connections that may wait to be accepted.";
        let limits = self.of_each_queue(|queue| queue.limit);
        gauge(encoder, "accept_queue_limit", help, limits)?;
        let deaths = self.status.slots.iter();
        let deaths = deaths.map(|slot| (of_slot(slot), slot.deaths)).collect();
        let help = "Workers that ended and should not have.";
        counter(encoder, "worker_deaths", help, deaths)
    }

    /// How long turns take, and with their sum the time that each worker was busy.
    fn turns(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = (
            "turn_duration_seconds",
            "Work of one turn of the loop, waiting not counted.",
        );
        if self.status.slots.is_empty() {
            return Ok(());
        }
        // No unit beside the name: not every parser allows one of a histogram.
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for slot in &self.status.slots {
            let counters = &slot.traffic.counters;
            let value = |one: Counter| counters.get(&one.key()).copied().unwrap_or(0);
            let buckets: Vec<(f64, u64)> = TurnClass::all()
                .map(|class| (class.bound_seconds(), value(Counter::Took(class))))
                .map(|(bound, turns)| (bound.unwrap_or(f64::INFINITY), turns))
                .collect();
            let turns = buckets.iter().map(|(_, turns)| turns).sum();
            let busy = Duration::from_nanos(value(Counter::BusyNs)).as_secs_f64();
            let labels = of_slot(slot);
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(busy, turns, &buckets, None)?;
        }
        Ok(())
    }

    fn of_each_queue(&self, value: fn(&AcceptQueueStatus) -> u64) -> Vec<(Labels, i64)> {
        let slots = self.status.slots.iter();
        let queues = slots.flat_map(|slot| slot.accept_queues.iter().map(move |it| (slot, it)));
        let labelled = queues.map(|(slot, queue)| {
            let mut labels = of_slot(slot);
            labels.push(("address", queue.address.clone()));
            (labels, i64::try_from(value(queue)).unwrap_or(i64::MAX))
        });
        labelled.collect()
    }

    /// One family for each name in [`Counter`], in the order of its first counter.
    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut names: Vec<&str> = Vec::new();
        let mut families: BTreeMap<&str, Vec<(Labels, u64)>> = BTreeMap::new();
        for one in Counter::all() {
            let (name, reason) = one.name();
            if matches!(one, Counter::BusyNs | Counter::Took(_)) {
                continue;
            }
            if !names.contains(&name) {
                names.push(name);
            }
            let key = one.key();
            let family = families.entry(name).or_default();
            let mut kept = 0;
            let labels = |mut labels: Labels| {
                labels.extend(reason.map(|reason| ("reason", reason.to_owned())));
                labels
            };
            for slot in &self.status.slots {
                let value = slot.traffic.counters.get(&key).copied().unwrap_or(0);
                kept += value;
                family.push((labels(of_slot(slot)), value));
            }
            let totals = &self.status.totals.traffic.counters;
            let gone = totals.get(&key).map_or(0, |all| all.saturating_sub(kept));
            if gone > 0 {
                family.push((labels(vec![("slot", GONE.to_owned())]), gone));
            }
        }
        self.turns(encoder)?;
        for name in names {
            let samples = families.remove(name).unwrap_or_default();
            counter(encoder, name, meaning(name), samples)?;
        }
        Ok(())
    }
}

fn of_slot(slot: &SlotStatus) -> Labels {
    vec![("slot", slot.slot.to_string())]
}

/// A family of counters; one without a sample is left out, since parsers take the next one for it.
fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<(Labels, u64)>,
) -> Result<(), fmt::Error> {
    if samples.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<(Labels, i64)>,
) -> Result<(), fmt::Error> {
    if samples.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A gauge of times that are given in milliseconds.
fn seconds(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<(Labels, u64)>,
) -> Result<(), fmt::Error> {
    if samples.is_empty() {
        return Ok(());
    }
    let unit = Some(&Unit::Seconds);
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, ms) in samples {
        ConstGauge::new(in_seconds(ms)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn in_seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// What a family of counters counts, in a line.
fn meaning(name: &str) -> &'static str {
    match name {
        "accepted" => "Connections taken from an accept queue.",
        "moved_in" => "Connections that came from another worker, live.",
        "moved_out" => "Connections that another worker took over, live.",
        "closed" => "Connections ended, by reason.",
        "paused" => "Times accepting was paused, by cause.",
        "refused" => "Connections taken and then refused.",
        "accept_failed" => "Connections that failed before they could be taken.",
        "bytes_in" => "Bytes received from clients.",
        "bytes_out" => "Bytes that the kernel took for sending.",
        "bytes_discarded" => "Bytes received after the stream was ended, and thrown away.",
        "bytes_abandoned" => "Bytes of pending output given up when their connection ended.",
        "reads" => "Successful reads.",
        "writes" => "Sends that moved at least one byte.",
        "backpressure" => "Times output had to be kept because a peer did not take it.",
        "turns" => "Turns of the loop.",
        "stale_events" => "Readiness reports for connections that were no longer there.",
        _ => "Counted by the slot's workers.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SlotId;
    use crate::status::Traffic;

    fn slot(number: u16, traffic: Traffic) -> SlotStatus {
        SlotStatus {
            slot: SlotId(number),
            state: "serving".to_owned(),
            queue: "served".to_owned(),
            traffic,
            ..SlotStatus::default()
        }
    }

    #[test]
    fn every_counter_of_every_slot_is_there() {
        let cell = |counter: Counter| counter.cell() as u64 + 100;
        let mut status = Status {
            phase: "serving".to_owned(),
            slots: vec![slot(0, Traffic::read(3, cell)), slot(1, Traffic::default())],
            ..Status::default()
        };
        status.sum_up();
        let text = write(&status, &[(200, 7)]).unwrap();
        let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        for one in Counter::all() {
            let (name, reason) = one.name();
            if matches!(one, Counter::BusyNs | Counter::Took(_)) {
                continue;
            }
            let reason = reason.map_or_else(String::new, |it| format!(",reason=\"{it}\""));
            let value = cell(one);
            has(&format!(
                "uppercased_{name}_total{{slot=\"0\"{reason}}} {value}"
            ));
            has(&format!("uppercased_{name}_total{{slot=\"1\"{reason}}} 0"));
        }
        let turns: u64 = TurnClass::all().map(|it| cell(Counter::Took(it))).sum();
        let histogram = "uppercased_turn_duration_seconds";
        has(&format!(
            "{histogram}_bucket{{le=\"+Inf\",slot=\"0\"}} {turns}"
        ));
        has(&format!("{histogram}_count{{slot=\"0\"}} {turns}"));
        has("uppercased_ready 1");
        has("uppercased_connections_open{slot=\"0\"} 3");
        has("uppercased_admin_requests_total{code=\"200\"} 7");
        assert!(text.ends_with("# EOF\n") && !text.contains(GONE), "{text}");
    }

    #[test]
    fn a_family_without_a_sample_is_left_out() {
        let text = write(&Status::default(), &[]).unwrap();
        let families = text.lines().filter(|line| line.starts_with("# TYPE"));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(families.count(), samples.count(), "{text}");
    }

    #[test]
    fn what_slots_counted_that_are_no_more_stays_in_the_sum() {
        let mut status = Status {
            slots: vec![slot(0, Traffic::read(0, |_| 1))],
            ..Status::default()
        };
        status.sum_up();
        status.totals.traffic.add(&Traffic::read(0, |_| 5));
        let text = write(&status, &[]).unwrap();
        assert!(
            text.contains("uppercased_accepted_total{slot=\"0\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("uppercased_accepted_total{slot=\"gone\"} 5\n"),
            "{text}"
        );
    }
}
