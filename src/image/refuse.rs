//! What to say about bytes that are not a picture we read, and about pictures that are too large.

use crate::error::{Error, Result};

/// Formats in the words of a person; the answer to "then what can I use?".
const FORMATS: &str = "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM or QOI";

/// Most pixels of one picture: Pillow's own limit (twice `MAX_IMAGE_PIXELS`, above which it raises `DecompressionBombError`).
pub(super) const MAX_PIXELS: u64 = 178_956_970;

/// Longest side in pixels. Ours, not Pillow's: with it, resizing never needs more than some tens of MiB beside the picture,
/// whatever its shape. (Pillow would try to allocate 240 GB for a picture of 1 × 178,956,970 that is 0.2 MB as a PNG.)
pub(super) const MAX_SIDE: u32 = 1 << 20;

/// Checks the size in a header, before anything is allocated for the pixels.
///
/// Errors: a zero side, a side above [`MAX_SIDE`], more pixels than [`MAX_PIXELS`].
pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::image(format!("the picture is empty: {width} x {height} pixels")));
    }
    let n_pixels = u64::from(width) * u64::from(height);
    if n_pixels > MAX_PIXELS {
        return Err(Error::image(format!(
            "the picture has {width} x {height} = {n_pixels} pixels, the limit is {MAX_PIXELS}; make it smaller first"
        )));
    }
    if width.max(height) > MAX_SIDE {
        return Err(Error::image(format!(
            "the picture is {width} x {height} pixels, the limit of one side is {MAX_SIDE}; make it smaller first"
        )));
    }
    Ok(())
}

/// The error for bytes in which no format was recognised: names what they are, where that is known, and what to do.
pub(super) fn unknown(bytes: &[u8]) -> Error {
    if bytes.is_empty() {
        return Error::image("it is empty (0 bytes), not a picture");
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Error::image("this is a git-lfs pointer, not the picture itself; fetch it with `git lfs pull`");
    }
    if let Some(name) = iso_media(bytes) {
        return Error::image(format!("{name} is not supported; {}", how_to_convert(name)));
    }
    let text = std::str::from_utf8(&bytes[..bytes.len().min(256)]).unwrap_or("").trim_start();
    if text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg")) {
        return Error::image("SVG (a drawing, not pixels) is not supported; convert it to PNG first");
    }
    if bytes.starts_with(b"%PDF-") {
        return Error::image("this is a PDF document; convert the page to PNG first");
    }
    if text.starts_with('<') {
        return Error::image("this is a web page or XML, not a picture (a download that failed?)");
    }
    Error::image(format!("not a picture in a supported format ({FORMATS})"))
}

/// What to do about an ISO media file of the kind `name`: the tools that people have.
fn how_to_convert(name: &str) -> &'static str {
    match name {
        HEIC => {
            "convert it first: `heif-convert IN OUT.jpg`, `magick IN OUT.jpg`, \
             or `sips -s format jpeg IN --out OUT.jpg` on a Mac"
        }
        AVIF => {
            "convert it first: `avifdec IN OUT.png`, `magick IN OUT.png`, \
             or `sips -s format png IN --out OUT.png` on a Mac"
        }
        _ => "take a frame of it first: `ffmpeg -i IN -frames:v 1 OUT.png`",
    }
}

const AVIF: &str = "AVIF";
const HEIC: &str = "HEIC/HEIF (the iPhone's photo format)";

/// What an ISO media file (`....ftyp` + brand) is called; `None` for anything else.
fn iso_media(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8)? != b"ftyp" {
        return None;
    }
    // The major brand may be the general `mif1`; then a compatible brand tells. The box's own length bounds the search.
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let brands = bytes.get(8..length.clamp(12, 256).min(bytes.len()))?;
    let has = |names: &[&[u8; 4]]| brands.chunks_exact(4).any(|brand| names.iter().any(|name| brand == *name));
    if has(&[b"avif", b"avis"]) {
        return Some(AVIF);
    }
    if has(&[b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"]) {
        return Some(HEIC);
    }
    Some("a video or other ISO media file (MP4, MOV)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_bytes_are() {
        let check = |bytes: &[u8], expect: &str| {
            let line = unknown(bytes).to_string();
            assert!(line.contains(expect), "{line:?} should contain {expect:?}");
        };
        check(b"", "empty");
        check(b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull");
        check(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heif-convert IN OUT.jpg");
        check(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "avifdec IN OUT.png");
        check(b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "ffmpeg -i IN");
        check(b"\0\0\0\x18ftyp", "MP4");
        check(b"\xFF\xFF\xFF\xFFftypavif", "AVIF");
        check(b"<svg xmlns=''>", "SVG");
        check(b"<!doctype html>", "web page");
        check(b"%PDF-1.4", "PDF");
        check(b"hello", "JPEG, PNG");
    }

    #[test]
    fn limits_are_where_they_are_said_to_be() {
        assert!(check_size(1, 1).is_ok());
        assert!(check_size(13_377, 13_377).is_ok());
        assert!(check_size(13_378, 13_378).is_err());
        assert!(check_size(MAX_SIDE, 170).is_ok());
        assert!(check_size(MAX_SIDE + 1, 1).is_err());
        assert!(check_size(u32::MAX, u32::MAX).is_err());
        assert!(check_size(0, 5).is_err());
    }
}
