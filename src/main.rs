//! `qvl`: answers about pictures from Qwen-VL GGUF files.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
