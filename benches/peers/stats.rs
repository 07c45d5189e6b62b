//! Statistics of the bench: latency histograms, medians with quartiles, ratios of runs adjacent in
//! time, and detection of disturbed runs.
//!
//! Pure functions, tested by `tests/cli/bench_stats.rs`, because a bench has no tests of its own.

use serde::{Deserialize, Serialize};

/// Buckets per power of two: a value is known to within 1/64 of itself.
const BUCKETS_PER_DOUBLING: u64 = 64;
const BUCKET_BITS: u32 = BUCKETS_PER_DOUBLING.trailing_zeros();
/// One more than the highest bucket, which holds `u64::MAX`.
pub(crate) const BUCKETS: usize = ((u64::BITS - BUCKET_BITS + 1) as usize) << BUCKET_BITS;

/// Number of occurrences of each latency, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

/// The nonempty buckets with their counts, sent to another process.
pub(crate) type Sparse = Vec<(usize, u64)>;

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }

    #[inline]
    pub(crate) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
    }

    /// Adds the buckets of another process; buckets out of range are ignored.
    pub(crate) fn merge(&mut self, sparse: &Sparse) {
        for &(index, count) in sparse {
            if let Some(place) = self.counts.get_mut(index) {
                *place += count;
                self.total += count;
            }
        }
    }

    pub(crate) fn to_sparse(&self) -> Sparse {
        let counts = self.counts.iter().copied().enumerate();
        counts.filter(|&(_, count)| count > 0).collect()
    }

    /// Returns the value that a share `quantile` of all values does not exceed; `None` if empty.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<u64> {
        let rank = ((self.total as f64 * quantile).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        let index = self.counts.iter().position(|&count| {
            seen += count;
            count > 0 && seen >= rank
        });
        index.map(highest)
    }
}

/// Returns the bucket of `value`: the value itself while small, then its leading bits.
pub(crate) const fn bucket(value: u64) -> usize {
    let doublings = (u64::BITS - value.leading_zeros()).saturating_sub(BUCKET_BITS + 1);
    ((doublings as usize) << BUCKET_BITS) + (value >> doublings) as usize
}

/// Returns the highest value of a bucket.
pub(crate) const fn highest(index: usize) -> u64 {
    let doublings = (index >> BUCKET_BITS).saturating_sub(1) as u32;
    let leading = (index - ((doublings as usize) << BUCKET_BITS)) as u64;
    (leading << doublings) + ((1 << doublings) - 1)
}

/// A median with its quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// Returns the spread of all values that are numbers; `None` if there are none.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    // Interpolated between neighbours by distance, as spreadsheets and R do.
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
pub(crate) struct Surroundings {
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
    /// Time that the server, if it has one thread and a CPU to itself, was runnable but not
    /// running.
    pub(crate) kept_waiting_ns: u64,
}

/// Maximum share of all CPUs that other processes may use during a run. The kernel samples this 250
/// times per second, so that less is indistinguishable from noise.
const FOREIGN_MAX: f64 = 0.05;
/// Maximum share of all CPUs that the hypervisor may steal.
const STOLEN_MAX: f64 = 0.01;
/// Maximum share of the run that a server may wait for its CPU.
const KEPT_WAITING_MAX: f64 = 0.03;

impl Surroundings {
    /// Returns a description of what disturbed the run; `None` if the run is valid.
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
