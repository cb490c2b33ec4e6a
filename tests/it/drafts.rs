//! `--draft`: answers come faster, and are the same.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::models::{Model, tiny};
use crate::programs::{EXACT, qvl, repository, run, run_with_input};

/// Largest difference of a log-probability between two ways of batching the same f32 sums.
const TOLERANCE: f64 = 2e-3;

const DESCRIBED: &str = "A purple star, a green square, the word WATER and a blue circle.";

/// The default types of the text, whose passes of several tokens have the logits of single ones to the last bit.
fn model() -> Model {
    tiny("q4_k_m", "q8_0")
}

fn picture() -> String {
    repository("models/qvl-tiny/demo/shapes.png").to_str().unwrap().to_owned()
}

/// The picture is described once, and asked about again: the answer is a copy.
fn copying() -> String {
    let question = "<|im_start|>user\nDescribe the picture.<|im_end|>\n<|im_start|>assistant\n";
    let (system, picture) = ("You are a helpful assistant.", picture());
    format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nPicture 1: <img>{picture}</img>\nDescribe the picture.\
         <|im_end|>\n<|im_start|>assistant\n{DESCRIBED}<|im_end|>\n{question}"
    )
}

fn ask(model: &Model, draft: &str, args: &[&str]) -> Command {
    let mut command = qvl();
    command.args(["ask", "-q", "--draft", draft, "-m"]).arg(&model.text).args(args);
    command
}

/// What must not depend on drafts.
fn said(json: &Value) -> [Value; 4] {
    let usage = &json["usage"];
    [&json["text"], &json["finish_reason"], &usage["prompt_tokens"], &usage["completion_tokens"]].map(Value::clone)
}

/// Tokens that were guessed, and that were right.
fn drafts(json: &Value) -> (u64, u64) {
    let count = |key: &str| json["timings"][key].as_u64().expect(key);
    (count("draft_n"), count("draft_n_accepted"))
}

/// Proves that `args` have the same answer without drafts and with them. Returns the JSON with them.
#[track_caller]
fn check(model: &Model, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    let plain = run(&mut ask(model, "off", &args)).json();
    assert_eq!(drafts(&plain), (0, 0));
    for draft in ["1", "6", "auto"] {
        let json = run(&mut ask(model, draft, &args)).json();
        assert_eq!(said(&json), said(&plain), "{draft}");
        let (n_drafted, n_accepted) = drafts(&json);
        assert!(n_accepted <= n_drafted, "{json}");
        if draft == "auto" {
            return json;
        }
    }
    unreachable!("auto is the last")
}

#[test]
fn a_copy_is_the_same_in_half_of_the_passes() {
    for (text_type, vision_type) in [("q4_k_m", "q8_0"), ("q8_0", "q8_0"), ("f16", "f16"), ("f32", "f32")] {
        let json = check(&tiny(text_type, vision_type), &["--raw", "--temp", "0", "-n", "60", &copying()]);
        assert_eq!((json["text"].as_str(), json["finish_reason"].as_str()), (Some(DESCRIBED), Some("stop")));
        let (n_tokens, (n_drafted, n_accepted)) = (json["usage"]["completion_tokens"].as_u64().unwrap(), drafts(&json));
        assert!(n_accepted > 0 && n_drafted - n_accepted <= 6, "{json}");
        assert!(2 * (n_tokens - n_accepted) < n_tokens, "{json}");
    }
}

#[test]
fn answers_about_a_picture_are_the_same() {
    let picture = picture();
    for question in ["Describe the picture with boxes.", "Where is the purple star?", "What does the word say?"] {
        check(&model(), &["--temp", "0", "-i", &picture, question]);
    }
    let detect = |draft: &str| {
        let mut command = qvl();
        command.args(["detect", "--draft", draft, "--json", "-i", &picture, "-m"]).arg(model().text).arg("purple star");
        run(&mut command).json()["regions"].clone()
    };
    assert_eq!(detect("auto"), detect("off"));
}

#[test]
fn an_answer_may_end_inside_a_draft() {
    for n in 1..=15 {
        let n = n.to_string();
        let json = check(&model(), &["--raw", "--temp", "0", "-n", &n, &copying()]);
        assert_eq!(
            (json["finish_reason"].as_str(), json["usage"]["completion_tokens"].to_string()),
            (Some("length"), n)
        );
    }
    for stop in ["square", "the word", "ER and", "."] {
        let json = check(&model(), &["--raw", "--temp", "0", "-n", "60", "--stop", stop, &copying()]);
        let text = json["text"].as_str().unwrap();
        assert_eq!(Some(text), DESCRIBED.split(stop).next());
        // Streamed, too, nothing is shown that is not meant.
        let streamed = run(&mut ask(&model(), "6", &["--raw", "--temp", "0", "--stop", stop, &copying()])).ok();
        assert_eq!(streamed.out, format!("{text}\n"));
    }
    // The context ends.
    let plain = run(&mut ask(&model(), "off", &["--raw", "--temp", "0", "--json", "-n", "1", &copying()])).json();
    let n_ctx = plain["usage"]["prompt_tokens"].as_u64().unwrap() + 7;
    let json = check(&model(), &["--raw", "--temp", "0", "-n", "60", "-c", &n_ctx.to_string(), &copying()]);
    assert_eq!((&json["finish_reason"], &json["usage"]["completion_tokens"]), (&"length".into(), &8.into()));
}

#[test]
fn chance_and_penalties_are_the_same() {
    let mut n_accepted = 0;
    for seed in ["1", "2", "3", "4"] {
        for more in [["--temp", "0.7"], ["--temp", "1.6"], ["--repeat-penalty", "1.1"]] {
            let args = ["--raw", "-n", "40", "-s", seed, more[0], more[1], &copying()];
            n_accepted += drafts(&check(&model(), &args)).1;
        }
    }
    assert!(n_accepted > 0);
}

#[test]
fn grammars_are_followed() {
    let grammar = NamedTempFile::new().unwrap();
    std::fs::write(&grammar, r#"root ::= [A-Z] [a-z ]+ ", a green square, a red circle.""#).unwrap();
    let path = grammar.path().to_str().unwrap();
    let json = check(&model(), &["--raw", "--temp", "0", "-n", "60", "--grammar", path, &copying()]);
    // Up to the last words it is a copy; there the grammar refuses what was drafted.
    assert_eq!(json["text"], "A purple star, a green square, a red circle.");
    assert!(drafts(&json).1 > 0, "{json}");
}

#[test]
fn logprobs_are_the_same() {
    let (model, mut logprobs) = (tiny("f32", "f32"), Vec::new());
    for draft in ["off", "auto"] {
        let args = ["--raw", "--temp", "0", "-n", "60", "--json", "--logprobs", "2", &copying()];
        let json = run(ask(&model, draft, &args).args(EXACT)).json();
        let tokens = json["logprobs"].as_array().unwrap();
        let of = |token: &Value| (token["id"].clone(), token["logprob"].as_f64().unwrap());
        logprobs.push(tokens.iter().map(of).collect::<Vec<_>>());
    }
    assert_eq!(logprobs[0].len(), logprobs[1].len());
    for (plain, drafted) in logprobs[0].iter().zip(&logprobs[1]) {
        assert!(plain.0 == drafted.0 && (plain.1 - drafted.1).abs() <= TOLERANCE, "{plain:?} {drafted:?}");
    }
}

#[test]
fn conversations_go_on_as_without() {
    let dir = tempfile::tempdir().unwrap();
    let (picture, question) = (picture(), "Describe the picture.");
    let session = |draft: &str, path: &Path| {
        let path = path.to_str().unwrap();
        let args = ["--temp", "0", "--json", "--session", path];
        let first = run(&mut ask(&model(), draft, &[&args[..], &["-i", &picture, question]].concat())).json();
        // The second answer repeats the first and ends in the middle of a draft.
        let second = run(&mut ask(&model(), draft, &[&args[..], &["-n", "9", question]].concat())).json();
        let third = run(&mut ask(&model(), draft, &[&args[..], &["What does the word say?"]].concat())).json();
        [first, second, third]
    };
    let plain = session("off", &dir.path().join("off"));
    let drafted = session("auto", &dir.path().join("auto"));
    assert_eq!(drafted.each_ref().map(said), plain.each_ref().map(said));
    assert!(drafts(&drafted[1]).1 > 0, "{}", drafted[1]);
    let reused = |json: &Value| json["usage"]["reused_tokens"].clone();
    assert_eq!(drafted.each_ref().map(reused), plain.each_ref().map(reused));

    let lines = format!("{picture} {question}\n{question}\nWhere is the purple star?\n/undo\n{question}\n");
    let chat = |draft: &str| {
        let mut command = qvl();
        command.args(["chat", "-v", "--temp", "0", "-m"]).arg(model().text).env("QVL_DRAFT", draft);
        run_with_input(&mut command, lines.as_bytes()).ok()
    };
    let (plain, drafted) = (chat("off"), chat("auto"));
    assert_eq!(drafted.out, plain.out);
    let tells = |err: &str| err.contains("guessed tokens were right");
    assert!(tells(&drafted.err) && !tells(&plain.err), "{}", drafted.err);
}

#[test]
fn a_prompt_from_the_cache_is_continued_alike() {
    let cache = tempfile::tempdir().unwrap();
    let picture = picture();
    let answer = || {
        let args = ["--temp", "0", "--json", "--cache-prompt", "-i", &picture, "Describe the picture with boxes."];
        let mut command = ask(&model(), "auto", &args);
        run(command.env("QVL_CACHE_DIR", cache.path()).env("QVL_CACHE_SIZE", "1G")).json()
    };
    let (cold, warm) = (answer(), answer());
    assert_eq!((said(&warm), drafts(&warm)), (said(&cold), drafts(&cold)));
    let n_cached = |json: &Value| json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(n_cached(&cold) == Some(0) && n_cached(&warm) > Some(60), "{warm}");
}

#[test]
fn the_flag_is_proven_and_goes_before_the_environment() {
    for wrong in ["maybe", "-1", "64", "1.5", ""] {
        let flag = format!("--draft={wrong}");
        let ran = run(qvl().args(["ask", "-m", "no.gguf", &flag, "Hello?"]));
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.starts_with("error: ") && ran.err.contains("auto, off or a number from 1 to 63"), "{ran:?}");
    }
    let n_drafted = |draft: Option<&str>| {
        let mut command = qvl();
        command.args(["ask", "-q", "--json", "--raw", "--temp", "0", "-n", "20", "-m"]).arg(model().text);
        command.args(draft.map(|draft| format!("--draft={draft}"))).arg(copying()).env("QVL_DRAFT", "off");
        drafts(&run(&mut command).json()).0
    };
    assert_eq!((n_drafted(None), n_drafted(Some("0"))), (0, 0));
    assert!(n_drafted(Some("auto")) > 0);
}

/// Where several columns cost hardly more than one, and round alike; nowhere else.
#[test]
fn guessing_is_the_default_for_k_quants_where_kernels_of_ours_read_them() {
    let n_drafted = |model: &Model| {
        let mut command = qvl();
        command.args(["ask", "-q", "--json", "--raw", "--temp", "0", "-n", "20", "-m"]).arg(&model.text);
        drafts(&run(command.arg(copying())).json()).0
    };
    assert_eq!(n_drafted(&tiny("q4_k_m", "q8_0")) > 0, qvl::kernels::multiplies_few_columns());
    assert_eq!(n_drafted(&tiny("q8_0", "q8_0")), 0);
}
