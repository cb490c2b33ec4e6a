//! Pictures: they matter, they are turned upright, and none is imagined.

use std::path::Path;
use std::process::Command;

use qvl::image::{Orientation, load};

use crate::models::random;
use crate::programs::{EXACT, qvl, repository, run};
use crate::tensors::{Values, relative_l2, traced};

fn among_pictures(subcommand: &str) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args([subcommand, "-q", "-m"]).arg(random().text);
    command
}

/// Logits after a question about these pictures.
fn last_logits(args: &[&str]) -> Vec<f32> {
    let logits = traced(among_pictures("trace").args(EXACT).args(args).arg("What is this?")).f32s("logits");
    logits.row(logits.shape[0] - 1).to_vec()
}

/// Far above rounding (1e-6), far below what another picture does (measured: above 1e-1).
const ANOTHER_PICTURE: f64 = 1e-2;

#[test]
fn the_picture_matters() {
    let of = ["gradient.png", "shapes.png", "stripes.png"].map(|file| last_logits(&["-i", file]));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let distance = relative_l2(&of[a], &of[b]);
        println!("pictures {a} and {b}: {distance:.1e}");
        assert!(distance > ANOTHER_PICTURE, "{a} {b}: {distance:.1e}");
    }
}

#[test]
fn the_order_of_pictures_matters() {
    let found = last_logits(&["-i", "gradient.png", "-i", "shapes.png"]);
    let swapped = last_logits(&["-i", "shapes.png", "-i", "gradient.png"]);
    assert!(relative_l2(&found, &swapped) > ANOTHER_PICTURE);
}

/// Pictures of `-i` come before those of the text.
#[test]
fn pictures_beside_and_in_a_raw_prompt() {
    let trace = |args: &[&str]| traced(among_pictures("trace").args(args));
    let both = trace(&["--raw", "-i", "shapes.png", "<img>stripes.png</img> and?"]);
    let typed = trace(&["--raw", "Picture 1: <img>shapes.png</img>\n<img>stripes.png</img> and?"]);
    assert_eq!(both.ids("input_ids"), typed.ids("input_ids"));
    for name in ["image.0.pixel_values", "image.1.embedding", "logits"] {
        assert!(both.f32s(name) == typed.f32s(name), "{name}");
    }
}

/// `turned.jpg` as its EXIF orientation means it, in a format that has none.
fn upright_copy(path: &Path) {
    let picture = load(&repository("tests/data/pictures/turned.jpg"), Orientation::Upright).unwrap();
    let mut file = format!("P6\n{} {}\n255\n", picture.width(), picture.height()).into_bytes();
    file.extend_from_slice(picture.pixels());
    std::fs::write(path, file).unwrap();
}

#[test]
fn photographs_are_turned_upright() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upright.ppm");
    upright_copy(&path);
    let pixels = |args: &[&str], file: &Path| -> Values {
        traced(among_pictures("trace").args(args).arg("-i").arg(file).arg("?")).f32s("image.0.pixel_values")
    };
    let turned = pixels(&[], Path::new("turned.jpg"));
    assert!(turned == pixels(&[], &path), "the upright copy");
    assert!(turned == pixels(&["--no-auto-orient"], &path), "the upright copy has nothing to be turned by");
    let stored = pixels(&["--no-auto-orient"], Path::new("turned.jpg"));
    assert!(relative_l2(&stored.data, &turned.data) > ANOTHER_PICTURE);

    // And so for ask: it says what it says about the copy.
    let answer = |file: &Path| {
        run(among_pictures("ask").args(["--temp", "0", "-n", "16", "-i"]).arg(file).arg("What?")).ok().out
    };
    assert_eq!(answer(Path::new("turned.jpg")), answer(&path));
}

#[test]
fn no_answer_about_a_picture_that_was_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let model = random();
    let alone = dir.path().join("alone.gguf");
    std::fs::copy(&model.text, &alone).unwrap();
    let ask = |args: &[&str]| {
        let mut command = qvl();
        command.current_dir(repository("tests/data/pictures")).args(["ask", "-q", "-n", "4", "-m"]).arg(&alone);
        run(command.args(args))
    };
    ask(&["-i", "shapes.png", "What?"]).fails(3, "mmproj");
    ask(&["--raw", "<img>shapes.png</img> What?"]).fails(3, "mmproj");
    ask(&["What?"]).ok();
    ask(&["--mmproj", model.mmproj.to_str().unwrap(), "-i", "shapes.png", "What?"]).ok();
    // A text file is no mmproj.
    ask(&["--mmproj", model.text.to_str().unwrap(), "-i", "shapes.png", "What?"]).fails(3, "qvl-random-F32.gguf");

    let beside = dir.path().join("mmproj-any-name.gguf");
    std::fs::copy(&model.mmproj, &beside).unwrap();
    ask(&["-i", "shapes.png", "What?"]).ok();
    // Damaged, or of another checkpoint: found, and refused.
    let bytes = std::fs::read(&model.mmproj).unwrap();
    std::fs::write(&beside, &bytes[..bytes.len() / 2]).unwrap();
    ask(&["-i", "shapes.png", "What?"]).fails(3, "mmproj-any-name.gguf");
    std::fs::write(&beside, of_another_checkpoint(bytes)).unwrap();
    ask(&["-i", "shapes.png", "What?"]).fails(3, "another model");
}

/// An mmproj with another `qvl.vision_id`, a string of 16 characters.
fn of_another_checkpoint(mut mmproj: Vec<u8>) -> Vec<u8> {
    let key = b"qvl.vision_id";
    let at = mmproj.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    // Behind the key: value type (4 bytes), length (8 bytes), text.
    let digit = &mut mmproj[at + 12];
    *digit = if *digit == b'0' { b'1' } else { b'0' };
    mmproj
}

#[test]
fn bad_pictures_are_named_before_any_weight_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.png");
    std::fs::write(&bad, "this is no picture").unwrap();
    let ask = |picture: &Path| run(among_pictures("ask").arg("-i").arg(picture).arg("What?"));
    ask(&bad).fails(4, "bad.png");
    ask(Path::new("missing.png")).fails(4, "missing.png");
    let cut = std::fs::read(repository("tests/data/pictures/shapes.png")).unwrap();
    std::fs::write(&bad, &cut[..cut.len() / 2]).unwrap();
    ask(&bad).fails(4, "bad.png");
}
