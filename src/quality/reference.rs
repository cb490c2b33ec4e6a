//! What a reference model said, kept so that it need not be run again: the beginnings of its distributions, its answers, its
//! embeddings. 1 KB a position and 2 MiB a picture of the real model, where all log-probabilities would be 600 KB a position.
//!
//! The file is a GGUF; `names::reference` says what is in it.

mod read;
mod record;

pub use record::Recorder;

use half::f16;
use sha2::{Digest, Sha256};

use super::Distribution;
use crate::image::Picture;
use crate::tokenizer::{TokenId, Tokenizer};

/// A reference in memory. Having one says: its checksum is right, every id is one of the vocabulary, and every number is finite,
/// but for the mass of a rest that is not there.
pub struct Reference {
    /// What it is of.
    pub identity: Identity,
    /// Name and type of the model that made it.
    pub model: String,
    /// Its own greedy answer to each example.
    pub answers: Vec<String>,
    /// Token that follows at each position, those of an example together.
    targets: Vec<Vec<TokenId>>,
    /// Where each example's positions begin.
    starts: Vec<usize>,
    target_logprobs: Vec<f32>,
    distributions: Vec<Distribution>,
    n_queries: usize,
    d_out: usize,
    embeddings: Vec<f16>,
}

/// What a reference belongs to: SHA-256 in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the vocabulary.
    pub vocabulary: String,
    /// Of the examples.
    pub data: String,
    /// Of each picture's pixels.
    pub pictures: Vec<String>,
}

impl Identity {
    /// The name of a vocabulary: equal tokens in equal order. Cost: a hash over some MB for the real one.
    pub fn vocabulary(tokenizer: &Tokenizer) -> String {
        let mut hash = Sha256::new();
        for id in 0..tokenizer.n_used() as u32 {
            let bytes = tokenizer.bytes(TokenId(id)).unwrap_or_default();
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hex(hash)
    }

    /// The name of a picture: equal pixels.
    pub fn picture(picture: &Picture) -> String {
        let mut hash = Sha256::new();
        hash.update(picture.width().to_le_bytes());
        hash.update(picture.height().to_le_bytes());
        hash.update(picture.pixels());
        hex(hash)
    }

    /// The name of a list of texts.
    pub fn data<'t>(texts: impl Iterator<Item = &'t str>) -> String {
        let mut hash = Sha256::new();
        for text in texts {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hex(hash)
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Reference {
    /// Tokens that follow in an example's answer, its end included.
    pub fn targets(&self, example: usize) -> &[TokenId] {
        &self.targets[example]
    }

    /// The distribution at position `nth` of an example's answer, and the log-probability of the token that follows there.
    pub fn at(&self, example: usize, nth: usize) -> (&Distribution, f32) {
        let at = self.starts[example] + nth;
        (&self.distributions[at], self.target_logprobs[at])
    }

    /// The embedding of a picture: its rows, and their length.
    pub fn embedding(&self, picture: usize) -> (&[f16], usize) {
        let n = self.n_queries * self.d_out;
        (&self.embeddings[picture * n..(picture + 1) * n], self.d_out)
    }

    /// (rows, values a row) of its embeddings; (0, 0) without pictures.
    pub fn shape(&self) -> (usize, usize) {
        (self.n_queries, self.d_out)
    }
}
