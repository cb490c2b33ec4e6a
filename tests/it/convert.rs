//! `qvl-convert`: the plan is what is written, and a failure leaves nothing.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::models::{random, random_as};
use crate::programs::{Ran, qvl, qvl_convert, repository, run};

/// `models/qvl-random` into `out`.
fn convert(out: &Path, args: &[&str]) -> Ran {
    run(qvl_convert().arg(repository("models/qvl-random")).args(args).arg("-o").arg(out))
}

/// `qvl inspect --json --tensors`
fn inspected(file: &Path) -> Value {
    run(qvl().args(["inspect", "--json", "--tensors"]).arg(file)).json()
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Name, extents, type and bytes of every tensor.
fn rows(tensors: &Value) -> Vec<(String, Vec<u64>, String, u64)> {
    let row = |t: &Value| {
        let text = |key: &str| t[key].as_str().unwrap().to_owned();
        let dims = t["dims"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        (text("name"), dims, text("type"), t["bytes"].as_u64().unwrap())
    };
    tensors.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn the_plan_is_what_is_written() {
    for (text_type, vision_type) in [("q4_k_m", "q8_0"), ("f16", "q4_k_m")] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/deep");
        let args = ["-t", text_type, "--vision-type", vision_type];
        let plan = convert(&out, &[&args[..], &["--dry-run", "--json"]].concat()).json();
        let table = convert(&out, &[&args[..], &["--dry-run"]].concat()).ok().out;
        assert!(!out.exists(), "a dry run writes nothing");

        let done = convert(&out, &[&args[..], &["--json"]].concat()).json();
        let mut planned = Vec::new();
        for part in ["model", "mmproj"] {
            let path = Path::new(done[part].as_str().unwrap());
            assert_eq!(path.file_name().unwrap().to_str(), plan[part]["file"].as_str());
            let written = inspected(path);
            let expect = rows(&plan[part]["tensors"]);
            assert_eq!(rows(&written["tensors"]), expect, "{part}");
            assert_eq!(written["bytes"], done[format!("{part}_bytes")]);
            planned.extend(expect);
        }
        assert_eq!(file_names(&out).len(), 2, "{:?}", file_names(&out));
        assert_eq!(table_rows(&table), planned);
    }
}

/// The rows of both tables of a dry run: columns are at least two spaces apart.
fn table_rows(table: &str) -> Vec<(String, Vec<u64>, String, u64)> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let [name, dims, ty, bytes, _recipe, _source] = cells[..] else { return None };
        let dims = dims.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
        // "q5_0 (not q4_k)" says what was wanted.
        Some((name.to_owned(), dims, ty.split(' ').next()?.to_owned(), bytes.parse().ok()?))
    };
    table.lines().filter_map(row).collect()
}

#[test]
fn names_say_what_is_inside() {
    let dir = tempfile::tempdir().unwrap();
    convert(dir.path(), &["-t", "q5_0", "--vision-type", "q4_k_m", "--name", "My Model"]).ok();
    // Rows of 472 values are padded to two blocks of 256; those of 96 are not worth it and become q5_0, the smaller part.
    assert_eq!(file_names(dir.path()), ["My-Model-Q5_0.gguf", "mmproj-My-Model-Q4_K_M.gguf"]);
    let dir = tempfile::tempdir().unwrap();
    let mut command = qvl_convert();
    command.arg(repository("models/qvl-tiny")).args(["-t", "q4_0", "--vision-type", "q4_k_m", "-o"]).arg(dir.path());
    run(&mut command).ok();
    // There most rows have 192 values: the larger part is q5_0.
    assert_eq!(file_names(dir.path()), ["mmproj-qvl-tiny-Q5_0.gguf", "qvl-tiny-Q4_0.gguf"]);
    let dir = tempfile::tempdir().unwrap();
    convert(dir.path(), &[]).ok();
    assert_eq!(file_names(dir.path()), ["mmproj-qvl-random-Q8_0.gguf", "qvl-random-Q4_K_M.gguf"]);
}

#[test]
fn existing_files_are_kept_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let (text, mmproj) = (dir.path().join("qvl-random-F16.gguf"), dir.path().join("mmproj-qvl-random-F16.gguf"));
    let types = ["-t", "f16", "--vision-type", "f16"];
    fs::write(&mmproj, "mine").unwrap();
    convert(dir.path(), &types).fails(2, "--force");
    assert_eq!(file_names(dir.path()), ["mmproj-qvl-random-F16.gguf"]);
    assert_eq!(fs::read(&mmproj).unwrap(), b"mine");
    convert(dir.path(), &[&types[..], &["--force"]].concat()).ok();
    assert_eq!(file_names(dir.path()).len(), 2);
    // Twice the same, byte for byte.
    let expect = random_as("f16", "f16");
    assert!(fs::read(&text).unwrap() == fs::read(expect.text).unwrap());
    assert!(fs::read(&mmproj).unwrap() == fs::read(expect.mmproj).unwrap());
}

/// A checkpoint like `models/qvl-random` whose file `name` is `content`.
fn damaged(name: &str, content: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(repository("models/qvl-random")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(dir.path().join(name), content).unwrap();
    dir
}

#[test]
fn a_failure_leaves_nothing() {
    let original = |name: &str| fs::read(repository("models/qvl-random").join(name)).unwrap();
    let weights = original("model.safetensors");
    let mut not_a_number = weights.clone();
    // The last weight: bf16 infinity. Everything before it converts.
    let end = not_a_number.len();
    not_a_number[end - 2..].copy_from_slice(&[0x80, 0x7f]);
    let check = |name: &str, content: &[u8], part: &str| {
        let checkpoint = damaged(name, content);
        let out = tempfile::tempdir().unwrap();
        let ran = run(qvl_convert().arg(checkpoint.path()).args(["-q", "-o"]).arg(out.path()));
        ran.fails(3, part);
        assert_eq!(file_names(out.path()), [""; 0], "{name}");
    };
    check("model.safetensors", &weights[..weights.len() / 2], "model.safetensors");
    check("model.safetensors", &not_a_number, "inf");
    check("model.safetensors", b"", "model.safetensors");
    check("config.json", b"{}", "config.json");
    check("config.json", &original("config.json")[..100], "config.json");
    check("qwen.tiktoken", b"not a vocabulary", "qwen.tiktoken");
    let vocabulary = original("qwen.tiktoken");
    check("qwen.tiktoken", &vocabulary[..vocabulary.len() / 2], "qwen.tiktoken");

    let out = tempfile::tempdir().unwrap();
    run(qvl_convert().arg(out.path().join("missing")).arg("-o").arg(out.path())).fails(3, "missing");
    assert_eq!(file_names(out.path()), [""; 0]);
}

#[test]
fn types_of_tensors_can_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["-t", "q4_0", "--tensor-type", "ffn_down=q8_0", "--tensor-type", r"^v\.blk\.1\..*weight=f16", "--json"];
    let done = convert(dir.path(), &args).json();
    let type_of = |part: &str, name: &str| {
        let tensors = rows(&inspected(Path::new(done[part].as_str().unwrap()))["tensors"]);
        tensors.into_iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("{name}")).2
    };
    assert_eq!(type_of("model", "blk.0.ffn_down.weight"), "q8_0");
    assert_eq!(type_of("model", "blk.0.ffn_up.weight"), "q4_0");
    assert_eq!(type_of("mmproj", "v.blk.1.attn_qkv.weight"), "f16");
    assert_eq!(type_of("mmproj", "v.blk.0.attn_qkv.weight"), "q8_0");
    // What must stay f32 stays f32, and a pattern that matches nothing else is a mistake.
    let args = ["--tensor-type", "ffn_norm=q8_0", "--force"];
    convert(dir.path(), &args).fails(2, "ffn_norm");
    convert(dir.path(), &["--tensor-type", "ffn_down=q9_9"]).fails(2, "q9_9");
    convert(dir.path(), &["-t", "q3_k"]).fails(2, "q3_k");
}

/// What stock llama.cpp and our runtime look for.
#[test]
fn the_files_say_what_they_are() {
    let model = random_as("q4_k_m", "q8_0");
    let (text, vision) = (inspected(&model.text), inspected(&model.mmproj));
    let check = |file: &Value, expect: &[(&str, Value)]| {
        expect.iter().for_each(|(key, value)| assert_eq!(&file["metadata"][*key], value, "{key}"));
    };
    check(
        &text,
        &[
            ("general.architecture", "qwen".into()),
            ("general.type", "model".into()),
            ("general.file_type", 15.into()),
            ("general.quantization_version", 2.into()),
            ("qwen.context_length", 8192.into()),
            ("qwen.embedding_length", 256.into()),
            ("qwen.block_count", 2.into()),
            // The checkpoint's intermediate_size, which counts w1 and w2; llama.cpp halves it.
            ("qwen.feed_forward_length", 1024.into()),
            ("qwen.attention.head_count", 4.into()),
            ("qwen.rope.freq_base", 10000.0.into()),
            ("tokenizer.ggml.model", "gpt2".into()),
            ("tokenizer.ggml.eos_token_id", 1100.into()),
            ("tokenizer.ggml.eot_token_id", 1102.into()),
            ("tokenizer.ggml.add_bos_token", false.into()),
            ("qvl.recipe", "q4_k_m".into()),
            ("qvl.seq_length", 128.into()),
            ("qvl.use_dynamic_ntk", true.into()),
            ("qvl.use_logn_attn", true.into()),
            ("qvl.n_queries", 25.into()),
            ("qvl.chat_format", "chatml".into()),
            ("qvl.max_window_size", 6144.into()),
            ("qvl.max_new_tokens", 512.into()),
            ("general.sampling.top_k", 0.into()),
        ],
    );
    let metadata = &text["metadata"];
    for key in ["general.name", "general.license", "tokenizer.ggml.pre", "tokenizer.chat_template"] {
        assert!(metadata[key].as_str().is_some_and(|s| !s.is_empty()), "{key}");
    }
    assert_eq!(metadata["tokenizer.ggml.tokens"]["length"], 1408);
    assert_eq!(metadata["tokenizer.ggml.token_type"]["length"], 1408);
    assert_eq!(metadata["general.sampling.top_p"].as_f64().map(|p| p as f32), Some(0.3));
    check(
        &vision,
        &[
            ("general.architecture", "clip".into()),
            ("clip.has_vision_encoder", true.into()),
            ("clip.projector_type", "qwenvl_resampler".into()),
            ("clip.vision.image_size", 126.into()),
            ("clip.vision.patch_size", 14.into()),
            ("clip.vision.embedding_length", 96.into()),
            ("clip.vision.block_count", 3.into()),
            ("clip.vision.attention.head_count", 4.into()),
            ("clip.vision.projection_dim", 256.into()),
            ("qvl.n_queries", 25.into()),
            ("qvl.vision_id", metadata["qvl.vision_id"].clone()),
        ],
    );
    // The identity is the checkpoint's, not the type's.
    assert_eq!(inspected(&random().mmproj)["metadata"]["qvl.vision_id"], metadata["qvl.vision_id"]);
}
