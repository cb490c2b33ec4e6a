//! `qvl`: answers about pictures from Qwen-VL GGUF files.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: qvl::memory::Allocator = qvl::memory::Allocator;

fn main() -> ExitCode {
    const ADVICE: &str = "take a smaller context (-c), caches of 8 bits (-ctk q8_0 -ctv q8_0) or smaller weights";
    qvl::ends::explained(cli::main, ADVICE)
}
