//! Any colour mode to RGB8, in Pillow's way (`Image.convert("RGB")`), which is not that of the crate `image`.

use ::image::DynamicImage;

use crate::error::{Error, Result};

/// The bytes of `image` as `[height, width, 3]` RGB8.
///
/// Alpha is dropped, not composited; grey is replicated; of 16 bits the high byte is kept. (The reference does that for
/// RGB; 16-bit *grey* it clips to 255, nearly always to white. Scaling it is a deliberate difference.)
/// Errors: floating-point pixels. Cost: RGB8 is moved, RGBA8 is packed in place, the others are copied once.
pub(super) fn to_rgb(image: DynamicImage) -> Result<Vec<u8>> {
    let high = |sample: u16| (sample >> 8) as u8;
    Ok(match image {
        DynamicImage::ImageRgb8(buffer) => buffer.into_raw(),
        DynamicImage::ImageRgba8(buffer) => drop_alpha(buffer.into_raw()),
        DynamicImage::ImageLuma8(buffer) => buffer.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(buffer) => buffer.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageLuma16(buffer) => buffer.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(buffer) => buffer.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(buffer) => buffer.pixels().flat_map(|p| p.0.map(high)).collect(),
        DynamicImage::ImageRgba16(buffer) => {
            buffer.pixels().flat_map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]).collect()
        }
        other => {
            let colour = other.color();
            return Err(Error::image(format!("pixels of type {colour:?} are not supported; convert to 8-bit RGB")));
        }
    })
}

/// `[n, 4]` → `[n, 3]` without a second buffer.
fn drop_alpha(mut bytes: Vec<u8>) -> Vec<u8> {
    let n_pixels = bytes.len() / 4;
    for i in 1..n_pixels {
        bytes.copy_within(4 * i..4 * i + 3, 3 * i);
    }
    bytes.truncate(n_pixels * 3);
    bytes.shrink_to_fit();
    bytes
}

/// One inverted ("Adobe") CMYK pixel, as JPEG files store it, to RGB.
///
/// In Pillow's terms, with C = 255 − c and so on: nk = 255 − K, out = nk − C·nk/255, rounded as Pillow's `MULDIV255` rounds.
/// Source: Pillow `Convert.c`, `cmyk2rgb`, behind the raw mode `CMYK;I`.
pub(super) fn inverted_cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let nk = u32::from(k);
    [c, m, y].map(|ink| {
        let t = u32::from(255 - ink) * nk + 128;
        let part = ((t >> 8) + t) >> 8;
        // part ≤ nk, since (255 − ink)/255 ≤ 1 and the rounding of 255·nk/255 is exact.
        (nk - part) as u8
    })
}

/// One YCCK pixel as stored → the inverted CMYK that libjpeg makes of it (`jdcolor.c`, `ycck_cmyk_convert`; JFIF constants
/// in 16-bit fixed point, K passed through).
pub(super) fn ycck_to_inverted_cmyk([y, cb, cr, k]: [u8; 4]) -> [u8; 4] {
    const HALF: i32 = 1 << 15;
    let fixed = |x: f64| (x * 65536.0 + 0.5) as i32;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((fixed(1.402) * cr + HALF) >> 16);
    let green = y + ((-fixed(0.344_136_286) * cb - fixed(0.714_136_286) * cr + HALF) >> 16);
    let blue = y + ((fixed(1.772) * cb + HALF) >> 16);
    let invert = |v: i32| (255 - v).clamp(0, 255) as u8;
    [invert(red), invert(green), invert(blue), k]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    #[test]
    fn every_mode_becomes_rgb_as_in_pillow() {
        let check = |image: DynamicImage, expect: &[u8]| assert_eq!(to_rgb(image).expect("converts"), expect);
        let rgba = ImageBuffer::from_raw(2, 1, vec![1u8, 2, 3, 0, 4, 5, 6, 128]).expect("fits");
        check(DynamicImage::ImageRgba8(rgba), &[1, 2, 3, 4, 5, 6]);
        check(DynamicImage::ImageLuma8(ImageBuffer::from_pixel(1, 1, Luma([7]))), &[7, 7, 7]);
        check(DynamicImage::ImageLumaA8(ImageBuffer::from_pixel(1, 1, LumaA([7, 0]))), &[7, 7, 7]);
        check(DynamicImage::ImageLuma16(ImageBuffer::from_pixel(1, 1, Luma([0x01FF]))), &[1, 1, 1]);
        check(DynamicImage::ImageLumaA16(ImageBuffer::from_pixel(1, 1, LumaA([0x80FF, 0]))), &[128, 128, 128]);
        check(DynamicImage::ImageRgb16(ImageBuffer::from_pixel(1, 1, Rgb([0x00FF, 0x7FFF, 0xFFFF]))), &[0, 127, 255]);
        check(
            DynamicImage::ImageRgba16(ImageBuffer::from_pixel(1, 1, Rgba([0x00FF, 0x7FFF, 0xFFFF, 1]))),
            &[0, 127, 255],
        );
        assert!(to_rgb(DynamicImage::new_rgb32f(1, 1)).is_err());
    }

    #[test]
    fn cmyk_follows_the_formula_of_the_specification() {
        for ink in 0..=255u8 {
            for k in 0..=255u8 {
                let (big_c, nk) = (255 - i32::from(ink), i32::from(k));
                let t = big_c * nk + 128;
                let expect = (nk - (((t >> 8) + t) >> 8)).clamp(0, 255) as u8;
                assert_eq!(inverted_cmyk_to_rgb([ink, 255, 0, k]), [expect, k, 0]);
            }
        }
        assert_eq!(ycck_to_inverted_cmyk([100, 128, 128, 9]), [155, 155, 155, 9]);
    }
}
