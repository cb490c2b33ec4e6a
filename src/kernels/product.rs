//! Quantised weights times 8-bit columns, as two operations of a graph: the columns are packed once, with a barrier after it,
//! and then every thread takes panels of rows until none is left. A busy core simply takes fewer.

use std::ops::Range;

use super::columns::{COLUMNS, ColumnBlock};
use super::panel::{self, DEPTH, Form, PanelBlock, ROWS};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Activation, Finish, Inner, Kernels, Tile};
use crate::ggml::{Context, Custom, Share, Task, Tensor};
use crate::quant::GgmlType;

/// Packs columns.
struct Pack {
    inner: &'static Inner,
    eps: f32,
    share: Share,
}

/// Multiplies.
struct Product {
    ty: GgmlType,
    ending: Ending,
    target: Target,
    share: Share,
}

/// Where finished sums go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Into f32.
    Values,
    /// Into columns of the next product, of whose depth a panel's rows are a block.
    Columns,
}

const _: () = assert!(ROWS == DEPTH);

/// What becomes of sums on their way into the result.
#[derive(Clone, Copy)]
pub(super) struct Ending {
    inner: &'static Inner,
    pub n_columns: usize,
    pub activation: Activation,
    has_bias: bool,
    has_residual: bool,
}

/// `x` `[k, n]` rounded to 8 bits, as [`product`] takes it; normalised before by LayerNorm with (weight, bias) and eps, if given.
pub fn columns<'c>(
    c: &'c Context<'_>,
    how: Kernels,
    x: Tensor<'c>,
    norm: Option<([Tensor<'c>; 2], f32)>,
) -> Tensor<'c> {
    let inner = inner_of(how);
    let [k, n, ..] = x.dims();
    assert!(x.is_contiguous(), "columns of a view");
    let (eps, share) = (norm.map_or(0.0, |(_, eps)| eps), Share::default());
    let mut args = vec![x];
    if let Some((norm, _)) = norm {
        assert!(norm.iter().all(|t| t.dims() == [k, 1, 1, 1]), "a norm of {k} values");
        args.extend(norm);
    }
    #[cfg(target_arch = "x86_64")]
    if how == Kernels::Amx {
        return tiles::Pack { eps, share }.with(c, &args);
    }
    c.custom(GgmlType::I8, [ColumnBlock::bytes_of(k, n), 1], &args, Pack { inner, eps, share })
}

/// Proves that the CPU has what they need.
fn inner_of(how: Kernels) -> &'static Inner {
    assert!(how.is_available(), "{how:?} on another CPU");
    how.inner().unwrap_or_else(|| panic!("no kernels of ours: {how:?}"))
}

/// Weights `w` `[≥ k, m]` of a type that [`Kernels::multiply`] names, times [`columns`] of `[k, n]`: `[m, n]`, f32.
pub fn product<'c>(
    c: &'c Context<'_>,
    how: Kernels,
    w: Tensor<'c>,
    columns: Tensor<'c>,
    n_columns: usize,
    finish: Finish<'c>,
) -> Tensor<'c> {
    multiplied(c, how, w, columns, n_columns, finish, Target::Values)
}

/// [`columns`] of such a [`product`], which takes no residual: the same bits, and its f32 are never in memory.
pub fn product_columns<'c>(
    c: &'c Context<'_>,
    how: Kernels,
    w: Tensor<'c>,
    columns: Tensor<'c>,
    n_columns: usize,
    finish: Finish<'c>,
) -> Tensor<'c> {
    assert!(finish.residual.is_none(), "columns with a residual");
    multiplied(c, how, w, columns, n_columns, finish, Target::Columns)
}

fn multiplied<'c>(
    c: &'c Context<'_>,
    how: Kernels,
    w: Tensor<'c>,
    columns: Tensor<'c>,
    n_columns: usize,
    finish: Finish<'c>,
    target: Target,
) -> Tensor<'c> {
    let [k, m, ..] = w.dims();
    let Some(ty) = w.ty().filter(|ty| how.multiply(*ty)) else { panic!("a product with {:?}", w.ty()) };
    let (n_blocks, column_bytes) = match how {
        #[cfg(target_arch = "x86_64")]
        Kernels::Amx => (tiles::n_blocks(columns, n_columns), tiles::bytes_of(m, n_columns)),
        _ => {
            let n_groups = n_columns.div_ceil(COLUMNS);
            (columns.dims()[0] / size_of::<ColumnBlock>() / n_groups, ColumnBlock::bytes_of(m, n_columns))
        }
    };
    assert!(n_blocks * DEPTH <= k, "rows of {k} values and {n_blocks} blocks of columns");
    assert!(finish.bias.is_none_or(|t| t.dims() == [m, 1, 1, 1] && t.is_contiguous()), "a bias of {m} values");
    assert!(finish.residual.is_none_or(|t| t.dims() == [m, n_columns, 1, 1] && t.is_contiguous()), "a residual");
    let inner = inner_of(how);
    let (has_bias, has_residual) = (finish.bias.is_some(), finish.residual.is_some());
    let ending = Ending { inner, n_columns, activation: finish.activation, has_bias, has_residual };
    let args: Vec<_> = [Some(w), Some(columns), finish.bias, finish.residual].into_iter().flatten().collect();
    let (result, dims) = match target {
        Target::Values => (GgmlType::F32, [m, n_columns]),
        Target::Columns => (GgmlType::I8, [column_bytes, 1]),
    };
    let share = Share::default();
    match how {
        #[cfg(target_arch = "x86_64")]
        Kernels::Amx => c.custom(result, dims, &args, tiles::Product { ty, ending, target, share }),
        _ => c.custom(result, dims, &args, Product { ty, ending, target, share }),
    }
}

impl Custom for Pack {
    fn run(&self, task: &Task<'_>) {
        let [k, n, ..] = task.arg(0).dims;
        let n_blocks = k.div_ceil(DEPTH);
        // SAFETY: inputs and norms are f32 (the graph was made so).
        let mut input = unsafe { Input::of(task, self.eps) };
        for group in self.share.take(n.div_ceil(COLUMNS), task.n_threads) {
            // SAFETY: a group belongs to the one thread that took it; a ColumnBlock is numbers only. `inner_of` has seen what the CPU
            // needs.
            unsafe { pack(self.inner, &mut input, group, task.out(group * n_blocks, n_blocks)) };
        }
    }
}

/// The `group`-th columns of `input` in 8 bits; missing ones become zeros.
///
/// # Safety
/// The CPU has what `inner` needs.
pub(super) unsafe fn pack(inner: &Inner, input: &mut Input<'_>, group: usize, blocks: &mut [ColumnBlock]) {
    for j in 0..COLUMNS {
        let Some(column) = input.column(group * COLUMNS + j) else {
            blocks.iter_mut().for_each(|block| block.put(j, &[0; DEPTH], 0.0));
            continue;
        };
        for (block, values) in blocks.iter_mut().zip(column) {
            // SAFETY: by this function's contract.
            let (bytes, scale) = unsafe { (inner.to_int8)(values) };
            block.put(j, &bytes, scale);
        }
    }
}

/// Sixteen sums at once: fast, and more exact than one.
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f32; 16];
    for chunk in values.chunks(16) {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += of(*x));
    }
    sums.iter().map(|sum| f64::from(*sum)).sum()
}

/// Columns on their way to be packed, one after the other.
pub(super) struct Input<'a> {
    x: &'a [f32],
    k: usize,
    norm: [&'a [f32]; 2],
    eps: f32,
    /// The column that was taken last, if it is not as it stands in `x`: normalised, or with zeros to the end of its last block.
    column: Vec<f32>,
}

impl<'a> Input<'a> {
    /// Those of an operation on x `[k, n]` and, if it is to be normalised, weight and bias of its LayerNorm.
    ///
    /// # Safety
    /// All arguments are f32.
    pub(super) unsafe fn of(task: &Task<'a>, eps: f32) -> Self {
        // SAFETY: by this function's contract.
        let (x, norm) = unsafe { (task.arg(0).values(), [task.arg(1).values(), task.arg(2).values()]) };
        Input { norm, eps, ..Input::plain(x, task.arg(0).dims[0]) }
    }

    /// Those of x `[k, n]`, as they are.
    pub(super) fn plain(x: &'a [f32], k: usize) -> Self {
        Input { x, k, norm: [&[]; 2], eps: 0.0, column: vec![0.0; k.next_multiple_of(DEPTH)] }
    }

    /// The blocks of column `j`; `None` behind the last one.
    pub(super) fn column(&mut self, j: usize) -> Option<&[[f32; DEPTH]]> {
        let values = self.x.chunks_exact(self.k).nth(j)?;
        if self.norm[0].is_empty() && self.k.is_multiple_of(DEPTH) {
            return Some(values.as_chunks().0);
        }
        let column = &mut self.column[..self.k];
        column.copy_from_slice(values);
        if !self.norm[0].is_empty() {
            normalise(column, self.norm, self.eps);
        }
        Some(self.column.as_chunks().0)
    }
}

/// LayerNorm of one column: (x − mean) / sqrt(biased variance + eps) · weight + bias.
fn normalise(values: &mut [f32], [weight, bias]: [&[f32]; 2], eps: f32) {
    let n = values.len() as f64;
    let mean = (sum(values, |x| x) / n) as f32;
    let variance = (sum(values, |x| (x - mean) * (x - mean)) / n) as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((x, w), b) in values.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * w + b;
    }
}

impl Custom for Product {
    fn run(&self, task: &Task<'_>) {
        let w = task.arg(0);
        let weights = Weights { ty: self.ty, bytes: w.bytes, stride: w.strides[1], n_rows: w.dims[1] };
        // SAFETY: columns were packed by `Pack`.
        let blocks: &[ColumnBlock] = unsafe { task.arg(1).values() };
        let n_blocks = blocks.len() / self.ending.n_columns.div_ceil(COLUMNS);
        let mut panel = vec![PanelBlock::ZERO; n_blocks];
        for i in self.share.take(weights.n_rows.div_ceil(ROWS), task.n_threads) {
            let ending = |rows, first, tile: &mut Tile| {
                let tile = &mut tile[..COLUMNS.min(self.ending.n_columns - first)];
                // SAFETY: these rows belong to the one thread that took the panel.
                unsafe {
                    match self.target {
                        Target::Values => self.ending.write(task, rows, first, tile),
                        Target::Columns => self.ending.pack(task, rows, first, tile),
                    }
                }
            };
            // SAFETY: `inner_of` has seen what the CPU needs.
            unsafe { multiply(self.ending.inner, weights, i, &mut panel, blocks, ending) };
        }
    }
}

/// Quantised rows.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub ty: GgmlType,
    pub bytes: &'a [u8],
    /// Bytes from one to the next.
    pub stride: usize,
    pub n_rows: usize,
}

impl<'a> Weights<'a> {
    /// The bytes of `rows`, each to its end or further.
    pub fn rows(self, rows: Range<usize>) -> impl Iterator<Item = &'a [u8]> {
        rows.map(move |row| &self.bytes[row * self.stride..])
    }
}

/// Multiplies the `i`-th 32 rows with all columns, which [`pack`] has packed, and hands out the sums: rows, the first of the columns,
/// and the tile. `panel` is room for rows of the columns' depth.
///
/// # Safety
/// The CPU has what `inner` needs.
pub(super) unsafe fn multiply(
    inner: &Inner,
    w: Weights<'_>,
    i: usize,
    panel: &mut [PanelBlock],
    blocks: &[ColumnBlock],
    mut ending: impl FnMut(Range<usize>, usize, &mut Tile),
) {
    let rows = i * ROWS..w.n_rows.min((i + 1) * ROWS);
    let Some(form) = Form::of(w.ty) else { panic!("rows of {}", w.ty) };
    panel::fill(panel, w.ty, w.rows(rows.clone()));
    for (group, columns) in blocks.chunks_exact(panel.len()).enumerate() {
        // SAFETY: by this function's contract.
        let mut tile = unsafe { (inner.int8_tile)(form, panel, columns) };
        ending(rows.clone(), group * COLUMNS, &mut tile);
    }
}

impl Ending {
    /// Adds bias, applies the activation, adds the residual, and writes `rows` of the columns from `first` on into the result.
    ///
    /// # Safety
    /// The sources of `task` are those of a [`product`]; no other thread writes these rows.
    pub unsafe fn write(&self, task: &Task<'_>, rows: Range<usize>, first: usize, sums: &mut [[f32; ROWS]]) {
        let m = task.arg(0).dims[1];
        // SAFETY: by this function's contract.
        unsafe { self.finish(task, &rows, sums) };
        let last = task.arg(2 + usize::from(self.has_bias));
        // SAFETY: a residual is f32 (the graph was made so).
        let residual: &[f32] = unsafe { if self.has_residual { last.values() } else { &[] } };
        for (column, values) in (first..).zip(sums) {
            let first = column * m + rows.start;
            if let Some(residual) = residual.get(first..first + rows.len()) {
                values.iter_mut().zip(residual).for_each(|(value, r)| *value += r);
            }
            // SAFETY: by this function's contract.
            unsafe { task.out(first, rows.len()) }.copy_from_slice(&values[..rows.len()]);
        }
    }

    /// Adds bias, applies the activation, and rounds the columns from `first` on into the block of the result that `rows` are.
    ///
    /// # Safety
    /// The sources of `task` are those of [`product_columns`]; no other thread writes these rows.
    unsafe fn pack(&self, task: &Task<'_>, rows: Range<usize>, first: usize, sums: &mut [[f32; ROWS]]) {
        let n_blocks = task.arg(0).dims[1].div_ceil(DEPTH);
        // SAFETY: by this function's contract; a ColumnBlock is numbers only. `inner_of` has seen what the CPU needs.
        unsafe {
            self.finish(task, &rows, sums);
            let block: &mut [ColumnBlock] = task.out(first / COLUMNS * n_blocks + rows.start / DEPTH, 1);
            for j in 0..COLUMNS {
                let (bytes, scale) = sums.get(j).map_or(([0; DEPTH], 0.0), |values| (self.inner.to_int8)(values));
                block[0].put(j, &bytes, scale);
            }
        }
    }

    /// # Safety
    /// The sources of `task` are those of a product.
    unsafe fn finish(&self, task: &Task<'_>, rows: &Range<usize>, sums: &mut [[f32; ROWS]]) {
        // SAFETY: by this function's contract.
        if let Some(bias) = unsafe { self.bias(task) }.get(rows.clone()) {
            for column in &mut *sums {
                column.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        match self.activation {
            Activation::None => {}
            // SAFETY: `inner_of` has seen what the CPU needs.
            Activation::Gelu => unsafe { (self.inner.gelu)(sums) },
        }
    }

    /// One value a row; none at all without.
    ///
    /// # Safety
    /// The sources of `task` are those of a product.
    pub unsafe fn bias<'a>(&self, task: &Task<'a>) -> &'a [f32] {
        // SAFETY: a bias is f32 (the graph was made so).
        if self.has_bias { unsafe { task.arg(2).values() } } else { &[] }
    }
}
