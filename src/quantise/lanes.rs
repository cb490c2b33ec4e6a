//! Registers of f32 with the few operations that the quantisers need, each lane as C's scalar code would do it.
//!
//! Comparisons are C's too: what compares with a NaN is false, and [`Lanes::least`] and [`Lanes::greatest`] are the macros `MIN` and
//! `MAX`, which take their second operand then. Nothing is ever fused: ggml's quantisers are compiled for plain x86-64, which has no FMA.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::{Add, Div, Mul, Sub};

/// Adding it to a number below 2²² leaves the nearest integer (ties to even) in the lower bits: 1.5 · 2²³.
const MAGIC: f32 = 12_582_912.0;
/// Those lower bits.
const MANTISSA: i32 = 0x007f_ffff;
/// Zero among them.
const ZERO: i32 = 0x0040_0000;
/// The exponent of 2²³.
const EXPONENT: i32 = 0x4b00_0000;

/// `N` numbers that are computed with side by side.
///
/// Having one proves that the CPU has its instructions, since all come from a [`Cpu`].
pub trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    /// Lanes, a multiple of 16 for all that quantise.
    const N: usize;
    /// A bit a lane.
    type Mask: Copy;

    /// # Safety
    /// The CPU has the instructions.
    unsafe fn splat(value: f32) -> Self;
    /// `values[0]`, `values[stride]`, `values[2 · stride]`, ..
    ///
    /// # Safety
    /// The CPU has the instructions; the last of these is inside, as 32 bits count.
    unsafe fn strided(values: *const f32, stride: usize) -> Self;
    /// # Safety
    /// The CPU has the instructions; N values are there.
    unsafe fn load(values: *const f32) -> Self;
    /// # Safety
    /// There is room for N values.
    unsafe fn store(self, out: *mut f32);
    /// Truncated to i32; `i32::MIN` where that does not fit, as the CPU's own conversion of one number does.
    ///
    /// # Safety
    /// There is room for N values.
    unsafe fn store_truncated(self, out: *mut i32);

    /// Its square root.
    fn sqrt(self) -> Self;
    /// Its magnitude.
    fn abs(self) -> Self;
    /// The half of least magnitude larger numbers are rounded away from zero by: just below 0.5, with the sign of `self`.
    fn half_away(self) -> Self;
    /// `self < other ? self : other`
    fn least(self, other: Self) -> Self;
    /// `self > other ? self : other`
    fn greatest(self, other: Self) -> Self;
    /// `self < other`
    fn lt(self, other: Self) -> Self::Mask;
    /// `self <= other`
    fn le(self, other: Self) -> Self::Mask;
    /// `self == other`
    fn eq(self, other: Self) -> Self::Mask;
    /// Both.
    fn and(one: Self::Mask, other: Self::Mask) -> Self::Mask;
    /// The first, but not the second.
    fn but_not(one: Self::Mask, other: Self::Mask) -> Self::Mask;
    /// Whether a lane has its bit.
    fn any(mask: Self::Mask) -> bool;
    /// `mask ? yes : no`
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// ggml's `nearest_int`, with its results beyond 22 bits, then held between `least` and `most`.
    fn nearest(self, least: i32, most: i32) -> Self;
}

/// Proof that the CPU has the instructions of `L`.
pub struct Cpu<L>(PhantomData<L>);

impl<L> Clone for Cpu<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Cpu<L> {}

impl<L: Lanes> Cpu<L> {
    /// # Safety
    /// The CPU has the instructions.
    pub unsafe fn new() -> Self {
        Cpu(PhantomData)
    }

    /// `value` in every lane.
    #[inline(always)]
    pub fn splat(self, value: f32) -> L {
        // SAFETY: `self` proves it.
        unsafe { L::splat(value) }
    }

    /// `values[0]`, `values[stride]`, `values[2 · stride]`, ..
    #[inline(always)]
    pub fn strided(self, values: &[f32], stride: usize) -> L {
        assert!((L::N - 1) * stride < values.len() && values.len() < i32::MAX as usize / 4);
        // SAFETY: `self` proves the instructions, the assertion that the values are there.
        unsafe { L::strided(values.as_ptr(), stride) }
    }

    /// The first N values.
    #[inline(always)]
    pub fn load(self, values: &[f32]) -> L {
        assert!(values.len() >= L::N);
        // SAFETY: `self` proves the instructions, the assertion that the values are there.
        unsafe { L::load(values.as_ptr()) }
    }

    /// Into the first N values.
    #[inline(always)]
    pub fn store(self, lanes: L, out: &mut [f32]) {
        assert!(out.len() >= L::N);
        // SAFETY: asserted.
        unsafe { lanes.store(out.as_mut_ptr()) }
    }

    /// Truncated into the first N values; `i32::MIN` where that does not fit.
    #[inline(always)]
    pub fn store_truncated(self, lanes: L, out: &mut [i32]) {
        assert!(out.len() >= L::N);
        // SAFETY: asserted.
        unsafe { lanes.store_truncated(out.as_mut_ptr()) }
    }
}

macro_rules! operators {
    ($lanes:ty, $($operator:ident $name:ident $intrinsic:ident),*) => {$(
        impl $operator for $lanes {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: having a value proves that the CPU has its instructions.
                unsafe { Self($intrinsic(self.0, other.0)) }
            }
        }
    )*};
}

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

/// The largest f32 below 0.5.
const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

/// Two registers at a time: while one waits for its sums, the other is added to.
#[derive(Clone, Copy)]
pub struct Pair<L>(L, L);

macro_rules! pairwise {
    ($($operator:ident $name:ident),*) => {$(
        impl<L: Lanes> $operator for Pair<L> {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Self(self.0.$name(other.0), self.1.$name(other.1))
            }
        }
    )*};
}

pairwise!(Add add, Sub sub, Mul mul, Div div);

impl<L: Lanes> Lanes for Pair<L> {
    const N: usize = 2 * L::N;
    type Mask = (L::Mask, L::Mask);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(L::splat(value), L::splat(value)) }
    }

    #[inline(always)]
    unsafe fn strided(values: *const f32, stride: usize) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(L::strided(values, stride), L::strided(values.add(L::N * stride), stride)) }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(L::load(values), L::load(values.add(L::N))) }
    }

    #[inline(always)]
    unsafe fn store(self, out: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store(out);
            self.1.store(out.add(L::N));
        }
    }

    #[inline(always)]
    unsafe fn store_truncated(self, out: *mut i32) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store_truncated(out);
            self.1.store_truncated(out.add(L::N));
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1.sqrt())
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }

    #[inline(always)]
    fn half_away(self) -> Self {
        Self(self.0.half_away(), self.1.half_away())
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Self(self.0.least(other.0), self.1.least(other.1))
    }

    #[inline(always)]
    fn greatest(self, other: Self) -> Self {
        Self(self.0.greatest(other.0), self.1.greatest(other.1))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        (self.0.lt(other.0), self.1.lt(other.1))
    }

    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        (self.0.le(other.0), self.1.le(other.1))
    }

    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        (self.0.eq(other.0), self.1.eq(other.1))
    }

    #[inline(always)]
    fn and(one: Self::Mask, other: Self::Mask) -> Self::Mask {
        (L::and(one.0, other.0), L::and(one.1, other.1))
    }

    #[inline(always)]
    fn but_not(one: Self::Mask, other: Self::Mask) -> Self::Mask {
        (L::but_not(one.0, other.0), L::but_not(one.1, other.1))
    }

    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        L::any(mask.0) || L::any(mask.1)
    }

    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Self(L::select(mask.0, yes.0, no.0), L::select(mask.1, yes.1, no.1))
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        Self(self.0.nearest(least, most), self.1.nearest(least, most))
    }
}
