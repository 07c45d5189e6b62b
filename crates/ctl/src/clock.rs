//! Time for the pure cores: a [`Tick`] is passed in, never read.
//!
//! Invariant: a `Tick` is a point on `CLOCK_MONOTONIC`, so it means the same in every process of
//! one boot and may be stored in shared memory or sent in a message (`std::time::Instant` may not:
//! its content is private). The shells read the clock once per turn through [`now`]; no core calls
//! it.

use std::ops::Add;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds on `CLOCK_MONOTONIC` (good for 584 years of uptime).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tick(u64);

impl Tick {
    /// The clock's zero, near the boot; tests count from here.
    pub const ZERO: Self = Self(0);
    /// The last point in time: a deadline at it never expires.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the point `ns` nanoseconds after the clock's zero.
    #[must_use]
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Returns the point `ms` milliseconds after the clock's zero.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// Returns the nanoseconds since the clock's zero.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time elapsed since `earlier`; zero if `earlier` is not before this.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Returns the whole milliseconds of a duration.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Tick {
    type Output = Self;

    /// Adds a duration; saturates, so a deadline past the end of the clock never expires.
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Reads `CLOCK_MONOTONIC` (a vDSO read, no system call, on the usual clock sources).
///
/// For the shells only: a core receives its `Tick`.
#[must_use]
pub fn now() -> Tick {
    // The clock exists on every Linux. If it fails, a constant is the only fallback
    // that keeps every deadline from firing early.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Tick::ZERO, |at| {
        let seconds = u64::try_from(at.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(at.tv_nsec()).unwrap_or(0);
        Tick(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let late = Tick::from_nanos(u64::MAX - 1);
        assert_eq!(late + Duration::from_secs(5), Tick::from_nanos(u64::MAX));
        assert_eq!(Tick::ZERO.since(late), Duration::ZERO);
        assert_eq!(late.since(Tick::ZERO), Duration::from_nanos(u64::MAX - 1));
    }

    #[test]
    fn clock_is_monotonic() {
        let first = now();
        assert!(first > Tick::ZERO);
        assert!(now() >= first);
    }
}
