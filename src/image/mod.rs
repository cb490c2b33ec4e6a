//! From a picture's file to the numbers that the vision tower sees: decode, orient, resize, normalise.
//!
//! Values go one way: an argument → [`ImageSource`] → bytes → [`Picture`] (RGB8 of the file) → [`Picture`] (RGB8 of the model's size) → [`PixelValues`].
//! Everything here imitates what Pillow and torchvision do in the reference (Qwen-VL's `visual.py`: `Image.open`,
//! `convert("RGB")`, `Resize(BICUBIC)`, `ToTensor`, `Normalize`), because the model was trained on exactly that. The way
//! back to a file, [`encode`], is for people.

mod colour;
mod contained;
mod decode;
mod encode;
#[cfg(test)]
mod files;
#[cfg(test)]
mod goldens;
#[cfg(feature = "http")]
mod http;
mod jpeg;
mod listing;
mod normalise;
mod refuse;
mod resize;
mod source;
mod taps;
mod uri;

pub use contained::is_contained;
pub use decode::{decode, load};
pub use encode::{FileFormat, encode};
pub use listing::files_in;
pub use normalise::{PixelValues, normalise};
pub use resize::resize;
pub use source::{ImageSource, sources};

use crate::error::{Error, Result};

/// Which way up a picture is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// Turned as its EXIF orientation says: what a person sees. Our default, unlike the reference.
    Upright,
    /// As the pixels are stored: what the reference does. (A TIFF is turned even then, because Pillow does it while loading.)
    AsStored,
}

/// A picture in 8-bit RGB. Having one means: neither side is zero, and `pixels` has exactly `height · width · 3` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// Takes `pixels` (`[height, width, 3]`, RGB, row by row) without copying.
    ///
    /// Errors: a side of zero, or a length other than `height · width · 3`.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Picture> {
        if width == 0 || height == 0 {
            return Err(Error::image(format!("the picture is empty: {width} x {height} pixels")));
        }
        let expected = u128::from(width) * u128::from(height) * 3;
        if pixels.len() as u128 != expected {
            let found = pixels.len();
            return Err(Error::image(format!("{width} x {height} RGB pixels are {expected} bytes, found {found}")));
        }
        Ok(Picture { width, height, pixels })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes, `[height, width, 3]`, RGB, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The same bytes, to paint on.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// Gives the bytes away, `[height, width, 3]`, without copying.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The bytes of row `y` (`y < height`), `[width, 3]`.
    fn row(&self, y: usize) -> &[u8] {
        let stride = self.width as usize * 3;
        &self.pixels[y * stride..(y + 1) * stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_proves_its_length() {
        assert!(Picture::new(2, 3, vec![0; 18]).is_ok());
        for (width, height, length) in [(2, 3, 17), (0, 3, 0), (3, 0, 0), (u32::MAX, u32::MAX, 3)] {
            let error = Picture::new(width, height, vec![0; length]).expect_err("must be refused");
            assert_eq!(error.kind().exit_code(), 4);
        }
    }
}
