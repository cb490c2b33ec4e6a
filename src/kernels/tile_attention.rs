//! Attention by AMX: as `attention`, with tiles of 32 queries by 32 keys, and of 32 queries by 32 values of a head.

use std::arch::x86_64::*;

use super::amx::{self, SIDE, Shapes, Sums, TILE_ROWS, Tile, Tiles};
use super::attention::row;
use super::avx512::{self, load};
use super::panel::{DEPTH, ROWS};
use crate::ggml::{Custom, Operand, Share, Task};

/// Parts that a thread gets at least, if there are as many: a busy core takes fewer. Each part packs the keys and values of its head.
const PARTS: usize = 4;

/// The operation; its arguments are those of [`attention`](super::attention()).
#[derive(Default)]
pub struct Attention {
    share: Share,
}

impl Custom for Attention {
    fn run(&self, task: &Task<'_>) {
        let [q, k, v] = [0, 1, 2].map(|i| task.arg(i));
        let ([d, n_head, n_q, _], n_kv) = (q.dims, k.dims[2]);
        let n_groups = n_q.div_ceil(SIDE);
        let n_parts = (PARTS * task.n_threads).div_ceil(n_head).min(n_groups);
        let part = n_groups.div_ceil(n_parts);
        let mut head = Head::new(d, n_kv);
        // SAFETY: `attention` has seen what the CPU needs.
        let shapes = unsafe { Shapes::set() };
        for i in self.share.take(n_head * n_parts, task.n_threads) {
            let (which, groups) = (i / n_parts, i % n_parts * part..n_groups.min((i % n_parts + 1) * part));
            // SAFETY: as above.
            unsafe { head.fill(which, k, v) };
            for first in groups.map(|group| group * SIDE) {
                let n = SIDE.min(n_q - first);
                // SAFETY: as above.
                unsafe { head.attend(&shapes, which, q, first..first + n) };
                for j in 0..n {
                    // SAFETY: these queries of this head belong to the one thread that took them.
                    let out = unsafe { task.out((((first + j) * n_head) + which) * d, d) };
                    head.take(j, out);
                }
            }
        }
    }
}

/// A head in bf16, and room for what 32 queries need.
struct Head {
    d: usize,
    n_kv: usize,
    /// Tiles along d, and along the keys.
    d_tiles: usize,
    key_tiles: usize,
    /// `[32 keys][32 of d]`, on the right.
    keys: Vec<Tiles>,
    /// `[32 of d][32 keys]`, on the right.
    values: Vec<Tiles>,
    /// `[32 of d]` of 32 queries, on the left.
    queries: Vec<Tiles>,
    /// `[32 keys]`, each `[query][key]`.
    scores: Vec<Sums>,
    /// `[32 keys]` of 32 queries, on the left.
    weights: Vec<Tiles>,
    /// 1 / the sum of a query's weights.
    inverse: [f32; SIDE],
    /// `[32 of d]`, each `[query][of d]`.
    sums: Vec<Sums>,
    /// A row of a head and zeros, in f32.
    row: Vec<f32>,
    /// 16 rows in bf16, `[row][pair of d]`.
    pairs: Vec<u32>,
}

impl Head {
    fn new(d: usize, n_kv: usize) -> Self {
        let (d_tiles, key_tiles) = (d.div_ceil(DEPTH), n_kv.div_ceil(ROWS));
        Head {
            d,
            n_kv,
            d_tiles,
            key_tiles,
            keys: vec![[Tile::ZERO; 2]; key_tiles * d_tiles],
            values: vec![[Tile::ZERO; 2]; d_tiles * key_tiles],
            queries: vec![[Tile::ZERO; 2]; d_tiles],
            scores: vec![Sums::ZERO; key_tiles],
            weights: vec![[Tile::ZERO; 2]; key_tiles],
            inverse: [0.0; SIDE],
            sums: vec![Sums::ZERO; d_tiles],
            row: vec![0.0; 2 * d_tiles * DEPTH],
            pairs: vec![0; TILE_ROWS * d_tiles * DEPTH / 2],
        }
    }

    /// Takes the keys and values of a head.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn fill(&mut self, head: usize, k: Operand<'_>, v: Operand<'_>) {
        let (width, n_pairs) = (self.d_tiles * DEPTH, self.d_tiles * DEPTH / 2);
        for first in (0..self.key_tiles * ROWS).step_by(TILE_ROWS) {
            for i in 0..TILE_ROWS {
                self.row[..width].fill(0.0);
                if first + i < self.n_kv {
                    self.row[..self.d].copy_from_slice(row(k, head, first + i));
                }
                avx512::to_bf16(&self.row[..width], &mut self.pairs[i * n_pairs..][..n_pairs]);
            }
            let lanes = _mm512_mullo_epi32(
                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                _mm512_set1_epi32(n_pairs as i32),
            );
            for p in 0..n_pairs {
                let tile = &mut self.keys[first / ROWS * self.d_tiles + p / TILE_ROWS][first % ROWS / TILE_ROWS];
                // SAFETY: the p-th pair of each of 16 rows of n_pairs; a row of a tile is 64 bytes.
                unsafe {
                    let pairs = _mm512_i32gather_epi32::<4>(lanes, self.pairs.as_ptr().add(p).cast());
                    _mm512_storeu_si512(tile.0[p % TILE_ROWS].as_mut_ptr().cast(), pairs);
                }
            }
        }
        for pair in 0..self.key_tiles * ROWS / 2 {
            self.row.fill(0.0);
            for i in 0..2 {
                if 2 * pair + i < self.n_kv {
                    self.row[i * width..][..self.d].copy_from_slice(row(v, head, 2 * pair + i));
                }
            }
            let (even, odd) = self.row.split_at(width);
            for (t, (even, odd)) in even.as_chunks::<DEPTH>().0.iter().zip(odd.as_chunks::<DEPTH>().0).enumerate() {
                let tiles = &mut self.values[t * self.key_tiles + pair / TILE_ROWS];
                for (half, tile) in tiles.iter_mut().enumerate() {
                    let pairs = amx::interleaved(load(even, half), load(odd, half));
                    // SAFETY: a row of a tile is 64 bytes.
                    unsafe { _mm512_storeu_si512(tile.0[pair % TILE_ROWS].as_mut_ptr().cast(), pairs) };
                }
            }
        }
    }

    /// Attends with at most 32 `queries`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn attend(&mut self, shapes: &Shapes, head: usize, q: Operand<'_>, queries: std::ops::Range<usize>) {
        let width = self.d_tiles * DEPTH;
        for (j, i) in queries.enumerate() {
            self.row[..self.d].copy_from_slice(row(q, head, i));
            self.row[self.d..width].fill(0.0);
            for (t, values) in self.row[..width].as_chunks::<DEPTH>().0.iter().enumerate() {
                let tile = &mut self.queries[t][j / TILE_ROWS];
                // SAFETY: by this function's contract.
                unsafe { amx::put_row(tile, j % TILE_ROWS, [load(values, 0), load(values, 1)]) };
            }
        }
        for (keys, scores) in self.keys.chunks_exact(self.d_tiles).zip(&mut self.scores) {
            amx::multiply(shapes, &self.queries, keys, scores, true);
        }
        let scale = 1.0 / (self.d as f32).sqrt();
        for j in 0..SIDE {
            self.inverse[j] = 1.0 / self.softmax(j, scale);
        }
        for (values, sums) in self.values.chunks_exact(self.key_tiles).zip(&mut self.sums) {
            amx::multiply(shapes, &self.weights, values, sums, true);
        }
    }

    /// exp(scale · (score − largest)) of the `j`-th query as its weights; their sum in f32.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn softmax(&mut self, j: usize, scale: f32) -> f32 {
        if let Some(last) = self.scores.last_mut() {
            last.0[j][self.n_kv - (self.key_tiles - 1) * ROWS..].fill(f32::NEG_INFINITY);
        }
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for scores in &self.scores {
            largest = _mm512_max_ps(largest, _mm512_max_ps(load(&scores.0[j], 0), load(&scores.0[j], 1)));
        }
        let (largest, scale) = (_mm512_set1_ps(_mm512_reduce_max_ps(largest)), _mm512_set1_ps(scale));
        let mut sum = _mm512_setzero_ps();
        for (scores, tiles) in self.scores.iter().zip(&mut self.weights) {
            let low = _mm512_mul_ps(_mm512_sub_ps(load(&scores.0[j], 0), largest), scale);
            let high = _mm512_mul_ps(_mm512_sub_ps(load(&scores.0[j], 1), largest), scale);
            let (low, high) = (avx512::exp(low), avx512::exp(high));
            sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
            // SAFETY: this function has the features.
            unsafe { amx::put_row(&mut tiles[j / TILE_ROWS], j % TILE_ROWS, [low, high]) };
        }
        _mm512_reduce_add_ps(sum)
    }

    /// The `j`-th query's result, `d` values.
    fn take(&self, j: usize, out: &mut [f32]) {
        for (to, sums) in out.chunks_mut(ROWS).zip(&self.sums) {
            to.iter_mut().zip(&sums.0[j]).for_each(|(to, sum)| *to = sum * self.inverse[j]);
        }
    }
}
