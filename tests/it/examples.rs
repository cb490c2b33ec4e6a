//! Examples for `qvl imatrix` and `qvl quality`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::programs::repository;

/// A file of these lines in `dir`.
pub fn data(dir: &Path, lines: &[Value]) -> PathBuf {
    let path = dir.join("data.jsonl");
    fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

/// Every `step`-th of the held-out questions of `models/qvl-tiny` that stand for themselves, with their answers.
pub fn heldout(step: usize) -> Vec<Value> {
    let folder = repository("models/qvl-tiny/heldout");
    let text = fs::read_to_string(folder.join("questions.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines = lines.filter(|line| line["history"].is_null());
    let one = |line: Value| {
        let images = line["images"].as_array().unwrap().iter();
        let images: Vec<_> = images.map(|name| folder.join(name.as_str().unwrap())).collect();
        json!({"id": line["id"], "images": images, "question": line["question"], "answer": line["answer"]})
    };
    lines.step_by(step).map(one).collect()
}
