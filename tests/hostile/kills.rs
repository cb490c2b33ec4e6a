//! kill -9 at random moments of whatever writes: nothing half-written stands under a final name, and nothing that was said to
//! be done is lost. `QVL_KILLS=N` kills each of the four N times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::random::Random;
use crate::support::{checkpoint, convert, picture, q8_0, qvl, run, temp_dir};

/// Kills of each without the variable.
const N_DEFAULT: u64 = 30;
/// Bytes of the checksum behind sessions and entries of the cache.
const N_CHECKSUM: usize = 32;

/// How a run that was to be killed ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// It was faster, and said that it had done its work.
    Done,
}

/// Runs what `command` makes again and again, each time killed at a moment between its start and the time that it takes
/// (plus a little), and looks at what is left each time. Returns how many were killed in time.
fn kill(seed: u64, mut command: impl FnMut(u64) -> Command, mut look: impl FnMut(u64, End)) -> u64 {
    let n_kills = std::env::var("QVL_KILLS").map_or(N_DEFAULT, |n| n.parse().expect("a number"));
    let begin = Instant::now();
    run(&mut command(0)).succeeds();
    look(0, End::Done);
    let mut whole = begin.elapsed();
    let (mut r, mut n_killed, mut n_runs) = (Random(seed), 0, 0);
    // Runs that were faster than the kill do not count; were all so, something else would be wrong.
    while n_killed < n_kills && n_runs < 4 * n_kills + 20 {
        n_runs += 1;
        let mut child = command(n_runs).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        let moment = whole.mul_f64(r.below(1100) as f64 / 1000.0);
        let mut status = None;
        while begin.elapsed() < moment && status.is_none() {
            std::thread::sleep(Duration::from_micros(300));
            status = child.try_wait().unwrap();
        }
        if status.is_none() {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.success() {
            // The machine is as busy as it is now.
            whole = (whole + begin.elapsed()) / 2;
            look(n_runs, End::Done);
        } else {
            assert_eq!(status.code(), None, "it ended by itself, and badly");
            n_killed += 1;
            look(n_runs, End::Killed);
        }
    }
    println!("{n_killed} of {n_runs} killed, a run takes {whole:?}");
    assert!(n_killed * 2 >= n_kills, "hardly any of {n_runs} runs could be killed");
    n_killed
}

/// Names in a directory that are not those of files being written.
fn final_names(dir: &Path, temporary: &str) -> BTreeSet<String> {
    let names = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !(name.starts_with(temporary) && name.ends_with(".tmp"))).collect()
}

/// The bytes in front of a checksum that is right.
fn sealed(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let checksum = bytes.split_off(bytes.len() - N_CHECKSUM);
    assert_eq!(Sha256::digest(&bytes)[..], checksum, "{} is damaged", path.display());
    bytes
}

#[test]
fn conversion() {
    let dir = temp_dir();
    let out = dir.path().join("out");
    let names = ["m-Q4_0.gguf", "mmproj-m-Q8_0.gguf"];
    let command = |_: u64| {
        let mut command = convert();
        command.arg(checkpoint()).args(["-q", "--name", "m", "-t", "q4_0"]).arg("-o").arg(&out);
        command
    };
    let mut whole: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    kill(1, command, |n, end| {
        let left = final_names(&out, ".qvl-convert-");
        if n == 0 {
            whole = left.iter().map(|name| (name.clone(), fs::read(out.join(name)).unwrap())).collect();
            assert_eq!(left.iter().map(String::as_str).collect::<Vec<_>>(), names);
        }
        assert!(end == End::Killed || left.len() == 2, "done, but there is only {left:?}");
        for name in left {
            assert!(whole.get(&name) == Some(&fs::read(out.join(&name)).unwrap()), "run {n}: {name} is half-written");
        }
        clear(&out, end);
    });
}

/// Removes the finished files. What a kill left of those that were being written stays, and is gone when the next run is done.
fn clear(out: &Path, end: End) {
    for entry in fs::read_dir(out).into_iter().flatten().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(".qvl-convert-") {
            assert!(end == End::Killed, "{name} was left");
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// The first part of several gets its name when the others have theirs: where it is, all are.
#[test]
fn conversion_into_parts() {
    let dir = temp_dir();
    let out = dir.path().join("out");
    let first = "m-Q4_0-00001-of-00004.gguf";
    let command = |_: u64| {
        let mut command = convert();
        command
            .arg(checkpoint())
            .args(["-q", "--name", "m", "-t", "q4_0", "--split-max-tensors", "5"])
            .arg("-o")
            .arg(&out);
        command
    };
    let mut whole: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    kill(11, command, |n, end| {
        let left = final_names(&out, ".qvl-convert-");
        if n == 0 {
            whole = left.iter().map(|name| (name.clone(), fs::read(out.join(name)).unwrap())).collect();
            assert!(left.len() == 5 && left.contains(first), "{left:?}");
        }
        let is_all = end == End::Done || left.contains(first);
        assert!(!is_all || left.len() == 5, "run {n}: the first part is there, and of the others {left:?}");
        for name in left {
            assert!(whole.get(&name) == Some(&fs::read(out.join(&name)).unwrap()), "run {n}: {name} is half-written");
        }
        clear(&out, end);
    });
}

#[test]
fn sessions() {
    let dir = temp_dir();
    let path = dir.path().join("session");
    let command = |n: u64| {
        // Conversations outgrow the context.
        if n.is_multiple_of(20) {
            let _ = fs::remove_file(&path);
        }
        let mut command = qvl();
        command.args(["ask", "-q", "-n", "1", "--temp", "0", "-t", "1", "-m"]).arg(&q8_0().text);
        command.arg("--session").arg(&path).arg(format!("q{n}"));
        command
    };
    let mut n_turns = 0;
    kill(2, command, |n, end| {
        if n.is_multiple_of(20) {
            n_turns = 0;
        }
        if end == End::Killed && !path.exists() {
            return assert_eq!(n_turns, 0, "run {n}: the session is gone");
        }
        let bytes = sealed(&path);
        let n_header = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[16..16 + n_header]).unwrap();
        let turns = header["turns"].as_array().unwrap();
        let last = turns.last().unwrap()["question"].as_str().unwrap();
        match end {
            End::Done => assert_eq!((turns.len(), last), (n_turns + 1, format!("q{n}").as_str())),
            // The rename was the last that it did, or it was not done.
            End::Killed => assert!(turns.len() == n_turns || last == format!("q{n}"), "run {n}: {header}"),
        }
        n_turns = turns.len();
    });
}

#[test]
fn batch() {
    let dir = temp_dir();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let n_lines = 12;
    fs::write(&input, (0..n_lines).map(|i| format!("{{\"id\": {i}, \"prompt\": \"q{i}\"}}\n")).collect::<String>())
        .unwrap();
    let command = |_: u64| {
        let mut command = qvl();
        command.args(["batch", "-q", "-n", "2", "--temp", "0", "-t", "1", "-m"]).arg(&q8_0().text);
        command.arg(&input).arg("-o").arg(&output);
        command
    };
    let (mut before, mut whole): (Vec<Value>, BTreeMap<String, Value>) = Default::default();
    kill(3, command, |n, end| {
        let text = fs::read_to_string(&output).unwrap_or_default();
        // What stands behind the last line break is a line that was not reported, if anything.
        let lines: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        if n == 0 {
            whole = lines.iter().map(|line| (line["id"].to_string(), line["text"].clone())).collect();
            assert_eq!(whole.len(), n_lines);
        }
        assert!(lines.starts_with(&before), "run {n}: lines are gone");
        assert!(lines.iter().all(|line| whole.get(&line["id"].to_string()) == Some(&line["text"])), "run {n}: {text}");
        let ids: BTreeSet<String> = lines.iter().map(|line| line["id"].to_string()).collect();
        assert_eq!(ids.len(), lines.len(), "run {n}: an item twice");
        match end {
            End::Done => {
                assert_eq!(lines.len(), n_lines);
                fs::remove_file(&output).unwrap();
                before.clear();
            }
            End::Killed => before = lines,
        }
    });
}

#[test]
fn cache() {
    let dir = temp_dir();
    let command = |n: u64| {
        let mut command = qvl();
        // Another question now and then, another prompt with it; the picture's embedding is there already, or is not.
        command.args(["ask", "-q", "-n", "1", "--temp", "0", "-t", "1", "--cache-prompt", "-m"]).arg(&q8_0().text);
        command.arg("--mmproj").arg(&q8_0().mmproj).arg("-i").arg(picture()).arg("-sys").arg(format!("s{}", n / 3));
        command.env("QVL_CACHE_DIR", dir.path()).env("QVL_CACHE_SIZE", "1GB").arg("hi");
        command
    };
    kill(4, command, |n, end| {
        let names = final_names(dir.path(), ".emb-");
        for name in &names {
            assert!(name.ends_with(".emb") || name.ends_with(".kv"), "{name}");
            sealed(&dir.path().join(name));
        }
        assert!(end == End::Killed || names.len() >= 2, "done, but there is only {names:?}");
        if n.is_multiple_of(4) {
            names.iter().for_each(|name| fs::remove_file(dir.path().join(name)).unwrap());
        }
    });
}
