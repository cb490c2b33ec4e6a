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

/// Several files as one byte slice, each at the next page behind the one before it, zeros between them. Else as [`MappedFile`].
pub struct MappedFiles {
    #[cfg(unix)]
    address: std::ptr::NonNull<u8>,
    #[cfg(unix)]
    n_bytes: usize,
    starts: Vec<u64>,
    sizes: Vec<u64>,
}

impl MappedFile {
    /// Maps `path`. Errors (kind model): the file is missing, a directory, a pipe or device, empty, or unreadable.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, metadata) = regular_file(path)?;
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

/// Opens what can be mapped. Errors as [`MappedFile::open`].
fn regular_file(path: &Path) -> Result<(File, Metadata)> {
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
    Ok((file, metadata))
}

impl MappedFiles {
    /// Maps `paths`, one at least. Errors as [`MappedFile::open`]; systems other than Unix cannot.
    #[cfg(unix)]
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
        let files = paths.iter().map(|path| regular_file(path)).collect::<Result<Vec<_>>>()?;
        let sizes: Vec<u64> = files.iter().map(|(_, metadata)| metadata.len()).collect();
        let page = rustix::param::page_size() as u64;
        let mut starts = Vec::with_capacity(sizes.len());
        let mut n_bytes = 0u64;
        for size in &sizes {
            starts.push(n_bytes);
            n_bytes = n_bytes.saturating_add(size.saturating_add(page) / page * page);
        }
        let failed = |e: rustix::io::Errno, path: &Path| Error::model("cannot map the file").because(e).at(path);
        let length = usize::try_from(n_bytes).unwrap_or(usize::MAX);
        // SAFETY: a new mapping at an address of the system's choice, zeros that nobody can write to; it holds the place of all.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE) };
        let address = address.map_err(|e| failed(e, &paths[0]))?;
        let address =
            std::ptr::NonNull::new(address.cast::<u8>()).ok_or_else(|| failed(rustix::io::Errno::NOMEM, &paths[0]))?;
        let mapped = MappedFiles { address, n_bytes: length, starts, sizes };
        for (nth, (file, _)) in files.iter().enumerate() {
            // SAFETY: from `starts[nth]` on there is room for this file's pages in the mapping above, which is ours alone and has
            // not been handed out yet; the map is read-only, and what is said of a single file's holds for it.
            let map = unsafe {
                let place = mapped.address.as_ptr().add(mapped.starts[nth] as usize).cast();
                mmap(place, mapped.sizes[nth] as usize, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, 0)
            };
            map.map_err(|e| failed(e, &paths[nth]))?;
        }
        Ok(mapped)
    }

    /// Not here. Errors (kind model).
    #[cfg(not(unix))]
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        Err(Error::model("a model in several files can be opened on Unix only; merge it with llama.cpp's gguf-split")
            .at(&paths[0]))
    }

    /// Where each file begins in the slice, in bytes.
    pub fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// The bytes of each file.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// One of the files.
    pub fn file(&self, nth: usize) -> &[u8] {
        &self[self.starts[nth] as usize..][..self.sizes[nth] as usize]
    }
}

impl Deref for MappedFiles {
    type Target = [u8];

    #[cfg(unix)]
    fn deref(&self) -> &[u8] {
        // SAFETY: all of it is mapped, readable and not written to by us as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.n_bytes) }
    }

    #[cfg(not(unix))]
    fn deref(&self) -> &[u8] {
        &[]
    }
}

#[cfg(unix)]
impl Drop for MappedFiles {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and no slice of it outlives `self`. Failure leaves it mapped.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.n_bytes) };
    }
}

// SAFETY: memory that nobody writes to.
#[cfg(unix)]
unsafe impl Send for MappedFiles {}
// SAFETY: as above.
#[cfg(unix)]
unsafe impl Sync for MappedFiles {}

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
