//! Which lanes a CPU has, and what they are used for.

use super::blocks::{self, BLOCK, Kind};
use super::lanes::{Cpu, Eight, Lanes, Pair, Sixteen};
use super::{iq4, superblocks};
use crate::quant::GgmlType;

/// Instructions of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Neither of these: ggml quantises.
    None,
    /// AVX2
    Avx2,
    /// AVX-512 F
    Avx512,
}

impl Level {
    /// The best that this CPU and system have. Cost: reads what the standard library has cached.
    pub fn detect() -> Self {
        if is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") { Level::Avx2 } else { Level::None }
    }
}

/// Whether `ty` has a quantiser here.
fn has(ty: GgmlType) -> bool {
    use GgmlType::{IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    matches!(ty, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS)
}

/// As [`super::quantise_rows`]; false, and nothing done, where this level or type has no quantiser here. `level` is at most what
/// [`Level::detect`] says.
pub fn quantise_rows(
    level: Level,
    ty: GgmlType,
    values: &[f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> bool {
    if level == Level::None || !has(ty) {
        return false;
    }
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap_or(0) as usize;
    assert!(n_per_row > 0 && values.len().is_multiple_of(n_per_row), "whole rows");
    assert!(row_bytes > 0 && out.len() == values.len() / n_per_row * row_bytes, "room for the rows");
    assert!(importance.is_none_or(|weights| weights.len() == n_per_row), "a number a column");
    let rows = Rows { ty, values, n_per_row, importance };
    match level {
        // SAFETY: detected.
        Level::Avx512 => unsafe { avx512(rows, out) },
        // SAFETY: detected.
        _ => unsafe { avx2(rows, out) },
    }
    true
}

/// Arguments, proven to fit together.
struct Rows<'a> {
    ty: GgmlType,
    values: &'a [f32],
    n_per_row: usize,
    importance: Option<&'a [f32]>,
}

/// # Safety
/// The CPU has AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn avx512(rows: Rows, out: &mut [u8]) {
    // SAFETY: by this function's contract.
    rows_of(unsafe { Cpu::<Pair<Sixteen>>::new() }, rows, out);
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn avx2(rows: Rows, out: &mut [u8]) {
    // SAFETY: by this function's contract.
    rows_of(unsafe { Cpu::<Pair<Eight>>::new() }, rows, out);
}

/// Blocks know nothing of rows without importance; with it, they are made row by row.
#[inline(always)]
fn rows_of<L: Lanes>(cpu: Cpu<L>, rows: Rows, out: &mut [u8]) {
    let Some(importance) = rows.importance else {
        return row_of(cpu, rows.ty, rows.values, None, out);
    };
    let row_bytes = out.len() / (rows.values.len() / rows.n_per_row).max(1);
    for (values, out) in rows.values.chunks_exact(rows.n_per_row).zip(out.chunks_exact_mut(row_bytes)) {
        row_of(cpu, rows.ty, values, Some(importance), out);
    }
}

#[inline(always)]
fn row_of<L: Lanes>(cpu: Cpu<L>, ty: GgmlType, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let kind = match ty {
        GgmlType::Q4_K => return superblocks::with_mins::<L, 4>(cpu, values, importance, out),
        GgmlType::Q5_K => return superblocks::with_mins::<L, 5>(cpu, values, importance, out),
        GgmlType::Q6_K => return superblocks::q6_k(cpu, values, importance, out),
        GgmlType::IQ4_NL => return iq4::iq4_nl(cpu, values, importance, out),
        GgmlType::IQ4_XS => return iq4::iq4_xs(cpu, values, importance, out),
        GgmlType::Q4_0 => Kind::Symmetric(4),
        GgmlType::Q5_0 => Kind::Symmetric(5),
        GgmlType::Q4_1 => Kind::WithMin(4),
        GgmlType::Q5_1 => Kind::WithMin(5),
        _ => Kind::Eight,
    };
    debug_assert!(values.len().is_multiple_of(BLOCK));
    let importance =
        importance.map(|importance| (importance, superblocks::sum_of_squares(values) / values.len() as f32));
    blocks::blocks(cpu, kind, values, importance, out);
}
