//! Rows of a packed matrix: as blocks of Q4_0, or as f32.

use half::f16;
use qvl::error::Result;

use super::QUANTS_A_WORD;
use crate::checkpoint::{Checkpoint, Stored};
use crate::plan::PlannedTensor;

/// Columns a block of Q4_0, and bytes: an f16 scale and half a byte a column.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 18;
/// Words of 8 quants a block.
const BLOCK_WORDS: usize = BLOCK / QUANTS_A_WORD as usize;

/// Some rows as they are stored, turned so that a row's words and scales follow each other.
struct Rows {
    n_in: usize,
    /// n_in / 8 a row.
    words: Vec<u32>,
    /// n_groups a row.
    scales: Vec<f32>,
    n_groups: usize,
}

/// Values `first .. first + n` of a planned matrix, whole rows.
fn rows(checkpoint: &Checkpoint, tensor: &PlannedTensor, first: u64, n: u64) -> Result<Rows> {
    let n_in = tensor.dims[0];
    let (row, n_rows) = (first / n_in, n / n_in);
    let (qweight, scales) = (stored(checkpoint, tensor, 0)?.transposed(), stored(checkpoint, tensor, 2)?.transposed());
    let mut words = vec![0u32; (n_rows * qweight.width()) as usize];
    checkpoint.read_ints(&qweight, row * qweight.width(), &mut words)?;
    let n_groups = scales.width();
    let mut of_groups = vec![0f32; (n_rows * n_groups) as usize];
    checkpoint.read_values(&scales, row * n_groups, &mut of_groups)?;
    Ok(Rows { n_in: n_in as usize, words, scales: of_groups, n_groups: n_groups as usize })
}

/// Source number `i` in the order of [`sources`](super::sources).
fn stored<'a>(checkpoint: &'a Checkpoint, tensor: &PlannedTensor, i: usize) -> Result<&'a Stored> {
    checkpoint.tensor(&tensor.sources[i].name)
}

fn quant(words: &[u32], column: usize) -> u8 {
    (words[column / 8] >> (column % 8 * 4) & 0xf) as u8
}

/// Values `first .. first + n`, whole rows, as Q4_0: d = the group's scale, the same bits; w = d · (q − 8). Source of the
/// block: `block_q4_0` in `ggml-common.h`, column j in the low and column j + 16 in the high half of byte j.
///
/// Errors (kind model): a scale that is not finite. Cost: allocates the blocks and as much again.
pub fn repack(checkpoint: &Checkpoint, tensor: &PlannedTensor, group_size: u64, first: u64, n: u64) -> Result<Vec<u8>> {
    let rows = rows(checkpoint, tensor, first, n)?;
    let blocks_a_row = rows.n_in / BLOCK;
    let mut out = Vec::with_capacity(n as usize / BLOCK * BLOCK_BYTES);
    for (i, words) in rows.words.chunks_exact(BLOCK_WORDS).enumerate() {
        let (row, block) = (i / blocks_a_row, i % blocks_a_row);
        let scale = rows.scales[row * rows.n_groups + block * BLOCK / group_size as usize];
        // The scale was f16 and is so again, exactly.
        out.extend(f16::from_f32(scale).to_le_bytes());
        out.extend((0..BLOCK / 2).map(|j| quant(words, j) | quant(words, j + BLOCK / 2) << 4));
    }
    Ok(out)
}

/// Values `first .. first + n`, whole rows, in f32: scale · (q − zero), whatever the order of groups. The product of an f16
/// or bf16 scale with 5 bits is exact.
///
/// Errors (kind model): a scale that is not finite. Cost: allocates the values and a quarter more.
pub fn dequantise(checkpoint: &Checkpoint, tensor: &PlannedTensor, first: u64, n: u64) -> Result<Vec<f32>> {
    let rows = rows(checkpoint, tensor, first, n)?;
    let first_row = first as usize / rows.n_in;
    let n_rows = n as usize / rows.n_in;
    let qzeros = stored(checkpoint, tensor, 1)?.transposed();
    let first_words = first_row / 8;
    let mut zeros = vec![0u32; ((first_row + n_rows).div_ceil(8) - first_words) * rows.n_groups];
    checkpoint.read_ints(&qzeros, (first_words * rows.n_groups) as u64, &mut zeros)?;
    let mut groups = vec![0u32; rows.n_in];
    checkpoint.read_ints(stored(checkpoint, tensor, 3)?, 0, &mut groups)?;
    let mut out = vec![0f32; n as usize];
    for (i, row) in out.chunks_exact_mut(rows.n_in).enumerate() {
        let words = &rows.words[i * rows.n_in / 8..][..rows.n_in / 8];
        let scales = &rows.scales[i * rows.n_groups..][..rows.n_groups];
        let zeros = &zeros[((first_row + i) / 8 - first_words) * rows.n_groups..][..rows.n_groups];
        let shift = (first_row + i) % 8 * 4;
        for (column, (value, group)) in row.iter_mut().zip(&groups).enumerate() {
            let zero = (zeros[*group as usize] >> shift & 0xf) as i32 + 1;
            *value = scales[*group as usize] * (i32::from(quant(words, column)) - zero) as f32;
        }
    }
    Ok(out)
}
