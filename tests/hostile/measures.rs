//! Importance matrices and references from anywhere: whatever is in them, they are used or refused.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{checkpoint, convert, picture, q8_0, qvl, run, temp_dir};

/// Mutations of each file.
const N: usize = 60;

fn example(dir: &Path) -> PathBuf {
    let path = dir.join("data.jsonl");
    fs::write(&path, format!("{{\"image\": {:?}, \"prompt\": \"hi\", \"answer\": \"A b.\"}}\n", picture())).unwrap();
    path
}

/// Calls `check` on copies of `path`, each with some bytes changed, most of them in the header, or cut off.
fn mutated(path: &Path, seed: u64, mut check: impl FnMut(&Path)) {
    let (bytes, mut state) = (fs::read(path).unwrap(), seed);
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let bad = path.with_extension("bad");
    for nth in 0..N {
        let mut changed = bytes.clone();
        for _ in 0..1 + random(3) {
            let end = if nth % 4 == 0 { bytes.len() } else { bytes.len().min(1 + nth * 64) };
            changed[random(end)] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        if nth % 5 == 0 {
            changed.truncate(random(bytes.len()));
        }
        fs::write(&bad, changed).unwrap();
        check(&bad);
    }
}

#[test]
fn importance_matrices() {
    let dir = temp_dir();
    let path = dir.path().join("i.gguf");
    let mut make = qvl();
    make.args(["imatrix", "-q", "-t", "1", "-m"]).arg(&q8_0().text).arg("--mmproj").arg(&q8_0().mmproj);
    run(make.arg(example(dir.path())).arg("-o").arg(&path)).succeeds();
    mutated(&path, 1, |bad| {
        let mut command = convert();
        command.arg(checkpoint()).args(["-q", "--json", "--dry-run", "-t", "q4_0", "--imatrix"]).arg(bad);
        run(&mut command).ends_well();
    });
}

#[test]
fn references() {
    let dir = temp_dir();
    let (path, data) = (dir.path().join("a.qvlref"), example(dir.path()));
    let quality = || {
        let mut command = qvl();
        command.args(["quality", "-q", "-t", "1", "-m"]).arg(&q8_0().text).arg("--mmproj").arg(&q8_0().mmproj);
        command.arg(&data);
        command
    };
    run(quality().arg("--write-reference").arg(&path)).succeeds();
    run(quality().arg("--reference").arg(&path)).succeeds();
    mutated(&path, 2, |bad| run(quality().args(["--json", "--reference"]).arg(bad)).ends_well());
}
