//! The report: markdown tables, and JSON with every run.

use std::fmt::Write;

use serde_json::{Value, json};

use uppercased_bench::options::Pattern as Kind;

use super::measure::Sample;
use super::options::Options;
use super::pattern::Unit;
use super::server::Server;
use super::session::{Measured, Pair};
use super::stats::{Spread, spread};

const NS_PER_US: f64 = 1_000.0;
/// Placeholder for a missing figure.
const NONE: &str = "–";

/// Format of a unit's figures.
struct Scale {
    cost: &'static str,
    cost_divisor: f64,
    rate: &'static str,
    rate_divisor: f64,
}

const fn scale(unit: Unit) -> Scale {
    match unit {
        Unit::Message => Scale {
            cost: "CPU per message, µs",
            cost_divisor: NS_PER_US,
            rate: "thousand messages/s",
            rate_divisor: 1e3,
        },
        Unit::Connection => Scale {
            cost: "CPU per connection, µs",
            cost_divisor: NS_PER_US,
            rate: "thousand connections/s",
            rate_divisor: 1e3,
        },
        Unit::Byte => Scale {
            cost: "CPU per byte, ns",
            cost_divisor: 1.0,
            rate: "Gbit/s each way",
            rate_divisor: 1e9 / 8.0,
        },
    }
}

/// Formats a median with its quartiles.
fn shown(spread: Option<Spread>, divisor: f64) -> String {
    let Some(Spread { low, median, high }) = spread else {
        return NONE.to_owned();
    };
    let [low, median, high] = [low, median, high].map(|value| value / divisor);
    let digits = match median.abs() {
        0.0..1.0 => 3,
        1.0..100.0 => 2,
        _ => 0,
    };
    format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
}

/// Returns the short name of the reference.
fn short(reference: &Server) -> &str {
    match reference {
        Server::Floor => "floor",
        other => other.name(),
    }
}

/// Returns the user time per unit over all runs together: the kernel samples it, so a single run is
/// too short.
fn user(samples: &[&Sample], divisor: f64) -> String {
    let sum = |figure: fn(&Sample) -> f64| -> f64 { samples.iter().map(|one| figure(one)).sum() };
    let sampled = sum(|sample| sample.sampled_ns as f64);
    if sampled == 0.0 {
        return NONE.to_owned();
    }
    let share = sum(|sample| sample.sampled_user_ns as f64) / sampled;
    let cost = sum(|sample| sample.server_cpu_ns as f64) / sum(|sample| sample.units);
    format!("{:.3}", share * cost / divisor)
}

/// Returns the valid runs of `server`.
fn samples<'m>(measured: &'m Measured<'_>, server: &Server) -> Vec<&'m Sample> {
    if server == measured.reference {
        measured.reference_runs.iter().collect()
    } else {
        measured.usable(server).map(|pair| &pair.sample).collect()
    }
}

/// Writes the table of one pattern.
pub(crate) fn table(measured: &Measured<'_>, servers: &[Server]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "### {}\n", measured.pattern.title);
    if measured.pattern.kind == Kind::Rate {
        let rate = measured.pattern.per_second;
        let _ = writeln!(
            text,
            "{rate:.0} messages/s are planned, at equal intervals.\n"
        );
    }
    if measured.pattern.is_idle() {
        memory_rows(&mut text, measured, servers);
    } else {
        rows(&mut text, measured, servers);
    }
    for (server, why) in &measured.failed {
        let _ = writeln!(text, "\n{} could not be measured: {why}.", server.title());
    }
    text
}

fn rows(text: &mut String, measured: &Measured<'_>, servers: &[Server]) {
    let scale = scale(measured.pattern.unit());
    let reference = short(measured.reference);
    let times = measured.pattern.has_latency();
    let ours = servers.iter().find(|server| server.is_ours());
    let _ = write!(
        text,
        "| server | {} | user part | CPU ÷ {reference} | {} ÷ this | {} | rate ÷ {reference} |",
        scale.cost,
        ours.map_or(NONE, Server::name),
        scale.rate
    );
    text.push_str(if times { " p50, µs | p99, µs |" } else { "" });
    text.push_str(" pairs (discarded) |\n|---|---|---|---|---|---|---|");
    text.push_str(if times { "---|---|---|\n" } else { "---|\n" });
    for server in servers {
        if measured.failed.contains_key(&server) {
            continue;
        }
        let samples = samples(measured, server);
        let figure = |figure: fn(&Sample) -> f64, divisor: f64| {
            shown(
                spread(samples.iter().map(|&sample| figure(sample))),
                divisor,
            )
        };
        let ratio = |one: &Server, other: &Server, figure: fn(&Sample) -> f64| {
            if one == other {
                return "1".to_owned();
            }
            shown(spread(measured.ratios(one, other, figure)), 1.0)
        };
        let ours = ours.map_or_else(
            || NONE.to_owned(),
            |ours| ratio(ours, server, Sample::cpu_per_unit_ns),
        );
        let _ = write!(
            text,
            "| {} | {} | {} | {} | {ours} | {} | {} |",
            server.title(),
            figure(Sample::cpu_per_unit_ns, scale.cost_divisor),
            user(&samples, scale.cost_divisor),
            ratio(server, measured.reference, Sample::cpu_per_unit_ns),
            figure(Sample::units_per_s, scale.rate_divisor),
            ratio(server, measured.reference, Sample::units_per_s),
        );
        if times {
            let p50 = figure(|sample| sample.p50_ns as f64, NS_PER_US);
            let p99 = figure(|sample| sample.p99_ns as f64, NS_PER_US);
            let _ = write!(text, " {p50} | {p99} |");
        }
        let all = measured.pairs_of(server).count();
        let used = measured.usable(server).count();
        if server == measured.reference {
            let _ = writeln!(text, " {} runs |", samples.len());
        } else {
            let _ = writeln!(text, " {used} ({}) |", all - used);
        }
    }
}

fn memory_rows(text: &mut String, measured: &Measured<'_>, servers: &[Server]) {
    text.push_str(
        "| server | bytes per idle connection | bytes after one message |\n|---|---|---|\n",
    );
    for server in servers {
        let samples = samples(measured, server);
        let figure = |figure: fn(&Sample) -> Option<f64>| {
            let figures = samples.iter().filter_map(|&sample| figure(sample));
            shown(spread(figures), 1.0)
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            server.title(),
            figure(|sample| sample.silent_bytes),
            figure(|sample| sample.used_bytes)
        );
    }
}

/// Writes all patterns in one table: the server's CPU time as a multiple of the reference's in the
/// same run, and the memory of idle connections.
pub(crate) fn summary(all: &[Measured<'_>], servers: &[Server]) -> String {
    let Some(reference) = all.first().map(|measured| short(measured.reference)) else {
        return String::new();
    };
    let mut text = format!("### Server CPU ÷ {reference}: median (quartiles)\n\n| pattern |");
    for server in servers {
        let _ = write!(text, " {} |", server.title());
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(servers.len()));
    for measured in all {
        let idle = measured.pattern.is_idle();
        let unit = if idle { ", bytes each" } else { "" };
        let _ = write!(text, "\n| {}{unit} |", measured.pattern.title);
        for server in servers {
            let figure = if idle {
                let samples = samples(measured, server);
                shown(
                    spread(samples.iter().filter_map(|one| one.silent_bytes)),
                    1.0,
                )
            } else if server == measured.reference {
                "1".to_owned()
            } else {
                let ratios = measured.ratios(server, measured.reference, Sample::cpu_per_unit_ns);
                shown(spread(ratios), 1.0)
            };
            let _ = write!(text, " {figure} |");
        }
    }
    text.push('\n');
    text
}

/// Writes every run as JSON.
pub(crate) fn json(all: &[Measured<'_>], options: &Options, machine: &str) -> Value {
    let run = |pair: &Pair<'_>| {
        json!({
            "server": pair.server.name(), "round": pair.round, "usable": pair.is_usable(),
            "sample": pair.sample, "before": pair.before, "after": pair.after,
            "cpu_ratio": pair.ratio(Sample::cpu_per_unit_ns),
        })
    };
    let pattern = |measured: &Measured<'_>| {
        let failed = measured
            .failed
            .iter()
            .map(|(server, why)| (server.name(), why));
        json!({
            "name": measured.pattern.name, "kind": measured.pattern.kind,
            "connections": measured.pattern.connections, "size": measured.pattern.size,
            "per_second": measured.pattern.per_second,
            "reference": measured.reference.name(), "rounds": measured.rounds,
            "pairs": measured.pairs.iter().map(run).collect::<Vec<_>>(),
            "failed": failed.collect::<std::collections::BTreeMap<_, _>>(),
        })
    };
    json!({
        "format": 1, "program": env!("CARGO_PKG_VERSION"), "machine": machine,
        "pairs": options.pairs, "seconds": options.span.as_secs_f64(),
        "patterns": all.iter().map(pattern).collect::<Vec<_>>(),
    })
}
