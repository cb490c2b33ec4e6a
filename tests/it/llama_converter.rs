//! The text file against that of llama.cpp's own converter, `convert_hf_to_gguf.py`: `tests/data/llama-converter.json` holds
//! what it wrote, and `scripts/llama-converter.sh` runs it again.

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;
use qvl::gguf::{Array, Gguf, Value};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::models::{Model, random_as, tiny};
use crate::programs::repository;
use crate::stock::backend;

/// Models and types, by the names of the converter's files.
const CASES: [(&str, &str); 6] = [
    ("qvl-random", "f32"),
    ("qvl-random", "f16"),
    ("qvl-random", "q8_0"),
    ("qvl-tiny", "f32"),
    ("qvl-tiny", "f16"),
    ("qvl-tiny", "q8_0"),
];

/// Keys that it writes and we do not, or otherwise: a name that it was told, and tokens that Qwen has not (it takes the end of
/// a document for them; nothing is added in front, which our files say instead).
const NOT_OURS: [&str; 4] =
    ["general.name", "general.size_label", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.unknown_token_id"];

fn ours(name: &str, ty: &str) -> Model {
    // Its vision type is any: only the language model is compared.
    if name == "qvl-random" { random_as(ty, "f32") } else { tiny(ty, "f32") }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// As `models/reference/llama_converter.py` records it.
fn recorded(value: &Value) -> Json {
    let lines = |items: &mut dyn Iterator<Item = String>| items.map(|item| item + "\n").collect::<String>();
    let (n, text) = match value {
        Value::String(s) => return json!(s),
        Value::F32(v) => return json!(f64::from(*v)),
        Value::Bool(v) => return json!(v),
        Value::Array(Array::String(items)) => (items.len(), lines(&mut items.iter().cloned())),
        Value::Array(Array::I32(items)) => (items.len(), lines(&mut items.iter().map(i32::to_string))),
        other => return json!(other.as_u64().unwrap_or_else(|| panic!("{other:?}: no value that it writes"))),
    };
    json!({"n": n, "sha256": sha256(text.as_bytes())})
}

#[test]
fn it_writes_the_same_keys_and_the_same_weights() {
    let record: Json =
        serde_json::from_slice(&std::fs::read(repository("tests/data/llama-converter.json")).unwrap()).unwrap();
    for (name, ty) in CASES {
        let theirs = &record[format!("{name}-{ty}")];
        let bytes = std::fs::read(ours(name, ty).text).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        for (key, expect) in theirs["keys"].as_object().unwrap() {
            if !NOT_OURS.contains(&key.as_str()) {
                let found = gguf.get(key).unwrap_or_else(|| panic!("{name} {ty}: no {key}"));
                assert_eq!(&recorded(found), expect, "{name} {ty}: {key}");
            }
        }
        let expect = theirs["tensors"].as_object().unwrap();
        assert_eq!(gguf.tensors().len(), expect.len(), "{name} {ty}");
        for tensor in gguf.tensors() {
            let found = format!("{} {:?} {}", tensor.ty, tensor.dims, sha256(tensor.bytes(&bytes)));
            assert_eq!(found, expect[&tensor.name].as_str().unwrap(), "{name} {ty}: {}", tensor.name);
        }
    }
}

/// Logits of some tokens after the last of them, by stock llama.cpp.
#[allow(unsafe_code)]
fn logits(path: &Path) -> Vec<f32> {
    backend();
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: path and tokens live through the calls that read them, what is made is used between here and its end, and the
    // logits are as many as the vocabulary has tokens.
    unsafe {
        let mut params = sys::llama_model_default_params();
        // ggml's kernels for repacked weights end in an illegal instruction on some virtual machines with AMX.
        params.use_extra_bufts = false;
        let model = sys::llama_model_load_from_file(path.as_ptr(), params);
        assert!(!model.is_null(), "{path:?}: llama.cpp cannot load it");
        let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model));
        let mut params = sys::llama_context_default_params();
        (params.n_ctx, params.n_threads, params.n_threads_batch) = (64, 1, 1);
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null(), "{path:?}: no context");
        let mut tokens: Vec<i32> = (0..40).map(|i| i * 17 % n_vocab).collect();
        let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
        assert_eq!(sys::llama_decode(context, batch), 0, "{path:?}");
        let logits = std::slice::from_raw_parts(sys::llama_get_logits_ith(context, -1), n_vocab as usize).to_vec();
        sys::llama_free(context);
        sys::llama_model_free(model);
        logits
    }
}

/// Where `scripts/llama-converter.sh` has put its files.
#[test]
fn its_files_give_the_same_logits() {
    let Some(dir) = std::env::var_os("QVL_LLAMA_CONVERTER_FILES") else {
        eprintln!("not run: QVL_LLAMA_CONVERTER_FILES is not set, see scripts/llama-converter.sh");
        return;
    };
    for (name, ty) in CASES {
        let theirs = logits(&Path::new(&dir).join(format!("{name}-{ty}.gguf")));
        let ours = logits(&ours(name, ty).text);
        assert!(ours.iter().all(|v| v.is_finite()) && ours.iter().any(|v| *v != ours[0]), "{name} {ty}");
        assert!(ours == theirs, "{name} {ty}: other logits");
    }
}
