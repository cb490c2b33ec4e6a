//! Pictures, and the places that they come from.

use std::ffi::OsStr;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt;

use image::ImageReader;
use qvl::image::{ImageSource, Orientation, decode, normalise, resize};

/// Larger pictures (pixels) are not decoded here: they take seconds, and what is behind their header is read alike.
const MAX_PIXELS: u64 = 1 << 18;

/// Any bytes to pixels, and those to what the model sees.
pub fn picture(data: &[u8]) {
    let reader = ImageReader::new(Cursor::new(data)).with_guessed_format().expect("bytes in memory");
    if let Ok((width, height)) = reader.into_dimensions()
        && u64::from(width) * u64::from(height) > MAX_PIXELS
    {
        return;
    }
    let stored = decode(data, Orientation::AsStored);
    let upright = decode(data, Orientation::Upright);
    let (Ok(stored), Ok(upright)) = (&stored, &upright) else {
        assert!(stored.is_err() && upright.is_err(), "a picture that can be read only in one way");
        return;
    };
    assert_eq!(stored.pixels().len(), upright.pixels().len());
    let (width, height) = (stored.width(), stored.height());
    assert!([(width, height), (height, width)].contains(&(upright.width(), upright.height())));
    let values = normalise(&resize(upright, 28, 28), [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]);
    assert_eq!(values.data().len(), 3 * 28 * 28);
    assert!(values.data().iter().all(|x| x.abs() < 10.0));
}

/// What stands behind `-i`. Only addresses that hold their picture are read; nothing is fetched or opened.
pub fn source(data: &[u8]) {
    if let Ok(source @ ImageSource::Data(_)) = ImageSource::of_argument(OsStr::from_bytes(data)) {
        let _ = source.load(Orientation::Upright);
    }
}
