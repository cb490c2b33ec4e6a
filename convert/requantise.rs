//! A GGUF pair made by this program as the source of another one: its tensors are copied into other types.
//!
//! What depends only on the weights was done when the pair was made, so every recipe is a copy; from f32 or the checkpoint's own
//! 16-bit type the result is what the checkpoint itself would give, to the last byte.

use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::gguf::{Gguf, Metadata, Part};
use qvl::gguf_file::GgufFile;
use qvl::mmap::MappedFile;
use qvl::names::{general, quality};
use qvl::quant::GgmlType;
use qvl::text::{self, TextHparams};
use qvl::vision::{VisionHparams, VisionModel};

use crate::args::Args;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, TextConfig, VisionConfig};
use crate::convert::Which;
use crate::lora::Weights;
use crate::mapping::{self, Mapped};
use crate::naming;
use crate::plan::{self, FilePlan, Plan, Request};
use crate::recipe::Recipe;

/// A pair, proven, and what is to become of it.
pub struct Pair {
    /// Both files' tensors.
    pub weights: Weights,
    /// What will be written.
    pub plan: Plan,
    /// Metadata of the text file and of the mmproj.
    pub metadata: [Metadata; 2],
    /// Which of the two are new; a file that is its own source stays as it is.
    pub written: Vec<Which>,
    /// Every file that is read.
    pub sources: Vec<PathBuf>,
}

/// Opens the text file of the arguments and its mmproj, and plans. Errors: kind model when one is damaged, of another kind or
/// has lost too much already; kind usage when a result would take its source's place, or nothing is to be done.
pub fn open(args: &Args) -> Result<Pair> {
    let path = args.checkpoint.as_path();
    let (file, h) = open_text(path)?;
    let (text, parts) = (file.gguf(), file.parts());
    let mmproj = match &args.mmproj {
        Some(mmproj) => mmproj.clone(),
        None => find_beside(path, &h.vision_id)?,
    };
    let (vision, vision_h) = open_vision(&mmproj, &h.vision_id)?;
    let config = Config { text: TextConfig::of_gguf(&h), vision: VisionConfig::of_gguf(&vision_h), gptq: None };
    let text_tensors = copied(mapping::text(&config.text, None), text).map_err(|e| e.at(path))?;
    let vision_tensors = copied(mapping::vision(&config), &vision).map_err(|e| e.at(&mmproj))?;
    for (gguf, path) in [(text, path), (&vision, &mmproj)] {
        if let Some(tensor) = gguf.tensors().iter().find(|t| has_lost(t.ty)).filter(|_| !args.allow_requantize) {
            return Err(Error::model(format!(
                "tensor {} is {} already, and converting it again would lose more; convert from f32, f16, bf16 or q8_0, or say \
                 --allow-requantize",
                tensor.name, tensor.ty
            ))
            .at(path));
        }
    }
    let stem = naming::file_stem(&args.name.clone().unwrap_or_else(|| stem(path, text)));
    let (text_type, vision_type, overrides) = (args.text_type, args.vision_type, args.tensor_type.as_slice());
    let request = Request { name: &stem, text_type, vision_type, overrides };
    let plan = plan::plan_of((text_tensors, vision_tensors), &request)?;
    let mut written = Vec::new();
    for (which, plan, source, gguf) in
        [(Which::Text, &plan.text, path, text), (Which::Vision, &plan.vision, mmproj.as_path(), &vision)]
    {
        let is_source = is_same(&args.out.join(&plan.file_name), source);
        if is_source && plan.tensors.iter().any(|t| gguf.tensor(&t.name).is_some_and(|s| s.ty != t.ty)) {
            let message =
                "this is a source, and would be replaced by what is made of it; name another directory with -o";
            return Err(Error::usage(message).at(source));
        }
        written.extend((!is_source).then_some(which));
    }
    if written.is_empty() {
        return Err(Error::usage("both files are what is asked for already; name another type with -t").at(path));
    }
    let metadata = [metadata(text, &plan.text, args), metadata(&vision, &plan.vision, args)];
    let weights = Weights::new(Checkpoint::of_ggufs(&[(&parts, text), (&[(mmproj.clone(), 0)], &vision)])?, Vec::new());
    let sources = parts.into_iter().map(|(path, _)| path).chain([mmproj]).collect();
    Ok(Pair { weights, plan, metadata, written, sources })
}

/// Whether a type keeps less of a weight than eight bits do.
fn has_lost(ty: GgmlType) -> bool {
    ty.is_quantised() && ty != GgmlType::Q8_0
}

/// The file, and what it says of the model.
fn open_text(path: &Path) -> Result<(GgufFile, TextHparams)> {
    let file = GgufFile::open(path)?;
    let read = || -> Result<TextHparams> {
        let h = TextHparams::read(file.gguf())?;
        text::check(file.gguf(), &h)?;
        Ok(h)
    };
    let h = read().map_err(|e| e.at(path))?;
    Ok((file, h))
}

fn open_vision(path: &Path, vision_id: &str) -> Result<(Gguf, VisionHparams)> {
    let file = MappedFile::open(path)?;
    let read = || -> Result<(Gguf, VisionHparams)> {
        let gguf = Gguf::parse(&file)?;
        let h = VisionModel::new(&file, &gguf)?.hparams().clone();
        let id = gguf.opt_str(general::VISION_ID)?.unwrap_or_default();
        if id != vision_id {
            let key = general::VISION_ID;
            return Err(Error::model(format!("the mmproj is of another model ({key} {id:?}, expected {vision_id:?})")));
        }
        Ok((gguf, h))
    };
    read().map_err(|e| e.at(path))
}

/// The largest mmproj beside `model` that belongs to it: the one that has lost least.
fn find_beside(model: &Path, vision_id: &str) -> Result<PathBuf> {
    let dir = model.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(dir).map_err(|e| Error::model("cannot look for the mmproj").because(e).at(dir))?;
    let belongs = |path: &PathBuf| -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let id = || -> Option<String> {
            let gguf = Gguf::parse(&MappedFile::open(path).ok()?).ok()?;
            gguf.opt_str(general::VISION_ID).ok()?.map(str::to_owned)
        };
        name.contains("mmproj") && name.ends_with(".gguf") && id().is_some_and(|id| id == vision_id)
    };
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(belongs).collect();
    found.sort();
    found
        .into_iter()
        .max_by_key(size)
        .ok_or_else(|| Error::model("no mmproj-*.gguf beside it belongs to it; name it with --mmproj").at(model))
}

/// The tensors that a checkpoint of these dimensions would be mapped to, taken from the file as they are. Errors: the file has
/// others.
fn copied(mapped: Vec<Mapped>, gguf: &Gguf) -> Result<Vec<Mapped>> {
    if mapped.len() != gguf.tensors().len() {
        return Err(Error::model(format!("{} tensors (expected {})", gguf.tensors().len(), mapped.len())));
    }
    let copied = |m: Mapped| match gguf.tensor(&m.name) {
        Some(tensor) if tensor.dims == m.dims || tensor.dims == padded(tensor.ty, &m.dims) => {
            let recipe = if tensor.dims == m.dims { Recipe::Copy } else { Recipe::Unpad };
            let shape: Vec<u64> = tensor.dims.iter().rev().copied().collect();
            Ok(Mapped { recipe, sources: vec![mapping::source(m.name.as_str(), &shape)], ..m })
        }
        Some(tensor) => {
            let message = format!("tensor {} has extents {:?} (expected {:?})", m.name, tensor.dims, m.dims);
            Err(Error::model(message))
        }
        None => Err(Error::model(format!("tensor {} is missing", m.name))),
    };
    mapped.into_iter().map(copied).collect()
}

/// These extents with rows that are whole blocks of `ty`, as an mmproj's may be.
fn padded(ty: GgmlType, dims: &[u64]) -> Vec<u64> {
    let mut dims = dims.to_vec();
    dims[0] = ty.padded(dims[0]);
    dims
}

/// The file's name without its type.
fn stem(path: &Path, gguf: &Gguf) -> String {
    let mut stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if let Ok(Some(part)) = Part::of(gguf) {
        let end = format!("-{:05}-of-{:05}", part.no + 1, part.count);
        stem.truncate(stem.strip_suffix(&end).map_or(stem.len(), str::len));
    }
    let ty = recipe(gguf).map(|recipe| format!("-{}", recipe.to_uppercase())).unwrap_or_default();
    stem.strip_suffix(&ty).map(str::to_owned).unwrap_or(stem)
}

fn recipe(gguf: &Gguf) -> Option<&str> {
    gguf.opt_str(general::RECIPE).ok().flatten()
}

/// The source's metadata with what the types have changed.
fn metadata(source: &Gguf, plan: &FilePlan, args: &Args) -> Metadata {
    let mut m = Metadata(source.metadata().to_vec());
    // What was measured was measured of the source.
    m.0.retain(|(key, _)| !key.starts_with(quality::PREFIX));
    Part::forget(&mut m);
    crate::metadata::set_types(&mut m, plan);
    if let Some(name) = &args.name {
        crate::metadata::set_name(&mut m, name);
    }
    // What was said of an older source stays true.
    if source.tensors().iter().any(|t| t.ty.is_quantised()) && source.get(general::REQUANTISED_FROM).is_none() {
        m.set_opt(general::REQUANTISED_FROM, recipe(source));
    }
    m
}

/// Whether both are the same file.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
