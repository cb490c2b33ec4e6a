//! `qvl inspect --diff`: two files held against each other.

use std::fs;
use std::path::Path;

use qvl::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, TensorSpec, Value};
use qvl::quant::GgmlType;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::models::random_as;
use crate::programs::{Ran, qvl, run};

fn diff(a: &Path, b: &Path, more: &[&str]) -> Ran {
    run(qvl().args(["inspect", "--diff"]).arg(a).arg(b).args(more))
}

#[track_caller]
fn differs(a: &Path, b: &Path) -> Json {
    let ran = diff(a, b, &["--json"]);
    assert_eq!((ran.code, ran.err.as_str(), ran.out.lines().count()), (1, "", 1), "{ran:?}");
    serde_json::from_str(&ran.out).unwrap()
}

/// A file of these keys and f32 tensors of one row.
fn write(path: &Path, keys: &[(&str, Value)], tensors: &[(&str, &[f32])]) {
    let mut metadata = Metadata::default();
    keys.iter().for_each(|(key, value)| metadata.set(*key, value.clone()));
    let spec = |(name, values): &(&str, &[f32])| {
        let (name, dims) = (name.to_string(), vec![values.len() as u64]);
        TensorSpec { name, dims, ty: GgmlType::F32 }
    };
    let layout = Layout::new(&metadata, &tensors.iter().map(spec).collect::<Vec<_>>(), DEFAULT_ALIGNMENT).unwrap();
    let mut bytes = layout.header;
    for ((_, values), (offset, _)) in tensors.iter().zip(&layout.places) {
        bytes.resize(*offset as usize, 0);
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes.resize(layout.file_bytes as usize, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_is_equal_to_itself() {
    let model = random_as("q4_0", "q8_0").text;
    let json = diff(&model, &model, &["--json"]).json();
    assert_eq!((&json["equal"], &json["metadata"], &json["tensors"]), (&json!(true), &json!([]), &json!([])));
    assert!(diff(&model, &model, &[]).ok().out.starts_with("equal: "));
    // NaN is itself, and the order of things is none of theirs.
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    let (nan, one) = (("nan", Value::F32(f32::NAN)), ("one", Value::U32(1)));
    let x: (&str, &[f32]) = ("x", &[f32::NAN, 1.0]);
    let y: (&str, &[f32]) = ("y", &[2.0]);
    write(&a, &[nan.clone(), one.clone()], &[x, y]);
    write(&b, &[one, nan], &[y, x]);
    assert_eq!(diff(&a, &b, &[]).ok().out, "equal: 3 keys, 2 tensors\n");
}

#[test]
fn what_differs_is_told() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    let text = |s: &str| Value::from(s);
    write(
        &a,
        &[("same", text("x")), ("type", Value::U32(2)), ("value", text("old")), ("gone", Value::Bool(true))],
        &[("same", &[1.0]), ("near", &[3.0, 4.0]), ("shape", &[1.0, 2.0]), ("gone", &[0.5])],
    );
    write(
        &b,
        &[("same", text("x")), ("type", Value::I32(2)), ("value", text("n\x1b")), ("zero", Value::F32(-0.0))],
        &[("same", &[1.0]), ("near", &[3.0, 4.5]), ("shape", &[1.0]), ("new", &[0.5, 1.0, 2.0])],
    );
    let f32 = |n: u32| json!({"type": "f32", "dims": [n]});
    let value = |ty: &str, value: Json| json!({"type": ty, "value": value});
    let json = differs(&a, &b);
    assert_eq!(
        (&json["equal"], &json["n_equal_keys"], &json["n_equal_tensors"]),
        (&json!(false), &json!(2), &json!(1))
    );
    let expect = json!([
        {"key": "type", "a": value("u32", 2.into()), "b": value("i32", 2.into())},
        {"key": "value", "a": value("string", "old".into()), "b": value("string", "n\x1b".into())},
        {"key": "gone", "a": value("bool", true.into())},
        {"key": "zero", "b": value("f32", (-0.0).into())},
    ]);
    assert_eq!(json["metadata"], expect);
    // 0.5 over the length of (3, 4).
    let expect = json!([
        {"name": "near", "a": f32(2), "b": f32(2), "relative_l2": 0.1},
        {"name": "shape", "a": f32(2), "b": f32(1), "relative_l2": null},
        {"name": "gone", "a": f32(1)},
        {"name": "new", "b": f32(3)},
    ]);
    assert_eq!(json["tensors"], expect);

    let shown = diff(&a, &b, &[]);
    assert_eq!((shown.code, shown.err.as_str()), (1, ""));
    let expect = format!(
        r#"--- {}
+++ {}
- type  2  (u32 and i32)
+ type  2  (u32 and i32)
- value  "old"
+ value  "n\u{{1b}}"
- gone  true
+ zero  -0.0
~ near  f32  2  relative L2 0.100000
~ shape  f32  2 -> 1
- gone  f32  1
+ new  f32  3

keys: 1 only in the first, 1 only in the second, 2 differ, 2 are equal
tensors: 1 only in the first, 1 only in the second, 2 differ, 1 are equal
"#,
        a.display(),
        b.display()
    );
    assert_eq!(shown.out, expect);
}

#[test]
fn types_of_one_checkpoint() {
    let (exact, small) = (random_as("f32", "f32"), random_as("q8_0", "q8_0"));
    for (a, b) in [(&exact.text, &small.text), (&exact.mmproj, &small.mmproj)] {
        let json = differs(a, b);
        let tensors = json["tensors"].as_array().unwrap();
        let quantised: Vec<_> = tensors.iter().filter(|t| t["b"]["type"] == "q8_0").collect();
        assert!(quantised.len() > 5, "{json}");
        for tensor in quantised {
            let distance = tensor["relative_l2"].as_f64().unwrap();
            // A step of q8_0 is a 127th of the largest of 32 values; far from nothing, far from all.
            assert!((1e-4..0.02).contains(&distance), "{tensor}");
        }
        assert!(json["metadata"].as_array().unwrap().iter().any(|k| k["key"] == "qvl.recipe"), "{json}");
    }
    // A vocabulary is long: where it begins to differ is said.
    let bytes = fs::read(&exact.text).unwrap();
    let at = bytes.windows(5).position(|w| w == b"<|im_").unwrap();
    let (dir, mut other) = (TempDir::new().unwrap(), bytes);
    other[at] = b'[';
    let changed = dir.path().join("changed.gguf");
    fs::write(&changed, other).unwrap();
    let shown = diff(&exact.text, &changed, &[]).out;
    assert!(shown.contains("+ tokenizer.ggml.tokens  ") && shown.contains("  (from element 11"), "{shown}");
}

#[test]
fn what_cannot_be_compared() {
    let dir = TempDir::new().unwrap();
    let (a, bad) = (random_as("q4_0", "q8_0").text, dir.path().join("bad.gguf"));
    fs::write(&bad, b"no GGUF").unwrap();
    diff(&a, &bad, &[]).fails(3, "bad.gguf: not a GGUF file");
    diff(&bad, &a, &["--json"]).fails(3, "bad.gguf: not a GGUF file");
    diff(&a, dir.path(), &[]).fails(3, &dir.path().display().to_string());
    diff(&a, Path::new("missing.gguf"), &[]).fails(3, "missing.gguf");
    diff(&a, &a, &["third.gguf"]).fails(2, "third.gguf");
    diff(&a, &a, &["--verify"]).fails(2, "--verify");
    run(qvl().args(["inspect", "--diff"]).arg(&a)).fails(2, "OTHER");
    run(qvl().arg("inspect").arg(&a).arg(&a)).fails(2, "--diff");
}
