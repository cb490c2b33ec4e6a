//! The loop from logits to text: sample, stop, stream.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{ErrorKind, Result};
use crate::llama::Sampler;
use crate::tokenizer::{Specials, StreamDecoder, TokenId, Tokenizer};

use super::Session;
use super::draft::{Draft, Drafter};
use super::logprobs::{TokenLogprobs, logprobs};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// As many tokens as were asked for, or the context is full.
    Length,
    /// The user stopped it; what came is kept.
    Interrupted,
}

/// When to stop.
#[derive(Clone, Debug)]
pub struct GenerateSettings {
    /// Most tokens to generate.
    pub n_predict: usize,
    /// Ids that end the answer and are not part of it.
    pub stop_ids: Vec<TokenId>,
    /// Strings that end the answer and are not part of it.
    pub stop_texts: Vec<String>,
    /// Whether each token's probability is wanted, and those of how many of the most likely ones.
    pub logprobs: Option<usize>,
    /// Whether tokens are guessed and read several at a time.
    pub draft: Draft,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, without the stop string.
    pub text: String,
    /// Sampled tokens, without the stop token.
    pub n_tokens: usize,
    /// Tokens that were guessed and read ahead.
    pub n_drafted: usize,
    /// Those among them that were right.
    pub n_accepted: usize,
    /// Why it ended.
    pub finish: Finish,
    /// One for each sampled token, if wanted.
    pub logprobs: Vec<TokenLogprobs>,
}

/// An answer being written: the way from logits to text, whoever computes the logits.
pub struct Generation<'t> {
    tokenizer: &'t Tokenizer,
    decoder: StreamDecoder<'t>,
    sampler: Sampler,
    settings: GenerateSettings,
    drafter: Drafter,
    text: Tail,
    n_tokens: usize,
    logprobs: Vec<TokenLogprobs>,
}

/// What follows a look at logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This token is to be read; then there are logits again.
    Token(TokenId),
    /// The answer is complete.
    End(Finish),
}

impl<'t> Generation<'t> {
    /// An answer of which nothing is there yet. The `sampler` has accepted the prompt; a grammar
    /// that it follows must know the same stop ids.
    pub fn new(tokenizer: &'t Tokenizer, sampler: Sampler, settings: GenerateSettings) -> Self {
        let decoder = StreamDecoder::new(tokenizer, Specials::Keep);
        let text = Tail { stops: settings.stop_texts.clone(), ..Tail::default() };
        let drafter = Drafter::new(settings.draft);
        Generation { tokenizer, decoder, sampler, settings, drafter, text, n_tokens: 0, logprobs: Vec::new() }
    }

    /// Chooses the next token from the logits of the whole vocabulary; ids beyond the used one are never chosen. Each piece of
    /// text goes to `emit` as soon as it cannot change any more: whole characters, and nothing that may yet turn out to
    /// begin a stop string.
    pub fn next(&mut self, logits: &[f32], mut emit: impl FnMut(&str) -> Result<()>) -> Result<Choice> {
        if self.n_tokens >= self.settings.n_predict {
            return Ok(Choice::End(Finish::Length));
        }
        let logits = &logits[..self.tokenizer.n_used()];
        let id = TokenId(self.sampler.sample(logits)?);
        if self.settings.stop_ids.contains(&id) {
            return Ok(Choice::End(Finish::Stop));
        }
        self.logprobs.extend(self.settings.logprobs.map(|n_top| logprobs(logits, id, n_top)));
        self.sampler.accept(id.to_u32());
        self.n_tokens += 1;
        if self.text.push(&self.decoder.push(id), &mut emit)? {
            return Ok(Choice::End(Finish::Stop));
        }
        // A pass over the weights that could only confirm the end, or whose logits nobody would look at, is saved.
        if self.sampler.must_end() {
            return Ok(Choice::End(Finish::Stop));
        }
        if self.n_tokens >= self.settings.n_predict {
            return Ok(Choice::End(Finish::Length));
        }
        Ok(Choice::Token(id))
    }

    /// Lets `session` read the token that was chosen, and what may come behind it in the same pass. Errors: as
    /// [`Session::push`].
    fn read(&mut self, session: &mut Session<'_>, id: TokenId) -> Result<()> {
        // Logits behind the last token would be of no use.
        let n_max = self.settings.n_predict.saturating_sub(self.n_tokens + 1);
        self.drafter.push(session, id, n_max, &self.settings.stop_ids)
    }

    /// The whole answer, with the rest of the text given to `emit`.
    pub fn finish(mut self, finish: Finish, mut emit: impl FnMut(&str) -> Result<()>) -> Result<Answer> {
        if !self.text.cut {
            self.text.text.push_str(&self.decoder.finish());
        }
        self.text.flush(&mut emit)?;
        let (n_drafted, n_accepted) = (self.drafter.n_drafted(), self.drafter.n_accepted());
        let (text, n_tokens) = (self.text.text, self.n_tokens);
        Ok(Answer { text, n_tokens, n_drafted, n_accepted, finish, logprobs: self.logprobs })
    }
}

/// Continues what `session` has read, giving text to `emit` as [`Generation::next`] does. When `stop` is set the answer
/// ends with what came so far.
pub fn generate(
    session: &mut Session<'_>,
    mut generation: Generation<'_>,
    stop: &AtomicBool,
    mut emit: impl FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let finish = loop {
        if stop.load(Ordering::Relaxed) {
            break Finish::Interrupted;
        }
        let id = match generation.next(session.logits()?, &mut emit)? {
            Choice::Token(id) => id,
            Choice::End(finish) => break finish,
        };
        if session.n_left() == 0 {
            break Finish::Length;
        }
        match generation.read(session, id) {
            Err(e) if e.kind() == ErrorKind::Interrupted => break Finish::Interrupted,
            other => other?,
        }
    };
    generation.finish(finish, emit)
}

/// Text whose end may be the beginning of a stop string.
#[derive(Default)]
struct Tail {
    stops: Vec<String>,
    text: String,
    n_emitted: usize,
    /// Whether a stop string was found; nothing comes after it.
    cut: bool,
}

impl Tail {
    /// Appends `more` and emits what is settled. Returns whether a stop string was found, and cuts it off.
    fn push(&mut self, more: &str, emit: &mut impl FnMut(&str) -> Result<()>) -> Result<bool> {
        self.text.push_str(more);
        let first = self.stops.iter().filter_map(|s| self.text[self.n_emitted..].find(s.as_str())).min();
        if let Some(at) = first {
            self.text.truncate(self.n_emitted + at);
            self.cut = true;
            return Ok(true);
        }
        let n_held = self.stops.iter().map(|s| n_overlap(&self.text[self.n_emitted..], s)).max().unwrap_or(0);
        self.emit_to(self.text.len() - n_held, emit)?;
        Ok(false)
    }

    fn flush(&mut self, emit: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        self.emit_to(self.text.len(), emit)
    }

    fn emit_to(&mut self, end: usize, emit: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        if end > self.n_emitted {
            emit(&self.text[self.n_emitted..end])?;
            self.n_emitted = end;
        }
        Ok(())
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn n_overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(i, _)| i).skip(1).collect::<Vec<_>>();
    starts.into_iter().rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], pieces: &[&str], emitted: &[&str], text: &str) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut tail = Tail { stops, ..Tail::default() };
        let mut seen = Vec::new();
        let mut emit = |s: &str| {
            seen.push(s.to_owned());
            Ok(())
        };
        for piece in pieces {
            if tail.push(piece, &mut emit).unwrap() {
                break;
            }
        }
        tail.flush(&mut emit).unwrap();
        assert_eq!(seen, emitted);
        assert_eq!(tail.text, text);
    }

    #[test]
    fn stop_strings_are_held_back_and_cut() {
        check(&[], &["a", "b"], &["a", "b"], "ab");
        check(&["END"], &["aE", "N", "x"], &["a", "ENx"], "aENx");
        check(&["END"], &["aE", "ND tail"], &["a"], "a");
        check(&["é!"], &["caf", "é", "!"], &["caf"], "caf");
        check(&["\n\n", "Human:"], &["ok\n", "Human", ":"], &["ok", "\n"], "ok\n");
    }
}
