//! The plan: what each file will hold and how it is made, as plain data. Computed without touching a weight.

use std::collections::BTreeMap;

use qvl::error::{Error, Result};
use qvl::gguf::{Checksum, DEFAULT_ALIGNMENT, Layout, Metadata, TensorSpec};
use qvl::names::general;
use qvl::quant::GgmlType;

use crate::args::Override;
use crate::config::Config;
use crate::gptq::Gptq;
use crate::lora::{Adapter, Effect};
use crate::mapping::{self, Mapped, Source};
use crate::recipe::Recipe;
use crate::types::{FileType, fallback, mixed, padding};

/// What to plan.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Name in file names, already safe for them.
    pub name: &'a str,
    /// Type of the text file.
    pub text_type: FileType,
    /// Type of the mmproj.
    pub vision_type: FileType,
    /// Types for tensors by name; the first match counts.
    pub overrides: &'a [Override],
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Name in the GGUF file.
    pub name: String,
    /// Extents `[ne0, ne1, ..]` in the file.
    pub dims: Vec<u64>,
    /// How many of the ne0 values of a row are zeros behind the checkpoint's.
    pub padding: u64,
    /// Element type; holds rows of ne0 values.
    pub ty: GgmlType,
    /// The type that was wanted, where rows of ne0 values do not fit it.
    pub wanted: Option<GgmlType>,
    /// Whether its type could be chosen.
    pub is_free: bool,
    /// How it is made.
    pub recipe: Recipe,
    /// What from.
    pub sources: Vec<Source>,
    /// Size in the file, bytes.
    pub n_bytes: u64,
    /// Names of the adapters that change it, `+` in front of one that adds and `=` of one that replaces.
    pub adapters: Vec<String>,
}

impl PlannedTensor {
    /// Number of rows.
    pub fn n_rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Values a row, without padding.
    pub fn row_length(&self) -> u64 {
        self.dims[0] - self.padding
    }

    /// Number of values, without padding.
    pub fn n_values(&self) -> u64 {
        self.row_length() * self.n_rows()
    }

    /// As the writer wants it.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dims: self.dims.clone(), ty: self.ty }
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct FilePlan {
    /// Its name.
    pub file_name: String,
    /// The type that was asked for.
    pub asked: FileType,
    /// The type of packed matrices that are kept as the checkpoint has them, if most of those are.
    pub kept: Option<FileType>,
    /// Its tensors in file order.
    pub tensors: Vec<PlannedTensor>,
}

impl FilePlan {
    /// The type that names the file: of what is kept, else what was asked for.
    pub fn file_type(&self) -> FileType {
        self.kept.unwrap_or(self.asked)
    }

    /// How the types came about, for `qvl.recipe`.
    pub fn recipe(&self) -> String {
        match self.kept {
            None => self.asked.name().to_owned(),
            Some(kept) => format!("{kept} (gptq), {}", self.asked),
        }
    }

    /// Bytes of all tensors, without header and padding.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_bytes).sum()
    }

    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::n_values).sum()
    }

    /// (tensors, bytes) of each type.
    pub fn types(&self) -> BTreeMap<GgmlType, (usize, u64)> {
        let mut types = BTreeMap::new();
        for tensor in &self.tensors {
            let entry: &mut (usize, u64) = types.entry(tensor.ty).or_default();
            *entry = (entry.0 + 1, entry.1 + tensor.n_bytes);
        }
        types
    }

    /// `q4_k: 96, f32: 97`, most bytes first.
    pub fn types_text(&self) -> String {
        let mut types: Vec<_> = self.types().into_iter().collect();
        types.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
        types.iter().map(|(ty, (n, _))| format!("{ty}: {n}")).collect::<Vec<_>>().join(", ")
    }

    /// Tensors whose rows do not fit the type that was wanted.
    pub fn fallbacks(&self) -> impl Iterator<Item = (&PlannedTensor, GgmlType)> {
        self.tensors.iter().filter_map(|t| t.wanted.map(|wanted| (t, wanted)))
    }

    /// Where everything will stand in the file, with room for the checksum of what is not yet made.
    pub fn layout(&self, metadata: &Metadata) -> Result<Layout> {
        let specs: Vec<TensorSpec> = self.tensors.iter().map(PlannedTensor::spec).collect();
        let mut metadata = metadata.clone();
        metadata.set(general::CHECKSUM, "0".repeat(Checksum::N_DIGITS));
        Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT)
    }
}

/// Both files.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The language model.
    pub text: FilePlan,
    /// The vision tower and its adapter.
    pub vision: FilePlan,
    /// What the user should know about it, a line each.
    pub notes: Vec<String>,
}

impl Plan {
    /// The same with adapters merged in, which have been proven against its sources.
    pub fn adapted(mut self, adapters: &[Adapter]) -> Self {
        for tensor in self.text.tensors.iter_mut().chain(&mut self.vision.tensors) {
            for adapter in adapters {
                let effect = tensor.sources.iter().find_map(|source| adapter.effect_on(&source.name));
                tensor.adapters.extend(effect.map(|effect| match effect {
                    Effect::AddsTo => format!("+ {}", adapter.name()),
                    Effect::Replaces => format!("= {}", adapter.name()),
                }));
            }
        }
        self.notes.extend(adapters.iter().map(Adapter::summary));
        self
    }

    /// Every tensor that is read, some more than once.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.text.tensors.iter().chain(&self.vision.tensors).flat_map(|t| &t.sources)
    }
}

/// Plans the conversion of a checkpoint. Errors (kind usage): an override that matches no tensor whose type can be chosen.
pub fn plan(config: &Config, request: &Request) -> Result<Plan> {
    let gptq = config.gptq.as_ref();
    let mut plan = plan_of((mapping::text(&config.text, gptq), mapping::vision(config)), request)?;
    plan.notes.extend(gptq.map(|gptq| gptq_note(gptq, &plan.text.tensors, request.text_type)));
    Ok(plan)
}

/// Plans the two files that hold these tensors. Errors as [`plan`].
pub fn plan_of((text, vision): (Vec<Mapped>, Vec<Mapped>), request: &Request) -> Result<Plan> {
    for Override { pattern, .. } in request.overrides {
        if !text.iter().chain(&vision).any(|m| m.role.is_free() && pattern.is_match(&m.name)) {
            return Err(Error::usage(format!("--tensor-type {pattern}: no tensor whose type can be chosen matches")));
        }
    }
    let typed =
        |all: Vec<Mapped>, asked, rows| all.into_iter().map(|m| typed(m, asked, rows, request.overrides)).collect();
    let text: Vec<PlannedTensor> = typed(text, request.text_type, Rows::AsTheyAre);
    let vision: Vec<PlannedTensor> = typed(vision, request.vision_type, Rows::Padded);
    let mut notes = Vec::new();
    let vision_name = match mostly_another_type(&vision, request.vision_type.base()) {
        None => request.vision_type.name(),
        Some(most) => {
            notes.push(format!(
                "most of the vision tower does not fit {} (its rows are not whole blocks) and is stored as {most}: the \
                 mmproj is named after that",
                request.vision_type
            ));
            most.name()
        }
    };
    let kept = mostly_kept(&text).then_some(FileType::Q4_0);
    let text_name = kept.unwrap_or(request.text_type).name().to_uppercase();
    let vision_name = vision_name.to_uppercase();
    Ok(Plan {
        text: FilePlan {
            file_name: format!("{}-{text_name}.gguf", request.name),
            asked: request.text_type,
            kept,
            tensors: text,
        },
        vision: FilePlan {
            file_name: format!("mmproj-{}-{vision_name}.gguf", request.name),
            asked: request.vision_type,
            kept: None,
            tensors: vision,
        },
        notes,
    })
}

/// What may be done to rows that are not whole blocks of the type that is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Nothing: other programs read the text file too.
    AsTheyAre,
    /// Zeros behind them; our vision graph pads its inputs likewise.
    Padded,
}

/// Whether most weights of the packed matrices are kept as they are.
fn mostly_kept(text: &[PlannedTensor]) -> bool {
    let kept =
        text.iter().filter(|t| matches!(t.recipe, Recipe::Repack { .. })).map(PlannedTensor::n_values).sum::<u64>();
    let again = text.iter().filter(|t| t.recipe == Recipe::Dequantise).map(PlannedTensor::n_values).sum::<u64>();
    kept > again
}

/// What becomes of the packed matrices.
fn gptq_note(gptq: &Gptq, text: &[PlannedTensor], asked: FileType) -> String {
    let packed = || text.iter().filter(|t| matches!(t.recipe, Recipe::Repack { .. } | Recipe::Dequantise));
    let again = || packed().filter(|t| t.recipe == Recipe::Dequantise);
    let (n, n_again) = (packed().count(), again().count());
    let Some(first) = again().next() else {
        return format!("the {n} GPTQ matrices are kept without loss, as q4_0; {asked} is the type of the others");
    };
    let reason = again().find_map(|t| {
        let module = t.sources[0].name.strip_suffix(".qweight")?;
        Some(format!("{module}: {}", gptq.reason(module)?))
    });
    let reason = reason.unwrap_or_else(|| format!("--tensor-type asks for {} as {}", first.name, first.ty));
    format!(
        "{n_again} of {n} GPTQ matrices are not kept as they are but quantised a second time, which costs accuracy ({reason})"
    )
}

fn typed(mapped: Mapped, asked: FileType, rows: Rows, overrides: &[Override]) -> PlannedTensor {
    let Mapped { name, mut dims, recipe, sources, role } = mapped;
    let chosen = overrides.iter().find(|o| role.is_free() && o.pattern.is_match(&name)).map(|o| o.ty);
    let (recipe, wanted) = match (recipe, chosen) {
        (Recipe::Repack { .. }, None | Some(GgmlType::Q4_0)) => (recipe, GgmlType::Q4_0),
        (Recipe::Repack { .. }, Some(other)) => (Recipe::Dequantise, other),
        _ => (recipe, chosen.unwrap_or_else(|| mixed(asked, role, dims[0]))),
    };
    let padding = if rows == Rows::Padded && role.is_free() { padding(wanted, dims[0]) } else { 0 };
    dims[0] += padding;
    let ty = fallback(wanted, dims[0]);
    // The fallback holds the row and extents are capped, so neither of these can fail.
    let n_bytes = ty.row_bytes(dims[0]).unwrap_or(0) * dims[1..].iter().product::<u64>();
    let wanted = (wanted != ty).then_some(wanted);
    let is_free = role.is_free();
    PlannedTensor { name, dims, padding, ty, wanted, is_free, recipe, sources, n_bytes, adapters: Vec::new() }
}

/// The type that holds most bytes of the matrices, if `base` holds less than half of them.
fn mostly_another_type(tensors: &[PlannedTensor], base: GgmlType) -> Option<GgmlType> {
    let mut bytes: BTreeMap<GgmlType, u64> = BTreeMap::new();
    for tensor in tensors.iter().filter(|t| t.is_free) {
        *bytes.entry(tensor.ty).or_default() += tensor.n_bytes;
    }
    let total: u64 = bytes.values().sum();
    if 2 * bytes.get(&base).copied().unwrap_or(0) >= total {
        return None;
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map(|(ty, _)| ty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::parse_override;
    use crate::config::{prove, tests::QWEN_VL_CHAT};
    use crate::json::Fields;
    use crate::report;

    fn of(text_type: FileType, vision_type: FileType, overrides: &[&str]) -> Result<Plan> {
        let config = prove(&Fields::parse(QWEN_VL_CHAT, "config.json")?)?;
        let overrides: Vec<Override> = overrides.iter().map(|o| parse_override(o).unwrap()).collect();
        plan(&config, &Request { name: "Qwen-VL-7B-Chat", text_type, vision_type, overrides: &overrides })
    }

    /// `QVL_UPDATE_SNAPSHOTS=1` rewrites the file.
    #[test]
    fn the_published_checkpoints_plan_is_as_committed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/plan-qwen-vl-chat-q4_k_m.txt");
        let found = report::plan_text(&of(FileType::Q4_K_M, FileType::Q8_0, &[]).unwrap());
        if std::env::var_os("QVL_UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &found).unwrap();
        }
        let expect = std::fs::read_to_string(path).unwrap();
        let differs = found.lines().zip(expect.lines()).find(|(a, b)| a != b);
        assert!(found == expect, "the plan differs from {path}: {differs:?}");
    }

    #[test]
    fn an_mmprojs_name_says_what_is_inside() {
        let name = |ty| of(FileType::Q4_K_M, ty, &[]).unwrap().vision.file_name;
        assert_eq!(name(FileType::Q8_0), "mmproj-Qwen-VL-7B-Chat-Q8_0.gguf");
        assert_eq!(name(FileType::Q4_K_M), "mmproj-Qwen-VL-7B-Chat-Q4_K_M.gguf");
        assert_eq!(name(FileType::Q6_K), "mmproj-Qwen-VL-7B-Chat-Q6_K.gguf");
        assert_eq!(name(FileType::IQ4_XS), "mmproj-Qwen-VL-7B-Chat-IQ4_XS.gguf");
        assert_eq!(name(FileType::F16), "mmproj-Qwen-VL-7B-Chat-F16.gguf");
    }

    #[test]
    fn rows_are_padded_in_the_mmproj_only() {
        let plan = of(FileType::Q4_K_M, FileType::Q6_K, &[]).unwrap();
        let of = |name: &str| plan.vision.tensors.iter().find(|t| t.name == name).unwrap();
        let out = of("v.blk.0.attn_out.weight");
        assert_eq!((out.ty, &out.dims, out.padding), (GgmlType::Q6_K, &vec![1792, 1664], 128));
        assert_eq!((out.row_length(), out.n_values(), out.n_bytes), (1664, 1664 * 1664, 1664 * 7 * 210));
        assert_eq!(of("v.blk.0.ffn_down.weight").padding, 0);
        assert_eq!(of("v.blk.0.attn_out.bias").padding, 0);
        assert!(plan.text.tensors.iter().all(|t| t.padding == 0));
    }

    #[test]
    fn overrides_choose_and_still_fall_back() {
        let plan =
            of(FileType::Q4_K_M, FileType::Q8_0, &["ffn_down=q8_0", r"^v\.blk\.0\.attn=q6_k", "ffn=f16"]).unwrap();
        let ty = |file: &FilePlan, name: &str| {
            let tensor = file.tensors.iter().find(|t| t.name == name).unwrap();
            (tensor.ty, tensor.wanted)
        };
        assert_eq!(ty(&plan.text, "blk.3.ffn_down.weight"), (GgmlType::Q8_0, None));
        assert_eq!(ty(&plan.text, "blk.3.ffn_up.weight"), (GgmlType::F16, None));
        assert_eq!(ty(&plan.text, "blk.3.ffn_norm.weight"), (GgmlType::F32, None));
        assert_eq!(ty(&plan.vision, "v.blk.0.attn_out.weight"), (GgmlType::Q6_K, None));
        assert_eq!(ty(&plan.vision, "v.blk.0.attn_out.bias"), (GgmlType::F32, None));
        let error = of(FileType::Q4_0, FileType::F16, &["ffn_norm=q8_0"]).unwrap_err();
        assert_eq!(error.kind(), qvl::error::ErrorKind::Usage);
    }
}
