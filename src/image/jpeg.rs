//! JPEG, on zune-jpeg itself rather than through the crate `image`: that one converts CMYK in its own way and accepts
//! files that stop in the middle.

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::colour::{inverted_cmyk_to_rgb, ycck_to_inverted_cmyk};
use super::refuse::check_size;
use crate::error::{Error, Result};

/// A JPEG's pixels and what its EXIF block says.
pub(super) struct Decoded {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `[height, width, 3]`, RGB8.
    pub rgb: Vec<u8>,
    /// The EXIF block from its TIFF header on, if there is one.
    pub exif: Option<Vec<u8>>,
}

/// Decodes a whole JPEG file.
///
/// Differs from libjpeg-turbo (the reference) by a few levels here and there: another inverse DCT, same "fancy" upsampling.
/// Errors: damage, an end before the end marker, a size beyond the limits (checked in the header), two colour channels.
/// Cost: the pixels once; for CMYK and grey twice for a moment.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded> {
    let side = usize::from(u16::MAX);
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(side).set_max_height(side);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let damaged = |source: zune_jpeg::errors::DecodeErrors| Error::image("cannot decode this JPEG").because(source);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| Error::image("this JPEG does not say its size"))?;
    // Both come from 16-bit fields.
    let (width, height) = (width as u32, height as u32);
    check_size(width, height)?;
    if !reaches_end(bytes) {
        return Err(Error::image("this JPEG is cut off: its end is missing (an incomplete download or copy?)"));
    }

    let stored = decoder.input_colorspace().ok_or_else(|| Error::image("this JPEG does not say its colours"))?;
    let asked = match stored {
        ColorSpace::Luma | ColorSpace::CMYK | ColorSpace::YCCK => stored,
        ColorSpace::YCbCr | ColorSpace::RGB => ColorSpace::RGB,
        other => return Err(Error::image(format!("JPEG colours {other:?} are not supported; convert it to RGB"))),
    };
    decoder.set_options(options.jpeg_set_out_colorspace(asked));
    let raw = decoder.decode().map_err(damaged)?;
    let rgb = match asked {
        ColorSpace::Luma => raw.iter().flat_map(|&grey| [grey; 3]).collect(),
        ColorSpace::CMYK => four(&raw).flat_map(inverted_cmyk_to_rgb).collect(),
        ColorSpace::YCCK => four(&raw).flat_map(|pixel| inverted_cmyk_to_rgb(ycck_to_inverted_cmyk(pixel))).collect(),
        _ => raw,
    };
    Ok(Decoded { width, height, rgb, exif: decoder.exif().cloned() })
}

/// `[n, 4]` bytes, pixel by pixel.
fn four(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]])
}

/// Whether the end marker comes after the picture data. Segments are stepped over by their length, so that the end of an
/// embedded preview does not count; inside entropy-coded data 0xFF is followed by 0 (a stuffed byte) or a restart marker.
/// Like Pillow, we refuse a file without it: part of the picture would be invented grey.
fn reaches_end(bytes: &[u8]) -> bool {
    let mut at = 2; // after the start marker, which has no length
    loop {
        let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF)) else { return false };
        let Some(&marker) = bytes.get(at + offset + 1) else { return false };
        at += offset + 1;
        match marker {
            0xD9 => return true,
            0xFF => {} // fill byte: look at it again as the start of a marker
            0x00 | 0x01 | 0xD0..=0xD8 => at += 1,
            _ => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end_but_not_that_of_a_preview() {
        assert!(reaches_end(b"\xFF\xD8\xFF\xDA\0\x02data\xFF\0more\xFF\xD3again\xFF\xFF\xD9"));
        assert!(!reaches_end(b"\xFF\xD8\xFF\xE1\0\x06\xFF\xD8\xFF\xD9\xFF\xDA\0\x02data"));
        assert!(!reaches_end(b"\xFF\xD8\xFF\xDA\0\x02data\xFF"));
        assert!(!reaches_end(b"\xFF\xD8\xFF\xE1\0"));
        assert!(!reaches_end(b"\xFF"));
    }
}
