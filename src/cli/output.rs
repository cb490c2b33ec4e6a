//! Files that appear under their name only when they are complete.

use std::path::{Path, is_separator};

use qvl::error::{Error, Result};
use qvl::temporary::{Readers, TemporaryFile};

/// Proves, before the long work, that a file can be made at `path`. What is there stays.
pub fn check(path: &Path) -> Result<()> {
    let names_a_directory = path.to_string_lossy().ends_with(is_separator);
    if names_a_directory || path.is_dir() {
        return Err(Error::other("cannot write here: this is a directory").at(path));
    }
    // Only making one shows it. It is gone at once, so that nothing is left over if the work ends early.
    temporary(path).map(drop)
}

/// A file beside `path`, gone when dropped; `persist(path)` makes it appear there, in place of what was.
pub fn temporary(path: &Path) -> Result<TemporaryFile> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = TemporaryFile::new(dir, ".qvl-", ".tmp", Readers::Usual);
    file.map_err(|e| Error::other("cannot write here").because(e).at(dir))
}
