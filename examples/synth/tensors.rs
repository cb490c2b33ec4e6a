//! Which tensors a configuration has. Source: `modeling_qwen.py` and `visual.py` of Qwen-VL-Chat; the names and shapes
//! reproduce the 853 tensors and 19,313,870,336 bytes of the real checkpoint.

use qvl::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::numbers::{Dtype, Fill};

/// The extents in a Qwen-VL `config.json`, by its own names.
#[derive(Deserialize)]
pub struct Config {
    pub hidden_size: u64,
    /// Twice the rows of w1 and of w2.
    pub intermediate_size: u64,
    /// Width of a text head.
    pub kv_channels: u64,
    pub num_attention_heads: u64,
    pub num_hidden_layers: u64,
    pub vocab_size: u64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    pub visual: Visual,
}

/// The part `visual` of `config.json`.
#[derive(Deserialize)]
pub struct Visual {
    pub width: u64,
    pub layers: u64,
    pub heads: u64,
    pub mlp_ratio: f64,
    pub patch_size: u64,
    pub output_dim: u64,
    pub image_start_id: u64,
    #[serde(default = "default_queries")]
    pub n_queries: u64,
}

/// What the reference takes where the key is absent.
fn default_queries() -> u64 {
    256
}

/// Rows of the stored positional embedding: a 16 × 16 grid whatever the picture's size.
const N_POSITIONS: u64 = 256;

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// Errors: a key that is missing or of another type, an extent of zero or absurd size, queries that are no square,
    /// widths that the heads do not divide.
    pub fn from_json(json: &Value) -> Result<Config> {
        let config =
            Config::deserialize(json).map_err(|e| Error::model("is not a Qwen-VL configuration").because(e))?;
        let v = &config.visual;
        let c = &config;
        let text = [c.hidden_size, c.intermediate_size, c.kv_channels, c.num_attention_heads, c.num_hidden_layers];
        let visual = [v.width, v.layers, v.heads, v.patch_size, v.output_dim, v.n_queries, c.vocab_size, v.mlp_rows()];
        // The cap keeps every product below 2⁶⁰.
        if text.iter().chain(&visual).any(|&extent| extent == 0 || extent > 1 << 20) {
            return Err(Error::model("an extent is zero or above 1048576"));
        }
        if v.n_queries.isqrt().pow(2) != v.n_queries {
            return Err(Error::model(format!("visual.n_queries = {} is not a square", v.n_queries)));
        }
        if v.width % v.heads != 0 || v.output_dim % 4 != 0 || c.intermediate_size % 2 != 0 {
            return Err(Error::model("the heads must divide visual.width, 4 output_dim, 2 intermediate_size"));
        }
        Ok(config)
    }
}

impl Visual {
    /// Rows of c_fc: `int(width * mlp_ratio)`.
    fn mlp_rows(&self) -> u64 {
        (self.width as f64 * self.mlp_ratio) as u64
    }
}

/// A tensor to be written.
pub struct Tensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// PyTorch shape, row-major.
    pub shape: Vec<u64>,
    /// What it is filled with.
    pub fill: Fill,
}

impl Tensor {
    /// Number of values.
    pub fn n_values(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The tensors of `config`, in the order of the reference's state dict.
///
/// Scales keep the activations of a random model near 1 at every width: a weight of fan-in n has deviation about 1/√n.
pub fn list(config: &Config) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[u64], fill| tensors.push(Tensor { name, shape: shape.to_vec(), fill });
    let normal = |std: f64| Fill::Normal { mean: 0.0, std: std as f32 };
    let linear = |fan_in: u64, gain: f64| normal(gain / (fan_in as f64).sqrt());
    let scale = Fill::Normal { mean: 1.0, std: 0.2 };
    let bias = normal(0.15);

    let (h, ffn) = (config.hidden_size, config.intermediate_size / 2);
    let heads = config.kv_channels * config.num_attention_heads;
    add("transformer.wte.weight".into(), &[config.vocab_size, h], normal(1.0));
    for n in 0..config.num_hidden_layers {
        let p = format!("transformer.h.{n}.");
        add(p.clone() + "ln_1.weight", &[h], scale);
        add(p.clone() + "attn.c_attn.weight", &[3 * heads, h], linear(h, 1.15));
        add(p.clone() + "attn.c_attn.bias", &[3 * heads], normal(0.3));
        add(p.clone() + "attn.c_proj.weight", &[h, heads], linear(heads, 1.0));
        add(p.clone() + "ln_2.weight", &[h], scale);
        add(p.clone() + "mlp.w1.weight", &[ffn, h], linear(h, 1.0));
        add(p.clone() + "mlp.w2.weight", &[ffn, h], linear(h, 1.0));
        add(p + "mlp.c_proj.weight", &[h, ffn], linear(ffn, 1.0));
    }
    add("transformer.ln_f.weight".into(), &[h], scale);

    let v = &config.visual;
    let (w, d, ffn, patch) = (v.width, v.output_dim, v.mlp_rows(), v.patch_size);
    let p = "transformer.visual.".to_owned();
    add(p.clone() + "positional_embedding", &[N_POSITIONS, w], normal(0.5));
    add(p.clone() + "proj", &[d, d], linear(d, 1.0));
    add(p.clone() + "conv1.weight", &[w, 3, patch, patch], linear(3 * patch * patch, 1.2));
    let layer_norm = |add: &mut dyn FnMut(String, &[u64], Fill), name: String, n: u64| {
        add(name.clone() + ".weight", &[n], scale);
        add(name + ".bias", &[n], normal(0.2));
    };
    layer_norm(&mut add, p.clone() + "ln_pre", w);
    for m in 0..v.layers {
        let p = format!("{p}transformer.resblocks.{m}.");
        layer_norm(&mut add, p.clone() + "ln_1", w);
        layer_norm(&mut add, p.clone() + "ln_2", w);
        add(p.clone() + "attn.in_proj.weight", &[3 * w, w], linear(w, 1.15));
        add(p.clone() + "attn.in_proj.bias", &[3 * w], normal(0.3));
        add(p.clone() + "attn.out_proj.weight", &[w, w], linear(w, 1.0));
        add(p.clone() + "attn.out_proj.bias", &[w], bias);
        add(p.clone() + "mlp.c_fc.weight", &[ffn, w], linear(w, 1.0));
        add(p.clone() + "mlp.c_fc.bias", &[ffn], bias);
        add(p.clone() + "mlp.c_proj.weight", &[w, ffn], linear(ffn, 1.0));
        add(p + "mlp.c_proj.bias", &[w], bias);
    }
    let pool = p.clone() + "attn_pool.";
    add(pool.clone() + "query", &[v.n_queries, d], normal(1.0));
    add(pool.clone() + "pos_embed", &[v.n_queries, d], Fill::SinCos { side: v.n_queries.isqrt(), channels: d });
    if w != d {
        add(pool.clone() + "kv_proj.weight", &[d, w], linear(w, 1.0));
    }
    add(pool.clone() + "attn.in_proj_weight", &[3 * d, d], linear(d, 1.15));
    add(pool.clone() + "attn.in_proj_bias", &[3 * d], normal(0.3));
    add(pool.clone() + "attn.out_proj.weight", &[d, d], linear(d, 1.0));
    add(pool.clone() + "attn.out_proj.bias", &[d], bias);
    layer_norm(&mut add, pool.clone() + "ln_q", d);
    layer_norm(&mut add, pool + "ln_kv", d);
    layer_norm(&mut add, p + "ln_post", d);
    if !config.tie_word_embeddings {
        add("lm_head.weight".into(), &[config.vocab_size, h], linear(h, 2.8));
    }
    tensors
}

/// The list as JSON, one tensor a line.
pub fn inventory(tensors: &[Tensor], dtype: Dtype) -> String {
    let name = dtype.safetensors_name();
    let line =
        |t: &Tensor| format!("\"{}\":{{\"dtype\":\"{name}\",\"shape\":{:?}}}", t.name, t.shape).replace(", ", ",");
    let lines: Vec<String> = tensors.iter().map(line).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}
