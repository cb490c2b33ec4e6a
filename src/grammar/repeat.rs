//! Repetition, written out as rules.

use super::rules::{Rules, Sym};
use crate::error::Result;

/// `item` at least `min` times and at most `max` times (no limit: `None`), where `min <= max`.
///
/// The item becomes a rule of its own first, so that repetitions inside repetitions add up and do not multiply.
pub(super) fn repeat(
    rules: &mut Rules,
    owner: u32,
    item: Vec<Sym>,
    min: usize,
    max: Option<usize>,
) -> Result<Vec<Sym>> {
    let one = match item[..] {
        [] => return Ok(item),
        [one] => one,
        _ => rules.anonymous(owner, vec![item])?,
    };
    let mut out = vec![one; min];
    match max {
        None => {
            let more = rules.anonymous(owner, Vec::new())?;
            if let Sym::Rule(id) = more {
                rules.define(id, vec![vec![one, more], Vec::new()])?;
            }
            out.push(more);
        }
        Some(max) => {
            // Each optional item stands in front of the next: the other way round readings would be ambiguous.
            let mut rest = None;
            for _ in min..max {
                let more = [one].into_iter().chain(rest).collect();
                rest = Some(rules.anonymous(owner, vec![more, Vec::new()])?);
            }
            out.extend(rest);
        }
    }
    Ok(out)
}
