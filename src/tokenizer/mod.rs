//! Qwen's tokenizer from the metadata of a text GGUF: byte-level BPE by rank, 217 special tokens, picture spans.
//!
//! The behaviour is that of the checkpoint's `tokenization_qwen.py` on `tiktoken`, id for id; the pre-tokenizer is the
//! crate `tokenizers`' regex engine. The crate's own BPE model is not used: it works from merges, and `tiktoken`'s
//! "lowest rank first, a piece that is a token is taken whole" is simpler from ranks, which are the ids.

mod alphabet;
mod bpe;
#[cfg(test)]
mod goldens;
mod pieces;
mod ranks;
#[cfg(test)]
pub(crate) mod samples;
mod spans;
mod special;
mod stream;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

pub use alphabet::Alphabet;
pub use bpe::merge;
pub use ranks::Ranks;
pub(crate) use spans::Part;
pub use special::{N_SPECIAL, Special, SpecialIds, special_names};
pub use stream::StreamDecoder;

use crate::error::{Error, Result};
use crate::grammar::Vocabulary;
use pieces::Pieces;

/// `token_type` of an ordinary token.
pub const TYPE_NORMAL: i32 = 1;
/// `token_type` of a special token.
pub const TYPE_CONTROL: i32 = 3;
/// `token_type` of a special token that a tool declared as the user's.
pub const TYPE_USER_DEFINED: i32 = 4;
/// `token_type` of a row that pads the embedding table.
pub const TYPE_UNUSED: i32 = 5;

/// The id of a token: its row in the embedding table. On the wire a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl TokenId {
    /// The number.
    pub fn to_u32(self) -> u32 {
        self.0
    }
}

/// What becomes of special tokens when ids are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They are written by name. An id without a name is an error.
    Keep,
    /// The six grounding tags are written, the others and all ids beyond are dropped.
    KeepGrounding,
    /// All ids beyond the ranks are dropped.
    Skip,
}

/// A proven vocabulary: ids `0..n_ranks` are ordinary tokens that include every single byte, the 217 special tokens
/// follow, and all rows after them are padding. About 5 MiB for the real one.
pub struct Tokenizer {
    ranks: Ranks,
    special: special::SpecialTokens,
    pieces: Pieces,
    n_rows: usize,
    n_queries: usize,
}

impl Tokenizer {
    /// From `tokens` (row = id, spelled in [`Alphabet`]), their `types` (the `TYPE_` numbers) and the slots in a
    /// picture's span, which must be what the vision part produces. Costs about 25 ms for 151,936 rows.
    ///
    /// Errors (kind `Model`): lists of different length, ordinary tokens that are not the first rows, a spelling that
    /// is no byte string, an empty or repeated token, a missing byte or special token, anything but padding after them.
    pub fn new(tokens: Vec<String>, types: &[i32], n_queries: usize) -> Result<Tokenizer> {
        if tokens.len() != types.len() {
            let (n_tokens, n_types) = (tokens.len(), types.len());
            return Err(Error::model(format!("vocabulary: {n_tokens} tokens but {n_types} token types")));
        }
        if n_queries == 0 {
            return Err(Error::model("vocabulary: a picture's span needs at least one slot, found 0"));
        }
        let n_ranks = types.iter().take_while(|&&kind| kind == TYPE_NORMAL).count();
        let special = special::SpecialTokens::after(n_ranks)?;
        check_special(&special.names, &tokens, types, n_ranks)?;
        let ranks = read_ranks(&tokens[..n_ranks])?;
        Ok(Tokenizer { ranks, special, pieces: Pieces::new()?, n_rows: tokens.len(), n_queries })
    }

    /// The ids of the special tokens.
    pub fn special_ids(&self) -> SpecialIds {
        self.special.ids
    }

    /// Ids that mean something, `0..n_used`; the rows after them are padding.
    pub fn n_used(&self) -> usize {
        self.ranks.n_ranks() + N_SPECIAL
    }

    /// Rows of the embedding table, padding included.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Slots in a picture's span (which has two ids more: its tags).
    pub fn n_queries(&self) -> usize {
        self.n_queries
    }

    /// The bytes of a token, special ones by name; `None` for padding and beyond.
    pub fn bytes(&self, id: TokenId) -> Option<&[u8]> {
        self.ranks.bytes(id.0).or_else(|| self.special.name(id).map(str::as_bytes))
    }

    /// What a grammar chooses from: the used ids, special ones by name, and those that end an answer. Copies all bytes.
    pub fn vocabulary(&self, stop_ids: &[TokenId]) -> Vocabulary {
        let stops: Vec<u32> = stop_ids.iter().map(|id| id.0).collect();
        let ids = (0..self.n_used() as u32).map(TokenId);
        Vocabulary::new(ids.map(|id| self.bytes(id).unwrap_or_default()), &stops)
    }

    /// Text → ids. Nothing is added in front or behind. Unless `special` is `None` the text is first put in NFC, paths
    /// of pictures included, as the reference does. O(n log n).
    ///
    /// Errors (kind `Usage`): `<img>` without `</img>`, a special token between them, a path longer than the slots.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<TokenId>> {
        let text = normalise(text, special);
        let mut out = Vec::with_capacity(text.len() / 3);
        for part in self.parts(&text, special)? {
            match part {
                Part::Text(stretch) => self.encode_plain(stretch, &mut out)?,
                Part::Special(id) => out.push(id),
                Part::Span(path) => spans::encode_span(&self.special.ids, path, self.n_queries, &mut out)?,
            }
        }
        Ok(out)
    }

    /// Cuts text (which the caller has normalised) into stretches, special tokens and spans.
    pub(crate) fn parts<'t>(&self, text: &'t str, special: Special) -> Result<Vec<Part<'t>>> {
        spans::parts(&self.special, text, special)
    }

    /// Appends the ids of a stretch in which nothing is special.
    pub(crate) fn encode_plain(&self, stretch: &str, out: &mut Vec<TokenId>) -> Result<()> {
        self.pieces.split(stretch, |piece| bpe::encode_piece(&self.ranks, piece.as_bytes(), out))
    }

    /// Ids → text, with one U+FFFD for each maximal part that is not UTF-8. See [`Tokenizer::decode_bytes`].
    pub fn decode(&self, ids: &[TokenId], specials: Specials) -> Result<String> {
        let bytes = self.decode_bytes(ids, specials)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Ids → bytes. A picture's span becomes `<img>path</img>`, or the bare path where specials are dropped.
    ///
    /// Errors (kind `Usage`): a span that is not closed or whose slots are no path with a pad after it; an id beyond
    /// the used ones when specials are kept.
    pub fn decode_bytes(&self, ids: &[TokenId], specials: Specials) -> Result<Vec<u8>> {
        let (mut out, mut at) = (Vec::with_capacity(ids.len() * 4), 0);
        while let Some(span) = spans::next_span(&self.special.ids, ids, at)? {
            self.append(&ids[at..=span.start], specials, &mut out)?;
            let path = spans::decode_span(&self.special, &ids[span.start + 1..span.end])
                .map_err(|error| Error::usage(format!("ids {} to {}", span.start, span.end)).because(error))?;
            out.extend_from_slice(path.as_bytes());
            self.append(&ids[span.end..=span.end], specials, &mut out)?;
            at = span.end + 1;
        }
        self.append(&ids[at..], specials, &mut out)?;
        Ok(out)
    }

    /// Appends the bytes of ids outside of spans.
    fn append(&self, ids: &[TokenId], specials: Specials, out: &mut Vec<u8>) -> Result<()> {
        for &id in ids.iter().filter(|&&id| self.keeps(id, specials)) {
            let n_used = self.n_used();
            let unknown = || Error::usage(format!("token id {}: the vocabulary has ids 0 to {}", id.0, n_used - 1));
            out.extend_from_slice(self.bytes(id).ok_or_else(unknown)?);
        }
        Ok(())
    }

    /// Whether an id is to be written.
    fn keeps(&self, id: TokenId, specials: Specials) -> bool {
        let ids = &self.special.ids;
        match specials {
            Specials::Keep => true,
            Specials::KeepGrounding => id < ids.eod || ids.is_grounding(id),
            Specials::Skip => id < ids.eod,
        }
    }
}

/// The text in NFC, except where its very bytes are wanted. Copies only if it was not.
pub(crate) fn normalise(text: &str, special: Special) -> Cow<'_, str> {
    if special == Special::None || text.is_ascii() || is_nfc(text) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().collect())
}

/// The ordinary tokens from their spellings.
fn read_ranks(spellings: &[String]) -> Result<Ranks> {
    let alphabet = Alphabet::new();
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(spellings.len()));
    for (id, spelling) in spellings.iter().enumerate() {
        let read = alphabet.read_into(spelling, &mut bytes);
        read.ok_or_else(|| {
            Error::model(format!("vocabulary: token {id} is not spelled in byte characters: {spelling:?}"))
        })?;
        ends.push(bytes.len());
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    Ranks::new(starts.zip(&ends).map(|(start, &end)| &bytes[start..end]))
}

/// Checks that the special tokens stand after the ranks, and only padding after them.
fn check_special(names: &[String], tokens: &[String], types: &[i32], n_ranks: usize) -> Result<()> {
    let rows = || tokens.iter().zip(types).enumerate().skip(n_ranks);
    for (offset, name) in names.iter().enumerate() {
        let id = n_ranks + offset;
        let found = rows().nth(offset);
        if !found.is_some_and(|(_, (token, kind))| token == name && [TYPE_CONTROL, TYPE_USER_DEFINED].contains(kind)) {
            let found =
                found.map_or("no such token".to_string(), |(_, (token, kind))| format!("{token:?} of type {kind}"));
            let expected = format!("expected the special token {name} (type {TYPE_CONTROL})");
            return Err(Error::model(format!(
                "vocabulary: token {id}: {expected}, found {found}: not a Qwen-VL model?"
            )));
        }
    }
    match rows().skip(names.len()).find(|(_, (_, kind))| **kind != TYPE_UNUSED) {
        Some((id, (token, kind))) => Err(Error::model(format!(
            "vocabulary: token {id}: expected padding (type {TYPE_UNUSED}) after the special tokens, found {token:?} of type {kind}"
        ))),
        None => Ok(()),
    }
}
