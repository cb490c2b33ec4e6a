//! A process for each case: starting it, hearing what it says, ending it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use qvl::error::{Error, ErrorKind, Result};

use super::super::STOP;
use super::child::{Measured, Message};

/// How soon Ctrl-C is noticed.
const PATIENCE: Duration = Duration::from_millis(100);

/// Measures the case of this name in a process of its own, which has the flags of this one. `step` is called for each of
/// its runs. Errors: its own; kind memory when the system killed it.
pub fn measure(name: &str, pictures: &[PathBuf], mut step: impl FnMut()) -> Result<Measured> {
    let program = std::env::current_exe().map_err(|e| Error::other("cannot find the program itself").because(e))?;
    let mut command = Command::new(program);
    command.args(child_args(std::env::args_os().skip(1), name, pictures));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut process = Process(child.map_err(|e| Error::other("cannot start a process that measures").because(e))?);
    let lines = process.0.stdout.take().map(lines).ok_or_else(|| Error::other("a measuring process has no output"))?;
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(Message::Step) => step(),
                Ok(Message::Done(measured)) => return Ok(measured),
                Ok(Message::Failed { message, code }) => return Err(Error::new(kind(code), message)),
                Err(e) => return Err(Error::other("a measuring process said what it should not").because(e)),
            },
            Err(RecvTimeoutError::Timeout) if STOP.load(Ordering::Relaxed) => return Err(interrupted()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(process.death(name)),
        }
    }
}

/// The flags of this process, told to measure. What is added stands right behind the subcommand, where no `--` can be.
fn child_args(args: impl Iterator<Item = OsString>, name: &str, pictures: &[PathBuf]) -> Vec<OsString> {
    let mut all = Vec::new();
    let mut added = false;
    for arg in args {
        let is_subcommand = arg == "bench" && !added;
        all.push(arg);
        if is_subcommand {
            added = true;
            all.push(format!("--measure={name}").into());
            for path in pictures {
                let mut flag = OsString::from("--picture=");
                flag.push(path);
                all.push(flag);
            }
        }
    }
    all
}

/// A child that does not outlive its parent's interest.
struct Process(Child);

impl Process {
    /// Why it ended without a last word.
    fn death(&mut self, name: &str) -> Error {
        if STOP.load(Ordering::Relaxed) {
            return interrupted();
        }
        match self.0.wait() {
            Ok(status) if status.code() == Some(i32::from(ErrorKind::Interrupted.exit_code())) => interrupted(),
            Ok(status) if status.code().is_none() => Error::memory(format!(
                "the process that measured {name:?} was killed ({status}); there may be too little memory, try a smaller -c \
                 or -ctk q8_0 -ctv q8_0"
            )),
            Ok(status) => Error::other(format!("the process that measured {name:?} ended without a result ({status})")),
            Err(e) => Error::other(format!("the process that measured {name:?} was lost")).because(e),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended by itself, or has nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a child says, line by line, until it closes its output.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn kind(code: u8) -> ErrorKind {
    use ErrorKind::*;
    [Usage, Model, Image, Memory, Interrupted].into_iter().find(|kind| kind.exit_code() == code).unwrap_or(Other)
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_its_parents_flags() {
        let args = ["-q", "bench", "-m", "bench", "--", "x"].map(OsString::from);
        let expect = ["-q", "bench", "--measure=decode 32 @ 0", "--picture=/a b.png", "-m", "bench", "--", "x"];
        let found = child_args(args.into_iter(), "decode 32 @ 0", &[PathBuf::from("/a b.png")]);
        assert_eq!(found, expect.map(OsString::from));
    }

    #[test]
    fn exit_codes_come_through() {
        for code in [1, 2, 3, 4, 5, 130] {
            assert_eq!(kind(code).exit_code(), code);
        }
        assert_eq!(kind(77).exit_code(), 1);
    }
}
