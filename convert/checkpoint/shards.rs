//! Which files of a directory hold the weights, and which tensors an index expects in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};

use super::Kind;
use crate::json::Fields;

/// File names of one kind of checkpoint: whole, or in shards that an index names.
struct Names {
    kind: Kind,
    single: &'static str,
    index: &'static str,
}

/// In the order in which they are looked for: a folder that has both kinds has the same weights twice.
const NAMES: [Names; 2] = [
    Names { kind: Kind::Safetensors, single: "model.safetensors", index: "model.safetensors.index.json" },
    Names { kind: Kind::Torch, single: "pytorch_model.bin", index: "pytorch_model.bin.index.json" },
];

/// What AutoGPTQ calls its single file, as in `gptq_model-4bit-128g.safetensors`.
const GPTQ_PREFIX: &str = "gptq_model-";

/// The files that hold a checkpoint's weights.
#[derive(Debug)]
pub enum Found {
    /// One file with everything.
    Single(PathBuf, Kind),
    /// Shards, of which some may be missing.
    Indexed {
        /// The index.
        index: PathBuf,
        /// Form of the shards.
        kind: Kind,
        /// Tensor name → the shard's file name, a plain name; not empty.
        weight_map: BTreeMap<String, String>,
    },
}

/// Looks for weights in `dir`. `None`: there are none. Errors (kind model): an index that is none.
pub fn find(dir: &Path) -> Result<Option<Found>> {
    for Names { kind, single, index } in NAMES {
        let (single, index) = (dir.join(single), dir.join(index));
        if single.exists() {
            return Ok(Some(Found::Single(single, kind)));
        }
        if index.exists() {
            let weight_map = read_index(&index)?;
            return Ok(Some(Found::Indexed { index, kind, weight_map }));
        }
    }
    Ok(find_gptq(dir))
}

fn find_gptq(dir: &Path) -> Option<Found> {
    let entries = std::fs::read_dir(dir).ok()?.filter_map(std::result::Result::ok);
    let is_gptq = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(GPTQ_PREFIX));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_gptq).collect();
    paths.sort();
    paths.into_iter().find_map(|path| Some(Found::Single(path.clone(), Kind::of(&path)?)))
}

/// The shards of an index in the order of their names. Errors (kind model): some are missing.
pub fn paths(dir: &Path, index: &Path, weight_map: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
    let mut names: Vec<&String> = weight_map.values().collect();
    names.sort();
    names.dedup();
    let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    let missing = paths.iter().filter(|path| !path.exists()).count();
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(paths),
        Some(first) => Err(Error::model(format!(
            "the shard is missing ({missing} of {} named in {} are); download the checkpoint again",
            paths.len(),
            file_name(index)
        ))
        .at(first)),
    }
}

/// That there are no weights in `dir`; says so if shards are there but not their index.
pub fn no_weights(dir: &Path) -> Error {
    for Names { single, index, .. } in NAMES {
        let (stem, end) = single.rsplit_once('.').unwrap_or((single, ""));
        let is_shard = |name: &str| name.starts_with(&format!("{stem}-")) && name.ends_with(&format!(".{end}"));
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(std::result::Result::ok);
        if entries.into_iter().any(|entry| is_shard(&entry.file_name().to_string_lossy())) {
            return Error::model(format!("{index} is missing, which says what is in which shard; download it too"))
                .at(dir);
        }
    }
    let [a, b] = NAMES.map(|names| format!("{}, {}", names.single, names.index));
    Error::model(format!("no weights here (expected {a} and its shards, {b} and its shards, or a {GPTQ_PREFIX}* file)"))
        .at(dir)
}

/// The last part of a path, for messages.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The `weight_map` of an index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let fields = Fields::read(path)?;
    let map = fields.object("weight_map")?.ok_or_else(|| fields.error("weight_map is missing"))?;
    let entry = |(name, shard): (String, serde_json::Value)| match shard.as_str() {
        Some(file) if Path::new(file).file_name().is_some_and(|f| f == file) => Ok((name, file.to_owned())),
        _ => Err(fields.error(format!("weight_map: {name} is {shard} (expected a file name)"))),
    };
    let weight_map: BTreeMap<String, String> = map.into_map().into_iter().map(entry).collect::<Result<_>>()?;
    if weight_map.is_empty() { Err(fields.error("weight_map is empty")) } else { Ok(weight_map) }
}
