//! Completions and man pages.

use std::path::Path;

use clap::CommandFactory;
use qvl::error::{Error, Result};

use super::args::Cli;
use super::print;

/// Prints completions.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qvl", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes `qvl.1` and a page each subcommand into `dir`.
pub fn man(dir: &Path) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Cli::command(), dir)
    };
    write().map_err(|e| Error::other("cannot write man pages").because(e).at(dir))
}
