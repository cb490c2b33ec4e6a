//! Files that are not yet what they will be. They go when dropped, and also where a process ends without dropping anything: for lack
//! of memory, by a fault or an abort (see [`crate::ends`]). Only what is killed leaves them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use tempfile::TempPath;

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// As any new file: what the user's umask leaves of rw-rw-rw-.
    Usual,
    /// The user alone.
    Owner,
}

/// A file that vanishes unless it [persists](Self::persist).
#[derive(Debug)]
pub struct TemporaryFile {
    file: File,
    path: TempPath,
    listed: Listed,
}

impl TemporaryFile {
    /// A new one in `dir`, its name `prefix`, six random letters or digits, `suffix`.
    pub fn new(dir: &Path, prefix: &str, suffix: &str, readers: Readers) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, if readers == Readers::Usual { 0o666 } else { 0o600 });
        #[cfg(not(unix))]
        let _ = readers;
        // Everything that takes memory comes before the file.
        let make = |path: &Path| {
            let entry = Entry::new(path);
            options.open(path).map(|file| (file, entry.list()))
        };
        let ((file, listed), path) =
            tempfile::Builder::new().prefix(prefix).suffix(suffix).make_in(dir, make)?.into_parts();
        Ok(TemporaryFile { file, path, listed })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is written by.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in place of what was there. Where that fails, it is gone.
    pub fn persist(self, path: &Path) -> io::Result<File> {
        self.path.persist(path)?;
        Ok(self.file)
    }

    /// Gives it another name, under which it still vanishes.
    pub fn rename(self, path: &Path) -> io::Result<Self> {
        let TemporaryFile { file, path: old, listed } = self;
        let entry = Entry::new(path);
        old.persist(path)?;
        let new = entry.list();
        drop(listed);
        Ok(TemporaryFile { file, path: TempPath::try_from_path(path)?, listed: new })
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A directory that vanishes with all that is in it. Where nothing is dropped it has to be empty by then.
#[derive(Debug)]
pub struct TemporaryDir {
    dir: tempfile::TempDir,
    _listed: Listed,
}

impl TemporaryDir {
    /// A new one in `dir`, its name `prefix` and six random letters or digits.
    pub fn new(dir: &Path, prefix: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(dir)?;
        let entry = Entry::new(dir.path());
        Ok(TemporaryDir { dir, _listed: entry.list() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What is there now, the newest first: a file before the directory that it is in.
static LIST: Mutex<Link> = Mutex::new(None);

type Link = Option<Box<Entry>>;

/// A path to be removed. Linked, so that [listing](Self::list) it takes no memory: where that ran out in between, nobody could read the list.
#[derive(Debug)]
struct Entry {
    id: u64,
    path: PathBuf,
    next: Link,
}

impl Entry {
    fn new(path: &Path) -> Box<Self> {
        static N_MADE: AtomicU64 = AtomicU64::new(0);
        let id = N_MADE.fetch_add(1, Ordering::Relaxed);
        Box::new(Entry { id, path: path.to_owned(), next: None })
    }

    fn list(mut self: Box<Self>) -> Listed {
        let listed = Listed { id: self.id };
        let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        self.next = list.take();
        *list = Some(self);
        listed
    }
}

/// Lives as long as its path is to be removed.
#[derive(Debug)]
struct Listed {
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        let mut link = &mut *list;
        while link.as_ref().is_some_and(|entry| entry.id != self.id) {
            // It was something one line above.
            let Some(entry) = link else { return };
            link = &mut entry.next;
        }
        if let Some(entry) = link.take() {
            *link = entry.next;
        }
    }
}

/// Removes them all, for who ends the process now. It may be called in a handler of a signal and where there is no memory (paths of 384 bytes
/// and more take some): it allocates nothing and waits for nobody for long.
pub fn remove_all() {
    /// Who holds the list lets it go at once, unless it is the thread that the handler interrupted.
    const N_TRIES: usize = 1000;
    let list = (0..N_TRIES).find_map(|_| {
        let list = match LIST.try_lock() {
            Ok(list) => Some(list),
            Err(TryLockError::Poisoned(list)) => Some(list.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if list.is_none() {
            std::thread::yield_now();
        }
        list
    });
    let mut link = list.as_ref().and_then(|list: &MutexGuard<'_, Link>| list.as_ref());
    while let Some(entry) = link {
        // One of the two; what fails stays, as after a kill.
        let _ = fs::remove_file(&entry.path).or_else(|_| fs::remove_dir(&entry.path));
        link = entry.next.as_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::error::ErrorKind;

    /// Names in `dir`, in order.
    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn gone_when_dropped_there_when_named() {
        let dir = tempfile::tempdir().unwrap();
        let new = || TemporaryFile::new(dir.path(), ".x-", ".tmp", Readers::Usual).unwrap();
        let (dropped, mut kept, moved) = (new(), new(), new());
        let name = dropped.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with(".x-") && name.ends_with(".tmp") && name.len() == 13, "{name}");
        assert_eq!(names(dir.path()).len(), 3);
        drop(dropped);
        kept.write_all(b"all of it").unwrap();
        kept.persist(&dir.path().join("kept")).unwrap();
        let aside = TemporaryDir::new(dir.path(), ".y-").unwrap();
        let moved = moved.rename(&aside.path().join("moved")).unwrap();
        assert_eq!(names(aside.path()), ["moved"]);
        assert_eq!(moved.path(), aside.path().join("moved"));
        drop((moved, aside));
        assert_eq!(names(dir.path()), ["kept"]);
        assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"all of it");
    }

    #[test]
    fn what_cannot_be_named_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let new = || TemporaryFile::new(dir.path(), "", "", Readers::Usual).unwrap();
        assert!(new().persist(&dir.path().join("nowhere/x")).is_err());
        assert!(new().rename(&dir.path().join("nowhere/x")).is_err());
        assert_eq!(names(dir.path()), [""; 0]);
        assert!(TemporaryFile::new(&dir.path().join("nowhere"), "", "", Readers::Usual).is_err());
    }

    #[test]
    #[cfg(unix)]
    fn a_private_one_is_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |readers| {
            let file = TemporaryFile::new(dir.path(), "", "", readers).unwrap();
            std::os::unix::fs::PermissionsExt::mode(&file.as_file().metadata().unwrap().permissions()) & 0o777
        };
        assert_eq!(mode(Readers::Owner), 0o600);
        // Whatever the umask is, who made it reads and writes it.
        assert_eq!(mode(Readers::Usual) & 0o600, 0o600);
    }

    /// The directory of the process that [`gone_where_nothing_is_dropped`] starts.
    const DIR: &str = "QVL_TEST_TEMPORARY";
    /// Set where it is to say nothing.
    const QUIETLY: &str = "QVL_TEST_TEMPORARY_QUIETLY";

    /// Nothing by itself: what the next test starts.
    #[test]
    fn ends() {
        let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
        let new = |dir: &Path| TemporaryFile::new(dir, ".x-", ".tmp", Readers::Owner).unwrap();
        let files: Vec<TemporaryFile> = (0..100).map(|_| new(&dir)).collect();
        let mut files = files.into_iter();
        files.next().unwrap().persist(&dir.join("kept")).unwrap();
        let aside = TemporaryDir::new(&dir, ".y-").unwrap();
        let moved = files.nth(40).unwrap().rename(&aside.path().join("moved")).unwrap();
        if std::env::var_os(QUIETLY).is_some() {
            crate::ends::exit(7);
        }
        crate::ggml::end(&[b"the end of ", moved.path().file_name().unwrap().as_encoded_bytes()], ErrorKind::Memory);
    }

    #[test]
    fn gone_where_nothing_is_dropped() {
        for (envs, expect) in [(&[][..], (Some(5), "the end of moved")), (&[(QUIETLY, "1")][..], (Some(7), ""))] {
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "temporary::tests::ends"]).env(DIR, dir.path()).envs(envs.iter().copied());
            let output = command.output().unwrap();
            assert_eq!((output.status.code(), std::str::from_utf8(&output.stderr).unwrap()), expect);
            assert_eq!(names(dir.path()), ["kept"]);
        }
    }
}
