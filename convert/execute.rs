//! Writes a planned file: row blocks are made on all cores and written in order, the next wave while the last is written.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use indicatif::ProgressBar;
use qvl::error::{Error, ErrorKind, Result};
use qvl::gguf::{Checksum, Layout};
use qvl::names::general;
use rayon::prelude::*;

use crate::encode::encode;
use crate::gptq;
use crate::imatrix::Importance;
use crate::lora::Weights;
use crate::plan::{FilePlan, PlannedTensor};
use crate::produce::{is_whole, produce};
use crate::recipe::{self, Recipe};

/// f32 values a row block: 4 MiB. Less in tests, so that small tensors take many blocks.
const BLOCK_VALUES: u64 = if cfg!(test) { 1 << 11 } else { 1 << 20 };
/// Blocks a thread in one wave.
const BLOCKS_A_THREAD: usize = 2;

/// What an execution runs with.
pub struct Run<'a> {
    /// Where weights come from.
    pub weights: &'a Weights,
    /// Threads that make blocks.
    pub pool: &'a rayon::ThreadPool,
    /// Counts bytes written.
    pub progress: &'a ProgressBar,
    /// How much columns count, if somebody measured it.
    pub importance: Option<&'a Importance>,
    /// Set to stop early.
    pub interrupted: &'a AtomicBool,
}

/// Some rows of one tensor: values `first .. first + n`, padding not counted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    tensor: usize,
    first: u64,
    n: u64,
}

/// A block's bytes and, with a tensor's first block, where they belong in the file.
struct Made {
    offset: Option<u64>,
    bytes: Vec<u8>,
}

/// Writes header and tensors to `out`, and adds the tensors to `checksum`; `path` is for messages.
///
/// Errors: a bad weight (kind model), a full disk (other), Ctrl-C (interrupted). Memory: at most three waves of blocks,
/// a wave being `BLOCKS_A_THREAD` blocks of 4 MiB for each thread, and the largest table.
pub fn write_file(
    run: &Run,
    (plan, layout): (&FilePlan, &Layout),
    out: &std::fs::File,
    path: &Path,
    checksum: &mut Checksum,
) -> Result<()> {
    let blocks: Vec<Block> = plan.tensors.iter().enumerate().flat_map(|(i, t)| blocks_of(i, t)).collect();
    let (sender, receiver) = sync_channel::<Vec<Made>>(1);
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .spawn_scoped(scope, move || write_in_order(run.progress, layout, receiver, out, checksum))
            .map_err(|e| Error::memory("cannot start a thread").because(e))?;
        let made = blocks.chunks(BLOCKS_A_THREAD * run.pool.current_num_threads()).try_for_each(|wave| {
            let wave =
                run.pool.install(|| wave.par_iter().map(|b| make(run, plan, layout, b)).collect::<Result<_>>())?;
            // Fails only when the writer has hung up, which has an error of its own to tell.
            sender.send(wave).map_err(|_| Error::other("the writer has stopped"))
        });
        drop(sender);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.map_err(|e| match e.kind() {
            std::io::ErrorKind::OutOfMemory => Error::memory("cannot start a thread").because(e),
            _ => Error::other("cannot write the file").because(e).at(path),
        })?;
        made
    })
}

/// Writes into the header, which stands in `out` already, the checksum of what was written.
pub fn write_checksum(layout: &Layout, mut out: &std::fs::File, path: &Path, checksum: Checksum) -> Result<()> {
    let Some(place) = layout.string_place(general::CHECKSUM) else { return Ok(()) };
    let written =
        out.seek(SeekFrom::Start(place.start as u64)).and_then(|_| out.write_all(checksum.digits().as_bytes()));
    written.map_err(|e| Error::other("cannot write the file").because(e).at(path))
}

/// Cuts a tensor into blocks of whole rows.
fn blocks_of(index: usize, tensor: &PlannedTensor) -> Vec<Block> {
    let n = tensor.n_values();
    let row = tensor.row_length();
    let step = if is_whole(tensor.recipe) { n } else { (BLOCK_VALUES / row).max(1) * row };
    let block = |first| Block { tensor: index, first, n: step.min(n - first) };
    (0..n).step_by(step as usize).map(block).collect()
}

fn make(run: &Run, plan: &FilePlan, layout: &Layout, block: &Block) -> Result<Made> {
    if run.interrupted.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Interrupted, "interrupted; nothing was written"));
    }
    let tensor = &plan.tensors[block.tensor];
    let bytes = match tensor.recipe {
        Recipe::Repack { group_size } => {
            gptq::repack(run.weights.checkpoint(), tensor, group_size, block.first, block.n)?
        }
        _ => {
            let mut values = produce(run.weights, tensor, block.first, block.n)?;
            if tensor.padding > 0 {
                values = recipe::pad_rows(&values, tensor.row_length() as usize, tensor.padding as usize);
            }
            let importance = run.importance.and_then(|importance| importance.of(&tensor.name));
            encode(tensor.ty, &values, tensor.dims[0] as usize, importance, &tensor.name)?
        }
    };
    let offset = (block.first == 0).then(|| layout.places[block.tensor].0);
    Ok(Made { offset, bytes })
}

/// Writes header, blocks and the zeros between tensors.
fn write_in_order(
    progress: &ProgressBar,
    layout: &Layout,
    waves: Receiver<Vec<Made>>,
    out: &std::fs::File,
    checksum: &mut Checksum,
) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&layout.header)?;
    let mut at = layout.header.len() as u64;
    for wave in waves {
        thread::scope(|scope| -> std::io::Result<()> {
            // Beside the writing, not in front of it: where little is to be computed, the one takes as long as the other.
            thread::Builder::new()
                .spawn_scoped(scope, || wave.iter().for_each(|made| checksum.update(&made.bytes)))
                .map_err(|e| std::io::Error::new(std::io::ErrorKind::OutOfMemory, e))?;
            for made in &wave {
                if let Some(offset) = made.offset {
                    at += write_zeros(&mut out, offset - at)?;
                }
                out.write_all(&made.bytes)?;
                at += made.bytes.len() as u64;
                progress.inc(made.bytes.len() as u64);
            }
            Ok(())
        })?;
    }
    // Fewer blocks than planned arrive only when one of them failed; the file is then thrown away.
    write_zeros(&mut out, layout.file_bytes.saturating_sub(at))?;
    out.flush()
}

fn write_zeros(out: &mut impl Write, n: u64) -> std::io::Result<u64> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), n), out)
}
