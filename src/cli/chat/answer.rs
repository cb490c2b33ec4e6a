//! One answer: the prompt, room for it, what is new of it, then tokens.

use qvl::conversation::Conversation;
use qvl::error::{Error, ErrorKind, Result};
use qvl::llama::{Model, Sampler};
use qvl::prompt::Message;
use qvl::session::{
    Answer, Draft, Finish, GenerateSettings, Generation, Session, SessionSettings, Snapshot, TextFile, generate,
};

use crate::cli::answers::{Keep, Trimmed, sampling, stops};
use crate::cli::args::{ContextArgs, GenerationArgs};
use crate::cli::room::Fitted;
use crate::cli::{STOP, once, pipeline, print, print_error, print_verbose, room};

/// Positions that are read together: compute buffers stay small, and Ctrl-C does not wait long.
const N_BATCH: usize = 512;
/// The context begins with a multiple of this.
const N_CTX_STEP: usize = 1024;

/// The model with what it has read.
pub struct Voice<'m> {
    text: &'m TextFile,
    context: &'m ContextArgs,
    draft: Draft,
    session: Session<'m>,
    /// Positions that it may have at most.
    n_limit: usize,
    quiet: bool,
    /// Whether the last prompt was without its oldest turns.
    was_cut: bool,
}

/// Which question is answered.
#[derive(Clone, Copy)]
pub struct Question<'q> {
    /// Turns before it.
    pub n_turns: usize,
    /// Itself.
    pub query: &'q Message,
    /// How often it was answered before; moves the seed.
    pub n_retries: u32,
}

/// Positions that a conversation may take at most: as told, else the model's.
pub fn n_limit(text: &TextFile, context: &ContextArgs) -> usize {
    context.ctx_size.map_or(text.hparams().context_length, |n| n as usize)
}

/// Settings for a first context in which `n_positions` fit. Errors: flags that do not go together, kind memory.
pub fn first_settings(
    text: &TextFile,
    context: &ContextArgs,
    n_positions: usize,
    draft: Draft,
    quiet: bool,
) -> Result<Fitted> {
    let n_ctx = n_positions.min(n_limit(text, context)).next_multiple_of(N_CTX_STEP);
    pipeline::fitted_session(text, context, (n_ctx, 0), N_BATCH, draft, quiet)
}

impl<'m> Voice<'m> {
    /// One that has read nothing.
    pub fn new(
        text: &'m TextFile,
        model: &'m Model,
        context: &'m ContextArgs,
        settings: &SessionSettings,
        draft: Draft,
        quiet: bool,
    ) -> Result<Self> {
        let session = Session::new(text, model, settings, &STOP)?;
        Ok(Voice { text, context, draft, session, n_limit: n_limit(text, context), quiet, was_cut: false })
    }

    /// Goes on from what was read in another process, if that can be.
    pub fn resume(&mut self, snapshot: &Snapshot<'_>) {
        once::resume(&mut self.session, snapshot, self.quiet);
    }

    /// What was read, as far as it is of this conversation's pictures.
    pub fn snapshot(&mut self, conversation: &Conversation) -> Result<Snapshot<'static>> {
        self.session.snapshot(&conversation.images())
    }

    /// Answers, streaming to stdout, and returns the answer. What was read before is not read again. Errors: the prompt
    /// does not fit (kind usage), interrupted before anything was said.
    pub fn answer(
        &mut self,
        conversation: &Conversation,
        question: Question<'_>,
        flags: &GenerationArgs,
    ) -> Result<String> {
        let (h, tokenizer) = (self.text.hparams(), self.text.tokenizer());
        let n_predict = flags.predict.unwrap_or(h.max_new_tokens);
        // A small context is not all for the answer.
        let n_answer = n_predict.min(self.n_limit / 4);
        let room = (self.n_limit, n_answer);
        let fitted = conversation.prompt(tokenizer, h, question.n_turns, question.query, room)?;
        if fitted.is_cut && !self.was_cut && !self.quiet {
            print_error("note: the oldest turns no longer fit and are not read any more\n");
        }
        self.was_cut = fitted.is_cut;
        let prompt = fitted.prompt;
        let n_prompt = prompt.n_positions(h.n_queries);
        self.make_room(n_prompt, n_predict)?;

        let spinner = pipeline::spinner(self.quiet, "reading".to_owned());
        let n_reused = self.session.prefill(&prompt, &conversation.images())?;
        drop(spinner);
        let n_new = n_prompt - n_reused;
        print_verbose(&format!("note: read {n_new} of {n_prompt} tokens, the others were there\n"));

        let mut settings = sampling(flags, h);
        settings.seed = settings.seed.wrapping_add(question.n_retries);
        let mut sampler = Sampler::new(settings, tokenizer.n_used());
        for id in prompt.ids_with_slots(tokenizer.special_ids().img_pad, h.n_queries) {
            sampler.accept(id.to_u32());
        }
        let stops = GenerateSettings { draft: self.draft, ..stops(self.text, flags, n_predict, false) };
        let mut out = Trimmed::new(Keep::Text);
        let mut is_shown = false;
        let generation = Generation::new(tokenizer, sampler, stops);
        let answer = generate(&mut self.session, generation, &STOP, |piece| {
            let settled = out.push(piece);
            is_shown |= !settled.is_empty();
            print(&settled)
        });
        let is_silent = matches!(&answer, Ok(answer) if answer.finish == Finish::Interrupted) && !is_shown;
        if is_silent {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        if is_shown || answer.is_ok() {
            print("\n")?;
        }
        let answer = answer?;
        once::tell_drafts(&answer);
        self.tell_if_cut(&answer, n_predict);
        Ok(answer.text.trim().to_owned())
    }

    /// Grows the context, by doubling, until prompt and answer fit or the limit is reached. Errors (kind memory): there is
    /// no room for the prompt; an answer may also end early.
    fn make_room(&mut self, n_prompt: usize, n_predict: usize) -> Result<()> {
        let wanted = n_prompt.saturating_add(n_predict).min(self.n_limit);
        let settings = *self.session.settings();
        if wanted <= settings.n_ctx {
            return Ok(());
        }
        let mut n_ctx = settings.n_ctx;
        while n_ctx < wanted {
            n_ctx = n_ctx.saturating_mul(2).min(self.n_limit);
        }
        // As it was chosen in the beginning, not as the flags alone would have it.
        let larger = SessionSettings { n_ctx, ..settings };
        match room::check(self.text, self.context, &larger).and_then(|()| self.session.grow(n_ctx)) {
            Err(e) if e.kind() == ErrorKind::Memory && n_prompt <= settings.n_ctx => Ok(()),
            grown => grown,
        }
    }

    fn tell_if_cut(&self, answer: &Answer, n_predict: usize) {
        if answer.finish != Finish::Length || self.quiet {
            return;
        }
        let reason = match answer.n_tokens < n_predict {
            true => "the context is full; /undo, /clear or a larger -c make room",
            false => "allow more with /set predict N",
        };
        print_error(&format!("note: the answer was cut after {} tokens; {reason}\n", answer.n_tokens));
    }
}
