//! A checkpoint's weights: which tensors there are, of which type and shape, and where their bytes lie.

mod check;
mod safetensors;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::gguf::Gguf;
use qvl::quant::GgmlType;

use crate::json::Fields;

pub use check::check;

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// Blocks of a GGUF file, whole ones a row.
    Blocks(GgmlType),
}

impl DType {
    /// Bytes of `n` values, which must be whole blocks.
    pub fn bytes_of(self, n: u64) -> u64 {
        match self {
            DType::F32 => 4 * n,
            DType::F16 | DType::BF16 => 2 * n,
            DType::Blocks(ty) => n / ty.block_size() * ty.block_bytes(),
        }
    }
}

/// A tensor of the checkpoint. Its bytes lie inside its shard (as of when the header was read), rows contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Name.
    pub name: String,
    /// Which of [`Checkpoint::shards`] holds it.
    pub shard: usize,
    /// First byte in the shard.
    pub offset: u64,
    /// Element type.
    pub dtype: DType,
    /// Shape as PyTorch writes it.
    pub shape: Vec<u64>,
}

impl Stored {
    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Values a row: those of one index of the first dimension; 1 for a vector.
    pub fn width(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    /// Its path, for messages.
    pub path: PathBuf,
    file: File,
}

/// A checkpoint's headers, with its shards open. Nothing of the weights is in memory: they are read by position, so
/// that memory does not grow with the checkpoint and a file that shrinks meanwhile is an error, not a SIGBUS.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Stored>,
}

/// What is known of a checkpoint's tensors before it is converted.
#[derive(Debug)]
pub enum Inventory {
    /// All headers were read.
    Headers(Checkpoint),
    /// Only the index is there: names, no shapes.
    Names(Vec<String>),
    /// Only the configuration is there.
    Nothing,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TORCH_SINGLE: &str = "pytorch_model.bin";
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

impl Checkpoint {
    /// Opens the weights in `dir` and reads every header. Errors (kind model): nothing there, pointers instead of files,
    /// missing, truncated or corrupt shards, tensors listed twice or of a type that is not read.
    pub fn open(dir: &Path) -> Result<Self> {
        let (paths, weight_map) = shard_paths(dir)?;
        let checkpoint = Checkpoint::of_shards(paths)?;
        for (name, shard) in weight_map {
            let found = checkpoint.tensors.get(&name).map(|t| &checkpoint.shards[t.shard].path);
            if found.is_none_or(|path| !path.ends_with(&shard)) {
                return Err(
                    Error::model(format!("tensor {name} is not in {shard}, where it should be")).at(&dir.join(INDEX))
                );
            }
        }
        Ok(checkpoint)
    }

    /// As [`open`](Self::open), of these safetensors files.
    pub fn of_shards(paths: Vec<PathBuf>) -> Result<Self> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file = File::open(&path).map_err(|e| Error::model("cannot open the shard").because(e).at(&path))?;
            for stored in safetensors::read_header(&path, checkpoint.shards.len())? {
                let name = stored.name.clone();
                if checkpoint.tensors.insert(name.clone(), stored).is_some() {
                    return Err(Error::model(format!("tensor {name} is also in another shard")).at(&path));
                }
            }
            checkpoint.shards.push(Shard { path, file });
        }
        Ok(checkpoint)
    }

    /// The tensors of GGUF files, whose headers have been proven, by their names there.
    pub fn of_ggufs(files: &[(&Path, &Gguf)]) -> Result<Self> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), tensors: BTreeMap::new() };
        for (path, gguf) in files {
            let file = File::open(path).map_err(|e| Error::model("cannot open the file").because(e).at(path))?;
            for tensor in gguf.tensors() {
                let dtype = match tensor.ty {
                    GgmlType::F32 => DType::F32,
                    GgmlType::F16 => DType::F16,
                    GgmlType::BF16 => DType::BF16,
                    ty => DType::Blocks(ty),
                };
                let (name, shape) = (tensor.name.clone(), tensor.dims.iter().rev().copied().collect());
                let stored =
                    Stored { name: name.clone(), shard: checkpoint.shards.len(), offset: tensor.offset, dtype, shape };
                if checkpoint.tensors.insert(name.clone(), stored).is_some() {
                    return Err(Error::model(format!("tensor {name} is in both files")).at(path));
                }
            }
            checkpoint.shards.push(Shard { path: path.to_path_buf(), file });
        }
        Ok(checkpoint)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| Error::model(format!("tensor {name} is missing")))
    }

    /// All tensors by name, sorted.
    pub fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// Path of the shard that holds `tensor`.
    pub fn path_of(&self, tensor: &Stored) -> &Path {
        &self.shards[tensor.shard].path
    }
}

/// What a dry run can learn of `dir`: headers if the weights are there, else the names of an index, else nothing.
/// Errors: weights that are there but damaged.
pub fn survey(dir: &Path) -> Result<Inventory> {
    if dir.join(SINGLE).exists() {
        return Checkpoint::open(dir).map(Inventory::Headers);
    }
    if dir.join(INDEX).exists() {
        let weight_map = read_index(&dir.join(INDEX))?;
        let all_there = weight_map.values().all(|shard| dir.join(shard).exists());
        return if all_there {
            Checkpoint::open(dir).map(Inventory::Headers)
        } else {
            Ok(Inventory::Names(weight_map.into_keys().collect()))
        };
    }
    if dir.join(TORCH_INDEX).exists() {
        return Ok(Inventory::Names(read_index(&dir.join(TORCH_INDEX))?.into_keys().collect()));
    }
    Ok(Inventory::Nothing)
}

/// The shards of `dir` in the order of their names, and which tensor the index expects in which (empty without one).
fn shard_paths(dir: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let single = dir.join(SINGLE);
    if single.exists() {
        return Ok((vec![single], BTreeMap::new()));
    }
    let index = dir.join(INDEX);
    if !index.exists() {
        return Err(no_weights(dir));
    }
    let weight_map = read_index(&index)?;
    let mut names: Vec<&String> = weight_map.values().collect();
    names.sort();
    names.dedup();
    let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    let missing = paths.iter().filter(|path| !path.exists()).count();
    if let Some(first) = paths.iter().find(|path| !path.exists()) {
        return Err(Error::model(format!(
            "the shard is missing ({missing} of {} named in {INDEX} are); download the checkpoint again",
            paths.len()
        ))
        .at(first));
    }
    Ok((paths, weight_map))
}

fn no_weights(dir: &Path) -> Error {
    if dir.join(TORCH_INDEX).exists() || dir.join(TORCH_SINGLE).exists() {
        return Error::model(
            "the weights are PyTorch .bin files, which are not supported yet; rewrite them once with transformers: \
             AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True, torch_dtype=\"auto\")\
             .save_pretrained(NEW_DIR, safe_serialization=True), then copy qwen.tiktoken to NEW_DIR",
        )
        .at(dir);
    }
    Error::model(format!("no weights here (expected {SINGLE}, or {INDEX} and its shards)")).at(dir)
}

/// The `weight_map` of an index: tensor name → shard's file name, which must be a plain name.
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

/// Refuses what git leaves in place of a large file that was not fetched; `start` is the file's beginning.
pub fn refuse_lfs_pointer(start: &[u8], path: &Path) -> Result<()> {
    if start.starts_with(b"version https://git-lfs") {
        return Err(
            Error::model("this is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`").at(path)
        );
    }
    Ok(())
}
