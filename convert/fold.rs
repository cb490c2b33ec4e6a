//! Products with weights that are constant after training, done once, at conversion.

use qvl::error::Result;
use rayon::prelude::*;

/// Output columns that share a pass over `x`.
const PANEL: usize = 8;
/// Output columns a task: rows of the weight that are held in f32 at a time.
const BLOCK: usize = 32;

/// `x·wᵀ + bias`: x is (n × k), w is (m × k) with m = `bias.len()`, the result (n × m) row-major.
///
/// `read_rows(first, out)` delivers rows of w from `first` on, as many as fit `out`; its error is handed on.
/// Sums are in f64, since the result replaces what the reference computes anew with every picture. Cost: n·m·k
/// multiply-adds on all threads of the current pool, twice the result and k·(BLOCK + PANEL) values a thread in memory.
pub fn affine(
    x: &[f32],
    k: usize,
    bias: &[f32],
    read_rows: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<Vec<f32>> {
    let (n, m) = (x.len() / k, bias.len());
    let blocks = (0..m.div_ceil(BLOCK)).into_par_iter().map(|block| {
        let columns = block * BLOCK..m.min((block + 1) * BLOCK);
        let mut rows = vec![0f32; columns.len() * k];
        read_rows(columns.start, &mut rows)?;
        Ok(product(x, k, &rows, &bias[columns]))
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let mut out = vec![0f32; n * m];
    for (b, strip) in blocks.iter().enumerate() {
        let width = strip.len() / n.max(1);
        for (row, part) in out.chunks_exact_mut(m).zip(strip.chunks_exact(width)) {
            row[b * BLOCK..b * BLOCK + width].copy_from_slice(part);
        }
    }
    Ok(out)
}

/// `x·rowsᵀ + bias` for a few rows, (n × bias.len()). Two rows of x times PANEL columns stay in registers.
fn product(x: &[f32], k: usize, rows: &[f32], bias: &[f32]) -> Vec<f32> {
    let (n, m) = (x.len() / k, bias.len());
    let mut out = vec![0f32; n * m];
    let mut panel = vec![[0f64; PANEL]; k];
    for first in (0..m).step_by(PANEL) {
        let width = PANEL.min(m - first);
        for (j, row) in rows[first * k..(first + width) * k].chunks_exact(k).enumerate() {
            panel.iter_mut().zip(row).for_each(|(p, w)| p[j] = f64::from(*w));
        }
        for pair in (0..n).step_by(2) {
            let second = (pair + 1).min(n - 1);
            let sums = dot_pair(&x[pair * k..(pair + 1) * k], &x[second * k..(second + 1) * k], &panel);
            for (row, sum) in [pair, second].into_iter().zip(sums) {
                for j in 0..width {
                    out[row * m + first + j] = (sum[j] + f64::from(bias[first + j])) as f32;
                }
            }
        }
    }
    out
}

/// Dot products of two rows with every column of the panel.
fn dot_pair(a: &[f32], b: &[f32], panel: &[[f64; PANEL]]) -> [[f64; PANEL]; 2] {
    let mut sums = [[0f64; PANEL]; 2];
    for ((a, b), w) in a.iter().zip(b).zip(panel) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        for j in 0..PANEL {
            sums[0][j] += a * w[j];
            sums[1][j] += b * w[j];
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every size around the blocking, against the plain triple loop.
    #[test]
    fn equals_the_plain_loop() {
        for (n, k, m) in [(1, 1, 1), (3, 5, 7), (2, 16, 8), (5, 9, 33), (4, 3, 70)] {
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 64.0;
            let x: Vec<f32> = (0..n * k).map(value).collect();
            let w: Vec<f32> = (0..m * k).map(|i| value(i + 13)).collect();
            let bias: Vec<f32> = (0..m).map(|i| value(i + 29)).collect();
            let read = |first: usize, out: &mut [f32]| {
                out.copy_from_slice(&w[first * k..first * k + out.len()]);
                Ok(())
            };
            let found = affine(&x, k, &bias, read).unwrap();
            for i in 0..n {
                for j in 0..m {
                    let dot: f64 = (0..k).map(|c| f64::from(x[i * k + c]) * f64::from(w[j * k + c])).sum();
                    assert_eq!(found[i * m + j], (dot + f64::from(bias[j])) as f32, "{n} {k} {m}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn hands_the_readers_error_on() {
        let read = |_: usize, _: &mut [f32]| Err(qvl::error::Error::model("torn"));
        assert_eq!(affine(&[1.0], 1, &[0.0], read).unwrap_err().to_string(), "torn");
    }
}
