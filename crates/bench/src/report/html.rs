//! Formats a measurement as a page for the browser: one file that needs no network and no script,
//! follows the reader's preference for light or dark, and can be printed.
//!
//! Invariants: every text of the outcome passes through [`escaped`]; the size of the page is
//! bounded by named limits for any outcome; the data of the charts is also in a table. It must not
//! compute figures (`figures` does) or draw (`chart` and `curves` do).

mod chart;
mod curves;
mod ticks;

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::advice::Advice;
use super::figures::{self, Work};
use super::summary;
use crate::outcome::{Latency, Mark, Outcome};
use uppercased_ctl::units;

/// Maximum number of first failures listed.
const FAILURES_MAX: usize = 50;

/// Maximum number of marks listed.
const MARKS_MAX: usize = 500;

/// Maximum number of pieces of advice listed.
const NOTES_MAX: usize = 50;

/// Maximum number of kinds of failure listed.
const KINDS_MAX: usize = 50;

/// Maximum length of a text from an outcome, in characters.
const TEXT_MAX: usize = 500;

/// The last second of the year 9999, in milliseconds: later times have no common notation.
const UNIX_MS_MAX: u64 = 253_402_300_799_000;

/// The style sheet of the page.
const STYLE: &str = include_str!("html/page.css");

/// Returns the page.
#[must_use]
pub fn html(outcome: &Outcome) -> String {
    let title = format!(
        "{} on {}",
        escaped(&outcome.plan.pattern),
        escaped(&outcome.target)
    );
    let mut body = heading(outcome);
    body.push_str(&tiles(outcome));
    body.push_str(&notes(outcome));
    body.push_str(&charts(outcome));
    body.push_str(&marks(&outcome.marks));
    body.push_str(&failures(outcome));
    body.push_str("<section class=\"tables\">\n");
    body.push_str(&latencies(outcome));
    body.push_str(&costs(outcome));
    body.push_str(&circumstances(outcome));
    body.push_str("</section>\n");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>uppercased bench: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Returns untrusted text for the page: one line, bounded, without markup.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in units::cut(text, TEXT_MAX).chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Returns the subject of the measurement and the result.
fn heading(outcome: &Outcome) -> String {
    let failures = figures::failures(outcome);
    let (class, result) = match failures {
        0 if !outcome.problems.is_empty() => ("failed", "plan not completed".to_owned()),
        0 => ("ok", "no failures".to_owned()),
        failures => ("failed", units::counted(failures, "failure")),
    };
    let plan = summary::plan(&outcome.plan).join(", ");
    let time = format!(
        "{} measured after {} of warm-up",
        units::time_ms(outcome.measured_ms as f64),
        units::time_ms(outcome.plan.warmup_ms as f64)
    );
    format!(
        "<header>\n<h1>{} <small>on</small> {}</h1>\n<p class=\"result {class}\">{result}</p>\n\
         <p>{}; {time}; <time>{}</time></p>\n<p><code>{}</code></p>\n</header>\n",
        escaped(&outcome.plan.pattern),
        escaped(&outcome.target),
        escaped(&plan),
        started(outcome),
        escaped(&outcome.command)
    )
}

fn started(outcome: &Outcome) -> String {
    let since = Duration::from_millis(outcome.started_unix_ms.min(UNIX_MS_MAX));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// Returns the most important figures, large.
fn tiles(outcome: &Outcome) -> String {
    let mut tiles = Vec::new();
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

fn notes(outcome: &Outcome) -> String {
    let advice = Advice::on(outcome);
    let advice = advice.iter().map(ToString::to_string);
    let all: Vec<String> = outcome.problems.iter().cloned().chain(advice).collect();
    if all.is_empty() {
        return String::new();
    }
    let items: String = all
        .iter()
        .take(NOTES_MAX)
        .map(|piece| format!("<li>{}</li>\n", escaped(piece)))
        .collect();
    format!("<ul class=\"notes\">\n{items}</ul>\n")
}

fn charts(outcome: &Outcome) -> String {
    let mut text = String::new();
    for figure in curves::all(outcome) {
        let drawn = match chart::draw(&figure.chart) {
            Ok(svg) => svg,
            // Without the chart, the page still has its tables.
            Err(why) => format!("<p>This chart could not be drawn: {}</p>\n", escaped(&why)),
        };
        let mut legend = String::new();
        for line in figure
            .chart
            .lines
            .iter()
            .filter(|line| !line.name.is_empty())
        {
            let _ = write!(
                legend,
                "<span><i class=\"{}\"></i>{}</span>",
                line.ink.class(),
                line.name
            );
        }
        let _ = write!(
            text,
            "<figure>\n<figcaption><h2>{}</h2><div class=\"legend\">{legend}</div></figcaption>\n\
             {drawn}<p>{}</p>\n</figure>\n",
            figure.title,
            escaped(&figure.note)
        );
    }
    text
}

/// Returns a table; its cells must already be escaped.
fn table(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = "<table>\n".to_owned();
    if !caption.is_empty() {
        let _ = writeln!(text, "<caption>{caption}</caption>");
    }
    if !head.is_empty() {
        let cells: String = head.iter().map(|name| format!("<th>{name}</th>")).collect();
        let _ = writeln!(text, "<thead><tr>{cells}</tr></thead>");
    }
    text.push_str("<tbody>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(text, "<tr>{cells}</tr>");
    }
    text + "</tbody>\n</table>\n"
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
                    escaped(&mark.command),
                    escaped(&mark.output)
                ),
            ]
        })
        .collect();
    let head = [
        "",
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
        table("", &head, &rows)
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
    let rows = [
        ("program", format!("uppercased {}", outcome.program)),
        ("CPUs", format!("{} × {}", machine.cpus, machine.cpu_model)),
        ("kernel", machine.kernel.clone()),
        ("bytes checked", outcome.plan.expect.clone()),
    ];
    let header = outcome.plan.proxy_protocol.clone();
    let rows = rows
        .into_iter()
        .chain(header.map(|version| ("PROXY header", version)));
    let rows: Vec<_> = rows
        .map(|(name, value)| vec![name.to_owned(), escaped(&value)])
        .collect();
    table("Circumstances", &[], &rows)
}
