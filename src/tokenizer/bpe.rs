//! Byte-pair encoding by rank: the lowest pair first, the leftmost on ties.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::TokenId;
use super::ranks::Ranks;

/// The rank of a pair that is no token; also the `below` that excludes nothing.
pub const NO_RANK: u32 = u32::MAX;

/// Appends the ids of one piece of text. A piece that is a token is taken whole, even if merging would not lead there.
/// O(n log n) in the piece's bytes: a piece may be as long as the text.
///
/// Source: openai/tiktoken (the behaviour; the reference's tokenizer is a `tiktoken.Encoding`).
pub fn encode_piece(ranks: &Ranks, piece: &[u8], out: &mut Vec<TokenId>) {
    if let Some(rank) = ranks.rank(piece) {
        return out.push(TokenId(rank));
    }
    let mut start = 0;
    for end in merge(ranks, piece, NO_RANK) {
        // Every part is a single byte or was found in `ranks` when it was merged.
        out.extend(ranks.rank(&piece[start..end]).map(TokenId));
        start = end;
    }
}

/// The parts into which merging by ranks `< below` leaves `piece`: their ends, as byte offsets.
///
/// A heap of candidate pairs over a linked list of parts. A part is named by the offset where it starts; an entry of
/// the heap is stale when the pair that starts there now has another rank. Allocates about 40 bytes a byte.
pub fn merge(ranks: &Ranks, piece: &[u8], below: u32) -> Vec<usize> {
    let mut parts = Parts { ranks, piece, below, next: (1..=piece.len()).collect(), pair: vec![NO_RANK; piece.len()] };
    let mut previous: Vec<usize> = (0..piece.len()).map(|start| start.saturating_sub(1)).collect();
    let mut heap = BinaryHeap::with_capacity(piece.len());
    for start in 0..piece.len() {
        heap.extend(parts.look(start));
    }
    while let Some(Reverse((rank, start))) = heap.pop() {
        if parts.pair[start] != rank {
            continue;
        }
        let joined = parts.next[start];
        parts.pair[joined] = NO_RANK;
        parts.next[start] = parts.next[joined];
        if let Some(back) = previous.get_mut(parts.next[start]) {
            *back = start;
        }
        heap.extend(parts.look(start));
        if start > 0 {
            heap.extend(parts.look(previous[start]));
        }
    }
    std::iter::successors(parts.next.first().copied(), |&end| parts.next.get(end).copied()).collect()
}

/// A piece cut into parts.
struct Parts<'a> {
    ranks: &'a Ranks,
    piece: &'a [u8],
    below: u32,
    /// `[piece bytes]`, at the start of a part: where it ends and the next one starts.
    next: Vec<usize>,
    /// `[piece bytes]`, at the start of a part: the rank of the part joined with the next one, or [`NO_RANK`].
    pair: Vec<u32>,
}

impl Parts<'_> {
    /// Looks up the pair that starts at `start` and returns its heap entry, if it is a token.
    fn look(&mut self, start: usize) -> Option<Reverse<(u32, usize)>> {
        let end = self.next.get(self.next[start]).copied();
        let rank = end.and_then(|end| self.ranks.rank(&self.piece[start..end])).filter(|&rank| rank < self.below);
        self.pair[start] = rank.unwrap_or(NO_RANK);
        rank.map(|rank| Reverse((rank, start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Single bytes have ranks 0..256, then these.
    fn toy(longer: &[&str]) -> Ranks {
        let bytes: Vec<u8> = (0..=255).collect();
        Ranks::new(bytes.chunks(1).chain(longer.iter().map(|token| token.as_bytes()))).unwrap()
    }

    fn check(longer: &[&str], piece: &str, expect: &[&str]) {
        let ranks = toy(longer);
        let mut ids = Vec::new();
        encode_piece(&ranks, piece.as_bytes(), &mut ids);
        let parts: Vec<&[u8]> = ids.iter().map(|id| ranks.bytes(id.0).unwrap()).collect();
        assert_eq!(parts, expect.iter().map(|part| part.as_bytes()).collect::<Vec<_>>(), "{piece:?}");
    }

    #[test]
    fn merges_the_lowest_rank_first_and_the_leftmost_on_ties() {
        check(&["ab", "bc"], "abc", &["ab", "c"]);
        check(&["bc", "ab"], "abc", &["a", "bc"]);
        check(&["aa"], "aaaaa", &["aa", "aa", "a"]);
        check(&["aa", "aaaa"], "aaaaaaa", &["aaaa", "aa", "a"]);
        check(&["bc", "abc", "abcd"], "abcde", &["abcd", "e"]);
        check(&[], "", &[]);
        check(&[], "xyz", &["x", "y", "z"]);
    }

    #[test]
    fn takes_a_token_whole_even_if_merging_does_not_reach_it() {
        check(&["abc"], "abc", &["abc"]);
        check(&["abc"], "abcd", &["a", "b", "c", "d"]);
    }

    #[test]
    fn merges_only_below_the_limit() {
        let ranks = toy(&["ab", "cd", "abcd"]);
        assert_eq!(merge(&ranks, b"abcd", NO_RANK), [4]);
        assert_eq!(merge(&ranks, b"abcd", 258), [2, 4]);
        assert_eq!(merge(&ranks, b"abcd", 257), [2, 3, 4]);
    }

    /// The textbook loop, quadratic.
    fn merge_slowly(ranks: &Ranks, piece: &[u8]) -> Vec<usize> {
        let mut ends: Vec<usize> = (1..=piece.len()).collect();
        loop {
            let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
            let pairs = (1..ends.len()).filter_map(|i| Some((ranks.rank(&piece[start(i - 1)..ends[i]])?, i - 1)));
            match pairs.min() {
                Some((_, i)) => ends.remove(i),
                None => return ends,
            };
        }
    }

    #[test]
    fn agrees_with_the_textbook_loop() {
        let ranks = toy(&["ab", "ba", "aa", "bb", "aba", "bab", "abab", "aab", "baa", "bbb", "abba", "aaaa"]);
        for bits in 0u32..1 << 14 {
            let piece: Vec<u8> = (0..14).map(|i| if bits >> i & 1 == 0 { b'a' } else { b'b' }).collect();
            assert_eq!(merge(&ranks, &piece, NO_RANK), merge_slowly(&ranks, &piece), "{bits:014b}");
        }
    }
}
