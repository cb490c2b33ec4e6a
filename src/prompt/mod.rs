//! Chat turns, raw text or ids → a [`Prompt`]: chunks of tokens and pictures.
//!
//! A picture is two tokens (its tags) around the rows of its embedding. What the reference writes into the slots between
//! the tags, the bytes of the path, has no influence on the model, so a prompt does not hold it: paths may be of any
//! length here.

mod chat;
#[cfg(test)]
mod goldens;
mod raw;

pub use chat::{ChatSettings, Message, Turn, chat};
pub use raw::{from_ids, raw};

use crate::error::Result;
use crate::tokenizer::{Part, Special, TokenId, Tokenizer, normalise};

/// A stretch of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Token ids, not empty; a picture's tags are among them.
    Tokens(Vec<TokenId>),
    /// Exactly the `n_queries` slots of the caller's picture with this index.
    Image(usize),
}

/// What the model is to read. No two neighbouring chunks are tokens, and every picture stands between its tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// In reading order.
    pub chunks: Vec<Chunk>,
}

impl Prompt {
    /// How many positions of the context the prompt takes, `n_queries` for each picture.
    pub fn n_positions(&self, n_queries: usize) -> usize {
        let size = |chunk: &Chunk| match chunk {
            Chunk::Tokens(ids) => ids.len(),
            Chunk::Image(_) => n_queries,
        };
        self.chunks.iter().map(size).sum()
    }

    /// How many positions there are up to the last picture, with its closing tag; 0 if there is no picture.
    pub fn n_to_last_image(&self, n_queries: usize) -> usize {
        let last = self.chunks.iter().rposition(|chunk| matches!(chunk, Chunk::Image(_)));
        let upto = |last: usize| Prompt { chunks: self.chunks[..=last].to_vec() }.n_positions(n_queries) + 1;
        last.map_or(0, upto)
    }

    /// How many pictures the prompt shows (one shown twice counts twice).
    pub fn n_images(&self) -> usize {
        self.images().count()
    }

    /// The pictures in the order in which they are shown.
    pub fn images(&self) -> impl Iterator<Item = usize> {
        self.chunks.iter().filter_map(|chunk| match chunk {
            Chunk::Image(k) => Some(*k),
            Chunk::Tokens(_) => None,
        })
    }

    /// The ids as a flat list `[n_positions]` in which every slot of a picture holds `img_pad`.
    pub fn ids_with_slots(&self, img_pad: TokenId, n_queries: usize) -> Vec<TokenId> {
        let mut ids = Vec::with_capacity(self.n_positions(n_queries));
        for chunk in &self.chunks {
            match chunk {
                Chunk::Tokens(tokens) => ids.extend_from_slice(tokens),
                Chunk::Image(_) => ids.extend(std::iter::repeat_n(img_pad, n_queries)),
            }
        }
        ids
    }

    /// Appends one token.
    fn push(&mut self, id: TokenId) {
        match self.chunks.last_mut() {
            Some(Chunk::Tokens(ids)) => ids.push(id),
            _ => self.chunks.push(Chunk::Tokens(vec![id])),
        }
    }

    /// Appends another prompt.
    fn append(&mut self, other: Prompt) {
        for chunk in other.chunks {
            match (self.chunks.last_mut(), chunk) {
                (Some(Chunk::Tokens(ids)), Chunk::Tokens(more)) => ids.extend(more),
                (_, chunk) => self.chunks.push(chunk),
            }
        }
    }

    /// Appends a picture between its tags.
    fn push_image(&mut self, tokenizer: &Tokenizer, k: usize) {
        let ids = tokenizer.special_ids();
        self.push(ids.img_start);
        self.chunks.push(Chunk::Image(k));
        self.push(ids.img_end);
    }

    /// Appends text that stands by itself: what is left and right of it is not merged with it. Returns the paths of the
    /// spans in it, which become the pictures `first_image`, `first_image + 1`, ..
    /// Errors (kind `Usage`): as [`Tokenizer::encode`], without a limit on the paths.
    fn push_text(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        special: Special,
        first_image: usize,
    ) -> Result<Vec<String>> {
        let text = normalise(text, special);
        let mut paths = Vec::new();
        for part in tokenizer.parts(&text, special)? {
            match part {
                Part::Text(stretch) => {
                    let mut ids = Vec::new();
                    tokenizer.encode_plain(stretch, &mut ids)?;
                    ids.into_iter().for_each(|id| self.push(id));
                }
                Part::Special(id) => self.push(id),
                Part::Span(path) => {
                    self.push_image(tokenizer, first_image + paths.len());
                    paths.push(path.to_string());
                }
            }
        }
        Ok(paths)
    }
}

/// What stands before a picture that was given beside the text; it is followed by a line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicturePrefix {
    /// `Picture 1: `, as Qwen-VL and Qwen-VL-Chat were given them.
    Spaced,
    /// `Picture 1:`, the format of Qwen-VL-Chat-Int4's older tokenizer.
    Unspaced,
    /// Nothing, as in some evaluation prompts.
    Bare,
}

impl PicturePrefix {
    /// The text in front of picture `number`, counted from 1.
    fn text(self, number: usize) -> String {
        match self {
            PicturePrefix::Spaced => format!("Picture {number}: "),
            PicturePrefix::Unspaced => format!("Picture {number}:"),
            PicturePrefix::Bare => String::new(),
        }
    }
}

/// Writes pictures and then text: `Picture k: <img>…</img>\n` for each picture, then the text.
///
/// The line break after a picture and what follows it are one stretch for the tokenizer, as they are in the reference,
/// which encodes the whole content at once: they may merge. So the text comes back with the line break in front.
fn push_pictures(
    prompt: &mut Prompt,
    tokenizer: &Tokenizer,
    prefix: PicturePrefix,
    pictures: impl IntoIterator<Item = (usize, usize)>,
    text: &str,
) -> Result<String> {
    let mut stretch = String::new();
    for (number, k) in pictures {
        stretch.push_str(&prefix.text(number));
        prompt.push_text(tokenizer, &stretch, Special::None, 0)?;
        prompt.push_image(tokenizer, k);
        stretch = "\n".to_string();
    }
    Ok(stretch + text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Chunk {
        Chunk::Tokens(ids.iter().map(|&id| TokenId(id)).collect())
    }

    #[test]
    fn counts_and_flattens() {
        let prompt = Prompt { chunks: vec![ids(&[7, 1]), Chunk::Image(3), ids(&[2]), Chunk::Image(0), ids(&[2, 9])] };
        assert_eq!(prompt.n_positions(4), 13);
        assert_eq!(prompt.images().collect::<Vec<_>>(), [3, 0]);
        assert_eq!(prompt.n_images(), 2);
        assert_eq!(prompt.n_to_last_image(4), 12);
        let flat: Vec<u32> = prompt.ids_with_slots(TokenId(0), 2).iter().map(|id| id.0).collect();
        assert_eq!(flat, [7, 1, 0, 0, 2, 0, 0, 2, 9]);
        assert_eq!(Prompt::default().n_positions(4), 0);
        assert_eq!(Prompt { chunks: vec![ids(&[7, 1])] }.n_to_last_image(4), 0);
    }

    #[test]
    fn appending_joins_tokens() {
        let mut prompt = Prompt { chunks: vec![ids(&[1])] };
        prompt.append(Prompt { chunks: vec![ids(&[2]), Chunk::Image(0)] });
        prompt.append(Prompt { chunks: vec![ids(&[3])] });
        assert_eq!(prompt.chunks, [ids(&[1, 2]), Chunk::Image(0), ids(&[3])]);
    }
}
