//! A text model at work: a prompt of tokens and pictures goes in, logits come out, one position after the other.

mod adapter;
mod draft;
mod generate;
mod line;
mod logprobs;
mod many;
mod prefix;
mod text_file;

pub use draft::{Draft, Drafter};
pub use generate::{Answer, Choice, Finish, GenerateSettings, Generation, generate};
pub use line::{ImageId, Mark, Seen};
pub use logprobs::TokenLogprobs;
pub use many::{Next, Sequences};
pub use prefix::{Prefix, PrefixId};
pub use text_file::{ModelId, TextFile};

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::ggml::{OpCounts, WatchFn};
use crate::llama::{self, ContextParams, Decoded, Entry, FlashAttention, Model, Output};
use crate::prompt::Prompt;
use crate::quant::GgmlType;
use crate::text::{Rope, TextHparams, alpha};
use crate::tokenizer::TokenId;

use line::{Place, fitting_line, n_common};

/// Positions that pass over the weights together at most. A prompt of some pictures takes one pass; beyond, compute
/// buffers would grow and the weights' traffic no longer counts.
pub const MAX_UBATCH: usize = 2048;

/// Largest magnitude of a logit from which samplers are given a choice: far beyond any model's, and small enough to be
/// divided by the smallest temperature and penalty without becoming infinite.
const MAX_LOGIT: f32 = 1e30;

/// How a session computes.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Positions that the KV cache holds.
    pub n_ctx: usize,
    /// Positions read together at most.
    pub n_batch: usize,
    /// Threads.
    pub n_threads: usize,
    /// Element type of cached keys.
    pub type_k: GgmlType,
    /// Element type of cached values.
    pub type_v: GgmlType,
    /// Whether attention is fused.
    pub flash: FlashAttention,
    /// Most logit rows wanted at once: 1, or more for drafts and `trace`.
    pub n_outputs: usize,
    /// Who rotates the queries and keys of layers on devices.
    pub rope: Rope,
}

/// Rows as ggml's matrix products read them: a byte and a bit for each value of the widest.
fn products_bytes(n_rows: usize, widest: usize) -> usize {
    n_rows * widest * 9 / 8
}

impl SessionSettings {
    /// What the KV cache takes, in bytes. llama.cpp rounds the positions up to a multiple of 256.
    pub fn kv_bytes(&self, h: &TextHparams) -> u64 {
        let row_bytes = |ty: GgmlType| ty.row_bytes(h.n_embd as u64).unwrap_or(0);
        let n_cells = (self.n_ctx as u64).next_multiple_of(256) * h.n_layer as u64;
        n_cells * (row_bytes(self.type_k) + row_bytes(self.type_v))
    }

    /// Positions that are read in one pass, at most.
    fn n_rows(&self) -> usize {
        self.params(1).n_ubatch
    }

    /// What llama.cpp's graph takes beside weights and cache, in bytes: what is alive at once in a feed-forward block, or in
    /// attention where that computes all scores, and the buffers of its matrix products. Measured on llama.cpp's own report
    /// (a test compares).
    pub fn compute_bytes(&self, h: &TextHparams) -> u64 {
        let n_ctx = self.n_ctx.next_multiple_of(256);
        let (n_rows, width) = (self.n_rows(), h.n_embd);
        let n_ff = h.n_ff;
        let bytes_a_row = match self.flash {
            FlashAttention::On => 4 * (5 * width + 3 * n_ff) + 2 * n_ctx,
            FlashAttention::Off => {
                let scores = 4 * (7 * width + (h.n_head + 1) * n_ctx);
                scores.max(4 * (5 * width + 3 * n_ff) + 4 * n_ctx)
            }
        };
        // Logits stand in the graph where blocks were before, and are handed out from a buffer of their own.
        let row = 4 * h.n_vocab;
        let logits = row * self.params(1).n_outputs;
        let products = products_bytes(n_rows, n_ff.max(width));
        ((n_rows * bytes_a_row).max(logits) + row + logits + products) as u64
    }

    /// With room for what is read ahead.
    pub fn with_draft(self, draft: Draft) -> Self {
        let n_outputs = self.n_outputs.max(1 + draft.max_tokens());
        SessionSettings { n_outputs, n_batch: self.n_batch.max(n_outputs), ..self }
    }

    /// What llama.cpp is asked for, for `n_seqs` sequences.
    fn params(&self, n_seqs: usize) -> ContextParams {
        let n_batch = self.n_batch.clamp(1, self.n_ctx);
        ContextParams {
            n_ctx: self.n_ctx,
            n_batch,
            n_ubatch: n_batch.min(MAX_UBATCH),
            n_outputs: self.n_outputs.min(n_batch),
            n_seqs,
            n_threads: self.n_threads,
            type_k: self.type_k,
            type_v: self.type_v,
            flash: self.flash,
        }
    }
}

/// What a session had read, for another one over the same model.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// α of dynamic NTK that the keys were rotated with, at least 1.
    pub alpha: f64,
    /// What was read, a mark for each position.
    pub read: Vec<Mark>,
    /// The cache, in llama.cpp's format.
    pub state: Cow<'a, [u8]>,
}

/// A text that is read and continued. What it has read it keeps: a prompt that begins in the same way is read from where
/// it differs.
pub struct Session<'m> {
    context: llama::Context<'m>,
    model: &'m Model,
    hparams: &'m TextHparams,
    settings: SessionSettings,
    stop: &'m AtomicBool,
    /// α of dynamic NTK that the cached keys were rotated with.
    alpha: f64,
    /// What the cache holds.
    read: Vec<Mark>,
    /// What the last pass left; none before the first.
    last: Option<Pass>,
}

/// A batch that was read, whose logits are there.
struct Pass {
    /// Index of the entry that what was read ends with.
    at: usize,
    /// The tokens of the entries behind it, in the cache and not yet counted as read.
    ahead: VecDeque<TokenId>,
}

impl<'m> Session<'m> {
    /// A session that has read nothing. Computation ends early once `stop` is set. Errors: kind memory when buffers do not
    /// fit.
    pub fn new(file: &'m TextFile, model: &'m Model, settings: &SessionSettings, stop: &'m AtomicBool) -> Result<Self> {
        let hparams = file.hparams();
        let alpha = alpha(hparams, 1);
        let rotation = settings.rope.rotation(hparams, alpha);
        let context = llama::Context::new(model, &settings.params(1), stop, rotation)?;
        Ok(Session { context, model, hparams, settings: *settings, stop, alpha, read: Vec::new(), last: None })
    }

    /// How it computes now.
    pub fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    /// Positions that were read so far.
    pub fn n_past(&self) -> usize {
        self.read.len()
    }

    /// Positions that are left.
    pub fn n_left(&self) -> usize {
        self.settings.n_ctx - self.read.len()
    }

    /// Reads the whole prompt; pictures are taken from `images` by their index. [`logits`](Self::logits) are those of
    /// the last position then. Its length fixes the rotary base (dynamic NTK), whatever is generated later.
    ///
    /// Returns how many positions were there already, from a prompt before and what was generated after it.
    /// Errors: kind usage when it is empty or does not fit the context.
    pub fn prefill(&mut self, prompt: &Prompt, images: &[Arc<Seen>]) -> Result<usize> {
        self.prefill_in_two(prompt, images, 0)
    }

    /// The same, but no batch goes over position `n_first`, as if what is before it had been there already.
    fn prefill_in_two(&mut self, prompt: &Prompt, images: &[Arc<Seen>], n_first: usize) -> Result<usize> {
        let line = self.begin(prompt, images)?;
        let n_kept = n_common(&self.read, &line).min(line.len() - 1);
        self.read.truncate(n_kept);
        let (first, second) = line[n_kept..].split_at(n_first.saturating_sub(n_kept));
        for batch in first.chunks(self.n_batch()).chain(second.chunks(self.n_batch())) {
            self.feed(batch, Outputs::Last)?;
        }
        Ok(n_kept)
    }

    /// As [`prefill`](Self::prefill) from nothing, handing the logits of every position to `row` in order.
    pub fn prefill_all(
        &mut self,
        prompt: &Prompt,
        images: &[Arc<Seen>],
        mut row: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let line = self.begin(prompt, images)?;
        self.read.clear();
        for batch in line.chunks(self.n_batch().min(self.settings.n_outputs)) {
            self.feed(batch, Outputs::All)?;
            for index in 0..batch.len() {
                row(self.context.logits(index).ok_or_else(|| Error::other("llama.cpp kept no logits"))?)?;
            }
        }
        Ok(())
    }

    /// Reads more tokens after what was read, handing the logits of every one to `row` in order. Errors: kind usage when the
    /// context is full.
    pub fn push_all(&mut self, ids: &[TokenId], mut row: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let places: Vec<Place> = ids.iter().map(|id| Place::Token(*id)).collect();
        for batch in places.chunks(self.n_batch().min(self.settings.n_outputs)) {
            self.feed(batch, Outputs::All)?;
            for index in 0..batch.len() {
                row(sound(self.context.logits(index).ok_or_else(|| Error::other("llama.cpp kept no logits"))?)?)?;
            }
        }
        Ok(())
    }

    /// Counts which operation runs on which device, in what is read from now on.
    pub fn count_ops(&mut self) {
        self.context.count_ops();
    }

    /// What was counted since.
    pub fn take_ops(&mut self) -> OpCounts {
        self.context.take_ops()
    }

    /// Shows what each weight is multiplied with to `watch`, in what is read from now on.
    pub fn watch(&mut self, watch: Box<WatchFn>) {
        self.context.watch(watch);
    }

    /// Reads one more token. Errors: kind usage when the context is full.
    pub fn push(&mut self, id: TokenId) -> Result<()> {
        self.push_ahead(id, &[]).map(|_| ())
    }

    /// Reads one more token, and in the same pass over the weights `ahead`, what may come behind it, as far as there is room:
    /// returns how many tokens of it. They do not count as read, and are forgotten, until [`go_ahead`](Self::go_ahead) says
    /// that they came. Errors: as [`push`](Self::push). Cost: of each more than a token less than a pass.
    pub fn push_ahead(&mut self, id: TokenId, ahead: &[TokenId]) -> Result<usize> {
        let n_room = self.n_left().min(self.n_batch()).min(self.settings.params(1).n_outputs);
        let ahead = &ahead[..ahead.len().min(n_room.saturating_sub(1))];
        let places: Vec<Place> = [id].iter().chain(ahead).map(|id| Place::Token(*id)).collect();
        self.feed(&places, Outputs::All)?;
        self.read.truncate(self.read.len() - ahead.len());
        self.last = Some(Pass { at: 0, ahead: ahead.iter().copied().collect() });
        Ok(ahead.len())
    }

    /// Whether `id` is the next of the tokens that were read ahead. Then it counts as read, and [`logits`](Self::logits) are
    /// those behind it.
    pub fn go_ahead(&mut self, id: TokenId) -> bool {
        let Some(pass) = self.last.as_mut().filter(|pass| pass.ahead.front() == Some(&id)) else { return false };
        pass.ahead.pop_front();
        pass.at += 1;
        self.read.push(Mark::Token(id));
        true
    }

    /// What was read, a mark for each position.
    pub fn read(&self) -> &[Mark] {
        &self.read
    }

    /// Logits of the last position, a value for each row of the vocabulary, unused rows included. Errors: kind model
    /// when they are beyond 1e30 or no numbers at all, from which nothing can be chosen.
    pub fn logits(&self) -> Result<&[f32]> {
        let logits = self.last.as_ref().and_then(|pass| self.context.logits(pass.at));
        sound(logits.ok_or_else(|| Error::other("no logits yet: nothing was read"))?)
    }

    /// Makes room for `n_ctx` positions, keeping what was read. Errors: kind memory when there is not enough; nothing has
    /// changed then. Cost: a copy of what the cache holds while it moves.
    pub fn grow(&mut self, n_ctx: usize) -> Result<()> {
        if n_ctx <= self.settings.n_ctx {
            return Ok(());
        }
        let settings = SessionSettings { n_ctx, ..self.settings };
        let rotation = settings.rope.rotation(self.hparams, self.alpha);
        let mut context = llama::Context::new(self.model, &settings.params(1), self.stop, rotation)?;
        if !self.read.is_empty() {
            self.context.truncate(0, self.read.len());
            context.restore(0, &self.context.state(0)?, self.read.len())?;
        }
        (self.context, self.settings, self.last) = (context, settings, None);
        Ok(())
    }

    /// What was read, to go on from in another process, up to the first picture that is not among `pictures`: what nobody
    /// can show again is forgotten. Cost: a copy of what the cache holds (0.5 MiB a position for the real model in f16).
    pub fn snapshot(&mut self, pictures: &[Arc<Seen>]) -> Result<Snapshot<'static>> {
        let is_gone = |mark: &Mark| matches!(mark, Mark::Row(id, _) if pictures.iter().all(|seen| seen.id != *id));
        let n_kept = self.read.iter().position(is_gone).unwrap_or(self.read.len());
        self.read.truncate(n_kept);
        self.last = None;
        self.context.truncate(0, n_kept);
        let state = if self.read.is_empty() { Vec::new() } else { self.context.state(0)? };
        Ok(Snapshot { alpha: self.alpha, read: self.read.clone(), state: state.into() })
    }

    /// Goes on from a snapshot of the same model. Its numbers are taken on trust, its form is not: errors (nothing is read
    /// then) are that it is damaged, or of other [`SessionSettings`] (types and attention), or does not fit.
    pub fn resume(&mut self, snapshot: &Snapshot<'_>) -> Result<()> {
        self.read.clear();
        self.last = None;
        if snapshot.read.len() > self.settings.n_ctx {
            return Err(too_long(snapshot.read.len(), self.settings.n_ctx));
        }
        if snapshot.read.is_empty() {
            return Ok(());
        }
        self.context.restore(0, &snapshot.state, snapshot.read.len())?;
        self.rotate(snapshot.alpha);
        self.read.clone_from(&snapshot.read);
        Ok(())
    }

    /// The places of a prompt that fits, with the rotation set for it. What was read with another one is forgotten.
    fn begin(&mut self, prompt: &Prompt, images: &[Arc<Seen>]) -> Result<Vec<Place>> {
        let h = self.hparams;
        let line = fitting_line(prompt, images, h, self.settings.n_ctx)?;
        let alpha = alpha(h, line.len());
        if alpha != self.alpha {
            self.rotate(alpha);
            self.read.clear();
        }
        Ok(line)
    }

    /// Rotates with this α of dynamic NTK from now on.
    fn rotate(&mut self, alpha: f64) {
        self.context.set_rotation(self.settings.rope.rotation(self.hparams, alpha));
        self.alpha = alpha;
    }

    fn n_batch(&self) -> usize {
        self.settings.n_batch.clamp(1, self.settings.n_ctx)
    }

    fn feed(&mut self, places: &[Place], outputs: Outputs) -> Result<()> {
        let n_past = self.read.len();
        let full = || Error::usage(format!("the context of {} tokens is full; raise -c", self.settings.n_ctx));
        if places.len() > self.n_left() {
            return Err(full());
        }
        // An interrupted batch leaves positions behind that nobody counted.
        self.context.truncate(0, n_past);
        let mut batch = Vec::with_capacity(places.len());
        for (i, place) in places.iter().enumerate() {
            let wanted = outputs == Outputs::All || i + 1 == places.len();
            let output = if wanted { Output::Logits } else { Output::None };
            batch.push(Entry { input: place.input(), seq: 0, position: n_past + i, output });
        }
        self.last = None;
        match self.context.decode(&batch)? {
            Decoded::Done => {}
            Decoded::Full => return Err(full()),
        }
        self.read.extend(places.iter().map(Place::mark));
        self.last = Some(Pass { at: places.len() - 1, ahead: VecDeque::new() });
        Ok(())
    }
}

/// Which positions of a batch give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outputs {
    /// The last one.
    Last,
    /// Every one.
    All,
}

/// The error of a prompt that the context cannot hold.
pub fn too_long(n_prompt: usize, n_ctx: usize) -> Error {
    Error::usage(format!("the prompt has {n_prompt} tokens but the context holds {n_ctx}; shorten it or raise -c"))
}

/// Logits from which something can be chosen.
fn sound(logits: &[f32]) -> Result<&[f32]> {
    if logits.iter().all(|x| x.abs() <= MAX_LOGIT) {
        return Ok(logits);
    }
    Err(Error::model("the logits are not finite: the weights are damaged or too large (see qvl inspect --verify)"))
}
