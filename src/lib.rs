//! `qvl`: Qwen-VL (2023) from GGUF files.
#![warn(missing_docs)]

pub mod error;
pub mod quant;
pub mod mmap;
pub mod gguf;
pub mod names;
pub mod image;
pub mod tokenizer;
pub mod prompt;
