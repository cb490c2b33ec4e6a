//! The weights of Pillow's antialiased bicubic filter along one axis.

/// Fractional bits of a weight (Pillow's `PRECISION_BITS`, `32 − 8 − 2`).
pub(super) const FRACTION_BITS: u32 = 22;

/// What one output position reads: source positions `first .. first + weights.len()`.
#[derive(Debug)]
pub(super) struct Taps {
    /// First source position.
    pub first: usize,
    /// Weights in units of 2⁻²², adding up to about 2²²; never empty.
    pub weights: Vec<i32>,
}

impl Taps {
    /// One past the last source position.
    pub fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// The taps of output position `at` (`< n_out`) where `n_in` positions become `n_out`; both at least 1.
///
/// `first` and `end()` never decrease as `at` grows. Each step is done in f64 and in Pillow's order (`Resample.c`,
/// `precompute_coeffs` and `normalize_coeffs_8bpc`), so that the integers come out the same.
///
/// The sum of 255 · |weight| and the rounding half fits an i32, in any order of summing. In real numbers the weights add up to
/// 1, the negative lobes are 1/14 of the positive one's area, and the picture's edge leaves at least half of the window, lobes
/// and all, so Σ|weight| stays near 7/6; sampled at few places it reaches 1.27. Rounding to units of 2⁻²² matters only where
/// weights are near half a unit, with millions of taps, and brings it to 1.36 (then all weights become 0). An i32 holds 2.007.
/// The test looks at the worst places.
pub(super) fn taps(n_in: usize, n_out: usize, at: usize) -> Taps {
    let scale = n_in as f64 / n_out as f64;
    // Shrinking widens the filter to cover all source positions; enlarging keeps it at 2 on each side.
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    let centre = (at as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(n_in);

    let per_step = 1.0 / filter_scale;
    let weight = |i: usize| bicubic((i as f64 - centre + 0.5) * per_step);
    let total: f64 = (first..end).map(weight).fold(0.0, |sum, w| sum + w);
    // Rounds half away from zero, as Pillow's cast of (±0.5 + x) to int does.
    let fixed = |w: f64| (w * f64::from(1 << FRACTION_BITS) + 0.5f64.copysign(w)) as i32;
    Taps { first, weights: (first..end).map(|i| fixed(weight(i) / total)).collect() }
}

/// Keys' cubic convolution kernel with a = −½; zero from 2 on.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulators_cannot_overflow() {
        // Far below (2³¹ − 2²¹) / (255 · 2²²) = 2.006.
        const LIMIT: f64 = 1.4;
        let mut worst = 0.0f64;
        let mut check = |n_in: usize, n_out: usize, at: usize| {
            let taps = taps(n_in, n_out, at);
            assert!(!taps.weights.is_empty());
            let units: i64 = taps.weights.iter().map(|w| i64::from(w.abs())).sum();
            let sum = units as f64 / f64::from(1 << FRACTION_BITS);
            worst = worst.max(sum);
            assert!(sum <= LIMIT, "{n_in} -> {n_out} at {at}: {sum}");
        };
        for n_in in 1..70 {
            for n_out in 1..70 {
                (0..n_out).for_each(|at| check(n_in, n_out, at));
            }
        }
        // Near and beyond the point where weights round to 1 and then to 0 units.
        for n_in in [1 << 20, 3_000_000, 4_194_304, 5_000_000, 6_200_000, 7_000_000, 9_000_000] {
            for (n_out, at) in [(1, 0), (2, 0), (2, 1), (3, 1)] {
                check(n_in, n_out, at);
            }
        }
        assert!(worst > 1.3, "the worst places were not looked at: {worst}");
    }
}
