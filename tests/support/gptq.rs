//! Checkpoints of GPTQ as AutoGPTQ packs them, made of random quants: nothing is quantised here, only packed.

// Not every test that shares this file needs all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

const MODULES: [&str; 5] = ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"];

/// A quantised matrix: w[o, i] = scales[g_idx[i], o] · (quants[o, i] − zeros[g_idx[i], o]).
pub struct Matrix {
    pub n_out: usize,
    pub n_in: usize,
    /// (n_out, n_in), 0..16
    pub quants: Vec<u8>,
    /// (n_groups, n_out)
    pub scales: Vec<f16>,
    /// (n_groups, n_out), 1..=16
    pub zeros: Vec<u8>,
    /// (n_in)
    pub g_idx: Vec<i32>,
    /// (n_out)
    pub bias: Vec<f16>,
}

impl Matrix {
    /// Random quants and scales; zeros of 8, groups in order, no bias.
    fn new(n_out: usize, n_in: usize, group_size: usize, mut seed: u32) -> Self {
        let n_groups = n_in.div_ceil(group_size);
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 16
        };
        Matrix {
            n_out,
            n_in,
            quants: (0..n_out * n_in).map(|_| random() as u8 & 15).collect(),
            // Some subnormal, some negative.
            scales: (0..n_groups * n_out).map(|_| f16::from_f32(((random() % 2000) as f32 - 200.0) * 1e-5)).collect(),
            zeros: vec![8; n_groups * n_out],
            g_idx: (0..n_in).map(|i| (i / group_size) as i32).collect(),
            bias: vec![f16::ZERO; n_out],
        }
    }

    /// Its values, (n_out, n_in).
    pub fn values(&self) -> Vec<f32> {
        let value = |(at, quant): (usize, &u8)| {
            let (o, i) = (at / self.n_in, at % self.n_in);
            let group = self.g_idx[i] as usize * self.n_out + o;
            self.scales[group].to_f32() * (i32::from(*quant) - i32::from(self.zeros[group])) as f32
        };
        self.quants.iter().enumerate().map(value).collect()
    }

    /// Name, type, shape and bytes of its tensors.
    fn tensors(&self, module: &str) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
        let (n_out, n_in, n_groups) = (self.n_out, self.n_in, self.scales.len() / self.n_out);
        let word = |nibble: &dyn Fn(usize) -> u8| (0..8).fold(0u32, |word, j| word | u32::from(nibble(j)) << (4 * j));
        let mut qweight = Vec::new();
        for (i, o) in (0..n_in / 8).flat_map(|i| (0..n_out).map(move |o| (i, o))) {
            qweight.extend(word(&|j| self.quants[o * n_in + 8 * i + j]).to_le_bytes());
        }
        let mut qzeros = Vec::new();
        for (g, i) in (0..n_groups).flat_map(|g| (0..n_out / 8).map(move |i| (g, i))) {
            qzeros.extend(word(&|j| self.zeros[g * n_out + 8 * i + j] - 1).to_le_bytes());
        }
        let halves = |all: &[f16]| all.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let g_idx = self.g_idx.iter().flat_map(|g| g.to_le_bytes()).collect();
        [
            ("qweight", Dtype::I32, vec![n_in / 8, n_out], qweight),
            ("qzeros", Dtype::I32, vec![n_groups, n_out / 8], qzeros),
            ("scales", Dtype::F16, vec![n_groups, n_out], halves(&self.scales)),
            ("g_idx", Dtype::I32, vec![self.g_idx.len()], g_idx),
            ("bias", Dtype::F16, vec![self.bias.len()], halves(&self.bias)),
        ]
        .map(|(part, dtype, shape, bytes)| (format!("{module}.{part}"), dtype, shape, bytes))
        .into()
    }
}

/// A checkpoint like that of `source` with random packed matrices.
pub struct Checkpoint {
    pub matrices: BTreeMap<String, Matrix>,
    pub quantization_config: Value,
    source: Vec<u8>,
}

impl Checkpoint {
    /// Like `dir`, in groups of `group_size`.
    pub fn like(dir: &Path, group_size: usize) -> Self {
        let source = fs::read(dir.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&source).unwrap();
        let mut matrices = BTreeMap::new();
        for (name, view) in file.tensors() {
            let module = name.strip_suffix(".weight").unwrap_or_default();
            if module.starts_with("transformer.h.") && MODULES.iter().any(|m| module.ends_with(m)) {
                let seed = matrices.len() as u32 + 1;
                matrices.insert(module.to_owned(), Matrix::new(view.shape()[0], view.shape()[1], group_size, seed));
            }
        }
        let quantization_config = json!({
            "bits": 4, "group_size": group_size, "damp_percent": 0.01, "desc_act": false, "static_groups": false,
            "sym": true, "true_sequential": true, "model_name_or_path": null, "model_file_base_name": "model",
            "quant_method": "gptq",
        });
        Checkpoint { matrices, quantization_config, source }
    }

    /// Writes weights and configuration into `dir`; `config` is the unquantised checkpoint's configuration.
    pub fn save(&self, dir: &Path, config: &Path) {
        let file = SafeTensors::deserialize(&self.source).unwrap();
        let of_matrix = |name: &str| {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            self.matrices.get(module).map(|m| (module.to_owned(), m))
        };
        let mut all: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, view) in file.tensors() {
            match of_matrix(&name) {
                // The bias of c_attn comes with its matrix.
                Some(_) if name.ends_with(".bias") => {}
                Some((module, matrix)) => all.extend(matrix.tensors(&module)),
                None => all.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec())),
            }
        }
        let views = all
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        let mut config: Value = serde_json::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        config["quantization_config"] = self.quantization_config.clone();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }
}
