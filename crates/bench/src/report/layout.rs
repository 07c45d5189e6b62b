//! Lays out text reports as labelled statements of several lines.
//!
//! Invariants: no line is wider than [`COLUMNS`] or contains a control character.

use super::COLUMNS;
use uppercased_ctl::units::{cut, plain};

/// Width of the labels at the left of a text report.
pub(super) const LABEL_COLUMNS: usize = 13;

/// Returns a labelled statement: its parts are joined by the separator, and lines are broken
/// between parts. A part too long for a line is broken between words; a word too long is cut.
pub(super) fn labelled(label: &str, parts: &[String], separator: &str) -> Vec<String> {
    let room = COLUMNS - LABEL_COLUMNS;
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for (position, part) in parts.iter().enumerate() {
        let last = position + 1 == parts.len();
        let part = format!("{}{}", plain(part), if last { "" } else { separator });
        let length = |text: &str| text.trim_end().chars().count();
        if line.chars().count() + length(&part) <= room {
            line.push_str(&part);
            continue;
        }
        if length(&part) <= room {
            lines.push(std::mem::replace(&mut line, part));
            continue;
        }
        for word in part.split_whitespace() {
            if !line.is_empty() && line.chars().count() + word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            line.push_str(&cut(word, room));
            line.push(' ');
        }
    }
    lines.push(line);
    let labels = std::iter::once(label).chain(std::iter::repeat(""));
    lines
        .iter()
        .zip(labels)
        .map(|(line, label)| {
            format!("{label:<LABEL_COLUMNS$}{line}")
                .trim_end()
                .to_owned()
        })
        .collect()
}

/// Returns a labelled sentence.
pub(super) fn sentence(label: &str, text: &str) -> Vec<String> {
    labelled(label, &[text.to_owned()], "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statement_breaks_between_its_parts() {
        let parts: Vec<String> = (1..=9).map(|n| format!("worker {n}: 10 %")).collect();
        assert_eq!(
            labelled("balance", &parts, ", "),
            [
                "balance      worker 1: 10 %, worker 2: 10 %, worker 3: 10 %, worker 4: 10 %,",
                "             worker 5: 10 %, worker 6: 10 %, worker 7: 10 %, worker 8: 10 %,",
                "             worker 9: 10 %",
            ]
        );
        assert_eq!(sentence("why", ""), ["why"]);
        assert_eq!(cut("a\nb\u{7f}cdef", 5), "a b …");
    }

    proptest! {
        #[test]
        fn statement_never_exceeds_width(parts in prop::collection::vec(".{0,120}", 0..6)) {
            for line in labelled("label", &parts, "; ") {
                prop_assert!(line.chars().count() <= COLUMNS, "{line}");
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
