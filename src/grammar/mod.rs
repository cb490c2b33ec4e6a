//! Grammars for answers: GBNF text, as llama.cpp writes it, proven once and then followed token by token.
//!
//! Why not llama.cpp's own: its parser writes to stderr and takes a hostile file's nesting to the stack's end, it
//! throws where a token fits nowhere, and it keeps every reading of the answer apart, so that their number can double
//! with each character and nothing can stop it. Here every number is capped, readings share what they have in common,
//! and a class of characters is a class of UTF-8 byte sequences: what a grammar lets through is UTF-8. Answers are the
//! same: tests compare both on the crate's own grammars.
//!
//! The way: text → [`Grammar`] (proven) → [`Matcher`] over a [`Vocabulary`] (which tokens may come next).

mod check;
mod classes;
mod machine;
mod matcher;
mod parse;
mod repeat;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use matcher::Matcher;
pub use schema::from_json_schema;
pub use vocabulary::Vocabulary;

use rules::{Rules, Sym, TokenRef};

use crate::error::Result;

/// A grammar that has been proven: its rule `root` exists, as does every rule that is named, none begins with itself,
/// and each class of characters has one. Immutable; matchers share it.
#[derive(Debug)]
pub struct Grammar {
    /// All alternatives, one after the other, each closed by [`Sym::End`].
    syms: Vec<Sym>,
    /// For each rule where its alternatives begin in `syms`. Never empty.
    rules: Vec<Vec<u32>>,
    /// Sets of bytes that symbols name by index.
    sets: Vec<rules::ByteSet>,
    /// Tokens that symbols name by index.
    tokens: Vec<TokenRef>,
    root: u32,
    /// For each rule whether it has an end.
    ends: Vec<bool>,
}

impl Grammar {
    /// Reads GBNF. Errors (kind usage) name the line and column, or the rule: wrong syntax, a text larger than 1 MiB,
    /// groups nested deeper than 200, repetitions beyond 2000, more than 262,144 symbols once repetitions are written
    /// out, no rule `root`, a rule that is missing, defined twice, or begins with itself. Cost: one pass.
    pub fn parse(text: &str) -> Result<Grammar> {
        let rules = parse::parse(text)?;
        check::defined(&rules)?;
        check::left_recursion(&rules)?;
        Ok(Grammar::flat(rules))
    }

    /// Whether an answer can ever be complete.
    pub fn has_an_end(&self) -> bool {
        self.ends[self.root as usize]
    }

    fn flat(from: Rules) -> Grammar {
        let ends = check::derivable(&from, check::Terminals::Count);
        let (mut syms, mut rules) = (Vec::new(), Vec::with_capacity(from.rules.len()));
        for alternatives in from.rules.into_iter().map(Option::unwrap_or_default) {
            let mut starts = Vec::with_capacity(alternatives.len());
            for alternative in alternatives {
                starts.push(syms.len() as u32);
                syms.extend(alternative);
                syms.push(Sym::End);
            }
            rules.push(starts);
        }
        Grammar { syms, rules, sets: from.sets, tokens: from.tokens, root: from.root, ends }
    }
}
