//! Quantised weights times columns in bf16, by AMX: as `product`, with whole tiles of both.
//!
//! Rows of weights are unpacked and rounded to bf16 with all that belongs to them, so that sums run inside the tiles. They need no other
//! order for it, as they are what stands on the left; the columns, packed once for all rows, stand on the right. A thread takes some
//! panels of 32 rows, and of those as much of the depth at a time as its caches hold: each 32 columns of it are read from memory that
//! is far away once for all the panels.

use std::arch::x86_64::*;
use std::ops::Range;

use super::amx::{self, SIDE, Shapes, Sums, TILE_ROWS, Tile, Tiles};
use super::avx512::{self, load};
use super::panel::{DEPTH, ROWS};
use super::product::{Ending, Input, Target, Weights};
use super::{Activation, unpack};
use crate::ggml::{Context, Custom, Operand, Share, Task, Tensor};
use crate::quant::GgmlType;

/// Panels that a thread takes at most at once.
const PANELS: usize = 4;

/// Shares that a thread gets at least, if there are as many: a busy core takes fewer.
const SHARES: usize = 8;

/// Tiles of depth that are multiplied before the next ones, a multiple of those of a block. 32 columns are 128 KiB of it, and four panels
/// 512 KiB, which stay in the second cache; half or twice as much makes no difference.
const DEPTH_TILES: usize = 2048 / DEPTH;

/// Bytes before which a tile can begin: ggml aligns tensors to 32, tiles are read fastest from lines of 64.
pub const ALIGNMENT: usize = align_of::<Tile>();

/// Bytes that `n_columns` of `k` values need, wherever they begin.
pub fn bytes_of(k: usize, n_columns: usize) -> usize {
    n_columns.div_ceil(SIDE) * k.div_ceil(DEPTH) * size_of::<Tiles>() + ALIGNMENT
}

/// The depth that `columns` of so many have, in tiles.
pub fn n_blocks(columns: Tensor<'_>, n_columns: usize) -> usize {
    (columns.dims()[0] - ALIGNMENT) / size_of::<Tiles>() / n_columns.div_ceil(SIDE)
}

/// The `group`-th 32 columns of `input` in bf16; missing ones become zeros.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn pack(input: &mut Input<'_>, group: usize, tiles: &mut [Tiles]) {
    for j in 0..SIDE {
        let column = input.column(group * SIDE + j).unwrap_or(&[]);
        let values = column.iter().chain(std::iter::repeat(&[0.0; DEPTH]));
        for (tiles, values) in tiles.iter_mut().zip(values) {
            // SAFETY: by this function's contract.
            unsafe { amx::put_row(&mut tiles[j / TILE_ROWS], j % TILE_ROWS, [load(values, 0), load(values, 1)]) };
        }
    }
    // SAFETY: as above.
    tiles.as_flattened_mut().iter_mut().for_each(|tile| unsafe { amx::turn(tile) });
}

/// A thread's room for products.
pub struct Room {
    shapes: Shapes,
    /// `[panel][tile of depth]`.
    weights: Vec<Tiles>,
    /// `[32 columns][panel]`.
    sums: Vec<Sums>,
    n_panels: usize,
}

/// Panels that a thread takes at once.
fn n_panels(n_rows: usize, n_threads: usize) -> usize {
    (n_rows.div_ceil(ROWS) / (SHARES * n_threads)).clamp(1, PANELS)
}

impl Room {
    /// Room for one of `n_threads` that multiply so many rows and columns.
    ///
    /// # Safety
    /// [`amx::is_available`].
    pub unsafe fn new(n_rows: usize, n_columns: usize, n_threads: usize) -> Self {
        let n_panels = n_panels(n_rows, n_threads);
        Room {
            // SAFETY: by this function's contract.
            shapes: unsafe { Shapes::set() },
            weights: vec![[Tile::ZERO; 2]; n_panels * DEPTH_TILES],
            sums: vec![Sums::ZERO; n_panels * n_columns.div_ceil(SIDE)],
            n_panels,
        }
    }

    /// Bytes that one has.
    #[cfg(text_kernels)]
    pub fn bytes_of(n_rows: usize, n_columns: usize, n_threads: usize) -> usize {
        n_panels(n_rows, n_threads) * (DEPTH_TILES * size_of::<Tiles>() + n_columns.div_ceil(SIDE) * size_of::<Sums>())
    }

    /// Rows of a share.
    pub fn n_rows(&self) -> usize {
        self.n_panels * ROWS
    }

    /// Multiplies the `i`-th share of rows with all columns, which [`pack`] has packed, and hands out the sums: rows, the first of the
    /// columns, and `[column][row]`.
    pub fn multiply(
        &mut self,
        w: Weights<'_>,
        i: usize,
        columns: &[Tiles],
        mut ending: impl FnMut(Range<usize>, usize, &mut [[f32; ROWS]; SIDE]),
    ) {
        let mut turned = [[0.0; ROWS]; SIDE];
        self.add_up(w, i, columns, |rows, first, sums| {
            // SAFETY: a CPU with AMX has AVX-512.
            unsafe { amx::transpose(sums, &mut turned) };
            ending(rows, first, &mut turned);
        });
    }

    /// The same, but for their order.
    fn add_up(
        &mut self,
        w: Weights<'_>,
        i: usize,
        columns: &[Tiles],
        mut ending: impl FnMut(Range<usize>, usize, &Sums),
    ) {
        let first = i * self.n_rows();
        let panels =
            (first..w.n_rows.min(first + self.n_rows())).step_by(ROWS).map(|row| row..w.n_rows.min(row + ROWS));
        let n_blocks = columns.len() * self.n_panels / self.sums.len();
        for depth in (0..n_blocks).step_by(DEPTH_TILES) {
            let n = DEPTH_TILES.min(n_blocks - depth);
            for (rows, tiles) in panels.clone().zip(self.weights.chunks_exact_mut(DEPTH_TILES)) {
                let mut list = [&[][..]; ROWS];
                let n_rows = rows.len();
                list.iter_mut().zip(w.rows(rows)).for_each(|(to, row)| *to = row);
                // SAFETY: a CPU with AMX has what is needed.
                unsafe { unpack::widen(w.ty, &list[..n_rows], depth, &mut tiles[..n]) };
            }
            for (columns, sums) in columns.chunks_exact(n_blocks).zip(self.sums.chunks_exact_mut(self.n_panels)) {
                let columns = &columns[depth..depth + n];
                for (rows, sums) in self.weights.chunks_exact(DEPTH_TILES).zip(sums).take(panels.len()) {
                    amx::multiply(&self.shapes, &rows[..n], columns, sums, depth == 0);
                }
            }
        }
        for (j, sums) in self.sums.chunks_exact(self.n_panels).enumerate() {
            panels.clone().zip(sums).for_each(|(rows, sums)| ending(rows, j * SIDE, sums));
        }
    }
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
        c.custom(GgmlType::I8, [bytes_of(k, n), 1], args, self)
    }
}

impl Custom for Pack {
    fn run(&self, task: &Task<'_>) {
        let [k, n, ..] = task.arg(0).dims;
        let n_bytes = k.div_ceil(DEPTH) * size_of::<Tiles>();
        // SAFETY: inputs and norms are f32 (the graph was made so).
        let mut input = unsafe { Input::of(task, self.eps) };
        for group in self.share.take(n.div_ceil(SIDE), task.n_threads) {
            // SAFETY: a group belongs to the one thread that took it. The CPU has what it takes.
            unsafe { pack(&mut input, group, written(task, group * n_bytes, n_bytes / size_of::<Tiles>())) };
        }
    }
}

/// Multiplies.
pub struct Product {
    pub ty: GgmlType,
    pub ending: Ending,
    pub target: Target,
    pub share: Share,
}

impl Custom for Product {
    fn run(&self, task: &Task<'_>) {
        let (w, n_columns) = (task.arg(0), self.ending.n_columns);
        let weights = Weights { ty: self.ty, bytes: w.bytes, stride: w.strides[1], n_rows: w.dims[1] };
        let columns = tiles(task.arg(1));
        // SAFETY: `inner_of` has seen what the CPU needs; the bias is one value a row.
        let (mut room, bias) =
            unsafe { (Room::new(weights.n_rows, n_columns, task.n_threads), self.ending.bias(task)) };
        let n_bytes = weights.n_rows.div_ceil(DEPTH) * size_of::<Tiles>();
        for i in self.share.take(weights.n_rows.div_ceil(room.n_rows()), task.n_threads) {
            match self.target {
                Target::Values => room.multiply(weights, i, columns, |rows, first, sums| {
                    let n = SIDE.min(n_columns - first);
                    // SAFETY: these rows belong to the one thread that took the share.
                    unsafe { self.ending.write(task, rows, first, &mut sums[..n]) };
                }),
                Target::Columns => room.add_up(weights, i, columns, |rows, first, sums| {
                    let at = first / SIDE * n_bytes + rows.start / DEPTH * size_of::<Tiles>();
                    let bias = bias.get(rows).unwrap_or(&[]);
                    // SAFETY: as above; the CPU has it.
                    unsafe { to_columns(sums, bias, self.ending.activation, &mut written(task, at, 1)[0]) };
                }),
            }
        }
    }
}

/// Adds bias, applies the activation, and rounds 32 rows of sums to bf16: they stand on the right in the next product, as they lie.
///
/// # Safety
/// The CPU has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn to_columns(sums: &Sums, bias: &[f32], activation: Activation, tiles: &mut Tiles) {
    for pair in 0..TILE_ROWS {
        for (half, tile) in tiles.iter_mut().enumerate() {
            let mut lines = [_mm512_setzero_ps(); 2];
            for (row, line) in (2 * pair..).zip(&mut lines) {
                let bias = bias.get(row).copied().unwrap_or(0.0);
                let sum = _mm512_add_ps(load(&sums.0[row], half), _mm512_set1_ps(bias));
                *line = if activation == Activation::Gelu { avx512::gelu_of(sum) } else { sum };
            }
            let line = amx::interleaved(lines[0], lines[1]);
            // SAFETY: a row of a tile is 64 bytes.
            unsafe { _mm512_storeu_si512(tile.0[pair].as_mut_ptr().cast(), line) };
        }
    }
}

/// `n` tiles of the result, `at` bytes behind the first.
///
/// # Safety
/// No other thread has or gets them.
#[allow(clippy::mut_from_ref)]
unsafe fn written<'a>(task: &'a Task<'_>, at: usize, n: usize) -> &'a mut [Tiles] {
    // SAFETY: no bytes; then by this function's contract. Tiles are bytes, and begin where they are aligned.
    unsafe {
        let start = task.out::<u8>(0, 0).as_ptr().align_offset(ALIGNMENT);
        let bytes: &mut [u8] = task.out(start + at, n * size_of::<Tiles>());
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), n)
    }
}

/// What [`Pack`] has written.
fn tiles(columns: Operand<'_>) -> &[Tiles] {
    let bytes = &columns.bytes[columns.bytes.as_ptr().align_offset(ALIGNMENT)..];
    // SAFETY: tiles are bytes; the slice is aligned for them, and has no more of them than the bytes.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Tiles>()) }
}
