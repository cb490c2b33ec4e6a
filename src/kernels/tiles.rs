//! Quantised weights times columns in bf16, by AMX: as `product`, with whole tiles of both.
//!
//! Weights are unpacked into a panel as for the other kernels, and from there rounded to bf16 with all that belongs to them, so that
//! sums run over the whole depth inside the tiles. A thread takes two panels at a time, which it multiplies with 32 columns while those
//! are in its caches.

use super::amx::{self, Shapes, Sums, TILE_ROWS, Tile, WeightTiles};
use super::panel::{self, DEPTH, Form, PanelBlock, ROWS};
use super::product::{Ending, Input};
use crate::ggml::{Context, Custom, Operand, Share, Task, Tensor};
use crate::quant::GgmlType;

/// Panels that a thread takes at once.
const PANELS: usize = 2;

/// Bytes before which a tile can begin: ggml aligns tensors to 32, tiles are read fastest from lines of 64.
const ALIGNMENT: usize = align_of::<Tile>();

/// Tiles of 16 columns in order, in an even number.
fn n_groups(n_columns: usize) -> usize {
    n_columns.div_ceil(amx::SIDE) * 2
}

/// The depth that `columns` of so many have, in tiles.
pub fn n_blocks(columns: Tensor<'_>, n_columns: usize) -> usize {
    (columns.dims()[0] - ALIGNMENT) / size_of::<Tile>() / n_groups(n_columns)
}

/// Rounds columns to bf16.
pub struct Pack {
    pub eps: f32,
    pub share: Share,
}

impl Pack {
    /// The operation on `args`: x `[k, n]` and what normalises it.
    pub fn with<'c>(self, c: &'c Context<'_>, args: &[Tensor<'c>]) -> Tensor<'c> {
        let [k, n, ..] = args[0].dims();
        let bytes = n_groups(n) * k.div_ceil(DEPTH) * size_of::<Tile>() + ALIGNMENT;
        c.custom(GgmlType::I8, [bytes, 1], args, self)
    }
}

impl Custom for Pack {
    fn run(&self, task: &Task<'_>) {
        let [k, n, ..] = task.arg(0).dims;
        let n_blocks = k.div_ceil(DEPTH);
        // SAFETY: inputs and norms are f32 (the graph was made so).
        let mut input = unsafe { Input::of(task, self.eps) };
        // SAFETY: no bytes.
        let start = unsafe { task.out::<u8>(0, 0) }.as_ptr().align_offset(ALIGNMENT);
        for group in self.share.take(n_groups(n), task.n_threads) {
            let n_bytes = n_blocks * size_of::<Tile>();
            // SAFETY: a group belongs to the one thread that took it.
            let bytes: &mut [u8] = unsafe { task.out(start + group * n_bytes, n_bytes) };
            for j in 0..TILE_ROWS {
                let rows = bytes.as_chunks_mut::<64>().0.iter_mut().skip(j).step_by(TILE_ROWS);
                let Some(column) = input.column(group * TILE_ROWS + j) else {
                    rows.for_each(|row| row.fill(0));
                    continue;
                };
                for (row, values) in rows.zip(column) {
                    // SAFETY: `inner_of` has seen what the CPU needs.
                    unsafe { amx::round(values, row) };
                }
            }
        }
    }
}

/// Multiplies.
pub struct Product {
    pub ty: GgmlType,
    pub form: Form,
    pub ending: Ending,
    pub share: Share,
}

impl Custom for Product {
    fn run(&self, task: &Task<'_>) {
        let (w, m, n_columns) = (task.arg(0), task.arg(0).dims[1], self.ending.n_columns);
        let groups = tiles(task.arg(1));
        let n_blocks = groups.len() / n_groups(n_columns);
        let mut panel = vec![PanelBlock::ZERO; n_blocks];
        let mut weights = vec![[Tile::ZERO; 2]; PANELS * n_blocks];
        let mut sums = Sums([[0.0; ROWS]; amx::SIDE]);
        // SAFETY: `inner_of` has seen what the CPU needs.
        let shapes = unsafe { Shapes::set() };
        for i in self.share.take(m.div_ceil(PANELS * ROWS), task.n_threads) {
            let first = i * PANELS * ROWS;
            let panels = (first..m.min(first + PANELS * ROWS)).step_by(ROWS).map(|row| row..m.min(row + ROWS));
            for (rows, weights) in panels.clone().zip(weights.chunks_exact_mut(n_blocks)) {
                self.unpack(w, rows, &mut panel, weights);
            }
            for (j, columns) in groups.chunks_exact(2 * n_blocks).enumerate() {
                let (low, high) = columns.split_at(n_blocks);
                for (rows, weights) in panels.clone().zip(weights.chunks_exact(n_blocks)) {
                    amx::multiply(&shapes, weights, [low, high], &mut sums);
                    let first = j * amx::SIDE;
                    let n = amx::SIDE.min(n_columns - first);
                    // SAFETY: these rows belong to the one thread that took the panels.
                    unsafe { self.ending.write(task, rows, first, &mut sums.0[..n]) };
                }
            }
        }
    }
}

impl Product {
    /// `rows` of `w` in bf16.
    fn unpack(
        &self,
        w: Operand<'_>,
        rows: std::ops::Range<usize>,
        panel: &mut [PanelBlock],
        weights: &mut [WeightTiles],
    ) {
        let row_bytes = w.strides[1];
        panel::fill(panel, self.ty, rows.map(|row| &w.bytes[row * row_bytes..][..row_bytes]));
        // SAFETY: `inner_of` has seen what the CPU needs.
        unsafe { amx::widen(self.form, panel, weights) };
    }
}

/// What [`Pack`] has written.
fn tiles(columns: Operand<'_>) -> &[Tile] {
    let bytes = &columns.bytes[columns.bytes.as_ptr().align_offset(ALIGNMENT)..];
    // SAFETY: tiles are bytes; the slice is aligned for them, and has no more of them than the bytes.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Tile>()) }
}
