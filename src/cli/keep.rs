//! `--session FILE`: a conversation that goes on in another process.

use std::io::{BufWriter, Write};
use std::path::Path;

use qvl::conversation::{Conversation, SessionFile, Shown};
use qvl::error::{Error, Result};
use qvl::image::ImageSource;
use qvl::mmap::MappedFile;
use qvl::session::{ModelId, Snapshot, TextFile};

use super::once::Kept;
use super::output;
use super::see::lasting;

/// The file of a session, which may not be there yet.
pub struct SessionPath<'a> {
    path: &'a Path,
    id: ModelId,
    /// The file as it was found, mapped: a cache is large.
    file: Option<MappedFile>,
}

/// Maps it. What is no model is no bad model.
fn open(path: &Path) -> Result<MappedFile> {
    MappedFile::open(path).map_err(|e| Error::other("no session can be read here").because(e))
}

impl<'a> SessionPath<'a> {
    /// Looks whether it is there, and proves before the long work that it can be written. Errors: neither read nor written.
    pub fn open(path: &'a Path, text: &TextFile) -> Result<Self> {
        output::check(path)?;
        let is_there =
            path.try_exists().map_err(|e| Error::other("cannot look for the session").because(e).at(path))?;
        let file = if is_there { Some(open(path)?) } else { None };
        Ok(SessionPath { path, id: text.id()?, file })
    }

    /// What it holds; else a conversation in which nothing was said. A system message must be the session's own, if it has
    /// one. Errors (kind usage): it has another, or the file is of another model; else that the file is damaged.
    pub fn read(&self, text: &TextFile, system: Option<&str>, default: &str) -> Result<SessionFile<'_>> {
        let Some(file) = &self.file else {
            let conversation = Conversation::new(system.unwrap_or(default));
            return Ok(SessionFile {
                conversation,
                snapshot: Snapshot { alpha: 1.0, read: Vec::new(), state: [][..].into() },
            });
        };
        let found = SessionFile::parse(file, text, &self.id).map_err(|e| e.at(self.path))?;
        let own = &found.conversation.system;
        if let Some(system) = system.filter(|system| system != own) {
            let message = format!("the session has the system message {own:?}, not {system:?}; leave --system out");
            return Err(Error::usage(message).at(self.path));
        }
        Ok(found)
    }

    /// Writes `past` with one turn more: question and answer, the pictures that were shown with it and their sizes, and what
    /// was seen and read.
    pub fn go_on(
        &self,
        past: &SessionFile<'_>,
        (question, answer): (String, &str),
        pictures: impl Iterator<Item = (ImageSource, (u32, u32))>,
        kept: Kept,
        text: &TextFile,
    ) -> Result<()> {
        let mut conversation = past.conversation.clone();
        for ((source, size), seen) in pictures.zip(kept.seen) {
            conversation.show(Shown { source: lasting(source)?, size, seen });
        }
        conversation.push(question, answer);
        self.write(&SessionFile { conversation, snapshot: kept.snapshot }, text)
    }

    /// Writes it; the file appears, in place of what was, when it is complete. Errors: it cannot be written; what was there
    /// is there still.
    pub fn write(&self, session: &SessionFile<'_>, text: &TextFile) -> Result<()> {
        let failed = |e: std::io::Error| Error::other("cannot write the session").because(e).at(self.path);
        let file = output::temporary(self.path)?;
        let mut out = BufWriter::with_capacity(1 << 16, file.as_file());
        session.write(text, &self.id, &mut out).map_err(|e| e.at(self.path))?;
        out.flush().map_err(failed)?;
        drop(out);
        file.as_file().sync_all().map_err(failed)?;
        file.persist(self.path).map_err(failed)?;
        Ok(())
    }
}
