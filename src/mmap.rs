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
    /// Maps `path`. Errors (kind model): the file is missing, a directory, a pipe or device, empty, or unreadable; (kind memory): there
    /// are not so many addresses left.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, metadata) = regular_file(path)?;
        // SAFETY: the map is read-only and private to us; that nobody truncates or rewrites the file meanwhile is
        // the usual contract of mapped model files and is documented on the type.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| not_mapped(e, path))?;
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

/// Brings files into the page cache, one after the other, while the caller goes on: who touches them in that order waits for the disk only where
/// it is slower. A hint; failure is ignored. Linux alone.
pub fn read_ahead(paths: Vec<PathBuf>) {
    #[cfg(target_os = "linux")]
    {
        /// What the system is asked for at once: it takes no more of a wish than it would read ahead by itself, which is this much where nobody
        /// has changed it.
        const PART: u64 = 128 << 10;
        let read = move || {
            for file in paths.iter().filter_map(|path| File::open(path).ok()) {
                let n_bytes = file.metadata().map_or(0, |metadata| metadata.len());
                for at in (0..n_bytes).step_by(PART as usize) {
                    let n = std::num::NonZeroU64::new(PART.min(n_bytes - at));
                    let _ = rustix::fs::fadvise(&file, at, n, rustix::fs::Advice::WillNeed);
                }
            }
        };
        let _ = std::thread::Builder::new().name("read-ahead".to_owned()).spawn(read);
    }
    #[cfg(not(target_os = "linux"))]
    drop(paths);
}

/// Of kind memory where addresses ran out: a limit of the user's, or 32 bits.
fn not_mapped(error: std::io::Error, path: &Path) -> Error {
    let new = if error.kind() == std::io::ErrorKind::OutOfMemory { Error::memory } else { Error::model };
    new("cannot map the file".to_owned()).because(error).at(path)
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
        let failed = |e: rustix::io::Errno, path: &Path| not_mapped(e.into(), path);
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
            crate::ggml::end(&[MESSAGE], crate::error::ErrorKind::Model)
        }
        let handler: extern "C" fn(libc::c_int) = explain;
        // SAFETY: the handler only calls what may be called there, and does not return.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Pages of a file that are in the page cache.
    fn n_resident(file: &MappedFile) -> usize {
        let mut pages = vec![0u8; file.len().div_ceil(rustix::param::page_size())];
        // SAFETY: a mapping of so many pages, and a byte for each.
        let code = unsafe { libc::mincore(file.as_ptr().cast_mut().cast(), file.len(), pages.as_mut_ptr()) };
        assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    /// On a disk. In a file system in memory there is nothing to be read.
    #[test]
    fn all_of_every_file_is_read_ahead() {
        let dir = tempfile::tempdir().expect("a directory");
        let files: Vec<_> = [(9 << 20) + 5, 1, 3 << 20]
            .into_iter()
            .enumerate()
            .map(|(nth, n_bytes)| {
                let path = dir.path().join(nth.to_string());
                std::fs::write(&path, vec![nth as u8; n_bytes]).expect("written");
                let file = File::open(&path).expect("opened");
                file.sync_all().expect("on the disk");
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
                MappedFile::open(&path).expect("mapped")
            })
            .collect();
        let n_pages = |file: &MappedFile| file.len().div_ceil(rustix::param::page_size());
        read_ahead(
            [&[PathBuf::from("/no/such/file")][..], &files.iter().map(|f| f.path().to_owned()).collect::<Vec<_>>()]
                .concat(),
        );
        let start = Instant::now();
        while let Some(file) = files.iter().find(|file| n_resident(file) < n_pages(file)) {
            assert!(start.elapsed() < Duration::from_secs(60), "{} of {} pages", n_resident(file), n_pages(file));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
