//! Attention as two small matrix products for six queries of a head at a time; the scores never leave the cache.

use std::arch::x86_64::*;

use super::avx512::{self, LANES};
use super::columns::COLUMNS;
use super::panel::ROWS;
use super::{Kernels, tile_attention};
use crate::ggml::{Context, Custom, Operand, Share, Task, Tensor};
use crate::quant::GgmlType;

/// Queries that a thread takes at once: few enough that every core gets some of them, many enough that packing a head's keys
/// and values for them costs little.
const QUERIES: usize = 42 * COLUMNS;

struct Attention {
    share: Share,
}

/// softmax(qᵀk / √d) v: `q` `[d, n_head, n_q]`, `k` and `v` `[d, n_head, n_kv]`, f32, views of contiguous rows; gives
/// `[d·n_head, n_q]`. Rounds q, k, v and the weights to bf16: about 0.4 % of an output.
pub fn attention<'c>(c: &'c Context<'_>, how: Kernels, q: Tensor<'c>, k: Tensor<'c>, v: Tensor<'c>) -> Tensor<'c> {
    assert!(how.attend() && how.is_available(), "attention by {how:?} on another CPU");
    let ([d, n_head, n_q, _], keys) = (q.dims(), k.dims());
    assert!(keys == v.dims() && keys[..2] == [d, n_head], "attention of {:?} and {keys:?}", q.dims());
    let (dims, args) = ([d * n_head, n_q], [q, k, v]);
    match how {
        Kernels::Amx => c.custom(GgmlType::F32, dims, &args, tile_attention::Attention::default()),
        _ => c.custom(GgmlType::F32, dims, &args, Attention { share: Share::default() }),
    }
}

impl Custom for Attention {
    fn run(&self, task: &Task<'_>) {
        let [q, k, v] = [0, 1, 2].map(|i| task.arg(i));
        let ([d, n_head, n_q, _], n_kv) = (q.dims, k.dims[2]);
        let n_parts = n_q.div_ceil(QUERIES);
        let mut packed = Packed::new(d, n_kv);
        for i in self.share.take(n_head * n_parts, task.n_threads) {
            let (head, first) = (i / n_parts, i % n_parts * QUERIES);
            packed.fill(head, k, v);
            for first in (first..n_q.min(first + QUERIES)).step_by(COLUMNS) {
                let (columns, d_rows) = (first..n_q.min(first + COLUMNS), packed.d_rows());
                // SAFETY: `attention` has seen what the CPU needs.
                let sums = unsafe { packed.attend(head, q, columns.clone()) };
                for (column, values) in columns.zip(sums.chunks_exact(d_rows)) {
                    // SAFETY: these queries of this head belong to the one thread that took them.
                    unsafe { task.out((column * n_head + head) * d, d) }.copy_from_slice(&values[..d]);
                }
            }
        }
    }
}

/// The `d` values of position `i` of a head.
pub(super) fn row(t: Operand<'_>, head: usize, i: usize) -> &[f32] {
    let start = head * t.strides[1] + i * t.strides[2];
    // SAFETY: q, k and v are f32 (the graph was made so); the slice is bounded by the operand's bytes.
    unsafe { Operand { bytes: &t.bytes[start..start + t.dims[0] * size_of::<f32>()], ..t }.values() }
}

/// A head in bf16, and room for what six queries need.
struct Packed {
    d: usize,
    n_kv: usize,
    /// `[keys / 32][pair of d][32 keys]`.
    keys: Vec<[u32; ROWS]>,
    /// `[d / 32][pair of keys][32 of d]`.
    values: Vec<[u32; ROWS]>,
    /// `[query][pair of d]`, filled up to whole panels.
    queries: Vec<u32>,
    /// `[query][key]`.
    scores: Vec<f32>,
    /// `[query][pair of keys]`.
    weights: Vec<u32>,
    /// `[query][d]`.
    sums: Vec<f32>,
    /// Two rows of d, filled up to whole panels.
    rows: Vec<f32>,
    /// What `rows` is in bf16.
    pairs: Vec<u32>,
}

impl Packed {
    fn new(d: usize, n_kv: usize) -> Self {
        let (key_panels, d_panels) = (n_kv.div_ceil(ROWS), d.div_ceil(ROWS));
        let (n_keys, d_rows) = (key_panels * ROWS, d_panels * ROWS);
        Packed {
            d,
            n_kv,
            keys: vec![[0; ROWS]; key_panels * d.div_ceil(2)],
            values: vec![[0; ROWS]; d_panels * n_keys / 2],
            queries: vec![0; COLUMNS * d_rows / 2],
            scores: vec![0.0; COLUMNS * n_keys],
            weights: vec![0; COLUMNS * n_keys / 2],
            sums: vec![0.0; COLUMNS * d_rows],
            rows: vec![0.0; 2 * d_rows],
            pairs: vec![0; d_rows],
        }
    }

    /// Extent of a query's sums: d and what fills its last panel.
    fn d_rows(&self) -> usize {
        self.d.div_ceil(ROWS) * ROWS
    }

    /// Takes the keys and values of a head.
    fn fill(&mut self, head: usize, k: Operand<'_>, v: Operand<'_>) {
        let (n_pairs, n_key_pairs) = (self.d.div_ceil(2), self.weights.len() / COLUMNS);
        self.rows.fill(0.0);
        for i in 0..self.n_kv {
            self.rows[..self.d].copy_from_slice(row(k, head, i));
            self.round();
            for (p, pair) in self.pairs[..n_pairs].iter().enumerate() {
                self.keys[i / ROWS * n_pairs + p][i % ROWS] = *pair;
            }
        }
        for i in (0..self.n_kv).step_by(2) {
            self.rows.fill(0.0);
            for (second, i) in (i..self.n_kv.min(i + 2)).enumerate() {
                self.rows[second..].iter_mut().step_by(2).zip(row(v, head, i)).for_each(|(to, x)| *to = *x);
            }
            self.round();
            for (panel, pairs) in self.pairs.as_chunks::<ROWS>().0.iter().enumerate() {
                self.values[panel * n_key_pairs + i / 2] = *pairs;
            }
        }
    }

    /// `pairs` from `rows`.
    fn round(&mut self) {
        // SAFETY: `attention` has seen what the CPU needs.
        unsafe { avx512::to_bf16(&self.rows, &mut self.pairs) };
    }

    /// The sums of `columns`, at most six queries: `[query][d_rows]`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn attend(&mut self, head: usize, q: Operand<'_>, columns: std::ops::Range<usize>) -> &[f32] {
        let (n_pairs, n_key_pairs, n_keys) =
            (self.d.div_ceil(2), self.weights.len() / COLUMNS, self.scores.len() / COLUMNS);
        let d_rows = self.d_rows();
        self.rows.fill(0.0);
        for (queries, i) in self.queries.chunks_exact_mut(d_rows / 2).zip(columns) {
            self.rows[..self.d].copy_from_slice(row(q, head, i));
            avx512::to_bf16(&self.rows[..d_rows], queries);
        }
        for (i, panel) in self.keys.chunks_exact(n_pairs).enumerate() {
            // SAFETY: by this function's contract; six queries of d_rows / 2 pairs.
            let tile = unsafe { avx512::bf16_tile(panel, &self.queries, d_rows / 2) };
            for (j, column) in tile.iter().enumerate() {
                self.scores[j * n_keys + i * ROWS..][..ROWS].copy_from_slice(column);
            }
        }
        let scale = 1.0 / (self.d as f32).sqrt();
        let mut inverse = [0.0; COLUMNS];
        let rows = self.scores.chunks_exact_mut(n_keys).zip(self.weights.chunks_exact_mut(n_key_pairs));
        for ((scores, weights), inverse) in rows.zip(&mut inverse) {
            scores[self.n_kv..].fill(f32::NEG_INFINITY);
            *inverse = 1.0 / softmax(scores, scale, weights);
        }
        for (i, panel) in self.values.chunks_exact(n_key_pairs).enumerate() {
            // SAFETY: by this function's contract; six rows of n_key_pairs weights.
            let tile = unsafe { avx512::bf16_tile(panel, &self.weights, n_key_pairs) };
            for (j, column) in tile.iter().enumerate() {
                let to = &mut self.sums[j * d_rows + i * ROWS..][..ROWS];
                to.iter_mut().zip(column).for_each(|(to, sum)| *to = sum * inverse[j]);
            }
        }
        &self.sums
    }
}

/// exp(scale · (score − largest)) as bf16 pairs; their sum in f32. Lengths are multiples of 32 scores.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn softmax(scores: &[f32], scale: f32, weights: &mut [u32]) -> f32 {
    let chunks = scores.as_chunks::<LANES>().0;
    // SAFETY: chunks are 16 values.
    let load = |chunk: &[f32; LANES]| unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
    let largest = chunks.iter().fold(_mm512_set1_ps(f32::NEG_INFINITY), |max, x| _mm512_max_ps(max, load(x)));
    let (largest, scale) = (_mm512_set1_ps(_mm512_reduce_max_ps(largest)), _mm512_set1_ps(scale));
    let mut sum = _mm512_setzero_ps();
    for (two, to) in chunks.as_chunks::<2>().0.iter().zip(weights.as_chunks_mut::<LANES>().0) {
        let low = avx512::exp(_mm512_mul_ps(_mm512_sub_ps(load(&two[0]), largest), scale));
        let high = avx512::exp(_mm512_mul_ps(_mm512_sub_ps(load(&two[1]), largest), scale));
        sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
        // SAFETY: 16 pairs.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), avx512::to_pairs(low, high)) };
    }
    _mm512_reduce_add_ps(sum)
}
