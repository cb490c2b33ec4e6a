//! What is fuzzed: each target takes any bytes, reads them as a file or text of its kind, and asserts what must hold of
//! whatever was accepted. `scripts/fuzz.sh` runs them under libFuzzer; the converter's tests replay the seeds, simple damage
//! to them and every finding.

mod checkpoints;
mod files;
mod pictures;
pub mod seeds;
mod texts;

use std::path::PathBuf;

/// A target.
pub type Target = fn(&[u8]);

/// All, by name.
pub const TARGETS: [(&str, Target); 14] = [
    ("batch", texts::batch),
    ("boxes", texts::boxes),
    ("cache", files::cache),
    ("gguf", files::gguf),
    ("grammar", texts::grammar),
    ("index", checkpoints::index),
    ("picture", pictures::picture),
    ("pickle", checkpoints::pickle),
    ("prompt", texts::prompt),
    ("safetensors", checkpoints::safetensors),
    ("session", files::session),
    ("source", pictures::source),
    ("torch", checkpoints::torch),
    ("vocabulary", checkpoints::vocabulary),
];

/// The target of this name.
pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1
}

/// A file with these bytes, for readers that take a path: the same one each time, in a directory that goes away with its
/// thread.
fn file(name: &str, data: &[u8]) -> PathBuf {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    let path = DIR.with(|dir| dir.path().join(name));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).expect("a directory");
    }
    std::fs::write(&path, data).expect("a file");
    path
}

/// The bytes with their SHA-256 behind them: without that, nothing but checksums would be tested.
fn sealed(data: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let checksum = Sha256::digest(data);
    [data, &checksum[..]].concat()
}
