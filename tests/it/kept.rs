//! `--session FILE`: a conversation that goes on in another process.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::models::{Model, random, random_as, tiny};
use crate::programs::{EXACT, qvl, repository, run, run_with_input};

const QUESTIONS: [&str; 3] = ["What does the word say?", "Where is it?", "Is there a red circle?"];

fn ask(model: &Model, session: &Path) -> Command {
    let mut command = qvl();
    command.args(["ask", "--temp", "0", "-n", "40", "--json", "-m"]).arg(&model.text).arg("--session").arg(session);
    command
}

fn chat(model: &Model) -> Command {
    let mut command = qvl();
    command.args(["chat", "-q", "--temp", "0", "-n", "40", "-m"]).arg(&model.text).args(EXACT);
    command
}

fn picture() -> String {
    repository("models/qvl-tiny/demo/shapes.png").to_str().unwrap().to_owned()
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The bytes of a session in which one question about a picture was asked.
fn one_question(dir: &Path) -> Vec<u8> {
    let path = dir.join("one");
    run(ask(&tiny("f16", "f16"), &path).args(["-i", &picture(), QUESTIONS[0]])).ok();
    fs::read(path).unwrap()
}

/// Each question in a process of its own: the answers of one long chat, without the picture's file or the vision tower from
/// the second on, and without reading again what was read.
#[test]
fn a_conversation_goes_on_in_another_process() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let lines = format!("{} {}\n{}\n{}\n", picture(), QUESTIONS[0], QUESTIONS[1], QUESTIONS[2]);
    let expect = run_with_input(&mut chat(&model), lines.as_bytes()).ok().out;

    let (session, shown) = (dir.path().join("s"), dir.path().join("shapes.png"));
    fs::copy(picture(), &shown).unwrap();
    let mut found = String::new();
    let mut n_before = 0;
    for (k, question) in QUESTIONS.into_iter().enumerate() {
        let mut command = ask(&model, &session);
        command.args(EXACT).arg(question);
        match k {
            0 => command.arg("-i").arg(&shown),
            _ => command.args(["--mmproj", "/nowhere"]),
        };
        let json = run(&mut command).json();
        found += &format!("{}\n", json["text"].as_str().unwrap());
        let usage = |key: &str| json["usage"][key].as_u64().unwrap();
        assert_eq!(usage("image_tokens"), 64);
        // All but the tokens of the new question's own frame.
        assert!(usage("reused_tokens") >= n_before, "{json}");
        assert!(k == 0 || usage("prompt_tokens") - usage("reused_tokens") < 30, "{json}");
        n_before = usage("prompt_tokens");
        if k == 1 {
            let region = &json["regions"][0]["box"];
            assert!(region.as_array().is_some_and(|b| b.len() == 4), "in pixels of the picture shown before: {json}");
        }
        let _ = fs::remove_file(&shown);
    }
    assert_eq!(found, expect);
}

#[test]
fn chat_and_ask_share_sessions() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let session = dir.path().join("s");
    let lines = format!("{} {}\n{}\n{}\n", picture(), QUESTIONS[0], QUESTIONS[1], QUESTIONS[2]);
    let expect = run_with_input(&mut chat(&model), lines.as_bytes()).ok().out;
    let say = |lines: &str| run_with_input(chat(&model).arg("--session").arg(&session), lines.as_bytes()).ok().out;
    let mut found = say(&format!("{} {}\n", picture(), QUESTIONS[0]));
    let json = run(ask(&model, &session).args(EXACT).arg(QUESTIONS[1])).json();
    found += &format!("{}\n", json["text"].as_str().unwrap());
    found += &say(&format!("{}\n", QUESTIONS[2]));
    assert_eq!(found, expect);
    // What was taken back is gone there too: a picture, and the rows that were read of it.
    let blank = say(&format!("{} Wrong?\n/undo\n/undo\n/undo\n/undo\n", picture()));
    assert_eq!(blank.lines().count(), 1);
    let fresh = run(ask(&model, &dir.path().join("t")).args(EXACT).arg(QUESTIONS[2])).json();
    let after = run(ask(&model, &session).args(EXACT).arg(QUESTIONS[2])).json();
    assert_eq!(after["text"], fresh["text"]);
    assert_eq!(after["usage"]["prompt_tokens"], fresh["usage"]["prompt_tokens"]);
}

/// Other types in the cache: what was read is of no use, what was seen is.
#[test]
fn other_types_read_again_and_say_so() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let session = dir.path().join("s");
    fs::write(&session, one_question(dir.path())).unwrap();
    let mut command = ask(&model, &session);
    let ran = run(command.args(["-ctk", "q8_0", "--mmproj", "/nowhere", QUESTIONS[1]])).ok();
    assert!(ran.err.starts_with("note: the session is read again"), "{ran:?}");
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&json["usage"]["reused_tokens"], &json["usage"]["image_tokens"]), (&0.into(), &64.into()));
}

#[test]
fn the_picture_can_be_drawn_on_later() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let (session, drawn) = (dir.path().join("s"), dir.path().join("drawn.png"));
    fs::write(&session, one_question(dir.path())).unwrap();
    run(ask(&model, &session).args([QUESTIONS[1], "--annotate"]).arg(&drawn)).ok();
    let size = |path: &Path| image::image_dimensions(path).unwrap();
    assert_eq!(size(&drawn), size(Path::new(&picture())));
}

#[test]
fn another_models_session_is_refused() {
    let dir = dir();
    let session = dir.path().join("s");
    let bytes = one_question(dir.path());
    fs::write(&session, &bytes).unwrap();
    run(ask(&random(), &session).arg("Hello?")).fails(2, "another model");
    // The same model in other bits is another one as well.
    run(ask(&tiny("q8_0", "q8_0"), &session).arg("Hello?")).fails(2, "another model");
    run(ask(&tiny("f16", "f16"), &session).args(["-sys", "Be brief.", "Hello?"])).fails(2, "system message");
    assert_eq!(fs::read(&session).unwrap(), bytes, "untouched");
    run(ask(&random_as("f16", "f16"), &dir.path().join("raw")).args(["--raw", "x"])).fails(2, "--raw");
}

#[test]
fn damage_is_found_and_nothing_is_lost() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let session = dir.path().join("s");
    let whole = one_question(dir.path());
    let check = |bytes: &[u8], part: &str| {
        fs::write(&session, bytes).unwrap();
        run(ask(&model, &session).arg("Hello?")).fails(1, part);
        assert_eq!(fs::read(&session).unwrap(), bytes, "untouched");
    };
    check(b"", "session");
    check(b"{}", "not a session");
    check(b"QVLSESS1", "damaged");
    for n in [9, 20, 60, whole.len() / 2, whole.len() - 1] {
        check(&whole[..n], "damaged");
    }
    for k in [10, 100, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[k] ^= 1;
        check(&bytes, "damaged");
    }
}

/// Files whose checksum is right and whose contents were made up: a clear error, or the text is read again.
#[test]
fn lies_are_harmless() {
    let (model, dir) = (tiny("f16", "f16"), dir());
    let session = dir.path().join("s");
    let whole = one_question(dir.path());
    let n_header = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[16..16 + n_header]).unwrap();
    let tail = &whole[16 + n_header..whole.len() - 32];
    let made = |header: &[u8], n: u64, tail: &[u8]| {
        let mut bytes = [b"QVLSESS1", n.to_le_bytes().as_slice(), header, tail].concat();
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        bytes
    };
    let lie = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        fs::write(&session, made(&header, header.len() as u64, tail)).unwrap();
        run(ask(&model, &session).arg("Hello?"))
    };
    assert_eq!(lie(&|_| {}).code, 0);
    lie(&|h| h["alpha"] = 0.into()).fails(1, "damaged");
    lie(&|h| h["alpha"] = (-1e300).into()).fails(1, "damaged");
    lie(&|h| h["state_bytes"] = u64::MAX.into()).fails(1, "damaged");
    lie(&|h| h["state_bytes"] = 0.into()).fails(1, "damaged");
    lie(&|h| h["sizes"] = Vec::<Value>::new().into()).fails(1, "damaged");
    lie(&|h| h["turns"][0]["pictures"] = Vec::<Value>::new().into()).fails(1, "damaged");
    lie(&|h| h["n_queries"] = 0.into()).fails(1, "damaged");
    lie(&|h| h["d_out"] = 1.into()).fails(1, "damaged");
    lie(&|h| h["read"][1]["rows"][0] = 7.into()).fails(1, "damaged");
    lie(&|h| h["read"][1]["rows"][2] = u32::MAX.into()).fails(1, "damaged");
    lie(&|h| h["turns"] = 5.into()).fails(1, "damaged");
    // Fewer or more positions than the state has.
    let again = |ran: crate::programs::Ran| assert!(ran.ok().err.starts_with("note: the session is read again"));
    again(lie(&|h| h["read"][0]["tokens"] = Vec::<Value>::new().into()));
    again(lie(&|h| h["read"][0]["tokens"] = vec![u32::MAX; 300].into()));
    // A state of nonsense, and one with impossible words in its head.
    let text = serde_json::to_vec(&header).unwrap();
    let n_state = header["state_bytes"].as_u64().unwrap() as usize;
    let at = tail.len() - n_state;
    let mut nonsense = tail.to_vec();
    nonsense[at..].fill(0xff);
    fs::write(&session, made(&text, text.len() as u64, &nonsense)).unwrap();
    again(run(ask(&model, &session).arg("Hello?")));
    for word in 0..8 {
        let mut bytes = tail.to_vec();
        bytes[at + 4 * word..at + 4 * word + 4].fill(0x7f);
        fs::write(&session, made(&text, text.len() as u64, &bytes)).unwrap();
        assert_eq!(run(ask(&model, &session).arg("Hello?")).code, 0, "word {word}");
    }
    fs::write(&session, made(&text, u64::MAX, tail)).unwrap();
    run(ask(&model, &session).arg("Hello?")).fails(1, "damaged");
}

#[test]
fn a_place_that_cannot_be_written_is_found_at_once() {
    let model = tiny("f16", "f16");
    run(ask(&model, Path::new("/nowhere/s")).arg("Hello?")).fails(1, "/nowhere");
    run(ask(&model, dir().path()).arg("Hello?")).fails(1, "directory");
}
