//! `qvl-convert --split-max-size`: a language model in several files is the same model, for `qvl` and for llama.cpp.

use std::fs;
use std::path::{Path, PathBuf};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use serde_json::Value;
use tempfile::TempDir;

use crate::models::{Model, random_as, tiny};
use crate::programs::{Ran, qvl, qvl_convert, repository, run};
use crate::stock::backend;

fn convert(out: &Path, source: &Path, args: &[&str]) -> Ran {
    run(qvl_convert().arg(source).arg("-q").args(args).arg("-o").arg(out))
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

/// `models/qvl-tiny` in files of at most a megabyte.
fn parts(args: &[&str]) -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let all = [&["--json", "--split-max-size", "1M"], args].concat();
    let done = convert(dir.path(), &repository("models/qvl-tiny"), &all).json();
    (dir, done)
}

fn inspect(path: &Path, args: &[&str]) -> Value {
    run(qvl().args(["inspect", "--json"]).args(args).arg(path)).json()
}

fn ask(text: &Path, args: &[&str]) -> Ran {
    let mut ask = qvl();
    ask.args(["ask", "-m"]).arg(text).arg("-i").arg(repository("models/qvl-tiny/demo/shapes.png"));
    run(ask.args(["--temp", "0", "--json"]).args(args).arg("What does the word say?"))
}

fn answer(ran: Ran) -> String {
    let lines = ran.ok().out;
    serde_json::from_str::<Value>(lines.trim()).unwrap()["text"].as_str().unwrap().to_owned()
}

#[test]
fn parts_are_the_whole() {
    const NAMES: [&str; 4] = [
        "mmproj-qvl-tiny-Q8_0.gguf",
        "qvl-tiny-Q4_K_M-00001-of-00003.gguf",
        "qvl-tiny-Q4_K_M-00002-of-00003.gguf",
        "qvl-tiny-Q4_K_M-00003-of-00003.gguf",
    ];
    let whole = tiny("q4_k_m", "q8_0");
    let (dir, done) = parts(&[]);
    assert_eq!(names(dir.path()), NAMES);
    let files: Vec<PathBuf> = NAMES.map(|name| dir.path().join(name)).to_vec();
    assert_eq!(done["model"], files[1].to_str().unwrap());
    let listed: Vec<&str> = done["model_parts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(listed, files[1..].iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>());
    let sizes: Vec<u64> = files[1..].iter().map(|path| fs::metadata(path).unwrap().len()).collect();
    assert!(sizes.iter().all(|n| *n <= 1_000_000), "{sizes:?}");
    assert_eq!(done["model_bytes"], sizes.iter().sum::<u64>());
    assert!(fs::read(&files[0]).unwrap() == fs::read(&whole.mmproj).unwrap());

    let (found, expect) = (inspect(&files[1], &["--verify"]), inspect(&whole.text, &["--verify"]));
    for key in ["n_tensors", "types", "checksum"] {
        assert_eq!(found[key], expect[key], "{key}");
    }
    assert_eq!(found["checksum"], "ok");
    assert_eq!(found["bytes"], sizes.iter().sum::<u64>());
    assert_eq!(found["metadata"]["qvl.sha256"], expect["metadata"]["qvl.sha256"]);
    let keys = ["split.no", "split.count", "split.tensors.count"].map(|key| &found["metadata"][key]);
    assert_eq!(keys, [&0.into(), &3.into(), &expect["n_tensors"]]);
    let text = run(qvl().arg("inspect").arg(&files[1])).ok().out;
    assert!(text.lines().next().unwrap().contains("in 3 files"), "{text}");

    let mut diff = qvl();
    diff.args(["inspect", "--json", "--diff"]).arg(&whole.text).arg(&files[1]);
    let ran = run(&mut diff);
    assert_eq!(ran.code, 1, "{ran:?}");
    let difference: Value = serde_json::from_str(ran.out.trim()).unwrap();
    let keys: Vec<&str> =
        (difference["metadata"].as_array().unwrap().iter()).map(|k| k["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["split.no", "split.count", "split.tensors.count"]);
    assert_eq!(difference["tensors"], Value::Array(vec![]));

    assert_eq!(answer(ask(&files[1], &[])), "WATER");
    let plan = run(qvl().args(["plan", "--json", "-m"]).arg(&files[1])).json();
    let weights = &plan["phases"][1]["items"][0];
    assert_eq!((&weights["name"], &weights["bytes"]), (&"weights".into(), &sizes.iter().sum::<u64>().into()));
}

#[test]
fn parts_of_so_many_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["-t", "q8_0", "--split-max-tensors", "7", "--json"];
    let done = convert(dir.path(), &repository("models/qvl-random"), &args).json();
    let whole = random_as("q8_0", "q8_0").text;
    let n_tensors = inspect(&whole, &[])["n_tensors"].as_u64().unwrap();
    let parts = done["model_parts"].as_array().unwrap();
    assert_eq!(parts.len() as u64, n_tensors.div_ceil(7));
    let first = Path::new(parts[0].as_str().unwrap());
    assert_eq!(inspect(first, &["--verify"])["n_tensors"], n_tensors);
    // What fits into one file is one, under its usual name.
    let out = dir.path().join("one");
    let args = ["-t", "q8_0", "--split-max-tensors", "1000", "--split-max-size", "2G", "--json"];
    let done = convert(&out, &repository("models/qvl-random"), &args).json();
    assert!(done["model_parts"].is_null());
    let file_name = |path: &Path| path.file_name().unwrap().to_owned();
    assert_eq!(file_name(Path::new(done["model"].as_str().unwrap())), file_name(&whole));
}

#[test]
fn llama_cpp_loads_them() {
    let (_dir, done) = parts(&["-t", "q8_0"]);
    let load = |path: &Path| LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default());
    let first = PathBuf::from(done["model"].as_str().unwrap());
    let (found, expect) = (load(&first).unwrap(), load(&tiny("q8_0", "q8_0").text).unwrap());
    assert_eq!((found.n_params(), found.size()), (expect.n_params(), expect.size()));
    drop((found, expect));
    fs::remove_file(done["model_parts"][2].as_str().unwrap()).unwrap();
    assert!(load(&first).is_err());
}

#[test]
fn layers_in_parts_come_and_go() {
    let (_dir, done) = parts(&["-t", "f16", "--split-max-tensors", "9"]);
    let text = PathBuf::from(done["model"].as_str().unwrap());
    let flags = ["-ctk", "q8_0", "-ctv", "q8_0", "-c", "1024"];
    let mut plan = qvl();
    let whole = run(plan.args(["plan", "--json", "-m"]).arg(&text).args(flags)).json();
    let few = (whole["peak_bytes"].as_u64().unwrap() - 2_000_000).to_string();
    let ran = ask(&text, &[&flags[..], &["--max-memory", &few]].concat());
    assert!(ran.err.contains("of 4 layers"), "{ran:?}");
    assert_eq!(answer(ran), "WATER");
}

#[test]
fn parts_are_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = random_as("f32", "f32");
    let split = dir.path().join("split");
    let args = ["-t", "f32", "--vision-type", "f32", "--split-max-tensors", "5", "--json"];
    let done = convert(&split, &repository("models/qvl-random"), &args).json();
    let first = PathBuf::from(done["model"].as_str().unwrap());
    let out = dir.path().join("out");
    let done = convert(&out, &first, &["-t", "q4_k_m", "--json"]).json();
    let expect = random_as("q4_k_m", "q8_0");
    for (key, expect) in [("model", &expect.text), ("mmproj", &expect.mmproj)] {
        let found = Path::new(done[key].as_str().unwrap());
        assert_eq!(found.file_name(), expect.file_name());
        assert!(fs::read(found).unwrap() == fs::read(expect).unwrap(), "{key}");
    }
    // A whole one into parts, and parts onto themselves.
    let again = dir.path().join("again");
    let done = convert(&again, &source.text, &args[..6]);
    done.ok();
    assert_eq!(names(&split), names(&again));
    let mut diff = qvl();
    let first_again = again.join(first.file_name().unwrap());
    run(diff.args(["inspect", "--diff"]).arg(&first).arg(first_again)).ok();
    convert(&split, &first, &[&args[..6], &["--force"]].concat()).fails(2, "this is a source");
}

#[test]
fn what_is_no_model_in_parts() {
    let (dir, done) = parts(&["--split-max-tensors", "10"]);
    let parts: Vec<PathBuf> =
        done["model_parts"].as_array().unwrap().iter().map(|part| part.as_str().unwrap().into()).collect();
    assert_eq!(parts.len(), 4);
    let commands = |text: &Path, expect: &str| {
        for command in ["ask", "plan"] {
            run(qvl().args([command, "-m"]).arg(text).args((command == "ask").then_some("hi"))).fails(3, expect);
        }
        run(qvl().arg("inspect").arg(text)).fails(3, expect);
        run(qvl_convert().args(["--allow-requantize", "-t", "q4_0", "-o"]).arg(dir.path().join("new")).arg(text))
            .fails(3, expect);
        assert!(!dir.path().join("new").exists());
    };
    let check = |nth: usize, bytes: Option<&[u8]>, expect: &str| {
        let sound = fs::read(&parts[nth]).unwrap();
        match bytes {
            Some(bytes) => fs::write(&parts[nth], bytes).unwrap(),
            None => fs::remove_file(&parts[nth]).unwrap(),
        }
        commands(&parts[0], expect);
        fs::write(&parts[nth], sound).unwrap();
    };
    let bytes: Vec<Vec<u8>> = parts.iter().map(|part| fs::read(part).unwrap()).collect();
    check(2, None, "part 3 of 4 of the model is missing");
    check(2, Some(&bytes[1]), "this is not part 3 of 4");
    check(2, Some(&bytes[0]), "this is not part 3 of 4");
    check(1, Some(&bytes[1][..bytes[1].len() - 40]), "needs");
    check(3, Some(b""), "empty");
    check(3, Some(b"GGUF"), "ends inside");
    check(3, Some(&fs::read(random_as("q8_0", "q8_0").text).unwrap()), "this is not part 4 of 4");
    // The third part's tensors twice: its number is the only thing that tells it from the second.
    let mut twice = bytes[2].clone();
    let at = twice.windows(8).position(|window| window == b"split.no").unwrap() + 8 + 4;
    twice[at] = 1;
    check(1, Some(&twice), "is in two parts");
    commands(&parts[1], "name the first");
    let renamed = dir.path().join("renamed.gguf");
    fs::copy(&parts[0], &renamed).unwrap();
    commands(&renamed, "-00001-of-00004.gguf");
    assert_eq!(answer(ask(&parts[0], &[])), "WATER");
}

#[test]
fn limits_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let fails = |args: &[&str], expect: &str| {
        convert(&out, &repository("models/qvl-tiny"), args).fails(2, expect);
        assert!(!out.exists() || names(&out).is_empty(), "{:?}", names(&out));
    };
    fails(&["--split-max-size", "100"], "the metadata alone takes");
    fails(&["--split-max-size", "200000"], "alone takes");
    for size in ["0", "-1", "2X", "nan"] {
        fails(&[&format!("--split-max-size={size}")], "size");
    }
    fails(&["--split-max-tensors", "0"], "split-max-tensors");
    let plan = convert(&out, &repository("models/qvl-tiny"), &["--split-max-size", "1M", "--dry-run", "--json"]).json();
    assert!(plan["notes"].to_string().contains("files"), "{plan}");

    // One part that is there already is enough.
    let (made, _) = parts(&[]);
    let second = "qvl-tiny-Q4_K_M-00002-of-00003.gguf";
    fs::create_dir_all(&out).unwrap();
    fs::copy(made.path().join(second), out.join(second)).unwrap();
    let args = ["--split-max-size", "1M"];
    convert(&out, &repository("models/qvl-tiny"), &args).fails(2, "exists already");
    assert_eq!(names(&out), [second]);
    convert(&out, &repository("models/qvl-tiny"), &[&args[..], &["--force"]].concat()).ok();
    let model =
        Model { text: out.join("qvl-tiny-Q4_K_M-00001-of-00003.gguf"), mmproj: out.join("mmproj-qvl-tiny-Q8_0.gguf") };
    assert_eq!(answer(ask(&model.text, &["--mmproj", model.mmproj.to_str().unwrap()])), "WATER");
}
