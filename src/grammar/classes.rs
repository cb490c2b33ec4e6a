//! Classes of characters as UTF-8 byte sequences.

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};
use regex_syntax::utf8::Utf8Sequences;

use super::rules::{ByteSet, Rules, Sym};
use crate::error::Result;

/// One character of `ranges` (first and last, inclusive), or one of all others. `None` if there is no such character.
///
/// A class of ASCII characters is one set of bytes, any other a rule with an alternative for each kind of sequence (at
/// most nine for a complement of few characters).
pub(super) fn class(rules: &mut Rules, owner: u32, ranges: &[(char, char)], complement: bool) -> Result<Option<Sym>> {
    let mut class = ClassUnicode::new(ranges.iter().map(|(low, high)| ClassUnicodeRange::new(*low, *high)));
    if complement {
        class.negate();
    }
    let (mut ascii, mut alternatives) = (ByteSet::default(), Vec::new());
    for range in class.ranges() {
        for sequence in Utf8Sequences::new(range.start(), range.end()) {
            match sequence.as_slice() {
                [one] => ascii.add(one.start, one.end),
                several => {
                    let set = |r: &regex_syntax::utf8::Utf8Range| rules.bytes(ByteSet::range(r.start, r.end));
                    alternatives.push(several.iter().map(set).collect());
                }
            }
        }
    }
    if ascii != ByteSet::default() {
        let ascii = rules.bytes(ascii);
        if alternatives.is_empty() {
            return Ok(Some(ascii));
        }
        alternatives.push(vec![ascii]);
    }
    match alternatives.is_empty() {
        true => Ok(None),
        false => rules.anonymous(owner, alternatives).map(Some),
    }
}
