//! `qvl trace` against the numbers of this repository's own reference, on the checkpoints in `models/`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::models::{Model, random, tiny};
use crate::programs::{EXACT, qvl, repository, run};
use crate::tensors::{Tensors, Values, check_near, relative_l2, traced};

/// Relative L2. Two f32 computations in different orders differ by less than 1e-6 here. The smallest mistakes of
/// modelling cost more than this: GELU by tanh 1e-4, a resize that does not round to bytes 6e-4, positions of the adapter
/// computed anew 2e-3, another filter 3e-3. Only another ε of a norm, 5e-6, would hide; a test of its own finds that.
const BOUND: f64 = 2e-5;

/// Two modes of the command line that must see one prompt.
#[derive(Clone, Copy)]
enum Way {
    /// `--ids`
    Ids,
    /// Text, as a user types it.
    Text,
}

/// The goldens of one checkpoint.
struct Goldens {
    dir: PathBuf,
    model: Model,
}

impl Goldens {
    fn random() -> Self {
        Goldens { dir: repository("tests/data/goldens"), model: random() }
    }

    fn tiny() -> Self {
        Goldens { dir: repository("tests/data/goldens-tiny"), model: tiny("f32", "f32") }
    }

    fn cases(&self) -> Value {
        let text = std::fs::read_to_string(self.dir.join("cases.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn read(&self, file: &str) -> Tensors {
        Tensors::read(&self.dir.join(file))
    }
}

fn ids(list: &Value) -> Vec<i32> {
    serde_json::from_value(list.clone()).unwrap()
}

/// Traces a case of `models/qvl-random`.
fn check(name: &str, way: Way) {
    check_of(&Goldens::random(), name, way, &[]);
}

/// Traces every case of `models/qvl-random` with these flags.
pub fn check_all(flags: &[&str]) {
    let goldens = Goldens::random();
    for case in goldens.cases()["cases"].as_array().unwrap() {
        check_of(&goldens, case["name"].as_str().unwrap(), Way::Ids, flags);
    }
}

/// Traces a case and compares everything that both sides have.
fn check_of(goldens: &Goldens, name: &str, way: Way, flags: &[&str]) {
    let all = goldens.cases();
    let case = all["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    let pictures: Vec<&str> = case["pictures"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    let text = case["text"].as_str().unwrap();
    let is_raw = case["mode"] == "raw";
    let generated = ids(&case["generated_ids"]);

    let dir = tempfile::tempdir().unwrap();
    let ids_path: PathBuf = dir.path().join("ids.json");
    std::fs::write(&ids_path, case["ids"].to_string()).unwrap();
    let mut command = qvl();
    command.current_dir(repository(all["pictures"].as_str().unwrap()));
    command
        .args(["trace", "-n", &generated.len().to_string()])
        .args(EXACT)
        .args(flags)
        .arg("-m")
        .arg(&goldens.model.text);
    let beside = pictures.iter().flat_map(|picture| ["-i", picture]);
    match (way, is_raw) {
        (Way::Ids, _) => {
            command.arg("--ids").arg(&ids_path);
            command.args(beside);
        }
        // Pictures are named in the text, relative to the working directory.
        (Way::Text, true) => {
            command.args(["--raw", text]);
        }
        (Way::Text, false) => {
            command.args(beside);
            // The golden's text begins with the lines that announce the pictures, which the program writes itself.
            command.arg(text.splitn(pictures.len() + 1, '\n').last().unwrap());
        }
    }
    let found = traced(&mut command);

    assert_eq!(found.ids("input_ids"), ids(&case["ids"]), "{name}");
    for (k, picture) in pictures.iter().enumerate() {
        check_picture(goldens, &found, k, picture);
    }
    let expect = goldens.read(case["file"].as_str().unwrap());
    let logits = found.f32s("logits");
    let n_vocab = logits.shape[1];
    let rows = expect.ids("logits_rows");
    let data: Vec<f32> = rows.iter().flat_map(|&row| logits.row(row as usize)).copied().collect();
    let picked = Values { shape: vec![rows.len(), n_vocab], data };
    check_near(&format!("{name} logits"), &picked, &expect.f32s("logits"), BOUND);

    let n_used = all["n_used"].as_u64().unwrap() as usize;
    let used = |values: Values| Values { shape: vec![values.shape[0], n_used], data: values.columns(n_used) };
    let (found_rows, expect_rows) = (found.f32s("generated_logits"), expect.f32s("generated_logits"));
    check_near(&format!("{name} generated"), &used(found_rows), &used(expect_rows), BOUND);
    // All margins of these cases are far above what BOUND lets a logit move.
    assert_eq!(found.ids("generated_ids"), generated, "{name}");
}

/// A copy of a GGUF file in which the f32 `key` is `value`.
fn with_f32(file: &Path, key: &str, value: f32, copy: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    // Behind the key: the value's type in 4 bytes, the value.
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
    assert_eq!(bytes[at..at + 4], 1e-6f32.to_le_bytes(), "{key}");
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(copy, bytes).unwrap();
}

/// Both ε are the checkpoint's 1e-6 in the files, and are what is computed with.
#[test]
fn the_norms_use_the_epsilon_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text, mmproj) = (random(), dir.path().join("text.gguf"), dir.path().join("mmproj.gguf"));
    with_f32(&model.text, "qwen.attention.layer_norm_rms_epsilon", 1e-5, &text);
    with_f32(&model.mmproj, "clip.vision.attention.layer_norm_epsilon", 1e-5, &mmproj);
    let trace = |text: &Path, mmproj: &Path| {
        let mut command = qvl();
        command.current_dir(repository("tests/data/pictures")).args(["trace", "-i", "shapes.png", "?"]).args(EXACT);
        traced(command.arg("-m").arg(text).arg("--mmproj").arg(mmproj))
    };
    let exact = trace(&model.text, &model.mmproj);
    let check = |found: &Tensors, name: &str| {
        let distance = relative_l2(&found.f32s(name).data, &exact.f32s(name).data);
        println!("{name}: {distance:.1e}");
        assert!((1e-7..1e-3).contains(&distance), "{name}: {distance:.1e}");
    };
    check(&trace(&text, &model.mmproj), "logits");
    let found = trace(&model.text, &mmproj);
    ["image.0.ln_pre", "image.0.block.0", "image.0.embedding", "logits"].iter().for_each(|name| check(&found, name));
}

/// `qvl ask` says what the reference generated, computing exactly or as it does by default: no margin of these cases is
/// small enough for half precision to matter.
#[test]
fn answers() {
    for case in Goldens::random().cases()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let n = case["generated_ids"].as_array().unwrap().len().to_string();
        let text = case["text"].as_str().unwrap();
        let expect = case["generated_text"].as_str().unwrap();
        for flags in [&EXACT[..], &[]] {
            let mut command = qvl();
            command.current_dir(repository("tests/data/pictures"));
            command.args(["ask", "-q", "--temp", "0", "-n", &n, "-m"]).arg(random().text).args(flags);
            let expect = match text.strip_prefix("Picture 1: <img>stripes.png</img>\n") {
                Some(question) if case["mode"] == "chat" => {
                    command.args(["-i", "stripes.png", question]);
                    expect.trim()
                }
                _ => {
                    command.args(["--raw", text]);
                    expect
                }
            };
            assert_eq!(run(&mut command).ok().out, format!("{expect}\n"), "{name} {flags:?}");
        }
    }
}

fn check_picture(goldens: &Goldens, found: &Tensors, k: usize, picture: &str) {
    let expect = goldens.read(&format!("picture.{picture}.safetensors"));
    let of = |name: &str| found.f32s(&format!("image.{k}.{name}"));
    assert!(of("pixel_values") == expect.f32s("pixel_values"), "{picture}: pixel values differ");
    let names: Vec<String> = expect.names().into_iter().filter(|name| name != "pixel_values").collect();
    assert!(["ln_pre", "block.0", "resampler", "embedding"].iter().all(|n| names.iter().any(|m| m == n)));
    for name in names {
        check_near(&format!("{picture} {name}"), &of(&name), &expect.f32s(&name), BOUND);
    }
}

#[test]
fn text_alone() {
    check("text_short", Way::Ids);
    check("text_short", Way::Text);
}

#[test]
fn one_picture() {
    check("one_picture", Way::Ids);
    check("one_picture", Way::Text);
}

#[test]
fn two_pictures() {
    check("two_pictures", Way::Ids);
    check("two_pictures", Way::Text);
}

#[test]
fn a_chat_turn() {
    check("chat", Way::Ids);
    check("chat", Way::Text);
}

/// Generation crosses seq_length: logn begins, the rotary base stays that of the prompt.
#[test]
fn crossing_the_trained_length() {
    check("crossing", Way::Ids);
    check("crossing", Way::Text);
}

/// Prompts beyond seq_length: NTK α of 3 and 7.
#[test]
fn beyond_the_trained_length() {
    check("long_text", Way::Ids);
    check("long_text", Way::Text);
    check("long", Way::Ids);
    check("long", Way::Text);
}

/// The trained checkpoint: one picture and a box, two pictures, a text to complete.
#[test]
fn the_demo_model() {
    let goldens = Goldens::tiny();
    for case in goldens.cases()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        check_of(&goldens, name, Way::Ids, &[]);
        check_of(&goldens, name, Way::Text, &[]);
    }
}

/// What the vision tower sees of every kind of file, in bytes.
#[test]
fn pictures_are_decoded_and_resized_as_the_reference_does() {
    // JPEG decoders differ from each other by a few levels at edges; a wrong turn or filter costs far more than one.
    const JPEG_MEAN_DIFFERENCE: f64 = 1.0;
    let expect = Goldens::random().read("picture_bytes.safetensors");
    let mut files = expect.names();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    for name in files {
        let file = name.trim_end_matches(".upright");
        let mut command = qvl();
        command.args(["trace", "-i", file, "what?", "-m"]).arg(random().text);
        command.current_dir(repository("tests/data/pictures"));
        if file == name {
            command.arg("--no-auto-orient");
        }
        let found = bytes_of(&traced(&mut command).f32s("image.0.pixel_values"));
        let (_, _, expect) = expect.bytes(&name);
        assert_eq!(found.len(), expect.len(), "{name}");
        let total: u64 = found.iter().zip(expect).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = total as f64 / expect.len() as f64;
        println!("{name}: mean difference {mean:.4} levels");
        assert!(if file.ends_with(".jpg") { mean < JPEG_MEAN_DIFFERENCE } else { total == 0 }, "{name}: {mean}");
    }
}

/// The bytes [h, w, 3] of which [3, h, w] normalised values were made.
fn bytes_of(values: &Values) -> Vec<u8> {
    const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
    let n_pixels = values.shape[1] * values.shape[2];
    let byte = |(pixel, c): (usize, usize)| {
        let value = values.data[c * n_pixels + pixel];
        ((value * STD[c] + MEAN[c]) * 255.0).round() as u8
    };
    (0..n_pixels).flat_map(|pixel| (0..3).map(move |c| (pixel, c))).map(byte).collect()
}
