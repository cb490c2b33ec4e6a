//! Checkpoints as people have them: `.bin` files and shards of PyTorch.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::models::random_as;
use crate::programs::{qvl_convert, repository, run};
use crate::torch::{StateDict, Width, archive_as, n_bytes, row_major};

/// A directory like `models/qvl-random` without its weights.
pub fn without_weights() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "qwen.tiktoken", "tokenizer_config.json"] {
        fs::copy(repository("models/qvl-random").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// The state dict of `models/qvl-random`.
fn state_dict() -> StateDict {
    StateDict::of_safetensors(&repository("models/qvl-random/model.safetensors"))
}

/// Converts `dir` in the types of `random_as("q4_k_m", "q8_0")` and compares both files with that one's.
fn check_equal(dir: &Path) {
    let out = tempfile::tempdir().unwrap();
    let mut command = qvl_convert();
    command.arg(dir).args(["--json", "--name", "qvl-random", "-t", "q4_k_m", "--vision-type", "q8_0", "-o"]);
    let done = run(command.arg(out.path())).json();
    let expect = random_as("q4_k_m", "q8_0");
    for (part, expect) in [("model", expect.text), ("mmproj", expect.mmproj)] {
        let found = fs::read(done[part].as_str().unwrap()).unwrap();
        assert!(found == fs::read(expect).unwrap(), "{part} differs from that of the same safetensors");
    }
}

#[test]
fn a_torch_file_converts_as_safetensors_do() {
    let dir = without_weights();
    state_dict().save(&dir.path().join("pytorch_model.bin"));
    check_equal(dir.path());
}

/// As files of more than 4 GiB have them.
#[test]
fn a_torch_file_with_wide_fields_converts() {
    let dir = without_weights();
    let file = archive_as(&state_dict().entries(), Width::Zip64);
    fs::write(dir.path().join("pytorch_model.bin"), file).unwrap();
    check_equal(dir.path());
}

#[test]
fn torch_shards_convert_as_safetensors_do() {
    let dir = without_weights();
    let mut map = serde_json::Map::new();
    let mut parts = [StateDict::default(), StateDict::default(), StateDict::default()];
    let whole = state_dict();
    for (i, tensor) in whole.tensors.iter().enumerate() {
        let storage = &whole.storages[tensor.storage];
        parts[i % 3].push(&tensor.name, storage.class, &tensor.shape, storage.bytes.clone());
        map.insert(tensor.name.clone(), format!("pytorch_model-0000{}-of-00003.bin", i % 3 + 1).into());
    }
    for (i, part) in parts.iter().enumerate() {
        part.save(&dir.path().join(format!("pytorch_model-0000{}-of-00003.bin", i + 1)));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    check_equal(dir.path());
}

/// Every second value, columns before rows, behind other values, one storage for several, parameters: all at once.
#[test]
fn however_values_lie_in_their_storages() {
    let whole = state_dict();
    let mut dict = StateDict::default();
    let mut shared: Vec<u8> = Vec::new();
    for (i, tensor) in whole.tensors.iter().enumerate() {
        let storage = &whole.storages[tensor.storage];
        let size = n_bytes(storage.class);
        let values: Vec<&[u8]> = storage.bytes.chunks_exact(size).collect();
        let shape = &tensor.shape;
        match (i % 4, shape.len()) {
            (0, 2..) => {
                // Axes in the opposite order.
                let backwards: Vec<u64> = shape.iter().rev().copied().collect();
                let strides: Vec<u64> = row_major(&backwards).into_iter().rev().collect();
                let mut bytes = vec![0; storage.bytes.len()];
                for (i, value) in values.iter().enumerate() {
                    let at = |(n, axis): (u64, usize)| i as u64 / row_major(shape)[axis] % n * strides[axis];
                    let at: u64 = shape.iter().copied().zip(0..).map(at).sum();
                    bytes[at as usize * size..][..size].copy_from_slice(value);
                }
                dict.push(&tensor.name, storage.class, shape, bytes);
                dict.tensors.last_mut().unwrap().strides = strides;
            }
            (1, _) => {
                // Every third value from the fifth on.
                let mut bytes = vec![0xff; 5 * size];
                values.iter().for_each(|value| {
                    bytes.extend(*value);
                    bytes.resize(bytes.len() + 2 * size, 0xff);
                });
                dict.push(&tensor.name, storage.class, shape, bytes);
                dict.storages.last_mut().unwrap().n_values = 5 + 3 * values.len() as u64;
                let tensor = dict.tensors.last_mut().unwrap();
                tensor.first = 5;
                tensor.strides.iter_mut().for_each(|stride| *stride *= 3);
            }
            (2, _) if storage.class == "BFloat16Storage" => {
                // One storage, made below, for all of these.
                dict.push(&tensor.name, storage.class, shape, Vec::new());
                dict.storages.pop();
                let pushed = dict.tensors.last_mut().unwrap();
                (pushed.storage, pushed.first) = (usize::MAX, shared.len() as u64 / 2);
                shared.extend(&storage.bytes);
            }
            _ => {
                dict.push(&tensor.name, storage.class, shape, storage.bytes.clone());
                let wrapped: [&[&str]; 2] = [&["_rebuild_parameter"], &["_rebuild_parameter_with_state"]];
                dict.tensors.last_mut().unwrap().wrapped = wrapped[i % 2];
            }
        }
    }
    let n = dict.storages.len();
    assert!(!shared.is_empty());
    dict.push("transformer.h.0.attn.masked_bias", "BFloat16Storage", &[shared.len() as u64 / 2], shared);
    dict.tensors.iter_mut().filter(|t| t.storage == usize::MAX).for_each(|t| t.storage = n);
    // What is no weight may be of any type.
    dict.push("transformer.h.0.attn.bias", "BoolStorage", &[4], vec![0, 1, 1, 0]);
    let dir = without_weights();
    dict.save(&dir.path().join("pytorch_model.bin"));
    check_equal(dir.path());
}
