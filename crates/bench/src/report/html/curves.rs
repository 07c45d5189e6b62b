//! Prepares the data of a page's charts.
//!
//! Invariants: a chart without measured figures is omitted; a line has a gap where nothing was
//! measured; a chart has at most [`POINTS_MAX`] points per line and [`MARKS_MAX`] marks, with a
//! note if these limits hide anything. It must not draw.

use hdrhistogram::Histogram;

use super::super::figures::{self, Work};
use super::chart::{Axis, Chart, Ink, Kind, Line, Span};
use super::ticks;
use crate::outcome::{Interval, Latency, Outcome};
use uppercased_ctl::units;

/// Maximum number of points of a line: the resolution of a screen.
const POINTS_MAX: usize = 480;

/// Maximum number of marks in a chart.
const MARKS_MAX: usize = 200;

/// Number of points of the curve by percentile.
const QUANTILE_POINTS: usize = 240;

/// Decades of the curve by percentile: it ends at one in 10^this answers.
const QUANTILE_DECADES_MAX: f64 = 6.0;

const MS_PER_S: f64 = 1000.0;

/// A chart with its surrounding text.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) title: &'static str,
    pub(super) note: String,
    pub(super) chart: Chart,
}

/// Several intervals merged.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The time of its middle, in seconds.
    at_s: f64,
    length_ms: u64,
    messages: u64,
    bytes: u64,
    connections: u64,
    failures: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
}

/// A figure of a piece.
type Of = fn(&Piece) -> u64;

/// A formatter for a figure.
type Show = fn(f64) -> String;

/// Returns all charts for which the outcome has figures.
pub(super) fn all(outcome: &Outcome) -> Vec<Figure> {
    let per_piece = outcome.series.len().div_ceil(POINTS_MAX).max(1);
    let chunks = outcome.series.chunks(per_piece);
    let pieces: Vec<Piece> = chunks.filter_map(Piece::of).collect();
    let merged = if per_piece > 1 {
        format!(" A point stands for {per_piece} intervals; percentiles are the worst of them.")
    } else {
        String::new()
    };
    let mut figures = Vec::new();
    if !pieces.is_empty() {
        figures.push(throughput(outcome, &pieces, &merged));
    }
    figures.extend(latency_over_time(outcome, &pieces, &merged));
    let latency = outcome.latency.as_ref();
    figures.extend(latency.and_then(latency_by_percentile));
    figures
}

impl Piece {
    /// Merges `intervals`; `None` if they have no length.
    fn of(intervals: &[Interval]) -> Option<Self> {
        let first = intervals.first()?;
        let sum = |of: fn(&Interval) -> u64| {
            let values = intervals.iter().map(of);
            values.fold(0, u64::saturating_add)
        };
        let most = |of: fn(&Interval) -> u64| intervals.iter().map(of).max().unwrap_or(0);
        let length_ms = sum(|i| i.length_ms);
        (length_ms > 0).then(|| Self {
            at_s: (first.at_ms as f64 + length_ms as f64 / 2.0) / MS_PER_S,
            length_ms,
            messages: sum(|i| i.messages),
            bytes: sum(|i| i.bytes_received),
            connections: sum(|i| i.connections_opened),
            failures: sum(|i| i.failures),
            p50_ns: most(|i| i.p50_ns),
            p99_ns: most(|i| i.p99_ns),
            max_ns: most(|i| i.max_ns),
        })
    }
}

fn throughput(outcome: &Outcome, pieces: &[Piece], merged: &str) -> Figure {
    let (title, show, of): (_, Show, Of) = match Work::of(outcome) {
        Work::Messages => ("Messages per second", units::per_second, |p| p.messages),
        Work::Bytes => ("Bytes received per second", units::byte_rate, |p| p.bytes),
        Work::Connections => ("Connections per second", units::per_second, |p| {
            p.connections
        }),
    };
    let rate = |piece: &Piece| figures::per_second(of(piece), piece.length_ms).unwrap_or(0.0);
    let points: Vec<(f64, f64)> = pieces.iter().map(|p| (p.at_s, rate(p))).collect();
    let failed = pieces.iter().filter(|p| p.failures > 0);
    let failed: Vec<(f64, f64)> = failed.map(|p| (p.at_s, rate(p))).collect();
    let most = points.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let round = ticks::linear(most);
    let mut lines = vec![Line {
        name: "",
        ink: Ink::Blue,
        kind: Kind::Area,
        pieces: vec![points],
    }];
    if !failed.is_empty() {
        lines.push(Line {
            name: "with failures",
            ink: Ink::Red,
            kind: Kind::Dots,
            pieces: vec![failed],
        });
    }
    let x = time_axis(pieces);
    Figure {
        title,
        note: format!("{}{merged}", marked(outcome)),
        chart: Chart {
            y: Axis {
                from: 0.0,
                to: round.last().copied().unwrap_or(1.0),
                ticks: round
                    .iter()
                    .map(|tick| (*tick, short_label(&show(*tick))))
                    .collect(),
                name: "",
            },
            lines,
            marks: marks(outcome, &x),
            x,
        },
    }
}

fn latency_over_time(outcome: &Outcome, pieces: &[Piece], merged: &str) -> Option<Figure> {
    let kinds: [(_, _, Of); 3] = [
        ("max", Ink::Red, |p| p.max_ns),
        ("p99", Ink::Orange, |p| p.p99_ns),
        ("p50", Ink::Blue, |p| p.p50_ns),
    ];
    let all = kinds.iter().flat_map(|(_, _, of)| pieces.iter().map(of));
    let (least, most) = bounds(all.filter(|ns| *ns > 0).map(|ns| ns as f64))?;
    let lines = kinds.map(|(name, ink, of)| Line {
        name,
        ink,
        kind: Kind::Line,
        pieces: pieces
            .split(|piece| of(piece) == 0)
            .filter(|run| !run.is_empty())
            .map(|run| {
                let points = run.iter().map(|p| (p.at_s, (of(p) as f64).log10()));
                points.collect()
            })
            .collect(),
    });
    let x = time_axis(pieces);
    Some(Figure {
        title: "Latency over time",
        note: format!("Logarithmic scale. {}{merged}", marked(outcome)),
        chart: Chart {
            y: latency_axis(least, most),
            lines: lines.into(),
            marks: marks(outcome, &x),
            x,
        },
    })
}

/// Returns the curve by percentile. The axis has equal steps for 90 %, 99 %, 99.9 %, so that the
/// tail has the most room.
fn latency_by_percentile(latency: &Latency) -> Option<Figure> {
    let points = match figures::histogram(latency) {
        Some(histogram) => fine(&histogram),
        None => coarse(latency),
    };
    let (least, most) = bounds(points.iter().map(|(_, ns)| *ns))?;
    let (_, end) = bounds(points.iter().map(|(at, _)| *at))?;
    let mut ticks = vec![(0.5f64, "50 %".to_owned())];
    for nines in 0..=QUANTILE_DECADES_MAX as i32 {
        let quantile = 1.0 - 10f64.powi(-nines);
        ticks.push((quantile, format!("{} %", units::percentage(quantile))));
    }
    let line = points.iter().map(|(at, ns)| (*at, ns.log10())).collect();
    Some(Figure {
        title: "Latency by percentile",
        note: "Share of replies within each latency; each step to the right leaves a tenth of the \
               replies."
            .to_owned(),
        chart: Chart {
            x: Axis {
                from: 0.0,
                to: end.max(1.0),
                ticks: ticks
                    .into_iter()
                    .map(|(q, name)| (beyond(q), name))
                    .collect(),
                name: "",
            },
            y: latency_axis(least, most),
            lines: vec![Line {
                name: "",
                ink: Ink::Blue,
                kind: Kind::Area,
                pieces: vec![line],
            }],
            marks: Vec::new(),
        },
    })
}

/// Returns a quantile's position on the axis: one step for each power of ten.
fn beyond(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// Returns the curve from all measured values.
fn fine(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let decades = (histogram.len() as f64)
        .log10()
        .clamp(1.0, QUANTILE_DECADES_MAX);
    let points = (0..=QUANTILE_POINTS).map(|step| {
        let at = decades * step as f64 / QUANTILE_POINTS as f64;
        let value = histogram.value_at_quantile(1.0 - 10f64.powf(-at));
        (at, value as f64)
    });
    points.filter(|(_, ns)| *ns > 0.0).collect()
}

/// Returns the curve from the few percentiles in the outcome.
fn coarse(latency: &Latency) -> Vec<(f64, f64)> {
    let mut points = vec![(0.0, latency.min_ns as f64)];
    let percentiles = latency.percentiles.iter();
    points.extend(percentiles.map(|at| (beyond(at.quantile), at.value_ns as f64)));
    points.retain(|(at, ns)| (0.0..=QUANTILE_DECADES_MAX).contains(at) && *ns > 0.0);
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// Returns the minimum and the maximum; `None` if there is no number.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| {
        let (least, most) = bounds.unwrap_or((value, value));
        Some((value.min(least), value.max(most)))
    })
}

fn latency_axis(least: f64, most: f64) -> Axis {
    let round = ticks::logarithmic(least, most);
    let (first, last) = bounds(round.iter().copied()).unwrap_or((1.0, 10.0));
    Axis {
        from: first.min(least).log10(),
        to: last.max(most).log10(),
        ticks: round
            .iter()
            .map(|ns| (ns.log10(), short_label(&units::time(*ns))))
            .collect(),
        name: "",
    }
}

fn time_axis(pieces: &[Piece]) -> Axis {
    let end = pieces.last().map_or(0.0, |last| {
        last.at_s + last.length_ms as f64 / 2.0 / MS_PER_S
    });
    let end = if end > 0.0 { end } else { 1.0 };
    let label = |s: f64| short_label(&units::time_ms(s * MS_PER_S));
    Axis {
        from: 0.0,
        to: end,
        ticks: ticks::linear(end)
            .into_iter()
            .map(|s| (s, label(s)))
            .collect(),
        name: "since the end of the warm-up",
    }
}

/// Returns the marks on the axis, with their numbers in the table.
fn marks(outcome: &Outcome, x: &Axis) -> Vec<Span> {
    let spans = outcome.marks.iter().enumerate().map(|(position, mark)| {
        let from = mark.at_ms as f64 / MS_PER_S;
        Span {
            from,
            to: (from + mark.took_ms as f64 / MS_PER_S).min(x.to),
            name: (position + 1).to_string(),
        }
    });
    spans
        .filter(|span| span.from <= x.to)
        .take(MARKS_MAX)
        .collect()
}

/// Explains the vertical lines.
fn marked(outcome: &Outcome) -> String {
    let what = match figures::only_command(&outcome.marks) {
        _ if outcome.marks.is_empty() => return String::new(),
        Some(command) => units::cut(command, super::super::COLUMNS),
        None => "a command of the table below".to_owned(),
    };
    format!("Numbered lines: {what}; shaded while it ran.")
}

/// Removes redundant zeros from a number on an axis.
fn short_label(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    if !number.contains('.') {
        return text.to_owned();
    }
    let number = number.trim_end_matches('0').trim_end_matches('.');
    format!("{number}{unit}")
}
