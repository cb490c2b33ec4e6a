//! How well regions cover the expected ones.

use crate::grounding::Region;

/// Of a box and its truth, from 0 to 1: from here on it counts as found, as in RefCOCO.
pub const LEAST_IOU: f64 = 0.5;

/// Overlaps of many expected boxes with what was found.
#[derive(Clone, Debug, Default)]
pub struct Overlaps {
    /// Expected boxes.
    pub n: usize,
    /// Those that were found.
    pub n_hits: usize,
    /// Sum of their intersections over unions; nothing for one that was not found at all.
    pub sum: f64,
}

impl Overlaps {
    /// Adds the regions of an answer. Each expected box gets the found one that overlaps it most and is not another's,
    /// the largest overlaps first.
    pub fn add(&mut self, expected: &[Region], found: &[Region]) {
        let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
        for (e, expected) in expected.iter().enumerate() {
            pairs.extend(found.iter().enumerate().map(|(f, found)| (iou(expected.box_1000(), found.box_1000()), e, f)));
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut taken, mut given) = (vec![false; expected.len()], vec![false; found.len()]);
        for (overlap, e, f) in pairs {
            if !taken[e] && !given[f] {
                (taken[e], given[f]) = (true, true);
                self.sum += overlap;
                self.n_hits += usize::from(overlap >= LEAST_IOU);
            }
        }
        self.n += expected.len();
    }

    /// Mean intersection over union; 0 of none.
    pub fn mean(&self) -> f64 {
        self.sum / self.n.max(1) as f64
    }

    /// Share of the boxes that were found; 0 of none.
    pub fn hit_rate(&self) -> f64 {
        self.n_hits as f64 / self.n.max(1) as f64
    }
}

/// Intersection over union of two boxes x1, y1, x2, y2; 0 where either has no area.
fn iou(a: [i64; 4], b: [i64; 4]) -> f64 {
    let area = |[x1, y1, x2, y2]: [i64; 4]| (x2 - x1).max(0) as f64 * (y2 - y1).max(0) as f64;
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let either = area(a) + area(b) - both;
    if either > 0.0 { both / either } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_box_has_one_partner() {
        let region = |x: i64| Region { label: None, corners_1000: vec![[x, 0], [x + 100, 100]] };
        let check = |expected: &[i64], found: &[i64], mean: f64, n_hits: usize| {
            let of = |xs: &[i64]| xs.iter().map(|x| region(*x)).collect::<Vec<_>>();
            let mut overlaps = Overlaps::default();
            overlaps.add(&of(expected), &of(found));
            assert!((overlaps.mean() - mean).abs() < 1e-12, "{expected:?} {found:?}: {overlaps:?}");
            assert_eq!((overlaps.n, overlaps.n_hits), (expected.len(), n_hits));
        };
        check(&[0], &[0], 1.0, 1);
        check(&[0], &[], 0.0, 0);
        check(&[0], &[50], 1.0 / 3.0, 0);
        check(&[0, 300], &[300, 0], 1.0, 2);
        check(&[0, 20], &[0], 0.5, 1);
        check(&[0], &[500, 20], 2.0 / 3.0, 1);
    }
}
