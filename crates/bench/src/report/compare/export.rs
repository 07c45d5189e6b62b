//! Formats a comparison for other programs: JSON and Markdown.
//!
//! Invariant: numbers in JSON are exact. It must not compute a figure.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::export::{cell, table};
use super::super::summary::criterion;
use super::{Better, Comparison, Run, Spread};
use crate::outcome::{Checked, Outcome};
use uppercased_ctl::units;

/// Version of the meaning of fields.
const FORMAT: u32 = 1;

/// A comparison as JSON.
#[derive(Serialize)]
struct Json<'a> {
    comparison_format: u32,
    /// Version of this program.
    program: &'a str,
    a: Side<'a>,
    b: Side<'a>,
    /// Whether the ratios are those of pairs.
    is_paired: bool,
    /// `faster`, `slower`, `not distinguishable` or `unknown`: B, by the deciding figure.
    result: &'a str,
    /// The result as a sentence.
    sentence: String,
    figures: Vec<Figure<'a>>,
    /// The conditions of `--fail-if` with their results.
    criteria: &'a [Checked],
    /// Figures that only some runs have.
    missing: &'a [&'static str],
    /// Reasons against the comparison, a sentence each.
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Side<'a> {
    name: &'a str,
    target: &'a str,
    runs: Vec<&'a Outcome>,
}

#[derive(Serialize)]
struct Figure<'a> {
    name: &'a str,
    better: Better,
    a: Spread,
    b: Spread,
    ratio: Spread,
    result: &'a str,
}

impl Comparison {
    /// Returns the comparison as JSON, with every run.
    ///
    /// # Errors
    /// A number is not finite.
    pub fn json(&self, a: &[Run], b: &[Run]) -> serde_json::Result<String> {
        let [of_a, of_b] = &self.sides;
        let figures = self.rows.iter().map(|row| {
            let [a, b] = row.sides;
            Figure {
                name: row.figure.name.trim_start(),
                better: row.figure.better,
                a,
                b,
                ratio: row.ratio,
                result: self.difference(row).word(),
            }
        });
        let json = Json {
            comparison_format: FORMAT,
            program: env!("CARGO_PKG_VERSION"),
            a: Side {
                name: &of_a.name,
                target: &of_a.target,
                runs: outcomes(a),
            },
            b: Side {
                name: &of_b.name,
                target: &of_b.target,
                runs: outcomes(b),
            },
            is_paired: self.paired,
            result: self.conclusion().word(),
            sentence: self.result(),
            figures: figures.collect(),
            criteria: &self.criteria,
            missing: &self.missing,
            warnings: self.warnings.iter().map(ToString::to_string).collect(),
        };
        Ok(serde_json::to_string(&json)? + "\n")
    }

    /// Returns the comparison as a Markdown table, with its result.
    #[must_use]
    pub fn markdown(&self) -> String {
        let [a, b] = self.sides.each_ref().map(|side| cell(&side.name));
        let head = [
            "median",
            &format!("A: {a}"),
            &format!("B: {b}"),
            "B/A",
            "min",
            "max",
            "B is",
        ]
        .map(str::to_owned);
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let [a, b] = row.sides.map(|side| (row.figure.show)(side.median));
                let Spread {
                    median,
                    least,
                    most,
                } = row.ratio;
                let [median, least, most] = [median, least, most].map(units::ratio);
                let result = self.difference(row).word().to_owned();
                vec![
                    row.figure.name.trim_start().to_owned(),
                    a,
                    b,
                    median,
                    least,
                    most,
                    result,
                ]
            })
            .collect();
        let mut text = format!("{}\n\n{}", cell(&self.result()), table(&head, &rows));
        let criteria = self.criteria.iter().map(criterion);
        for note in criteria.chain(self.warnings.iter().map(ToString::to_string)) {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "\n- {}", cell(&note));
        }
        text.trim_end().to_owned() + "\n"
    }
}

fn outcomes(runs: &[Run]) -> Vec<&Outcome> {
    runs.iter().map(|run| &run.outcome).collect()
}
