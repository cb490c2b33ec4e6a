//! One conversion from arguments to result.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qvl::error::{Error, Result};
use qvl::gguf::Layout;

use crate::args::Args;
use crate::checkpoint::{self, Checkpoint, Inventory};
use crate::config::{self, Config, square_root};
use crate::execute::{Run, write_file};
use crate::imatrix::Importance;
use crate::metadata::{self, About};
use crate::output::{self, Existing};
use crate::plan::{self, Plan, Request};
use crate::quality::Comparison;
use crate::report::{self, Done};
use crate::{generation, licence, naming, vocab};

/// Does what the arguments say and prints the result. `interrupted` may be set at any time; then the work ends with an
/// error of that kind.
pub fn run(args: &Args, interrupted: &AtomicBool) -> Result<()> {
    if args.dry_run {
        let (plan, inventory) = dry_run(args)?;
        return print_plan(args, &plan, &inventory);
    }
    let (done, plan) = convert(args, interrupted)?;
    let json = args.json.then(|| report::done_json(&done, &plan).to_string());
    report::print(&json.unwrap_or_else(|| report::done_text(&done)))
}

/// A checkpoint's directory and what can be known of it without its weights.
struct Opened {
    dir: PathBuf,
    config: Config,
    checkpoint_name: String,
    name: String,
}

fn open(args: &Args) -> Result<Opened> {
    let dir = std::fs::canonicalize(&args.checkpoint)
        .map_err(|e| Error::model("cannot open the checkpoint's directory").because(e).at(&args.checkpoint))?;
    if !dir.is_dir() {
        return Err(Error::model("not a directory (expected that of a checkpoint)").at(&args.checkpoint));
    }
    let config = config::read(&dir)?;
    let checkpoint_name = naming::checkpoint_name(&dir);
    let name = args.name.clone().unwrap_or_else(|| naming::model_name(&checkpoint_name));
    Ok(Opened { dir, config, checkpoint_name, name })
}

/// Plans with what is there: weights, an index, or the configuration alone.
fn dry_run(args: &Args) -> Result<(Plan, Inventory)> {
    let Opened { dir, mut config, name, .. } = open(args)?;
    let inventory = checkpoint::survey(&dir)?;
    let mut plan = checked_plan(args, &mut config, &inventory, &name, &dir)?;
    importance(args, &mut plan)?;
    Ok((plan, inventory))
}

/// Converts. When it returns an error, nothing new stands under the final names.
pub fn convert(args: &Args, interrupted: &AtomicBool) -> Result<(Done, Plan)> {
    let started = Instant::now();
    let Opened { dir, mut config, checkpoint_name, name } = open(args)?;
    // Cheap refusals first: the configuration alone names the files.
    let comparison = Comparison::asked(args)?;
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    output::prepare(&args.out, &targets(&plan(args, &config, &name)?, &args.out), existing)?;
    let inventory = Inventory::Headers(Checkpoint::open(&dir)?);
    let mut plan = checked_plan(args, &mut config, &inventory, &name, &dir)?;
    let importance = importance(args, &mut plan)?;
    let Inventory::Headers(checkpoint) = inventory else { return Err(Error::other("no headers")) };
    if args.verbose {
        report::note(&report::plan_text(&plan));
    }
    notes(args, &plan);
    let about = About {
        generation: generation::read(&dir)?,
        picture_format: generation::picture_format(&dir),
        licence: licence::read(&dir),
        vision_id: metadata::vision_id(&checkpoint)?,
        checkpoint_name,
        name,
    };
    let layouts = layouts(&dir, &config, &about, &plan, importance.as_ref())?;
    let making = Making { args, checkpoint: &checkpoint, plan: &plan, importance: importance.as_ref(), interrupted };
    let done = making.write(layouts, comparison.as_ref())?;
    Ok((Done { seconds: started.elapsed().as_secs_f64(), ..done }, plan))
}

/// The importance matrix that was asked for, proven to be of the planned model; what it lacks becomes a note.
fn importance(args: &Args, plan: &mut Plan) -> Result<Option<Importance>> {
    let Some(path) = &args.imatrix else { return Ok(None) };
    let importance = Importance::read(path)?;
    plan.notes.extend(importance.check(plan)?);
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
    let plan = plan(args, config, name)?;
    checkpoint::check(inventory, plan.sources()).map_err(|e| e.at(dir))?;
    Ok(plan)
}

fn targets(plan: &Plan, out: &Path) -> [PathBuf; 2] {
    [out.join(&plan.text.file_name), out.join(&plan.vision.file_name)]
}

fn print_plan(args: &Args, plan: &Plan, inventory: &Inventory) -> Result<()> {
    if matches!(inventory, Inventory::Nothing) && !args.quiet {
        report::note("note: there are no weights here; the plan follows from config.json alone\n");
    }
    if args.json {
        return report::print(&report::plan_json(plan).to_string());
    }
    notes(args, plan);
    report::print(report::plan_text(plan).trim_end())
}

fn notes(args: &Args, plan: &Plan) {
    plan.notes.iter().filter(|_| !args.quiet).for_each(|note| report::note(&format!("note: {note}\n")));
}

/// Where everything will stand in the two files.
fn layouts(
    dir: &Path,
    config: &Config,
    about: &About,
    plan: &Plan,
    importance: Option<&Importance>,
) -> Result<[Layout; 2]> {
    let ranks = vocab::read(&dir.join("qwen.tiktoken"))?;
    let vocabulary = vocab::gguf_vocab(&ranks, config.text.n_vocab as usize)?;
    let mut text = metadata::text(config, about, vocabulary, &plan.text)?;
    let mut vision = metadata::vision(config, about, &plan.vision);
    if let Some(importance) = importance {
        [&mut text, &mut vision].into_iter().for_each(|metadata| importance.record(metadata));
    }
    Ok([plan.text.layout(&text)?, plan.vision.layout(&vision)?])
}

/// A conversion whose files are being made.
struct Making<'a> {
    args: &'a Args,
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    importance: Option<&'a Importance>,
    interrupted: &'a AtomicBool,
}

impl Making<'_> {
    fn write(&self, layouts: [Layout; 2], comparison: Option<&Comparison>) -> Result<Done> {
        let Making { args, checkpoint, plan, importance, interrupted } = *self;
        let mut n_bytes = [layouts[0].file_bytes, layouts[1].file_bytes];
        output::require_space(&args.out, n_bytes[0] + n_bytes[1])?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.map_or(0, usize::from)).build();
        let pool = pool.map_err(|e| Error::other("cannot start threads").because(e))?;
        let progress = progress_bar(args, n_bytes[0] + n_bytes[1]);
        let run = Run { checkpoint, pool: &pool, progress: &progress, importance, interrupted };
        let targets = targets(plan, &args.out);
        let files: Result<Vec<_>> = [&plan.text, &plan.vision]
            .into_iter()
            .zip(&layouts)
            .zip(&targets)
            .map(|((plan, layout), target)| {
                let file = output::temporary(&args.out)?;
                write_file(&run, plan, layout, file.as_file(), target)?;
                Ok((file, target.clone()))
            })
            .collect();
        progress.finish_and_clear();
        let files = files?;
        let quality = match (comparison, files.as_slice()) {
            (Some(comparison), [(text, _), (mmproj, _)]) => {
                let quality = comparison.run(args, [text.path(), mmproj.path()], interrupted)?;
                // The text file has grown by what is now in its metadata.
                n_bytes[0] = std::fs::metadata(text.path()).map_or(n_bytes[0], |m| m.len());
                Some(quality)
            }
            _ => None,
        };
        let existing = if args.force { Existing::Replace } else { Existing::Keep };
        output::publish(files, &args.out, existing)?;
        let [model, mmproj] = targets;
        Ok(Done { model, mmproj, n_bytes, quality, seconds: 0.0 })
    }
}

/// A bar over bytes on a terminal's stderr, nothing elsewhere.
fn progress_bar(args: &Args, n_bytes: u64) -> ProgressBar {
    let target = if args.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(n_bytes), target);
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    // A constant template that a test of ours would see fail; the default style is no loss.
    ProgressStyle::with_template(template).map(|style| bar.set_style(style)).ok();
    bar
}
