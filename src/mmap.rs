//! Door 1: a file mapped into memory, read-only.
#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// A whole file as a byte slice backed by the page cache; nothing is read until it is touched.
///
/// The file must not be truncated while it is mapped: touching a page that is gone raises SIGBUS (see [`explain_faults`]).
pub struct MappedFile {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// Maps `path`. Errors (kind model): the file is missing, a directory, a pipe or device, empty, or unreadable.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<(File, Metadata)> {
            // Looked at before it is opened: opening a pipe would wait for its writer.
            let kind = std::fs::metadata(path)?.file_type();
            if kind.is_dir() {
                return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
            }
            if !kind.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        };
        let (file, metadata) = open().map_err(|e| Error::model("cannot open the file").because(e).at(path))?;
        if metadata.len() == 0 {
            return Err(Error::model("the file is empty").at(path));
        }
        // SAFETY: the map is read-only and private to us; that nobody truncates or rewrites the file meanwhile is
        // the usual contract of mapped model files and is documented on the type.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .map_err(|e| Error::model("cannot map the file").because(e).at(path))?;
        Ok(MappedFile { map, file, path: path.to_path_buf(), modified: metadata.modified().ok() })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When this very file was modified last before it was mapped; `None` where the system does not tell.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// Tells the system that the whole file will be wanted soon. A hint; failure is ignored.
    pub fn will_need(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }

    /// Unmaps the file and asks the system to forget its pages too, which another process that maps it prevents. A hint;
    /// failure is ignored. Who wants the file again waits for the disk.
    pub fn forget(self) {
        let MappedFile { map, file, .. } = self;
        drop(map);
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        drop(file);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// From now on a mapped file that becomes shorter, or that the disk cannot read, ends the process with a message and the exit
/// code of a bad model instead of a signal. There is no way back: the values that were wanted are not there.
pub fn explain_faults() {
    #[cfg(unix)]
    {
        extern "C" fn explain(_signal: libc::c_int) {
            const MESSAGE: &[u8] =
                b"\nerror: a mapped file (the model, its mmproj or a checkpoint) has become shorter or cannot be \
                                     read; copy it again, and replace files by renaming new ones\n";
            const EXIT_CODE: libc::c_int = crate::error::ErrorKind::Model.exit_code() as libc::c_int;
            // SAFETY: both may be called in a signal handler, and the bytes are static.
            unsafe {
                libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(EXIT_CODE);
            }
        }
        let handler: extern "C" fn(libc::c_int) = explain;
        // SAFETY: the handler only calls what may be called there, and does not return.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    }
}
