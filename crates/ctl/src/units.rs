//! Formats numbers and texts for the screens of the status and `top`, and for reports of `bench`.
//!
//! Numbers have three significant digits. Those for a column have at most five characters and no
//! space before the unit: [`short`], [`per_second`], [`age`], [`percent`]. Those for a sentence
//! have a space: [`time`], [`took`], [`memory`], [`byte_rate`], [`share`].
//!
//! Invariants: a text has at most [`WIDTH`] characters for any number; infinity and NaN are shown
//! as [`NONE`]. It must not know the meaning of a number.

/// Maximum length of a number with its unit.
pub const WIDTH: usize = 11;

/// Placeholder for a missing number.
pub const NONE: &str = "-";

/// The largest number written out in full.
const EXACT_MAX: u64 = 9999;

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

/// Formats a number in at most five characters: exact while it is small, never rounded up.
pub fn short(number: u64) -> String {
    const UNITS: [char; 6] = ['k', 'M', 'G', 'T', 'P', 'E'];
    if number <= EXACT_MAX {
        return number.to_string();
    }
    let mut scale = 1000;
    let mut units = UNITS.iter().peekable();
    let mut unit = units.next().unwrap_or(&' ');
    while number / scale >= 1000
        && let Some(next) = units.next()
    {
        scale *= 1000;
        unit = next;
    }
    let (whole, thousandths) = (number / scale, number % scale / (scale / 1000));
    match whole {
        0..10 => format!("{whole}.{:02}{unit}", thousandths / 10),
        10..100 => format!("{whole}.{}{unit}", thousandths / 100),
        _ => format!("{whole}{unit}"),
    }
}

/// Formats a rate, or another number that may have a fraction, in at most five characters.
pub fn per_second(rate: f64) -> String {
    match rate {
        rate if !rate.is_finite() => NONE.to_owned(),
        0.0..99.95 => digits(rate),
        rate => short(rate.round() as u64),
    }
}

/// Formats a duration in at most five characters.
pub fn age(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // Two digits of the smaller unit are more precise than one of the larger.
    match ms {
        0..SECOND => format!("{ms}ms"),
        SECOND..MINUTE => format!("{}s", ms / SECOND),
        MINUTE..HOUR => format!("{}m", ms / MINUTE),
        HOUR..DAY => format!("{}h", ms / HOUR),
        _ => format!("{}d", (ms / DAY).min(9999)),
    }
}

/// Formats a share from 0 to 1 in at most four characters.
pub fn percent(share: f64) -> String {
    format!("{}%", (share.clamp(0.0, 1.0) * 100.0).round())
}

/// Formats busy time as a number of workers, out of `workers`.
pub fn busy(used: f64, workers: usize) -> String {
    let digits = if used < 9.995 { 2 } else { 0 };
    format!("busy {}/{workers}", cut(&format!("{used:.digits$}"), 5))
}

/// Formats a duration in nanoseconds.
pub fn time(ns: f64) -> String {
    if ns == 0.0 {
        return "0".to_owned();
    }
    scaled(ns, &TIMES)
}

/// Formats a duration in whole nanoseconds.
pub fn time_ns(ns: u64) -> String {
    time(ns as f64)
}

/// Formats a duration in milliseconds.
pub fn time_ms(ms: f64) -> String {
    time(ms * 1e6)
}

/// Formats a duration in whole milliseconds.
pub fn took(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => time_ms(ms as f64),
    }
}

/// Formats bytes per second.
pub fn byte_rate(per_s: f64) -> String {
    scaled(per_s, &RATES)
}

/// Formats bytes of memory.
pub fn memory(bytes: f64) -> String {
    scaled(bytes, &MEMORY)
}

/// Formats a share of a whole: 1 is all of it.
pub fn share(part: f64) -> String {
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
pub fn ratio(value: f64) -> String {
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
pub fn quantile(share: f64) -> String {
    format!("p{}", percentage(share))
}

/// Formats a share in percent, exact to a ten-thousandth, without trailing zeros and sign.
pub fn percentage(share: f64) -> String {
    let text = format!("{:.4}", share.clamp(0.0, 1.0) * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats `one thing`, `2 things`.
pub fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {thing}{ending}", short(number))
}

/// Returns `text` in at most `columns` characters, the last of them `…` if it was cut.
pub fn cut(text: &str, columns: usize) -> String {
    let mut letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = letters.by_ref().take(columns).collect();
    if letters.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// Returns `text` on one line, without control characters.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
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
    // A value that would be rounded up to the next unit is shown in that unit: 1.00 ms, not 1000
    // µs.
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
    fn numbers_have_five_characters_at_most() {
        for (number, text) in [
            (0, "0"),
            (9999, "9999"),
            (10_000, "10.0k"),
            (99_999, "99.9k"),
            (999_999, "999k"),
            (1_000_000, "1.00M"),
            (1_000_000_000_000, "1.00T"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(number), text);
        }
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_599_999, "59m"),
            (86_399_999, "23h"),
            (86_400_000, "1d"),
            (u64::MAX, "9999d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn rates_keep_a_digit_where_they_are_small() {
        let cases = [
            (0.0, "0"),
            (0.04, "0.04"),
            (9.96, "9.96"),
            (99.94, "99.9"),
            (1234.5, "1235"),
            (f64::NAN, "-"),
        ];
        for (rate, text) in cases {
            assert_eq!(per_second(rate), text);
        }
        assert_eq!(
            (took(1972), took(61_000)),
            ("1.97 s".to_owned(), "61.0 s".to_owned())
        );
        assert_eq!(
            (busy(0.456, 2), busy(63.97, 64)),
            ("busy 0.46/2".to_owned(), "busy 64/64".to_owned())
        );
        assert_eq!(per_second(12_345.6), "12.3k");
        assert_eq!(per_second(f64::MAX), "18.4E");
        assert_eq!(
            (percent(0.456), percent(2.0)),
            ("46%".to_owned(), "100%".to_owned())
        );
    }

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
        assert_eq!(memory(43.0), "43.0 B");
        assert_eq!(memory(10.0 * 1024.0 * 1024.0), "10.0 MiB");
        assert_eq!(byte_rate(1.5e9), "1.50 GB/s");
        assert_eq!((share(0.614), share(1e9)), ("61 %".into(), "1e11 %".into()));
        assert_eq!((ratio(0.987), ratio(12.34)), ("0.99".into(), "12.3".into()));
        assert_eq!(quantile(0.5), "p50");
        assert_eq!(quantile(0.9999), "p99.99");
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(0, "message"), "0 messages");
    }

    proptest! {
        #[test]
        fn number_never_exceeds_width(value: f64, whole: u64) {
            for text in [
                time(value), took(whole), byte_rate(value.abs()), memory(value.abs()),
                share(value.abs()), ratio(value.abs()), quantile(value.abs()),
            ] {
                prop_assert!(text.chars().count() <= WIDTH, "{text}");
            }
            for text in [short(whole), per_second(value.abs()), age(whole), percent(value)] {
                prop_assert!(text.chars().count() <= 5, "{text}");
            }
        }
    }
}
