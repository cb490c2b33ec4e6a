//! Files in several parts, in llama.cpp's convention: `NAME-00001-of-00003.gguf` has the metadata, each part a share of the tensors.

use std::path::{Path, PathBuf};

use super::{Gguf, Metadata, Value};
use crate::error::{Error, Result};

/// Number of a part, from 0.
const NO: &str = "split.no";
/// Number of all parts.
const COUNT: &str = "split.count";
/// Number of the tensors in all parts.
const TENSORS: &str = "split.tensors.count";
/// The most parts there may be: their names have five digits, and each takes a file handle and a mapping.
const MAX_PARTS: u64 = 9999;

/// Which part of a file in several a header is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0, less than `count`.
    pub no: usize,
    /// Number of all parts, at least 2.
    pub count: usize,
    /// Number of the tensors in all parts.
    pub n_tensors: usize,
}

impl Part {
    /// What `gguf` says it is; `None` for a whole file. Errors (kind model): numbers that cannot be.
    pub fn of(gguf: &Gguf) -> Result<Option<Part>> {
        let Some(count) = gguf.opt_u64(COUNT)?.filter(|n| *n > 1) else { return Ok(None) };
        if count > MAX_PARTS {
            return Err(Error::model(format!(
                "metadata key {COUNT} is {count} (at most {MAX_PARTS} parts are accepted)"
            )));
        }
        let no = gguf.count(NO, 0..=count - 1)?;
        let n_tensors = gguf.count(TENSORS, 0..=i32::MAX as u64)?;
        Ok(Some(Part { no, count: count as usize, n_tensors }))
    }

    /// Sets its keys, in the types that llama.cpp reads.
    pub fn record(self, metadata: &mut Metadata) {
        metadata.set(NO, Value::U16(self.no as u16));
        metadata.set(COUNT, Value::U16(self.count as u16));
        metadata.set(TENSORS, Value::I32(self.n_tensors as i32));
    }

    /// Whether this is one of its keys.
    pub fn is_key(key: &str) -> bool {
        [NO, COUNT, TENSORS].contains(&key)
    }

    /// Drops its keys: what is made of a file in parts need not be in parts.
    pub fn forget(metadata: &mut Metadata) {
        metadata.0.retain(|(key, _)| !Part::is_key(key));
    }
}

/// Where part `no` (from 0) of `count` lies, by the whole's path without `.gguf`.
pub fn part_path(stem: &Path, no: usize, count: usize) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(format!("-{:05}-of-{count:05}.gguf", no + 1));
    path.into()
}

/// All parts' paths by that of the first one. Errors (kind model): it is not named as one.
pub(crate) fn all_paths(first: &Path, part: Part) -> Result<Vec<PathBuf>> {
    let end = format!("-{:05}-of-{:05}.gguf", part.no + 1, part.count);
    let name = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(stem) = name.strip_suffix(&end).filter(|stem| !stem.is_empty()) else {
        return Err(Error::model(format!(
            "this is part {} of {} of a model, and by its name the others cannot be found (expected NAME{end})",
            part.no + 1,
            part.count
        ))
        .at(first));
    };
    let stem = first.with_file_name(stem);
    if part.no > 0 {
        let whole = part_path(&stem, 0, part.count);
        let (no, count) = (part.no + 1, part.count);
        return Err(Error::model(format!(
            "this is part {no} of {count} of a model; name the first, {}",
            whole.display()
        ))
        .at(first));
    }
    Ok((0..part.count).map(|no| part_path(&stem, no, part.count)).collect())
}
