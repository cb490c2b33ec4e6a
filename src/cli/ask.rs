//! `qvl ask`: one answer, streaming.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::slice;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{self, ImageSource};
use qvl::memory::peak_rss_bytes;
use qvl::session::Finish;
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{Keep, Trimmed, conclude, finish_reason, regions, stops};
use super::args::AskArgs;
use super::asked::{Asked, Earlier, SYSTEM};
use super::keep::SessionPath;
use super::once::{self, LastPicture, Past, Query};
use super::{pipeline, print, print_json, read_text, see, structure};

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
    let system = args.generation.system.as_deref();
    let session = args.session.as_deref().map(|path| SessionPath::open(path, &text)).transpose()?;
    if session.is_some() && raw {
        return Err(Error::usage("a base model has no conversations; leave --session out"));
    }
    let past = session.as_ref().map(|session| session.read(&text, system, SYSTEM)).transpose()?;
    let n_predict = args.generation.predict.unwrap_or(h.max_new_tokens);
    let n_limit = args.context.ctx_size.map_or(h.context_length, |n| n as usize);
    let asked = Asked {
        question: &question,
        n_pictures: sources.len(),
        regions: &args.region,
        format: if args.raw { ChatFormat::Raw } else { h.chat_format },
        system: system.filter(|_| past.is_none()),
        // A small context is not all for the answer.
        past: past
            .as_ref()
            .map(|past| Earlier { conversation: &past.conversation, room: (n_limit, n_predict.min(n_limit / 4)) }),
    };
    let (prompt, sources) = asked.prompt(&text, sources)?;
    // A grammar says itself where the answer ends: the base model's stop string may well be inside.
    let mut stops = stops(&text, &args.generation, n_predict, raw && grammar.is_none());
    stops.logprobs = args.logprobs.map(usize::from);
    let matcher = grammar.map(|grammar| structure::matcher(grammar, text.tokenizer(), &stops.stop_ids)).transpose()?;
    let images = past.as_ref().map_or_else(Vec::new, |past| past.conversation.images());
    let query = Query {
        model: &args.model,
        images: &args.images,
        context: &args.context,
        cache: &args.cache,
        prompt_cache: &args.prompt_cache,
        draft: args.draft.draft,
        generation: &args.generation,
        quiet,
        start,
        past: past.as_ref().map(|past| Past { images: &images, snapshot: &past.snapshot }),
    };
    let keep = if annotation.is_some() { LastPicture::Keep } else { LastPicture::Drop };
    let pictures = once::pictures(&query, &text, (&prompt, &sources), n_predict)?;
    // A question may be about a picture that was shown before.
    let shown = past.as_ref().filter(|_| sources.is_empty()).and_then(|past| past.conversation.last_asked());
    let shown = shown.map(|(_, shown)| shown);
    let again = annotation.as_ref().and(shown).map(|shown| see::again(shown, &args.images)).transpose()?;
    if let Some(annotation) = &annotation {
        match shown.zip(again.as_ref()) {
            Some((shown, again)) => annotation.check(slice::from_ref(&shown.source), slice::from_ref(again))?,
            None => annotation.check(&sources, &pictures)?,
        }
    }
    let sizes = pipeline::sizes(&pictures);
    let prompt = asked.with_regions(&text, prompt, &sizes)?;
    let mut out = Trimmed::new(if raw { Keep::All } else { Keep::Text });
    let emit = |piece: &str| if args.json { Ok(()) } else { print(&out.push(piece)) };
    let mut outcome = once::answer(&query, &text, (&prompt, pictures), (stops, matcher), keep, emit)?;

    let last = annotation.zip(outcome.last.take().or(again));
    let last_size = outcome.last_size.or(shown.map(|shown| shown.size));
    let kept = outcome.kept.take();
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
            "regions": regions(&found.0, last_size),
        });
        if args.logprobs.is_some() {
            json["logprobs"] = structure::logprobs(&answer.logprobs, text.tokenizer()).into();
        }
        if let Some(path) = &args.annotate {
            json["annotated"] = drawn.is_ok().then(|| path.to_string_lossy()).into();
        }
        print_json(&json)?;
    }
    if let (Some(session), Some(past), Some(kept)) = (&session, &past, kept)
        && (answer.finish != Finish::Interrupted || !answer_text.is_empty())
    {
        let turn = (asked.words(&sizes)?.into_owned(), answer_text);
        session.go_on(past, turn, sources.into_iter().zip(sizes), kept, &text)?;
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
