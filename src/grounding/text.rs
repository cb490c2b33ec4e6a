//! Text on a picture, one character after the other from left to right: bitmaps of Noto Sans Mono for Latin alphabets, of GNU
//! Unifont for every other script of the Basic Multilingual Plane (Chinese, Japanese and Korean are why it is there), and an
//! empty box for what neither has.

use std::borrow::Cow;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::canvas::{Canvas, Rgb};

/// The one weight: the thin strokes of the others are hard to read in small colours.
const WEIGHT: FontWeight = FontWeight::Bold;

/// A size that text is drawn in.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextSize {
    raster: RasterHeight,
    /// Height of a line in pixels: the bitmap's own 16 or 32, or more, to which it is enlarged.
    line: i64,
}

impl TextSize {
    /// The size nearest to lines of `height` pixels; 16 is the least.
    pub fn nearest(height: i64) -> TextSize {
        let raster = if height < 24 { RasterHeight::Size16 } else { RasterHeight::Size32 };
        TextSize { raster, line: height.max(raster.val() as i64) }
    }

    /// Height of a line in pixels.
    pub fn line(self) -> i64 {
        self.line
    }

    /// Width of a text in pixels.
    pub fn width(self, text: &str) -> i64 {
        text.chars().map(|c| Glyph::of(c, self.raster).width_at(self.line)).sum()
    }
}

/// Draws one line of text with its upper left corner at `x`, `y`: [`TextSize::width`] wide, [`TextSize::line`] high.
pub(super) fn draw_text(canvas: &mut Canvas<'_>, x: i64, y: i64, size: TextSize, colour: Rgb, text: &str) {
    let mut left = x;
    for c in text.chars() {
        let glyph = Glyph::of(c, size.raster);
        let width = glyph.width_at(size.line);
        for (row, column) in (0..size.line).flat_map(|row| (0..width).map(move |column| (row, column))) {
            canvas.blend(left + column, y + row, colour, glyph.coverage_at(size.line, column, row));
        }
        left += width;
    }
}

/// The bitmap of a character.
struct Glyph {
    width: usize,
    height: usize,
    /// `[height, width]`, from 0 to 255.
    coverage: Cow<'static, [u8]>,
}

impl Glyph {
    /// The only place that knows the fonts. Unifont's bitmaps have 16 rows at every size.
    fn of(c: char, raster: RasterHeight) -> Glyph {
        if let Some(bitmap) = get_raster(c, WEIGHT, raster) {
            return Glyph { width: bitmap.width(), height: bitmap.height(), coverage: Cow::Borrowed(bitmap.pixels()) };
        }
        let Some(bitmap) = unifont::get_glyph(c) else { return Glyph::missing(raster) };
        let (width, height) = (bitmap.get_width(), 16);
        let pixel = |i: usize| if bitmap.get_pixel(i % width, i / width) { 255 } else { 0 };
        Glyph { width, height, coverage: (0..width * height).map(pixel).collect() }
    }

    /// An empty box that sits on the line as capital letters do.
    fn missing(raster: RasterHeight) -> Glyph {
        let (width, height) = (get_raster_width(WEIGHT, raster), raster.val());
        let stroke = height / 16;
        let (left, right, top, bottom) = (stroke, width - stroke, height / 5, height * 4 / 5);
        let inside = |x: usize, y: usize, by: usize| {
            (left + by..right - by).contains(&x) && (top + by..bottom - by).contains(&y)
        };
        let pixel = |i: usize| inside(i % width, i / width, 0) && !inside(i % width, i / width, stroke);
        let coverage = (0..width * height).map(|i| if pixel(i) { 255 } else { 0 }).collect();
        Glyph { width, height, coverage }
    }

    /// Width in a line of `line` pixels.
    fn width_at(&self, line: i64) -> i64 {
        (self.width as f64 * line as f64 / self.height as f64).round() as i64
    }

    /// Coverage of a pixel in a line of `line` pixels, 0 to 1: interpolated, then made steeper by as much as the bitmap was
    /// enlarged, which keeps edges as sharp as its own.
    fn coverage_at(&self, line: i64, x: i64, y: i64) -> f32 {
        let scale = line as f64 / self.height as f64;
        let at = |x: f64, y: f64| {
            let (x, y) = (x.clamp(0.0, self.width as f64 - 1.0), y.clamp(0.0, self.height as f64 - 1.0));
            f64::from(self.coverage[y as usize * self.width + x as usize])
        };
        let (u, v) = ((x as f64 + 0.5) / scale - 0.5, (y as f64 + 0.5) / scale - 0.5);
        let (left, top) = (u.floor(), v.floor());
        let row = |y: f64| at(left, y) + (at(left + 1.0, y) - at(left, y)) * (u - left);
        let value = row(top) + (row(top + 1.0) - row(top)) * (v - top);
        ((value / 255.0 - 0.5) * scale + 0.5).clamp(0.0, 1.0) as f32
    }
}
