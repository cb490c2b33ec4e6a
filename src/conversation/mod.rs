//! A conversation: what was said, the pictures that were shown, and both as a file.

mod file;
mod session_file;
#[cfg(test)]
mod tests;

pub use file::{MAX_PICTURES, Saved, SavedTurn};
pub use session_file::SessionFile;

use std::sync::Arc;

use crate::error::Result;
use crate::image::ImageSource;
use crate::prompt::{self, ChatSettings, Message, PicturePrefix, Prompt, Turn};
use crate::session::Seen;
use crate::text::TextHparams;
use crate::tokenizer::Tokenizer;

/// A picture of a conversation.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Where it was read from; a path is absolute.
    pub source: ImageSource,
    /// Width and height in pixels of the picture as it was read, upright unless told otherwise.
    pub size: (u32, u32),
    /// What the language model sees of it (4 MiB for the real model).
    pub seen: Arc<Seen>,
}

/// Turns with their pictures, and pictures that wait for their question. Having one means: pictures are shown once each,
/// in order, so picture `k` (from 0) is `Picture k+1` of the prompt.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The system message.
    pub system: String,
    turns: Vec<Turn>,
    pictures: Vec<Shown>,
}

/// What [`Conversation::undo`] took back.
#[derive(Debug)]
pub enum Undone {
    /// There was nothing.
    Nothing,
    /// A picture that had no question yet.
    Picture(Shown),
    /// The last question, its pictures and its answer.
    Turn(Turn),
}

/// A prompt that fits as well as it can.
#[derive(Debug)]
pub struct Fitted {
    /// What is to be read.
    pub prompt: Prompt,
    /// Whether turns were left out: the oldest, beyond the model's window or the context.
    pub is_cut: bool,
}

impl Conversation {
    /// One in which nothing was said yet.
    pub fn new(system: impl Into<String>) -> Self {
        Conversation { system: system.into(), turns: Vec::new(), pictures: Vec::new() }
    }

    /// Questions with their answers, oldest first.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// All pictures, those that wait for a question last.
    pub fn pictures(&self) -> &[Shown] {
        &self.pictures
    }

    /// Pictures that belong to the next question.
    pub fn waiting(&self) -> &[Shown] {
        &self.pictures[self.n_asked()..]
    }

    /// The picture that the last answer's coordinates are of: the last one that a question was asked about.
    pub fn last_asked(&self) -> Option<(usize, &Shown)> {
        let k = self.n_asked().checked_sub(1)?;
        Some((k, self.pictures.get(k)?))
    }

    /// What the model sees of all pictures, by their index. Cost: no copy.
    pub fn images(&self) -> Vec<Arc<Seen>> {
        self.pictures.iter().map(|shown| Arc::clone(&shown.seen)).collect()
    }

    /// Shows a picture; the next question is about it. Returns its number, from 1.
    pub fn show(&mut self, picture: Shown) -> usize {
        self.pictures.push(picture);
        self.pictures.len()
    }

    /// A question about all pictures that wait.
    pub fn query(&self, text: impl Into<String>) -> Message {
        Message { text: text.into(), pictures: (self.n_asked()..self.pictures.len()).collect() }
    }

    /// Appends a question about all pictures that wait, and its answer.
    pub fn push(&mut self, question: impl Into<String>, answer: impl Into<String>) {
        let query = self.query(question);
        self.turns.push(Turn { query, answer: Some(answer.into()) });
    }

    /// Replaces the last answer, if there is one.
    pub fn set_answer(&mut self, answer: impl Into<String>) {
        if let Some(last) = self.turns.last_mut() {
            last.answer = Some(answer.into());
        }
    }

    /// Takes back what came last: a picture that waits for its question, else the last question with its pictures.
    pub fn undo(&mut self) -> Undone {
        if !self.waiting().is_empty() {
            return self.pictures.pop().map_or(Undone::Nothing, Undone::Picture);
        }
        let Some(turn) = self.turns.pop() else { return Undone::Nothing };
        self.pictures.truncate(self.n_asked());
        Undone::Turn(turn)
    }

    /// Takes back pictures that wait until `n_pictures` are left.
    pub fn withdraw(&mut self, n_pictures: usize) {
        self.pictures.truncate(n_pictures.max(self.n_asked()));
    }

    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.pictures.clear();
    }

    /// The prompt of `query` after the first `n_turns` turns, for a context of `n_ctx` positions of which `n_answer` should
    /// be left. The oldest turns are left out where the model's window ends, as in the original code, or where the context
    /// would: what is left may still be too long. Errors: none but a failing pre-tokenizer. Cost: encodes all turns.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        h: &TextHparams,
        n_turns: usize,
        query: &Message,
        (n_ctx, n_answer): (usize, usize),
    ) -> Result<Fitted> {
        let history = &self.turns[..n_turns.min(self.turns.len())];
        let limits = Limits { window: h.max_window_size, n_ctx, n_answer };
        fitted(tokenizer, (&self.system, h.picture_prefix), history, query, limits)
    }

    /// Pictures that a question was asked about.
    fn n_asked(&self) -> usize {
        self.turns.iter().map(|turn| turn.query.pictures.len()).sum()
    }
}

/// How much may be read.
#[derive(Clone, Copy)]
struct Limits {
    /// Positions of system message and turns, exclusive.
    window: usize,
    /// Positions of prompt and answer.
    n_ctx: usize,
    /// Positions of the answer.
    n_answer: usize,
}

fn fitted(
    tokenizer: &Tokenizer,
    (system, picture_prefix): (&str, PicturePrefix),
    history: &[Turn],
    query: &Message,
    limits: Limits,
) -> Result<Fitted> {
    let n_positions = |prompt: &Prompt| prompt.n_positions(tokenizer.n_queries());
    let within = |max_window_size| {
        let settings = ChatSettings { system: system.to_owned(), max_window_size, picture_prefix };
        prompt::chat(tokenizer, &settings, history, query)
    };
    let whole = within(usize::MAX)?;
    let mut prompt = within(limits.window)?;
    if n_positions(&prompt).saturating_add(limits.n_answer) > limits.n_ctx {
        // What stands beside the turns, the system message included: it is in the window too, so counting it here
        // leaves its length free at worst.
        let n_alone = n_positions(&within(0)?);
        let window = limits.n_ctx.saturating_sub(n_alone).saturating_sub(limits.n_answer);
        prompt = within(window.min(limits.window))?;
    }
    let is_cut = n_positions(&prompt) < n_positions(&whole);
    Ok(Fitted { prompt, is_cut })
}
