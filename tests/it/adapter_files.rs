//! LoRA adapters as PEFT saves them, made up for `models/qvl-random`.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Width of `models/qvl-random`.
pub const D: usize = 256;
/// Rows of its w1 and w2.
pub const FF: usize = 512;

/// A tensor by PEFT's name, row-major.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Tensor {
    /// Pseudo-random multiples of 2^-8 below 2^-4, from its name: sums of a few products of two are exact in f32.
    pub fn new(name: &str, shape: &[usize]) -> Self {
        let seed = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let value = |i: usize| {
            let hash = seed.wrapping_add(i as u32).wrapping_mul(2_654_435_761);
            ((hash >> 27) as f32 - 15.5).floor() / 256.0
        };
        let data = (0..shape.iter().product()).map(value).collect();
        Tensor { name: format!("base_model.model.{name}"), shape: shape.to_vec(), data }
    }
}

/// A and B of rank `rank` for a module of `n_out` × `n_in`.
pub fn factors(module: &str, [n_out, n_in]: [usize; 2], rank: usize) -> [Tensor; 2] {
    [
        Tensor::new(&format!("{module}.lora_A.weight"), &[rank, n_in]),
        Tensor::new(&format!("{module}.lora_B.weight"), &[n_out, rank]),
    ]
}

/// Modules of a layer of text that the published finetuning script adapts, with their shapes.
pub fn text_modules(il: usize) -> [(String, [usize; 2]); 4] {
    let module = |name: &str| format!("transformer.h.{il}.{name}");
    [
        (module("attn.c_attn"), [3 * D, D]),
        (module("attn.c_proj"), [D, D]),
        (module("mlp.w1"), [FF, D]),
        (module("mlp.w2"), [FF, D]),
    ]
}

/// An adapter of both layers, as the published finetuning script makes it.
pub fn text_factors(rank: usize) -> Vec<Tensor> {
    (0..2).flat_map(text_modules).flat_map(|(module, shape)| factors(&module, shape, rank)).collect()
}

/// `adapter_config.json` as that script's PEFT writes it, with some keys changed.
pub fn config(rank: usize, alpha: f64, changes: Value) -> Value {
    let mut config = json!({
        "auto_mapping": null, "base_model_name_or_path": "Qwen/Qwen-VL-Chat", "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null,
        "lora_alpha": alpha, "lora_dropout": 0.05, "modules_to_save": null, "peft_type": "LORA", "r": rank,
        "revision": null, "target_modules": ["c_attn", "attn.c_proj", "w1", "w2"], "task_type": "CAUSAL_LM",
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// Writes an adapter's directory.
pub fn write(dir: &Path, config: &Value, tensors: &[Tensor]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let view = |(t, bytes): (&Tensor, &'_ Vec<u8>)| (t.name.clone(), t.shape.clone(), bytes.clone());
    let parts: Vec<_> = tensors.iter().zip(&bytes).map(view).collect();
    let views =
        parts.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
}
