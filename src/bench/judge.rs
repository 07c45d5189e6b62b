//! Whether the figures tell of the server or of the client that made them.
//!
//! Pure.

use std::time::Duration;

use super::outcome::Client;
use super::record::Record;

/// A client that uses more than this share of what its threads could have is at its own limit.
const BUSY_SHARE: f64 = 0.9;
/// More than this share of the planned messages sent late by its own doing, and the times of
/// answers are partly its own.
const LATE_SHARE: f64 = 0.01;
/// Above this share of the planned messages unsent at the end, the server did not keep up; below it
/// they are the last few, whose connections were busy at that moment.
const UNSENT_SHARE: f64 = 0.001;
/// Client and server together above this share of all CPUs: they took them from each other.
const SHARED_SHARE: f64 = 0.95;

/// What is known when the measurement is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// Sums over all threads.
    pub sums: &'a Record,
    /// Messages answered.
    pub messages: u64,
    /// How long it counted.
    pub measured: Duration,
    /// Threads of all processes.
    pub threads: u32,
    /// CPUs that they may use.
    pub cpus: u16,
    /// CPU time of the server, if it is known.
    pub server_cpu: Option<Duration>,
    /// Whether the answers decide how much is sent, so that the client may be what limits it.
    pub closed_loop: bool,
}

/// What the measuring cost, and what its reader has to know.
#[must_use]
pub(super) fn judge(facts: &Facts<'_>) -> (Client, Vec<String>) {
    let sums = facts.sums;
    let cpu_ns = sums.cpu_ns as f64;
    let capacity = facts.threads.min(facts.cpus.into()).max(1);
    let available_ns = facts.measured.as_nanos() as f64 * f64::from(capacity);
    let share = if available_ns > 0.0 {
        cpu_ns / available_ns
    } else {
        0.0
    };
    let mut reasons = Vec::new();
    if share > BUSY_SHARE {
        reasons.push(format!(
            "its threads used {:.0} % of the CPU time that they can have",
            share * 100.0
        ));
    }
    let late = ratio(sums.late, sums.planned);
    if late > LATE_SHARE {
        reasons.push(format!(
            "it sent {:.1} % of the messages more than 1 ms after their planned time though \
             nothing but itself was in the way",
            late * 100.0
        ));
    }
    let mut warnings = Vec::new();
    let all_ns = facts.measured.as_nanos() as f64 * f64::from(facts.cpus);
    if let Some(server) = facts.server_cpu
        && facts.closed_loop
        && server.as_nanos() as f64 + cpu_ns > SHARED_SHARE * all_ns
    {
        warnings.push(
            "Client and server together used all CPUs of this machine: each had less than it \
             could use. CPU time per message is the figure to trust."
                .to_owned(),
        );
    }
    if ratio(sums.unsent, sums.planned) > UNSENT_SHARE {
        warnings.push(format!(
            "{} of {} planned messages were still waiting for earlier answers at the end: the \
             server did not keep up. They are in the latencies with the time that they had waited \
             by then.",
            sums.unsent, sums.planned
        ));
    }
    let client = Client {
        cpu_ms: sums.cpu_ns / 1_000_000,
        share_of_cpus: share,
        cpu_per_message_ns: ratio(sums.cpu_ns, facts.messages),
        is_bottleneck: !reasons.is_empty(),
        why: reasons.join("; and "),
    };
    (client, warnings)
}

/// `part` of `whole`; nothing of nothing is 0.
#[must_use]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn judged(sums: &Record, server: Option<Duration>) -> (Client, Vec<String>) {
        judge(&Facts {
            sums,
            messages: 1000,
            measured: SECOND,
            threads: 1,
            cpus: 2,
            server_cpu: server,
            closed_loop: true,
        })
    }

    #[test]
    fn a_client_at_its_limit_says_so() {
        let mut sums = Record {
            cpu_ns: 500_000_000,
            ..Record::default()
        };
        let (client, warnings) = judged(&sums, Some(SECOND / 2));
        assert!(!client.is_bottleneck && warnings.is_empty(), "{client:?}");
        assert_eq!(client.cpu_per_message_ns, 500_000.0);
        sums.cpu_ns = 950_000_000;
        let (client, warnings) = judged(&sums, Some(SECOND));
        assert!(
            client.is_bottleneck && client.why.contains("95 %"),
            "{client:?}"
        );
        assert!(warnings.iter().any(|text| text.contains("all CPUs")));
    }

    #[test]
    fn lateness_and_backlog_are_told() {
        let sums = Record {
            planned: 1000,
            late: 20,
            unsent: 5,
            ..Record::default()
        };
        let (client, warnings) = judged(&sums, None);
        assert!(client.why.contains("2.0 %"), "{client:?}");
        assert!(warnings.iter().any(|text| text.starts_with("5 of 1000")));
    }

    #[test]
    fn nothing_measured_is_finite() {
        let (client, _) = judge(&Facts {
            sums: &Record::default(),
            messages: 0,
            measured: Duration::ZERO,
            threads: 0,
            cpus: 0,
            server_cpu: None,
            closed_loop: false,
        });
        assert!(client.share_of_cpus.is_finite() && client.cpu_per_message_ns.is_finite());
    }
}
