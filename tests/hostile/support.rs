//! Running the programs, and what must hold however they end.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest run in seconds before it counts as a hang; generous, since the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// `None`: by a signal, or it had to be ended because it hung.
    pub code: Option<i32>,
    /// What it was ended by.
    #[allow(dead_code)] // Shown by Debug.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// `qvl` without the user's settings and without a cache.
pub fn qvl() -> Command {
    program(env!("CARGO_BIN_EXE_qvl"))
}

/// `qvl-convert`.
pub fn convert() -> Command {
    program(env!("CARGO_BIN_EXE_qvl-convert"))
}

fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QVL_")) {
        command.env_remove(name);
    }
    command.env("QVL_CACHE_SIZE", "0").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> Outcome {
    run_for(command, TIMEOUT)
}

/// Runs it, but no longer than `timeout`.
pub fn run_for(command: &mut Command, timeout: Duration) -> Outcome {
    let (out, err) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    command.stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap());
    let (mut child, start) = (command.spawn().unwrap(), Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > timeout {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |file: &Path| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    Outcome {
        code: status.and_then(|s| s.code()),
        signal: status.and_then(|s| s.signal()),
        stdout: text(out.path()),
        stderr: text(err.path()),
    }
}

impl Outcome {
    /// What is wrong with how it ended, if anything: only promised exit codes, and one `error:` line where it failed.
    pub fn complaint(&self) -> Option<String> {
        let n_errors = self.stderr.lines().filter(|line| line.starts_with("error:")).count();
        let known = |line: &&str| ["error:", "warning:", "note:"].iter().any(|start| line.starts_with(start));
        let n_others = self.stderr.lines().filter(|line| !known(line)).count();
        match self.code {
            // The net below all proofs caught it.
            _ if self.stderr.contains("this is a bug") => Some("a bug".into()),
            None => Some("a signal or a hang".into()),
            Some(0) if n_errors == 0 && n_others == 0 => None,
            Some(1..=5 | 130) if n_errors == 1 && n_others == 0 => None,
            Some(code) => Some(format!("exit code {code} with {n_errors} error lines, or other lines")),
        }
        .map(|what| format!("{what}: {self:?}"))
    }

    /// Asserts a failure of this exit code whose line contains `expect`.
    pub fn fails(&self, code: i32, expect: &str) {
        if let Some(complaint) = self.complaint() {
            panic!("{complaint}");
        }
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(expect), "{self:?} lacks {expect:?}");
    }

    /// Asserts success.
    pub fn succeeds(&self) {
        if let Some(complaint) = self.complaint() {
            panic!("{complaint}");
        }
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// Asserts an end as it should be, whatever the code.
    pub fn ends_well(&self) {
        if let Some(complaint) = self.complaint() {
            panic!("{complaint}");
        }
    }
}

/// A text file and its mmproj.
pub struct Pair {
    pub text: PathBuf,
    pub mmproj: PathBuf,
}

/// The checkpoint that everything is made from.
pub fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qvl-random")
}

/// A sound picture.
pub fn picture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures/gradient.png")
}

/// The sound pair of a checkpoint in a type, converted once a run, over that of the run before.
fn pair(checkpoint: &Path, ty: &str) -> Pair {
    let of = checkpoint.file_name().unwrap().to_string_lossy();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{of}-{ty}"));
    let mut command = convert();
    command.arg(checkpoint).args(["-q", "--name", "m", "--force", "-t", ty, "--vision-type", ty]).arg("-o").arg(&dir);
    run(&mut command).succeeds();
    let found = |prefix: &str| {
        let paths = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
        paths.into_iter().find(is_it).unwrap()
    };
    Pair { text: found("m-"), mmproj: found("mmproj-") }
}

/// The pair of type q8_0.
pub fn q8_0() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| pair(&checkpoint(), "q8_0"))
}

/// The pair of type f32.
pub fn f32() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| pair(&checkpoint(), "f32"))
}

/// The model that was trained to see, with blocks of 256 and rows that are padded.
pub fn tiny() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| pair(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qvl-tiny"), "q4_k_m"))
}

/// Asks about the sound picture.
pub fn ask(text: &Path, mmproj: &Path) -> Command {
    let mut command = qvl();
    command.arg("ask").arg("-m").arg(text).arg("--mmproj").arg(mmproj).arg("-i").arg(picture());
    command.args(["-q", "-n", "2", "--temp", "0", "-t", "1", "hi"]);
    command
}

/// A directory that goes away.
pub fn temp_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}
