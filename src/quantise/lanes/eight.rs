//! Eight lanes.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{BELOW_HALF, EXPONENT, Lanes, MAGIC, MANTISSA, ZERO};

/// Eight lanes: AVX2.
#[derive(Clone, Copy)]
pub struct Eight(__m256);

operators!(Eight, Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

impl Lanes for Eight {
    const N: usize = 8;
    type Mask = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn strided(values: *const f32, stride: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            Self(_mm256_i32gather_ps::<4>(values, _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride as i32))))
        }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_loadu_ps(values)) }
    }

    #[inline(always)]
    unsafe fn store(self, out: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(out, self.0) }
    }

    #[inline(always)]
    unsafe fn store_truncated(self, out: *mut i32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_si256(out.cast(), _mm256_cvttps_epi32(self.0)) }
    }

    // SAFETY, of all below: having a value proves that the CPU has its instructions.

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_sqrt_ps(self.0)) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let sign = _mm256_and_ps(_mm256_set1_ps(-0.0), self.0);
            Self(_mm256_or_ps(sign, _mm256_set1_ps(BELOW_HALF)))
        }
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn le(self, other: Self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn eq(self, other: Self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn and(one: __m256, other: __m256) -> __m256 {
        // SAFETY: masks are made of values.
        unsafe { _mm256_and_ps(one, other) }
    }

    #[inline(always)]
    fn but_not(one: __m256, other: __m256) -> __m256 {
        // SAFETY: masks are made of values.
        unsafe { _mm256_andnot_ps(other, one) }
    }

    #[inline(always)]
    fn any(mask: __m256) -> bool {
        // SAFETY: masks are made of values.
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }

    #[inline(always)]
    fn select(mask: __m256, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_blendv_ps(no.0, yes.0, mask)) }
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        // SAFETY: as above.
        unsafe {
            let sum = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(MAGIC)));
            let level = _mm256_and_si256(sum, _mm256_set1_epi32(MANTISSA));
            let level = _mm256_min_epi32(level, _mm256_set1_epi32(ZERO + most));
            let level = _mm256_max_epi32(level, _mm256_set1_epi32(ZERO + least));
            let level = _mm256_or_si256(level, _mm256_set1_epi32(EXPONENT));
            Self(_mm256_sub_ps(_mm256_castsi256_ps(level), _mm256_set1_ps(MAGIC)))
        }
    }
}
