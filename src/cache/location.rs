//! Where the cache is.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// `QVL_CACHE_DIR`, else `qvl` in the user's cache directory: `XDG_CACHE_HOME` or `~/.cache` on Linux and the like,
/// `~/Library/Caches` on macOS, `LOCALAPPDATA` on Windows. `env` looks up a variable. Touches no file.
///
/// Errors (kind other): the environment names no directory.
pub fn directory(env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let named = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = named("QVL_CACHE_DIR") {
        return Ok(dir);
    }
    // As the XDG specification wants it: a relative path there is a mistake, and as good as none.
    let absolute = |name: &str| named(name).filter(|path| path.is_absolute());
    let user = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    };
    let home = if cfg!(windows) { "LOCALAPPDATA" } else { "HOME" };
    let none = || Error::other(format!("there is no directory for the cache: set {home} or QVL_CACHE_DIR"));
    user.map(|dir| dir.join("qvl")).ok_or_else(none)
}

#[cfg(all(test, unix, not(target_os = "macos")))]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_set_counts() {
        let check = |set: &[(&str, &str)], expect: Option<&str>| {
            let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            assert_eq!(directory(env).ok(), expect.map(PathBuf::from), "{set:?}");
        };
        check(&[("QVL_CACHE_DIR", "here"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("here"));
        check(&[("QVL_CACHE_DIR", ""), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/qvl"));
        check(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/h/.cache/qvl"));
        check(&[("HOME", "/h")], Some("/h/.cache/qvl"));
        check(&[("HOME", "")], None);
        check(&[], None);
    }
}
