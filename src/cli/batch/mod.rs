//! `qvl batch`: many questions, one load of the model, several answers at a time, and a run that can be killed.

mod input;
mod journal;
mod wave;
mod work;

pub use input::{Item, Items, Shard};

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qvl::error::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::args::BatchArgs;
use super::ask::prompt_file;
use super::{STOP, pipeline, print_error};

use journal::{Failed, Journal};
use work::Worker;

/// Runs it.
pub fn run(args: &BatchArgs, quiet: bool) -> Result<()> {
    let start = Instant::now();
    let prompt = match &args.file {
        Some(path) => Some(prompt_file(path)?),
        None => args.prompt.clone(),
    };
    let same = |a: &std::path::Path, b: &std::path::Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same(&args.input, &args.output) {
        return Err(Error::usage("the output would overwrite the input; name another file").at(&args.output));
    }
    let mut items = Items::open(&args.input, prompt.as_deref(), args.shard)?;
    let n_items = Items::count(&args.input, args.shard)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let failed = if args.retry_errors { Failed::Retry } else { Failed::Keep };
    let mut report = Report {
        journal: Journal::open(&args.output, failed)?,
        bar: progress(n_items as u64, quiet),
        n_done: 0,
        n_failed: 0,
        n_before: 0,
    };
    let mut worker = Worker::new(args, &text, quiet)?;
    // How long the questions are shows later: devices keep room for the longest.
    let longest = (text.hparams().context_length, 0);
    let settings = pipeline::wanted_settings(&text, &args.context, longest, work::N_BATCH)?;
    let model = pipeline::load_model(&text, &args.context, &settings, None, quiet)?;
    let worked = worker.run(&model, &mut items, &mut report).and_then(|()| report.journal.sync());
    report.bar.finish_and_clear();
    if !quiet {
        let Report { n_done, n_failed, n_before, .. } = report;
        let failures = if n_failed > 0 { format!(", {n_failed} failed (see \"error\" there)") } else { String::new() };
        let before = if n_before > 0 { format!(", {n_before} were done before") } else { String::new() };
        let seconds = start.elapsed().as_secs_f64();
        print_error(&format!("{}: {n_done} answered{failures}{before}, in {seconds:.1} s\n", args.output.display()));
    }
    match worked {
        Err(e) if e.kind() == ErrorKind::Interrupted => {
            Err(Error::new(ErrorKind::Interrupted, "interrupted; the same command goes on from here"))
        }
        other => other,
    }
}

/// Where results go.
pub struct Report {
    journal: Journal,
    bar: ProgressBar,
    n_done: usize,
    n_failed: usize,
    n_before: usize,
}

impl Report {
    /// Whether an item was done by a run before; then it is counted.
    fn was_done(&mut self, id: &Value) -> bool {
        let done = self.journal.has(id);
        if done {
            self.n_before += 1;
            self.bar.inc(1);
            // What took no time says nothing about the time that is left.
            self.bar.reset_eta();
        }
        done
    }

    /// An answer.
    fn done(&mut self, answer: &Value) -> Result<()> {
        self.journal.append(answer)?;
        self.n_done += 1;
        self.bar.inc(1);
        Ok(())
    }

    /// What went wrong with an item. The run goes on.
    fn failed(&mut self, id: &Value, error: &Error) -> Result<()> {
        let code = error.kind().exit_code();
        self.journal.append(&json!({"id": id, "error": error.to_string(), "code": code}))?;
        self.n_failed += 1;
        self.bar.inc(1);
        Ok(())
    }
}

/// A bar over items, on a terminal.
pub fn progress(n: u64, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(n) };
    let template = "{wide_bar} {pos}/{len}, {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("per_sec", |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
            let rate = state.per_sec();
            let _ =
                if rate >= 1.0 { write!(w, "{rate:.1} a second") } else { write!(w, "{:.1} a minute", rate * 60.0) };
        }));
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Errors (kind interrupted): the user asked to stop.
pub fn go_on() -> Result<()> {
    match STOP.load(std::sync::atomic::Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    }
}
