//! A disk that is full: the promised exit code, a line that says so, nothing half-written under a final name, and nothing
//! reported done that is lost.
//!
//! The disk is a small tmpfs in a mount namespace of the test's own, which any user may have where the kernel lets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::models::{Model, tiny};
use crate::programs::{Ran, qvl, repository, run};

/// A disk of some KiB, and what is on it after a program ran.
struct Disk {
    dir: TempDir,
    kib: usize,
}

impl Disk {
    /// `None`, with a line that says why, where none can be made.
    fn new(kib: usize) -> Option<Disk> {
        let disk = Disk { dir: tempfile::tempdir().unwrap(), kib };
        fs::create_dir(disk.path("")).unwrap();
        fs::create_dir(disk.after("")).unwrap();
        let ran = disk.run(&mut Command::new("true"));
        if ran.code != 0 {
            println!("skipped: no tmpfs can be mounted here: {}", ran.err.trim());
            return None;
        }
        Some(disk)
    }

    /// A path on the disk, as the program sees it.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    /// Where what was on it lies afterwards.
    fn after(&self, name: &str) -> PathBuf {
        self.dir.path().join("after").join(name)
    }

    /// Names of all files that are on it afterwards.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.after(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs a program while the disk is there. What was on it after the run before is on it again.
    fn run(&self, command: &mut Command) -> Ran {
        const SCRIPT: &str = "mount -t tmpfs -o size=${1}k,mode=0755 none \"$2\" && cp -a \"$3/.\" \"$2\" || exit 99
            disk=$2 after=$3; shift 3; \"$@\"; code=$?
            rm -rf \"$after\"; mkdir \"$after\"; cp -a \"$disk/.\" \"$after\" || exit 98; exit $code";
        let mut inside = Command::new("unshare");
        inside.args(["-r", "-m", "sh", "-c", SCRIPT, "sh", &self.kib.to_string()]);
        inside.arg(self.path("")).arg(self.after("")).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        command.get_current_dir().map(|dir| inside.current_dir(dir));
        match inside.output() {
            Ok(output) => output.into(),
            Err(e) => Ran { code: -1, out: String::new(), err: e.to_string() },
        }
    }
}

fn model() -> Model {
    tiny("f16", "f16")
}

/// `qvl COMMAND` about the demo's picture, greedily.
fn asks(command: &str, args: &[&str]) -> Command {
    let mut qvl = qvl();
    qvl.current_dir(repository("models/qvl-tiny/demo"));
    qvl.args([command, "-q", "-i", "shapes.png", "-n", "24", "-m"]).arg(model().text).args(args);
    if command == "ask" {
        qvl.args(["--temp", "0"]);
    }
    qvl
}

/// The one line of an error about a full disk.
#[track_caller]
fn is_told(ran: &Ran, code: i32, part: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    let errors: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("No space left on device"), "{ran:?}");
    assert!(errors[0].contains(part), "{ran:?}");
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line: {text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The output holds whole lines, as many as were counted, and a run with room goes on behind them.
#[test]
fn a_batch_ends_and_can_go_on() {
    let Some(disk) = Disk::new(8) else { return };
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    // An id of 400 bytes is in the output, too: a page holds seven or eight answers.
    let id = |k: usize| format!("{k:0400}");
    let item = |k: usize| format!("{{\"id\":\"{}\",\"prompt\":\"What is {k}?\"}}\n", id(k));
    fs::write(&input, (0..40).map(item).collect::<String>()).unwrap();
    for parallel in ["1", "16"] {
        let name = format!("{parallel}.jsonl");
        let batch = |output: &Path| {
            let mut command = qvl();
            command.args(["batch", "--temp", "0", "-n", "4", "--parallel", parallel, "-m"]).arg(model().text);
            command.arg(&input).arg("-o").arg(output);
            command
        };
        let _ = fs::remove_file(disk.after("1.jsonl"));
        let ran = disk.run(&mut batch(&disk.path(&name)));
        is_told(&ran, 1, "cannot write the output");
        let n_done = lines(&disk.after(&name)).len();
        assert!((4..40).contains(&n_done), "{n_done}");
        assert!(ran.err.contains(&format!("{name}: {n_done} answered, in ")), "{ran:?}");

        let output = dir.path().join(&name);
        fs::copy(disk.after(&name), &output).unwrap();
        let ran = run(&mut batch(&output)).ok();
        assert!(ran.err.contains(&format!("{} answered, {n_done} were done before", 40 - n_done)), "{ran:?}");
        let mut ids: Vec<String> = lines(&output).iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        assert_eq!(ids, (0..40).map(id).collect::<Vec<_>>());
    }
}

/// What was there stays as it was.
#[test]
fn a_session_stays_as_it_was() {
    let whole = tempfile::tempdir().unwrap();
    let session = whole.path().join("s");
    let ask = |path: &Path, question: &str| {
        let mut command = qvl();
        command.args(["ask", "-q", "--temp", "0", "-n", "24", "-m"]).arg(model().text).arg("--session").arg(path);
        command.arg(question);
        command
    };
    run(&mut ask(&session, "What is this?")).ok();
    let bytes = fs::read(&session).unwrap();
    let Some(disk) = Disk::new(bytes.len() / 1024 + 8) else { return };
    fs::copy(&session, disk.after("s")).unwrap();
    let long = format!("Say {}?", "word ".repeat(100));
    let ran = disk.run(&mut ask(&disk.path("s"), &long));
    is_told(&ran, 1, "/s");
    assert!(!ran.out.trim().is_empty(), "the answer is there: {ran:?}");
    assert_eq!(disk.names(), ["s"]);
    assert!(fs::read(disk.after("s")).unwrap() == bytes);
    // In a chat as well.
    let mut chat = Command::new("sh");
    let mut inner = qvl();
    inner.args(["chat", "-q", "--temp", "0", "-n", "24", "-m"]).arg(model().text).arg("--session").arg(disk.path("s"));
    chat.args(["-c", "line=$1; shift; echo \"$line\" | \"$@\"", "sh", &long]).arg(inner.get_program());
    chat.args(inner.get_args()).env("QVL_CACHE_SIZE", "0");
    let ran = disk.run(&mut chat);
    is_told(&ran, 1, "/s");
    assert_eq!(disk.names(), ["s"]);
    assert!(fs::read(disk.after("s")).unwrap() == bytes);
    // There is room for the old one, and it goes on.
    run(&mut ask(&session, "Where is it?")).ok();
}

/// The cache is left alone: one warning and the answer.
#[test]
fn the_cache_is_done_without() {
    let expect = run(&mut asks("ask", &["What does the word say?"])).ok().out;
    // Nothing fits; an embedding does, a prompt does not.
    for (kib, n_entries) in [(4, 0), (64, 1)] {
        let Some(disk) = Disk::new(kib) else { return };
        let mut command = qvl();
        command.current_dir(repository("models/qvl-tiny/demo"));
        command.args(["ask", "--cache-prompt", "--temp", "0", "-n", "24", "-i", "shapes.png", "-m"]).arg(model().text);
        command.arg("What does the word say?").env("QVL_CACHE_DIR", disk.path("")).env("QVL_CACHE_SIZE", "64M");
        let ran = disk.run(&mut command).ok();
        assert_eq!(ran.out, expect);
        let warnings: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains("No space left on device"), "{ran:?}");
        assert!(warnings[0].ends_with("; going on without the cache"), "{ran:?}");
        let names = disk.names();
        assert!(names.len() == n_entries && names.iter().all(|name| name.ends_with(".emb")), "{names:?}");
    }
}

/// The answer is printed; the picture is not there.
#[test]
fn pictures_are_whole_or_not_there() {
    let Some(disk) = Disk::new(8) else { return };
    let drawn = disk.path("drawn.png");
    let ran = disk.run(&mut asks("ask", &["--annotate", drawn.to_str().unwrap(), "What does the word say?"]));
    is_told(&ran, 1, "drawn.png");
    assert!(!ran.out.trim().is_empty(), "{ran:?}");
    assert_eq!(disk.names(), [""; 0]);
    let ran = disk.run(&mut asks("ask", &["--annotate", drawn.to_str().unwrap(), "--json", "What does the word say?"]));
    is_told(&ran, 1, "drawn.png");
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["annotated"], Value::Null);
    let ran = disk.run(&mut asks("detect", &["-o", drawn.to_str().unwrap(), "star"]));
    is_told(&ran, 1, "drawn.png");
    assert!(ran.out.starts_with("star\t"), "{ran:?}");
    assert_eq!(disk.names(), [""; 0]);
}

#[test]
fn crops_are_whole_or_not_there() {
    let whole = tempfile::tempdir().unwrap();
    let dir = whole.path().to_str().unwrap().to_owned();
    run(&mut asks("detect", &["--crop", &dir, "star"])).ok();
    let size = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
    assert!(size > 0);
    let Some(disk) = Disk::new(4) else { return };
    // Beside what else is there, nothing fits.
    fs::write(disk.after("other"), [7; 4096]).unwrap();
    let ran = disk.run(&mut asks("detect", &["--crop", disk.path("").to_str().unwrap(), "star"]));
    is_told(&ran, 1, "");
    assert!(ran.out.starts_with("star\t"), "{ran:?}");
    assert_eq!(disk.names(), ["other"]);
}

#[test]
#[cfg(target_os = "linux")]
fn an_answer_that_cannot_be_printed_is_an_error() {
    for args in [&["What is this?"][..], &["--json", "What is this?"]] {
        let mut command = asks("ask", args);
        command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let ran = run(command.stderr(std::process::Stdio::piped()));
        is_told(&ran, 1, "stdout");
    }
}
