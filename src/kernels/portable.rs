//! What needs no instruction of its own: loops that the compiler makes registers of, whatever the features of the function
//! that they are inlined into.

use super::columns::SMALLEST;
use super::panel::{DEPTH, ROWS};

/// 32 values times 127 / their largest magnitude, rounded to even; and the scale that undoes it. Zeros below [`SMALLEST`].
#[inline(always)]
pub fn to_int8(values: &[f32; DEPTH]) -> ([i8; DEPTH], f32) {
    // The bits of magnitudes are ordered as they are, with NaN on top, which thereby stays NaN.
    let largest = f32::from_bits(values.iter().fold(0, |max, x| max.max(x.abs().to_bits())));
    let inverse = if largest >= SMALLEST { 127.0 / largest } else { 0.0 };
    let mut bytes = [0i8; DEPTH];
    for i in 0..DEPTH {
        // Added to 1.5 · 2²³, a value is rounded to even and lies in the low bits.
        bytes[i] = (values[i] * inverse + ROUND).to_bits() as i8;
    }
    (bytes, largest / 127.0)
}

const ROUND: f32 = 12_582_912.0;

/// GELU of every value. Slow where the CPU has no fused multiplication and addition.
#[inline(always)]
pub fn gelu(columns: &mut [[f32; ROWS]]) {
    for column in columns {
        for x in column {
            *x = gelu_of(*x);
        }
    }
}

/// As that of `avx512`.
#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    let z = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let terms = [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6f32];
    let sum = terms.into_iter().fold(1.061_405_4, |sum: f32, term| sum.mul_add(t, term));
    let tail = sum * (t * exp(-z * z)) * 0.5;
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// As that of `avx512`, but for e⁻⁸⁷ and less, which is e⁻⁸⁷.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0f32];
    let sum = terms.into_iter().fold(1.0 / 5040.0, |sum: f32, term| sum.mul_add(r, term));
    sum * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}
