//! A checkpoint's weights: which tensors there are, of which type and shape, and where their bytes lie.

mod check;
mod gather;
mod safetensors;
mod shards;
mod torch;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::gguf::Gguf;
use qvl::quant::GgmlType;

use self::shards::Found;

pub use check::check;

/// Element types of stored tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// Packed quants and indices of GPTQ.
    I32,
    /// Blocks of a GGUF file, whole ones a row.
    Blocks(GgmlType),
    /// A type that no weight has; its values are not read.
    Other(&'static str),
}

impl DType {
    /// Bytes of `n` values, which must be whole blocks; 0 for types that are not read.
    pub fn bytes_of(self, n: u64) -> u64 {
        match self {
            DType::F32 | DType::I32 => 4 * n,
            DType::F16 | DType::BF16 => 2 * n,
            DType::Blocks(ty) => n / ty.block_size() * ty.block_bytes(),
            DType::Other(_) => 0,
        }
    }

    /// Whether its values can be widened to f32.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::Blocks(_))
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DType::Other(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}

/// A tensor of the checkpoint. Its values lie inside its shard (as of when the header was read).
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
    /// Values from one index of an axis to the next; `None`: values follow each other in the order of the shape.
    strides: Option<Vec<u64>>,
}

impl Stored {
    /// A tensor with these strides, one an axis, in values. Who calls has proven that all values are inside the shard.
    fn new(name: String, shard: usize, offset: u64, dtype: DType, shape: Vec<u64>, strides: Vec<u64>) -> Self {
        let strides = (!gather::is_contiguous(&shape, &strides)).then_some(strides);
        Stored { name, shard, offset, dtype, shape, strides }
    }

    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Values a row: those of one index of the first dimension; 1 for a vector.
    pub fn width(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// The same values with rows and columns exchanged. Only for matrices.
    pub fn transposed(&self) -> Self {
        let strides = self.strides.clone().unwrap_or_else(|| gather::row_major(&self.shape));
        let turned = |all: &[u64]| all.iter().rev().copied().collect::<Vec<u64>>();
        Stored { strides: Some(turned(&strides)), shape: turned(&self.shape), ..self.clone() }
    }
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    /// Its path, for messages.
    pub path: PathBuf,
    file: File,
}

/// Forms of files that hold weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `*.safetensors`
    Safetensors,
    /// `*.bin`, as `torch.save` writes it.
    Torch,
}

impl Kind {
    /// By the end of the file's name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "safetensors" => Some(Kind::Safetensors),
            "bin" | "pt" | "pth" => Some(Kind::Torch),
            _ => None,
        }
    }
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

impl Checkpoint {
    /// Opens the weights in `dir` and reads every header. Errors (kind model): nothing there, pointers instead of files,
    /// missing, truncated or corrupt shards, tensors listed twice.
    pub fn open(dir: &Path) -> Result<Self> {
        let found = shards::find(dir)?.ok_or_else(|| shards::no_weights(dir))?;
        Self::open_found(dir, found)
    }

    /// Opens these files of tensors, all of one kind, and reads every header. Errors as [`open`](Self::open).
    pub fn open_files(paths: Vec<PathBuf>, kind: Kind) -> Result<Self> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let shard = checkpoint.shards.len();
            let header = match kind {
                Kind::Safetensors => safetensors::read_header(&path, shard)?,
                Kind::Torch => torch::read_header(&path, shard)?,
            };
            for stored in header {
                let name = stored.name.clone();
                if checkpoint.tensors.insert(name.clone(), stored).is_some() {
                    return Err(Error::model(format!("tensor {name} is also in another shard")).at(&path));
                }
            }
            let file = File::open(&path).map_err(|e| Error::model("cannot open the shard").because(e).at(&path))?;
            checkpoint.shards.push(Shard { path, file });
        }
        Ok(checkpoint)
    }

    fn open_found(dir: &Path, found: Found) -> Result<Self> {
        let (index, kind, weight_map) = match found {
            Found::Single(path, kind) => return Self::open_files(vec![path], kind),
            Found::Indexed { index, kind, weight_map } => (index, kind, weight_map),
        };
        let checkpoint = Self::open_files(shards::paths(dir, &index, &weight_map)?, kind)?;
        for (name, shard) in weight_map {
            let found = checkpoint.tensors.get(&name).map(|t| &checkpoint.shards[t.shard].path);
            if found.is_none_or(|path| !path.ends_with(&shard)) {
                return Err(Error::model(format!("tensor {name} is not in {shard}, where it should be")).at(&index));
            }
        }
        Ok(checkpoint)
    }

    /// The tensors of GGUF files, whose headers have been proven, by their names there. Each file is given by its parts, with where
    /// each begins in the bytes that its header counts in.
    pub fn of_ggufs(files: &[(&[(PathBuf, u64)], &Gguf)]) -> Result<Self> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), tensors: BTreeMap::new() };
        for (parts, gguf) in files {
            let first = checkpoint.shards.len();
            for (path, _) in *parts {
                let file = File::open(path).map_err(|e| Error::model("cannot open the file").because(e).at(path))?;
                checkpoint.shards.push(Shard { path: path.clone(), file });
            }
            for tensor in gguf.tensors() {
                let nth = parts.partition_point(|(_, start)| *start <= tensor.offset).saturating_sub(1);
                let shard = first + nth;
                let dtype = match tensor.ty {
                    GgmlType::F32 => DType::F32,
                    GgmlType::F16 => DType::F16,
                    GgmlType::BF16 => DType::BF16,
                    ty => DType::Blocks(ty),
                };
                let (name, shape) = (tensor.name.clone(), tensor.dims.iter().rev().copied().collect());
                let (offset, strides) = (tensor.offset - parts[nth].1, None);
                let stored = Stored { name: name.clone(), shard, offset, dtype, shape, strides };
                if checkpoint.tensors.insert(name.clone(), stored).is_some() {
                    return Err(Error::model(format!("tensor {name} is in both files")).at(&parts[nth].0));
                }
            }
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
    match shards::find(dir)? {
        None => Ok(Inventory::Nothing),
        Some(Found::Indexed { weight_map, .. }) if !weight_map.values().all(|shard| dir.join(shard).exists()) => {
            Ok(Inventory::Names(weight_map.into_keys().collect()))
        }
        Some(found) => Checkpoint::open_found(dir, found).map(Inventory::Headers),
    }
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
