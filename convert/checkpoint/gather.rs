//! Reads tensors whose values do not follow each other in the order of their shape: transposed, sliced, expanded ones.

use std::io;

/// Bytes read at once where only every so many-th value is wanted.
const SPAN_BYTES: usize = 64 * 1024;

/// Strides of values that follow each other in the order of `shape`, whose product fits 64 bits.
pub fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// Whether values with these strides follow each other. Strides of axes with a single index mean nothing.
pub fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let expected = row_major(shape);
    shape.contains(&0) || (0..shape.len()).all(|axis| shape[axis] == 1 || strides[axis] == expected[axis])
}

/// Fills `out` with values `first ..` in the order of `shape`, each of `size` bytes. `read` fills a buffer from the n-th
/// value of the storage on.
///
/// Cost: values that are neighbours along the axis with the smallest stride are read together: the more of that axis `out`
/// spans, the fewer reads. A buffer of a run, or of 64 KiB.
pub fn gather(
    shape: &[u64],
    strides: &[u64],
    size: usize,
    first: u64,
    out: &mut [u8],
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let end = first + (out.len() / size) as u64;
    let axis = run_axis(shape, strides);
    let Some((n, stride)) = axis.map(|a| (shape[a], strides[a])) else { return read(out, 0) };
    let inner: u64 = shape[axis.unwrap_or(0) + 1..].iter().product();
    let mut buffer = Vec::new();
    // A run is (outer, *, j): all indices of the axis between fixed ones of the others.
    for outer in first / (n * inner)..end.div_ceil(n * inner) {
        for j in 0..inner {
            let base = outer * n * inner + j;
            // The indices i of the axis with first <= base + i·inner < end.
            let from = first.saturating_sub(base).div_ceil(inner);
            let to = end.saturating_sub(base).div_ceil(inner).min(n);
            let at = |i: u64| ((base + i * inner - first) as usize) * size;
            let source = place(base, shape, strides);
            let step = (SPAN_BYTES / size) as u64 / stride.max(1);
            let step = if stride <= 1 { n } else { step.max(1) };
            for from in (from..to).step_by(step as usize) {
                let to = to.min(from + step);
                buffer.resize(((to - from - 1) * stride + 1) as usize * size, 0);
                read(&mut buffer, source + from * stride)?;
                for i in from..to {
                    let value = ((i - from) * stride) as usize * size;
                    out[at(i)..][..size].copy_from_slice(&buffer[value..value + size]);
                }
            }
        }
    }
    Ok(())
}

/// The axis whose neighbours are nearest in the storage, the last of several; `None` if no axis has two indices.
fn run_axis(shape: &[u64], strides: &[u64]) -> Option<usize> {
    let wide = (0..shape.len()).rev().filter(|axis| shape[*axis] > 1);
    wide.min_by_key(|axis| if strides[*axis] == 0 { u64::MAX } else { strides[*axis] })
}

/// Where value `index` (in the order of the shape) is in the storage.
fn place(index: u64, shape: &[u64], strides: &[u64]) -> u64 {
    let mut rest = index;
    let mut sum = 0;
    for (n, stride) in shape.iter().zip(strides).rev() {
        sum += rest % n * stride;
        rest /= n;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every range of the tensor, against the definition: value (i, j, ..) is at i·strides[0] + j·strides[1] + ..
    fn check(shape: &[u64], strides: &[u64]) {
        let n: u64 = shape.iter().product();
        let expect: Vec<u16> = (0..n).map(|i| place(i, shape, strides) as u16).collect();
        let read = |bytes: &mut [u8], at: u64| {
            bytes
                .chunks_exact_mut(2)
                .enumerate()
                .for_each(|(i, b)| b.copy_from_slice(&(at as u16 + i as u16).to_le_bytes()));
            Ok(())
        };
        for first in 0..n {
            for end in first..=n {
                let mut out = vec![0u8; (end - first) as usize * 2];
                gather(shape, strides, 2, first, &mut out, read).unwrap();
                let found: Vec<u16> = out.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
                assert_eq!(found, expect[first as usize..end as usize], "{shape:?} {strides:?} {first}..{end}");
            }
        }
    }

    #[test]
    fn every_layout_is_put_in_order() {
        assert_eq!(place(7, &[3, 4], &[1, 3]), 1 + 3 * 3);
        check(&[3, 4], &[1, 3]);
        check(&[3, 4], &[8, 2]);
        check(&[3, 4], &[0, 1]);
        check(&[2, 3], &[0, 0]);
        check(&[2, 3, 4], &[4, 8, 1]);
        check(&[2, 3, 4], &[1, 2, 6]);
        check(&[4, 3], &[20000, 40000]);
        check(&[1, 5, 1], &[9, 3, 7]);
    }

    #[test]
    fn axes_of_one_index_do_not_matter() {
        assert!(is_contiguous(&[3, 1, 4], &[4, 99, 1]) && is_contiguous(&[], &[]) && is_contiguous(&[0, 4], &[9, 9]));
        assert!(!is_contiguous(&[3, 4], &[1, 3]) && !is_contiguous(&[3, 4], &[0, 1]));
    }
}
