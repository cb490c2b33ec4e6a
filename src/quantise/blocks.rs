//! q8_0, q4_0, q4_1, q5_0 and q5_1: blocks of 32 values, a block a lane.

use super::fit::{Search, symmetric, with_min};
use super::halves::to_half;
use super::lanes::{Cpu, Lanes};
use super::superblocks::{scatter, transposed, whole};

/// Values of a block.
pub const BLOCK: usize = 32;
/// The most lanes that there are.
const MOST_LANES: usize = 32;

/// A type with blocks of 32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// q8_0
    Eight,
    /// q4_0 and q5_0, of so many bits
    Symmetric(u32),
    /// q4_1 and q5_1, of so many bits
    WithMin(u32),
}

impl Kind {
    fn block_bytes(self) -> usize {
        match self {
            Kind::Eight => 2 + BLOCK,
            Kind::Symmetric(bits) => 2 + BLOCK / 8 * bits as usize,
            Kind::WithMin(bits) => 4 + BLOCK / 8 * bits as usize,
        }
    }
}

/// Scale, minimum and levels of the blocks in all lanes.
struct Made {
    scales: [f32; MOST_LANES],
    mins: [f32; MOST_LANES],
    levels: [u8; MOST_LANES * BLOCK],
}

/// Blocks of a kind. `importance` as long as `values` if it is there, with the mean square of the row that they are of.
#[inline(always)]
pub fn blocks<L: Lanes>(cpu: Cpu<L>, kind: Kind, values: &[f32], importance: Option<(&[f32], f32)>, out: &mut [u8]) {
    let block_bytes = kind.block_bytes();
    let mut buffer = [0f32; MOST_LANES * BLOCK];
    let mut weights = [0f32; MOST_LANES * BLOCK];
    let mut made = Made { scales: [0.0; MOST_LANES], mins: [0.0; MOST_LANES], levels: [0; MOST_LANES * BLOCK] };
    for (nth, out) in out.chunks_mut(L::N * block_bytes).enumerate() {
        let at = nth * L::N * BLOCK;
        let range = at..at + out.len() / block_bytes * BLOCK;
        let x = transposed::<L, BLOCK>(cpu, whole(&values[range.clone()], L::N * BLOCK, &mut buffer));
        match (kind, importance) {
            (Kind::Eight, _) => eight_bits(cpu, &x, &mut made),
            (Kind::Symmetric(bits), None) => from_largest(cpu, &x, bits, &mut made),
            (Kind::WithMin(bits), None) => from_range(cpu, &x, bits, &mut made),
            (_, Some((importance, variance))) => {
                let importance = whole(&importance[range], L::N * BLOCK, &mut weights);
                let mut w = x;
                for i in 0..BLOCK {
                    w[i] = cpu.strided(&importance[i..], BLOCK) * (cpu.splat(variance) + x[i] * x[i]).sqrt();
                }
                fitted(cpu, kind, &x, &w, &mut made);
            }
        }
        for (j, block) in out.chunks_exact_mut(block_bytes).enumerate() {
            let levels = &made.levels[j * BLOCK..(j + 1) * BLOCK];
            block[..2].copy_from_slice(&to_half(made.scales[j]).to_le_bytes());
            match kind {
                Kind::Eight => block[2..].copy_from_slice(levels),
                Kind::Symmetric(bits) => pack(levels, bits, &mut block[2..]),
                Kind::WithMin(bits) => {
                    block[2..4].copy_from_slice(&to_half(made.mins[j]).to_le_bytes());
                    pack(levels, bits, &mut block[4..]);
                }
            }
        }
    }
}

#[inline(always)]
fn eight_bits<L: Lanes>(cpu: Cpu<L>, x: &[L; BLOCK], made: &mut Made) {
    let mut amax = cpu.splat(0.0);
    for x in x {
        amax = amax.greatest(x.abs());
    }
    let d = amax / cpu.splat(127.0);
    let id = inverse(cpu, d);
    cpu.store(d, &mut made.scales);
    for (i, x) in x.iter().enumerate() {
        let level = *x * id;
        scatter(cpu, level + level.half_away(), &mut made.levels[i..], BLOCK);
    }
}

/// The value of the largest magnitude is the lowest level.
#[inline(always)]
fn from_largest<L: Lanes>(cpu: Cpu<L>, x: &[L; BLOCK], bits: u32, made: &mut Made) {
    let (mut max, mut amax) = (cpu.splat(0.0), cpu.splat(0.0));
    for x in x {
        let magnitude = x.abs();
        let larger = amax.lt(magnitude);
        amax = L::select(larger, magnitude, amax);
        max = L::select(larger, *x, max);
    }
    let middle = (1 << (bits - 1)) as f32;
    let d = max / cpu.splat(-middle);
    let id = inverse(cpu, d);
    cpu.store(d, &mut made.scales);
    for (i, x) in x.iter().enumerate() {
        scatter(cpu, *x * id + cpu.splat(middle + 0.5), &mut made.levels[i..], BLOCK);
    }
    hold(&mut made.levels[..L::N * BLOCK], bits);
}

/// Smallest and largest value are the lowest and the highest level.
#[inline(always)]
fn from_range<L: Lanes>(cpu: Cpu<L>, x: &[L; BLOCK], bits: u32, made: &mut Made) {
    let (mut min, mut max) = (cpu.splat(f32::MAX), cpu.splat(-f32::MAX));
    for x in x {
        min = x.least(min);
        max = x.greatest(max);
    }
    let d = (max - min) / cpu.splat(((1 << bits) - 1) as f32);
    let id = inverse(cpu, d);
    cpu.store(d, &mut made.scales);
    cpu.store(min, &mut made.mins);
    for (i, x) in x.iter().enumerate() {
        scatter(cpu, (*x - min) * id + cpu.splat(0.5), &mut made.levels[i..], BLOCK);
    }
    // ggml does so for 4 bits only.
    if bits == 4 {
        hold(&mut made.levels[..L::N * BLOCK], bits);
    }
}

/// Fitted by trying, as ggml does with an importance matrix.
#[inline(always)]
fn fitted<L: Lanes>(cpu: Cpu<L>, kind: Kind, x: &[L; BLOCK], w: &[L; BLOCK], made: &mut Made) {
    match kind {
        Kind::WithMin(bits) => {
            let search = Search { nmax: (1 << bits) - 1, rmin: -0.9, rdelta: 0.05, nstep: 36, bounded: true };
            let fit = with_min(cpu, x, w, search);
            cpu.store(fit.scale, &mut made.scales);
            cpu.store(cpu.splat(-1.0) * fit.min, &mut made.mins);
            for (i, x) in x.iter().enumerate() {
                scatter(cpu, fit.level(cpu, *x), &mut made.levels[i..], BLOCK);
            }
        }
        Kind::Symmetric(bits) => {
            let fit = symmetric(cpu, x, w, 1 << (bits - 1));
            cpu.store(fit.scale, &mut made.scales);
            for (i, x) in x.iter().enumerate() {
                scatter(cpu, fit.level(cpu, *x), &mut made.levels[i..], BLOCK);
            }
        }
        // Nothing to fit: its 8 bits look at no importance.
        Kind::Eight => eight_bits(cpu, x, made),
    }
}

/// 1/d, and 0 for 0.
#[inline(always)]
fn inverse<L: Lanes>(cpu: Cpu<L>, d: L) -> L {
    let zero = cpu.splat(0.0);
    L::select(d.eq(zero), zero, cpu.splat(1.0) / d)
}

/// C's `MIN(15, (int8_t)level)`: at most the highest level, as signed bytes.
#[inline(always)]
fn hold(levels: &mut [u8], bits: u32) {
    let most = ((1 << bits) - 1) as i8;
    for level in levels {
        *level = (*level as i8).min(most) as u8;
    }
}

/// 4 bits of each level, and the fifth ones before them if there are any.
#[inline(always)]
fn pack(levels: &[u8], bits: u32, out: &mut [u8]) {
    let low = if bits == 5 {
        let fifth = (0..BLOCK).fold(0u32, |fifth, i| fifth | u32::from(levels[i] >> 4 & 1) << i);
        out[..4].copy_from_slice(&fifth.to_le_bytes());
        &mut out[4..]
    } else {
        &mut out[..]
    };
    for i in 0..BLOCK / 2 {
        // What is beyond 4 bits, ggml keeps of the lower half where there is no fifth: only odd blocks have it.
        let first = if bits == 5 { levels[i] & 15 } else { levels[i] };
        low[i] = first | levels[i + BLOCK / 2] << 4;
    }
}
