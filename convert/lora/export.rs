//! An adapter as a GGUF file that llama.cpp applies at run time. Format: llama.cpp's `llama-adapter.cpp`.
//!
//! The text file's matrices are the checkpoint's as they stand, rows in their order, so both factors go over as they are.

use std::path::Path;

use qvl::error::{Error, Result};
use qvl::gguf::Metadata;
use qvl::gguf_file::GgufFile;
use qvl::names::{adapter as key, general, text as text_key};
use qvl::quant::GgmlType;
use qvl::text::{self, TextHparams};

use super::{Adapter, CONFIG_FILE, Factors, Wanted, Weights};
use crate::config::{self, TextConfig};
use crate::mapping::{self, Mapped};
use crate::naming;
use crate::plan::{FilePlan, PlannedTensor};
use crate::recipe::Recipe;
use crate::types::FileType;

/// A planned adapter file: what stands in it, and where that comes from.
pub struct Export {
    /// Its tensors.
    pub plan: FilePlan,
    /// Its keys.
    pub metadata: Metadata,
    /// The adapter's own tensors.
    pub weights: Weights,
    /// [`Adapter::summary`].
    pub summary: String,
}

/// Plans the file of an adapter of the model `base`, a checkpoint or a text GGUF. Errors (kind model): the adapter is damaged,
/// does not fit the model, or changes more than can be changed at run time.
pub fn export(dir: &Path, base: &Path, ty: FileType, file_name: String) -> Result<Export> {
    let adapter = Adapter::open(&Wanted { dir: dir.to_owned(), scale: 1.0 })?;
    refuse_what_only_merges(&adapter)?;
    let (base_name, config) = base_model(base)?;
    let tensors = mapping::text(&config, None);
    adapter.prove(tensors.iter().flat_map(|mapped| &mapped.sources))?;
    // One α for the whole file, under which the first product counts as it was trained; the others' factors make up for it.
    let first = adapter.factors.values().next().ok_or_else(|| Error::model("the adapter adds to nothing").at(dir))?;
    let alpha = first.scale * first.rank() as f64;
    let of_weight = |mapped: &Mapped| adapter.factors.get(&mapped.sources[0].name).map(|f| (mapped.name.clone(), f));
    let found = tensors.iter().filter_map(of_weight);
    let tensors = found.flat_map(|(name, factors)| planned(&name, factors, alpha, ty.base())).collect();
    let plan = FilePlan { file_name, asked: ty, kept: None, tensors };
    let mut m = Metadata::default();
    m.set(general::ARCHITECTURE, text_key::ARCHITECTURE);
    m.set(general::TYPE, key::GENERAL_TYPE);
    m.set(key::TYPE, key::LORA);
    m.set(key::ALPHA, alpha as f32);
    m.set(general::NAME, adapter.name());
    m.set("general.base_model.count", 1u32);
    m.set("general.base_model.0.name", base_name);
    m.set(general::FILE_TYPE, ty.llama_ftype());
    m.set(general::QUANTIZATION_VERSION, 2u32);
    m.set(general::TENSOR_TYPES, plan.types_text());
    let summary = adapter.summary();
    Ok(Export { plan, metadata: m, weights: Weights::new(adapter.checkpoint, Vec::new()), summary })
}

/// Whole weights and the vision tower: llama.cpp adds products to the text's matrices, and that is all it does.
fn refuse_what_only_merges(adapter: &Adapter) -> Result<()> {
    let visual = adapter.factors.keys().find(|weight| weight.starts_with("transformer.visual."));
    let message = match (adapter.whole.keys().next(), visual) {
        (Some(weight), _) => format!("it replaces {weight} whole (modules_to_save), which cannot be done at run time"),
        (None, Some(weight)) => format!("it adapts the vision tower ({weight}), which cannot be done at run time"),
        (None, None) => return Ok(()),
    };
    Err(Error::model(format!("{message}; merge it: qvl-convert CHECKPOINT_DIR --lora DIR")).at(&adapter.dir))
}

/// A and B for the weight `name`.
fn planned(name: &str, factors: &Factors, alpha: f64, ty: GgmlType) -> [PlannedTensor; 2] {
    let by = (factors.scale * factors.rank() as f64 / alpha) as f32;
    let recipe = if by == 1.0 { Recipe::Copy } else { Recipe::Scale { by } };
    [(key::A, &factors.a, Recipe::Copy), (key::B, &factors.b, recipe)].map(|(end, stored, recipe)| {
        let dims: Vec<u64> = stored.shape.iter().rev().copied().collect();
        // f32, f16 or bf16: any row is whole blocks.
        let n_bytes = ty.row_bytes(stored.n_values()).unwrap_or(0);
        let sources = vec![mapping::source(stored.name.as_str(), &stored.shape)];
        let (name, wanted, adapters) = (format!("{name}{end}"), None, Vec::new());
        PlannedTensor { name, dims, padding: 0, ty, wanted, is_free: true, recipe, sources, n_bytes, adapters }
    })
}

/// Name and dimensions of the language model in a checkpoint's directory or a text GGUF.
fn base_model(base: &Path) -> Result<(String, TextConfig)> {
    if base.is_dir() {
        if base.join(CONFIG_FILE).exists() {
            let message = "this is an adapter (expected its base model, a checkpoint or a text GGUF)";
            return Err(Error::model(message).at(base));
        }
        let dir = std::fs::canonicalize(base).map_err(|e| Error::model("cannot open the model").because(e).at(base))?;
        return Ok((naming::model_name(&naming::checkpoint_name(&dir)), config::read(&dir)?.text));
    }
    let file = GgufFile::open(base)?;
    let read = || -> Result<(String, TextConfig)> {
        let h = TextHparams::read(file.gguf())?;
        text::check(file.gguf(), &h)?;
        Ok((h.name.clone(), TextConfig::of_gguf(&h)))
    };
    read().map_err(|e| e.at(base))
}
