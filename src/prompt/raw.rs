//! Prompts that are completed as they stand: text with every special token, and lists of ids.

use super::{PicturePrefix, Prompt, push_pictures};
use crate::error::{Error, Result};
use crate::tokenizer::{Part, Special, TokenId, Tokenizer};

/// A raw prompt: first the `n_pictures` given beside the text, each announced by `prefix` and followed by a line break;
/// then `text`, in which all special tokens count and each `<img>PATH</img>` is a picture. Returns the prompt and the
/// paths; the pictures are numbered from 0, those beside the text first, then the paths in order. `</img>` alone is
/// just a token.
///
/// The text is put in NFC like the reference does it, but the paths come back as they were typed: a file whose name is
/// not in NFC can be opened.
///
/// Errors (kind `Usage`): `<img>` without `</img>`, a special token between them, an empty path.
pub fn raw(
    tokenizer: &Tokenizer,
    text: &str,
    n_pictures: usize,
    prefix: PicturePrefix,
) -> Result<(Prompt, Vec<String>)> {
    let mut prompt = Prompt::default();
    let numbered = (0..n_pictures).map(|k| (k + 1, k));
    let text = push_pictures(&mut prompt, tokenizer, prefix, numbered, text)?;
    let paths = prompt.push_text(tokenizer, &text, Special::All, n_pictures)?;
    if let Some(k) = paths.iter().position(String::is_empty) {
        return Err(Error::usage(format!("prompt: picture {} of the text has an empty path: <img></img>", k + 1)));
    }
    let typed = typed_paths(tokenizer, &text);
    Ok((prompt, if typed.len() == paths.len() { typed } else { paths }))
}

/// The paths in the text as it was typed. (NFC can change a tag, if a combining character follows it; then the number
/// of spans differs, and what the normalised text says is right.)
fn typed_paths(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let parts = tokenizer.parts(text, Special::All).unwrap_or_default();
    let path = |part: Part| match part {
        Part::Span(path) => Some(path.to_string()),
        Part::Text(_) | Part::Special(_) => None,
    };
    parts.into_iter().filter_map(path).collect()
}

/// The prompt of a list of ids. A picture is the start id, any `n_queries` ids, the end id; pictures are numbered from 0
/// in order.
///
/// Errors (kind `Usage`): an id that is no row of the embedding table, a start id without an end id `n_queries` later.
pub fn from_ids(tokenizer: &Tokenizer, ids: &[TokenId]) -> Result<Prompt> {
    let n_rows = tokenizer.n_rows();
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| id.0 as usize >= n_rows) {
        return Err(Error::usage(format!("id {} at index {at}: the vocabulary has {n_rows} rows", id.0)));
    }
    let special = tokenizer.special_ids();
    let n_queries = tokenizer.n_queries();
    let (mut prompt, mut at, mut n_images) = (Prompt::default(), 0, 0);
    while let Some(&id) = ids.get(at) {
        if id != special.img_start {
            prompt.push(id);
            at += 1;
            continue;
        }
        if ids.get(at + n_queries + 1) != Some(&special.img_end) {
            let (start, end) = (special.img_start.0, special.img_end.0);
            return Err(Error::usage(format!(
                "picture {n_images} at index {at}: expected id {start}, {n_queries} ids, then id {end}"
            )));
        }
        prompt.push_image(tokenizer, n_images);
        n_images += 1;
        at += n_queries + 2;
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::samples::{ids, toy};

    fn check(text: &str, n_pictures: usize, expect: &str, paths: &[&str]) {
        let toy = toy();
        let (prompt, found) = raw(&toy, text, n_pictures, PicturePrefix::Unspaced).unwrap();
        assert_eq!(found, paths, "{text:?}");
        assert_eq!(prompt.ids_with_slots(toy.special_ids().img_pad, 8), ids(&toy, expect), "{text:?}");
        assert_eq!(prompt.images().collect::<Vec<_>>(), (0..n_pictures + paths.len()).collect::<Vec<_>>());
    }

    #[test]
    fn text_with_pictures() {
        check("", 0, "", &[]);
        check("hello<|im_end|></img>", 0, "hello<|im_end|></img>", &[]);
        check("<img>a</img>b", 0, "<img></img>b", &["a"]);
        check("hello", 2, "Picture 1:<img></img>\nPicture 2:<img></img>\nhello", &[]);
        check("\n<img>a</img>", 1, "Picture 1:<img></img>\n\n<img></img>", &["a"]);
    }

    #[test]
    fn paths_are_as_typed_and_of_any_length() {
        let long = "x".repeat(10_000);
        check(&format!("<img>{long}</img><img>e\u{301}</img>"), 0, "<img></img><img></img>", &[&long, "e\u{301}"]);
    }

    #[test]
    fn bad_text_is_an_error() {
        let check = |text: &str, expect: &str| {
            let error = raw(&toy(), text, 0, PicturePrefix::Spaced).unwrap_err().to_string();
            assert!(error.contains(expect), "{error:?} lacks {expect:?}");
        };
        check("<img>a", "unclosed image token");
        check("<img><ref></img>", "special token <ref> inside");
        check("<img>a</img><img></img>", "picture 2 of the text has an empty path");
    }

    #[test]
    fn ids_with_spans() {
        let toy = toy();
        let flat = ids(&toy, "a<img>b</img><img>c</img></img>d");
        let prompt = from_ids(&toy, &flat).unwrap();
        assert_eq!(prompt.ids_with_slots(toy.special_ids().img_pad, 8), ids(&toy, "a<img></img><img></img></img>d"));
        assert_eq!(prompt.images().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(from_ids(&toy, &[]).unwrap(), Prompt::default());
        let check = |ids: &[TokenId], expect: &str| {
            let error = from_ids(&toy, ids).unwrap_err().to_string();
            assert!(error.contains(expect), "{error:?} lacks {expect:?}");
        };
        check(&flat[..10], "picture 0 at index 1: expected id 484, 8 ids, then id 485");
        check(&flat[..19], "picture 1 at index 11");
        check(&[TokenId(511), TokenId(512)], "id 512 at index 1: the vocabulary has 512 rows");
    }
}
