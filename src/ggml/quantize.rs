//! ggml's own quantisers, so that blocks equal those of every other tool.

use llama_cpp_sys_2 as sys;

use crate::quant::GgmlType;

/// ggml's C enum value of a type.
pub(crate) fn c_type(ty: GgmlType) -> sys::ggml_type {
    ty.id() as sys::ggml_type
}

/// Quantises `values`, whole rows of `n_per_row` values, into `out` (rows × row bytes). `importance`, one positive number a
/// column, says whose errors count how much; only ratios matter, and q8_0 does not look at it. Cost: one pass, no allocation
/// to speak of; safe to call from several threads.
///
/// # Panics
/// If the lengths do not fit together or the type cannot hold such rows: plans prove both before anything is executed.
pub fn quantize_rows(ty: GgmlType, values: &[f32], n_per_row: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap_or(0) as usize;
    assert!(n_per_row > 0 && values.len().is_multiple_of(n_per_row), "whole rows");
    let n_rows = values.len() / n_per_row;
    assert!(row_bytes > 0 && out.len() == n_rows * row_bytes, "room for the rows");
    assert!(importance.is_none_or(|weights| weights.len() == n_per_row), "a number a column");
    // SAFETY: `values` holds n_rows × n_per_row floats, `importance` n_per_row if it is there, and `out` n_rows × row_bytes
    // bytes (asserted above); the types
    // that this project writes need no importance matrix and no initialisation (ggml_quantize_init builds tables for
    // the 1- to 3-bit IQ types only, which `GgmlType` does not have).
    let written = unsafe {
        sys::ggml_quantize_chunk(
            c_type(ty),
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_per_row as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    assert_eq!(written, out.len(), "ggml's row size");
}

/// Widens one stored row of `out.len()` values to f32.
///
/// # Panics
/// If `row` is not exactly that row's bytes, or the type is an integer or f64 type.
pub fn dequantize_row(ty: GgmlType, row: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len() as u64), Some(row.len() as u64), "a whole row");
    if ty == GgmlType::F32 {
        let floats = row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        out.iter_mut().zip(floats).for_each(|(o, v)| *o = v);
        return;
    }
    // SAFETY: ggml_get_type_traits returns a pointer into a static table for every valid type id.
    let to_float = unsafe { (*sys::ggml_get_type_traits(c_type(ty))).to_float };
    let Some(to_float) = to_float else { panic!("{ty} has no conversion to f32") };
    // SAFETY: `row` holds the blocks of out.len() values (asserted above) and `out` has room for them; ggml reads
    // blocks bytewise or through 2-byte fields, and rows inside a GGUF file are at least 2-byte aligned.
    unsafe { to_float(row.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
}

/// Row, column and value of the first NaN or infinity among stored rows of `n_per_row` values; `None` if all are finite, and
/// of types that are no floats. Cost: one pass, a row in f32.
///
/// # Panics
/// If `bytes` is not whole rows.
pub fn first_not_finite(ty: GgmlType, bytes: &[u8], n_per_row: usize) -> Option<(usize, usize, f32)> {
    use GgmlType::{F64, I8, I16, I32, I64};
    if matches!(ty, I8 | I16 | I32 | I64 | F64) {
        return None;
    }
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap_or(0) as usize;
    assert!(row_bytes > 0 && bytes.len().is_multiple_of(row_bytes), "whole rows");
    let mut row = vec![0.0; n_per_row];
    bytes.chunks_exact(row_bytes).enumerate().find_map(|(nth, bytes)| {
        dequantize_row(ty, bytes, &mut row);
        row.iter().position(|x| !x.is_finite()).map(|at| (nth, at, row[at]))
    })
}
