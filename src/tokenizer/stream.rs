//! Ids one at a time → text that never cuts a character.

use super::{Specials, TokenId, Tokenizer};

/// Turns a stream of ids into text as it comes. What the calls return, concatenated, is what decoding all bytes at once
/// with one U+FFFD per maximal bad part gives; a character whose bytes are not all there yet is held back.
///
/// It never fails: an id that has no text (a padding row) is nothing, and a picture's tags are just their names.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    specials: Specials,
    /// The start of a character, at most 3 bytes between two calls.
    held: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    /// A stream that has seen nothing.
    pub fn new(tokenizer: &'t Tokenizer, specials: Specials) -> Self {
        StreamDecoder { tokenizer, specials, held: Vec::new() }
    }

    /// Takes one id and returns the text that is now complete, often empty.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.tokenizer.keeps(id, self.specials) {
            self.held.extend_from_slice(self.tokenizer.bytes(id).unwrap_or_default());
        }
        let bytes = std::mem::take(&mut self.held);
        let mut text = String::new();
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let bad = chunk.invalid();
            if chunks.peek().is_none() && is_unfinished(bad) {
                self.held.extend_from_slice(bad);
            } else if !bad.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// Ends the stream and returns what was held back: nothing, or one U+FFFD. The decoder can be used again.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }
}

/// Whether more bytes could make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
