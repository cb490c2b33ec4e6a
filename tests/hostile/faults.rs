//! What the world does to a program: names that are no text, directories that cannot be written, clocks that are wrong, no
//! memory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{Outcome, ask, checkpoint, convert, f32, picture, q8_0, qvl, run, temp_dir};

/// Names that files may have: blanks and quotes, emoji, not UTF-8, as long as can be with the longest ending that is used.
fn names() -> Vec<OsString> {
    let long = "é".repeat(120);
    let texts = [" two  blanks ", "a'b\"c$(d);*?[e]\\", "😀图片\u{301}", "-dash", &long];
    let others: [&[u8]; 2] = [b"\xff\xfe\x80", b"half \xe5\x9b"];
    let texts = texts.iter().map(OsString::from);
    texts.chain(others.iter().map(|bytes| OsString::from_vec(bytes.to_vec()))).collect()
}

fn named(dir: &Path, name: &OsStr, end: &str) -> std::path::PathBuf {
    let mut name = name.to_owned();
    name.push(end);
    dir.join(name)
}

/// Every file that is read or written, and the directory that all are in.
#[test]
fn any_name_will_do() {
    for name in names() {
        let dir = temp_dir();
        let dir = dir.path().join(&name);
        fs::create_dir(&dir).unwrap();
        let path = |end: &str| named(&dir, &name, end);
        let copy = |from: &Path, end: &str| {
            fs::copy(from, path(end)).unwrap();
            path(end)
        };
        let text = copy(&q8_0().text, ".gguf");
        let mut mmproj = OsString::from("mmproj-");
        mmproj.push(&name);
        let mmproj = dir.join(mmproj);
        fs::copy(&q8_0().mmproj, &mmproj).unwrap();
        let shown = copy(&picture(), ".png");

        let mut asked = qvl();
        asked
            .args(["ask", "-q", "-n", "2", "--temp", "0", "-t", "1", "hi"])
            .arg("-m")
            .arg(&text)
            .arg("--mmproj")
            .arg(&mmproj);
        asked.arg("-i").arg(&shown).arg("--session").arg(path(".s")).arg("--annotate").arg(path("-a.png"));
        asked.env("QVL_CACHE_DIR", path(".cache")).env("QVL_CACHE_SIZE", "1G");
        let first = run(&mut asked);
        first.succeeds();
        run(&mut asked).succeeds();
        assert!(path(".s").exists() && path("-a.png").exists() && fs::read_dir(path(".cache")).unwrap().count() == 1);

        // As relative paths, too, from where they lie; a name that begins with a dash stands behind ./ as everywhere.
        let here = |end: &str| named(Path::new("."), &name, end);
        let mut again = qvl();
        again.current_dir(&dir).args(["ask", "-q", "-n", "2", "--temp", "0", "-t", "1", "hi", "-m"]).arg(here(".gguf"));
        again.arg("--mmproj").arg(&mmproj).arg("-i").arg(here(".png"));
        let again = run(&mut again);
        again.succeeds();
        assert_eq!(again.stdout, first.stdout);

        run(qvl().arg("inspect").arg(&text)).succeeds();
        // A directory's pictures, one of which has this name.
        let pictures = dir.join("pictures");
        fs::create_dir(&pictures).unwrap();
        fs::copy(picture(), named(&pictures, &name, ".png")).unwrap();
        let mut batch = qvl();
        batch
            .args(["batch", "-q", "-n", "1", "--temp", "0", "-t", "1", "-p", "hi", "-m"])
            .arg(&text)
            .arg("--mmproj")
            .arg(&mmproj);
        run(batch.arg(&pictures).arg("-o").arg(path(".jsonl"))).succeeds();
        let lines = fs::read_to_string(path(".jsonl")).unwrap();
        let line: Value = serde_json::from_str(&lines).unwrap();
        assert!(line["text"].is_string(), "{line}");

        let source = path("");
        fs::create_dir(&source).unwrap();
        for entry in fs::read_dir(checkpoint()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
        }
        run(convert().arg(&source).args(["-q", "-t", "q8_0", "--name", "n", "-o"]).arg(path("-out"))).succeeds();
        assert_eq!(fs::read_dir(path("-out")).unwrap().count(), 2);
        // The model's name is the directory's where nothing else is said, cut where files could not be named so.
        run(convert().arg(&source).args(["-q", "-t", "q8_0", "-o"]).arg(path("-out"))).succeeds();
        assert_eq!(fs::read_dir(path("-out")).unwrap().count(), 4);
    }
}

/// What is missing is named whole, whatever its name; one that no file system takes is an error as well.
#[test]
fn any_name_is_shown_in_one_line() {
    for name in names().into_iter().chain(["x".repeat(256).into(), "a\nb\u{1b}[31m".into()]) {
        let dir = temp_dir();
        let path = dir.path().join(&name);
        run(&mut ask(&path, &q8_0().mmproj)).fails(3, "error: ");
        run(convert().arg(&path)).fails(3, "error: ");
        let mut command = ask(&q8_0().text, &q8_0().mmproj);
        let outcome = run(command.arg("-i").arg(&path));
        outcome.fails(4, "error: ");
        assert!(!outcome.stderr.contains('\u{1b}'), "{outcome:?}");
    }
}

/// Runs it where `dir` cannot be written, even by root: in a mount namespace of its own. `None` where none can be made.
fn where_read_only(dir: &Path, command: &Command) -> Option<crate::support::Outcome> {
    const SCRIPT: &str = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 99; shift; exec \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args(["-r", "-m", "sh", "-c", SCRIPT, "sh"]).arg(dir);
    inside.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    let outcome = inside.output().ok()?;
    if outcome.status.code() == Some(99) || outcome.stderr.starts_with(b"unshare") {
        println!("skipped: nothing can be mounted here: {}", String::from_utf8_lossy(&outcome.stderr));
        return None;
    }
    Some(crate::support::Outcome {
        code: outcome.status.code(),
        signal: None,
        stdout: String::from_utf8(outcome.stdout).unwrap(),
        stderr: String::from_utf8(outcome.stderr).unwrap(),
    })
}

#[test]
fn a_directory_that_cannot_be_written() {
    let dir = temp_dir();
    let out = dir.path();
    fs::write(out.join("in.jsonl"), "{\"id\": 1, \"prompt\": \"hi\"}\n").unwrap();
    let check = |command: &mut Command, code: i32, part: &str| {
        let Some(outcome) = where_read_only(out, command) else { return };
        outcome.fails(code, part);
        assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
    };
    let asked = || ask(&q8_0().text, &q8_0().mmproj);
    check(asked().arg("--session").arg(out.join("s")), 1, "cannot write here");
    check(asked().arg("--annotate").arg(out.join("a.png")), 1, "cannot write");
    let mut batch = qvl();
    batch.args(["batch", "-q", "-n", "1", "-t", "1", "-m"]).arg(&q8_0().text).arg(out.join("in.jsonl"));
    check(batch.arg("-o").arg(out.join("out.jsonl")), 1, "cannot write the output");
    let to = |dir: &Path| {
        let mut command = convert();
        command.arg(checkpoint()).args(["-q", "-t", "q8_0", "--name", "n", "-o"]).arg(dir);
        command
    };
    check(&mut to(out), 1, "cannot make a temporary file");
    check(&mut to(&out.join("new")), 2, "cannot make the directory");
    // A cache is no reason to stop.
    let mut cached = asked();
    cached.env("QVL_CACHE_DIR", out.join("cache")).env("QVL_CACHE_SIZE", "1G");
    if let Some(outcome) = where_read_only(out, &cached) {
        outcome.succeeds();
        assert!(outcome.stderr.starts_with("warning:") || outcome.stderr.is_empty(), "{outcome:?}");
    }
    assert_eq!(fs::read_dir(out).unwrap().count(), 1, "nothing was written");
}

/// Files from before 1970 and from 2100, as a clock that was wrong leaves them.
#[test]
fn clocks_that_were_wrong() {
    let dir = temp_dir();
    let (text, mmproj) = (dir.path().join("m.gguf"), dir.path().join("mmproj.gguf"));
    fs::copy(&q8_0().text, &text).unwrap();
    fs::copy(&q8_0().mmproj, &mmproj).unwrap();
    let cache = dir.path().join("cache");
    let mut answers = Vec::new();
    let far = Duration::from_secs(130 * 365 * 86400);
    for time in [UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(86400), UNIX_EPOCH + far, UNIX_EPOCH] {
        let date = |path: &Path| File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        date(&text);
        date(&mmproj);
        for entry in fs::read_dir(&cache).into_iter().flatten() {
            date(&entry.unwrap().path());
        }
        let mut command = ask(&text, &mmproj);
        command.arg("--session").arg(dir.path().join("s"));
        command.env("QVL_CACHE_DIR", &cache).env("QVL_CACHE_SIZE", "1G");
        let outcome = run(&mut command);
        outcome.succeeds();
        fs::remove_file(dir.path().join("s")).unwrap();
        answers.push(outcome.stdout);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    run(qvl().args(["cache", "info"]).env("QVL_CACHE_DIR", &cache)).succeeds();
}

/// Runs a command with so much address space.
fn limited(command: &Command, kib: u64) -> Outcome {
    let mut inside = Command::new("sh");
    inside.args(["-c", "ulimit -v $0 && exec \"$@\"", &kib.to_string()]);
    inside.arg(command.get_program()).args(command.get_args()).env("QVL_CACHE_SIZE", "0").env("OMP_NUM_THREADS", "1");
    run(&mut inside)
}

/// As little address space as there can be: with each amount an answer, or one line and a promised exit code.
#[test]
fn no_memory() {
    let mut n_failed = 0;
    // What is taken when, threads among it, differs from run to run.
    for kib in (36_000..100_000).step_by(2_000) {
        let mut asked = ask(&f32().text, &f32().mmproj);
        let asked = limited(asked.args(["-c", "16000"]), kib);
        // Below, the system's loader finds no room for the program.
        if asked.code == Some(127) {
            continue;
        }
        n_failed += usize::from(asked.code != Some(0));
        // Once in a thousand times a thread finds none to begin with, and the C library says so before we do.
        if asked.code == Some(5) && asked.stderr.contains("TLS destructor") {
            continue;
        }
        asked.ends_well();
    }
    assert!(n_failed > 0, "it was never too little");
}

/// The same of a conversion, in small steps, so that memory ends at any moment of it: both files, or nothing at all. Beside our line there may be one
/// of Rust's or of the C library's, which say in their own words that a thread finds none to begin with.
#[test]
fn no_memory_to_convert() {
    let convert = |kib: u64| {
        let out = temp_dir();
        let mut command = convert();
        command.arg(checkpoint()).args(["-q", "-j", "1", "--name", "n", "-o"]).arg(out.path());
        (limited(&command, kib), fs::read_dir(out.path()).unwrap().count())
    };
    // Below, the system's loader and what C++ does before there is a `main` are what fails.
    let starts = (5_000..).step_by(200).find(|kib| convert(*kib).0.stderr.starts_with("error: ")).unwrap() + 1_000;
    let (mut n_done, mut n_failed) = (0, 0);
    for kib in (starts..starts + 20_000).step_by(200) {
        let (outcome, n_files) = convert(kib);
        match outcome.code {
            Some(0) => n_done += 1,
            Some(5) => n_failed += 1,
            Some(1) if !outcome.stderr.contains("this is a bug") => {}
            _ => panic!("{kib} KiB: {outcome:?}"),
        }
        assert_eq!(n_files, if outcome.code == Some(0) { 2 } else { 0 }, "{kib} KiB: {outcome:?}");
    }
    assert!(n_done > 0 && n_failed > 0, "memory was enough {n_done} times, and {n_failed} times not");
}
