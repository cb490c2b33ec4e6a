//! Two registers as one.

use std::ops::{Add, Div, Mul, Sub};

use super::Lanes;

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
