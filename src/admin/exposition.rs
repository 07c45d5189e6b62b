//! Renders a status as OpenMetrics text for Prometheus, and in the older Prometheus format.
//!
//! Invariants: names and labels come from [`Counter`]; every counter of every slot is present, even
//! at zero and for removed slots, so that rates and sums stay correct when slots are added or
//! removed; the number of series is bounded by slots and addresses times the size of the enum. It
//! must not count anything itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use uppercased_ctl::metrics::{Counter, TurnClass};
use uppercased_ctl::status::AgentAnswers;
use uppercased_ctl::status::{
    AcceptQueueStatus, Durations, OperationTimes, ProcessStatus, Rescues, SlotStatus, Status, Usage,
};

/// Returns the text for a status and the responses of this process, by status code and to load
/// balancers.
///
/// # Errors
/// None known: the text is written to memory.
pub(super) fn write(
    status: &Status,
    answered: &[(u16, u64)],
    agent: AgentAnswers,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    // The names that every client library of Prometheus uses have no prefix.
    registry.register_collector(Box::new(Processes(status.processes.clone())));
    let own = registry.sub_registry_with_prefix("uppercased");
    own.register_collector(Box::new(Snapshot {
        status: status.clone(),
        answered: answered.to_vec(),
        agent,
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Converts to the format before OpenMetrics (version 0.0.4), which many readers and `promtool`
/// still need: in it the name of a counter's family has the suffix of its samples.
pub(super) fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // The next line, with the type, names the family.
            help = rest.split_once(' ').map(|(_, meaning)| meaning);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = help.take().unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(classic, "# HELP {name}{suffix} {help}");
            let _ = writeln!(classic, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

/// The input of one exposition.
#[derive(Debug)]
struct Snapshot {
    status: Status,
    answered: Vec<(u16, u64)>,
    agent: AgentAnswers,
}

type Labels = Vec<(&'static str, String)>;
type Counts = Vec<(Labels, ConstCounter<u64>)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let Self {
            status,
            answered,
            agent,
        } = self;
        let version = gauged(vec![("version", status.version.clone())], 1);
        let help = "Version of the running program.";
        family(encoder, "build_info", help, None, vec![version])?;
        let ready = gauged(Labels::new(), status.unready().is_none().into());
        let help = "Whether the server is up and every queue is served.";
        family(encoder, "ready", help, None, vec![ready])?;
        let degraded = gauged(Labels::new(), status.degraded().is_some().into());
        let help = "Whether a slot has no worker of its own.";
        family(encoder, "degraded", help, None, vec![degraded])?;
        self.config(encoder)?;
        self.slots(encoder)?;
        self.restarts(encoder)?;
        self.rescues(encoder)?;
        self.turns(encoder)?;
        self.durations(encoder)?;
        self.counters(encoder)?;
        self.service_manager(encoder)?;
        let by_code = answered
            .iter()
            .map(|(code, count)| counted(vec![("code", code.to_string())], *count));
        let help = "Requests answered by this admin process.";
        family(encoder, "admin_requests", help, None, by_code.collect())?;
        let crashes = status.admin.as_ref().map_or(0, |admin| admin.crashes);
        let crashes = vec![counted(Labels::new(), crashes)];
        let help = "Unexpected exits of admin processes.";
        family(encoder, "admin_crashes", help, None, crashes)?;
        if status.admin.as_ref().is_none_or(|it| it.agent.is_none()) {
            return Ok(());
        }
        let words = agent.by_word().into_iter();
        let by_word = words.map(|(word, count)| counted(vec![("answer", word.to_owned())], count));
        let help = "Answers of this admin process to load balancers.";
        family(encoder, "agent_answers", help, None, by_word.collect())
    }
}

/// The processes of the server, for the metrics that any process has.
#[derive(Debug)]
struct Processes(Vec<ProcessStatus>);

impl Collector for Processes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        // Only the first process of each place: rarely a slot has several predecessors.
        let mut places = BTreeSet::new();
        let used = self.0.iter().filter_map(|it| Some((it, it.usage?)));
        let used: Vec<(Labels, Usage)> = used
            .filter(|(it, _)| places.insert((it.slot, &it.process)))
            .map(|(it, usage)| (of_process(it), usage))
            .collect();
        let all = || used.iter().cloned();
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let started = all().map(|(labels, it)| in_seconds(labels, it.started_at_ms));
        let help = "Start time of the process, in seconds of Unix time.";
        let unit = Some(&Unit::Seconds);
        family(encoder, "process_start_time", help, unit, started.collect())?;
        let cpu = all().map(|(labels, it)| (labels, ConstCounter::new(seconds(it.cpu_ms))));
        let help = "CPU time of the process.";
        family(encoder, "process_cpu", help, unit, cpu.collect())?;
        let memory = all().filter_map(|(labels, it)| Some(gauged(labels, it.resident_bytes?)));
        let help = "Resident memory of the process; of a keeper only what no other process has.";
        let unit = Some(&Unit::Bytes);
        family(
            encoder,
            "process_resident_memory",
            help,
            unit,
            memory.collect(),
        )?;
        let open = all().filter_map(|(labels, it)| Some(gauged(labels, it.descriptors?)));
        let help = "Open descriptors of the process.";
        family(encoder, "process_open_fds", help, None, open.collect())
    }
}

impl Snapshot {
    fn config(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let config = &self.status.config;
        let successful = gauged(Labels::new(), config.last_reload_successful.into());
        let help = "Whether the last reload of the configuration, if any, succeeded.";
        let name = "config_last_reload_successful";
        family(encoder, name, help, None, vec![successful])?;
        let at = in_seconds(Labels::new(), config.last_reload_success_at_ms);
        let help = "Time of the start or the last successful reload, in seconds of Unix time.";
        let (name, unit) = ("config_last_reload_success_timestamp", Some(&Unit::Seconds));
        family(encoder, name, help, unit, vec![at])
    }

    fn slots(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let slots = &self.status.slots;
        let of_each = |value: fn(&SlotStatus) -> u64| {
            let sample = |slot| gauged(of_slot(slot), value(slot));
            slots.iter().map(sample).collect()
        };
        let serving = of_each(|slot| u64::from(slot.state == "serving"));
        let help = "Whether the slot's worker serves.";
        family(encoder, "slot_serving", help, None, serving)?;
        let stalled = slots.iter();
        let stalled = stalled.map(|it| in_seconds(of_slot(it), it.stalled_ms.unwrap_or(0)));
        let help = "Time since the event loop of the slot's worker stalled; 0 if it runs.";
        let unit = Some(&Unit::Seconds);
        family(encoder, "slot_stalled", help, unit, stalled.collect())?;
        let lost = slots.iter();
        let lost = lost.map(|it| in_seconds(of_slot(it), it.lost_listener_ms.unwrap_or(0)));
        let help = "Time since a listener of the slot was lost; 0 if none is.";
        family(encoder, "slot_listener_lost", help, unit, lost.collect())?;
        let turned = slots
            .iter()
            .filter_map(|it| Some(in_seconds(of_slot(it), it.turn_age_ms?)));
        let help = "Time since the worker was last seen to make an event loop turn.";
        family(
            encoder,
            "worker_last_turn_age",
            help,
            unit,
            turned.collect(),
        )?;
        let ages = slots.iter().map(|it| in_seconds(of_slot(it), it.age_ms));
        let (help, unit) = ("Time in the current state.", Some(&Unit::Seconds));
        family(encoder, "slot_state_age", help, unit, ages.collect())?;
        let open = of_each(|slot| slot.traffic.open);
        family(encoder, "connections_open", "Open connections.", None, open)?;
        let capacity = vec![gauged(Labels::new(), self.status.capacity)];
        let help = "Maximum connections of all slots together.";
        family(encoder, "connections_limit", help, None, capacity)?;
        let waiting = self.of_each_queue(|queue| queue.length);
        let help = "Connections waiting to be accepted.";
        family(encoder, "accept_queue_length", help, None, waiting)?;
        let limits = self.of_each_queue(|queue| queue.limit);
        let help = "Maximum connections waiting to be accepted.";
        family(encoder, "accept_queue_limit", help, None, limits)?;
        let starts = self.ever();
        let starts = starts.map(|it| counted(of_slot(it), it.worker_starts));
        let help = "Workers started in this slot.";
        family(encoder, "worker_starts", help, None, starts.collect())?;
        let crashes = self.ever().map(|it| counted(of_slot(it), it.crashes));
        let help = "Unexpected worker exits, rescued workers included.";
        family(encoder, "worker_crashes", help, None, crashes.collect())
    }

    /// The restarts of each process: of a slot also while it has none.
    fn restarts(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let processes = self.status.processes.iter();
        let processes = processes.filter(|it| it.slot.is_none());
        let single = processes.map(|it| gauged(of_process(it), it.restarts_10m.into()));
        let of_slots = self.status.slots.iter().flat_map(|slot| {
            let restarts = [
                (ProcessStatus::WORKER, slot.worker_restarts_10m),
                (ProcessStatus::KEEPER, slot.keeper_restarts_10m),
            ];
            restarts.map(|(name, count)| {
                let mut labels = vec![("process", name.to_owned())];
                labels.extend(of_slot(slot));
                gauged(labels, count.into())
            })
        });
        let help = "Restarts of the process within the last ten minutes, planned or not.";
        let samples = single.chain(of_slots).collect();
        family(encoder, "process_recent_restarts", help, None, samples)
    }

    /// The processes that continue workers, and what they continued.
    fn rescues(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let slots = self.status.slots.iter();
        let kept = slots.map(|it| gauged(of_slot(it), it.keeper_pid.is_some().into()));
        let help =
            "Whether the slot's worker has a keeper, which continues it if its process dies.";
        family(encoder, "slot_has_keeper", help, None, kept.collect())?;
        let of_each = |value: fn(&Rescues) -> u64| {
            let sample = |slot: &SlotStatus| counted(of_slot(slot), value(&slot.rescues));
            self.ever().map(sample).collect()
        };
        let lost = of_each(|it| it.keepers_lost);
        let help = "Keepers of running workers that ended.";
        family(encoder, "keepers_lost", help, None, lost)?;
        let replaced = of_each(|it| it.keepers_replaced);
        let help = "Keepers that took the place of lost ones.";
        family(encoder, "keepers_replaced", help, None, replaced)?;
        let connections = of_each(|it| it.connections);
        let help = "Connections that went on after the death of a worker's process.";
        family(encoder, "connections_rescued", help, None, connections)?;
        let owed = of_each(|it| it.owed_bytes);
        let help = "Bytes that dead processes had received and not answered, answered by rescues.";
        family(encoder, "rescued_bytes", help, None, owed)?;
        let slots = self.ever();
        let times = slots.map(|it| (of_slot(it), &it.rescues.times)).collect();
        let help = "Time from the wake-up of a keeper until its worker's connections go on.";
        histograms(encoder, "rescue_duration_seconds", help, times)
    }

    /// Durations of event loop turns; their sum is each worker's busy time.
    fn turns(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = (
            "turn_duration_seconds",
            "Duration of one event loop iteration, without waiting; short ones are sampled.",
        );
        if self.ever().next().is_none() {
            return Ok(());
        }
        // No unit except in the name: some parsers reject a unit for a histogram.
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for slot in self.ever() {
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

    /// Durations of planned operations: starts of workers, handovers, whole operations.
    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let of_each = |times: fn(&SlotStatus) -> &Durations| {
            let slots = self.ever();
            slots.map(|it| (of_slot(it), times(it))).collect()
        };
        let help = "Time from the fork of a worker until it is ready.";
        let starts = of_each(|slot| &slot.starts);
        histograms(encoder, "worker_start_duration_seconds", help, starts)?;
        let help = "Duration of a handover, any result.";
        let handovers = of_each(|slot| &slot.handovers);
        histograms(encoder, "handover_duration_seconds", help, handovers)?;
        // Results with a count of zero are included: a first failure must show as a change.
        let never = Durations::default();
        let all = OperationTimes::all_kinds().map(|kind| (kind, &never));
        let mut operations: BTreeMap<(&str, &str), &Durations> = all.collect();
        let happened = self.status.operations.iter();
        operations.extend(happened.map(|it| ((&*it.operation, &*it.result), &it.times)));
        let operations = operations.into_iter().map(|((operation, result), times)| {
            let labels = vec![
                ("operation", operation.to_owned()),
                ("result", result.to_owned()),
            ];
            (labels, times)
        });
        let help = "Time from the request of an operation to its result.";
        histograms(
            encoder,
            "operation_duration_seconds",
            help,
            operations.collect(),
        )
    }

    /// Adds the service manager's metrics; omitted without one.
    fn service_manager(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let manager = self.status.service_manager.iter();
        let tries = manager.clone().flat_map(|it| {
            let results = [("sent", it.sent), ("refused", it.refused)];
            results.map(|(result, count)| counted(vec![("result", result.to_owned())], count))
        });
        let help = "Messages to the service manager; a refused one is retried.";
        family(encoder, "notifications", help, None, tries.collect())?;
        let waiting = manager.clone().map(|it| gauged(Labels::new(), it.pending));
        let help = "Messages waiting for the service manager.";
        family(
            encoder,
            "notifications_pending",
            help,
            None,
            waiting.collect(),
        )?;
        let fed = manager.map(|it| gauged(Labels::new(), it.watchdog_paused.is_none().into()));
        let help = "Whether the service manager's watchdog, if there is one, is fed.";
        family(encoder, "watchdog_fed", help, None, fed.collect())
    }

    fn of_each_queue(
        &self,
        value: fn(&AcceptQueueStatus) -> u64,
    ) -> Vec<(Labels, ConstGauge<i64>)> {
        let slots = self.status.slots.iter();
        let queues = slots.flat_map(|slot| slot.accept_queues.iter().map(move |it| (slot, it)));
        let sample = |(slot, queue): (_, &AcceptQueueStatus)| {
            let mut labels = of_slot(slot);
            labels.push(("address", queue.address.clone()));
            gauged(labels, value(queue))
        };
        queues.map(sample).collect()
    }

    /// Adds one family per name in [`Counter`], with the help of its first counter.
    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut families: Vec<(Counter, Counts)> = Vec::new();
        for one in Counter::all() {
            // Histograms include these.
            if matches!(one, Counter::BusyNs | Counter::Took(_)) {
                continue;
            }
            let mut samples = self.of_each_slot(one);
            let same = |(first, _): &&mut (Counter, _)| first.name().0 == one.name().0;
            match families.iter_mut().find(same) {
                Some((_, family)) => family.append(&mut samples),
                None => families.push((one, samples)),
            }
        }
        for (first, samples) in families {
            family(encoder, first.name().0, first.meaning(), None, samples)?;
        }
        Ok(())
    }

    /// Returns every slot, present or removed.
    fn ever(&self) -> impl Iterator<Item = &SlotStatus> {
        self.status.slots.iter().chain(&self.status.former)
    }

    /// Returns the counter of every slot.
    fn of_each_slot(&self, counter: Counter) -> Counts {
        let key = counter.key();
        let sample = |slot: &SlotStatus| {
            let mut labels = of_slot(slot);
            let reason = counter.name().1;
            labels.extend(reason.map(|reason| ("reason", reason.to_owned())));
            let count = slot.traffic.counters.get(&key).copied().unwrap_or(0);
            counted(labels, count)
        };
        self.ever().map(sample).collect()
    }
}

fn of_process(process: &ProcessStatus) -> Labels {
    // Parsers want the same labels everywhere; an empty one counts as absent.
    let slot = process
        .slot
        .map_or_else(String::new, |slot| slot.to_string());
    vec![("process", process.process.clone()), ("slot", slot)]
}

fn of_slot(slot: &SlotStatus) -> Labels {
    vec![("slot", slot.slot.to_string())]
}

/// Adds a family of metrics; omitted without a sample, since parsers would attach the next family
/// to it.
fn family<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: Vec<(Labels, M)>,
) -> Result<(), fmt::Error> {
    let Some((_, first)) = samples.first() else {
        return Ok(());
    };
    let mut family = encoder.encode_descriptor(name, help, unit, first.metric_type())?;
    for (labels, value) in samples {
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Adds a family of histograms; omitted without a sample, like any other.
fn histograms(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<(Labels, &Durations)>,
) -> Result<(), fmt::Error> {
    if samples.is_empty() {
        return Ok(());
    }
    // No unit except in the name: some parsers reject a unit for a histogram.
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, times) in samples {
        let cells: Vec<(f64, u64)> = times.cells().collect();
        let sum = Duration::from_micros(times.sum_us).as_secs_f64();
        family
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(sum, times.count, &cells, None)?;
    }
    Ok(())
}

fn counted(labels: Labels, count: u64) -> (Labels, ConstCounter<u64>) {
    (labels, ConstCounter::new(count))
}

fn gauged(labels: Labels, value: u64) -> (Labels, ConstGauge<i64>) {
    (
        labels,
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)),
    )
}

fn in_seconds(labels: Labels, ms: u64) -> (Labels, ConstGauge<f64>) {
    let seconds = Duration::from_millis(ms).as_secs_f64();
    (labels, ConstGauge::new(seconds))
}

#[cfg(test)]
mod tests;
