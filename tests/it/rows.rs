//! Rows of weights times one column, as decoding multiplies them, and times two to seven, as guesses are read: ggml's sums to the last
//! bit. And times eight and more, as prompts are read: those of plain loops, within the rounding of columns. Attention of prompts likewise.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicBool;

use half::f16;
use llama_cpp_sys_2 as sys;
use qvl::ggml::{Backend, Context};
use qvl::ggml::{dequantize_row, quantize_rows};
use qvl::gguf::TensorInfo;
use qvl::kernels::{
    Kernels, few_columns_count, many_columns_count, multiplies_few_columns, multiplies_many_columns, multiplies_rows,
    prompt_attention_count, row_count,
};
use qvl::quant::GgmlType;

use crate::random::Random;

const TYPES: [(GgmlType, sys::ggml_type); 5] = [
    (GgmlType::Q4_0, sys::GGML_TYPE_Q4_0),
    (GgmlType::Q8_0, sys::GGML_TYPE_Q8_0),
    (GgmlType::Q4_K, sys::GGML_TYPE_Q4_K),
    (GgmlType::Q5_K, sys::GGML_TYPE_Q5_K),
    (GgmlType::Q6_K, sys::GGML_TYPE_Q6_K),
];

/// With another version of the crate this fails, and not silently.
#[test]
fn ggml_asks_us() {
    assert!(multiplies_many_columns());
    let has_avx2 = is_x86_feature_detected!("avx2");
    assert!(TYPES.iter().all(|(ty, _)| multiplies_rows(*ty) == has_avx2));
    assert!(!multiplies_rows(GgmlType::F16) && !multiplies_rows(GgmlType::Q4_1));
}

/// A row of any bits, but for the exponents of scales, which are below 2⁸; subnormal ones are among them.
fn row(random: &mut Random, ty: GgmlType, n: usize) -> Vec<u8> {
    let mut row = vec![0u8; ty.row_bytes(n as u64).expect("whole blocks") as usize];
    row.iter_mut().for_each(|byte| *byte = (random.next() >> 32) as u8);
    let scales: &[usize] = match ty {
        GgmlType::Q4_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q6_K => &[208],
        _ => &[0, 2],
    };
    for block in row.chunks_exact_mut(ty.block_bytes() as usize) {
        scales.iter().for_each(|at| block[at + 1] &= 0xdf);
    }
    row
}

/// `m` rows of weights times `n` columns of `k` values by a graph of ggml's: `[column][row]`.
fn product(ty: GgmlType, rows: &[u8], [k, m, n]: [usize; 3], x: &[f32], n_threads: usize) -> Vec<f32> {
    let mut bytes = vec![0; rows.len() + 64];
    let start = bytes.as_ptr().align_offset(64);
    bytes[start..][..rows.len()].copy_from_slice(rows);
    let (dims, n_bytes) = (vec![k as u64, m as u64], rows.len() as u64);
    let stop = AtomicBool::new(false);
    let backend = Backend::cpu(n_threads, &stop).expect("a backend");
    let c = Context::new(16).expect("a context");
    let weights = c.weights(&bytes[start..][..rows.len()], &backend).expect("weights");
    let info = TensorInfo { name: String::new(), dims, ty, offset: 0, n_bytes };
    let (w, columns) = (weights.tensor(&info), c.input(&[k, n]));
    let product = c.mul_mat_as_fast(w, columns);
    let mut graph = backend.allocate(c.graph(&[product])).expect("a graph");
    graph.set(columns, x);
    graph.compute().expect("computes");
    graph.get(product)
}

#[test]
fn up_to_seven_columns_have_ggmls_sums_of_one() {
    let mut random = Random(2);
    // SAFETY: fills ggml's tables.
    unsafe { sys::ggml_cpu_init() };
    for (ty, c_type) in TYPES {
        // ggml's build has kernels for several columns of the types with blocks of 32, which sum otherwise.
        let n_most = if ty.block_size() == 32 { 1 } else { 7 };
        for round in 0..60 {
            let (k, m, n) = (256 * (1 + random.below(17)), 1 + random.below(150), 1 + round % n_most);
            let rows: Vec<u8> = (0..m).flat_map(|_| row(&mut random, ty, k)).collect();
            let size = [1.0, 1e-3, 1e4, 0.0][round % 4];
            let x: Vec<f32> =
                (0..n * k).map(|_| size * ((random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)).collect();
            let (is_ours, count): (_, fn() -> usize) = match n {
                1 => (multiplies_rows(ty), row_count),
                _ => (multiplies_few_columns(), few_columns_count),
            };
            let before = count();
            let got = product(ty, &rows, [k, m, n], &x, 1 + random.below(4));
            // Other tests may count meanwhile.
            assert!(!is_ours || count() > before, "{ty}: {n} columns are ours");
            for (j, values) in x.chunks_exact(k).enumerate() {
                // SAFETY: a constant table; a column of k values in its type, and rows of as many.
                let (column, ggml) = unsafe {
                    let traits = &*sys::ggml_get_type_traits_cpu(c_type);
                    let to_column = (*sys::ggml_get_type_traits_cpu(traits.vec_dot_type)).from_float.expect("has one");
                    let mut column = vec![0u8; sys::ggml_row_size(traits.vec_dot_type, k as i64)];
                    to_column(values.as_ptr(), column.as_mut_ptr().cast(), k as i64);
                    (column, traits.vec_dot.expect("has one"))
                };
                for (i, row) in rows.chunks_exact(rows.len() / m).enumerate() {
                    let mut want = 0.0f32;
                    // SAFETY: as above.
                    unsafe { ggml(k as i32, &mut want, 0, row.as_ptr().cast(), 0, column.as_ptr().cast(), 0, 1) };
                    let got = got[j * m + i];
                    assert_eq!(got.to_bits(), want.to_bits(), "{ty}, {k} x {m} by {n}, {j} {i}: {got}, ggml {want}");
                }
            }
        }
    }
}

/// Odd shapes, any number of threads; each column has the same sums whatever stands beside it.
#[test]
fn many_columns_have_the_sums_of_plain_loops() {
    use GgmlType::*;
    let (mut random, is_ours) = (Random(3), Kernels::detect() != Kernels::Ggml);
    for round in 0..60 {
        let ty = [Q8_0, Q5_0, Q4_0, IQ4_NL, IQ4_XS, Q5_1, Q4_1, Q5_K, Q4_K, Q6_K][round % 10];
        let (k, m, n) = (256 * (1 + random.below(17)), 1 + random.below(300), 8 + random.below(70));
        let value = |random: &mut Random| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let values: Vec<f32> = (0..m * k).map(|_| value(&mut random)).collect();
        let mut rows = vec![0; m * ty.row_bytes(k as u64).expect("whole blocks") as usize];
        quantize_rows(ty, &values, k, None, &mut rows);
        let size = [1.0, 1e-3, 1e4][round % 3];
        let x: Vec<f32> = (0..n * k).map(|_| size * value(&mut random)).collect();
        let before = many_columns_count();
        let got = product(ty, &rows, [k, m, n], &x, 1 + random.below(4));
        assert!(!is_ours || many_columns_count() > before, "{ty}: {n} columns are ours");
        let fewer = product(ty, &rows, [k, m, 8], &x[..8 * k], 2);
        assert!(!is_ours || fewer == got[..8 * m], "{ty}, {k} x {m}: 8 columns, and the same among {n}");
        let mut weights = vec![0.0; k];
        for (i, row) in rows.chunks_exact(rows.len() / m).enumerate() {
            dequantize_row(ty, row, &mut weights);
            for (j, column) in x.chunks_exact(k).enumerate() {
                let products = weights.iter().zip(column).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (want, squares) = products.fold((0.0, 0.0), |(sum, squares), p| (sum + p, squares + p * p));
                // 8 bits a value, one scale for at most 256 of them: each product is off by 0.5 % of the largest, and they add up as
                // noise does. Six times as much happens once in 10⁸.
                let bound = 0.05 * squares.sqrt() + 1e-6 * f64::from(size);
                let got = f64::from(got[j * m + i]);
                assert!((got - want).abs() <= bound, "{ty}, {k} x {m} by {n}, {i} {j}: {got}, plain {want}");
            }
        }
    }
}

/// An attention: `[stream][head][position][d]`, and a mask `[stream][query][key]`.
struct Attention {
    d: usize,
    n_heads: usize,
    n_kv_heads: usize,
    n_streams: usize,
    n_q: usize,
    n_kv: usize,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f16>,
    v: Vec<f16>,
    mask: Vec<f16>,
}

impl Attention {
    fn random(random: &mut Random, round: usize) -> Self {
        let d = if round.is_multiple_of(2) { 128 } else { 1 + random.below(140) };
        let (n_kv_heads, n_shared, n_streams) = (1 + random.below(2), 1 + random.below(2), 1 + random.below(2));
        let n_heads = n_kv_heads * n_shared;
        // Fewer than 32 are ggml's; more than 512 keys are more than a block.
        let (n_q, n_kv) = (32 + random.below(100), 1 + random.below(1300));
        let mut value = || (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let size = [0.3, 2.0, 20.0][round % 3];
        let q = (0..n_streams * n_heads * n_q * d).map(|_| size * value()).collect();
        let [k, v] = [(); 2]
            .map(|()| (0..n_streams * n_kv_heads * n_kv * d).map(|_| f16::from_f32(value())).collect::<Vec<_>>());
        let mut mask = vec![f16::ZERO; n_streams * n_q * n_kv];
        for (i, row) in mask.chunks_exact_mut(n_kv).enumerate() {
            let query = i % n_q;
            // As a text has it; with holes; and one that sees nothing.
            let last = (n_kv.saturating_sub(n_q) + query + 1).min(n_kv);
            row[last..].fill(f16::NEG_INFINITY);
            if round % 4 == 3 {
                row.iter_mut().for_each(|to| match random.below(8) {
                    0 => *to = f16::NEG_INFINITY,
                    1 => *to = f16::from_f32(-0.5),
                    _ => {}
                });
            }
            // Another sequence's keys between a sequence's own.
            if round % 4 == 1 && n_kv > 300 {
                row[70..200].fill(f16::NEG_INFINITY);
            }
            if query == 40 {
                row.fill(f16::NEG_INFINITY);
            }
        }
        let scale = 1.0 / (d as f32).sqrt();
        Attention { d, n_heads, n_kv_heads, n_streams, n_q, n_kv, scale, q, k, v, mask }
    }

    /// By a graph of ggml's, whose results are `[stream][position][head][d]`.
    fn by_ggml(&self, n_threads: i32) -> Vec<f32> {
        let [d, n_heads, n_kv_heads, n_streams, n_q, n_kv] =
            [self.d, self.n_heads, self.n_kv_heads, self.n_streams, self.n_q, self.n_kv].map(|n| n as i64);
        // SAFETY: tensors of one context, with room for all of them; as many values are written and read as they have.
        unsafe {
            let n_bytes = 4 * (2 * self.q.len() + self.k.len() + self.v.len() + self.mask.len()) + (8 << 20);
            let params = sys::ggml_init_params { mem_size: n_bytes, mem_buffer: std::ptr::null_mut(), no_alloc: false };
            let c = sys::ggml_init(params);
            let q = sys::ggml_new_tensor_4d(c, sys::GGML_TYPE_F32, d, n_q, n_heads, n_streams);
            let [k, v] =
                [(); 2].map(|()| sys::ggml_new_tensor_4d(c, sys::GGML_TYPE_F16, d, n_kv, n_kv_heads, n_streams));
            let mask = sys::ggml_new_tensor_4d(c, sys::GGML_TYPE_F16, n_kv, n_q, 1, n_streams);
            (*q).data.cast::<f32>().copy_from_nonoverlapping(self.q.as_ptr(), self.q.len());
            for (to, from) in [(k, &self.k), (v, &self.v), (mask, &self.mask)] {
                (*to).data.cast::<f16>().copy_from_nonoverlapping(from.as_ptr(), from.len());
            }
            let out = sys::ggml_flash_attn_ext(c, q, k, v, mask, self.scale, 0.0, 0.0);
            let graph = sys::ggml_new_graph(c);
            sys::ggml_build_forward_expand(graph, out);
            assert_eq!(sys::ggml_graph_compute_with_ctx(c, graph, n_threads), sys::GGML_STATUS_SUCCESS);
            let result = std::slice::from_raw_parts((*out).data.cast::<f32>(), self.q.len()).to_vec();
            sys::ggml_free(c);
            result
        }
    }

    /// By plain loops.
    fn plain(&self) -> Vec<f32> {
        let (d, n_q, n_kv) = (self.d, self.n_q, self.n_kv);
        let mut out = vec![0.0; self.q.len()];
        for (i, q) in self.q.chunks_exact(d).enumerate() {
            let (stream, head, query) = (i / (self.n_heads * n_q), i / n_q % self.n_heads, i % n_q);
            let kv = (stream * self.n_kv_heads + head * self.n_kv_heads / self.n_heads) * n_kv;
            let mask = &self.mask[(stream * n_q + query) * n_kv..][..n_kv];
            let scores: Vec<f64> = (0..n_kv)
                .map(|key| {
                    let k = &self.k[(kv + key) * d..][..d];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k.to_f64()).sum();
                    dot * f64::from(self.scale) + mask[key].to_f64()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if largest == f64::NEG_INFINITY {
                continue;
            }
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let to = &mut out[((stream * n_q + query) * self.n_heads + head) * d..][..d];
            for (e, to) in to.iter_mut().enumerate() {
                let sum: f64 = weights.iter().enumerate().map(|(key, w)| w * self.v[(kv + key) * d + e].to_f64()).sum();
                *to = (sum / total) as f32;
            }
        }
        out
    }
}

/// Any shape, many keys, holes in the mask, queries that see nothing, several sequences, shared keys.
#[test]
fn attention_of_prompts_is_that_of_plain_loops() {
    // Asks for ggml, and is asked by it from then on.
    let is_ours = multiplies_many_columns() && Kernels::detect() == Kernels::Amx;
    let mut random = Random(5);
    for round in 0..24 {
        let attention = Attention::random(&mut random, round);
        let before = prompt_attention_count();
        let got = attention.by_ggml(1 + random.below(4) as i32);
        assert!(!is_ours || prompt_attention_count() > before, "32 queries and more are ours");
        let want = attention.plain();
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let off = square(&mut got.iter().zip(&want).map(|(a, b)| f64::from(a - b))).sqrt();
        let distance = off / square(&mut want.iter().copied().map(f64::from)).sqrt();
        let Attention { d, n_heads, n_kv_heads, n_streams, n_q, n_kv, .. } = attention;
        // Each number is off by 2⁻¹⁷ of it at most, and so are scores, of which weights are powers.
        assert!(distance < 2e-5, "{d} {n_heads} {n_kv_heads} {n_streams} {n_q} {n_kv}, round {round}: {distance:.1e}");
    }
}
