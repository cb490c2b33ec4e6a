//! Several texts continued together: one pass over the weights gives each its next token.
//!
//! On a machine whose memory is the limit a pass costs about the same for one token as for ten, so ten answers cost little
//! more than one. A prompt that begins as another one did (the same system message, the same picture) shares its cached
//! keys and values instead of computing them again.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::llama::{self, Decoded, Entry, Model, Output};
use crate::prompt::Prompt;
use crate::text::{TextHparams, alpha};
use crate::tokenizer::TokenId;

use super::line::{Place, Seen, fitting_line};
use super::{SessionSettings, TextFile, sound};

/// What follows a position whose logits were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This token.
    Token(TokenId),
    /// Nothing: the text is complete.
    Done,
}

/// A prompt waits for another that is being read if that spares it at least so many positions.
const WORTH_WAITING: usize = 16;

/// A place for one text.
#[derive(Default)]
struct Slot {
    /// The prompt and what was generated. Empty in a slot that never worked.
    line: Vec<Place>,
    /// How much of it the cache holds.
    n_read: usize,
    state: State,
    /// Number of the step that it worked in last.
    used: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing to do; what it has read may serve others.
    #[default]
    Idle,
    /// Begun; reads its prompt, or waits for another to read the beginning that they share.
    Fresh,
    /// Takes part in every step.
    Running,
    /// Had to give its cache to others and begins again when one of them is done.
    Waiting,
}

/// Texts of one model in one KV cache.
pub struct Sequences<'m> {
    context: llama::Context<'m>,
    hparams: &'m TextHparams,
    settings: SessionSettings,
    slots: Vec<Slot>,
    alpha: f64,
    n_steps: u64,
    n_shared: usize,
}

impl<'m> Sequences<'m> {
    /// Room for `n_slots` texts that have `settings.n_ctx` positions together. Errors: as [`super::Session::new`].
    pub fn new(
        file: &'m TextFile,
        model: &'m Model,
        settings: &SessionSettings,
        n_slots: usize,
        stop: &'m AtomicBool,
    ) -> Result<Self> {
        let hparams = file.hparams();
        let n_batch = settings.n_batch.max(n_slots);
        let settings = SessionSettings { n_outputs: n_slots, n_batch, n_ctx: settings.n_ctx.max(n_slots), ..*settings };
        let alpha = alpha(hparams, 1);
        let rotation = settings.rope.rotation(hparams, alpha);
        let context = llama::Context::new(model, &settings.params(n_slots), stop, rotation)?;
        let slots = (0..n_slots).map(|_| Slot::default()).collect();
        Ok(Sequences { context, hparams, settings, slots, alpha, n_steps: 0, n_shared: 0 })
    }

    /// Positions of all texts together.
    pub fn n_ctx(&self) -> usize {
        self.settings.n_ctx
    }

    /// A slot for a prompt of `n_prompt` positions, if one is free and the prompt's rotary base is that of the others.
    pub fn free(&self, n_prompt: usize) -> Option<usize> {
        let alone = self.slots.iter().all(|slot| slot.state == State::Idle);
        if !alone && alpha(self.hparams, n_prompt) != self.alpha {
            return None;
        }
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.state == State::Idle);
        idle.min_by_key(|(_, slot)| slot.used).map(|(k, _)| k)
    }

    /// Positions of prompts that needed not be read, since another text began in the same way.
    pub fn n_shared(&self) -> usize {
        self.n_shared
    }

    /// Begins a prompt in a slot that [`free`](Self::free) gave. Errors: kind usage when the prompt is empty or longer than
    /// the whole context.
    pub fn begin(&mut self, slot: usize, prompt: &Prompt, images: &[Arc<Seen>]) -> Result<()> {
        let line = fitting_line(prompt, images, self.hparams, self.settings.n_ctx)?;
        self.rotate_for(line.len());
        // What this slot has read is lost once it holds another line, so it is asked first.
        let n_kept = self.adopt(slot, &line);
        self.slots[slot] = Slot { line, n_read: n_kept, state: State::Fresh, used: self.n_steps };
        Ok(())
    }

    /// Whether any text is not complete.
    pub fn is_running(&self) -> bool {
        self.slots.iter().any(|slot| slot.state != State::Idle)
    }

    /// One pass over the weights. Each text that is read to its end is shown: its slot and the logits of its last
    /// position, from which its next token comes. Errors: kind interrupted when stopped, kind usage when a text alone
    /// fills the context, kind model when logits are not finite; what `next` returns.
    pub fn step(&mut self, mut next: impl FnMut(usize, &[f32]) -> Result<Next>) -> Result<()> {
        self.n_steps += 1;
        self.start_fresh();
        let ends = loop {
            let (batch, ends) = gather(&self.slots, self.settings.n_batch);
            if batch.is_empty() {
                return Ok(());
            }
            match self.context.decode(&batch)? {
                Decoded::Done => break ends,
                Decoded::Full => self.make_room()?,
            }
        };
        for end in ends {
            let slot = &mut self.slots[end.slot];
            (slot.n_read, slot.used) = (end.n_read, self.n_steps);
            let Some(index) = end.output else { continue };
            let logits = self.context.logits(index).ok_or_else(|| Error::other("llama.cpp kept no logits"))?;
            match next(end.slot, sound(logits)?)? {
                Next::Token(id) => self.slots[end.slot].line.push(Place::Token(id)),
                Next::Done => self.finish(end.slot),
            }
        }
        Ok(())
    }

    /// Ends the text of a slot, complete or not.
    pub fn finish(&mut self, slot: usize) {
        self.slots[slot].state = State::Idle;
        for other in &mut self.slots {
            if other.state == State::Waiting {
                other.state = State::Fresh;
            }
        }
    }

    /// Lets prompts be read, but not twice what two of them share: the second waits for the first.
    fn start_fresh(&mut self) {
        for k in 0..self.slots.len() {
            if self.slots[k].state != State::Fresh {
                continue;
            }
            let line = std::mem::take(&mut self.slots[k].line);
            let about_to_be_read = |slot: &Slot| {
                if slot.state == State::Running { n_same(&slot.line, &line).min(line.len() - 1) } else { 0 }
            };
            let n_coming = self.slots.iter().map(about_to_be_read).max().unwrap_or(0);
            let n_kept = self.adopt(k, &line);
            let waits = n_coming >= n_kept + WORTH_WAITING;
            let slot = &mut self.slots[k];
            (slot.line, slot.n_read) = (line, n_kept);
            if !waits {
                slot.state = State::Running;
                self.n_shared += n_kept;
            }
        }
    }

    /// Frees cache: of the text that was complete for the longest time, else of the shortest one, which begins
    /// again later.
    fn make_room(&mut self) -> Result<()> {
        let slots = || self.slots.iter().enumerate();
        let complete = slots().filter(|(_, slot)| slot.state == State::Idle && slot.n_read > 0);
        if let Some((k, _)) = complete.min_by_key(|(_, slot)| slot.used) {
            self.context.truncate(k, 0);
            self.slots[k].n_read = 0;
            return Ok(());
        }
        let running = || slots().filter(|(_, slot)| slot.state == State::Running);
        let n_running = running().count();
        let shortest = running().min_by_key(|(_, slot)| slot.line.len()).map(|(k, _)| k);
        match shortest {
            Some(k) if n_running > 1 => {
                self.context.truncate(k, 0);
                (self.slots[k].n_read, self.slots[k].state) = (0, State::Waiting);
                Ok(())
            }
            _ => Err(Error::usage(format!("the context of {} tokens is full; raise -c", self.settings.n_ctx))),
        }
    }

    /// Sets the rotation for a prompt of this length. What was read with another one is forgotten.
    fn rotate_for(&mut self, n_prompt: usize) {
        let alpha = alpha(self.hparams, n_prompt);
        if alpha == self.alpha {
            return;
        }
        self.context.set_rotation(self.settings.rope.rotation(self.hparams, alpha));
        self.alpha = alpha;
        for (k, slot) in self.slots.iter_mut().enumerate() {
            self.context.truncate(k, 0);
            *slot = Slot::default();
        }
    }

    /// Gives `slot` the longest beginning of `line` that the cache holds. The last place is left to be read, for its logits.
    fn adopt(&mut self, slot: usize, line: &[Place]) -> usize {
        let common = |k: usize| {
            let own = &self.slots[k];
            // The line of a fresh slot is in the caller's hands, and what it has read is of that line.
            if own.line.is_empty() { own.n_read } else { n_same(&own.line[..own.n_read], line) }.min(line.len() - 1)
        };
        let best = (0..self.slots.len()).map(|k| (common(k), k)).max_by_key(|(n, k)| (*n, *k == slot));
        let (n_kept, from) = best.unwrap_or((0, slot));
        if from == slot {
            self.context.truncate(slot, n_kept);
        } else {
            self.context.truncate(slot, 0);
            if n_kept > 0 {
                self.context.share(from, slot, n_kept);
            }
        }
        n_kept
    }
}

/// How many places at the beginning of two lines are the same.
fn n_same(a: &[Place], b: &[Place]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a.mark() == b.mark()).count()
}

/// How far a batch brings a slot.
struct End {
    slot: usize,
    n_read: usize,
    /// Entry of the batch with its logits, if it is read to its end.
    output: Option<usize>,
}

/// What to read next: a place of each text that is being written, then as much of the prompts as goes in.
fn gather(slots: &[Slot], n_batch: usize) -> (Vec<Entry<'_>>, Vec<End>) {
    let mut running: Vec<usize> = (0..slots.len()).filter(|k| slots[*k].state == State::Running).collect();
    running.sort_by_key(|k| slots[*k].line.len() - slots[*k].n_read);
    let (mut batch, mut ends) = (Vec::new(), Vec::new());
    for k in running {
        let slot = &slots[k];
        let n = (slot.line.len() - slot.n_read).min(n_batch - batch.len());
        if n == 0 {
            break;
        }
        let n_read = slot.n_read + n;
        let is_end = n_read == slot.line.len();
        for (position, place) in (slot.n_read..n_read).zip(&slot.line[slot.n_read..]) {
            let output = if is_end && position + 1 == n_read { Output::Logits } else { Output::None };
            batch.push(Entry { input: place.input(), seq: k, position, output });
        }
        ends.push(End { slot: k, n_read, output: is_end.then(|| batch.len() - 1) });
    }
    (batch, ends)
}
