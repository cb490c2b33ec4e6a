//! GBNF text → rules. The syntax is that of llama.cpp's `llama-grammar.cpp`, newlines and escapes included.

use super::classes::class;
use super::repeat::repeat;
use super::rules::{Rules, Sym, TokenName, TokenRef};
use crate::error::{Error, Result};

/// Largest text in bytes.
const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of groups: the parser recurses.
const MAX_DEPTH: usize = 200;
/// Most repetitions that can be asked for by number, llama.cpp's limit.
const MAX_REPEAT: usize = 2000;
/// Longest name of a rule in letters: names come back in error messages.
const MAX_NAME: usize = 200;

/// Reads all rules. What they name may be missing still.
pub(super) fn parse(text: &str) -> Result<Rules> {
    if text.len() > MAX_BYTES {
        let n_bytes = text.len();
        return Err(Error::usage(format!("the grammar has {n_bytes} bytes; at most {MAX_BYTES} are read")));
    }
    let mut parser = Parser { text, at: 0, depth: 0, rule: 0, rules: Rules::default() };
    if let Some(at) = text.find('\0') {
        return Err(parser.error_at(at, "a zero byte; is this a text file?"));
    }
    parser.skip_space(Newlines::Too);
    while parser.at < text.len() {
        parser.rule()?;
    }
    match parser.rules.find("root") {
        Some(root) => parser.rules.root = root,
        None => return Err(Error::usage("the grammar has no rule \"root\"")),
    }
    Ok(parser.rules)
}

/// Whether white space reaches over the end of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Newlines {
    Too,
    Not,
}

struct Parser<'a> {
    text: &'a str,
    /// Offset in bytes, always between characters.
    at: usize,
    depth: usize,
    /// The rule being read.
    rule: u32,
    rules: Rules,
}

impl Parser<'_> {
    fn rule(&mut self) -> Result<()> {
        let (start, name) = (self.at, self.name()?.to_owned());
        self.rule = self.rules.named(&name);
        self.skip_space(Newlines::Not);
        if !self.eat("::=") {
            return Err(self.error("expected ::="));
        }
        self.skip_space(Newlines::Too);
        let alternatives = self.alternatives()?;
        if !(self.eat("\r\n") || self.eat("\n") || self.eat("\r") || self.at == self.text.len()) {
            return Err(self.error(if self.peek() == Some(')') {
                "no ( is open here"
            } else {
                "expected a rule's part"
            }));
        }
        if self.rules.rules[self.rule as usize].is_some() {
            return Err(self.error_at(start, &format!("the rule {name:?} was defined before")));
        }
        self.rules.define(self.rule, alternatives)?;
        self.skip_space(Newlines::Too);
        Ok(())
    }

    fn alternatives(&mut self) -> Result<Vec<Vec<Sym>>> {
        let mut all = vec![self.sequence()?];
        while self.eat("|") {
            self.skip_space(Newlines::Too);
            all.push(self.sequence()?);
        }
        Ok(all)
    }

    fn sequence(&mut self) -> Result<Vec<Sym>> {
        let mut done = Vec::new();
        // What a repetition after it repeats: `None` where there is nothing to repeat.
        let mut item: Option<Vec<Sym>> = None;
        while let Some(next) = self.peek() {
            let repetition = match next {
                '*' => Some((0, None)),
                '+' => Some((1, None)),
                '?' => Some((0, Some(1))),
                '{' => Some(self.counts()?),
                _ => None,
            };
            if let Some((min, max)) = repetition {
                let what = item.take().ok_or_else(|| self.error("there is nothing to repeat"))?;
                self.at += 1;
                item = Some(repeat(&mut self.rules, self.rule, what, min, max)?);
            } else {
                let read = match next {
                    '"' => self.literal()?,
                    '[' => vec![self.class()?],
                    '<' | '!' => vec![self.token()?],
                    '(' => vec![self.group()?],
                    '.' => {
                        self.at += 1;
                        class(&mut self.rules, self.rule, &[], true)?.into_iter().collect()
                    }
                    c if is_name(c) => {
                        let name = self.name()?.to_owned();
                        vec![Sym::Rule(self.rules.named(&name))]
                    }
                    _ => break,
                };
                done.extend(item.replace(read).unwrap_or_default());
            }
            self.skip_space(if self.depth > 0 { Newlines::Too } else { Newlines::Not });
        }
        done.extend(item.unwrap_or_default());
        Ok(done)
    }

    fn group(&mut self) -> Result<Sym> {
        let start = self.at;
        if self.depth == MAX_DEPTH {
            return Err(self.error(&format!("groups nested deeper than {MAX_DEPTH}")));
        }
        self.depth += 1;
        self.at += 1;
        self.skip_space(Newlines::Too);
        let alternatives = self.alternatives()?;
        if !self.eat(")") {
            return Err(match self.peek() {
                None => self.error_at(start, "this ( is never closed"),
                Some(_) => self.error("expected a rule's part or )"),
            });
        }
        self.depth -= 1;
        self.rules.anonymous(self.rule, alternatives)
    }

    fn literal(&mut self) -> Result<Vec<Sym>> {
        let start = self.at;
        self.at += 1;
        let mut out = Vec::new();
        while !self.eat("\"") {
            let c = self.char().map_err(|e| self.unclosed(start, "this \" is never closed", e))?;
            let bytes = c.encode_utf8(&mut [0; 4]).bytes().collect::<Vec<_>>();
            out.extend(bytes.into_iter().map(|b| self.rules.bytes(super::rules::ByteSet::range(b, b))));
        }
        Ok(out)
    }

    fn class(&mut self) -> Result<Sym> {
        let start = self.at;
        self.at += 1;
        let (complement, mut ranges) = (self.eat("^"), Vec::new());
        while !self.eat("]") {
            let low = self.char().map_err(|e| self.unclosed(start, "this [ is never closed", e))?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            self.at += usize::from(is_range);
            let high = match is_range {
                true => self.char().map_err(|e| self.unclosed(start, "this [ is never closed", e))?,
                false => low,
            };
            if low > high {
                return Err(self.error_at(start, &format!("the range {low:?} to {high:?} is the wrong way round")));
            }
            ranges.push((low, high));
        }
        let found = match ranges.is_empty() {
            true => None,
            false => class(&mut self.rules, self.rule, &ranges, complement)?,
        };
        found.ok_or_else(|| self.error_at(start, "no character is in this class"))
    }

    /// `<[id]>`, `<text>`, with or without `!`.
    fn token(&mut self) -> Result<Sym> {
        let start = self.at;
        let negated = self.eat("!");
        let Some(n_bytes) = self.rest().find('>').filter(|_| self.rest().starts_with('<')) else {
            return Err(self.error_at(start, "expected a token: <text> or <[id]>"));
        };
        let text = &self.text[self.at..=self.at + n_bytes];
        let name = match text.strip_prefix("<[").and_then(|t| t.strip_suffix("]>")) {
            None => TokenName::Text(text.to_owned()),
            Some(id) => match id.parse() {
                Ok(id) => TokenName::Id(id),
                Err(_) => return Err(self.error_at(start, "expected a token's number in <[ ]>")),
            },
        };
        self.at += text.len();
        Ok(self.rules.token(TokenRef { name, negated }))
    }

    /// `{m}`, `{m,}` or `{m,n}` up to the brace.
    fn counts(&mut self) -> Result<(usize, Option<usize>)> {
        let start = self.at;
        self.at += 1;
        let min = self.count()?.ok_or_else(|| self.error("expected a number"))?;
        let mut max = Some(min);
        if self.eat(",") {
            max = self.count()?;
        }
        if self.peek() != Some('}') {
            return Err(self.error("expected }"));
        }
        if max.is_some_and(|max| max < min) {
            return Err(self.error_at(start, "the largest number of repetitions is below the smallest"));
        }
        Ok((min, max))
    }

    /// A number with white space around it, if there is one.
    fn count(&mut self) -> Result<Option<usize>> {
        let newlines = if self.depth > 0 { Newlines::Too } else { Newlines::Not };
        self.skip_space(newlines);
        let digits = self.rest().len() - self.rest().trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let text = &self.text[self.at..self.at + digits];
        if text.is_empty() {
            return Ok(None);
        }
        let number = text.parse::<usize>().ok().filter(|n| *n <= MAX_REPEAT);
        let number = number.ok_or_else(|| self.error(&format!("{text:.20} repetitions; at most {MAX_REPEAT}")))?;
        self.at += digits;
        self.skip_space(newlines);
        Ok(Some(number))
    }

    /// One character of a literal or class, escaped or not.
    fn char(&mut self) -> Result<char> {
        let start = self.at;
        let next = |parser: &mut Self| {
            let c = parser.peek()?;
            parser.at += c.len_utf8();
            Some(c)
        };
        let end = "unexpected end";
        let c = next(self).ok_or_else(|| self.error(end))?;
        if c != '\\' {
            return Ok(c);
        }
        let n_digits = match next(self).ok_or_else(|| self.error(end))? {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            c @ ('\\' | '"' | '[' | ']' | '-') => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c => return Err(self.error_at(start, &format!("unknown escape \\{c}"))),
        };
        let digits = self.rest().get(..n_digits).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let digits = digits.ok_or_else(|| self.error_at(start, &format!("expected {n_digits} hexadecimal digits")))?;
        let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        let c = c.ok_or_else(|| self.error_at(start, &format!("{digits} is no character")))?;
        self.at += n_digits;
        Ok(c)
    }

    fn name(&mut self) -> Result<&str> {
        let rest = self.rest();
        let n_bytes = rest.len() - rest.trim_start_matches(is_name).len();
        if n_bytes == 0 {
            return Err(self.error("expected the name of a rule (letters, digits and -)"));
        }
        if n_bytes > MAX_NAME {
            return Err(self.error(&format!("the name of a rule has at most {MAX_NAME} letters")));
        }
        self.at += n_bytes;
        Ok(&self.text[self.at - n_bytes..self.at])
    }

    fn skip_space(&mut self, newlines: Newlines) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if newlines == Newlines::Too => self.at += 1,
                '#' => self.at += self.rest().find(['\r', '\n']).unwrap_or(self.rest().len()),
                _ => break,
            }
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    /// What is said where a text ends inside something that began at `start`; other errors stay.
    fn unclosed(&self, start: usize, message: &str, error: Error) -> Error {
        if self.at == self.text.len() { self.error_at(start, message) } else { error }
    }

    fn error(&self, message: &str) -> Error {
        let found = match self.peek() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_owned(),
        };
        self.error_at(self.at, &format!("{message}, found {found}"))
    }

    fn error_at(&self, at: usize, message: &str) -> Error {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Error::usage(format!("line {line}, column {column}: {message}"))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}
