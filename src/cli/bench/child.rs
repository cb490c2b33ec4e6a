//! The process that measures one case and tells its parent, a JSON object a line.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qvl::error::{Error, ErrorKind, Result};
use qvl::image::{self, ImageSource};
use qvl::llama::{Sampler, SamplerSettings};
use qvl::prompt::{Chunk, Prompt};
use qvl::session::{Draft, Drafter, Finish, GenerateSettings, Generation, Session, TextFile, generate};
use qvl::tokenizer::{N_SPECIAL, TokenId};
use serde::{Deserialize, Serialize};

use super::super::answers::ms;
use super::super::args::{BenchArgs, CacheArgs, CacheLimitArgs, GenerationArgs, ModelArgs, PromptCacheArgs};
use super::super::once::{self, LastPicture, Query};
use super::super::{STOP, pipeline, print_json};
use super::plan::{self, Case};
use super::report::Unit;
use super::watch::{Observed, Watch};

/// What a measuring process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// One run is done.
    Step,
    /// All are; the last message.
    Done(Measured),
    /// It went wrong; the last message.
    Failed {
        /// The line for the person at the prompt.
        message: String,
        /// The exit code that it stands for.
        code: u8,
    },
}

/// What was measured in one process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// In order; several of one name are several runs.
    pub readings: Vec<Reading>,
    /// Cores that other programs took, on average.
    pub cores_of_others: Option<f64>,
    /// For how long.
    pub seconds: f64,
}

/// A number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reading {
    /// As in [`Row`](super::report::Row).
    pub measure: String,
    /// Of the number.
    pub unit: Unit,
    /// The number.
    pub value: f64,
}

/// Measures the case of this name and prints [`Message`]s. Errors: stdout is gone; everything else is a message.
pub fn run(args: &BenchArgs, name: &str) -> Result<()> {
    end_with_parent();
    let message = match measure(args, name) {
        Ok(measured) => Message::Done(measured),
        Err(e) => Message::Failed { message: e.to_string(), code: e.kind().exit_code() },
    };
    say(&message)
}

fn say(message: &Message) -> Result<()> {
    print_json(&serde_json::to_value(message).map_err(|e| Error::other("cannot write a measurement").because(e))?)
}

/// Ends what is computed when the parent does, whatever ends it: it holds the other end of stdin.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::Relaxed);
    });
}

fn measure(args: &BenchArgs, name: &str) -> Result<Measured> {
    let watch = Watch::start();
    let start = Instant::now();
    let model = plan::model(args)?;
    let text = pipeline::open_text(&model, true)?;
    let case = plan::cases(args, text.hparams())?.into_iter().find(|case| case.name() == name);
    let case = case.ok_or_else(|| Error::usage(format!("there is nothing to measure named {name:?}")))?;
    let mut log = Log { watch, readings: Vec::new() };
    let seeing = match case {
        Case::Question { n_predict } => Some(question(args, &model, &text, n_predict, start, &mut log)?),
        Case::Prefill { .. } | Case::Decode { .. } | Case::Copy { .. } => {
            on_text(args, &text, case, &mut log)?;
            None
        }
    };
    let Log { watch, mut readings } = log;
    let observed = watch.end();
    let mut bytes = |measure: &str, value: Option<u64>| {
        readings.extend(value.map(|n| Reading { measure: measure.to_owned(), unit: Unit::Bytes, value: n as f64 }));
    };
    if let Some(memory) = observed.memory {
        bytes("peak", Some(memory.peak));
        bytes("anonymous", Some(memory.anonymous));
        bytes("files", Some(memory.files));
        bytes("shared", Some(memory.shared));
        bytes("swapped", Some(memory.swapped));
    }
    if let Some((from, to)) = seeing {
        bytes("peak_seeing", observed.peak_between(from, to));
        bytes("peak_answering", observed.peak_between(to, Instant::now()));
    }
    let Observed { cores_of_others, duration, .. } = observed;
    Ok(Measured { readings, cores_of_others, seconds: duration.as_secs_f64() })
}

/// Numbers as they come.
struct Log {
    watch: Watch,
    readings: Vec<Reading>,
}

impl Log {
    fn push(&mut self, measure: &str, unit: Unit, value: f64) {
        self.readings.push(Reading { measure: measure.to_owned(), unit, value });
    }

    /// A run of so many tokens: its speed, and its energy if that is told.
    fn tokens(&mut self, n: usize, time: Duration, joules: Option<f64>) {
        self.push("speed", Unit::TokensPerSecond, n as f64 / time.as_secs_f64().max(1e-9));
        if let Some(joules) = joules {
            self.push("energy", Unit::JoulesPerToken, joules / n as f64);
        }
    }
}

/// A question about pictures. Returns when it began and ended to look at them.
fn question(
    args: &BenchArgs,
    model: &ModelArgs,
    text: &TextFile,
    n_predict: usize,
    start: Instant,
    log: &mut Log,
) -> Result<(Instant, Instant)> {
    let sources = match args.picture.is_empty() {
        true => image::sources(&args.images.image)?,
        false => args.picture.iter().map(|path: &PathBuf| ImageSource::Path(path.clone())).collect(),
    };
    let (_, prompt, sources) = plan::question(text, sources)?;
    let generation = GenerationArgs {
        predict: Some(n_predict),
        temp: Some(0.0),
        top_k: None,
        top_p: None,
        min_p: 0.0,
        repeat_penalty: Some(1.0),
        seed: Some(0),
        stop: Vec::new(),
        system: None,
    };
    let cache = CacheArgs { no_cache: true, limit: CacheLimitArgs { cache_size: 0 } };
    let query = Query {
        model,
        images: &args.images,
        context: &args.context,
        cache: &cache,
        prompt_cache: &PromptCacheArgs { cache_prompt: false },
        draft: Some(Draft::Off),
        generation: &generation,
        quiet: true,
        start,
        past: None,
    };
    let pictures = once::pictures(&query, text, (&prompt, &sources), n_predict)?;
    let seeing = Instant::now();
    log.watch.look();
    let stops = (endless(n_predict), None);
    let outcome = once::answer(&query, text, (&prompt, pictures), stops, LastPicture::Drop, |_| Ok(()))?;
    let whole = start.elapsed();
    if outcome.answer.finish == Finish::Interrupted {
        return Err(interrupted());
    }
    let timings = outcome.timings();
    let time = |name: &str| timings[name].as_f64();
    for (measure, value) in [
        ("load", time("load_ms")),
        ("encode", time("encode_ms")),
        ("prefill", time("prefill_ms")),
        ("first_token", time("ttft_ms")),
        ("answer", Some(ms(whole))),
    ] {
        let value = value.ok_or_else(|| Error::other(format!("no time of {measure} was taken")))?;
        log.push(measure, Unit::Milliseconds, value);
    }
    if let Some(joules) = log.watch.joules() {
        log.push("energy", Unit::Joules, joules);
    }
    say(&Message::Step)?;
    let encode = Duration::from_secs_f64(time("encode_ms").unwrap_or_default().max(0.0) / 1e3);
    Ok((seeing, seeing + encode))
}

/// Reading, or writing, tokens.
fn on_text(args: &BenchArgs, text: &TextFile, case: Case, log: &mut Log) -> Result<()> {
    /// Tokens read before a prompt is measured: pages are there then, and threads awake.
    const N_WARM: usize = 64;
    let (n_read, n_written) = case.positions();
    let settings = pipeline::session_settings(text, &args.context, (n_read, n_written), n_read)?;
    let settings = if matches!(case, Case::Copy { .. }) { settings.with_draft(Draft::Auto) } else { settings };
    let model = pipeline::load_model(text, &args.context, &settings, None, true)?;
    let mut session = Session::new(text, &model, &settings, &STOP)?;
    match case {
        Case::Question { .. } => {}
        Case::Prefill { n_prompt } => {
            session.prefill(&tokens(text, n_prompt.min(N_WARM), 0), &[])?;
            say(&Message::Step)?;
            for run in 1..=args.runs {
                let prompt = tokens(text, n_prompt, run.into());
                let (start, before) = (Instant::now(), log.watch.joules());
                session.prefill(&prompt, &[])?;
                // Asking for them waits for them, wherever they are computed.
                session.logits()?;
                log.tokens(n_prompt, start.elapsed(), used(log.watch.joules(), before));
                say(&Message::Step)?;
            }
        }
        Case::Decode { n_predict, .. } => {
            let prompt = tokens(text, n_read, 0);
            session.prefill(&prompt, &[])?;
            write(&mut session, text, 1)?;
            say(&Message::Step)?;
            for _ in 0..args.runs {
                // What was read is kept; only the prompt's last token is read again.
                session.prefill(&prompt, &[])?;
                let (start, before) = (Instant::now(), log.watch.joules());
                write(&mut session, text, n_predict)?;
                log.tokens(n_predict, start.elapsed(), used(log.watch.joules(), before));
                say(&Message::Step)?;
            }
        }
        Case::Copy { n_predict } => {
            let prompt = tokens(text, n_predict, 0);
            session.prefill(&prompt, &[])?;
            copy(&mut session, text, &prompt)?;
            say(&Message::Step)?;
            for _ in 0..args.runs {
                session.prefill(&prompt, &[])?;
                let (start, before) = (Instant::now(), log.watch.joules());
                copy(&mut session, text, &prompt)?;
                log.tokens(n_predict, start.elapsed(), used(log.watch.joules(), before));
                say(&Message::Step)?;
            }
        }
    }
    Ok(())
}

/// Writes the tokens of a prompt behind it, whatever the model says, with all that an answer takes.
fn copy(session: &mut Session<'_>, text: &TextFile, prompt: &Prompt) -> Result<()> {
    let (mut drafter, mut sampler) = (Drafter::new(Draft::Auto), greedy(text));
    let ids = prompt.chunks.iter().flat_map(|chunk| if let Chunk::Tokens(ids) = chunk { &ids[..] } else { &[] });
    for (k, id) in ids.enumerate() {
        sampler.sample(&session.logits()?[..text.tokenizer().n_used()])?;
        drafter.push(session, *id, prompt.n_positions(0) - k - 1, &[])?;
    }
    Ok(())
}

fn used(now: Option<f64>, before: Option<f64>) -> Option<f64> {
    now.zip(before).map(|(now, before)| now - before)
}

/// Writes `n` tokens greedily, whatever they are, with everything that an answer takes: choosing them, turning them into
/// text. One pass over the weights each.
fn write(session: &mut Session<'_>, text: &TextFile, n: usize) -> Result<()> {
    // The last token of an answer is not read any more; here it is one that is not measured.
    let generation = Generation::new(text.tokenizer(), greedy(text), endless(n + 1));
    let answer = generate(session, generation, &STOP, |_| Ok(()))?;
    match answer.finish {
        Finish::Interrupted => Err(interrupted()),
        _ if answer.n_tokens <= n => Err(Error::other(format!("{} of {} tokens were written", answer.n_tokens, n + 1))),
        _ => Ok(()),
    }
}

fn greedy(text: &TextFile) -> Sampler {
    let greedy = SamplerSettings { temp: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 };
    Sampler::new(greedy, text.tokenizer().n_used())
}

/// An answer that only its length ends.
fn endless(n_predict: usize) -> GenerateSettings {
    GenerateSettings { n_predict, stop_ids: Vec::new(), stop_texts: Vec::new(), logprobs: None, draft: Draft::Off }
}

/// A prompt of ordinary tokens; its first one is another with another seed, so that nothing of it is known.
fn tokens(text: &TextFile, n: usize, seed: u64) -> Prompt {
    let n_ids = (text.tokenizer().n_used() - N_SPECIAL) as u64;
    let id = |i: u64| if i == 0 { seed % n_ids } else { plan::noise(seed << 32 | i) % n_ids };
    let ids = (0..n as u64).map(|i| TokenId(id(i) as u32)).collect();
    Prompt { chunks: vec![Chunk::Tokens(ids)] }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}
