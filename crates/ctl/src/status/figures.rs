//! Formats numbers and texts for a screen: few characters, never rounded up, no control characters.
//! Shared by the status for people and by `top`.
//!
//! It must not know what a number means.

/// Formats a number in at most five characters, three digits of them exact and never rounded up.
pub fn short(number: u64) -> String {
    const UNITS: [char; 6] = ['k', 'M', 'G', 'T', 'P', 'E'];
    if number < 10_000 {
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

/// Formats a duration in at most five characters.
pub fn age(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // Two of the smaller unit are more precise than one of the larger.
    match ms {
        0..SECOND => format!("{ms}ms"),
        SECOND..MINUTE => format!("{}s", ms / SECOND),
        MINUTE..HOUR => format!("{}m", ms / MINUTE),
        HOUR..DAY => format!("{}h", ms / HOUR),
        _ => format!("{}d", (ms / DAY).min(9999)),
    }
}

/// Formats a duration, with at least two significant digits below a minute.
pub fn took(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        _ => age(ms),
    }
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

/// Formats a number per second in at most five characters.
pub fn per_second(rate: f64) -> String {
    // One more digit below ten: three per minute is not zero.
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        short(rate as u64)
    }
}

/// Formats a share from 0 to 1 in at most four characters.
pub fn percent(share: f64) -> String {
    format!("{}%", (share.clamp(0.0, 1.0) * 100.0).round())
}

/// Formats how many workers' time was used, out of `workers`.
pub fn busy(used: f64, workers: usize) -> String {
    let digits = if used < 9.995 { 2 } else { 0 };
    format!("busy {}/{workers}", cut(&format!("{used:.digits$}"), 5))
}

#[cfg(test)]
mod tests {
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
            (0.04, "0.0"),
            (0.26, "0.3"),
            (9.94, "9.9"),
            (9.96, "9"),
        ];
        for (rate, text) in cases {
            assert_eq!(per_second(rate), text);
        }
        assert_eq!(
            (took(1972), took(61_000)),
            ("1.97 s".to_owned(), "1m".to_owned())
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
}
