//! Addresses that hold a picture (`data:`, RFC 2397) or name a file (`file:`, RFC 8089), as browsers and file managers
//! hand them out.

use std::path::PathBuf;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::{Error, Result};

/// Forgiving in what harms nobody: base64 may lack its padding, as WHATWG's "forgiving-base64" allows.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What follows `scheme` (with its colon) in `text`, if that is its scheme in any case.
pub(super) fn after_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let head = text.get(..scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
}

/// The bytes in the address `data:[TYPE][;base64],DATA`, given without its `data:`. TYPE is not looked at: a picture is
/// known by its content.
///
/// Errors (kind image): no comma, bad base64. Cost: the data twice for a moment.
pub(super) fn data(rest: &str) -> Result<Vec<u8>> {
    let (header, data) =
        rest.split_once(',').ok_or_else(|| Error::image("expected a comma between the type and the data"))?;
    let mut bytes = percent_decoded(data);
    let is_base64 = header.rsplit_once(';').is_some_and(|(_, last)| last.trim().eq_ignore_ascii_case("base64"));
    if is_base64 {
        bytes.retain(|b| !b.is_ascii_whitespace());
        return BASE64.decode(&bytes).map_err(|e| Error::image("bad base64 (cut off, or pasted wrongly?)").because(e));
    }
    Ok(bytes)
}

/// The path in the address `file:///PATH`, given without its `file:`. `None`: it does not begin with a slash, so it is
/// a file's name rather than an address.
///
/// Errors (kind image): another machine's file; on Windows, bytes that are no UTF-8.
pub(super) fn file(rest: &str) -> Option<Result<PathBuf>> {
    let path = match rest.strip_prefix("//") {
        None if rest.starts_with('/') => rest,
        None => return None,
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
                return Some(Err(Error::image(format!(
                    "it is on the machine {host:?}; a file address of this machine has three slashes: file:///PATH"
                ))));
            }
            path
        }
    };
    // "/C:/Users" means "C:/Users".
    let has_drive = cfg!(windows) && path.as_bytes().get(2).is_some_and(|&b| b == b':');
    Some(path_of(percent_decoded(if has_drive { &path[1..] } else { path })))
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf> {
    let text = String::from_utf8(bytes).map_err(|e| Error::image("a path that is no UTF-8").because(e))?;
    Ok(text.into())
}

/// `text` with each `%XX` replaced by its byte; a percent sign without two digits stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|&b| char::from(b).to_digit(16));
    let mut rest = text.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&first, tail)) = rest.split_first() {
        let byte;
        (byte, rest) = match (first, digit(tail.first()), digit(tail.get(1))) {
            // Two digits are below 256.
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, &tail[2..]),
            _ => (first, tail),
        };
        bytes.push(byte);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn data_in_every_spelling() {
        let check = |rest: &str, expect: &[u8]| assert_eq!(data(rest).expect(rest), expect, "{rest}");
        check("image/png;base64,aGVsbG8=", b"hello");
        check("image/png;charset=x;BASE64,aGVsbG8", b"hello");
        check(";base64,aGVs%62G8%3D", b"hello");
        check(";base64,aG Vs\nbG8=", b"hello");
        check(",he%6C%6co%", b"hello%");
        check("text/plain,a,b%2", b"a,b%2");
        check("base64,aGVsbG8=", b"aGVsbG8=");
        check(",%00%FF", &[0, 255]);
        check(",", b"");
    }

    #[test]
    fn bad_data_is_refused() {
        for (rest, part) in [("image/png;base64", "comma"), (";base64,a", "base64"), (";base64,a*b=", "base64")] {
            let error = data(rest).expect_err(rest);
            assert_eq!(error.kind().exit_code(), 4);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn file_addresses_become_paths() {
        let check = |rest: &str, expect: &str| assert_eq!(file(rest).unwrap().unwrap(), Path::new(expect), "{rest}");
        check("///a/b.png", "/a/b.png");
        check("//LOCALHOST/a%20b.png", "/a b.png");
        check("/a/%E5%9B%BE%20%25.png", "/a/图 %.png");
        check("///100%.png", "/100%.png");
        assert!(file("notes.png").is_none());
        assert!(file("//server/share/a.png").unwrap().is_err());
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            assert_eq!(file("/%FF").unwrap().unwrap().as_os_str().as_bytes(), b"/\xff");
        }
    }

    #[test]
    fn schemes_have_no_case() {
        assert_eq!(after_scheme("DATA:,x", "data:"), Some(",x"));
        assert_eq!(after_scheme("data", "data:"), None);
        assert_eq!(after_scheme("图图", "data:"), None);
    }
}
