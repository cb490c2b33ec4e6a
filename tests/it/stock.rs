//! The text file in a program that knows nothing of qvl: llama.cpp's own loader and tokenizer, by the crate
//! `llama-cpp-2`.

use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use qvl::session::TextFile;
use qvl::tokenizer::Special;

use crate::models;

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
