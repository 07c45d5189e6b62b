//! Unit tests of `exposition.rs`.

use super::*;
use uppercased_ctl::identity::SlotId;
use uppercased_ctl::status::{AdminStatus, OperationTimes, ServiceManagerStatus, Traffic};

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
fn exposition_has_every_counter_of_every_slot() {
    let cell = |counter: Counter| counter.cell() as u64 + 100;
    let mut status = Status {
        phase: "serving".to_owned(),
        slots: vec![slot(0, Traffic::read(3, cell)), slot(1, Traffic::default())],
        ..Status::default()
    };
    status.sum_up();
    let text = write(&status, &[(200, 7)], AgentAnswers::default()).unwrap();
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
    assert!(text.ends_with("# EOF\n"), "{text}");
}

/// Returns a status in which every family has a sample.
fn full() -> Status {
    let mut slot = slot(0, Traffic::read(3, |_| 1));
    slot.accept_queues.push(AcceptQueueStatus {
        address: "127.0.0.1:9999".to_owned(),
        length: 0,
        limit: 4096,
        ..AcceptQueueStatus::default()
    });
    slot.turn_age_ms = Some(250);
    slot.worker_restarts_10m = 3;
    let process = |process: &str, slot, cpu_ms| ProcessStatus {
        process: process.to_owned(),
        slot,
        pid: 4711,
        restarts_10m: 2,
        usage: Some(Usage {
            started_at_ms: 1_700_000_000_250,
            age_ms: 5,
            cpu_ms,
            resident_bytes: Some(4096),
            descriptors: Some(12),
        }),
    };
    let mut status = Status {
        phase: "serving".to_owned(),
        slots: vec![slot],
        admin: Some(AdminStatus {
            agent: Some("127.0.0.1:9101".to_owned()),
            ..AdminStatus::default()
        }),
        service_manager: Some(ServiceManagerStatus::default()),
        processes: vec![
            process(ProcessStatus::WORKER, Some(SlotId(0)), 1500),
            process(ProcessStatus::PREDECESSOR, Some(SlotId(0)), 20),
            process(ProcessStatus::PREDECESSOR, Some(SlotId(0)), 30),
            process(ProcessStatus::SUPERVISOR, None, 0),
        ],
        ..Status::default()
    };
    status.sum_up();
    status
}

#[test]
fn each_process_has_standard_metrics() {
    let text = write(&full(), &[], AgentAnswers::default()).unwrap();
    let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    has("process_start_time_seconds{process=\"supervisor\",slot=\"\"} 1700000000.25");
    has("process_cpu_seconds_total{process=\"worker\",slot=\"0\"} 1.5");
    has("process_cpu_seconds_total{process=\"predecessor\",slot=\"0\"} 0.02");
    has("process_resident_memory_bytes{process=\"supervisor\",slot=\"\"} 4096");
    has("process_open_fds{process=\"supervisor\",slot=\"\"} 12");
    assert_eq!(text.matches("process_open_fds{").count(), 3, "{text}");
    let restarts = "uppercased_process_recent_restarts";
    has(&format!("{restarts}{{process=\"supervisor\",slot=\"\"}} 2"));
    has(&format!("{restarts}{{process=\"worker\",slot=\"0\"}} 3"));
    has(&format!("{restarts}{{process=\"keeper\",slot=\"0\"}} 0"));
    assert_eq!(text.matches(&format!("{restarts}{{")).count(), 3, "{text}");
    has("uppercased_worker_last_turn_age_seconds{slot=\"0\"} 0.25");
}

/// Returns the names of a sample's labels: `closed{slot="0",reason="drained"} 1`.
fn labels(sample: &str) -> Vec<&str> {
    let inside = sample.split_once('{').map(|(_, rest)| rest);
    let inside = inside.and_then(|rest| rest.rsplit_once('}'));
    let pairs = inside.map_or("", |(inside, _)| inside).split("\",");
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| *name != "le")
        .collect()
}

/// Returns the table between the two marks in `docs/reference.md`, generated from the metrics.
fn table() -> String {
    let text = write(&full(), &[(200, 7)], AgentAnswers::default()).unwrap();
    let mut table = "| name | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for part in text.split("# HELP ").skip(1) {
        let mut lines = part.lines();
        let (name, meaning) = lines.next().unwrap().split_once(' ').unwrap();
        let typed = format!("# TYPE {name} ");
        let kind = lines
            .clone()
            .find_map(|line| line.strip_prefix(&typed))
            .unwrap();
        let suffix = if kind == "counter" { "_total" } else { "" };
        let sample = lines.find(|line| !line.starts_with('#')).unwrap();
        let labels = labels(sample)
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        table += &format!("| `{name}{suffix}` | {kind} | {labels} | {meaning} |\n");
    }
    table
}

#[test]
fn the_documentation_agrees_with_exposition() {
    crate::documented::agrees("reference.md", "metrics", &table());
}

/// A family without a sample in [`full`] would be omitted from the table unnoticed.
#[test]
fn table_lists_every_exposed_family() {
    let source = include_str!("../exposition.rs");
    let (product, _) = source.split_once("#[cfg(test)]").unwrap();
    let names = product.split("family(encoder, \"").skip(1);
    let names: Vec<&str> = names.filter_map(|rest| rest.split('"').next()).collect();
    assert!(names.len() > 5, "{names:?}");
    let table = table();
    let has = |name: &str| {
        ["uppercased_", ""]
            .iter()
            .any(|prefix| table.contains(&format!("| `{prefix}{name}")))
    };
    for name in names {
        assert!(has(name), "{name}\n{table}");
    }
    for one in Counter::all() {
        let in_histogram = matches!(one, Counter::BusyNs | Counter::Took(_));
        assert!(in_histogram || has(one.name().0), "{one:?}\n{table}");
    }
}

#[test]
fn durations_are_histograms() {
    let mut times = Durations::default();
    for ms in [3, 4, 700] {
        times.note(Duration::from_millis(ms));
    }
    let mut status = Status {
        slots: vec![slot(0, Traffic::default())],
        operations: vec![OperationTimes {
            operation: "reload".to_owned(),
            result: "failed".to_owned(),
            times: times.clone(),
        }],
        ..Status::default()
    };
    status.slots[0].starts = times;
    let text = write(&status, &[], AgentAnswers::default()).unwrap();
    let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    has("uppercased_worker_start_duration_seconds_bucket{le=\"0.005\",slot=\"0\"} 2");
    has("uppercased_worker_start_duration_seconds_bucket{le=\"+Inf\",slot=\"0\"} 3");
    has("uppercased_worker_start_duration_seconds_sum{slot=\"0\"} 0.707");
    has("uppercased_handover_duration_seconds_count{slot=\"0\"} 0");
    let labels = "operation=\"reload\",result=\"failed\"";
    has(&format!(
        "uppercased_operation_duration_seconds_count{{{labels}}} 3"
    ));
    let never = "operation=\"upgrade\",result=\"failed\"";
    has(&format!(
        "uppercased_operation_duration_seconds_count{{{never}}} 0"
    ));
}

#[test]
fn family_without_sample_is_omitted() {
    let text = write(&Status::default(), &[], AgentAnswers::default()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let is_sample = |line: &&str| !line.starts_with('#');
    let mut after_type = lines.windows(2).filter(|it| it[0].starts_with("# TYPE"));
    assert!(
        after_type.all(|it| is_sample(&it[1]) || it[1].starts_with("# UNIT")),
        "{text}"
    );
    assert!(!text.contains("uppercased_connections_accepted"), "{text}");
}

#[test]
fn older_format_names_counter_like_its_samples() {
    let text = classic(&write(&full(), &[(200, 7)], AgentAnswers::default()).unwrap());
    let accepted = "# HELP uppercased_connections_accepted_total Accepted connections.\n\
                        # TYPE uppercased_connections_accepted_total counter\n\
                        uppercased_connections_accepted_total{slot=\"0\"} 1\n";
    assert!(text.contains(accepted), "{text}");
    let reloaded = "# TYPE uppercased_config_last_reload_successful gauge\n\
                    uppercased_config_last_reload_successful 0\n";
    assert!(text.contains(reloaded), "{text}");
    let words = |line: &str| line.starts_with("# HELP ") || line.starts_with("# TYPE ");
    assert!(
        text.lines()
            .all(|line| !line.starts_with('#') || words(line))
    );
}

#[test]
fn counters_remain_after_slot_has_left() {
    let mut left = slot(1, Traffic::read(0, |_| 5));
    left.crashes = 2;
    left.starts.note(Duration::from_millis(3));
    left.handovers.note(Duration::from_millis(4));
    left.rescues.note(3, 40, Duration::from_millis(5));
    left.rescues.keepers_lost = 2;
    left.rescues.keepers_replaced = 1;
    let status = Status {
        slots: vec![slot(0, Traffic::read(0, |_| 1))],
        former: vec![left],
        ..Status::default()
    };
    let text = write(&status, &[], AgentAnswers::default()).unwrap();
    let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    has("uppercased_connections_accepted_total{slot=\"0\"} 1");
    has("uppercased_connections_accepted_total{slot=\"1\"} 5");
    has("uppercased_worker_crashes_total{slot=\"1\"} 2");
    has("uppercased_turn_duration_seconds_count{slot=\"1\"} 110");
    has("uppercased_worker_start_duration_seconds_count{slot=\"1\"} 1");
    has("uppercased_handover_duration_seconds_count{slot=\"1\"} 1");
    has("uppercased_rescue_duration_seconds_sum{slot=\"1\"} 0.005");
    has("uppercased_connections_rescued_total{slot=\"1\"} 3");
    has("uppercased_rescued_bytes_total{slot=\"1\"} 40");
    has("uppercased_keepers_lost_total{slot=\"1\"} 2");
    has("uppercased_keepers_replaced_total{slot=\"1\"} 1");
    has("uppercased_connections_rescued_total{slot=\"0\"} 0");
    has("uppercased_slot_has_keeper{slot=\"0\"} 0");
    assert!(!text.contains("uppercased_connections_open{slot=\"1\"}"));
}
