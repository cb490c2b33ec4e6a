//! Grammars as this crate follows them, against llama.cpp's own, by the crate `llama-cpp-2`.

use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use qvl::grammar::{Grammar, Matcher};
use qvl::session::TextFile;
use qvl::tokenizer::TokenId;

use crate::{models, stock};

/// What llama.cpp's documentation shows, and what is done with grammars here.
const GRAMMARS: [&str; 10] = [
    "root ::= \"yes\" | \"no\" | \"yes and no\"",
    "root ::= [0-9]+ (\".\" [0-9]{1,3})?",
    "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= ident | num | \"(\" ws expr \")\" ws\n\
     ident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*",
    "root ::= object\nvalue ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n\
     object ::= \"{\" ws ( string \":\" ws value (\",\" ws string \":\" ws value)* )? \"}\" ws\n\
     array ::= \"[\" ws ( value (\",\" ws value)* )? \"]\" ws\n\
     string ::= \"\\\"\" ( [^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt] | \"u\" [0-9a-fA-F]{4}) )* \"\\\"\" ws\n\
     number ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws\n\
     ws ::= | \" \" | \"\\n\" [ \\t]{0,20}",
    "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"",
    "root ::= [^<]* (\"<ref>\" [^<]* \"</ref>\")? <box> [0-9,()]{3,9} </box>",
    "root ::= \"a\"{0} \"b\"{2} (\"c\" | \"d\" \"e\"?){1,4} .?",
    "root ::= ([a-z]{2,3} \" \"){2,}",
    "root ::= e f \"!\"\ne ::= f f\nf ::= \"x\"? | \"yz\"",
    qvl::grounding::GRAMMAR,
];

/// Along random answers the same tokens are possible, and the same answers complete. ASCII only: where a token is part of
/// a character, llama.cpp is less strict.
#[test]
fn grammars_allow_what_llama_cpp_allows() {
    let path = models::random().text;
    let text = TextFile::open(&path).unwrap();
    let (tokenizer, special) = (text.tokenizer(), text.tokenizer().special_ids());
    let vocabulary = Arc::new(tokenizer.vocabulary(&[special.eod, special.im_end, special.im_start]));
    let params = LlamaModelParams::default().with_vocab_only(true);
    let model = LlamaModel::load_from_file(stock::backend(), &path, &params).unwrap();
    let is_text = |id: &u32| {
        let bytes = tokenizer.bytes(TokenId(*id)).unwrap();
        bytes.is_ascii() && *id != special.im_start.to_u32() && *id != special.im_end.to_u32()
    };
    let ids: Vec<u32> = (0..tokenizer.n_used() as u32).filter(is_text).collect();
    let eod = special.eod.to_u32();
    let mut state = 1u64;
    for (grammar, _) in GRAMMARS.iter().flat_map(|grammar| (0..12).map(move |walk| (grammar, walk))) {
        let ours = Arc::new(Grammar::parse(grammar).unwrap_or_else(|e| panic!("{e}: {grammar}")));
        let mut ours = Matcher::new(ours, vocabulary.clone()).unwrap();
        let mut theirs = LlamaSampler::grammar(&model, grammar, "root").unwrap();
        let mut answer = Vec::new();
        for _ in 0..30 {
            let data = ids.iter().map(|id| LlamaTokenData::new(LlamaToken(*id as i32), 0.0, 0.0));
            let mut candidates = LlamaTokenDataArray::from_iter(data, false);
            theirs.apply(&mut candidates);
            let expect: Vec<u32> =
                candidates.data.iter().filter(|d| d.logit() == 0.0).map(|d| d.id().0 as u32).collect();
            // llama.cpp never lets a zero byte through.
            let starts_with_zero = |id: &u32| tokenizer.bytes(TokenId(*id)).unwrap()[0] == 0;
            let found: Vec<u32> =
                ours.allowed().unwrap().into_iter().filter(|id| is_text(id) && !starts_with_zero(id)).collect();
            assert_eq!(found, expect, "after {:?} under {grammar}", String::from_utf8_lossy(&answer));
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let more: Vec<u32> = found.into_iter().filter(|id| *id != eod).collect();
            let Some(id) = more.get((state >> 33) as usize % more.len().max(1)) else { break };
            answer.extend_from_slice(tokenizer.bytes(TokenId(*id)).unwrap());
            ours.accept(*id);
            theirs.accept(LlamaToken(*id as i32));
        }
    }
}
