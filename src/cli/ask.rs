//! `qvl ask`: one answer, streaming.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{self, ImageSource, Picture};
use qvl::memory::peak_rss_bytes;
use qvl::prompt::{self, ChatSettings, Message, Prompt};
use qvl::session::TextFile;
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{Keep, Trimmed, conclude, finish_reason, regions, stops};
use super::args::AskArgs;
use super::once::{self, LastPicture, Query};
use super::{pipeline, print, print_json, read_text, structure};

/// Default system message of the chat format.
pub const SYSTEM: &str = "You are a helpful assistant.";

/// Runs it.
pub fn run(args: &AskArgs, quiet: bool) -> Result<()> {
    let start = Instant::now();
    let annotation = args.annotate.as_deref().map(Annotation::new).transpose()?;
    let sources = image::sources(&args.images.image)?;
    let question = question(args, &sources)?;
    let grammar = structure::grammar(&args.structure)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let h = text.hparams();
    let raw = args.raw || h.chat_format == ChatFormat::Raw;
    if raw && args.generation.system.is_some() {
        return Err(Error::usage("a system message has no place in a raw prompt"));
    }
    let (prompt, sources) = build_prompt(&text, &question, sources, raw, args.generation.system.as_deref())?;
    // A grammar says itself where the answer ends: the base model's stop string may well be inside.
    let n_predict = args.generation.predict.unwrap_or(h.max_new_tokens);
    let mut stops = stops(&text, &args.generation, n_predict, raw && grammar.is_none());
    stops.logprobs = args.logprobs.map(usize::from);
    let matcher = grammar.map(|grammar| structure::matcher(grammar, text.tokenizer(), &stops.stop_ids)).transpose()?;
    let query = Query {
        model: &args.model,
        images: &args.images,
        context: &args.context,
        cache: &args.cache,
        generation: &args.generation,
        quiet,
        start,
    };
    let keep = if annotation.is_some() { LastPicture::Keep } else { LastPicture::Drop };
    let check = |pictures: &[Picture]| annotation.as_ref().map_or(Ok(()), |a| a.check(&sources, pictures));
    let mut out = Trimmed::new(if raw { Keep::All } else { Keep::Text });
    let emit = |piece: &str| if args.json { Ok(()) } else { print(&out.push(piece)) };
    let mut outcome = once::answer(&query, &text, (&prompt, &sources), (stops, matcher), keep, check, emit)?;

    let last = annotation.zip(outcome.last.take());
    let answer = &outcome.answer;
    let answer_text = if raw { answer.text.as_str() } else { answer.text.trim() };
    let found = grounding::regions(answer_text);
    if !args.json {
        print("\n")?;
    }
    // An answer that came is printed even if its picture cannot be written.
    let drawn = last.map_or(Ok(()), |(annotation, picture)| annotation.write(picture, &found, quiet));
    if args.json {
        let mut json = json!({
            "text": answer_text,
            "finish_reason": finish_reason(answer.finish),
            "usage": outcome.usage(),
            "timings": outcome.timings(),
            "memory": {"peak_rss_bytes": peak_rss_bytes()},
            "regions": regions(&found.0, outcome.last_size),
        });
        if args.logprobs.is_some() {
            json["logprobs"] = structure::logprobs(&answer.logprobs, text.tokenizer()).into();
        }
        if let Some(path) = &args.annotate {
            json["annotated"] = drawn.is_ok().then(|| path.to_string_lossy()).into();
        }
        print_json(&json)?;
    }
    drawn?;
    conclude(answer, n_predict, quiet)
}

/// The prompt and the pictures that it shows, those of `-i` first.
pub fn build_prompt(
    text: &TextFile,
    question: &str,
    mut sources: Vec<ImageSource>,
    raw: bool,
    system: Option<&str>,
) -> Result<(Prompt, Vec<ImageSource>)> {
    let (h, tokenizer) = (text.hparams(), text.tokenizer());
    if raw {
        let (prompt, more) = prompt::raw(tokenizer, question, sources.len(), h.picture_prefix)?;
        // Only a path may stand in a text: nothing there reads stdin or the network.
        sources.extend(more.into_iter().map(|path| ImageSource::Path(path.into())));
        return Ok((prompt, sources));
    }
    let settings = ChatSettings {
        system: system.unwrap_or(SYSTEM).to_owned(),
        max_window_size: h.max_window_size,
        picture_prefix: h.picture_prefix,
    };
    let query = Message { text: question.to_owned(), pictures: (0..sources.len()).collect() };
    Ok((prompt::chat(tokenizer, &settings, &[], &query)?, sources))
}

fn question(args: &AskArgs, sources: &[ImageSource]) -> Result<String> {
    match (&args.prompt, &args.file) {
        (Some(prompt), _) => Ok(prompt.clone()),
        (None, Some(path)) => prompt_file(path),
        (None, None) if sources.contains(&ImageSource::Stdin) => {
            Err(Error::usage("stdin gives the picture, so give the question as the last argument or with -f FILE"))
        }
        (None, None) if std::io::stdin().is_terminal() => {
            Err(Error::usage("what is the question? give it as the last argument, with -f FILE, or on stdin"))
        }
        (None, None) => {
            let text = read_text(std::io::stdin().lock())
                .map_err(|e| Error::usage("cannot read the prompt from stdin").because(e))?;
            Ok(without_line_end(text))
        }
    }
}

/// The prompt in a file.
pub fn prompt_file(path: &Path) -> Result<String> {
    let text = File::open(path).and_then(read_text);
    let text = text.map_err(|e| Error::usage("cannot read the prompt").because(e).at(path))?;
    Ok(without_line_end(text))
}

/// Without the one line end that editors and `echo` put at the end of a text.
fn without_line_end(text: String) -> String {
    let line = text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n'));
    line.map(str::to_owned).unwrap_or(text)
}
