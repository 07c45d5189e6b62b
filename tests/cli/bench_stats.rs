//! Tests of the arithmetic in `benches/peers`: a bench has no tests of its own.

#[path = "../../benches/peers/stats.rs"]
mod stats;

use stats::{BUCKETS, Histogram, Spread, Surroundings, bucket, highest, reference, spread};

#[test]
fn histogram_buckets_are_ordered_and_narrow() {
    let mut last = 0;
    for shift in 0..64 {
        for value in [1 << shift, (1 << shift) + (1 << shift) / 3] {
            let index = bucket(value);
            assert!(index >= last && index < BUCKETS, "{value}");
            let highest = highest(index);
            assert!(highest >= value && highest - value <= value / 64, "{value}");
            assert_eq!(bucket(highest), index, "{value}");
            last = index;
        }
    }
    assert_eq!(highest(bucket(u64::MAX)), u64::MAX);
}

#[test]
fn quantiles_count_from_lowest_value() {
    let mut histogram = Histogram::new();
    assert_eq!(histogram.quantile(0.5), None);
    (1..=100).for_each(|value| histogram.record(value));
    assert_eq!(histogram.quantile(0.0), Some(1));
    assert_eq!(histogram.quantile(0.5), Some(50));
    assert_eq!(histogram.quantile(0.99), Some(99));
    assert_eq!(histogram.quantile(1.0), Some(100));
}

#[test]
fn histogram_survives_round_trip() {
    let mut seen = Histogram::new();
    for value in [3, 3, 7_000, u64::MAX] {
        seen.record(value);
    }
    let mut merged = Histogram::new();
    merged.merge(&seen.to_sparse());
    merged.merge(&vec![(BUCKETS, 5)]);
    assert_eq!(merged.to_sparse(), seen.to_sparse());
    assert_eq!(merged.quantile(0.5), Some(3));
}

#[test]
fn spread_interpolates_and_skips_non_numbers() {
    let four = spread([4.0, f64::NAN, 1.0, 3.0, 2.0]);
    let expected = Spread {
        low: 1.75,
        median: 2.5,
        high: 3.25,
    };
    assert_eq!(four, Some(expected));
    assert_eq!(spread([7.0]).map(|one| one.median), Some(7.0));
    assert_eq!(spread([]), None);
}

#[test]
fn reference_excludes_its_neighbours() {
    assert_eq!(reference(Some(2.0), Some(4.0)), Some(3.0));
    assert_eq!(reference(None, Some(4.0)), Some(4.0));
    assert_eq!(reference(Some(2.0), None), Some(2.0));
    assert_eq!(reference(None, None), None);
}

#[test]
fn run_counts_only_without_competing_load() {
    let alone = Surroundings {
        wall_ns: 1_000_000_000,
        cpus: 2,
        busy_ns: 1_550_000_000,
        own_ns: 1_500_000_000,
        stolen_ns: 0,
        kept_waiting_ns: 1_000_000,
    };
    assert_eq!(alone.disturbance(), None);
    let used = Surroundings {
        busy_ns: 1_700_000_000,
        ..alone
    };
    let words = used.disturbance().expect("others used a tenth of it");
    assert_eq!(words, "10 % of the machine used by others");
    let stolen = Surroundings {
        stolen_ns: 40_000_000,
        ..alone
    };
    assert!(stolen.disturbance().is_some_and(|w| w.contains("stolen")));
    let waited = Surroundings {
        kept_waiting_ns: 50_000_000,
        ..alone
    };
    assert!(waited.disturbance().is_some_and(|w| w.contains("waiting")));
}
