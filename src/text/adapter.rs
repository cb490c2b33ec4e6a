//! Proves a LoRA adapter's GGUF before llama.cpp sees it. Format: llama.cpp's `llama-adapter.cpp`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo, Value, ValueType};
use crate::names::{adapter as key, general, text as text_key, text_tensor as name};
use crate::quant::GgmlType;

use super::TextHparams;

/// Highest rank that is accepted: far beyond any use.
const MAX_RANK: u64 = 1 << 14;

/// Whether a file says that it is an adapter, of whatever kind.
pub fn is_adapter(gguf: &Gguf) -> bool {
    matches!(gguf.get(general::TYPE), Some(Value::String(kind)) if kind == key::GENERAL_TYPE)
}

/// Proves what can be said of an adapter without its model: its keys, and that its tensors are pairs of matrices of one rank.
/// Errors (kind model) name the key or tensor.
pub fn check_adapter_form(gguf: &Gguf) -> Result<()> {
    pairs(gguf).map(drop)
}

/// Proves that it can be applied to a model of these dimensions: moreover, that every pair is of a matrix that the graph
/// multiplies by, and as large. Errors (kind model) name the key or tensor.
pub fn check_adapter(gguf: &Gguf, h: &TextHparams) -> Result<()> {
    for (weight, [a, b]) in pairs(gguf)? {
        let Some([n_in, n_out]) = extents(weight, h) else {
            let message =
                format!("tensor {:?} adapts {weight:?}, which is no matrix of this model that can be adapted", a.name);
            return Err(Error::model(message));
        };
        if (a.dims[0], b.dims[1]) != (n_in, n_out) {
            return Err(Error::model(format!(
                "tensors {:?} {:?} and {} {:?} do not fit {weight} [{n_in}, {n_out}]: it is an adapter of another model",
                a.name,
                a.dims,
                key::B,
                b.dims
            )));
        }
    }
    Ok(())
}

/// A and B by the name of the weight.
fn pairs(gguf: &Gguf) -> Result<BTreeMap<&str, [&TensorInfo; 2]>> {
    check_keys(gguf)?;
    let (mut firsts, mut seconds) = (BTreeMap::new(), BTreeMap::new());
    for tensor in gguf.tensors() {
        check_tensor(tensor)?;
        match (tensor.name.strip_suffix(key::A), tensor.name.strip_suffix(key::B)) {
            (Some(weight), _) => firsts.insert(weight, tensor),
            (None, Some(weight)) => seconds.insert(weight, tensor),
            (None, None) => {
                let message = format!(
                    "tensor {:?} is no part of a LoRA adapter (expected ..{} or ..{})",
                    tensor.name,
                    key::A,
                    key::B
                );
                return Err(Error::model(message));
            }
        };
    }
    if firsts.is_empty() && seconds.is_empty() {
        return Err(Error::model("the adapter holds no tensors"));
    }
    let mut pairs = BTreeMap::new();
    for (weight, a) in firsts {
        let Some(b) = seconds.remove(weight) else { return Err(alone(a, key::B)) };
        let (rank, rank_b) = (a.dims[1], b.dims[0]);
        if rank != rank_b || rank > MAX_RANK {
            let message = format!(
                "tensor {:?} has rank {rank} and its {} {rank_b} (expected one, up to {MAX_RANK})",
                a.name,
                key::B
            );
            return Err(Error::model(message));
        }
        pairs.insert(weight, [a, b]);
    }
    match seconds.values().next() {
        Some(b) => Err(alone(b, key::A)),
        None => Ok(pairs),
    }
}

fn alone(tensor: &TensorInfo, missing: &str) -> Error {
    Error::model(format!("tensor {:?} is there without its {missing}", tensor.name))
}

/// llama.cpp insists on exact value types, and acts on keys that this runtime does not want (invocation tokens).
fn check_keys(gguf: &Gguf) -> Result<()> {
    if !is_adapter(gguf) {
        let architecture = gguf.opt_str(general::ARCHITECTURE)?.unwrap_or("no architecture");
        return Err(Error::model(format!(
            "not a LoRA adapter (a {architecture} file with {} {}); make one with qvl-convert lora",
            general::TYPE,
            gguf.opt_str(general::TYPE)?.unwrap_or("missing")
        )));
    }
    for (key, expected) in [(general::ARCHITECTURE, text_key::ARCHITECTURE), (key::TYPE, key::LORA)] {
        let found = gguf.str(key)?;
        if found != expected {
            let message =
                format!("metadata key {key} is {found:?} (expected {expected:?}): an adapter of another model");
            return Err(Error::model(message));
        }
    }
    let alpha = gguf.f32(key::ALPHA)?;
    let ty = gguf.get(key::ALPHA).map(Value::value_type);
    if ty != Some(ValueType::F32) || !(alpha > 0.0 && alpha < 1e9) {
        return Err(Error::model(format!("metadata key {} is {alpha} (expected a positive f32)", key::ALPHA)));
    }
    let more = gguf
        .metadata()
        .iter()
        .find(|(k, _)| k.starts_with("adapter.") && ![key::TYPE, key::ALPHA].contains(&k.as_str()));
    match more {
        Some((key, _)) => Err(Error::model(format!("metadata key {key} is not part of a plain LoRA adapter"))),
        None => Ok(()),
    }
}

fn check_tensor(tensor: &TensorInfo) -> Result<()> {
    use GgmlType::*;
    let TensorInfo { name, dims, ty, .. } = tensor;
    match (dims.len(), ty) {
        (_, I8 | I16 | I32 | I64 | F64) => Err(Error::model(format!("tensor {name:?} has type {ty}"))),
        (2, _) => Ok(()),
        _ => Err(Error::model(format!("tensor {name:?} has extents {dims:?} (expected a matrix)"))),
    }
}

/// Extents `[ne0, ne1]` of a weight that llama.cpp's `qwen` graph multiplies by; `None` for any other name.
fn extents(weight: &str, h: &TextHparams) -> Option<[u64; 2]> {
    let (d, f, v) = (h.n_embd as u64, h.n_ff as u64, h.n_vocab as u64);
    if weight == name::OUTPUT {
        return Some([d, v]);
    }
    let (il, part) = weight.strip_prefix("blk.")?.split_once('.')?;
    let il: usize = il.parse().ok().filter(|il| *il < h.n_layer)?;
    let parts = [
        ("attn_qkv", [d, 3 * d]),
        ("attn_output", [d, d]),
        ("ffn_up", [d, f]),
        ("ffn_gate", [d, f]),
        ("ffn_down", [f, d]),
    ];
    let (_, extents) = parts.into_iter().find(|(p, _)| part.strip_suffix(".weight") == Some(p))?;
    // One spelling a layer: not 01, not +1.
    (name::blk(il, part) == weight).then_some(extents)
}
