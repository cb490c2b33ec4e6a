//! `qvl`: Qwen-VL (2023) from GGUF files.
//!
//! `qvl-convert` turns a checkpoint into two GGUF files by executing a *plan*; the plan is plain data, computed without
//! touching a weight.
//! `qvl` turns pictures and a question into text by passing values one way: mapped file → vision model → embedding →
//! prompt → session → token stream.
//! Whatever depends only on the weights (position interpolation, q/k/v order, the adapter's queries, transposes) was
//! computed at conversion, so the run-time graph has no special cases.
//! Two border values carry everything: a GGUF file between the two programs, and an [`vision::ImageEmbedding`] between
//! vision and text; hence the vision weights leave memory before the text weights are touched.
//! `unsafe` lives behind five doors: [`mmap`], [`ggml`], [`llama`], [`kernels`] and [`quantise`]; beside them the programs'
//! [allocator](memory::Allocator).
#![warn(missing_docs)]

pub mod error;

pub mod gguf;
pub mod gguf_file;
pub mod mmap;
pub mod names;
pub mod quant;

pub mod grammar;

pub mod ggml;
pub mod llama;
pub mod quantise;

pub mod imatrix;

pub mod image;
pub mod kernels;
pub mod vision;

pub mod cache;

pub mod prompt;
pub mod text;
pub mod tokenizer;

pub mod session;

pub mod conversation;

pub mod ends;
pub mod grounding;
pub mod memory;
pub mod quality;
pub mod temporary;
