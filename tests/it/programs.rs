//! Running a program and reading what it said.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Flags with which the runtime computes in f32 throughout, as the reference does.
pub const EXACT: [&str; 6] = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"];

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `qvl`, untouched by the caller's environment. One thread: tests run side by side already. No cache: the user's is not
/// filled, and embeddings are exact.
pub fn qvl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    for name in ["QVL_MODEL", "QVL_MMPROJ", "QVL_DEBUG", "QVL_CACHE_DIR", "QVL_CACHE_PROMPT", "QVL_DRAFT"] {
        command.env_remove(name);
    }
    command.env("QVL_THREADS", "1").env("QVL_CACHE_SIZE", "0").stdin(Stdio::null());
    command
}

/// `qvl-convert` on one thread.
pub fn qvl_convert() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl-convert"));
    command.args(["-j", "1"]).stdin(Stdio::null());
    command
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// stdout
    pub out: String,
    /// stderr
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("programs write UTF-8");
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// Itself, if it went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// The one JSON object of a run that went well.
    #[track_caller]
    pub fn json(self) -> Value {
        let ran = self.ok();
        assert_eq!(ran.out.lines().count(), 1, "{ran:?}");
        serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    }

    /// Proves a failure: this exit code, nothing on stdout, one line that begins with `error:` and contains `part`.
    #[track_caller]
    pub fn fails(self, code: i32, part: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.contains(part), "{:?} lacks {part:?}", self.err);
    }
}

/// Runs to the end.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    command.output().expect("starts").into()
}

/// Runs to the end with this on stdin.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("starts");
    // All inputs here fit into a pipe, so nobody waits for the other.
    child.stdin.take().expect("is piped").write_all(input).expect("is read");
    child.wait_with_output().expect("ends").into()
}
