//! Texts: answers, questions, grammars, lines of a batch.

use std::sync::Arc;

use qvl::grammar::{Grammar, Matcher, Vocabulary, from_json_schema};
use qvl::grounding::{Selection, n_places, regions, select};
use qvl::prompt::{ChatSettings, Message, PicturePrefix, Turn, chat, from_ids, raw};
use qvl::tokenizer::{Special, Specials, StreamDecoder, TokenId, Tokenizer};

use super::{file, seeds};
use crate::batch_input::{Items, Shard};

fn with_tokenizer(f: impl FnOnce(&Tokenizer)) {
    thread_local! {
        static TOKENIZER: Tokenizer = seeds::tokenizer();
    }
    TOKENIZER.with(f);
}

/// An answer's regions are inside the picture, and a question's can be written.
pub fn boxes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (found, n_malformed) = regions(&text);
    assert!(found.len() + n_malformed <= text.matches('<').count());
    for region in &found {
        for (width, height) in [(1u32, 1u32), (640, 480), (u32::MAX, 3)] {
            let [x1, y1, x2, y2] = region.box_pixels(width, height);
            assert!((0..=x2).contains(&x1) && (0..=y2).contains(&y1), "{region:?}");
            assert!(x2 <= i64::from(width) && y2 <= i64::from(height), "{region:?}");
            let quad = region.quad_pixels(width, height);
            assert!(quad.iter().flatten().all(|[x, y]| (x1..=x2).contains(x) && (y1..=y2).contains(y)));
        }
    }
    if let Ok(selection) = Selection::parse(text.trim())
        && let Ok(question) = select("What is {}?", &[selection], &[(640, 480), (7, 9)])
    {
        let (found, n_malformed) = regions(&question);
        assert_eq!((found.len(), n_malformed), (1, 0), "{question}");
        assert!(found[0].corners_1000.iter().flatten().all(|v| (0..1000).contains(v)), "{question}");
    }
    let sound = Selection::new([0.0, 0.0, 5.0, 5.0]).expect("a region");
    let question = select(&text, &[sound.clone(), sound], &[(10, 10)]).expect("a region inside its picture");
    assert_eq!(
        question.matches("<box>(0,0),(500,500)</box>").count() - text.matches("<box>(0,0),(500,500)</box>").count(),
        2
    );
    assert!(n_places(&question) <= n_places(&text));
}

/// Text → ids → text in all ways, and prompts of it.
pub fn prompt(data: &[u8]) {
    with_tokenizer(|tokenizer| {
        let text = String::from_utf8_lossy(data);
        let ids = tokenizer.encode(&text, Special::None).expect("ids of any text");
        assert!(ids.iter().all(|id| *id < tokenizer.special_ids().eod));
        assert_eq!(tokenizer.decode(&ids, Specials::Keep).expect("ids that were made"), text);
        for special in [Special::All, Special::Image, Special::Grounding] {
            if let Ok(ids) = tokenizer.encode(&text, special) {
                let back = tokenizer.decode(&ids, Specials::Keep);
                // A picture's path is put into its slots as bytes, and comes back as the reference reads them.
                if !text.contains("<img>") {
                    let back = back.expect("ids that were made");
                    assert_eq!(tokenizer.encode(&back, special).expect("text that was read"), ids);
                    assert!(!text.is_ascii() || back == text);
                }
            }
        }
        let mut any: Vec<TokenId> =
            data.chunks(2).map(|b| TokenId(u32::from(b[0]) + 256 * u32::from(*b.last().unwrap_or(&0) % 3))).collect();
        let mut stream = StreamDecoder::new(tokenizer, Specials::Skip);
        let mut streamed: String = any.iter().map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        let is_plain = |id: &TokenId| *id < tokenizer.special_ids().eod;
        any.retain(is_plain);
        assert_eq!(tokenizer.decode(&any, Specials::Skip).expect("ordinary ids"), streamed);
        prompts(tokenizer, &text, &any);
    });
}

fn prompts(tokenizer: &Tokenizer, text: &str, ids: &[TokenId]) {
    let n_queries = tokenizer.n_queries();
    if let Ok((prompt, paths)) = raw(tokenizer, text, 2, PicturePrefix::Spaced) {
        assert_eq!(prompt.n_images(), 2 + paths.len());
        let flat = prompt.ids_with_slots(tokenizer.special_ids().img_pad, n_queries);
        assert_eq!(flat.len(), prompt.n_positions(n_queries));
        // Only where no tag was typed alone are the ids a prompt of their own.
        if let Ok(again) = from_ids(tokenizer, &flat) {
            assert_eq!(again.n_positions(n_queries), flat.len());
        }
    }
    assert_eq!(from_ids(tokenizer, ids).expect("ordinary ids").n_positions(n_queries), ids.len());
    let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (system, question) = text.split_at(middle);
    let settings = ChatSettings { system: system.into(), max_window_size: 64, picture_prefix: PicturePrefix::Unspaced };
    let query = Message { text: question.into(), pictures: vec![1] };
    let turn = Turn { query: Message { text: system.into(), pictures: vec![0] }, answer: Some(question.into()) };
    let prompt = chat(tokenizer, &settings, &[turn], &query).expect("a prompt of any conversation");
    assert!((1..=2).contains(&prompt.n_images()), "the question's picture is always shown");
}

/// A grammar or a JSON Schema, followed for some tokens.
pub fn grammar(data: &[u8]) {
    thread_local! {
        static VOCABULARY: Arc<Vocabulary> = {
            let tokenizer = seeds::tokenizer();
            Arc::new(tokenizer.vocabulary(&[tokenizer.special_ids().eod]))
        };
    }
    let text = String::from_utf8_lossy(data);
    let grammars = [Grammar::parse(&text), from_json_schema(&text)];
    for grammar in grammars.into_iter().flatten() {
        let _ = grammar.has_an_end();
        let vocabulary = VOCABULARY.with(Arc::clone);
        let Ok(mut matcher) = Matcher::new(Arc::new(grammar), vocabulary) else { continue };
        for step in 0..8 {
            let Ok(allowed) = matcher.allowed() else { break };
            let Some(id) = allowed.get(usize::from(data.get(step).copied().unwrap_or(0)) % allowed.len().max(1)) else {
                break;
            };
            assert!(matcher.allows(*id).unwrap_or(true), "allowed, but not {id}");
            matcher.accept(*id);
        }
    }
}

/// The lines of a batch: each gives an item or an error, with a name of its own.
pub fn batch(data: &[u8]) {
    let path = file("batch.jsonl", data);
    let all = Shard::parse("1/1").expect("a shard");
    let mut items = Items::open(&path, Some("What?"), all).expect("a file");
    let mut names = std::collections::HashSet::new();
    let mut n_items = 0;
    while let Some((name, item)) = items.next().expect("a file that can be read") {
        n_items += 1;
        if item.is_ok() {
            assert!(names.insert(name.to_string()), "{name} twice");
        }
    }
    assert!(n_items <= data.split(|b| *b == b'\n').count());
    assert_eq!(Items::count(&path, all).expect("a file that can be read"), n_items);
}
