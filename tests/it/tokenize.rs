//! `qvl tokenize`: a line for a line.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::models::random;
use crate::programs::{qvl, repository, run, run_with_input};

fn tokenize(input: &[u8]) -> Vec<Value> {
    let ran = run_with_input(qvl().args(["tokenize", "-m"]).arg(random().text), input).ok();
    assert_eq!(ran.err, "");
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Texts of our own goldens: the ids that the reference's tokenizer makes, and back.
#[test]
fn ids_are_the_references() {
    let cases = std::fs::read_to_string(repository("tests/data/goldens/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let raw: Vec<&Value> = cases["cases"].as_array().unwrap().iter().filter(|c| c["mode"] == "raw").collect();
    let input: String = raw.iter().map(|c| format!("{}\n", json!({"text": c["text"], "special": "all"}))).collect();
    let found = tokenize(input.as_bytes());
    assert_eq!(found.len(), raw.len());
    for (found, case) in found.iter().zip(&raw) {
        assert_eq!(found, &json!({"ids": case["tokenizer_ids"]}), "{}", case["name"]);
    }
    let input: String = raw.iter().map(|c| format!("{}\n", json!({"ids": c["tokenizer_ids"]}))).collect();
    for (found, case) in tokenize(input.as_bytes()).iter().zip(&raw) {
        assert_eq!(found, &json!({"text": case["text"]}), "{}", case["name"]);
    }
}

#[test]
fn special_tokens_count_as_asked() {
    let line = |special: &str| json!({"text": "<|im_end|><box>", "special": special}).to_string() + "\n";
    let found = tokenize(["all", "image", "none"].map(line).concat().as_bytes());
    let ids = |k: usize| found[k]["ids"].as_array().unwrap();
    assert_eq!(ids(0), json!([1102, 1310]).as_array().unwrap());
    assert_eq!(ids(1).last().unwrap(), 1310);
    assert!(ids(1).len() > 2 && ids(1).iter().all(|id| id != 1102));
    assert!(ids(2).iter().all(|id| id.as_u64() < Some(1100)), "{:?}", ids(2));
}

#[test]
fn a_bad_line_is_answered_and_the_next_goes_on() {
    let good = "{\"ids\":[1102]}\n";
    let bad: [&[u8]; 9] = [
        b"",
        b"hello",
        b"[1]",
        b"{}",
        b"{\"ids\":[1408]}",
        b"{\"ids\":[-1]}",
        b"{\"text\":\"a\",\"special\":\"some\"}",
        b"{\"text\":\"<img>no end\"}",
        b"{\"text\":\"\xff\"}",
    ];
    let input: Vec<u8> = bad.iter().flat_map(|line| [line, &b"\n"[..], good.as_bytes()].concat()).collect();
    let found = tokenize(&input);
    assert_eq!(found.len(), 2 * bad.len());
    for (nth, pair) in found.chunks(2).enumerate() {
        assert!(pair[0]["error"].as_str().is_some_and(|e| !e.is_empty()), "line {nth}: {pair:?}");
        assert_eq!(pair[1], json!({"text": "<|im_end|>"}), "line {nth}");
    }
}

/// A program that asks over pipes gets each answer before it asks again.
#[test]
fn answers_come_at_once() {
    let mut command = qvl();
    command.args(["tokenize", "-m"]).arg(random().text).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for id in [0, 1100, 1316] {
        writeln!(input, "{{\"ids\":[{id}]}}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"text\":"), "{line:?}");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn only_a_text_model_has_a_tokenizer() {
    run(qvl().args(["tokenize", "-m"]).arg(random().mmproj)).fails(3, "mmproj-qvl-random-F32.gguf");
    run(qvl().args(["tokenize", "-m", "missing.gguf"])).fails(3, "missing.gguf");
}
