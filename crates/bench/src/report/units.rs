//! Formats numbers for people: three significant digits, and a unit chosen by magnitude.
//!
//! Invariants: a text is at most [`WIDTH`] characters long, whatever the number; infinity and NaN
//! are shown as [`NONE`]. It must not know what the numbers mean.

use super::COLUMNS;

/// Maximum length of a number with its unit.
pub(super) const WIDTH: usize = 11;

/// Width of the labels at the left of a text report.
pub(super) const LABEL_COLUMNS: usize = 13;

/// Placeholder for a missing number.
pub(super) const NONE: &str = "-";

/// A unit and its factor to the next one.
type Step = (&'static str, f64);

const TIMES: [Step; 6] = [
    (" ns", 1e3),
    (" µs", 1e3),
    (" ms", 1e3),
    (" s", 3600.0),
    (" h", 24.0),
    (" d", f64::INFINITY),
];
const COUNTS: [Step; 6] = [
    ("", 1e3),
    ("k", 1e3),
    ("M", 1e3),
    ("G", 1e3),
    ("T", 1e3),
    ("P", f64::INFINITY),
];
const RATES: [Step; 6] = [
    (" B/s", 1e3),
    (" kB/s", 1e3),
    (" MB/s", 1e3),
    (" GB/s", 1e3),
    (" TB/s", 1e3),
    (" PB/s", f64::INFINITY),
];
const MEMORY: [Step; 6] = [
    (" B", 1024.0),
    (" KiB", 1024.0),
    (" MiB", 1024.0),
    (" GiB", 1024.0),
    (" TiB", 1024.0),
    (" PiB", f64::INFINITY),
];

/// The largest number written out in full.
const EXACT_MAX: u64 = 9999;

/// Formats a duration in nanoseconds.
pub(super) fn time(ns: f64) -> String {
    if ns == 0.0 {
        return "0".to_owned();
    }
    scaled(ns, &TIMES)
}

/// Formats a duration in whole nanoseconds.
pub(super) fn time_ns(ns: u64) -> String {
    time(ns as f64)
}

/// Formats a duration in milliseconds.
pub(super) fn time_ms(ms: f64) -> String {
    time(ms * 1e6)
}

/// Formats a count, exact while it is small.
pub(super) fn count(number: u64) -> String {
    if number <= EXACT_MAX {
        return number.to_string();
    }
    scaled(number as f64, &COUNTS)
}

/// Formats a number that need not be an integer.
pub(super) fn number(value: f64) -> String {
    scaled(value, &COUNTS)
}

/// Formats bytes per second.
pub(super) fn byte_rate(per_s: f64) -> String {
    scaled(per_s, &RATES)
}

/// Formats bytes of memory.
pub(super) fn memory(bytes: f64) -> String {
    scaled(bytes, &MEMORY)
}

/// Formats a share of a whole: 1 is all of it.
pub(super) fn share(part: f64) -> String {
    let percent = part * 100.0;
    if !percent.is_finite() {
        return NONE.to_owned();
    }
    if percent.abs() >= 1e6 {
        return format!("{percent:.0e} %");
    }
    format!("{percent:.0} %")
}

/// Formats the quotient of two quantities of one unit.
pub(super) fn ratio(value: f64) -> String {
    match value {
        value if !value.is_finite() => NONE.to_owned(),
        value if value >= 1e6 => format!("{value:.0e}"),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 || value == 0.0 => format!("{value:.2}"),
        value if value >= 0.001 => format!("{value:.3}"),
        value => format!("{value:.0e}"),
    }
}

/// Formats a quantile by its usual name: `p99.9`.
pub(super) fn quantile(share: f64) -> String {
    format!("p{}", percent(share))
}

/// Formats a share in percent, exact to a ten-thousandth, without trailing digits.
pub(super) fn percent(share: f64) -> String {
    let text = format!("{:.4}", share.clamp(0.0, 1.0) * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Shortens a formatted number for an axis: without redundant zeros.
pub(super) fn tick(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    if !number.contains('.') {
        return text.to_owned();
    }
    let number = number.trim_end_matches('0').trim_end_matches('.');
    format!("{number}{unit}")
}

/// Formats `one thing`, `2 things`.
pub(super) fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {thing}{ending}", count(number))
}

/// Returns untrusted text on one line.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Returns untrusted text in at most `columns` characters, the last of them `…` if it was cut.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let text = plain(text);
    if text.chars().count() <= columns {
        return text;
    }
    let mut shown: String = text.chars().take(columns.saturating_sub(1)).collect();
    shown.push('…');
    shown
}

/// Returns a labelled statement: its parts joined by the separator, with lines broken between
/// parts; a part too long for a line is broken between words, a word too long is cut.
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

/// Formats `value` in the unit that leaves at least one digit before the point.
fn scaled(value: f64, units: &[Step]) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    let mut value = value;
    let mut steps = units.iter();
    let Some(mut step) = steps.next() else {
        return NONE.to_owned();
    };
    // A value that would be rounded up to the next unit is shown in it: 1.00 ms, not 1000 µs.
    while value.abs() >= step.1 - 0.5 {
        value /= step.1;
        match steps.next() {
            Some(next) => step = next,
            None => break,
        }
    }
    format!("{}{}", digits(value), step.0)
}

/// Formats three significant digits; more only before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        size if size < 1e6 => format!("{value:.0}"),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_three_digits_and_fitting_unit() {
        for (ns, text) in [
            (0.0, "0"),
            (0.25, "0.25 ns"),
            (999.4, "999 ns"),
            (999.5, "1.00 µs"),
            (12_340.0, "12.3 µs"),
            (999_600.0, "1.00 ms"),
            (1e9, "1.00 s"),
            (60e9, "60.0 s"),
            (7_200e9, "2.00 h"),
            (u64::MAX as f64, "213504 d"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(time(ns), text);
        }
        for (things, text) in [
            (0, "0"),
            (9999, "9999"),
            (10_000, "10.0k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (u64::MAX, "18447P"),
        ] {
            assert_eq!(count(things), text);
        }
        assert_eq!(memory(43.0), "43.0 B");
        assert_eq!(memory(10.0 * 1024.0 * 1024.0), "10.0 MiB");
        assert_eq!(byte_rate(1.5e9), "1.50 GB/s");
        assert_eq!((share(0.614), share(1e9)), ("61 %".into(), "1e11 %".into()));
        assert_eq!((ratio(0.987), ratio(12.34)), ("0.99".into(), "12.3".into()));
        let ticks = ["50.0k", "2.50 ms", "10.0", "100", "0", "-"].map(tick);
        assert_eq!(ticks, ["50k", "2.5 ms", "10", "100", "0", "-"]);
        assert_eq!(quantile(0.5), "p50");
        assert_eq!(quantile(0.9999), "p99.99");
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(0, "message"), "0 messages");
    }

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
        fn text_never_exceeds_width(
            value: f64, whole: u64, parts in prop::collection::vec(".{0,120}", 0..6),
        ) {
            for text in [
                time(value), time_ns(whole), time_ms(value.abs()), count(whole), number(value),
                byte_rate(value.abs()), memory(value.abs()), share(value.abs()),
                ratio(value.abs()), quantile(value.abs()),
            ] {
                prop_assert!(text.chars().count() <= WIDTH, "{text}");
            }
            for line in labelled("label", &parts, "; ") {
                prop_assert!(line.chars().count() <= COLUMNS, "{line}");
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
