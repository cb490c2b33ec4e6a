//! Prompts against what the reference made, on the real vocabulary. Slots are compared as `<imgpad>`.

use serde_json::Value;

use super::*;
use crate::tokenizer::samples::{golden, real, real_lists, shared};

fn token_ids(list: &Value) -> Vec<TokenId> {
    serde_json::from_value(list.clone()).unwrap()
}

/// Empties the slots; goes through `from_ids`, which is checked on the way.
fn without_paths(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<TokenId> {
    flat(tokenizer, &from_ids(tokenizer, ids).unwrap())
}

fn flat(tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<TokenId> {
    prompt.ids_with_slots(tokenizer.special_ids().img_pad, tokenizer.n_queries())
}

/// Takes `Picture k: <img>path</img>\n` off the front of a golden content; all pictures are picture 0.
fn message(content: &str, prefix: PicturePrefix) -> Message {
    let (mut rest, mut pictures) = (content, Vec::new());
    while let Some((before, after)) = rest.split_once("</img>\n").filter(|(before, _)| {
        ["<img>", "Picture "].iter().any(|start| before.starts_with(start)) && before.contains("<img>")
    }) {
        let number = before.split_once("<img>").unwrap().0;
        assert!(number.is_empty() == (prefix == PicturePrefix::Bare), "{content}");
        pictures.push(0);
        rest = after;
    }
    Message { text: rest.to_string(), pictures }
}

fn context(tokenizer: &Tokenizer, case: &Value, max_window_size: usize) -> Vec<TokenId> {
    let query = case["query"].as_str().unwrap();
    let bare = query.starts_with("<img>");
    let picture_prefix = if bare { PicturePrefix::Bare } else { PicturePrefix::Spaced };
    let turn = |turn: &Value| Turn {
        query: message(turn[0].as_str().unwrap(), picture_prefix),
        answer: turn[1].as_str().map(str::to_string),
    };
    let history: Vec<Turn> = case["history"].as_array().unwrap().iter().map(turn).collect();
    let settings = ChatSettings { system: case["system"].as_str().unwrap().into(), max_window_size, picture_prefix };
    flat(tokenizer, &chat(tokenizer, &settings, &history, &message(query, picture_prefix)).unwrap())
}

#[test]
fn make_context() {
    let (Some(golden), Some(tokenizer)) = (golden("chat.json"), real()) else { return };
    let cases = golden["make_context"].as_array().unwrap();
    for case in cases {
        let expect = without_paths(&tokenizer, &token_ids(&case["ids"]));
        let found = context(&tokenizer, case, case["max_window_size"].as_u64().unwrap() as usize);
        assert_eq!(found, expect, "{}", case["query"]);
    }
    eprintln!("make_context: {} prompts", cases.len());
}

#[test]
fn window_edges() {
    let (Some(golden), Some(tokenizer)) = (golden("chat.json"), real()) else { return };
    let edges = &golden["window_edges_last2_turns"];
    let sizes = edges["size_to_prompt_len"].as_array().unwrap();
    for size in sizes {
        let (window, n_positions) = (size[0].as_u64().unwrap() as usize, size[1].as_u64().unwrap() as usize);
        assert_eq!(context(&tokenizer, edges, window).len(), n_positions, "window {window}");
    }
    eprintln!("window edges: {}", sizes.len());
}

#[test]
fn raw_prompts() {
    let (Some(golden), Some(tokenizer)) = (golden("chat.json"), real()) else { return };
    for case in golden["base_model_prompts"].as_array().unwrap() {
        let (prompt, paths) = raw(&tokenizer, case["text"].as_str().unwrap(), 0, PicturePrefix::Spaced).unwrap();
        assert_eq!(paths.len(), prompt.n_images());
        assert_eq!(flat(&tokenizer, &prompt), without_paths(&tokenizer, &token_ids(&case["ids"])));
    }
    for case in golden["from_list_format"].as_array().unwrap() {
        let input = case["input"].as_array().unwrap();
        let n_pictures = input.iter().filter(|element| element.get("image").is_some()).count();
        let Some(text) = input.last().and_then(|element| element["text"].as_str()) else { continue };
        for (key, prefix) in [("bf16_repo", PicturePrefix::Spaced), ("int4_repo", PicturePrefix::Unspaced)] {
            let (prompt, _) = raw(&tokenizer, text, n_pictures, prefix).unwrap();
            let ids = tokenizer.encode(case[key]["ok"].as_str().unwrap(), Special::All).unwrap();
            assert_eq!(flat(&tokenizer, &prompt), without_paths(&tokenizer, &ids));
        }
    }
}

#[test]
fn tiny_a_prompts() {
    let Some(bytes) = shared("goldens/tiny-a/golden/cases.json") else { return };
    let cases: Value = serde_json::from_slice(&bytes).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let Some((tokens, types)) = real_lists(number(&cases["params"]["ranks"]), 2304) else { return };
    let tokenizer = Tokenizer::new(tokens, &types, number(&cases["img_token_span"])).unwrap();
    let ids = |name: &str| without_paths(&tokenizer, &token_ids(&cases["text"][name]["prompt_ids"]));
    let raw = |text: &str, n_pictures| {
        let (prompt, _) = raw(&tokenizer, text, n_pictures, PicturePrefix::Spaced).unwrap();
        flat(&tokenizer, &prompt)
    };
    assert_eq!(raw("Hello, world! 12 + 30 = ", 0), ids("text_short"));
    assert_eq!(raw("What is this?", 1), ids("one_image"));
    assert_eq!(raw("Picture 1: <img>a.png</img>\nand Picture 2: <img>b.png</img>\ncompare them", 0), ids("two_images"));
    assert_eq!(raw("<img>b.png</img>Describe the image in English:", 0), ids("bare_image_caption"));
    assert_eq!(raw("<img>a.png</img><ref>the dog</ref><box>", 0), ids("ref_box"));
    let system = "You are a helpful assistant.".to_string();
    let settings = ChatSettings { system, max_window_size: 6144, picture_prefix: PicturePrefix::Spaced };
    let query = Message { text: "What is this?".into(), pictures: vec![0] };
    assert_eq!(flat(&tokenizer, &chat(&tokenizer, &settings, &[], &query).unwrap()), ids("chat_one_image"));
}
