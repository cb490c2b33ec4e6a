//! Attention as two small matrix products for six queries of a head at a time; the scores never leave the cache.

use std::arch::x86_64::*;

use super::avx512::{self, LANES};
use super::columns::COLUMNS;
use super::panel::ROWS;
use crate::ggml::{Context, Custom, Operand, Share, Task, Tensor};
use crate::quant::GgmlType;

/// Queries that a thread takes at once: few enough that every core gets some of them, many enough that packing a head's keys
/// and values for them costs little.
const QUERIES: usize = 42 * COLUMNS;

struct Attention {
    share: Share,
}

pub fn attention<'c>(c: &'c Context<'_>, q: Tensor<'c>, k: Tensor<'c>, v: Tensor<'c>) -> Tensor<'c> {
    let ([d, n_head, n_q, _], keys) = (q.dims(), k.dims());
    assert!(keys == v.dims() && keys[..2] == [d, n_head], "attention of {:?} and {keys:?}", q.dims());
    c.custom(GgmlType::F32, [d * n_head, n_q], &[q, k, v], Attention { share: Share::default() })
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
                // SAFETY: `Kernels::detect` has seen what the CPU needs.
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
fn row(t: Operand<'_>, head: usize, i: usize) -> &[f32] {
    let start = head * t.strides[1] + i * t.strides[2];
    // SAFETY: q, k and v are f32 (the graph was made so); the slice is bounded by the operand's bytes.
    unsafe { Operand { bytes: &t.bytes[start..start + t.dims[0] * size_of::<f32>()], ..t }.values() }
}

/// A pair of values as bf16, rounded to even, the first in the low half.
fn pair(a: f32, b: f32) -> u32 {
    u32::from(half::bf16::from_f32(a).to_bits()) | u32::from(half::bf16::from_f32(b).to_bits()) << 16
}

/// A head in bf16, and room for what six queries need.
struct Packed {
    d: usize,
    n_kv: usize,
    /// `[keys / 32][pair of d][32 keys]`.
    keys: Vec<[u32; ROWS]>,
    /// `[d / 32][pair of keys][32 of d]`.
    values: Vec<[u32; ROWS]>,
    /// `[query][pair of d]`.
    queries: Vec<u32>,
    /// `[query][key]`.
    scores: Vec<f32>,
    /// `[query][pair of keys]`.
    weights: Vec<u32>,
    /// `[query][d]`.
    sums: Vec<f32>,
}

impl Packed {
    fn new(d: usize, n_kv: usize) -> Self {
        let (key_panels, d_panels) = (n_kv.div_ceil(ROWS), d.div_ceil(ROWS));
        let n_keys = key_panels * ROWS;
        Packed {
            d,
            n_kv,
            keys: vec![[0; ROWS]; key_panels * d.div_ceil(2)],
            values: vec![[0; ROWS]; d_panels * n_keys / 2],
            queries: vec![0; COLUMNS * d.div_ceil(2)],
            scores: vec![0.0; COLUMNS * n_keys],
            weights: vec![0; COLUMNS * n_keys / 2],
            sums: vec![0.0; COLUMNS * d_panels * ROWS],
        }
    }

    /// Extent of a query's sums: d and what fills its last panel.
    fn d_rows(&self) -> usize {
        self.d.div_ceil(ROWS) * ROWS
    }

    /// Takes the keys and values of a head.
    fn fill(&mut self, head: usize, k: Operand<'_>, v: Operand<'_>) {
        let n_pairs = self.d.div_ceil(2);
        for i in 0..self.n_kv {
            for (p, two) in row(k, head, i).chunks(2).enumerate() {
                self.keys[i / ROWS * n_pairs + p][i % ROWS] = pair(two[0], two.get(1).copied().unwrap_or(0.0));
            }
        }
        let n_key_pairs = self.weights.len() / COLUMNS;
        for i in (0..self.n_kv).step_by(2) {
            let first = row(v, head, i);
            let second = if i + 1 < self.n_kv { row(v, head, i + 1) } else { &[] };
            for (e, a) in first.iter().enumerate() {
                let b = second.get(e).copied().unwrap_or(0.0);
                self.values[e / ROWS * n_key_pairs + i / 2][e % ROWS] = pair(*a, b);
            }
        }
    }

    /// The sums of `columns`, at most six queries: `[query][d_rows]`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn attend(&mut self, head: usize, q: Operand<'_>, columns: std::ops::Range<usize>) -> &[f32] {
        let (n_pairs, n_key_pairs, n_keys) =
            (self.d.div_ceil(2), self.weights.len() / COLUMNS, self.scores.len() / COLUMNS);
        for (j, i) in columns.enumerate() {
            for (p, two) in row(q, head, i).chunks(2).enumerate() {
                self.queries[j * n_pairs + p] = pair(two[0], two.get(1).copied().unwrap_or(0.0));
            }
        }
        for (i, panel) in self.keys.chunks_exact(n_pairs).enumerate() {
            // SAFETY: by this function's contract; six queries of n_pairs.
            let tile = unsafe { avx512::bf16_tile(panel, &self.queries, n_pairs) };
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
        let d_rows = self.d_rows();
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
        let [low, high] = [0, 1].map(|i| avx512::exp(_mm512_mul_ps(_mm512_sub_ps(load(&two[i]), largest), scale)));
        sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
        // SAFETY: 32 bf16 are 16 pairs.
        unsafe {
            let bits = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), bits);
        }
    }
    _mm512_reduce_add_ps(sum)
}
