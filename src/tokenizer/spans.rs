//! Text ↔ parts: plain stretches, special tokens, and the spans of pictures.
//!
//! Source: `_replace_closed_tag`, `_encode_imgurl` and `_decode_imgurl` of the checkpoint's `tokenization_qwen.py`.

use std::ops::Range;

use super::TokenId;
use super::special::{Special, SpecialIds, SpecialTokens};
use crate::error::{Error, Result};

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    /// A plain stretch, not empty.
    Text(&'t str),
    /// A special token outside of a span.
    Special(TokenId),
    /// `<img>path</img>`: what stands between the tags.
    Span(&'t str),
}

/// Cuts `text` into its parts. Errors (kind `Usage`): a span that is not closed, or that holds a special token.
pub(super) fn parts<'t>(specials: &SpecialTokens, text: &'t str, special: Special) -> Result<Vec<Part<'t>>> {
    let ids = &specials.ids;
    let (mut parts, mut at) = (Vec::new(), 0);
    let mut found = specials.find(text, special);
    while let Some((start, end, id)) = found.next() {
        if at < start {
            parts.push(Part::Text(&text[at..start]));
        }
        if id != ids.img_start {
            parts.push(Part::Special(id));
            at = end;
            continue;
        }
        at = match found.next() {
            Some((path_end, span_end, id)) if id == ids.img_end => {
                parts.push(Part::Span(&text[end..path_end]));
                span_end
            }
            None => return Err(unclosed(format!("byte {start} of the text"))),
            Some((inside, _, id)) => {
                let name = specials.name(id).unwrap_or_default();
                let what =
                    format!("byte {inside} of the text: special token {name} inside the image span of byte {start}");
                return Err(Error::usage(what));
            }
        };
    }
    if at < text.len() {
        parts.push(Part::Text(&text[at..]));
    }
    Ok(parts)
}

/// An `<img>` without `</img>`.
fn unclosed(place: String) -> Error {
    Error::usage(format!("{place}: unclosed image token: <img> without </img>"))
}

/// Appends the ids of a picture's span: the start tag, `n_queries` slots and the end tag. The slots hold the bytes of
/// the path, each as **the id equal to the byte** (not the byte's own token), then `<imgpad>`.
/// Error (kind `Usage`): more bytes than slots.
pub(super) fn encode_span(ids: &SpecialIds, path: &str, n_queries: usize, out: &mut Vec<TokenId>) -> Result<()> {
    let n_pads = n_queries.checked_sub(path.len()).ok_or_else(|| {
        let n_bytes = path.len();
        Error::usage(format!("image path of {n_bytes} bytes: an image span holds at most {n_queries}: {path}"))
    })?;
    out.push(ids.img_start);
    out.extend(path.bytes().map(|byte| TokenId(u32::from(byte))));
    out.extend(std::iter::repeat_n(ids.img_pad, n_pads));
    out.push(ids.img_end);
    Ok(())
}

/// The next span of `ids` from index `from` on: where its start tag and its end tag are.
/// Error (kind `Usage`): a start tag without an end tag.
pub(super) fn next_span(special: &SpecialIds, ids: &[TokenId], from: usize) -> Result<Option<Range<usize>>> {
    let find = |wanted: TokenId, from: usize| ids[from..].iter().position(|&id| id == wanted).map(|i| from + i);
    let Some(start) = find(special.img_start, from) else {
        return Ok(None);
    };
    find(special.img_end, start).map(|end| Some(start..end)).ok_or_else(|| unclosed(format!("id {start} of the list")))
}

/// The path that the slots of a span hold: their bytes up to the first `<imgpad>`.
/// Errors (kind `Usage`), all as in the reference: no pad, a slot that is no byte, bytes that are not UTF-8, and a path
/// that holds the name of a special token.
pub(super) fn decode_span(specials: &SpecialTokens, slots: &[TokenId]) -> Result<String> {
    let Some(n_bytes) = slots.iter().position(|&id| id == specials.ids.img_pad) else {
        return Err(Error::usage("image span without an <imgpad>"));
    };
    let bytes: std::result::Result<Vec<u8>, _> = slots[..n_bytes].iter().map(|id| u8::try_from(id.0)).collect();
    let bytes = bytes.map_err(|_| Error::usage("image span with an id over 255 among its path bytes"))?;
    let path = String::from_utf8(bytes).map_err(|cause| Error::usage("image span: path").because(cause))?;
    if specials.find(&path, Special::All).next().is_some() {
        return Err(Error::usage(format!("image span with a special token's name in its path: {path}")));
    }
    Ok(path)
}
