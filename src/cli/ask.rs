//! `qvl ask`: one answer, streaming.

use std::fs::File;
use std::io::IsTerminal;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::grounding;
use qvl::image::{self, ImageSource};
use qvl::llama::Sampler;
use qvl::memory::peak_rss_bytes;
use qvl::prompt::{self, ChatSettings, Message, Prompt};
use qvl::session::{Seen, Session, TextFile, generate, too_long};
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{Keep, Trimmed, conclude, finish_reason, ms, regions, sampling, stops};
use super::args::AskArgs;
use super::pipeline::{self, Mmproj};
use super::{STOP, print, print_json, read_text};

/// Default system message of the chat format.
pub const SYSTEM: &str = "You are a helpful assistant.";

/// Runs it.
pub fn run(args: &AskArgs, quiet: bool) -> Result<()> {
    let start = Instant::now();
    let annotation = args.annotate.as_deref().map(Annotation::new).transpose()?;
    let sources = image::sources(&args.images.image)?;
    let question = question(args, &sources)?;
    let text = pipeline::open_text(&args.model, quiet)?;
    let h = text.hparams();
    let raw = args.raw || h.chat_format == ChatFormat::Raw;
    if raw && args.generation.system.is_some() {
        return Err(Error::usage("a system message has no place in a raw prompt"));
    }
    let (prompt, sources) = build_prompt(&text, &question, sources, raw, args.generation.system.as_deref())?;
    let n_prompt = prompt.n_positions(h.n_queries);
    let n_predict = args.generation.predict.unwrap_or(h.max_new_tokens);
    let settings = pipeline::session_settings(h, &args.context, n_prompt, n_predict)?;
    if n_prompt > settings.n_ctx {
        return Err(too_long(n_prompt, settings.n_ctx));
    }
    let mut pictures = pipeline::load_pictures(&sources, &args.images)?;
    if let Some(annotation) = &annotation {
        annotation.check(&sources, &pictures)?;
    }
    let mut load = start.elapsed();

    let encode_start = Instant::now();
    // The mmproj is unmapped at the end of this statement, before the text weights are touched.
    let images = match pictures.is_empty() {
        true => Vec::new(),
        false => Mmproj::open(&args.model, &text)?.encode(&pictures, &args.context, quiet)?,
    };
    let images: Vec<_> = images.into_iter().map(Seen::new).collect();
    let encode = encode_start.elapsed();
    // The model's coordinates refer to the last picture. Its pixels stay only if they are to be drawn on, as they were
    // seen (the file may change meanwhile, or be a pipe); those of the others go now.
    let last_size = pictures.last().map(|p| (p.width(), p.height()));
    let last = annotation.and_then(|annotation| Some((annotation, pictures.pop()?)));
    drop(pictures);

    let load_start = Instant::now();
    let model = pipeline::load_model(&text, &args.context, quiet)?;
    let mut session = Session::new(&text, &model, &settings, &STOP)?;
    load += load_start.elapsed();

    let prefill_start = Instant::now();
    let spinner = pipeline::spinner(quiet, format!("reading {n_prompt} tokens"));
    session.prefill(&prompt, &images)?;
    drop((spinner, images));
    let prefill = prefill_start.elapsed();

    let mut sampler = Sampler::new(sampling(&args.generation, h), text.tokenizer().n_used());
    for id in prompt.ids_with_slots(text.tokenizer().special_ids().img_pad, h.n_queries) {
        sampler.accept(id.to_u32());
    }
    let stops = stops(&text, &args.generation, n_predict, raw);
    let decode_start = Instant::now();
    let mut first_token = None;
    let mut out = Trimmed::new(if raw { Keep::All } else { Keep::Text });
    let answer = generate(&mut session, text.tokenizer(), &mut sampler, &stops, &STOP, |piece| {
        first_token.get_or_insert_with(|| start.elapsed());
        if args.json { Ok(()) } else { print(&out.push(piece)) }
    })?;
    let decode = decode_start.elapsed();
    let answer_text = if raw { answer.text.as_str() } else { answer.text.trim() };
    let found = grounding::regions(answer_text);
    if !args.json {
        print("\n")?;
    }
    // An answer that came is printed even if its picture cannot be written.
    let drawn = last.map_or(Ok(()), |(annotation, picture)| annotation.write(picture, &found, quiet));
    if args.json {
        let per_second = answer.n_tokens as f64 / decode.as_secs_f64().max(1e-9);
        let mut json = json!({
            "text": answer_text,
            "finish_reason": finish_reason(answer.finish),
            "usage": {
                "prompt_tokens": n_prompt,
                "image_tokens": prompt.n_images() * h.n_queries,
                "completion_tokens": answer.n_tokens,
            },
            "timings": {
                "load_ms": ms(load),
                "encode_ms": ms(encode),
                "prefill_ms": ms(prefill),
                "decode_ms": ms(decode),
                "ttft_ms": first_token.map(ms),
                "decode_tokens_per_second": (per_second * 1e3).round() / 1e3,
            },
            "memory": {"peak_rss_bytes": peak_rss_bytes()},
            "regions": regions(&found.0, last_size),
        });
        if let Some(path) = &args.annotate {
            json["annotated"] = drawn.is_ok().then(|| path.to_string_lossy()).into();
        }
        print_json(&json)?;
    }
    drawn?;
    conclude(&answer, n_predict, quiet)
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
        (None, Some(path)) => {
            let text = File::open(path).and_then(read_text);
            let text = text.map_err(|e| Error::usage("cannot read the prompt").because(e).at(path))?;
            Ok(without_line_end(text))
        }
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

/// Without the one line end that editors and `echo` put at the end of a text.
fn without_line_end(text: String) -> String {
    let line = text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n'));
    line.map(str::to_owned).unwrap_or(text)
}
