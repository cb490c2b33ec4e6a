//! PEFT's names of an adapter's tensors → the checkpoint's tensor that each is about.

use qvl::error::{Error, Result};

/// What a tensor is for the weight that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first factor, (rank, in).
    A,
    /// The second factor, (out, rank).
    B,
    /// Takes the weight's place (`modules_to_save`).
    Whole,
}

/// What PEFT puts in front of the base model's names.
const PREFIX: &str = "base_model.model.";

/// The checkpoint's name of the weight, and what the tensor is for it. Saved with or without the name of the adapter
/// (`lora_A.default.weight`) and of the wrapper (`modules_to_save`), by PEFT's version.
///
/// Errors (kind model): parts that are more than LoRA on linear layers, or unknown.
pub fn part(name: &str) -> Result<(String, Part)> {
    let refused = |why: &str| Err(Error::model(format!("tensor {name}: {why}")));
    let Some(inner) = name.strip_prefix(PREFIX) else {
        return refused(&format!("not a name of a LoRA adapter by PEFT (expected {PREFIX}..)"));
    };
    if inner.contains(".lora_embedding_") {
        return refused("LoRA on the token embedding is not supported; train it whole with modules_to_save");
    }
    if inner.contains(".lora_magnitude_vector") {
        return refused("DoRA is not supported");
    }
    for (mark, part) in [(".lora_A.", Part::A), (".lora_B.", Part::B), (".modules_to_save.", Part::Whole)] {
        if let Some((module, rest)) = inner.split_once(mark) {
            return match rest.strip_suffix("weight") {
                Some(adapter) if adapter.is_empty() || adapter.find('.') == Some(adapter.len() - 1) => {
                    Ok((format!("{module}.weight"), part))
                }
                _ => refused("only weights are supported"),
            };
        }
    }
    match inner.ends_with(".weight") && !inner.contains(".original_module.") && !inner.contains(".base_layer.") {
        true => Ok((inner.to_owned(), Part::Whole)),
        false => refused("not understood (expected lora_A, lora_B or a whole weight)"),
    }
}

/// A weight's module.
pub fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_versions() {
        let check = |name: &str, weight: &str, expect: Part| {
            let (found, part) = part(&format!("base_model.model.{name}")).unwrap();
            assert_eq!((found.as_str(), part), (weight, expect));
        };
        check("transformer.h.0.attn.c_attn.lora_A.weight", "transformer.h.0.attn.c_attn.weight", Part::A);
        check("transformer.h.0.mlp.w1.lora_B.default.weight", "transformer.h.0.mlp.w1.weight", Part::B);
        check("transformer.wte.modules_to_save.weight", "transformer.wte.weight", Part::Whole);
        check("transformer.wte.modules_to_save.default.weight", "transformer.wte.weight", Part::Whole);
        check("lm_head.weight", "lm_head.weight", Part::Whole);
    }

    #[test]
    fn others_are_refused_by_name() {
        for name in [
            "transformer.h.0.attn.c_attn.lora_A.weight",
            "base_model.model.transformer.wte.lora_embedding_A",
            "base_model.model.transformer.h.0.mlp.w1.lora_magnitude_vector.weight",
            "base_model.model.transformer.h.0.mlp.w1.lora_B.bias",
            "base_model.model.transformer.h.0.mlp.w1.lora_B.a.b.weight",
            "base_model.model.transformer.h.0.attn.c_attn.bias",
            "base_model.model.lm_head.original_module.weight",
        ] {
            assert!(part(name).unwrap_err().to_string().contains(name), "{name}");
        }
    }
}
