//! What a sequence is made of: tokens and rows of pictures, comparable, so that what was read need not be read again.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::too_long;
use crate::error::{Error, Result};
use crate::llama::Input;
use crate::prompt::{Chunk, Prompt};
use crate::text::TextHparams;
use crate::tokenizer::TokenId;
use crate::vision::ImageEmbedding;

/// SHA-256 of an embedding's values.
pub type ImageId = [u8; 32];

/// A picture as the language model sees it, with a name that is the same for the same numbers.
#[derive(Debug)]
pub struct Seen {
    /// Its name.
    pub id: ImageId,
    /// Its rows.
    pub embedding: ImageEmbedding,
}

impl Seen {
    /// Names an embedding. Cost: a hash over its values (4 MiB for the real model: some milliseconds).
    pub fn new(embedding: ImageEmbedding) -> Arc<Seen> {
        let mut hash = Sha256::new();
        for row in embedding.data.chunks(1024) {
            let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.update(bytes);
        }
        Arc::new(Seen { id: hash.finalize().into(), embedding })
    }
}

/// One position of a sequence.
#[derive(Clone, Debug)]
pub enum Place {
    /// A token.
    Token(TokenId),
    /// A row of a picture.
    Row(Arc<Seen>, usize),
}

impl Place {
    /// What stands there, without the numbers.
    pub fn mark(&self) -> Mark {
        match self {
            Place::Token(id) => Mark::Token(*id),
            Place::Row(seen, row) => Mark::Row(seen.id, *row as u32),
        }
    }

    /// What llama.cpp is given.
    pub fn input(&self) -> Input<'_> {
        match self {
            Place::Token(id) => Input::Token(id.to_u32()),
            Place::Row(seen, row) => {
                let e = &seen.embedding;
                Input::Embedding(&e.data[row * e.d_out..(row + 1) * e.d_out])
            }
        }
    }
}

/// Names a position's content; equal marks at equal positions after equal beginnings have equal keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A token.
    Token(TokenId),
    /// A row of the picture with this name.
    Row(ImageId, u32),
}

/// The places of a prompt that is there and fits into `n_ctx` positions; else the error (kind usage), or that of [`line`].
pub fn fitting_line(prompt: &Prompt, images: &[Arc<Seen>], h: &TextHparams, n_ctx: usize) -> Result<Vec<Place>> {
    let line = line(prompt, images, h.n_queries, h.n_embd)?;
    match line.len() {
        0 => Err(Error::usage("the prompt is empty")),
        n if n > n_ctx => Err(too_long(n, n_ctx)),
        _ => Ok(line),
    }
}

/// The places of a prompt whose pictures are `images`, by their index. Errors: a picture is missing, or has other
/// dimensions than `n_queries` rows of `n_embd`.
fn line(prompt: &Prompt, images: &[Arc<Seen>], n_queries: usize, n_embd: usize) -> Result<Vec<Place>> {
    let mut places = Vec::with_capacity(prompt.n_positions(n_queries));
    for chunk in &prompt.chunks {
        match chunk {
            Chunk::Tokens(ids) => places.extend(ids.iter().map(|id| Place::Token(*id))),
            Chunk::Image(k) => {
                let fits = |seen: &&Arc<Seen>| seen.embedding.d_out == n_embd && seen.embedding.n_queries == n_queries;
                let seen = images.get(*k).filter(fits);
                let seen = seen.ok_or_else(|| Error::other(format!("no fitting embedding of picture {k}")))?;
                places.extend((0..n_queries).map(|row| Place::Row(Arc::clone(seen), row)));
            }
        }
    }
    Ok(places)
}

/// How many places at the beginning of `line` are as `read` says.
pub fn n_common(read: &[Mark], line: &[Place]) -> usize {
    read.iter().zip(line).take_while(|(mark, place)| **mark == place.mark()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(value: f32) -> Arc<Seen> {
        Seen::new(ImageEmbedding { n_queries: 2, d_out: 3, data: vec![value; 6] })
    }

    fn prompt() -> Prompt {
        Prompt { chunks: vec![Chunk::Tokens(vec![TokenId(7)]), Chunk::Image(0), Chunk::Tokens(vec![TokenId(8)])] }
    }

    #[test]
    fn a_beginning_is_common_as_long_as_its_pictures_are() {
        let places = |image| line(&prompt(), &[image], 2, 3).unwrap();
        let read: Vec<Mark> = places(seen(1.0)).iter().map(Place::mark).collect();
        assert_eq!(read.len(), 4);
        assert_eq!(n_common(&read, &places(seen(1.0))), 4);
        assert_eq!(n_common(&read[..3], &places(seen(1.0))), 3);
        assert_eq!(n_common(&read, &places(seen(2.0))), 1);
        assert_eq!(n_common(&[], &places(seen(2.0))), 0);
    }

    #[test]
    fn pictures_must_fit() {
        assert!(line(&prompt(), &[], 2, 3).is_err());
        assert!(line(&prompt(), &[seen(1.0)], 2, 4).is_err());
    }
}
