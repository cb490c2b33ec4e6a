//! q4_k, q5_k and q6_k: super-blocks of 256 values. Sub-blocks are fitted a lane each; what a super-block's scales have in common is
//! computed one by one.

use super::fit::{Search, symmetric, with_min};
use super::halves::{from_half, to_half};
use super::lanes::{Cpu, Lanes};

/// Values of a super-block.
pub const SUPER: usize = 256;
/// Values of a sub-block of q4_k and q5_k.
pub const SUB: usize = 32;
/// Sub-blocks of such a super-block.
pub const N_SUBS: usize = SUPER / SUB;
/// Values of a sub-block of q6_k.
const SMALL: usize = 16;
/// Sub-blocks of such a super-block.
const N_SMALLS: usize = SUPER / SMALL;
/// The most lanes that there are.
const MOST_LANES: usize = 32;
/// The highest scale in the 6 bits that q4_k and q5_k have for it.
const SCALES: f32 = 63.0;
/// A q6_k super-block with no larger scale is all zeros.
const TINY: f32 = 1e-15;

/// Super-blocks to q4_k (`BITS` 4) or q5_k (5); `importance` as long as `values` if it is there.
#[inline(always)]
pub fn with_mins<L: Lanes, const BITS: u32>(cpu: Cpu<L>, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let block_bytes = 16 + SUPER / 8 * BITS as usize;
    let group = L::N / N_SUBS;
    let nmax = (1 << BITS) - 1;
    let plain = match BITS {
        4 => Search { nmax, rmin: -1.0, rdelta: 0.1, nstep: 20, bounded: false },
        _ => Search { nmax, rmin: -0.5, rdelta: 0.1, nstep: 15, bounded: false },
    };
    let weighted = Search { nmax, rmin: -0.9, rdelta: 0.05, nstep: 36, bounded: true };
    let zero = cpu.splat(0.0);
    let mut levels = [0u8; MOST_LANES * SUB];
    let mut buffer = [0f32; MOST_LANES * SUB];
    let mut weights = [0f32; MOST_LANES * SUB];
    for (nth, out) in out.chunks_mut(group * block_bytes).enumerate() {
        let at = nth * group * SUPER;
        let n_blocks = out.len() / block_bytes;
        let values = whole(&values[at..at + n_blocks * SUPER], L::N * SUB, &mut buffer);
        let x = transposed::<L, SUB>(cpu, values);
        let mut w = x;
        let mut scales = [0f32; MOST_LANES];
        let mut mins = [0f32; MOST_LANES];
        let mut sums = [0f32; MOST_LANES];
        let fit = match importance {
            None => {
                let mut squares = zero;
                for x in &x {
                    squares = squares + *x * *x;
                }
                let average = (squares / cpu.splat(SUB as f32)).sqrt();
                for i in 0..SUB {
                    w[i] = average + x[i].abs();
                }
                with_min(cpu, &x, &w, plain)
            }
            Some(importance) => {
                let importance = whole(&importance[at..at + n_blocks * SUPER], L::N * SUB, &mut weights);
                let mut variances = [0f32; MOST_LANES];
                for (values, lanes) in values.chunks_exact(SUPER).zip(variances.chunks_exact_mut(N_SUBS)) {
                    lanes.fill(2.0 * sum_of_squares(values) / SUPER as f32);
                }
                let variance = cpu.load(&variances);
                let mut sum = zero;
                for i in 0..SUB {
                    w[i] = cpu.strided(&importance[i..], SUB) * (variance + x[i] * x[i]).sqrt();
                    sum = sum + w[i];
                }
                cpu.store(sum, &mut sums);
                with_min(cpu, &x, &w, weighted)
            }
        };
        cpu.store(fit.scale, &mut scales);
        cpu.store(fit.min, &mut mins);
        // The scale and the minimum of each lane as they are stored.
        let (mut d, mut dm) = ([0f32; MOST_LANES], [0f32; MOST_LANES]);
        for (nth, block) in out.chunks_exact_mut(block_bytes).enumerate() {
            let lanes = nth * N_SUBS..(nth + 1) * N_SUBS;
            let (scales, mins) = (&scales[lanes.clone()], &mins[lanes.clone()]);
            let (of_scales, of_mins) = match importance {
                None => (six_bits(scales), six_bits(mins)),
                Some(_) => {
                    let sums = &sums[lanes.clone()];
                    let (mut s, mut m) = (positive(scales, sums), positive(mins, sums));
                    if BITS == 5 {
                        for level in s.levels.iter_mut().chain(&mut m.levels) {
                            *level = (*level).min(63);
                        }
                    }
                    (s, m)
                }
            };
            let (half, half_min) = (to_half(of_scales.step), to_half(of_mins.step));
            block[..2].copy_from_slice(&half.to_le_bytes());
            block[2..4].copy_from_slice(&half_min.to_le_bytes());
            pack_scales(&of_scales.levels, &of_mins.levels, &mut block[4..16]);
            let (half, half_min) = (from_half(half), from_half(half_min));
            for (j, lane) in lanes.enumerate() {
                let (scale, min) = unpack_scales(j, &block[4..16]);
                d[lane] = half * f32::from(scale);
                dm[lane] = half_min * f32::from(min);
            }
        }
        let (d, dm) = (cpu.load(&d), cpu.load(&dm));
        let nothing = d.eq(zero);
        let some_nothing = L::any(nothing);
        for (i, x) in x.iter().enumerate() {
            let mut level = ((*x + dm) / d).nearest(0, nmax);
            if some_nothing {
                level = L::select(nothing, fit.level(cpu, *x), level);
            }
            scatter(cpu, level, &mut levels[i..], SUB);
        }
        for (block, levels) in out.chunks_exact_mut(block_bytes).zip(levels.chunks_exact(SUPER)) {
            match BITS {
                4 => pack_q4(levels, &mut block[16..]),
                _ => pack_q5(levels, &mut block[16..]),
            }
        }
    }
}

/// Super-blocks to q6_k; `importance` as long as `values` if it is there.
#[inline(always)]
pub fn q6_k<L: Lanes>(cpu: Cpu<L>, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const BLOCK_BYTES: usize = 210;
    let group = L::N / N_SMALLS;
    let zero = cpu.splat(0.0);
    let mut levels = [0u8; MOST_LANES * SMALL];
    let mut buffer = [0f32; MOST_LANES * SMALL];
    let mut weights = [0f32; MOST_LANES * SMALL];
    for (nth, out) in out.chunks_mut(group * BLOCK_BYTES).enumerate() {
        let at = nth * group * SUPER;
        let n_blocks = out.len() / BLOCK_BYTES;
        let values = whole(&values[at..at + n_blocks * SUPER], L::N * SMALL, &mut buffer);
        let x = transposed::<L, SMALL>(cpu, values);
        let mut w = x;
        match importance {
            None => {
                for w in &mut w {
                    *w = *w * *w;
                }
            }
            Some(importance) => {
                let importance = whole(&importance[at..at + n_blocks * SUPER], L::N * SMALL, &mut weights);
                w = transposed(cpu, importance);
            }
        }
        let fit = symmetric(cpu, &x, &w, 32);
        let mut scales = [0f32; MOST_LANES];
        cpu.store(fit.scale, &mut scales);
        let mut d = [0f32; MOST_LANES];
        for (nth, block) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let scales = &scales[nth * N_SMALLS..(nth + 1) * N_SMALLS];
            let Some(largest) = largest(scales) else {
                block.fill(0);
                continue;
            };
            let iscale = -128.0 / largest;
            let half = to_half(1.0 / iscale);
            block[208..].copy_from_slice(&half.to_le_bytes());
            for (j, scale) in scales.iter().enumerate() {
                let scale = nearest(iscale * scale).min(127) as i8;
                block[192 + j] = scale as u8;
                d[nth * N_SMALLS + j] = from_half(half) * f32::from(scale);
            }
        }
        let lanes = cpu.load(&d);
        let nothing = lanes.eq(zero);
        let some_nothing = L::any(nothing);
        for (i, x) in x.iter().enumerate() {
            let mut level = (*x / lanes).nearest(-32, 31) + cpu.splat(32.0);
            if some_nothing {
                level = L::select(nothing, fit.level(cpu, *x), level);
            }
            scatter(cpu, level, &mut levels[i..], SMALL);
        }
        for (nth, block) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            if largest(&scales[nth * N_SMALLS..(nth + 1) * N_SMALLS]).is_some() {
                pack_q6(&levels[nth * SUPER..(nth + 1) * SUPER], &mut block[..192]);
            }
        }
    }
}

/// `values`, with zeros behind them if they are not `n`.
#[inline(always)]
pub fn whole<'a>(values: &'a [f32], n: usize, buffer: &'a mut [f32]) -> &'a [f32] {
    if values.len() == n {
        return values;
    }
    buffer[..values.len()].copy_from_slice(values);
    buffer[values.len()..n].fill(0.0);
    &buffer[..n]
}

/// Value i of each block of `N` values, a block a lane.
#[inline(always)]
pub fn transposed<L: Lanes, const N: usize>(cpu: Cpu<L>, values: &[f32]) -> [L; N] {
    let mut x = [cpu.splat(0.0); N];
    for (i, x) in x.iter_mut().enumerate() {
        *x = cpu.strided(&values[i..], N);
    }
    x
}

/// Levels, small whole numbers, to every `stride`-th byte.
#[inline(always)]
pub fn scatter<L: Lanes>(cpu: Cpu<L>, levels: L, out: &mut [u8], stride: usize) {
    let mut numbers = [0i32; MOST_LANES];
    cpu.store_truncated(levels, &mut numbers);
    for (out, number) in out.iter_mut().step_by(stride).zip(&numbers[..L::N]) {
        *out = *number as u8;
    }
}

/// ggml's sum, one after the other.
pub fn sum_of_squares(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum, x| sum + x * x)
}

/// ggml's `nearest_int`.
pub fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Scales of a super-block: `levels` times `step`.
struct Scales {
    step: f32,
    levels: [u8; N_SUBS],
}

/// Scales in 6 bits, the largest of them 63.
fn six_bits(scales: &[f32]) -> Scales {
    let most = scales.iter().fold(0f32, |most, s| if *s > most { *s } else { most });
    let inverse = if most > 0.0 { SCALES / most } else { 0.0 };
    let mut levels = [0; N_SUBS];
    for (level, scale) in levels.iter_mut().zip(scales) {
        *level = (nearest(inverse * scale) as u8).min(63);
    }
    Scales { step: most / SCALES, levels }
}

/// ggml's `make_qp_quants`: scales in 6 bits with the least squared error, weighted by `w`.
fn positive(x: &[f32], w: &[f32]) -> Scales {
    const NMAX: i32 = 63;
    let mut levels = [0u8; N_SUBS];
    let max = x.iter().fold(0f32, |max, x| if max > *x { max } else { *x });
    if max < TINY {
        return Scales { step: 0.0, levels };
    }
    let mut iscale = NMAX as f32 / max;
    let scale = 1.0 / iscale;
    let mut best = 0.0;
    for (x, w) in x.iter().zip(w) {
        let diff = x - scale * f32::from(nearest(iscale * x) as u8);
        best += w * diff * diff;
    }
    for is in -4..=4 {
        if is == 0 {
            continue;
        }
        let try_iscale = (0.1 * is as f32 + NMAX as f32) / max;
        let try_scale = 1.0 / try_iscale;
        let mut error = 0.0;
        for (x, w) in x.iter().zip(w) {
            let diff = x - try_scale * nearest(try_iscale * x).min(NMAX) as f32;
            error += w * diff * diff;
        }
        if error < best {
            best = error;
            iscale = try_iscale;
        }
    }
    let (mut sumlx, mut suml2) = (0f32, 0f32);
    for (i, (x, w)) in x.iter().zip(w).enumerate() {
        let level = nearest(iscale * x).min(NMAX);
        levels[i] = level as u8;
        sumlx += w * x * level as f32;
        suml2 += w * level as f32 * level as f32;
    }
    for _ in 0..5 {
        let mut has_changed = false;
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let level = f32::from(levels[i]);
            let mut slx = sumlx - w * x * level;
            let mut sl2 = suml2 - w * level * level;
            if !(slx > 0.0 && sl2 > 0.0) {
                continue;
            }
            let level = nearest(x * sl2 / slx).min(NMAX);
            if level == i32::from(levels[i]) {
                continue;
            }
            slx += w * x * level as f32;
            sl2 += w * level as f32 * level as f32;
            if slx * slx * suml2 > sumlx * sumlx * sl2 {
                (levels[i], sumlx, suml2) = (level as u8, slx, sl2);
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    Scales { step: if suml2 > 0.0 { sumlx / suml2 } else { 0.0 }, levels }
}

/// The first scale of the largest magnitude; `None` where all are as good as zero.
fn largest(scales: &[f32]) -> Option<f32> {
    let (mut most, mut largest) = (0f32, 0f32);
    for scale in scales {
        if scale.abs() > most {
            (most, largest) = (scale.abs(), *scale);
        }
    }
    (most >= TINY).then_some(largest)
}

/// Eight scales and eight minima of 6 bits into 12 bytes.
fn pack_scales(scales: &[u8; N_SUBS], mins: &[u8; N_SUBS], out: &mut [u8]) {
    for j in 0..4 {
        let (scale, min) = (scales[j + 4], mins[j + 4]);
        out[j] = scales[j] | (scale >> 4) << 6;
        out[j + 4] = mins[j] | (min >> 4) << 6;
        out[j + 8] = (scale & 15) | (min & 15) << 4;
    }
}

/// The scale and the minimum of sub-block `j` from 12 bytes.
fn unpack_scales(j: usize, bytes: &[u8]) -> (u8, u8) {
    if j < 4 {
        return (bytes[j] & 63, bytes[j + 4] & 63);
    }
    ((bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4, (bytes[j + 4] >> 4) | (bytes[j] >> 6) << 4)
}

#[inline(always)]
fn pack_q4(levels: &[u8], out: &mut [u8]) {
    for (levels, out) in levels.chunks_exact(64).zip(out.chunks_exact_mut(32)) {
        for i in 0..32 {
            out[i] = levels[i] | levels[i + 32] << 4;
        }
    }
}

#[inline(always)]
fn pack_q5(levels: &[u8], out: &mut [u8]) {
    let (high, low) = out.split_at_mut(32);
    high.fill(0);
    for (nth, (levels, low)) in levels.chunks_exact(64).zip(low.chunks_exact_mut(32)).enumerate() {
        for i in 0..32 {
            let (one, other) = (levels[i], levels[i + 32]);
            low[i] = (one & 15) | other << 4;
            high[i] |= (one >> 4 | other >> 4 << 1) << (2 * nth);
        }
    }
}

#[inline(always)]
fn pack_q6(levels: &[u8], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(128);
    for (nth, levels) in levels.chunks_exact(128).enumerate() {
        let (low, high) = (&mut low[64 * nth..64 * nth + 64], &mut high[32 * nth..32 * nth + 32]);
        for i in 0..32 {
            let of = [levels[i], levels[i + 32], levels[i + 64], levels[i + 96]];
            low[i] = (of[0] & 15) | of[2] << 4;
            low[i + 32] = (of[1] & 15) | of[3] << 4;
            high[i] = of[0] >> 4 | of[1] >> 4 << 2 | of[2] >> 4 << 4 | of[3] >> 4 << 6;
        }
    }
}
