//! A file's bytes to an upright [`Picture`].

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use ::image::metadata::Orientation as Turn;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::contained::contained;
use super::refuse::{MAX_PIXELS, check_size, unknown};
use super::source::{MAX_FILE_BYTES, read_whole};
use super::{Orientation, Picture, colour, jpeg};
use crate::error::{Error, Result};

/// Memory that one decoder may take, in bytes: the largest picture at 16-bit RGBA (1.4 GB), with room for its tables.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8 + (256 << 20);

/// Reads the picture in the file `path`. See [`decode`]; the path stands in front of every error, also of a missing file's.
pub fn load(path: &Path, orientation: Orientation) -> Result<Picture> {
    if path.is_dir() {
        let what_to_do = "name one picture in it, or ask about all with `qvl batch`";
        return Err(Error::image(format!("this is a directory; {what_to_do}")).at(path));
    }
    let file = File::open(path).map_err(|e| Error::image("cannot read the picture").because(e).at(path))?;
    let bytes = read_whole(file, MAX_FILE_BYTES).map_err(|e| e.at(path))?;
    decode(&bytes, orientation).map_err(|e| e.at(path))
}

/// Reads a picture: JPEG, PNG, WebP, GIF, BMP, TIFF, PNM or QOI, told by its content, never by a file name.
///
/// The first frame of an animation. Alpha is dropped, not composited; 16 bits keep their high byte; gamma and ICC profiles are ignored.
/// Errors (all [`crate::error::ErrorKind::Image`]): another format, damage, truncation, a size beyond the limits (known from
/// the header, before pixels are allocated). Cost: the pixels once, twice while the colour mode is changed or it is turned.
pub fn decode(bytes: &[u8], orientation: Orientation) -> Result<Picture> {
    let format = ::image::guess_format(bytes).map_err(|_| unknown(bytes))?;
    let (image, exif_turn) = contained(|| match format {
        ImageFormat::Jpeg => decode_jpeg(bytes),
        ImageFormat::Png
        | ImageFormat::WebP
        | ImageFormat::Gif
        | ImageFormat::Bmp
        | ImageFormat::Tiff
        | ImageFormat::Pnm
        | ImageFormat::Qoi => decode_other(bytes, format),
        _ => Err(unknown(bytes)),
    })?;
    // Pillow turns a TIFF while loading it, so "as stored" is upright there.
    let turn = match orientation {
        Orientation::AsStored if format != ImageFormat::Tiff => Turn::NoTransforms,
        _ => exif_turn,
    };
    let (width, height) = (image.width(), image.height());
    let picture = Picture::new(width, height, colour::to_rgb(image)?)?;
    turned(picture, turn)
}

/// JPEG, with the turn that its EXIF block asks for.
fn decode_jpeg(bytes: &[u8]) -> Result<(DynamicImage, Turn)> {
    let jpeg = jpeg::decode(bytes)?;
    let turn = exif_turn(jpeg.exif);
    Ok((rgb_image(jpeg.width, jpeg.height, jpeg.rgb)?, turn))
}

/// The formats that the crate `image` reads as Pillow does.
fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<(DynamicImage, Turn)> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| damaged(format, e))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    // A TIFF's orientation is a tag of its own; a damaged EXIF block is no reason to refuse the picture.
    let turn = match format {
        ImageFormat::Tiff => decoder.orientation().unwrap_or(Turn::NoTransforms),
        _ => exif_turn(decoder.exif_metadata().ok().flatten()),
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| damaged(format, e))?;
    if format == ImageFormat::Pnm {
        round_to_high_byte(&mut image);
    }
    Ok((image, turn))
}

/// Rounds 16-bit samples to 8 bits, left in the high byte: Pillow scales PNM so (`PpmImagePlugin.py`), and cuts off in PNG.
fn round_to_high_byte(image: &mut DynamicImage) {
    // 65535 = 255 · 257
    let round = |sample: &mut u16| *sample = (((u32::from(*sample) + 128) / 257) << 8) as u16;
    match image {
        DynamicImage::ImageLuma16(buffer) => buffer.iter_mut().for_each(round),
        DynamicImage::ImageRgb16(buffer) => buffer.iter_mut().for_each(round),
        _ => {}
    }
}

/// The turn that an EXIF block asks for; none where it is absent, damaged or says nothing. Some writers leave JPEG's
/// `Exif\0\0` in front of it.
fn exif_turn(exif: Option<Vec<u8>>) -> Turn {
    let Some(exif) = exif else { return Turn::NoTransforms };
    let block = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Turn::from_exif_chunk(block).unwrap_or(Turn::NoTransforms)
}

/// `picture` turned; no copy where there is nothing to turn.
fn turned(picture: Picture, turn: Turn) -> Result<Picture> {
    if turn == Turn::NoTransforms {
        return Ok(picture);
    }
    let mut image = rgb_image(picture.width(), picture.height(), picture.into_pixels())?;
    image.apply_orientation(turn);
    Picture::new(image.width(), image.height(), colour::to_rgb(image)?)
}

/// Bytes `[height, width, 3]` as the crate's own image, without a copy.
fn rgb_image(width: u32, height: u32, rgb: Vec<u8>) -> Result<DynamicImage> {
    let found = rgb.len();
    RgbImage::from_raw(width, height, rgb)
        .map(DynamicImage::ImageRgb8)
        .ok_or_else(|| Error::image(format!("decoded {found} bytes for {width} x {height} RGB pixels")))
}

/// The error of a decoder, with the format's name in front.
fn damaged(format: ImageFormat, error: ImageError) -> Error {
    let name = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Qoi => "QOI",
        _ => "PNM",
    };
    match error {
        ImageError::Unsupported(e) => {
            Error::image(format!("this kind of {name} is not supported; convert it to an ordinary PNG or JPEG"))
                .because(e)
        }
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::image(format!("this {name} is cut off: its end is missing (an incomplete download or copy?)"))
        }
        ImageError::Limits(e) => {
            let rule = format!("the limit is {MAX_PIXELS} pixels; make it smaller first");
            Error::image(format!("this {name} needs more memory than any picture may, {rule}")).because(e)
        }
        e => Error::image(format!("cannot decode this {name}; it seems damaged or cut off")).because(e),
    }
}
