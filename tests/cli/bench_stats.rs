//! Tests of the arithmetic in `benches/peers`: a bench has no tests of its own.

#[path = "../../benches/peers/stats.rs"]
mod stats;

use stats::{Environment, Spread, reference, spread};

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
    let alone = Environment {
        wall_ns: 1_000_000_000,
        cpus: 2,
        busy_ns: 1_550_000_000,
        own_ns: 1_500_000_000,
        stolen_ns: 0,
        kept_waiting_ns: 1_000_000,
    };
    assert_eq!(alone.disturbance(), None);
    let used = Environment {
        busy_ns: 1_700_000_000,
        ..alone
    };
    let words = used.disturbance().expect("others used a tenth of it");
    assert_eq!(words, "10 % of the machine used by others");
    let stolen = Environment {
        stolen_ns: 40_000_000,
        ..alone
    };
    assert!(stolen.disturbance().is_some_and(|w| w.contains("stolen")));
    let waited = Environment {
        kept_waiting_ns: 50_000_000,
        ..alone
    };
    assert!(waited.disturbance().is_some_and(|w| w.contains("waiting")));
}
