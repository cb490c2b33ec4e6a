//! `qvl detect`: where something is, as data.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qvl::error::{Error, Result};
use qvl::grammar::{Grammar, Matcher};
use qvl::grounding::{self, Frame, GRAMMAR, GRAMMAR_AFTER_BOX, Region};
use qvl::image::{self, FileFormat, Picture, encode};
use qvl::session::TextFile;
use qvl::text::ChatFormat;
use serde_json::json;

use super::annotate::Annotation;
use super::answers::{conclude, regions, stops};
use super::args::DetectArgs;
use super::asked::Asked;
use super::once::{self, LastPicture, Query};
use super::{output, pipeline, print, print_error, print_json};

/// Runs it.
pub fn run(args: &DetectArgs, quiet: bool) -> Result<()> {
    let start = Instant::now();
    let annotation = args.output.as_deref().map(Annotation::new).transpose()?;
    let sources = image::sources(&args.images.image)?;
    let [source] = sources.as_slice() else {
        return Err(Error::usage(format!("detect looks at one picture (-i), found {}", sources.len())));
    };
    let name = source.to_string();
    if args.phrase.trim().is_empty() {
        return Err(Error::usage("what is to be found? the phrase is empty"));
    }
    if let Some(dir) = &args.crop {
        fs::create_dir_all(dir).map_err(|e| Error::other("cannot make the directory").because(e).at(dir))?;
    }
    let text = pipeline::open_text(&args.model, quiet)?;
    let question = Question::new(&text, args)?;
    let asked = Asked {
        question: &question.prompt,
        n_pictures: sources.len(),
        regions: &[],
        format: text.hparams().chat_format,
        system: args.generation.system.as_deref(),
        past: None,
    };
    let (prompt, sources) = asked.prompt(&text, sources)?;
    let n_predict = args.generation.predict.unwrap_or(text.hparams().max_new_tokens);
    let stops = stops(&text, &args.generation, n_predict, false);
    let vocabulary = Arc::new(text.tokenizer().vocabulary(&stops.stop_ids));
    let matcher = Matcher::new(Arc::new(Grammar::parse(question.grammar)?), vocabulary)?;
    let mut generation = args.generation.clone();
    // The likeliest place, not one drawn by lot; --temp asks for that.
    generation.temp = generation.temp.or(Some(0.0));
    generation.repeat_penalty = generation.repeat_penalty.or(Some(1.0));
    let query = Query {
        model: &args.model,
        images: &args.images,
        context: &args.context,
        cache: &args.cache,
        prompt_cache: &args.prompt_cache,
        draft: args.draft.draft,
        generation: &generation,
        quiet,
        start,
        past: None,
    };
    let keep = if annotation.is_some() || args.crop.is_some() { LastPicture::Keep } else { LastPicture::Drop };
    let pictures = once::pictures(&query, &text, (&prompt, &sources), n_predict)?;
    annotation.as_ref().map_or(Ok(()), |a| a.check(&sources, &pictures))?;
    let mut outcome = once::answer(&query, &text, (&prompt, pictures), (stops, Some(matcher)), keep, |_| Ok(()))?;

    let said = format!("{}{}", question.begun, outcome.answer.text.trim());
    let found = grounding::regions(&said);
    let (width, height) = outcome.last_size.unwrap_or_default();
    let frame = Frame { path: &name, width, height };
    show(args, &frame, &found, &said, &outcome)?;
    if found.0.is_empty() && !quiet && !args.json {
        print_error(&format!("not found; the model says: {said}\n"));
    }
    if let Some(picture) = outcome.last.take() {
        if let Some(dir) = &args.crop {
            write_crops(dir, &picture, &found.0, &args.phrase)?;
        }
        if let Some(annotation) = annotation {
            annotation.write(picture, &found, quiet)?;
        }
    }
    conclude(&outcome.answer, n_predict, quiet)
}

/// What the model is asked.
struct Question {
    prompt: String,
    /// The part of the answer that the prompt holds already.
    begun: String,
    grammar: &'static str,
}

impl Question {
    /// The chat model is asked in words, and may say that there is none. The base model was trained to complete
    /// `<ref>phrase</ref><box>`, and always names a place. Errors (kind usage): other words for a base model, which knows none.
    fn new(text: &TextFile, args: &DetectArgs) -> Result<Self> {
        let phrase = args.phrase.trim();
        if text.hparams().chat_format == ChatFormat::Raw {
            if args.prompt.is_some() {
                let what_to_do = "leave --prompt out, or use qvl ask";
                return Err(Error::usage(format!("a base model completes <ref>PHRASE</ref><box>; {what_to_do}")));
            }
            let begun = format!("<ref>{phrase}</ref><box>");
            return Ok(Question { prompt: begun.clone(), begun, grammar: GRAMMAR_AFTER_BOX });
        }
        let is_chinese = phrase.chars().any(|c| ('\u{3400}'..='\u{9fff}').contains(&c));
        let template =
            args.prompt.as_deref().unwrap_or(if is_chinese { "框出图中{}的位置" } else { "Find {}." });
        let prompt = template.replace("{}", phrase);
        Ok(Question { prompt, begun: String::new(), grammar: GRAMMAR })
    }
}

/// Prints the regions as the flags say.
fn show(
    args: &DetectArgs,
    frame: &Frame<'_>,
    (found, n_malformed): &(Vec<Region>, usize),
    said: &str,
    outcome: &once::Outcome,
) -> Result<()> {
    if args.coco {
        return print_json(&grounding::coco(frame, found, &args.phrase));
    }
    if args.csv {
        return print(&grounding::csv(frame, found, &args.phrase));
    }
    if args.json {
        return print_json(&json!({
            "image": {"path": frame.path, "width": frame.width, "height": frame.height},
            "regions": regions(found, outcome.last_size),
            "malformed_regions": n_malformed,
            "text": said,
            "usage": outcome.usage(),
            "timings": outcome.timings(),
        }));
    }
    for region in found {
        // Four numbers of a box, eight of a quad.
        let (width, height) = (frame.width, frame.height);
        let quad = region.quad_pixels(width, height).map(|corners| corners.as_flattened().to_vec());
        let numbers = quad.unwrap_or_else(|| region.box_pixels(width, height).to_vec());
        let numbers = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        print(&format!("{}\t{numbers}\n", region.label.as_deref().unwrap_or(&args.phrase)))?;
    }
    Ok(())
}

/// Writes what is inside each region as `01-label.png`, `02-label.png`, ..
fn write_crops(dir: &Path, picture: &Picture, found: &[Region], phrase: &str) -> Result<()> {
    for (k, region) in found.iter().enumerate() {
        let label = region.label.as_deref().unwrap_or(phrase);
        // A label comes from the model: nothing of it may mean something in a path.
        let safe: String = label.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).take(40).collect();
        let path = dir.join(format!("{:02}-{safe}.png", k + 1));
        let failed = |e: std::io::Error| Error::other("cannot write").because(e).at(&path);
        let mut out = BufWriter::new(output::temporary(&path)?);
        encode(&grounding::crop(picture, region)?, FileFormat::of(&path)?, &mut out).map_err(|e| e.at(&path))?;
        out.flush().map_err(failed)?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.persist(&path).map_err(failed)?;
    }
    Ok(())
}
