//! Registers of f32 with the few operations that the quantisers need, each lane as C's scalar code would do it.
//!
//! Comparisons are C's too: what compares with a NaN is false, and [`Lanes::least`] and [`Lanes::greatest`] are the macros `MIN` and
//! `MAX`, which take their second operand then. Nothing is ever fused: ggml's quantisers are compiled for plain x86-64, which has no FMA.

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

/// The largest f32 below 0.5.
const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

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

mod eight;
mod pair;
mod sixteen;

pub use eight::Eight;
pub use pair::Pair;
pub use sixteen::Sixteen;

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
