//! `qvl ask`: one answer, streaming.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{self, ImageSource};
use qvl::memory::peak_rss_bytes;
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{Keep, Trimmed, conclude, finish_reason, regions, stops};
use super::args::AskArgs;
use super::asked::Asked;
use super::once::{self, LastPicture, Query};
use super::{pipeline, print, print_json, read_text, structure};

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
    let asked = Asked {
        question: &question,
        n_pictures: sources.len(),
        regions: &args.region,
        format: if args.raw { ChatFormat::Raw } else { h.chat_format },
        system: args.generation.system.as_deref(),
    };
    let (prompt, sources) = asked.prompt(&text, sources)?;
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
    let pictures = once::pictures(&query, &text, (&prompt, &sources), n_predict)?;
    annotation.as_ref().map_or(Ok(()), |a| a.check(&sources, &pictures))?;
    let prompt = asked.with_regions(&text, prompt, &pipeline::sizes(&pictures))?;
    let mut out = Trimmed::new(if raw { Keep::All } else { Keep::Text });
    let emit = |piece: &str| if args.json { Ok(()) } else { print(&out.push(piece)) };
    let mut outcome = once::answer(&query, &text, (&prompt, pictures), (stops, matcher), keep, emit)?;

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
