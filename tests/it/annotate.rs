//! `qvl ask --annotate`: the picture that is written. (What regions look like on it is tested where they are drawn; this
//! model names none, so a label is drawn by `/boxes` of a chat that was saved.)

use std::fs;
use std::path::Path;
use std::process::Command;

use qvl::image::{Orientation, Picture, load};
use serde_json::json;

use crate::models::random;
use crate::programs::{Ran, qvl, repository, run, run_with_input};

/// `qvl ask` of 8 greedy tokens, among the pictures.
fn ask(args: &[&str], annotate: &Path) -> Ran {
    let mut command = ask_with(&random().text, annotate);
    run(command.args(["-n", "8", "--temp", "0"]).args(args))
}

fn ask_with(model: &Path, annotate: &Path) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["ask", "-m"]).arg(model);
    command.arg("--annotate").arg(annotate);
    command
}

fn read(path: &Path) -> Picture {
    load(path, Orientation::AsStored).unwrap()
}

/// A picture of the repository, upright or as stored.
fn original(name: &str, orientation: Orientation) -> Picture {
    load(&repository("tests/data/pictures").join(name), orientation).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_picture_without_regions_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for (name, magic) in [("a.png", &b"\x89PNG"[..]), ("b.JPG", b"\xff\xd8\xff"), ("c.webp", b"RIFF")] {
        let path = dir.path().join(name);
        let ran = ask(&["-i", "gradient.png", "-i", "shapes.png", "What is this?"], &path).ok();
        let note = format!("wrote {}: the answer has no regions\n", path.display());
        assert!(ran.err.contains(&note), "{ran:?}");
        assert!(!ran.out.contains("wrote") && ran.out.ends_with('\n'), "{ran:?}");
        assert!(fs::read(&path).unwrap().starts_with(magic), "{name}");
        let (written, expect) = (read(&path), original("shapes.png", Orientation::Upright));
        assert_eq!((written.width(), written.height()), (expect.width(), expect.height()), "{name}");
        assert!(name == "b.JPG" || written == expect, "{name} has other pixels");
    }
    assert_eq!(names(dir.path()).len(), 3);
}

#[test]
fn the_flag_changes_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let question = ["-q", "-i", "shapes.png", "What is this?"];
    let with = ask(&question, &path).ok();
    let mut plain = qvl();
    plain.current_dir(repository("tests/data/pictures")).args(["ask", "-m"]).arg(random().text);
    plain.args(["-n", "8", "--temp", "0"]).args(question);
    assert_eq!((with.out, with.err), (run(&mut plain).ok().out, String::new()));
    assert!(run(plain.arg("--json")).json().get("annotated").is_none());
    let json = ask(&["--json", "-i", "shapes.png", "What is this?"], &path).json();
    assert_eq!(json["annotated"].as_str(), path.to_str());
}

#[test]
fn the_picture_is_written_as_it_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    ask(&["-i", "turned.jpg", "What?"], &path).ok();
    assert_eq!(read(&path), original("turned.jpg", Orientation::Upright));
    // It replaces what was there.
    ask(&["-i", "turned.jpg", "--no-auto-orient", "What?"], &path).ok();
    assert_eq!(read(&path), original("turned.jpg", Orientation::AsStored));
    // A picture in the text of a raw prompt comes after those of -i.
    ask(&["--raw", "-i", "turned.jpg", "<img>stripes.png</img>Stripes"], &path).ok();
    assert_eq!(read(&path), original("stripes.png", Orientation::Upright));
}

/// The picture with a region of this label drawn on it.
fn labelled(label: &str) -> Picture {
    let dir = tempfile::tempdir().unwrap();
    let (chat, out) = (dir.path().join("chat.json"), dir.path().join("out.png"));
    let turn = json!({
        "pictures": [repository("tests/data/pictures/gradient.png")],
        "question": "Where?",
        "answer": format!("<ref>{label}</ref><box>(300,300),(700,700)</box>"),
    });
    let saved = json!({"format": "qvl-chat", "version": 1, "system": "", "turns": [turn]});
    fs::write(&chat, saved.to_string()).unwrap();
    let mut command = qvl();
    let lines = format!("/load {}\n/boxes {}\n", chat.display(), out.display());
    run_with_input(command.args(["chat", "-q", "-m"]).arg(random().text), lines.as_bytes()).ok();
    read(&out)
}

/// Not as the empty boxes that stand for what no font here has.
#[test]
fn labels_are_in_chinese_too() {
    let [one, other, missing] = ["击掌", "掌击", "👍🐕"].map(labelled);
    assert!(one != other && one != missing && other != missing);
    assert!(missing == labelled("🐕👍"));
    let original = original("gradient.png", Orientation::Upright);
    assert_eq!((one.width(), one.height()), (original.width(), original.height()));
}

#[test]
fn what_cannot_be_written_is_known_before_the_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let early = |name: &str, code, part| {
        let mut command = ask_with("missing.gguf".as_ref(), &dir.path().join(name));
        run(command.args(["-i", "shapes.png", "What?"])).fails(code, part);
    };
    early("a.gif", 2, "a picture is written as .png, .jpg or .webp");
    early("a", 2, "a picture is written as");
    fs::create_dir(dir.path().join("dir.png")).unwrap();
    early("dir.png", 1, "directory");
    early("new.png/", 1, "directory");
    early("none/a.png", 1, "cannot write here");
    // Nothing wrong with it: the model is missed.
    early("a.png", 3, "missing.gguf");
    assert_eq!(names(dir.path()), ["dir.png"]);
}

#[test]
fn a_picture_is_needed_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    ask(&["What?"], &path).fails(2, "--annotate needs a picture");
    ask(&["--raw", "What?"], &path).fails(2, "--annotate needs a picture");
    assert!(names(dir.path()).is_empty());
    fs::copy(repository("tests/data/pictures/shapes.png"), &path).unwrap();
    let before = fs::read(&path).unwrap();
    let picture = path.to_str().unwrap();
    ask(&["-i", picture, "-i", "stripes.png", "What?"], &path).fails(2, "would replace it");
    assert_eq!(fs::read(&path).unwrap(), before);
}
