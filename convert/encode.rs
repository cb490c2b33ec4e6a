//! f32 values → the bytes of a GGUF tensor.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use qvl::error::{Error, Result};
use qvl::ggml;
use qvl::quant::GgmlType;
use qvl::quantise::quantise_rows;

/// From this magnitude on, a block's f16 scale may overflow, and what was written is read back and checked.
const LARGE: f32 = 60000.0;

/// Encodes whole rows of `n_per_row` values as `ty`; `importance` says how much each column counts where that can be chosen;
/// `name` is the tensor's, for messages.
///
/// f16 and bf16 round to nearest even; other types are ggml's. Errors (kind model): a value is too large for the type.
/// Cost: allocates the result.
pub fn encode(
    ty: GgmlType,
    values: &[f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
    name: &str,
) -> Result<Vec<u8>> {
    match ty {
        GgmlType::F32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        GgmlType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            refuse_overflow(ty, values, |i| halves[i].is_finite(), name)?;
            Ok(halves.iter().flat_map(|h| h.to_le_bytes()).collect())
        }
        GgmlType::BF16 => {
            let halves: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            refuse_overflow(ty, values, |i| halves[i].is_finite(), name)?;
            Ok(halves.iter().flat_map(|h| h.to_le_bytes()).collect())
        }
        _ => quantise(ty, values, n_per_row, importance, name),
    }
}

fn quantise(ty: GgmlType, values: &[f32], n_per_row: usize, importance: Option<&[f32]>, name: &str) -> Result<Vec<u8>> {
    let n_rows = values.len() / n_per_row;
    // The plan has chosen a type that holds such rows.
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap_or(0) as usize;
    let mut out = vec![0u8; n_rows * row_bytes];
    quantise_rows(ty, values, n_per_row, importance, &mut out);
    // Or, not the largest of them: a chunk is one pass without branches or an order.
    let is_large = |chunk: &[f32]| chunk.iter().fold(false, |any, v| any | (v.abs() > LARGE));
    if values.chunks(1024).any(is_large) {
        let mut read_back = vec![0f32; n_per_row];
        for (row, bytes) in values.chunks_exact(n_per_row).zip(out.chunks_exact(row_bytes)) {
            ggml::dequantize_row(ty, bytes, &mut read_back);
            refuse_overflow(ty, row, |i| read_back[i].is_finite(), name)?;
        }
    }
    Ok(out)
}

fn refuse_overflow(ty: GgmlType, values: &[f32], fits: impl Fn(usize) -> bool, name: &str) -> Result<()> {
    match (0..values.len()).find(|i| !fits(*i)) {
        None => Ok(()),
        Some(i) => Err(Error::model(format!(
            "tensor {name}: {} is too large for {ty}; give this tensor another type with --tensor-type '{name}=bf16'",
            values[i]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_nearest_even() {
        // Odd multiples of half a step lie between two values of the type: 2^-11 for f16, 2^-8 for bf16.
        let between = |step: f32| [1.0 + step / 2.0, 1.0 + 1.5 * step];
        let f16_step = f32::from(f16::EPSILON);
        assert_eq!(encode(GgmlType::F16, &between(f16_step), 2, None, "t").unwrap(), [0x00, 0x3c, 0x02, 0x3c]);
        let bf16_step = f32::from(bf16::EPSILON);
        assert_eq!(encode(GgmlType::BF16, &between(bf16_step), 2, None, "t").unwrap(), [0x80, 0x3f, 0x82, 0x3f]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let check = |ty, value: f32| encode(ty, &[value; 256], 256, None, "t").unwrap_err().to_string();
        assert!(check(GgmlType::F16, 65520.0).contains("tensor t: 65520 is too large for f16"));
        assert!(check(GgmlType::BF16, f32::MAX).contains("too large for bf16"));
        assert!(check(GgmlType::Q8_0, 1e9).contains("too large for q8_0"));
        assert!(check(GgmlType::Q4_K, 1e9).contains("too large for q4_k"));
        assert!(encode(GgmlType::Q8_0, &[65000.0; 32], 32, None, "t").is_ok());
    }
}
