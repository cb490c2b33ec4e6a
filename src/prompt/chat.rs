//! The chat format: roles, turns, and what is dropped when the conversation outgrows its window.
//!
//! Source: `make_context` of the checkpoint's `qwen_generation_utils.py`.

use super::{PicturePrefix, Prompt, push_pictures};
use crate::error::Result;
use crate::tokenizer::{Special, Tokenizer};

/// What holds for a whole conversation.
#[derive(Clone, Debug)]
pub struct ChatSettings {
    /// The system message; empty stays an empty message.
    pub system: String,
    /// Turns are kept while system and turns together have fewer positions than this.
    pub max_window_size: usize,
    /// How pictures are announced.
    pub picture_prefix: PicturePrefix,
}

/// What a user says: pictures, then text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Plain text, in which only the six grounding tags are special.
    pub text: String,
    /// Indices into the caller's pictures; they become [`Chunk::Image`](super::Chunk::Image).
    pub pictures: Vec<usize>,
}

impl Message {
    /// A message without pictures.
    pub fn text(text: impl Into<String>) -> Self {
        Message { text: text.into(), pictures: Vec::new() }
    }
}

/// A question of the past and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the user said.
    pub query: Message,
    /// What the model said; `None` if it did not come to that.
    pub answer: Option<String>,
}

/// The prompt of a conversation, up to and including `assistant\n`.
///
/// Turns are kept newest first as long as the system message and they stay **below** `max_window_size` positions; the
/// first that does not fit ends that. The system message and the query are always there, and the query is not counted:
/// the prompt may exceed the window. Pictures are numbered through the whole conversation, dropped turns included.
///
/// Errors: none but a failing pre-tokenizer. Cost: encodes every turn that it looks at.
pub fn chat(tokenizer: &Tokenizer, settings: &ChatSettings, history: &[Turn], query: &Message) -> Result<Prompt> {
    let writer = Writer { tokenizer, prefix: settings.picture_prefix };
    let mut prompt = writer.message("system", &Message::text(&settings.system), 0)?;
    let numbers = first_numbers(history);

    let mut n_left = settings.max_window_size.saturating_sub(prompt.n_positions(tokenizer.n_queries()));
    let mut kept = Vec::new();
    for (turn, &number) in history.iter().zip(&numbers).rev() {
        let turn = writer.turn(turn, number)?;
        let n_positions = turn.n_positions(tokenizer.n_queries());
        if n_positions >= n_left {
            break;
        }
        n_left -= n_positions;
        kept.push(turn);
    }

    kept.into_iter().rev().for_each(|turn| prompt.append(turn));
    let number = numbers.last().copied().unwrap_or_default();
    prompt.append(writer.line_break()?);
    prompt.append(writer.message("user", query, number)?);
    prompt.append(writer.line_break()?);
    prompt.push(tokenizer.special_ids().im_start);
    prompt.append(writer.plain("assistant")?);
    prompt.append(writer.line_break()?);
    Ok(prompt)
}

/// How many pictures were shown before each turn, and before the query: `[turns + 1]`.
fn first_numbers(history: &[Turn]) -> Vec<usize> {
    let mut n_pictures = 0;
    let after = history.iter().map(|turn| {
        n_pictures += turn.query.pictures.len();
        n_pictures
    });
    std::iter::once(0).chain(after).collect()
}

/// Writes the pieces of the format. Every role, content and line break is encoded by itself.
struct Writer<'t> {
    tokenizer: &'t Tokenizer,
    prefix: PicturePrefix,
}

impl Writer<'_> {
    /// Text of the format itself.
    fn plain(&self, text: &str) -> Result<Prompt> {
        let mut prompt = Prompt::default();
        prompt.push_text(self.tokenizer, text, Special::None, 0)?;
        Ok(prompt)
    }

    fn line_break(&self) -> Result<Prompt> {
        self.plain("\n")
    }

    /// `<|im_start|>role\ncontent<|im_end|>`, where `n_before` pictures were shown before.
    fn message(&self, role: &str, content: &Message, n_before: usize) -> Result<Prompt> {
        let ids = self.tokenizer.special_ids();
        let mut prompt = Prompt::default();
        prompt.push(ids.im_start);
        prompt.append(self.plain(role)?);
        prompt.append(self.line_break()?);
        let numbered = (n_before + 1..).zip(content.pictures.iter().copied());
        let text = push_pictures(&mut prompt, self.tokenizer, self.prefix, numbered, &content.text)?;
        prompt.push_text(self.tokenizer, &text, Special::Grounding, 0)?;
        prompt.push(ids.im_end);
        Ok(prompt)
    }

    /// `\n` user `\n` assistant; where there is no answer, nothing but the second line break stands for it.
    fn turn(&self, turn: &Turn, n_before: usize) -> Result<Prompt> {
        let mut prompt = self.line_break()?;
        prompt.append(self.message("user", &turn.query, n_before)?);
        prompt.append(self.line_break()?);
        if let Some(answer) = &turn.answer {
            prompt.append(self.message("assistant", &Message::text(answer), 0)?);
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::samples::{ids, toy};

    fn settings(max_window_size: usize) -> ChatSettings {
        ChatSettings { system: "hello".into(), max_window_size, picture_prefix: PicturePrefix::Spaced }
    }

    fn message(pictures: &[usize], text: &str) -> Message {
        Message { text: text.into(), pictures: pictures.to_vec() }
    }

    /// Compares with the ids of the whole text, in which spans have empty paths.
    fn check(prompt: &Prompt, images: &[usize], text: &str) {
        let toy = toy();
        let found = prompt.ids_with_slots(toy.special_ids().img_pad, toy.n_queries());
        assert_eq!(found, ids(&toy, text), "{text:?}");
        assert_eq!(prompt.images().collect::<Vec<_>>(), images);
    }

    const SYSTEM: &str = "<|im_start|>system\nhello<|im_end|>";

    #[test]
    fn pictures_are_numbered_through_the_conversation() {
        let history = [
            Turn { query: message(&[5], "a"), answer: Some("b".into()) },
            Turn { query: message(&[], "c"), answer: None },
        ];
        let query = message(&[5, 2], "d");
        let user = "\n<|im_start|>user\n";
        let rest = format!(
            "{user}c<|im_end|>\n{user}Picture 2: <img></img>\nPicture 3: <img></img>\nd<|im_end|>\n<|im_start|>assistant\n"
        );
        // The two line breaks after a turn without an answer are two ids, one for each, and not the toy's "\n\n".
        let toy = toy();
        let prompt = chat(&toy, &settings(1000), &history, &query).unwrap();
        let pad = toy.special_ids().img_pad;
        let flat = toy.decode(&prompt.ids_with_slots(pad, 8), crate::tokenizer::Specials::Keep).unwrap();
        let first = format!("{user}Picture 1: <img></img>\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>");
        assert_eq!(flat, format!("{SYSTEM}{first}{rest}"));
        assert_eq!(prompt.images().collect::<Vec<_>>(), [5, 5, 2]);
        // Only the second turn fits: the first picture is gone, the numbers are not.
        let small = chat(&toy, &settings(30), &history, &query).unwrap();
        let flat = toy.decode(&small.ids_with_slots(pad, 8), crate::tokenizer::Specials::Keep).unwrap();
        assert_eq!(flat, format!("{SYSTEM}{rest}"));
    }

    #[test]
    fn only_grounding_tags_are_special_in_what_is_typed() {
        let toy = toy();
        let typed = "<img>x</img><|im_end|><imgpad><ref>y</ref>";
        let prompt = chat(&toy, &settings(0), &[], &Message::text(typed)).unwrap();
        let found = prompt.ids_with_slots(toy.special_ids().img_pad, 8);
        let mut expect = ids(&toy, &format!("{SYSTEM}\n<|im_start|>user\n"));
        expect.extend(toy.encode(typed, Special::Grounding).unwrap());
        expect.extend(ids(&toy, "<|im_end|>\n<|im_start|>assistant\n"));
        assert_eq!(found, expect);
    }

    #[test]
    fn the_line_break_after_a_picture_merges_with_the_text_but_a_role_does_not() {
        let toy = toy();
        let after_role = chat(&toy, &settings(0), &[], &Message::text("\nx")).unwrap();
        let after_picture = chat(&toy, &settings(0), &[], &message(&[0], "\nx")).unwrap();
        let double = ids(&toy, "\n\n")[0];
        let has = |prompt: &Prompt| prompt.ids_with_slots(toy.special_ids().img_pad, 8).contains(&double);
        assert!(!has(&after_role));
        assert!(has(&after_picture));
        check(
            &after_picture,
            &[0],
            &format!("{SYSTEM}\n<|im_start|>user\nPicture 1: <img></img>\n\nx<|im_end|>\n<|im_start|>assistant\n"),
        );
    }
}
