//! The delay before a failed slot is retried: none at first, then growing up to a cap.
//!
//! Pure: the random numbers come from a generator that the caller owns and may save. Invariant: the
//! delay is between half its ceiling and its ceiling, and the ceiling never exceeds the configured
//! cap. Jitter keeps slots that failed together from restarting together.

use std::time::Duration;

use fastrand::Rng;

/// Minimum delay, whatever the configuration: a spawn that fails at once, retried at once, would
/// keep the supervisor in one turn of its loop forever.
pub const BACKOFF_FLOOR: Duration = Duration::from_millis(1);

/// The time of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    AtOnce,
    After(Duration),
}

/// Returns when to retry after a failure that follows `earlier` failures in a row.
///
/// The first retry is immediate: one crash does not show a trend, and clients wait in the queue.
pub(super) fn retry(earlier: u32, initial: Duration, max: Duration, rng: &mut Rng) -> Retry {
    match earlier.checked_sub(1) {
        None => Retry::AtOnce,
        Some(doublings) => {
            let ceiling = ceiling_ns(doublings, initial, max);
            let delay = Duration::from_nanos(ceiling - rng.u64(0..=ceiling / 2));
            Retry::After(delay.max(BACKOFF_FLOOR))
        }
    }
}

/// Returns `initial`, doubled `doublings` times, at most `max`, in nanoseconds. Saturates.
fn ceiling_ns(doublings: u32, initial: Duration, max: Duration) -> u64 {
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
    nanos(initial).saturating_mul(factor).min(nanos(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(10);

    #[test]
    fn first_failure_has_no_delay() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(retry(0, INITIAL, MAX, &mut rng), Retry::AtOnce);
    }

    #[test]
    fn ceiling_doubles_up_to_cap() {
        let ms = |doublings| ceiling_ns(doublings, INITIAL, MAX) / 1_000_000;
        assert_eq!(
            [
                ms(0),
                ms(1),
                ms(2),
                ms(6),
                ms(7),
                ms(63),
                ms(64),
                ms(u32::MAX)
            ],
            [100, 200, 400, 6_400, 10_000, 10_000, 10_000, 10_000],
        );
        // The cap applies to a longer initial delay, too.
        assert_eq!(ceiling_ns(0, MAX, INITIAL), 100_000_000);
    }

    #[test]
    fn delay_lies_in_upper_half_of_ceiling() {
        let mut rng = Rng::with_seed(7);
        let mut shortest = MAX;
        let mut longest = Duration::ZERO;
        for _ in 0..1_000 {
            let Retry::After(delay) = retry(3, INITIAL, MAX, &mut rng) else {
                panic!("a third failure must wait");
            };
            shortest = shortest.min(delay);
            longest = longest.max(delay);
        }
        assert!(shortest >= 2 * INITIAL && longest <= 4 * INITIAL);
        // The delays vary.
        assert!(longest - shortest > INITIAL);
    }

    #[test]
    fn zero_configuration_still_delays() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(
            retry(9, Duration::ZERO, Duration::ZERO, &mut rng),
            Retry::After(BACKOFF_FLOOR),
        );
        assert_eq!(
            retry(u32::MAX, Duration::MAX, Duration::ZERO, &mut rng),
            Retry::After(BACKOFF_FLOOR),
        );
    }
}
