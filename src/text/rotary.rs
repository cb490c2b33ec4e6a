//! Rotary positions as the reference computes them: exact angles, dynamic NTK, logn attention.
//!
//! Source: spec section 6. ggml multiplies angles up iteratively in f32, which drifts with the position; here each
//! angle is one f32 product, as in the reference, and its sine and cosine are rounded once.

use crate::llama::{Formula, Rotated, RotatedRows, Rotation};

use super::TextHparams;

/// α of dynamic NTK for a prefill of `n` tokens: max(2^ceil(log2(n / seq_length) + 1) − 1, 1).
pub fn ntk_alpha(n: usize, seq_length: usize) -> f64 {
    let context = (n as f64 / seq_length as f64).ln() / std::f64::consts::LN_2 + 1.0;
    (context.ceil().exp2() - 1.0).max(1.0)
}

/// α for a prefill of `n` tokens of this model; 1 where it does not grow.
pub fn alpha(h: &TextHparams, n: usize) -> f64 {
    if h.use_dynamic_ntk { ntk_alpha(n, h.seq_length) } else { 1.0 }
}

/// Who rotates queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// Each device those of its layers, with its own sines: on the CPU exactly.
    Device,
    /// The CPU, exactly, whatever device has the layer.
    Exact,
}

impl Rope {
    /// The rotation with this [`alpha`], which stays that of the prefill whatever is generated after it.
    pub fn rotation(self, h: &TextHparams, alpha: f64) -> Rotation {
        let logn = logn(h);
        let formula =
            || Formula { base: base(h, alpha), factor: Box::new(move |position| logn_factor(position, logn)) };
        let mut rotary = Rotary::new(h, alpha);
        Rotation { rows: Box::new(move |rows| rotary.rotate(rows)), on_device: (self == Rope::Device).then(formula) }
    }
}

/// The base that the angles of an [`alpha`] have.
fn base(h: &TextHparams, alpha: f64) -> f32 {
    let d = h.d_head() as f64;
    (f64::from(h.rope_freq_base) * alpha.powf(d / (d - 2.0).max(1.0))) as f32
}

/// `seq_length` if queries beyond it are scaled.
fn logn(h: &TextHparams) -> Option<usize> {
    h.use_logn_attn.then_some(h.seq_length)
}

/// Rotates queries and keys. Cost: sines and cosines once a batch, then one multiply-add a value.
struct Rotary {
    d_head: usize,
    /// base'^(−2i/d), d_head / 2 values.
    inv_freq: Vec<f32>,
    /// `seq_length` if queries beyond it are scaled.
    logn: Option<usize>,
    /// Positions that the tables below are for.
    positions: Vec<i32>,
    /// (cos, sin) of each angle, a row of d_head / 2 a position.
    table: Vec<(f32, f32)>,
    /// logn factor of each position.
    factors: Vec<f32>,
}

impl Rotary {
    fn new(h: &TextHparams, alpha: f64) -> Self {
        let (d, base) = (h.d_head(), base(h, alpha));
        let frequency = |i: usize| {
            // In f32 steps, as torch does: exponent, power, reciprocal.
            let exponent = (2 * i) as f32 / d as f32;
            1.0 / (f64::from(base).powf(f64::from(exponent)) as f32)
        };
        Rotary {
            d_head: d,
            inv_freq: (0..d / 2).map(frequency).collect(),
            logn: logn(h),
            positions: Vec::new(),
            table: Vec::new(),
            factors: Vec::new(),
        }
    }

    /// Rotates the rows of one layer in place: pairs (i, i + d/2), then queries times their logn factor.
    fn rotate(&mut self, rows: RotatedRows<'_>) {
        if self.positions != rows.positions {
            self.tabulate(rows.positions);
        }
        let half = self.d_head / 2;
        let n_tokens = self.positions.len();
        for (token, row) in rows.rows.chunks_exact_mut(rows.rows.len() / n_tokens).enumerate() {
            let table = &self.table[token * half..(token + 1) * half];
            let factor = if rows.which == Rotated::Queries { self.factors[token] } else { 1.0 };
            for head in row.chunks_exact_mut(self.d_head) {
                let (first, second) = head.split_at_mut(half);
                for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(table) {
                    (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                }
                if factor != 1.0 {
                    head.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
    }

    fn tabulate(&mut self, positions: &[i32]) {
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.table.clear();
        self.factors.clear();
        for &position in positions {
            self.table.extend(self.inv_freq.iter().map(|f| {
                let angle = f64::from(position as f32 * f);
                (angle.cos() as f32, angle.sin() as f32)
            }));
            self.factors.push(logn_factor(position, self.logn));
        }
    }
}

/// log(p + 1) / log(seq_length) for positions p beyond `seq_length`, else 1.
fn logn_factor(position: i32, seq_length: Option<usize>) -> f32 {
    match (f64::from(position) + 1.0, seq_length) {
        (n, Some(length)) if n > length as f64 => (n.ln() / (length as f64).ln()) as f32,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_grows_in_steps() {
        let cases = [(1, 1.0), (2048, 1.0), (2049, 3.0), (4096, 3.0), (4097, 7.0), (8192, 7.0), (8193, 15.0)];
        for (n, expect) in cases {
            assert_eq!(ntk_alpha(n, 2048), expect, "{n} tokens");
        }
        // The base that the spec lists for a head of 128.
        assert!((10000.0 * 3f64.powf(128.0 / 126.0) - 30527.74).abs() < 0.01);
    }

    #[test]
    fn logn_begins_behind_seq_length() {
        assert_eq!(logn_factor(2047, Some(2048)), 1.0);
        assert_eq!(logn_factor(4095, Some(2048)), (4096f64.ln() / 2048f64.ln()) as f32);
        assert_eq!(logn_factor(4095, None), 1.0);
    }
}
