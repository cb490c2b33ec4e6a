//! `qvl-convert` on checkpoints of GPTQ that are not what they should be.

use std::fs;
use std::path::Path;

use half::f16;
use serde_json::json;

use crate::checkpoints::check_dir;
use crate::gptq::{Checkpoint, Matrix};
use crate::support::{checkpoint, temp_dir};

/// Converts a small packed checkpoint that was changed, in memory and then in its directory.
fn check_both(change: impl FnOnce(&mut Checkpoint), then: impl FnOnce(&Path), code: i32, expect: &str) {
    let dir = temp_dir();
    let mut packed = Checkpoint::like(&checkpoint(), 128);
    change(&mut packed);
    for name in ["generation_config.json", "qwen.tiktoken"] {
        fs::copy(checkpoint().join(name), dir.path().join(name)).unwrap();
    }
    packed.save(dir.path(), &checkpoint().join("config.json"));
    then(dir.path());
    check_dir(dir.path(), &[], code, expect);
}

fn check(change: impl FnOnce(&mut Checkpoint), expect: &str) {
    check_both(change, |_| (), 3, expect);
}

/// Changes one matrix: that of the last layer's last module.
fn matrix(change: impl FnOnce(&mut Matrix)) -> impl FnOnce(&mut Checkpoint) {
    |packed| change(packed.matrices.get_mut("transformer.h.1.mlp.c_proj").unwrap())
}

#[test]
fn values() {
    check(matrix(|m| m.bias[3] = f16::ONE), "transformer.h.1.mlp.c_proj.bias holds 1 (expected zeros");
    check(matrix(|m| m.bias[3] = f16::NAN), "transformer.h.1.mlp.c_proj.bias holds NaN");
    check(matrix(|m| m.g_idx[7] = 4), "transformer.h.1.mlp.c_proj.g_idx: column 7 is of group 4 (expected below 4)");
    check(matrix(|m| m.g_idx[7] = -1), "column 7 is of group 4294967295");
    check(matrix(|m| m.scales[5] = f16::INFINITY), "transformer.h.1.mlp.c_proj.scales holds inf");
    let packed_otherwise = |m: &mut Matrix| {
        m.scales[5] = f16::NAN;
        m.zeros[0] = 3;
    };
    check(matrix(packed_otherwise), "transformer.h.1.mlp.c_proj.scales holds NaN");
}

#[test]
fn shapes() {
    check(matrix(|m| m.bias.push(f16::ONE)), "bias holds 1");
    check(matrix(|m| m.g_idx.truncate(8)), "g_idx has shape [8] (expected [512])");
    let config = |key: &'static str, value: serde_json::Value| {
        move |packed: &mut Checkpoint| packed.quantization_config[key] = value
    };
    check(config("group_size", json!(64)), "qzeros has shape [2, 96] (expected [4, 96])");
    check(config("group_size", json!(48)), "group_size is 48 (expected a multiple of 32, or -1)");
    check(config("group_size", json!(-2)), "group_size is -2");
    check(config("bits", json!(8)), "bits is 8 (only 4 is supported)");
    check(config("bits", json!("4")), "bits is \"4\"");
    check(config("quant_method", json!("awq")), "quant_method is \"awq\"");
    check(config("checkpoint_format", json!("marlin")), "checkpoint_format is \"marlin\"");
    check(config("sym", json!(3)), "sym is 3");
    check(|packed| packed.quantization_config = json!(5), "quantization_config is 5 (expected an object)");
    check(|packed| drop(packed.matrices.remove("transformer.h.0.mlp.w1")), "4 tensors of the checkpoint are missing");
    check(|packed| packed.quantization_config = json!(null), "has no quantization_config");
    let narrow = |dir: &Path| {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"intermediate_size\":1024", "\"intermediate_size\":1040")).unwrap();
    };
    check_both(|_| (), narrow, 3, "half of intermediate_size is 520 (expected a multiple of 32");
}

/// A plain checkpoint whose configuration claims to be packed.
#[test]
fn no_packed_weights() {
    let plain = |dir: &Path| {
        fs::copy(checkpoint().join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    };
    check_both(|_| (), plain, 3, "are missing: transformer.h.0.attn.c_attn.g_idx");
}
