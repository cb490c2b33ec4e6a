//! Where a picture comes from, as the user writes it.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

#[cfg(feature = "http")]
use super::http::fetch;
use super::{Orientation, Picture, decode, listing, load, uri};
use crate::error::{Error, Result};

/// Largest file of a picture in bytes. A larger one is refused before it fills the memory (an endless one, as devices and
/// pipes may be, would).
pub(super) const MAX_FILE_BYTES: u64 = 1 << 30;

/// Characters of a `data:` address that are shown: the type, and enough of the data to know it again.
const N_SHOWN: usize = 32;

/// A place that a picture is read from. Having one says nothing about the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A file. Nothing in the path is special.
    Path(PathBuf),
    /// Standard input, to its end. It can be read once.
    Stdin,
    /// A `data:` address, whole.
    Data(String),
    /// An `http://` or `https://` address.
    Url(String),
}

impl ImageSource {
    /// What an argument names: `-`, a `data:`, `http(s)://` or `file://` address (schemes in any case), else a path. Looks
    /// at the file system only to tell a path from an address of a kind that is not read.
    ///
    /// Errors (kind image): such an address, or a `file://` address of another machine.
    pub fn of_argument(argument: &OsStr) -> Result<ImageSource> {
        let as_path = || ImageSource::Path(argument.into());
        // What is no UTF-8 can only be a path.
        let Some(text) = argument.to_str() else { return Ok(as_path()) };
        if text == "-" {
            return Ok(ImageSource::Stdin);
        }
        if uri::after_scheme(text, "data:").is_some() {
            return Ok(ImageSource::Data(text.to_owned()));
        }
        if ["http://", "https://"].iter().any(|scheme| uri::after_scheme(text, scheme).is_some()) {
            return Ok(ImageSource::Url(text.to_owned()));
        }
        if let Some(path) = uri::after_scheme(text, "file:").and_then(uri::file) {
            return path.map(ImageSource::Path).map_err(|e| e.of(text));
        }
        match text.split_once("://") {
            Some((scheme, _)) if is_scheme(scheme) && !is_there(argument.as_ref()) => {
                Err(Error::image("addresses of this kind are not read (but http, https, file and data)").of(text))
            }
            _ => Ok(as_path()),
        }
    }

    /// The file's path, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            ImageSource::Path(path) => Some(path),
            _ => None,
        }
    }

    /// Reads the picture. Errors: the source stands in front of each; all of kind image, but for stdin that is a terminal
    /// and an address in a build without the feature `http` (kind usage). Cost: the file's bytes while [`decode`] works on
    /// them; an address is fetched anew each time.
    pub fn load(&self, orientation: Orientation) -> Result<Picture> {
        let bytes = match self {
            ImageSource::Path(path) => return load(path, orientation),
            ImageSource::Stdin if io::stdin().is_terminal() => Err(Error::usage("nothing is piped in; try < PICTURE")),
            ImageSource::Stdin => read_whole(io::stdin().lock(), MAX_FILE_BYTES),
            ImageSource::Data(text) => uri::data(uri::after_scheme(text, "data:").unwrap_or(text)),
            ImageSource::Url(url) => fetch(url),
        };
        bytes.and_then(|bytes| decode(&bytes, orientation)).map_err(|e| e.of(self))
    }
}

impl fmt::Display for ImageSource {
    /// As the user wrote it, but for a long `data:` address, of which only the beginning and the length are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::Path(path) => path.display().fmt(f),
            ImageSource::Stdin => f.write_str("stdin"),
            ImageSource::Url(url) => f.write_str(url),
            ImageSource::Data(text) => match text.char_indices().nth(N_SHOWN) {
                Some((end, _)) => write!(f, "{}... ({} characters)", &text[..end], text.chars().count()),
                None => f.write_str(text),
            },
        }
    }
}

/// What a list of arguments names, in order; see [`ImageSource::of_argument`]. A pattern with `*`, `?` or `[..]` that the
/// shell did not expand (Windows, quotes) becomes the files that match it, sorted; a path that exists is no pattern.
///
/// Errors: standard input twice (kind usage); a pattern that matches nothing (kind image).
pub fn sources(arguments: &[PathBuf]) -> Result<Vec<ImageSource>> {
    let mut sources = Vec::new();
    for argument in arguments {
        let source = ImageSource::of_argument(argument.as_os_str())?;
        if source == ImageSource::Stdin && sources.contains(&ImageSource::Stdin) {
            return Err(Error::usage("stdin can give one picture only; put the others into files"));
        }
        // The path of a `file:` address is no pattern, so the argument itself is looked at.
        let is_path = source.path() == Some(argument);
        match argument.to_str().filter(|text| is_path && listing::is_pattern(text)) {
            Some(pattern) if !is_there(argument) => {
                sources.extend(listing::matches(pattern)?.into_iter().map(ImageSource::Path));
            }
            _ => sources.push(source),
        }
    }
    Ok(sources)
}

/// All of `input`. Errors (kind image): more than `max_bytes`, or it cannot be read. Cost: `max_bytes` + 1 at most.
pub(super) fn read_whole(input: impl Read, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = input.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|e| Error::image("cannot read the picture").because(e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(max_bytes));
    }
    Ok(bytes)
}

/// The error of a file beyond `max_bytes`.
pub(super) fn too_large(max_bytes: u64) -> Error {
    let size = match max_bytes >> 30 {
        0 => format!("{max_bytes} bytes"),
        n_gib => format!("{n_gib} GiB"),
    };
    Error::image(format!("larger than {size}, the limit of a picture's file"))
}

#[cfg(not(feature = "http"))]
fn fetch(_url: &str) -> Result<Vec<u8>> {
    Err(Error::usage("this build fetches nothing (it is without the feature `http`); download it and give its path"))
}

/// Whether something has this name, be it a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether `text` may stand in front of `://` (RFC 3986). A single letter is a drive of Windows.
fn is_scheme(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text.len() > 1 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(argument: &str) -> ImageSource {
        ImageSource::of_argument(argument.as_ref()).expect("names something")
    }

    #[test]
    fn arguments_are_told_apart() {
        let path = |path: &str| ImageSource::Path(path.into());
        assert_eq!(of("-"), ImageSource::Stdin);
        for url in ["http://a/b.png", "HTTPS://a/b.png?c#d"] {
            assert_eq!(of(url), ImageSource::Url(url.to_owned()));
        }
        assert_eq!(of("Data:,x"), ImageSource::Data("Data:,x".to_owned()));
        assert_eq!(of("file:///a%20b.png"), path("/a b.png"));
        for name in ["a.png", "./-", "--", "", "file:a", "http:/a", "C://a.png", "a b://c", "图://a", "~/a.png"] {
            assert_eq!(of(name), path(name));
        }
        for address in ["ftp://a/b.png", "s3://bucket/b.png", "file://server/b.png"] {
            let error = ImageSource::of_argument(address.as_ref()).expect_err("is not read");
            assert_eq!(error.kind().exit_code(), 4);
            assert!(error.to_string().starts_with(address), "{error}");
        }
    }

    #[test]
    fn a_long_address_is_shown_short() {
        let long = of(&format!("data:image/png;base64,{}", "A".repeat(5000)));
        assert_eq!(long.to_string(), "data:image/png;base64,AAAAAAAAAA... (5022 characters)");
        assert_eq!(of("data:,图").to_string(), "data:,图");
        assert_eq!(of("a.png").to_string(), "a.png");
        let error = long.load(Orientation::Upright).expect_err("is no picture");
        assert!(error.to_string().len() < 200, "{error}");
    }

    #[test]
    fn what_exists_is_no_pattern() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name);
        ["a1.png", "a2.png", "b[1].png"].iter().for_each(|name| std::fs::write(file(name), "").expect("is written"));
        let check = |arguments: &[&str], expect: &[&str]| {
            let found = sources(&arguments.iter().map(|name| file(name)).collect::<Vec<_>>()).expect("are there");
            assert_eq!(found, expect.iter().map(|name| ImageSource::Path(file(name))).collect::<Vec<_>>());
        };
        check(&["b[1].png", "a?.png"], &["b[1].png", "a1.png", "a2.png"]);
        check(&["none.png"], &["none.png"]);
        check(&["a[.png"], &["a[.png"]);
        assert_eq!(sources(&[file("c*")]).expect_err("matches nothing").kind().exit_code(), 4);
    }

    #[test]
    fn stdin_comes_once() {
        let arguments = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(sources(&arguments(&["a.png", "-"])).expect("are fine").len(), 2);
        assert_eq!(sources(&arguments(&["-", "a.png", "-"])).expect_err("twice").kind().exit_code(), 2);
    }

    #[test]
    fn an_endless_input_is_refused() {
        assert_eq!(read_whole(&b"1234"[..], 4).expect("fits"), b"1234");
        let error = read_whole(io::repeat(0), 1000).expect_err("is endless");
        assert_eq!(error.to_string(), "larger than 1000 bytes, the limit of a picture's file");
        assert!(too_large(MAX_FILE_BYTES).to_string().starts_with("larger than 1 GiB"));
    }
}
