//! Checkpoints of GPTQ: what is packed stays what it is, bit for bit, and what cannot stay is said.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use qvl::ggml::dequantize_row;
use qvl::gguf::Gguf;
use qvl::names::general;
use qvl::quant::GgmlType;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapter_files;
use crate::checkpoints::without_weights;
use crate::gptq_files::{Checkpoint, Matrix};
use crate::models::random_as;
use crate::programs::{Ran, qvl, qvl_convert, repository, run};
use crate::torch::StateDict;

fn like_random(group_size: usize) -> Checkpoint {
    Checkpoint::like(&repository("models/qvl-random"), group_size)
}

fn saved(checkpoint: &Checkpoint) -> TempDir {
    let dir = without_weights();
    checkpoint.save(dir.path(), &repository("models/qvl-random/config.json"));
    dir
}

fn convert(dir: &Path, out: &Path, args: &[&str]) -> Ran {
    run(qvl_convert().arg(dir).args(["--name", "m", "--force", "-o"]).arg(out).args(args))
}

/// Type and bytes of the text file's tensors.
fn tensors(path: &Path) -> BTreeMap<String, (GgmlType, Vec<u8>)> {
    let file = fs::read(path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    gguf.tensors().iter().map(|t| (t.name.clone(), (t.ty, t.bytes(&file).to_vec()))).collect()
}

/// The GGUF name of a module's matrix.
fn gguf_name(module: &str) -> String {
    let (layer, part) = module.strip_prefix("transformer.h.").unwrap().split_once('.').unwrap();
    let part = match part {
        "attn.c_attn" => "attn_qkv",
        "attn.c_proj" => "attn_output",
        "mlp.w1" => "ffn_up",
        "mlp.w2" => "ffn_gate",
        _ => "ffn_down",
    };
    format!("blk.{layer}.{part}.weight")
}

/// The values that stored rows mean.
fn values_of(ty: GgmlType, bytes: &[u8], n_in: usize) -> Vec<f32> {
    let row_bytes = ty.row_bytes(n_in as u64).unwrap() as usize;
    let mut values = vec![0f32; bytes.len() / row_bytes * n_in];
    bytes
        .chunks_exact(row_bytes)
        .zip(values.chunks_exact_mut(n_in))
        .for_each(|(row, out)| dequantize_row(ty, row, out));
    values
}

/// Proves that the matrices of `file` are of this type and, bit for bit, the checkpoint's.
fn check_values(file: &Path, matrices: &BTreeMap<String, Matrix>, expect: GgmlType) {
    let tensors = tensors(file);
    for (module, matrix) in matrices {
        let (ty, bytes) = &tensors[&gguf_name(module)];
        assert_eq!(*ty, expect, "{module}");
        let bits = |all: Vec<f32>| all.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        assert!(bits(values_of(*ty, bytes, matrix.n_in)) == bits(matrix.values()), "{module}: values differ");
    }
}

#[test]
fn symmetric_groups_stay_what_they_are() {
    for group_size in [128, 32, 64, 1024] {
        let mut checkpoint = like_random(group_size);
        if group_size == 1024 {
            // As AutoGPTQ says that a row is one group.
            checkpoint.quantization_config["group_size"] = json!(-1);
        }
        let (dir, out) = (saved(&checkpoint), tempfile::tempdir().unwrap());
        let done = convert(dir.path(), out.path(), &["-t", "f16", "--json"]).json();
        assert_eq!(Path::new(done["model"].as_str().unwrap()), out.path().join("m-Q4_0.gguf"));
        assert_eq!(
            done["notes"],
            json!(["the 10 GPTQ matrices are kept without loss, as q4_0; f16 is the type of the others"])
        );
        check_values(&out.path().join("m-Q4_0.gguf"), &checkpoint.matrices, GgmlType::Q4_0);
    }
}

#[test]
fn the_others_get_the_type_that_was_asked_for() {
    let (dir, out) = (saved(&like_random(128)), tempfile::tempdir().unwrap());
    let plan = convert(dir.path(), out.path(), &["-t", "f16", "--vision-type", "f16", "--dry-run", "--json"]).json();
    let done = convert(dir.path(), out.path(), &["-t", "f16", "--vision-type", "f16", "--json"]).json();
    assert_eq!((&plan["model"]["file"], &plan["model"]["type"]), (&json!("m-Q4_0.gguf"), &json!("q4_0")));
    assert_eq!(plan["model"]["tensor_types"], done["model_types"]);
    assert_eq!(done["model_types"], json!({"f32": 7, "f16": 2, "q4_0": 10}));
    let path = out.path().join("m-Q4_0.gguf");
    let plain = random_as("f16", "f16");
    let (found, expect) = (tensors(&path), tensors(&plain.text));
    for name in ["token_embd.weight", "output.weight", "output_norm.weight", "blk.1.ffn_norm.weight"] {
        assert!(found[name] == expect[name], "{name}");
    }
    assert!(tensors(&out.path().join("mmproj-m-F16.gguf")) == tensors(&plain.mmproj));
    let file = fs::read(&path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.str(general::RECIPE).unwrap(), "q4_0 (gptq), f16");
    // llama.cpp's number of Q4_0.
    assert_eq!(gguf.count(general::FILE_TYPE, 0..=99).unwrap(), 2);
}

#[test]
fn a_packed_checkpoint_answers() {
    let (dir, out) = (saved(&like_random(128)), tempfile::tempdir().unwrap());
    convert(dir.path(), out.path(), &[]).ok();
    let mut ask = qvl();
    ask.current_dir(repository("tests/data/pictures")).args([
        "ask",
        "--json",
        "--temp",
        "0",
        "-n",
        "4",
        "-i",
        "shapes.png",
    ]);
    let answer = run(ask.arg("What is this?").arg("-m").arg(out.path().join("m-Q4_0.gguf"))).json();
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
}

#[test]
fn torch_files_of_gptq_are_the_same() {
    let dir = saved(&like_random(128));
    let out = [(); 2].map(|()| tempfile::tempdir().unwrap());
    convert(dir.path(), out[0].path(), &[]).ok();
    let safetensors = dir.path().join("model.safetensors");
    StateDict::of_safetensors(&safetensors).save(&dir.path().join("gptq_model-4bit-128g.bin"));
    fs::remove_file(safetensors).unwrap();
    // The configuration may also stand where AutoGPTQ writes it.
    let config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    fs::write(dir.path().join("quantize_config.json"), config["quantization_config"].to_string()).unwrap();
    fs::copy(repository("models/qvl-random/config.json"), dir.path().join("config.json")).unwrap();
    convert(dir.path(), out[1].path(), &[]).ok();
    for name in ["m-Q4_0.gguf", "mmproj-m-Q8_0.gguf"] {
        assert!(fs::read(out[0].path().join(name)).unwrap() == fs::read(out[1].path().join(name)).unwrap(), "{name}");
    }
}

/// Columns ordered by importance, zeros that are not 8: `f32` shows that every value is right before it is rounded again.
#[test]
fn other_groups_are_dequantised() {
    let mut checkpoint = like_random(64);
    for (i, matrix) in checkpoint.matrices.values_mut().enumerate() {
        let n_groups = matrix.n_in / 64;
        if i % 2 == 0 {
            matrix.g_idx = (0..matrix.n_in).map(|i| (i * 7 % n_groups) as i32).collect();
        }
        if i % 3 != 2 {
            matrix.zeros.iter_mut().enumerate().for_each(|(i, zero)| *zero = 1 + (i * 5 % 16) as u8);
        }
    }
    let (dir, out) = (saved(&checkpoint), tempfile::tempdir().unwrap());
    convert(dir.path(), out.path(), &["-t", "f32", "--tensor-type", "blk=f32"]).ok();
    // Matrix 5 stays what it is unless it is asked for in f32, as it is here.
    check_values(&out.path().join("m-F32.gguf"), &checkpoint.matrices, GgmlType::F32);

    let ran = convert(dir.path(), out.path(), &["-t", "q8_0"]).ok();
    let expect = "9 of 10 GPTQ matrices are not kept as they are but quantised a second time, which costs accuracy";
    assert!(ran.err.contains(expect) && ran.err.contains("groups are not in order"), "{}", ran.err);
    // Most of it is not q4_0, and so the file is not named.
    let found = tensors(&out.path().join("m-Q8_0.gguf"));
    let kept: Vec<&String> = found.iter().filter(|(_, (ty, _))| *ty == GgmlType::Q4_0).map(|(name, _)| name).collect();
    let fifth = checkpoint.matrices.keys().nth(5).unwrap();
    assert_eq!(kept, [&gguf_name(fifth)]);
}

#[test]
fn another_type_can_be_asked_for() {
    let checkpoint = like_random(128);
    let (dir, out) = (saved(&checkpoint), tempfile::tempdir().unwrap());
    let ran = convert(dir.path(), out.path(), &["-t", "q8_0", "--tensor-type", "blk.*weight=q8_0"]).ok();
    assert!(ran.err.contains("10 of 10") && ran.err.contains("--tensor-type asks for blk.0"), "{}", ran.err);
    // Nothing is kept: the file is what was asked for.
    assert!(out.path().join("m-Q8_0.gguf").exists());
    convert(dir.path(), out.path(), &["--tensor-type", "blk.*weight=q4_0"]).ok();
    check_values(&out.path().join("m-Q4_0.gguf"), &checkpoint.matrices, GgmlType::Q4_0);
}

/// As the published Q-LoRA script makes them, of a packed model.
#[test]
fn adapters_are_applied_and_not_merged() {
    let (dir, out) = (saved(&like_random(128)), tempfile::tempdir().unwrap());
    let adapter = out.path().join("mine");
    adapter_files::write(&adapter, &adapter_files::config(4, 64.0, json!({})), &adapter_files::text_factors(4));
    let target = out.path().join("out");
    for dry in [&["-q"][..], &["-q", "--dry-run"]] {
        let merged = convert(dir.path(), &target, &[&["--lora", adapter.to_str().unwrap()], dry].concat());
        merged.fails(3, "which GPTQ has packed into 4 bits");
        assert!(!target.exists() || fs::read_dir(&target).unwrap().count() == 0);
    }
    convert(dir.path(), &target, &["-q"]).ok();
    let file = out.path().join("mine.gguf");
    let mut export = Command::new(env!("CARGO_BIN_EXE_qvl-convert"));
    run(export.arg("lora").arg(&adapter).arg("--base").arg(dir.path()).arg("-o").arg(&file)).ok();
    let logits = |flags: &[&str], name: &str| {
        let trace = out.path().join(name);
        let mut command = qvl();
        command.args(["trace", "-m"]).arg(target.join("m-Q4_0.gguf")).args(flags).arg("-o").arg(&trace);
        run(command.arg("What is this?")).ok();
        crate::tensors::Tensors::read(&trace).f32s("logits").data
    };
    let (without, with) = (logits(&[], "a"), logits(&["--lora", file.to_str().unwrap()], "b"));
    assert!(with.iter().all(|x| x.is_finite()) && with != without);
}
