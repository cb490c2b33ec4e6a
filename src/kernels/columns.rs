//! Activations as the product reads them: six columns side by side, rounded to 8 bits.
//!
//! As in ggml, 32 consecutive values share a scale, their largest magnitude / 127; it stays in f32 here.

use super::panel::DEPTH;

/// Columns of a group. Two registers of rows times six columns of integer and as many of float sums take 24 of the 32
/// registers that AVX-512 has.
pub const COLUMNS: usize = 6;

/// Blocks without a magnitude like this are zeros: 127 / it is still finite.
pub const SMALLEST: f32 = 1e-36;

/// 32 values of six columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ColumnBlock {
    /// `[k / 4][column][k % 4]`.
    pub bytes: [[[i8; 4]; COLUMNS]; DEPTH / 4],
    /// A column's scale.
    pub scale: [f32; COLUMNS],
    /// −128 times the sum of a column's bytes: what makes up for the 128 that are added to weights.
    pub start: [i32; COLUMNS],
    /// The same of each half.
    pub start_halves: [[i32; COLUMNS]; 2],
    /// The sum of a column's values: the scale times that of its bytes.
    pub sum: [f32; COLUMNS],
}

impl ColumnBlock {
    /// Bytes that hold `n_columns` of `n_values`.
    pub fn bytes_of(n_values: usize, n_columns: usize) -> usize {
        n_values.div_ceil(DEPTH) * n_columns.div_ceil(COLUMNS) * size_of::<Self>()
    }

    /// Sets the `j`-th column, its scale being `scale`.
    #[inline(always)]
    pub fn put(&mut self, j: usize, bytes: &[i8; DEPTH], scale: f32) {
        for (quad, four) in self.bytes.iter_mut().zip(bytes.as_chunks::<4>().0) {
            quad[j] = *four;
        }
        let sums = [&bytes[..16], &bytes[16..]].map(|half| half.iter().map(|b| i32::from(*b)).sum::<i32>());
        self.start_halves[0][j] = -128 * sums[0];
        self.start_halves[1][j] = -128 * sums[1];
        self.start[j] = -128 * (sums[0] + sums[1]);
        self.scale[j] = scale;
        self.sum[j] = scale * (sums[0] + sums[1]) as f32;
    }
}
