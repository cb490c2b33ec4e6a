//! A made-up byte-level BPE vocabulary in the form of `qwen.tiktoken`.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::numbers::mix;

/// Longest token in bytes.
const MAX_BYTES: usize = 16;

/// `n_ranks` (at least 256) distinct tokens: the 256 bytes in GPT-2's order (as in Qwen: "!" is 0), then joins of two earlier
/// tokens, lower-case words with or without a space in front, or parts of Chinese text.
///
/// Every join is *reachable*: BPE with the ranks before it splits it in exactly two. (Converters rely on that when they
/// derive the list of merges.)
pub fn make(n_ranks: usize, seed: u64) -> Vec<Vec<u8>> {
    let visible = (33..=126).chain(161..=172).chain(174..=255u8);
    let hidden = (0..=255u8).filter(|b| !matches!(b, 33..=126 | 161..=172 | 174..=255));
    let mut tokens: Vec<Vec<u8>> = visible.chain(hidden).map(|b| vec![b]).collect();
    let mut ranks: HashMap<Vec<u8>, usize> = tokens.iter().cloned().zip(0..).collect();
    let usable = |t: &[u8]| t == b" " || is_text(t) || matches!(t, [0x80..=0xBF]);
    let mut pool: Vec<usize> = (0..tokens.len()).filter(|&i| usable(&tokens[i])).collect();

    let mut counter = mix(seed);
    let mut random = |below: usize| {
        counter = counter.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(counter) >> 32) as usize % below
    };
    // Early tokens are short, and are taken more often: else nearly all joins would soon be too long.
    let mut pick = |n: usize| {
        let limit = random(n) + 1;
        random(limit)
    };
    while tokens.len() < n_ranks {
        let joined = [&tokens[pool[pick(pool.len())]][..], &tokens[pool[pick(pool.len())]]].concat();
        if joined.len() > MAX_BYTES || !is_text(&joined) || ranks.contains_key(&joined) || n_parts(&joined, &ranks) != 2
        {
            continue;
        }
        ranks.insert(joined.clone(), tokens.len());
        pool.push(tokens.len());
        tokens.push(joined);
    }
    tokens
}

/// Whether this can occur within one word of a text: letters after at most one space, or the beginning of Chinese text.
fn is_text(token: &[u8]) -> bool {
    let word = token.strip_prefix(b" ").unwrap_or(token);
    if !word.is_empty() && word.iter().all(u8::is_ascii_lowercase) {
        return true;
    }
    // U+4000..U+9FFF; the last character may be incomplete.
    let han = |c: char| ('\u{4000}'..'\u{A000}').contains(&c);
    let tail_ok = |tail: &[u8]| matches!(tail, [0xE4..=0xE9] | [0xE4..=0xE9, 0x80..=0xBF]);
    match std::str::from_utf8(token) {
        Ok(text) => text.chars().all(han) && !text.is_empty(),
        Err(e) => {
            let (whole, tail) = token.split_at(e.valid_up_to());
            tail_ok(tail) && std::str::from_utf8(whole).is_ok_and(|text| text.chars().all(han))
        }
    }
}

/// How many tokens BPE makes of `bytes`.
fn n_parts(bytes: &[u8], ranks: &HashMap<Vec<u8>, usize>) -> usize {
    // Boundaries of the parts; the pair with the lowest rank is joined until none is left.
    let mut bounds: Vec<usize> = (0..=bytes.len()).collect();
    while let Some((_, i)) = (0..bounds.len().saturating_sub(2))
        .filter_map(|i| ranks.get(&bytes[bounds[i]..bounds[i + 2]]).map(|rank| (rank, i)))
        .min()
    {
        bounds.remove(i + 1);
    }
    bounds.len() - 1
}

/// The file: a line "base64 rank" for each token.
pub fn tiktoken(tokens: &[Vec<u8>]) -> String {
    tokens.iter().enumerate().map(|(rank, token)| format!("{} {rank}\n", STANDARD.encode(token))).collect()
}
