//! The loop from logits to text: sample, stop, stream.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{ErrorKind, Result};
use crate::llama::Sampler;
use crate::tokenizer::{Specials, StreamDecoder, TokenId, Tokenizer};

use super::Session;

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
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, without the stop string.
    pub text: String,
    /// Sampled tokens, without the stop token.
    pub n_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// Continues what `session` has read. Each piece of text goes to `emit` as soon as it cannot change any more: whole
/// characters, and nothing that may yet turn out to begin a stop string.
///
/// Ids beyond the used vocabulary are never chosen. When `stop` is set the answer ends with what came so far.
pub fn generate(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    settings: &GenerateSettings,
    stop: &AtomicBool,
    mut emit: impl FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let mut decoder = StreamDecoder::new(tokenizer, Specials::Keep);
    let mut text = Tail { stops: &settings.stop_texts, text: String::new(), n_emitted: 0, cut: false };
    let mut n_tokens = 0;
    let finish = loop {
        if stop.load(Ordering::Relaxed) {
            break Finish::Interrupted;
        }
        if n_tokens >= settings.n_predict {
            break Finish::Length;
        }
        let id = TokenId(sampler.sample(&session.logits()?[..tokenizer.n_used()]));
        if settings.stop_ids.contains(&id) {
            break Finish::Stop;
        }
        sampler.accept(id.to_u32());
        n_tokens += 1;
        if text.push(&decoder.push(id), &mut emit)? {
            break Finish::Stop;
        }
        if session.n_left() == 0 {
            break Finish::Length;
        }
        match session.push(id) {
            Err(e) if e.kind() == ErrorKind::Interrupted => break Finish::Interrupted,
            other => other?,
        }
    };
    if !text.cut {
        text.text.push_str(&decoder.finish());
    }
    text.flush(&mut emit)?;
    Ok(Answer { text: text.text, n_tokens, finish })
}

/// Text whose end may be the beginning of a stop string.
struct Tail<'a> {
    stops: &'a [String],
    text: String,
    n_emitted: usize,
    /// Whether a stop string was found; nothing comes after it.
    cut: bool,
}

impl Tail<'_> {
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
        let mut tail = Tail { stops: &stops, text: String::new(), n_emitted: 0, cut: false };
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
