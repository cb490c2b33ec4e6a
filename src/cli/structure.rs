//! What shapes an answer beyond its words: grammars, schemas, and how likely each token was.

use std::fs::File;
use std::sync::Arc;

use qvl::error::{Error, Result};
use qvl::grammar::{Grammar, Matcher, from_json_schema};
use qvl::session::TokenLogprobs;
use qvl::tokenizer::{TokenId, Tokenizer};
use serde_json::{Value, json};

use super::args::StructureArgs;
use super::read_text;

/// The grammar that the flags name, if they do. Errors (kind usage) name the file.
pub fn grammar(args: &StructureArgs) -> Result<Option<Grammar>> {
    let (path, parse): (_, fn(&str) -> Result<Grammar>) = match (&args.grammar, &args.json_schema) {
        (Some(path), _) => (path, Grammar::parse),
        (None, Some(path)) => (path, from_json_schema),
        (None, None) => return Ok(None),
    };
    let text = File::open(path).and_then(read_text).map_err(|e| Error::usage("cannot be read").because(e).at(path))?;
    parse(&text).map(Some).map_err(|e| e.at(path))
}

/// What follows a grammar with a model's tokens, where `stop_ids` end an answer.
pub fn matcher(grammar: Grammar, tokenizer: &Tokenizer, stop_ids: &[TokenId]) -> Result<Matcher> {
    Matcher::new(Arc::new(grammar), Arc::new(tokenizer.vocabulary(stop_ids)))
}

/// Each token with its log-probability. `token` is its text, with U+FFFD for bytes that are no character; `bytes` is exact.
pub fn logprobs(tokens: &[TokenLogprobs], tokenizer: &Tokenizer) -> Vec<Value> {
    let one = |id: TokenId, logprob: f64| {
        let bytes = tokenizer.bytes(id).unwrap_or_default();
        json!({"id": id, "token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": logprob})
    };
    let with_top = |token: &TokenLogprobs| {
        let mut json = one(token.id, token.logprob);
        json["top"] = token.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
        json
    };
    tokens.iter().map(with_top).collect()
}
