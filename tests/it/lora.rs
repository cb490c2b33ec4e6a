//! LoRA: merged by `qvl-convert --lora`, applied by `qvl --lora`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qvl::gguf::Gguf;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapter_files::{D, Tensor, config, factors, text_factors, text_modules, write};
use crate::models::{Model, random, random_as};
use crate::programs::{EXACT, Ran, qvl, qvl_convert, repository, run};
use crate::tensors::{Values, relative_l2, traced};
use crate::torch::StateDict;

/// Two ways to the same f32 logits: B·(A·x) added to W·x, or (W + B·A)·x. As far apart as other orders of such sums are.
const TOLERANCE: f64 = 1e-6;
/// Adapters of these tests change the logits by more than this.
const CHANGED: f64 = 1e-2;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// `models/qvl-random`, or another checkpoint, in f32 with further arguments.
fn convert(checkpoint: &Path, out: &Path, args: &[&str]) -> Model {
    let mut command = qvl_convert();
    command.arg(checkpoint).args(["-q", "-t", "f32", "--vision-type", "f32", "--json", "-o"]).arg(out).args(args);
    let done = run(&mut command).json();
    let path = |key: &str| PathBuf::from(done[key].as_str().unwrap());
    Model { text: path("model"), mmproj: path("mmproj") }
}

fn with_adapters(out: &Path, adapters: &[String]) -> Model {
    let args: Vec<&str> = adapters.iter().flat_map(|adapter| ["--lora", adapter]).collect();
    convert(&repository("models/qvl-random"), out, &args)
}

/// The adapter in `dir` as a file beside it.
fn export(adapter: &Path, args: &[&str]) -> PathBuf {
    let out = adapter.with_extension("gguf");
    let mut command = lora();
    command.arg(adapter).arg("--base").arg(repository("models/qvl-random")).args(["-q", "--force"]).args(args);
    run(command.arg("-o").arg(&out)).ok();
    out
}

/// `qvl-convert lora` on one thread.
fn lora() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl-convert"));
    command.args(["lora", "-j", "1"]);
    command
}

/// Logits of a text prompt.
fn logits(model: &Path, adapters: &[String]) -> Values {
    let mut command = qvl();
    command.arg("trace").arg("-m").arg(model).args(EXACT).args(adapters.iter().flat_map(|a| ["--lora", a]));
    traced(command.arg("What is it, and where?")).f32s("logits")
}

fn text_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The random checkpoint with W + scale·B·A in place of W, in f32, and some weights replaced.
fn merged_by_hand(to: &Path, products: &[(&str, &Tensor, &Tensor, f32)], whole: &[(&str, &Tensor)]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(repository("models/qvl-random")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let path = to.join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut all: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect();
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for (weight, tensor) in whole {
        all.get_mut(*weight).unwrap().2 = bytes(&tensor.data);
        all.get_mut(*weight).unwrap().0 = Dtype::F32;
    }
    for (weight, a, b, scale) in products {
        let (dtype, shape, data) = all.get_mut(*weight).unwrap();
        let mut values: Vec<f32> = match dtype {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => panic!("{other:?}"),
        };
        let (width, rank) = (shape[1], a.shape[0]);
        for (i, value) in values.iter_mut().enumerate() {
            let (row, column) = (i / width, i % width);
            // Exact, as are all of its parts: the one rounding is the sum with W.
            *value += scale * (0..rank).map(|k| b.data[row * rank + k] * a.data[k * width + column]).sum::<f32>();
        }
        (*dtype, *data) = (Dtype::F32, bytes(&values));
    }
    let views = all.iter().map(|(name, (ty, shape, data))| (name, TensorView::new(*ty, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

/// Name, extents and bytes.
type Stored = (String, Vec<u64>, Vec<u8>);

/// Every tensor; and the metadata.
fn contents(path: &Path) -> (Vec<Stored>, BTreeMap<String, String>) {
    let file = fs::read(path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let tensors = gguf.tensors().iter().map(|t| (t.name.clone(), t.dims.clone(), t.bytes(&file).to_vec())).collect();
    (tensors, gguf.metadata().iter().map(|(key, value)| (key.clone(), format!("{value:?}"))).collect())
}

/// Text and vision tower, matrices whose rows are put in another order, and whole matrices: bytes equal.
#[test]
fn merging_is_as_if_the_checkpoint_had_been_merged() {
    let dir = dir();
    let visual = "transformer.visual.transformer.resblocks";
    let modules = [
        ("transformer.h.1.mlp.c_proj".to_owned(), [D, 512]),
        (format!("{visual}.0.attn.in_proj"), [288, 96]),
        (format!("{visual}.2.mlp.c_fc"), [472, 96]),
        ("transformer.visual.attn_pool.kv_proj".to_owned(), [D, 96]),
    ];
    let modules: Vec<_> = (0..2).flat_map(text_modules).chain(modules).collect();
    let pairs: Vec<_> = modules.iter().map(|(module, shape)| factors(module, *shape, 4)).collect();
    let whole = ["transformer.wte.modules_to_save.weight", "lm_head.weight"].map(|name| Tensor::new(name, &[1408, D]));
    let tensors = [pairs.concat(), whole.to_vec()].concat();
    let adapter = dir.path().join("mine");
    let saved = json!({"target_modules": "all-linear", "modules_to_save": ["wte", "lm_head"]});
    write(&adapter, &config(4, 8.0, saved), &tensors);

    let by_hand = dir.path().join("by-hand");
    let names: Vec<String> = modules.iter().map(|(module, _)| format!("{module}.weight")).collect();
    let products: Vec<_> = names.iter().zip(&pairs).map(|(name, [a, b])| (name.as_str(), a, b, 2.0)).collect();
    merged_by_hand(&by_hand, &products, &[("transformer.wte.weight", &whole[0]), ("lm_head.weight", &whole[1])]);
    let expect = convert(&by_hand, &dir.path().join("expect"), &["--name", "m"]);
    let found = with_adapters(&dir.path().join("found"), &[text_of(&adapter)]);
    assert_eq!(found.text.file_name().unwrap(), "qvl-random-mine-F32.gguf");
    for (found, expect, n_changed) in [(&found.text, &expect.text, 11), (&found.mmproj, &expect.mmproj, 3)] {
        let (tensors, metadata) = contents(found);
        let (expected, _) = contents(expect);
        assert_eq!(tensors.len(), expected.len());
        for (found, expect) in tensors.iter().zip(&expected) {
            assert!(found == expect, "{} differs", found.0);
        }
        assert!(metadata["qvl.lora"].contains("mine: rank 4, alpha 8, scale 1"), "{}", metadata["qvl.lora"]);
        let base = if n_changed == 11 { random().text } else { random().mmproj };
        let changed = contents(&base).0.iter().zip(&tensors).filter(|(a, b)| a.2 != b.2).count();
        assert_eq!(changed, n_changed);
    }
    // Another tower is another mmproj; only then.
    let id = |path: &Path| contents(path).1["qvl.vision_id"].clone();
    assert_eq!(id(&found.text), id(&found.mmproj));
    assert_ne!(id(&found.mmproj), id(&random().mmproj));
}

#[test]
fn at_run_time_it_is_as_if_merged() {
    let dir = dir();
    // More than one scale and rank in a file, for which llama.cpp's format has one number.
    let kinds = [
        ("plain", json!({}), 4),
        ("stable", json!({"use_rslora": true}), 16),
        ("mixed", json!({"alpha_pattern": {"c_attn": 2, "h.1.mlp.w1": 16}, "use_rslora": true}), 4),
    ];
    let (base, quantised) = (random(), random_as("q4_k_m", "q8_0"));
    let without = logits(&base.text, &[]);
    for (name, changes, rank) in kinds {
        let adapter = dir.path().join(name);
        write(&adapter, &config(rank, 8.0, changes), &text_factors(rank));
        let merged = with_adapters(&dir.path().join("out"), &[text_of(&adapter)]);
        let file = text_of(&export(&adapter, &[]));
        let expect = logits(&merged.text, &[]);
        let distance = relative_l2(&logits(&base.text, std::slice::from_ref(&file)).data, &expect.data);
        println!("{name}: {distance:.1e}");
        assert!(distance < TOLERANCE, "{name}: {distance:.1e}");
        assert!(relative_l2(&without.data, &expect.data) > CHANGED, "{name}: it changes something");
        // The vision tower is the base model's.
        assert_eq!(contents(&merged.text).1["qvl.vision_id"], contents(&base.text).1["qvl.vision_id"]);
        // With weights in 4 bits it does what it does in 32.
        let change = |model: &Path| {
            let (with, without) = (logits(model, std::slice::from_ref(&file)).data, logits(model, &[]).data);
            with.iter().zip(&without).map(|(x, y)| x - y).collect::<Vec<f32>>()
        };
        let distance = relative_l2(&change(&quantised.text), &change(&base.text));
        assert!(distance < 0.5, "{name}: {distance}");
    }
}

#[test]
fn adapters_add_up_and_none_of_one_is_none() {
    let dir = dir();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write(&one, &config(4, 8.0, json!({})), &text_factors(4));
    let targets = json!({"target_modules": ["c_attn", "lm_head"]});
    let head = factors("lm_head", [1408, D], 2);
    write(
        &two,
        &config(2, 2.0, targets),
        &[&factors("transformer.h.0.attn.c_attn", [3 * D, D], 2)[..], &head].concat(),
    );
    let base = random();
    let scaled = |path: &Path, scale: f32| format!("{}={scale}", path.display());
    let merged = with_adapters(&dir.path().join("sum"), &[text_of(&one), scaled(&two, -0.5)]);
    assert_eq!(merged.text.file_name().unwrap(), "qvl-random-one-two-F32.gguf");
    let expect = logits(&merged.text, &[]);
    let (one_file, two_file) = (export(&one, &[]), export(&two, &["-t", "bf16"]));
    // Values of these adapters are exact in bf16, and so is what a prompt's rows are not: as far off as bf16 rounds.
    let found = logits(&base.text, &[text_of(&one_file), scaled(&two_file, -0.5)]);
    assert!(relative_l2(&found.data, &expect.data) < 1e-3);
    let two_file = export(&two, &[]);
    let found = logits(&base.text, &[text_of(&one_file), scaled(&two_file, -0.5)]);
    assert!(relative_l2(&found.data, &expect.data) < TOLERANCE);
    let halves = logits(&base.text, &[scaled(&one_file, 0.5), scaled(&one_file, 0.5), scaled(&two_file, -0.5)]);
    assert!(relative_l2(&halves.data, &expect.data) < TOLERANCE);

    // At run time to the last bit, converted to the last byte.
    assert_eq!(logits(&base.text, &[scaled(&one_file, 0.0)]), logits(&base.text, &[]));
    let none = with_adapters(&dir.path().join("none"), &[scaled(&one, 0.0)]);
    assert!(fs::read(none.text).unwrap() == fs::read(&base.text).unwrap());
    assert!(fs::read(none.mmproj).unwrap() == fs::read(&base.mmproj).unwrap());
}

#[test]
fn a_base_may_be_a_gguf_and_the_plan_is_what_is_written() {
    let dir = dir();
    let adapter = dir.path().join("mine");
    write(&adapter, &config(4, 8.0, json!({})), &text_factors(4));
    let made = fs::read(export(&adapter, &[])).unwrap();
    let lora = |base: &Path, args: &[&str]| -> Ran {
        let mut command = lora();
        command.arg(&adapter).arg("--base").arg(base).arg("-o").arg(dir.path().join("new.gguf")).args(args);
        run(&mut command)
    };
    let plan = lora(&random().text, &["--dry-run", "--json"]).json();
    assert!(!dir.path().join("new.gguf").exists(), "a dry run writes nothing");
    let done = lora(&random().text, &["--json"]).json();
    assert_eq!(done["tensors"], 16);
    let path = dir.path().join("new.gguf");
    let inspected = run(qvl().args(["inspect", "--json", "--tensors", "--verify"]).arg(&path)).json();
    let rows = |v: &Value| {
        v.as_array()
            .unwrap()
            .iter()
            .map(|t| [&t["name"], &t["dims"], &t["bytes"]].map(Value::clone))
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(&plan["tensors"]), rows(&inspected["tensors"]));
    assert_eq!(inspected["metadata"]["adapter.lora.alpha"], 8.0);
    let (found, expect) = (contents(&path), contents(&adapter.with_extension("gguf")));
    assert!(found.0 == expect.0 && made.len().abs_diff(fs::read(&path).unwrap().len()) <= 32);
    lora(&random().text, &[]).fails(2, "--force");
    lora(&random().mmproj, &["--force"]).fails(3, "mmproj");
    lora(&adapter, &["--force"]).fails(3, "adapter");
    assert!(lora(&random().text, &["--force", "-q"]).ok().err.is_empty());

    // A conversion's plan names the adapter where it acts, and in a note.
    let mut command = qvl_convert();
    let ran = run(command.arg(repository("models/qvl-random")).args(["--dry-run", "--lora", &text_of(&adapter)])).ok();
    assert!(ran.err.contains("note: mine: rank 4, alpha 8, scale 1; adds to 8 tensors"), "{ran:?}");
    let lines = ran.out.lines().filter(|line| line.ends_with("weight + mine")).count();
    assert_eq!(lines, 8, "{}", ran.out);
}

#[test]
fn sessions_and_memory_know_the_adapter() {
    let dir = dir();
    let adapter = dir.path().join("mine");
    write(&adapter, &config(64, 8.0, json!({})), &text_factors(64));
    let file = export(&adapter, &[]);
    let (base, session) = (random(), dir.path().join("s"));
    let ask = |flags: &[&str]| {
        let mut command = qvl();
        command.args(["ask", "-q", "--temp", "0", "-n", "4", "--json", "-m"]).arg(&base.text).args(flags);
        run(command.arg("--session").arg(&session).arg("What?"))
    };
    let (one, half) = (text_of(&file), format!("{}=0.5", file.display()));
    ask(&["--lora", &one]).ok();
    assert!(ask(&["--lora", &one]).json()["usage"]["reused_tokens"].as_u64().unwrap() > 4);
    ask(&[]).fails(2, "mine.gguf");
    ask(&["--lora", &half]).fails(2, "mine.gguf=0.5");

    let plan = |flags: &[&str]| {
        let mut command = qvl();
        run(command.args(["plan", "--json", "--pictures", "0", "-m"]).arg(&base.text).args(flags)).json()
    };
    let of = |plan: &Value| {
        let items = plan["phases"][0]["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == "adapters").map_or(0, |item| item["bytes"].as_u64().unwrap())
    };
    let n_bytes: u64 = text_factors(64).iter().map(|t| 4 * t.data.len() as u64).sum();
    assert_eq!((of(&plan(&[])), of(&plan(&["--lora", &one]))), (0, n_bytes));
    assert_eq!(of(&plan(&["--lora", &one, "--lora", &half])), 2 * n_bytes);
    // llama.cpp's own report: nothing but the adapter comes to what a model takes.
    for flash in ["on", "off"] {
        let buffers = |flags: &[&str]| {
            let mut command = qvl();
            command.args(["ask", "-v", "-n", "1", "-fa", flash, "-c", "2048", "-m"]).arg(&base.text).args(flags);
            let err = run(command.arg("word ".repeat(500))).ok().err;
            let of = |what: &str| {
                err.lines()
                    .rfind(|line| line.contains(what))
                    .map(|line| line.split_once(what).unwrap().1.trim().to_owned())
            };
            (of("CPU compute buffer size =").unwrap(), of("LoRA buffer size ="))
        };
        let (with, without) = (buffers(&["--lora", &one]), buffers(&[]));
        assert_eq!((&with.0, without.1), (&without.0, None));
        assert_eq!(with.1.unwrap(), format!("{:.2} MiB", n_bytes as f64 / f64::from(1 << 20)));
    }
}

/// The same adapter as PyTorch saves it.
#[test]
fn a_bin_adapter_is_the_same() {
    let dir = dir();
    let (safe, torch) = (dir.path().join("safe"), dir.path().join("torch"));
    write(&safe, &config(4, 8.0, json!({})), &text_factors(4));
    fs::create_dir(&torch).unwrap();
    fs::copy(safe.join("adapter_config.json"), torch.join("adapter_config.json")).unwrap();
    StateDict::of_safetensors(&safe.join("adapter_model.safetensors")).save(&torch.join("adapter_model.bin"));
    // Metadata says which directory it was in.
    let tensors = |path: &Path| {
        let file = fs::read(path).unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        gguf.tensors().iter().map(|t| (t.name.clone(), t.bytes(&file).to_vec())).collect::<Vec<_>>()
    };
    assert!(tensors(&export(&torch, &[])) == tensors(&export(&safe, &[])));
    let merged = |adapter: &Path| tensors(&with_adapters(&adapter.with_extension("out"), &[text_of(adapter)]).text);
    assert!(merged(&torch) == merged(&safe));
}
