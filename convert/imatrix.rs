//! `--imatrix`: how much the columns of each weight count while it is quantised.
//!
//! Columns of a GGUF tensor are multiplied with the same values in which order ever its rows were written, and the file is
//! made by running such tensors: what the recipes do to rows, and the transpose, need no counterpart here.

use std::collections::BTreeMap;
use std::path::Path;

use qvl::error::{Error, Result};
use qvl::gguf::Metadata;
use qvl::imatrix::{Imatrix, SMALLEST};
use qvl::names::{imatrix as key, text_tensor};
use qvl::quant::GgmlType;

use crate::plan::{Plan, PlannedTensor};

/// No row is padded by a block of the largest size or more.
const MAX_PADDING: usize = 256;

/// An importance matrix on its way into a conversion.
pub struct Importance {
    file: String,
    dataset: Option<String>,
    n_chunks: u32,
    /// Values a column of each weight in the file, and the importance of its columns where it knows it.
    weights: BTreeMap<String, (usize, Option<Vec<f32>>)>,
}

impl Importance {
    /// Reads `path`. Errors (kind model): as [`Imatrix::read`].
    pub fn read(path: &Path) -> Result<Self> {
        let matrix = Imatrix::read(path)?;
        let weights = matrix.entries().map(|(name, e)| (name.to_owned(), (e.sums.len(), e.importance())));
        let (weights, dataset) = (weights.collect(), matrix.datasets.first().cloned());
        Ok(Importance { file: path.display().to_string(), dataset, n_chunks: matrix.n_chunks, weights })
    }

    /// Proves that it is of the planned model: it knows no weight that the model has not, and each has as many columns. Then
    /// tells what it does not know, a line for the user. Errors are of kind model.
    ///
    /// Rows may be padded here and not where the matrix was made, or the reverse: from now on it has the columns of the plan.
    pub fn fit(&mut self, plan: &Plan) -> Result<Option<String>> {
        let tensors: BTreeMap<&str, &PlannedTensor> =
            plan.text.tensors.iter().chain(&plan.vision.tensors).map(|t| (t.name.as_str(), t)).collect();
        let wrong =
            |what: String| Error::model(format!("{}: this importance matrix is of another model: {what}", self.file));
        for (name, (n_columns, importance)) in &mut self.weights {
            let Some(tensor) = tensors.get(name.as_str()) else {
                return Err(wrong(format!("it has sums for {name:?}, which this one has not")));
            };
            let expected = tensor.row_length() as usize;
            let padding = importance.as_deref().and_then(|values| values.get(expected..)).unwrap_or_default();
            let is_padded =
                (expected..expected + MAX_PADDING).contains(n_columns) && padding.iter().all(|v| *v <= SMALLEST);
            if !is_padded {
                return Err(wrong(format!("{name:?} has {n_columns} columns there and {expected} here")));
            }
            *n_columns = tensor.dims[0] as usize;
            if let Some(values) = importance {
                values.truncate(expected);
                values.resize(*n_columns, SMALLEST);
            }
        }
        let is_unknown = |t: &&PlannedTensor| is_weighed(t) && self.of(&t.name).is_none();
        let unknown: Vec<&str> = tensors.values().copied().filter(is_unknown).map(|t| t.name.as_str()).collect();
        Ok(unknown.first().map(|first| {
            let n = unknown.len();
            format!("the importance matrix does not know {n} tensors ({first}, ..): all their columns count alike")
        }))
    }

    /// The importance of the columns of the tensor `name`.
    pub fn of(&self, name: &str) -> Option<&[f32]> {
        self.weights.get(name)?.1.as_deref()
    }

    /// Writes down that it was used, as llama.cpp does.
    pub fn record(&self, metadata: &mut Metadata) {
        metadata.set(key::USED_FILE, self.file.as_str());
        metadata.set_opt(key::USED_DATASET, self.dataset.as_deref());
        metadata.set(key::USED_ENTRIES, self.weights.len() as u32);
        metadata.set(key::USED_CHUNKS, self.n_chunks);
    }
}

/// Whether quantising it looks at importance. The two tables of tokens are left out by those who make the files.
fn is_weighed(tensor: &PlannedTensor) -> bool {
    let is_token_table = [text_tensor::TOKEN_EMBD, text_tensor::OUTPUT].contains(&tensor.name.as_str());
    tensor.ty.is_quantised() && tensor.ty != GgmlType::Q8_0 && !is_token_table
}
