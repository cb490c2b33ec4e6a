//! Pictures found by a directory or a pattern.

use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

use crate::error::{Error, Result};

/// Endings of the formats that [`super::decode`] reads, in lower case.
const EXTENSIONS: [&str; 17] = [
    "bmp", "dib", "gif", "jfif", "jpe", "jpeg", "jpg", "pam", "pbm", "pgm", "png", "pnm", "ppm", "qoi", "tif", "tiff",
    "webp",
];

/// The pictures directly in `dir`, sorted by name (as `ls` does in the C locale): files, or links to files, whose name
/// ends in an extension of a format that is read, in any case. Hidden files are left out; none is opened.
///
/// Errors (kind image): the directory cannot be read. An empty list is no error.
pub fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::image("cannot list the directory").because(e).at(dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if has_picture_name(&path) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn has_picture_name(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    !hidden && EXTENSIONS.contains(&extension.as_str())
}

/// Whether `text` holds a character with a meaning in a pattern, and is one.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[']) && Pattern::new(text).is_ok()
}

/// The files that match `pattern`, sorted: what a Unix shell would have put there, but for directories. Whether they are
/// pictures is for decoding to say.
///
/// Errors (kind image): no match, a directory on the way that cannot be read.
pub(super) fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let in_front = |e: Error| e.at(Path::new(pattern));
    let options = MatchOptions {
        case_sensitive: !cfg!(windows),
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let all = glob_with(pattern, options).map_err(|e| in_front(Error::image("not a pattern").because(e)))?;
    let mut found = Vec::new();
    for path in all {
        let path = path.map_err(|e| in_front(Error::image("cannot look for matches").because(e)))?;
        if !path.is_dir() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(in_front(Error::image("no such file, and no file matches it as a pattern")));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[PathBuf]) -> Vec<String> {
        paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        files.iter().for_each(|file| fs::write(dir.path().join(file), "").expect("is written"));
        fs::create_dir(dir.path().join("sub.png")).expect("is made");
        fs::write(dir.path().join("sub.png/in.png"), "").expect("is written");
        dir
    }

    #[test]
    fn a_directory_gives_its_pictures() {
        let dir = directory(&["b.JPG", "a.png", ".hidden.png", "notes.txt", "png", "c.tar.gz", "图.webp", "d.HEIC"]);
        assert_eq!(names(&files_in(dir.path()).expect("is listed")), ["a.png", "b.JPG", "图.webp"]);
        let empty = tempfile::tempdir().expect("a directory");
        assert!(files_in(empty.path()).expect("is listed").is_empty());
        let error = files_in(&dir.path().join("none")).expect_err("is missing");
        assert_eq!(error.kind().exit_code(), 4);
    }

    #[cfg(unix)]
    #[test]
    fn links_count_as_what_they_lead_to() {
        let dir = directory(&["a.png"]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).expect("is linked");
        link("a.png", "b.png");
        link("nowhere", "c.png");
        link("sub.png", "d.png");
        assert_eq!(names(&files_in(dir.path()).expect("is listed")), ["a.png", "b.png"]);
    }

    #[test]
    fn a_pattern_gives_what_a_shell_would() {
        let dir = directory(&["a2.png", "a10.png", "b.png", ".a3.png", "a.txt"]);
        let of = |pattern: &str| matches(dir.path().join(pattern).to_str().unwrap());
        assert_eq!(names(&of("a*.png").expect("matches")), ["a10.png", "a2.png"]);
        assert_eq!(names(&of("*.png").expect("matches")), ["a10.png", "a2.png", "b.png"]);
        assert_eq!(names(&of("[ab].???").expect("matches")), ["a.txt", "b.png"]);
        assert_eq!(names(&of("**/in.png").expect("matches")), ["in.png"]);
        assert_eq!(of("c*.png").expect_err("matches nothing").kind().exit_code(), 4);
        assert!(is_pattern("a*") && !is_pattern("a.png") && !is_pattern("a[1.png"));
    }
}
