//! LoRA adapters as PEFT saves them: W + s·B·A for some weights W of a checkpoint, other weights replaced whole.

mod config;
mod export;
mod merge;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};

use crate::checkpoint::{Checkpoint, Kind, Stored};
use crate::mapping::Source;

pub use config::FILE as CONFIG_FILE;
pub use export::{Export, export};
pub use merge::Weights;

use config::LoraConfig;
use names::Part;

const SAFETENSORS: &str = "adapter_model.safetensors";
const TORCH: &str = "adapter_model.bin";

/// The one of the checkpoint's matrices that is no linear layer.
const EMBEDDING: &str = "transformer.wte.weight";

/// An adapter's directory and how much of it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The directory.
    pub dir: PathBuf,
    /// 1 is the adapter as it was trained.
    pub scale: f32,
}

/// Both factors for one weight: `scale`·B·A is added to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// (rank, in).
    pub a: Stored,
    /// (out, rank).
    pub b: Stored,
    /// What the adapter was trained with: α / r or α / √r.
    pub scale: f64,
}

impl Factors {
    /// Columns of B, rows of A.
    pub fn rank(&self) -> u64 {
        self.a.shape[0]
    }
}

/// An adapter. Having one says: it is plain LoRA, every weight that it changes has both factors of one rank, the one that
/// the configuration says, or a whole matrix in its place. Whether they fit a base model, [`prove`](Self::prove) says.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    dir: PathBuf,
    scale: f32,
    config: LoraConfig,
    checkpoint: Checkpoint,
    factors: BTreeMap<String, Factors>,
    whole: BTreeMap<String, Stored>,
}

impl Adapter {
    /// Opens an adapter's directory and reads its headers. Errors (kind model): no adapter there, damaged, or more than LoRA.
    pub fn open(wanted: &Wanted) -> Result<Self> {
        let dir = std::fs::canonicalize(&wanted.dir)
            .map_err(|e| Error::model("cannot open the adapter's directory").because(e).at(&wanted.dir))?;
        if !dir.is_dir() {
            let message = format!("not a directory (expected that of a LoRA adapter, with {CONFIG_FILE})");
            return Err(Error::model(message).at(&wanted.dir));
        }
        let config = LoraConfig::read(&dir)?;
        let checkpoint = open_weights(&dir)?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (factors, whole) = sorted(&checkpoint, &config).map_err(|e| e.at(&dir))?;
        let scale = wanted.scale;
        let adapter = Adapter { name, dir, scale, config, checkpoint, factors, whole };
        adapter.prove_whole()?;
        Ok(adapter)
    }

    /// How much of it is wanted.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Name of its directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its headers and values, by PEFT's names.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What it is, in a line: `mine: rank 8, alpha 16, scale 1; adds to 8 tensors, replaces 2`.
    pub fn summary(&self) -> String {
        let replaces = if self.whole.is_empty() { String::new() } else { format!(", replaces {}", self.whole.len()) };
        let (config, n) = (self.config.summary(), self.factors.len());
        format!("{}: {config}, scale {}; adds to {n} tensors{replaces}", self.name, self.scale)
    }

    /// What it does to a weight, `None` if nothing.
    pub fn effect_on(&self, weight: &str) -> Option<Effect> {
        if self.whole.contains_key(weight) {
            return Some(Effect::Replaces);
        }
        self.factors.contains_key(weight).then_some(Effect::AddsTo)
    }

    /// Its tensors for weights whose names begin so, each with what it is scaled by.
    pub fn tensors_of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (f32, &'a Stored)> {
        let factors = self.factors.iter().filter(move |(name, _)| name.starts_with(prefix));
        let factors = factors.flat_map(|(_, f)| [(self.scale_of(f), &f.a), (self.scale_of(f), &f.b)]);
        let whole = self.whole.iter().filter(move |(name, _)| name.starts_with(prefix));
        factors.chain(whole.map(|(_, stored)| (1.0, stored)))
    }

    /// What B·A is multiplied by in all.
    fn scale_of(&self, factors: &Factors) -> f32 {
        (factors.scale * f64::from(self.scale)) as f32
    }

    /// Proves that it fits the base model's weights. Errors (kind model) name the first tensor that does not.
    pub fn prove<'a>(&self, sources: impl Iterator<Item = &'a Source>) -> Result<()> {
        let shapes: BTreeMap<&str, &[u64]> = sources.map(|s| (s.name.as_str(), s.shape.as_slice())).collect();
        let shape_of = |weight: &str, tensor: &Stored| match shapes.get(weight) {
            Some(shape) => Ok(*shape),
            None if shapes.contains_key(format!("{}.qweight", names::module(weight)).as_str()) => {
                Err(Error::model(format!(
                    "tensor {} adapts {weight}, which GPTQ has packed into 4 bits, and nothing can be merged into those; make a \
                 GGUF of the adapter (qvl-convert lora) and apply it at run time (qvl --lora)",
                    tensor.name
                )))
            }
            None => Err(Error::model(format!("tensor {} adapts {weight}, which the model has not", tensor.name))),
        };
        let check = || -> Result<()> {
            for (weight, Factors { a, b, .. }) in &self.factors {
                let &[n_out, n_in] = shape_of(weight, a)? else {
                    return Err(Error::model(format!("tensor {}: {weight} is no linear layer", a.name)));
                };
                if weight == EMBEDDING {
                    return Err(Error::model(format!("tensor {}: {weight} is no linear layer", a.name)));
                }
                if (a.shape[1], b.shape[0]) != (n_in, n_out) {
                    let (a_shape, b_shape) = (&a.shape, &b.shape);
                    return Err(Error::model(format!(
                        "tensors {} {a_shape:?} and lora_B {b_shape:?} do not fit {weight} {:?}: it is an adapter of \
                         another model",
                        a.name,
                        [n_out, n_in]
                    )));
                }
            }
            for (weight, tensor) in &self.whole {
                let shape = shape_of(weight, tensor)?;
                if tensor.shape != shape {
                    let message = format!("tensor {} has shape {:?} (expected {shape:?})", tensor.name, tensor.shape);
                    return Err(Error::model(message));
                }
            }
            Ok(())
        };
        check().map_err(|e| e.at(&self.dir))
    }

    /// Proves what needs no base model: it is not empty, what it names as adapted is, and what is whole is wanted whole.
    fn prove_whole(&self) -> Result<()> {
        let error = |message: String| Err(Error::model(message).at(&self.dir));
        if self.factors.is_empty() && self.whole.is_empty() {
            return error("the adapter holds no tensors".into());
        }
        let ends_so = |module: &str, target: &str| module == target || module.ends_with(&format!(".{target}"));
        let is_hit = |target: &&String| self.factors.keys().any(|weight| ends_so(names::module(weight), target));
        if let Some(target) = self.config.targets.iter().find(|target| !is_hit(target)) {
            return error(format!("{CONFIG_FILE} names {target} in target_modules, but no tensor is of it"));
        }
        match self.whole.keys().next() {
            Some(weight) if ![0.0, 1.0].contains(&self.scale) => error(format!(
                "it replaces {weight} whole, which cannot be done {} times; leave the scale out",
                self.scale
            )),
            _ => Ok(()),
        }
    }
}

/// What an adapter does to a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// W + s·B·A.
    AddsTo,
    /// Another matrix in its place.
    Replaces,
}

/// Refuses adapters of which more than one replaces the same weight.
pub fn prove_together(adapters: &[Adapter]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for adapter in adapters {
        if let Some(weight) = adapter.whole.keys().find(|weight| !seen.insert(weight.as_str())) {
            return Err(Error::model(format!("{weight} is replaced by another adapter already")).at(&adapter.dir));
        }
    }
    Ok(())
}

/// The adapter's tensors. Errors (kind model): none there, or in a form that is not read.
fn open_weights(dir: &Path) -> Result<Checkpoint> {
    if dir.join(SAFETENSORS).exists() {
        return Checkpoint::open_files(vec![dir.join(SAFETENSORS)], Kind::Safetensors);
    }
    if dir.join(TORCH).exists() {
        return Checkpoint::open_files(vec![dir.join(TORCH)], Kind::Torch);
    }
    let message = format!("no adapter here (expected {SAFETENSORS} or {TORCH} beside {CONFIG_FILE})");
    Err(Error::model(message).at(dir))
}

type Sorted = (BTreeMap<String, Factors>, BTreeMap<String, Stored>);

/// Which tensors belong to which weight. Errors: one of two factors is missing, or not of the rank that it should be.
fn sorted(checkpoint: &Checkpoint, config: &LoraConfig) -> Result<Sorted> {
    let (mut firsts, mut seconds, mut whole) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, stored) in checkpoint.tensors() {
        let (weight, part) = names::part(name)?;
        let parts = match part {
            Part::A => &mut firsts,
            Part::B => &mut seconds,
            Part::Whole => &mut whole,
        };
        if parts.insert(weight.clone(), stored.clone()).is_some() {
            return Err(Error::model(format!("tensor {name} is there under another name too")));
        }
    }
    let mut factors = BTreeMap::new();
    for (weight, a) in firsts {
        let Some(b) = seconds.remove(&weight) else { return Err(alone(&a, "lora_B")) };
        let module = names::module(&weight);
        let (&[rank, _], &[_, rank_b]) = (&a.shape[..], &b.shape[..]) else {
            let message = format!("tensors {} {:?} and lora_B {:?} are no matrices", a.name, a.shape, b.shape);
            return Err(Error::model(message));
        };
        let expected = config.rank(module);
        if (rank, rank_b) != (expected, expected) {
            return Err(Error::model(format!(
                "tensor {} has rank {rank} and its lora_B {rank_b} (expected {expected} by {CONFIG_FILE})",
                a.name
            )));
        }
        if whole.contains_key(&weight) {
            return Err(Error::model(format!("tensor {}: {weight} is also replaced whole", a.name)));
        }
        let scale = config.scale(module);
        factors.insert(weight, Factors { a, b, scale });
    }
    match seconds.values().next() {
        Some(b) => Err(alone(b, "lora_A")),
        None => Ok((factors, whole)),
    }
}

fn alone(tensor: &Stored, missing: &str) -> Error {
    Error::model(format!("tensor {} is there without its {missing}", tensor.name))
}
