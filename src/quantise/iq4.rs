//! iq4_nl and iq4_xs: 16 levels that are not evenly spaced, a block of 32 a lane.

use super::halves::to_half;
use super::lanes::{Cpu, Lanes};
use super::superblocks::{N_SUBS, SUB, SUPER, nearest, scatter, sum_of_squares, transposed, whole};

/// The levels, in steps of a block's scale. Source: `kvalues_iq4nl` in `ggml-common.h`.
const LEVELS: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Scales on either side of the first that are tried.
const N_TRIES: i32 = 7;
/// Below this magnitude a block is all zeros.
const TINY: f32 = 1e-15;
/// The most lanes that there are.
const MOST_LANES: usize = 32;

/// Blocks to iq4_nl; `importance` as long as `values` if it is there.
#[inline(always)]
pub fn iq4_nl<L: Lanes>(cpu: Cpu<L>, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const BLOCK_BYTES: usize = 18;
    let mut buffers = [[0f32; MOST_LANES * SUB]; 2];
    for (nth, out) in out.chunks_mut(L::N * BLOCK_BYTES).enumerate() {
        let at = nth * L::N * SUB;
        let range = at..at + out.len() / BLOCK_BYTES * SUB;
        let [buffer, weights] = &mut buffers;
        let x = transposed::<L, SUB>(cpu, whole(&values[range.clone()], L::N * SUB, buffer));
        let scale = match importance {
            None => fitted(cpu, &x, &squared(&x)),
            Some(importance) => {
                let mut squares = cpu.splat(0.0);
                for x in &x {
                    squares = squares + *x * *x;
                }
                let variance = squares * cpu.splat(2.0 / SUB as f32);
                let importance = whole(&importance[range], L::N * SUB, weights);
                fitted(cpu, &x, &weighted(cpu, &x, importance, variance))
            }
        };
        let mut scales = [0f32; MOST_LANES];
        cpu.store(scale, &mut scales);
        for (block, scale) in out.chunks_exact_mut(BLOCK_BYTES).zip(&scales) {
            block[..2].copy_from_slice(&to_half(*scale).to_le_bytes());
        }
        let mut levels = [0u8; MOST_LANES * SUB];
        indices(cpu, &x, &scales, &mut levels);
        for (block, levels) in out.chunks_exact_mut(BLOCK_BYTES).zip(levels.chunks_exact(SUB)) {
            pack(levels, &mut block[2..]);
        }
    }
}

/// Super-blocks to iq4_xs; `importance` as long as `values` if it is there.
#[inline(always)]
pub fn iq4_xs<L: Lanes>(cpu: Cpu<L>, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const BLOCK_BYTES: usize = 136;
    let group = L::N / N_SUBS;
    let mut buffers = [[0f32; MOST_LANES * SUB]; 2];
    for (nth, out) in out.chunks_mut(group * BLOCK_BYTES).enumerate() {
        let at = nth * group * SUPER;
        let range = at..at + out.len() / BLOCK_BYTES * SUPER;
        let [buffer, weights] = &mut buffers;
        let values = whole(&values[range.clone()], L::N * SUB, buffer);
        let x = transposed::<L, SUB>(cpu, values);
        let scale = match importance {
            None => fitted(cpu, &x, &squared(&x)),
            Some(importance) => {
                let mut variances = [0f32; MOST_LANES];
                for (values, lanes) in values.chunks_exact(SUPER).zip(variances.chunks_exact_mut(N_SUBS)) {
                    lanes.fill(sum_of_squares(values) * (2.0 / SUPER as f32));
                }
                let importance = whole(&importance[range], L::N * SUB, weights);
                fitted(cpu, &x, &weighted(cpu, &x, importance, cpu.load(&variances)))
            }
        };
        let mut scales = [0f32; MOST_LANES];
        cpu.store(scale, &mut scales);
        for (block, scales) in out.chunks_exact_mut(BLOCK_BYTES).zip(scales.chunks_exact_mut(N_SUBS)) {
            pack_scales(scales, &mut block[..8]);
        }
        let mut levels = [0u8; MOST_LANES * SUB];
        indices(cpu, &x, &scales, &mut levels);
        for (block, levels) in out.chunks_exact_mut(BLOCK_BYTES).zip(levels.chunks_exact(SUPER)) {
            for (levels, out) in levels.chunks_exact(SUB).zip(block[8..].chunks_exact_mut(SUB / 2)) {
                pack(levels, out);
            }
        }
    }
}

/// Packs scales into a super-block's head, and makes of each what it stands for there.
fn pack_scales(scales: &mut [f32], head: &mut [u8]) {
    let (mut most, mut largest) = (0f32, 0f32);
    for scale in scales.iter() {
        if scale.abs() > most {
            (most, largest) = (scale.abs(), *scale);
        }
    }
    let d = -largest / 32.0;
    head.fill(0);
    head[..2].copy_from_slice(&to_half(d).to_le_bytes());
    let id = if d == 0.0 { 0.0 } else { 1.0 / d };
    for (j, scale) in scales.iter_mut().enumerate() {
        let level = nearest(id * *scale).clamp(-32, 31);
        *scale = d * level as f32;
        let level = (level + 32) as u8;
        head[4 + j / 2] |= (level & 15) << (4 * (j % 2));
        head[2 + j / 4] |= (level >> 4) << (2 * (j % 4));
    }
}

#[inline(always)]
fn squared<L: Lanes>(x: &[L; SUB]) -> [L; SUB] {
    let mut w = *x;
    for w in &mut w {
        *w = *w * *w;
    }
    w
}

#[inline(always)]
fn weighted<L: Lanes>(cpu: Cpu<L>, x: &[L; SUB], importance: &[f32], variance: L) -> [L; SUB] {
    let mut w = *x;
    for i in 0..SUB {
        w[i] = cpu.strided(&importance[i..], SUB) * (variance + x[i] * x[i]).sqrt();
    }
    w
}

/// The scale with the least squared errors among those tried, weighted by `w`; 0 in blocks of zeros.
#[inline(always)]
fn fitted<L: Lanes>(cpu: Cpu<L>, x: &[L; SUB], w: &[L; SUB]) -> L {
    let zero = cpu.splat(0.0);
    let (mut max, mut amax) = (zero, zero);
    for x in x {
        let magnitude = x.abs();
        let larger = amax.lt(magnitude);
        amax = L::select(larger, magnitude, amax);
        max = L::select(larger, *x, max);
    }
    let tiny = amax.lt(cpu.splat(TINY));
    let first = cpu.splat(-1.0) * max / cpu.splat(LEVELS[0] as f32);
    let (sumqx, sumq2) = sums(cpu, x, w, cpu.splat(1.0) / first);
    let mut scale = L::select(zero.lt(sumq2), sumqx / sumq2, zero);
    let mut best = scale * sumqx;
    for itry in -N_TRIES..=N_TRIES {
        let (sumqx, sumq2) = sums(cpu, x, w, cpu.splat((itry + LEVELS[0]) as f32) / max);
        let better = L::and(zero.lt(sumq2), (best * sumq2).lt(sumqx * sumqx));
        let this_scale = sumqx / sumq2;
        scale = L::select(better, this_scale, scale);
        best = L::select(better, this_scale * sumqx, best);
    }
    L::select(tiny, zero, scale)
}

/// The sums of w·q·x and w·q·q over a block, q being the level nearest to x·id.
#[inline(always)]
fn sums<L: Lanes>(cpu: Cpu<L>, x: &[L; SUB], w: &[L; SUB], id: L) -> (L, L) {
    let (mut sumqx, mut sumq2) = (cpu.splat(0.0), cpu.splat(0.0));
    for i in 0..SUB {
        let q = chosen(cpu, id * x[i], |k| LEVELS[k] as f32);
        let wq = w[i] * q;
        sumqx = sumqx + wq * x[i];
        sumq2 = sumq2 + wq * q;
    }
    (sumqx, sumq2)
}

/// `of` the level nearest to x, of which ggml takes the upper one in the middle between two, and the highest for a NaN. The middles of
/// whole numbers are f32 values, and the distances that ggml compares are exact around them.
#[inline(always)]
fn chosen<L: Lanes>(cpu: Cpu<L>, x: L, of: impl Fn(usize) -> f32) -> L {
    let mut chosen = cpu.splat(of(0));
    for k in 1..16 {
        let middle = cpu.splat((LEVELS[k - 1] + LEVELS[k]) as f32 / 2.0);
        chosen = L::select(x.lt(middle), chosen, cpu.splat(of(k)));
    }
    chosen
}

/// Numbers of the levels nearest to the values over their block's scale; that of 0 where it is 0.
#[inline(always)]
fn indices<L: Lanes>(cpu: Cpu<L>, x: &[L; SUB], scales: &[f32], levels: &mut [u8]) {
    let zero = cpu.splat(0.0);
    let scale = cpu.load(scales);
    let id = L::select(scale.eq(zero), zero, cpu.splat(1.0) / scale);
    for (i, x) in x.iter().enumerate() {
        scatter(cpu, chosen(cpu, id * *x, |k| k as f32), &mut levels[i..], SUB);
    }
}

#[inline(always)]
fn pack(levels: &[u8], out: &mut [u8]) {
    for i in 0..SUB / 2 {
        out[i] = levels[i] | levels[i + SUB / 2] << 4;
    }
}
