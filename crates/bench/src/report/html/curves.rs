//! Prepares the data of a page's charts.
//!
//! Invariants: a chart without measured figures is omitted; a line has a gap where nothing was
//! measured; a chart has at most [`POINTS_MAX`] points per line and [`MARKS_MAX`] marks, with a
//! note if these limits hide anything. It must not draw.

use hdrhistogram::Histogram;

use super::super::capacity;
use super::super::figures::{self, Work};
use super::axis::{Axis, Show};
use super::chart::{Chart, Figure, Kind, Line, Span};
use crate::outcome::{Capacity, Interval, Latency, Outcome, Probe};
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
    figures.extend(outcome.capacity.as_ref().and_then(latency_by_rate));
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
    let mut lines = vec![Line {
        name: String::new(),
        kind: Kind::Area,
        pieces: vec![points],
    }];
    let mut note = marked(outcome);
    if !failed.is_empty() {
        note.push_str(" Dots: intervals with failures.");
        lines.push(Line {
            name: "with failures".to_owned(),
            kind: Kind::Dots,
            pieces: vec![failed],
        });
    }
    let x = time_axis(pieces);
    Figure {
        title: title.to_owned(),
        note: note + merged,
        chart: Chart {
            y: Axis::linear("", most, show),
            lines,
            marks: marks(outcome, end_of(pieces)),
            x,
        },
    }
}

fn latency_over_time(outcome: &Outcome, pieces: &[Piece], merged: &str) -> Option<Figure> {
    let kinds: [(_, Of); 3] = [
        ("p50", |p| p.p50_ns),
        ("p99", |p| p.p99_ns),
        ("max", |p| p.max_ns),
    ];
    let all = kinds.iter().flat_map(|(_, of)| pieces.iter().map(of));
    let (least, most) = bounds(all.filter(|ns| *ns > 0).map(|ns| ns as f64))?;
    let lines = kinds.map(|(name, of)| Line {
        name: name.to_owned(),
        kind: Kind::Line,
        pieces: pieces
            .split(|piece| of(piece) == 0)
            .filter(|run| !run.is_empty())
            .map(|run| run.iter().map(|p| (p.at_s, of(p) as f64)).collect())
            .collect(),
    });
    Some(Figure {
        title: "Latency over time".to_owned(),
        note: format!("Logarithmic scale. {}{merged}", marked(outcome)),
        chart: Chart {
            x: time_axis(pieces),
            y: Axis::logarithmic("", least, most, units::time),
            lines: lines.into(),
            marks: marks(outcome, end_of(pieces)),
        },
    })
}

fn latency_by_percentile(latency: &Latency) -> Option<Figure> {
    let points = match figures::histogram(&latency.histogram) {
        Some(histogram) => fine(&histogram),
        None => coarse(latency),
    };
    let (least, most) = bounds(points.iter().map(|(_, ns)| *ns))?;
    let (_, end) = bounds(points.iter().map(|(share, _)| *share))?;
    Some(Figure {
        title: "Latency by percentile".to_owned(),
        note: "Each step to the right leaves a tenth of the replies.".to_owned(),
        chart: Chart {
            x: Axis::quantiles(
                "share of replies within the latency",
                end.max(0.9),
                |share| format!("{} %", units::percentage(share)),
            ),
            y: Axis::logarithmic("", least, most, units::time),
            lines: vec![Line {
                name: String::new(),
                kind: Kind::Area,
                pieces: vec![points],
            }],
            marks: Vec::new(),
        },
    })
}

/// Returns the curve of the probes of a capacity: at each rate, the longest of them.
fn latency_by_rate(found: &Capacity) -> Option<Figure> {
    let quantile = capacity::quantile(found);
    let mut probes: Vec<&Probe> = found.probes.iter().collect();
    probes.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    let longest = probes.chunk_by(|a, b| a.rate_per_s == b.rate_per_s);
    let longest = longest.filter_map(|same| same.iter().max_by_key(|one| one.measured_ms));
    let longest: Vec<&&Probe> = longest
        .filter(|one| one.rate_per_s > 0.0)
        .take(POINTS_MAX)
        .collect();
    let line = |quantile: f64| -> Vec<(f64, f64)> {
        let points = longest.iter().filter_map(|probe| {
            let ns = figures::value_at(&probe.percentiles, quantile)?;
            (ns > 0).then_some((probe.rate_per_s, ns as f64))
        });
        points.collect()
    };
    let mut quantiles = vec![quantile, 0.5];
    quantiles.dedup();
    let lines: Vec<Line> = quantiles
        .into_iter()
        .map(|quantile| Line {
            name: units::quantile(quantile),
            kind: Kind::Line,
            pieces: vec![line(quantile)],
        })
        .collect();
    let limit = found.targets.first().map(|target| target.limit_ns as f64);
    let points = || lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let (least, most) = bounds(points().map(|(_, ns)| *ns).chain(limit))?;
    let (slowest, fastest) = bounds(points().map(|(rate, _)| *rate))?;
    let limit = limit.filter(|limit| *limit > 0.0).map(|limit| Line {
        name: "target".to_owned(),
        kind: Kind::Line,
        pieces: vec![vec![(slowest, limit), (fastest, limit)]],
    });
    Some(Figure {
        title: "Latency by rate".to_owned(),
        note: "Each point is a probe; both scales are logarithmic.".to_owned(),
        chart: Chart {
            x: Axis::logarithmic("messages per second", slowest, fastest, units::per_second),
            y: Axis::logarithmic("", least, most, units::time),
            lines: lines.into_iter().chain(limit).collect(),
            marks: Vec::new(),
        },
    })
}

/// Returns the curve from all measured values.
fn fine(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let decades = (histogram.len() as f64)
        .log10()
        .clamp(1.0, QUANTILE_DECADES_MAX);
    let points = (0..=QUANTILE_POINTS).map(|step| {
        let share = 1.0 - 10f64.powf(-decades * step as f64 / QUANTILE_POINTS as f64);
        (share, histogram.value_at_quantile(share) as f64)
    });
    points.filter(|(_, ns)| *ns > 0.0).collect()
}

/// Returns the curve from the few percentiles in the outcome.
fn coarse(latency: &Latency) -> Vec<(f64, f64)> {
    let most = 1.0 - 10f64.powf(-QUANTILE_DECADES_MAX);
    let mut points = vec![(0.0, latency.min_ns as f64)];
    let percentiles = latency.percentiles.iter();
    points.extend(percentiles.map(|at| (at.quantile, at.value_ns as f64)));
    points.retain(|(share, ns)| (0.0..=most).contains(share) && *ns > 0.0);
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

/// Returns the end of the last piece, in seconds.
fn end_of(pieces: &[Piece]) -> f64 {
    pieces.last().map_or(0.0, |last| {
        last.at_s + last.length_ms as f64 / 2.0 / MS_PER_S
    })
}

fn time_axis(pieces: &[Piece]) -> Axis {
    Axis::until("since the end of the warm-up", end_of(pieces), |s| {
        units::time_ms(s * MS_PER_S)
    })
}

/// Returns the marks until `end`, with their numbers in the table.
fn marks(outcome: &Outcome, end: f64) -> Vec<Span> {
    let spans = outcome.marks.iter().enumerate().map(|(position, mark)| {
        let from = mark.at_ms as f64 / MS_PER_S;
        Span {
            from,
            to: from + mark.took_ms as f64 / MS_PER_S,
            name: (position + 1).to_string(),
        }
    });
    spans
        .filter(|span| span.from <= end)
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
