//! Formats a measurement as text for a terminal: the result first, then the figures.
//!
//! Invariants: no line is wider than [`COLUMNS`](super::COLUMNS), and the number of lines is
//! bounded for any outcome; figures that were not measured are marked as such; no information
//! depends on colour. It must not count or compute (`figures` does), or advise (`advice` does).

use std::cmp::Reverse;

use super::advice::Advice;
use super::capacity;
use super::figures::{self, Work};
use super::layout::{LABEL_COLUMNS, labelled, sentence};
use crate::outcome::{Checked, Failure, Latency, Mark, Outcome, Percentile, PlanSummary, Server};
use uppercased_ctl::units::{self, counted};

/// Number of first failures shown; the rest are only counted.
const FAILURES_MAX: usize = 5;

/// Maximum number of problems shown; only an edited file can have more.
const PROBLEMS_MAX: usize = 20;

/// Maximum number of criteria shown.
const CRITERIA_MAX: usize = 20;

/// Maximum number of kinds of failure listed; only an edited file can have more.
const KINDS_MAX: usize = 12;

/// Maximum number of marks shown; the worst ones if there are more.
const MARKS_MAX: usize = 12;

/// Maximum number of workers whose connections are listed individually.
const WORKERS_MAX: usize = 16;

/// Maximum number of pieces of advice shown.
const ADVICE_MAX: usize = 8;

/// Maximum length of a text from an outcome, in characters.
const TEXT_MAX: usize = 160;

/// Maximum length of a piece of advice, in characters; it ends with the remedy.
const ADVICE_TEXT_MAX: usize = 480;

/// Maximum length of a kind of failure.
const KIND_MAX: usize = 20;

/// Column width of a figure in a table.
const FIGURE: usize = units::WIDTH;

/// Returns the summary, which ends with a newline.
#[must_use]
pub fn summary(outcome: &Outcome) -> String {
    let mut lines = heading(outcome);
    lines.push(String::new());
    if let Some(found) = &outcome.capacity {
        lines.extend(capacity::lines(found));
    }
    lines.extend(result(outcome));
    lines.extend(throughput(outcome));
    lines.extend(latency(outcome));
    lines.extend(server(outcome));
    lines.extend(client(outcome));
    lines.extend(machine(outcome));
    lines.extend(marks(&outcome.marks));
    let advice = Advice::on(outcome);
    for piece in advice.iter().take(ADVICE_MAX) {
        let piece = units::cut(&piece.to_string(), ADVICE_TEXT_MAX);
        lines.extend(sentence("note", &piece));
    }
    lines.iter().fold(String::new(), |mut whole, line| {
        whole.push_str(line);
        whole.push('\n');
        whole
    })
}

/// Returns the subject and the plan of the measurement.
fn heading(outcome: &Outcome) -> Vec<String> {
    let title = format!("uppercased bench {}: {}", outcome.program, subject(outcome));
    let mut lines = vec![units::cut(&title, super::COLUMNS).trim_end().to_owned()];
    lines.extend(labelled("", &plan(&outcome.plan), ", "));
    let time = format!(
        "{} measured after {} of warm-up",
        units::time_ms(outcome.measured_ms as f64),
        units::time_ms(outcome.plan.warmup_ms as f64)
    );
    lines.extend(sentence("", &time));
    lines
}

/// Returns what was measured, and where.
pub(super) fn subject(outcome: &Outcome) -> String {
    let what = match outcome.capacity {
        Some(_) => "capacity",
        None => &outcome.plan.pattern,
    };
    match outcome.label.as_str() {
        "" => format!("{what} on {}", outcome.target),
        label => format!("{what} on {label} at {}", outcome.target),
    }
}

/// Returns the name of the server: its label, or its address.
pub(super) fn server_name(outcome: &Outcome) -> &str {
    match outcome.label.as_str() {
        "" => &outcome.target,
        label => label,
    }
}

/// Returns the plan in short phrases.
pub(super) fn plan(plan: &PlanSummary) -> Vec<String> {
    let numeric = plan.size.chars().all(|c| c.is_ascii_digit() || c == '.');
    let unit = if numeric { " B" } else { "" };
    let mut parts = vec![
        counted(plan.connections.into(), "connection"),
        text(&format!("messages of {}{unit}", plan.size)),
    ];
    if plan.pipeline > 1 {
        parts.push(format!("{} in flight", plan.pipeline));
    }
    if let Some(rate) = plan.rate_per_s {
        let arrivals = plan.arrivals.as_deref().unwrap_or("constant");
        parts.push(text(&format!("{arrivals} {}/s", units::per_second(rate))));
    }
    if let Some(version) = &plan.proxy_protocol {
        parts.push(text(&format!("PROXY {version}")));
    }
    parts.push(counted(plan.threads.into(), "thread"));
    if plan.processes > 1 {
        parts.push(format!("in each of {} processes", plan.processes));
    }
    parts
}

fn result(outcome: &Outcome) -> Vec<String> {
    let failures = figures::failures(outcome);
    let mut done = vec![done(outcome)];
    done.push(match outcome.plan.expect.as_str() {
        "upper" => "every byte checked".to_owned(),
        "none" | "" => "bytes not checked".to_owned(),
        other => text(&format!("every byte checked ({other})")),
    });
    if failures == 0 {
        let nothing = outcome.totals.connections == 0 && outcome.totals.messages == 0;
        if nothing && outcome.totals.bytes_received == 0 {
            let nothing = "nothing was measured: no connection, no message";
            let mut lines = sentence("NOTHING", nothing);
            lines.extend(problems(outcome));
            lines.extend(criteria(&outcome.criteria));
            return lines;
        }
        done.insert(0, "no failures".to_owned());
        let failed = outcome.failed_criteria();
        let label = if !outcome.problems.is_empty() {
            "NOT DONE"
        } else if failed > 0 {
            let all = outcome.criteria.len();
            done.insert(0, format!("{failed} of {all} criteria"));
            "FAILED"
        } else {
            "OK"
        };
        let mut lines = labelled(label, &done, ", ");
        lines.extend(problems(outcome));
        lines.extend(criteria(&outcome.criteria));
        return lines;
    }
    let mut kinds = ranked(outcome);
    let hidden = kinds.len().saturating_sub(KINDS_MAX);
    kinds.truncate(KINDS_MAX);
    let mut parts: Vec<String> = kinds
        .iter()
        .map(|(kind, times)| format!("{} {kind}", units::short(*times)))
        .collect();
    if hidden > 0 {
        parts.push(format!("{hidden} more kinds"));
    }
    let total = counted(failures, "failure");
    parts[0] = format!("{total}: {}", parts[0]);
    let mut lines = labelled("FAILED", &parts, ", ");
    lines.extend(labelled("", &done, ", "));
    lines.extend(problems(outcome));
    lines.extend(criteria(&outcome.criteria));
    for (position, failure) in outcome.first_failures.iter().enumerate().take(FAILURES_MAX) {
        let label = if position == 0 { "first" } else { "" };
        lines.extend(sentence(label, &describe(failure)));
    }
    lines
}

/// Returns the deviations from the plan.
fn problems(outcome: &Outcome) -> Vec<String> {
    let all = &outcome.problems;
    let mut lines = Vec::new();
    for problem in all.iter().take(PROBLEMS_MAX) {
        lines.extend(sentence("problem", &units::cut(problem, ADVICE_TEXT_MAX)));
    }
    if all.len() > PROBLEMS_MAX {
        let hidden = all.len() - PROBLEMS_MAX;
        lines.extend(sentence("", &format!("… {hidden} more problems")));
    }
    lines
}

/// Returns the conditions of `--fail-if` with their results.
pub(super) fn criteria(all: &[Checked]) -> Vec<String> {
    let mut lines = Vec::new();
    for (position, one) in all.iter().enumerate().take(CRITERIA_MAX) {
        let label = if position == 0 { "fail if" } else { "" };
        lines.extend(sentence(label, &text(&criterion(one))));
    }
    if all.len() > CRITERIA_MAX {
        let hidden = all.len() - CRITERIA_MAX;
        lines.extend(sentence("", &format!("… {hidden} more criteria")));
    }
    lines
}

/// Describes a condition and its result.
pub(super) fn criterion(one: &Checked) -> String {
    let result = if one.is_failed { "FAILED" } else { "ok" };
    format!("{}: {result}, {}", one.condition, one.measured)
}

/// Returns the kinds of failure, the most frequent first.
pub(super) fn ranked(outcome: &Outcome) -> Vec<(String, u64)> {
    let happened = outcome.failures.iter().filter(|(_, times)| **times > 0);
    let mut kinds: Vec<(String, u64)> = happened
        .map(|(kind, times)| (units::cut(kind, KIND_MAX), *times))
        .collect();
    kinds.sort_by_key(|(_, times)| Reverse(*times));
    kinds
}

/// Returns the work done, successful or not.
fn done(outcome: &Outcome) -> String {
    let connections = counted(outcome.totals.connections, "connection");
    match Work::of(outcome) {
        Work::Bytes => format!(
            "{} received on {connections}",
            units::memory(outcome.totals.bytes_received as f64)
        ),
        Work::Connections if outcome.totals.messages == 0 => connections,
        _ => format!(
            "{} on {connections}",
            counted(outcome.totals.messages, "message")
        ),
    }
}

/// Describes a failure in a sentence.
pub(super) fn describe(failure: &Failure) -> String {
    let at = units::time_ms(failure.at_ms as f64);
    let place = failure
        .position
        .map_or_else(String::new, |byte| format!(", byte {byte}"));
    let detail = if failure.detail.is_empty() {
        String::new()
    } else {
        format!(": {}", failure.detail)
    };
    text(&format!(
        "{} at {at}, connection {}{place}{detail}",
        failure.kind, failure.connection
    ))
}

fn throughput(outcome: &Outcome) -> Vec<String> {
    let rate = |things| {
        let rate = figures::per_second(things, outcome.measured_ms);
        rate.filter(|rate| *rate > 0.0)
    };
    let totals = &outcome.totals;
    let mut parts = Vec::new();
    let connections =
        rate(figures::opened(outcome)).map(|r| format!("{} connections/s", units::per_second(r)));
    let messages = rate(totals.messages).map(|r| format!("{} messages/s", units::per_second(r)));
    match Work::of(outcome) {
        Work::Connections => parts.extend([connections, messages].into_iter().flatten()),
        Work::Messages => parts.extend(messages),
        Work::Bytes => {}
    }
    parts.extend(rate(totals.bytes_sent).map(|r| format!("{} sent", units::byte_rate(r))));
    parts.extend(rate(totals.bytes_received).map(|r| format!("{} received", units::byte_rate(r))));
    if parts.is_empty() {
        parts.push("none".to_owned());
    }
    labelled("throughput", &parts, ", ")
}

fn latency(outcome: &Outcome) -> Vec<String> {
    let Some(latency) = &outcome.latency else {
        return sentence("latency", "not measured by this pattern");
    };
    let mut names = format!("{:<1$}", "latency", LABEL_COLUMNS);
    let mut values = " ".repeat(LABEL_COLUMNS);
    for (name, value) in percentiles(latency) {
        names.push_str(&format!("{name:>FIGURE$}"));
        values.push_str(&format!("{value:>FIGURE$}"));
    }
    let mut lines = vec![names, values];
    lines.extend(with_unsent(outcome));
    let parts = [
        format!("min {}", units::time_ns(latency.min_ns)),
        format!("mean {}", units::time_ns(latency.mean_ns)),
        format!("of {}", counted(latency.count, "answer")),
        text(&format!("counted from {}", origin(outcome))),
    ];
    lines.extend(labelled("", &parts, ", "));
    let stall = format!(
        "longest wait for a due answer {}",
        units::time_ms(outcome.longest_stall_ms)
    );
    lines.extend(sentence("stall", &stall));
    lines
}

/// Returns the latencies including unsent messages, which have waited at least until the end.
fn with_unsent(outcome: &Outcome) -> Vec<String> {
    let Some(schedule) = figures::unsent(outcome) else {
        return Vec::new();
    };
    let mut values = " ".repeat(LABEL_COLUMNS);
    for (_, value) in shown(&schedule.percentiles, schedule.max_ns) {
        values.push_str(&format!("{value:>FIGURE$}"));
    }
    let text = format!(
        "including {} not sent, with the time they had waited by the end",
        counted(schedule.not_sent, "message")
    );
    let mut lines = vec![values];
    lines.extend(sentence("", &text));
    lines
}

/// Returns every percentile shown, with its name, and the maximum.
pub(super) fn percentiles(latency: &Latency) -> Vec<(String, String)> {
    shown(&latency.percentiles, latency.max_ns)
}

/// Returns the given percentiles, with their names, and the maximum.
pub(super) fn shown(percentiles: &[Percentile], max_ns: u64) -> Vec<(String, String)> {
    let shown = |quantile: &f64| {
        let value = figures::value_at(percentiles, *quantile);
        let value = value.map_or_else(|| units::NONE.to_owned(), units::time_ns);
        (units::quantile(*quantile), value)
    };
    let mut all: Vec<_> = figures::QUANTILES.iter().map(shown).collect();
    all.push(("max".to_owned(), units::time_ns(max_ns)));
    all
}

/// Returns the start of a latency.
pub(super) fn origin(outcome: &Outcome) -> &str {
    match outcome.latency_from.as_str() {
        "planned" => "the planned time (open loop)",
        "sent" => "sending (closed loop)",
        other => other,
    }
}

fn server(outcome: &Outcome) -> Vec<String> {
    let Some(server) = &outcome.server else {
        return sentence("server", "not measured; pass --pid if it runs here");
    };
    let mut lines = labelled("server", &cpu(outcome, server), ", ");
    let memory = [
        units::memory(server.memory_bytes as f64),
        format!(
            "{} per connection",
            units::memory(server.memory_per_connection_bytes)
        ),
        match server.pids.len() {
            1 => "1 process".to_owned(),
            many => format!("{many} processes"),
        },
    ];
    lines.extend(labelled("memory", &memory, ", "));
    lines.extend(balance(&server.connections_by_worker));
    lines
}

/// Returns the breakdown of the server's CPU time.
pub(super) fn cpu(outcome: &Outcome, server: &Server) -> Vec<String> {
    let total_ms = (server.user_ms as f64) + (server.system_ms as f64);
    let load = total_ms / outcome.measured_ms.max(1) as f64;
    let load = format!("{} CPUs busy", units::per_second(load));
    if outcome.totals.messages > 0 && Work::of(outcome) != Work::Bytes {
        let user = server.user_per_message_ns;
        return vec![
            format!(
                "{} of CPU per message",
                units::time(server.cpu_per_message_ns)
            ),
            format!("{} user", units::time(user)),
            format!(
                "{} kernel",
                units::time((server.cpu_per_message_ns - user).max(0.0))
            ),
            load,
        ];
    }
    let mut parts = Vec::new();
    if let Some(cost) = figures::cpu_per_byte_ns(outcome, server) {
        parts.push(format!("{} of CPU per byte", units::time(cost)));
    }
    parts.push(format!("{} user", units::time_ms(server.user_ms as f64)));
    parts.push(format!(
        "{} kernel",
        units::time_ms(server.system_ms as f64)
    ));
    parts.push(load);
    parts
}

/// Describes how the connections are spread over the workers.
fn balance(by_worker: &[u64]) -> Vec<String> {
    let Some(skew) = figures::skew(by_worker) else {
        return Vec::new();
    };
    labelled("balance", &spread(by_worker, skew), ", ")
}

/// Returns the connections of each worker, or of the extremes if there are many workers.
pub(super) fn spread(by_worker: &[u64], skew: f64) -> Vec<String> {
    let mut parts: Vec<String> = if by_worker.len() <= WORKERS_MAX {
        let workers = by_worker.iter().enumerate();
        workers
            .map(|(number, open)| format!("worker {number}: {}", units::short(*open)))
            .collect()
    } else {
        let least = by_worker.iter().min().copied().unwrap_or(0);
        let most = by_worker.iter().max().copied().unwrap_or(0);
        vec![format!(
            "{} workers: {} to {} connections",
            by_worker.len(),
            units::short(least),
            units::short(most)
        )]
    };
    parts.push(format!("busiest {} times the mean", units::ratio(skew)));
    parts
}

fn client(outcome: &Outcome) -> Vec<String> {
    let client = &outcome.client;
    let threads = u64::from(outcome.plan.threads) * u64::from(outcome.plan.processes.max(1));
    let mut parts = vec![format!(
        "CPU {} of {}",
        units::share(client.share_of_cpus),
        counted(threads, "thread")
    )];
    if client.cpu_per_message_ns > 0.0 {
        let cost = units::time(client.cpu_per_message_ns);
        parts.push(format!("{cost} of CPU per message"));
    }
    if client.is_bottleneck {
        parts.push("the bottleneck".to_owned());
    }
    labelled("client", &parts, ", ")
}

fn machine(outcome: &Outcome) -> Vec<String> {
    let machine = &outcome.machine;
    let mut known = Vec::new();
    if machine.cpus > 0 {
        known.push(counted(machine.cpus.into(), "CPU"));
    }
    if !machine.cpu_model.is_empty() {
        known.push(text(&machine.cpu_model));
    }
    if !machine.kernel.is_empty() {
        known.push(text(&format!("Linux {}", machine.kernel)));
    }
    if let Some(load) = machine.load_average {
        known.push(format!("load {}", units::ratio(load)));
    }
    if known.is_empty() {
        return Vec::new();
    }
    labelled("machine", &known, ", ")
}

/// Returns the commands run, with clients' observations around them.
fn marks(marks: &[Mark]) -> Vec<String> {
    if marks.is_empty() {
        return Vec::new();
    }
    let same = figures::only_command(marks);
    let mut lines = labelled("events", &overall(marks), ", ");
    lines.extend(same.map_or_else(Vec::new, |command| sentence("", &text(command))));
    let header = format!(
        "{:>FIGURE$}{:>FIGURE$}{:>10}{:>FIGURE$}{:>FIGURE$}  {}",
        "at",
        "took",
        "failures",
        "stall",
        "p99",
        if same.is_some() { "" } else { "command" }
    );
    lines.push(header.trim_end().to_owned());
    let chosen = worst(marks);
    for mark in &chosen {
        let row = format!(
            "{:>FIGURE$}{:>FIGURE$}{:>10}{:>FIGURE$}{:>FIGURE$}  {}{}",
            units::time_ms(mark.at_ms as f64),
            units::time_ms(mark.took_ms as f64),
            units::short(mark.seen.failures),
            units::time_ms(mark.seen.longest_stall_ms),
            units::time_ns(mark.seen.p99_ns),
            ending(mark),
            if same.is_some() { "" } else { &mark.command }
        );
        lines.push(units::cut(&row, super::COLUMNS).trim_end().to_owned());
        if mark.exit_code != Some(0) && !mark.output.is_empty() {
            lines.extend(sentence("", &text(&mark.output)));
        }
    }
    let hidden = marks.len() - chosen.len();
    if hidden > 0 {
        lines.extend(sentence("", &format!("… {hidden} others not shown")));
    }
    lines
}

/// Summarises all marks in a sentence.
pub(super) fn overall(marks: &[Mark]) -> Vec<String> {
    let failed = marks
        .iter()
        .filter(|mark| mark.exit_code != Some(0))
        .count();
    let hit = marks.iter().filter(|mark| mark.seen.failures > 0).count();
    let stall = marks
        .iter()
        .map(|mark| mark.seen.longest_stall_ms)
        .fold(0.0, f64::max);
    vec![
        counted(marks.len() as u64, "command"),
        match failed {
            0 => "all succeeded".to_owned(),
            failed => format!("{failed} failed"),
        },
        match hit {
            0 => "no client failures around them".to_owned(),
            hit => format!("client failures around {hit}"),
        },
        format!("longest stall {}", units::time_ms(stall)),
    ]
}

/// Returns the marks to show, in order of time.
pub(super) fn worst(marks: &[Mark]) -> Vec<&Mark> {
    let mut order: Vec<usize> = (0..marks.len()).collect();
    order.sort_by(|a, b| {
        let rank = |at: usize| {
            let mark = &marks[at];
            (mark.seen.failures, mark.exit_code != Some(0))
        };
        let stall = |at: usize| marks[at].seen.longest_stall_ms;
        let by_rank = rank(*b).cmp(&rank(*a));
        by_rank.then_with(|| stall(*b).total_cmp(&stall(*a)))
    });
    order.truncate(MARKS_MAX);
    order.sort_unstable();
    order.into_iter().map(|at| &marks[at]).collect()
}

/// Returns how an unsuccessful command ended.
pub(super) fn ending(mark: &Mark) -> String {
    match mark.exit_code {
        Some(0) => String::new(),
        Some(code) => format!("exit {code} "),
        None => "no exit ".to_owned(),
    }
}

/// Returns a text of the outcome, bounded.
fn text(text: &str) -> String {
    units::cut(text, TEXT_MAX)
}
