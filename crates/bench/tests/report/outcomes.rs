//! Synthetic outcomes for the reports, the same in every run.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use uppercased_bench::outcome::{
    Capacity, Client, FORMAT, Failure, Interval, Latency, Machine, Mark, Outcome, Percentile,
    PlanSummary, Probe, Schedule, Seen, Server, Target, Totals,
};

const QUANTILES: [f64; 6] = [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999];

/// Returns a histogram and all figures derived from it.
pub(crate) fn latency(values: impl IntoIterator<Item = u64>) -> Latency {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    values
        .into_iter()
        .for_each(|value| histogram.record(value).unwrap());
    let mut bytes = Vec::new();
    V2Serializer::new()
        .serialize(&histogram, &mut bytes)
        .unwrap();
    let percentile = |quantile: &f64| Percentile {
        quantile: *quantile,
        value_ns: histogram.value_at_quantile(*quantile),
        ..Percentile::default()
    };
    Latency {
        count: histogram.len(),
        min_ns: histogram.min(),
        mean_ns: histogram.mean().round() as u64,
        max_ns: histogram.max(),
        percentiles: QUANTILES.iter().map(percentile).collect(),
        histogram: STANDARD.encode(bytes),
    }
}

/// Returns ten seconds of 64-byte messages without an event.
pub(crate) fn clean() -> Outcome {
    let mut random = fastrand::Rng::with_seed(4);
    let values = (0..200_000).map(|_| {
        let body = 250_000 + random.u64(0..120_000);
        // One in a thousand waits for a time slice.
        body + if random.u32(0..1000) == 0 {
            random.u64(0..4_000_000)
        } else {
            0
        }
    });
    let latency = latency(values.collect::<Vec<_>>());
    let series = (0..100).map(|tenth| Interval {
        at_ms: tenth * 100,
        length_ms: 100,
        messages: 15_000 + random.u64(0..600),
        bytes_received: 64 * 15_200,
        connections_opened: 0,
        failures: 0,
        p50_ns: 300_000 + random.u64(0..20_000),
        p99_ns: 370_000 + random.u64(0..60_000),
        max_ns: 1_000_000 + random.u64(0..3_000_000),
    });
    Outcome {
        format: FORMAT,
        program: "0.1.0".to_owned(),
        started_unix_ms: 1_790_000_000_000,
        command: "uppercased bench ping 127.0.0.1:9999 --connections 50 --duration 10s".to_owned(),
        machine: Machine {
            cpus: 2,
            kernel: "6.18.5".to_owned(),
            cpu_model: "AMD EPYC 9R14".to_owned(),
            load_average: Some(0.42),
        },
        target: "127.0.0.1:9999".to_owned(),
        label: String::new(),
        plan: PlanSummary {
            pattern: "ping".to_owned(),
            connections: 50,
            size: "64".to_owned(),
            pipeline: 1,
            rate_per_s: None,
            arrivals: None,
            threads: 1,
            processes: 1,
            warmup_ms: 1000,
            duration_ms: 10_000,
            expect: "upper".to_owned(),
            proxy_protocol: None,
        },
        measured_ms: 10_002,
        totals: Totals {
            connections: 50,
            messages: 1_523_456,
            bytes_sent: 64 * 1_523_500,
            bytes_received: 64 * 1_523_456,
        },
        failures: BTreeMap::new(),
        first_failures: Vec::new(),
        latency: Some(latency),
        latency_from: "sent".to_owned(),
        longest_stall_ms: 3.98,
        series: series.collect(),
        marks: Vec::new(),
        client: Client {
            cpu_ms: 6_120,
            share_of_cpus: 0.612,
            cpu_per_message_ns: 4_017.0,
            is_bottleneck: false,
            why: String::new(),
            is_late: false,
        },
        server: Some(Server {
            version: "0.1.0".to_owned(),
            pids: vec![4711, 4712, 4713],
            user_ms: 460,
            system_ms: 10_060,
            user_per_message_ns: 301.9,
            cpu_per_message_ns: 6_905.0,
            memory_bytes: 13_002_342,
            memory_per_connection_bytes: 61.4,
            connections_by_worker: vec![26, 24],
        }),
        schedule: None,
        capacity: None,
        criteria: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Returns an open loop during which the server is restarted every two seconds, once with a
/// failure.
pub(crate) fn restarted() -> Outcome {
    let mark = |number: u64| Mark {
        at_ms: number * 2000,
        command: "uppercased reload --control /run/uppercased/4711.sock".to_owned(),
        took_ms: 280 + 17 * number,
        exit_code: Some(0),
        output: "reloaded 2 workers in 281 ms: 50 connections migrated, 0 draining".to_owned(),
        seen: Seen {
            failures: 0,
            longest_stall_ms: 3.2 + number as f64,
            p99_ns: 1_200_000 + 100_000 * number,
            window_ms: 1000,
        },
    };
    let mut outcome = clean();
    outcome.marks = (1..5).map(mark).collect();
    outcome.marks[3].exit_code = Some(1);
    outcome.marks[3].output = "failed: the new worker of slot 0 was not ready in 5s".to_owned();
    for mark in &outcome.marks {
        let number = usize::try_from(mark.at_ms / 100).unwrap();
        for interval in &mut outcome.series[number..number + 3] {
            interval.messages = interval.messages * 4 / 5;
            interval.p99_ns *= 3;
            interval.max_ns += 6_000_000;
        }
    }
    outcome.plan.pattern = "rate".to_owned();
    outcome.plan.rate_per_s = Some(152_000.0);
    outcome.plan.arrivals = Some("poisson".to_owned());
    outcome.latency_from = "planned".to_owned();
    outcome.longest_stall_ms = 7.2;
    outcome
}

/// Returns an open loop whose server stopped answering after 3 % of the plan.
pub(crate) fn stalled() -> Outcome {
    let mut outcome = clean();
    outcome.plan.pattern = "rate".to_owned();
    outcome.plan.rate_per_s = Some(206_170.0);
    outcome.plan.arrivals = Some("constant".to_owned());
    outcome.latency_from = "planned".to_owned();
    outcome.totals.messages = 61_700;
    outcome.latency = Some(latency(
        (0..61_700).map(|at| 300_000 + at).collect::<Vec<_>>(),
    ));
    outcome.longest_stall_ms = 9_700.0;
    let waits = latency((0..2_000).map(|at| at * 4_850_000).collect::<Vec<_>>());
    outcome.schedule = Some(Schedule {
        planned: 2_061_700,
        not_sent: 2_000_000,
        percentiles: waits.percentiles,
        max_ns: waits.max_ns,
        ..Schedule::default()
    });
    outcome.client.share_of_cpus = 0.04;
    outcome.problems = vec![
        "2000000 of 2061700 planned messages (97.0 %) were not sent, because earlier ones on their \
         connections were not answered: the server did not keep up, and the load was not the one \
         that was asked for."
            .to_owned(),
        "2 of 3 runs of the command `exit 3` failed.".to_owned(),
    ];
    outcome
}

/// Returns `restarted` with lost connections.
pub(crate) fn failed() -> Outcome {
    let mut outcome = restarted();
    outcome.failures = BTreeMap::from([
        ("early_eof".to_owned(), 1),
        ("reset".to_owned(), 12),
        ("refused".to_owned(), 30_000),
        ("timeout".to_owned(), 0),
    ]);
    let failure = |at_ms: u64, kind: &str, position| Failure {
        kind: kind.to_owned(),
        at_ms,
        connection: at_ms % 50,
        position,
        detail: "after 3 of 64 bytes of the answer that was due".to_owned(),
    };
    outcome.first_failures = vec![
        failure(2013, "reset", Some(123_456)),
        failure(2014, "refused", None),
    ];
    (2015..2040).for_each(|at| outcome.first_failures.push(failure(at, "refused", None)));
    outcome.marks[0].seen.failures = 30_013;
    outcome.series[20].failures = 30_013;
    outcome.series[20].messages = 100;
    outcome.series[21].messages = 0;
    let empty = &mut outcome.series[21];
    (empty.p50_ns, empty.p99_ns, empty.max_ns) = (0, 0, 0);
    outcome
}

/// Returns maximum throughput in both directions.
pub(crate) fn stream() -> Outcome {
    let mut outcome = clean();
    outcome.plan.pattern = "stream".to_owned();
    outcome.plan.size = "65536".to_owned();
    outcome.totals.messages = 0;
    outcome.totals.bytes_sent = 21_300_000_000;
    outcome.totals.bytes_received = 21_250_000_000;
    outcome.latency = None;
    outcome.latency_from = String::new();
    for interval in &mut outcome.series {
        interval.messages = 0;
        interval.bytes_received = 212_000_000 + interval.p50_ns;
        (interval.p50_ns, interval.p99_ns, interval.max_ns) = (0, 0, 0);
    }
    outcome
}

/// Returns a minimal measurement of a remote server.
pub(crate) fn bare() -> Outcome {
    Outcome {
        server: None,
        latency: None,
        series: Vec::new(),
        totals: Totals {
            connections: 1,
            ..Totals::default()
        },
        plan: PlanSummary {
            pattern: "idle".to_owned(),
            connections: 1,
            expect: "none".to_owned(),
            proxy_protocol: None,
            ..clean().plan
        },
        machine: Machine::default(),
        ..clean()
    }
}

/// Returns the largest numbers and texts that fit into the fields.
pub(crate) fn huge() -> Outcome {
    let long = "long \u{1b}[31m\n<b>\"&'".repeat(60);
    let mut outcome = failed();
    outcome.program.clone_from(&long);
    outcome.command.clone_from(&long);
    outcome.target.clone_from(&long);
    outcome.measured_ms = u64::MAX;
    outcome.started_unix_ms = u64::MAX;
    outcome.longest_stall_ms = f64::MAX;
    outcome.totals = Totals {
        connections: u64::MAX,
        messages: u64::MAX,
        bytes_sent: u64::MAX,
        bytes_received: u64::MAX,
    };
    outcome.plan = PlanSummary {
        pattern: long.clone(),
        connections: u32::MAX,
        size: long.clone(),
        pipeline: u32::MAX,
        rate_per_s: Some(f64::MAX),
        arrivals: Some(long.clone()),
        threads: u16::MAX,
        processes: u16::MAX,
        warmup_ms: u64::MAX,
        duration_ms: u64::MAX,
        expect: long.clone(),
        proxy_protocol: Some(long.clone()),
    };
    outcome.failures = (0..1000)
        .map(|n| (format!("{n} {long}"), u64::MAX))
        .collect();
    outcome.warnings = vec![long.clone(); 1000];
    outcome.latency = Some(Latency {
        count: u64::MAX,
        min_ns: u64::MAX,
        mean_ns: u64::MAX,
        max_ns: u64::MAX,
        percentiles: QUANTILES
            .map(|quantile| Percentile {
                quantile,
                value_ns: u64::MAX,
                ..Percentile::default()
            })
            .to_vec(),
        histogram: "not base64".to_owned(),
    });
    let mark = Mark {
        at_ms: u64::MAX,
        command: long.clone(),
        took_ms: u64::MAX,
        exit_code: Some(i32::MIN),
        output: long.clone(),
        seen: Seen {
            failures: u64::MAX,
            longest_stall_ms: f64::MAX,
            p99_ns: u64::MAX,
            window_ms: u64::MAX,
        },
    };
    outcome.marks = vec![mark; 1000];
    outcome.series = vec![
        Interval {
            at_ms: u64::MAX,
            length_ms: u64::MAX,
            messages: u64::MAX,
            bytes_received: u64::MAX,
            connections_opened: u64::MAX,
            failures: u64::MAX,
            p50_ns: u64::MAX,
            p99_ns: u64::MAX,
            max_ns: u64::MAX,
        };
        100_000
    ];
    outcome.server = Some(Server {
        version: long.clone(),
        pids: vec![u32::MAX; 1000],
        user_ms: u64::MAX,
        system_ms: u64::MAX,
        user_per_message_ns: f64::MAX,
        cpu_per_message_ns: f64::MAX,
        memory_bytes: u64::MAX,
        memory_per_connection_bytes: f64::MAX,
        connections_by_worker: vec![u64::MAX; 1000],
    });
    outcome.client = Client {
        cpu_ms: u64::MAX,
        share_of_cpus: f64::MAX,
        cpu_per_message_ns: f64::MAX,
        is_bottleneck: true,
        why: long.clone(),
        ..Client::default()
    };
    outcome.machine = Machine {
        cpus: u16::MAX,
        kernel: long.clone(),
        cpu_model: long,
        load_average: Some(f64::MAX),
    };
    outcome
}

/// Returns a short run with very few messages.
pub(crate) fn tiny() -> Outcome {
    let mut outcome = clean();
    outcome.measured_ms = 1;
    outcome.latency = Some(latency([1, 2, 3]));
    outcome.longest_stall_ms = 0.000_003;
    outcome.totals = Totals {
        connections: 1,
        messages: 3,
        bytes_sent: 3,
        bytes_received: 3,
    };
    outcome.series = vec![Interval {
        at_ms: 0,
        length_ms: 1,
        messages: 3,
        bytes_received: 3,
        p50_ns: 2,
        p99_ns: 3,
        max_ns: 3,
        ..Interval::default()
    }];
    outcome.client.is_bottleneck = true;
    outcome.client.why = "its thread used 97 % of a CPU".to_owned();
    outcome
}

/// Returns the clean run, of which one of two criteria failed.
pub(crate) fn criteria() -> Outcome {
    let mut outcome = clean();
    for condition in ["p99 > 1ms", "rate < 100k"] {
        let criterion: uppercased_bench::criterion::Criterion = condition.parse().unwrap();
        outcome.criteria.push(criterion.check(&outcome));
    }
    outcome
}

/// Returns the confirmation of a capacity.
pub(crate) fn capacity() -> Outcome {
    let mut outcome = clean();
    outcome.plan.pattern = "rate".to_owned();
    outcome.plan.rate_per_s = Some(83_200.0);
    outcome.latency_from = "planned".to_owned();
    outcome.label = "ours".to_owned();
    let target = Target {
        quantile: 0.99,
        limit_ns: 5_000_000,
    };
    let rates = [
        1000.0, 8000.0, 64_000.0, 128_000.0, 85_100.0, 83_200.0, 83_200.0,
    ];
    let probe = |(at, rate_per_s): (usize, f64)| {
        let holds = rate_per_s <= 83_200.0;
        let percentile = |quantile: f64| {
            let value_ns = (200.0 * rate_per_s.powf(0.85) / (1.0 - quantile).sqrt()) as u64;
            Percentile {
                quantile,
                value_ns,
                low_ns: value_ns * 97 / 100,
                high_ns: value_ns * 104 / 100,
            }
        };
        Probe {
            rate_per_s,
            answered_per_s: rate_per_s.min(95_000.0),
            measured_ms: 3000,
            failures: 0,
            percentiles: [0.5, 0.9, 0.99].map(percentile).to_vec(),
            client_is_bottleneck: false,
            client_is_late: false,
            confirms: at == rates.len() - 1,
            holds,
            why: match (holds, rate_per_s) {
                (true, _) => String::new(),
                (_, 128_000.0) => "74 % answered".to_owned(),
                _ => "p99 over target".to_owned(),
            },
        }
    };
    outcome.capacity = Some(Capacity {
        targets: vec![target],
        rate_per_s: Some(83_200.0),
        missed_per_s: Some(85_100.0),
        probes: rates.into_iter().enumerate().map(probe).collect(),
    });
    outcome
}
