//! Lines from a terminal, with an editor, or from anything else.

use std::io::{self, BufRead, IsTerminal, StdinLock};
use std::sync::atomic::Ordering;

use qvl::error::{Error, Result};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Editor, Event, EventContext, EventHandler, KeyEvent, Movement, RepeatCount,
};

use super::complete::Completion;
use crate::cli::STOP;

/// Longest message in bytes.
const MAX_BYTES: usize = 1 << 20;

/// What came.
#[derive(Debug)]
pub enum Line {
    /// A message, of several lines perhaps.
    Text(String),
    /// Ctrl-C where there was nothing to clear.
    Nothing,
    /// Something that is no message.
    Refused(Error),
    /// The end.
    End,
}

/// Where lines come from.
pub enum Input {
    /// An editor, with a history that is in memory only.
    Terminal(Box<Editor<Completion, MemHistory>>),
    /// Lines as they are.
    Plain(StdinLock<'static>),
}

impl Input {
    /// An editor if somebody is there to see it.
    pub fn open() -> Result<Input> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Input::Plain(io::stdin().lock()));
        }
        let failed = |e| Error::other("cannot use the terminal").because(e);
        let config = Config::builder().max_history_size(1000).map_err(failed)?.auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new()).map_err(failed)?;
        editor.set_helper(Some(Completion::new()));
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearFirst)));
        Ok(Input::Terminal(Box::new(editor)))
    }

    /// Whether there is an editor.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next message; a line that ends with a backslash goes on in the next one. Errors: the terminal or the pipe fails.
    pub fn read(&mut self, prompt: &str) -> Result<Line> {
        let failed = |e| Err(Error::other("cannot read from the terminal").because(e));
        match self {
            Input::Terminal(editor) => match editor.readline(prompt) {
                Ok(text) => Ok(Line::Text(text.replace("\\\n", "\n"))),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(ReadlineError::Interrupted) => Ok(Line::Nothing),
                Err(e) => failed(e),
            },
            Input::Plain(input) => {
                // There is nothing to stop meanwhile, so Ctrl-C shall end the program.
                STOP.store(true, Ordering::Relaxed);
                message(input).map_err(|e| Error::other("cannot read from stdin").because(e))
            }
        }
    }
}

/// Ctrl-C: clears what is typed; where there is nothing, it says that it was pressed.
struct ClearFirst;

impl ConditionalEventHandler for ClearFirst {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        Some(if context.line().is_empty() { Cmd::Interrupt } else { Cmd::Kill(Movement::WholeBuffer) })
    }
}

/// Reads one message.
fn message(input: &mut impl BufRead) -> io::Result<Line> {
    let mut text = Vec::new();
    loop {
        let Some(n_bytes) = line(input, &mut text)? else {
            return Ok(if text.is_empty() { Line::End } else { utf8(text) });
        };
        if n_bytes > MAX_BYTES {
            return Ok(Line::Refused(Error::usage(format!(
                "a message of {n_bytes} bytes; at most {MAX_BYTES} are read"
            ))));
        }
        if text.pop_if(|last| *last == b'\\').is_none() {
            return Ok(utf8(text));
        }
        text.push(b'\n');
    }
}

fn utf8(text: Vec<u8>) -> Line {
    match String::from_utf8(text) {
        Ok(text) => Line::Text(text),
        Err(e) => Line::Refused(Error::usage("a message that is no UTF-8").because(e.utf8_error())),
    }
}

/// Appends a line without its end to `text`, as far as [`MAX_BYTES`] allow. Returns how long `text` should be now, `None`
/// at the end.
fn line(input: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut n_bytes = text.len();
    let mut is_end = true;
    loop {
        let buffer = match input.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if buffer.is_empty() {
            return Ok((!is_end).then_some(n_bytes));
        }
        is_end = false;
        let line_end = buffer.iter().position(|&b| b == b'\n');
        let part = &buffer[..line_end.unwrap_or(buffer.len())];
        n_bytes = n_bytes.saturating_add(part.len());
        if n_bytes <= MAX_BYTES {
            text.extend_from_slice(part);
        }
        let n_used = part.len() + usize::from(line_end.is_some());
        input.consume(n_used);
        if line_end.is_some() {
            text.pop_if(|last| *last == b'\r');
            return Ok(Some(n_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expect: &[&str]) {
        let mut reader = io::BufReader::with_capacity(3, input);
        let mut found = Vec::new();
        loop {
            match message(&mut reader).expect("is read") {
                Line::Text(text) => found.push(text),
                Line::Refused(e) => found.push(format!("error: {e}")),
                Line::Nothing | Line::End => break,
            }
        }
        assert_eq!(found, expect);
    }

    #[test]
    fn lines_become_messages() {
        check(b"", &[]);
        check(b"one\ntwo\n", &["one", "two"]);
        check(b"one\r\n\nlast", &["one", "", "last"]);
        check(b"first\\\nsecond\\\n\\\nthird\nnext", &["first\nsecond\n\nthird", "next"]);
        check(b"open\\\n", &["open\n"]);
        check(b"open\\", &["open\n"]);
    }

    #[test]
    fn what_is_no_text_is_refused_and_the_next_line_is_read() {
        check(
            b"caf\xe9\nnext",
            &["error: a message that is no UTF-8: incomplete utf-8 byte sequence from index 3", "next"],
        );
        let mut long = vec![b'x'; MAX_BYTES + 1];
        long.extend(b"\nnext");
        check(&long, &["error: a message of 1048577 bytes; at most 1048576 are read", "next"]);
    }
}
