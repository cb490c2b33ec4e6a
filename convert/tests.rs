//! Whole conversions of a small generated checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ::safetensors::{Dtype, tensor::TensorView};
use base64::Engine;
use clap::{Parser, ValueEnum};
use half::{bf16, f16};
use qvl::error::{ErrorKind, Result};
use qvl::ggml;
use qvl::gguf::Gguf;
use qvl::names::{general, text, vision};
use qvl::quant::GgmlType;

use crate::args::Args;
use crate::convert::convert;
use crate::encode::encode;
use crate::mapping::{self, Source};
use crate::plan::Plan;
use crate::report::Done;
use crate::types::FileType;
use crate::{config, recipe};

/// Rows of 256 values fit every type, those of 64 and 96 do not. 256 ranks and 217 special ids; grids 16 → 4 and 2 → 4.
const CONFIG: &str = r#"{"architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 256,
    "num_attention_heads": 4, "kv_channels": 64, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 480,
    "visual": {"heads": 2, "image_size": 8, "image_start_id": 470, "layers": 2, "mlp_ratio": 1.5, "output_dim": 256,
    "patch_size": 2, "width": 64, "n_queries": 4}}"#;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A checkpoint of two shards; every weight follows from its name and index, `change` may alter it.
    fn new(change: impl Fn(&str, &mut Vec<f32>)) -> Self {
        Self::of(CONFIG, change)
    }

    /// The same with another configuration.
    fn of(config: &str, change: impl Fn(&str, &mut Vec<f32>)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let base64 = base64::engine::general_purpose::STANDARD;
        let ranks: Vec<String> = (0..=255u8).map(|b| format!("{} {b}\n", base64.encode([b]))).collect();
        std::fs::write(dir.path().join("qwen.tiktoken"), ranks.concat()).unwrap();
        let mut index = serde_json::Map::new();
        for (nth, shard) in ["model-1-of-2.safetensors", "model-2-of-2.safetensors"].iter().enumerate() {
            let all: Vec<(String, Source)> = sources(dir.path()).into_iter().skip(nth).step_by(2).collect();
            write_shard(&dir.path().join(shard), &all, &change);
            index.extend(all.into_iter().map(|(name, _)| (name, serde_json::Value::from(*shard))));
        }
        let index = serde_json::json!({ "weight_map": index }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        Fixture { dir }
    }

    fn plain() -> Self {
        Self::new(|_, _| {})
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    /// Converts with further arguments.
    fn convert(&self, arguments: &[&str]) -> Result<(Done, Plan)> {
        let (dir, out) = (self.dir.path().to_str().unwrap(), self.out());
        let mut all = vec!["qvl-convert", dir, "-o", out.to_str().unwrap(), "-q", "-j", "2", "--name", "t"];
        all.extend(arguments);
        convert(&Args::try_parse_from(all).unwrap(), &AtomicBool::new(false))
    }

    /// Proves that a conversion fails with this kind and words, and leaves nothing behind.
    fn check_fails(&self, kind: ErrorKind, words: &[&str]) {
        let error = self.convert(&[]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        words.iter().for_each(|w| assert!(error.to_string().contains(w), "{error} lacks {w:?}"));
        let left = std::fs::read_dir(self.out()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "files left in {}", self.out().display());
    }
}

fn sources(dir: &Path) -> BTreeMap<String, Source> {
    let config = config::read(dir).unwrap();
    let all = [mapping::text(&config.text, None), mapping::vision(&config)].concat();
    all.into_iter().flat_map(|m| m.sources).map(|s| (s.name.clone(), s)).collect()
}

/// Pseudo-random values in −1..1 that every stored type holds exactly.
fn values(source: &Source) -> Vec<f32> {
    let seed = source.name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let n: u64 = source.shape.iter().product();
    let value = |i: u64| seed.wrapping_add(i as u32).wrapping_mul(2_654_435_761) >> 25;
    (0..n).map(|i| value(i) as f32 / 64.0 - 1.0).collect()
}

/// Types alternate.
fn write_shard(path: &Path, all: &[(String, Source)], change: &impl Fn(&str, &mut Vec<f32>)) {
    let stored = all.iter().enumerate().map(|(i, (name, source))| {
        let mut values = values(source);
        change(name, &mut values);
        let (dtype, bytes): (Dtype, Vec<u8>) = match i % 3 {
            0 => (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
            1 => (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            _ => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        (name.clone(), dtype, source.shape.iter().map(|n| *n as usize).collect::<Vec<_>>(), bytes)
    });
    let stored: Vec<_> = stored.collect();
    let views = stored
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    ::safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Bytes of every tensor of a file, by name.
fn tensors(path: &Path) -> BTreeMap<String, (GgmlType, Vec<u64>, Vec<u8>)> {
    let file = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let entry = |t: &qvl::gguf::TensorInfo| (t.name.clone(), (t.ty, t.dims.clone(), t.bytes(&file).to_vec()));
    gguf.tensors().iter().map(entry).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn f32_files_hold_the_checkpoints_values() {
    let fixture = Fixture::plain();
    let (done, plan) = fixture.convert(&["-t", "f32", "--vision-type", "f32"]).unwrap();
    assert_eq!(done.model(), fixture.out().join("t-F32.gguf"));
    let mut all = tensors(done.model());
    all.extend(tensors(done.mmproj()));
    let source = |name: &str| values(&sources(fixture.dir.path())[name]);
    for planned in plan.text.tensors.iter().chain(&plan.vision.tensors) {
        let (ty, dims, bytes) = &all[&planned.name];
        assert_eq!((ty, dims), (&GgmlType::F32, &planned.dims));
        if planned.recipe == recipe::Recipe::Copy {
            assert_eq!(floats(bytes), source(&planned.sources[0].name), "{}", planned.name);
        }
    }
    let found = |name: &str| floats(&all[name].2);
    let in_proj = source("transformer.visual.transformer.resblocks.1.attn.in_proj.weight");
    let qkv = found("v.blk.1.attn_qkv.weight");
    for (row, values) in qkv.chunks_exact(64).enumerate() {
        // Two heads of 32: row = part · 64 + head · 32 + i, and in the checkpoint head · 96 + part · 32 + i.
        let from = (row / 32 % 2) * 96 + row / 64 * 32 + row % 32;
        assert_eq!(values, &in_proj[from * 64..(from + 1) * 64], "row {row}");
    }
    let in_proj = source("transformer.visual.attn_pool.attn.in_proj_weight");
    assert_eq!(found("resampler.attn.v.weight"), in_proj[2 * 256 * 256..]);
    assert_eq!(found("resampler.attn.v.bias"), source("transformer.visual.attn_pool.attn.in_proj_bias")[512..]);
    let (proj, transposed) = (source("transformer.visual.proj"), found("resampler.proj.weight"));
    assert!((0..256 * 256).all(|i| transposed[i] == proj[i % 256 * 256 + i / 256]));
    check_key_positions(&found("resampler.attn.k.position"), &in_proj, &source);
}

/// Against the plain sum in f64.
fn check_key_positions(found: &[f32], in_proj: &[f32], source: &impl Fn(&str) -> Vec<f32>) {
    let bias = source("transformer.visual.attn_pool.attn.in_proj_bias");
    let positions = recipe::interpolate(&source("transformer.visual.attn_pool.pos_embed"), 256, 2, 4);
    for (i, value) in found.iter().enumerate() {
        let (p, row) = (&positions[i / 256 * 256..][..256], &in_proj[(256 + i % 256) * 256..][..256]);
        let dot: f64 = p.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert_eq!(*value, (dot + f64::from(bias[256 + i % 256])) as f32, "{i}");
    }
}

#[test]
fn every_type_has_ggmls_blocks() {
    let fixture = Fixture::plain();
    let (done, _) = fixture.convert(&["-t", "f32", "--vision-type", "f32"]).unwrap();
    let exact = [tensors(done.model()), tensors(done.mmproj())];
    for asked in FileType::value_variants() {
        let (done, plan) = fixture.convert(&["-t", asked.name(), "--vision-type", asked.name(), "--force"]).unwrap();
        let files = [(done.model(), &plan.text), (done.mmproj(), &plan.vision)];
        for ((path, plan), exact) in files.into_iter().zip(&exact) {
            for (name, (ty, dims, bytes)) in tensors(path) {
                let values = floats(&exact[&name].2);
                let n = dims[0] as usize;
                let mut expect = vec![0u8; bytes.len()];
                if ty.is_quantised() {
                    ggml::quantize_rows(ty, &values, n, None, &mut expect);
                } else {
                    expect = encode(ty, &values, n, None, &name).unwrap();
                }
                assert!(bytes == expect, "{asked}: {name} as {ty}");
            }
            let file = std::fs::read(path).unwrap();
            let gguf = Gguf::parse(&file).unwrap();
            assert_eq!(gguf.str(general::RECIPE).unwrap(), asked.name());
            assert_eq!(gguf.str(general::FALLBACKS).unwrap().lines().count(), plan.fallbacks().count());
            assert_eq!(file.len() as u64 % 32, 0);
        }
    }
}

/// Rows of 224 values as 256 of a K-quant: the zeros are in the file, and the tower computes the same as with unpadded rows.
#[test]
fn padded_rows_change_nothing() {
    let wide = CONFIG.replace(r#""width": 64"#, r#""width": 224"#);
    let fixture = Fixture::of(&wide, |name, values| {
        // Norms near 1, so that nothing vanishes on the way.
        let is_norm = name.contains("ln_") && name.ends_with("weight");
        values.iter_mut().for_each(|v| *v = if is_norm { 1.0 + *v / 8.0 } else { *v / 8.0 });
    });
    let convert =
        |ty: &str| fixture.convert(&["-t", "q8_0", "--vision-type", ty, "--force"]).unwrap().0.mmproj().to_owned();
    let (exact, padded) = (convert("f32"), convert("q6_k"));
    assert!(padded.to_string_lossy().ends_with("-Q6_K.gguf"), "{}", padded.display());
    let (floats_of, blocks_of) = (tensors(&exact), tensors(&padded));
    let (ty, dims, bytes) = &blocks_of["v.blk.1.attn_qkv.weight"];
    assert_eq!((*ty, dims.as_slice()), (GgmlType::Q6_K, &[256, 3 * 224][..]));
    let mut rows = vec![0f32; 256 * 3 * 224];
    let row_bytes = ty.row_bytes(256).unwrap() as usize;
    for (row, bytes) in rows.chunks_exact_mut(256).zip(bytes.chunks_exact(row_bytes)) {
        ggml::dequantize_row(*ty, bytes, row);
    }
    let originals = floats(&floats_of["v.blk.1.attn_qkv.weight"].2);
    for (row, original) in rows.chunks_exact(256).zip(originals.chunks_exact(224)) {
        assert!(row[224..].iter().all(|v| *v == 0.0), "zeros behind the row");
        // 6 bits of a largest value of 1/8: a step is 1/8/32.
        assert!(row.iter().zip(original).all(|(a, b)| (a - b).abs() <= 1.0 / 256.0), "the row before them");
    }
    let (exact, padded) = (embedding(&exact), embedding(&padded));
    let distance: f32 = exact.iter().zip(&padded).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f32 = exact.iter().map(|a| a.powi(2)).sum();
    // Measured 0.017: six bits, and inputs in eight.
    assert!((distance / norm).sqrt() < 0.06, "relative L2 {}", (distance / norm).sqrt());
}

/// The embedding of a picture of stripes.
fn embedding(mmproj: &Path) -> Vec<f32> {
    let file = qvl::mmap::MappedFile::open(mmproj).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let vision = qvl::vision::VisionModel::new(&file, &gguf).unwrap();
    let h = vision.hparams();
    let size = h.image_size as u32;
    let pixels: Vec<u8> = (0..size * size * 3).map(|i| (i * 37 % 251) as u8).collect();
    let picture = qvl::image::Picture::new(size, size, pixels).unwrap();
    let pixels = qvl::image::normalise(&picture, h.mean, h.std);
    let stop = AtomicBool::new(false);
    let backend = ggml::Backend::cpu(2, &stop).unwrap();
    vision.on(&backend, |tower| tower.encode(&pixels, qvl::vision::Attention::Exact)).unwrap().data
}

#[test]
fn metadata_says_what_the_checkpoint_says() {
    let fixture = Fixture::plain();
    let generation = r#"{"chat_format": "chatml", "do_sample": true, "top_k": 0, "top_p": 0.5, "eos_token_id": 256}"#;
    std::fs::write(fixture.path("generation_config.json"), generation).unwrap();
    let (done, _) = fixture.convert(&[]).unwrap();
    let (model, mmproj) = (std::fs::read(done.model()).unwrap(), std::fs::read(done.mmproj()).unwrap());
    let (model, mmproj) = (Gguf::parse(&model).unwrap(), Gguf::parse(&mmproj).unwrap());
    assert_eq!(model.str(general::ARCHITECTURE).unwrap(), "qwen");
    assert_eq!(model.count(text::FEED_FORWARD_LENGTH, 1..=9999).unwrap(), 512);
    assert_eq!(model.strings("tokenizer.ggml.tokens").unwrap().len(), 480);
    assert!(model.str("tokenizer.chat_template").unwrap().contains("<|im_start|>"));
    assert_eq!(model.str(text::PICTURE_FORMAT).unwrap(), "Picture {k}: ");
    assert_eq!(mmproj.str(vision::PROJECTOR_TYPE).unwrap(), vision::PROJECTOR);
    assert_eq!(mmproj.count(vision::FEED_FORWARD_LENGTH, 1..=9999).unwrap(), 96);
    assert_eq!(model.str(general::VISION_ID).unwrap(), mmproj.str(general::VISION_ID).unwrap());
}

#[test]
fn a_bad_weight_is_named_and_nothing_is_left() {
    for bad in [f32::NAN, f32::INFINITY] {
        // The mmproj's last tensor: the text file is complete by then.
        let fixture = Fixture::new(|name, values| {
            if name == "transformer.visual.proj" {
                values[256 * 255 + 3] = bad;
            }
        });
        fixture.check_fails(ErrorKind::Model, &["transformer.visual.proj", "row 255", ".safetensors"]);
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let fixture = Fixture::plain();
    let (dir, out) = (fixture.dir.path().to_str().unwrap(), fixture.out());
    let args = Args::try_parse_from(["qvl-convert", dir, "-q", "-o", out.to_str().unwrap()]).unwrap();
    let error = convert(&args, &AtomicBool::new(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

#[test]
fn existing_files_are_kept_unless_forced() {
    let fixture = Fixture::plain();
    fixture.convert(&[]).unwrap();
    let error = fixture.convert(&[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("--force"), "{error}");
    fixture.convert(&["--force"]).unwrap();
    assert_eq!(std::fs::read_dir(fixture.out()).unwrap().count(), 2);
}

#[test]
fn broken_checkpoints_say_what_is_wrong() {
    let check = |break_it: &dyn Fn(&Fixture), words: &[&str]| {
        let fixture = Fixture::plain();
        break_it(&fixture);
        fixture.check_fails(ErrorKind::Model, words);
    };
    let shard = "model-2-of-2.safetensors";
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    check(&|f| std::fs::remove_file(f.path("config.json")).unwrap(), &["config.json"]);
    check(&|f| std::fs::remove_file(f.path("qwen.tiktoken")).unwrap(), &["qwen.tiktoken"]);
    check(&|f| std::fs::write(f.path("qwen.tiktoken"), pointer).unwrap(), &["qwen.tiktoken", "git-lfs"]);
    check(&|f| std::fs::remove_file(f.path(shard)).unwrap(), &[shard, "missing"]);
    check(&|f| std::fs::write(f.path(shard), pointer).unwrap(), &[shard, "git-lfs"]);
    check(&|f| std::fs::write(f.path(shard), "").unwrap(), &[shard, "empty"]);
    check(&|f| std::fs::write(f.path(shard), vec![0xff; 4096]).unwrap(), &[shard]);
    let index = "model.safetensors.index.json";
    check(&|f| std::fs::remove_file(f.path(index)).unwrap(), &["model.safetensors.index.json is missing"]);
    let torch = |f: &Fixture| {
        std::fs::remove_file(f.path(index)).unwrap();
        std::fs::write(f.path("pytorch_model.bin"), "").unwrap();
    };
    check(&torch, &["pytorch_model.bin", "empty"]);
    let cut = |f: &Fixture| {
        let file = std::fs::read(f.path(shard)).unwrap();
        std::fs::write(f.path(shard), &file[..file.len() - 10]).unwrap();
    };
    check(&cut, &[shard, "truncated"]);
    let twice = |f: &Fixture| {
        std::fs::copy(f.path(shard), f.path("model-1-of-2.safetensors")).unwrap();
    };
    check(&twice, &["also in another shard"]);
    let other_shape = |f: &Fixture| {
        std::fs::write(
            f.path("config.json"),
            CONFIG.replace("\"intermediate_size\": 512", "\"intermediate_size\": 768"),
        )
        .unwrap()
    };
    check(&other_shape, &["has shape [256, 256] (expected [256, 384])"]);
    let more_layers = |f: &Fixture| {
        std::fs::write(f.path("config.json"), CONFIG.replace("hidden_layers\": 2", "hidden_layers\": 3")).unwrap()
    };
    check(&more_layers, &["missing: transformer.h.2."]);
    let fewer_layers = |f: &Fixture| {
        std::fs::write(f.path("config.json"), CONFIG.replace("hidden_layers\": 2", "hidden_layers\": 1")).unwrap()
    };
    check(&fewer_layers, &["8 tensors", "not part of Qwen-VL: transformer.h.1."]);
    let other_start = |f: &Fixture| {
        std::fs::write(f.path("config.json"), CONFIG.replace("470", "471")).unwrap();
    };
    check(&other_start, &["<img> has id 470", "471"]);
}
