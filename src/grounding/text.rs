//! Text on a picture: bitmaps of Noto Sans Mono (Latin alphabets), and an empty box for every other character.

use std::borrow::Cow;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::canvas::{Canvas, Rgb};

/// The one weight: the thin strokes of the others are hard to read in small colours.
const WEIGHT: FontWeight = FontWeight::Bold;

/// A size that text is drawn in: the bitmap's own 16 or 32 pixels a line, or the larger bitmap enlarged.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextSize {
    raster: RasterHeight,
    /// Pixels of the picture a pixel of the bitmap, at least 1.
    scale: f64,
}

impl TextSize {
    /// The size nearest to lines of `height` pixels; 16 is the least.
    pub fn nearest(height: i64) -> TextSize {
        let (raster, own) = if height < 24 { (RasterHeight::Size16, 16) } else { (RasterHeight::Size32, 32) };
        TextSize { raster, scale: height.max(own) as f64 / own as f64 }
    }

    /// Height of a line in pixels.
    pub fn line(self) -> i64 {
        (self.raster.val() as f64 * self.scale).round() as i64
    }

    /// Width of every character in pixels.
    pub fn advance(self) -> i64 {
        (get_raster_width(WEIGHT, self.raster) as f64 * self.scale).round() as i64
    }
}

/// Draws one line of text with its upper left corner at `x`, `y`: [`TextSize::advance`] a character,
/// [`TextSize::line`] high.
pub(super) fn draw_text(canvas: &mut Canvas<'_>, x: i64, y: i64, size: TextSize, colour: Rgb, text: &str) {
    for (nth, c) in text.chars().enumerate() {
        let glyph = glyph(c, size.raster);
        let left = x + nth as i64 * size.advance();
        for row in 0..size.line() {
            for column in 0..size.advance() {
                let coverage = coverage(&glyph, size, column, row);
                canvas.blend(left + column, y + row, colour, coverage);
            }
        }
    }
}

/// Coverage of a character in its bitmap's size, 0 to 255, row by row. The only place that knows the font.
fn glyph(c: char, raster: RasterHeight) -> Cow<'static, [u8]> {
    match get_raster(c, WEIGHT, raster) {
        Some(bitmap) => Cow::Borrowed(bitmap.pixels()),
        None => Cow::Owned(placeholder(get_raster_width(WEIGHT, raster), raster.val())),
    }
}

/// An empty box that sits on the line as capital letters do.
fn placeholder(width: usize, height: usize) -> Vec<u8> {
    let stroke = height / 16;
    let (left, right, top, bottom) = (stroke, width - stroke, height / 5, height * 4 / 5);
    let inside =
        |x: usize, y: usize, by: usize| (left + by..right - by).contains(&x) && (top + by..bottom - by).contains(&y);
    let pixel = |i: usize| inside(i % width, i / width, 0) && !inside(i % width, i / width, stroke);
    (0..width * height).map(|i| if pixel(i) { 255 } else { 0 }).collect()
}

/// Coverage of a pixel of the enlarged character, 0 to 1: interpolated, then made steeper by as much as it was enlarged,
/// which keeps edges as sharp as the bitmap's.
fn coverage(glyph: &[u8], size: TextSize, x: i64, y: i64) -> f32 {
    let (width, height) = (get_raster_width(WEIGHT, size.raster), size.raster.val());
    let at = |x: f64, y: f64| {
        let (x, y) = (x.clamp(0.0, width as f64 - 1.0), y.clamp(0.0, height as f64 - 1.0));
        f64::from(glyph[y as usize * width + x as usize])
    };
    let (u, v) = ((x as f64 + 0.5) / size.scale - 0.5, (y as f64 + 0.5) / size.scale - 0.5);
    let (left, top) = (u.floor(), v.floor());
    let row = |y: f64| at(left, y) + (at(left + 1.0, y) - at(left, y)) * (u - left);
    let value = row(top) + (row(top + 1.0) - row(top)) * (v - top);
    ((value / 255.0 - 0.5) * size.scale + 0.5).clamp(0.0, 1.0) as f32
}
