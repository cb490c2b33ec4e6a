//! Sound pairs with one thing changed: what llama.cpp or ggml would abort on must be refused before they see it.

use crate::gguf::{self, Encoded, File, bool, f32, f32s, i32, i32s, str, strs, u32, u64};
use crate::support::{Pair, ask, f32 as f32_pair, q8_0, qvl, run, temp_dir};

/// Which file of the pair.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Text,
    Vision,
}

use Of::{Text, Vision};

/// The pair with one file changed: `ask` must fail with exit code 3 and `expect`; every command must end well.
fn check(pair: &Pair, of: Of, what: &str, change: impl FnOnce(&mut File), expect: &str) {
    let path = if of == Text { &pair.text } else { &pair.mmproj };
    let mut file = File::read(path);
    change(&mut file);
    let dir = temp_dir();
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, file.encode()).unwrap();
    let (text, mmproj) = if of == Text { (&bad, &pair.mmproj) } else { (&pair.text, &bad) };
    let outcome = run(&mut ask(text, mmproj));
    eprintln!("{what}: {}", outcome.stderr.trim());
    outcome.fails(3, expect);
    run(qvl().arg("inspect").arg(&bad)).ends_well();
    run(qvl().args(["inspect", "--json", "--verify"]).arg(&bad)).ends_well();
    run(qvl().args(["tokenize", "-m"]).arg(text)).ends_well();
}

fn check_keys(of: Of, cases: &[(&str, Encoded, &str)]) {
    for (key, value, expect) in cases {
        check(q8_0(), of, &format!("{key} = {value:?}"), |f| f.set(key, value.clone()), expect);
    }
}

fn check_missing(of: Of, keys: &[&str]) {
    for key in keys {
        check(q8_0(), of, &format!("no {key}"), |f| f.remove(key), &format!("metadata key {key} is missing"));
    }
}

#[test]
fn sound_pairs_answer() {
    for pair in [q8_0(), f32_pair()] {
        run(&mut ask(&pair.text, &pair.mmproj)).succeeds();
        for file in [&pair.text, &pair.mmproj] {
            let raw = File::read(file);
            assert_eq!(raw.encode().len() as u64, std::fs::metadata(file).unwrap().len(), "the test's reader");
            run(qvl().args(["inspect", "--verify"]).arg(file)).succeeds();
        }
    }
}

#[test]
fn text_keys_missing() {
    check_missing(
        Text,
        &[
            "general.architecture",
            "qvl.vision_id",
            "qwen.context_length",
            "qwen.embedding_length",
            "qwen.block_count",
            "qwen.feed_forward_length",
            "qwen.attention.head_count",
            "qwen.rope.dimension_count",
            "qvl.seq_length",
            "qvl.n_queries",
            "qwen.attention.layer_norm_rms_epsilon",
            "qwen.rope.freq_base",
            "qvl.chat_format",
            "tokenizer.ggml.model",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.merges",
        ],
    );
}

#[test]
fn text_dimensions() {
    check_keys(
        Text,
        &[
            ("qwen.context_length", u32(0), "qwen.context_length is"),
            ("qwen.context_length", u32(1 << 31), "qwen.context_length is"),
            ("qwen.context_length", u64(8192), "(expected U32)"),
            ("qwen.context_length", f32(8192.0), "expected an integer"),
            ("qwen.context_length", i32(-1), "expected an integer"),
            ("qwen.embedding_length", u32(0), "qwen.embedding_length is"),
            ("qwen.embedding_length", u32(128), "rope.dimension_count is 64 (expected 32)"),
            ("qwen.embedding_length", u32(u32::MAX), "qwen.embedding_length is"),
            ("qwen.block_count", u32(0), "qwen.block_count is"),
            ("qwen.block_count", u32(1), "8 tensors are not part"),
            ("qwen.block_count", u32(3), "tensor \"blk.2.attn_norm.weight\" is missing"),
            ("qwen.block_count", u32(u32::MAX), "qwen.block_count is"),
            ("qwen.feed_forward_length", u32(0), "qwen.feed_forward_length is"),
            ("qwen.feed_forward_length", u32(1025), "feed_forward_length is odd"),
            ("qwen.feed_forward_length", u32(2048), "has extents [256, 512] (expected [256, 1024])"),
            ("qwen.attention.head_count", u32(0), "qwen.attention.head_count is"),
            ("qwen.attention.head_count", u32(3), "do not make 3 heads"),
            ("qwen.attention.head_count", u32(8), "rope.dimension_count is 64 (expected 32)"),
            ("qwen.attention.head_count", u32(256), "heads of an even width"),
            ("qwen.attention.head_count", u32(512), "do not make 512 heads"),
            ("qwen.attention.head_count", i32s(&[4, 4]), "expected an integer"),
            ("qwen.rope.dimension_count", u32(63), "rope.dimension_count is 63"),
            ("qwen.rope.dimension_count", u32(0), "rope.dimension_count is"),
            ("qwen.rope.freq_base", f32(0.0), "freq_base is"),
            ("qwen.rope.freq_base", f32(-1.0), "freq_base is"),
            ("qwen.rope.freq_base", f32(f32::NAN), "finite"),
            ("qwen.rope.freq_base", f32(f32::INFINITY), "finite"),
            ("qwen.rope.freq_base", u32(10000), "finite float"),
            ("qwen.attention.layer_norm_rms_epsilon", f32(0.0), "small positive"),
            ("qwen.attention.layer_norm_rms_epsilon", f32(-1e-6), "small positive"),
            ("qwen.attention.layer_norm_rms_epsilon", f32(f32::NAN), "finite"),
            ("qwen.attention.layer_norm_rms_epsilon", str("1e-6"), "finite float"),
            ("qwen.attention.layer_norm_rms_epsilon", (12, 1e-6f64.to_le_bytes().to_vec()), "(expected F32)"),
            ("qvl.n_queries", u32(0), "qvl.n_queries is"),
            ("qvl.n_queries", u32(24), "are of different models"),
            ("qvl.n_queries", u32(u32::MAX), "qvl.n_queries is"),
            ("qvl.seq_length", u32(0), "qvl.seq_length is"),
            ("qvl.seq_length", u32(1), "qvl.seq_length is"),
            ("qvl.seq_length", u32(u32::MAX), "qvl.seq_length is"),
            ("qvl.use_dynamic_ntk", u32(1), "true or false"),
            ("qvl.chat_format", str("alpaca"), "qvl.chat_format is"),
            ("qvl.picture_format", str("Figure {k}"), "qvl.picture_format is"),
            ("qvl.max_window_size", str("x"), "non-negative integer"),
            ("qvl.vision_id", str("0000000000000000"), "of another model"),
            ("qvl.vision_id", str(""), "qvl.vision_id is empty"),
        ],
    );
}

#[test]
fn text_of_another_kind() {
    check_keys(
        Text,
        &[
            ("general.architecture", str("llama"), "general.architecture is \"llama\""),
            ("general.architecture", str("qwen\0"), "general.architecture is"),
            ("general.architecture", u32(1), "expected a string"),
            ("general.name", u32(1), "expected a string"),
            ("general.alignment", u32(8), "aligned to 8 bytes"),
            ("general.sampling.temp", f32(f32::NAN), "finite float"),
            ("general.sampling.temp", str("hot"), "finite float"),
            ("general.sampling.top_k", i32(-1), "non-negative"),
            ("general.sampling.top_p", f32(f32::INFINITY), "finite float"),
            ("general.sampling.penalty_repeat", f32(0.0), "penalty_repeat is"),
            ("general.sampling.penalty_repeat", f32(1e-30), "penalty_repeat is"),
            ("split.count", (2, vec![2, 0]), "split.no is missing"),
            ("adapter.type", str("lora"), "adapter.type is not part"),
            ("training.type", str("x"), "training.type is not part"),
            ("qwen.expert_count", u32(4), "qwen.expert_count is not part"),
            ("qwen.expert_used_count", u32(4), "qwen.expert_used_count is not part"),
            ("qwen.attention.sliding_window", u32(4), "qwen.attention.sliding_window is not part"),
            ("qwen.attention.head_count_kv", u32(0), "qwen.attention.head_count_kv is not part"),
            ("qwen.attention.key_length", u32(1), "qwen.attention.key_length is not part"),
            ("qwen.rope.scaling.type", str("yarn"), "qwen.rope.scaling.type is not part"),
            ("qwen.rope.scaling.type", str("nonsense"), "qwen.rope.scaling.type is not part"),
            ("qwen.nextn_predict_layers", u32(9), "qwen.nextn_predict_layers is not part"),
            ("qwen.tensor_data_layout", str("x"), "qwen.tensor_data_layout is not part"),
            ("general.tensor_extra.name", strs(&[]), "general.tensor_extra.name is not part"),
            ("xielu.eps", f32(0.0), "xielu.eps is not part"),
        ],
    );
    check(q8_0(), Vision, "a text file as mmproj", |f| *f = File::read(&q8_0().text), "not an mmproj");
    check(q8_0(), Text, "an mmproj as text file", |f| *f = File::read(&q8_0().mmproj), "this is an mmproj");
}

#[test]
fn vocabulary() {
    let tokens = |change: fn(&mut Vec<Vec<u8>>), expect: &str| {
        let change = |f: &mut File| {
            let mut list = f.strings("tokenizer.ggml.tokens");
            change(&mut list);
            f.set("tokenizer.ggml.tokens", strs(&list));
        };
        check(q8_0(), Text, "tokens", change, expect);
    };
    tokens(|t| t.truncate(1400), "1408 token types for 1400 tokens");
    tokens(|t| t.push(b"x".to_vec()), "1408 token types for 1409 tokens");
    tokens(|t| t.clear(), "the vocabulary has 0 tokens");
    tokens(|t| t.swap(5, 1100), "expected the special token <|endoftext|>");
    tokens(|t| t[7] = t[8].clone(), "tokens 7 and 8 are the same");
    tokens(|t| t[1407] = t[1406].clone(), "tokens 1406 and 1407 are the same");
    tokens(|t| t[1407] = t[3].clone(), "tokens 3 and 1407 are the same");
    tokens(|t| t[1407] = b"[PAD1]\0x".to_vec(), "zero byte");
    tokens(|t| t[1407] = Vec::new(), "token 1407 is empty");
    tokens(|t| t[9] = Vec::new(), "token 9 is empty");
    tokens(|t| t[9] = "\u{0}".into(), "zero byte");
    tokens(|t| t[9] = "图".into(), "not spelled in byte characters");
    tokens(|t| t[1314] = b"<image>".to_vec(), "expected the special token <img>");
    let types = |change: fn(&mut Vec<i32>), expect: &str| {
        let change = |f: &mut File| {
            let mut list = f.ints("tokenizer.ggml.token_type");
            change(&mut list);
            f.set("tokenizer.ggml.token_type", i32s(&list));
        };
        check(q8_0(), Text, "token types", change, expect);
    };
    types(|t| t.truncate(9), "9 token types");
    types(|t| t[5] = 3, "token 5");
    types(|t| t[1100] = 1, "token 1101");
    types(|t| t[1314] = 6, "of type 6");
    types(|t| t[1407] = i32::MIN, "expected padding");
    types(|t| t.fill(1), "expected the special token");
    check_keys(
        Text,
        &[
            ("tokenizer.ggml.tokens", u32(1), "expected an array of strings"),
            ("tokenizer.ggml.tokens", i32s(&[1]), "expected an array of strings"),
            ("tokenizer.ggml.token_type", f32s(&[1.0]), "expected an array of i32"),
            ("tokenizer.ggml.merges", strs(&[b"ab".to_vec()]), "expected two tokens"),
            ("tokenizer.ggml.merges", strs(&[b"a b c".to_vec()]), "expected two tokens"),
            ("tokenizer.ggml.merges", strs(&[b"".to_vec()]), "expected two tokens"),
            ("tokenizer.ggml.merges", strs(&[b" a b".to_vec()]), "expected two tokens"),
            ("tokenizer.ggml.merges", i32s(&[1]), "expected an array of strings"),
            ("tokenizer.ggml.model", str("llama"), "tokenizer.ggml.model is"),
            ("tokenizer.ggml.pre", str("default"), "tokenizer.ggml.pre is"),
            ("tokenizer.ggml.eos_token_id", u32(1408), "beyond the vocabulary"),
            ("tokenizer.ggml.eos_token_id", u32(u32::MAX), "beyond the vocabulary"),
            ("tokenizer.ggml.eot_token_id", i32(5), "(expected U32)"),
            ("tokenizer.ggml.padding_token_id", str("x"), "(expected U32)"),
            ("tokenizer.ggml.add_bos_token", u32(0), "tokenizer.ggml.add_bos_token is"),
            ("tokenizer.ggml.scores", f32s(&[1.0]), "tokenizer.ggml.scores is not part"),
            ("tokenizer.ggml.precompiled_charsmap", i32s(&[1]), "is not part"),
            ("tokenizer.chat_template", u32(9), "tokenizer.chat_template is"),
        ],
    );
}

#[test]
fn text_tensors() {
    let q = q8_0();
    let renamed = |f: &mut File| f.tensor("output.weight").name = b"output.weights".to_vec();
    check(q, Text, "renamed", renamed, "tensor \"output.weight\" is missing");
    let swapped = |f: &mut File| f.tensor("blk.0.ffn_up.weight").dims = vec![512, 256];
    check(q, Text, "transposed", swapped, "has extents [512, 256] (expected [256, 512])");
    let flat = |f: &mut File| f.tensor("token_embd.weight").dims = vec![256 * 1408];
    check(q, Text, "flattened", flat, "(expected [256, 1408])");
    let deep = |f: &mut File| f.tensor("token_embd.weight").dims = vec![256, 1408, 1];
    check(q, Text, "deepened", deep, "(expected [256, 1408])");
    let f16 = |f: &mut File| f.tensor("output_norm.weight").ty = 1;
    check(q, Text, "f16 norm", f16, "has type f16 (expected f32)");
    for ty in [24, 25, 26, 28] {
        let change = |f: &mut File| f.tensor("blk.0.attn_output.weight").ty = ty;
        check(f32_pair(), Text, "a type without products", change, "blk.0.attn_output.weight");
    }
    let reversed = |f: &mut File| f.tensors.reverse();
    check(q, Text, "out of order", reversed, "llama.cpp cannot load");
    check(q, Text, "no tensors", |f| f.tensors.clear(), "is missing");
    check(q, Text, "no data", |f| f.data.clear(), "is it truncated?");
}

#[test]
fn vision_keys() {
    check_missing(
        Vision,
        &[
            "general.architecture",
            "clip.projector_type",
            "clip.vision.image_size",
            "clip.vision.patch_size",
            "clip.vision.embedding_length",
            "clip.vision.feed_forward_length",
            "clip.vision.block_count",
            "clip.vision.attention.head_count",
            "clip.vision.projection_dim",
            "qvl.n_queries",
            "qvl.resampler.head_count",
            "clip.vision.attention.layer_norm_epsilon",
            "clip.vision.image_mean",
            "clip.vision.image_std",
        ],
    );
    check(q8_0(), Vision, "no identity", |f| f.remove("qvl.vision_id"), "of another model");
    check_keys(
        Vision,
        &[
            ("general.architecture", str("siglip"), "not an mmproj"),
            ("clip.projector_type", str("mlp"), "was made for another model"),
            ("clip.vision.image_size", u32(0), "image_size is"),
            ("clip.vision.image_size", u32(127), "127 is not a multiple of 14"),
            ("clip.vision.image_size", u32(140), "(expected [96, 100])"),
            ("clip.vision.image_size", u32(u32::MAX), "image_size is"),
            ("clip.vision.patch_size", u32(0), "patch_size is"),
            ("clip.vision.patch_size", u32(1), "has extents"),
            ("clip.vision.patch_size", u32(21), "has extents"),
            ("clip.vision.embedding_length", u32(95), "95 is not a multiple"),
            ("clip.vision.embedding_length", u32(192), "has extents"),
            ("clip.vision.feed_forward_length", u32(471), "has extents"),
            ("clip.vision.block_count", u32(0), "block_count is"),
            ("clip.vision.block_count", u32(2), "not part of a Qwen-VL vision tower"),
            ("clip.vision.block_count", u32(4), "is missing"),
            ("clip.vision.block_count", u32(u32::MAX), "block_count is"),
            ("clip.vision.attention.head_count", u32(0), "head_count is"),
            ("clip.vision.attention.head_count", u32(7), "96 is not a multiple of 7"),
            ("clip.vision.projection_dim", u32(128), "has extents"),
            ("clip.vision.attention.layer_norm_epsilon", f32(0.0), "must be positive"),
            ("clip.vision.attention.layer_norm_epsilon", f32(f32::NAN), "finite"),
            ("clip.vision.image_mean", f32s(&[0.5; 2]), "3 finite f32"),
            ("clip.vision.image_mean", f32s(&[f32::NAN; 3]), "3 finite f32"),
            ("clip.vision.image_std", f32s(&[0.0; 3]), "must be positive"),
            ("clip.vision.image_std", f32s(&[1e-45; 3]), "not finite"),
            ("qvl.n_queries", u32(0), "qvl.n_queries is"),
            ("qvl.n_queries", u32(26), "has extents"),
            ("qvl.n_queries", u32(u32::MAX), "qvl.n_queries is"),
            ("qvl.resampler.head_count", u32(0), "head_count is"),
            ("qvl.resampler.head_count", u32(3), "256 is not a multiple of 3"),
            ("qvl.vision_id", str("0000000000000000"), "of another model"),
            ("general.alignment", u32(8), "aligned to 8 bytes"),
            ("clip.use_gelu", bool(0), "clip.use_gelu is"),
        ],
    );
}

#[test]
fn vision_tensors() {
    let q = q8_0();
    let renamed = |f: &mut File| f.tensor("v.pre_ln.bias").name = b"v.post_ln.bias".to_vec();
    check(q, Vision, "renamed", renamed, "tensor \"v.pre_ln.bias\" is missing");
    let flat = |f: &mut File| f.tensor("v.patch_embd.weight").dims = vec![588, 96];
    check(q, Vision, "flattened", flat, "(expected [14, 14, 3, 96])");
    let f16 = |f: &mut File| f.tensor("resampler.attn.query").ty = 1;
    check(q, Vision, "f16 query", f16, "has type f16 (expected f32)");
    let i32 = |f: &mut File| f.tensor("resampler.proj.weight").ty = 26;
    check(f32_pair(), Vision, "i32 matrix", i32, "has type i32");
    let more = |f: &mut File| {
        let extra = gguf::Tensor { name: b"v.extra".to_vec(), dims: vec![32], ty: 0, offset: f.data.len() as u64 };
        f.tensors.push(extra);
        f.data.extend([0; 128]);
    };
    check(q, Vision, "one more", more, "1 tensors are not part");
    check(q, Text, "one more", more, "1 tensors are not part");
}

/// Heads of one value, of an odd width, and one head for all: whatever divides must be computed or refused, not aborted on.
#[test]
fn unusual_heads_of_the_vision_tower_end_well() {
    for n_head in [1, 2, 3, 6, 32, 48, 96] {
        for fa in ["on", "off"] {
            let mut file = File::read(&q8_0().mmproj);
            file.set("clip.vision.attention.head_count", u32(n_head));
            file.set("qvl.resampler.head_count", u32(256 / n_head.next_power_of_two()));
            let dir = temp_dir();
            let path = dir.path().join("mmproj.gguf");
            std::fs::write(&path, file.encode()).unwrap();
            run(ask(&q8_0().text, &path).args(["-fa", fa])).succeeds();
        }
    }
}

#[test]
fn truncated_anywhere() {
    let dir = temp_dir();
    let bad = dir.path().join("cut.gguf");
    for of in [Text, Vision] {
        let path = if of == Text { &q8_0().text } else { &q8_0().mmproj };
        let (whole, header) = (std::fs::read(path).unwrap(), File::read(path).header().len());
        let cuts = (0..12).map(|i| header * i / 12 + i).chain((0..8).map(|i| header + (whole.len() - header) * i / 8));
        for length in cuts.chain([whole.len() - 1]) {
            std::fs::write(&bad, &whole[..length]).unwrap();
            let (text, mmproj) = if of == Text { (&bad, &q8_0().mmproj) } else { (&q8_0().text, &bad) };
            let outcome = run(&mut ask(text, mmproj));
            outcome.fails(3, "cut.gguf");
            run(qvl().arg("inspect").arg(&bad)).fails(3, "cut.gguf");
        }
    }
}

#[test]
fn no_regular_file() {
    let dir = temp_dir();
    let fifo = dir.path().join("fifo.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let missing = dir.path().join("missing.gguf");
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    let cases =
        [(dir.path(), "directory"), (&fifo, "not a regular file"), (&missing, "No such file"), (&empty, "is empty")];
    for (path, expect) in cases.into_iter().chain([("/dev/null".as_ref(), "not a regular file")]) {
        run(&mut ask(path, &q8_0().mmproj)).fails(3, expect);
        run(&mut ask(&q8_0().text, path)).fails(3, expect);
        run(qvl().arg("inspect").arg(path)).fails(3, expect);
        run(qvl().args(["tokenize", "-m"]).arg(path)).fails(3, expect);
    }
}
