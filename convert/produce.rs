//! Reads what a recipe needs and applies it: a range of a tensor's values in f32.

use qvl::error::Result;

use crate::checkpoint::Stored;
use crate::fold;
use crate::gptq;
use crate::lora::Weights;
use crate::plan::PlannedTensor;
use crate::recipe::{self, Recipe};

/// Source values of a transpose that are held at a time.
const TRANSPOSE_VALUES: u64 = if cfg!(test) { 1 << 11 } else { 1 << 19 };

/// Whether the recipe makes its tensor in one piece (a table of some MiB) instead of row by row.
pub fn is_whole(recipe: Recipe) -> bool {
    matches!(recipe, Recipe::Positions { .. } | Recipe::Query | Recipe::KeyPosition { .. })
}

/// Values `first .. first + n` of `tensor`, whole rows; all of them if the recipe [makes it whole](is_whole).
///
/// Errors (kind model): reading failed, or a weight is not finite. Cost: allocates the values and, for a transpose or a
/// table, some MiB more.
pub fn produce(weights: &Weights, tensor: &PlannedTensor, first: u64, n: u64) -> Result<Vec<f32>> {
    let source = weights.tensor(&tensor.sources[0].name)?;
    let mut out = vec![0f32; n as usize];
    match tensor.recipe {
        Recipe::Copy => weights.read_values(source, first, &mut out)?,
        Recipe::Scale { by } => {
            weights.read_values(source, first, &mut out)?;
            out.iter_mut().for_each(|x| *x *= by);
        }
        Recipe::Unpad => unpad(weights, source, tensor.row_length(), first, &mut out)?,
        // A matrix that is repacked has no values in between; asked for, they are these.
        Recipe::Repack { .. } | Recipe::Dequantise => {
            out = gptq::dequantise(weights.checkpoint(), tensor, first, n)?;
        }
        Recipe::Rows { first: row } => weights.read_values(source, row * source.width() + first, &mut out)?,
        Recipe::Deinterleave { n_head, d_head } => {
            deinterleave(weights, source, n_head, d_head, first, &mut out)?;
        }
        Recipe::Transpose => transpose(weights, source, first, &mut out)?,
        Recipe::Positions { from, to } => {
            let table = whole(weights, source)?;
            out = recipe::interpolate(&table, source.width() as usize, from as usize, to as usize);
        }
        Recipe::Query => out = query(weights, tensor)?,
        Recipe::KeyPosition { from, to } => out = key_position(weights, tensor, from, to)?,
    }
    Ok(out)
}

fn whole(weights: &Weights, source: &Stored) -> Result<Vec<f32>> {
    let mut values = vec![0f32; source.n_values() as usize];
    weights.read_values(source, 0, &mut values)?;
    Ok(values)
}

/// The first `width` values of each row of `source`, whose others are zeros.
fn unpad(weights: &Weights, source: &Stored, width: u64, first: u64, out: &mut [f32]) -> Result<()> {
    let mut rows = vec![0f32; out.len() / width as usize * source.width() as usize];
    weights.read_values(source, first / width * source.width(), &mut rows)?;
    for (out, row) in out.chunks_exact_mut(width as usize).zip(rows.chunks_exact(source.width() as usize)) {
        out.copy_from_slice(&row[..width as usize]);
    }
    Ok(())
}

/// Reads runs of rows that stay together: a head's q, k or v.
fn deinterleave(
    weights: &Weights,
    source: &Stored,
    n_head: u64,
    d_head: u64,
    first: u64,
    out: &mut [f32],
) -> Result<()> {
    let width = source.width();
    let mut row = first / width;
    let mut rest = out;
    while !rest.is_empty() {
        let run = (d_head - row % d_head).min(rest.len() as u64 / width);
        let (part, later) = rest.split_at_mut((run * width) as usize);
        weights.read_values(source, recipe::interleaved_row(row, n_head, d_head) * width, part)?;
        (row, rest) = (row + run, later);
    }
    Ok(())
}

/// Gathers whole columns of `source` (rows × width); output row r is column r. Reads all of `source` for each range.
fn transpose(weights: &Weights, source: &Stored, first: u64, out: &mut [f32]) -> Result<()> {
    let (n_rows, width) = (source.shape[0], source.width());
    let columns = first / n_rows..(first + out.len() as u64) / n_rows;
    let rows_at_once = (TRANSPOSE_VALUES / width).clamp(1, n_rows);
    let mut rows = vec![0f32; (rows_at_once * width) as usize];
    for row in (0..n_rows).step_by(rows_at_once as usize) {
        let n = rows_at_once.min(n_rows - row);
        let rows = &mut rows[..(n * width) as usize];
        weights.read_values(source, row * width, rows)?;
        for (o, column) in columns.clone().enumerate() {
            let target = &mut out[o * n_rows as usize + row as usize..][..n as usize];
            for (value, source_row) in target.iter_mut().zip(rows.chunks_exact(width as usize)) {
                *value = source_row[column as usize];
            }
        }
    }
    Ok(())
}

/// (ln_q(query) + pos_embed)·Wqᵀ + bq, (n_queries × d). Sources in the mapping's order: query, ln_q weight and bias,
/// pos_embed, in_proj weight and bias, of which Wq and bq are the first d rows.
fn query(weights: &Weights, tensor: &PlannedTensor) -> Result<Vec<f32>> {
    let stored = |i: usize| weights.tensor(&tensor.sources[i].name);
    let values = |i: usize| whole(weights, stored(i)?);
    let mut x = recipe::layer_norm(&values(0)?, &values(1)?, &values(2)?);
    x.iter_mut().zip(values(3)?).for_each(|(x, position)| *x += position);
    affine(weights, &x, stored(4)?, stored(5)?, 0)
}

/// P·Wkᵀ + bk, (n_patches × d). Sources: pos_embed, in_proj weight and bias, of which Wk and bk are rows d .. 2d.
fn key_position(weights: &Weights, tensor: &PlannedTensor, from: u64, to: u64) -> Result<Vec<f32>> {
    let stored = |i: usize| weights.tensor(&tensor.sources[i].name);
    let table = whole(weights, stored(0)?)?;
    let d = stored(1)?.width();
    let positions = recipe::interpolate(&table, d as usize, from as usize, to as usize);
    affine(weights, &positions, stored(1)?, stored(2)?, d)
}

/// x·Wᵀ + b with W and b the `weight.width()` rows from `first_row` on.
fn affine(weights: &Weights, x: &[f32], weight: &Stored, bias: &Stored, first_row: u64) -> Result<Vec<f32>> {
    let d = weight.width();
    let mut b = vec![0f32; d as usize];
    weights.read_values(bias, first_row, &mut b)?;
    fold::affine(x, d as usize, &b, |row, out| weights.read_values(weight, (first_row + row as u64) * d, out))
}
