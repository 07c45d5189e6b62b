//! Decides whether the figures reflect the server or the client, and whether the measurement was
//! carried out as planned.
//!
//! Invariant: the client is reported as the bottleneck only for its own behaviour: it used its CPU
//! time, or was late although it had the CPU and no connection was behind. Pure.

use std::time::Duration;

use super::options::Job;
use super::outcome::{Client, Mark};
use super::record::Record;

/// Share of its threads' CPU time above which the client is the bottleneck.
const BUSY_SHARE: f64 = 0.9;
/// Share below which the client is not slow: if late, it did not get the CPU.
const WORKING_SHARE: f64 = 0.5;
/// Share of the planned messages sent late by the client above which latencies are not only the
/// server's.
const LATE_SHARE: f64 = 0.01;
/// Share of the planned messages unsent at the end above which the server did not keep up; below
/// it, they are the last few, whose connections were busy at that moment.
const UNSENT_SHARE: f64 = 0.001;
/// Share of unsent messages above which the load differed from the plan.
const UNSENT_SHARE_MAX: f64 = 0.1;
/// Share of all CPUs above which client and server competed for them.
const SHARED_SHARE: f64 = 0.95;

/// The facts at the end of the measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// Sums over all threads.
    pub sums: &'a Record,
    /// Messages answered.
    pub messages: u64,
    /// Time measured.
    pub measured: Duration,
    /// Threads of all processes.
    pub threads: u32,
    /// CPUs available to them.
    pub cpus: u16,
    /// CPU time of the server, if known.
    pub server_cpu: Option<Duration>,
    /// Whether answers determine the sending rate, so that the client may be the bottleneck.
    pub closed_loop: bool,
    /// The commands scheduled during the load, with their runs.
    pub ran: &'a [Ran],
}

/// The results of one command.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ran {
    /// The command and its times.
    pub job: Job,
    /// Each run.
    pub marks: Vec<Mark>,
    /// Runs skipped because the previous one was still running.
    pub left_out: u64,
}

/// The conclusions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Judgement {
    /// The cost of measuring.
    pub client: Client,
    /// Deviations from the plan.
    pub problems: Vec<String>,
    /// Caveats about the figures.
    pub warnings: Vec<String>,
}

/// Judges a measurement.
#[must_use]
pub(super) fn judge(facts: &Facts<'_>) -> Judgement {
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
            "its threads used {:.0} % of their CPU time",
            share * 100.0
        ));
    }
    let mut warnings = Vec::new();
    let late = ratio(sums.late, sums.planned);
    if late > LATE_SHARE && share >= WORKING_SHARE {
        reasons.push(format!(
            "it sent {:.1} % of the messages more than 1 ms late, and nothing else delayed them",
            late * 100.0
        ));
    }
    let is_late = late > LATE_SHARE && share < WORKING_SHARE;
    if is_late {
        warnings.push(format!(
            "{:.1} % of the messages were sent more than 1 ms late, and the client used only \
             {:.0} % of its CPU time: its threads did not get a CPU in time, or the machine \
             stalled. The latencies include the delay.",
            late * 100.0,
            share * 100.0
        ));
    }
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
    let mut problems = Vec::new();
    if facts.measured.is_zero() {
        problems.push("The run ended before the measurement began.".to_owned());
    }
    let unsent = ratio(sums.unsent, sums.planned);
    let unsent_text = || {
        format!(
            "{} of {} planned messages ({:.1} %) were not sent, because earlier ones on their \
             connections were not answered: the server did not keep up",
            sums.unsent,
            sums.planned,
            unsent * 100.0
        )
    };
    if unsent > UNSENT_SHARE_MAX {
        problems.push(unsent_text() + ", and the load was not the planned one.");
    } else if unsent > UNSENT_SHARE {
        warnings.push(unsent_text() + ".");
    }
    for ran in facts.ran {
        problems.extend(failed_command(ran, facts.measured));
        warnings.extend(left_out(ran));
    }
    let client = Client {
        cpu_ms: sums.cpu_ns / 1_000_000,
        share_of_cpus: share,
        cpu_per_message_ns: ratio(sums.cpu_ns, facts.messages),
        is_bottleneck: !reasons.is_empty(),
        why: reasons.join("; and "),
        is_late,
    };
    Judgement {
        client,
        problems,
        warnings,
    }
}

/// Returns the problem with a command's runs, if any.
fn failed_command(ran: &Ran, measured: Duration) -> Option<String> {
    let (command, runs) = (&ran.job.action, ran.marks.len());
    if runs == 0 {
        return Some(format!(
            "The command `{command}` never ran: it was due after {}, and {} were measured.",
            humantime::format_duration(ran.job.first),
            humantime::format_duration(Duration::from_millis(super::plan::millis(measured)))
        ));
    }
    let is_failed = |mark: &&Mark| mark.exit_code != Some(0);
    let failed = ran.marks.iter().filter(is_failed).count();
    (failed > 0).then(|| format!("{failed} of {runs} runs of the command `{command}` failed."))
}

fn left_out(ran: &Ran) -> Option<String> {
    (ran.left_out > 0).then(|| {
        format!(
            "{} runs of the command `{}` were skipped, because the previous run was not over.",
            ran.left_out, ran.job.action
        )
    })
}

/// Returns the share of `part` in `whole`; 0 if both are 0.
#[must_use]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests;
