//! `qvl chat` in a terminal: the editor, its keys, and what only a terminal is shown.
//!
//! The terminal is that of `script`, which every Linux has.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::models::{Model, random, tiny};
use crate::programs::repository;

/// Longest wait for something to appear.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the editor tells a terminal when it begins to read a line: send pasted text in brackets. The prompt itself comes
/// again whenever a line is drawn anew.
const READY: &str = "\x1b[?2004h";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

/// A chat in a terminal.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Receiver<Vec<u8>>,
    /// What was shown and not waited for yet.
    left: String,
}

impl Terminal {
    fn new(model: &Model, args: &[&str]) -> Terminal {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let words = [&[env!("CARGO_BIN_EXE_qvl"), "chat", "-m", model.text.to_str().unwrap()], args].concat();
        let line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        // A shell that waits would die of the Ctrl-C as well.
        let line = format!("exec {line}");
        let mut command = Command::new("script");
        command.args(["-qefc", &line, "/dev/null"]).current_dir(repository("tests/data/pictures"));
        for name in ["QVL_MODEL", "QVL_MMPROJ", "QVL_DEBUG", "NO_COLOR"] {
            command.env_remove(name);
        }
        command.env("QVL_THREADS", "1").env("TERM", "xterm").env("SHELL", "/bin/sh");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script is there");
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keys, shown, left: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Presses Enter behind a text.
    fn enter(&mut self, text: &str) {
        self.press(&format!("{text}\r"));
    }

    /// Everything up to and including `text`, which must come.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        self.until_found(text, |left| left.find(text).map(|at| at + text.len()))
    }

    #[track_caller]
    fn until_found(&mut self, what: &str, find: impl Fn(&str) -> Option<usize>) -> String {
        // Bytes that are still to become a character.
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = find(&self.left) {
                let rest = self.left.split_off(end);
                return std::mem::replace(&mut self.left, rest);
            }
            let more = self.shown.recv_timeout(PATIENCE);
            bytes.extend(more.unwrap_or_else(|e| panic!("{what:?} did not come ({e}) after {:?}", self.left)));
            if let Ok(text) = std::str::from_utf8(&bytes) {
                self.left.push_str(text);
                bytes.clear();
            }
        }
    }

    /// Saves and reads back what was said.
    #[track_caller]
    fn turns(&mut self, path: &Path) -> Vec<Value> {
        let _ = fs::remove_file(path);
        self.enter(&format!("/save {}", path.display()));
        self.until(READY);
        let chat: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        chat["turns"].as_array().unwrap().clone()
    }

    /// Leaves with Ctrl-D and returns the exit code.
    fn leave(mut self) -> Option<i32> {
        self.press(CTRL_D);
        self.child.wait().unwrap().code()
    }
}

fn questions(turns: &[Value]) -> Vec<&str> {
    turns.iter().map(|turn| turn["question"].as_str().unwrap()).collect()
}

#[test]
fn lines_are_edited_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let mut terminal = Terminal::new(&random(), &["--temp", "0", "-n", "4"]);
    terminal.until(READY);
    terminal.until("/8192 › ");
    // Typed with a mistake, and corrected.
    terminal.enter("Onx\x7fe?");
    terminal.until(READY);
    terminal.enter(UP);
    terminal.until(READY);
    // Ctrl-C clears the line; the next one is whole.
    terminal.press("never said");
    terminal.until("said");
    terminal.press(CTRL_C);
    terminal.enter("\x1b[200~first\nsecond\x1b[201~");
    terminal.until(READY);
    terminal.enter("three\\\rfour");
    terminal.until(READY);
    // Tab completes a command and a path.
    terminal.enter("/ima\tsha\t");
    terminal.until("picture 1: ");
    terminal.until(READY);
    terminal.press(CTRL_C);
    terminal.until("Ctrl-D or /quit leaves");
    terminal.until(READY);
    let turns = terminal.turns(&path);
    assert_eq!(questions(&turns), ["One?", "One?", "first\nsecond", "three\nfour"]);
    assert_eq!(terminal.leave(), Some(0));
}

#[test]
fn ctrl_c_keeps_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let mut terminal = Terminal::new(&random(), &["-q", "--temp", "0", "-n", "8000", "-c", "8192"]);
    terminal.until(READY);
    terminal.enter("There is");
    // The line itself, then some of the answer.
    terminal.until("\n");
    terminal.until_found("an answer", |left| (left.len() > 400).then_some(left.len()));
    terminal.press(CTRL_C);
    terminal.until(READY);
    terminal.enter("/set predict 4");
    terminal.until(READY);
    terminal.enter("And?");
    terminal.until(READY);
    let turns = terminal.turns(&path);
    assert_eq!(questions(&turns), ["There is", "And?"]);
    assert!(!turns[0]["answer"].as_str().unwrap().is_empty());
    assert_eq!(terminal.leave(), Some(0));
}

#[test]
fn regions_are_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let picture = repository("models/qvl-tiny/demo/shapes.png");
    let mut terminal = Terminal::new(&tiny("f16", "f16"), &["--temp", "0", "-i", picture.to_str().unwrap()]);
    let begin = terminal.until(READY);
    assert!(begin.contains("picture 1: ") && begin.contains("/help"), "{begin:?}");
    terminal.enter("Frame the purple star.");
    let shown = terminal.until("/boxes FILE draws");
    assert!(shown.contains("</box>") && shown.contains("\x1b[2m"), "{shown:?}");
    terminal.until(READY);
    assert_eq!(terminal.turns(&path)[0]["pictures"], json!([picture.to_str().unwrap()]));
    assert_eq!(terminal.leave(), Some(0));
}
