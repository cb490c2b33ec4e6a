//! The tokenizer on the toy vocabulary.

use super::samples::{ids, lists, toy, toy_ranks};
use super::*;

/// Toy ids of plain bytes.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| 255 - u32::from(byte)).collect()
}

fn check(text: &str, special: Special, expect: Vec<u32>) {
    let ids: Vec<u32> = toy().encode(text, special).unwrap().iter().map(|id| id.0).collect();
    assert_eq!(ids, expect, "{text:?} {special:?}");
}

fn check_new(change: impl FnOnce(&mut Vec<String>, &mut Vec<i32>), expect: &str) {
    let (mut tokens, mut types) = lists(&toy_ranks(), 500);
    change(&mut tokens, &mut types);
    let error = Tokenizer::new(tokens, &types, 8).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains(expect), "{error:?} lacks {expect:?}");
}

#[test]
fn encodes_plain_text() {
    check("", Special::All, vec![]);
    check("hello", Special::All, vec![259]);
    check("hello wor!", Special::All, [vec![259, 262], bytes("!")].concat());
    check("hellx", Special::All, [vec![258], bytes("x")].concat());
    check("\n\n", Special::All, vec![268]);
}

#[test]
fn normalises_unless_nothing_is_special() {
    check("e\u{301}", Special::All, vec![263]);
    check("e\u{301}", Special::Grounding, vec![263]);
    check("e\u{301}", Special::None, bytes("e\u{301}"));
}

#[test]
fn special_tokens_count_as_asked() {
    let ids = toy().special_ids();
    assert_eq!((ids.eod, ids.ref_start, ids.img_pad), (TokenId(270), TokenId(478), TokenId(486)));
    let text = "x<|im_end|><ref></img>";
    check(text, Special::All, [bytes("x"), vec![272, 478, 485]].concat());
    check(text, Special::Image, [bytes("x<|im_end|>"), vec![478, 485]].concat());
    check(text, Special::Grounding, [bytes("x<|im_end|>"), vec![478], bytes("</img>")].concat());
    check(text, Special::None, bytes(text));
}

#[test]
fn spans_hold_path_bytes() {
    let pad = 486;
    check("<img>a.b</img>", Special::All, vec![484, 97, 46, 98, pad, pad, pad, pad, pad, 485]);
    check("<img>12345678</img>", Special::Image, [vec![484], (49..=56).collect(), vec![485]].concat());
    check("<img></img>", Special::All, [vec![484], vec![pad; 8], vec![485]].concat());
    check("<img>e\u{301}</img>", Special::All, [vec![484, 0xC3, 0xA9], vec![pad; 6], vec![485]].concat());
    check("<img>a</img>", Special::Grounding, [bytes("<img"), bytes(">a</img>")].concat());
}

#[test]
fn bad_spans_are_errors() {
    let check = |text: &str, expect: &str| {
        let error = toy().encode(text, Special::All).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} lacks {expect:?}");
    };
    check("ab<img>a", "byte 2 of the text: unclosed image token");
    check("<img>a<ref>b</img>", "byte 6 of the text: special token <ref> inside the image span");
    check("<img>a<img>b</img>", "special token <img> inside");
    check("<img>123456789</img>", "image path of 9 bytes: an image span holds at most 8");
}

#[test]
fn decodes_back() {
    let toy = toy();
    for text in ["", "hello world", "<ref>x</ref> <|im_start|><img>é</img></img>", "图图\0"] {
        assert_eq!(toy.decode(&ids(&toy, text), Specials::Keep).unwrap(), text);
    }
    let all = ids(&toy, "<|im_start|>a<ref>b<img>c</img>");
    assert_eq!(toy.decode(&all, Specials::Skip).unwrap(), "abc");
    assert_eq!(toy.decode(&all, Specials::KeepGrounding).unwrap(), "a<ref>bc");
    let bad: Vec<TokenId> = [0xE5, 0x9B, 0x41, 0xFF, 0xF0].map(|byte: u32| TokenId(255 - byte)).to_vec();
    assert_eq!(toy.decode(&bad, Specials::Keep).unwrap(), "\u{FFFD}A\u{FFFD}\u{FFFD}");
}

#[test]
fn ids_without_text_are_errors_when_kept() {
    let toy = toy();
    let check = |ids: &[u32], expect: &str| {
        let ids: Vec<TokenId> = ids.iter().map(|&id| TokenId(id)).collect();
        let error = toy.decode(&ids, Specials::Keep).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} lacks {expect:?}");
    };
    check(&[487], "token id 487: the vocabulary has ids 0 to 486");
    check(&[u32::MAX], "token id 4294967295");
    check(&[1, 484, 97], "id 1 of the list: unclosed image token");
    check(&[484, 97, 485], "ids 0 to 2: image span without an <imgpad>");
    check(&[484, 256, 486, 485], "over 255");
    check(&[484, 0xFF, 486, 485], "invalid utf-8");
    assert_eq!(toy.decode(&[TokenId(487), TokenId(u32::MAX)], Specials::Skip).unwrap(), "");
}

#[test]
fn streams_whole_characters() {
    let toy = toy();
    let all: Vec<TokenId> =
        (0..512).chain([0xE5, 0x9B, 0xBE, 0xF0, 0x9F, 0x41, 0xE5].map(|b| 255 - b)).map(TokenId).collect();
    for specials in [Specials::Keep, Specials::KeepGrounding, Specials::Skip] {
        let mut stream = StreamDecoder::new(&toy, specials);
        let text: String = all.iter().map(|&id| stream.push(id)).collect::<String>() + &stream.finish();
        let kept = all.iter().filter(|&&id| toy.keeps(id, specials)).flat_map(|&id| toy.bytes(id).unwrap_or_default());
        assert_eq!(text, String::from_utf8_lossy(&kept.copied().collect::<Vec<u8>>()));
    }
    let mut stream = StreamDecoder::new(&toy, Specials::Keep);
    let pushed: Vec<String> = "图!".bytes().map(|byte| stream.push(TokenId(255 - u32::from(byte)))).collect();
    assert_eq!(pushed, ["", "", "图", "!"]);
}

#[test]
fn the_constructor_proves_the_lists() {
    check_new(|_, types| types.truncate(9), "500 tokens but 9 token types");
    check_new(|tokens, _| tokens[3] = "a b".into(), "token 3 is not spelled in byte characters: \"a b\"");
    check_new(|tokens, _| tokens[257] = tokens[256].clone(), "tokens 256 and 257 are the same bytes");
    check_new(|_, types| types[100] = 3, "token 100: expected the special token <|endoftext|>");
    check_new(|tokens, _| tokens[272] = "<|im_fin|>".into(), "token 272: expected the special token <|im_end|>");
    check_new(|_, types| types[486] = 5, "token 486: expected the special token <imgpad>");
    check_new(|_, types| types[490] = 1, "token 490: expected padding (type 5)");
    check_new(
        |tokens, types| {
            tokens.truncate(480);
            types.truncate(480);
        },
        "token 480: expected the special token <box> (type 3), found no such token",
    );
    check_new(
        |tokens, types| {
            tokens.clear();
            types.clear();
        },
        "special token <|endoftext|>",
    );
    let (tokens, types) = lists(&toy_ranks(), 500);
    assert!(Tokenizer::new(tokens, &types, 0).is_err());
}
