//! `qvl-convert`: a Qwen-VL checkpoint → two GGUF files, by executing a plan that is plain data.

mod adapter;
mod args;
#[cfg(test)]
#[path = "../src/cli/batch/input.rs"]
#[allow(dead_code)] // Whoever fuzzes it needs no pictures.
mod batch_input;
mod checkpoint;
mod config;
mod convert;
mod encode;
mod execute;
mod fold;
#[cfg(test)]
#[path = "../fuzz/targets/mod.rs"]
mod fuzz;
#[cfg(test)]
mod fuzz_replay;
mod generation;
mod gptq;
mod imatrix;
mod json;
mod licence;
mod lora;
mod mapping;
mod metadata;
mod naming;
mod output;
mod plan;
mod produce;
mod quality;
mod recipe;
mod report;
mod requantise;
mod split;
#[cfg(test)]
mod tests;
mod types;
mod vocab;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use qvl::error::{Error, Result};

use args::Asked;

#[global_allocator]
static ALLOCATOR: qvl::memory::Allocator = qvl::memory::Allocator;

fn main() -> ExitCode {
    qvl::ends::explained(run, "take fewer threads (-j)")
}

fn run() -> ExitCode {
    match try_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            report::note(&format!("error: {e}\n"));
            ExitCode::from(e.kind().exit_code())
        }
    }
}

fn try_main() -> Result<()> {
    let Some(asked) = args::parse()? else { return Ok(()) };
    // Ctrl-C only sets this: the work ends at the next row block and temporary files are removed on the way out.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|e| Error::other("cannot catch Ctrl-C").because(e))?;
    match asked {
        Asked::Convert(args) => convert::run(&args, &interrupted),
        Asked::Lora(args) => adapter::run(&args, &interrupted),
    }
}
