//! The tokens that a grammar chooses from.

/// Tokens as bytes, in an order in which neighbours share beginnings. About 2 MiB for 151,860 tokens, sorted in some
/// 50 ms; many matchers can share one.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`, by id.
    ends: Vec<usize>,
    /// Ids other than the stops, sorted by their bytes.
    order: Vec<u32>,
    /// Leading bytes that each of `order` shares with the one before.
    shared: Vec<u32>,
    stops: Vec<u32>,
}

impl Vocabulary {
    /// From the bytes of ids `0..`, and the ids that end an answer, whose bytes do not count.
    pub fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>, stops: &[u32]) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for token in tokens {
            bytes.extend_from_slice(token);
            ends.push(bytes.len());
        }
        let n_tokens = ends.len() as u32;
        let stops: Vec<u32> = stops.iter().copied().filter(|id| *id < n_tokens).collect();
        let mut vocabulary = Vocabulary { bytes, ends, order: Vec::new(), shared: Vec::new(), stops };
        let ordinary = |id: &u32| !vocabulary.is_stop(*id) && !vocabulary.bytes(*id).is_empty();
        let mut order: Vec<u32> = (0..n_tokens).filter(ordinary).collect();
        order.sort_by_key(|id| vocabulary.bytes(*id));
        let mut before: &[u8] = &[];
        let mut shared = Vec::with_capacity(order.len());
        for token in order.iter().map(|id| vocabulary.bytes(*id)) {
            shared.push(before.iter().zip(token).take_while(|(a, b)| a == b).count() as u32);
            before = token;
        }
        (vocabulary.order, vocabulary.shared) = (order, shared);
        vocabulary
    }

    /// Bytes of a token; none for an id beyond.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(id).map_or(&[], |end| &self.bytes[start..*end])
    }

    /// Whether an id ends an answer.
    pub(super) fn is_stop(&self, id: u32) -> bool {
        self.stops.contains(&id)
    }

    /// Ids that end an answer.
    pub(super) fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The token of exactly these bytes; the smallest id if several.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        let at = self.order.partition_point(|id| self.bytes(*id) < text);
        self.order.get(at).copied().filter(|id| self.bytes(*id) == text)
    }

    /// Whether there is such a token other than a stop.
    pub(super) fn has(&self, id: u32) -> bool {
        (id as usize) < self.ends.len() && !self.is_stop(id)
    }

    /// Tokens other than stops with the number of leading bytes that each shares with the one before.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (u32, usize)> {
        self.order.iter().zip(&self.shared).map(|(id, shared)| (*id, *shared as usize))
    }
}
