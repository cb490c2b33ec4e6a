//! Pure transforms of f32 values that a conversion does beyond copying. Sources name `visual.py` of the checkpoints.

/// How a tensor of the GGUF file is made from tensors of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recipe {
    /// The same values in the same order.
    Copy,
    /// The same, times a number.
    Scale {
        /// The number.
        by: f32,
    },
    /// Whole rows from `first` on.
    Rows {
        /// First row of the source.
        first: u64,
    },
    /// Rows `[head][q, k, v][d_head]` brought into the order `[q, k, v][head][d_head]`.
    Deinterleave {
        /// Heads.
        n_head: u64,
        /// Rows a part of a head.
        d_head: u64,
    },
    /// Packed quants of GPTQ become blocks of Q4_0 of the same values.
    Repack {
        /// Columns that share a scale, a multiple of 32.
        group_size: u64,
    },
    /// Packed quants of GPTQ become values.
    Dequantise,
    /// Rows without the zeros behind them.
    Unpad,
    /// Rows become columns.
    Transpose,
    /// A table of `from × from` positions interpolated to `to × to`.
    Positions {
        /// Edge of the stored grid.
        from: u64,
        /// Edge of the grid of patches.
        to: u64,
    },
    /// The adapter's queries after their projection: (ln_q(query) + pos_embed)·Wqᵀ + bq.
    Query,
    /// What positions and bias add to the adapter's keys: P·Wkᵀ + bk, P interpolated from `from²` to `to²` positions.
    KeyPosition {
        /// Edge of the grid of queries.
        from: u64,
        /// Edge of the grid of patches.
        to: u64,
    },
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Recipe::Copy => f.write_str("copy"),
            Recipe::Scale { by } => write!(f, "times {by}"),
            Recipe::Rows { first } => write!(f, "rows from {first}"),
            Recipe::Deinterleave { n_head, d_head } => write!(f, "de-interleave {n_head} heads of {d_head}"),
            Recipe::Repack { group_size } => write!(f, "repack gptq groups of {group_size}"),
            Recipe::Dequantise => f.write_str("dequantise gptq"),
            Recipe::Unpad => f.write_str("unpad"),
            Recipe::Transpose => f.write_str("transpose"),
            Recipe::Positions { from, to } if from == to => f.write_str("copy"),
            Recipe::Positions { from, to } => write!(f, "interpolate {from}x{from} to {to}x{to}"),
            Recipe::Query => f.write_str("fold queries"),
            Recipe::KeyPosition { to, .. } => write!(f, "fold key positions {to}x{to}"),
        }
    }
}

/// The source row that becomes row `row` of 3·`n_head`·`d_head` rows `[q, k, v][head][d_head]`, when the source has
/// them as `[head][q, k, v][d_head]` (`VisualAttention.forward` views one token's projection that way).
pub fn interleaved_row(row: u64, n_head: u64, d_head: u64) -> u64 {
    let (part, head, i) = (row / (n_head * d_head), row / d_head % n_head, row % d_head);
    (head * 3 + part) * d_head + i
}

/// Weights of the four taps around a coordinate with fraction `t`, f32 as in PyTorch: Keys' cubic kernel, a = −0.75.
fn cubic_taps(t: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// The four source indices (clamped to the edge) and their weights for position `o` of `to`.
fn taps(o: usize, from: usize, to: usize) -> ([usize; 4], [f32; 4]) {
    let at = (o as f32 + 0.5) * (from as f32 / to as f32) - 0.5;
    let floor = at.floor();
    let index = |offset: i64| (floor as i64 + offset).clamp(0, from as i64 - 1) as usize;
    ([index(-1), index(0), index(1), index(2)], cubic_taps(at - floor))
}

/// `table`, (from² × width), interpolated to (to² × width) in f32: PyTorch's bicubic with `align_corners=False` and no
/// antialiasing (`get_abs_pos`). As it stands when the grids are equal. Cost: one table of the result's size.
///
/// # Panics
/// If the table is not from² × width: the plan has proven the shape.
pub fn interpolate(table: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    assert_eq!(table.len(), from * from * width, "a whole grid");
    if from == to {
        return table.to_vec();
    }
    let mut out = vec![0f32; to * to * width];
    for (o, row) in out.chunks_exact_mut(width).enumerate() {
        let (ys, wy) = taps(o / to, from, to);
        let (xs, wx) = taps(o % to, from, to);
        let at = |y: usize, x: usize, c: usize| table[(y * from + x) * width + c];
        for (c, value) in row.iter_mut().enumerate() {
            let along_x = |y: usize| (0..4).map(|i| at(y, xs[i], c) * wx[i]).sum::<f32>();
            *value = (0..4).map(|j| along_x(ys[j]) * wy[j]).sum();
        }
    }
    out
}

/// Rows of `width` values with `padding` zeros behind each.
pub fn pad_rows(values: &[f32], width: usize, padding: usize) -> Vec<f32> {
    let mut padded = vec![0f32; values.len() / width * (width + padding)];
    for (out, row) in padded.chunks_exact_mut(width + padding).zip(values.chunks_exact(width)) {
        out[..width].copy_from_slice(row);
    }
    padded
}

/// LayerNorm of each row of `x` (n × width) with `weight` and `bias`, epsilon 1e-6, biased variance; sums in f64.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    const EPS: f64 = 1e-6;
    let n = weight.len() as f64;
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + EPS).sqrt();
        let affine = row.iter().zip(weight).zip(bias);
        out.extend(affine.map(|((v, w), b)| ((f64::from(*v) - mean) * scale * f64::from(*w) + f64::from(*b)) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_taken_apart() {
        // Two heads of two rows: q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1.
        let order: Vec<u64> = (0..12).map(|row| interleaved_row(row, 2, 2)).collect();
        assert_eq!(order, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        // Row r of the checkpoint belongs to head r / 312 and part r % 312 / 104.
        assert_eq!(interleaved_row(1664 + 104, 16, 104), 312 + 104);
    }

    #[test]
    fn taps_are_cubic_and_clamped() {
        assert_eq!(cubic_taps(0.0), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(cubic_taps(0.25), [-0.10546875, 0.87890625, 0.26171875, -0.03515625]);
        assert_eq!(taps(0, 2, 4).0, [0, 0, 0, 1]);
        assert_eq!(taps(3, 2, 4).0, [0, 1, 1, 1]);
    }

    #[test]
    fn equal_grids_keep_every_bit() {
        let table = [0.1, -3.5, 1e-30, 7.0];
        assert_eq!(interpolate(&table, 1, 2, 2), table);
    }

    /// Expected values: numpy in f64, W·table·Wᵀ with W[o][clamp(i)] summing the kernel's piecewise definition at
    /// (o+0.5)·3/n − 0.5 − i. That this is what PyTorch does, the reference's goldens say (see tests/it).
    #[test]
    fn interpolates_as_the_kernel_says() {
        let table: Vec<f32> = (0..18).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.25).collect();
        // f32 sums of 16 products of magnitude up to 1.7, at coordinates rounded to f32.
        const TOLERANCE: f32 = 2e-6;
        let check = |to, expect: &[f32]| {
            let found = interpolate(&table, 2, 3, to);
            assert_eq!(found.len(), expect.len());
            let worst = found.iter().zip(expect).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < TOLERANCE, "{to}: {worst}");
        };
        check(2, &TO_2);
        check(5, &TO_5);
    }

    #[test]
    fn layer_norm_centres_and_scales() {
        let out = layer_norm(&[1.0, 3.0, -2.0, -2.0], &[1.0, 2.0], &[0.5, 0.0]);
        // Row 1: mean 2, variance 1. Row 2: variance 0, where the epsilon keeps the scale finite.
        let scale = 1.0 / (1.0f64 + 1e-6).sqrt();
        assert_eq!(out, [(0.5 - scale) as f32, (2.0 * scale) as f32, 0.5, 0.0]);
    }

    const TO_2: [f32; 8] =
        [-0.7455635, 0.6479301, -0.03646469, -0.4409866, 0.7476502, -0.2388382, -0.3412666, 0.4702606];

    const TO_5: [f32; 50] = [
        -1.563344, 0.476, -1.126568, 0.983, -0.452, 1.298, 0.080008, 0.128, 0.37, -0.894, -0.29156, 0.27, -0.609076,
        0.791256, -0.856, 1.092, -0.312904, -0.199176, 0.183008, -1.317008, 1.192, -0.072, 0.17, 0.435, -1.0, 0.75,
        -0.685, -0.42, -0.178, -1.442, 0.90544, -0.414, 0.723356, -0.028176, 0.341, 0.408, -0.267076, 0.267996,
        -0.681568, 0.060568, 0.354656, -0.62, 1.00844, -0.330008, 1.466, 0.202, 0.15344, 0.876568, -1.015344, 1.313344,
    ];
}
