//! Words as shells and file managers write them: quotes, backslashes, `~/`.

use std::path::{Path, PathBuf};

/// The first word of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// Without its quotes and escapes.
    pub text: String,
    /// What follows, without the white space between.
    pub rest: &'a str,
}

/// Whether a backslash takes away the meaning of what follows. On Windows it separates folders.
const ESCAPES: bool = !cfg!(windows);

/// Splits off the first word; a leading `~/` that is not quoted becomes `home`. `None`: there is none, or a quote in it is
/// not closed.
pub fn first_word<'a>(text: &'a str, home: Option<&Path>) -> Option<Word<'a>> {
    let text = text.trim_start();
    if text.is_empty() {
        return None;
    }
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                end = at;
                break;
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, '\\') if ESCAPES => word.extend(chars.next().map(|(_, c)| c)),
            // Between double quotes a backslash escapes only what would mean something.
            (Some('"'), '\\') if ESCAPES => match chars.clone().next() {
                Some((_, c @ ('"' | '\\' | '$' | '`'))) => {
                    chars.next();
                    word.push(c);
                }
                _ => word.push('\\'),
            },
            (_, c) => word.push(c),
        }
    }
    if quote.is_some() {
        return None;
    }
    if let (Some(home), true) = (home, text.starts_with("~/")) {
        word = under(home, &word[2..]);
    }
    Some(Word { text: word, rest: text[end..].trim_start() })
}

/// The text itself as a path, but for a leading `~/`.
pub fn literal(text: &str, home: Option<&Path>) -> PathBuf {
    match (home, text.strip_prefix("~/")) {
        (Some(home), Some(rest)) => home.join(rest),
        _ => text.into(),
    }
}

/// A path below `home` as text; not exact where the name of `home` is no UTF-8.
fn under(home: &Path, rest: &str) -> String {
    home.join(rest).to_string_lossy().into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let home = Path::new("/home/me");
        let check = |text: &str, expect: &str, rest: &str| {
            let word = first_word(text, Some(home)).expect(text);
            assert_eq!((word.text.as_str(), word.rest), (expect, rest), "{text}");
        };
        check("a.png", "a.png", "");
        check("  a.png   What is  this?", "a.png", "What is  this?");
        check(r"my\ photo.png x", "my photo.png", "x");
        check("'my photo.png' x", "my photo.png", "x");
        check("'it'\\''s.png'", "it's.png", "");
        check(r#""a \"b\" \c \$".png y"#, r#"a "b" \c $.png"#, "y");
        check("~/a.png", "/home/me/a.png", "");
        check("~/my\\ a.png", "/home/me/my a.png", "");
        check("'~/a.png'", "~/a.png", "");
        check("~you/a.png", "~you/a.png", "");
        check("图.png 是什么", "图.png", "是什么");
        check("a\nb", "a", "b");
        check("\\", "", "");
        check("''", "", "");
    }

    #[test]
    fn what_is_not_closed_is_no_word() {
        for text in ["", "  ", "What's this?x'y'z", "'a.png", "\"a\\\""] {
            let found = first_word(text, None);
            assert!(found.is_none() || text.starts_with("What"), "{text}: {found:?}");
        }
        assert_eq!(literal("~/a b's.png", Some(Path::new("/h"))), Path::new("/h/a b's.png"));
        assert_eq!(literal("~/a", None), Path::new("~/a"));
    }
}
