//! The two files appear under their final names only when both are complete.

use std::fs::File;
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::temporary::{Readers, TemporaryDir, TemporaryFile};

use crate::report::bytes_text;

/// What happens to files of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They are an error.
    Keep,
    /// They are replaced, once both new files are complete.
    Replace,
}

/// Proves, before any work, that the targets can be made: makes `dir`, refuses existing targets unless they may be
/// replaced. Errors are of kind usage.
pub fn prepare(dir: &Path, targets: &[PathBuf], existing: Existing) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::usage("not a directory").at(dir));
    }
    for target in targets {
        if target.is_dir() {
            return Err(Error::usage("a directory is in the way").at(target));
        }
        if existing == Existing::Keep && target.exists() {
            return Err(Error::usage("the file exists already; --force replaces it").at(target));
        }
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::usage("cannot make the directory").because(e).at(dir))
}

/// Refuses to start what cannot be finished: `n_bytes` must be free in `dir`. Systems that do not say pass; they find out
/// while writing.
pub fn require_space(dir: &Path, n_bytes: u64) -> Result<()> {
    match free_bytes(dir) {
        Some(free) if free < n_bytes => Err(Error::other(format!(
            "not enough space: {} are needed and {} are free",
            bytes_text(n_bytes),
            bytes_text(free)
        ))
        .at(dir)),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

/// What temporary names begin with.
const PREFIX: &str = ".qvl-convert-";

/// A nameless-to-be file in `dir` that vanishes unless it is [published](publish). It is locked, so that
/// [`remove_leftovers`] knows it from those whose program was killed.
pub fn temporary(dir: &Path) -> Result<TemporaryFile> {
    loop {
        let failed = |e| Error::other("cannot make a temporary file").because(e).at(dir);
        let file = TemporaryFile::new(dir, PREFIX, ".tmp", Readers::Usual).map_err(failed)?;
        // Where there are no locks, nothing is taken for a leftover.
        let locked = file.as_file().lock();
        // Another program may have taken it for one between the two.
        if locked.is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// A directory that vanishes with all that is in it, locked as [`temporary`] files are.
pub struct Aside {
    dir: TemporaryDir,
    _lock: Option<File>,
}

impl Aside {
    /// A new one in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let made = TemporaryDir::new(dir, PREFIX);
        let made = made.map_err(|e| Error::other("cannot make a temporary directory").because(e).at(dir))?;
        let lock = File::open(made.path()).ok().filter(|dir| dir.lock().is_ok());
        Ok(Aside { dir: made, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Whether this is a name that [`temporary`] (`is_dir`: [`Aside::new`]) gives, and nothing that a user has named.
fn is_temporary(name: &str, is_dir: bool) -> bool {
    /// Random letters and digits that `tempfile` takes.
    const N_RANDOM: usize = 6;
    let random = name.strip_prefix(PREFIX).and_then(|rest| if is_dir { Some(rest) } else { rest.strip_suffix(".tmp") });
    random.is_some_and(|random| random.len() == N_RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Removes what killed conversions left in `dir`: temporary files and directories whose lock nobody holds. Returns how many bytes
/// they were; what cannot be looked at or removed stays.
pub fn remove_leftovers(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let removed = entries.filter_map(|entry| {
        let kind = entry.file_type().ok()?;
        // Links are nobody's leftovers, and pipes would be waited for.
        let is_leftover = is_temporary(entry.file_name().to_str()?, kind.is_dir()) && (kind.is_dir() || kind.is_file());
        let path = is_leftover.then(|| entry.path())?;
        let file = File::open(&path).ok()?;
        file.try_lock().ok()?;
        if kind.is_dir() {
            let inside = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let n_bytes = inside.filter_map(|entry| entry.metadata().ok()).map(|m| m.len()).sum::<u64>();
            std::fs::remove_dir_all(&path).ok().map(|()| n_bytes)
        } else {
            let n_bytes = file.metadata().ok()?.len();
            std::fs::remove_file(&path).ok().map(|()| n_bytes)
        }
    });
    removed.sum()
}

/// Moves complete files to where they can be opened as what they will be, and none takes them for it: their final names, which the
/// parts of a model find each other by, in a directory that vanishes. They are to be [published](publish) from there.
pub fn set_aside(files: &mut Vec<(TemporaryFile, PathBuf)>, dir: &Path) -> Result<Aside> {
    let aside = Aside::new(dir)?;
    let moved = |(file, target): (TemporaryFile, PathBuf)| {
        let path = aside.path().join(target.file_name().unwrap_or_default());
        // The directory's lock stands for it. Windows lets nobody read what is locked.
        let _ = file.as_file().unlock();
        let named = file.rename(&path).map_err(|e| Error::other("cannot name the file").because(e).at(&path));
        Ok((named?, target))
    };
    *files = files.drain(..).map(moved).collect::<Result<_>>()?;
    Ok(aside)
}

/// Brings complete files to the disk and then to their names, all of them or (short of a crash between two renames) none.
pub fn publish(files: Vec<(TemporaryFile, PathBuf)>, dir: &Path, existing: Existing) -> Result<()> {
    for (file, target) in &files {
        file.as_file().sync_all().map_err(|e| Error::other("cannot write the file").because(e).at(target))?;
    }
    let mut published: Vec<PathBuf> = Vec::new();
    for (file, target) in files {
        // A plain rename after a look: renames that refuse to replace are not to be had on every file system (exFAT).
        let in_the_way = existing == Existing::Keep && target.exists();
        let moved = if in_the_way {
            Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists))
        } else {
            file.persist(&target).map(drop)
        };
        if let Err(e) = moved {
            // A new file without its partner is worth nothing; a replaced one cannot be brought back.
            let undo = published.iter().filter(|_| existing == Existing::Keep);
            undo.for_each(|path| drop(std::fs::remove_file(path)));
            return Err(Error::other("cannot name the finished file").because(e).at(&target));
        }
        published.push(target);
    }
    // Makes the names durable too where directories can be synced; elsewhere nothing is lost but that.
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in `dir`.
    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_go_and_what_is_at_work_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (file, aside) = (temporary(dir.path()).unwrap(), Aside::new(dir.path()).unwrap());
        std::fs::write(aside.path().join("m.gguf"), [0; 7]).unwrap();
        std::fs::write(dir.path().join(".qvl-convert-dead01.tmp"), [0; 1000]).unwrap();
        std::fs::create_dir(dir.path().join(".qvl-convert-dead01")).unwrap();
        std::fs::write(dir.path().join(".qvl-convert-dead01/m.gguf"), [0; 500]).unwrap();
        // What a user has named is no leftover.
        const MINE: [&str; 3] = [".qvl-convert-mine.gguf", ".qvl-convert-notes.tmp", "qvl-convert-mine.gguf"];
        MINE.iter().for_each(|name| std::fs::write(dir.path().join(name), [0; 10]).unwrap());
        assert_eq!(remove_leftovers(dir.path()), 1500);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut expect = vec![name(file.path()), name(aside.path())];
        expect.extend(MINE.map(str::to_owned));
        expect.sort();
        assert_eq!(names(dir.path()), expect);
        drop((file, aside));
        assert_eq!(names(dir.path()), MINE);
        assert_eq!(remove_leftovers(&dir.path().join("nowhere")), 0);
    }

    /// A pipe would be waited for, a link leads to what is somebody's.
    #[test]
    #[cfg(unix)]
    fn pipes_and_links_are_no_leftovers() {
        let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(theirs.path().join("m.gguf"), [0; 9]).unwrap();
        std::os::unix::fs::symlink(theirs.path(), dir.path().join(".qvl-convert-link01")).unwrap();
        let pipe = dir.path().join(".qvl-convert-pipe01.tmp");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(remove_leftovers(dir.path()), 0);
        assert_eq!(names(dir.path()).len(), 2);
        assert!(theirs.path().join("m.gguf").exists());
    }
}
