//! Which files of a directory are the cache's own. Nothing else in it is ever counted or removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use super::Key;

/// Extension of embeddings, which are named by their key.
pub const EMBEDDING: &str = ".emb";
/// Extension of prompts, which are named so, too.
pub const PROMPT: &str = ".kv";
/// Names of files that are being written begin and end so.
pub const TEMPORARY: (&str, &str) = (".emb-", ".tmp");

/// What a file of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An embedding.
    Embedding,
    /// What was read of a prompt.
    Prompt,
    /// One of them that is being written, or that was when its process was killed.
    Temporary,
}

/// A file of the cache.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its length in bytes.
    pub n_bytes: u64,
    /// When it was used last.
    pub modified: SystemTime,
}

/// The cache's own files in `dir`; none if there is no such directory. What vanishes meanwhile is left out.
pub fn list(dir: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(kind) = entry.file_name().to_str().and_then(kind) else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Found { path: entry.path(), kind, n_bytes: metadata.len(), modified });
        }
    }
    Ok(found)
}

fn kind(name: &str) -> Option<Kind> {
    if name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) {
        return Some(Kind::Temporary);
    }
    let (stem, extension) = name.split_at_checked(name.rfind('.')?)?;
    stem.parse::<Key>().ok()?;
    match extension {
        EMBEDDING => Some(Kind::Embedding),
        PROMPT => Some(Kind::Prompt),
        _ => None,
    }
}

/// Removes a file; that somebody else did so first is as good.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
