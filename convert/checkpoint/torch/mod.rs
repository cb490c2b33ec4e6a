//! Checkpoints as `torch.save` writes them since PyTorch 1.6: a zip archive `NAME/` of a pickle `data.pkl` and storages
//! `data/0`, `data/1`, .., each stored as it is, so that weights are read in place.
//!
//! No crate serves here: those that read such files hand over whole tensors, 1.2 GB for the embedding.

mod machine;
mod objects;
mod pickle;
#[cfg(test)]
mod tests;
mod zip;

use std::collections::HashSet;
use std::path::Path;

use qvl::error::{Error, Result};
use qvl::mmap::MappedFile;

use self::machine::Value;
use self::objects::View;
use self::zip::Archive;
use super::{DType, Stored, refuse_lfs_pointer};

/// Longest `data.pkl`; one with 1461 tensors has 0.2 MB.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// The pickled number in front of files of PyTorch before 1.6. Source: `MAGIC_NUMBER` in `torch/serialization.py`.
const LEGACY_MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads names, types, shapes and places of the tensors of shard number `shard` at `path`. The file is mapped for that
/// only; its weights are not touched.
///
/// Errors (kind model): a git-lfs pointer, a file of another form, a damaged archive, a pickle that is not that of a
/// state dict, a tensor outside its storage or listed twice.
pub fn read_header(path: &Path, shard: usize) -> Result<Vec<Stored>> {
    let file = MappedFile::open(path)?;
    refuse_lfs_pointer(&file, path)?;
    state_dict(&file, shard).map_err(|e| e.at(path))
}

fn state_dict(file: &[u8], shard: usize) -> Result<Vec<Stored>> {
    refuse_other_forms(file)?;
    let archive = Archive::parse(file)?;
    let root = root(&archive)?;
    let bytes = |name: &str| archive.entry(&format!("{root}/{name}"));
    let content = |name: &str| bytes(name).map(|range| &file[range.start as usize..range.end as usize]);
    if content("byteorder").is_some_and(|order| order != b"little") {
        return Err(Error::model("its weights are big-endian; save the file again on a little-endian machine"));
    }
    let pickle = content("data.pkl").filter(|pickle| pickle.len() as u64 <= MAX_PICKLE_BYTES);
    let pickle = pickle.ok_or_else(|| Error::model("its data.pkl is larger than any state dict's"))?;
    let (machine, top) = pickle::run(pickle)?;
    let Value::Dict(top) = top else {
        return Err(Error::model(format!("it holds {} (expected a state dict)", top.kind())));
    };
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for (key, value) in &machine.dicts[top] {
        let name = machine.text(*key).ok_or_else(|| Error::model("a key of its state dict is not a text"))?;
        let Value::Tensor(view) = value else {
            return Err(Error::model(format!(
                "{name} is {} (expected a state dict, which has nothing but tensors); save model.state_dict() alone",
                value.kind()
            )));
        };
        if !names.insert(name) {
            return Err(Error::model(format!("tensor {name} is in the file twice")));
        }
        let view = &machine.views[*view];
        let storage = &machine.storages[view.storage];
        let place = bytes(&format!("data/{}", storage.key)).ok_or_else(|| {
            Error::model(format!("tensor {name}: its storage {root}/data/{} is not in the archive", storage.key))
        })?;
        let expected = storage.n_values.checked_mul(storage.kind.n_bytes);
        if expected.is_none_or(|expected| expected > place.end - place.start) {
            return Err(Error::model(format!(
                "tensor {name}: its storage has {} bytes (expected {} values of {} bytes)",
                place.end - place.start,
                storage.n_values,
                storage.kind.n_bytes
            )));
        }
        all.push(stored(name, shard, view, storage.kind.dtype, place.start, storage.kind.n_bytes));
    }
    Ok(all)
}

/// The view is inside its storage and that inside the file, so no sum here overflows.
fn stored(name: &str, shard: usize, view: &View, dtype: DType, start: u64, n_bytes: u64) -> Stored {
    let View { first, shape, strides, .. } = view.clone();
    Stored::new(name.to_owned(), shard, start + first * n_bytes, dtype, shape, strides)
}

fn refuse_other_forms(file: &[u8]) -> Result<()> {
    if file.get(2..14) == Some(&LEGACY_MAGIC) {
        return Err(Error::model(
            "written by PyTorch before 1.6, or in its old form; save it once more with a newer one: torch.save(torch.load\
             (FILE, map_location=\"cpu\", weights_only=True), FILE)",
        ));
    }
    if !file.starts_with(b"PK") {
        return Err(Error::model("not a file of torch.save (expected a zip archive); download it again"));
    }
    Ok(())
}

/// The archive's one top directory, which has the file's name when it was saved.
fn root(archive: &Archive) -> Result<&str> {
    let mut roots =
        archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|name| !name.contains('/'));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(Error::model("a zip archive that torch.save has not written (expected NAME/data.pkl in it)")),
        (Some(_), Some(_)) => Err(Error::model("damaged zip archive: it has more than one data.pkl")),
    }
}
