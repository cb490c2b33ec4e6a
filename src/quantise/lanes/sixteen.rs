//! Sixteen lanes.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{BELOW_HALF, EXPONENT, Lanes, MAGIC, MANTISSA, ZERO};

/// Sixteen lanes: AVX-512.
#[derive(Clone, Copy)]
pub struct Sixteen(__m512);

operators!(Sixteen, Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

impl Lanes for Sixteen {
    const N: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn strided(values: *const f32, stride: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            Self(_mm512_i32gather_ps::<4>(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride as i32)), values))
        }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm512_loadu_ps(values)) }
    }

    #[inline(always)]
    unsafe fn store(self, out: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(out, self.0) }
    }

    #[inline(always)]
    unsafe fn store_truncated(self, out: *mut i32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_si512(out.cast(), _mm512_cvttps_epi32(self.0)) }
    }

    // SAFETY, of all below: having a value proves that the CPU has its instructions.

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_sqrt_ps(self.0)) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let sign = _mm512_and_si512(_mm512_set1_epi32(i32::MIN), _mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_castps_si512(_mm512_set1_ps(BELOW_HALF)))))
        }
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __mmask16 {
        // SAFETY: as above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn le(self, other: Self) -> __mmask16 {
        // SAFETY: as above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn eq(self, other: Self) -> __mmask16 {
        // SAFETY: as above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn and(one: __mmask16, other: __mmask16) -> __mmask16 {
        one & other
    }

    #[inline(always)]
    fn but_not(one: __mmask16, other: __mmask16) -> __mmask16 {
        one & !other
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_mask_blend_ps(mask, no.0, yes.0)) }
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        // SAFETY: as above.
        unsafe {
            let sum = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(MAGIC)));
            let level = _mm512_and_si512(sum, _mm512_set1_epi32(MANTISSA));
            let level = _mm512_min_epi32(level, _mm512_set1_epi32(ZERO + most));
            let level = _mm512_max_epi32(level, _mm512_set1_epi32(ZERO + least));
            let level = _mm512_or_si512(level, _mm512_set1_epi32(EXPONENT));
            Self(_mm512_sub_ps(_mm512_castsi512_ps(level), _mm512_set1_ps(MAGIC)))
        }
    }
}
