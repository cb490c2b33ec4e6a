//! Headers of safetensors shards, proven by the crate `safetensors`: ranges inside the file, gapless, of the right size.

use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use qvl::error::{Error, Result};
use qvl::mmap::MappedFile;

use super::{DType, Stored, refuse_lfs_pointer};

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;

/// Reads the header of shard number `shard` at `path`. The file is mapped for that only; its weights are not touched.
///
/// Errors (kind model): a git-lfs pointer, a truncated or corrupt file, a tensor of a type that is not read.
pub fn read_header(path: &Path, shard: usize) -> Result<Vec<Stored>> {
    let file = MappedFile::open(path)?;
    refuse_lfs_pointer(&file, path)?;
    let (n_header, metadata) = SafeTensors::read_metadata(&file).map_err(|e| damaged(&file, e).at(path))?;
    let data_offset = (LENGTH_BYTES + n_header) as u64;
    let mut all = Vec::new();
    for (name, info) in metadata.tensors() {
        let shape: Vec<u64> = info.shape.iter().map(|n| *n as u64).collect();
        let dtype = dtype(&name, info.dtype).map_err(|e| e.at(path))?;
        all.push(Stored { shard, offset: data_offset + info.data_offsets.0 as u64, dtype, shape, name });
    }
    Ok(all)
}

fn dtype(name: &str, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        _ if name.ends_with(".qweight") || name.ends_with(".qzeros") || name.ends_with(".g_idx") => {
            Err(Error::model(format!("{name}: quantised (GPTQ) checkpoints are not supported yet")))
        }
        other => Err(Error::model(format!("tensor {name} is of type {other:?} (expected F32, F16 or BF16)"))),
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
