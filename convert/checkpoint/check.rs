//! Compares what a checkpoint has with what a plan reads.

use std::collections::{BTreeMap, BTreeSet};

use qvl::error::{Error, Result};

use super::{DType, Inventory};
use crate::mapping::{Holds, Source};

/// Names listed in one message.
const MAX_LISTED: usize = 5;

/// Buffers that some versions of the published code saved, which hold no weights.
const NO_WEIGHTS: [&str; 6] =
    [".rotary_emb.inv_freq", ".inv_freq", ".attn.bias", ".attn.masked_bias", ".logn_tensor", ".attn_mask"];

/// Proves that the inventory has every source with the expected shape, and nothing else that could be a weight.
///
/// Of an index only the names are compared. Errors (kind model) list the first few tensors.
pub fn check<'a>(inventory: &Inventory, sources: impl Iterator<Item = &'a Source>) -> Result<()> {
    let expected: BTreeMap<&str, &Source> = sources.map(|s| (s.name.as_str(), s)).collect();
    let found: BTreeSet<&str> = match inventory {
        Inventory::Headers(checkpoint) => checkpoint.tensors().keys().map(String::as_str).collect(),
        Inventory::Names(names) => names.iter().map(String::as_str).collect(),
        Inventory::Nothing => return Ok(()),
    };
    let is_packed = |name: &&&str| name.ends_with(".qweight");
    if let (Some(name), false) = (found.iter().find(is_packed), expected.keys().any(|name| is_packed(&name))) {
        return Err(Error::model(format!(
            "{name} is quantised (GPTQ), but config.json has no quantization_config; download config.json again, or \
             quantize_config.json as well"
        )));
    }
    let missing: Vec<&str> = expected.keys().filter(|name| !found.contains(*name)).copied().collect();
    refuse("missing", &missing)?;
    // GPTQ writes a bias of zeros beside every matrix; `gptq::look` proves the zeros.
    let is_zeros = |name: &str| {
        name.strip_suffix(".bias").is_some_and(|module| expected.contains_key(format!("{module}.qweight").as_str()))
    };
    let is_known = |name: &str| expected.contains_key(name) || is_zeros(name);
    let extra = |name: &&&str| !is_known(name) && !NO_WEIGHTS.iter().any(|end| name.ends_with(end));
    refuse("not part of Qwen-VL", &found.iter().filter(extra).copied().collect::<Vec<_>>())?;
    let Inventory::Headers(checkpoint) = inventory else { return Ok(()) };
    for (name, Source { shape, holds, .. }) in expected {
        let stored = checkpoint.tensor(name)?;
        let message = match (holds, stored.dtype) {
            _ if stored.shape != *shape => format!("has shape {:?} (expected {shape:?})", stored.shape),
            (Holds::Floats, dtype) if !dtype.is_float() => format!("is of type {dtype} (expected F32, F16 or BF16)"),
            (Holds::Ints, dtype) if dtype != DType::I32 => format!("is of type {dtype} (expected I32)"),
            _ => continue,
        };
        return Err(Error::model(format!("tensor {name} {message}")).at(checkpoint.path_of(stored)));
    }
    Ok(())
}

fn refuse(what: &str, names: &[&str]) -> Result<()> {
    let listed = names[..names.len().min(MAX_LISTED)].join(", ");
    match names.len() {
        0 => Ok(()),
        1 => Err(Error::model(format!("a tensor of the checkpoint is {what}: {listed}"))),
        n if n <= MAX_LISTED => Err(Error::model(format!("{n} tensors of the checkpoint are {what}: {listed}"))),
        n => Err(Error::model(format!("{n} tensors of the checkpoint are {what}: {listed}, .."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_names(names: &[&str]) -> String {
        let sources = ["a", "b"].map(|name| Source { name: name.into(), shape: vec![1], holds: Holds::Floats });
        let inventory = Inventory::Names(names.iter().map(|n| n.to_string()).collect());
        check(&inventory, sources.iter()).map_or_else(|e| e.to_string(), |()| "ok".into())
    }

    #[test]
    fn names_what_is_missing_and_what_is_too_much() {
        assert_eq!(check_names(&["a", "b"]), "ok");
        assert_eq!(check_names(&["b", "a", "transformer.h.0.attn.bias", "x.rotary_emb.inv_freq"]), "ok");
        assert_eq!(check_names(&["a"]), "a tensor of the checkpoint is missing: b");
        assert!(
            check_names(&["a", "b", "c", "d"]).starts_with("2 tensors of the checkpoint are not part of Qwen-VL: c, d")
        );
        assert!(check_names(&["x.qweight"]).contains("GPTQ"));
    }
}
