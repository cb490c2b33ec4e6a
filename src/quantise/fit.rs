//! Scale and offset of small blocks by trying: ggml's `make_qkx2_quants`, `make_qkx3_quants` and `make_qx_quants`, a block a lane.
//!
//! Sums are added in the order of the block's values, and every expression is bracketed as C does it, so that each lane comes to the
//! bits that ggml comes to.

use super::lanes::{Cpu, Lanes};

/// Below this magnitude a block is all zeros.
const TINY: f32 = 1e-15;

/// How levels that begin at a minimum are searched for.
#[derive(Clone, Copy)]
pub struct Search {
    /// The highest level.
    pub nmax: i32,
    /// The scale that is tried first is that of this many levels more than `nmax`.
    pub rmin: f32,
    /// Each next one is that of so many more.
    pub rdelta: f32,
    /// How many are tried after the first.
    pub nstep: i32,
    /// Whether levels are held between 0 and `nmax` before they are rounded (`make_qkx3_quants`) or after.
    pub bounded: bool,
}

/// A value is `scale · level - min`.
pub struct Fit<L: Lanes> {
    /// The step between levels.
    pub scale: L,
    /// What is subtracted.
    pub min: L,
    /// Levels are `iscale · (x - from)`, rounded.
    iscale: L,
    from: L,
    /// No try was better than the first guess.
    is_first: L::Mask,
    search: Search,
}

impl<L: Lanes> Fit<L> {
    /// The levels that it was found with, of one value of each block.
    #[inline(always)]
    pub fn level(&self, cpu: Cpu<L>, x: L) -> L {
        let level = self.iscale * (x - self.from);
        let plain = level.nearest(0, self.search.nmax);
        if !self.search.bounded {
            return plain;
        }
        L::select(self.is_first, plain, bounded(cpu, level, self.search.nmax))
    }
}

#[inline(always)]
fn bounded<L: Lanes>(cpu: Cpu<L>, level: L, nmax: i32) -> L {
    let zero = cpu.splat(0.0);
    let inside = level.least(cpu.splat(nmax as f32));
    // What is NaN has become nmax above, and becomes 0 here.
    L::select(zero.lt(level), inside, zero).nearest(0, nmax)
}

/// Fits scale and minimum to the values `x` of a block a lane, their squared errors weighted by `w`.
#[inline(always)]
pub fn with_min<L: Lanes, const N: usize>(cpu: Cpu<L>, x: &[L; N], w: &[L; N], search: Search) -> Fit<L> {
    let nmax = search.nmax;
    let zero = cpu.splat(0.0);
    let one = cpu.splat(1.0);
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..N {
        min = x[i].least(min);
        max = x[i].greatest(max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    min = L::select(zero.lt(min), zero, min);
    let flat = if search.bounded { max.le(min) } else { max.eq(min) };
    let flat_min = min;

    let mut iscale = cpu.splat(nmax as f32) / (max - min);
    let mut scale = one / iscale;
    let mut best = zero;
    for i in 0..N {
        let level = (iscale * (x[i] - min)).nearest(0, nmax);
        let diff = scale * level + min - x[i];
        best = best + w[i] * (diff * diff);
    }
    let mut from = min;
    let mut is_first = zero.eq(zero);
    let mut levels = [zero; N];
    for is in 0..=search.nstep {
        let try_iscale = cpu.splat(search.rmin + search.rdelta * is as f32 + nmax as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            let level = try_iscale * (x[i] - min);
            let level = if search.bounded { bounded(cpu, level, nmax) } else { level.nearest(0, nmax) };
            levels[i] = level;
            let wl = w[i] * level;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * level;
            sum_xl = sum_xl + wl * x[i];
        }
        let d = sum_w * sum_l2 - sum_l * sum_l;
        let this_scale = (sum_w * sum_xl - sum_x * sum_l) / d;
        let this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d;
        let above = zero.lt(this_min);
        let this_scale = L::select(above, sum_xl / sum_l2, this_scale);
        let this_min = L::select(above, zero, this_min);
        let mut error = zero;
        for i in 0..N {
            let diff = this_scale * levels[i] + this_min - x[i];
            error = error + w[i] * (diff * diff);
        }
        let better = L::and(zero.lt(d), error.lt(best));
        iscale = L::select(better, try_iscale, iscale);
        from = L::select(better, min, from);
        is_first = L::but_not(is_first, better);
        best = L::select(better, error, best);
        scale = L::select(better, this_scale, scale);
        min = L::select(better, this_min, min);
    }
    Fit {
        scale: L::select(flat, zero, scale),
        min: zero_minus(cpu, L::select(flat, flat_min, min)),
        iscale: L::select(flat, zero, iscale),
        from: L::select(flat, zero, from),
        is_first,
        search,
    }
}

/// C's `-x`, which makes -0 of 0.
#[inline(always)]
fn zero_minus<L: Lanes>(cpu: Cpu<L>, x: L) -> L {
    cpu.splat(-1.0) * x
}

/// A value is `scale · (level - nmax)`.
pub struct Symmetric<L: Lanes> {
    /// The step between levels; its sign is that which suits the largest value.
    pub scale: L,
    iscale: L,
    zero: L::Mask,
    nmax: i32,
}

impl<L: Lanes> Symmetric<L> {
    /// The levels that it was found with, of one value of each block; 0 in blocks of zeros, as ggml has it.
    #[inline(always)]
    pub fn level(&self, cpu: Cpu<L>, x: L) -> L {
        let level = (self.iscale * x).nearest(-self.nmax, self.nmax - 1) + cpu.splat(self.nmax as f32);
        L::select(self.zero, cpu.splat(0.0), level)
    }
}

/// Fits a scale to the values `x` of a block a lane, their squared errors weighted by `w`: ggml's `rmse_type` 1.
#[inline(always)]
pub fn symmetric<L: Lanes, const N: usize>(cpu: Cpu<L>, x: &[L; N], w: &[L; N], nmax: i32) -> Symmetric<L> {
    let zero = cpu.splat(0.0);
    let (mut max, mut amax) = (zero, zero);
    for value in x {
        let magnitude = value.abs();
        let larger = amax.lt(magnitude);
        amax = L::select(larger, magnitude, amax);
        max = L::select(larger, *value, max);
    }
    let tiny = amax.lt(cpu.splat(TINY));
    let mut iscale = cpu.splat(-nmax as f32) / max;
    let (sumlx, suml2) = sums(cpu, x, w, iscale, nmax);
    let mut scale = L::select(suml2.eq(zero), zero, sumlx / suml2);
    let mut best = scale * sumlx;
    for is in -9..=9 {
        if is == 0 {
            continue;
        }
        let try_iscale = cpu.splat(-(nmax as f32 + 0.1 * is as f32)) / max;
        let (sumlx, suml2) = sums(cpu, x, w, try_iscale, nmax);
        let better = L::and(zero.lt(suml2), (best * suml2).lt(sumlx * sumlx));
        let this_scale = sumlx / suml2;
        iscale = L::select(better, try_iscale, iscale);
        scale = L::select(better, this_scale, scale);
        best = L::select(better, this_scale * sumlx, best);
    }
    Symmetric { scale: L::select(tiny, zero, scale), iscale, zero: tiny, nmax }
}

/// The sums of w·x·l and w·l·l over a block.
#[inline(always)]
fn sums<L: Lanes, const N: usize>(cpu: Cpu<L>, x: &[L; N], w: &[L; N], iscale: L, nmax: i32) -> (L, L) {
    let (mut sumlx, mut suml2) = (cpu.splat(0.0), cpu.splat(0.0));
    for i in 0..N {
        let level = (iscale * x[i]).nearest(-nmax, nmax - 1);
        sumlx = sumlx + w[i] * x[i] * level;
        suml2 = suml2 + w[i] * level * level;
    }
    (sumlx, suml2)
}
