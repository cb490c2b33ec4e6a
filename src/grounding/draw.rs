//! Regions drawn on their picture, for people.
//!
//! The idea is the reference's `draw_bbox_on_latest_picture` (spec section 7): an outline a region, its phrase beside it,
//! one colour a phrase. Colours are chosen, not drawn by lot, and lines and text follow the picture's size.

use super::Region;
use super::canvas::{Canvas, Rect, Rgb};
use super::labels::draw_label;
use super::text::TextSize;
use crate::image::Picture;

/// Around every line and below every label.
pub(super) const DARK: Rgb = [16, 16, 16];

/// Colours of outlines, in the order of use. All are bright: a line is seen against what is dark, its dark casing
/// against what is bright, so one of the two on any ground.
const COLOURS: [Rgb; 10] = [
    [255, 84, 84],
    [64, 196, 255],
    [255, 221, 45],
    [90, 235, 110],
    [255, 120, 235],
    [255, 160, 60],
    [160, 145, 255],
    [0, 225, 195],
    [245, 245, 245],
    [205, 165, 125],
];

/// How large things are drawn, in pixels.
#[derive(Clone, Copy)]
struct Sizes {
    /// A line is `2 · half_line + 1` wide.
    half_line: i64,
    /// Width of the dark casing on either side of it.
    casing: i64,
    text: TextSize,
}

impl Sizes {
    /// By the picture's mean side, but never so large that they fill a narrow picture. A picture of 448 × 448 gets lines
    /// of 3 pixels and letters of 16, one of 3000 × 3000 lines of 13 and letters of 75.
    fn of(picture: &Picture) -> Sizes {
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let (side, narrow) = ((width * height).sqrt(), width.min(height));
        let half_line = (side / 500.0).round().min(narrow / 32.0) as i64;
        Sizes {
            half_line,
            casing: ((2 * half_line + 1) / 4).max(1),
            text: TextSize::nearest((side / 40.0).min(narrow / 4.0) as i64),
        }
    }
}

/// Draws the outline of every region, and its label beside it, on `picture`.
///
/// Regions of one label (and those without) share a colour; the eleventh label begins again with the first.
/// Coordinates outside are moved to the edge. A label that is longer than the picture is cut, and left out where there is
/// no room for it: then its colour must do. Cost: the pixels painted.
pub fn draw(picture: &mut Picture, regions: &[Region]) {
    let (width, height, sizes) = (picture.width(), picture.height(), Sizes::of(picture));
    let colours = colours(regions);
    // The far edge, 1000, is no pixel any more.
    let on_pixel = |[x, y]: [i64; 2]| [x.min(i64::from(width) - 1), y.min(i64::from(height) - 1)];
    let outlines: Vec<_> = regions.iter().map(|region| region.polygon(width, height).map(on_pixel)).collect();
    let mut canvas = Canvas::new(picture);
    for (outline, colour) in outlines.iter().zip(&colours) {
        for (half, colour) in [(sizes.half_line + sizes.casing, DARK), (sizes.half_line, *colour)] {
            (0..4).for_each(|i| canvas.line(outline[i], outline[(i + 1) % 4], half, colour));
        }
    }
    // After all outlines: text is the first thing to become unreadable. Each phrase once, before any is repeated.
    let reach = sizes.half_line + sizes.casing;
    let is_first = |nth: usize| !regions[..nth].iter().any(|other| other.label == regions[nth].label);
    let (first, repeated): (Vec<_>, Vec<_>) = (0..regions.len()).partition(|nth| is_first(*nth));
    let mut plates = Vec::new();
    for nth in first.into_iter().chain(repeated) {
        let Some(label) = &regions[nth].label else { continue };
        let around = Rect::around(&outlines[nth], reach);
        plates.extend(draw_label(&mut canvas, label, around, 2 * reach + 1, sizes.text, colours[nth], &plates));
    }
}

/// A colour for every region, by the order in which labels come first.
fn colours(regions: &[Region]) -> Vec<Rgb> {
    let mut labels: Vec<Option<&str>> = Vec::new();
    let mut colours = Vec::with_capacity(regions.len());
    for region in regions {
        let label = region.label.as_deref();
        let nth = labels.iter().position(|l| *l == label).unwrap_or(labels.len());
        if nth == labels.len() {
            labels.push(label);
        }
        colours.push(COLOURS[nth % COLOURS.len()]);
    }
    colours
}

#[cfg(test)]
mod tests;
