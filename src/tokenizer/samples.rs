//! Vocabularies and files for tests.

use std::path::PathBuf;

use super::{Alphabet, Special, TYPE_CONTROL, TYPE_NORMAL, TYPE_UNUSED, TokenId, Tokenizer, special_names};

/// Longer tokens of the toy vocabulary, in rank order from 256 on.
pub const TOY: [&str; 14] =
    ["he", "ll", "hell", "hello", " w", "or", " wor", "é", "Pi", "user", "system", "assistant", "\n\n", "图"];

/// The lists that a GGUF would hold: these ranks, the special tokens, padding up to `n_rows`.
pub fn lists(ranks: &[Vec<u8>], n_rows: usize) -> (Vec<String>, Vec<i32>) {
    let alphabet = Alphabet::new();
    let mut tokens: Vec<String> = ranks.iter().map(|token| alphabet.spell(token)).collect();
    let mut types = vec![TYPE_NORMAL; tokens.len()];
    tokens.extend(special_names());
    types.resize(tokens.len(), TYPE_CONTROL);
    tokens.extend((tokens.len()..n_rows).map(|id| format!("[PAD{id}]")));
    types.resize(tokens.len(), TYPE_UNUSED);
    (tokens, types)
}

/// The toy's ranks: token 255 - b is byte b (so that no id is its own byte), then [`TOY`].
pub fn toy_ranks() -> Vec<Vec<u8>> {
    let bytes = (0..=u8::MAX).rev().map(|byte| vec![byte]);
    bytes.chain(TOY.iter().map(|token| token.as_bytes().to_vec())).collect()
}

/// 270 ranks, 487 used ids, 512 rows, 8 slots.
pub fn toy() -> Tokenizer {
    let (tokens, types) = lists(&toy_ranks(), 512);
    Tokenizer::new(tokens, &types, 8).unwrap()
}

/// Encodes with all special tokens.
pub fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    tokenizer.encode(text, Special::All).unwrap()
}

/// A file of the shared folder, or `None` (said on stderr) where there is none.
pub fn shared(path: &str) -> Option<Vec<u8>> {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    let bytes = std::fs::read(&full).ok();
    if bytes.is_none() {
        eprintln!("skipped: {} is not there", full.display());
    }
    bytes
}

/// A golden JSON file of the tokenizer.
pub fn golden(name: &str) -> Option<serde_json::Value> {
    Some(serde_json::from_slice(&shared(&format!("goldens/tokenizer/{name}"))?).unwrap())
}

/// The real vocabulary cut to its first `n_ranks`, if it is there.
pub fn real_lists(n_ranks: usize, n_rows: usize) -> Option<(Vec<String>, Vec<i32>)> {
    let text = String::from_utf8(shared("data/qwen.tiktoken")?).unwrap();
    let ranks: Vec<Vec<u8>> = text.lines().take(n_ranks).map(|line| base64(line.split(' ').next().unwrap())).collect();
    Some(lists(&ranks, n_rows))
}

/// The real vocabulary with 256 slots, if it is there.
pub fn real() -> Option<Tokenizer> {
    let (tokens, types) = real_lists(usize::MAX, 151_936)?;
    Some(Tokenizer::new(tokens, &types, 256).unwrap())
}

/// Standard base64, for good input only (the crate `base64` belongs to the converter).
fn base64(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut n_bits) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter_map(|c| digits.iter().position(|&d| d == c)) {
        bits = bits << 6 | digit as u32;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            out.push((bits >> n_bits) as u8);
        }
    }
    out
}
