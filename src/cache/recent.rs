//! Embeddings that this process used lately: a chat shows the same picture again and again.

use std::collections::VecDeque;

use super::Key;
use crate::vision::ImageEmbedding;

/// At most so many bytes of embeddings, the least recently used leaving first. Few enough that a list will do.
pub struct Recent {
    cap_bytes: usize,
    n_bytes: usize,
    /// The most recently used is the last.
    entries: VecDeque<(Key, ImageEmbedding)>,
}

impl Recent {
    /// Holds `cap_bytes` of values (4 bytes each) at most.
    pub fn new(cap_bytes: usize) -> Self {
        Recent { cap_bytes, n_bytes: 0, entries: VecDeque::new() }
    }

    /// What was put under `key`, if it is still there. It is the most recently used then.
    pub fn get(&mut self, key: &Key) -> Option<&ImageEmbedding> {
        let entry = self.remove(key)?;
        self.entries.push_back((*key, entry));
        self.entries.back().map(|(_, embedding)| embedding)
    }

    /// Puts one, and drops others until all fit. One that is larger than the cap is not kept.
    pub fn put(&mut self, key: Key, embedding: ImageEmbedding) {
        if let Some(old) = self.remove(&key) {
            self.n_bytes -= bytes(&old);
        }
        if bytes(&embedding) <= self.cap_bytes {
            self.n_bytes += bytes(&embedding);
            self.entries.push_back((key, embedding));
        }
        while self.n_bytes > self.cap_bytes
            && let Some((_, oldest)) = self.entries.pop_front()
        {
            self.n_bytes -= bytes(&oldest);
        }
    }

    /// Takes an entry out of the list; its bytes are still counted.
    fn remove(&mut self, key: &Key) -> Option<ImageEmbedding> {
        let at = self.entries.iter().position(|(other, _)| other == key)?;
        self.entries.remove(at).map(|(_, embedding)| embedding)
    }
}

fn bytes(embedding: &ImageEmbedding) -> usize {
    size_of_val(embedding.data.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leaves_first() {
        let embedding = |n: usize| ImageEmbedding { n_queries: 1, d_out: n, data: vec![0.5; n] };
        let key = |n: u8| Key::of_bytes(&[n]);
        let mut recent = Recent::new(40);
        recent.put(key(1), embedding(4));
        recent.put(key(2), embedding(4));
        assert!(recent.get(&key(1)).is_some());
        recent.put(key(3), embedding(4));
        let there = [1, 2, 3].map(|n| recent.get(&key(n)).is_some());
        assert_eq!(there, [true, false, true]);
        // Larger than all of it: not kept, and nobody else leaves.
        recent.put(key(4), embedding(11));
        assert_eq!([1, 3, 4].map(|n| recent.get(&key(n)).is_some()), [true, true, false]);
        // In place of what was.
        recent.put(key(1), embedding(6));
        assert_eq!(recent.get(&key(1)), Some(&embedding(6)));
        assert!(recent.get(&key(3)).is_some());
        recent.put(key(5), embedding(10));
        assert_eq!([1, 3, 5].map(|n| recent.get(&key(n)).is_some()), [false, false, true]);
    }
}
