//! Door 3: safe llama.cpp for what is used: a model, a context, a batch that mixes tokens and embeddings, samplers.
//! Knows no model; what it is given has been proven by whoever calls (llama.cpp answers bad numbers with abort).
#![allow(unsafe_code)]

mod context;
#[cfg(test)]
mod goldens;
mod log;
mod model;
mod rotation;
mod sampler;
mod state;
mod stream;

pub use context::{Context, ContextParams, Decoded, Entry, FlashAttention, Input, Output};
pub use log::{LogLevel, set_log};
pub use model::{LoadMode, Model, ModelParams};
pub use rotation::{Formula, Rotated, RotatedRows, Rotation};
pub use sampler::{MIN_TEMP, Sampler, SamplerSettings};

use std::sync::OnceLock;

/// Starts llama.cpp's backends once a process; its log goes to [`set_log`]'s closure from then on.
fn start() {
    static BACKEND: OnceLock<Option<llama_cpp_2::llama_backend::LlamaBackend>> = OnceLock::new();
    BACKEND.get_or_init(|| {
        log::install();
        crate::ggml::load_backends();
        llama_cpp_2::llama_backend::LlamaBackend::init().ok()
    });
}
