//! The axes of a chart: their scales, ranges and names.
//!
//! Invariants: a place is a number from 0 to 1 for any value; a tick is inside the range or is not
//! shown. It must not draw.

use super::ticks;

/// A formatter for a value.
pub(super) type Show = fn(f64) -> String;

/// An axis.
#[derive(Debug)]
pub(super) struct Axis {
    /// The meaning of its values; may be empty.
    pub(super) name: String,
    /// Values with their names.
    pub(super) ticks: Vec<(f64, String)>,
    scale: Scale,
    from: f64,
    to: f64,
    show: Show,
}

/// How a value becomes a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
    /// Equal steps for 90 %, 99 %, 99.9 %, so that the tail has the most room.
    Nines,
}

impl Axis {
    /// Returns an axis from 0 to the first round value that is not below `most`.
    pub(super) fn linear(name: &str, most: f64, show: Show) -> Self {
        let round = ticks::linear(most);
        let end = round.last().copied().unwrap_or(1.0);
        Self::new(name, Scale::Linear, (0.0, end), &round, show)
    }

    /// Returns an axis from 0 to `end`.
    pub(super) fn until(name: &str, end: f64, show: Show) -> Self {
        let end = if end > 0.0 { end } else { 1.0 };
        Self::new(name, Scale::Linear, (0.0, end), &ticks::linear(end), show)
    }

    /// Returns a logarithmic axis for values from `least` to `most`, both positive.
    pub(super) fn logarithmic(name: &str, least: f64, most: f64, show: Show) -> Self {
        let round = ticks::logarithmic(least, most);
        let first = round.first().copied().unwrap_or(1.0).min(least);
        let last = round.last().copied().unwrap_or(10.0).max(most);
        Self::new(name, Scale::Logarithmic, (first, last), &round, show)
    }

    /// Returns an axis for quantiles from 0 to `end`, which is below 1.
    pub(super) fn quantiles(name: &str, end: f64, show: Show) -> Self {
        let nines = (0..=9).map(|nines| 1.0 - 10f64.powi(-nines));
        let round: Vec<f64> = std::iter::once(0.5).chain(nines).collect();
        Self::new(name, Scale::Nines, (0.0, end), &round, show)
    }

    fn new(name: &str, scale: Scale, range: (f64, f64), round: &[f64], show: Show) -> Self {
        let mut round = round.to_vec();
        round.sort_by(f64::total_cmp);
        let ticks = round.into_iter().map(|at| (at, short_label(&show(at))));
        Self {
            name: name.to_owned(),
            ticks: ticks.collect(),
            scale,
            from: scale.distance(range.0),
            to: scale.distance(range.1),
            show,
        }
    }

    /// Returns the place of a value: 0 at the beginning of the axis, 1 at its end. A value outside
    /// is placed at the nearer end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = (self.scale.distance(value) - self.from) / (self.to - self.from);
        if place.is_nan() {
            return 0.0;
        }
        place.clamp(0.0, 1.0)
    }

    /// Returns the ticks inside the range.
    pub(super) fn inner_ticks(&self) -> impl Iterator<Item = &(f64, String)> {
        // Tolerance: rounding must not hide the tick at the end.
        let room = (self.to - self.from).abs() * 1e-9;
        let inside = self.from - room..=self.to + room;
        let ticks = self.ticks.iter();
        ticks.filter(move |(value, _)| inside.contains(&self.scale.distance(*value)))
    }

    /// Formats a value.
    pub(super) fn label(&self, value: f64) -> String {
        short_label(&(self.show)(value))
    }
}

impl Scale {
    fn distance(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.log10(),
            Self::Nines => -(1.0 - value).log10(),
        }
    }
}

/// Removes redundant zeros from a number.
fn short_label(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    if !number.contains('.') {
        return text.to_owned();
    }
    let number = number.trim_end_matches('0').trim_end_matches('.');
    format!("{number}{unit}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_have_no_redundant_zeros() {
        for (long, short) in [
            ("1.00 ms", "1 ms"),
            ("1.50k", "1.5k"),
            ("100 µs", "100 µs"),
            ("-", "-"),
        ] {
            assert_eq!(short_label(long), short);
        }
    }

    #[test]
    fn quantiles_are_equally_far_apart() {
        let axis = Axis::quantiles("", 0.9999, |share| share.to_string());
        let places = [0.0, 0.9, 0.99, 0.999, 0.9999].map(|share| axis.place(share));
        for (place, expected) in places.into_iter().zip([0.0, 0.25, 0.5, 0.75, 1.0]) {
            assert!((place - expected).abs() < 1e-9, "{place}");
        }
        assert_eq!(axis.inner_ticks().count(), 6);
    }

    proptest! {
        #[test]
        fn place_is_inside_for_any_value(value: f64, least: f64, most: f64) {
            for axis in [
                Axis::linear("", most, |_| String::new()),
                Axis::until("", most, |_| String::new()),
                Axis::logarithmic("", least, most, |_| String::new()),
                Axis::quantiles("", most, |_| String::new()),
            ] {
                prop_assert!((0.0..=1.0).contains(&axis.place(value)));
            }
        }
    }
}
