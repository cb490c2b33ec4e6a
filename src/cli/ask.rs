//! `qvl ask`: one answer, streaming.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::slice;
use std::time::Instant;

use qvl::conversation::{SessionFile, Shown};
use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{self, ImageSource, Picture};
use qvl::memory::peak_rss_bytes;
use qvl::prompt::{self, ChatSettings, Message, Prompt};
use qvl::session::{Finish, TextFile};
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{Keep, Trimmed, conclude, finish_reason, regions, stops};
use super::args::AskArgs;
use super::keep::SessionPath;
use super::once::{self, LastPicture, Past, Query};
use super::{pipeline, print, print_json, read_text, see, structure};

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
    let system = args.generation.system.as_deref();
    let session = args.session.as_deref().map(|path| SessionPath::open(path, &text)).transpose()?;
    let past = session.as_ref().map(|session| session.read(&text, system, SYSTEM)).transpose()?;
    let (prompt, sources) = match &past {
        Some(past) if !raw => (next_prompt(args, &text, past, &question, sources.len())?, sources),
        Some(_) => return Err(Error::usage("a base model has no conversations; leave --session out")),
        None => build_prompt(&text, &question, sources, raw, system)?,
    };
    // A grammar says itself where the answer ends: the base model's stop string may well be inside.
    let n_predict = args.generation.predict.unwrap_or(h.max_new_tokens);
    let mut stops = stops(&text, &args.generation, n_predict, raw && grammar.is_none());
    stops.logprobs = args.logprobs.map(usize::from);
    let matcher = grammar.map(|grammar| structure::matcher(grammar, text.tokenizer(), &stops.stop_ids)).transpose()?;
    let images = past.as_ref().map_or_else(Vec::new, |past| past.conversation.images());
    let query = Query {
        model: &args.model,
        images: &args.images,
        context: &args.context,
        cache: &args.cache,
        generation: &args.generation,
        quiet,
        start,
        past: past.as_ref().map(|past| Past { images: &images, snapshot: &past.snapshot }),
    };
    let keep = if annotation.is_some() { LastPicture::Keep } else { LastPicture::Drop };
    // A question may be about a picture that was shown before.
    let shown = past.as_ref().filter(|_| sources.is_empty()).and_then(|past| past.conversation.last_asked());
    let shown = shown.map(|(_, shown)| shown);
    let again = annotation.as_ref().and(shown).map(|shown| see::again(shown, &args.images)).transpose()?;
    let mut sizes = Vec::new();
    let check = |pictures: &[Picture]| {
        sizes = pictures.iter().map(|picture| (picture.width(), picture.height())).collect();
        let Some(annotation) = &annotation else { return Ok(()) };
        match &again {
            Some(picture) => annotation.check(
                &shown.map(|shown| shown.source.clone()).into_iter().collect::<Vec<_>>(),
                slice::from_ref(picture),
            ),
            None => annotation.check(&sources, pictures),
        }
    };
    let mut out = Trimmed::new(if raw { Keep::All } else { Keep::Text });
    let emit = |piece: &str| if args.json { Ok(()) } else { print(&out.push(piece)) };
    let mut outcome = once::answer(&query, &text, (&prompt, &sources), (stops, matcher), keep, check, emit)?;

    let last = annotation.zip(outcome.last.take().or(again));
    let last_size = outcome.last_size.or(shown.map(|shown| shown.size));
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
    drawn?;
    if let (Some(session), Some(past), Some(kept)) = (&session, &past, outcome.kept.take()) {
        let was_silent = outcome.answer.finish == Finish::Interrupted && outcome.answer.text.is_empty();
        if !was_silent {
            let (seen, mut conversation) = (kept.seen, past.conversation.clone());
            for ((source, size), seen) in sources.into_iter().zip(sizes).zip(seen) {
                conversation.show(Shown { source: see::lasting(source)?, size, seen });
            }
            conversation.push(question, outcome.answer.text.trim());
            session.write(&SessionFile { conversation, snapshot: kept.snapshot }, &text)?;
        }
    }
    conclude(&outcome.answer, n_predict, quiet)
}

/// The prompt of a conversation's next question, with `n_pictures` new pictures.
fn next_prompt(
    args: &AskArgs,
    text: &TextFile,
    past: &SessionFile<'_>,
    question: &str,
    n_pictures: usize,
) -> Result<Prompt> {
    let (h, conversation) = (text.hparams(), &past.conversation);
    let n_limit = args.context.ctx_size.map_or(h.context_length, |n| n as usize);
    // A small context is not all for the answer.
    let n_answer = args.generation.predict.unwrap_or(h.max_new_tokens).min(n_limit / 4);
    let n_old = conversation.pictures().len();
    let query = Message { text: question.to_owned(), pictures: (n_old..n_old + n_pictures).collect() };
    let n_turns = conversation.turns().len();
    Ok(conversation.prompt(text.tokenizer(), h, n_turns, &query, (n_limit, n_answer))?.prompt)
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
