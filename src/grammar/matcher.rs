//! Which tokens may come next.

use std::sync::Arc;

use super::machine::{DEAD, Machine, State};
use super::rules::{TokenName, TokenRef};
use super::{Grammar, Vocabulary};
use crate::error::{Error, Result};

/// An answer that follows a grammar, token by token.
#[derive(Clone, Debug)]
pub struct Matcher {
    grammar: Arc<Grammar>,
    vocabulary: Arc<Vocabulary>,
    /// For each token that the grammar names its id, and whether it is meant or every other.
    tokens: Vec<(u32, bool)>,
    machine: Machine,
    state: State,
}

impl Matcher {
    /// An empty answer. Errors (kind usage): the grammar names a token that is not in the vocabulary or ends answers, or
    /// has too many readings from the start.
    pub fn new(grammar: Arc<Grammar>, vocabulary: Arc<Vocabulary>) -> Result<Self> {
        let tokens = grammar.tokens.iter().map(|token| resolve(token, &vocabulary)).collect::<Result<_>>()?;
        let (machine, state) = Machine::new(&grammar)?;
        Ok(Matcher { grammar, vocabulary, tokens, machine, state })
    }

    /// Whether the answer is complete as it is.
    pub fn may_end(&self) -> bool {
        self.machine.may_end(self.state)
    }

    /// Whether the answer is complete and nothing can follow.
    pub fn must_end(&self) -> bool {
        self.machine.must_end(self.state)
    }

    /// Whether `id` may come next; a stop may where the answer is complete. Errors (kind usage): too many readings.
    /// Cost: a step a byte, microseconds.
    pub fn allows(&mut self, id: u32) -> Result<bool> {
        match self.vocabulary.is_stop(id) {
            true => Ok(self.may_end()),
            false => Ok(self.after(id)? != DEAD),
        }
    }

    /// Every id that may come next, ascending. Errors: none does (kind other), or too many readings (kind usage).
    ///
    /// Cost: a step for each beginning that tokens share, as far as it fits: some 10 ms for 150,000 tokens in the middle
    /// of free text, far less where little is allowed.
    pub fn allowed(&mut self) -> Result<Vec<u32>> {
        let mut allowed = if self.may_end() { self.vocabulary.stops().to_vec() } else { Vec::new() };
        let named: Vec<u32> = self.machine.tokens(&self.grammar, self.state).collect();
        let Matcher { grammar, vocabulary, tokens, machine, state } = self;
        // States after the leading bytes of the token before, as many as it fits.
        let mut path = vec![*state];
        for (id, n_shared) in vocabulary.in_order() {
            // The part that did not fit is shared: neither does this one.
            let fits = n_shared < path.len() && {
                path.truncate(n_shared + 1);
                fits(machine, grammar, &mut path, &vocabulary.bytes(id)[n_shared..])?
            };
            if fits || named.iter().any(|token| is_meant(tokens[*token as usize], id)) {
                allowed.push(id);
            }
        }
        if allowed.is_empty() {
            return Err(Error::other("under the grammar no token can follow the answer so far"));
        }
        allowed.sort_unstable();
        Ok(allowed)
    }

    /// Goes on by one token. After a stop, or one that is not allowed, nothing is any more.
    pub fn accept(&mut self, id: u32) {
        let next = if self.vocabulary.is_stop(id) { DEAD } else { self.after(id).unwrap_or(DEAD) };
        self.state = self.machine.forget(next);
    }

    /// The state after a token that is not a stop.
    fn after(&mut self, id: u32) -> Result<State> {
        let Matcher { grammar, vocabulary, tokens, machine, state } = self;
        let as_a_whole = match tokens.is_empty() {
            true => DEAD,
            false => machine.step_token(grammar, *state, |token| is_meant(tokens[token as usize], id))?,
        };
        let bytes = vocabulary.bytes(id);
        let mut path = vec![*state];
        let in_bytes = match !bytes.is_empty() && fits(machine, grammar, &mut path, bytes)? {
            true => path.last().copied().unwrap_or(DEAD),
            false => DEAD,
        };
        Ok(if as_a_whole == DEAD { in_bytes } else { machine.union(as_a_whole, in_bytes) })
    }
}

/// Steps from the last state of `path` along `bytes`, adding the states, as long as they fit.
fn fits(machine: &mut Machine, grammar: &Grammar, path: &mut Vec<State>, bytes: &[u8]) -> Result<bool> {
    for byte in bytes {
        let next = machine.step(grammar, path.last().copied().unwrap_or(DEAD), *byte)?;
        if next == DEAD {
            return Ok(false);
        }
        path.push(next);
    }
    Ok(true)
}

fn is_meant((id, negated): (u32, bool), found: u32) -> bool {
    (id == found) != negated
}

fn resolve(token: &TokenRef, vocabulary: &Vocabulary) -> Result<(u32, bool)> {
    let (id, name) = match &token.name {
        TokenName::Id(id) => (Some(*id).filter(|id| vocabulary.has(*id)), format!("<[{id}]>")),
        TokenName::Text(text) => (vocabulary.find(text.as_bytes()), text.clone()),
    };
    let id = id.ok_or_else(|| {
        Error::usage(format!("the grammar names the token {name:.60}, which is not in the vocabulary or ends answers"))
    })?;
    Ok((id, token.negated))
}
