//! What quantising did to weights.

use crate::error::{Error, Result};
use crate::ggml::dequantize_row;
use crate::gguf::{Gguf, TensorInfo};
use crate::quant::GgmlType;

/// A tensor of two files, held against each other.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightError {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub ty: GgmlType,
    /// How the reference stores it.
    pub reference_ty: GgmlType,
    /// Length of the difference over that of the reference, all values together.
    pub relative_l2: f64,
}

/// The tensors of `found` whose bytes are not those of `reference`, both files of one model, in file order. `go_on` is asked
/// before each. Errors (kind model): one has a tensor that the other has not, or with other extents. Cost: one pass over
/// both files' data, a row at a time.
pub fn weight_errors(
    (reference, reference_file): (&Gguf, &[u8]),
    (found, file): (&Gguf, &[u8]),
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<Vec<WeightError>> {
    let mut errors = Vec::new();
    for tensor in found.tensors() {
        go_on()?;
        let other = reference.tensor(&tensor.name).filter(|other| are_alike(other, tensor));
        let other = other.ok_or_else(|| {
            let TensorInfo { name, dims, .. } = tensor;
            Error::model(format!("the reference has no tensor {name:?} of extents {dims:?}: it is of another model"))
        })?;
        let differs = other.ty != tensor.ty || other.bytes(reference_file) != tensor.bytes(file);
        if differs && let Some(relative_l2) = relative_l2((other, reference_file), (tensor, file)) {
            let (name, ty, reference_ty) = (tensor.name.clone(), tensor.ty, other.ty);
            errors.push(WeightError { name, ty, reference_ty, relative_l2 });
        }
    }
    Ok(errors)
}

/// Whether both are of the same extents, but for zeros that fill the last block of each row in one of them.
fn are_alike(a: &TensorInfo, b: &TensorInfo) -> bool {
    let is_whole = |a: &TensorInfo, b: &TensorInfo| a.dims[0] == a.ty.padded(b.dims[0]);
    a.dims == b.dims || a.dims[1..] == b.dims[1..] && (is_whole(a, b) || is_whole(b, a))
}

/// Length of the difference over that of the reference, all values of two tensors together, each with the file that it is of.
/// `None`: their extents differ by more than what fills the last block of each row, or one is of a type for other numbers than
/// weights. Not finite if a value is not. Cost: one pass over both, a row at a time.
pub fn relative_l2(
    (reference, reference_file): (&TensorInfo, &[u8]),
    (tensor, file): (&TensorInfo, &[u8]),
) -> Option<f64> {
    use GgmlType::{F64, I8, I16, I32, I64};
    let is_weight = |t: &TensorInfo| !matches!(t.ty, I8 | I16 | I32 | I64 | F64);
    if !are_alike(reference, tensor) || !is_weight(reference) || !is_weight(tensor) {
        return None;
    }
    let rows = |t: &TensorInfo| (t.n_bytes / (t.n_values() / t.dims[0])) as usize;
    let (n_a, n_b) = (reference.dims[0] as usize, tensor.dims[0] as usize);
    // What one has behind the other's rows is held against zeros.
    let (mut a, mut b) = (vec![0.0; n_a.max(n_b)], vec![0.0; n_a.max(n_b)]);
    let (mut difference, mut length) = (0.0, 0.0);
    let expected = reference.bytes(reference_file).chunks_exact(rows(reference));
    for (x, y) in expected.zip(tensor.bytes(file).chunks_exact(rows(tensor))) {
        dequantize_row(reference.ty, x, &mut a[..n_a]);
        dequantize_row(tensor.ty, y, &mut b[..n_b]);
        for (a, b) in a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
            difference += (a - b) * (a - b);
            length += a * a;
        }
    }
    Some(if difference == 0.0 { 0.0 } else { (difference / length.max(f64::MIN_POSITIVE)).sqrt() })
}
