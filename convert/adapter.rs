//! `qvl-convert lora`: one adapter → one GGUF file.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use qvl::error::{Error, Result};
use qvl::gguf::Checksum;
use serde_json::json;

use crate::args::LoraArgs;
use crate::convert::{progress_bar, thread_pool};
use crate::execute::{Run, write_checksum, write_file};
use crate::lora::{Export, export};
use crate::output::{self, Existing};
use crate::report;

/// Does what the arguments say and prints the result. When it returns an error, nothing new stands under the final name.
pub fn run(args: &LoraArgs, interrupted: &AtomicBool) -> Result<()> {
    let name = args.out.file_name().ok_or_else(|| Error::usage("not the name of a file").at(&args.out))?;
    let name = name.to_string_lossy().into_owned();
    let Export { plan, metadata, weights, summary } = export(&args.dir, &args.base, args.ty, name)?;
    if args.dry_run {
        return match args.json {
            true => report::print(&report::file_json(&plan).to_string()),
            false => report::print(&format!("{summary}\n{}", report::file_text(&plan).trim_end())),
        };
    }
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let dir = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    output::prepare(dir, std::slice::from_ref(&args.out), existing)?;
    let layout = plan.layout(&metadata)?;
    output::require_space(dir, layout.file_bytes)?;
    let (pool, progress) = (thread_pool(args.threads)?, progress_bar(args.quiet, layout.file_bytes));
    let file = output::temporary(dir)?;
    let run = Run { weights: &weights, pool: &pool, progress: &progress, importance: None, interrupted };
    let mut checksum = Checksum::default();
    write_file(&run, (&plan, &layout), file.as_file(), &args.out, &mut checksum)?;
    write_checksum(&layout, file.as_file(), &args.out, checksum)?;
    progress.finish_and_clear();
    output::publish(vec![(file, args.out.clone())], dir, existing)?;
    let path = args.out.to_string_lossy();
    report::print(&match args.json {
        true => json!({"adapter": path, "bytes": layout.file_bytes, "tensors": plan.tensors.len()}).to_string(),
        false => format!("{path}  {}\n{summary}", report::bytes_text(layout.file_bytes)),
    })
}
