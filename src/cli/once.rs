//! One question, one answer: the way that `ask` and `detect` share, from files to text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl::error::Result;
use qvl::grammar::Matcher;
use qvl::image::{ImageSource, Picture};
use qvl::llama::Sampler;
use qvl::prompt::Prompt;
use qvl::session::{
    Answer, Draft, GenerateSettings, Generation, Seen, Session, Snapshot, TextFile, generate, too_long,
};
use serde_json::{Value, json};

use super::answers::{ms, sampling};
use super::args::{CacheArgs, ContextArgs, GenerationArgs, ImageArgs, ModelArgs, PromptCacheArgs};
use super::prompt_cache::{self, Beginning};
use super::room::Fitted;
use super::see::{TextMemory, Viewer};
use super::{STOP, pipeline, print_error, print_verbose, room};

/// The flags that it depends on.
pub struct Query<'a> {
    pub model: &'a ModelArgs,
    pub images: &'a ImageArgs,
    pub context: &'a ContextArgs,
    pub cache: &'a CacheArgs,
    pub prompt_cache: &'a PromptCacheArgs,
    pub draft: Option<Draft>,
    pub generation: &'a GenerationArgs,
    pub quiet: bool,
    /// When the program began.
    pub start: Instant,
    /// What came before, if the conversation goes on.
    pub past: Option<Past<'a>>,
}

/// A conversation until now.
#[derive(Clone, Copy)]
pub struct Past<'a> {
    /// What was seen of its pictures, which come before those of the question.
    pub images: &'a [Arc<Seen>],
    /// What was read of it.
    pub snapshot: &'a Snapshot<'a>,
}

/// What a conversation needs to go on later.
pub struct Kept {
    /// What was seen of the question's pictures.
    pub seen: Vec<Arc<Seen>>,
    /// What was read of all, the answer included.
    pub snapshot: Snapshot<'static>,
}

/// Whether the pixels of the last picture are wanted afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LastPicture {
    /// To be drawn on or cut up, as it was seen: the file may change meanwhile, or be a pipe.
    Keep,
    /// Its size is enough.
    Drop,
}

/// An answer with what it took.
pub struct Outcome {
    pub answer: Answer,
    /// Pixels of the last picture, if they were to be kept.
    pub last: Option<Picture>,
    /// Width and height of the last picture, to which the model's coordinates refer.
    pub last_size: Option<(u32, u32)>,
    /// For a conversation that goes on.
    pub kept: Option<Kept>,
    /// Positions of the prompt that needed not be read again.
    n_reused: usize,
    is_session: bool,
    n_prompt: usize,
    n_image: usize,
    n_cached: usize,
    load: Duration,
    encode: Duration,
    prefill: Duration,
    decode: Duration,
    first_token: Option<Duration>,
}

/// Reads the pictures of a prompt. Errors: as [`settings`], which are found before any picture is decoded; one cannot be
/// read.
pub fn pictures(
    query: &Query<'_>,
    text: &TextFile,
    (prompt, sources): (&Prompt, &[ImageSource]),
    n_predict: usize,
) -> Result<Vec<Picture>> {
    // What it has to tell is told before the answer.
    let query = &Query { quiet: true, ..*query };
    settings(query, text, prompt, n_predict)?;
    pipeline::load_pictures(sources, query.images)
}

/// How the session is set. Errors: the prompt is longer than the context, flags that do not go together, kind memory.
fn settings(query: &Query<'_>, text: &TextFile, prompt: &Prompt, n_predict: usize) -> Result<Fitted> {
    let n_prompt = prompt.n_positions(text.hparams().n_queries);
    // What was read may be longer than the prompt, where an answer was taken back or old turns are left out.
    let n_past = query.past.map_or(0, |past| past.snapshot.read.len());
    let sizes = (n_prompt.max(n_past), n_predict);
    let draft = pipeline::draft(text, query.context, query.draft)?;
    let fitted = pipeline::fitted_session(text, query.context, sizes, n_prompt, draft, query.quiet)?;
    if n_prompt > fitted.settings.n_ctx {
        return Err(too_long(n_prompt, fitted.settings.n_ctx));
    }
    Ok(fitted)
}

/// Answers. What can be wrong with the prompt is found before a weight is touched. Pieces of the answer go to `emit` as they
/// come.
pub fn answer(
    query: &Query<'_>,
    text: &TextFile,
    (prompt, mut pictures): (&Prompt, Vec<Picture>),
    (stops, matcher): (GenerateSettings, Option<Matcher>),
    last: LastPicture,
    mut emit: impl FnMut(&str) -> Result<()>,
) -> Result<Outcome> {
    let h = text.hparams();
    let n_prompt = prompt.n_positions(h.n_queries);
    let fitted = settings(query, text, prompt, stops.n_predict)?;
    let mut load = query.start.elapsed();

    let encode_start = Instant::now();
    let text_bytes = room::fitted_phase(text, query.context, &fitted).bytes();
    // The mmproj is unmapped before this ends, and the text weights are touched only later.
    let later = TextMemory::Later(text_bytes);
    let mut viewer = Viewer::new(query.model, query.context, query.cache, later, query.quiet);
    let sight = viewer.see(text, &pictures)?;
    let seen: Vec<_> = sight.embeddings.into_iter().map(Seen::new).collect();
    let images: Vec<Arc<Seen>> = [query.past.map_or(&[][..], |past| past.images), &seen].concat();
    let encode = if pictures.is_empty() { Duration::ZERO } else { encode_start.elapsed() };
    let last_size = pictures.last().map(|p| (p.width(), p.height()));
    let last = if last == LastPicture::Keep { pictures.pop() } else { None };
    drop(pictures);

    let load_start = Instant::now();
    let store = prompt_cache::store(query, viewer);
    let beginning = Beginning::new(query, text, (&fitted.settings, text_bytes), (prompt, &images), store)?;
    let model = pipeline::load_model(text, query.context, &fitted.settings, fitted.n_kept, query.quiet)?;
    let mut session = Session::new(text, &model, &fitted.settings, &STOP)?;
    load += load_start.elapsed();

    let prefill_start = Instant::now();
    let spinner = pipeline::spinner(query.quiet, format!("reading {n_prompt} tokens"));
    if let Some(past) = query.past {
        resume(&mut session, past.snapshot, query.quiet);
    }
    let n_reused = match &beginning {
        Some(beginning) => beginning.prefill(&mut session, prompt, &images)?,
        None => session.prefill(prompt, &images)?,
    };
    drop(spinner);
    let prefill = prefill_start.elapsed();

    let mut sampler = Sampler::new(sampling(query.generation, h), text.tokenizer().n_used());
    for id in prompt.ids_with_slots(text.tokenizer().special_ids().img_pad, h.n_queries) {
        sampler.accept(id.to_u32());
    }
    if let Some(matcher) = matcher {
        sampler.constrain(matcher);
    }
    let stops = GenerateSettings { draft: pipeline::draft(text, query.context, query.draft)?, ..stops };
    let decode_start = Instant::now();
    let mut first_token = None;
    let answer = generate(&mut session, Generation::new(text.tokenizer(), sampler, stops), &STOP, |piece| {
        first_token.get_or_insert_with(|| query.start.elapsed());
        emit(piece)
    })?;
    let decode = decode_start.elapsed();
    tell_drafts(&answer);
    let n_old = prompt.n_images().saturating_sub(seen.len());
    let (n_image, n_cached) = (prompt.n_images() * h.n_queries, (n_old + sight.n_cached) * h.n_queries);
    let kept = match query.past {
        Some(_) => Some(Kept { snapshot: session.snapshot(&images)?, seen }),
        None => None,
    };
    if let Some(beginning) = beginning {
        beginning.keep(&mut session, n_reused);
    }
    Ok(Outcome {
        answer,
        last,
        last_size,
        n_reused,
        is_session: kept.is_some(),
        kept,
        n_prompt,
        n_image,
        n_cached,
        load,
        encode,
        prefill,
        decode,
        first_token,
    })
}

/// Says how good guesses were (`-v`).
pub fn tell_drafts(answer: &Answer) {
    if answer.n_drafted > 0 {
        print_verbose(&format!("note: {} of {} guessed tokens were right\n", answer.n_accepted, answer.n_drafted));
    }
}

/// Goes on from a snapshot if that can be; else all is read again, which takes longer and changes nothing.
pub fn resume(session: &mut Session<'_>, snapshot: &Snapshot<'_>, quiet: bool) {
    if let Err(reason) = session.resume(snapshot)
        && !quiet
    {
        print_error(&format!("note: the session is read again from its beginning: {reason}\n"));
    }
}

impl Outcome {
    /// Tokens of prompt, pictures and answer, as JSON says it.
    pub fn usage(&self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.n_prompt,
            "prompt_tokens_details": {"cached_tokens": self.n_reused},
            "image_tokens": self.n_image,
            "cached_image_tokens": self.n_cached,
            "completion_tokens": self.answer.n_tokens,
        });
        if self.is_session {
            usage["reused_tokens"] = self.n_reused.into();
        }
        usage
    }

    /// Where the time went, in milliseconds.
    pub fn timings(&self) -> Value {
        let per_second = self.answer.n_tokens as f64 / self.decode.as_secs_f64().max(1e-9);
        json!({
            "load_ms": ms(self.load),
            "encode_ms": ms(self.encode),
            "prefill_ms": ms(self.prefill),
            "decode_ms": ms(self.decode),
            "ttft_ms": self.first_token.map(ms),
            "decode_tokens_per_second": (per_second * 1e3).round() / 1e3,
            "draft_n": self.answer.n_drafted,
            "draft_n_accepted": self.answer.n_accepted,
        })
    }
}
