//! What is proven about rules before they are followed. All of it is linear in the symbols and recurses nowhere.

use super::rules::{Rules, Sym};
use crate::error::{Error, Result};

/// Every rule that is named must be defined.
pub(super) fn defined(rules: &Rules) -> Result<()> {
    match rules.rules.iter().position(Option::is_none) {
        Some(id) => Err(Error::usage(format!("the rule {:?} is not defined", rules.names[id]))),
        None => Ok(()),
    }
}

/// What a byte or a token is in [`derivable`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminals {
    /// Something that can be written: the question is which rules have an end.
    Count,
    /// An obstacle: the question is which rules can be empty.
    Block,
}

/// Which rules can be derived to their end.
pub(super) fn derivable(rules: &Rules, terminals: Terminals) -> Vec<bool> {
    let n = rules.rules.len();
    // For each alternative its rule and the symbols that are still to be derived; for each rule where it is used.
    let (mut open, mut uses) = (Vec::new(), vec![Vec::new(); n]);
    let (mut done, mut fresh) = (vec![false; n], Vec::new());
    for (id, alternative) in alternatives(rules) {
        let mut n_open = 0;
        for sym in alternative {
            match sym {
                Sym::Rule(used) => uses[*used as usize].push(open.len()),
                Sym::End => continue,
                _ if terminals == Terminals::Count => continue,
                _ => {}
            }
            n_open += 1;
        }
        open.push((id, n_open));
        if n_open == 0 {
            fresh.push(id);
        }
    }
    while let Some(id) = fresh.pop() {
        if std::mem::replace(&mut done[id], true) {
            continue;
        }
        for at in std::mem::take(&mut uses[id]) {
            let (rule, n_open) = &mut open[at];
            *n_open -= 1;
            if *n_open == 0 {
                fresh.push(*rule);
            }
        }
    }
    done
}

/// No rule may begin with itself and go on: its stack would grow without a byte being read. A rule that begins with
/// itself and ends there (a repetition of something that can be empty) is harmless.
pub(super) fn left_recursion(rules: &Rules) -> Result<()> {
    let empty = derivable(rules, Terminals::Block);
    let mut edges: Vec<Vec<(usize, bool)>> = vec![Vec::new(); rules.rules.len()];
    for (id, alternative) in alternatives(rules) {
        for (i, sym) in alternative.iter().enumerate() {
            let Sym::Rule(next) = sym else { break };
            edges[id].push((*next as usize, i + 1 < alternative.len()));
            if !empty[*next as usize] {
                break;
            }
        }
    }
    let component = components(&edges);
    let goes_on = |(id, next): (usize, &Vec<(usize, bool)>)| {
        next.iter().any(|(to, more)| *more && component[*to] == component[id]).then_some(id)
    };
    match edges.iter().enumerate().find_map(goes_on) {
        Some(id) => Err(Error::usage(format!("the rule {:?} begins with itself (left recursion)", rules.names[id]))),
        None => Ok(()),
    }
}

fn alternatives(rules: &Rules) -> impl Iterator<Item = (usize, &Vec<Sym>)> {
    let all = rules.rules.iter().enumerate();
    all.flat_map(|(id, rule)| rule.iter().flatten().map(move |alternative| (id, alternative)))
}

/// Strongly connected components by Tarjan's algorithm with a stack of its own: equal numbers, same component.
fn components(edges: &[Vec<(usize, bool)>]) -> Vec<usize> {
    const NEW: usize = usize::MAX;
    let n = edges.len();
    let (mut order, mut low, mut component) = (vec![NEW; n], vec![0; n], vec![NEW; n]);
    let (mut n_seen, mut open) = (0, Vec::new());
    for start in 0..n {
        let mut path = vec![(start, 0)];
        while let Some((at, nth)) = path.pop() {
            if nth == 0 {
                if order[at] != NEW {
                    continue;
                }
                (order[at], low[at]) = (n_seen, n_seen);
                n_seen += 1;
                open.push(at);
            } else {
                // Back from a neighbour that was visited from here, or skipped.
                let (to, _) = edges[at][nth - 1];
                if component[to] == NEW {
                    low[at] = low[at].min(low[to]);
                }
            }
            if let Some((to, _)) = edges[at].get(nth) {
                path.push((at, nth + 1));
                if order[*to] == NEW {
                    path.push((*to, 0));
                }
            } else if low[at] == order[at] {
                while let Some(member) = open.pop() {
                    component[member] = at;
                    if member == at {
                        break;
                    }
                }
            }
        }
    }
    component
}
