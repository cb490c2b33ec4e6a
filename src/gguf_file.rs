//! A GGUF file that is mapped and whose header is proven, whether it lies in one file or in several.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::error::Result;
use crate::gguf::{Gguf, Part, all_paths};
use crate::mmap::{MappedFile, MappedFiles};

/// A header and the bytes that its tensors' offsets count in: those of the file, or of all its parts one behind the other.
pub struct GgufFile {
    gguf: Gguf,
    bytes: Bytes,
    paths: Vec<PathBuf>,
}

enum Bytes {
    Whole(MappedFile),
    Parts(MappedFiles),
}

impl GgufFile {
    /// Opens `path`, and if it is the first part of a model in several (`NAME-00001-of-00003.gguf`) the others beside it. Cost: that
    /// of [`Gguf::parse`], of every part.
    ///
    /// Errors (kind model) name the file and what is wrong: no GGUF, a part is missing or another model's, the first one is not named.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let gguf = Gguf::parse(&file).map_err(|e| e.at(path))?;
        let Some(part) = Part::of(&gguf).map_err(|e| e.at(path))? else {
            return Ok(GgufFile { gguf, bytes: Bytes::Whole(file), paths: vec![path.to_owned()] });
        };
        drop(file);
        let paths = all_paths(path, part)?;
        if let Some(no) = paths.iter().position(|path| !path.exists()) {
            let message = format!("part {} of {} of the model is missing: {}", no + 1, part.count, paths[no].display());
            return Err(Error::model(message).at(path));
        }
        let files = MappedFiles::open(&paths)?;
        let parts = (0..part.count).map(|no| {
            let read = || -> Result<Gguf> {
                let gguf = Gguf::parse(files.file(no))?;
                match Part::of(&gguf)? {
                    Some(found) if (found.no, found.count, found.n_tensors) == (no, part.count, part.n_tensors) => {
                        Ok(gguf)
                    }
                    _ => Err(Error::model(format!("this is not part {} of {} of this model", no + 1, part.count))),
                }
            };
            read().map_err(|e| e.at(&paths[no]))
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let gguf = Gguf::join(parts, files.starts(), part.n_tensors).map_err(|e| e.at(path))?;
        Ok(GgufFile { gguf, bytes: Bytes::Parts(files), paths })
    }

    /// Its header, of all parts.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Its size in bytes, that of all parts together.
    pub fn n_bytes(&self) -> u64 {
        match &self.bytes {
            Bytes::Whole(file) => file.len() as u64,
            Bytes::Parts(files) => files.sizes().iter().sum(),
        }
    }

    /// Each part's path, and where it begins in the bytes; one for a whole file.
    pub fn parts(&self) -> Vec<(PathBuf, u64)> {
        let starts = match &self.bytes {
            Bytes::Whole(_) => &[0][..],
            Bytes::Parts(files) => files.starts(),
        };
        self.paths.iter().cloned().zip(starts.iter().copied()).collect()
    }
}

impl Deref for GgufFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Whole(file) => file,
            Bytes::Parts(files) => files,
        }
    }
}
