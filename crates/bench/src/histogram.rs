//! Latency histograms: HDR histograms of nanoseconds with the same bounds, so that they can be
//! added.
//!
//! Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};

/// Upper bound of the histograms: an hour.
pub const MAX: Duration = Duration::from_secs(3600);
/// Significant decimal digits.
pub const DIGITS: u8 = 3;
/// The quantiles reported for a distribution.
pub const QUANTILES: [f64; 7] = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999];

/// Standard deviations of a 95 % confidence interval.
const DEVIATIONS: f64 = 1.96;

/// Returns an empty histogram.
#[must_use]
pub fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX.as_nanos() as u64, DIGITS)
        .expect("invariant: the bounds are constants, and a test makes one")
}

/// Adds one time; times above [`MAX`] count as [`MAX`].
#[inline]
pub fn note(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Adds all of `other` to `sum`.
pub fn join(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    if !other.is_empty() {
        let joined = sum.add(other);
        debug_assert!(joined.is_ok(), "all have the same bounds");
    }
}

/// Returns the 95 % confidence interval of a quantile, from the order statistics: the number of
/// values below a quantile is binomial.
#[must_use]
pub fn interval(histogram: &Histogram<u64>, quantile: f64) -> (u64, u64) {
    let count = histogram.len() as f64;
    let margin = DEVIATIONS * (count * quantile * (1.0 - quantile)).sqrt();
    let at = |rank: f64| histogram.value_at_quantile((rank / count).clamp(0.0, 1.0));
    let below = count * quantile;
    (
        at((below - margin).floor()),
        at((below + margin).ceil() + 1.0),
    )
}

/// Encodes as text: the V2 serialization in base64; an empty text for an empty histogram.
#[must_use]
pub fn pack(histogram: &Histogram<u64>) -> String {
    if histogram.is_empty() {
        return String::new();
    }
    let mut bytes = Vec::new();
    match V2Serializer::new().serialize(histogram, &mut bytes) {
        Ok(_) => BASE64.encode(bytes),
        // Writing to a vector cannot fail; if it did, an empty histogram would be better than part
        // of one.
        Err(_) => String::new(),
    }
}

/// Decodes the text of [`pack`]; `None` if it is malformed.
#[must_use]
pub fn unpack(text: &str) -> Option<Histogram<u64>> {
    if text.is_empty() {
        return Some(empty());
    }
    let bytes = BASE64.decode(text).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_survives_text_round_trip() {
        let mut histogram = empty();
        assert_eq!(pack(&histogram), "");
        for us in [1, 70, 71, 5_000_000] {
            note(&mut histogram, Duration::from_micros(us));
        }
        let mut sum = unpack(&pack(&histogram)).unwrap();
        assert_eq!(sum, histogram);
        join(&mut sum, &histogram);
        assert_eq!((sum.len(), sum.max()), (8, histogram.max()));
        assert_eq!(unpack("no histogram"), None);
    }

    #[test]
    fn interval_covers_true_quantile() {
        let mut covered = 0;
        for seed in 0..400 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut histogram = empty();
            for _ in 0..2000 {
                // Uniform from 0 to 1 ms: the true quantile is 0.99 ms.
                note(&mut histogram, Duration::from_nanos(rng.u64(0..1_000_000)));
            }
            let (low, high) = interval(&histogram, 0.99);
            assert!(low <= high && high <= histogram.max());
            covered += u32::from(low <= 990_000 && high >= 990_000);
        }
        assert!((370..=396).contains(&covered), "{covered} of 400");
        let mut one = empty();
        note(&mut one, Duration::from_millis(1));
        let (low, high) = interval(&one, 0.99);
        assert!(low <= 1_000_000 && high >= 1_000_000, "{low} {high}");
    }

    #[test]
    fn histogram_clamps_longest_values() {
        let mut histogram = empty();
        note(&mut histogram, Duration::MAX);
        note(&mut histogram, Duration::ZERO);
        assert_eq!(histogram.len(), 2);
    }
}
