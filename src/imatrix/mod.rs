//! Importance matrices: how large the values are, on average, that each column of a weight is multiplied with. A quantiser
//! that knows it spends its error where it costs least.
//!
//! The file is llama.cpp's GGUF form of it, so that its tools read ours and we read theirs. Source: `tools/imatrix` and
//! `tools/quantize` of llama.cpp. Knows no model.

mod file;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ggml::WeightInput;

/// Columns whose inputs are this much smaller than the tensor's mean count as if they were not smaller: quantisers divide by
/// sums of importance, which must not be zero.
pub const SMALLEST: f32 = 1.0 / (1 << 30) as f32;

/// Squared inputs of weights, summed over what a model read. Having one says: every sum and count is finite and not
/// negative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// What was read, as its user named it.
    pub datasets: Vec<String>,
    /// How many texts were read.
    pub n_chunks: u32,
    /// Positions of such a text, on average.
    pub chunk_size: u32,
    entries: BTreeMap<String, Entry>,
}

/// What is known of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Sum of squares, a number a column.
    pub sums: Vec<f64>,
    /// Rows that were summed up.
    pub n_rows: u64,
}

impl Imatrix {
    /// Adds the rows that a weight is multiplied with. Cost: one pass over them.
    pub fn add(&mut self, input: WeightInput<'_>) {
        let WeightInput { name, rows, n_columns } = input;
        if !self.entries.contains_key(name) {
            self.entries.insert(name.to_owned(), Entry { sums: vec![0.0; n_columns], n_rows: 0 });
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        for row in rows.chunks_exact(n_columns) {
            entry.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            entry.n_rows += 1;
        }
    }

    /// The weights that something is known of, by name, in the order of their names.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// What is known of the weight of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Errors (kind model): a sum is no finite number, as happens with damaged weights.
    pub fn check(&self) -> Result<()> {
        let is_wrong = |entry: &Entry| entry.sums.iter().any(|sum| !(*sum as f32).is_finite());
        match self.entries.iter().find(|(_, entry)| is_wrong(entry)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::model(format!(
                "the inputs of {name:?} are not finite: weights are damaged or too large (see qvl inspect --verify)"
            ))),
        }
    }
}

impl Entry {
    /// The importance of each column for [`quantize_rows`](crate::ggml::quantize_rows): mean squares, over the power of two
    /// below their mean, which changes no ratio and keeps them near 1. `None` if the weight was multiplied with nothing but
    /// zeros, or with nothing.
    pub fn importance(&self) -> Option<Vec<f32>> {
        // In f32 as llama.cpp computes them, so that blocks are the same.
        let squares: Vec<f32> = self.sums.iter().map(|sum| *sum as f32 / self.n_rows as f32).collect();
        let mean = squares.iter().map(|x| f64::from(*x)).sum::<f64>() / squares.len() as f64;
        if self.n_rows == 0 || mean < f64::from(f32::MIN_POSITIVE) {
            return None;
        }
        let unit = mean.log2().floor().exp2() as f32;
        Some(squares.iter().map(|x| (x / unit).max(SMALLEST)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::quantize_rows;
    use crate::quant::GgmlType;

    fn add(imatrix: &mut Imatrix, name: &str, rows: &[f32]) {
        imatrix.add(WeightInput { name, rows, n_columns: 2 });
    }

    #[test]
    fn squares_are_summed_by_column() {
        let mut imatrix = Imatrix::default();
        add(&mut imatrix, "a", &[1.0, -2.0, 3.0, 0.5]);
        add(&mut imatrix, "a", &[0.0, 1.0]);
        add(&mut imatrix, "b", &[0.0, 0.0]);
        let a = imatrix.entry("a").unwrap();
        assert_eq!((a.sums.as_slice(), a.n_rows), (&[10.0, 5.25][..], 3));
        // Mean squares 10/3 and 7/4, whose mean is between 2 and 4.
        assert_eq!(a.importance(), Some(vec![10.0 / 3.0 / 2.0, 0.875]));
        assert_eq!(imatrix.entry("b").unwrap().importance(), None);
        imatrix.check().unwrap();
        add(&mut imatrix, "b", &[1e38, f32::NAN]);
        assert!(imatrix.check().unwrap_err().to_string().contains("the inputs of \"b\" are not finite"));
    }

    /// Only ratios count, to the last bit where a power of two is the difference: a longer calibration text or other
    /// units of the sums change nothing. And importance does count.
    #[test]
    fn only_ratios_count() {
        let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let weights: Vec<f32> = (0..256).map(|i| 1.0 + (i * 11 % 7) as f32 * (i % 3) as f32).collect();
        let larger: Vec<f32> = weights.iter().map(|w| w * 1024.0).collect();
        use GgmlType::*;
        for ty in [Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, Q8_0] {
            let bytes = |importance: Option<&[f32]>| {
                let mut out = vec![0; 2 * ty.row_bytes(256).unwrap() as usize];
                quantize_rows(ty, &values, 256, importance, &mut out);
                out
            };
            assert!(bytes(Some(&weights)) == bytes(Some(&larger)), "{ty}");
            assert_eq!(bytes(Some(&weights)) == bytes(None), ty == Q8_0, "{ty}");
        }
    }
}
