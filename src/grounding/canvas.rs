//! Lines and rectangles on a picture. Everything is cut at its edges.

use crate::image::Picture;

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Pixels `x..x + width`, `y..y + height`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: i64,
    pub y: i64,
    pub width: i64,
    pub height: i64,
}

impl Rect {
    /// The smallest one that holds these points, grown by `margin` on every side.
    pub fn around(points: &[[i64; 2]], margin: i64) -> Rect {
        let low = |i: usize| points.iter().map(|p| p[i]).min().unwrap_or(0) - margin;
        let high = |i: usize| points.iter().map(|p| p[i]).max().unwrap_or(0) + margin;
        Rect { x: low(0), y: low(1), width: high(0) - low(0) + 1, height: high(1) - low(1) + 1 }
    }

    /// Whether they share a pixel.
    pub fn overlaps(&self, other: &Rect) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }
}

/// A picture being painted on.
pub(super) struct Canvas<'a> {
    width: i64,
    height: i64,
    /// `[height, width, 3]`
    pixels: &'a mut [u8],
}

impl<'a> Canvas<'a> {
    pub fn new(picture: &'a mut Picture) -> Self {
        let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
        Canvas { width, height, pixels: picture.pixels_mut() }
    }

    /// All of it.
    pub fn extent(&self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Mixes `colour` into one pixel; `opacity` from 0 (nothing happens) to 1. No pixel, no effect.
    pub fn blend(&mut self, x: i64, y: i64, colour: Rgb, opacity: f32) {
        if !(0..self.width).contains(&x) || !(0..self.height).contains(&y) {
            return;
        }
        let at = (y * self.width + x) as usize * 3;
        for (old, new) in self.pixels[at..at + 3].iter_mut().zip(colour) {
            *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * opacity).round() as u8;
        }
    }

    /// Fills a rectangle.
    pub fn fill(&mut self, rect: Rect, colour: Rgb) {
        let columns = rect.x.max(0)..(rect.x + rect.width).min(self.width);
        for y in rect.y.max(0)..(rect.y + rect.height).min(self.height) {
            columns.clone().for_each(|x| self.blend(x, y, colour, 1.0));
        }
    }

    /// A line from pixel to pixel, `2 · half + 1` wide: with square ends and hard edges where it runs along an axis, else
    /// with round ends and smooth edges. Cost: the pixels in it, not those of the box around it.
    pub fn line(&mut self, from: [i64; 2], to: [i64; 2], half: i64, colour: Rgb) {
        if from[0] == to[0] || from[1] == to[1] {
            return self.fill(Rect::around(&[from, to], half), colour);
        }
        let [ax, ay] = from.map(|v| v as f64);
        let (dx, dy) = ((to[0] - from[0]) as f64, (to[1] - from[1]) as f64);
        let radius = half as f64 + 0.5;
        for y in (from[1].min(to[1]) - half - 1).max(0)..(from[1].max(to[1]) + half + 2).min(self.height) {
            // The part of the line (0 to 1) that is near enough to colour this row, and the columns around it.
            let part = |offset: f64| ((y as f64 + offset - ay) / dy).clamp(0.0, 1.0) * dx + ax;
            let ends = [part(-radius - 1.0), part(radius + 1.0)];
            let first = (ends[0].min(ends[1]) - radius).floor() as i64;
            let last = (ends[0].max(ends[1]) + radius).ceil() as i64;
            for x in first.max(0)..(last + 1).min(self.width) {
                let (px, py) = (x as f64 - ax, y as f64 - ay);
                let nearest = ((px * dx + py * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
                let distance = (px - nearest * dx).hypot(py - nearest * dy);
                self.blend(x, y, colour, (radius + 0.5 - distance).clamp(0.0, 1.0) as f32);
            }
        }
    }
}
