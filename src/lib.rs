//! `qvl`: Qwen-VL (2023) from GGUF files.
#![warn(missing_docs)]

pub mod error;
pub mod gguf;
pub mod image;
pub mod mmap;
pub mod names;
pub mod prompt;
pub mod quant;
pub mod tokenizer;
