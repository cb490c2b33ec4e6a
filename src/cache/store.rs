//! Embeddings and prompts on disk, shared by any number of processes and locked by none.
//!
//! A file appears under its name complete or not at all, is never changed afterwards, and proves itself when it is read.
//! So the worst that another process, a kill or a damaged disk can do is a miss.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::listing::{self, EMBEDDING, Found, Kind, PROMPT, TEMPORARY, list};
use super::{Key, entry, prompt};
use crate::error::{Error, Result};
use crate::temporary::{Readers, TemporaryFile};
use crate::vision::ImageEmbedding;

/// A file that was being written for longer than this is left over from a process that was killed; also how far another
/// machine's clock may be ahead.
const HOUR: Duration = Duration::from_secs(3600);

/// A directory of embeddings and prompts with a limit. Making one touches nothing.
pub struct Store {
    dir: PathBuf,
    limit_bytes: u64,
}

/// What a [`Store`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Embeddings and prompts.
    pub n_entries: usize,
    /// How many of them are prompts.
    pub n_prompts: usize,
    /// Their bytes.
    pub n_bytes: u64,
    /// When the least recently used one was used.
    pub oldest: Option<SystemTime>,
    /// When the most recently used one was used.
    pub newest: Option<SystemTime>,
}

/// What [`Store::clear`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Embeddings.
    pub n_embeddings: usize,
    /// Prompts.
    pub n_prompts: usize,
    /// Half-written files.
    pub n_temporary: usize,
    /// Bytes of all.
    pub n_bytes: u64,
}

impl Store {
    /// Of at most `limit_bytes` in `dir`, which need not exist.
    pub fn new(dir: PathBuf, limit_bytes: u64) -> Self {
        Store { dir, limit_bytes }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Bytes that it may hold.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What was put under `key`; it is the most recently used then. Whatever cannot be read is a miss, and what is under
    /// the name but not sound is removed. Cost: reads 2 bytes a value and allocates 6.
    pub fn get(&self, key: &Key) -> Option<ImageEmbedding> {
        let path = self.path(key, EMBEDDING);
        let found = if is_file(&path).ok()? { read(&path, key).ok()? } else { None };
        if found.is_none() {
            let _ = listing::remove(&path);
        }
        found
    }

    /// The state of a prompt that was put under `key`, of at most `max_bytes`; it is the most recently used then. Errors (kind
    /// other): what is there cannot be read, or is not sound and was removed. Cost: allocates it and hashes it.
    pub fn get_prompt(&self, key: &Key, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path(key, PROMPT);
        let failed = |e: io::Error| Error::other("cannot read what was kept of the prompt").because(e).at(&path);
        let found = match is_file(&path) {
            Ok(true) => open(&path).and_then(|file| {
                let found = prompt::read(&file, file.metadata()?.len(), key, max_bytes)?;
                found.iter().for_each(|_| touch(&file));
                Ok(found)
            }),
            Ok(false) => Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => Err(e),
        };
        match found {
            Ok(Some(state)) => Ok(Some(state)),
            Ok(None) => {
                let _ = listing::remove(&path);
                Err(Error::other("what was kept of the prompt is damaged and was removed").at(&path))
            }
            // Somebody else removed it meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Keeps an embedding that was [`round`](super::round)ed, and removes the least recently used entries beyond the limit.
    /// One that is larger than the limit is not kept. Directory and file are for this user alone.
    ///
    /// Errors (kind other): the directory or a file in it cannot be written.
    pub fn put(&self, key: &Key, embedding: &ImageEmbedding) -> Result<()> {
        let n_bytes = entry::n_bytes(embedding.n_queries, embedding.d_out);
        if n_bytes.is_none_or(|n| n > self.limit_bytes) {
            return Ok(());
        }
        let write = |mut file: &File| file.write_all(&entry::encode(key, embedding));
        self.write(&self.path(key, EMBEDDING), write)
            .map_err(|e| Error::other("cannot keep embeddings of pictures here").because(e).at(&self.dir))
    }

    /// Keeps the state of a prompt in the same way. Errors: the same. Cost: a hash over it.
    pub fn put_prompt(&self, key: &Key, state: &[u8]) -> Result<()> {
        if prompt::n_bytes(state.len() as u64) > self.limit_bytes {
            return Ok(());
        }
        self.write(&self.path(key, PROMPT), |file| prompt::write(file, key, state))
            .map_err(|e| Error::other("cannot keep prompts here").because(e).at(&self.dir))
    }

    /// Makes a file appear at `path`, complete, and keeps the limit.
    fn write(&self, path: &Path, write: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        make_private(&self.dir)?;
        let temporary = TemporaryFile::new(&self.dir, TEMPORARY.0, TEMPORARY.1, Readers::Owner)?;
        write(temporary.as_file())?;
        touch(temporary.as_file());
        match temporary.persist(path) {
            // Somebody cleared the cache meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(_) => self.evict(),
        }
    }

    /// What is there now; nothing if there is no directory. Errors (kind other): it cannot be listed.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for found in self.list()?.iter().filter(|found| found.kind != Kind::Temporary) {
            usage.n_entries += 1;
            usage.n_prompts += usize::from(found.kind == Kind::Prompt);
            usage.n_bytes = usage.n_bytes.saturating_add(found.n_bytes);
            usage.oldest = Some(usage.oldest.map_or(found.modified, |t| t.min(found.modified)));
            usage.newest = Some(usage.newest.map_or(found.modified, |t| t.max(found.modified)));
        }
        Ok(usage)
    }

    /// Removes all embeddings and prompts and what is left of half-written ones, and nothing else. Errors (kind other): the directory
    /// cannot be listed, or a file cannot be removed (the others are).
    pub fn clear(&self) -> Result<Cleared> {
        let mut cleared = Cleared::default();
        let mut failure = None;
        for found in self.list()? {
            if let Err(e) = listing::remove(&found.path) {
                failure.get_or_insert(Error::other("cannot remove the file").because(e).at(&found.path));
                continue;
            }
            match found.kind {
                Kind::Embedding => cleared.n_embeddings += 1,
                Kind::Prompt => cleared.n_prompts += 1,
                Kind::Temporary => cleared.n_temporary += 1,
            }
            cleared.n_bytes = cleared.n_bytes.saturating_add(found.n_bytes);
        }
        failure.map_or(Ok(cleared), Err)
    }

    fn list(&self) -> Result<Vec<Found>> {
        list(&self.dir).map_err(|e| Error::other("cannot list the cache").because(e).at(&self.dir))
    }

    fn path(&self, key: &Key, extension: &str) -> PathBuf {
        self.dir.join(format!("{key}{extension}"))
    }

    /// Removes what is beyond the limit, the least recently used first, and what killed processes left. Run after a file
    /// appeared: whoever comes last sees all, so the limit holds however many do this at once.
    fn evict(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let (mut entries, temporary): (Vec<_>, Vec<_>) =
            list(&self.dir)?.into_iter().partition(|found| found.kind != Kind::Temporary);
        let is_left_over = |found: &Found| now.duration_since(found.modified).is_ok_and(|age| age > HOUR);
        for found in temporary.iter().filter(|found| is_left_over(found)) {
            let _ = listing::remove(&found.path);
        }
        let mut total = entries.iter().fold(0u64, |sum, found| sum.saturating_add(found.n_bytes));
        if total <= self.limit_bytes {
            return Ok(());
        }
        // A time that lies ahead says nothing: such an entry would stay for ever and push all others out.
        let last_use = |found: &Found| if found.modified > now + HOUR { UNIX_EPOCH } else { found.modified };
        entries.sort_by(|a, b| (last_use(a), &a.path).cmp(&(last_use(b), &b.path)));
        let mut failure = Ok(());
        for found in entries {
            if total <= self.limit_bytes {
                return Ok(());
            }
            match listing::remove(&found.path) {
                Ok(()) => total -= found.n_bytes,
                Err(e) => failure = Err(e),
            }
        }
        if total <= self.limit_bytes { Ok(()) } else { failure }
    }
}

/// Whether it is a file: opening a pipe would wait for its writer.
fn is_file(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.is_file())
}

/// Opens an entry so that its time can be set. Some systems let that be only where one may write; a disk that is read-only can
/// still be read.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path).or_else(|_| File::open(path))
}

/// The embedding in a file; `None` if it is not sound. Errors: it cannot be read.
fn read(path: &Path, key: &Key) -> io::Result<Option<ImageEmbedding>> {
    let mut file = open(path)?;
    let n_bytes = file.metadata()?.len();
    let mut bytes = vec![0; entry::N_HEAD];
    if n_bytes < entry::N_HEAD as u64 {
        return Ok(None);
    }
    file.read_exact(&mut bytes)?;
    // Nothing is allocated for values before the file is known to have them.
    let shape = bytes.first_chunk().and_then(|head| entry::shape(key, head));
    if shape.and_then(|(n_queries, d_out)| entry::n_bytes(n_queries, d_out)) != Some(n_bytes) {
        return Ok(None);
    }
    Read::by_ref(&mut file).take(n_bytes).read_to_end(&mut bytes)?;
    let found = entry::decode(key, &bytes);
    if found.is_some() {
        touch(&file);
    }
    Ok(found)
}

/// The time of the file is that of its last use. Where it cannot be set, the entry leaves earlier than it should.
fn touch(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}

/// Makes the directory, and those above it, for this user alone: who reads an embedding learns what was on the picture.
/// One that is there stays as it is. ([`Readers::Owner`] makes files so.)
fn make_private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

#[cfg(test)]
mod tests;
