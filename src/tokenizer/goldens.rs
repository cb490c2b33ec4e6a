//! The tokenizer against what the reference answered, on the real vocabulary.

use std::time::Instant;

use serde_json::Value;

use super::samples::{golden, real, real_lists, shared};
use super::*;

fn token_ids(list: &Value) -> Vec<TokenId> {
    serde_json::from_value(list.clone()).unwrap()
}

/// `errors="ignore"`: what is not UTF-8 is dropped.
fn ignore(bytes: Vec<u8>) -> String {
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

/// Compares with a golden `{"ok": text}` or `{"error": ..}`.
fn check_text(found: Result<String>, expect: &Value, what: &str) {
    match expect.get("ok") {
        Some(text) => assert_eq!(found.unwrap(), text.as_str().unwrap(), "{what}"),
        None => assert!(found.is_err(), "{what}: {found:?}, expected {expect}"),
    }
}

/// Compares with golden ids; `null` is an error.
fn check_ids(found: Result<Vec<TokenId>>, expect: &Value, what: &str) {
    match expect {
        Value::Null => assert!(found.is_err(), "{what}: {found:?}"),
        list => assert_eq!(found.unwrap(), token_ids(list), "{what}"),
    }
}

#[test]
fn encode_and_back() {
    let (Some(cases), Some(tokenizer)) = (golden("encode.json"), real()) else { return };
    let mut n_checks = 0;
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let or_same = |key: &str| if case[key] == "same" { &case["ids"] } else { &case[key] };
        check_ids(tokenizer.encode(text, Special::All), &case["ids"], text);
        check_ids(tokenizer.encode(text, Special::Image), or_same("ids_image_st_only"), text);
        check_ids(tokenizer.encode(text, Special::None), or_same("ids_plain_no_nfc_no_special"), text);
        n_checks += 3;
        if case["ids"].is_null() {
            continue;
        }
        let ids = token_ids(&case["ids"]);
        check_text(tokenizer.decode(&ids, Specials::Keep), &case["decode"], text);
        check_text(tokenizer.decode(&ids, Specials::Skip), &case["decode_skip_special"], text);
        let stream = tokenizer.decode_bytes(&ids, Specials::KeepGrounding).map(ignore);
        check_text(stream, &case["decode_stream_mode"], text);
        n_checks += 3;
    }
    eprintln!("encode.json: {n_checks} comparisons");
}

#[test]
fn decode() {
    let (Some(cases), Some(tokenizer)) = (golden("decode.json"), real()) else { return };
    let mut n_checks = 0;
    for case in cases["cases"].as_array().unwrap() {
        let ids = token_ids(&case["ids"]);
        let what = case["ids"].to_string();
        check_text(tokenizer.decode(&ids, Specials::Keep), &case["replace"], &what);
        check_text(tokenizer.decode_bytes(&ids, Specials::Keep).map(ignore), &case["ignore"], &what);
        check_text(tokenizer.decode(&ids, Specials::Skip), &case["skip"], &what);
        check_text(tokenizer.decode_bytes(&ids, Specials::Skip).map(ignore), &case["int4_repo_skip"], &what);
        check_text(tokenizer.decode_bytes(&ids, Specials::KeepGrounding).map(ignore), &case["keep_image"], &what);
        n_checks += 5;
        if let Some(text) = case["replace"].get("ok").filter(|_| !ids.contains(&tokenizer.special_ids().img_start)) {
            let mut stream = StreamDecoder::new(&tokenizer, Specials::Keep);
            let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            assert_eq!(streamed + &stream.finish(), text.as_str().unwrap());
            n_checks += 1;
        }
    }
    eprintln!("decode.json: {n_checks} comparisons");
}

#[test]
fn special_tokens() {
    let (Some(golden), Some(tokenizer)) = (golden("special_tokens.json"), real()) else { return };
    assert_eq!(golden["n_vocab_used"], tokenizer.n_used());
    let mut n_checks = 0;
    for (name, id) in golden["special_tokens"].as_object().unwrap() {
        let id = TokenId(id.as_u64().unwrap() as u32);
        assert_eq!(tokenizer.bytes(id), Some(name.as_bytes()));
        if !name.contains("<img>") {
            assert_eq!(tokenizer.encode(name, Special::All).unwrap(), [id]);
        }
        n_checks += 1;
    }
    for (byte, id) in golden["single_byte_ids"].as_object().unwrap() {
        let id = TokenId(id.as_u64().unwrap() as u32);
        assert_eq!(tokenizer.bytes(id), Some([byte.parse::<u8>().unwrap()].as_slice()));
        n_checks += 1;
    }
    eprintln!("special_tokens.json: {n_checks} comparisons");
}

#[test]
fn tiny_a_texts() {
    let Some(bytes) = shared("goldens/tiny-a/golden/cases.json") else { return };
    let cases: Value = serde_json::from_slice(&bytes).unwrap();
    let n_ranks = cases["params"]["ranks"].as_u64().unwrap() as usize;
    let n_queries = cases["img_token_span"].as_u64().unwrap() as usize;
    let Some((tokens, types)) = real_lists(n_ranks, 2304) else { return };
    let tokenizer = Tokenizer::new(tokens, &types, n_queries).unwrap();
    let mut n_checks = 0;
    for case in cases["text"].as_object().unwrap().values() {
        tokenizer.decode(&token_ids(&case["prompt_ids"]), Specials::Keep).unwrap();
        if let Some(greedy) = case["greedy_text"].as_str() {
            assert_eq!(tokenizer.decode(&token_ids(&case["greedy_ids"]), Specials::Keep).unwrap(), greedy);
            n_checks += 1;
        }
    }
    eprintln!("tiny-a: {n_checks} greedy texts");
}

/// Measures; the bounds only say "not quadratic".
#[test]
fn is_fast_enough() {
    let Some((tokens, types)) = real_lists(usize::MAX, 151_936) else { return };
    let start = Instant::now();
    let tokenizer = Tokenizer::new(tokens, &types, 256).unwrap();
    eprintln!("Tokenizer::new: {:?}", start.elapsed());
    let prose =
        "The quick brown fox, aged 7, isn't 图像描述生成 at 12:30!\n\n  fn main() { let x = 1; }\n".repeat(12_000);
    let long = 1_000_000;
    let texts = [
        ("prose", prose),
        ("one letter", "a".repeat(100_000)),
        ("one letter, 1 MB", "a".repeat(long)),
        ("blanks", " ".repeat(long) + "x"),
        ("line breaks", "\n".repeat(long)),
        ("blank, letter", " a".repeat(long / 2)),
        ("two blanks, letter", "  a".repeat(long / 3)),
        ("blank, break", " \n".repeat(long / 2)),
        ("punctuation", "=-".repeat(long / 2)),
        ("ideographs", "图像描述生成通用视觉问答".repeat(long / 36)),
        ("combining marks", "\u{301}\u{316}".repeat(long / 4)),
        ("decomposed", "e\u{301}".repeat(long / 3)),
        ("apostrophes", "'".repeat(long)),
        ("tags", "<ref>".repeat(long / 5)),
        ("half tags", "<|im_start|".repeat(long / 11)),
    ];
    for (name, text) in texts {
        let start = Instant::now();
        let ids = tokenizer.encode(&text, Special::All).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{name}: {} bytes, {} ids, {:.0} ms", text.len(), ids.len(), seconds * 1e3);
        let normal = normalise(&text, Special::All);
        assert_eq!(tokenizer.decode(&ids, Specials::Keep).unwrap(), normal, "{name}");
        assert!(seconds < 10.0, "{name} took {seconds} s");
    }
}
