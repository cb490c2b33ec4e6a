//! Which tensors each file has and what they are made from. Pure: follows from the configuration alone.
//!
//! Source of the checkpoint's names and shapes: `modeling_qwen.py` and `visual.py`; of the GGUF names: `qvl::names`.

use qvl::names::{text_tensor, vision_tensor};

use crate::config::{Config, TextConfig, square_root};
use crate::gptq::{self, Gptq};
use crate::recipe::Recipe;
use crate::types::Role;

/// A tensor of the checkpoint: its name and the shape that it must have, as PyTorch writes it (slowest first).
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Name in the checkpoint.
    pub name: String,
    /// Expected shape.
    pub shape: Vec<u64>,
    /// What its values must be.
    pub holds: Holds,
}

/// Kinds of stored values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// f32, f16 or bf16.
    Floats,
    /// Packed 32-bit words, or indices.
    Ints,
}

/// A tensor of a GGUF file and where its values come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// Name in the GGUF file.
    pub name: String,
    /// Extents `[ne0, ne1, ..]`.
    pub dims: Vec<u64>,
    /// How it is made.
    pub recipe: Recipe,
    /// What from, in the order that the recipe expects.
    pub sources: Vec<Source>,
    /// What its type depends on.
    pub role: Role,
}

/// A tensor of floats.
pub fn source(name: impl Into<String>, shape: &[u64]) -> Source {
    Source { name: name.into(), shape: shape.to_vec(), holds: Holds::Floats }
}

/// `source` as it stands: a matrix of `role`, or a table if it has one dimension.
fn copied(name: impl Into<String>, source: Source, role: Role) -> Mapped {
    let dims: Vec<u64> = source.shape.iter().rev().copied().collect();
    let role = if dims.len() == 1 { Role::Table } else { role };
    Mapped { name: name.into(), dims, recipe: Recipe::Copy, sources: vec![source], role }
}

/// A matrix of a layer whose values are packed: its module's four tensors in place of `weight`.
fn packed(gptq: &Gptq, matrix: Mapped) -> Mapped {
    let weight = &matrix.sources[0];
    let module = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
    let group_size = gptq.group_size(weight.shape[1]);
    let recipe = match gptq.reason(module) {
        None => Recipe::Repack { group_size },
        Some(_) => Recipe::Dequantise,
    };
    let sources = gptq::sources(module, weight.shape[0], weight.shape[1], group_size);
    Mapped { recipe, sources, ..matrix }
}

/// The text file's tensors in file order; matrices of layers are as `gptq` says, if the checkpoint packs them.
pub fn text(c: &TextConfig, gptq: Option<&Gptq>) -> Vec<Mapped> {
    let (d, ff) = (c.n_embd, c.n_ff);
    let mut all =
        vec![copied(text_tensor::TOKEN_EMBD, source("transformer.wte.weight", &[c.n_vocab, d]), Role::Matrix)];
    for il in 0..c.n_layer {
        let down = Role::FfnDown { il, n_layer: c.n_layer };
        let parts: [(&str, &[u64], Role); 8] = [
            ("ln_1.weight", &[d], Role::Table),
            ("attn.c_attn.weight", &[3 * d, d], Role::AttnQkv),
            ("attn.c_attn.bias", &[3 * d], Role::Table),
            ("attn.c_proj.weight", &[d, d], Role::Matrix),
            ("ln_2.weight", &[d], Role::Table),
            ("mlp.w1.weight", &[ff, d], Role::Matrix),
            ("mlp.w2.weight", &[ff, d], Role::Matrix),
            ("mlp.c_proj.weight", &[d, ff], down),
        ];
        // `text_tensor::PARTS` names the same eight in the same order.
        for (part, (theirs, shape, role)) in text_tensor::PARTS.iter().zip(parts) {
            let source = source(format!("transformer.h.{il}.{theirs}"), shape);
            let mapped = copied(text_tensor::blk(il as usize, part), source, role);
            all.push(match gptq {
                Some(gptq) if shape.len() == 2 => packed(gptq, mapped),
                _ => mapped,
            });
        }
    }
    all.push(copied(text_tensor::OUTPUT_NORM, source("transformer.ln_f.weight", &[d]), Role::Table));
    all.push(copied(text_tensor::OUTPUT, source("lm_head.weight", &[c.n_vocab, d]), Role::Output));
    all
}

/// The mmproj's tensors in file order.
pub fn vision(config: &Config) -> Vec<Mapped> {
    let c = &config.vision;
    let visual = |name: &str, shape: &[u64]| source(format!("transformer.visual.{name}"), shape);
    let n_patches = c.grid() * c.grid();
    // Both counts are squares: the configuration's by proof, the header's by the plan's check.
    let from = square_root(c.n_positions).unwrap_or(1);
    let mut all = vec![
        copied(
            vision_tensor::PATCH_EMBD,
            visual("conv1.weight", &[c.n_embd, 3, c.patch_size, c.patch_size]),
            Role::Patch,
        ),
        Mapped {
            name: vision_tensor::POSITION_EMBD.into(),
            dims: vec![c.n_embd, n_patches],
            recipe: Recipe::Positions { from, to: c.grid() },
            sources: vec![visual("positional_embedding", &[c.n_positions, c.n_embd])],
            role: Role::Table,
        },
        copied(vision_tensor::PRE_LN_W, visual("ln_pre.weight", &[c.n_embd]), Role::Table),
        copied(vision_tensor::PRE_LN_B, visual("ln_pre.bias", &[c.n_embd]), Role::Table),
    ];
    (0..c.n_layer).for_each(|il| vision_layer(config, il, &mut all));
    resampler(config, &mut all);
    all
}

fn vision_layer(config: &Config, il: u64, all: &mut Vec<Mapped>) {
    let c = &config.vision;
    let (w, ff) = (c.n_embd, c.n_ff);
    let apart = Recipe::Deinterleave { n_head: c.n_head, d_head: w / c.n_head };
    let parts: [(&str, &[u64], Recipe); 12] = [
        ("ln_1.weight", &[w], Recipe::Copy),
        ("ln_1.bias", &[w], Recipe::Copy),
        ("attn.in_proj.weight", &[3 * w, w], apart),
        ("attn.in_proj.bias", &[3 * w], apart),
        ("attn.out_proj.weight", &[w, w], Recipe::Copy),
        ("attn.out_proj.bias", &[w], Recipe::Copy),
        ("ln_2.weight", &[w], Recipe::Copy),
        ("ln_2.bias", &[w], Recipe::Copy),
        ("mlp.c_fc.weight", &[ff, w], Recipe::Copy),
        ("mlp.c_fc.bias", &[ff], Recipe::Copy),
        ("mlp.c_proj.weight", &[w, ff], Recipe::Copy),
        ("mlp.c_proj.bias", &[w], Recipe::Copy),
    ];
    // `vision_tensor::PARTS` names the same twelve in the same order.
    for (part, (theirs, shape, recipe)) in vision_tensor::PARTS.iter().zip(parts) {
        let source = source(format!("transformer.visual.transformer.resblocks.{il}.{theirs}"), shape);
        all.push(Mapped { recipe, ..copied(vision_tensor::blk(il as usize, part), source, Role::Matrix) });
    }
}

fn resampler(config: &Config, all: &mut Vec<Mapped>) {
    let c = &config.vision;
    let d = c.d;
    let pool = |name: &str, shape: &[u64]| source(format!("transformer.visual.attn_pool.{name}"), shape);
    let visual = |name: &str, shape: &[u64]| source(format!("transformer.visual.{name}"), shape);
    let in_proj_w = || pool("attn.in_proj_weight", &[3 * d, d]);
    let in_proj_b = || pool("attn.in_proj_bias", &[3 * d]);
    let pos_embed = || pool("pos_embed", &[c.n_queries, d]);
    let copy = |name: &str, source: Source| copied(name, source, Role::Matrix);
    let made = |name: &str, dims: &[u64], recipe: Recipe, role: Role, sources: Vec<Source>| Mapped {
        name: name.into(),
        dims: dims.to_vec(),
        recipe,
        sources,
        role,
    };
    if c.n_embd != d {
        all.push(copy(vision_tensor::KV_PROJ, pool("kv_proj.weight", &[d, c.n_embd])));
    }
    all.push(copy(vision_tensor::LN_KV_W, pool("ln_kv.weight", &[d])));
    all.push(copy(vision_tensor::LN_KV_B, pool("ln_kv.bias", &[d])));
    let query = [("query", vec![c.n_queries, d]), ("ln_q.weight", vec![d]), ("ln_q.bias", vec![d])];
    let mut query: Vec<Source> = query.iter().map(|(name, shape)| pool(name, shape)).collect();
    query.extend([pos_embed(), in_proj_w(), in_proj_b()]);
    all.push(made(vision_tensor::ATTN_QUERY, &[d, c.n_queries], Recipe::Query, Role::Table, query));
    all.push(made(vision_tensor::ATTN_K_W, &[d, d], Recipe::Rows { first: d }, Role::Matrix, vec![in_proj_w()]));
    all.push(made(
        vision_tensor::ATTN_K_POSITION,
        &[d, c.grid() * c.grid()],
        Recipe::KeyPosition { from: square_root(c.n_queries).unwrap_or(1), to: c.grid() },
        Role::Table,
        vec![pos_embed(), in_proj_w(), in_proj_b()],
    ));
    all.push(made(vision_tensor::ATTN_V_W, &[d, d], Recipe::Rows { first: 2 * d }, Role::Matrix, vec![in_proj_w()]));
    all.push(made(vision_tensor::ATTN_V_B, &[d], Recipe::Rows { first: 2 * d }, Role::Table, vec![in_proj_b()]));
    all.push(copy(vision_tensor::ATTN_OUT_W, pool("attn.out_proj.weight", &[d, d])));
    all.push(copy(vision_tensor::ATTN_OUT_B, pool("attn.out_proj.bias", &[d])));
    all.push(copy(vision_tensor::LN_POST_W, visual("ln_post.weight", &[d])));
    all.push(copy(vision_tensor::LN_POST_B, visual("ln_post.bias", &[d])));
    let proj = vec![visual("proj", &[d, d])];
    all.push(made(vision_tensor::PROJ, &[d, d], Recipe::Transpose, Role::Matrix, proj));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{prove, tests::QWEN_VL_CHAT};
    use crate::json::Fields;
    use std::collections::BTreeMap;

    /// Everything in the published checkpoint's inventory is used, with the shape that it has there.
    #[test]
    fn the_published_checkpoint_is_used_whole() {
        let config = prove(&Fields::parse(QWEN_VL_CHAT, "config.json").unwrap()).unwrap();
        let all = [text(&config.text, None), vision(&config)].concat();
        let used: BTreeMap<String, Vec<u64>> =
            all.iter().flat_map(|m| &m.sources).map(|s| (s.name.clone(), s.shape.clone())).collect();
        let inventory = include_str!("../models/qwen-vl-chat/tensors.json");
        let inventory: BTreeMap<String, serde_json::Value> = serde_json::from_str(inventory).unwrap();
        assert_eq!(used.len(), 853);
        for (name, entry) in &inventory {
            assert_eq!(entry["shape"], serde_json::json!(used[name]), "{name}");
        }
        assert_eq!(inventory.len(), used.len());
        assert!(all.iter().all(|m| m.name.len() <= qvl::gguf::MAX_NAME_BYTES && m.dims.len() <= 4));
    }
}
