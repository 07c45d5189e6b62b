//! The page of one measurement.
//!
//! Invariants: those of the parent module; numbers in the charts' marks are those of the table of
//! events. It must not compute figures (`figures` does) or draw (`chart` and `curves` do).

use std::fmt::Write as _;

use super::super::advice::Advice;
use super::super::capacity;
use super::super::figures::{self, Work};
use super::super::summary;
use super::page::{date, document, escaped, notes, table, with_flags};
use super::{chart, curves};
use crate::outcome::{Latency, Mark, Outcome};
use uppercased_ctl::units;

/// Maximum number of probes listed.
const PROBES_MAX: usize = 100;

/// Maximum number of first failures listed.
const FAILURES_MAX: usize = 50;

/// Maximum number of marks listed.
const MARKS_MAX: usize = 500;

/// Maximum number of kinds of failure listed.
const KINDS_MAX: usize = 50;

/// Returns the page.
#[must_use]
pub fn html(outcome: &Outcome) -> String {
    let started = date(outcome.started_unix_ms);
    let title = format!("{}, {started}", summary::subject(outcome));
    let body = [
        heading(outcome),
        tiles(outcome),
        remarks(outcome),
        chart::elements(&curves::all(outcome)),
        probes(outcome),
        marks(&outcome.marks),
        failures(outcome),
        "<section class=\"tables\">\n".to_owned(),
        latencies(outcome),
        costs(outcome),
        circumstances(outcome),
        "</section>\n".to_owned(),
    ];
    document(&title, &body.concat(), serde_json::to_string(outcome))
}

/// Returns the subject of the measurement and the result.
fn heading(outcome: &Outcome) -> String {
    let failures = figures::failures(outcome);
    let (class, result) = match failures {
        0 if !outcome.problems.is_empty() => ("failed", "plan not completed".to_owned()),
        0 => match outcome.failed_criteria() {
            0 => {
                let found = outcome.capacity.as_ref().map(capacity::result);
                let found = found.map(|result| escaped(&result));
                ("ok", found.unwrap_or_else(|| "no failures".to_owned()))
            }
            failed => (
                "failed",
                format!("{failed} of {} criteria", outcome.criteria.len()),
            ),
        },
        failures => ("failed", units::counted(failures, "failure")),
    };
    let plan = summary::plan(&outcome.plan).join(", ");
    let time = format!(
        "{} measured after {} of warm-up",
        units::time_ms(outcome.measured_ms as f64),
        units::time_ms(outcome.plan.warmup_ms as f64)
    );
    format!(
        "<header>\n<h1>{}</h1>\n<p class=\"result {class}\">{result}</p>\n\
         <p>{}; {time}; <time>{}</time></p>\n<p><code>{}</code></p>\n</header>\n",
        escaped(&summary::subject(outcome)),
        escaped(&plan),
        date(outcome.started_unix_ms),
        with_flags(&outcome.command)
    )
}

/// Returns the most important figures, large.
fn tiles(outcome: &Outcome) -> String {
    let mut tiles = Vec::new();
    let capacity = outcome.capacity.as_ref().and_then(|one| one.rate_per_s);
    tiles.extend(capacity.map(|rate| ("capacity", format!("{}/s", units::per_second(rate)))));
    let rate = |things| figures::per_second(things, outcome.measured_ms);
    let rate = match Work::of(outcome) {
        Work::Messages => {
            rate(outcome.totals.messages).map(|r| ("messages/s", units::per_second(r)))
        }
        Work::Connections => {
            rate(figures::opened(outcome)).map(|r| ("connections/s", units::per_second(r)))
        }
        Work::Bytes => {
            rate(outcome.totals.bytes_received).map(|r| ("received", units::byte_rate(r)))
        }
    };
    tiles.extend(rate);
    if let Some(latency) = &outcome.latency {
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let value = figures::percentile(latency, quantile);
            tiles.extend(value.map(|value| (name, units::time_ns(value))));
        }
        tiles.push(("longest stall", units::time_ms(outcome.longest_stall_ms)));
    }
    if let Some(server) = &outcome.server {
        if Work::of(outcome) == Work::Bytes {
            let cost = figures::cpu_per_byte_ns(outcome, server);
            tiles.extend(cost.map(|cost| ("server CPU per byte", units::time(cost))));
        } else if server.cpu_per_message_ns > 0.0 {
            let cost = units::time(server.cpu_per_message_ns);
            tiles.push(("server CPU per message", cost));
        }
        let memory = units::memory(server.memory_per_connection_bytes);
        tiles.push(("server memory per connection", memory));
    }
    let mut text = "<dl class=\"tiles\">\n".to_owned();
    for (name, value) in tiles {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    text + "</dl>\n"
}

fn remarks(outcome: &Outcome) -> String {
    let advice = Advice::on(outcome);
    let advice = advice.iter().map(ToString::to_string);
    let criteria = outcome.criteria.iter().map(summary::criterion);
    let problems = outcome.problems.iter().cloned();
    notes(problems.chain(criteria).chain(advice))
}

/// Returns the table of the probes of a capacity.
fn probes(outcome: &Outcome) -> String {
    let Some(found) = &outcome.capacity else {
        return String::new();
    };
    let mut head = capacity::HEAD;
    let quantile = units::quantile(capacity::quantile(found));
    head[3] = &quantile;
    let rows: Vec<Vec<String>> = capacity::rows(found)
        .iter()
        .take(PROBES_MAX)
        .map(|row| row.iter().map(|cell| escaped(cell)).collect())
        .collect();
    format!(
        "<section class=\"numbers\">\n<h2>Capacity</h2>\n<p>{}.</p>\n{}</section>\n",
        escaped(&capacity::result(found)),
        table("Probes, by rate", &head, &rows)
    )
}

/// Returns the table of marks, with the numbers used in the charts.
fn marks(marks: &[Mark]) -> String {
    if marks.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = marks
        .iter()
        .enumerate()
        .take(MARKS_MAX)
        .map(|(position, mark)| {
            vec![
                (position + 1).to_string(),
                units::time_ms(mark.at_ms as f64),
                units::time_ms(mark.took_ms as f64),
                units::short(mark.seen.failures),
                units::time_ms(mark.seen.longest_stall_ms),
                units::time_ns(mark.seen.p99_ns),
                format!(
                    "{}<code>{}</code><br><small>{}</small>",
                    summary::ending(mark),
                    with_flags(&mark.command),
                    escaped(&mark.output)
                ),
            ]
        })
        .collect();
    let head = [
        "event",
        "at",
        "took",
        "failures",
        "longest stall",
        "p99",
        "command",
    ];
    let hidden = marks.len().saturating_sub(MARKS_MAX);
    let more = if hidden > 0 {
        format!("<p>{hidden} later ones are not listed.</p>\n")
    } else {
        String::new()
    };
    format!(
        "<section class=\"marks\">\n<h2>Events and their effect on \
         clients</h2>\n<p>{}</p>\n{}{more}</section>\n",
        summary::overall(marks).join(", "),
        table("Events", &head, &rows)
    )
}

fn failures(outcome: &Outcome) -> String {
    let kinds = summary::ranked(outcome);
    if kinds.is_empty() {
        return String::new();
    }
    let kinds: Vec<String> = kinds
        .iter()
        .take(KINDS_MAX)
        .map(|(kind, times)| format!("{} {}", units::short(*times), escaped(kind)))
        .collect();
    let first: String = outcome
        .first_failures
        .iter()
        .take(FAILURES_MAX)
        .map(|failure| format!("<li>{}</li>\n", escaped(&summary::describe(failure))))
        .collect();
    format!(
        "<section>\n<h2>Failures</h2>\n<p>{}</p>\n<ol>\n{first}</ol>\n</section>\n",
        kinds.join(", ")
    )
}

fn latencies(outcome: &Outcome) -> String {
    let Some(latency) = &outcome.latency else {
        return String::new();
    };
    let mut rows = vec![
        vec!["min".to_owned(), units::time_ns(latency.min_ns)],
        vec!["mean".to_owned(), units::time_ns(latency.mean_ns)],
    ];
    rows.extend(percentile_rows(latency));
    rows.push(vec!["answers".to_owned(), units::short(latency.count)]);
    if let Some(schedule) = figures::unsent(outcome) {
        let values = summary::shown(&schedule.percentiles, schedule.max_ns).into_iter();
        rows.extend(values.map(|(name, value)| vec![format!("{name} including not sent"), value]));
        rows.push(vec!["not sent".to_owned(), units::short(schedule.not_sent)]);
    }
    rows.push(vec![
        "counted from".to_owned(),
        escaped(summary::origin(outcome)),
    ]);
    table("Latency", &[], &rows)
}

fn percentile_rows(latency: &Latency) -> impl Iterator<Item = Vec<String>> {
    let all = summary::percentiles(latency).into_iter();
    all.map(|(name, value)| vec![name, value])
}

/// Returns the cost of measuring and serving.
fn costs(outcome: &Outcome) -> String {
    let totals = &outcome.totals;
    let client = &outcome.client;
    let mut rows = vec![
        vec!["connections".to_owned(), units::short(totals.connections)],
        vec!["messages".to_owned(), units::short(totals.messages)],
        vec!["sent".to_owned(), units::memory(totals.bytes_sent as f64)],
        vec![
            "received".to_owned(),
            units::memory(totals.bytes_received as f64),
        ],
    ];
    match &outcome.server {
        None => rows.push(vec!["server".to_owned(), "not measured".to_owned()]),
        Some(server) => {
            let cpu = summary::cpu(outcome, server).join("<br>");
            rows.push(vec!["server CPU".to_owned(), cpu]);
            let memory = units::memory(server.memory_bytes as f64);
            rows.push(vec!["server memory".to_owned(), memory]);
            if let Some(skew) = figures::skew(&server.connections_by_worker) {
                let spread = summary::spread(&server.connections_by_worker, skew);
                rows.push(vec!["balance".to_owned(), spread.join("<br>")]);
            }
        }
    }
    rows.push(vec![
        "client".to_owned(),
        format!(
            "{} of its CPU<br>{} per message",
            units::share(client.share_of_cpus),
            units::time(client.cpu_per_message_ns)
        ),
    ]);
    table("Work and cost", &[], &rows)
}

fn circumstances(outcome: &Outcome) -> String {
    let machine = &outcome.machine;
    let unknown = || "unknown".to_owned();
    let known = |text: &str| match text {
        "" => unknown(),
        text => text.to_owned(),
    };
    let server = outcome.server.as_ref();
    let mut rows = vec![
        ("measured by", format!("uppercased {}", outcome.program)),
        (
            "server version",
            server.map_or_else(unknown, |server| known(&server.version)),
        ),
        ("CPU model", known(&machine.cpu_model)),
        ("CPUs", machine.cpus.to_string()),
        ("kernel", format!("Linux {}", known(&machine.kernel))),
        (
            "load average before",
            machine.load_average.map_or_else(unknown, units::ratio),
        ),
        ("expected bytes", outcome.plan.expect.clone()),
    ];
    let header = outcome.plan.proxy_protocol.clone();
    rows.extend(header.map(|version| ("PROXY header", version)));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), escaped(&value)])
        .collect();
    table("Circumstances", &[], &rows)
}
