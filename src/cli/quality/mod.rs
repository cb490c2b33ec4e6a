//! `qvl quality`: what quantising cost, on examples with pictures, against a reference model or what it said before.

mod report;
mod run;
mod save;
mod show;

use std::path::Path;

use qvl::error::{Error, Result};
use qvl::gguf_file::GgufFile;
use qvl::names::general;
use qvl::quality::{Identity, Recorder, Reference, WeightError, weight_errors};
use qvl::session::TextFile;
use qvl::temporary::{Readers, TemporaryFile};
use serde_json::json;

use super::args::{ModelArgs, QualityArgs};
use super::batch::go_on;
use super::examples::{self, Example, Pictures};
use super::mmproj::Mmproj;
use super::pipeline;
use super::{output, print, print_error, print_json};

use report::{Recording, Report};
use show::Listed;

/// Runs it.
pub fn run(args: &QualityArgs, quiet: bool) -> Result<()> {
    args.write_reference.iter().try_for_each(|path| output::check(path))?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let examples = examples::read(&args.data, &args.context, &text)?;
    if let Some(path) = &args.write_reference {
        return write_reference(args, path, &text, &examples, quiet);
    }
    let Some(path) = &args.reference else { return Err(Error::usage("give --reference FILE")) };
    let given = Given::open(path)?;
    let identity = identity(&text, &examples);
    let (reference, weights) = match given {
        Given::Said => (Reference::read(path, text.tokenizer())?, None),
        Given::Model => {
            let other = ModelArgs { model: path.clone(), mmproj: args.reference_mmproj.clone(), lora: Vec::new() };
            let other_text = TextFile::open(path)?;
            if Identity::vocabulary(other_text.tokenizer()) != identity.vocabulary {
                return Err(Error::model("the reference has another vocabulary: it is another model").at(path));
            }
            let weights = weights(args, &other, (&text, &other_text), &examples)?;
            let file = TemporaryFile::new(&std::env::temp_dir(), ".qvl-", ".tmp", Readers::Owner);
            let file = file.map_err(|e| Error::other("cannot make a temporary file").because(e))?;
            record(args, &other, (&other_text, &text), &examples, file.as_file(), quiet)?;
            (Reference::read(file.path(), text.tokenizer())?, Some(weights))
        }
    };
    if reference.identity.data != identity.data || reference.answers.len() != examples.len() {
        let data = args.data.data.display();
        let message = format!("the reference was made from other examples than {data} and these flags; make it again");
        return Err(Error::usage(message).at(path));
    }
    let mut report = Report::new(&reference, &examples);
    run::run(args, &args.model, (&text, &text), &examples, &mut report, quiet)?;
    report.weights = weights;
    if args.save {
        save::save(&args.model.model, &report, &args.data.data)?;
    }
    show(args, &report)
}

/// What was given to compare with.
enum Given {
    /// A model's file.
    Model,
    /// What a model said.
    Said,
}

impl Given {
    fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        Ok(if Reference::is_one(file.gguf()) { Given::Said } else { Given::Model })
    }
}

/// What a reference for these examples belongs to, but for the pictures.
fn identity(text: &TextFile, examples: &[Example]) -> Identity {
    let words: Vec<String> = examples.iter().flat_map(Example::words).collect();
    let data = Identity::data(words.iter().map(String::as_str));
    Identity { vocabulary: Identity::vocabulary(text.tokenizer()), data, pictures: Vec::new() }
}

fn write_reference(args: &QualityArgs, path: &Path, text: &TextFile, examples: &[Example], quiet: bool) -> Result<()> {
    let file = output::temporary(path)?;
    let n_positions = record(args, &args.model, (text, text), examples, file.as_file(), quiet)?;
    file.persist(path).map_err(|e| Error::other("cannot write").because(e).at(path))?;
    let (shown, n, n_pictures) = (path.display(), examples.len(), Pictures::new(examples, &args.data).len());
    if args.json {
        let path = shown.to_string();
        return print_json(
            &json!({"reference": path, "examples": n, "positions": n_positions, "pictures": n_pictures}),
        );
    }
    if !quiet {
        print_error(&format!("{shown}: {n} examples ({n_positions} positions, {n_pictures} pictures)\n"));
    }
    Ok(())
}

/// Runs a reference, writes what it says to `out`, and tells of how many positions.
fn record(
    args: &QualityArgs,
    model: &ModelArgs,
    (text, asker): (&TextFile, &TextFile),
    examples: &[Example],
    out: &std::fs::File,
    quiet: bool,
) -> Result<usize> {
    let spool = tempfile::tempfile().map_err(|e| Error::other("cannot make a temporary file").because(e))?;
    let targets = examples.iter().map(|example| example.answer_ids(asker)).collect::<Result<Vec<_>>>()?;
    let recorder = Recorder::new(identity(asker, examples), described(model, text, examples)?, args.keep.into(), spool);
    let mut recording = Recording { recorder, targets: &targets, n_positions: 0 };
    run::run(args, model, (text, asker), examples, &mut recording, quiet)?;
    if recording.n_positions == 0 {
        return Err(Error::usage("there is nothing to compare: no example has an answer, and -n 0 allows none"));
    }
    recording.recorder.finish(out)?;
    Ok(recording.n_positions)
}

/// A model's name and its types, for people: of two mmproj files beside a model the wrong one may have been found.
fn described(model: &ModelArgs, text: &TextFile, examples: &[Example]) -> Result<String> {
    let read = |path: &Path| -> Result<[String; 2]> {
        let file = GgufFile::open(path)?;
        let gguf = file.gguf();
        let of = |key| gguf.opt_str(key).map(|text| text.unwrap_or_default().to_owned());
        Ok([of(general::NAME)?, of(general::RECIPE)?])
    };
    let [name, recipe] = read(&model.model)?;
    if examples.iter().all(|example| example.sources.is_empty()) {
        return Ok(format!("{name} {recipe}"));
    }
    let [_, vision] = read(Mmproj::open(model, text)?.path())?;
    Ok(format!("{name} {recipe}, vision {vision}"))
}

/// The errors of all tensors that are stored in another way than the reference's.
fn weights(
    args: &QualityArgs,
    other: &ModelArgs,
    (text, other_text): (&TextFile, &TextFile),
    examples: &[Example],
) -> Result<Vec<WeightError>> {
    let mut files = vec![(other.model.clone(), args.model.model.clone())];
    if examples.iter().any(|example| !example.sources.is_empty()) {
        let (reference, found) = (Mmproj::open(other, other_text)?, Mmproj::open(&args.model, text)?);
        files.push((reference.path().to_owned(), found.path().to_owned()));
    }
    let mut errors = Vec::new();
    for (reference, found) in files {
        let (a, b) = (GgufFile::open(&reference)?, GgufFile::open(&found)?);
        errors.extend(weight_errors((a.gguf(), &a), (b.gguf(), &b), go_on).map_err(|e| e.at(&reference))?);
    }
    Ok(errors)
}

fn show(args: &QualityArgs, report: &Report<'_>) -> Result<()> {
    if args.json {
        let mut json = report.json();
        json["model"] = args.model.model.display().to_string().into();
        json["data"] = args.data.data.display().to_string().into();
        return print_json(&json);
    }
    let listed = if args.tensors { Listed::All } else { Listed::Worst };
    let tables = show::tables(report, listed);
    let tables: Vec<String> =
        tables.iter().map(|table| if args.markdown { table.markdown() } else { table.text() }).collect();
    print(&format!("{}\n{}", tables.join("\n"), report.note()))
}
