//! `qvl tokenize`: JSON lines in, JSON lines out.

use std::io::{BufRead, ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};

use qvl::error::{Error, Result};
use qvl::tokenizer::{Special, Specials, TokenId, Tokenizer};

/// A longer line is refused, so that a file that is no JSON lines cannot fill the memory.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What a line asks: `{"text": "..", "special": ".."}` or `{"ids": [..]}`. Other fields are left alone.
#[derive(Deserialize)]
struct Request {
    text: Option<String>,
    special: Option<Wanted>,
    ids: Option<Vec<TokenId>>,
}

/// The field `special`; `all` where it is missing.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    All,
    Image,
    None,
}

/// What comes back on the line: an object with one field.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ids(Vec<TokenId>),
    Text(String),
    Error(String),
}

/// Runs it from stdin to stdout.
pub fn run_file(model: &std::path::Path) -> Result<()> {
    let text = qvl::session::TextFile::open(model)?;
    run(text.tokenizer(), std::io::stdin().lock(), std::io::stdout().lock())
}

/// Answers every line of `input` with one line of `output`, flushed at once so that a program can converse over pipes.
/// A bad line is answered with its error, and the next one goes on.
///
/// Errors: only those of reading and writing; a closed pipe ends it quietly.
pub fn run(tokenizer: &Tokenizer, mut input: impl BufRead, mut output: impl Write) -> Result<()> {
    let mut line = Vec::new();
    while let Some(whole) = read_line(&mut input, &mut line)? {
        let answer = match whole {
            Line::Whole => answer(tokenizer, &line),
            Line::Cut => Err(Error::usage(format!("line of more than {MAX_LINE_BYTES} bytes"))),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Error(error.to_string()));
        match write(&mut output, &answer) {
            // Nobody reads on: the end, and no error, as with other tools.
            Err(cause) if cause.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|cause| Error::other("standard output").because(cause))?,
        }
    }
    Ok(())
}

/// Whether all of a line was read.
enum Line {
    Whole,
    Cut,
}

/// Reads the next line into `line`; of one that is too long only the start, the rest is skipped. `None` at the end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<Option<Line>> {
    let failed = |cause| Error::other("standard input").because(cause);
    line.clear();
    let n_read = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', line).map_err(failed)?;
    if n_read == 0 {
        return Ok(None);
    }
    if n_read as u64 <= MAX_LINE_BYTES || line.ends_with(b"\n") {
        return Ok(Some(Line::Whole));
    }
    input.skip_until(b'\n').map_err(failed)?;
    Ok(Some(Line::Cut))
}

/// The answer to one line.
fn answer(tokenizer: &Tokenizer, line: &[u8]) -> Result<Answer> {
    let request: Request =
        serde_json::from_slice(line).map_err(|cause| Error::usage("not a tokenize request").because(cause))?;
    match (request.text, request.ids) {
        (Some(text), None) => {
            let special = match request.special.unwrap_or(Wanted::All) {
                Wanted::All => Special::All,
                Wanted::Image => Special::Image,
                Wanted::None => Special::None,
            };
            tokenizer.encode(&text, special).map(Answer::Ids)
        }
        (None, Some(ids)) => tokenizer.decode(&ids, Specials::Keep).map(Answer::Text),
        (Some(_), Some(_)) => Err(Error::usage("both \"text\" and \"ids\": a line has one of them")),
        (None, None) => Err(Error::usage("neither \"text\" nor \"ids\": a line has one of them")),
    }
}

/// Writes one line.
fn write(output: &mut impl Write, answer: &Answer) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, answer)?;
    output.write_all(b"\n")?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use qvl::tokenizer::{Alphabet, TYPE_CONTROL, TYPE_NORMAL, TYPE_UNUSED, special_names};

    /// 256 bytes, "hi" and "é" as 256 and 257, the special tokens (`<img>` is 472), 4 rows of padding; 4 slots.
    fn toy() -> Tokenizer {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut tokens: Vec<String> =
            bytes.chunks(1).chain(["hi", "é"].map(str::as_bytes)).map(|token| Alphabet::new().spell(token)).collect();
        let mut types = vec![TYPE_NORMAL; tokens.len()];
        tokens.extend(special_names());
        types.resize(tokens.len(), TYPE_CONTROL);
        tokens.extend((0..4).map(|i| format!("[PAD{i}]")));
        types.resize(tokens.len(), TYPE_UNUSED);
        Tokenizer::new(tokens, &types, 4).unwrap()
    }

    fn check(input: impl AsRef<[u8]>, expect: &[&str]) {
        let mut output = Vec::new();
        run(&toy(), input.as_ref(), &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap().lines().collect::<Vec<_>>(), expect);
    }

    fn check_error(input: impl AsRef<[u8]>, expect: &str) {
        let mut output = Vec::new();
        run(&toy(), [input.as_ref(), b"\n{\"ids\":[256]}"].concat().as_slice(), &mut output).unwrap();
        let lines: Vec<serde_json::Value> = output
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0]["error"].as_str().is_some_and(|error| error.contains(expect)), "{lines:?} lacks {expect:?}");
        assert_eq!(lines[1]["text"], "hi");
    }

    #[test]
    fn answers_line_by_line() {
        check("", &[]);
        check("{\"text\":\"hi!\"}\n{\"ids\":[256,33]}", &[r#"{"ids":[256,33]}"#, r#"{"text":"hi!"}"#]);
        check("{\"text\":\"\"}\r\n", &[r#"{"ids":[]}"#]);
        check("{\"ids\":[],\"note\":1}\n", &[r#"{"text":""}"#]);
        check("{\"ids\":[255,257,258,466]}", &["{\"text\":\"\u{FFFD}é<|endoftext|><ref>\"}"]);
    }

    #[test]
    fn counts_special_tokens_as_asked() {
        let text = "<|endoftext|>";
        let plain: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        let plain = format!("{{\"ids\":[{}]}}", plain.join(","));
        check(format!(r#"{{"text":"{text}","special":"all"}}"#), &[r#"{"ids":[258]}"#]);
        check(format!(r#"{{"text":"{text}","special":"image"}}"#), &[&plain]);
        check(format!(r#"{{"text":"{text}","special":"none"}}"#), &[&plain]);
        check(r#"{"text":"<img>hi</img>","special":"image"}"#, &[r#"{"ids":[472,104,105,474,474,473]}"#]);
        check(r#"{"ids":[472,104,105,474,474,473]}"#, &[r#"{"text":"<img>hi</img>"}"#]);
        check("{\"text\":\"e\u{301}\"}", &[r#"{"ids":[257]}"#]);
        check("{\"text\":\"e\u{301}\",\"special\":\"none\"}", &[r#"{"ids":[101,204,129]}"#]);
    }

    #[test]
    fn a_bad_line_is_answered_and_the_next_goes_on() {
        check_error("", "EOF");
        check_error("hi", "not a tokenize request");
        check_error("[1]", "not a tokenize request");
        check_error("{}", "neither");
        check_error(r#"{"text":"a","ids":[1]}"#, "both");
        check_error(r#"{"text":"a","special":"some"}"#, "unknown variant");
        check_error(r#"{"text":1}"#, "expected a string");
        check_error(r#"{"text":"\ud800"}"#, "not a tokenize request");
        check_error(b"{\"text\":\"\xff\"}", "not a tokenize request");
        check_error(r#"{"ids":[-1]}"#, "not a tokenize request");
        check_error(r#"{"ids":[4294967296]}"#, "not a tokenize request");
        check_error(r#"{"ids":[1.5]}"#, "not a tokenize request");
        check_error(r#"{"ids":[475]}"#, "token id 475: the vocabulary has ids 0 to 474");
        check_error(r#"{"ids":[472]}"#, "unclosed image token");
        check_error(r#"{"text":"<img>"}"#, "unclosed image token");
        check_error(r#"{"text":"<img>12345</img>"}"#, "image path of 5 bytes");
        check_error(format!("{{\"text\":{}", "[".repeat(100_000)), "not a tokenize request");
        check_error("[".repeat(100_000), "not a tokenize request");
    }

    #[test]
    fn an_overlong_line_is_skipped() {
        check_error("x".repeat(MAX_LINE_BYTES as usize + 10), "line of more than 67108864 bytes");
    }
}
