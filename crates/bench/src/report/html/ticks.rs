//! Round numbers for axes.
//!
//! Invariants: for any bounds, a list is never empty, has at most [`TICKS_MAX`] ticks, and ascends
//! strictly. It must not format.

/// Maximum number of ticks on an axis.
pub(super) const TICKS_MAX: usize = 12;

/// Approximate number of steps.
const STEPS_WANTED: f64 = 5.0;

/// Returns ticks from 0 to the first round number that is not below `most`.
pub(super) fn linear(most: f64) -> Vec<f64> {
    if !most.is_finite() || most <= 0.0 {
        return vec![0.0, 1.0];
    }
    let rough = most / STEPS_WANTED;
    let decade = 10f64.powf(rough.log10().floor());
    let factor = match rough / decade {
        f if f <= 1.0 => 1.0,
        f if f <= 2.0 => 2.0,
        f if f <= 5.0 => 5.0,
        _ => 10.0,
    };
    let step = decade * factor;
    // Tolerance: rounding must not add a tick.
    let steps = (most / step - 1e-9)
        .ceil()
        .clamp(1.0, TICKS_MAX as f64 - 1.0);
    let mut ticks = vec![0.0];
    while ticks.len() as f64 <= steps {
        ticks.push(ticks.len() as f64 * step);
    }
    ticks
}

/// Returns ticks between two positive numbers for a logarithmic axis: powers of ten, and 2 and 5
/// times these if there is room, from the last not above `least` to the first not below `most`.
pub(super) fn logarithmic(least: f64, most: f64) -> Vec<f64> {
    if !(least > 0.0 && most >= least && most.is_finite()) {
        return vec![1.0, 10.0];
    }
    let powers = |factors: &[f64], stride: i32| -> Vec<f64> {
        let first = least.log10().floor() as i32;
        let last = most.log10().ceil() as i32;
        let mut all = Vec::new();
        let mut power = first;
        while power <= last + stride {
            all.extend(factors.iter().map(|factor| factor * 10f64.powi(power)));
            power += stride;
        }
        // Rounding may have moved 10^n slightly off the bound that it should equal.
        let from = all
            .iter()
            .rposition(|tick| *tick <= least * (1.0 + 1e-9))
            .unwrap_or(0);
        let to = all.iter().position(|tick| *tick >= most * (1.0 - 1e-9));
        let to = to.unwrap_or(all.len() - 1).max(from + 1).min(all.len() - 1);
        all[from..=to].to_vec()
    };
    for (factors, stride) in [([1.0, 2.0, 5.0].as_slice(), 1), (&[1.0], 1), (&[1.0], 2)] {
        let ticks = powers(factors, stride);
        if ticks.len() <= TICKS_MAX {
            return ticks;
        }
    }
    let all = powers(&[1.0], 1);
    let every = all.len().div_ceil(TICKS_MAX - 1);
    all.into_iter().step_by(every).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_have_round_values() {
        assert_eq!(
            linear(152_000.0),
            [0.0, 50_000.0, 100_000.0, 150_000.0, 200_000.0]
        );
        assert_eq!(linear(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear(0.0), [0.0, 1.0]);
        assert_eq!(linear(f64::NAN), [0.0, 1.0]);
        let rounded = |least, most| -> Vec<f64> {
            let ticks = logarithmic(least, most).into_iter();
            ticks.map(|tick| tick.round()).collect()
        };
        assert_eq!(rounded(150.0, 900.0), [100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(rounded(100.0, 1000.0), [100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(rounded(7.0, 7.0), [5.0, 10.0]);
        assert_eq!(rounded(1.0, 1e6).len(), 7);
    }

    proptest! {
        #[test]
        fn ticks_are_bounded(least in 0u64.., factor in 1.0f64..1e18, most: f64) {
            let least = least as f64;
            for ticks in [linear(most), linear(least), logarithmic(least, least * factor)] {
                prop_assert!((2..=TICKS_MAX).contains(&ticks.len()), "{ticks:?}");
                prop_assert!(ticks.windows(2).all(|two| two[0] < two[1]), "{ticks:?}");
            }
            if least > 0.0 {
                prop_assert!(logarithmic(least, least * factor)[0] <= least * 1.001);
            }
        }
    }
}
