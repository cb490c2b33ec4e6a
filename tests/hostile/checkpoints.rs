//! `qvl-convert` on checkpoints that are not what they should be: nothing is left under a final name.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{checkpoint, convert, run, temp_dir};

/// A copy of the small checkpoint.
fn copy() -> TempDir {
    let dir = temp_dir();
    for entry in fs::read_dir(checkpoint()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Proves that converting `dir` fails like this and leaves nothing, and that a dry run ends well.
pub fn check_dir(dir: &Path, flags: &[&str], code: i32, expect: &str) {
    let out = temp_dir();
    let outcome = run(convert().arg(dir).args(["-q", "-t", "q8_0"]).args(flags).arg("-o").arg(out.path()));
    eprintln!("{}", outcome.stderr.trim());
    outcome.fails(code, expect);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "something is left");
    run(convert().arg(dir).args(["--dry-run", "--json", "-q", "-t", "q8_0"]).args(flags)).ends_well();
}

fn check(change: impl FnOnce(&Path), expect: &str) {
    let dir = copy();
    change(dir.path());
    check_dir(dir.path(), &[], 3, expect);
}

fn write(name: &str, bytes: impl AsRef<[u8]>) -> impl FnOnce(&Path) {
    move |dir| fs::write(dir.join(name), bytes).unwrap()
}

fn replace(name: &'static str, from: &'static str, to: &'static str) -> impl FnOnce(&Path) {
    move |dir| {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert!(text.contains(from), "{name} lacks {from}");
        fs::write(dir.join(name), text.replace(from, to)).unwrap();
    }
}

/// Changes the JSON header of the shard, keeping the data where the header says.
fn header(change: impl FnOnce(&mut serde_json::Value)) -> impl FnOnce(&Path) {
    move |dir| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        change(&mut json);
        let mut text = json.to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + n..]].concat()).unwrap();
    }
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
const NORM: &str = "transformer.ln_f.weight";
const WTE: &str = "transformer.wte.weight";

#[test]
fn shards() {
    let cut = |n: fn(usize) -> usize| {
        move |dir: &Path| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..n(bytes.len())]).unwrap();
        }
    };
    check(cut(|n| n - 1), "model.safetensors");
    check(cut(|n| n / 2), "model.safetensors");
    check(cut(|_| 100), "model.safetensors");
    check(cut(|_| 7), "model.safetensors");
    check(cut(|_| 0), "model.safetensors");
    check(write("model.safetensors", POINTER), "git lfs pull");
    check(write("model.safetensors", [0xFF; 64]), "model.safetensors");
    check(write("model.safetensors", b"\x10\0\0\0\0\0\0\0not JSON, is it?"), "model.safetensors");
    check(write("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "missing");
    let renamed = |j: &mut serde_json::Value| {
        let entry = j.as_object_mut().unwrap().remove(NORM).unwrap();
        j["transformer.ln_g.weight"] = entry;
    };
    check(header(renamed), NORM);
    check(header(|j| drop(j.as_object_mut().unwrap().remove(NORM))), "model.safetensors");
    check(header(|j| j[NORM]["shape"] = [255].into()), "model.safetensors");
    check(header(|j| j[NORM]["shape"] = [16, 16].into()), NORM);
    check(header(|j| j[NORM]["shape"] = [u64::MAX, u64::MAX].into()), "model.safetensors");
    check(header(|j| j[NORM]["dtype"] = "I32".into()), "model.safetensors");
    check(header(|j| j[NORM]["dtype"] = "F99".into()), "model.safetensors");
    check(header(|j| j[NORM]["data_offsets"] = [0, 4].into()), "model.safetensors");
    check(header(|j| j[NORM]["data_offsets"] = [u64::MAX, 0].into()), "model.safetensors");
    check(header(|j| j[NORM] = 5.into()), "model.safetensors");
    check(header(|j| j["extra"] = j[NORM].clone()), "model.safetensors");
}

#[test]
fn weights_that_are_no_numbers() {
    for name in [NORM, WTE, "transformer.visual.conv1.weight", "transformer.visual.attn_pool.attn.in_proj_weight"] {
        let poison = |dir: &Path| {
            let path = dir.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
            let at = 8 + n + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
            // A NaN in each of the three types.
            bytes[at..at + 4].fill(0xFF);
            fs::write(&path, bytes).unwrap();
        };
        check(poison, name);
    }
}

#[test]
fn indices() {
    let index = |json: &'static str| {
        move |dir: &Path| {
            fs::rename(dir.join("model.safetensors"), dir.join("model-00001-of-00002.safetensors")).unwrap();
            fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
        }
    };
    check(index("{"), "not valid JSON");
    check(index("[]"), "expected a JSON object");
    check(index("{}"), "weight_map is missing");
    check(index(r#"{"weight_map": {}}"#), "weight_map is empty");
    check(index(r#"{"weight_map": {"a": "model-00002-of-00002.safetensors"}}"#), "the shard is missing");
    check(index(r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#), "tensor a is not in");
    check(index(r#"{"weight_map": {"a": "../etc/passwd"}}"#), "expected a file name");
    check(index(r#"{"weight_map": {"a": 5}}"#), "expected a file name");
    check(index(POINTER), "git lfs pull");
}

#[test]
fn configurations() {
    check(write("config.json", ""), "config.json");
    check(write("config.json", "[]"), "config.json");
    check(write("config.json", "{}"), "config.json");
    check(write("config.json", "[".repeat(100_000)), "config.json");
    check(write("config.json", b"\xff\xfe{}"), "config.json");
    check(write("config.json", POINTER), "git lfs pull");
    check(|dir| fs::remove_file(dir.join("config.json")).unwrap(), "config.json");
    check(write("config.json", r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}"#), "config.json");
    let with = |from, to| replace("config.json", from, to);
    check(with("\"hidden_size\": 256", "\"hidden_size\": 0"), "hidden_size");
    check(with("\"hidden_size\": 256", "\"hidden_size\": 18446744073709551615"), "hidden_size");
    check(with("\"hidden_size\": 256", "\"hidden_size\": 1e99"), "hidden_size");
    check(with("\"hidden_size\": 256", "\"hidden_size\": 512"), "");
    check(with("\"num_attention_heads\": 4", "\"num_attention_heads\": 3"), "");
    check(with("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"), "num_attention_heads");
    check(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"), "transformer.h.2");
    check(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"), "");
    check(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4294967295"), "num_hidden_layers");
    check(with("\"intermediate_size\": 1024", "\"intermediate_size\": 1025"), "intermediate_size");
    check(with("\"vocab_size\": 1408", "\"vocab_size\": 100"), "");
    check(with("\"vocab_size\": 1408", "\"vocab_size\": 1e3"), "vocab_size");
    check(with("\"image_size\": 126", "\"image_size\": 127"), "image_size");
    check(with("\"image_size\": 126", "\"image_size\": 4294967295"), "image_size");
    check(with("\"patch_size\": 14", "\"patch_size\": 0"), "patch_size");
    check(with("\"n_queries\": 25", "\"n_queries\": 24"), "n_queries");
    check(with("\"mlp_ratio\": 4.9231", "\"mlp_ratio\": -1"), "mlp_ratio");
    check(with("\"layer_norm_epsilon\": 1e-06", "\"layer_norm_epsilon\": 0"), "layer_norm_epsilon");
    check(with("\"seq_length\": 128", "\"seq_length\": 1"), "seq_length");
    check(with("\"rotary_emb_base\": 10000", "\"rotary_emb_base\": -5"), "rotary_emb_base");
    check(with("\"use_cache\": true", "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}"), "");
    check(write("generation_config.json", "nonsense"), "generation_config.json");
    check(write("generation_config.json", r#"{"top_p": -3}"#), "top_p");
}

#[test]
fn vocabularies() {
    check(|dir| fs::remove_file(dir.join("qwen.tiktoken")).unwrap(), "qwen.tiktoken");
    check(write("qwen.tiktoken", ""), "qwen.tiktoken");
    check(write("qwen.tiktoken", POINTER), "git lfs pull");
    check(write("qwen.tiktoken", b"\xff\xff"), "qwen.tiktoken");
    check(write("qwen.tiktoken", "IQ== 0\n"), "qwen.tiktoken");
    check(write("qwen.tiktoken", "IQ== 99999999999999999999\n"), "qwen.tiktoken");
    check(replace("qwen.tiktoken", "IQ== 0\n", "IQ== 1\n"), "qwen.tiktoken");
}

#[test]
fn directories() {
    let empty = temp_dir();
    check_dir(empty.path(), &[], 3, "config.json");
    check_dir(&checkpoint().join("config.json"), &[], 3, "not a directory");
    check_dir(Path::new("/no/such/dir"), &[], 3, "/no/such/dir");
    check_dir(Path::new(""), &[], 2, "a value is required");
    let torch = |dir: &Path| fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
    check(torch, "not a file of torch.save");
    check(|dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), "no weights here");
}

#[test]
fn outputs() {
    let dir = temp_dir();
    let to = |out: &Path, flags: &[&str]| {
        run(convert().arg(checkpoint()).args(["-q", "-t", "q8_0"]).args(flags).arg("-o").arg(out))
    };
    to("/proc/no".as_ref(), &[]).fails(2, "cannot make the directory");
    to("/proc".as_ref(), &[]).fails(1, "not enough space");
    to(&checkpoint().join("config.json"), &[]).fails(2, "not a directory");
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    to(dir.path(), &["--name", "../a/b"]).succeeds();
    let made = names(dir.path());
    assert_eq!(made.len(), 2, "{made:?}");
    to(dir.path(), &["--name", "../a/b"]).fails(2, "--force replaces it");
    to(dir.path(), &["--name", "../a/b", "--force"]).succeeds();
    assert_eq!(names(dir.path()), made);
    let way = dir.path().join("x-Q8_0.gguf");
    fs::create_dir(&way).unwrap();
    to(dir.path(), &["--name", "x", "--force"]).fails(2, "in the way");
    to(dir.path(), &["--name", "a\u{1b}[2J\0b".split('\0').next().unwrap()]).succeeds();
    to(dir.path(), &["--name", &"n".repeat(1000)]).succeeds();
}

#[test]
fn flags() {
    for flags in [
        &["-t", "nonsense"][..],
        &["-t", "q2_k"],
        &["--tensor-type", "(=q8_0"],
        &["--tensor-type", "a"],
        &["--tensor-type", "a=q9_9"],
        &["-j", "0"],
        &["-j", "99999"],
        &["--nonsense"],
    ] {
        check_dir(&checkpoint(), flags, 2, "error: ");
    }
}

/// A disk that fills up, where the tests may mount one.
#[test]
fn full_disk() {
    let dir = temp_dir();
    let mount: PathBuf = dir.path().join("small");
    fs::create_dir(&mount).unwrap();
    let run_tool = |args: &[&str]| {
        std::process::Command::new(args[0]).args(&args[1..]).arg(&mount).stderr(std::process::Stdio::null()).status()
    };
    if !run_tool(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).is_ok_and(|s| s.success()) {
        eprintln!("skipped: cannot mount a small disk here");
        return;
    }
    let outcome = run(convert().arg(checkpoint()).args(["-q", "-t", "q8_0", "-o"]).arg(&mount));
    let left = fs::read_dir(&mount).unwrap().count();
    run_tool(&["umount"]).unwrap();
    outcome.fails(1, "not enough space");
    assert_eq!(left, 0);
}
