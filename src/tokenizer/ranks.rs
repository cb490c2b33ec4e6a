//! The ordinary vocabulary: rank ↔ bytes.

use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Result};

/// More ranks than any vocabulary has; keeps every id far from the edge of `u32`.
const MAX_RANKS: usize = 1 << 24;
/// A slot of the hash table that holds no rank.
const EMPTY: u32 = u32::MAX;

/// The byte strings of a vocabulary in rank order. Having one means: no token is empty, no two are equal, and every
/// single byte is one, so that any text can be written in it.
///
/// All bytes lie in one buffer, and the hash table over them holds ranks only: about 12 bytes a token beside the text.
pub struct Ranks {
    /// The tokens one after another.
    bytes: Vec<u8>,
    /// `[n_ranks]`, where each token ends in `bytes`.
    ends: Vec<u32>,
    /// Open addressing with linear probing, at most half full; the length is a power of two.
    slots: Vec<u32>,
    /// Keyed at random, so that a prepared file cannot make the table slow.
    hasher: RandomState,
    /// Length of the longest token, in bytes.
    longest: usize,
}

impl Ranks {
    /// Takes the tokens in rank order. Errors (kind `Model`): an empty or repeated token, a missing byte, too many.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>) -> Result<Ranks> {
        let (mut bytes, mut ends, mut longest) = (Vec::new(), Vec::new(), 0);
        for token in tokens {
            bytes.extend_from_slice(token);
            let end = u32::try_from(bytes.len()).ok().filter(|_| ends.len() < MAX_RANKS);
            ends.push(end.ok_or_else(|| Error::model("vocabulary: too large (over 4 GiB or 16 million tokens)"))?);
            longest = longest.max(token.len());
        }
        let slots = vec![EMPTY; (ends.len() * 2).next_power_of_two().max(2)];
        let mut ranks = Ranks { bytes, ends, slots, hasher: RandomState::new(), longest };
        for rank in 0..ranks.n_ranks() {
            ranks.index(rank as u32)?;
        }
        match (0..=u8::MAX).find(|&byte| ranks.rank(&[byte]).is_none()) {
            Some(byte) => Err(Error::model(format!("vocabulary: no token for the single byte 0x{byte:02x}"))),
            None => Ok(ranks),
        }
    }

    /// Enters a rank in the hash table.
    fn index(&mut self, rank: u32) -> Result<()> {
        let token = self.bytes(rank).unwrap_or_default();
        if token.is_empty() {
            return Err(Error::model(format!("vocabulary: token {rank} is empty")));
        }
        let slot = self.slot(token);
        match self.slots[slot] {
            EMPTY => self.slots[slot] = rank,
            other => return Err(Error::model(format!("vocabulary: tokens {other} and {rank} are the same bytes"))),
        }
        Ok(())
    }

    /// Where `token` is in the table, or the free slot where it would go (there is one: the table is half empty).
    fn slot(&self, token: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(token) as usize & mask;
        while self.slots[slot] != EMPTY && self.bytes(self.slots[slot]) != Some(token) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The rank of a byte string, if it is a token.
    pub fn rank(&self, token: &[u8]) -> Option<u32> {
        if token.len() > self.longest {
            return None;
        }
        Some(self.slots[self.slot(token)]).filter(|&rank| rank != EMPTY)
    }

    /// The bytes of a rank, if there is such a rank.
    pub fn bytes(&self, rank: u32) -> Option<&[u8]> {
        let rank = rank as usize;
        let end = *self.ends.get(rank)? as usize;
        let start = rank.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    /// How many there are (at least the 256 bytes); the ranks are `0..n_ranks`.
    pub fn n_ranks(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(tokens: Vec<Vec<u8>>, expect: &str) {
        let error = Ranks::new(tokens.iter().map(Vec::as_slice)).err().map(|error| error.to_string());
        assert!(error.as_deref().is_some_and(|text| text.contains(expect)), "{error:?} lacks {expect:?}");
    }

    fn single_bytes() -> Vec<Vec<u8>> {
        (0..=255).map(|byte| vec![byte]).collect()
    }

    #[test]
    fn finds_every_token_both_ways() {
        let tokens = [single_bytes(), vec![b"ab".to_vec(), b"abc".to_vec()]].concat();
        let ranks = Ranks::new(tokens.iter().map(Vec::as_slice)).unwrap();
        for (rank, token) in tokens.iter().enumerate() {
            assert_eq!(ranks.rank(token), Some(rank as u32));
            assert_eq!(ranks.bytes(rank as u32), Some(token.as_slice()));
        }
        assert_eq!(ranks.rank(b"bc"), None);
        assert_eq!(ranks.rank(b"abcd"), None);
        assert_eq!(ranks.rank(b""), None);
        assert_eq!(ranks.bytes(258), None);
    }

    #[test]
    fn refuses_what_is_no_vocabulary() {
        check_error(single_bytes()[1..].to_vec(), "no token for the single byte 0x00");
        check_error([single_bytes(), vec![vec![]]].concat(), "token 256 is empty");
        check_error([single_bytes(), vec![vec![7]]].concat(), "tokens 7 and 256 are the same bytes");
    }
}
