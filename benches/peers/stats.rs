//! Statistics of the bench: medians with quartiles, ratios of runs adjacent in time, and detection
//! of disturbed runs.
//!
//! Pure functions, tested by `tests/cli/bench_stats.rs`, because a bench has no tests of its own.

use serde::{Deserialize, Serialize};

/// A median with its quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// Returns the spread of all values that are not NaN; `None` if there are none.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    // Linear interpolation, as in spreadsheets and R.
    let at = |share: f64| {
        let place = share * last as f64;
        let below = values[place.floor() as usize];
        below + (values[place.ceil() as usize] - below) * place.fract()
    };
    Some(Spread {
        low: at(0.25),
        median: at(0.5),
        high: at(0.75),
    })
}

/// Returns the mean of the undisturbed reference runs before and after a run, which cancels linear
/// drift.
pub(crate) fn reference(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    match (before, after) {
        (Some(before), Some(after)) => Some(f64::midpoint(before, after)),
        (one, other) => one.or(other),
    }
}

/// Use of the machine during one run, in nanoseconds of CPU time unless stated otherwise.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Environment {
    /// Wall-clock time of the run.
    pub(crate) wall_ns: u64,
    /// CPUs of the machine.
    pub(crate) cpus: u64,
    /// Used by all processes and by the kernel itself.
    pub(crate) busy_ns: u64,
    /// Used by the run's own processes.
    pub(crate) own_ns: u64,
    /// Stolen by the hypervisor.
    pub(crate) stolen_ns: u64,
    /// Time that the server, if it has one thread and its own CPU, was runnable but not running.
    pub(crate) kept_waiting_ns: u64,
}

/// Maximum share of all CPUs that other processes may use during a run. The kernel samples it 250
/// times per second, so smaller shares are indistinguishable from noise.
const FOREIGN_MAX: f64 = 0.05;
/// Maximum share of all CPUs that the hypervisor may steal.
const STOLEN_MAX: f64 = 0.01;
/// Maximum share of the run that a server may wait for its CPU.
const KEPT_WAITING_MAX: f64 = 0.03;

impl Environment {
    /// Returns a description of the disturbance; `None` if the run is valid.
    pub(crate) fn disturbance(&self) -> Option<String> {
        let capacity = (self.wall_ns * self.cpus).max(1) as f64;
        let foreign = self.busy_ns.saturating_sub(self.own_ns) as f64 / capacity;
        let stolen = self.stolen_ns as f64 / capacity;
        let waited = self.kept_waiting_ns as f64 / self.wall_ns.max(1) as f64;
        let causes = [
            (foreign, FOREIGN_MAX, "of the machine used by others"),
            (stolen, STOLEN_MAX, "of the machine stolen"),
            (waited, KEPT_WAITING_MAX, "of the time waiting for its CPU"),
        ];
        let worst = causes.into_iter().find(|(share, max, _)| share > max);
        worst.map(|(share, _, what)| format!("{:.0} % {what}", share * 100.0))
    }
}
