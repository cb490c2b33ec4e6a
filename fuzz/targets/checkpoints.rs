//! What the converter reads.

use std::path::PathBuf;

use qvl::tokenizer::{N_SPECIAL, Special, Specials, Tokenizer};

use super::{file, seeds};
use crate::checkpoint::{Checkpoint, Kind, survey};
use crate::vocab;

/// Headers whose values must lie inside the file.
fn check(path: PathBuf, n_file: usize, kind: Kind) {
    let Ok(checkpoint) = Checkpoint::open_files(vec![path], kind) else { return };
    for stored in checkpoint.tensors().values() {
        assert!(stored.offset <= n_file as u64, "{stored:?} of {n_file} bytes");
        if kind == Kind::Safetensors && stored.dtype.is_float() {
            let end = stored.offset.checked_add(stored.dtype.bytes_of(stored.n_values()));
            assert!(end.is_some_and(|end| end <= n_file as u64), "{stored:?} of {n_file} bytes");
        }
    }
    read_all(&checkpoint);
}

/// Reads the bytes of small tensors, whatever their strides say. (Widening them is ggml's, and no C is linked here.)
fn read_all(checkpoint: &Checkpoint) {
    for stored in checkpoint.tensors().values().filter(|t| t.dtype.is_float() && t.shape.len() <= 4) {
        let n_values = stored.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        if let Some(n @ 1..=4096) = n_values {
            let mut bytes = vec![0; stored.dtype.bytes_of(n) as usize];
            checkpoint.read_stored(stored, 0, &mut bytes).expect("values of a tensor that is in the file");
        }
    }
}

/// A file of the crate `safetensors`' form.
pub fn safetensors(data: &[u8]) {
    check(file("model.safetensors", data), data.len(), Kind::Safetensors);
}

/// An archive of `torch.save`.
pub fn torch(data: &[u8]) {
    check(file("model.bin", data), data.len(), Kind::Torch);
}

/// The pickle in a sound archive.
pub fn pickle(data: &[u8]) {
    torch(&seeds::torch_archive(data));
}

/// `model.safetensors.index.json`.
pub fn index(data: &[u8]) {
    let path = file("index/model.safetensors.index.json", data);
    let dir = path.parent().expect("a directory");
    // Accepted or refused: no shard is there.
    let _ = survey(dir).map(|inventory| format!("{inventory:?}"));
    assert!(Checkpoint::open(dir).is_err(), "a checkpoint without shards");
}

/// `qwen.tiktoken`: as it is, and behind the single bytes, without which no vocabulary is one.
pub fn vocabulary(data: &[u8]) {
    let _ = vocab::read(&file("qwen.tiktoken", data));
    let Ok(ranks) = vocab::read(&file("qwen.tiktoken", &[seeds::SINGLE_BYTES.as_bytes(), data].concat())) else {
        return;
    };
    let lists = vocab::gguf_vocab(&ranks, ranks.len() + N_SPECIAL + 3).expect("rows for all of them");
    let tokenizer = Tokenizer::new(lists.tokens, &lists.token_types, 8).expect("a vocabulary that was proven");
    let text = "hello, 图 <img> \u{301}";
    let ids = tokenizer.encode(text, Special::None).expect("ids of any text");
    assert_eq!(tokenizer.decode(&ids, Specials::Keep).expect("ids that were made"), text);
}
