//! `--cache-prompt`: what was read of a prompt up to its last picture, kept for the next question about the picture.

use std::sync::Arc;

use qvl::cache::{Key, Store};
use qvl::error::{Error, Result};
use qvl::memory::human_bytes;
use qvl::prompt::Prompt;
use qvl::session::{Prefix, Seen, Session, SessionSettings, TextFile};

use super::once::Query;
use super::see::Viewer;
use super::{pipeline, print_error, print_verbose, room};

/// A prompt's beginning, and where it is kept.
pub struct Beginning {
    store: Store,
    prefix: Prefix,
    key: Key,
    quiet: bool,
}

/// The cache for prompts: that of the viewer's embeddings, if it is wanted and works. A conversation that goes on has its own.
pub fn store(query: &Query<'_>, viewer: Viewer<'_>) -> Option<Store> {
    let has_read = query.past.is_some_and(|past| !past.snapshot.read.is_empty());
    viewer.into_store().filter(|_| query.prompt_cache.cache_prompt && !has_read)
}

impl Beginning {
    /// That of a prompt with its pictures, for a session with these settings that takes so many bytes with all its model.
    /// `None` if it has no picture or no store, or is too large for cache or memory (`-v` says so). Errors: as [`Prefix::new`].
    pub fn new(
        query: &Query<'_>,
        text: &TextFile,
        (settings, text_bytes): (&SessionSettings, u64),
        (prompt, images): (&Prompt, &[Arc<Seen>]),
        store: Option<Store>,
    ) -> Result<Option<Self>> {
        let Some(store) = store else { return Ok(None) };
        let weights = pipeline::model_params(text, query.context, settings)?;
        let Some(prefix) = Prefix::new(text, &weights, settings, prompt, images)? else { return Ok(None) };
        let n_bytes = prefix.max_bytes();
        let too_large = |place: &str, limit: u64| {
            let (size, limit) = (human_bytes(n_bytes), human_bytes(limit));
            print_verbose(&format!("note: what is read of the prompt ({size}) is not kept: {place} {limit}\n"));
            Ok(None)
        };
        if n_bytes > store.limit_bytes() {
            return too_large("the cache may hold", store.limit_bytes());
        }
        // It is there once more while it goes in or out.
        match room::limit_bytes(query.context) {
            Some(limit) if text_bytes.saturating_add(n_bytes) > limit => return too_large("the memory is", limit),
            _ => {}
        }
        let key = Key::of_prompt(prefix.id());
        Ok(Some(Beginning { store, prefix, key, quiet: query.quiet }))
    }

    /// Reads the prompt, from behind its beginning if that was kept. Returns how many positions needed not be read. What is
    /// kept and of no use is a warning. Errors: as [`Session::prefill`].
    pub fn prefill(&self, session: &mut Session<'_>, prompt: &Prompt, images: &[Arc<Seen>]) -> Result<usize> {
        let kept = self.store.get_prompt(&self.key, self.prefix.max_bytes());
        let resumed = kept.and_then(|kept| kept.map_or(Ok(()), |state| session.resume_prefix(&self.prefix, &state)));
        if let Err(failure) = resumed {
            self.warn(&failure, "reading it again");
        }
        session.prefill_after(&self.prefix, prompt, images)
    }

    /// Keeps what was read of it, unless it was `n_reused`. The session has no more than that afterwards. A cache that does not
    /// work is a warning.
    pub fn keep(self, session: &mut Session<'_>, n_reused: usize) {
        if n_reused >= self.prefix.n_positions() {
            return;
        }
        let kept = session.state_of(&self.prefix).and_then(|state| self.store.put_prompt(&self.key, &state));
        if let Err(failure) = kept {
            self.warn(&failure, "going on without the cache");
        }
    }

    fn warn(&self, failure: &Error, what_now: &str) {
        if !self.quiet {
            print_error(&format!("warning: {failure}; {what_now}\n"));
        }
    }
}
