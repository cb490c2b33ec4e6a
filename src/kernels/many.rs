//! Weights times eight and more columns, as prompts are read: by the vision tower's kernels.
//!
//! ggml has tiled kernels for K-quants only, and those for VNNI at most: ours for it are faster, and AMX is several times as fast. Columns
//! are rounded to 8 bits for each 32 values, or to bf16; ggml's have a scale for each 256 values. So the sums are not ggml's bits, but
//! nearer to the exact ones.

use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicU8, Ordering};

use super::amx::SIDE;
use super::columns::{COLUMNS, ColumnBlock};
use super::hook::{Count, Node, Params};
use super::panel::{DEPTH, PanelBlock, ROWS};
use super::product::{self, Input, Weights};
use super::tiles::{self, Room};
use super::{Kernels, Tile};

/// From so many columns on; for fewer, ggml's sums are those of one column, and `few` has them.
const COLUMNS_AT_LEAST: usize = 8;

/// Products that were computed here.
pub static COUNT: Count = Count::new();

/// Which of [`Kernels::ALL`] compute them.
static KERNELS: AtomicU8 = AtomicU8::new(UNSET);
const UNSET: u8 = u8::MAX;

/// Sets them, for all graphs that are planned from now on. Panics where they are not available.
pub fn set(kernels: Kernels) {
    assert!(kernels.is_available(), "{kernels:?} on another CPU");
    let which = Kernels::ALL.iter().position(|k| *k == kernels);
    KERNELS.store(which.unwrap_or(0) as u8, Ordering::Relaxed);
}

/// Those that were set, or the best of this CPU.
pub fn chosen() -> Kernels {
    let which = usize::from(KERNELS.load(Ordering::Relaxed));
    Kernels::ALL.get(which).copied().unwrap_or_else(Kernels::detect)
}

/// Bytes of packed columns, wherever they begin.
fn columns_bytes(kernels: Kernels, k: usize, n_columns: usize) -> usize {
    match kernels {
        Kernels::Amx => tiles::bytes_of(k, n_columns),
        _ => ColumnBlock::bytes_of(k, n_columns) + align_of::<ColumnBlock>(),
    }
}

/// Bytes that products of at most so many rows with so many columns of at most `k` values take beside their results: the columns, and what
/// each thread has. None where they are ggml's.
pub fn room([k, n_rows, n_columns]: [usize; 3], n_threads: usize) -> Option<(usize, usize)> {
    let kernels = chosen();
    let a_thread = match kernels {
        Kernels::Ggml => return None,
        Kernels::Amx => Room::bytes_of(n_rows, n_columns, n_threads),
        _ => k / DEPTH * size_of::<PanelBlock>(),
    };
    Some((columns_bytes(kernels, k, n_columns), a_thread))
}

/// What a node is planned to be.
pub struct Plan {
    /// Says who computes it, to all threads alike; not 0.
    pub mark: i32,
    /// Bytes of the work buffer that it needs.
    pub n_bytes: usize,
}

/// That of a node; none where ggml computes it.
pub fn plan(node: &Node) -> Option<Plan> {
    let is_packed = node.x_stride == node.k * size_of::<f32>();
    if node.n_columns < COLUMNS_AT_LEAST || node.is_exact || !is_packed {
        return None;
    }
    let kernels = chosen();
    if !kernels.multiply(node.ty) {
        return None;
    }
    let n_bytes = columns_bytes(kernels, node.k, node.n_columns);
    let mark = Kernels::ALL.iter().position(|k| *k == kernels)?;
    Some(Plan { mark: mark as i32, n_bytes })
}

/// This thread's part of a node that is marked so; false where ggml computes it.
///
/// # Safety
/// ggml computes the node with these parameters, which [`plan`] has seen, and calls this on all threads.
pub unsafe fn compute(node: &Node, params: &Params, mark: i32) -> bool {
    // ggml's are the first of all, and their mark is none.
    let Some(kernels) = Kernels::ALL.get(mark as usize).copied().filter(|kernels| *kernels != Kernels::Ggml) else {
        return false;
    };
    if params.ith == 0 {
        COUNT.add();
    }
    // SAFETY: rows and columns of the node's shapes are ggml's, and the work buffer is that of `plan`.
    let (bytes, x, work) = unsafe {
        let row_bytes = node.ty.row_bytes(node.k as u64).unwrap_or(0) as usize;
        let n_bytes = (node.n_rows - 1) * node.w_stride + row_bytes;
        let x = slice::from_raw_parts(node.x.cast::<f32>(), node.k * node.n_columns);
        (slice::from_raw_parts(node.w, n_bytes), x, params.wdata.cast::<u8>())
    };
    let weights = Weights { ty: node.ty, bytes, stride: node.w_stride, n_rows: node.n_rows };
    let part = Part { node, params, weights, input: Input::plain(x, node.k), work };
    // SAFETY: these kernels are available, the work buffer is that of `plan`, and all threads are here.
    unsafe {
        match kernels {
            Kernels::Amx => part.by_tiles(),
            _ => part.by_panels(kernels),
        }
    }
    true
}

/// A thread's part of a product.
struct Part<'a> {
    node: &'a Node,
    params: &'a Params,
    weights: Weights<'a>,
    input: Input<'a>,
    work: *mut u8,
}

impl Part<'_> {
    /// # Safety
    /// AMX is available, `work` is what [`plan`] wants, and all threads call it.
    unsafe fn by_tiles(mut self) {
        let (n_rows, n_columns) = (self.node.n_rows, self.node.n_columns);
        // SAFETY: by this function's contract.
        unsafe {
            let columns = self.packed(n_columns.div_ceil(SIDE), |input, group, to| tiles::pack(input, group, to));
            let mut room = Room::new(n_rows, n_columns, self.params.nth as usize);
            for i in self.params.share(n_rows.div_ceil(room.n_rows())) {
                room.multiply(self.weights, i, columns, |rows, first, sums| self.write(rows, first, sums));
            }
        }
    }

    /// # Safety
    /// These kernels are available, `work` is what [`plan`] wants, and all threads call it.
    unsafe fn by_panels(mut self, kernels: Kernels) {
        let Some(inner) = kernels.inner() else { unreachable!("ggml has no panels") };
        // SAFETY: by this function's contract.
        unsafe {
            let n_groups = self.node.n_columns.div_ceil(COLUMNS);
            let blocks = self.packed(n_groups, |input, group, to| product::pack(inner, input, group, to));
            let mut panel = vec![PanelBlock::ZERO; blocks.len() / n_groups];
            for i in self.params.share(self.node.n_rows.div_ceil(ROWS)) {
                let write = |rows, first, tile: &mut Tile| self.write(rows, first, tile);
                product::multiply(inner, self.weights, i, &mut panel, blocks, write);
            }
        }
    }

    /// All columns in groups, `T` for 32 values of each, when every thread has packed its share of them.
    ///
    /// # Safety
    /// `work` has room for them; all threads call it. `pack` sets all of a group, whatever its bits are before.
    unsafe fn packed<'a, T>(&mut self, n_groups: usize, pack: impl Fn(&mut Input<'_>, usize, &mut [T])) -> &'a [T] {
        let n_blocks = self.node.k.div_ceil(DEPTH);
        let (ith, nth) = (self.params.ith as usize, self.params.nth as usize);
        // SAFETY: by this function's contract; a group belongs to one thread, until all have met.
        unsafe {
            let first: *mut T = self.work.add(self.work.align_offset(align_of::<T>())).cast();
            for group in ith * n_groups / nth..(ith + 1) * n_groups / nth {
                pack(&mut self.input, group, slice::from_raw_parts_mut(first.add(group * n_blocks), n_blocks));
            }
            self.params.wait();
            slice::from_raw_parts(first, n_groups * n_blocks)
        }
    }

    /// Sums `[column][row]` of `rows` and the columns from `first` on into the result.
    ///
    /// # Safety
    /// These rows belong to this thread.
    unsafe fn write(&self, rows: Range<usize>, first: usize, sums: &[[f32; ROWS]]) {
        for (j, sums) in (first..self.node.n_columns).zip(sums) {
            // SAFETY: by this function's contract; rows of a column of the result are f32 side by side.
            unsafe {
                let to = self.node.out.add(j * self.node.out_stride).cast::<f32>().add(rows.start);
                to.copy_from_nonoverlapping(sums.as_ptr(), rows.len());
            }
        }
    }
}
