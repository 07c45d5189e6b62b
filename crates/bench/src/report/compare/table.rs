//! Formats a comparison as text.
//!
//! Invariants: no line is wider than [`COLUMNS`]; the number of lines is bounded. It must not
//! compute a figure.

use std::fmt;

use super::super::COLUMNS;
use super::super::layout::{labelled, sentence};
use super::super::summary::criteria;
use super::{Comparison, Difference, Side, Spread};
use uppercased_ctl::units;

/// Number of warnings shown; the rest are counted.
const WARNINGS_MAX: usize = 10;

/// Number of pairs needed to distinguish a difference of a few percent from the noise of a shared
/// machine.
const PAIRS_ENOUGH: usize = 8;

/// Maximum length of the result, whose names may be long.
const TEXT_MAX: usize = 400;

const NAME: usize = 15;
const FIGURE: usize = units::WIDTH;
const RATIO: usize = 8;

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines() {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

impl Comparison {
    fn lines(&self) -> Vec<String> {
        let [a, b] = &self.sides;
        let mut lines = heading("A", a);
        lines.extend(heading("B", b));
        lines.extend(labelled("plan", &a.plan, ", "));
        lines.push(String::new());
        lines.extend(self.ratios());
        if a.runs.max(b.runs) > 1 {
            lines.push(String::new());
            lines.extend(self.spreads());
        }
        lines.push(String::new());
        lines.extend(sentence("result", &units::cut(&self.result(), TEXT_MAX)));
        lines.extend(criteria(&self.criteria));
        lines.extend(sentence("B/A", &self.method()));
        if !self.missing.is_empty() {
            let missing = format!("not in every run: {}", self.missing.join(", "));
            lines.extend(sentence("left out", &missing));
        }
        for warning in self.warnings.iter().take(WARNINGS_MAX) {
            lines.extend(sentence("warning", &warning.to_string()));
        }
        let hidden = self.warnings.len().saturating_sub(WARNINGS_MAX);
        if hidden > 0 {
            lines.extend(sentence("", &format!("… {hidden} more not shown")));
        }
        lines
    }

    fn ratios(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<NAME$}{:>FIGURE$}{:>FIGURE$}{:>RATIO$}{:>RATIO$}{:>RATIO$}",
            "median", "A", "B", "B/A", "min", "max"
        )];
        for row in &self.rows {
            let [a, b] = row.sides.map(|side| (row.figure.show)(side.median));
            let difference = self.difference(row);
            let [least, most] = match difference {
                // One run per side has no spread; repeating its ratio would suggest one.
                Difference::Unknown if self.paired => [String::new(), String::new()],
                _ => [row.ratio.least, row.ratio.most].map(units::ratio),
            };
            let line = format!(
                "{:<NAME$}{a:>FIGURE$}{b:>FIGURE$}{:>RATIO$}{least:>RATIO$}{most:>RATIO$}  {}",
                row.figure.name,
                units::ratio(row.ratio.median),
                difference.word()
            );
            lines.push(line.trim_end().to_owned());
        }
        lines
    }

    fn spreads(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<NAME$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}",
            "spread", "A min", "A max", "B min", "B max"
        )];
        for row in &self.rows {
            let mut line = format!("{:<NAME$}", row.figure.name);
            for Spread { least, most, .. } in row.sides {
                for bound in [least, most] {
                    line.push_str(&format!("{:>FIGURE$}", (row.figure.show)(bound)));
                }
            }
            lines.push(line);
        }
        lines
    }

    /// Describes how the ratios were computed, and their limits.
    pub(in super::super) fn method(&self) -> String {
        let [a, b] = self.sides.each_ref().map(|side| side.runs);
        match (a, b) {
            (0, _) | (_, 0) => "nothing to compare".to_owned(),
            (1, 1) => format!(
                "one run on each side, so the spread is unknown; alternate A and B {PAIRS_ENOUGH} \
                 times and name all files: compare A*.json -- B*.json"
            ),
            _ if !self.paired => format!(
                "of the medians of {a} and {b} runs, with the widest possible spread; the same \
                 number of alternating runs on both sides is compared pair by pair"
            ),
            (pairs, _) if pairs < PAIRS_ENOUGH => format!(
                "median of {pairs} pairs, in the order of the files; differences of a few percent \
                 need {PAIRS_ENOUGH} pairs or more"
            ),
            (pairs, _) => format!("median of {pairs} pairs, in the order of the files"),
        }
    }
}

impl Difference {
    pub(in super::super) const fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::Unknown => "",
        }
    }
}

fn heading(label: &str, side: &Side) -> Vec<String> {
    let address = if side.name == side.target || side.target.is_empty() {
        String::new()
    } else {
        format!(" at {}", side.target)
    };
    let what = format!(
        "{}{address}, {} by uppercased bench {}",
        side.name,
        units::counted(side.runs as u64, "run"),
        side.program,
    );
    sentence(label, &units::cut(&what, COLUMNS * 2))
}
