//! `qvl-convert MODEL.gguf`: a pair as the source of another one.

use std::fs;
use std::path::{Path, PathBuf};

use qvl::ggml::dequantize_row;
use qvl::gguf::Gguf;
use qvl::quant::GgmlType;
use serde_json::Value;

use crate::models::{Model, random_as};
use crate::programs::{Ran, qvl, qvl_convert, repository, run};

fn convert(model: &Path, out: &Path, args: &[&str]) -> Ran {
    run(qvl_convert().arg(model).arg("-q").args(args).arg("-o").arg(out))
}

fn made(done: &Value) -> Model {
    let path = |key: &str| PathBuf::from(done[key].as_str().unwrap());
    Model { text: path("model"), mmproj: path("mmproj") }
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

/// The random checkpoint is in bf16, which f32 and bf16 files hold exactly.
#[test]
fn from_what_has_lost_nothing_it_is_as_from_the_checkpoint() {
    let from_f32 =
        [("q4_k_m", "q8_0"), ("q6_k", "q4_k_m"), ("iq4_xs", "q5_1"), ("f16", "bf16"), ("bf16", "f16"), ("q8_0", "f32")];
    let from_bf16 = [("q4_k_m", "q8_0"), ("q5_0", "q4_0"), ("f32", "f32")];
    for (source, types) in [("f32", &from_f32[..]), ("bf16", &from_bf16)] {
        let source = random_as(source, source);
        for (text_type, vision_type) in types {
            let dir = tempfile::tempdir().unwrap();
            let args = ["-t", text_type, "--vision-type", vision_type, "--json"];
            let found = made(&convert(&source.text, dir.path(), &args).json());
            let expect = random_as(text_type, vision_type);
            for (found, expect) in [(&found.text, &expect.text), (&found.mmproj, &expect.mmproj)] {
                assert_eq!(found.file_name(), expect.file_name());
                assert!(fs::read(found).unwrap() == fs::read(expect).unwrap(), "{}", found.display());
            }
        }
    }
}

#[test]
fn from_eight_bits_it_says_so_and_from_fewer_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (eight, four) = (random_as("q8_0", "q8_0"), random_as("q4_k_m", "q8_0"));
    let found = made(&convert(&eight.text, dir.path(), &["-t", "q4_k_m", "--json"]).json());
    let inspected = run(qvl().args(["inspect", "--json", "--verify"]).arg(&found.text)).json();
    assert_eq!(inspected["metadata"]["qvl.requantised_from"], "q8_0");
    assert_eq!(inspected["metadata"]["qvl.recipe"], "q4_k_m");
    let out = dir.path().join("new");
    convert(&four.text, &out, &["-t", "q8_0"]).fails(3, "--allow-requantize");
    assert!(!out.exists());
    let found = made(
        &convert(&four.text, &out, &["-t", "q8_0", "--vision-type", "f16", "--allow-requantize", "--json"]).json(),
    );
    let inspected = run(qvl().args(["inspect", "--json"]).arg(&found.text)).json();
    assert_eq!(inspected["metadata"]["qvl.requantised_from"], "q4_k_m");
    let mut ask = qvl();
    ask.args(["ask", "-n", "4", "--temp", "0", "-m"])
        .arg(&found.text)
        .arg("-i")
        .arg(repository("tests/data/pictures/gradient.png"));
    run(ask.arg("What is this?")).ok();
}

/// The rows of 472 values that q8_0 holds as 480 are 472 again.
#[test]
fn padding_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let source = random_as("q8_0", "q8_0").mmproj;
    let args = ["-t", "q8_0", "--vision-type", "f32", "--json"];
    let found = made(&convert(&random_as("q8_0", "q8_0").text, &dir.path().join("out"), &args).json()).mmproj;
    let name = "v.blk.0.ffn_down.weight";
    let tensor = |path: &Path| {
        let file = fs::read(path).unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        let tensor = gguf.tensor(name).unwrap();
        (tensor.ty, tensor.dims.clone(), tensor.bytes(&file).to_vec())
    };
    let (ty, dims, blocks) = tensor(&source);
    assert_eq!((ty, dims.as_slice()), (GgmlType::Q8_0, &[480, 96][..]));
    let (ty, dims, values) = tensor(&found);
    assert_eq!((ty, dims.as_slice()), (GgmlType::F32, &[472, 96][..]));
    for (row, blocks) in values.chunks_exact(4 * 472).zip(blocks.chunks_exact(480 / 32 * 34)) {
        let mut expect = [0f32; 480];
        dequantize_row(GgmlType::Q8_0, blocks, &mut expect);
        assert!(row.chunks_exact(4).zip(expect).all(|(b, x)| f32::from_le_bytes(b.try_into().unwrap()) == x));
    }
}

#[test]
fn types_of_tensors_and_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let source = random_as("f32", "f32");
    let types = ["-t", "q4_0", "--tensor-type", "ffn_down=q6_k", "--tensor-type", r"^v\.blk\.1\..*weight=f16"];
    let plan = convert(&source.text, dir.path(), &[&types[..], &["--dry-run", "--json"]].concat()).json();
    assert_eq!(names(dir.path()), [""; 0]);
    let direct =
        run(qvl_convert().arg(repository("models/qvl-random")).args(["--dry-run", "--json"]).args(types)).json();
    let rows = |plan: &Value, file: &str| -> Vec<[Value; 3]> {
        plan[file]["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| ["name", "type", "bytes"].map(|k| t[k].clone()))
            .collect()
    };
    for file in ["model", "mmproj"] {
        assert_eq!(rows(&plan, file), rows(&direct, file));
        assert_eq!(plan[file]["file"], direct[file]["file"]);
    }
    let table = convert(&source.text, dir.path(), &[&types[..], &["--dry-run"]].concat()).ok().out;
    assert!(table.lines().any(|line| line.starts_with("blk.0.ffn_down.weight") && line.contains("q6_k")), "{table}");
    convert(&source.text, dir.path(), &["--tensor-type", "ffn_norm=q8_0"]).fails(2, "ffn_norm");
}

#[test]
fn sources_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let source = random_as("f16", "q8_0");
    for file in [&source.text, &source.mmproj] {
        fs::copy(file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    let (text, mmproj) = (dir.path().join("qvl-random-F16.gguf"), dir.path().join("mmproj-qvl-random-Q8_0.gguf"));
    let before = fs::metadata(&mmproj).unwrap().modified().unwrap();
    // The mmproj is what is asked for already; a new text file comes beside it.
    let done = convert(&text, dir.path(), &["-t", "q4_0", "--json"]).json();
    assert_eq!(made(&done).mmproj, mmproj);
    assert_eq!(done["mmproj_bytes"], fs::metadata(&mmproj).unwrap().len());
    assert_eq!(names(dir.path()), ["mmproj-qvl-random-Q8_0.gguf", "qvl-random-F16.gguf", "qvl-random-Q4_0.gguf"]);
    assert_eq!(fs::metadata(&mmproj).unwrap().modified().unwrap(), before);
    convert(&text, dir.path(), &["-t", "f16", "--force"]).fails(2, "already");
    convert(&text, dir.path(), &["-t", "f16", "--tensor-type", "ffn_up=f32", "--force"]).fails(2, "would be replaced");
    convert(&text, dir.path(), &["-t", "q4_0"]).fails(2, "--force");
    let renamed = made(&convert(&text, dir.path(), &["-t", "q4_0", "--name", "Other-Chat", "--json"]).json());
    assert_eq!(renamed.text.file_name().unwrap(), "Other-Chat-Q4_0.gguf");
    let metadata = run(qvl().args(["inspect", "--json"]).arg(&renamed.text)).json()["metadata"].clone();
    assert_eq!((&metadata["general.name"], &metadata["general.finetune"]), (&"Other Chat".into(), &"Chat".into()));
}

#[test]
fn what_is_no_pair_is_refused() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = random_as("f16", "f16");
    let text = dir.path().join("m.gguf");
    let check = |bytes: &[u8], args: &[&str], code: i32, part: &str| {
        fs::write(&text, bytes).unwrap();
        convert(&text, out.path(), args).fails(code, part);
        assert_eq!(names(out.path()), [""; 0]);
    };
    let (whole, mmproj) = (fs::read(&source.text).unwrap(), source.mmproj.to_str().unwrap());
    check(&whole, &[], 3, "--mmproj");
    check(&whole, &["--mmproj", "/nowhere.gguf"], 3, "/nowhere.gguf");
    check(&whole, &["--mmproj", source.text.to_str().unwrap()], 3, "not an mmproj");
    check(&whole, &["--mmproj", crate::models::tiny("f16", "f16").mmproj.to_str().unwrap()], 3, "another model");
    check(&whole[..whole.len() / 2], &["--mmproj", mmproj], 3, "m.gguf");
    check(b"", &["--mmproj", mmproj], 3, "m.gguf");
    check(b"GGUF", &["--mmproj", mmproj], 3, "m.gguf");
    check(&fs::read(&source.mmproj).unwrap(), &["--mmproj", mmproj], 3, "--mmproj");
    check(&whole, &["--mmproj", mmproj, "--lora", "x"], 2, "--lora");
    let mut bad = whole.clone();
    // The last weight: f16 infinity.
    let end = bad.len();
    bad[end - 2..].copy_from_slice(&[0x00, 0x7c]);
    check(&bad, &["--mmproj", mmproj], 3, "inf");
    // These flags are for such files only.
    convert(&repository("models/qvl-random"), out.path(), &["--allow-requantize"]).fails(2, "--allow-requantize");
}
