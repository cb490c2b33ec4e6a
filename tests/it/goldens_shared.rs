//! `qvl trace` and `qvl tokenize` against the published code's numbers, where they are at hand: in the folder that
//! `QVL_GOLDENS` names, or in `../shared/goldens` beside the repository.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::models::{Model, converted};
use crate::programs::{EXACT, qvl, repository, run_with_input};
use crate::tensors::{Tensors, Values, check_near, traced};

/// Relative L2, for the same reason as on our own goldens; found: up to 2e-6.
const BOUND: f64 = 2e-5;

/// Greedy ids are compared up to the first step whose two best logits are nearer to each other than this.
const MARGIN: f64 = 1e-3;

struct Goldens {
    dir: PathBuf,
    cases: Value,
    model: Model,
}

impl Goldens {
    /// `None` after saying that the test is skipped.
    fn find() -> Option<Self> {
        let dir = std::env::var_os("QVL_GOLDENS").map_or_else(|| repository("../shared/goldens"), PathBuf::from);
        if !dir.join("tiny-a/hf/config.json").is_file() {
            println!("skipped: {} is not there", dir.display());
            return None;
        }
        let cases = std::fs::read_to_string(dir.join("tiny-a/golden/cases.json")).unwrap();
        let model = converted(&dir.join("tiny-a/hf"), "f32", "f32");
        Some(Goldens { cases: serde_json::from_str(&cases).unwrap(), model, dir })
    }

    fn read(&self, file: &str) -> Tensors {
        Tensors::read(&self.dir.join("tiny-a/golden").join(file))
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// `qvl trace` among the pictures, computing exactly.
    fn trace(&self) -> std::process::Command {
        let mut command = qvl();
        command.current_dir(self.images()).arg("trace").args(EXACT).arg("-m").arg(&self.model.text);
        command
    }

    fn n_images(&self, ids: &[i64]) -> usize {
        ids.iter().filter(|id| **id == self.cases["special"]["img_start"].as_i64().unwrap()).count()
    }
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_vision_tower() {
    let Some(goldens) = Goldens::find() else { return };
    // (its name there, its name here)
    const TAPS: [(&str, &str); 5] = [
        ("ln_pre", "ln_pre"),
        ("block.0", "block.0"),
        ("block.3", "block.3"),
        ("adapter.attn_pool", "resampler"),
        ("adapter.out", "embedding"),
    ];
    let pictures = goldens.cases["vision"].as_object().unwrap();
    assert!(pictures.len() >= 5);
    for (picture, case) in pictures {
        let expect = goldens.read(case["file"].as_str().unwrap());
        let found = traced(goldens.trace().args(["-i", picture, "what?"]));
        let pixels = found.f32s("image.0.pixel_values");
        assert!(pixels == expect.f32s("pixel_values"), "{picture}: pixel values differ");
        for (theirs, ours) in TAPS {
            let found = found.f32s(&format!("image.0.{ours}"));
            check_near(&format!("{picture} {ours}"), &found, &expect.f32s(theirs), BOUND);
        }
    }
}

#[test]
fn prompts_and_continuations() {
    let Some(goldens) = Goldens::find() else { return };
    let cases = goldens.cases["text"].as_object().unwrap();
    assert!(cases.len() >= 15);
    let n_used = goldens.cases["n_used_vocab"].as_u64().unwrap() as usize;
    for (name, case) in cases {
        let ids: Vec<i64> = list(&case["prompt_ids"]);
        let greedy: Vec<i32> = list(&case["greedy_ids"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.json");
        std::fs::write(&path, case["prompt_ids"].to_string()).unwrap();
        let mut command = goldens.trace();
        command.arg("--ids").arg(&path).args(["-n", &greedy.len().to_string()]);
        let pictures: &[&str] = match name.as_str() {
            "two_images" => &["a.png", "b.png"],
            "bare_image_caption" => &["b.png"],
            _ => &["a.png"],
        };
        for picture in &pictures[..goldens.n_images(&ids)] {
            command.args(["-i", picture]);
        }
        let found = traced(&mut command);
        let expect = goldens.read(case["file"].as_str().unwrap());
        check_near(&format!("{name} logits"), &found.f32s("logits"), &expect.f32s("logits"), BOUND);

        let used = |values: Values| Values { shape: vec![values.shape[0], n_used], data: values.columns(n_used) };
        let (rows, expect_rows) = (found.f32s("generated_logits"), expect.f32s("gen_logits"));
        let margins: Vec<f64> = list(&case["greedy_top2_margins"]);
        let n_sure = margins.iter().position(|m| *m < MARGIN).unwrap_or(greedy.len());
        assert_eq!(found.ids("generated_ids")[..n_sure], greedy[..n_sure], "{name}");
        if n_sure == greedy.len() {
            check_near(&format!("{name} generated"), &used(rows), &used(expect_rows), BOUND);
        }
    }
}

/// The chat prompt as a user types it.
#[test]
fn a_question_in_chat_format() {
    let Some(goldens) = Goldens::find() else { return };
    let case = &goldens.cases["text"]["chat_one_image"];
    let question = goldens.cases["chat"]["two_turns_greedy_20"][0]["query"].as_str().unwrap();
    let question = question.strip_prefix("Picture 1: <img>a.png</img>\n").unwrap();
    let greedy: Vec<i32> = list(&case["greedy_ids"]);
    let found = traced(goldens.trace().args(["-i", "a.png", question, "-n", &greedy.len().to_string()]));
    let expect = goldens.read(case["file"].as_str().unwrap());
    check_near("chat logits", &found.f32s("logits"), &expect.f32s("logits"), BOUND);
    assert_eq!(found.ids("generated_ids"), greedy);

    // 20 tokens were generated; the published decoding drops the last one when none of them ends the answer.
    let mut command = qvl();
    command.current_dir(goldens.images()).args(["ask", "-q", "--temp", "0", "-n", "19", "-i", "a.png", question, "-m"]);
    let answer = crate::programs::run(command.arg(&goldens.model.text).args(EXACT)).ok();
    let expect = goldens.cases["chat"]["two_turns_greedy_20"][0]["response"].as_str().unwrap();
    assert_eq!(answer.out.trim_end_matches('\n'), expect);
}

fn tokenized(model: &Path, lines: &[Value]) -> Vec<Value> {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let ran = run_with_input(qvl().args(["tokenize", "-m"]).arg(model), input.as_bytes()).ok();
    let answers: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), lines.len());
    answers
}

/// Ids → text → ids for the prompts that are text, and the text of every continuation.
#[test]
fn the_tokenizer() {
    let Some(goldens) = Goldens::find() else { return };
    let text = goldens.cases["text"].as_object().unwrap();
    let typed = ["text_short", "one_image", "two_images", "bare_image_caption", "ref_box", "chat_one_image"];
    let asked: Vec<Value> = typed.iter().map(|name| json!({"ids": text[*name]["prompt_ids"]})).collect();
    let prompts = tokenized(&goldens.model.text, &asked);
    assert!(prompts[3]["text"].as_str().unwrap().starts_with("<img>b.png</img>"), "{}", prompts[3]);
    let back: Vec<Value> = prompts.iter().map(|p| json!({"text": p["text"], "special": "all"})).collect();
    for (name, (asked, found)) in typed.iter().zip(asked.iter().zip(tokenized(&goldens.model.text, &back))) {
        assert_eq!(&found, asked, "{name}");
    }
    let asked: Vec<Value> = text.values().map(|case| json!({"ids": case["greedy_ids"]})).collect();
    for ((name, case), found) in text.iter().zip(tokenized(&goldens.model.text, &asked)) {
        assert_eq!(found["text"], case["greedy_text"], "{name}");
    }
}
