//! How far the embeddings of a picture are apart.

use half::f16;

use crate::error::{Error, Result};
use crate::vision::ImageEmbedding;

/// Two embeddings of one picture, held against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Mean over the rows of their cosine.
    pub cosine: f64,
    /// Smallest cosine of a row.
    pub min_cosine: f64,
    /// Length of the difference over that of the reference, all values together.
    pub relative_l2: f64,
}

/// Rounds to f16, as references keep embeddings. Errors (kind model): a value that is too large for that.
pub fn to_f16(embedding: &ImageEmbedding) -> Result<Vec<f16>> {
    let values: Vec<f16> = embedding.data.iter().map(|x| f16::from_f32(*x)).collect();
    match values.iter().all(|x| x.is_finite()) {
        true => Ok(values),
        false => Err(Error::model("the embedding of the picture is too large for f16")),
    }
}

/// Holds rows of `n` values against those of the reference; as many of both. Two that are all zeros are equal.
pub fn distance(reference: &[f16], found: &[f16], n: usize) -> Distance {
    let (mut cosines, mut min_cosine, mut n_rows) = (0.0, 1.0f64, 0);
    let (mut difference, mut length) = (0.0, 0.0);
    for (a, b) in reference.chunks_exact(n).zip(found.chunks_exact(n)) {
        let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
        for (a, b) in a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
            ab += a * b;
            aa += a * a;
            bb += b * b;
            difference += (a - b) * (a - b);
        }
        length += aa;
        // Equal rows have 1 exactly, however the root would be rounded.
        let cosine = if aa == bb && ab == aa { 1.0 } else { ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE) };
        cosines += cosine;
        min_cosine = min_cosine.min(cosine);
        n_rows += 1;
    }
    let relative_l2 = if difference == 0.0 { 0.0 } else { (difference / length.max(f64::MIN_POSITIVE)).sqrt() };
    Distance { cosine: cosines / f64::from(n_rows.max(1)), min_cosine, relative_l2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_of_rows() {
        let halves = |values: &[f32]| values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let check = |a: &[f32], b: &[f32], expect: [f64; 3]| {
            let found = distance(&halves(a), &halves(b), 2);
            let found = [found.cosine, found.min_cosine, found.relative_l2];
            assert!(found.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        check(&[3.0, 4.0, 1.0, 0.0], &[3.0, 4.0, 1.0, 0.0], [1.0, 1.0, 0.0]);
        check(&[3.0, 4.0, 1.0, 0.0], &[3.0, 4.0, 0.0, 1.0], [0.5, 0.0, (2.0f64 / 26.0).sqrt()]);
        check(&[0.0, 0.0], &[0.0, 0.0], [1.0, 1.0, 0.0]);
    }
}
