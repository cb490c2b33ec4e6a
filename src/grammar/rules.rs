//! Rules under construction.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Most symbols of a grammar, repetitions written out. A symbol takes 8 bytes.
const MAX_SYMS: usize = 1 << 18;

/// One place of an alternative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sym {
    /// The alternative is complete.
    End,
    /// One byte of the set with this index.
    Bytes(u32),
    /// What the rule with this index says.
    Rule(u32),
    /// One whole token, by index.
    Token(u32),
}

/// A token named in a grammar: `<[id]>`, or `<text>` where the brackets belong to the text. `!` in front: any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenRef {
    pub name: TokenName,
    pub negated: bool,
}

/// How it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenName {
    Id(u32),
    Text(String),
}

/// A set of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    /// The bytes `low..=high`.
    pub fn range(low: u8, high: u8) -> Self {
        let mut set = ByteSet::default();
        set.add(low, high);
        set
    }

    /// Adds `low..=high`.
    pub fn add(&mut self, low: u8, high: u8) {
        (low..=high).for_each(|b| self.0[usize::from(b >> 6)] |= 1 << (b & 63));
    }

    /// Whether `byte` is in it.
    pub fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }
}

/// Rules by index; `None` as long as one was only named.
#[derive(Default)]
pub(super) struct Rules {
    pub rules: Vec<Option<Vec<Vec<Sym>>>>,
    /// For each rule the name that the text gives it, or the rule that it was made for.
    pub names: Vec<Arc<str>>,
    pub sets: Vec<ByteSet>,
    pub tokens: Vec<TokenRef>,
    pub root: u32,
    by_name: HashMap<String, u32>,
    set_ids: HashMap<ByteSet, u32>,
    n_syms: usize,
}

impl Rules {
    /// The rule that the text calls `name`, made known if it was not.
    pub fn named(&mut self, name: &str) -> u32 {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let id = self.push(name.into());
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// The rule that the text calls `name`, if any was.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// A rule without a name of its own, on behalf of rule `owner`.
    pub fn anonymous(&mut self, owner: u32, alternatives: Vec<Vec<Sym>>) -> Result<Sym> {
        let name = self.names[owner as usize].clone();
        let id = self.push(name);
        self.define(id, alternatives)?;
        Ok(Sym::Rule(id))
    }

    /// Says what a rule is. Errors (kind usage): there are too many symbols.
    pub fn define(&mut self, id: u32, alternatives: Vec<Vec<Sym>>) -> Result<()> {
        self.n_syms += alternatives.iter().map(|a| a.len() + 1).sum::<usize>();
        if self.n_syms > MAX_SYMS {
            return Err(Error::usage(format!("the grammar is too large: more than {MAX_SYMS} symbols")));
        }
        self.rules[id as usize] = Some(alternatives);
        Ok(())
    }

    /// One byte of `set`.
    pub fn bytes(&mut self, set: ByteSet) -> Sym {
        let sets = &mut self.sets;
        Sym::Bytes(*self.set_ids.entry(set).or_insert_with(|| {
            sets.push(set);
            sets.len() as u32 - 1
        }))
    }

    /// A token.
    pub fn token(&mut self, token: TokenRef) -> Sym {
        self.tokens.push(token);
        Sym::Token(self.tokens.len() as u32 - 1)
    }

    fn push(&mut self, name: Arc<str>) -> u32 {
        self.rules.push(None);
        self.names.push(name);
        self.rules.len() as u32 - 1
    }
}
