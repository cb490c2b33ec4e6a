//! The special tokens: names, ids, and finding them in text.

use aho_corasick::AhoCorasick;

use super::TokenId;
use crate::error::{Error, Result};

/// The three that frame a conversation; they follow the ranks.
const FRAME: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// How many `<|extra_N|>` come next.
const N_EXTRA: usize = 205;
/// The picture and grounding tags, last.
const TAGS: [&str; 9] = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"];
/// How many special tokens there are.
pub const N_SPECIAL: usize = FRAME.len() + N_EXTRA + TAGS.len();

/// The names of the special tokens in the order of their ids, which follow the ranks without a gap.
///
/// Source: the checkpoint's `tokenization_qwen.py` (`SPECIAL_TOKENS`, `IMAGE_ST`).
pub fn special_names() -> Vec<String> {
    let extras = (0..N_EXTRA).map(|i| format!("<|extra_{i}|>"));
    FRAME.iter().map(ToString::to_string).chain(extras).chain(TAGS.iter().map(ToString::to_string)).collect()
}

/// Which special tokens count when text is encoded; everything else in the text is plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// All of them; `<img>path</img>` becomes a picture's span. The reference's `tokenizer(text)`.
    All,
    /// The nine picture and grounding tags, and spans. What the reference's chat does with contents.
    Image,
    /// The six grounding tags (ref, box, quad). What this program's chat does with contents: a user who types
    /// `<img>` means the five characters.
    Grounding,
    /// None, and the text is not normalised either: its very bytes.
    None,
}

/// The ids of the special tokens that have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<|endoftext|>`: ends a generation and pads a batch. The first id after the ranks.
    pub eod: TokenId,
    /// `<|im_start|>`: opens a message.
    pub im_start: TokenId,
    /// `<|im_end|>`: closes a message.
    pub im_end: TokenId,
    /// `<ref>`: opens a phrase.
    pub ref_start: TokenId,
    /// `</ref>`.
    pub ref_end: TokenId,
    /// `<box>`: opens two corners.
    pub box_start: TokenId,
    /// `</box>`.
    pub box_end: TokenId,
    /// `<quad>`: opens four corners.
    pub quad_start: TokenId,
    /// `</quad>`.
    pub quad_end: TokenId,
    /// `<img>`: opens a picture's span.
    pub img_start: TokenId,
    /// `</img>`: closes it.
    pub img_end: TokenId,
    /// `<imgpad>`: fills the slots of a span.
    pub img_pad: TokenId,
}

impl SpecialIds {
    /// The ids after `n_ranks` ordinary tokens (`n_ranks` ≤ 2^24, as [`Ranks`](super::Ranks) proves).
    pub fn after(n_ranks: usize) -> SpecialIds {
        let id = |offset: usize| TokenId((n_ranks + offset) as u32);
        let tag = |offset: usize| id(FRAME.len() + N_EXTRA + offset);
        SpecialIds {
            eod: id(0),
            im_start: id(1),
            im_end: id(2),
            ref_start: tag(0),
            ref_end: tag(1),
            box_start: tag(2),
            box_end: tag(3),
            quad_start: tag(4),
            quad_end: tag(5),
            img_start: tag(6),
            img_end: tag(7),
            img_pad: tag(8),
        }
    }

    /// Whether `id` is one of the six grounding tags.
    pub fn is_grounding(&self, id: TokenId) -> bool {
        (self.ref_start..=self.quad_end).contains(&id)
    }

    /// Whether `id` is a special token that counts under `special`.
    fn counts(&self, id: TokenId, special: Special) -> bool {
        match special {
            Special::All => true,
            Special::Image => id >= self.ref_start,
            Special::Grounding => self.is_grounding(id),
            Special::None => false,
        }
    }
}

/// The special tokens of one vocabulary: their ids and an automaton that finds their names.
pub(super) struct SpecialTokens {
    pub ids: SpecialIds,
    pub names: Vec<String>,
    finder: AhoCorasick,
}

impl SpecialTokens {
    pub fn after(n_ranks: usize) -> Result<SpecialTokens> {
        let names = special_names();
        let finder = AhoCorasick::new(&names).map_err(|cause| Error::other("special tokens").because(cause))?;
        Ok(SpecialTokens { ids: SpecialIds::after(n_ranks), names, finder })
    }

    /// The name of a special token.
    pub fn name(&self, id: TokenId) -> Option<&str> {
        let offset = id.0.checked_sub(self.ids.eod.0)?;
        self.names.get(offset as usize).map(String::as_str)
    }

    /// The special tokens that count in `text`, as (start byte, end byte, id), in order. One pass.
    ///
    /// Finding all and dropping those that do not count is exact: a name has `<` only at its start and `>` only at its
    /// end, so no two occurrences overlap.
    pub fn find(&self, text: &str, special: Special) -> impl Iterator<Item = (usize, usize, TokenId)> {
        let all = self.finder.find_iter(text).map(|found| {
            let id = TokenId(self.ids.eod.0 + found.pattern().as_u32());
            (found.start(), found.end(), id)
        });
        all.filter(move |&(_, _, id)| self.ids.counts(id, special))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_ranks() {
        let names = special_names();
        let ids = SpecialIds::after(151_643);
        let name = |id: TokenId| names[id.0 as usize - 151_643].as_str();
        assert_eq!(names.len(), N_SPECIAL);
        assert_eq!((name(ids.eod), name(ids.im_start), name(ids.im_end)), (FRAME[0], FRAME[1], FRAME[2]));
        assert_eq!((name(ids.ref_start), name(ids.ref_end)), ("<ref>", "</ref>"));
        assert_eq!((name(ids.box_start), name(ids.box_end)), ("<box>", "</box>"));
        assert_eq!((name(ids.quad_start), name(ids.quad_end)), ("<quad>", "</quad>"));
        assert_eq!((name(ids.img_start), name(ids.img_end)), ("<img>", "</img>"));
        assert_eq!((name(ids.img_pad), ids.img_pad), ("<imgpad>", TokenId(151_859)));
    }

    #[test]
    fn finds_what_counts() {
        let specials = SpecialTokens::after(256).unwrap();
        let found = |text: &str, special| specials.find(text, special).map(|(start, ..)| start).collect::<Vec<_>>();
        let text = "<ref<ref><img><|im_end|></quad><imgpad><|extra_205|>";
        assert_eq!(found(text, Special::All), [4, 9, 14, 24, 31]);
        assert_eq!(found(text, Special::Image), [4, 9, 24, 31]);
        assert_eq!(found(text, Special::Grounding), [4, 24]);
        assert!(found(text, Special::None).is_empty());
    }
}
