//! What a measurement found, as plain data: the JSON of `--json`, and all that summary, page and
//! comparison are made of.
//!
//! Invariants: every field has a default, so that an outcome of an older program can be read; an
//! unknown field is skipped; every number is finite (JSON has no other). Fields are only ever
//! added; a change of meaning gets a new [`FORMAT`]. (In format 1, messages that were never sent were
//! among the answers of `latency`.)
//! Pure: it must not measure, judge or print.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The meaning of the fields, as a number.
pub const FORMAT: u32 = 2;

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The meaning of the fields: [`FORMAT`].
    pub format: u32,
    /// Version of the program that measured.
    pub program: String,
    /// When the measurement began, its warm-up included: milliseconds since 1970, UTC.
    pub started_unix_ms: u64,
    /// The command as it was typed.
    pub command: String,
    /// The machine that measured.
    pub machine: Machine,
    /// The server, as it was named; the address where this program started it itself.
    pub target: String,
    /// What was to be done.
    pub plan: PlanSummary,
    /// Milliseconds measured, the warm-up not included.
    pub measured_ms: u64,
    /// What was done in that time.
    pub totals: Totals,
    /// Failures by kind, the warm-up's included: `refused`, `reset`, `early_eof`, `timeout`,
    /// `wrong_byte`, `connect_timeout`, `no_source_port`, `system`. Kinds that did not happen are
    /// left out.
    pub failures: BTreeMap<String, u64>,
    /// The first of them, in order of time.
    pub first_failures: Vec<Failure>,
    /// How long answers took; `None` if none was measured. Only answers are in it.
    pub latency: Option<Latency>,
    /// What became of the messages that were planned; `None` if the answers decide what is sent.
    pub schedule: Option<Schedule>,
    /// From when it counts: `planned` (open loop: when the message was to be sent, so that a stall
    /// is not hidden) or `sent` (closed loop).
    pub latency_from: String,
    /// The longest time in milliseconds that a connection which waited for an answer saw none.
    pub longest_stall_ms: f64,
    /// The measurement in pieces, in order of time, the warm-up not included.
    pub series: Vec<Interval>,
    /// What was done to the server meanwhile, in order of time.
    pub marks: Vec<Mark>,
    /// What the measuring itself cost.
    pub client: Client,
    /// What the server spent, if it runs on this machine and is known.
    pub server: Option<Server>,
    /// What was asked for and not done, a sentence each. With any of them, as with any failure, the
    /// measurement is not what was asked for.
    pub problems: Vec<String>,
    /// What a reader of the figures has to know, a sentence each.
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Whether everything was done that was asked for, and nothing failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.problems.is_empty()
    }
}

/// Messages that were planned for the time that counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// All of them.
    pub planned: u64,
    /// Of them, never sent, because earlier ones on their connection were not answered.
    pub not_sent: u64,
    /// Percentiles of the answers' times, together with the time that each message that was not sent
    /// had waited at the end; empty if all were sent.
    pub percentiles: Vec<Percentile>,
    /// The longest of those times, in nanoseconds.
    pub max_ns: u64,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// CPUs that this program may use.
    pub cpus: u16,
    /// Release of its kernel.
    pub kernel: String,
    /// Its CPUs, as they name themselves.
    pub cpu_model: String,
}

/// What was to be done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanSummary {
    /// `ping`, `rate`, `stream`, `churn`, `hold` or `idle`.
    pub pattern: String,
    /// Connections at once.
    pub connections: u32,
    /// Bytes of a message: a number, `a..b` or a named mix.
    pub size: String,
    /// Messages on their way at once on one connection.
    pub pipeline: u32,
    /// Messages to be sent a second, all connections together; `None` if the answers decide.
    pub rate_per_s: Option<f64>,
    /// `constant` or `poisson`; `None` if the answers decide.
    pub arrivals: Option<String>,
    /// Threads of each process.
    pub threads: u16,
    /// Processes that measured.
    pub processes: u16,
    /// Milliseconds before the measurement began to count.
    pub warmup_ms: u64,
    /// Milliseconds to be measured; 0 if a number of messages was to be sent.
    pub duration_ms: u64,
    /// `upper`, `echo` or `none`: what every byte that came back was compared with.
    pub expect: String,
    /// `v1` or `v2`: the PROXY header with which each connection began; `None` if with none.
    pub proxy_protocol: Option<String>,
}

/// What was done while it counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Connections that came about, those included that were there when it began to count: no rate
    /// follows from it, but from the series.
    pub connections: u64,
    /// Messages answered completely.
    pub messages: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}

/// One thing that went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// A key of [`Outcome::failures`].
    pub kind: String,
    /// Milliseconds from the end of the warm-up; 0 before that.
    pub at_ms: u64,
    /// Number of the connection, all processes and threads counted through.
    pub connection: u64,
    /// Bytes of the connection's answers that were right before; `None` where it has no meaning.
    pub position: Option<u64>,
    /// What was seen.
    pub detail: String,
}

/// How long answers took, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Answers measured.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The mean.
    pub mean_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// In order of the quantile.
    pub percentiles: Vec<Percentile>,
    /// All of them: an HDR histogram of nanoseconds in its V2 serialization, in base64.
    pub histogram: String,
}

/// So long at most took this share of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentile {
    /// The share, from 0.5 to 0.9999.
    pub quantile: f64,
    /// How long, in nanoseconds.
    pub value_ns: u64,
}

/// A piece of the measurement.
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
    /// Connections that came about.
    pub connections_opened: u64,
    /// Failures of all kinds.
    pub failures: u64,
    /// Half of the answers took so many nanoseconds at most; 0 if there was none.
    pub p50_ns: u64,
    /// 99 % of them.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Something that was done to the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// When it began: milliseconds from the end of the warm-up.
    pub at_ms: u64,
    /// The command.
    pub command: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How it ended; `None` if by a signal, or not before the measurement did.
    pub exit_code: Option<i32>,
    /// The last line that it printed, cut at a bound.
    pub output: String,
    /// What clients saw round it.
    pub seen: Seen,
}

/// What clients saw in the time round a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Failures of all kinds.
    pub failures: u64,
    /// The longest time in milliseconds that a connection which waited for an answer saw none.
    pub longest_stall_ms: f64,
    /// 99 % of the answers took so many nanoseconds at most.
    pub p99_ns: u64,
    /// Length of the time looked at, in milliseconds.
    pub window_ms: u64,
}

/// What the measuring itself cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Client {
    /// CPU time of all measuring threads, in milliseconds.
    pub cpu_ms: u64,
    /// That as a share of what its threads could have had: 1 is all of it.
    pub share_of_cpus: f64,
    /// CPU time for each message, in nanoseconds.
    pub cpu_per_message_ns: f64,
    /// Whether the figures tell more of the client than of the server.
    pub is_bottleneck: bool,
    /// Why; empty if it is not.
    pub why: String,
}

/// What the server spent while it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Its processes at the end of the measurement.
    pub pids: Vec<u32>,
    /// CPU time outside the kernel, in milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel, in milliseconds.
    pub system_ms: u64,
    /// CPU time outside the kernel for each message, in nanoseconds.
    pub user_per_message_ns: f64,
    /// All CPU time for each message, in nanoseconds.
    pub cpu_per_message_ns: f64,
    /// Private and shared memory of its processes with all connections open, in bytes.
    pub memory_bytes: u64,
    /// What a connection added to that, in bytes.
    pub memory_per_connection_bytes: f64,
    /// Connections of each worker with all connections open, in order of the workers; empty if the
    /// server does not say.
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
                }],
                ..Latency::default()
            }),
            series: vec![Interval::default()],
            marks: vec![Mark::default()],
            schedule: Some(Schedule::default()),
            server: Some(Server::default()),
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
