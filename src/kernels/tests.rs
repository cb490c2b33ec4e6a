//! The kernels inside graphs, as the vision tower has them, against plain loops in f64.
//!
//! All that the CPU has are tested; on one without any, nothing is.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::ggml::{Backend, Context, dequantize_row, quantize_rows};
use crate::gguf::TensorInfo;

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Between −1 and 1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// Tensors of a file in memory, each at a multiple of 64 bytes.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    tensors: Vec<TensorInfo>,
}

impl File {
    fn add(&mut self, ty: GgmlType, dims: &[usize], bytes: &[u8]) {
        let offset = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let (name, dims) = (String::new(), dims.iter().map(|d| *d as u64).collect());
        self.tensors.push(TensorInfo { name, dims, ty, offset, n_bytes: bytes.len() as u64 });
    }

    fn floats(&mut self, dims: &[usize], values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(GgmlType::F32, dims, &bytes);
    }

    /// What the graph that `build` makes of the tensors gives, with so many threads, computed twice.
    fn compute(
        &self,
        n_threads: usize,
        build: impl for<'c> Fn(&'c Context<'_>, &[Tensor<'c>]) -> Tensor<'c>,
    ) -> Vec<f32> {
        let mut room = vec![0; self.bytes.len() + 64];
        let start = room.as_ptr().align_offset(64);
        room[start..start + self.bytes.len()].copy_from_slice(&self.bytes);
        let file = &room[start..start + self.bytes.len()];
        let stop = AtomicBool::new(false);
        let backend = Backend::cpu(n_threads, &stop).unwrap();
        let c = Context::new(64).unwrap();
        let weights = c.weights(file, &backend).unwrap();
        let tensors: Vec<_> = self.tensors.iter().map(|info| weights.tensor(info)).collect();
        let output = build(&c, &tensors);
        let mut graph = backend.allocate(c.graph(&[output])).unwrap();
        graph.compute().unwrap();
        let first = graph.get(output);
        graph.compute().unwrap();
        assert!(first.iter().map(|x| x.to_bits()).eq(graph.get(output).iter().map(|x| x.to_bits())), "twice the same");
        first
    }
}

/// Rows of weights in `ty` and what they dequantise to.
fn weights(random: &mut Random, ty: GgmlType, k: usize, m: usize) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = ty.row_bytes(k as u64).unwrap() as usize;
    let (mut bytes, mut values) = (vec![0; m * row_bytes], vec![0.0; m * k]);
    quantize_rows(ty, &random.values(m * k), k, None, &mut bytes);
    for (row, values) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(k)) {
        dequantize_row(ty, row, values);
    }
    (bytes, values)
}

/// Blocks of 32 as [`columns`] rounds them.
fn rounded(values: &[f32]) -> Vec<f32> {
    let block = |block: &[f32]| {
        let largest = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (inverse, scale) = (if largest >= columns::SMALLEST { 127.0 / largest } else { 0.0 }, largest / 127.0);
        block.iter().map(|x| (x * inverse).round_ties_even().clamp(-128.0, 127.0) * scale).collect::<Vec<_>>()
    };
    values.chunks(32).flat_map(block).collect()
}

/// Sums and the sums of magnitudes, which bound their rounding: `w` rows of `k`, of which `x` takes a part.
fn plain(w: &[f32], k: usize, x: &[f32], n_x: usize) -> Vec<(f64, f64)> {
    let dot = |row: &[f32], column: &[f32]| {
        let products = row.iter().zip(column).map(|(w, x)| f64::from(*w) * f64::from(*x));
        products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
    };
    x.chunks_exact(n_x).flat_map(|column| w.chunks_exact(k).map(move |row| dot(row, column))).collect()
}

const TYPES: [GgmlType; 10] = [
    GgmlType::Q8_0,
    GgmlType::Q5_0,
    GgmlType::Q4_0,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
    GgmlType::Q5_1,
    GgmlType::Q4_1,
    GgmlType::Q5_K,
    GgmlType::Q4_K,
    GgmlType::Q6_K,
];

/// Ours, as far as this CPU has them.
fn available() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|kernels| kernels.inner().is_some() && kernels.is_available())
}

const NONE: Finish<'_> = Finish { bias: None, activation: Activation::None, residual: None };

/// Any shape, any of the types, magnitudes from denormal to huge: what integer products of the rounded columns give, but for
/// the order of f32 sums.
#[test]
fn products_are_those_of_plain_loops() {
    available().for_each(products_of);
}

/// bf16, rounded to even; subnormal numbers are zeros to the instructions.
fn to_bf16(values: &[f32]) -> Vec<f32> {
    let round = |x: &f32| if x.is_subnormal() { 0.0 } else { half::bf16::from_f32(*x).to_f32() };
    values.iter().map(round).collect()
}

/// Of bf16, relative to the largest products that a sum may have.
const LAST_BIT: f64 = 1.0 / 256.0 / 16.0;

fn products_of(how: Kernels) {
    let mut random = Random(1);
    for i in 0..120 {
        let ty = TYPES[i % TYPES.len()];
        let k = (1 + random.below(3)) * 256.max(ty.block_size() as usize);
        // Rows of a padded type go on behind the columns.
        let n_x = k - if random.below(2) == 0 { 0 } else { random.below(200) };
        let (m, n) = (1 + random.below(100), 1 + random.below(40));
        let (bytes, w) = weights(&mut random, ty, k, m);
        let size = [1.0, 1e-3, 1e30, 1e-30, 1e-41][random.below(5)];
        let mut x: Vec<f32> = random.values(n * n_x).iter().map(|x| x * size).collect();
        let zeros = random.below(n);
        x[zeros * n_x..][..n_x].fill(0.0);
        let (bias, residual) = (random.values(m), random.values(n * m));
        let has = [random.below(2) == 0, random.below(2) == 0];
        let mut file = File::default();
        file.add(ty, &[k, m], &bytes);
        file.floats(&[n_x, n], &x);
        file.floats(&[m], &bias);
        file.floats(&[m, n], &residual);
        let got = file.compute(1 + random.below(5), |c, t| {
            let finish = Finish { bias: has[0].then_some(t[2]), residual: has[1].then_some(t[3]), ..NONE };
            product(c, how, t[0], columns(c, how, t[1], None), n, finish)
        });
        let is_bf16 = how == Kernels::Amx;
        let x: Vec<f32> = if is_bf16 { to_bf16(&x) } else { x.chunks_exact(n_x).flat_map(rounded).collect() };
        let w = if is_bf16 { to_bf16(&w) } else { w };
        // Where a weight has an offset, ggml's value may differ in its last bit, and then rarely in the last one of bf16.
        let is_near = is_bf16 && panel::Form::of(ty) == Some(panel::Form::Offset);
        for (at, ((sum, size), got)) in plain(&w, k, &x, n_x).into_iter().zip(&got).enumerate() {
            let added = [if has[0] { bias[at % m] } else { 0.0 }, if has[1] { residual[at] } else { 0.0 }];
            let [b, r] = added.map(f64::from);
            let (want, bound) = (sum + b + r, 2e-6 * (size + b.abs() + r.abs()) + 1e-36);
            let bound = if is_near { bound + LAST_BIT * size } else { bound };
            assert!(
                (f64::from(*got) - want).abs() <= bound,
                "{how:?}: {ty} {m}x{k} by {n_x}x{n}, {at}: {got}, plain {want}"
            );
        }
    }
}

/// LayerNorm before, GELU after: as ggml's own operations around a product with weights in f32.
#[test]
fn norm_and_gelu_are_those_of_ggml() {
    available().for_each(norm_and_gelu_of);
}

fn norm_and_gelu_of(how: Kernels) {
    let mut random = Random(2);
    for (k, m, n) in [(96, 70, 13), (256, 32, 6), (1664, 33, 7)] {
        let (bytes, w) = weights(&mut random, GgmlType::Q8_0, k, m);
        let mut file = File::default();
        file.add(GgmlType::Q8_0, &[k, m], &bytes);
        file.floats(&[k, m], &w);
        let x: Vec<f32> = random.values(k * n).iter().map(|x| 3.0 * x + 1.0).collect();
        file.floats(&[k, n], &x);
        file.floats(&[k], &random.values(k));
        file.floats(&[k], &random.values(k));
        let eps = 1e-5;
        let got = file.compute(2, |c, t| {
            let packed = columns(c, how, t[2], Some(([t[3], t[4]], eps)));
            product(c, how, t[0], packed, n, Finish { activation: Activation::Gelu, ..NONE })
        });
        let want = file.compute(2, |c, t| {
            let x = c.add(c.mul(c.norm(t[2], eps), t[3]), t[4]);
            c.gelu_erf(c.mul_mat(t[1], x))
        });
        // Rounding columns to 8 bits: half a step of 1/127 of a block's largest value, about 0.4 %; to bf16 less.
        assert!(distance(&got, &want) < 0.008, "{how:?}, {k}: relative L2 {}", distance(&got, &want));
    }
}

/// Columns that a product gives are those that [`columns`] makes of its values, to the last bit.
#[test]
fn columns_of_a_product_are_those_of_its_values() {
    available().for_each(columns_of_a_product_of);
}

fn columns_of_a_product_of(how: Kernels) {
    let mut random = Random(6);
    for i in 0..60 {
        let types = [TYPES[i % TYPES.len()], TYPES[random.below(TYPES.len())]];
        let depth = |random: &mut Random, ty: GgmlType| (1 + random.below(3)) * 256.max(ty.block_size() as usize);
        let (k, k_next) = (depth(&mut random, types[0]), depth(&mut random, types[1]));
        // The next one's rows may go on behind the columns.
        let m = k_next - random.below(k_next.min(200));
        let (m_next, n) = (1 + random.below(100), 1 + random.below(70));
        let mut file = File::default();
        file.add(types[0], &[k, m], &weights(&mut random, types[0], k, m).0);
        file.add(types[1], &[k_next, m_next], &weights(&mut random, types[1], k_next, m_next).0);
        file.floats(&[k, n], &random.values(k * n));
        file.floats(&[m], &random.values(m));
        let (has_bias, n_threads) = (random.below(2) == 0, 1 + random.below(5));
        let activation = [Activation::None, Activation::Gelu][random.below(2)];
        fn finish(bias: Tensor<'_>, has_bias: bool, activation: Activation) -> Finish<'_> {
            Finish { bias: has_bias.then_some(bias), activation, residual: None }
        }
        let got = file.compute(n_threads, |c, t| {
            let between =
                product_columns(c, how, t[0], columns(c, how, t[2], None), n, finish(t[3], has_bias, activation));
            product(c, how, t[1], between, n, NONE)
        });
        let want = file.compute(n_threads, |c, t| {
            let between = product(c, how, t[0], columns(c, how, t[2], None), n, finish(t[3], has_bias, activation));
            product(c, how, t[1], columns(c, how, between, None), n, NONE)
        });
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&want), "{how:?}: {types:?}, {k} {m} {k_next} {m_next} {n} {activation:?}");
    }
}

fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |of: &dyn Fn(usize) -> f32| (0..got.len()).map(|i| f64::from(of(i)).powi(2)).sum::<f64>();
    (sum(&|i| got[i] - want[i]) / sum(&|i| want[i])).sqrt()
}

/// Every value that a product may end with.
#[test]
fn gelu_is_that_of_ggml() {
    let mut random = Random(3);
    let mut x: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) / 150.0).collect();
    x.extend((0..1000).map(|_| random.value() * 10f32.powi(random.below(76) as i32 - 38)));
    x.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-44, -1e-44, f32::MAX, -f32::MAX]);
    x.resize(x.len().next_multiple_of(panel::ROWS * columns::COLUMNS), 0.5);
    let mut file = File::default();
    file.floats(&[x.len(), 1], &x);
    let want = file.compute(1, |c, t| c.gelu_erf(t[0]));
    for how in available() {
        let mut got = x.clone();
        for tile in got.as_chunks_mut::<{ panel::ROWS }>().0.as_chunks_mut::<{ columns::COLUMNS }>().0 {
            // SAFETY: the CPU has them.
            unsafe { (how.inner().expect("ours").gelu)(tile) };
        }
        for ((x, want), got) in x.iter().zip(&want).zip(got) {
            // 7.5e-8 of Φ are the approximation's, the rest rounding on both sides.
            assert!((got - want).abs() <= 4e-7 * x.abs() + 1e-44, "{how:?}: gelu({x}) = {got}, ggml {want}");
        }
    }
}

/// A value that is no number stays none, wherever it is.
#[test]
fn what_is_not_a_number_stays_so() {
    let mut random = Random(5);
    for how in available() {
        let inner = how.inner().expect("ours");
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values: [f32; panel::DEPTH] = std::array::from_fn(|_| random.value());
            values[random.below(panel::DEPTH)] = value;
            // SAFETY: the CPU has them.
            let (_, scale) = unsafe { (inner.to_int8)(&values) };
            assert!(!scale.is_finite(), "{how:?}: {value} in a column");
        }
        let mut tile = [[f32::NAN; panel::ROWS]; columns::COLUMNS];
        // SAFETY: the CPU has them.
        unsafe { (inner.gelu)(&mut tile) };
        assert!(tile.as_flattened().iter().all(|x| x.is_nan()), "{how:?}: GELU");
    }
}

/// Any number of queries, keys, heads, and values a head.
#[test]
fn attention_is_that_of_plain_loops() {
    available().filter(|how| how.attend()).for_each(attention_of);
}

fn attention_of(how: Kernels) {
    let mut random = Random(4);
    for i in 0..40 {
        let (d, n_head) = if i == 0 { (104, 2) } else { (1 + random.below(140), 1 + random.below(4)) };
        let (n_q, n_kv) = (1 + random.below(300), 1 + random.below(100));
        // Peaked or flat.
        let size = [0.1, 1.0, 8.0][random.below(3)];
        let [q, k, v] = [n_q, n_kv, n_kv].map(|n| random.values(d * n_head * n));
        let q: Vec<f32> = q.iter().map(|q| q * size).collect();
        let mut file = File::default();
        for (n, values) in [(n_q, &q), (n_kv, &k), (n_kv, &v)] {
            file.floats(&[d * n_head, n], values);
        }
        let got = file.compute(1 + random.below(4), |c, t| {
            let [q, k, v] = [0, 1, 2].map(|i| c.view_heads(t[i], 0, d, n_head));
            attention(c, how, q, k, v)
        });
        // bf16 has 8 bits: up to 0.2 % of each of q, k, weights and values; scores are off by as much of their size.
        let want = plain_attention([&q, &k, &v], d, n_head);
        let bound = 0.004 + 0.002 * f64::from(size) * (d as f64).sqrt() / 3.0;
        assert!(distance(&got, &want) < bound, "{how:?}: {d} {n_head} {n_q} {n_kv} {size}: {}", distance(&got, &want));
    }
}

fn plain_attention([q, k, v]: [&[f32]; 3], d: usize, n_head: usize) -> Vec<f32> {
    let width = d * n_head;
    let mut out = vec![0.0; q.len()];
    for (query, out) in q.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        for head in (0..n_head).map(|h| h * d..(h + 1) * d) {
            let dot = |key: &[f32]| -> f64 {
                let products = query[head.clone()].iter().zip(&key[head.clone()]);
                products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / (d as f64).sqrt()
            };
            let scores: Vec<f64> = k.chunks_exact(width).map(dot).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (e, out) in out[head.clone()].iter_mut().enumerate() {
                let values = v.chunks_exact(width).map(|v| f64::from(v[head.start + e]));
                *out = (weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / sum) as f32;
            }
        }
    }
    out
}
