//! One conversion from arguments to result.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qvl::error::{Error, Result};
use qvl::gguf::{Checksum, MAGIC, Metadata};
use qvl::temporary::TemporaryFile;

use crate::args::Args;
use crate::checkpoint::{self, Checkpoint, Inventory};
use crate::config::{self, Config, square_root};
use crate::execute::{Run, write_checksum, write_file};
use crate::imatrix::Importance;
use crate::lora::{self, Adapter, Weights};
use crate::metadata::{self, About};
use crate::output::{self, Existing};
use crate::plan::{self, FilePlan, Plan, Request};
use crate::quality::Comparison;
use crate::report::{self, Done};
use crate::requantise::{self, Pair};
use crate::split::{self, Limits, Planned};
use crate::{generation, gptq, licence, naming, vocab};

/// Does what the arguments say and prints the result. `interrupted` may be set at any time; then the work ends with an
/// error of that kind.
pub fn run(args: &Args, interrupted: &AtomicBool) -> Result<()> {
    if is_gguf(&args.checkpoint) {
        return requantise(args, interrupted);
    }
    if args.mmproj.is_some() || args.allow_requantize {
        return Err(Error::usage(
            "--mmproj and --allow-requantize are for a GGUF model, not for a checkpoint's directory",
        ));
    }
    if args.dry_run {
        let (plan, inventory) = dry_run(args)?;
        return print_plan(args, &plan, Some(&inventory));
    }
    let (done, plan) = convert(args, interrupted)?;
    print_done(args, done, &plan)
}

/// Whether a path is a file that says it is GGUF, by its name or its beginning.
fn is_gguf(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    let mut begins_so = || File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *MAGIC;
    path.is_file() && (path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) || begins_so())
}

/// The same of a GGUF pair.
fn requantise(args: &Args, interrupted: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    if !args.lora.is_empty() {
        return Err(Error::usage(
            "--lora merges into a checkpoint's directory, not into a GGUF; qvl --lora applies it at run time",
        ));
    }
    if args.report.is_some() {
        return Err(Error::usage(
            "--report is for a checkpoint; qvl quality --save measures a pair and keeps the result",
        ));
    }
    let Pair { weights, mut plan, mut metadata, written, sources } = requantise::open(args)?;
    let importance = importance(args, &mut plan)?;
    if let Some(importance) = &importance {
        metadata.iter_mut().for_each(|metadata| importance.record(metadata));
    }
    if args.dry_run {
        return print_plan(args, &plan, None);
    }
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let files = split_files(args, &plan, &metadata)?;
    let new: Vec<PathBuf> = written.iter().flat_map(|which| targets_of(&files[*which as usize], &args.out)).collect();
    if let Some(target) = new.iter().find(|new| sources.iter().any(|source| requantise::is_same(new, source))) {
        let message = "this is a source, and would be replaced by what is made of it; name another directory with -o";
        return Err(Error::usage(message).at(target));
    }
    output::prepare(&args.out, &new, existing)?;
    if args.verbose {
        report::note(&report::plan_text(&plan));
    }
    notes(args, &plan);
    let making = Making { args, weights: &weights, importance: importance.as_ref(), interrupted };
    let done = making.write((files, &written), None)?;
    print_done(args, Done { seconds: started.elapsed().as_secs_f64(), ..done }, &plan)
}

fn print_done(args: &Args, done: Done, plan: &Plan) -> Result<()> {
    let json = args.json.then(|| report::done_json(&done, plan).to_string());
    report::print(&json.unwrap_or_else(|| report::done_text(&done)))
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The language model.
    Text,
    /// The mmproj.
    Vision,
}

impl Which {
    fn plan(self, plan: &Plan) -> &FilePlan {
        match self {
            Which::Text => &plan.text,
            Which::Vision => &plan.vision,
        }
    }

    fn target(self, plan: &Plan, out: &Path) -> PathBuf {
        out.join(&self.plan(plan).file_name)
    }
}

/// A checkpoint's directory and what can be known of it without its weights.
struct Opened {
    dir: PathBuf,
    config: Config,
    checkpoint_name: String,
    name: String,
    adapters: Vec<Adapter>,
}

fn open(args: &Args) -> Result<Opened> {
    let dir = std::fs::canonicalize(&args.checkpoint)
        .map_err(|e| Error::model("cannot open the checkpoint's directory").because(e).at(&args.checkpoint))?;
    if !dir.is_dir() {
        return Err(
            Error::model("not a directory (expected that of a checkpoint, or a text GGUF)").at(&args.checkpoint)
        );
    }
    let config = config::read(&dir)?;
    let checkpoint_name = naming::checkpoint_name(&dir);
    let mut adapters = args.lora.iter().map(Adapter::open).collect::<Result<Vec<_>>>()?;
    // None of it is none: the files are those without it, to the last byte.
    adapters.retain(|adapter| adapter.scale() != 0.0);
    lora::prove_together(&adapters)?;
    let names = adapters.iter().map(|adapter| format!("-{}", adapter.name())).collect::<String>();
    let name = args.name.clone().unwrap_or_else(|| naming::model_name(&checkpoint_name) + &names);
    Ok(Opened { dir, config, checkpoint_name, name, adapters })
}

/// Plans with what is there: weights, an index, or the configuration alone.
fn dry_run(args: &Args) -> Result<(Plan, Inventory)> {
    let Opened { dir, mut config, name, adapters, .. } = open(args)?;
    let inventory = checkpoint::survey(&dir)?;
    let mut plan = adapted(checked_plan(args, &mut config, &inventory, &name, &dir)?, &adapters)?;
    importance(args, &mut plan)?;
    Ok((plan, inventory))
}

/// Converts. When it returns an error, nothing new stands under the final names.
pub fn convert(args: &Args, interrupted: &AtomicBool) -> Result<(Done, Plan)> {
    let started = Instant::now();
    let Opened { dir, mut config, checkpoint_name, name, adapters } = open(args)?;
    // Cheap refusals first: the configuration alone names the files.
    let comparison = Comparison::asked(args)?;
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let first = plan(args, &config, &name)?;
    // In how many files the language model will be is not known before its metadata is.
    let known = if Limits::of(args).is_some() { &[Which::Vision][..] } else { &[Which::Text, Which::Vision] };
    output::prepare(
        &args.out,
        &known.iter().map(|which| which.target(&first, &args.out)).collect::<Vec<_>>(),
        existing,
    )?;
    let inventory = Inventory::Headers(Checkpoint::open(&dir)?);
    let mut plan = adapted(checked_plan(args, &mut config, &inventory, &name, &dir)?, &adapters)?;
    let importance = importance(args, &mut plan)?;
    if !Limits::of(args).is_some() {
        output::prepare(&args.out, &targets(&plan, &args.out), existing)?;
    }
    let Inventory::Headers(checkpoint) = inventory else { return Err(Error::other("no headers")) };
    let lora = adapters.iter().map(Adapter::summary).collect();
    let weights = Weights::new(checkpoint, adapters);
    if args.verbose {
        report::note(&report::plan_text(&plan));
    }
    notes(args, &plan);
    let about = About {
        generation: generation::read(&dir)?,
        picture_format: generation::picture_format(&dir),
        licence: licence::read(&dir),
        vision_id: metadata::vision_id(&weights)?,
        lora,
        checkpoint_name,
        name,
    };
    let metadata = metadata_of(&dir, &config, &about, &plan, importance.as_ref())?;
    let files = split_files(args, &plan, &metadata)?;
    let new: Vec<PathBuf> = files.iter().flat_map(|files| targets_of(files, &args.out)).collect();
    output::prepare(&args.out, &new, existing)?;
    let making = Making { args, weights: &weights, importance: importance.as_ref(), interrupted };
    let done = making.write((files, &[Which::Text, Which::Vision]), comparison.as_ref())?;
    Ok((Done { seconds: started.elapsed().as_secs_f64(), ..done }, plan))
}

/// The importance matrix that was asked for, proven to be of the planned model; what it lacks becomes a note.
fn importance(args: &Args, plan: &mut Plan) -> Result<Option<Importance>> {
    let Some(path) = &args.imatrix else { return Ok(None) };
    let mut importance = Importance::read(path)?;
    plan.notes.extend(importance.fit(plan)?);
    Ok(Some(importance))
}

fn plan(args: &Args, config: &Config, name: &str) -> Result<Plan> {
    let stem = naming::file_stem(name);
    let (text_type, vision_type, overrides) = (args.text_type, args.vision_type, args.tensor_type.as_slice());
    plan::plan(config, &Request { name: &stem, text_type, vision_type, overrides })
}

/// Plans with the shapes that headers alone can tell, and proves that the inventory has what the plan reads.
fn checked_plan(args: &Args, config: &mut Config, inventory: &Inventory, name: &str, dir: &Path) -> Result<Plan> {
    if let Inventory::Headers(checkpoint) = inventory {
        let table = checkpoint.tensors().get("transformer.visual.positional_embedding");
        let n_positions = table.and_then(|t| t.shape.first()).copied().unwrap_or(config.vision.n_positions);
        if square_root(n_positions).is_none_or(|root| !(1..=256).contains(&root)) {
            return Err(Error::model(format!(
                "transformer.visual.positional_embedding has {n_positions} rows (expected a square of 1 to 256)"
            ))
            .at(dir));
        }
        config.vision.n_positions = n_positions;
    }
    let first = plan(args, config, name)?;
    checkpoint::check(inventory, first.sources()).map_err(|e| e.at(dir))?;
    // What becomes of packed matrices, their zeros and groups decide.
    let (Inventory::Headers(checkpoint), Some(gptq)) = (inventory, &config.gptq) else { return Ok(first) };
    config.gptq = Some(gptq::look(gptq, checkpoint, config.text.n_layer)?);
    plan(args, config, name)
}

/// The plan with adapters, which are proven to fit it.
fn adapted(plan: Plan, adapters: &[Adapter]) -> Result<Plan> {
    adapters.iter().try_for_each(|adapter| adapter.prove(plan.sources()))?;
    Ok(plan.adapted(adapters))
}

fn targets(plan: &Plan, out: &Path) -> [PathBuf; 2] {
    [Which::Text, Which::Vision].map(|which| which.target(plan, out))
}

fn print_plan(args: &Args, plan: &Plan, inventory: Option<&Inventory>) -> Result<()> {
    if matches!(inventory, Some(Inventory::Nothing)) && !args.quiet {
        report::note("note: there are no weights here; the plan follows from config.json alone\n");
    }
    let mut plan = plan.clone();
    if Limits::of(args).is_some() {
        let n = split::files(&plan.text, &Metadata::default(), Limits::of(args))?.len();
        plan.notes.push(format!("the language model will be in {n} files, or more for its metadata"));
    }
    let plan = &plan;
    if args.json {
        return report::print(&report::plan_json(plan).to_string());
    }
    notes(args, plan);
    report::print(report::plan_text(plan).trim_end())
}

fn notes(args: &Args, plan: &Plan) {
    plan.notes.iter().filter(|_| !args.quiet).for_each(|note| report::note(&format!("note: {note}\n")));
}

/// The files that a plan becomes: those of the language model, and the mmproj.
fn split_files(args: &Args, plan: &Plan, metadata: &[Metadata; 2]) -> Result<[Vec<Planned>; 2]> {
    let text = split::files(&plan.text, &metadata[0], Limits::of(args))?;
    Ok([text, split::files(&plan.vision, &metadata[1], Limits::default())?])
}

fn targets_of(files: &[Planned], out: &Path) -> Vec<PathBuf> {
    files.iter().map(|file| out.join(&file.plan.file_name)).collect()
}

/// The metadata of the two files.
fn metadata_of(
    dir: &Path,
    config: &Config,
    about: &About,
    plan: &Plan,
    importance: Option<&Importance>,
) -> Result<[Metadata; 2]> {
    let ranks = vocab::read(&dir.join("qwen.tiktoken"))?;
    let vocabulary = vocab::gguf_vocab(&ranks, config.text.n_vocab as usize)?;
    let mut text = metadata::text(config, about, vocabulary, &plan.text)?;
    let mut vision = metadata::vision(config, about, &plan.vision);
    if let Some(importance) = importance {
        [&mut text, &mut vision].into_iter().for_each(|metadata| importance.record(metadata));
    }
    Ok([text, vision])
}

/// A conversion whose files are being made.
struct Making<'a> {
    args: &'a Args,
    weights: &'a Weights,
    importance: Option<&'a Importance>,
    interrupted: &'a AtomicBool,
}

impl Making<'_> {
    /// Writes those of the two models that are to be written, and names their files when all are complete.
    fn write(&self, (planned, which): ([Vec<Planned>; 2], &[Which]), comparison: Option<&Comparison>) -> Result<Done> {
        let Making { args, weights, importance, interrupted } = *self;
        let n_new = which.iter().flat_map(|which| &planned[*which as usize]).map(|file| file.layout.file_bytes).sum();
        let n_left = output::remove_leftovers(&args.out);
        if n_left > 0 && !args.quiet {
            let n_left = report::bytes_text(n_left);
            report::note(&format!(
                "note: removed {n_left} that a killed conversion had left in {}\n",
                args.out.display()
            ));
        }
        output::require_space(&args.out, n_new)?;
        let pool = thread_pool(args.threads)?;
        let progress = progress_bar(args.quiet, n_new);
        let run = Run { weights, pool: &pool, progress: &progress, importance, interrupted };
        let write = |which: &Which| write_parts(&run, &planned[*which as usize], &args.out);
        let files: Result<Vec<_>> = which.iter().map(write).collect();
        progress.finish_and_clear();
        let mut files: Vec<_> = files?.into_iter().flatten().collect();
        let aside = comparison.map(|_| output::set_aside(&mut files, &args.out)).transpose()?;
        let quality = match (comparison, files.as_slice()) {
            (Some(comparison), [(text, _), .., (mmproj, _)]) => {
                Some(comparison.run(args, [text.path(), mmproj.path()], interrupted)?)
            }
            _ => None,
        };
        let existing = if args.force { Existing::Replace } else { Existing::Keep };
        // The first part of several is named last: where a crash leaves some of them, there is none that could be opened.
        files.reverse();
        output::publish(files, &args.out, existing)?;
        drop(aside);
        // A file that was not written is its own source, and as long as it was; one with a report is longer than planned.
        let size = |path: PathBuf| match std::fs::metadata(&path) {
            Ok(metadata) => Ok((path, metadata.len())),
            Err(e) => Err(Error::other("cannot look").because(e).at(&path)),
        };
        let [model, mmproj] =
            planned.map(|files| targets_of(&files, &args.out).into_iter().map(size).collect::<Result<Vec<_>>>());
        Ok(Done { model: model?, mmproj: mmproj?, quality, seconds: 0.0 })
    }
}

/// Writes a model, in one file or several, under names that vanish; the checksum of all its tensors is in the first.
fn write_parts(run: &Run, parts: &[Planned], out: &Path) -> Result<Vec<(TemporaryFile, PathBuf)>> {
    let mut checksum = Checksum::default();
    let mut files = Vec::new();
    for (part, target) in parts.iter().zip(targets_of(parts, out)) {
        let file = output::temporary(out)?;
        write_file(run, (&part.plan, &part.layout), file.as_file(), &target, &mut checksum)?;
        files.push((file, target));
    }
    if let (Some(part), Some((file, target))) = (parts.first(), files.first()) {
        write_checksum(&part.layout, file.as_file(), target, checksum)?;
    }
    Ok(files)
}

/// Threads to make blocks with: as many as told, else as there are cores.
pub fn thread_pool(threads: Option<u16>) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from)).build();
    pool.map_err(|e| Error::memory("cannot start threads, take fewer (-j)").because(e))
}

/// A bar over bytes on a terminal's stderr, nothing elsewhere.
pub fn progress_bar(quiet: bool, n_bytes: u64) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(n_bytes), target);
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    // A constant template that a test of ours would see fail; the default style is no loss.
    ProgressStyle::with_template(template).map(|style| bar.set_style(style)).ok();
    bar
}
