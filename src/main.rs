//! `qvl`: answers about pictures from Qwen-VL GGUF files.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: qvl::memory::Allocator = qvl::memory::Allocator;

fn main() -> ExitCode {
    qvl::ends::explained(cli::main)
}
