//! Proves a text GGUF before llama.cpp sees it, since llama.cpp answers some bad numbers with abort().

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gguf::{Gguf, Part, TensorInfo, Value, ValueType};
use crate::names::{imatrix, text as key, text_tensor as name, vocab};
use crate::quant::GgmlType;

use super::TextHparams;

/// Keys of the groups `qwen.*` and `tokenizer.*` that may be there. llama.cpp reads many more that change its graph or
/// reach its assertions (experts, scaling, sliding windows, ..); none belongs to Qwen-VL, so any other is refused.
const KNOWN_KEYS: [&str; 18] = [
    key::CONTEXT_LENGTH,
    key::EMBEDDING_LENGTH,
    key::BLOCK_COUNT,
    key::FEED_FORWARD_LENGTH,
    key::HEAD_COUNT,
    key::RMS_EPS,
    key::ROPE_FREQ_BASE,
    key::ROPE_DIMENSION_COUNT,
    vocab::MODEL,
    vocab::PRE,
    vocab::TOKENS,
    vocab::TOKEN_TYPE,
    vocab::MERGES,
    vocab::EOS,
    vocab::EOT,
    vocab::PADDING,
    vocab::ADD_BOS,
    vocab::CHAT_TEMPLATE,
];

/// Keys of the group `general.*` and others that llama.cpp would act on in ways that this runtime does not want.
const REFUSED_PREFIXES: [&str; 6] = ["split.", "adapter.", "training.", "quantize.", "xielu.", "general.tensor_extra."];
/// What llama.cpp's buffer over the mapped file asserts, in bytes.
const CPU_ALIGNMENT: u64 = 32;

/// Proves metadata and tensors of a text file. Errors (kind model) name the key or tensor.
pub fn check(gguf: &Gguf, h: &TextHparams) -> Result<()> {
    for (key, _) in gguf.metadata() {
        let group = key.starts_with("qwen.") || key.starts_with("tokenizer.");
        // Parts are proven to be all there where a file is opened.
        let is_note = imatrix::USED.contains(&key.as_str()) || Part::is_key(key);
        let refused = !is_note && REFUSED_PREFIXES.iter().any(|p| key.starts_with(p));
        if refused || (group && !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(Error::model(format!("metadata key {key} is not part of a Qwen-VL text model")));
        }
    }
    if !gguf.alignment().is_multiple_of(CPU_ALIGNMENT) {
        return Err(Error::model(format!(
            "tensor data is aligned to {} bytes (expected a multiple of {CPU_ALIGNMENT}); convert the model again",
            gguf.alignment()
        )));
    }
    check_types(gguf)?;
    check_vocab(gguf, h)?;
    check_tensors(gguf, h)
}

/// llama.cpp insists on exact value types, and on sizes that fit 32 bits.
fn check_types(gguf: &Gguf) -> Result<()> {
    let expected = [
        (key::CONTEXT_LENGTH, ValueType::U32),
        (key::EMBEDDING_LENGTH, ValueType::U32),
        (key::BLOCK_COUNT, ValueType::U32),
        (key::FEED_FORWARD_LENGTH, ValueType::U32),
        (key::HEAD_COUNT, ValueType::U32),
        (key::ROPE_DIMENSION_COUNT, ValueType::U32),
        (key::RMS_EPS, ValueType::F32),
        (key::ROPE_FREQ_BASE, ValueType::F32),
        (vocab::EOS, ValueType::U32),
        (vocab::EOT, ValueType::U32),
        (vocab::PADDING, ValueType::U32),
        (vocab::ADD_BOS, ValueType::Bool),
        (vocab::CHAT_TEMPLATE, ValueType::String),
    ];
    let wrong = |(key, ty): &(&str, ValueType)| {
        let found = gguf.get(key).map(Value::value_type).filter(|found| found != ty)?;
        Some(Error::model(format!("metadata key {key} is a {found:?} (expected {ty:?})")))
    };
    expected.iter().find_map(wrong).map_or(Ok(()), Err)
}

fn check_vocab(gguf: &Gguf, h: &TextHparams) -> Result<()> {
    for (key, expected) in [(vocab::MODEL, "gpt2"), (vocab::PRE, "qwen2")] {
        let found = gguf.str(key)?;
        if found != expected {
            return Err(Error::model(format!("metadata key {key} is {found:?} (expected {expected:?})")));
        }
    }
    let n_types = gguf.i32s(vocab::TOKEN_TYPE)?.len();
    if n_types != h.n_vocab {
        return Err(Error::model(format!("{n_types} token types for {} tokens", h.n_vocab)));
    }
    let is_merge = |m: &str| m.split(' ').count() == 2 && !m.split(' ').any(str::is_empty);
    if let Some(merge) = gguf.strings(vocab::MERGES)?.iter().find(|m| !is_merge(m)) {
        return Err(Error::model(format!("{} holds {merge:?} (expected two tokens)", vocab::MERGES)));
    }
    for key in [vocab::EOS, vocab::EOT, vocab::PADDING] {
        if gguf.opt_u64(key)?.is_some_and(|id| id >= h.n_vocab as u64) {
            return Err(Error::model(format!("metadata key {key} is beyond the vocabulary of {} tokens", h.n_vocab)));
        }
    }
    check_tokens(gguf.strings(vocab::TOKENS)?)
}

/// llama.cpp asserts that no two tokens are equal as C strings, unused ones included.
fn check_tokens(tokens: &[String]) -> Result<()> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if token.is_empty() {
            return Err(Error::model(format!("vocabulary: token {id} is empty")));
        }
        if token.contains('\0') {
            return Err(Error::model(format!("vocabulary: token {id}, {token:?}, contains a zero byte")));
        }
        if let Some(other) = ids.insert(token.as_str(), id) {
            return Err(Error::model(format!("vocabulary: tokens {other} and {id} are the same, {token:?}")));
        }
    }
    Ok(())
}

fn check_tensors(gguf: &Gguf, h: &TextHparams) -> Result<()> {
    let (d, v, f) = (h.n_embd as u64, h.n_vocab as u64, h.n_ff as u64);
    let mut n_found = 0;
    let mut find = |name: &str, dims: &[u64]| -> Result<()> {
        n_found += 1;
        let info = gguf.tensor(name).ok_or_else(|| Error::model(format!("tensor {name:?} is missing")))?;
        check_tensor(info, dims)
    };
    find(name::TOKEN_EMBD, &[d, v])?;
    find(name::OUTPUT_NORM, &[d])?;
    find(name::OUTPUT, &[d, v])?;
    for il in 0..h.n_layer {
        let shapes: [&[u64]; 8] = [&[d], &[d, 3 * d], &[3 * d], &[d, d], &[d], &[d, f], &[d, f], &[f, d]];
        for (part, dims) in name::PARTS.iter().zip(shapes) {
            find(&name::blk(il, part), dims)?;
        }
    }
    let n_more = gguf.tensors().len() - n_found;
    if n_more > 0 {
        return Err(Error::model(format!("{n_more} tensors are not part of a Qwen-VL text model")));
    }
    Ok(())
}

fn check_tensor(info: &TensorInfo, dims: &[u64]) -> Result<()> {
    use GgmlType::*;
    let TensorInfo { name, ty, .. } = info;
    if info.dims != dims {
        return Err(Error::model(format!("tensor {name:?} has extents {:?} (expected {dims:?})", info.dims)));
    }
    match (dims.len(), ty) {
        (1, F32) => Ok(()),
        (1, _) => Err(Error::model(format!("tensor {name:?} has type {ty} (expected f32)"))),
        (_, I8 | I16 | I32 | I64 | F64) => Err(Error::model(format!("tensor {name:?} has type {ty}"))),
        _ => Ok(()),
    }
}
