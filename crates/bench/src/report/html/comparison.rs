//! The page of a comparison.
//!
//! Invariants: those of the parent module. It must not compute figures (`compare` does) or draw.

use super::super::compare::{Comparison, Row};
use super::super::summary;
use super::axis::Axis;
use super::chart::{self, Chart, Figure, Kind, Line};
use super::page::{document, escaped, notes, table};
use uppercased_ctl::units;

/// Maximum number of runs in the chart.
const RUNS_MAX: usize = 200;

/// Returns the page; `json` is its data.
#[must_use]
pub fn comparison_html(comparison: &Comparison, json: serde_json::Result<String>) -> String {
    let [a, b] = &comparison.sides;
    let title = format!("{} and {}", a.name, b.name);
    let failed = match comparison.failed_criteria() {
        0 => String::new(),
        failed => format!(
            "<p class=\"result failed\">{failed} of {} criteria</p>\n",
            comparison.criteria.len()
        ),
    };
    let heading = format!(
        "<header>\n<h1>{}</h1>\n<p class=\"conclusion\">{}</p>\n{failed}<p>A: {}; B: {}</p>\n<p>{}</p>\n\
         </header>\n",
        escaped(&title),
        escaped(&comparison.result()),
        escaped(&a.name),
        escaped(&b.name),
        escaped(&a.plan.join(", "))
    );
    let criteria = comparison.criteria.iter().map(summary::criterion);
    let warnings = comparison.warnings().iter().map(ToString::to_string);
    let chart = comparison.deciding_row().and_then(runs);
    let charts: Vec<Figure> = chart.into_iter().collect();
    let body = [
        heading,
        notes(criteria.chain(warnings)),
        chart::elements(&charts),
        medians(comparison),
        format!("<p>B/A: {}.</p>\n", escaped(&comparison.method())),
    ];
    document(&title, &body.concat(), json)
}

fn medians(comparison: &Comparison) -> String {
    let rows: Vec<Vec<String>> = comparison
        .rows
        .iter()
        .map(|row| {
            let [a, b] = row.sides.map(|side| (row.figure.show)(side.median));
            vec![
                row.figure.name.trim_start().to_owned(),
                a,
                b,
                units::ratio(row.ratio.median),
                units::ratio(row.ratio.least),
                units::ratio(row.ratio.most),
                comparison.difference(row).word().to_owned(),
            ]
        })
        .collect();
    // Without the names, so that the ratio is in sight on a phone.
    let head = ["median", "A", "B", "B/A", "min", "max", "B is"];
    let table = table("Medians and their ratio", &head, &rows);
    format!("<section class=\"numbers\">\n{table}</section>\n")
}

/// Returns the chart of the figure that decides, by run.
fn runs(row: &Row) -> Option<Figure> {
    let lines: Vec<Line> = ["A", "B"]
        .into_iter()
        .zip(&row.values)
        .map(|(name, values)| Line {
            name: name.to_owned(),
            kind: Kind::Line,
            pieces: vec![
                (1..=RUNS_MAX as u32)
                    .map(f64::from)
                    .zip(values.iter().copied())
                    .collect(),
            ],
        })
        .collect();
    let most = row.values.iter().flatten().copied().fold(0.0, f64::max);
    let longest = row
        .values
        .iter()
        .map(Vec::len)
        .max()
        .filter(|runs| *runs > 1)?;
    Some(Figure {
        title: format!("{} by run", row.figure.name.trim_start()),
        note: "Runs of the same number follow each other.".to_owned(),
        chart: Chart {
            x: Axis::until("run", longest.min(RUNS_MAX) as f64, units::per_second),
            y: Axis::linear("", most, row.figure.show),
            lines,
            marks: Vec::new(),
        },
    })
}
