//! Schedules the starts and restarts of the admin process.
//!
//! Pure. Invariants: there is at most one process; after a crash the next one starts at once or
//! with the backoff of a failing slot; after [`Life::end`] none is started.

use std::time::Duration;

use fastrand::Rng;

use crate::config::Config;
use crate::supervisor::backoff::{Retry, retry};
use uppercased_ctl::clock::Tick;

/// The state of the admin endpoint across all its processes.
#[derive(Debug)]
pub(crate) struct Life {
    stage: Stage,
    /// Failures in a row.
    failures: u32,
    /// Total crashes.
    crashes: u64,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is no process; the next one starts at this time.
    Due(Tick),
    /// A process runs.
    Runs { since: Tick },
    /// No process is started again.
    Ended,
}

impl Life {
    /// Returns a state whose next process starts at once; `crashes` counts those under an earlier
    /// program.
    pub(crate) fn new(now: Tick, seed: u64, crashes: u64) -> Self {
        Self {
            stage: Stage::Due(now),
            failures: 0,
            crashes,
            rng: Rng::with_seed(seed),
        }
    }

    /// Returns when the next process starts; `None` while there is one, and after [`Life::end`].
    pub(crate) const fn due(&self) -> Option<Tick> {
        match self.stage {
            Stage::Due(at) => Some(at),
            Stage::Runs { .. } | Stage::Ended => None,
        }
    }

    /// Records the start of a process.
    pub(crate) fn started(&mut self, now: Tick) {
        if matches!(self.stage, Stage::Due(_)) {
            self.stage = Stage::Runs { since: now };
        }
    }

    /// Records the crash of a process, or a failed start. Returns the delay of the next start.
    pub(crate) fn died(&mut self, now: Tick, config: &Config) -> Duration {
        let served = match self.stage {
            Stage::Runs { since } => now.since(since),
            Stage::Due(_) => Duration::ZERO,
            Stage::Ended => return Duration::ZERO,
        };
        if served >= config.backoff_reset {
            self.failures = 0;
        }
        self.crashes = self.crashes.saturating_add(1);
        let delay = match retry(
            self.failures,
            config.backoff_initial,
            config.backoff_max,
            &mut self.rng,
        ) {
            Retry::AtOnce => Duration::ZERO,
            Retry::After(delay) => delay,
        };
        self.failures = self.failures.saturating_add(1);
        self.stage = Stage::Due(now + delay);
        delay
    }

    /// Records an intended exit; the next process may start at once.
    pub(crate) fn paused(&mut self, now: Tick) {
        if self.stage != Stage::Ended {
            self.stage = Stage::Due(now);
        }
    }

    /// Prevents further starts.
    pub(crate) fn end(&mut self) {
        self.stage = Stage::Ended;
    }

    /// Returns the number of unexpected exits.
    pub(crate) const fn crashes(&self) -> u64 {
        self.crashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            backoff_reset: Duration::from_secs(60),
            ..Config::default()
        }
    }

    fn at(ms: u64) -> Tick {
        Tick::from_millis(ms)
    }

    #[test]
    fn first_crash_restarts_immediately_then_backs_off() {
        let mut life = Life::new(at(5), 1, 0);
        assert_eq!(life.due(), Some(at(5)));
        life.started(at(6));
        assert_eq!(life.due(), None);
        assert_eq!(life.died(at(10), &config()), Duration::ZERO);
        assert_eq!(life.due(), Some(at(10)));
        let mut now = at(10);
        for failure in 1..20 {
            // A failed start counts like an immediate crash.
            if failure % 2 == 0 {
                life.started(now);
            }
            let delay = life.died(now, &config());
            let ceiling = Duration::from_millis((100 << (failure - 1).min(10)).min(1000));
            assert!(
                delay >= ceiling / 2 && delay <= ceiling,
                "{failure}: {delay:?}"
            );
            now = now + delay;
            assert_eq!(life.due(), Some(now));
        }
        assert_eq!(life.crashes(), 20);
        life.started(now);
        let delay = life.died(now + config().backoff_reset, &config());
        assert_eq!(delay, Duration::ZERO, "good service was forgotten");
    }

    #[test]
    fn pause_is_no_crash_and_end_final() {
        let mut life = Life::new(at(0), 1, 0);
        life.started(at(0));
        life.paused(at(7));
        assert_eq!((life.due(), life.crashes()), (Some(at(7)), 0));
        life.end();
        life.started(at(8));
        life.paused(at(8));
        life.died(at(9), &config());
        assert_eq!((life.due(), life.crashes()), (None, 0));
    }
}
