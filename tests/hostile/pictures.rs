//! Pictures that are none: exit code 4, one line, and never an answer.

use std::path::Path;

use serde_json::json;

use crate::support::{picture, q8_0, qvl, run, temp_dir};

fn check(path: &Path, expect: &str) {
    let mut command = qvl();
    command.args(["ask", "-q", "-n", "1", "-m"]).arg(&q8_0().text).arg("-i").arg(picture()).arg("-i").arg(path);
    let outcome = run(command.arg("hi"));
    outcome.fails(4, expect);
    assert_eq!(outcome.stdout, "");
}

fn check_bytes(bytes: &[u8], expect: &str) {
    let dir = temp_dir();
    let path = dir.path().join("picture.png");
    std::fs::write(&path, bytes).unwrap();
    check(&path, expect);
}

#[test]
fn files_that_are_no_pictures() {
    check_bytes(b"", "empty");
    check_bytes(b"just words, no picture", "not a picture in a supported format");
    check_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull");
    check_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC");
    check_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG");
    check_bytes(b"%PDF-1.7\n", "PDF");
    check_bytes(b"GIF89a", "picture.png");
    check_bytes(b"\x89PNG\r\n\x1a\n", "picture.png");
    check_bytes(b"P6 0 0 255\n", "picture.png");
    check_bytes(b"P6 100000 100000 255\n", "limit is 178956970");
    check_bytes(b"qoif\xff\xff\xff\xff\xff\xff\xff\xff\x03\0", "picture.png");
    check_bytes(&std::fs::read(picture()).unwrap()[..60], "picture.png");
    check_bytes(&std::fs::read(&q8_0().mmproj).unwrap(), "not a picture");
}

/// A decoder panics at it (found by fuzzing): a damaged picture like others, and a batch goes on behind it.
#[test]
fn a_picture_that_stops_its_decoder() {
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/findings/picture/scans.jpg");
    check(&bad, "damaged");
    let dir = temp_dir();
    let (items, out) = (dir.path().join("items.jsonl"), dir.path().join("answers.jsonl"));
    let line = |image: &Path| json!({"image": image, "prompt": "hi"}).to_string();
    std::fs::write(&items, format!("{}\n{}\n", line(&bad), line(&picture()))).unwrap();
    let mut command = qvl();
    command.args(["batch", "-q", "-n", "1", "-m"]).arg(&q8_0().text).arg("-o").arg(&out).arg(&items);
    let outcome = run(&mut command);
    let answers = std::fs::read_to_string(&out).unwrap();
    assert!(answers.contains("damaged") && answers.lines().count() == 2, "{answers} {}", outcome.stderr);
    assert!(answers.lines().nth(1).unwrap().contains("\"text\""), "{answers}");
}

#[test]
fn paths_that_are_no_pictures() {
    let dir = temp_dir();
    check(dir.path(), "irectory");
    check(Path::new("/dev/null"), "empty");
    check(Path::new("/dev/zero"), "larger than 1 GiB");
    check(&dir.path().join("missing.png"), "No such file");
    check(&dir.path().join("a".repeat(300)), "too long");
}

#[test]
fn a_picture_in_the_text_counts_too() {
    let ask = |prompt: &str| {
        let mut command = qvl();
        command.args(["ask", "-q", "-n", "1", "--raw", "-m"]).arg(&q8_0().text);
        run(command.arg(prompt))
    };
    ask("<img>no/such.png</img>hi").fails(4, "no/such.png");
    ask("<img>nope.png").fails(2, "unclosed image");
    ask("<img></img>").fails(2, "empty path");
    ask("<img><ref></img>").fails(2, "special token");
    ask(&format!("<img>{}</img>", "x".repeat(5000))).fails(4, "too long");
}

#[test]
fn no_mmproj_no_answer() {
    let dir = temp_dir();
    let text = dir.path().join("m.gguf");
    std::fs::copy(&q8_0().text, &text).unwrap();
    let ask = || run(qvl().args(["ask", "-q", "-n", "1", "-m"]).arg(&text).arg("-i").arg(picture()).arg("hi"));
    ask().fails(3, "name it with --mmproj");
    std::fs::write(dir.path().join("mmproj-x.gguf"), b"nonsense").unwrap();
    ask().fails(3, "not a GGUF file");
    std::fs::copy(&q8_0().text, dir.path().join("mmproj-x.gguf")).unwrap();
    ask().fails(3, "not an mmproj");
    std::fs::copy(&q8_0().mmproj, dir.path().join("mmproj-x.gguf")).unwrap();
    ask().succeeds();
}
