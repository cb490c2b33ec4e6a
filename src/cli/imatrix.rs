//! `qvl imatrix`: which columns of the weights count most, seen while the model reads examples with pictures.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::ggml::WeightInput;
use qvl::imatrix::Imatrix;
use qvl::names::text_tensor;
use qvl::session::{Session, SessionSettings, TextFile};
use serde_json::json;

use super::args::{ContextArgs, ImatrixArgs};
use super::batch::{go_on, progress};
use super::examples::{self, Example, Pictures, Shown};
use super::mmproj::Mmproj;
use super::pipeline;
use super::see::TextMemory;
use super::{STOP, output, print_error, print_json, room};

/// Positions read together. Each has its logits computed, for otherwise the last layer would see the last position only; more
/// would take memory (0.6 MB each for the real vocabulary).
const N_BATCH: usize = 128;

/// Runs it.
pub fn run(args: &ImatrixArgs, quiet: bool) -> Result<()> {
    let start = Instant::now();
    output::check(&args.output)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let examples = examples::read(&args.data, &args.context, &text)?;
    let pictures = Pictures::new(&examples, &args.data);
    let mmproj = match pictures.len() {
        0 => None,
        _ => Some(Mmproj::open(&args.model, &text)?),
    };
    if let Some(mmproj) = &mmproj {
        room::check_vision(mmproj, &args.context, TextMemory::Now(text.n_bytes()))?;
    }
    let n_pictures = pictures.len();
    let (mut imatrix, n_positions) = collect(args, &text, mmproj.as_ref(), &examples, pictures, quiet)?;
    imatrix.check()?;
    imatrix.datasets = vec![args.data.data.display().to_string()];
    imatrix.n_chunks = examples.len() as u32;
    imatrix.chunk_size = n_positions.div_ceil(examples.len()) as u32;
    write(&imatrix, &args.output)?;
    let n_tensors = imatrix.entries().len();
    if args.json {
        return print_json(&json!({
            "imatrix": args.output.display().to_string(),
            "tensors": n_tensors,
            "examples": examples.len(),
            "positions": n_positions,
            "pictures": n_pictures,
        }));
    }
    if !quiet {
        let (path, n, seconds) = (args.output.display(), examples.len(), start.elapsed().as_secs_f64());
        print_error(&format!(
            "{path}: {n_tensors} tensors, from {n} examples ({n_positions} positions, {n_pictures} pictures), in {seconds:.1} s\n"
        ));
    }
    Ok(())
}

/// Reads all examples, and tells of how many positions they were. Each picture is looked at once, however many ask about it.
fn collect(
    args: &ImatrixArgs,
    text: &TextFile,
    mmproj: Option<&Mmproj>,
    examples: &[Example],
    mut pictures: Pictures,
    quiet: bool,
) -> Result<(Imatrix, usize)> {
    let imatrix = Rc::new(RefCell::new(Imatrix::default()));
    let settings = settings(text, &args.context, examples)?;
    let model = pipeline::load_model(text, &args.context, &settings, None, quiet)?;
    let mut session = Session::new(text, &model, &settings, &STOP)?;
    let watching = Rc::clone(&imatrix);
    session.watch(Box::new(move |input: WeightInput<'_>| {
        // As llama.cpp: what weighs the inputs of the output matrix equally serves it better.
        if input.name != text_tensor::OUTPUT {
            watching.borrow_mut().add(input);
        }
    }));
    let bar = progress(examples.len() as u64, quiet);
    let (mut n_positions, mut n_looked, mut rest) = (0, 0, examples);
    while !rest.is_empty() {
        let n = pictures.look(rest, mmproj, &args.context, |towers, number, picture| {
            let is_new = number >= n_looked;
            n_looked = n_looked.max(number + 1);
            let watching = Rc::clone(&imatrix);
            let mut watch = move |input: WeightInput<'_>| {
                if is_new {
                    watching.borrow_mut().add(input);
                }
            };
            towers.watch(picture, &mut watch)
        })?;
        for example in &rest[..n] {
            go_on()?;
            let Shown { seen, sizes } = example.shown(&pictures)?;
            let prompt = example.prompt(text, &sizes)?;
            session.prefill_all(&prompt, &seen, |_| Ok(()))?;
            let answer = example.answer_ids(text)?.unwrap_or_default();
            // Nothing is chosen after the token that ends the answer, so nobody reads it.
            session.push_all(&answer[..answer.len().saturating_sub(1)], |_| Ok(()))?;
            n_positions += session.n_past();
            bar.inc(1);
        }
        rest = &rest[n..];
    }
    bar.finish_and_clear();
    drop(session);
    let imatrix = imatrix.take();
    Ok((imatrix, n_positions))
}

fn settings(text: &TextFile, args: &ContextArgs, examples: &[Example]) -> Result<SessionSettings> {
    let longest = examples::longest(examples, text, 0)?;
    let mut settings = pipeline::wanted_settings(text, args, (longest, 0), N_BATCH.min(longest))?;
    settings.n_outputs = settings.n_batch;
    room::check(text, args, &settings)?;
    Ok(settings)
}

fn write(imatrix: &Imatrix, path: &Path) -> Result<()> {
    let file = output::temporary(path)?;
    imatrix.write(file.as_file()).map_err(|e| e.at(path))?;
    file.persist(path).map_err(|e| Error::other("cannot write").because(e).at(path))?;
    Ok(())
}
