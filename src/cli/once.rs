//! One question, one answer: the way that `ask` and `detect` share, from files to text.

use std::time::{Duration, Instant};

use qvl::error::Result;
use qvl::grammar::Matcher;
use qvl::image::{ImageSource, Picture};
use qvl::llama::Sampler;
use qvl::prompt::Prompt;
use qvl::session::{
    Answer, GenerateSettings, Generation, Seen, Session, SessionSettings, TextFile, generate, too_long,
};
use serde_json::{Value, json};

use super::answers::{ms, sampling};
use super::args::{CacheArgs, ContextArgs, GenerationArgs, ImageArgs, ModelArgs};
use super::see::Viewer;
use super::{STOP, pipeline};

/// The flags that it depends on.
pub struct Query<'a> {
    pub model: &'a ModelArgs,
    pub images: &'a ImageArgs,
    pub context: &'a ContextArgs,
    pub cache: &'a CacheArgs,
    pub generation: &'a GenerationArgs,
    pub quiet: bool,
    /// When the program began.
    pub start: Instant,
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
    settings(query, text, prompt, n_predict)?;
    pipeline::load_pictures(sources, query.images)
}

/// How the session is set. Errors: the prompt is longer than the context, flags that do not go together, kind memory.
fn settings(query: &Query<'_>, text: &TextFile, prompt: &Prompt, n_predict: usize) -> Result<SessionSettings> {
    let h = text.hparams();
    let n_prompt = prompt.n_positions(h.n_queries);
    let settings = pipeline::session_settings(h, query.context, n_prompt, n_predict)?;
    if n_prompt > settings.n_ctx {
        return Err(too_long(n_prompt, settings.n_ctx));
    }
    Ok(settings)
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
    let settings = settings(query, text, prompt, stops.n_predict)?;
    let mut load = query.start.elapsed();

    let encode_start = Instant::now();
    // The mmproj is unmapped before this ends, and the text weights are touched only later.
    let sight = Viewer::new(query.model, query.context, query.cache, query.quiet).see(text, &pictures)?;
    let images: Vec<_> = sight.embeddings.into_iter().map(Seen::new).collect();
    let encode = if pictures.is_empty() { Duration::ZERO } else { encode_start.elapsed() };
    let last_size = pictures.last().map(|p| (p.width(), p.height()));
    let last = if last == LastPicture::Keep { pictures.pop() } else { None };
    drop(pictures);

    let load_start = Instant::now();
    let model = pipeline::load_model(text, query.context, query.quiet)?;
    let mut session = Session::new(text, &model, &settings, &STOP)?;
    load += load_start.elapsed();

    let prefill_start = Instant::now();
    let spinner = pipeline::spinner(query.quiet, format!("reading {n_prompt} tokens"));
    session.prefill(prompt, &images)?;
    drop((spinner, images));
    let prefill = prefill_start.elapsed();

    let mut sampler = Sampler::new(sampling(query.generation, h), text.tokenizer().n_used());
    for id in prompt.ids_with_slots(text.tokenizer().special_ids().img_pad, h.n_queries) {
        sampler.accept(id.to_u32());
    }
    if let Some(matcher) = matcher {
        sampler.constrain(matcher);
    }
    let decode_start = Instant::now();
    let mut first_token = None;
    let answer = generate(&mut session, Generation::new(text.tokenizer(), sampler, stops), &STOP, |piece| {
        first_token.get_or_insert_with(|| query.start.elapsed());
        emit(piece)
    })?;
    let decode = decode_start.elapsed();
    let (n_image, n_cached) = (prompt.n_images() * h.n_queries, sight.n_cached * h.n_queries);
    Ok(Outcome { answer, last, last_size, n_prompt, n_image, n_cached, load, encode, prefill, decode, first_token })
}

impl Outcome {
    /// Tokens of prompt, pictures and answer, as JSON says it.
    pub fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.n_prompt,
            "image_tokens": self.n_image,
            "cached_image_tokens": self.n_cached,
            "completion_tokens": self.answer.n_tokens,
        })
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
        })
    }
}
