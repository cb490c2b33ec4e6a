//! `qvl ask`: text and JSON, sampling, prompts from everywhere, limits.

use std::process::Command;

use serde_json::Value;

use crate::models::{N_QUERIES, random};
use crate::programs::{Ran, qvl, repository, run, run_with_input};
use crate::tensors::traced;

/// `qvl ask` on `models/qvl-random`, among the pictures.
fn ask() -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["ask", "-q", "-m"]).arg(random().text);
    command
}

/// A greedy answer of at most 24 tokens.
fn greedy(args: &[&str]) -> Ran {
    run(ask().args(["--temp", "0", "-n", "24"]).args(args))
}

/// Positions of the prompt that `qvl trace` makes of these arguments.
fn n_prompt(args: &[&str]) -> usize {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["trace", "-m"]).arg(random().text);
    traced(command.args(args)).ids("input_ids").len()
}

#[test]
fn the_stream_is_the_text_of_the_json() {
    for args in
        [["-i", "shapes.png", "What is this?"], ["-i", "turned.jpg", "这是什么?"], ["-i", "shapes.png", "Hello"]]
    {
        let streamed = greedy(&args).ok();
        let json = greedy(&[&args[..], &["--json"]].concat()).json();
        let text = json["text"].as_str().unwrap();
        assert!(!text.is_empty());
        assert_eq!(streamed.out, format!("{text}\n"));
        assert_eq!(streamed.err, "", "nothing but the answer with -q");
    }
}

#[test]
fn json_has_what_was_promised() {
    let args = ["-i", "shapes.png", "-i", "stripes.png", "Compare them."];
    let json = greedy(&[&args[..], &["--json"]].concat()).json();
    let usage = |key: &str| json["usage"][key].as_u64().unwrap() as usize;
    assert_eq!(usage("image_tokens"), 2 * N_QUERIES);
    assert_eq!(usage("cached_image_tokens"), 0);
    assert_eq!(usage("prompt_tokens"), n_prompt(&args));
    assert!((1..=24).contains(&usage("completion_tokens")));
    match json["finish_reason"].as_str().unwrap() {
        "length" => assert_eq!(usage("completion_tokens"), 24),
        reason => assert_eq!(reason, "stop"),
    }
    for key in ["load_ms", "encode_ms", "prefill_ms", "decode_ms", "ttft_ms", "decode_tokens_per_second"] {
        assert!(json["timings"][key].as_f64().is_some_and(|x| x > 0.0), "{key}: {json}");
    }
    // More than the text weights, less than this machine.
    let peak = json["memory"]["peak_rss_bytes"].as_u64().unwrap();
    assert!((1 << 20..1 << 34).contains(&peak), "{peak}");
    assert!(json["regions"].is_array());
}

#[test]
fn without_pictures_there_are_no_image_tokens() {
    let json = greedy(&["--json", "Hello"]).json();
    assert_eq!(json["usage"]["image_tokens"], 0);
    assert_eq!(json["usage"]["prompt_tokens"], n_prompt(&["Hello"]));
    assert_eq!(json["timings"]["encode_ms"], 0.0);
}

#[test]
fn seeds_repeat_and_differ() {
    let sampled = |seed: &str| {
        let ran =
            run(ask().args(["--temp", "1.5", "--top-p", "1", "-n", "24", "-s", seed, "-i", "gradient.png", "Say."]));
        ran.ok().out
    };
    let answers = ["1", "1", "2", "3"].map(sampled);
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0], answers[2]);
    assert_ne!(answers[2], answers[3]);
}

/// `--temp 0`, `--top-k 1` and a tiny `--top-p` name one answer.
#[test]
fn greedy_has_three_names() {
    let of =
        |args: &[&str]| run(ask().args(["-n", "16", "-s", "5", "--raw"]).args(args).arg("The image shows")).ok().out;
    let greedy = of(&["--temp", "0"]);
    assert_eq!(of(&["--temp", "2", "--top-k", "1"]), greedy);
    assert_eq!(of(&["--temp", "2", "--top-p", "0.0001"]), greedy);
    assert_ne!(of(&["--temp", "2", "--top-p", "1"]), greedy);
}

/// The golden `one_picture`: one word, ten times.
#[test]
fn a_penalty_forbids_repetition() {
    let prompt = "Picture 1: <img>gradient.png</img>\nDescribe the picture in one sentence.";
    let n_repeated = |args: &[&str]| {
        let ran = run(ask().args(["--temp", "0", "-n", "12", "--raw", prompt]).args(args)).ok();
        ran.out.matches(" Model").count()
    };
    assert_eq!(n_repeated(&[]), 10);
    assert!(n_repeated(&["--repeat-penalty", "5"]) <= 1);
}

#[test]
fn no_tokens_when_none_are_wanted() {
    let json = run(ask().args(["-n", "0", "--json", "-i", "shapes.png", "What?"])).json();
    assert_eq!((json["text"].as_str(), json["finish_reason"].as_str()), (Some(""), Some("length")));
    assert_eq!(json["usage"]["completion_tokens"], 0);
    assert_eq!(json["timings"]["ttft_ms"], Value::Null);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_no_part_of_it() {
    let whole = greedy(&["--raw", "--json", "There is"]).json();
    let text = whole["text"].as_str().unwrap();
    // Three characters from the middle, wherever they come first.
    let stop: String = text.chars().skip(20).take(3).collect();
    let expect = &text[..text.find(&stop).unwrap()];
    let cut = greedy(&["--raw", "--json", "--stop", &stop, "There is"]).json();
    assert_eq!((cut["text"].as_str().unwrap(), cut["finish_reason"].as_str()), (expect, Some("stop")));
    let n = |json: &Value| json["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(n(&cut) < n(&whole));
    let streamed = greedy(&["--raw", "--stop", "never there", "--stop", &stop, "There is"]).ok();
    assert_eq!(streamed.out, format!("{expect}\n"));
}

#[test]
fn a_prompt_comes_from_an_argument_a_file_or_stdin() {
    let question = "What is in\nthe picture? é";
    let expect = greedy(&["--json", question]).json();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("question.txt");
    let options = ["--temp", "0", "-n", "24", "--json"];
    // As editors and `echo` do, with a line end that is not meant.
    for ending in ["", "\n", "\r\n"] {
        let text = format!("{question}{ending}");
        std::fs::write(&path, &text).unwrap();
        let from_file = run(ask().args(options).arg("-f").arg(&path)).json();
        let from_stdin = run_with_input(ask().args(options), text.as_bytes()).json();
        for found in [from_file, from_stdin] {
            assert_eq!(found["usage"], expect["usage"], "{ending:?}");
            assert_eq!(found["text"], expect["text"], "{ending:?}");
        }
    }
    run(ask().arg("-f").arg(&path).arg("and this")).fails(2, "cannot be used with");
    run(ask().arg("-f").arg(dir.path().join("missing.txt"))).fails(2, "missing.txt");
    run_with_input(&mut ask(), b"caf\xe9").fails(2, "stdin");
}

#[test]
fn the_system_message_is_part_of_the_prompt() {
    let n = |args: &[&str]| greedy(&[args, &["--json", "Hello"]].concat()).json()["usage"]["prompt_tokens"].clone();
    let default = n(&[]);
    assert_eq!(n(&["-sys", "You are a helpful assistant."]), default);
    let long = n(&["--system", "You are a very helpful assistant who says little and counts to 42."]);
    assert!(long.as_u64() > default.as_u64());
    assert_eq!(
        long,
        n_prompt(&["--system", "You are a very helpful assistant who says little and counts to 42.", "Hello"])
    );
    greedy(&["--raw", "-sys", "x", "Hello"]).fails(2, "system");
}

#[test]
fn environment_and_argument_name_the_model() {
    let by_argument = greedy(&["Hello"]).ok().out;
    let mut command = qvl();
    command.env("QVL_MODEL", random().text).args(["ask", "-q", "--temp", "0", "-n", "24", "Hello"]);
    assert_eq!(run(&mut command).ok().out, by_argument);
    run(qvl().args(["ask", "Hello"])).fails(2, "--model");
    // The argument wins.
    run(ask().env("QVL_MODEL", "missing.gguf").args(["-n", "1", "Hello"])).ok();
    run(qvl().env("QVL_MODEL", random().text).args(["ask", "-m", "missing.gguf", "Hello"])).fails(3, "missing.gguf");
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let n = n_prompt(&["-i", "shapes.png", "What is this?"]);
    let with = |n_ctx: usize| greedy(&["-c", &n_ctx.to_string(), "-i", "shapes.png", "--json", "What is this?"]);
    with(n - 1).fails(2, &format!("the prompt has {n} tokens but the context holds {}", n - 1));
    // The whole context for the prompt leaves room for the one token that need not be read again.
    assert_eq!(with(n).json()["usage"]["completion_tokens"], 1);
}

#[test]
fn a_full_context_ends_the_answer() {
    let n = n_prompt(&["--raw", "There is"]);
    let json = greedy(&["-c", &(n + 5).to_string(), "--raw", "--json", "There is"]).json();
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["usage"]["completion_tokens"], 6);
    let whole = greedy(&["--raw", "--json", "There is"]).json();
    assert!(whole["text"].as_str().unwrap().starts_with(json["text"].as_str().unwrap().trim_end_matches('\u{FFFD}')));
}

#[test]
fn what_does_not_fit_together_is_a_usage_error() {
    greedy(&["-fa", "off", "-ctv", "q8_0", "Hello"]).fails(2, "flash attention");
    greedy(&["-dev", "CUDA9", "Hello"]).fails(2, "CUDA9");
    greedy(&["--temp=-1", "Hello"]).fails(2, "--temp");
    greedy(&["-ctk", "q4_k", "Hello"]).fails(2, "q4_k");
    greedy(&["--raw", ""]).fails(2, "empty");
}

/// Reading weights instead of mapping them, and locking them, change nothing.
#[test]
fn loading_another_way_gives_the_same_answer() {
    let expect = greedy(&["-i", "stripes.png", "What?"]).ok().out;
    assert_eq!(greedy(&["--no-mmap", "-i", "stripes.png", "What?"]).ok().out, expect);
    assert_eq!(greedy(&["-ngl", "0", "-i", "stripes.png", "What?"]).ok().out, expect);
}
