//! Headers of safetensors shards, proven by the crate `safetensors`: ranges inside the file, gapless, of the right size.

use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use qvl::error::{Error, Result};
use qvl::mmap::MappedFile;

use super::gather::row_major;
use super::{DType, Stored, refuse_lfs_pointer};

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;

/// Reads the header of shard number `shard` at `path`. The file is mapped for that only; its weights are not touched.
///
/// Errors (kind model): a git-lfs pointer, a truncated or corrupt file.
pub fn read_header(path: &Path, shard: usize) -> Result<Vec<Stored>> {
    let file = MappedFile::open(path)?;
    refuse_lfs_pointer(&file, path)?;
    let (n_header, metadata) = SafeTensors::read_metadata(&file).map_err(|e| damaged(&file, e).at(path))?;
    let data_offset = (LENGTH_BYTES + n_header) as u64;
    let mut all = Vec::new();
    for (name, info) in metadata.tensors() {
        let shape: Vec<u64> = info.shape.iter().map(|n| *n as u64).collect();
        let (offset, strides) = (data_offset + info.data_offsets.0 as u64, row_major(&shape));
        all.push(Stored::new(name, shard, offset, dtype(info.dtype), shape, strides));
    }
    Ok(all)
}

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::F64 => DType::Other("F64"),
        Dtype::I64 => DType::Other("I64"),
        Dtype::U8 => DType::Other("U8"),
        Dtype::BOOL => DType::Other("BOOL"),
        _ => DType::Other("an element type that is not read"),
    }
}

/// Says whether the file seems cut off or is something else.
fn damaged(file: &[u8], cause: ::safetensors::SafeTensorError) -> Error {
    use ::safetensors::SafeTensorError as E;
    let n = file.len();
    match cause {
        E::MetadataIncompleteBuffer | E::InvalidHeaderLength | E::HeaderTooSmall => {
            Error::model(format!("the shard is truncated or corrupt ({n} bytes); download it again")).because(cause)
        }
        _ => Error::model("not a valid safetensors file").because(cause),
    }
}
