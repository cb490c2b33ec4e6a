//! Pictures as they come: paths, stdin, `data:` and `file:` addresses, patterns; every kind of file.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::models::{N_QUERIES, random};
use crate::programs::{qvl, repository, run, run_with_input};
use crate::tensors::{Values, traced};

/// A subcommand among the pictures.
pub fn among_pictures(subcommand: &str) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args([subcommand, "-q", "-m"]).arg(random().text);
    command
}

/// `turned.jpg`, which has an EXIF orientation.
pub fn turned() -> Vec<u8> {
    fs::read(repository("tests/data/pictures/turned.jpg")).unwrap()
}

/// What the vision tower sees of the only picture of a `qvl trace`.
pub fn pixels(command: &mut Command) -> Values {
    traced(command.arg("?")).f32s("image.0.pixel_values")
}

/// `qvl ask` with these flags, on nothing.
fn ask(args: &[&str]) -> Command {
    let mut command = among_pictures("ask");
    command.args(["-n", "1"]).args(args);
    command
}

fn data_address(bytes: &[u8]) -> String {
    format!("data:image/anything;base64,{}", STANDARD.encode(bytes))
}

fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("%{b:02x}")).collect()
}

#[test]
fn every_source_gives_the_picture_upright() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("100% 图[1].png");
    fs::write(&odd, turned()).unwrap();
    let address = |host: &str| format!("file://{host}{}", percent_encoded(odd.to_str().unwrap().as_bytes()));
    let pattern = dir.path().join("100*.p?g");
    let sources = [
        data_address(&turned()),
        format!("DATA:,{}", percent_encoded(&turned())),
        // File managers leave slashes and letters.
        address("").replace("%2f", "/"),
        address("localhost/.."),
        pattern.to_str().unwrap().to_owned(),
        // It exists, so its brackets are no pattern.
        odd.to_str().unwrap().to_owned(),
    ];
    for flags in [&[][..], &["--no-auto-orient"]] {
        let trace = |source: &str| {
            let mut command = among_pictures("trace");
            command.args(flags).args(["-i", source]);
            command
        };
        let expect = pixels(&mut trace("turned.jpg"));
        for source in &sources {
            assert!(pixels(&mut trace(source)) == expect, "{source:.60} {flags:?}");
        }
        let file = File::open(repository("tests/data/pictures/turned.jpg")).unwrap();
        assert!(pixels(trace("-").stdin(file)) == expect, "stdin {flags:?}");
    }
}

/// Files that Pillow has made, with what it reads from them.
fn case(name: &str) -> (Vec<u8>, Value) {
    let cases: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(repository("tests/data/picture-modes.json")).unwrap()).unwrap();
    let case = cases.into_iter().find(|case| case["name"] == name).unwrap();
    (unhex(&case["file"]), case)
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The first frame of animations; CMYK; 16 bits; palettes with alpha; the EXIF orientation of every format that has one.
#[test]
fn every_kind_of_file_is_seen_as_pillow_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let reference = dir.path().join("reference.ppm");
    for name in [
        "anim.gif",
        "anim.webp",
        "anima.webp",
        "anim.png",
        "cmyk100.jpg",
        "ycck.jpg",
        "rgb16.png",
        "rgba16.png",
        "palpha.png",
        "ptrns.png",
        "exif6.png",
        "exif6.webp",
        "exif6.tiff",
    ] {
        let (bytes, case) = case(name);
        let expect = if case["upright"].is_object() { &case["upright"] } else { &case };
        let mut ppm = format!("P6 {} {} 255\n", expect["width"], expect["height"]).into_bytes();
        ppm.extend(unhex(&expect["rgb"]));
        fs::write(&reference, ppm).unwrap();
        // A name says nothing.
        let file = dir.path().join("picture.txt");
        fs::write(&file, &bytes).unwrap();
        let seen = |path: &Path| pixels(among_pictures("trace").arg("-i").arg(path));
        let (found, expect) = (seen(&file), seen(&reference));
        // One of 255 levels is 0.0153 at most after normalising; the cubic filter may add a quarter.
        let bound = case["tolerance"].as_f64().unwrap() as f32 * 0.0153 * 1.25;
        let worst = found.data.iter().zip(&expect.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {worst}");
        assert!(worst <= bound, "{name}: {worst} (expected at most {bound})");
    }
}

/// A PNG up to where its pixels begin.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    png.extend(width.to_be_bytes());
    png.extend(height.to_be_bytes());
    png.extend([8, 2, 0, 0, 0]);
    let crc = !png[12..].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    png.extend(crc.to_be_bytes());
    png.extend(b"\0\0\0\x01IDAT");
    png
}

/// A JPEG up to where its pixels begin.
fn jpeg_header(side: u16) -> Vec<u8> {
    let side = side.to_be_bytes();
    let frame = [b"\xFF\xD8\xFF\xC0\0\x11\x08", &side[..], &side, &[3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]].concat();
    [&frame[..], &[0xFF, 0xDA, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0]].concat()
}

#[test]
fn a_bomb_is_refused_from_every_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb");
    let side = 60_000u16;
    let [low, high] = side.to_le_bytes();
    let bombs = [
        png_header(side.into(), side.into()),
        [b"GIF89a", &[low, high, low, high, 0, 0, 0][..], b",\0\0\0\0", &[low, high, low, high, 0, 2]].concat(),
        jpeg_header(side),
        b"P6 60000 60000 255\n".to_vec(),
    ];
    for bomb in bombs {
        fs::write(&path, &bomb).unwrap();
        let limit = "60000 x 60000 = 3600000000 pixels, the limit is 178956970";
        run(&mut ask(&["-i", path.to_str().unwrap(), "?"])).fails(4, limit);
        run(&mut ask(&["-i", &data_address(&bomb), "?"])).fails(4, limit);
        run(ask(&["-i", "-", "?"]).stdin(File::open(&path).unwrap())).fails(4, limit);
    }
}

#[test]
fn stdin_gives_one_picture_or_the_question() {
    run(&mut ask(&["-i", "-", "?"])).fails(4, "stdin: it is empty");
    run_with_input(&mut ask(&["-i", "-", "?"]), b"hello").fails(4, "stdin: not a picture");
    run(&mut ask(&["-i", "-", "-i", "-", "?"])).fails(2, "stdin can give one picture only");
    run(&mut ask(&["-i", "shapes.png", "-i", "-"])).fails(2, "stdin gives the picture");
    let dir = tempfile::tempdir().unwrap();
    let question = dir.path().join("question.txt");
    fs::write(&question, "What?").unwrap();
    let from = |args: &[&str]| {
        let picture = File::open(repository("tests/data/pictures/shapes.png")).unwrap();
        run(ask(args).arg("-f").arg(&question).arg("--json").stdin(picture)).json()["usage"].clone()
    };
    assert_eq!(from(&["-i", "-"]), from(&["-i", "shapes.png"]));
    assert_eq!(from(&["-i", "stripes.png", "-i", "-"]), from(&["-i", "stripes.png", "-i", "shapes.png"]));
}

#[test]
fn bad_addresses_are_named_and_shown_short() {
    let fails = |source: &str, part: &str| run(&mut ask(&["-i", source, "?"])).fails(4, part);
    fails("data:image/png;base64,iVBORw0K*", "data:image/png;base64,iVBORw0K*: bad base64");
    fails(&format!("data:image/png;base64,{}", "*".repeat(9000)), "**... (9022 characters): bad base64");
    fails("data:image/png", "comma");
    fails("data:,hello", "data:,hello: not a picture");
    fails("data:,", "empty");
    fails("file:///no/such%20file.png", "/no/such file.png: cannot read the picture");
    fails("file://server/a.png", "three slashes");
    fails("file:///a%00.png", "cannot read the picture");
    fails("ftp://server/a.png", "addresses of this kind are not read");
    fails("~/none.png", "~/none.png: cannot read the picture");
}

#[test]
fn patterns_and_directories() {
    let n_images = |args: &[&str]| {
        let json = run(ask(args).args(["--json", "?"])).json();
        json["usage"]["image_tokens"].as_u64().unwrap() as usize / N_QUERIES
    };
    assert_eq!(n_images(&["-i", "s*.png", "-i", "turned.jpg"]), 3);
    run(&mut ask(&["-i", "none*.png", "?"])).fails(4, "none*.png: no such file, and no file matches");
    run(&mut ask(&["-i", ".", "?"])).fails(4, "qvl batch");
    run(&mut ask(&["--raw", "<img>.</img>"])).fails(4, "this is a directory");
    // In a text nothing is special but the tags.
    for path in ["s*.png", "-", "data:,x", "file:///x", "http://127.0.0.1:1/x.png"] {
        let named = format!("{path}: cannot read the picture");
        run(&mut ask(&["--raw", &format!("<img>{path}</img>?")])).fails(4, &named);
    }
}

/// How many there are is known before any is decoded.
#[test]
fn too_many_pictures_are_refused_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    (0..2000).for_each(|k| fs::write(dir.path().join(format!("{k}.png")), "").unwrap());
    let pattern = dir.path().join("*.png");
    run(&mut ask(&["-i", pattern.to_str().unwrap(), "?"])).fails(2, "but the context holds");
}

#[test]
fn annotating_never_replaces_what_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b.png");
    fs::copy(repository("tests/data/pictures/shapes.png"), &path).unwrap();
    let address = format!("file://{}", path.to_str().unwrap().replace(' ', "%20"));
    let pattern = dir.path().join("*.png");
    let annotate = |source: &str| {
        let mut command = ask(&["-i", source, "--annotate"]);
        command.arg(&path).arg("?");
        command
    };
    run(&mut annotate(&address)).fails(2, "would replace it");
    run(&mut annotate(pattern.to_str().unwrap())).fails(2, "would replace it");
    let before = fs::read(&path).unwrap();
    run(annotate("-").stdin(File::open(&path).unwrap())).ok();
    assert_ne!(fs::read(&path).unwrap(), before, "stdin has no name");
    let again = qvl::image::load(&path, qvl::image::Orientation::AsStored).unwrap();
    let shapes = repository("tests/data/pictures/shapes.png");
    assert!(again == qvl::image::load(&shapes, qvl::image::Orientation::Upright).unwrap());
}

#[cfg(not(feature = "http"))]
#[test]
fn a_build_without_http_says_so() {
    run(&mut ask(&["-i", "http://127.0.0.1:1/a.png", "?"])).fails(2, "without the feature `http`");
}
