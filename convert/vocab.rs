//! The vocabulary: `qwen.tiktoken` → ranks → the lists that a text GGUF holds.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use qvl::error::{Error, Result};
use qvl::tokenizer::{
    Alphabet, N_SPECIAL, Ranks, SpecialIds, TYPE_CONTROL, TYPE_NORMAL, TYPE_UNUSED, merge, special_names,
};

/// The real file has 2.5 MB; anything far beyond is something else.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// How a git-lfs pointer file starts.
const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/";

/// Reads a rank file: a line `base64 rank` for each token, in any order, with either kind of line ends. Returns the
/// tokens in rank order. Everything is proven: ranks `0..n` once each, no token empty or twice, every single byte there.
///
/// Errors (kind `Model`) name the file and the line; a git-lfs pointer is recognised.
/// Cost: the file and its tokens in memory, about 10 MiB for the real one.
pub fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let failed = |cause| Error::model("cannot read the vocabulary").because(cause).at(path);
    let n_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if n_bytes > MAX_FILE_BYTES {
        return Err(Error::model(format!("{n_bytes} bytes: too large for a vocabulary")).at(path));
    }
    parse(&std::fs::read(path).map_err(failed)?).map_err(|error| error.at(path))
}

/// [`read`] without the file.
fn parse(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    let text = std::str::from_utf8(file).map_err(|cause| Error::model("not a vocabulary file").because(cause))?;
    if text.starts_with(LFS_POINTER) {
        return Err(Error::model("a git-lfs pointer, not the file itself: run `git lfs pull` or download the file"));
    }
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let n_ranks = lines().count();
    let mut ranks: Vec<Option<Vec<u8>>> = vec![None; n_ranks];
    for (at, line) in lines() {
        let error = |what: String| Error::model(format!("line {}: {what}", at + 1));
        let (token, rank) = parse_line(line).map_err(|what| error(what.to_string()))?;
        match ranks.get_mut(rank) {
            Some(place @ None) => *place = Some(token),
            Some(Some(_)) => return Err(error(format!("rank {rank} a second time"))),
            None => return Err(error(format!("rank {rank}: the {n_ranks} lines have ranks 0 to {}", n_ranks - 1))),
        }
    }
    // As many distinct ranks below `n_ranks` as there are lines: none is missing.
    let ranks: Vec<Vec<u8>> = ranks.into_iter().flatten().collect();
    check(&ranks)?;
    Ok(ranks)
}

/// One line, `base64 rank`.
fn parse_line(line: &str) -> std::result::Result<(Vec<u8>, usize), &'static str> {
    let mut words = line.split_ascii_whitespace();
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else {
        return Err("expected a token in base64, a blank and a rank");
    };
    let token = STANDARD.decode(token).map_err(|_| "the token is not base64")?;
    let rank = rank.parse().map_err(|_| "the rank is not a number")?;
    Ok((token, rank))
}

/// What [`Ranks`] proves.
fn check(ranks: &[Vec<u8>]) -> Result<Ranks> {
    Ranks::new(ranks.iter().map(Vec::as_slice))
}

/// The lists of the keys `tokenizer.ggml.*`.
pub struct GgufVocab {
    /// `[n_rows]`: the ranks in [`Alphabet`], the special tokens by name, then `[PAD{id}]`.
    pub tokens: Vec<String>,
    /// `[n_rows]`: normal, control, unused.
    pub token_types: Vec<i32>,
    /// `"left right"` in rank order, one for each rank that is the union of two lower ones.
    pub merges: Vec<String>,
    /// The ids that other keys name.
    pub special_ids: SpecialIds,
}

/// The lists for an embedding table of `n_rows` rows. Stock llama.cpp reads them as its `gpt2` model.
///
/// llama.cpp works from merges, which a rank file does not have: a token's merge is the pair into which BPE with the
/// ranks below it leaves its bytes. Tokens that are left in more than two parts have none (the real vocabulary has no
/// such token). Source of the idea: llama.cpp's `convert_hf_to_gguf.py`, class `QwenModel`.
///
/// Errors (kind `Model`): `ranks` that are no vocabulary, more used ids than rows. Takes about a second.
pub fn gguf_vocab(ranks: &[Vec<u8>], n_rows: usize) -> Result<GgufVocab> {
    let lookup = check(ranks)?;
    let n_used = ranks.len() + N_SPECIAL;
    if n_used > n_rows {
        let (n_ranks, what) = (ranks.len(), format!("the embedding table has {n_rows} rows"));
        return Err(Error::model(format!(
            "vocabulary: {n_ranks} ranks and {N_SPECIAL} special tokens need {n_used} rows, {what}"
        )));
    }
    let alphabet = Alphabet::new();
    let ordinary = ranks.iter().map(|token| alphabet.spell(token));
    let padding = (n_used..n_rows).map(|id| format!("[PAD{id}]"));
    let types = [(TYPE_NORMAL, ranks.len()), (TYPE_CONTROL, N_SPECIAL), (TYPE_UNUSED, n_rows - n_used)];
    Ok(GgufVocab {
        tokens: ordinary.chain(special_names()).chain(padding).collect(),
        token_types: types.into_iter().flat_map(|(kind, n)| std::iter::repeat_n(kind, n)).collect(),
        merges: merges(&lookup, ranks, &alphabet),
        special_ids: SpecialIds::after(ranks.len()),
    })
}

/// See [`gguf_vocab`].
fn merges(lookup: &Ranks, ranks: &[Vec<u8>], alphabet: &Alphabet) -> Vec<String> {
    let pair = |(rank, token): (usize, &Vec<u8>)| match merge(lookup, token, rank as u32).as_slice() {
        &[middle, _] => Some(format!("{} {}", alphabet.spell(&token[..middle]), alphabet.spell(&token[middle..]))),
        _ => None,
    };
    ranks.iter().enumerate().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A file of the single bytes and these.
    fn file(longer: &[&str]) -> String {
        let bytes: Vec<u8> = (0..=255).collect();
        let tokens = bytes.chunks(1).chain(longer.iter().map(|token| token.as_bytes()));
        tokens.enumerate().map(|(rank, token)| format!("{} {rank}\n", STANDARD.encode(token))).collect()
    }

    fn check_error(file: &str, expect: &str) {
        let error = parse(file.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} lacks {expect:?}");
    }

    #[test]
    fn reads_any_order_and_line_end() {
        let file = file(&["ab", "图"]);
        let ranks = parse(file.as_bytes()).unwrap();
        assert_eq!((ranks.len(), ranks[65].as_slice(), ranks[257].as_slice()), (258, b"A".as_slice(), "图".as_bytes()));
        assert_eq!(parse(file.replace('\n', "\r\n").as_bytes()).unwrap(), ranks);
        assert_eq!(parse(file.trim_end().as_bytes()).unwrap(), ranks);
        let backwards: Vec<&str> = file.lines().rev().collect();
        assert_eq!(parse(backwards.join("\n\n").as_bytes()).unwrap(), ranks);
    }

    #[test]
    fn says_what_is_wrong() {
        check_error("", "no token for the single byte 0x00");
        check_error("version https://git-lfs.github.com/spec/v1\noid sha256:b2\nsize 2561218\n", "git-lfs pointer");
        check_error("AA== 0\nAQ==\n", "line 2: expected a token in base64");
        check_error("AA== 0 0\n", "line 1: expected");
        check_error("AA= 0\n", "line 1: the token is not base64");
        check_error("AA== -1\n", "line 1: the rank is not a number");
        check_error("AA== 0\n\nAQ== 0\n", "line 3: rank 0 a second time");
        check_error("AA== 0\nAQ== 2\n", "line 2: rank 2: the 2 lines have ranks 0 to 1");
        check_error(&file(&["A"]), "tokens 65 and 256 are the same bytes");
        check_error(&file(&[""]), "line 257: expected");
        check_error(&file(&[])[7..], "rank 255: the 255 lines");
        assert!(parse(b"\xff\xfe").is_err());
        let error = read(Path::new("/nowhere/qwen.tiktoken")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/qwen.tiktoken: cannot read"), "{error}");
    }

    #[test]
    fn makes_the_lists() {
        let ranks = parse(file(&["ab", " a", "abab", "xyz", "é"]).as_bytes()).unwrap();
        let vocab = gguf_vocab(&ranks, 261 + N_SPECIAL + 2).unwrap();
        assert_eq!(
            vocab.tokens[256..264],
            ["ab", "Ġa", "abab", "xyz", "Ã©", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        );
        assert_eq!(vocab.tokens[261 + N_SPECIAL - 1..], ["<imgpad>", "[PAD478]", "[PAD479]"]);
        assert_eq!(vocab.token_types[260..262], [TYPE_NORMAL, TYPE_CONTROL]);
        assert_eq!(vocab.token_types[477..], [TYPE_CONTROL, TYPE_UNUSED, TYPE_UNUSED]);
        // "xyz" is no union of two tokens.
        assert_eq!(vocab.merges, ["a b", "Ġ a", "ab ab", "Ã ©"]);
        assert_eq!(vocab.special_ids.eod.to_u32(), 261);
        let error = gguf_vocab(&ranks, 261 + N_SPECIAL - 1).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("need 478 rows, the embedding table has 477 rows")));
    }

    #[test]
    fn the_real_vocabulary() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/qwen.tiktoken");
        if !path.exists() {
            return eprintln!("skipped: {} is not there", path.display());
        }
        let start = Instant::now();
        let ranks = read(&path).unwrap();
        eprintln!("read: {:?}", start.elapsed());
        let start = Instant::now();
        let vocab = gguf_vocab(&ranks, 151_936).unwrap();
        eprintln!("gguf_vocab: {:?}", start.elapsed());
        assert_eq!((ranks.len(), vocab.tokens.len(), vocab.token_types.len()), (151_643, 151_936, 151_936));
        assert_eq!(vocab.merges.len(), 151_643 - 256);
        assert_eq!(vocab.merges[0], "Ġ Ġ");
        assert_eq!(vocab.tokens[151_935], "[PAD151935]");
    }
}
