//! Never encode a picture twice, and read it once: embeddings kept in memory and on disk, and what was read of prompts on disk,
//! by what they were made of.
//!
//! A [`Key`] names everything that an embedding depends on, so nothing here ever goes out of date. The disk holds f16,
//! half the size; therefore *every* embedding that goes through a [`Cache`] is rounded to f16, a fresh one as well: an
//! answer does not depend on whether the cache was warm, damaged or unwritable. Knows no model.

mod entry;
mod key;
mod listing;
mod location;
mod prompt;
mod recent;
mod store;

pub use entry::round;
pub use key::{Key, MmprojId};
pub use location::directory;
pub use recent::Recent;
pub use store::{Cleared, Store, Usage};

use crate::error::Error;
use crate::vision::ImageEmbedding;

/// Bytes of embeddings that one process holds: 16 pictures of the real model.
const RECENT_BYTES: usize = 64 << 20;

/// Both layers: what this process saw lately, and what any process saw.
pub struct Cache {
    recent: Recent,
    store: Option<Store>,
}

/// An embedding as it is to be used, and why it could not be stored, if so.
pub struct Kept {
    /// Rounded as the disk would have rounded it.
    pub embedding: ImageEmbedding,
    /// Told once; from then on only memory is used.
    pub failure: Option<Error>,
}

impl Cache {
    /// Over `store`, or in memory alone.
    pub fn new(store: Option<Store>) -> Self {
        Cache { recent: Recent::new(RECENT_BYTES), store }
    }

    /// The layer on disk, as long as it works.
    pub fn into_store(self) -> Option<Store> {
        self.store
    }

    /// What was kept under `key`. Cost: a copy, and a file of 2 bytes a value that is read if memory has it not.
    pub fn get(&mut self, key: &Key) -> Option<ImageEmbedding> {
        if let Some(embedding) = self.recent.get(key) {
            return Some(embedding.clone());
        }
        let embedding = self.store.as_ref()?.get(key)?;
        self.recent.put(*key, embedding.clone());
        Some(embedding)
    }

    /// Keeps a `fresh` embedding. One that f16 cannot hold is not stored, and used as it is: it is never warm.
    pub fn keep(&mut self, key: Key, fresh: ImageEmbedding) -> Kept {
        let Some(embedding) = round(&fresh) else { return Kept { embedding: fresh, failure: None } };
        let failure = self.store.as_ref().and_then(|store| store.put(&key, &embedding).err());
        if failure.is_some() {
            self.store = None;
        }
        self.recent.put(key, embedding.clone());
        Kept { embedding, failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(data: Vec<f32>) -> ImageEmbedding {
        ImageEmbedding { n_queries: 1, d_out: data.len(), data }
    }

    #[test]
    fn warm_or_cold_memory_or_disk_the_bits_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = || Some(Store::new(dir.path().join("new").join("dir"), 1 << 20));
        let (key, fresh) = (Key::of_bytes(b"a"), embedding(vec![0.1, -3.3, 1e-9, -0.0, 65503.9, 1234.567]));
        let bits = |e: &ImageEmbedding| e.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let rounded = round(&fresh).unwrap();
        assert_ne!(bits(&rounded), bits(&fresh));

        let mut cold = Cache::new(store());
        assert!(cold.get(&key).is_none());
        let kept = cold.keep(key, fresh.clone());
        assert!(kept.failure.is_none());
        for (place, found) in [
            ("fresh", kept.embedding),
            ("memory", cold.get(&key).unwrap()),
            ("disk", Cache::new(store()).get(&key).unwrap()),
            ("no disk", Cache::new(None).keep(key, fresh).embedding),
        ] {
            assert_eq!(bits(&found), bits(&rounded), "{place}");
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (key, fresh) = (Key::of_bytes(b"a"), embedding(vec![0.1, 70_000.0]));
        let mut cache = Cache::new(Some(Store::new(dir.path().to_owned(), 1 << 20)));
        assert_eq!(cache.keep(key, fresh.clone()).embedding, fresh);
        assert!(cache.get(&key).is_none());
    }

    #[test]
    fn a_failure_is_told_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut cache = Cache::new(Some(Store::new(file.path().to_owned(), 1 << 20)));
        let mut failure = |name: &[u8]| cache.keep(Key::of_bytes(name), embedding(vec![0.1])).failure;
        assert!(failure(b"a").is_some());
        assert!(failure(b"b").is_none());
        assert!(cache.get(&Key::of_bytes(b"a")).is_some(), "memory goes on");
    }
}
