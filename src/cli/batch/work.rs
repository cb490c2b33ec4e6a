//! Items on their way: pictures are looked at some items ahead, answers are written several at a time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use qvl::error::{Error, Result};
use qvl::grammar::Matcher;
use qvl::grounding;
use qvl::llama::{Model, Sampler};
use qvl::session::{Answer, Choice, Finish, Generation, Next, Sequences, TextFile, too_long};
use qvl::text::ChatFormat;
use serde_json::{Value, json};

use super::super::answers::{finish_reason, ms, regions, sampling, stops};
use super::super::args::{BatchArgs, ImageArgs};
use super::super::pipeline;
use super::super::see::{TextMemory, Viewer};
use super::super::{STOP, room, structure};
use super::input::Items;
use super::wave::{self, Draft, Ready, WAVE};
use super::{Report, go_on};

/// Generated tokens that the cache has room for, an answer; longer ones may have to make room for each other.
const USUAL_ANSWER: usize = 128;

/// What stays the same for all items.
pub struct Worker<'a> {
    args: &'a BatchArgs,
    text: &'a TextFile,
    raw: bool,
    orient: ImageArgs,
    /// What every answer follows, at its beginning.
    matcher: Option<Matcher>,
    viewer: Viewer<'a>,
}

/// An item that is being answered.
struct Job<'t> {
    ready: Ready,
    generation: Generation<'t>,
    start: Instant,
    first_token: Option<Duration>,
}

impl<'a> Worker<'a> {
    /// Proves what can be proven before the model is loaded.
    pub fn new(args: &'a BatchArgs, text: &'a TextFile, quiet: bool) -> Result<Self> {
        let raw = args.raw || text.hparams().chat_format == ChatFormat::Raw;
        if raw && args.generation.system.is_some() {
            return Err(Error::usage("a system message has no place in a raw prompt"));
        }
        let orient = ImageArgs { image: Vec::new(), no_auto_orient: args.no_auto_orient };
        let stop_ids = stops(text, &args.generation, 0, false).stop_ids;
        let grammar = structure::grammar(&args.structure)?;
        let matcher = grammar.map(|g| structure::matcher(g, text.tokenizer(), &stop_ids)).transpose()?;
        let viewer = Viewer::new(
            &args.model,
            &args.context,
            &args.cache,
            TextMemory::Now(text.n_bytes() + text.adapter_bytes()),
            quiet,
        );
        Ok(Worker { args, text, raw, orient, matcher, viewer })
    }

    /// Answers all items. Errors end the run: Ctrl-C, an output that cannot be written, a model that cannot be used. What is
    /// wrong with one item goes to the report.
    pub fn run(&mut self, model: &Model, items: &mut Items, report: &mut Report) -> Result<()> {
        let mut waiting: VecDeque<Ready> = VecDeque::new();
        let mut many: Option<Sequences<'_>> = None;
        let mut jobs: HashMap<usize, Job<'_>> = HashMap::new();
        loop {
            if waiting.is_empty() {
                waiting = self.wave(items, report)?;
            }
            if waiting.is_empty() && jobs.is_empty() {
                return Ok(());
            }
            let n_needed = waiting.iter().map(|ready| ready.n_prompt + ready.n_predict).max().unwrap_or(0);
            // A larger cache is made only where nothing would be lost with the smaller one.
            if jobs.is_empty() && many.as_ref().is_none_or(|many| many.n_ctx() < n_needed) {
                drop(many.take());
                many = Some(self.sequences(model, &waiting)?);
            }
            let Some(many) = &mut many else { continue };
            self.begin(many, &mut waiting, &mut jobs, report)?;
            let mut ended = Vec::new();
            many.step(|slot, logits| {
                let Some(job) = jobs.get_mut(&slot) else { return Ok(Next::Done) };
                job.first_token.get_or_insert_with(|| job.start.elapsed());
                match job.generation.next(logits, |_| Ok(()))? {
                    Choice::Token(id) => Ok(Next::Token(id)),
                    Choice::End(finish) => {
                        ended.push((slot, finish));
                        Ok(Next::Done)
                    }
                }
            })?;
            for (slot, finish) in ended {
                if let Some(job) = jobs.remove(&slot) {
                    report.done(&self.answer(job, finish)?)?;
                }
            }
            go_on()?;
        }
    }

    /// Fills free places with waiting items.
    fn begin(
        &self,
        many: &mut Sequences<'_>,
        waiting: &mut VecDeque<Ready>,
        jobs: &mut HashMap<usize, Job<'a>>,
        report: &mut Report,
    ) -> Result<()> {
        while let Some(ready) = waiting.pop_front() {
            let fits = ready.n_prompt + ready.n_predict <= many.n_ctx();
            if !fits && self.args.context.ctx_size.is_some() && ready.n_prompt >= many.n_ctx() {
                report.failed(&ready.id, &too_long(ready.n_prompt, many.n_ctx()))?;
                continue;
            }
            let slot = many.free(ready.n_prompt).filter(|_| fits || jobs.is_empty());
            let Some(slot) = slot else {
                waiting.push_front(ready);
                return Ok(());
            };
            many.begin(slot, &ready.prompt, &ready.images)?;
            let (h, tokenizer) = (self.text.hparams(), self.text.tokenizer());
            let mut sampler = Sampler::new(sampling(&ready.generation, h), tokenizer.n_used());
            for id in ready.prompt.ids_with_slots(tokenizer.special_ids().img_pad, h.n_queries) {
                sampler.accept(id.to_u32());
            }
            if let Some(matcher) = &self.matcher {
                sampler.constrain(matcher.clone());
            }
            let stops_early = self.raw && self.matcher.is_none();
            let stops = stops(self.text, &ready.generation, ready.n_predict, stops_early);
            let generation = Generation::new(tokenizer, sampler, stops);
            jobs.insert(slot, Job { ready, generation, start: Instant::now(), first_token: None });
        }
        Ok(())
    }

    /// A cache for as many answers at a time as were asked for, and for the longest of these items.
    fn sequences<'m>(&self, model: &'m Model, waiting: &VecDeque<Ready>) -> Result<Sequences<'m>>
    where
        'a: 'm,
    {
        let n_slots = self.args.parallel.min(waiting.len().max(1));
        let longest = waiting.iter().max_by_key(|ready| ready.n_prompt + ready.n_predict);
        let (n_prompt, n_predict) = longest.map_or((1, 1), |ready| (ready.n_prompt, ready.n_predict));
        let usual = waiting.iter().map(|ready| ready.n_prompt + ready.n_predict.min(USUAL_ANSWER)).max().unwrap_or(1);
        let one = pipeline::session_settings(self.text, &self.args.context, (n_prompt, n_predict), N_BATCH)?;
        let mut settings = one;
        if self.args.context.ctx_size.is_none() {
            settings.n_ctx = one.n_ctx.max(usual.saturating_mul(n_slots));
            // Fewer answers at a time where there is not the memory for all.
            while settings.n_ctx > one.n_ctx && !room::fits(self.text, &self.args.context, &settings) {
                settings.n_ctx = one.n_ctx.max(settings.n_ctx / 2);
            }
        }
        Sequences::new(self.text, model, &settings, n_slots, &STOP)
    }

    /// The next items with their pictures looked at; none if there are no more.
    fn wave(&mut self, items: &mut Items, report: &mut Report) -> Result<VecDeque<Ready>> {
        loop {
            let drafts = self.drafts(items, report)?;
            if drafts.is_empty() {
                return Ok(VecDeque::new());
            }
            let wave = if drafts.iter().any(Draft::has_pictures) {
                let orient = &self.orient;
                self.viewer.look(self.text, |look| {
                    let (mut looked, mut wave) = (HashMap::new(), VecDeque::new());
                    for draft in drafts {
                        go_on()?;
                        let id = draft.id().clone();
                        let ready = draft.seen(|source| wave::see(look, orient, &mut looked, source));
                        wave.extend(wave::kept(&id, ready, report)?);
                    }
                    Ok(wave)
                })?
            } else {
                let ready = |draft: Draft<'a>| draft.seen(|_| Err(Error::other("a picture came from nowhere")));
                drafts.into_iter().map(ready).collect::<Result<_>>()?
            };
            if !wave.is_empty() {
                return Ok(wave);
            }
        }
    }

    /// The next items with their prompts.
    fn drafts(&self, items: &mut Items, report: &mut Report) -> Result<Vec<Draft<'a>>> {
        let mut drafts = Vec::new();
        while drafts.len() < WAVE {
            go_on()?;
            let Some((id, item)) = items.next()? else { break };
            if report.was_done(&id) {
                continue;
            }
            let limit = self.args.context.ctx_size.map(|n| n as usize);
            let draft = item.and_then(|item| Draft::new(self.text, item, &self.args.generation, self.raw, limit));
            drafts.extend(wave::kept(&id, draft, report)?);
        }
        Ok(drafts)
    }

    fn answer(&self, job: Job<'_>, finish: Finish) -> Result<Value> {
        let Job { ready, generation, start, first_token } = job;
        let Answer { text, n_tokens, finish, .. } = generation.finish(finish, |_| Ok(()))?;
        let text = if self.raw { text.as_str() } else { text.trim() };
        let (found, n_malformed) = grounding::regions(text);
        let mut json = json!({
            "id": ready.id,
            "text": text,
            "finish_reason": finish_reason(finish),
            "usage": {
                "prompt_tokens": ready.n_prompt,
                "image_tokens": ready.images.len() * self.text.hparams().n_queries,
                "completion_tokens": n_tokens,
            },
            "timings": {
                "encode_ms": ms(ready.encode),
                "ttft_ms": first_token.map(ms),
                "answer_ms": ms(start.elapsed()),
            },
            "regions": regions(&found, ready.size),
        });
        if n_malformed > 0 {
            json["malformed_regions"] = n_malformed.into();
        }
        Ok(json)
    }
}

/// Positions read together at most: a picture and its question. More would only delay answers that are being written.
pub const N_BATCH: usize = 512;
