//! The text file in a program that knows nothing of qvl: llama.cpp's own loader, tokenizer and quantiser, by the crates
//! `llama-cpp-2` and `llama-cpp-sys-2`.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_sys_2 as sys;
use qvl::gguf::Gguf;
use qvl::imatrix::Imatrix;
use qvl::session::TextFile;
use qvl::tokenizer::Special;
use tempfile::TempDir;

use crate::examples::{data, heldout};
use crate::models;
use crate::programs::{qvl, qvl_convert, repository, run};

/// Texts whose ids must be equal, special tokens included.
const TEXTS: [&str; 9] = [
    "",
    "What is in this picture?",
    "  two spaces, a tab\tand\n\na line   ",
    "I'm sure they'LL say 1234567 things…",
    "图中是什么? ぜんぶ 하나",
    "don't<|im_end|>\n<|im_start|>assistant\n",
    "<ref>the dog</ref><box>(219,424),(576,896)</box>",
    "\u{1f436}\u{200d}\u{1f525} naïve café Ωμέγα",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=========>>>>>>",
];

/// llama.cpp, started once.
pub fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| LlamaBackend::init().unwrap())
}

#[test]
fn llama_cpp_loads_the_text_file_and_tokenizes_alike() {
    let path = models::random_as("q8_0", "q8_0").text;
    let ours = TextFile::open(&path).unwrap();
    let theirs = LlamaModel::load_from_file(backend(), &path, &LlamaModelParams::default()).unwrap();
    let vocab = theirs.vocab();
    assert_eq!(vocab.n_tokens() as usize, ours.hparams().n_vocab);
    assert!(!vocab.should_add_bos(), "nothing is added in front");
    let special = ours.tokenizer().special_ids();
    assert_eq!((vocab.eos().0, vocab.eot().0), (special.eod.to_u32() as i32, special.im_end.to_u32() as i32));
    for text in TEXTS {
        let expect: Vec<i32> =
            ours.tokenizer().encode(text, Special::All).unwrap().iter().map(|id| id.to_u32() as i32).collect();
        let found: Vec<i32> = vocab.tokenize(text.as_bytes(), false, true).iter().map(|token| token.0).collect();
        assert_eq!(found, expect, "{text:?}");
    }
}

/// llama.cpp's quantiser, given the exact text file and the same importance matrix, writes the blocks that `qvl-convert` writes.
#[test]
#[allow(unsafe_code)]
fn llama_cpp_quantises_alike_with_an_importance_matrix() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let exact = models::tiny("f32", "f32").text;
    let mut imatrix = qvl();
    imatrix.args(["imatrix", "-m"]).arg(&exact).arg(data(dir.path(), &heldout(100)));
    run(imatrix.arg("-o").arg(path("i.gguf"))).ok();
    // As its `tools/quantize` hands them over: mean squares, by name, an empty entry at the end.
    let matrix = Imatrix::read(&path("i.gguf")).unwrap();
    let owned: Vec<(CString, Vec<f32>)> = (matrix.entries())
        .map(|(name, e)| {
            let means = e.sums.iter().map(|sum| *sum as f32 / e.n_rows as f32).collect();
            (CString::new(name).unwrap(), means)
        })
        .collect();
    let entry = |(name, means): &(CString, Vec<f32>)| sys::llama_model_imatrix_data {
        name: name.as_ptr(),
        data: means.as_ptr(),
        size: means.len(),
    };
    let mut entries: Vec<_> = owned.iter().map(entry).collect();
    entries.push(sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
    let c_path = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let read = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        (bytes, gguf)
    };
    backend();
    unsafe extern "C" fn silent(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}
    // SAFETY: the function does nothing, whenever it is called.
    unsafe { sys::llama_log_set(Some(silent), std::ptr::null_mut()) };
    // Types whose mixes are the same in every version of llama.cpp, with an importance matrix and without.
    let types = [
        ("q5_k_s", sys::LLAMA_FTYPE_MOSTLY_Q5_K_S),
        ("q6_k", sys::LLAMA_FTYPE_MOSTLY_Q6_K),
        ("q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0),
        ("iq4_xs", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS),
    ];
    for (ty, ftype) in types {
        let mut convert = qvl_convert();
        convert.arg(repository("models/qvl-tiny")).args(["-q", "--json", "-t", ty, "--imatrix"]).arg(path("i.gguf"));
        let done = run(convert.arg("-o").arg(path(ty))).json();
        let theirs = path(&format!("{ty}.gguf"));
        // SAFETY: paths, entries and what they point to live through the call.
        let status = unsafe {
            let mut params = sys::llama_model_quantize_default_params();
            params.nthread = 1;
            params.ftype = ftype;
            params.imatrix = entries.as_ptr();
            sys::llama_model_quantize(c_path(&exact).as_ptr(), c_path(&theirs).as_ptr(), &raw const params)
        };
        assert_eq!(status, 0, "{ty}");
        let (ours, theirs) = (read(done["model"].as_str().unwrap().as_ref()), read(&theirs));
        assert_eq!(ours.1.tensors().len(), theirs.1.tensors().len());
        for tensor in ours.1.tensors() {
            let other = theirs.1.tensor(&tensor.name).unwrap();
            assert_eq!((tensor.ty, &tensor.dims), (other.ty, &other.dims), "{ty}: {}", tensor.name);
            assert!(tensor.bytes(&ours.0) == other.bytes(&theirs.0), "{ty}: {} {}", tensor.name, tensor.ty);
        }
    }
}
