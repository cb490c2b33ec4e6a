//! A text model at work: a prompt of tokens and pictures goes in, logits come out, one position after the other.

mod generate;

pub use generate::{Answer, Finish, GenerateSettings, generate};

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::llama::{self, ContextParams, FlashAttention, Input, Model, ModelParams, Outputs};
use crate::mmap::MappedFile;
use crate::names::vocab;
use crate::prompt::{Chunk, Prompt};
use crate::quant::GgmlType;
use crate::text::{self, Rotary, TextHparams};
use crate::tokenizer::{TokenId, Tokenizer};
use crate::vision::ImageEmbedding;

/// Positions that pass over the weights together at most. A prompt of some pictures takes one pass; beyond, compute
/// buffers would grow and the weights' traffic no longer counts.
const MAX_UBATCH: usize = 2048;

/// Largest magnitude of a logit from which samplers are given a choice: far beyond any model's, and small enough to be
/// divided by the smallest temperature and penalty without becoming infinite.
const MAX_LOGIT: f32 = 1e30;

/// A text GGUF that has been proven, with its tokenizer; no weight has been touched.
pub struct TextFile {
    path: PathBuf,
    hparams: TextHparams,
    tokenizer: Tokenizer,
}

impl TextFile {
    /// Proves the header of `path`. Errors (kind model) name the file and the key or tensor. Cost: tens of
    /// milliseconds for the real vocabulary.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let read = || -> Result<Self> {
            let gguf = Gguf::parse(&file)?;
            let hparams = TextHparams::read(&gguf)?;
            text::check(&gguf, &hparams)?;
            let tokens = gguf.strings(vocab::TOKENS)?.to_vec();
            let tokenizer = Tokenizer::new(tokens, gguf.i32s(vocab::TOKEN_TYPE)?, hparams.n_queries)?;
            Ok(TextFile { path: path.to_owned(), hparams, tokenizer })
        };
        read().map_err(|e| e.at(path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its dimensions and defaults.
    pub fn hparams(&self) -> &TextHparams {
        &self.hparams
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Loads the weights.
    pub fn load(&self, params: ModelParams) -> Result<Model> {
        Model::load(&self.path, params)
    }
}

/// How a session computes.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// Positions that the KV cache holds.
    pub n_ctx: usize,
    /// Threads.
    pub n_threads: usize,
    /// Element type of cached keys.
    pub type_k: GgmlType,
    /// Element type of cached values.
    pub type_v: GgmlType,
    /// Whether attention is fused.
    pub flash: FlashAttention,
    /// Most logit rows wanted at once: 1, or more for `trace`.
    pub n_outputs: usize,
}

/// A prompt being read and continued.
pub struct Session<'m> {
    context: llama::Context<'m>,
    hparams: &'m TextHparams,
    n_past: usize,
    n_ctx: usize,
    n_batch: usize,
    /// Index of the last input of the last batch.
    last: usize,
}

impl<'m> Session<'m> {
    /// A session for a prompt of `n_prompt` positions and what is generated after it. The rotary base is fixed by
    /// `n_prompt` (dynamic NTK), whatever is generated later. Computation ends early once `stop` is set.
    ///
    /// Errors: kind usage when the prompt does not fit the context, kind memory when buffers do not fit.
    pub fn new(
        file: &'m TextFile,
        model: &'m Model,
        settings: &SessionSettings,
        n_prompt: usize,
        stop: &'m AtomicBool,
    ) -> Result<Self> {
        let n_ctx = settings.n_ctx;
        if n_prompt == 0 {
            return Err(Error::usage("the prompt is empty"));
        }
        if n_prompt > n_ctx {
            return Err(Error::usage(format!(
                "the prompt has {n_prompt} tokens but the context holds {n_ctx}; shorten it or raise -c"
            )));
        }
        // All positions are wanted at once when logits are: then the batch is no larger than what can be kept.
        let n_batch = n_prompt.min(if settings.n_outputs > 1 { settings.n_outputs } else { n_ctx });
        let params = ContextParams {
            n_ctx,
            n_batch,
            n_ubatch: n_batch.min(MAX_UBATCH),
            n_outputs: settings.n_outputs.min(n_batch),
            n_threads: settings.n_threads,
            type_k: settings.type_k,
            type_v: settings.type_v,
            flash: settings.flash,
        };
        let hparams = file.hparams();
        let mut rotary = Rotary::new(hparams, n_prompt);
        let context = llama::Context::new(model, &params, stop, move |rows| rotary.rotate(rows))?;
        Ok(Session { context, hparams, n_past: 0, n_ctx, n_batch, last: 0 })
    }

    /// Positions that were read so far.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Positions that are left.
    pub fn n_left(&self) -> usize {
        self.n_ctx - self.n_past
    }

    /// Reads the whole prompt; pictures are taken from `images` by their index. [`logits`](Self::logits) are those of
    /// the last position then.
    pub fn prefill(&mut self, prompt: &Prompt, images: &[ImageEmbedding]) -> Result<()> {
        let inputs = self.inputs(prompt, images)?;
        for batch in inputs.chunks(self.n_batch) {
            self.feed(batch, Outputs::Last)?;
        }
        Ok(())
    }

    /// As [`prefill`](Self::prefill), handing the logits of every position to `row` in order.
    pub fn prefill_all(
        &mut self,
        prompt: &Prompt,
        images: &[ImageEmbedding],
        mut row: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let inputs = self.inputs(prompt, images)?;
        for batch in inputs.chunks(self.n_batch) {
            self.feed(batch, Outputs::All)?;
            for index in 0..batch.len() {
                row(self.context.logits(index).ok_or_else(|| Error::other("llama.cpp kept no logits"))?)?;
            }
        }
        Ok(())
    }

    /// Reads one more token. Errors: kind usage when the context is full.
    pub fn push(&mut self, id: TokenId) -> Result<()> {
        self.feed(&[Input::Token(id.to_u32())], Outputs::Last)
    }

    /// Logits of the last position, a value for each row of the vocabulary, unused rows included. Errors: kind model
    /// when they are beyond 1e30 or no numbers at all, from which nothing can be chosen.
    pub fn logits(&self) -> Result<&[f32]> {
        let logits = self.context.logits(self.last);
        let logits = logits.ok_or_else(|| Error::other("no logits yet: nothing was read"))?;
        if logits.iter().all(|x| x.abs() <= MAX_LOGIT) {
            return Ok(logits);
        }
        Err(Error::model("the logits are not finite: the weights are damaged or too large (see qvl inspect --verify)"))
    }

    fn feed(&mut self, inputs: &[Input<'_>], outputs: Outputs) -> Result<()> {
        if inputs.len() > self.n_left() {
            return Err(Error::usage(format!("the context of {} tokens is full; raise -c", self.n_ctx)));
        }
        self.context.decode(inputs, self.n_past, outputs)?;
        self.n_past += inputs.len();
        self.last = inputs.len() - 1;
        Ok(())
    }

    fn inputs<'a>(&self, prompt: &'a Prompt, images: &'a [ImageEmbedding]) -> Result<Vec<Input<'a>>> {
        let (n_embd, n_queries) = (self.hparams.n_embd, self.hparams.n_queries);
        let mut inputs = Vec::with_capacity(prompt.n_positions(n_queries));
        for chunk in &prompt.chunks {
            match chunk {
                Chunk::Tokens(ids) => inputs.extend(ids.iter().map(|id| Input::Token(id.to_u32()))),
                Chunk::Image(k) => {
                    let image = images.get(*k).filter(|e| e.d_out == n_embd && e.n_queries == n_queries);
                    let image = image.ok_or_else(|| Error::other(format!("no fitting embedding of picture {k}")))?;
                    inputs.extend(image.data.chunks_exact(n_embd).map(Input::Embedding));
                }
            }
        }
        Ok(inputs)
    }
}
