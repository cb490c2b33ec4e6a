//! The pre-tokenizer: text → pieces, inside which merging stays.

use tokenizers::utils::SysRegex;

use crate::error::{Error, Result};

/// The reference's pattern (`PAT_STR` of the checkpoint's `tokenization_qwen.py`) less its alternative `\s+(?!\S)`.
///
/// That look-ahead is the only thing in the pattern that needs a backtracking engine, and the backtracking engine
/// gives up on a run of a million blanks, which the crate's `SysRegex` and `Split` report as the end of the text: ids
/// would silently be missing. Without it the engine is an automaton, linear and without limits. What the look-ahead
/// does is done in [`Pieces::split`] instead.
const PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+",
);

/// The compiled pattern.
pub struct Pieces(SysRegex);

impl Pieces {
    /// Compiles the pattern (a few milliseconds, mostly Unicode tables).
    pub fn new() -> Result<Self> {
        SysRegex::new(PATTERN).map(Pieces).map_err(|cause| Error::other(format!("pre-tokenizer pattern: {cause}")))
    }

    /// Calls `each` with the pieces of `text` in order; together they are the text. Linear.
    ///
    /// Every character starts a match of the pattern, so a gap can only mean that the engine gave up: an error.
    pub fn split(&self, text: &str, mut each: impl FnMut(&str)) -> Result<()> {
        let mut at = 0;
        while at < text.len() {
            let from = at;
            for (start, end) in self.0.find_iter(&text[from..]).map(|(start, end)| (from + start, from + end)) {
                if start != at || end <= start {
                    break;
                }
                at = end - given_back(&text[start..end], &text[end..]);
                each(&text[start..at]);
                if at < end {
                    break;
                }
            }
            if at == from {
                return Err(Error::other(format!("pre-tokenizer: the regex engine gave up at byte {at} of the text")));
            }
        }
        Ok(())
    }
}

/// How many bytes of a match the next piece starts with: `\s+(?!\S)` leaves the last blank of a run to the word that
/// follows. That is, a run of blanks without a line break (such a run is the last alternative's match, and
/// maximal) which is not at the end of the text gives back its last character unless it is the only one.
fn given_back(piece: &str, rest: &str) -> usize {
    if rest.is_empty() || !piece.chars().all(|c| c.is_whitespace() && c != '\r' && c != '\n') {
        return 0;
    }
    let last = piece.chars().next_back().map_or(0, char::len_utf8);
    if last == piece.len() { 0 } else { last }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        Pieces::new().unwrap().split(text, |piece| pieces.push(piece.to_string())).unwrap();
        pieces
    }

    fn check(text: &str, expect: &[&str]) {
        assert_eq!(split(text), expect, "{text:?}");
    }

    #[test]
    fn splits_as_the_pattern_says() {
        check("", &[]);
        check("Hello, world!", &["Hello", ",", " world", "!"]);
        check("I'll it'S don'T 'ſx", &["I", "'ll", " it", "'S", " don", "'T", " '", "ſx"]);
        check("'ſx", &["'ſ", "x"]);
        check("in 2023年", &["in", " ", "2", "0", "2", "3", "年"]);
        check("a  b", &["a", " ", " b"]);
        check("a   1", &["a", "  ", " ", "1"]);
        check("a   ", &["a", "   "]);
        check("a \u{3000}\u{3000}(", &["a", " \u{3000}", "\u{3000}", "("]);
        check("a \n \n  b", &["a", " \n \n", " ", " b"]);
        check("x!!\r\n\ny", &["x", "!!\r\n\n", "y"]);
        check("\t\tint", &["\t", "\tint"]);
        check("\n", &["\n"]);
        check("  \n", &["  \n"]);
        check("e\u{301}", &["e", "\u{301}"]);
    }

    #[test]
    fn long_runs_are_neither_slow_nor_lost() {
        const LONG: usize = 3_000_000;
        let blanks = " ".repeat(LONG);
        check(&blanks, &[&blanks]);
        check(&format!("{blanks}x"), &[&blanks[1..], " x"]);
        check(&format!("{blanks}\nx"), &[&format!("{blanks}\n"), "x"]);
        let letters = "a".repeat(LONG);
        check(&letters, &[&letters]);
        assert_eq!(split(&" \t".repeat(LONG / 2)).len(), 1);
        assert_eq!(split(&"  x".repeat(LONG / 30)).len(), LONG / 15);
        assert_eq!(split(&"  1".repeat(LONG / 30)).len(), LONG / 10);
    }

    /// The pattern as published, on the backtracking engine.
    #[test]
    fn agrees_with_the_published_pattern() {
        let published = SysRegex::new(&PATTERN.replace(r"[\r\n]+|\s+", r"[\r\n]+|\s+(?!\S)|\s+")).unwrap();
        let alphabet = ["a", " ", "\n", "\r", "1", "(", "'", "s", "\t", "\u{3000}", "é", "\u{301}", "图", "\u{85}"];
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..16 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                text.push_str(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            let expect: Vec<&str> = published.find_iter(&text).map(|(start, end)| &text[start..end]).collect();
            assert_eq!(split_with(&text), expect, "{text:?}");
        }
    }

    fn split_with(text: &str) -> Vec<String> {
        thread_local!(static PIECES: Pieces = Pieces::new().unwrap());
        let mut pieces = Vec::new();
        PIECES.with(|p| p.split(text, |piece| pieces.push(piece.to_string()))).unwrap();
        pieces
    }
}
