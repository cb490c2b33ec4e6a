//! Pictures → embeddings, for every command but `trace`: what was encoded before is looked up.

use std::collections::HashMap;
use std::path::absolute;
use std::slice;

use qvl::cache::{self, Cache, Key, MmprojId, Store};
use qvl::conversation::Shown;
use qvl::error::{Error, Result};
use qvl::image::{self, ImageSource, Picture};
use qvl::session::TextFile;
use qvl::vision::{ImageEmbedding, VisionHparams};

use super::args::{CacheArgs, ContextArgs, ImageArgs, ModelArgs};
use super::mmproj::{Mmproj, Towers, attention};
use super::pipeline::{self, spinner};
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

    /// Sees them in a [`look`](Self::look) of their own.
    pub fn see(&mut self, text: &TextFile, pictures: &[Picture]) -> Result<Sight> {
        if pictures.is_empty() {
            return Ok(Sight { embeddings: Vec::new(), n_cached: 0 });
        }
        self.look(text, |look| look.see(pictures))
    }

    /// Looks at pictures as long as `f` does. Only the header of the mmproj is read, which proves that it belongs to the text
    /// model, unless a picture is new; then its weights come to their device and stay there, and the text model's, if they are wanted later
    /// and there is room, are read from the disk meanwhile. The mmproj is unmapped
    /// afterwards, and its pages are given back where memory is short. A cache that does not work is a warning.
    pub fn look<T>(&mut self, text: &TextFile, f: impl FnOnce(&mut Look<'_, 'a>) -> Result<T>) -> Result<T> {
        self.open_cache();
        let (context, quiet) = (self.context, self.quiet);
        let mmproj = Mmproj::open(self.model, text)?;
        let (TextMemory::Now(text_bytes) | TextMemory::Later(text_bytes)) = self.text;
        let together = mmproj.n_bytes().saturating_add(text_bytes);
        let is_short = room::limit_bytes(context).is_some_and(|limit| together > limit);
        let later = match self.text {
            TextMemory::Later(_) if !is_short => text.parts().iter().map(|(path, _)| path.clone()).collect(),
            _ => Vec::new(),
        };
        let mmproj = mmproj.before(later);
        let known = Known { h: mmproj.hparams()?, id: mmproj.id(), computed_by: mmproj.computed_by(context)? };
        let (result, has_seen) = mmproj.look(context, quiet, |towers| {
            let mut look = Look { viewer: self, mmproj: &mmproj, towers, known, has_seen: false };
            let result = f(&mut look);
            Ok((result, look.has_seen))
        })?;
        // Two files that fit one after the other: the first makes room itself, before the second is read.
        if has_seen && is_short {
            mmproj.forget();
        }
        result
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

/// While pictures are looked at.
pub struct Look<'l, 'a> {
    viewer: &'l mut Viewer<'a>,
    mmproj: &'l Mmproj,
    towers: &'l Towers<'l>,
    known: Known,
    /// Whether any picture was new.
    has_seen: bool,
}

/// What is known of the mmproj.
struct Known {
    h: VisionHparams,
    id: MmprojId,
    computed_by: String,
}

impl Look<'_, '_> {
    /// Sees them. A picture that is there twice is encoded once, and what was encoded before a Ctrl-C is not lost.
    ///
    /// With a cache that is on, working or not, embeddings are rounded to f16; else they are what the tower gave.
    pub fn see(&mut self, pictures: &[Picture]) -> Result<Sight> {
        let Known { h, id, computed_by } = &self.known;
        let viewer = &mut *self.viewer;
        let (mut keys, mut new) = (Vec::with_capacity(pictures.len()), Vec::new());
        let mut known: HashMap<Key, Option<ImageEmbedding>> = HashMap::new();
        for picture in pictures {
            let picture = image::resize(picture, h.image_size as u32, h.image_size as u32);
            let key = Key::new(id, attention(viewer.context), computed_by, &picture);
            keys.push(key);
            if known.contains_key(&key) {
                continue;
            }
            let found = viewer.cache.as_mut().and_then(|cache| cache.get(&key));
            let found = found.filter(|e| e.n_queries == h.n_queries && e.d_out == h.d_out);
            if found.is_none() {
                new.push((key, picture));
            }
            known.insert(key, found);
        }
        let n_cached = if viewer.cache.is_some() { pictures.len() - new.len() } else { 0 };
        if !new.is_empty() && !self.has_seen {
            room::check_vision(self.mmproj, viewer.context, viewer.text)?;
            self.has_seen = true;
        }
        let n_new = new.len();
        for (k, (key, picture)) in new.into_iter().enumerate() {
            let spinner = spinner(viewer.quiet, format!("looking at picture {} of {n_new}", k + 1));
            let fresh = self.towers.encode(&picture)?;
            drop(spinner);
            let embedding = match &mut viewer.cache {
                None => fresh,
                Some(cache) => {
                    let kept = cache.keep(key, fresh);
                    kept.failure.into_iter().for_each(|failure| viewer.warn(&failure));
                    kept.embedding
                }
            };
            known.insert(key, Some(embedding));
        }
        let of = |key: &Key| known.get(key).cloned().flatten().ok_or_else(|| Error::other("a picture was not encoded"));
        Ok(Sight { embeddings: keys.iter().map(of).collect::<Result<_>>()?, n_cached })
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
