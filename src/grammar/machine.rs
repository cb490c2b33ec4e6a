//! All readings of an answer so far, byte by byte.
//!
//! A reading is a stack: the symbol that comes next, and below it where to go on after its rule. Stacks are numbered and
//! share what lies below (a node is a symbol and the stack under it), as are sets of stacks, the states; so a step from
//! a state by a byte is computed once and looked up ever after. Source of the idea: pushdown recognisers with shared
//! stacks (Tomita's graph-structured stack), without merging from above.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Grammar;
use super::rules::Sym;
use crate::error::{Error, Result};

/// Most readings at once. An enumeration of 16,384 strings has as many at its first byte.
const MAX_READINGS: usize = 1 << 14;
/// Most numbers that states hold together, 4 bytes each; beyond, nothing more is computed before old states are
/// forgotten. What one look over the vocabulary may cost at most: about a second.
const MAX_HELD: usize = 1 << 22;

/// A set of readings, by number. [`DEAD`] has none.
pub(super) type State = u32;
/// The answer fits no reading.
pub(super) const DEAD: State = 0;
/// The stack of a complete answer.
const COMPLETE: u32 = 0;

/// States that were met, and steps between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// For each stack its top symbol's place and the stack below.
    nodes: Vec<(u32, u32)>,
    node_ids: HashMap<(u32, u32), u32>,
    /// For each state its stacks, sorted.
    states: Vec<Arc<[u32]>>,
    state_ids: HashMap<Arc<[u32]>, State>,
    steps: HashMap<(State, u8), State>,
    n_held: usize,
}

impl Machine {
    /// A machine, and the state before the first byte.
    pub fn new(grammar: &Grammar) -> Result<(Self, State)> {
        let mut machine = Machine::empty();
        let starts = grammar.rules[grammar.root as usize].iter().map(|at| (*at, COMPLETE)).collect();
        let start = machine.close(grammar, starts)?;
        Ok((machine, start))
    }

    fn empty() -> Self {
        let mut machine = Machine { nodes: vec![(u32::MAX, u32::MAX)], ..Machine::default() };
        machine.intern(Vec::new());
        machine
    }

    /// The state after one more byte.
    pub fn step(&mut self, grammar: &Grammar, state: State, byte: u8) -> Result<State> {
        if let Some(next) = self.steps.get(&(state, byte)) {
            return Ok(*next);
        }
        let taken = |sym| matches!(sym, Sym::Bytes(set) if grammar.sets[set as usize].contains(byte));
        let next = self.close(grammar, self.after(grammar, state, taken))?;
        self.steps.insert((state, byte), next);
        Ok(next)
    }

    /// The state after a token that a rule names as a whole, of which `taken` says if it is this one.
    pub fn step_token(&mut self, grammar: &Grammar, state: State, taken: impl Fn(u32) -> bool) -> Result<State> {
        let after = self.after(grammar, state, |sym| matches!(sym, Sym::Token(token) if taken(token)));
        if after.is_empty() { Ok(DEAD) } else { self.close(grammar, after) }
    }

    /// The readings of both.
    pub fn union(&mut self, a: State, b: State) -> State {
        let mut both = [&self.states[a as usize][..], &self.states[b as usize]].concat();
        both.sort_unstable();
        both.dedup();
        self.intern(both)
    }

    /// Whether the answer may end here.
    pub fn may_end(&self, state: State) -> bool {
        self.states[state as usize].first() == Some(&COMPLETE)
    }

    /// Whether it must: nothing can follow.
    pub fn must_end(&self, state: State) -> bool {
        *self.states[state as usize] == [COMPLETE]
    }

    /// The tokens that rules name here, by their index in the grammar.
    pub fn tokens<'a>(&'a self, grammar: &'a Grammar, state: State) -> impl Iterator<Item = u32> + 'a {
        self.tops(grammar, state).filter_map(|(sym, _)| if let Sym::Token(token) = sym { Some(token) } else { None })
    }

    /// Forgets everything but `state`, once that is worth it. Returns its new number.
    pub fn forget(&mut self, state: State) -> State {
        if self.n_held + self.nodes.len() + self.steps.len() < MAX_HELD / 2 {
            return state;
        }
        let mut fresh = Machine::empty();
        // Stacks below have smaller numbers than those above, so they are there when they are needed.
        let mut new_ids = HashMap::from([(COMPLETE, COMPLETE)]);
        let (mut wanted, mut open) = (Vec::new(), self.states[state as usize].to_vec());
        let mut seen = HashSet::from([COMPLETE]);
        while let Some(node) = open.pop() {
            if seen.insert(node) {
                wanted.push(node);
                open.push(self.nodes[node as usize].1);
            }
        }
        wanted.sort_unstable();
        for node in wanted {
            let (at, below) = self.nodes[node as usize];
            new_ids.insert(node, fresh.push(at, new_ids.get(&below).copied().unwrap_or(COMPLETE)));
        }
        let mut stacks: Vec<u32> = self.states[state as usize].iter().filter_map(|n| new_ids.get(n).copied()).collect();
        stacks.sort_unstable();
        let state = fresh.intern(stacks);
        *self = fresh;
        state
    }

    /// Symbols that come next in the readings of `state`, and their stacks.
    fn tops<'a>(&'a self, grammar: &'a Grammar, state: State) -> impl Iterator<Item = (Sym, (u32, u32))> + 'a {
        let stacks = self.states[state as usize].iter().filter(|stack| **stack != COMPLETE);
        stacks.map(|stack| self.nodes[*stack as usize]).map(|(at, below)| (grammar.syms[at as usize], (at, below)))
    }

    /// Where readings go on whose next symbol is `taken`.
    fn after(&self, grammar: &Grammar, state: State, taken: impl Fn(Sym) -> bool) -> Vec<(u32, u32)> {
        let taken = self.tops(grammar, state).filter(|(sym, _)| taken(*sym));
        taken.map(|(_, (at, below))| (at + 1, below)).collect()
    }

    /// The state of all readings that go on at these places, once rules are entered and left up to the next byte or
    /// token. It ends since no rule is left-recursive. Errors (kind usage): too many readings, or too much held.
    fn close(&mut self, grammar: &Grammar, mut open: Vec<(u32, u32)>) -> Result<State> {
        let (mut seen, mut stacks) = (HashSet::new(), Vec::new());
        while let Some((at, below)) = open.pop() {
            if !seen.insert((at, below)) {
                continue;
            }
            if seen.len() > 4 * MAX_READINGS || self.n_held + self.nodes.len() > MAX_HELD {
                return Err(Error::usage("the grammar is too ambiguous: the answer so far has too many readings"));
            }
            match grammar.syms[at as usize] {
                Sym::End if below == COMPLETE => stacks.push(COMPLETE),
                Sym::End => open.push(self.nodes[below as usize]),
                Sym::Bytes(_) | Sym::Token(_) => stacks.push(self.push(at, below)),
                Sym::Rule(rule) => {
                    // Nothing comes after it: there is no need to come back. Lists would grow stacks otherwise.
                    let is_last = grammar.syms[at as usize + 1] == Sym::End;
                    let below = if is_last { below } else { self.push(at + 1, below) };
                    open.extend(grammar.rules[rule as usize].iter().map(|start| (*start, below)));
                }
            }
        }
        stacks.sort_unstable();
        stacks.dedup();
        if stacks.len() > MAX_READINGS {
            return Err(Error::usage(format!(
                "the grammar is too ambiguous: more than {MAX_READINGS} readings at once"
            )));
        }
        Ok(self.intern(stacks))
    }

    fn push(&mut self, at: u32, below: u32) -> u32 {
        let nodes = &mut self.nodes;
        *self.node_ids.entry((at, below)).or_insert_with(|| {
            nodes.push((at, below));
            nodes.len() as u32 - 1
        })
    }

    fn intern(&mut self, stacks: Vec<u32>) -> State {
        if let Some(state) = self.state_ids.get(&stacks[..]) {
            return *state;
        }
        // A state costs something even if it is small.
        self.n_held += stacks.len() + 8;
        let stacks: Arc<[u32]> = stacks.into();
        let state = self.states.len() as State;
        self.states.push(stacks.clone());
        self.state_ids.insert(stacks, state);
        state
    }
}
