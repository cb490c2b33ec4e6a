//! The plan: what each file will hold and how it is made, as plain data. Computed without touching a weight.

use std::collections::BTreeMap;

use qvl::error::{Error, Result};
use qvl::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, TensorSpec};
use qvl::quant::GgmlType;

use crate::args::Override;
use crate::config::Config;
use crate::lora::{Adapter, Effect};
use crate::mapping::{self, Mapped, Source};
use crate::recipe::Recipe;
use crate::types::{FileType, fallback, mixed};

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
    /// Extents `[ne0, ne1, ..]`.
    pub dims: Vec<u64>,
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
    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.dims.iter().product()
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
    /// Its tensors in file order.
    pub tensors: Vec<PlannedTensor>,
}

impl FilePlan {
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

    /// Where everything will stand in the file.
    pub fn layout(&self, metadata: &Metadata) -> Result<Layout> {
        let specs: Vec<TensorSpec> = self.tensors.iter().map(PlannedTensor::spec).collect();
        Layout::new(metadata, &specs, DEFAULT_ALIGNMENT)
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
    plan_of((mapping::text(&config.text), mapping::vision(config)), request)
}

/// Plans the two files that hold these tensors. Errors as [`plan`].
pub fn plan_of((text, vision): (Vec<Mapped>, Vec<Mapped>), request: &Request) -> Result<Plan> {
    for Override { pattern, .. } in request.overrides {
        if !text.iter().chain(&vision).any(|m| m.role.is_free() && pattern.is_match(&m.name)) {
            return Err(Error::usage(format!("--tensor-type {pattern}: no tensor whose type can be chosen matches")));
        }
    }
    let typed = |all: Vec<Mapped>, asked| all.into_iter().map(|m| typed(m, asked, request.overrides)).collect();
    let text: Vec<PlannedTensor> = typed(text, request.text_type);
    let vision: Vec<PlannedTensor> = typed(vision, request.vision_type);
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
    let text_name = request.text_type.name().to_uppercase();
    let vision_name = vision_name.to_uppercase();
    Ok(Plan {
        text: FilePlan {
            file_name: format!("{}-{text_name}.gguf", request.name),
            asked: request.text_type,
            tensors: text,
        },
        vision: FilePlan {
            file_name: format!("mmproj-{}-{vision_name}.gguf", request.name),
            asked: request.vision_type,
            tensors: vision,
        },
        notes,
    })
}

fn typed(mapped: Mapped, asked: FileType, overrides: &[Override]) -> PlannedTensor {
    let Mapped { name, dims, recipe, sources, role } = mapped;
    let chosen = overrides.iter().find(|o| role.is_free() && o.pattern.is_match(&name)).map(|o| o.ty);
    let wanted = chosen.unwrap_or_else(|| mixed(asked, role, dims[0]));
    let ty = fallback(wanted, dims[0]);
    // The fallback holds the row and extents are capped, so neither of these can fail.
    let n_bytes = ty.row_bytes(dims[0]).unwrap_or(0) * dims[1..].iter().product::<u64>();
    let wanted = (wanted != ty).then_some(wanted);
    PlannedTensor { name, dims, ty, wanted, is_free: role.is_free(), recipe, sources, n_bytes, adapters: Vec::new() }
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
        assert_eq!(name(FileType::Q4_K_M), "mmproj-Qwen-VL-7B-Chat-Q5_0.gguf");
        assert_eq!(name(FileType::Q6_K), "mmproj-Qwen-VL-7B-Chat-Q8_0.gguf");
        assert_eq!(name(FileType::IQ4_XS), "mmproj-Qwen-VL-7B-Chat-IQ4_NL.gguf");
        assert_eq!(name(FileType::F16), "mmproj-Qwen-VL-7B-Chat-F16.gguf");
        assert_eq!(of(FileType::Q4_K_M, FileType::Q4_K_M, &[]).unwrap().notes.len(), 1);
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
        assert_eq!(ty(&plan.vision, "v.blk.0.attn_out.weight"), (GgmlType::Q8_0, Some(GgmlType::Q6_K)));
        assert_eq!(ty(&plan.vision, "v.blk.0.attn_out.bias"), (GgmlType::F32, None));
        let error = of(FileType::Q4_0, FileType::F16, &["ffn_norm=q8_0"]).unwrap_err();
        assert_eq!(error.kind(), qvl::error::ErrorKind::Usage);
    }
}
