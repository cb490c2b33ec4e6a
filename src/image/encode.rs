//! A [`Picture`] to the bytes of a file.

use std::io::Write;
use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::PngEncoder;
use ::image::codecs::webp::WebPEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

use super::Picture;
use crate::error::{Error, Result};

/// Quality of written JPEGs, of 100: thin coloured lines keep their colour, which the usual 75 smears.
const JPEG_QUALITY: u8 = 95;

/// Formats that pictures are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Lossless.
    Png,
    /// Lossy, without chroma subsampling.
    Jpeg,
    /// Lossless; the crate `image` has no other.
    WebP,
}

impl FileFormat {
    /// The format that the extension of `path` names: png, jpg, jpeg or webp, in any case. Errors (kind usage): another or none.
    pub fn of(path: &Path) -> Result<FileFormat> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "png" => Ok(FileFormat::Png),
            "jpg" | "jpeg" => Ok(FileFormat::Jpeg),
            "webp" => Ok(FileFormat::WebP),
            _ => Err(Error::usage("a picture is written as .png, .jpg or .webp; end the file's name so").at(path)),
        }
    }

    /// Proves that the format can hold `picture`. Errors: kind usage.
    pub fn check_size(self, picture: &Picture) -> Result<()> {
        let (name, max_side) = match self {
            FileFormat::Png => return Ok(()),
            FileFormat::Jpeg => ("JPEG", 65_535),
            FileFormat::WebP => ("WebP", 16_383),
        };
        let (width, height) = (picture.width(), picture.height());
        if width.max(height) > max_side {
            return Err(Error::usage(format!(
                "a picture of {width} x {height} pixels is too large for {name} (at most {max_side} a side); write a PNG"
            )));
        }
        Ok(())
    }
}

/// Writes `picture` in this format, without metadata. Cost: WebP copies the pixels once; PNG and JPEG work row by row
/// in small writes (buffer `out`). Errors: `out` refuses bytes, or the format cannot hold the picture.
pub fn encode(picture: &Picture, format: FileFormat, mut out: impl Write) -> Result<()> {
    let (pixels, width, height, colour) =
        (picture.pixels(), picture.width(), picture.height(), ExtendedColorType::Rgb8);
    let written = match format {
        FileFormat::Png => PngEncoder::new(&mut out).write_image(pixels, width, height, colour),
        FileFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY).write_image(pixels, width, height, colour)
        }
        FileFormat::WebP => WebPEncoder::new_lossless(&mut out).write_image(pixels, width, height, colour),
    };
    written.map_err(|e| Error::other("cannot write the picture").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Orientation, decode};

    #[test]
    fn what_is_written_is_what_is_read() {
        let pixels: Vec<u8> = (0..40 * 30 * 3).map(|i| (i / 97 % 4 * 64) as u8).collect();
        let picture = Picture::new(40, 30, pixels).expect("has its length");
        for (name, tolerance) in [("a.png", 0), ("a.b.WebP", 0), ("dir.x/a.JPG", 60), ("a.jpeg", 60)] {
            let format = FileFormat::of(Path::new(name)).expect(name);
            let mut bytes = Vec::new();
            encode(&picture, format, &mut bytes).expect(name);
            let read = decode(&bytes, Orientation::Upright).expect(name);
            assert_eq!((read.width(), read.height()), (40, 30), "{name}");
            let worst = read.pixels().iter().zip(picture.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(tolerance), "{name}: {worst:?}");
        }
    }

    #[test]
    fn other_names_and_sizes_are_refused() {
        for name in ["a", "a.gif", "png", ".png", "dir.png/a", "-", ""] {
            let error = FileFormat::of(Path::new(name)).expect_err(name);
            assert_eq!(error.kind().exit_code(), 2, "{name}");
        }
        let wide = Picture::new(70_000, 1, vec![0; 210_000]).expect("has its length");
        let code = |format: FileFormat| format.check_size(&wide).map_err(|e| e.kind().exit_code());
        assert_eq!([FileFormat::Png, FileFormat::Jpeg, FileFormat::WebP].map(code), [Ok(()), Err(2), Err(2)]);
    }
}
