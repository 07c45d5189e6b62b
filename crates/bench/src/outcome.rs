//! The results of a measurement as plain data: the JSON of `--json`, and the only input of summary,
//! page and comparison.
//!
//! Invariants: every field has a default, so that an older program's outcome can be read; an
//! unknown field is skipped; every number is finite (JSON has no other). Fields are only added; a
//! change of meaning gets a new [`FORMAT`]. (In format 1, messages that were never sent were
//! counted as answers in `latency`.) Pure: it must not measure, judge or print.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uppercased_ctl::units;

/// Version of the meaning of fields.
pub const FORMAT: u32 = 2;

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Version of the meaning of fields: [`FORMAT`].
    pub format: u32,
    /// Version of the program that measured.
    pub program: String,
    /// Start of the measurement, warm-up included: milliseconds since 1970, UTC.
    pub started_unix_ms: u64,
    /// The command line.
    pub command: String,
    /// The machine that measured.
    pub machine: Machine,
    /// The server as given; the address for the built-in server.
    pub target: String,
    /// The name of the server for reports, as given; may be empty.
    pub label: String,
    /// The plan.
    pub plan: PlanSummary,
    /// Milliseconds measured, without the warm-up.
    pub measured_ms: u64,
    /// Totals of that time.
    pub totals: Totals,
    /// Failures by kind, including the warm-up's: `refused`, `reset`, `early_eof`, `timeout`,
    /// `wrong_byte`, `connect_timeout`, `no_source_port`, `system`. Zeros are omitted.
    pub failures: BTreeMap<String, u64>,
    /// The first failures, in order of time.
    pub first_failures: Vec<Failure>,
    /// Latency of answers only; `None` if none was measured.
    pub latency: Option<Latency>,
    /// Counts of planned messages; `None` for a closed loop.
    pub schedule: Option<Schedule>,
    /// Start of a latency: `planned` (open loop: when the message was due, so that a stall is not
    /// hidden) or `sent` (closed loop).
    pub latency_from: String,
    /// The longest time in milliseconds for which a connection received nothing while waiting.
    pub longest_stall_ms: f64,
    /// The measurement in intervals, in order of time, without the warm-up.
    pub series: Vec<Interval>,
    /// The commands run during the measurement, in order of time.
    pub marks: Vec<Mark>,
    /// The cost of measuring.
    pub client: Client,
    /// The server's costs, if known and if it runs on this machine.
    pub server: Option<Server>,
    /// The search that this measurement confirmed; `None` if it was not `bench capacity`.
    pub capacity: Option<Capacity>,
    /// The conditions of `--fail-if`, in their order.
    pub criteria: Vec<Checked>,
    /// Deviations from the plan, a sentence each. A measurement with a problem or failure did not
    /// follow its plan.
    pub problems: Vec<String>,
    /// Caveats about the figures, a sentence each.
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Returns whether the plan was completed and nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.problems.is_empty()
    }

    /// Returns the number of failed criteria.
    #[must_use]
    pub fn failed_criteria(&self) -> usize {
        self.criteria.iter().filter(|one| one.is_failed).count()
    }
}

/// The search for the highest rate that holds a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// The limits that a rate must hold.
    pub targets: Vec<Target>,
    /// The highest rate that holds them, confirmed, in messages per second; `None` if none does.
    pub rate_per_s: Option<f64>,
    /// The lowest rate that does not; `None` if none was found.
    pub missed_per_s: Option<f64>,
    /// Every probe, in order of time.
    pub probes: Vec<Probe>,
}

/// A limit of a percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// The quantile, such as 0.99.
    pub quantile: f64,
    /// The limit, in nanoseconds.
    pub limit_ns: u64,
}

/// A short measurement at one rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Planned messages per second.
    pub rate_per_s: f64,
    /// Answered messages per second.
    pub answered_per_s: f64,
    /// Milliseconds measured.
    pub measured_ms: u64,
    /// Failures of all kinds.
    pub failures: u64,
    /// Percentiles of the latencies, unsent messages included.
    pub percentiles: Vec<Percentile>,
    /// Whether the client, not the server, limited the figures.
    pub client_is_bottleneck: bool,
    /// Whether the client did not get a CPU in time.
    pub client_is_late: bool,
    /// Whether it is a long probe that confirms a rate.
    pub confirms: bool,
    /// Whether the rate held every target.
    pub holds: bool,
    /// The reason; empty if it did.
    pub why: String,
}

impl Capacity {
    /// Returns the targets in words.
    #[must_use]
    pub fn target(&self) -> String {
        let targets = self.targets.iter().map(|target| {
            let quantile = units::quantile(target.quantile);
            format!("{quantile} <= {}", units::time_ns(target.limit_ns))
        });
        targets.collect::<Vec<_>>().join(" and ")
    }
}

/// A condition under which a measurement fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// The condition as given, such as `p99 > 5ms`.
    pub condition: String,
    /// The measured value, in nanoseconds, items per second, bytes per second, bytes or as a share
    /// (1 is all); `None` if it was not measured.
    pub value: Option<f64>,
    /// The measured value as text.
    pub measured: String,
    /// Whether the measurement fails: the condition holds, or the value was not measured.
    pub is_failed: bool,
}

/// Messages planned for the time measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Messages planned.
    pub planned: u64,
    /// Messages among them never sent, because earlier ones on their connection were unanswered.
    pub not_sent: u64,
    /// Percentiles of the latencies, including the time that each unsent message had waited at the
    /// end; empty if all were sent.
    pub percentiles: Vec<Percentile>,
    /// The maximum of these times, in nanoseconds.
    pub max_ns: u64,
    /// All of them, as in [`Latency::histogram`]; empty if all messages were sent.
    pub histogram: String,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// CPUs that this program may use.
    pub cpus: u16,
    /// Release of the kernel.
    pub kernel: String,
    /// Model name of the CPUs.
    pub cpu_model: String,
    /// Load average of the minute before the measurement; `None` if unknown.
    pub load_average: Option<f64>,
}

/// A summary of the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanSummary {
    /// `ping`, `rate`, `stream`, `churn`, `hold` or `idle`.
    pub pattern: String,
    /// Simultaneous connections.
    pub connections: u32,
    /// Bytes of a message: a number, `a..b` or a named mix.
    pub size: String,
    /// Messages in flight per connection.
    pub pipeline: u32,
    /// Messages to send per second on all connections; `None` for a closed loop.
    pub rate_per_s: Option<f64>,
    /// `constant` or `poisson`; `None` for a closed loop.
    pub arrivals: Option<String>,
    /// Threads of each process.
    pub threads: u16,
    /// Processes that measured.
    pub processes: u16,
    /// Milliseconds of warm-up.
    pub warmup_ms: u64,
    /// Milliseconds to measure; 0 if the plan is a number of messages.
    pub duration_ms: u64,
    /// `upper`, `echo` or `none`: the expected answer.
    pub expect: String,
    /// `v1` or `v2`: the PROXY header at the beginning of each connection; `None`: no header.
    pub proxy_protocol: Option<String>,
}

/// Totals of the time measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Connections established, including those open when the measurement began: use the series for
    /// a rate.
    pub connections: u64,
    /// Messages answered completely.
    pub messages: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}

/// One failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// A key of [`Outcome::failures`].
    pub kind: String,
    /// Milliseconds from the end of the warm-up; 0 before that.
    pub at_ms: u64,
    /// Number of the connection, unique among all processes and threads.
    pub connection: u64,
    /// Number of correct bytes received before the failure; `None` if not applicable.
    pub position: Option<u64>,
    /// A description.
    pub detail: String,
}

/// Latency of the answers, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Answers measured.
    pub count: u64,
    /// The shortest latency.
    pub min_ns: u64,
    /// The mean latency.
    pub mean_ns: u64,
    /// The longest latency.
    pub max_ns: u64,
    /// The percentiles, in order of the quantile.
    pub percentiles: Vec<Percentile>,
    /// All latencies: an HDR histogram of nanoseconds in its V2 serialization, in base64.
    pub histogram: String,
}

/// A percentile of the latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentile {
    /// The quantile, from 0.5 to 0.9999.
    pub quantile: f64,
    /// The latency at the quantile, in nanoseconds.
    pub value_ns: u64,
    /// Lower bound of its 95 % confidence interval, if replies are independent.
    pub low_ns: u64,
    /// Upper bound of that interval.
    pub high_ns: u64,
}

/// An interval of the measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interval {
    /// Its beginning: milliseconds from the end of the warm-up.
    pub at_ms: u64,
    /// Its length in milliseconds.
    pub length_ms: u64,
    /// Messages answered completely.
    pub messages: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Connections established.
    pub connections_opened: u64,
    /// Failures of all kinds.
    pub failures: u64,
    /// Median latency in nanoseconds; 0 without an answer.
    pub p50_ns: u64,
    /// 99th percentile of the latency, in nanoseconds.
    pub p99_ns: u64,
    /// Longest latency, in nanoseconds.
    pub max_ns: u64,
}

/// A command run during the measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// When it began: milliseconds from the end of the warm-up.
    pub at_ms: u64,
    /// The command.
    pub command: String,
    /// Its duration, in milliseconds.
    pub took_ms: u64,
    /// Its exit code; `None` if it was killed by a signal, or outlived the measurement.
    pub exit_code: Option<i32>,
    /// The last line of its output, truncated.
    pub output: String,
    /// Clients' observations around it.
    pub seen: Seen,
}

/// Clients' observations in the time around a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Failures of all kinds.
    pub failures: u64,
    /// The longest time in milliseconds for which a connection received nothing while waiting.
    pub longest_stall_ms: f64,
    /// 99th percentile of the latency, in nanoseconds.
    pub p99_ns: u64,
    /// Length of the observed time, in milliseconds.
    pub window_ms: u64,
}

/// The cost of measuring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Client {
    /// CPU time of all measuring threads, in milliseconds.
    pub cpu_ms: u64,
    /// CPU time as a share of the maximum of its threads: 1 is all of it.
    pub share_of_cpus: f64,
    /// CPU time per message, in nanoseconds.
    pub cpu_per_message_ns: f64,
    /// Whether the client, not the server, limited the figures.
    pub is_bottleneck: bool,
    /// The reason; empty if it did not.
    pub why: String,
    /// Whether it sent messages late because its threads did not get a CPU in time.
    pub is_late: bool,
}

/// The server's costs during the measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Its version; empty if it does not report one.
    pub version: String,
    /// Its processes at the end of the measurement.
    pub pids: Vec<u32>,
    /// CPU time in user mode, in milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    pub system_ms: u64,
    /// CPU time in user mode per message, in nanoseconds.
    pub user_per_message_ns: f64,
    /// All CPU time per message, in nanoseconds.
    pub cpu_per_message_ns: f64,
    /// Private and shared memory of its processes with all connections open, in bytes.
    pub memory_bytes: u64,
    /// Memory added by each connection, in bytes.
    pub memory_per_connection_bytes: f64,
    /// Connections of each worker with all connections open, in order of the workers; empty if the
    /// server does not report them.
    pub connections_by_worker: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_survives_json_between_versions() {
        let outcome = Outcome {
            format: FORMAT,
            failures: BTreeMap::from([("reset".to_owned(), 2)]),
            first_failures: vec![Failure::default()],
            latency: Some(Latency {
                percentiles: vec![Percentile {
                    quantile: 0.9999,
                    value_ns: u64::MAX,
                    ..Percentile::default()
                }],
                ..Latency::default()
            }),
            series: vec![Interval::default()],
            marks: vec![Mark::default()],
            schedule: Some(Schedule::default()),
            server: Some(Server::default()),
            criteria: vec![Checked::default()],
            capacity: Some(Capacity {
                targets: vec![Target::default()],
                probes: vec![Probe::default()],
                ..Capacity::default()
            }),
            ..Outcome::default()
        };
        let mut json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(
            serde_json::from_value::<Outcome>(json.clone()).unwrap(),
            outcome
        );
        let fields = json.as_object_mut().unwrap();
        fields.insert("weather".to_owned(), "fine".into());
        fields.remove("totals");
        let read: Outcome = serde_json::from_value(json).unwrap();
        assert_eq!((read.format, read.totals), (FORMAT, Totals::default()));
        assert_eq!(
            serde_json::from_str::<Outcome>("{}").unwrap(),
            Outcome::default()
        );
    }
}
