//! How fast llama.cpp itself quantises a text file: the second of its two steps, `llama_model_quantize` of the library that
//! `qvl-convert` is linked with, which its program `llama-quantize` is a command line for.
//!
//! ```text
//! cargo run --release --example llama-quantize -- MODEL-F16.gguf OUT.gguf [-t THREADS]
//! ```
//!
//! Writes q4_k_m and prints seconds. Numbers beside `qvl-convert`'s come from it.

// The reference must not lean on what it is held against: it calls llama.cpp without qvl's safe door.
#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

#[derive(Parser)]
struct Args {
    /// Text GGUF in f16
    model: PathBuf,
    /// What to write
    out: PathBuf,
    /// Threads
    #[arg(short, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=512))]
    threads: i32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let _backend = LlamaBackend::init()?;
    let path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
    let (model, out) = (path(&args.model)?, path(&args.out)?);
    let start = Instant::now();
    // SAFETY: both paths are terminated strings that live through the call, the parameters come from llama.cpp.
    let status = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.nthread = args.threads;
        params.ftype = sys::LLAMA_FTYPE_MOSTLY_Q4_K_M;
        sys::llama_model_quantize(model.as_ptr(), out.as_ptr(), &raw const params)
    };
    if status != 0 {
        return Err("llama.cpp could not quantise it".into());
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
