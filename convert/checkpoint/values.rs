//! Reads weights by position and widens them to f32.

use std::fs::File;
use std::io;

use byteorder::{ByteOrder, LE};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use qvl::error::{Error, Result};
use qvl::ggml;

use super::{Checkpoint, DType, Stored, gather};

/// Values widened at a time, whole blocks of any type; their bytes stay in the cache between reading and widening.
const CHUNK: usize = 32 * 1024;

impl Checkpoint {
    /// Reads `out.len()` values of `tensor` from value `first` on, widened to f32 exactly.
    ///
    /// Errors (kind model) name the shard and the tensor: it ends early or cannot be read, or a value is NaN or infinite.
    /// Cost: one pass; a buffer of 128 KiB, or for values that do not follow each other in the file as many bytes as
    /// `out` has.
    ///
    /// # Panics
    /// If the values are not all inside the tensor, no whole rows where they are stored in blocks, or no floats: plans prove
    /// shapes and types before anything is executed.
    pub fn read_values(&self, tensor: &Stored, first: u64, out: &mut [f32]) -> Result<()> {
        assert!(tensor.dtype.is_float(), "values of floats");
        let shard = &self.shards[tensor.shard];
        let bytes_of = |n: usize| tensor.dtype.bytes_of(n as u64) as usize;
        // Runs of a gathered tensor are the longer the more of it is wanted at once.
        let step = if tensor.strides.is_some() { out.len().max(1) } else { CHUNK };
        let mut buffer = vec![0u8; bytes_of(step.min(out.len()))];
        for (nth, chunk) in out.chunks_mut(step).enumerate() {
            let at = first + (nth * step) as u64;
            let bytes = &mut buffer[..bytes_of(chunk.len())];
            self.read_stored(tensor, at, bytes)?;
            widen(tensor.dtype, bytes, chunk);
            if let Some(i) = first_not_finite(chunk) {
                let row = (at + i as u64) / tensor.width().max(1);
                let message =
                    format!("tensor {} holds {} in row {row} (expected finite weights)", tensor.name, chunk[i]);
                return Err(Error::model(message).at(&shard.path));
            }
        }
        Ok(())
    }

    /// Reads `out.len()` values of an I32 tensor from value `first` on. Errors and cost as
    /// [`read_values`](Self::read_values).
    ///
    /// # Panics
    /// If the values are not all inside the tensor or of another type.
    pub fn read_ints(&self, tensor: &Stored, first: u64, out: &mut [u32]) -> Result<()> {
        assert_eq!(tensor.dtype, DType::I32, "values of I32");
        let mut bytes = vec![0u8; out.len() * 4];
        self.read_stored(tensor, first, &mut bytes)?;
        LE::read_u32_into(&bytes, out);
        Ok(())
    }

    /// The tensor's first `n` bytes in the order of its shape, or all if it has fewer.
    pub fn first_bytes(&self, tensor: &Stored, n: u64) -> Result<Vec<u8>> {
        // Whole values where they are gathered.
        let size = if tensor.strides.is_some() { tensor.dtype.bytes_of(1).max(1) } else { 1 };
        let n = n.min(tensor.dtype.bytes_of(tensor.n_values())) / size * size;
        let mut bytes = vec![0u8; n as usize];
        self.read_stored(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` with the bytes of `tensor`, from value `first` on in the order of its shape.
    pub fn read_stored(&self, tensor: &Stored, first: u64, out: &mut [u8]) -> Result<()> {
        let shard = &self.shards[tensor.shard];
        let bytes_of = |n: u64| tensor.dtype.bytes_of(n);
        assert!(bytes_of(first) + out.len() as u64 <= bytes_of(tensor.n_values()), "values inside the tensor");
        let read = |bytes: &mut [u8], value: u64| read_at(&shard.file, bytes, tensor.offset + bytes_of(value));
        let done = match &tensor.strides {
            None => read(out, first),
            Some(strides) => gather::gather(&tensor.shape, strides, bytes_of(1) as usize, first, out, read),
        };
        done.map_err(|e| Error::model(format!("cannot read tensor {}", tensor.name)).because(e).at(&shard.path))
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[n..];
        offset += n as u64;
    }
    Ok(())
}

fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        DType::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        DType::I32 | DType::Other(_) => unreachable!("values of floats"),
        DType::F16 => {
            let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(out);
        }
        DType::Blocks(ty) => ggml::dequantize_row(ty, bytes, out),
    }
}

/// The first NaN or infinity. The usual case, none, is one branch-free pass.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    let any = values.iter().fold(0u32, |any, v| any | u32::from(v.to_bits() & EXPONENT == EXPONENT));
    if any == 0 { None } else { values.iter().position(|v| !v.is_finite()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact() {
        let values = [1.0f32, -2.5, 0.000061035156, 65504.0];
        let check = |dtype, bytes: Vec<u8>| {
            let mut out = [0f32; 4];
            widen(dtype, &bytes, &mut out);
            assert_eq!(out, values, "{dtype:?}");
        };
        check(DType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect());
        check(DType::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect());
        let mut out = [0f32; 1];
        widen(DType::BF16, &[0x80, 0x3f], &mut out);
        assert_eq!(out, [1.0]);
    }

    #[test]
    fn finds_what_is_not_finite() {
        assert_eq!(first_not_finite(&[0.0, f32::MAX, f32::MIN_POSITIVE / 2.0]), None);
        assert_eq!(first_not_finite(&[0.0, f32::NAN]), Some(1));
        assert_eq!(first_not_finite(&[f32::NEG_INFINITY]), Some(0));
    }
}
