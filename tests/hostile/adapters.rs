//! LoRA adapters with one thing wrong, as directories and as files: refused before anything is written or loaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::adapter_files::{D, FF, Tensor, config, factors, text_factors, write};
use crate::gguf::{Encoded, File, f32, i32, str, u32};
use crate::support::{checkpoint, convert, q8_0, qvl, run, temp_dir};

/// A sound adapter's file, made once a run.
pub fn adapter() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile-adapter");
        write(&dir.join("mine"), &config(4, 8.0, json!({})), &text_factors(4));
        let out = dir.join("mine.gguf");
        let mut command = convert();
        command.arg("lora").arg(dir.join("mine")).arg("--base").arg(checkpoint()).args(["-q", "--force", "-o"]);
        run(command.arg(&out)).succeeds();
        out
    })
}

/// Both ways of a directory, merged and (where it has no scale) as a file, must fail with this exit code and leave nothing.
fn check_dir(dir: &Path, scale: &str, code: i32, expect: &str) {
    let out = temp_dir();
    let mut command = convert();
    command.arg(checkpoint()).args(["-q", "-t", "q8_0", "--lora"]).arg(format!("{}{scale}", dir.display()));
    let outcome = run(command.arg("-o").arg(out.path()));
    eprintln!("{}", outcome.stderr.trim());
    outcome.fails(code, expect);
    if scale.is_empty() {
        let mut command = convert();
        command.arg("lora").arg(dir).arg("--base").arg(checkpoint()).arg("-q").arg("-o").arg(out.path().join("a.gguf"));
        run(&mut command).fails(code, expect);
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "something is left");
}

/// The sound adapter with its configuration and tensors changed.
fn check(changes: Value, change: impl FnOnce(&mut Vec<Tensor>), expect: &str) {
    let (dir, mut tensors) = (temp_dir(), text_factors(4));
    change(&mut tensors);
    write(dir.path(), &config(4, 8.0, changes), &tensors);
    check_dir(dir.path(), "", 3, expect);
}

fn of<'a>(tensors: &'a mut [Tensor], part: &str) -> &'a mut Tensor {
    tensors.iter_mut().find(|t| t.name.contains(part)).unwrap()
}

#[test]
fn tensors_that_do_not_fit() {
    let extra =
        |name: &'static str, shape: &'static [usize]| move |all: &mut Vec<Tensor>| all.push(Tensor::new(name, shape));
    check(
        json!({}),
        |all| all.retain(|t| !t.name.contains("h.1.mlp.w1.lora_B")),
        "h.1.mlp.w1.lora_A.weight is there without its lora_B",
    );
    check(
        json!({}),
        |all| all.retain(|t| !t.name.contains("h.0.mlp.w2.lora_A")),
        "h.0.mlp.w2.lora_B.weight is there without its lora_A",
    );
    check(json!({"r": 8}), |_| {}, "has rank 4 and its lora_B 4 (expected 8");
    check(json!({"rank_pattern": {"w1": 2}}), |_| {}, "w1.lora_A.weight has rank 4");
    check(json!({}), |all| of(all, "w1.lora_A").shape = vec![8, D / 2], "has rank 8");
    check(json!({}), |all| of(all, "w1.lora_A").shape = vec![4, D / 2, 2], "are no matrices");
    let other = |all: &mut Vec<Tensor>| {
        all.retain(|t| !t.name.contains("h.0.mlp.w1"));
        all.extend(factors("transformer.h.0.mlp.w1", [FF, D * 2], 4));
    };
    check(json!({}), other, "an adapter of another model");
    check(
        json!({}),
        |all| all.extend(factors("transformer.h.2.mlp.w1", [FF, D], 4)),
        "adapts transformer.h.2.mlp.w1.weight, which the model has not",
    );
    check(json!({}), |all| all.extend(factors("transformer.h.0.attn.q_proj", [D, D], 4)), "q_proj");
    check(
        json!({}),
        |all| all.extend(factors("transformer.wte", [1408, D], 4)),
        "transformer.wte.weight is no linear layer",
    );
    check(
        json!({}),
        |all| all.extend(factors("transformer.ln_f", [D, 1], 4)),
        "transformer.ln_f.weight is no linear layer",
    );
    check(json!({}), extra("transformer.wte.lora_embedding_A", &[4, 1408]), "modules_to_save");
    check(json!({}), extra("transformer.h.0.mlp.w1.lora_magnitude_vector.weight", &[FF]), "DoRA");
    check(json!({}), extra("transformer.h.0.attn.c_attn.bias", &[3 * D]), "c_attn.bias: not understood");
    check(json!({}), |all| of(all, "w1.lora_A").name = "w1".into(), "not a name of a LoRA adapter");
    check(json!({}), |all| of(all, "w1.lora_A").data[7] = f32::NAN, "w1.lora_A.weight holds NaN");
    check(json!({}), |all| of(all, "w2.lora_B").data[7] = f32::INFINITY, "w2.lora_B.weight holds inf");
    check(json!({"target_modules": ["c_attn", "w3"]}), |_| {}, "w3");
    check(json!({"target_modules": []}), Vec::clear, "no tensors");
}

#[test]
fn configurations_that_are_more_than_lora() {
    for (changes, expect) in [
        (json!({"peft_type": "IA3"}), "IA3"),
        (json!({"peft_type": null}), "peft_type"),
        (json!({"use_dora": true}), "use_dora"),
        (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
        (json!({"bias": "lora_only"}), "bias"),
        (json!({"init_lora_weights": "pissa"}), "pissa"),
        (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
        (json!({"r": 0}), "r is 0"),
        (json!({"r": "4"}), "r is"),
        (json!({"lora_alpha": -1}), "lora_alpha"),
        (json!({"lora_alpha": 0}), "lora_alpha"),
        (json!({"lora_alpha": 1e300}), "lora_alpha"),
        (json!({"rank_pattern": {"w1": -4}}), "w1"),
        (json!({"rank_pattern": ["w1"]}), "rank_pattern"),
        (json!({"alpha_pattern": {"(": 4}}), "alpha_pattern"),
    ] {
        check(changes, |_| {}, expect);
    }
}

#[test]
fn directories_that_are_no_adapters() {
    let dir = temp_dir();
    check_dir(&dir.path().join("missing"), "", 3, "missing");
    check_dir(dir.path(), "", 3, "adapter_config.json");
    check_dir(&checkpoint(), "", 3, "adapter_config.json");
    check_dir(adapter(), "", 3, "not a directory");
    fs::write(dir.path().join("adapter_config.json"), config(4, 8.0, json!({})).to_string()).unwrap();
    check_dir(dir.path(), "", 3, "adapter_model.safetensors");
    fs::write(dir.path().join("adapter_model.bin"), "PK").unwrap();
    check_dir(dir.path(), "", 3, "adapter_model.bin");
    write(dir.path(), &config(4, 8.0, json!({})), &text_factors(4));
    let path = dir.path().join("adapter_model.safetensors");
    let whole = fs::read(&path).unwrap();
    for n in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..n]).unwrap();
        check_dir(dir.path(), "", 3, "adapter_model.safetensors");
    }
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    check_dir(dir.path(), "", 3, "git-lfs");
    fs::write(dir.path().join("adapter_config.json"), "{").unwrap();
    check_dir(dir.path(), "", 3, "adapter_config.json");
}

#[test]
fn scales_and_wholes() {
    let dir = temp_dir();
    write(dir.path(), &config(4, 8.0, json!({})), &text_factors(4));
    for scale in ["=x", "=", "=nan", "=inf", "=1e9"] {
        check_dir(dir.path(), scale, 2, "scale");
    }
    // What replaces a matrix can only be merged, and only as it is.
    let whole = temp_dir();
    let tensors = [text_factors(4), vec![Tensor::new("transformer.wte.weight", &[1408, D])]].concat();
    write(whole.path(), &config(4, 8.0, json!({"modules_to_save": ["wte"]})), &tensors);
    check_dir(whole.path(), "=0.5", 3, "whole");
    let lora = |dir: &Path, expect: &str| {
        let out = temp_dir();
        let mut command = convert();
        command.arg("lora").arg(dir).arg("--base").arg(checkpoint()).arg("-o").arg(out.path().join("a.gguf"));
        run(&mut command).fails(3, expect);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "something is left");
    };
    lora(whole.path(), "merge it: qvl-convert CHECKPOINT_DIR --lora DIR");
    let mut command = convert();
    command.arg(checkpoint()).args(["-q", "--dry-run", "--lora"]).arg(whole.path()).arg("--lora").arg(whole.path());
    run(&mut command).fails(3, "replaced by another adapter already");
    let visual = temp_dir();
    let module = "transformer.visual.transformer.resblocks.0.mlp.c_proj";
    write(visual.path(), &config(4, 8.0, json!({"target_modules": ["c_proj"]})), &factors(module, [96, 472], 4));
    lora(visual.path(), "the vision tower");
    // A shape that is not the base model's, in place of a whole matrix.
    let tensors = [text_factors(4), vec![Tensor::new("transformer.wte.weight", &[1409, D])]].concat();
    write(whole.path(), &config(4, 8.0, json!({})), &tensors);
    let mut command = convert();
    command.arg(checkpoint()).args(["-q", "--dry-run", "--lora"]).arg(whole.path());
    run(&mut command).fails(3, "[1409, 256] (expected [1408, 256])");
}

/// `ask` with this adapter and the sound model.
fn ask(adapter: &str) -> std::process::Command {
    let mut command = qvl();
    command
        .arg("ask")
        .arg("-m")
        .arg(&q8_0().text)
        .args(["--lora", adapter, "-q", "-n", "2", "--temp", "0", "-t", "1", "hi"]);
    command
}

/// The sound file with one thing changed.
fn check_file(what: &str, change: impl FnOnce(&mut File), expect: &str) {
    let dir = temp_dir();
    let bad = dir.path().join("bad.gguf");
    let mut file = File::read(adapter());
    change(&mut file);
    fs::write(&bad, file.encode()).unwrap();
    let outcome = run(&mut ask(bad.to_str().unwrap()));
    eprintln!("{what}: {}", outcome.stderr.trim());
    outcome.fails(3, expect);
    run(qvl().args(["inspect", "--json", "--verify"]).arg(&bad)).ends_well();
}

fn rename(from: &'static str, to: &'static str) -> impl FnOnce(&mut File) {
    move |file| file.tensor(from).name = to.into()
}

#[test]
fn files_with_other_keys() {
    run(&mut ask(adapter().to_str().unwrap())).succeeds();
    run(qvl().args(["inspect", "--verify"]).arg(adapter())).succeeds();
    let cases: [(&str, Encoded, &str); 11] = [
        ("general.type", str("model"), "not a LoRA adapter"),
        ("general.type", u32(1), "general.type"),
        ("general.architecture", str("llama"), "an adapter of another model"),
        ("general.architecture", i32(3), "general.architecture"),
        ("adapter.type", str("control_vector"), "adapter.type"),
        ("adapter.type", f32(1.0), "adapter.type"),
        ("adapter.lora.alpha", f32(f32::NAN), "adapter.lora.alpha"),
        ("adapter.lora.alpha", f32(0.0), "adapter.lora.alpha"),
        ("adapter.lora.alpha", u32(8), "adapter.lora.alpha"),
        ("adapter.alora.invocation_tokens", crate::gguf::i32s(&[1]), "adapter.alora.invocation_tokens"),
        ("general.alignment", u32(3), "general.alignment"),
    ];
    for (key, value, expect) in cases {
        check_file(&format!("{key} = {value:?}"), |file| file.set(key, value), expect);
    }
    for key in ["general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"] {
        check_file(
            &format!("no {key}"),
            |file| file.remove(key),
            if key == "general.type" { "not a LoRA adapter" } else { key },
        );
    }
}

#[test]
fn files_with_other_tensors() {
    const A: &str = "blk.0.attn_qkv.weight.lora_a";
    let drop_b = |file: &mut File| file.tensors.retain(|t| t.name != b"blk.1.ffn_up.weight.lora_b");
    check_file("no B", drop_b, "blk.1.ffn_up.weight.lora_a\" is there without its .lora_b");
    let drop_a = |file: &mut File| file.tensors.retain(|t| t.name != b"blk.1.ffn_up.weight.lora_a");
    check_file("no A", drop_a, "is there without its .lora_a");
    check_file("nothing", |file| file.tensors.clear(), "no tensors");
    check_file("a norm", rename(A, "blk.0.attn_norm.weight"), "no part of a LoRA adapter");
    for name in [
        "blk.0.attn_norm.weight",
        "token_embd.weight",
        "blk.2.attn_qkv.weight",
        "blk.00.attn_qkv.weight",
        "attn_qkv.weight",
        "blk.0.x.lora_a.weight",
    ] {
        let change = |file: &mut File| {
            for end in [".lora_a", ".lora_b"] {
                file.tensor(&format!("blk.0.attn_qkv.weight{end}")).name = format!("{name}{end}").into();
            }
        };
        check_file(name, change, "no matrix of this model");
    }
    check_file("transposed", |file| file.tensor(A).dims.reverse(), "rank 256");
    check_file("another model's", |file| file.tensor(A).dims = vec![128, 4], "an adapter of another model");
    check_file("no matrix", |file| file.tensor(A).dims = vec![256, 2, 2], "expected a matrix");
    check_file("a vector", |file| file.tensor(A).dims = vec![1024], "expected a matrix");
    check_file("integers", |file| file.tensor(A).ty = 26, "i32");
    check_file("halves where floats were", |file| file.tensor(A).ty = 99, "99");
    check_file("beyond", |file| file.tensor(A).offset = 1 << 40, "truncated");
    let at = |file: &mut File, value: f32| {
        let offset = file.tensor(A).offset as usize;
        file.data[offset + 40..offset + 44].copy_from_slice(&value.to_le_bytes());
    };
    check_file("NaN", |file| at(file, f32::NAN), "holds NaN in row 0, column 10");
    check_file("infinity", |file| at(file, f32::INFINITY), "holds inf");
    check_file("too large", |file| at(file, 1e38), "not finite");
}

#[test]
fn files_that_are_no_adapters() {
    let (dir, pair) = (temp_dir(), q8_0());
    let whole = fs::read(adapter()).unwrap();
    let cut = dir.path().join("cut.gguf");
    for n in [0, 3, 20, 200, whole.len() / 2, whole.len() - 1] {
        fs::write(&cut, &whole[..n]).unwrap();
        run(&mut ask(cut.to_str().unwrap())).fails(3, "cut.gguf");
    }
    run(&mut ask("nowhere.gguf")).fails(3, "nowhere.gguf");
    run(&mut ask(dir.path().to_str().unwrap())).fails(3, "directory");
    for (file, expect) in [(&pair.text, "qwen file"), (&pair.mmproj, "clip file")] {
        run(&mut ask(file.to_str().unwrap())).fails(3, expect);
    }
    for scale in ["x", "", "nan", "1e9"] {
        run(&mut ask(&format!("{}={scale}", adapter().display()))).fails(2, "--lora");
    }
    // In a model's place.
    run(qvl().args(["ask", "hi", "-m"]).arg(adapter())).fails(3, "name it with --lora");
    run(convert().arg("lora").arg(adapter())).fails(2, "--base");
}
