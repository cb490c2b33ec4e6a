//! The metadata of the two files. Keys are spelled in `qvl::names`, or in GGUF's specification (`general.*`).

use qvl::error::{Error, Result};
use qvl::gguf::{Array, Metadata, Value};
use qvl::names::{general, sampling, text, vision, vocab};

use crate::checkpoint::{Checkpoint, Stored};
use crate::config::Config;
use crate::generation::{ChatFormat, Generation};
use crate::licence::{self, Licence};
use crate::lora::Weights;
use crate::naming;
use crate::plan::FilePlan;
use crate::vocab::GgufVocab;

/// ChatML as the reference writes it; without a system message it puts the default one in front.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// CLIP's normalisation, RGB. Source: `visual.py`.
const IMAGE_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const IMAGE_STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];
const VISION_EPS: f32 = 1e-6;

/// What a checkpoint says of itself beyond its configuration.
pub struct About {
    /// Name of the model.
    pub name: String,
    /// Name of the checkpoint's repository or directory.
    pub checkpoint_name: String,
    /// Defaults of generation.
    pub generation: Generation,
    /// What stands in front of a picture's tag.
    pub picture_format: String,
    /// Licence of the weights.
    pub licence: Licence,
    /// Identifies the vision tower.
    pub vision_id: String,
    /// Adapters that were merged, a line each.
    pub lora: Vec<String>,
}

/// Metadata of the text file.
///
/// Errors (kind model): the vocabulary's `<img>` is not where the configuration says.
pub fn text(config: &Config, about: &About, vocabulary: GgufVocab, plan: &FilePlan) -> Result<Metadata> {
    let c = &config.text;
    let mut m = Metadata::default();
    m.set(general::ARCHITECTURE, text::ARCHITECTURE);
    set_general(&mut m, "model", about, plan);
    for (key, value) in [
        (text::CONTEXT_LENGTH, c.context_length),
        (text::EMBEDDING_LENGTH, c.n_embd),
        (text::BLOCK_COUNT, c.n_layer),
        (text::FEED_FORWARD_LENGTH, 2 * c.n_ff),
        (text::HEAD_COUNT, c.n_head),
        (text::ROPE_DIMENSION_COUNT, c.n_embd / c.n_head),
        (text::SEQ_LENGTH, c.seq_length),
        (text::N_QUERIES, config.vision.n_queries),
    ] {
        m.set(key, value as u32);
    }
    m.set(text::RMS_EPS, c.rms_eps);
    m.set(text::ROPE_FREQ_BASE, c.rope_base);
    m.set(text::USE_DYNAMIC_NTK, c.use_dynamic_ntk);
    m.set(text::USE_LOGN_ATTN, c.use_logn_attn);
    set_generation(&mut m, about);
    set_vocabulary(&mut m, config, about, vocabulary)?;
    Ok(m)
}

/// Metadata of the mmproj.
pub fn vision(config: &Config, about: &About, plan: &FilePlan) -> Metadata {
    let c = &config.vision;
    let mut m = Metadata::default();
    m.set(general::ARCHITECTURE, vision::ARCHITECTURE);
    set_general(&mut m, "mmproj", about, plan);
    m.set(vision::HAS_VISION_ENCODER, true);
    m.set(vision::PROJECTOR_TYPE, vision::PROJECTOR);
    m.set(vision::USE_GELU, true);
    for (key, value) in [
        (vision::IMAGE_SIZE, c.image_size),
        (vision::PATCH_SIZE, c.patch_size),
        (vision::EMBEDDING_LENGTH, c.n_embd),
        (vision::FEED_FORWARD_LENGTH, c.n_ff),
        (vision::BLOCK_COUNT, c.n_layer),
        (vision::HEAD_COUNT, c.n_head),
        (vision::PROJECTION_DIM, c.d),
        (vision::N_QUERIES, c.n_queries),
        (vision::RESAMPLER_HEAD_COUNT, c.n_resampler_head()),
    ] {
        m.set(key, value as u32);
    }
    m.set(vision::LAYER_NORM_EPS, VISION_EPS);
    m.set(vision::IMAGE_MEAN, Value::Array(Array::F32(IMAGE_MEAN.to_vec())));
    m.set(vision::IMAGE_STD, Value::Array(Array::F32(IMAGE_STD.to_vec())));
    m
}

fn set_general(m: &mut Metadata, kind: &str, about: &About, plan: &FilePlan) {
    m.set(general::TYPE, kind);
    set_name(m, &about.name);
    m.set("general.size_label", naming::size_label(plan.n_values()));
    licence::set(m, &about.licence);
    if naming::is_published(&about.checkpoint_name) {
        let url = format!("https://huggingface.co/Qwen/{}", about.checkpoint_name);
        m.set("general.source.repo_url", "https://github.com/QwenLM/Qwen-VL");
        m.set("general.source.url", url);
        m.set("general.organization", "Qwen");
    }
    m.set("general.languages", strings(&["en", "zh"]));
    m.set("general.tags", strings(&["qwen-vl", "vision", "image-text-to-text", "grounding"]));
    set_types(m, plan);
    m.set(general::VISION_ID, about.vision_id.as_str());
    if !about.lora.is_empty() {
        m.set(general::LORA, about.lora.join("\n"));
    }
}

/// Sets the keys of a model's name.
pub fn set_name(m: &mut Metadata, name: &str) {
    let (basename, finetune) = naming::parts(name);
    m.set(general::NAME, name.replace(['-', '_'], " "));
    m.set("general.basename", basename);
    m.0.retain(|(key, _)| key != "general.finetune" || finetune.is_some());
    m.set_opt("general.finetune", finetune);
}

/// Sets the keys that follow from a file's types.
pub fn set_types(m: &mut Metadata, plan: &FilePlan) {
    m.set(general::FILE_TYPE, plan.file_type().llama_ftype());
    m.set(general::QUANTIZATION_VERSION, 2u32);
    m.set(general::RECIPE, plan.recipe());
    m.set(general::TENSOR_TYPES, plan.types_text());
    let fallbacks: Vec<String> =
        plan.fallbacks().map(|(t, wanted)| format!("{}: {wanted} -> {}", t.name, t.ty)).collect();
    m.set(general::FALLBACKS, fallbacks.join("\n"));
}

fn set_generation(m: &mut Metadata, about: &About) {
    let g = &about.generation;
    m.set(sampling::TEMP, g.temperature);
    m.set(sampling::TOP_K, Value::I32(g.top_k));
    m.set(sampling::TOP_P, g.top_p);
    m.set(sampling::REPEAT_PENALTY, g.repetition_penalty);
    m.set(text::CHAT_FORMAT, g.chat_format.name());
    m.set(text::MAX_WINDOW_SIZE, g.max_window_size);
    m.set(text::MAX_NEW_TOKENS, g.max_new_tokens);
    m.set(text::PICTURE_FORMAT, about.picture_format.as_str());
}

fn set_vocabulary(m: &mut Metadata, config: &Config, about: &About, vocabulary: GgufVocab) -> Result<()> {
    let ids = vocabulary.special_ids;
    let (found, expected) = (u64::from(ids.img_start.to_u32()), config.vision.image_start_id);
    if found != expected {
        return Err(Error::model(format!(
            "qwen.tiktoken and config.json do not belong together: <img> has id {found} by the vocabulary and {expected} \
             by visual.image_start_id"
        )));
    }
    let end_of_text = ids.eod.to_u32();
    let eos = about.generation.eos_token_id.filter(|id| *id < config.text.n_vocab);
    m.set(vocab::MODEL, "gpt2");
    m.set(vocab::PRE, "qwen2");
    m.set(vocab::TOKENS, Value::Array(Array::String(vocabulary.tokens)));
    m.set(vocab::TOKEN_TYPE, Value::Array(Array::I32(vocabulary.token_types)));
    m.set(vocab::MERGES, Value::Array(Array::String(vocabulary.merges)));
    m.set(vocab::EOS, eos.map_or(end_of_text, |id| id as u32));
    m.set(vocab::EOT, ids.im_end.to_u32());
    m.set(vocab::PADDING, end_of_text);
    m.set(vocab::ADD_BOS, false);
    if about.generation.chat_format == ChatFormat::ChatMl {
        m.set(vocab::CHAT_TEMPLATE, CHAT_TEMPLATE);
    }
    Ok(())
}

fn strings(items: &[&str]) -> Value {
    Value::Array(Array::String(items.iter().map(|s| s.to_string()).collect()))
}

/// Identifies the vision tower: 64-bit FNV-1a, in hex, over name, shape and first 256 stored bytes of each of its tensors
/// in the order of their names, and over those of the adapters that change it. Cost: reads 256 bytes a tensor.
pub fn vision_id(weights: &Weights) -> Result<String> {
    const FIRST_BYTES: u64 = 256;
    const VISUAL: &str = "transformer.visual.";
    let mut hash = Fnv1a::default();
    let checkpoint = weights.checkpoint();
    let mut update = |checkpoint: &Checkpoint, name: &str, tensor: &Stored| -> Result<()> {
        hash.update(name.as_bytes());
        tensor.shape.iter().for_each(|n| hash.update(&n.to_le_bytes()));
        hash.update(&checkpoint.first_bytes(tensor, FIRST_BYTES)?);
        Ok(())
    };
    for (name, tensor) in checkpoint.tensors().iter().filter(|(name, _)| name.starts_with(VISUAL)) {
        update(checkpoint, name, tensor)?;
    }
    for adapter in weights.adapters() {
        for (scale, tensor) in adapter.tensors_of(VISUAL) {
            update(adapter.checkpoint(), &format!("{} {scale}", tensor.name), tensor)?;
        }
    }
    Ok(format!("{:016x}", hash.0))
}

/// Source: Fowler, Noll, Vo; http://www.isthe.com/chongo/tech/comp/fnv/.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    fn update(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_test_vectors() {
        let check = |text: &str, expect| {
            let mut hash = Fnv1a::default();
            hash.update(text.as_bytes());
            assert_eq!(hash.0, expect);
        };
        check("", 0xcbf29ce484222325);
        check("a", 0xaf63dc4c8601ec8c);
        check("foobar", 0x85944171f73967e8);
    }
}
