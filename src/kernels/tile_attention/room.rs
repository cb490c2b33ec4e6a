//! A block of a head's keys and values, and the queries that look at it.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Problem;
use super::operands::{Sight, ends};
use super::split::{Digits, Part, Split, multiply};
#[cfg(text_kernels)]
use crate::kernels::amx::Tiles;
use crate::kernels::amx::{SIDE, Shapes, Sums};
use crate::kernels::avx512::{self, LANES, load};
use crate::kernels::panel::{DEPTH, ROWS};

/// Keys of a block, for each digit: with heads of 128 they and their values take 512 KiB, which stay in the second cache.
const KEYS: usize = 1024;

/// A block of a head, and what its queries have of it.
pub struct Room {
    /// Tiles along a vector.
    d_tiles: usize,
    /// Tiles of keys that a block has at most.
    key_tiles: usize,
    /// `[32 keys][32 of d]`, on the right.
    keys: Split,
    /// `[32 of d][32 keys]`, on the right.
    values: Split,
    /// `[32 of d]` of 32 queries, on the left.
    queries: Split,
    /// `[32 keys]`, each `[query][key]`.
    scores: Vec<Sums>,
    /// `[32 keys]` of 32 queries, on the left.
    weights: Split,
    /// `[group]`.
    found: Vec<Found>,
    /// `[group][32 of d]`, each `[query][of d]`.
    sums: Vec<Sums>,
    /// Two vectors and zeros, in f32.
    rows: [Vec<f32>; 2],
}

/// What 32 queries have met.
#[derive(Clone)]
struct Found {
    /// Their largest scores.
    largest: [f32; SIDE],
    /// Sums of their weights.
    totals: [f32; SIDE],
}

impl Found {
    const NOTHING: Self = Found { largest: [f32::NEG_INFINITY; SIDE], totals: [0.0; SIDE] };
}

/// Tiles of keys that a block has at most.
fn key_tiles(digits: Digits, n_kv: usize) -> usize {
    let n_keys = if digits == Digits::One { KEYS } else { KEYS / 2 };
    n_kv.min(n_keys).div_ceil(ROWS)
}

/// Bytes that a thread has at most for vectors of `d` values, `n_q` queries of each stream among them.
#[cfg(text_kernels)]
pub fn bytes_of(digits: Digits, d: usize, n_q: usize) -> usize {
    let (d_tiles, key_tiles, n_groups) = (d.div_ceil(DEPTH), key_tiles(digits, KEYS), n_q.div_ceil(SIDE));
    let n_digits = if digits == Digits::One { 1 } else { 2 };
    let n_tiles = n_digits * (2 * key_tiles * d_tiles + d_tiles + key_tiles);
    let n_sums = key_tiles + n_groups * d_tiles;
    n_tiles * size_of::<Tiles>() + n_sums * size_of::<Sums>() + n_groups * size_of::<Found>()
}

impl Room {
    pub fn new(p: &Problem<'_>, n_groups: usize) -> Self {
        let (d_tiles, key_tiles) = (p.d.div_ceil(DEPTH), key_tiles(p.digits, p.n_kv));
        Room {
            d_tiles,
            key_tiles,
            keys: Split::new(p.digits, key_tiles * d_tiles),
            values: Split::new(p.digits, d_tiles * key_tiles),
            queries: Split::new(p.digits, d_tiles),
            scores: vec![Sums::ZERO; key_tiles],
            weights: Split::new(p.digits, key_tiles),
            found: vec![Found::NOTHING; n_groups],
            sums: vec![Sums::ZERO; n_groups * d_tiles],
            rows: [(); 2].map(|()| vec![0.0; d_tiles * DEPTH]),
        }
    }

    /// Computes some groups of 32 queries of a head, into their order's slots.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    pub unsafe fn attend(
        &mut self,
        p: &Problem<'_>,
        shapes: &Shapes,
        [stream, head]: [usize; 2],
        groups: Range<usize>,
        sights: &[Sight],
    ) {
        let all_tiles = p.n_kv.div_ceil(ROWS);
        self.found[..groups.len()].fill(Found::NOTHING);
        self.sums[..groups.len() * self.d_tiles].fill(Sums::ZERO);
        for block in (0..all_tiles).step_by(self.key_tiles) {
            let block = block..all_tiles.min(block + self.key_tiles);
            // A block's tiles from the first that any of the 32 queries sees to the last.
            let seen = |group: usize| {
                let sights = &sights[group * all_tiles..][block.clone()];
                let is_seen = |sight: &Sight| *sight != Sight::None;
                let first = sights.iter().position(is_seen)?;
                sights.iter().rposition(is_seen).map(|last| first..last + 1)
            };
            if groups.clone().all(|group| seen(group).is_none()) {
                continue;
            }
            // SAFETY: by this function's contract.
            unsafe { self.fill(p, [stream, head * p.n_kv_heads / p.n_heads], block.clone()) };
            for (slot, group) in groups.clone().enumerate() {
                let Some(tiles) = seen(group) else { continue };
                let sights = &sights[group * all_tiles..][block.clone()];
                // SAFETY: as above.
                unsafe { self.look(p, shapes, ([stream, head], group, slot), (block.start, tiles), sights) };
            }
        }
    }

    /// Takes keys and values.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn fill(&mut self, p: &Problem<'_>, at: [usize; 2], tiles: Range<usize>) {
        // SAFETY: by this function's contract, all of it; what is taken and put is of whole rows.
        unsafe {
            for (i, tile) in tiles.enumerate() {
                for j in 0..ROWS {
                    p.k.take(at, tile * ROWS + j, p.n_kv, &mut self.rows[0][..p.d]);
                    for (t, values) in self.rows[0].as_chunks::<DEPTH>().0.iter().enumerate() {
                        self.keys.put_row(i * self.d_tiles + t, j, [load(values, 0), load(values, 1)]);
                    }
                }
                self.keys.turn(i * self.d_tiles..(i + 1) * self.d_tiles);
                for pair in 0..ROWS / 2 {
                    for (j, row) in self.rows.iter_mut().enumerate() {
                        p.v.take(at, tile * ROWS + 2 * pair + j, p.n_kv, &mut row[..p.d]);
                    }
                    let [even, odd] = self.rows.each_ref().map(|row| row.as_chunks::<DEPTH>().0);
                    for (t, (even, odd)) in even.iter().zip(odd).enumerate() {
                        let [even, odd] = [even, odd].map(|row| [load(row, 0), load(row, 1)]);
                        self.values.put_pair(t * self.key_tiles + i, pair, even, odd);
                    }
                }
            }
        }
    }

    /// Lets 32 queries look at some tiles of the block that begins with the tile `start`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn look(
        &mut self,
        p: &Problem<'_>,
        shapes: &Shapes,
        (at, group, slot): ([usize; 2], usize, usize),
        (start, tiles): (usize, Range<usize>),
        sights: &[Sight],
    ) {
        let scale = _mm512_set1_ps(p.scale);
        for j in 0..SIDE {
            // SAFETY: by this function's contract.
            unsafe {
                p.q.take(at, group * SIDE + j, p.n_q, &mut self.rows[0][..p.d]);
                for (t, values) in self.rows[0].as_chunks::<DEPTH>().0.iter().enumerate() {
                    self.queries.put_row(t, j, [0, 1].map(|half| _mm512_mul_ps(load(values, half), scale)));
                }
            }
        }
        for tile in tiles.clone() {
            let keys = Part(&self.keys, tile * self.d_tiles..(tile + 1) * self.d_tiles);
            multiply(shapes, Part(&self.queries, 0..self.d_tiles), keys, &mut self.scores[tile], true);
        }
        let sums = &mut self.sums[slot * self.d_tiles..][..self.d_tiles];
        for j in 0..SIDE {
            let found = &mut self.found[slot];
            let (query, mut largest) = (group * SIDE + j, _mm512_set1_ps(f32::NEG_INFINITY));
            for tile in tiles.clone() {
                let (scores, key) = (&mut self.scores[tile].0[j], (start + tile) * ROWS);
                let mut halves = [load(scores, 0), load(scores, 1)];
                let mask = p.mask.filter(|_| sights[tile] != Sight::All && query < p.n_q);
                if mask.is_some() || p.n_kv - key < ROWS {
                    // SAFETY: by this function's contract.
                    let added =
                        mask.map_or_else(|| ends(p.n_kv - key), |m| unsafe { m.row(at[0], query, key, p.n_kv) });
                    let added = [_mm512_castsi512_si256(added), _mm512_extracti64x4_epi64::<1>(added)];
                    halves = [0, 1].map(|half| _mm512_add_ps(halves[half], _mm512_cvtph_ps(added[half])));
                    for (to, half) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
                        // SAFETY: 16 numbers.
                        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), half) };
                    }
                }
                largest = _mm512_max_ps(largest, _mm512_max_ps(halves[0], halves[1]));
            }
            let largest = found.largest[j].max(_mm512_reduce_max_ps(largest));
            if largest > found.largest[j] {
                let factor = (found.largest[j] - largest).exp();
                found.totals[j] *= factor;
                if found.largest[j] > f32::NEG_INFINITY {
                    sums.iter_mut().for_each(|sums| sums.0[j].iter_mut().for_each(|sum| *sum *= factor));
                }
                found.largest[j] = largest;
            }
            // Who has seen nothing yet takes nothing from anything: e^(-∞) of all scores.
            let largest = _mm512_set1_ps(if largest == f32::NEG_INFINITY { 0.0 } else { largest });
            let mut total = _mm512_setzero_ps();
            for tile in tiles.clone() {
                let scores = &self.scores[tile].0[j];
                let weights = [0, 1].map(|half| avx512::exp(_mm512_sub_ps(load(scores, half), largest)));
                total = _mm512_add_ps(total, _mm512_add_ps(weights[0], weights[1]));
                // SAFETY: this function has the features.
                unsafe { self.weights.put_row(tile, j, weights) };
            }
            found.totals[j] += _mm512_reduce_add_ps(total);
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let values = Part(&self.values, t * self.key_tiles + tiles.start..t * self.key_tiles + tiles.end);
            multiply(shapes, Part(&self.weights, tiles.clone()), values, sums, false);
        }
    }

    /// The result of the `j`-th query of a group, `d` values.
    pub fn take(&self, slot: usize, j: usize, out: &mut [f32]) {
        let total = self.found[slot].totals[j];
        let inverse = if total == 0.0 { 0.0 } else { 1.0 / total };
        for (to, sums) in out.chunks_mut(ROWS).zip(&self.sums[slot * self.d_tiles..]) {
            to.iter_mut().zip(&sums.0[j]).for_each(|(to, sum)| *to = sum * inverse);
        }
    }
}
