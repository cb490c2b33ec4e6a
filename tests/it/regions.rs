//! Parts of pictures in questions: `ask --region`, `/region` in a chat, `region` in a batch.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::models::{base, random, tiny};
use crate::programs::{qvl, repository, run, run_with_input};

/// What is on the demo's picture of 480 × 420 pixels: its place in pixels, and as the model reads it.
const STAR: (&str, &str) = ("45,55,176,182", "<box>(93,130),(366,433)</box>");
const SQUARE: (&str, &str) = ("83,276,175,364", "<box>(172,657),(364,866)</box>");
const CIRCLE: (&str, &str) = ("315,60,409,157", "<box>(656,142),(852,373)</box>");
const WORD: (&str, &str) = ("219,266,453,329", "<box>(456,633),(943,783)</box>");

fn demo() -> PathBuf {
    repository("models/qvl-tiny/demo/shapes.png")
}

/// `qvl ask` of the model that sees, greedy, among its demo pictures.
fn ask(args: &[&str]) -> Value {
    let mut command = qvl();
    command.current_dir(repository("models/qvl-tiny/demo")).args(["ask", "--json", "--temp", "0", "-n", "40", "-m"]);
    run(command.arg(tiny("f16", "f16").text).args(args)).json()
}

/// `qvl ask` of a model with random weights, among the test pictures.
fn refused(args: &[&str]) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["ask", "-m"]).arg(random().text).args(args);
    command
}

#[test]
fn what_is_pointed_at_is_answered_about() {
    let cases = [
        (STAR, "What is {}?", "A purple star."),
        (SQUARE, "What is in {}?", "A green square."),
        (CIRCLE, "What colour is {}?", "Blue."),
        (WORD, "Read {}.", "WATER"),
    ];
    for ((pixels, thousandths), question, expect) in cases {
        let found = ask(&["-i", "shapes.png", "--region", pixels, question]);
        assert_eq!(found["text"], expect, "{question}");
        let typed = ask(&["-i", "shapes.png", &question.replace("{}", thousandths)]);
        assert_eq!((&found["text"], &found["usage"]), (&typed["text"], &typed["usage"]), "{question}");
    }
    // The corners the other way round, and a box that has no place of its own.
    let found = ask(&["-i", "shapes.png", "--region", "176,55,45,182", "What is this?"]);
    let typed = ask(&["-i", "shapes.png", &format!("{}What is this?", STAR.1)]);
    assert_eq!((&found["text"], &found["usage"]), (&typed["text"], &typed["usage"]));
}

#[test]
fn pixels_are_those_of_the_picture_that_is_meant() {
    let pictures = ["-i", "sign.png", "-i", "shapes.png"];
    let typed = |question: &str| ask(&[&pictures[..], &[question]].concat());
    let check = |regions: &[&str], expect: &str| {
        let flags = regions.iter().flat_map(|region| ["--region", region]);
        let found = ask(&pictures.into_iter().chain(flags).chain(["What is {}?"]).collect::<Vec<_>>());
        let typed = typed(&format!("What is {expect}?"));
        assert_eq!((&found["text"], &found["usage"]), (&typed["text"], &typed["usage"]), "{regions:?}");
    };
    check(&[STAR.0], STAR.1);
    check(&["2:45,55,176,182"], STAR.1);
    // sign.png has 420 × 360 pixels.
    check(&["1:42,36,420,360"], "<box>(100,100),(999,999)</box>");
    let both = ask(&[&pictures[..], &["--region", "1:42,36,84,72", "--region", CIRCLE.0, "Is {} like {}?"]].concat());
    let expect = typed(&format!("Is <box>(100,100),(200,200)</box> like {}?", CIRCLE.1));
    assert_eq!((&both["text"], &both["usage"]), (&expect["text"], &expect["usage"]));
}

#[test]
fn what_is_not_on_the_picture_is_refused_with_its_size() {
    let fails = |args: &[&str], part: &str| run(&mut refused(args)).fails(2, part);
    let picture = ["-i", "shapes.png"];
    let of = |region: &'static str| [&picture[..], &["--region", region, "What?"]].concat();
    fails(&of("0,0,65,64"), "not inside picture 1, which has 64 x 64 pixels");
    fails(&of("-1,0,9,9"), "the region -1,0,9,9 is not inside");
    fails(&of("2:0,0,9,9"), "the last one is picture 1");
    fails(&of("5,5,5,9"), "nothing inside");
    fails(&of("5,5,9"), "expected x1,y1,x2,y2 in pixels");
    fails(&["--region", "0,0,9,9", "What?"], "none is shown");
    // 90 x 60 pixels as stored.
    fails(&["-i", "turned.jpg", "--region", "0,0,90,60", "What?"], "which has 60 x 90 pixels");
    let stored = ["-i", "turned.jpg", "--no-auto-orient", "--region", "0,0,90,60", "-n", "1", "What?"];
    run(&mut refused(&stored)).ok();
    // A prompt that is too long is found before a picture is read, as ever.
    fails(&["-i", "none.png", "-c", "20", "--region", "0,0,9,9", "What?"], "the context holds 20");
}

/// A prompt that shows its pictures itself says where a region goes.
#[test]
fn raw_prompts_have_regions_too() {
    let model = base("qvl-tiny", "f16", "f16");
    let ask = |args: &[&str]| {
        let mut command = qvl();
        command.current_dir(repository("models/qvl-tiny/demo")).args(["ask", "--json", "--temp", "0", "-n", "8", "-m"]);
        run(command.arg(&model.text).args(args))
    };
    let region = ["--region", STAR.0];
    let check = |args: &[&str], typed: &[&str]| {
        let (found, typed) = (ask(&[&region[..], args].concat()).json(), ask(typed).json());
        assert_eq!((&found["text"], &found["usage"]), (&typed["text"], &typed["usage"]), "{args:?}");
    };
    let typed = format!("<ref>This</ref>{} is", STAR.1);
    check(&["-i", "shapes.png", "<ref>This</ref>{} is"], &["-i", "shapes.png", &typed]);
    let inside = format!("<img>shapes.png</img>{typed}");
    check(&["<img>shapes.png</img><ref>This</ref>{} is"], &[&inside]);
    ask(&[&region[..], &["<img>shapes.png</img>This is"]].concat()).fails(2, "put {} into it");
}

#[test]
fn a_chat_and_a_batch_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny("f16", "f16").text;
    let said = |region: &str, question: &str| {
        ask(&["-i", "shapes.png", "--region", region, question])["text"].as_str().unwrap().to_owned()
    };
    let (star, word) = (said(STAR.0, "What is {}?"), said(WORD.0, "Read {}."));

    let mut chat = qvl();
    chat.args(["chat", "-q", "--temp", "0", "-m"]).arg(&model).arg("-i").arg(demo());
    let first = format!("/region {} What is {{}}?\n", STAR.0);
    let ran = run_with_input(&mut chat, format!("{first}/region 0,0,481,5 What?\n/region What?\n").as_bytes()).ok();
    assert_eq!(ran.out, format!("{star}\n"));
    let errors: Vec<&str> = ran.err.lines().collect();
    assert!(errors[0].contains("480 x 420 pixels") && errors[1].contains("expected x1,y1,x2,y2"), "{ran:?}");

    let item = |id: u32, region: Value, prompt: &str| {
        format!("{}\n", json!({"id": id, "image": demo(), "region": region, "prompt": prompt}))
    };
    let lines = [
        item(1, json!([45, 55, 176, 182]), "What is {}?"),
        item(2, json!(WORD.0), "Read {}."),
        item(3, json!([[45, 55, 176, 182], WORD.0]), "Is {} above {}?"),
        item(4, json!([0, 0, 481, 5]), "What is {}?"),
    ];
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fs::write(&input, lines.concat()).unwrap();
    let mut batch = qvl();
    batch.args(["batch", "-q", "--temp", "0", "-n", "40", "-m"]).arg(&model).arg(&input).arg("-o").arg(&output);
    run(&mut batch).ok();
    let mut found: Vec<Value> =
        fs::read_to_string(&output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    found.sort_by_key(|line| line["id"].as_u64());
    assert_eq!((found[0]["text"].as_str(), found[1]["text"].as_str()), (Some(star.as_str()), Some(word.as_str())));
    assert!(found[2]["text"].is_string(), "{found:?}");
    let error = found[3]["error"].as_str().unwrap();
    assert!(error.contains("480 x 420 pixels") && found[3]["code"] == 2, "{error}");
}
