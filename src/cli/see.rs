//! Pictures → embeddings, for every command but `trace`: what was encoded before is looked up.

use std::collections::HashMap;
use std::path::absolute;
use std::slice;

use qvl::cache::{self, Cache, Key, Store};
use qvl::conversation::Shown;
use qvl::error::{Error, Result};
use qvl::image::{self, ImageSource, Picture};
use qvl::session::TextFile;
use qvl::vision::ImageEmbedding;

use super::args::{CacheArgs, ContextArgs, ImageArgs, ModelArgs};
use super::pipeline::{self, Mmproj, attention};
use super::{print_error, room};

/// Sees pictures. One that lives as long as its command has the latest ones in memory.
pub struct Viewer<'a> {
    model: &'a ModelArgs,
    context: &'a ContextArgs,
    limit_bytes: u64,
    cache: Option<Cache>,
    quiet: bool,
    text: TextMemory,
}

/// What the text model takes of the memory, in bytes, and when.
#[derive(Clone, Copy)]
pub enum TextMemory {
    /// Now: it is beside whatever is seen.
    Now(u64),
    /// Later: what is given back meanwhile serves it.
    Later(u64),
}

/// What was seen.
pub struct Sight {
    /// One a picture, in their order.
    pub embeddings: Vec<ImageEmbedding>,
    /// How many pictures were taken from the cache, in memory or on disk.
    pub n_cached: usize,
}

impl<'a> Viewer<'a> {
    /// Looks nowhere yet.
    pub fn new(
        model: &'a ModelArgs,
        context: &'a ContextArgs,
        cache: &CacheArgs,
        text: TextMemory,
        quiet: bool,
    ) -> Self {
        let limit_bytes = if cache.no_cache { 0 } else { cache.limit.cache_size };
        Viewer { model, context, limit_bytes, cache: None, quiet, text }
    }

    /// Sees them. Only the header of the mmproj is read, which proves that it belongs to the text model, unless one of the
    /// pictures is new; the mmproj is unmapped afterwards, and its pages are given back where memory is short. A picture that
    /// is there twice is encoded once. A cache that does not work is a warning.
    ///
    /// With a cache that is on, working or not, embeddings are rounded to f16; else they are what the tower gave.
    pub fn see(&mut self, text: &TextFile, pictures: &[Picture]) -> Result<Sight> {
        if pictures.is_empty() {
            return Ok(Sight { embeddings: Vec::new(), n_cached: 0 });
        }
        let mmproj = Mmproj::open(self.model, text)?;
        let (h, id, computed_by) = (mmproj.hparams()?, mmproj.id(), mmproj.computed_by(self.context)?);
        let (mut keys, mut new) = (Vec::with_capacity(pictures.len()), Vec::new());
        let mut known: HashMap<Key, Option<ImageEmbedding>> = HashMap::new();
        self.open_cache();
        for picture in pictures {
            let picture = image::resize(picture, h.image_size as u32, h.image_size as u32);
            let key = Key::new(&id, attention(self.context), &computed_by, &picture);
            keys.push(key);
            if known.contains_key(&key) {
                continue;
            }
            let found = self.cache.as_mut().and_then(|cache| cache.get(&key));
            let found = found.filter(|e| e.n_queries == h.n_queries && e.d_out == h.d_out);
            if found.is_none() {
                new.push((key, picture));
            }
            known.insert(key, found);
        }
        let n_cached = if self.cache.is_some() { pictures.len() - new.len() } else { 0 };
        let (new_keys, new): (Vec<_>, Vec<_>) = new.into_iter().unzip();
        let is_new = !new.is_empty();
        if is_new {
            room::check_vision(&mmproj, self.context, self.text)?;
            let (mut new_keys, mut failure) = (new_keys.into_iter(), None);
            let encoded = mmproj.encode(&new, self.context, self.quiet, |fresh| {
                let Some(key) = new_keys.next() else { return };
                let embedding = match &mut self.cache {
                    None => fresh,
                    Some(cache) => {
                        let kept = cache.keep(key, fresh);
                        failure = failure.take().or(kept.failure);
                        kept.embedding
                    }
                };
                known.insert(key, Some(embedding));
            });
            failure.into_iter().for_each(|failure| self.warn(&failure));
            encoded?;
        }
        // Two files that fit one after the other: the first makes room itself, before the second is read.
        let (TextMemory::Now(text_bytes) | TextMemory::Later(text_bytes)) = self.text;
        let together = mmproj.n_bytes().saturating_add(text_bytes);
        if is_new && room::limit_bytes(self.context).is_some_and(|limit| together > limit) {
            mmproj.forget();
        }
        let of = |key: &Key| known.get(key).cloned().flatten().ok_or_else(|| Error::other("a picture was not encoded"));
        Ok(Sight { embeddings: keys.iter().map(of).collect::<Result<_>>()?, n_cached })
    }

    /// The cache on disk, if it was opened and works.
    pub fn into_store(self) -> Option<Store> {
        self.cache.and_then(Cache::into_store)
    }

    /// Opens the cache, unless it is off or open. Without a directory it is in memory alone.
    fn open_cache(&mut self) {
        if self.limit_bytes == 0 || self.cache.is_some() {
            return;
        }
        let directory = cache::directory(|name| std::env::var_os(name));
        let store = directory.map(|dir| Store::new(dir, self.limit_bytes)).map_err(|failure| self.warn(&failure));
        self.cache = Some(Cache::new(store.ok()));
    }

    fn warn(&self, failure: &Error) {
        if !self.quiet {
            print_error(&format!("warning: {failure}; going on without the cache\n"));
        }
    }
}

/// Reads a picture of a conversation again, to draw on it. Errors (kind image): it is no longer there, or has another size
/// now.
pub fn again(shown: &Shown, args: &ImageArgs) -> Result<Picture> {
    if shown.source == ImageSource::Stdin {
        return Err(Error::image("this picture came from stdin and cannot be read again"));
    }
    let mut one = pipeline::load_pictures(slice::from_ref(&shown.source), args)?;
    let picture = one.pop().ok_or_else(|| Error::image("no picture").of(&shown.source))?;
    let size = (picture.width(), picture.height());
    if size != shown.size {
        let ((w, h), (width, height)) = (size, shown.size);
        let change = format!("{w} x {h} pixels now, {width} x {height} when it was shown");
        return Err(Error::image(change).of(&shown.source));
    }
    Ok(picture)
}

/// A source that means the same later, and in a file.
pub fn lasting(source: ImageSource) -> Result<ImageSource> {
    let ImageSource::Path(path) = source else { return Ok(source) };
    let lasting = absolute(&path).map_err(|e| Error::image("no path").because(e).at(&path))?;
    Ok(ImageSource::Path(lasting))
}
