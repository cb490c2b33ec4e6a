//! Dimensions and defaults of a text model, read once from the metadata and proven.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::names::{general, sampling, text as key, vocab};
use crate::prompt::PicturePrefix;

/// How a question becomes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// Turns between `<|im_start|>` and `<|im_end|>`.
    ChatMl,
    /// The text as it stands.
    Raw,
}

/// Dimensions and defaults. Having one says: all are within sane caps and divide each other as llama.cpp's graph needs.
#[derive(Clone, Debug, PartialEq)]
pub struct TextHparams {
    /// Human-readable name.
    pub name: String,
    /// Positions that the model was made for at most.
    pub context_length: usize,
    /// Width of a token embedding.
    pub n_embd: usize,
    /// Layers.
    pub n_layer: usize,
    /// Rows of one feed-forward matrix.
    pub n_ff: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Rows of the token embedding.
    pub n_vocab: usize,
    /// Rotary base before dynamic NTK.
    pub rope_freq_base: f32,
    /// Where dynamic NTK and logn attention begin, in positions.
    pub seq_length: usize,
    /// Whether the rotary base grows with the prompt.
    pub use_dynamic_ntk: bool,
    /// Whether queries beyond `seq_length` are scaled.
    pub use_logn_attn: bool,
    /// Slots a picture takes between its tags.
    pub n_queries: usize,
    /// How a question becomes a prompt.
    pub chat_format: ChatFormat,
    /// Tokens of history that a chat prompt may hold.
    pub max_window_size: usize,
    /// What stands in front of a picture's tag.
    pub picture_prefix: PicturePrefix,
    /// Default number of tokens to generate.
    pub max_new_tokens: usize,
    /// Default temperature; 0 is greedy.
    pub temp: f32,
    /// Default top-k; 0 keeps all.
    pub top_k: u32,
    /// Default top-p.
    pub top_p: f32,
    /// Default repetition penalty.
    pub repeat_penalty: f32,
    /// Identifies the vision tower that belongs to it.
    pub vision_id: String,
}

impl TextHparams {
    /// Reads and proves them. Errors (kind model) name the key.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.str(general::ARCHITECTURE)?;
        if architecture != key::ARCHITECTURE {
            let hint = if architecture == "clip" { "; this is an mmproj, name it with --mmproj" } else { "" };
            return Err(Error::model(format!(
                "general.architecture is {architecture:?} (expected \"{}\"){hint}",
                key::ARCHITECTURE
            )));
        }
        if super::is_adapter(gguf) {
            return Err(Error::model("this is a LoRA adapter; name it with --lora, and its model with -m"));
        }
        if gguf.get(key::N_QUERIES).is_none() {
            return Err(Error::model(format!(
                "metadata key {} is missing: a text model without pictures? convert Qwen-VL with qvl-convert",
                key::N_QUERIES
            )));
        }
        let chat_format = match gguf.str(key::CHAT_FORMAT)? {
            "chatml" => ChatFormat::ChatMl,
            "raw" => ChatFormat::Raw,
            other => {
                let message = format!("{} is {other:?} (expected \"chatml\" or \"raw\")", key::CHAT_FORMAT);
                return Err(Error::model(message));
            }
        };
        let h = TextHparams {
            name: gguf.opt_str(general::NAME)?.unwrap_or_default().to_owned(),
            context_length: gguf.count(key::CONTEXT_LENGTH, 1..=1 << 20)?,
            n_embd: gguf.count(key::EMBEDDING_LENGTH, 1..=1 << 16)?,
            n_layer: gguf.count(key::BLOCK_COUNT, 1..=256)?,
            n_ff: gguf.count(key::FEED_FORWARD_LENGTH, 2..=1 << 20)? / 2,
            n_head: gguf.count(key::HEAD_COUNT, 1..=1024)?,
            n_vocab: gguf.strings(vocab::TOKENS)?.len(),
            rope_freq_base: gguf.f32(key::ROPE_FREQ_BASE)?,
            seq_length: gguf.count(key::SEQ_LENGTH, 2..=1 << 20)?,
            use_dynamic_ntk: gguf.opt_bool(key::USE_DYNAMIC_NTK)?.unwrap_or(true),
            use_logn_attn: gguf.opt_bool(key::USE_LOGN_ATTN)?.unwrap_or(true),
            n_queries: gguf.count(key::N_QUERIES, 1..=1 << 14)?,
            chat_format,
            max_window_size: gguf.opt_u64(key::MAX_WINDOW_SIZE)?.unwrap_or(6144).min(1 << 24) as usize,
            picture_prefix: picture_prefix(gguf)?,
            max_new_tokens: gguf.opt_u64(key::MAX_NEW_TOKENS)?.unwrap_or(512).min(1 << 20) as usize,
            temp: gguf.opt_f32(sampling::TEMP)?.unwrap_or(1.0).max(0.0),
            top_k: gguf.opt_u64(sampling::TOP_K)?.unwrap_or(0).min(1 << 24) as u32,
            top_p: gguf.opt_f32(sampling::TOP_P)?.unwrap_or(1.0).clamp(0.0, 1.0),
            repeat_penalty: gguf.opt_f32(sampling::REPEAT_PENALTY)?.unwrap_or(1.0),
            vision_id: gguf.str(general::VISION_ID)?.to_owned(),
        };
        h.prove(gguf)?;
        Ok(h)
    }

    /// Values of one attention head.
    pub fn d_head(&self) -> usize {
        self.n_embd / self.n_head
    }

    fn prove(&self, gguf: &Gguf) -> Result<()> {
        let d_head = self.d_head();
        if !self.n_embd.is_multiple_of(self.n_head) || !d_head.is_multiple_of(2) {
            let (n_embd, n_head) = (self.n_embd, self.n_head);
            return Err(Error::model(format!("{n_embd} values do not make {n_head} heads of an even width")));
        }
        if !gguf.count(key::FEED_FORWARD_LENGTH, 2..=1 << 20)?.is_multiple_of(2) {
            return Err(Error::model(format!("{} is odd (expected twice a matrix's rows)", key::FEED_FORWARD_LENGTH)));
        }
        if self.vision_id.is_empty() {
            return Err(Error::model(format!("{} is empty", general::VISION_ID)));
        }
        let n_rot = gguf.count(key::ROPE_DIMENSION_COUNT, 1..=1 << 16)?;
        if n_rot != d_head {
            return Err(Error::model(format!("{} is {n_rot} (expected {d_head})", key::ROPE_DIMENSION_COUNT)));
        }
        let eps = gguf.f32(key::RMS_EPS)?;
        if !(eps > 0.0 && eps < 1.0) {
            return Err(Error::model(format!("{} is {eps} (expected a small positive number)", key::RMS_EPS)));
        }
        if !(self.rope_freq_base > 1.0 && self.rope_freq_base <= 1e9) {
            return Err(Error::model(format!("{} is {}", key::ROPE_FREQ_BASE, self.rope_freq_base)));
        }
        if !(0.01..=100.0).contains(&self.repeat_penalty) {
            return Err(Error::model(format!("{} is {}", sampling::REPEAT_PENALTY, self.repeat_penalty)));
        }
        let in_range = 1..=1usize << 20;
        in_range
            .contains(&self.n_vocab)
            .then_some(())
            .ok_or_else(|| Error::model(format!("the vocabulary has {} tokens (expected 1 to 1048576)", self.n_vocab)))
    }
}

fn picture_prefix(gguf: &Gguf) -> Result<PicturePrefix> {
    match gguf.opt_str(key::PICTURE_FORMAT)? {
        None | Some("Picture {k}: ") => Ok(PicturePrefix::Spaced),
        Some("Picture {k}:") => Ok(PicturePrefix::Unspaced),
        Some(other) => {
            Err(Error::model(format!("{} is {other:?} (expected \"Picture {{k}}: \")", key::PICTURE_FORMAT)))
        }
    }
}
