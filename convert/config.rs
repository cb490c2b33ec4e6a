//! A checkpoint's `config.json`, proven: only Qwen-VL (2023) passes, with numbers that fit together.
//!
//! Source: `configuration_qwen.py`, `modeling_qwen.py` and `visual.py` of the published checkpoints.

use std::path::Path;

use qvl::error::Result;
use qvl::text::TextHparams;
use qvl::vision::VisionHparams;

use crate::gptq::{self, Gptq};
use crate::json::Fields;

/// Values a head in the adapter, fixed by `visual.py`.
const RESAMPLER_D_HEAD: u64 = 128;
/// Rows of the stored positional embedding, fixed by `visual.py`: a 16 × 16 grid.
const N_POSITIONS: u64 = 256;

/// What the plan needs to know. Having one says: every count is positive and within the caps of the runtime's readers
/// (what is converted also loads), so that no product of two extents overflows, and heads, widths and grids divide as
/// the graph needs them to.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower and its adapter.
    pub vision: VisionConfig,
    /// How the matrices of the language model's layers are packed, if they are.
    pub gptq: Option<Gptq>,
}

/// Hyper-parameters of the language model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of a token embedding.
    pub n_embd: u64,
    /// Attention heads; `n_embd / n_head` is even.
    pub n_head: u64,
    /// Layers.
    pub n_layer: u64,
    /// Rows of w1 and of w2: half of `intermediate_size`.
    pub n_ff: u64,
    /// Rows of the embedding, padding included.
    pub n_vocab: u64,
    /// RMSNorm epsilon.
    pub rms_eps: f32,
    /// Rotary base before dynamic NTK.
    pub rope_base: f32,
    /// Tokens from which dynamic NTK and logn attention act.
    pub seq_length: u64,
    /// Tokens that the model was made for at most.
    pub context_length: u64,
    /// Whether the rotary base grows with long prompts.
    pub use_dynamic_ntk: bool,
    /// Whether late queries are scaled.
    pub use_logn_attn: bool,
}

/// Hyper-parameters of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the transformer.
    pub n_embd: u64,
    /// Attention heads of the transformer.
    pub n_head: u64,
    /// Layers.
    pub n_layer: u64,
    /// Rows of the first feed-forward matrix: `int(width · mlp_ratio)`.
    pub n_ff: u64,
    /// Height and width of a patch in pixels.
    pub patch_size: u64,
    /// Height and width of the input in pixels, a multiple of the patch.
    pub image_size: u64,
    /// Width of the adapter, equal to the text's `n_embd`; a multiple of 128.
    pub d: u64,
    /// Queries of the adapter, a square.
    pub n_queries: u64,
    /// Token id of `<img>`.
    pub image_start_id: u64,
    /// Rows of the stored positional embedding, a square; `config.json` does not say it, a checkpoint's header does.
    pub n_positions: u64,
}

impl TextConfig {
    /// That of a text file, whose header has been proven. What the shapes do not depend on is as in the published model.
    pub fn of_gguf(h: &TextHparams) -> Self {
        TextConfig {
            n_embd: h.n_embd as u64,
            n_head: h.n_head as u64,
            n_layer: h.n_layer as u64,
            n_ff: h.n_ff as u64,
            n_vocab: h.n_vocab as u64,
            rms_eps: 1e-6,
            rope_base: h.rope_freq_base,
            seq_length: h.seq_length as u64,
            context_length: h.context_length as u64,
            use_dynamic_ntk: h.use_dynamic_ntk,
            use_logn_attn: h.use_logn_attn,
        }
    }
}

impl VisionConfig {
    /// That of an mmproj, whose header has been proven. Its positions are interpolated already.
    pub fn of_gguf(h: &VisionHparams) -> Self {
        VisionConfig {
            n_embd: h.n_embd as u64,
            n_head: h.n_head as u64,
            n_layer: h.n_layer as u64,
            n_ff: h.n_ff as u64,
            patch_size: h.patch_size as u64,
            image_size: h.image_size as u64,
            d: h.d_out as u64,
            n_queries: h.n_queries as u64,
            image_start_id: 0,
            n_positions: h.n_patches as u64,
        }
    }

    /// Patches along one edge.
    pub fn grid(&self) -> u64 {
        self.image_size / self.patch_size
    }

    /// Attention heads of the adapter.
    pub fn n_resampler_head(&self) -> u64 {
        self.d / RESAMPLER_D_HEAD
    }
}

/// Reads `dir/config.json`. Errors (kind model) name the key, what was found and what was expected.
pub fn read(dir: &Path) -> Result<Config> {
    let fields = Fields::read(&dir.join("config.json"))?;
    let config = prove(&fields)?;
    let gptq = gptq::read(&fields, dir)?;
    // Rows of whole blocks; then n_out is whole words as well.
    for (key, n) in [("hidden_size", config.text.n_embd), ("half of intermediate_size", config.text.n_ff)] {
        if gptq.is_some() && !n.is_multiple_of(32) {
            return Err(fields.error(format!("{key} is {n} (expected a multiple of 32 in a GPTQ checkpoint)")));
        }
    }
    Ok(Config { gptq, ..config })
}

/// Proves a configuration, but for its quantisation.
pub fn prove(config: &Fields) -> Result<Config> {
    refuse_other_models(config)?;
    refuse_other_variants(config)?;
    let text = text_config(config)?;
    let visual = config.object("visual")?.ok_or_else(|| config.error("visual is missing"))?;
    let vision = vision_config(&visual, &text)?;
    Ok(Config { text, vision, gptq: None })
}

fn refuse_other_models(config: &Fields) -> Result<()> {
    let architectures = config.get("architectures").map(|v| v.to_string()).unwrap_or("none".into());
    let model_type = config.opt_str("model_type")?.unwrap_or("none");
    let named = architectures.contains("\"QWenLMHeadModel\"");
    let unnamed = config.get("architectures").is_none() && model_type == "qwen";
    if !named && !unnamed {
        return Err(config.error(format!(
            "not a Qwen-VL (2023) checkpoint: architectures {architectures}, model_type {model_type} (expected \
             [\"QWenLMHeadModel\"], qwen)"
        )));
    }
    if config.get("visual").is_none() {
        return Err(config.error("this is a Qwen checkpoint without a vision tower (no \"visual\"), not Qwen-VL"));
    }
    Ok(())
}

/// Options of the published code that no published checkpoint uses and that would need another graph.
fn refuse_other_variants(config: &Fields) -> Result<()> {
    if config.number_or("rotary_pct", 1.0, 0.0..=1.0)? != 1.0 {
        return Err(config.error("rotary_pct other than 1.0 is not supported"));
    }
    for (key, default, supported) in
        [("no_bias", true, true), ("tie_word_embeddings", false, false), ("scale_attn_weights", true, true)]
    {
        if config.bool_or(key, default)? != supported {
            return Err(config.error(format!("{key} is {} (only {supported} is supported)", !supported)));
        }
    }
    Ok(())
}

fn text_config(config: &Fields) -> Result<TextConfig> {
    let n_embd = config.count("hidden_size", 2..=65536)?;
    let n_head = config.count("num_attention_heads", 1..=1024)?;
    let d_head = config.count("kv_channels", 2..=1024)?;
    if n_head * d_head != n_embd {
        return Err(config.error(format!(
            "num_attention_heads {n_head} × kv_channels {d_head} is {} (expected hidden_size {n_embd})",
            n_head * d_head
        )));
    }
    if !d_head.is_multiple_of(2) {
        return Err(config.error(format!("kv_channels is {d_head} (expected an even number)")));
    }
    let intermediate = config.count("intermediate_size", 2..=1 << 20)?;
    if !intermediate.is_multiple_of(2) {
        return Err(config.error(format!("intermediate_size is {intermediate} (expected an even number)")));
    }
    Ok(TextConfig {
        n_embd,
        n_head,
        n_layer: config.count("num_hidden_layers", 1..=256)?,
        n_ff: intermediate / 2,
        n_vocab: config.count("vocab_size", 1..=1 << 20)?,
        rms_eps: config.number_or("layer_norm_epsilon", 1e-6, 1e-12..=0.5)? as f32,
        rope_base: config.number_or("rotary_emb_base", 10000.0, 1.5..=1e9)? as f32,
        seq_length: config.count_or("seq_length", 2048, 2..=1 << 20)?,
        context_length: config.count_or("max_position_embeddings", 8192, 2..=1 << 20)?,
        use_dynamic_ntk: config.bool_or("use_dynamic_ntk", true)?,
        use_logn_attn: config.bool_or("use_logn_attn", true)?,
    })
}

fn vision_config(visual: &Fields, text: &TextConfig) -> Result<VisionConfig> {
    let n_embd = visual.count("width", 1..=16384)?;
    let n_head = visual.count("heads", 1..=1024)?;
    if !n_embd.is_multiple_of(n_head) {
        return Err(visual.error(format!("width {n_embd} is not a multiple of heads {n_head}")));
    }
    let patch_size = visual.count("patch_size", 1..=256)?;
    let image_size = visual.count("image_size", 1..=4096)?;
    if !image_size.is_multiple_of(patch_size) {
        return Err(visual.error(format!("image_size {image_size} is not a multiple of patch_size {patch_size}")));
    }
    if image_size / patch_size > 128 {
        return Err(
            visual.error(format!("{0} × {0} patches are too many (at most 128 × 128)", image_size / patch_size))
        );
    }
    let d = visual.count("output_dim", RESAMPLER_D_HEAD..=65536)?;
    if d != text.n_embd {
        return Err(visual.error(format!("output_dim is {d} (expected hidden_size {})", text.n_embd)));
    }
    if !d.is_multiple_of(RESAMPLER_D_HEAD) {
        return Err(visual.error(format!("output_dim is {d} (expected a multiple of {RESAMPLER_D_HEAD})")));
    }
    let n_queries = visual.count_or("n_queries", 256, 1..=1 << 14)?;
    if square_root(n_queries).is_none() {
        return Err(visual.error(format!("n_queries is {n_queries} (expected the square of a whole number)")));
    }
    // As Python's int(width * mlp_ratio), in double precision.
    let n_ff = (n_embd as f64 * visual.number_or("mlp_ratio", 4.0, 0.01..=64.0)?) as u64;
    if n_ff == 0 {
        return Err(visual.error("width · mlp_ratio is less than 1"));
    }
    // <img> is followed by </img> and <imgpad>.
    if text.n_vocab < 3 {
        return Err(visual.error(format!("a vocabulary of {} rows cannot hold the image tags", text.n_vocab)));
    }
    Ok(VisionConfig {
        n_embd,
        n_head,
        n_layer: visual.count("layers", 1..=512)?,
        n_ff,
        patch_size,
        image_size,
        d,
        n_queries,
        image_start_id: visual.count("image_start_id", 0..=text.n_vocab - 3)?,
        n_positions: N_POSITIONS,
    })
}

/// The whole square root of `n`, if it has one.
pub fn square_root(n: u64) -> Option<u64> {
    let root = n.isqrt();
    (root * root == n).then_some(root)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The configuration of Qwen-VL-Chat.
    pub const QWEN_VL_CHAT: &str = include_str!("../models/qwen-vl-chat/config.json");

    fn changed(from: &str, to: &str) -> Result<Config> {
        assert!(QWEN_VL_CHAT.contains(from), "{from}");
        prove(&Fields::parse(&QWEN_VL_CHAT.replace(from, to), "config.json")?)
    }

    #[test]
    fn accepts_the_published_checkpoint() {
        let config = changed("{", "{").unwrap();
        assert_eq!((config.text.n_ff, config.vision.n_ff, config.vision.grid()), (11008, 8192, 32));
        assert_eq!((config.vision.n_queries, config.vision.n_resampler_head()), (256, 32));
    }

    #[test]
    fn refuses_with_the_key_and_what_was_found() {
        for (from, to, expect) in [
            ("QWenLMHeadModel", "Qwen2VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
            ("\"visual\"", "\"no_visual\"", "without a vision tower"),
            ("\"no_bias\": true", "\"no_bias\": false", "no_bias is false (only true is supported)"),
            ("\"rotary_pct\": 1.0", "\"rotary_pct\": 0.5", "rotary_pct"),
            ("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", "tie_word_embeddings is true"),
            ("\"scale_attn_weights\": true", "\"scale_attn_weights\": false", "scale_attn_weights"),
            ("\"kv_channels\": 128", "\"kv_channels\": 64", "2048 (expected hidden_size 4096)"),
            ("\"kv_channels\": 128", "\"kv_channels\": -1", "kv_channels is -1 (expected an integer from 2 to 1024)"),
            ("22016", "22017", "intermediate_size is 22017"),
            ("\"hidden_size\": 4096", "\"hidden_size\": \"4096\"", "hidden_size is \"4096\""),
            ("\"hidden_size\": 4096,", "", "hidden_size is missing"),
            ("\"output_dim\": 4096", "\"output_dim\": 2048", "output_dim is 2048"),
            ("\"heads\": 16", "\"heads\": 15", "not a multiple of heads 15"),
            ("\"image_size\": 448", "\"image_size\": 450", "image_size 450"),
            ("\"heads\": 16", "\"heads\": 16, \"n_queries\": 255", "n_queries is 255"),
            ("151857", "151936", "image_start_id is 151936"),
            ("151936", "99999999999", "vocab_size"),
        ] {
            let error = changed(from, to).unwrap_err();
            assert_eq!(error.kind(), qvl::error::ErrorKind::Model);
            assert!(error.to_string().contains(expect), "{to}: {error}");
        }
    }
}
